//! Volumes whose content comes from objects: what containers see of it, and how it follows the objects.

use std::{fs, time::Duration};

use base64::Engine as _;
use berth_integration::{
    Agent, eventually,
    scenario::{agent, apply, container, ended, exec, exec_in, explained, full_name, log, place, ready, with},
};
use serde_json::{Value, json};

/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";

fn config_map(agent: &Agent, name: &str, data: Value) {
    object(agent, "ConfigMap", name, json!({ "data": data }));
}

fn secret(agent: &Agent, name: &str, data: Value) {
    object(agent, "Secret", name, json!({ "stringData": data }));
}

fn object(agent: &Agent, kind: &str, name: &str, more: Value) {
    let object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": "default" } });
    agent.apply(&format!("{}-{name}.json", kind.to_lowercase()), &with(object, more).to_string());
}

/// A pod with the volumes, each mounted at `/<name>` in its one container `app`.
fn pod(script: &str, volumes: &[Value], more: Value) -> Value {
    let mounts: Vec<Value> = volumes
        .iter()
        .map(|volume| json!({ "name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().expect("a name")) }))
        .collect();
    let more = with(json!({ "volumeMounts": mounts }), more);
    json!({ "volumes": volumes, "containers": [container("app", script, more)] })
}

/// Waits until `script` prints `expected` in the pod's first container.
#[track_caller]
fn shows(agent: &Agent, pod: &str, script: &str, expected: &str) {
    let mut last = String::new();
    let log = || agent.log();
    for _ in 0..200 {
        last = exec(agent, pod, script);
        if last == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{script}: {last:?} instead of {expected:?}\nagent:\n{}", log());
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn files_have_the_content_modes_and_owners_they_are_given() {
    let place = place();
    let agent = agent(&place, &[]);
    config_map(&agent, "settings", json!({ "color": "red", "size": "large\n" }));
    object(&agent, "ConfigMap", "binary", json!({ "binaryData": { "raw": "AAEC/w==" } }));
    secret(&agent, "login", json!({ "user": "root", "password": "swordfish" }));
    let items = json!([{ "key": "color", "path": "deep/er/color", "mode": 0o400 }, { "key": "size", "path": "size" }]);
    let volumes = [
        json!({ "name": "all", "configMap": { "name": "settings" } }),
        json!({ "name": "some", "configMap": { "name": "settings", "items": items, "defaultMode": 0o640 } }),
        json!({ "name": "binary", "configMap": { "name": "binary" } }),
        json!({ "name": "secret", "secret": { "secretName": "login", "defaultMode": 0o400 } }),
        json!({ "name": "none", "configMap": { "name": "missing", "optional": true } }),
        json!({ "name": "nosecret", "secret": { "secretName": "missing", "optional": true } }),
    ];
    apply(&agent, "files", pod(WAIT, &volumes, json!({})));
    let user = json!({ "securityContext": { "runAsUser": 1000, "runAsGroup": 1000 } });
    apply(&agent, "user", pod(WAIT, &volumes, user.clone()));
    let group = with(pod(WAIT, &volumes, user), json!({ "securityContext": { "fsGroup": 2000 } }));
    apply(&agent, "group", group);
    let name = ready(&agent, "files");
    let show = |pod: &str, script: &str| exec(&agent, pod, script);
    assert_eq!(show(&name, "cat /all/color /all/size; ls /all"), "redlarge\ncolor\nsize\n");
    assert_eq!(
        show(&name, "cd /some; find . -follow -type f ! -path '*/..*' | sort; cat deep/er/color"),
        "./deep/er/color\n./size\nred"
    );
    assert_eq!(show(&name, "od -An -tx1 /binary/raw"), " 00 01 02 ff\n");
    assert_eq!(
        show(&name, "cat /secret/user /secret/password; ls /none /nosecret"),
        "rootswordfish/none:\n\n/nosecret:\n"
    );
    let stat = "stat -L -c '%a %u:%g %n' /all/color /some/deep /some/deep/er/color /some/size /secret/user";
    assert_eq!(
        show(&name, stat),
        "644 0:0 /all/color\n755 0:0 /some/deep\n400 0:0 /some/deep/er/color\n640 0:0 /some/size\n400 0:0 /secret/user\n"
    );
    // The layout programs rely on: links through ..data, which is a link to the generation.
    assert_eq!(show(&name, "readlink /some/deep; readlink /all/color"), "..data/deep\n..data/color\n");
    assert!(show(&name, "readlink /all/..data").starts_with("..20"));
    // Nobody writes, whatever the mount says.
    let write = "for d in /all /secret; do touch $d/x 2>&1; echo x 2>&1 >$d/..data/x; done; true";
    assert_eq!(show(&name, write).matches("Read-only file system").count(), 4);
    // In memory, but for config maps.
    let kind = "for d in all secret; do stat -f -c %T /$d; done";
    let kinds = show(&name, kind);
    let kinds: Vec<&str> = kinds.lines().collect();
    assert!(kinds[0] != "tmpfs" && kinds[1] == "tmpfs", "{kinds:?}");

    let name = ready(&agent, "user");
    let read = "for f in /all/color /some/size /secret/user; do cat $f 2>/dev/null && echo; done; true";
    assert_eq!(show(&name, read), "red\n", "others may read what its mode lets them");
    let name = ready(&agent, "group");
    assert_eq!(show(&name, read), "red\nlarge\n\nroot\n", "the group may");
    assert_eq!(
        show(&name, stat),
        "644 0:2000 /all/color\n2755 0:2000 /some/deep\n440 0:2000 /some/deep/er/color\n640 0:2000 /some/size\n440 0:2000 /secret/user\n"
    );

    // When the pod goes, so does what was in memory.
    let pods = place.path("root").join("pods");
    for name in ["files", "user", "group"] {
        agent.delete(&format!("{name}.json"));
    }
    for name in ["files", "user", "group"] {
        agent.gone(name);
    }
    assert_eq!(fs::read_dir(&pods).expect("the pods' directory").count(), 0);
    let mounts = place.run("cat", &["/proc/self/mountinfo"]).expect("it runs");
    assert!(!String::from_utf8_lossy(&mounts.stdout).contains("kubernetes.io~secret"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_running_container_sees_each_update_as_a_whole() {
    let place = place();
    let mut agent = agent(&place, &[]);
    config_map(&agent, "settings", json!({ "a": "1", "b": "1", "old": "1" }));
    secret(&agent, "login", json!({ "password": "1" }));
    // Files of one generation never differ.
    let watch = "cd /settings; while :; do g=$(readlink ..data); a=$(cat $g/a 2>/dev/null) && \
                 b=$(cat $g/b 2>/dev/null) && [ \"$a\" != \"$b\" ] && echo TORN $a $b; usleep 1000; done";
    let projected = json!({ "sources": [{ "configMap": { "name": "settings", "items": [{ "key": "a", "path": "a" }] } },
                                         { "secret": { "name": "login" } }] });
    let volumes = [
        json!({ "name": "settings", "configMap": { "name": "settings" } }),
        json!({ "name": "login", "secret": { "secretName": "login" } }),
        json!({ "name": "both", "projected": projected }),
        json!({ "name": "late", "configMap": { "name": "late", "optional": true } }),
    ];
    apply(&agent, "follows", pod(watch, &volumes, json!({})));
    let name = ready(&agent, "follows");
    for number in 2..10 {
        let number = number.to_string();
        config_map(&agent, "settings", json!({ "a": number, "b": number, "new": number }));
        shows(&agent, &name, "cat /settings/a /settings/new /both/a 2>/dev/null || true", &number.repeat(3));
    }
    assert_eq!(exec(&agent, &name, "ls /settings; ls -A /settings | grep -c '^[.][.]20'"), "a\nb\nnew\n1\n");
    secret(&agent, "login", json!({ "password": "2" }));
    shows(&agent, &name, "cat /login/password /both/password", "22");
    config_map(&agent, "late", json!({ "key": "here" }));
    shows(&agent, &name, "cat /late/key 2>/dev/null || true", "here");

    // Killed while the object changes: the next agent brings the volume up to date. The container goes on meanwhile.
    agent.kill();
    config_map(&agent, "settings", json!({ "a": "x", "b": "x" }));
    let mut agent = Agent::start(&place, &[]).expect("an agent");
    shows(&agent, &name, "cat /settings/a /both/a; ls /settings", "xxa\nb\n");
    // Gone while it runs: it keeps what it has, over a restart of the agent, too.
    agent.delete("configmap-settings.json");
    let warned = || agent.log().contains("configmap \"settings\" not found").then_some(());
    eventually("the missing object is told of", Duration::from_secs(10), warned);
    assert_eq!(exec(&agent, &name, "cat /settings/a /both/password"), "x2");
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    assert_eq!(full_name(&agent.ready("follows")), name);
    assert_eq!(exec(&agent, &name, "cat /settings/a /both/password"), "x2");
    config_map(&agent, "settings", json!({ "a": "back", "b": "back" }));
    shows(&agent, &name, "cat /settings/a", "back");
    let pod = agent.pod("follows").expect("the pod");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    assert!(!agent.ok(&["logs", &name]).contains("TORN"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_waits_for_what_is_missing_and_starts_when_it_appears() {
    let place = place();
    let agent = agent(&place, &[]);
    let of = |source: Value| pod(WAIT, &[with(json!({ "name": "v" }), source)], json!({}));
    apply(&agent, "config", of(json!({ "configMap": { "name": "x" } })));
    apply(&agent, "secret", of(json!({ "secret": { "secretName": "x" } })));
    apply(&agent, "key", of(json!({ "configMap": { "name": "y", "items": [{ "key": "none", "path": "p" }] } })));
    let sources = json!([{ "secret": { "name": "x" } }, { "configMap": { "name": "x" } }]);
    apply(&agent, "projected", of(json!({ "projected": { "sources": sources } })));
    config_map(&agent, "y", json!({ "other": "1" }));
    explained(&agent, "config", &["ContainerCreating", "FailedMount", r#"configmap \"x\" not found"#, "Pending"]);
    explained(&agent, "secret", &["ContainerCreating", "FailedMount", r#"secret \"x\" not found"#]);
    explained(&agent, "key", &["configmap references non-existent config key: none"]);
    explained(&agent, "projected", &[r#"[secret \"x\" not found, configmap \"x\" not found]"#]);
    config_map(&agent, "x", json!({ "key": "now" }));
    let name = ready(&agent, "config");
    assert_eq!(exec(&agent, &name, "cat /v/key"), "now");
    explained(&agent, "projected", &["FailedMount", r#"secret \"x\" not found"#]);
    secret(&agent, "x", json!({ "key": "now" }));
    ready(&agent, "secret");
    ready(&agent, "projected");
    config_map(&agent, "y", json!({ "none": "1" }));
    ready(&agent, "key");
    // Of another namespace is not there.
    let other = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "z", "namespace": "other" } });
    agent.apply("other.json", &other.to_string());
    apply(&agent, "elsewhere", of(json!({ "configMap": { "name": "z" } })));
    explained(&agent, "elsewhere", &[r#"configmap \"z\" not found"#]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn the_downward_api_shows_the_pod_to_its_containers() {
    let place = place();
    let agent = agent(&place, &[]);
    let field = |path: &str, field: &str| json!({ "path": path, "fieldRef": { "fieldPath": field } });
    let resource = |path: &str, resource: &str, divisor: &str| json!({ "path": path, "resourceFieldRef": { "containerName": "app", "resource": resource, "divisor": divisor } });
    let items = json!([
        field("labels", "metadata.labels"),
        field("annotations", "metadata.annotations"),
        with(field("about/name", "metadata.name"), json!({ "mode": 0o400 })),
        field("about/one", "metadata.labels['app']"),
        field("about/uid", "metadata.uid"),
        resource("limit", "limits.memory", "1Mi"),
        resource("request", "requests.cpu", "1m"),
    ]);
    let volumes = [
        json!({ "name": "info", "downwardAPI": { "items": items, "defaultMode": 0o440 } }),
        json!({ "name": "both", "projected": { "sources": [{ "downwardAPI": { "items": [field("name", "metadata.name")] } }] } }),
    ];
    let more = json!({ "resources": { "limits": { "memory": "64Mi" }, "requests": { "cpu": "250m" } } });
    let spec = with(json!({ "terminationGracePeriodSeconds": 0 }), pod(WAIT, &volumes, more));
    let metadata =
        json!({ "name": "down", "labels": { "zone": "b", "app": "shop" }, "annotations": { "note": "a \"b\"\n" } });
    agent.apply(
        "down.json",
        &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }).to_string(),
    );
    let name = ready(&agent, "down");
    let uid = agent.pod("down").expect("the pod")["metadata"]["uid"].as_str().expect("a UID").to_owned();
    assert_eq!(exec(&agent, &name, "cat /info/labels"), "app=\"shop\"\nzone=\"b\"");
    assert!(exec(&agent, &name, "cat /info/annotations").contains("note=\"a \\\"b\\\"\\n\""));
    let rest = "for f in about/name about/one about/uid limit request; do cat /info/$f; echo; done; cat /both/name";
    assert_eq!(exec(&agent, &name, rest), format!("{name}\nshop\n{uid}\n64\n250\n{name}"));
    let stat = "stat -L -c %a /info/about/name /info/limit; stat -f -c %T /info";
    assert_eq!(exec(&agent, &name, stat), "400\n440\ntmpfs\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_sub_path_shows_what_is_there_at_each_start() {
    let place = place();
    let agent = agent(&place, &[]);
    config_map(&agent, "settings", json!({ "file": "1", "dir.file": "1" }));
    let items = json!([{ "key": "file", "path": "file" }, { "key": "dir.file", "path": "dir/file" }]);
    let mounts = json!([
        { "name": "v", "mountPath": "/etc/one.conf", "subPath": "file" },
        { "name": "v", "mountPath": "/deep.conf", "subPath": "dir/file" },
        { "name": "v", "mountPath": "/expr", "subPathExpr": "$(PART)/file" },
        { "name": "v", "mountPath": "/v" },
        { "name": "scratch", "mountPath": "/v/scratch" },
    ]);
    let script = "echo $(cat /etc/one.conf /deep.conf /expr); [ -f /v/scratch/again ] || trap 'touch /v/scratch/again; exit 1' TERM; \
                  while :; do sleep 0.05; done";
    let more = json!({ "volumeMounts": mounts, "env": [{ "name": "PART", "value": "dir" }] });
    let spec = json!({
        "volumes": [
            { "name": "v", "configMap": { "name": "settings", "items": items } },
            { "name": "scratch", "emptyDir": {} },
        ],
        "containers": [container("app", script, more)],
    });
    apply(&agent, "part", spec);
    let name = ready(&agent, "part");
    log(&agent, &name, "app", "111");
    config_map(&agent, "settings", json!({ "file": "2", "dir.file": "2" }));
    shows(&agent, &name, "cat /v/file /v/dir/file", "22");
    assert_eq!(exec(&agent, &name, "cat /etc/one.conf /deep.conf /expr"), "111", "as upstream: until the next start");
    assert!(exec(&agent, &name, "echo x 2>&1 >/etc/one.conf || true").contains("Read-only"));
    exec(&agent, &name, "kill -TERM 1");
    log(&agent, &name, "app", "222");
    agent.until("part", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_expanded_sub_path_is_what_conformance_wants_of_it() {
    let place = place();
    let agent = agent(&place, &[]);
    let of = |expression: &str, value: &str, script: &str| {
        let mounts = json!([
            { "name": "v", "mountPath": "/part", "subPathExpr": expression },
            { "name": "v", "mountPath": "/v" },
        ]);
        let env = json!([
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "VALUE", "value": value },
        ]);
        let app = container("app", script, json!({ "volumeMounts": mounts, "env": env }));
        json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "containers": [app], "restartPolicy": "Never" })
    };
    let write = "echo through >/part/file && cat /v/$POD_NAME/file";
    apply(&agent, "through", of("$(POD_NAME)", "", write));
    apply(&agent, "absolute", of("$(VALUE)", "/tmp", WAIT));
    apply(&agent, "backticks", of("$(VALUE)", "..", WAIT));
    apply(&agent, "unknown", of("$(NONE)", "", WAIT));
    let name = ended(&agent, "through");
    log(&agent, &name, "app", "through");
    explained(
        &agent,
        "absolute",
        &["CreateContainerConfigError", r#"error SubPath \"/tmp\" must not be an absolute path"#],
    );
    explained(&agent, "backticks", &["CreateContainerConfigError", r#"unable to provision SubPath \"..\""#]);
    explained(&agent, "unknown", &["CreateContainerConfigError", r#"missing value for \"NONE\""#]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_cannot_be_is_said_by_name() {
    let place = place();
    let agent = agent(&place, &[]);
    let of = |source: Value| pod(WAIT, &[with(json!({ "name": "v" }), source)], json!({}));
    let item = |path: &str| json!({ "configMap": { "name": "c", "items": [{ "key": "k", "path": path }] } });
    apply(&agent, "upwards", of(item("../x")));
    apply(&agent, "absolute", of(item("/x")));
    apply(&agent, "reserved", of(item("..data")));
    apply(&agent, "mode", of(json!({ "secret": { "secretName": "s", "defaultMode": 0o1000 } })));
    apply(
        &agent,
        "certificate",
        of(json!({ "projected": { "sources": [
            { "podCertificate": { "signerName": "example.com/s", "keyType": "ED25519", "credentialBundlePath": "b" } }
        ] } })),
    );
    let words = [
        ("upwards.json", "must not contain '..'"),
        ("absolute.json", "must be a relative path"),
        ("reserved.json", "must not start with '..'"),
        ("mode.json", "must be a number between 0 and 0777 (octal), both inclusive"),
    ];
    let problems = || {
        let text = agent.ok(&["pods", "--problems"]);
        words.iter().all(|(file, _)| text.contains(file)).then_some(text)
    };
    let text = eventually("all are refused", Duration::from_secs(10), problems);
    for (file, rule) in words {
        assert!(text.contains(rule), "{file}: {text}");
    }
    explained(&agent, "certificate", &["podCertificate"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_is_immutable_stays_what_it_is() {
    let place = place();
    let agent = agent(&place, &[]);
    let of = |text: &str| json!({ "data": { "key": text }, "immutable": true });
    object(&agent, "ConfigMap", "fixed", of("first"));
    let volumes = [json!({ "name": "v", "configMap": { "name": "fixed" } })];
    apply(&agent, "fixed", pod(WAIT, &volumes, json!({})));
    let name = ready(&agent, "fixed");
    object(&agent, "ConfigMap", "fixed", of("second"));
    let refused = || agent.ok(&["pods", "--problems"]).contains("immutable").then_some(());
    eventually("the change is refused", Duration::from_secs(10), refused);
    assert_eq!(exec_in(&agent, &name, "app", "cat /v/key"), "first");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_token_says_who_the_pod_is_and_is_for_its_user_alone() {
    let place = place();
    let agent = agent(&place, &[]);
    object(&agent, "ServiceAccount", "robot", json!({}));
    let token = |audience: &str| json!({ "path": "token", "audience": audience, "expirationSeconds": 600 });
    let volume = |audience: &str| json!({ "name": "id", "projected": { "sources": [{ "serviceAccountToken": token(audience) }] } });
    let user = json!({ "serviceAccountName": "robot", "securityContext": { "runAsUser": 1000 } });
    apply(&agent, "web", with(pod(WAIT, &[volume("vault")], json!({})), user));
    let nobody = json!({ "serviceAccountName": "nobody" });
    apply(&agent, "nobody", with(pod(WAIT, &[volume("vault")], json!({})), nobody));
    let name = ready(&agent, "web");
    assert_eq!(
        exec(&agent, &name, "cd /id; stat -c '%a %u' $(readlink -f token); stat -f -c %T ."),
        "600 1000\ntmpfs\n"
    );
    let token = exec(&agent, &name, "cat /id/token");
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "{token}");
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(parts[1]).expect("base64");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    assert_eq!((&claims["sub"], &claims["aud"]), (&json!("system:serviceaccount:default:robot"), &json!(["vault"])));
    assert_eq!(claims["kubernetes.io"]["pod"]["name"], name.as_str());
    assert_eq!(claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(end, start)| end - start), Some(600));
    // Without its account a pod waits, and starts when that is there.
    agent.until("nobody", "told what is missing", |pod| {
        pod["status"].to_string().contains("failed to fetch token: serviceaccounts \\\"nobody\\\" not found")
    });
    object(&agent, "ServiceAccount", "nobody", json!({}));
    ready(&agent, "nobody");
}
