//! Volumes of CSI drivers, by a driver of the tests' own that writes down what it is asked and fails as it is told to.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use base64::Engine;
use berth_integration::{
    Agent, Machine, Place,
    csi::{Driver, STAGES, STAGES_WITH_GROUP, object},
    eventually,
    layout::Layout,
    scenario::{agent, apply, container, exec, exec_in, explained, load, log, place, ready, run, with},
};
use serde_json::{Value, json};

const WAIT: &str = "sleep 1000";
const NAME: &str = "d.example";

/// What the driver says of itself to the cluster.
fn driver_object(agent: &Agent, more: Value) {
    let spec = with(json!({ "attachRequired": false, "volumeLifecycleModes": ["Persistent", "Ephemeral"] }), more);
    object(agent, "CSIDriver", NAME, json!({ "spec": spec }));
}

/// A volume of the driver and a claim that has it, both called `name`.
fn claimed(agent: &Agent, name: &str, csi: Value, more: Value) {
    let csi = with(json!({ "driver": NAME, "volumeHandle": format!("handle-{name}") }), csi);
    let common = json!({ "accessModes": ["ReadWriteOnce"], "storageClassName": "" });
    let mode = more.get("volumeMode").map_or(json!({}), |mode| json!({ "volumeMode": mode }));
    let volume = with(with(common.clone(), json!({ "capacity": { "storage": "1Gi" }, "csi": csi })), more);
    object(agent, "PersistentVolume", name, json!({ "spec": volume }));
    let resources = json!({ "requests": { "storage": "1Gi" } });
    let claim = with(with(common, json!({ "resources": resources, "volumeName": name })), mode);
    object(agent, "PersistentVolumeClaim", name, json!({ "spec": claim }));
}

fn of_claim(name: &str) -> Value {
    json!({ "persistentVolumeClaim": { "claimName": name } })
}

fn own(attributes: Value) -> Value {
    json!({ "csi": { "driver": NAME, "volumeAttributes": attributes } })
}

/// A pod with one volume `v` at /v.
fn one(script: &str, source: Value, mount: Value) -> Value {
    let mount = with(json!({ "name": "v", "mountPath": "/v" }), mount);
    let volume = with(json!({ "name": "v" }), source);
    json!({ "volumes": [volume], "containers": [container("app", script, json!({ "volumeMounts": [mount] }))] })
}

/// The machine with a pod on it, so that what all pods share is there.
fn settled(agent: &Agent) -> Machine {
    run(agent, "first", WAIT, json!({}));
    ready(agent, "first");
    Machine::look(agent.place)
}

fn gone(agent: &Agent, names: &[&str]) {
    for name in names {
        agent.delete(&format!("{name}.json"));
    }
    for name in names {
        agent.gone(name);
    }
}

fn uid(agent: &Agent, name: &str) -> String {
    agent.pod(name).expect("the pod")["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

/// Waits until the events of a pod have all of `words` in them.
#[track_caller]
fn told(agent: &Agent, words: &[&str]) -> String {
    eventually(&format!("events tell of {words:?}"), Duration::from_secs(20), || {
        let events = agent.ok(&["events", "-o", "json"]);
        words.iter().all(|word| events.contains(word)).then_some(events)
    })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_volume_of_the_pods_own_is_published_with_what_its_driver_wants_to_know() {
    let place = place();
    let agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, STAGES);
    let before = settled(&agent);
    let requests = json!([{ "audience": "vault", "expirationSeconds": 1200 }]);
    driver_object(&agent, json!({ "podInfoOnMount": true, "tokenRequests": requests }));
    object(&agent, "Secret", "key", json!({ "stringData": { "pin": "4711" } }));
    let mut source = own(json!({ "content": "hello\n", "counted": "yes" }));
    source["csi"]["nodePublishSecretRef"] = json!({ "name": "key" });
    source["csi"]["fsType"] = json!("tmpfs");
    apply(&agent, "own", one(&format!("cat /v/content; {WAIT}"), source, json!({})));
    let name = ready(&agent, "own");
    log(&agent, &name, "app", "hello");
    assert_eq!(driver.order(), ["NodePublishVolume"], "nobody stages a volume of a pod's own");
    let uid = uid(&agent, "own");
    let [call] = <[Value; 1]>::try_from(driver.calls("NodePublishVolume")).expect("one call");
    let directory = place.path("root/pods").join(&uid).join("volumes/kubernetes.io~csi/v");
    assert_eq!(call["path"], directory.join("mount").to_str().expect("text"));
    assert_eq!((&call["staging"], &call["readOnly"]), (&json!(""), &json!(false)));
    assert_eq!(call["secrets"], json!({ "pin": "4711" }));
    assert_eq!(call["capability"]["fsType"], "tmpfs");
    assert_eq!(call["capability"]["mode"], 1);
    let context = &call["context"];
    for (key, value) in [
        ("content", "hello\n"),
        ("csi.storage.k8s.io/pod.name", name.as_str()),
        ("csi.storage.k8s.io/pod.namespace", "default"),
        ("csi.storage.k8s.io/pod.uid", uid.as_str()),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ("csi.storage.k8s.io/ephemeral", "true"),
    ] {
        assert_eq!(context[key], value, "{key}");
    }
    let tokens = context["csi.storage.k8s.io/serviceAccount.tokens"].as_str().expect("tokens");
    let tokens: Value = serde_json::from_str(tokens).expect("JSON");
    let token = tokens["vault"]["token"].as_str().expect("a token");
    assert!(tokens["vault"]["expirationTimestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{tokens}");
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("claims"));
    let claims: Value = serde_json::from_slice(&claims.expect("base64")).expect("JSON");
    assert_eq!((&claims["aud"], &claims["kubernetes.io"]["pod"]["uid"]), (&json!(["vault"]), &json!(uid)));
    assert_eq!(claims["exp"].as_i64().expect("a time") - claims["iat"].as_i64().expect("a time"), 1200);
    let data = fs::read_to_string(directory.join("vol_data.json")).expect("what the kubelet keeps of it");
    let data: Value = serde_json::from_str(&data).expect("JSON");
    assert_eq!((&data["driverName"], &data["volumeLifecycleMode"]), (&json!(NAME), &json!("Ephemeral")));
    assert_eq!(data["volumeHandle"], call["volume"]);
    let text = fs::read_to_string(place.path("agent.log")).expect("a log");
    assert!(!text.contains("4711") && !text.contains(token), "secrets are in no log");
    gone(&agent, &["own"]);
    assert_eq!(driver.order(), ["NodePublishVolume", "NodeUnpublishVolume"]);
    for object in ["csidriver-d.example", "secret-key"] {
        agent.delete(&format!("{object}.json"));
    }
    forget_objects(&place, &before);
}

/// Compares but for what the agent keeps of objects.
#[track_caller]
fn forget_objects(place: &Place, before: &Machine) {
    let without = |machine: &Machine| {
        let kept = ["file: root/objects.json", "file: root/claims.json", "file: root/service-account.key"];
        let jwks = "file: root/service-account-jwks.json";
        let own = |thing: &&String| !kept.contains(&thing.as_str()) && *thing != jwks && !thing.contains("manifests/");
        Machine { things: machine.things.iter().filter(own).cloned().collect() }
    };
    without(before).assert_clean(&without(&Machine::look(place)));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_volume_is_staged_once_for_all_pods_and_unstaged_after_the_last() {
    let place = place();
    let agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, "1,5");
    let before = settled(&agent);
    driver_object(&agent, json!({ "podInfoOnMount": true }));
    object(&agent, "Secret", "stage", json!({ "stringData": { "user": "admin" } }));
    let secret = json!({ "name": "stage", "namespace": "default" });
    let csi = json!({ "nodeStageSecretRef": secret, "fsType": "ext4", "volumeAttributes": { "tier": "fast" } });
    claimed(&agent, "data", csi, json!({ "mountOptions": ["noatime"], "accessModes": ["ReadWriteOnce"] }));
    let write = format!("mkdir -p /v/sub; echo shared >/v/sub/file; {WAIT}");
    apply(&agent, "writes", one(&write, of_claim("data"), json!({})));
    let writes = ready(&agent, "writes");
    eventually("it is written", Duration::from_secs(10), || {
        driver.state().join("volumes/handle-data/sub/file").exists().then_some(())
    });
    let mut claim = of_claim("data");
    claim["persistentVolumeClaim"]["readOnly"] = json!(true);
    let mut spec = one(&format!("cat /v/sub/file; touch /v/x 2>&1; cat /below/file; {WAIT}"), claim, json!({}));
    let below = json!({ "name": "v", "mountPath": "/below", "subPath": "sub" });
    spec["containers"][0]["volumeMounts"].as_array_mut().expect("mounts").push(below);
    apply(&agent, "reads", spec);
    let reads = ready(&agent, "reads");
    let said = log(&agent, &reads, "app", "Read-only file system");
    assert_eq!(said.matches("shared").count(), 2, "{said}");
    assert_eq!(driver.order(), ["NodeStageVolume", "NodePublishVolume", "NodePublishVolume"]);
    let stage = driver.calls("NodeStageVolume").remove(0);
    assert_eq!((&stage["secrets"], &stage["context"]), (&json!({ "user": "admin" }), &json!({ "tier": "fast" })));
    assert_eq!((&stage["capability"]["fsType"], &stage["capability"]["flags"]), (&json!("ext4"), &json!(["noatime"])));
    assert_eq!(stage["capability"]["mode"], 7, "SINGLE_NODE_MULTI_WRITER, which the driver can tell apart");
    let path = stage["path"].as_str().expect("a path");
    let global = place.path("root/plugins/kubernetes.io/csi").join(NAME);
    assert!(path.starts_with(global.to_str().expect("text")) && path.ends_with("/globalmount"), "{path}");
    let published = driver.calls("NodePublishVolume");
    for (call, read_only) in published.iter().zip([false, true]) {
        assert_eq!((&call["staging"], &call["readOnly"]), (&json!(path), &json!(read_only)));
        assert_eq!(call["secrets"], json!({}));
        assert_eq!(call["context"]["csi.storage.k8s.io/ephemeral"], "false");
    }
    assert!(published[0]["path"].as_str().is_some_and(|path| path.ends_with("kubernetes.io~csi/data/mount")));
    gone(&agent, &["writes"]);
    assert_eq!(exec(&agent, &reads, "cat /v/sub/file"), "shared\n", "{writes} is gone, the volume is not");
    assert!(driver.calls("NodeUnstageVolume").is_empty());
    gone(&agent, &["reads"]);
    let end = ["NodeUnpublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"];
    assert_eq!(driver.order()[3..], end);
    forget_objects(&place, &before);
    // And once more, from the beginning.
    apply(&agent, "again", one(&format!("cat /v/sub/file; {WAIT}"), of_claim("data"), json!({})));
    let again = ready(&agent, "again");
    log(&agent, &again, "app", "shared");
    assert_eq!(driver.calls("NodeStageVolume").len(), 2);
    gone(&agent, &["again"]);
    forget_objects(&place, &before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn files_are_given_to_the_pods_group_as_the_driver_wants_it() {
    let place = place();
    let agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, "");
    settled(&agent);
    let spec = |name: &str, group: u32| {
        let script = format!("echo x >/v/new && echo wrote; {WAIT}");
        let context = json!({ "fsGroup": group, "runAsUser": 1000 });
        with(one(&script, of_claim(name), json!({})), json!({ "securityContext": context }))
    };
    let of = |name: &str| {
        let metadata = fs::metadata(driver.state().join("volumes").join(format!("handle-{name}"))).expect("a volume");
        (metadata.gid(), metadata.mode() & 0o7777)
    };
    driver_object(&agent, json!({ "fsGroupPolicy": "File" }));
    claimed(&agent, "given", json!({}), json!({}));
    apply(&agent, "given", spec("given", 4000));
    let name = ready(&agent, "given");
    log(&agent, &name, "app", "wrote");
    assert_eq!(of("given"), (4000, 0o2775));
    assert_eq!(driver.order(), ["NodePublishVolume"], "this one does not stage");
    assert_eq!(driver.calls("NodePublishVolume")[0]["staging"], "");
    // Without a type of file system nothing is known of who may own files, unless the driver says so.
    driver_object(&agent, json!({}));
    claimed(&agent, "kept", json!({}), json!({}));
    apply(&agent, "kept", spec("kept", 4000));
    ready(&agent, "kept");
    assert_ne!(of("kept").0, 4000);
    claimed(&agent, "typed", json!({ "fsType": "ext4" }), json!({}));
    apply(&agent, "typed", spec("typed", 4001));
    ready(&agent, "typed");
    assert_eq!(of("typed").0, 4001);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_driver_that_knows_groups_is_told_the_group() {
    let place = place();
    let agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, STAGES_WITH_GROUP);
    settled(&agent);
    driver_object(&agent, json!({ "fsGroupPolicy": "File" }));
    claimed(&agent, "data", json!({}), json!({}));
    let context = json!({ "securityContext": { "fsGroup": 4000 } });
    apply(&agent, "pod", with(one(WAIT, of_claim("data"), json!({})), context));
    ready(&agent, "pod");
    for method in ["NodeStageVolume", "NodePublishVolume"] {
        assert_eq!(driver.calls(method)[0]["capability"]["group"], "4000", "{method}");
    }
    let gid = fs::metadata(driver.state().join("volumes/handle-data")).expect("a volume").gid();
    assert_ne!(gid, 4000, "left to the driver");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_device_is_published_for_each_pod_and_no_directory() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, STAGES);
    let before = settled(&agent);
    driver_object(&agent, json!({}));
    let attributes = json!({ "volumeAttributes": { "device": "/dev/loop0" } });
    claimed(&agent, "disk", attributes, json!({ "volumeMode": "Block" }));
    let number = fs::metadata("/dev/loop0").expect("a loop device").rdev();
    let number = format!("{:x}:{:x}", libc::major(number), libc::minor(number));
    let devices = json!({ "volumeDevices": [{ "name": "v", "devicePath": "/dev/xvda" }] });
    let spec = || {
        let open = format!("true </dev/xvda && echo opened; stat -c %t:%T /dev/xvda; {WAIT}");
        let volume = with(json!({ "name": "v" }), of_claim("disk"));
        json!({ "volumes": [volume], "containers": [container("app", &open, devices.clone())] })
    };
    apply(&agent, "one", spec());
    apply(&agent, "two", spec());
    for name in ["one", "two"] {
        let name = ready(&agent, name);
        let said = log(&agent, &name, "app", &number);
        assert!(said.contains("opened"), "{said}");
    }
    let stage = driver.calls("NodeStageVolume");
    assert_eq!((stage.len(), &stage[0]["capability"]["block"]), (1, &json!(true)));
    let global = place.path("root/plugins/kubernetes.io/csi/volumeDevices");
    assert_eq!(stage[0]["path"], global.join("staging/disk").to_str().expect("text"));
    let one = uid(&agent, "one");
    let target = global.join("publish/disk").join(&one);
    assert!(driver.calls("NodePublishVolume").iter().any(|call| call["path"] == target.to_str().expect("text")));
    let link = place.path("root/pods").join(&one).join("volumeDevices/kubernetes.io~csi/disk");
    assert_eq!(fs::read_link(link).expect("the kubelet's link"), target);
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    ready(&agent, "two");
    gone(&agent, &["one", "two"]);
    let order = driver.order();
    assert_eq!(order.iter().filter(|method| *method == "NodeUnpublishVolume").count(), 2, "{order:?}");
    assert_eq!(order.last().map(String::as_str), Some("NodeUnstageVolume"));
    forget_objects(&place, &before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_waits_for_its_driver_and_a_driver_that_leaves_is_waited_for() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let mut driver = Driver::absent(&place, NAME, STAGES);
    settled(&agent);
    driver_object(&agent, json!({}));
    claimed(&agent, "data", json!({}), json!({}));
    apply(&agent, "claims", one(WAIT, of_claim("data"), json!({})));
    apply(&agent, "own", one(WAIT, own(json!({ "content": "x" })), json!({})));
    let missing = "driver name d.example not found in the list of registered CSI drivers";
    explained(&agent, "claims", &["MountVolume.MountDevice failed for volume", "attacher.MountDevice failed", missing]);
    explained(
        &agent,
        "own",
        &["MountVolume.SetUp failed for volume", "mounter.SetUpAt failed to get CSI client", missing],
    );
    told(&agent, &["FailedMount", missing]);
    driver.restart();
    let begun = Instant::now();
    ready(&agent, "claims");
    ready(&agent, "own");
    assert!(begun.elapsed() < Duration::from_secs(15), "they are told at once: {:?}", begun.elapsed());
    // Nobody needs the driver while nothing is set up: not the agent that comes next, either.
    let calls = driver.order().len();
    driver.leave();
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    let name = ready(&agent, "own");
    assert_eq!(exec(&agent, &name, "cat /v/content"), "x");
    ready(&agent, "claims");
    agent.delete("claims.json");
    told(&agent, &["FailedUnMount", "Unmounter.TearDownAt failed to get CSI client", missing]);
    assert!(agent.pod("claims").is_some(), "what the driver has done is not forgotten");
    let before = driver.order().len();
    assert_eq!(before, calls);
    driver.restart();
    agent.gone("claims");
    assert_eq!(driver.order()[before..], ["NodeUnpublishVolume", "NodeUnstageVolume"]);
    // Killed without a farewell, and back at the same socket.
    driver.kill();
    driver.restart();
    claimed(&agent, "other", json!({}), json!({}));
    apply(&agent, "later", one(WAIT, of_claim("other"), json!({})));
    ready(&agent, "later");
    gone(&agent, &["later", "own"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_driver_that_hangs_or_fails_holds_up_its_own_pod_alone() {
    let place = place();
    let agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, STAGES);
    let before = settled(&agent);
    driver_object(&agent, json!({}));
    claimed(&agent, "data", json!({}), json!({}));
    claimed(&agent, "other", json!({}), json!({}));
    driver.faults(&json!({ "NodeStageVolume": { "hang": true, "times": 1 } }));
    apply(&agent, "hung", one(WAIT, of_claim("data"), json!({})));
    driver.called("NodeStageVolume", 1);
    let begun = Instant::now();
    apply(&agent, "plain", json!({ "containers": [container("app", WAIT, json!({}))] }));
    apply(&agent, "other", one(WAIT, of_claim("other"), json!({})));
    ready(&agent, "plain");
    ready(&agent, "other");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // Whoever is to go does not wait for what was begun, and it is taken back: it may have been done.
    gone(&agent, &["hung"]);
    let of_data = |method: &str| driver.calls(method).iter().filter(|call| call["volume"] == "handle-data").count();
    assert_eq!((of_data("NodeUnpublishVolume"), of_data("NodeUnstageVolume")), (1, 1));
    gone(&agent, &["other", "plain"]);
    forget_objects(&place, &before);

    // An error after which nothing can be under way leaves nothing to take back.
    driver.faults(&json!({ "NodeStageVolume": { "code": 13, "message": "no such disk" } }));
    apply(&agent, "failing", one(WAIT, of_claim("data"), json!({})));
    let why = "MountVolume.MountDevice failed for volume \\\"data\\\" : rpc error: code = Internal desc = no such disk";
    explained(&agent, "failing", &[why]);
    gone(&agent, &["failing"]);
    assert_eq!(of_data("NodeUnpublishVolume"), 1);
    // One after which something may be is taken back.
    driver.faults(&json!({ "NodePublishVolume": { "code": 4, "after": true, "message": "too slow" } }));
    apply(&agent, "late", one(WAIT, of_claim("data"), json!({})));
    explained(&agent, "late", &["MountVolume.SetUp failed", "rpc error: code = DeadlineExceeded desc = too slow"]);
    gone(&agent, &["late"]);
    assert_eq!((of_data("NodeUnpublishVolume"), of_data("NodeUnstageVolume")), (2, 2));
    // The next try succeeds.
    driver.faults(&json!({ "NodePublishVolume": { "code": 14, "times": 1 } }));
    apply(&agent, "mended", one(WAIT, of_claim("data"), json!({})));
    ready(&agent, "mended");
    driver.faults(&json!({ "NodeUnpublishVolume": { "code": 13, "times": 1, "message": "still busy" } }));
    gone(&agent, &["mended"]);
    told(&agent, &["FailedUnMount", "UnmountVolume.TearDown failed for volume", "still busy"]);
    forget_objects(&place, &before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_agent_that_is_killed_in_the_middle_is_followed_by_one_that_finishes() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, STAGES);
    let before = settled(&agent);
    driver_object(&agent, json!({}));
    claimed(&agent, "data", json!({}), json!({}));
    let apply_pod = |agent: &Agent| apply(agent, "pod", one(&format!("echo on; {WAIT}"), of_claim("data"), json!({})));
    for method in ["NodeStageVolume", "NodePublishVolume"] {
        for after in [false, true] {
            for wanted in [true, false] {
                let begun = driver.calls(method).len();
                driver.faults(&json!({ method: { "hang": true, "after": after, "times": 1 } }));
                apply_pod(&agent);
                driver.called(method, begun + 1);
                agent.kill();
                if !wanted {
                    agent.delete("pod.json");
                }
                agent = Agent::start(&place, &[]).expect("an agent");
                if wanted {
                    ready(&agent, "pod");
                    assert!(driver.calls(method).len() > begun + 1, "{method} is called again");
                    agent.delete("pod.json");
                }
                agent.gone("pod");
                let last = driver.order().split_off(driver.order().len() - 2);
                assert_eq!(last, ["NodeUnpublishVolume", "NodeUnstageVolume"], "{method} {after} {wanted}");
                forget_objects(&place, &before);
            }
        }
    }
    for method in ["NodeUnpublishVolume", "NodeUnstageVolume"] {
        for after in [false, true] {
            apply_pod(&agent);
            ready(&agent, "pod");
            let begun = driver.calls(method).len();
            driver.faults(&json!({ method: { "hang": true, "after": after, "times": 1 } }));
            agent.delete("pod.json");
            driver.called(method, begun + 1);
            agent.kill();
            agent = Agent::start(&place, &[]).expect("an agent");
            agent.gone("pod");
            assert_eq!(driver.calls(method).len(), begun + 2, "{method} is called again");
            forget_objects(&place, &before);
        }
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_a_driver_does_not_provide_is_said_in_upstreams_words() {
    let place = place();
    let agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, "");
    settled(&agent);
    claimed(&agent, "data", json!({}), json!({}));
    apply(&agent, "unattached", one(WAIT, of_claim("data"), json!({})));
    let why = "volume handle-data has GET error for volume attachment csi-";
    explained(&agent, "unattached", &["MountVolume.WaitForAttach failed for volume", why]);
    apply(&agent, "unknown", one(WAIT, own(json!({})), json!({})));
    explained(&agent, "unknown", &["not supported by driver d.example (no CSIDriver object)"]);
    object(&agent, "CSIDriver", NAME, json!({ "spec": { "attachRequired": false } }));
    explained(&agent, "unknown", &["not supported by driver d.example (only supports"]);
    ready(&agent, "unattached");
    let mut secret = own(json!({}));
    secret["csi"]["nodePublishSecretRef"] = json!({ "name": "none" });
    driver_object(&agent, json!({}));
    ready(&agent, "unknown");
    apply(&agent, "secretive", one(WAIT, secret, json!({})));
    explained(&agent, "secretive", &["fetching NodePublishSecretRef default/none failed: secrets", "not found"]);
    object(&agent, "Secret", "none", json!({ "stringData": { "a": "b" } }));
    ready(&agent, "secretive");
    assert_eq!(driver.calls("NodePublishVolume").len(), 3);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_driver_that_wants_to_publishes_again_every_minute() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let driver = Driver::start(&place, NAME, "");
    settled(&agent);
    driver_object(&agent, json!({ "requiresRepublish": true, "tokenRequests": [{ "audience": "a" }] }));
    apply(&agent, "own", one(WAIT, own(json!({ "counted": "yes" })), json!({})));
    let name = ready(&agent, "own");
    assert_eq!(exec(&agent, &name, "cat /v/published"), "1\n");
    // A new agent does not know how long ago that was.
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    driver.called("NodePublishVolume", 2);
    let count = |agent: &Agent| exec(agent, &name, "cat /v/published");
    eventually("the container sees it", Duration::from_secs(10), || (count(&agent) == "2\n").then_some(()));
    assert_eq!(driver.calls("NodePublishVolume").len(), 2, "once, however often the driver is looked for");
    // What goes wrong then is told, and the pod goes on with what it has.
    driver.faults(&json!({ "NodePublishVolume": { "code": 13, "message": "not today", "times": 1 } }));
    eventually("it is published again", Duration::from_secs(150), || (count(&agent) == "3\n").then_some(()));
    told(&agent, &["FailedMount", "not today"]);
    let tokens: Vec<Value> = driver
        .calls("NodePublishVolume")
        .iter()
        .map(|call| call["context"]["csi.storage.k8s.io/serviceAccount.tokens"].clone())
        .collect();
    assert!(tokens.windows(2).all(|two| two[0] != two[1]), "each time with new tokens");
    gone(&agent, &["own"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_driver_can_be_a_pod_whose_mounts_reach_the_node() {
    let place = place();
    // What is mounted in the driver's container comes back through a mount that is shared.
    for arguments in [vec!["--bind", "."], vec!["--make-shared", "."]] {
        let root = place.path("root");
        let arguments: Vec<&str> =
            arguments.iter().map(|text| if *text == "." { root.to_str().expect("text") } else { text }).collect();
        let arguments = match arguments.as_slice() {
            ["--bind", path] => vec!["--bind", path, path],
            other => other.to_vec(),
        };
        assert!(place.run("mount", &arguments).expect("mount(8)").status.success());
    }
    let agent = agent(&place, &[]);
    settled(&agent);
    let program = fs::read(Driver::program()).expect("the driver");
    load(&agent, "driver", Layout::new().file("driver", 0o755, &program));
    driver_object(&agent, json!({}));
    let root = place.path("root").display().to_string();
    let arguments = json!([
        "/driver",
        "--name",
        NAME,
        "--versions",
        "1.0.0",
        "--capabilities",
        STAGES,
        "--registry",
        format!("{root}/plugins_registry"),
        "--socket",
        format!("{root}/plugins/{NAME}/csi.sock"),
        "--state",
        format!("{root}/plugins/{NAME}/state"),
    ]);
    let mount = json!({ "name": "node", "mountPath": root, "mountPropagation": "Bidirectional" });
    let app = json!({
        "name": "driver", "image": "driver:1", "imagePullPolicy": "Never", "command": arguments,
        "volumeMounts": [mount], "securityContext": { "privileged": true },
    });
    let volume = json!({ "name": "node", "hostPath": { "path": root } });
    apply(&agent, "driver", json!({ "volumes": [volume], "containers": [app], "hostNetwork": true }));
    claimed(&agent, "data", json!({}), json!({}));
    apply(&agent, "pod", one(&format!("echo seen >/v/file; {WAIT}"), of_claim("data"), json!({})));
    let name = ready(&agent, "pod");
    let file = place.path("root/plugins").join(NAME).join("state/volumes/handle-data/file");
    eventually("what the pod writes is in the volume", Duration::from_secs(10), || file.exists().then_some(()));
    assert_eq!(exec_in(&agent, &name, "app", "cat /v/file"), "seen\n");
    gone(&agent, &["pod"]);
    gone(&agent, &["driver"]);
}
