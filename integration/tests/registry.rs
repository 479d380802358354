//! Images from a real registry.

use std::{fs, path::PathBuf, time::Duration};

use berth_integration::{
    Agent, Place, eventually, fixtures,
    help::{address, agent as with_busybox, config, container, get, manifest, name, place, run},
    registry::Registry,
};
use serde_json::{Value, json};

fn agent<'a>(place: &'a Place, more: &[&str]) -> Agent<'a> {
    Agent::start(place, more).expect("an agent")
}

fn images(agent: &Agent) -> Vec<Value> {
    serde_json::from_str::<Value>(&agent.ok(&["images", "-o", "json"]))
        .expect("JSON")
        .as_array()
        .expect("a list")
        .clone()
}

fn pod(name: &str, image: &str, policy: Option<&str>) -> String {
    let mut pod = manifest(name, "echo hello; exec sleep 1000");
    pod["spec"]["containers"][0]["image"] = json!(image);
    if let Some(policy) = policy {
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    }
    pod.to_string()
}

/// The only file under `fixture/blobs` that is the largest: the layer.
fn largest(directory: &std::path::Path) -> PathBuf {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { todo.push(path) } else { files.push(path) }
        }
    }
    files.into_iter().max_by_key(|file| fs::metadata(file).map_or(0, |data| data.len())).expect("a blob")
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn images_come_by_tag_by_digest_through_an_index_and_in_zstd() {
    let place = place();
    let registry = Registry::start(&place, 5000, false);
    let digest = registry.push("busybox:1", "test/busybox:1", "");
    let agent = agent(&place, &[]);
    agent.apply("tag.json", &pod("tag", &registry.reference("test/busybox:1"), None));
    let by_tag = agent.ready("tag");
    let image = container(&by_tag, 0)["imageID"].as_str().expect("an imageID");
    assert!(image.contains("sha256:"), "{image}");
    let by_digest = registry.reference(&format!("test/busybox@{digest}"));
    agent.apply("digest.json", &pod("digest", &by_digest, None));
    agent.ready("digest");
    assert_eq!(images(&agent).len(), 1, "the same image by two names");

    // An index with one entry for this machine and one for another.
    let raw = |reference: &str| {
        run(
            &place,
            &format!(
                "skopeo --insecure-policy inspect --raw --tls-verify=false docker://{}",
                registry.reference(reference)
            ),
        )
    };
    let size = raw("test/busybox:1").len();
    let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |architecture: &str| {
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture } })
    };
    let index = |architectures: &[&str]| {
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": architectures.iter().map(|name| entry(name)).collect::<Vec<_>>() })
        .to_string()
    };
    for (tag, architectures) in [("index", &["s390x", machine][..]), ("foreign", &["s390x"][..])] {
        let file = place.path("index.json");
        fs::write(&file, index(architectures)).expect("write");
        run(
            &place,
            &format!(
                "curl --silent --fail -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' \
                 --data-binary @{} http://127.0.0.1:5000/v2/test/busybox/manifests/{tag}",
                file.display()
            ),
        );
    }
    agent.ok(&["pull", &registry.reference("test/busybox:index")]);
    let refused = agent.cli(&["pull", &registry.reference("test/busybox:foreign")]).expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("platform") && said.contains("s390x"), "{said}");

    // zstd, which this skopeo does not make by itself: the layer and its size and digest are put into the manifest.
    push_zstd(&place);
    agent.apply("zstd.json", &pod("zstd", &registry.reference("test/zstd:1"), None));
    agent.ready("zstd");
}

/// Makes `test/zstd:1` of `test/busybox:1`, its layer compressed with zstd.
fn push_zstd(place: &Place) {
    let script = format!(
        r#"set -eu; cd {directory}
        base=http://127.0.0.1:5000/v2/test/busybox; to=http://127.0.0.1:5000/v2/test/zstd
        type=application/vnd.oci.image.manifest.v1+json
        curl -sSf -H "Accept: $type" -o manifest $base/manifests/1
        layer=$(jq -r .layers[0].digest manifest); config=$(jq -r .config.digest manifest)
        curl -sSf $base/blobs/$layer | gzip -dc | zstd -q -c > layer
        curl -sSf -o config $base/blobs/$config
        for file in layer config; do
            digest=sha256:$(sha256sum $file | cut -d' ' -f1)
            place=$(curl -sSf -i -X POST $to/blobs/uploads/ | tr -d '\r' | sed -n 's/^Location: //Ip')
            curl -sSf -X PUT -H 'Content-Type: application/octet-stream' --data-binary @$file "$place&digest=$digest"
        done
        jq --arg digest sha256:$(sha256sum layer | cut -d' ' -f1) --argjson size $(stat -c %s layer) '
            .mediaType = "application/vnd.oci.image.manifest.v1+json"
            | .layers[0] |= {{ mediaType: "application/vnd.oci.image.layer.v1.tar+zstd", digest: $digest, size: $size }}' \
            manifest > zstd
        curl -sSf -X PUT -H "Content-Type: $type" --data-binary @zstd $to/manifests/1"#,
        directory = place.dir.path().display(),
    );
    run(place, &script);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_registry_that_wants_a_password_gets_it_and_nobody_else_does() {
    let place = place();
    let registry = Registry::start(&place, 5000, true);
    registry.push("busybox:1", "private/busybox:1", "");
    let reference = registry.reference("private/busybox:1");
    let password = place.path("password");
    fs::write(&password, "secret\n").expect("write");
    let password = password.to_string_lossy().into_owned();
    {
        let mut agent = agent(&place, &[]);
        agent.apply("web.json", &pod("web", &reference, None));
        let pod = agent.until("web", "refused", |pod| pod["status"].to_string().contains("unauthorized"));
        assert!(pod["status"].to_string().contains("127.0.0.1:5000"), "the registry is named: {:#}", pod["status"]);
        agent.ok(&["pull", &reference, "--username", "user", "--password-file", &password]);
        fs::write(place.path("wrong"), "wrong").expect("write");
        let wrong = place.path("wrong").to_string_lossy().into_owned();
        let refused = agent.cli(&["pull", &reference, "--username", "user", "--password-file", &wrong]).expect("runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("unauthorized"), "{said}");
        assert!(!said.contains("wrong\""), "a password is not printed: {said}");
        agent.delete("web.json");
        agent.gone("web");
        agent.ok(&["rmi", &reference]);
        agent.stop();
    }
    let host = format!("registries: [{{ host: '127.0.0.1:5000', username: user, passwordFile: {password} }}]");
    let file = config(&place, "", &host);
    let agent = agent(&place, &["--config", &file]);
    agent.apply("web.json", &pod("web", &reference, None));
    agent.ready("web");
}

/// A pull secret of the entries of `auths`.
fn pull_secret(name: &str, auths: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "type": "kubernetes.io/dockerconfigjson",
            "stringData": { ".dockerconfigjson": json!({ "auths": auths }).to_string() } })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_brings_its_own_credentials() {
    let place = place();
    let registry = Registry::start(&place, 5000, true);
    for image in ["own", "account", "late", "other"] {
        registry.push("busybox:1", &format!("{image}/busybox:1"), "");
    }
    let with = |name: &str, fields: Value| {
        let mut pod: Value =
            serde_json::from_str(&pod(name, &registry.reference(&format!("{name}/busybox:1")), None)).expect("JSON");
        for (field, value) in fields.as_object().expect("an object") {
            pod["spec"][field] = value.clone();
        }
        pod
    };
    let agent = agent(&place, &[]);
    let good = json!({ "username": "user", "password": "secret" });
    let wrong = json!({ "auth": "dXNlcjpzZWNyZXRseSB3cm9uZw==" });
    // The most specific credentials are wrong; the next ones are tried.
    let both = json!({ "127.0.0.1:5000/own": wrong, "http://127.0.0.1:5000/v2/": good, "127.0.0.1:5001": wrong });
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "robot" },
                          "imagePullSecrets": [{ "name": "works" }] });
    let items = json!([
        with("own", json!({ "imagePullSecrets": [{ "name": "both" }] })),
        with("account", json!({ "serviceAccountName": "robot" })),
        with("other", json!({ "imagePullSecrets": [{ "name": "elsewhere" }] })),
        with("late", json!({ "imagePullSecrets": [{ "name": "late" }] })),
        account,
        pull_secret("both", both),
        pull_secret("works", json!({ "127.0.0.1:5000": good })),
        pull_secret("elsewhere", json!({ "127.0.0.1:5000/own": good })),
    ]);
    agent.apply("all.json", &json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string());
    agent.ready("own");
    agent.ready("account");
    agent.until("other", "refused", |pod| pod["status"].to_string().contains("unauthorized"));
    agent.until("late", "refused", |pod| pod["status"].to_string().contains("unauthorized"));
    agent.apply("late.json", &pull_secret("late", json!({ "127.0.0.1:5000": good })).to_string());
    agent.ready("late");
    for text in ["secretly wrong", "\"secret\""] {
        assert!(!agent.log().contains(text), "a password is in the log");
    }
}

/// Pulls what must be refused; what is said.
#[track_caller]
fn refused(agent: &Agent, reference: &str) -> String {
    let output = agent.cli(&["pull", reference]).expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{reference} was pulled: {said}");
    assert!(images(agent).is_empty());
    said
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_registry_with_tls_is_trusted_by_its_authority_and_under_its_name_only() {
    let place = place();
    let registry = Registry::start_with_tls(&place, 5443, "localhost");
    registry.push("busybox:1", "test/busybox:1", "");
    let (named, other) = ("localhost:5443/test/busybox:1", "127.0.0.1:5443/test/busybox:1");
    // Registries on loopback are asked in plain text unless that is forbidden.
    let registries = |ca: &str| {
        let of = |host: &str| format!("{{ host: '{host}:5443', plainHTTP: false{ca} }}");
        format!("registries: [{}, {}]", of("localhost"), of("127.0.0.1"))
    };
    {
        let file = config(&place, "", &registries(""));
        let mut agent = agent(&place, &["--config", &file]);
        let said = refused(&agent, named);
        assert!(said.contains("localhost:5443") && said.contains("UnknownIssuer"), "{said}");
        agent.stop();
    }
    let not_pem = place.path("registry-5443/config.yml");
    for (ca, expected) in [("/nowhere/ca.pem", "CA file /nowhere/ca.pem"), (&*not_pem.to_string_lossy(), "CA file")] {
        let file = config(&place, "", &registries(&format!(", caFile: {ca}")));
        let mut agent = agent(&place, &["--config", &file]);
        let said = refused(&agent, named);
        assert!(said.contains(expected) && said.contains(ca), "{said}");
        agent.stop();
    }
    let file = config(&place, "", &registries(&format!(", caFile: {}", registry.authority().display())));
    let agent = agent(&place, &["--config", &file]);
    let said = refused(&agent, other);
    assert!(said.contains("127.0.0.1:5443") && said.contains("not valid for name"), "another name: {said}");
    agent.apply("web.json", &pod("web", named, None));
    agent.ready("web");
    assert_eq!(images(&agent).len(), 1);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pull_policies_decide_whether_the_registry_is_asked() {
    let place = place();
    let registry = Registry::start(&place, 5000, false);
    registry.push("busybox:1", "test/busybox:1", "");
    let reference = registry.reference("test/busybox:1");
    let agent = agent(&place, &[]);
    agent.apply("never.json", &pod("never", &reference, Some("Never")));
    agent.until("never", "refused", |pod| pod["status"].to_string().contains("ErrImageNeverPull"));
    agent.apply("missing.json", &pod("missing", &registry.reference("test/nothing:1"), None));
    let missing = agent.until("missing", "refused", |pod| pod["status"].to_string().contains("not found"));
    assert!(missing["status"].to_string().contains("test/nothing"), "{:#}", missing["status"]);
    agent.until("missing", "waiting", |pod| pod["status"].to_string().contains("ImagePullBackOff"));
    let first = agent.ok(&["pull", &reference]);
    assert!(!first.is_empty());
    agent.apply("never2.json", &pod("present", &reference, Some("Never")));
    agent.ready("present");
    agent.apply("always.json", &pod("always", &reference, Some("Always")));
    agent.ready("always");
    drop(registry);
    // Nobody there: what is present starts, what must be asked for does not.
    agent.apply("if.json", &pod("ifnot", &reference, Some("IfNotPresent")));
    agent.ready("ifnot");
    agent.apply("again.json", &pod("again", &reference, Some("Always")));
    agent.until("again", "refused", |pod| pod["status"].to_string().contains("RegistryUnavailable"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn images_in_use_stay_and_the_others_can_go() {
    let place = place();
    let registry = Registry::start(&place, 5000, false);
    registry.push("busybox:1", "test/busybox:1", "");
    let reference = registry.reference("test/busybox:1");
    let agent = with_busybox(&place, &[]);
    agent.apply("web.json", &pod("web", &reference, None));
    agent.ready("web");
    agent.ok(&["rmi", "busybox:1"]); // a name beside another: the image stays
    let refused = agent.cli(&["rmi", &reference]).expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is used by a container"), "{said}");
    agent.ok(&["gc"]);
    assert_eq!(images(&agent).len(), 1);
    agent.delete("web.json");
    agent.gone("web");
    let collected = agent.ok(&["gc", "-o", "json"]);
    assert!(collected.contains(&reference), "{collected}");
    assert!(images(&agent).is_empty());
    let missing = agent.cli(&["rmi", "no-such-image:1"]).expect("it runs");
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("no-such-image:1"));
    let layers = fs::read_dir(place.path("root/images")).expect("the store").flatten().map(|entry| entry.path());
    let bytes: u64 = layers.filter(|path| path.is_dir()).map(|path| size(&path)).sum();
    assert!(bytes < 64 * 1024, "nothing of them stays on disk: {bytes} bytes");
}

fn size(path: &std::path::Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => size(&entry.path()),
            _ => entry.metadata().map_or(0, |data| data.len()),
        })
        .sum()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_blob_that_is_not_what_was_announced_is_refused() {
    let place = place();
    let registry = Registry::start(&place, 5000, false);
    registry.push("busybox:1", "test/busybox:1", "");
    let blob = largest(&registry.blobs());
    let good = fs::read(&blob).expect("the layer");
    let mut bad = good.clone();
    // Behind the end of what gzip reads nothing would be noticed by unpacking alone.
    *bad.last_mut().expect("a byte") ^= 0xff;
    fs::write(&blob, &bad).expect("corrupt the layer");
    let agent = agent(&place, &[]);
    let reference = registry.reference("test/busybox:1");
    agent.apply("web.json", &pod("web", &reference, None));
    let pod = agent.until("web", "refused", |pod| pod["status"].to_string().contains("ErrImagePull"));
    let text = pod["status"].to_string();
    assert!(text.contains("digest mismatch") || text.contains("unpack"), "{text}");
    assert!(images(&agent).is_empty());
    fs::write(&blob, &good).expect("repair the layer");
    agent.ok(&["pull", &reference]);
    agent.ready("web");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn nginx_from_a_registry_serves_and_ends_by_its_own_signal() {
    let place = place();
    let registry = Registry::start(&place, 5000, false);
    fixtures::nginx();
    registry.push("nginx:1", "test/nginx:1", "");
    let agent = agent(&place, &[]);
    let reference = registry.reference("test/nginx:1");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "nginx" },
        "spec": { "restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
                  "containers": [{ "name": "web", "image": reference, "ports": [{ "containerPort": 80 }],
                                   "args": ["-g", "daemon off; error_log /var/log/nginx/error.log notice;"],
                                   "volumeMounts": [{ "name": "log", "mountPath": "/var/log/nginx" }] }],
                  "volumes": [{ "name": "log", "hostPath": { "path": place.path("nginx-log"), "type": "DirectoryOrCreate" } }] },
    });
    agent.apply("nginx.json", &pod.to_string());
    let pod = agent.ready("nginx");
    let target = format!("{}:80", address(&pod));
    let answer = eventually("nginx answers", Duration::from_secs(10), || get(&place, &target));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("nginx in a berth pod"), "{answer}");
    assert!(agent.ok(&["exec", &name(&agent, "nginx"), "--", "cat", "/proc/1/comm"]).starts_with("nginx"));
    agent.delete("nginx.json");
    agent.gone("nginx");
    let log = fs::read_to_string(place.path("nginx-log/error.log")).unwrap_or_default();
    // What nginx does on SIGQUIT; on SIGTERM it would exit at once.
    assert!(log.contains("gracefully shutting down"), "{log}");
}
