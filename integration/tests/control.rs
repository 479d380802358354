//! The control plane with a real kubectl.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use berth_integration::{
    control::{ControlPlane, columns, require_kubectl, write},
    eventually,
};
use serde_json::{Value, json};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: 'registry.example/web:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red}
";

fn start() -> ControlPlane {
    require_kubectl().unwrap();
    ControlPlane::start(&[]).unwrap()
}

#[test]
#[ignore = "kubectl: talks to a control plane of its own on loopback"]
fn kubectl_finds_its_way_around() {
    let mut control = start();
    let version = control.ok(&["version", "-o", "json"]);
    let version: Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["serverVersion"]["minor"], "36");
    let namespaces = control.ok(&["get", "namespaces"]);
    let names: Vec<&str> = namespaces.lines().skip(1).map(|line| columns(line)[0]).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    assert!(namespaces.lines().nth(1).unwrap().contains("Active"));
    let resources = control.ok(&["api-resources", "-o", "name"]);
    for name in ["pods", "deployments.apps", "nodes", "leases.coordination.k8s.io"] {
        assert!(resources.lines().any(|line| line == name), "{name} in {resources}");
    }
    let all = control.ok(&["api-resources", "--categories=all", "-o", "name"]);
    assert_eq!(
        all.lines().collect::<Vec<_>>(),
        ["pods", "services", "daemonsets.apps", "deployments.apps", "replicasets.apps", "jobs.batch"]
    );
    let versions = control.ok(&["api-versions"]);
    assert!(versions.lines().any(|line| line == "apps/v1") && versions.lines().any(|line| line == "v1"));
    let who = control.ok(&["auth", "whoami", "-o", "json"]);
    let who: Value = serde_json::from_str(&who).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "kubernetes-admin");
    assert_eq!(control.ok(&["auth", "can-i", "delete", "nodes"]).trim(), "yes");
    let refused = control.run(&["auth", "can-i", "list", "pods", "--as", "jane"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&refused.stdout).trim(), "no");
    let message = control.refused(&["get", "pods", "--as", "jane"]);
    assert!(message.contains("pods is forbidden: User \"jane\" cannot list resource \"pods\""), "{message}");
    assert_eq!(control.ok(&["get", "--raw", "/readyz"]), "ok");
    assert!(control.ok(&["get", "--raw", "/livez?verbose"]).ends_with("livez check passed\n"));
    // What nobody would heed is not there.
    assert!(control.refused(&["get", "roles"]).contains("the server doesn't have a resource type"));
    assert!(control.refused(&["get", "nothings"]).contains("the server doesn't have a resource type \"nothings\""));
    let secret = control.path("root/control/pki/ca.key");
    assert_eq!(fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(control.path("kubeconfig")).unwrap().permissions().mode() & 0o777, 0o600);
    control.stop();
}

#[test]
#[ignore = "kubectl: talks to a control plane of its own on loopback"]
fn objects_are_applied_changed_and_removed() {
    let control = start();
    let file = write(&control.path("web.yaml"), DEPLOYMENT);
    let applied = control.ok(&["apply", "-f", &file]);
    assert_eq!(applied, "deployment.apps/web created\nconfigmap/settings created\n");
    assert_eq!(control.ok(&["apply", "-f", &file]), "deployment.apps/web unchanged\nconfigmap/settings unchanged\n");
    let diff = control.run(&["diff", "-f", &file]).unwrap();
    // Without server-side apply, which kubectl diff asks for only when told to, there is no difference either.
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    let changed =
        DEPLOYMENT.replace("web:1", "web:2").replace("ports: [{containerPort: 80}]", "env: [{name: A, value: b}]");
    let file = write(&control.path("web.yaml"), &changed);
    assert!(control.ok(&["apply", "-f", &file]).starts_with("deployment.apps/web configured\n"));
    let web = control.object(&["deployment", "web"]);
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], container.get("ports")), (&json!("registry.example/web:2"), None));
    assert_eq!((&container["env"][0]["value"], &web["metadata"]["generation"]), (&json!("b"), &json!(2)));
    assert_eq!(web["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");

    control.ok(&["scale", "deployment", "web", "--replicas=5"]);
    control.ok(&["set", "image", "deployment/web", "web=registry.example/web:3"]);
    control.ok(&["label", "deployment", "web", "tier=front"]);
    control.ok(&["annotate", "deployment", "web", "note=x"]);
    control.ok(&[
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/spec/paused","value":true}]"#,
    ]);
    control.ok(&["patch", "deployment", "web", "--type=merge", "-p", r#"{"spec":{"minReadySeconds":3}}"#]);
    let image = "{.spec.replicas} {.spec.template.spec.containers[0].image} {.metadata.labels.tier} {.spec.minReadySeconds} {.spec.paused}";
    let found = control.ok(&["get", "deployment", "web", "-o", &format!("jsonpath={image}")]);
    assert_eq!(found, "5 registry.example/web:3 front 3 true");
    let edited = control.path("edit.sh");
    write(&edited, "#!/bin/sh\nsed -i 's/colour: red/colour: blue/' \"$1\"\n");
    fs::set_permissions(&edited, fs::Permissions::from_mode(0o755)).unwrap();
    let output = control.command(&["edit", "configmap", "settings"]).env("KUBE_EDITOR", &edited).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(control.object(&["configmap", "settings"])["data"]["colour"], "blue");
    let replaced = control.ok(&["get", "configmap", "settings", "-o", "yaml"]).replace("blue", "green");
    control.ok_with(&["replace", "-f", "-"], &replaced);
    assert_eq!(control.object(&["configmap", "settings"])["data"]["colour"], "green");
    let stale = control.with_input(&["replace", "-f", "-"], &replaced).unwrap();
    assert!(String::from_utf8_lossy(&stale.stderr).contains("the object has been modified"), "{stale:?}");

    let table = control.ok(&["get", "deployments", "-o", "wide"]);
    let header: Vec<&str> = columns(table.lines().next().unwrap());
    assert_eq!(header, ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]);
    assert!(table.contains("0/5") && table.contains("app=web"), "{table}");
    assert_eq!(control.ok(&["get", "deploy", "-l", "tier=front", "-o", "name"]), "deployment.apps/web\n");
    assert_eq!(
        control.ok(&["get", "cm", "--field-selector", "metadata.name=settings", "-o", "name"]),
        "configmap/settings\n"
    );
    assert!(control.ok(&["get", "all"]).contains("deployment.apps/web"));
    assert!(control.ok(&["describe", "deployment", "web"]).contains("registry.example/web:3"));
    assert_eq!(
        control.ok(&["delete", "-f", &file]),
        "deployment.apps \"web\" deleted\nconfigmap \"settings\" deleted\n"
    );
    assert!(control.refused(&["get", "deployment", "web"]).contains("deployments.apps \"web\" not found"));
}

#[test]
#[ignore = "kubectl: talks to a control plane of its own on loopback"]
fn everything_that_create_knows_is_created() {
    let control = start();
    for line in [
        "create namespace shop",
        "-n shop create configmap a --from-literal=x=1",
        "-n shop create secret generic b --from-literal=pin=4711",
        "-n shop create serviceaccount c",
        "-n shop create deployment d --image=busybox:1 --replicas=2",
        "-n shop create job e --image=busybox:1",
        "-n shop create service clusterip h --tcp=80:8080",
        "-n shop run i --image=busybox:1 --restart=Never",
        "create priorityclass l --value=7",
    ] {
        control.ok(&line.split(' ').collect::<Vec<_>>());
    }
    let secret = control.object(&["-n", "shop", "secret", "b"]);
    assert_eq!(secret["data"]["pin"], "NDcxMQ==");
    let pod = control.object(&["-n", "shop", "pod", "i"]);
    assert_eq!((&pod["status"]["phase"], &pod["spec"]["restartPolicy"]), (&json!("Pending"), &json!("Never")));
    let service = control.object(&["-n", "shop", "service", "h"]);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 8080);
    let job = control.object(&["-n", "shop", "job", "e"]);
    assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], job["metadata"]["uid"]);
    for (kind, row) in [
        ("configmaps", vec!["a", "1"]),
        ("secrets", vec!["b", "Opaque", "1"]),
        ("deployments", vec!["d", "0/2", "0", "0"]),
        ("pods", vec!["i", "0/1", "Pending", "0"]),
        ("jobs", vec!["e", "Running", "0/1"]),
    ] {
        let table = control.ok(&["-n", "shop", "get", kind, "--no-headers"]);
        let found = columns(table.lines().next().unwrap());
        assert_eq!(found[..row.len()], row, "{kind}");
    }
    // A name that is taken, a name that is none, and a field of the wrong kind.
    assert!(
        control
            .refused(&["create", "namespace", "shop"])
            .contains("(AlreadyExists): namespaces \"shop\" already exists")
    );
    assert!(control.refused(&["create", "namespace", "No"]).contains("a lowercase RFC 1123 label"));
    let wrong = control
        .with_input(&["create", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: z}\ndatta: {a: b}\n")
        .unwrap();
    let message = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(message.contains("strict decoding error: unknown field \"datta\""), "{message}");
    // Deleting a namespace waits until all of it is gone.
    control.ok(&["delete", "namespace", "shop"]);
    assert!(control.refused(&["get", "namespace", "shop"]).contains("NotFound"));
    assert!(control.refused(&["delete", "namespace", "kube-system"]).contains("this namespace may not be deleted"));
}

#[test]
#[ignore = "kubectl: talks to a control plane of its own on loopback"]
fn kubectl_watches_and_waits() {
    let control = start();
    let watching = control.follow(&["get", "configmaps", "-w", "--output-watch-events"]).unwrap();
    control.ok(&["create", "configmap", "a", "--from-literal=x=1"]);
    assert_eq!(columns(&watching.line().unwrap())[..3], ["EVENT", "NAME", "DATA"]);
    assert_eq!(columns(&watching.line().unwrap())[..3], ["ADDED", "a", "1"]);
    control.ok(&["patch", "configmap", "a", "-p", r#"{"data":{"y":"2"}}"#]);
    assert_eq!(columns(&watching.line().unwrap())[..3], ["MODIFIED", "a", "2"]);
    control.ok(&["run", "p", "--image=busybox:1"]);
    let patch = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    let mut waiting = control
        .command(&["wait", "pod/p", "--for=condition=Ready", "--timeout=20s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    control.ok(&["patch", "pod", "p", "--subresource=status", "--type=merge", "-p", patch]);
    assert!(waiting.wait().unwrap().success());
    control.ok(&["wait", "pod/p", "--for=jsonpath={.status.phase}=Running", "--timeout=20s"]);
    control.ok(&["delete", "configmap", "a"]);
    assert_eq!(columns(&watching.line().unwrap())[..2], ["DELETED", "a"]);
    let finalizer = r#"{"metadata":{"finalizers":["example.com/x"]}}"#;
    control.ok(&["create", "configmap", "b"]);
    control.ok(&["patch", "configmap", "b", "-p", finalizer]);
    control.ok(&["delete", "configmap", "b", "--wait=false"]);
    let mut waiting = control.command(&["wait", "configmap/b", "--for=delete", "--timeout=20s"]).spawn().unwrap();
    control.ok(&["patch", "configmap", "b", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    assert!(waiting.wait().unwrap().success());
}

#[test]
#[ignore = "kubectl: talks to a control plane of its own on loopback"]
fn types_are_explained_from_their_schemas() {
    let control = start();
    let text = control.ok(&["explain", "pod.spec.containers"]);
    assert!(text.contains("KIND:       Pod") && text.contains("FIELD: containers <[]Container>"), "{text}");
    assert!(text.contains("imagePullPolicy"), "{text}");
    let text = control.ok(&["explain", "deployment.spec.strategy.rollingUpdate.maxSurge"]);
    assert!(text.contains("GROUP:      apps") && text.contains("maxSurge <IntOrString>"), "{text}");
    let text = control.ok(&["explain", "service", "--recursive"]);
    assert!(text.contains("clusterIP") && text.contains("targetPort"), "{text}");
}

#[test]
#[ignore = "kubectl: talks to a control plane of its own on loopback"]
fn what_was_acknowledged_survives_kill_9() {
    let mut control = start();
    for round in 0..3 {
        let mut created = Vec::new();
        let names: Vec<String> = (0..20).map(|index| format!("r{round}-{index}")).collect();
        let children: Vec<_> = names
            .iter()
            .map(|name| {
                let mut command = control.command(&["create", "configmap", name]);
                (name, command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
            })
            .collect();
        // In the midst of it: when the first few are there.
        eventually("a few are created", std::time::Duration::from_secs(30), || {
            let found = control.run(&["get", "configmaps", "-o", "name"]).ok()?;
            (String::from_utf8_lossy(&found.stdout).matches(&format!("/r{round}-")).count() >= 3).then_some(())
        });
        control.kill();
        for (name, mut child) in children {
            if child.wait().unwrap().success() {
                created.push(name);
            }
        }
        control.begin().unwrap();
        let found = control.ok(&["get", "configmaps", "-o", "name"]);
        for name in created {
            assert!(found.lines().any(|line| line == format!("configmap/{name}")), "{name} is lost");
        }
    }
    let second = std::process::Command::new(berth_integration::agent::berth())
        .arg("--root-dir")
        .arg(control.path("root"))
        .args(["control-plane", "--secure-port", "0"])
        .output()
        .unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains("store.redb"), "{message}");
}

#[test]
#[ignore = "kubectl: talks to a control plane of its own on loopback"]
fn only_those_who_are_known_are_let_in() {
    require_kubectl().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let tokens = write(&directory.path().join("tokens"), "the-token,jane,1,system:masters\n");
    let control = ControlPlane::start(&["--token-auth-file", &tokens]).unwrap();
    let config = fs::read_to_string(control.path("kubeconfig")).unwrap();
    let server = config.lines().find_map(|line| line.trim().strip_prefix("server: ")).unwrap();
    let other = ControlPlane::start(&[]).unwrap();
    let elsewhere = fs::read_to_string(other.path("kubeconfig")).unwrap();
    // The server of one, the certificate of another authority.
    let user = elsewhere.split("users:").nth(1).unwrap().split("contexts:").next().unwrap();
    let own = config.split("users:").nth(1).unwrap().split("contexts:").next().unwrap();
    let forged = write(&control.path("forged"), &config.replace(own, user));
    let message = control.refused(&["--kubeconfig", &forged, "get", "pods"]);
    assert!(message.contains("You must be logged in") || message.contains("Unauthorized"), "{message}");
    let with = |token: &str| {
        let empty = write(&control.path("empty"), "apiVersion: v1\nkind: Config\n");
        let arguments = ["--kubeconfig", &empty, "--server", server, "--insecure-skip-tls-verify", "--token", token];
        control
            .run(&[&arguments[..], &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]].concat())
            .unwrap()
    };
    assert_eq!(String::from_utf8_lossy(&with("the-token").stdout), "jane");
    assert!(!with("another").status.success());
}
