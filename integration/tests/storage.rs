//! Volumes that are somebody else's, who owns them, and how much of the node's own disk a pod may take.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

use berth_integration::{
    Agent, Machine, Place, eventually, fixtures,
    fuse::{Hung, Silence},
    layout::Layout,
    scenario::{
        agent, apply, container, ended, exec, exec_in, explained, full_name, load, log, place, ready, run, with,
    },
};
use serde_json::{Value, json};

/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";

/// A pod with one volume `v` at /v.
fn one(script: &str, source: Value, mount: Value) -> Value {
    let mount = with(json!({ "name": "v", "mountPath": "/v" }), mount);
    let volume = with(json!({ "name": "v" }), source);
    json!({ "volumes": [volume], "containers": [container("app", script, json!({ "volumeMounts": [mount] }))] })
}

/// Writes the manifest of an object beside those of pods.
fn object(agent: &Agent, kind: &str, name: &str, spec: Value) {
    let object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name }, "spec": spec });
    agent.apply(&format!("{}-{name}.json", kind.to_lowercase()), &object.to_string());
}

/// The manifest of a local volume.
fn local_volume(agent: &Agent, name: &str, path: &Path, more: Value) {
    let expression = json!({ "key": "kubernetes.io/hostname", "operator": "Exists" });
    let terms = json!([{ "matchExpressions": [expression] }]);
    let spec = json!({
        "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "local": { "path": path }, "nodeAffinity": { "required": { "nodeSelectorTerms": terms } },
    });
    object(agent, "PersistentVolume", name, with(spec, more));
}

fn claim_spec(more: Value) -> Value {
    let spec = json!({
        "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": { "requests": { "storage": "1Gi" } },
    });
    with(spec, more)
}

fn of_claim(name: &str) -> Value {
    json!({ "persistentVolumeClaim": { "claimName": name } })
}

fn directory(place: &Place, name: &str) -> std::path::PathBuf {
    let path = place.path(name);
    fs::create_dir(&path).expect("a directory");
    path
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_image_is_a_volume_that_can_only_be_read() {
    let place = place();
    let mut agent = agent(&place, &[]);
    run(&agent, "first", WAIT, json!({}));
    ready(&agent, "first");
    let layout = Layout::new().file("model/weights", 0o644, b"heavy\n").file("run.sh", 0o755, b"#!/bin/sh\necho ran\n");
    load(&agent, "model", layout);
    let before = Machine::look(&place);
    let source = json!({ "image": { "reference": "model:1", "pullPolicy": "Never" } });
    let mut spec = one(WAIT, source, json!({}));
    let below = json!({ "name": "v", "mountPath": "/below", "subPath": "model" });
    spec["containers"][0]["volumeMounts"].as_array_mut().expect("mounts").push(below);
    apply(&agent, "reads", spec);
    let missing = json!({ "image": { "reference": "nowhere:1", "pullPolicy": "Never" } });
    apply(&agent, "never", one(WAIT, missing, json!({})));
    let name = ready(&agent, "reads");
    let script = "cat /v/model/weights /below/weights; touch /v/x 2>&1; touch /below/x 2>&1; /v/run.sh 2>&1; true";
    let said = exec(&agent, &name, script);
    assert_eq!(said.matches("heavy").count(), 2, "{said}");
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    assert!(said.contains("Permission denied") && !said.contains("ran"), "noexec: {said}");
    explained(&agent, "never", &["ErrImageNeverPull", "nowhere:1"]);
    let refused = agent.cli(&["rmi", "model:1"]).expect("it runs");
    assert!(!refused.status.success(), "an image that a volume is made from is in use");
    // Without the agent, and with the next one.
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    let refused = agent.cli(&["rmi", "model:1"]).expect("it runs");
    assert!(!refused.status.success(), "in use from the first moment of the next agent on");
    assert!(exec(&agent, &ready(&agent, "reads"), "cat /v/model/weights").contains("heavy"));
    for name in ["reads", "never"] {
        agent.delete(&format!("{name}.json"));
        agent.gone(name);
    }
    agent.ok(&["rmi", "model:1"]);
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_claim_has_one_volume_for_good() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let (small, big) = (directory(&place, "small"), directory(&place, "big"));
    object(&agent, "PersistentVolumeClaim", "data", claim_spec(json!({})));
    apply(&agent, "waits", one("echo kept >/v/file; sleep 1000", of_claim("data"), json!({})));
    apply(&agent, "lacks", one(WAIT, of_claim("none"), json!({})));
    explained(
        &agent,
        "waits",
        &["FailedMount", "PVC is not bound", "storageclass.storage.k8s.io \\\"local\\\" not found"],
    );
    explained(&agent, "lacks", &["FailedMount", "persistentvolumeclaims \\\"none\\\" not found"]);
    local_volume(&agent, "big", &big, json!({ "capacity": { "storage": "10Gi" } }));
    local_volume(&agent, "small", &small, json!({ "mountOptions": ["noexec"] }));
    let name = ready(&agent, "waits");
    let bound = |file: &str| [&small, &big].map(|path| path.join(file).exists());
    let first = eventually("the file", Duration::from_secs(10), || {
        let found = bound("file");
        (found != [false, false]).then_some(found)
    });
    // Which of the two was there first when it was looked for is a race of the manifests; from then on it is decided.
    local_volume(&agent, "smaller", &directory(&place, "smaller"), json!({}));
    let alone = directory(&place, "alone");
    let modes = json!({ "accessModes": ["ReadWriteOncePod"] });
    local_volume(&agent, "alone", &alone, modes.clone());
    object(&agent, "PersistentVolumeClaim", "alone", claim_spec(modes));
    apply(&agent, "holds", one(WAIT, of_claim("alone"), json!({})));
    ready(&agent, "holds");
    apply(&agent, "second", one(WAIT, of_claim("alone"), json!({})));
    explained(&agent, "second", &["ReadWriteOncePod access mode and is already in use by another pod"]);
    agent.delete("holds.json");
    ready(&agent, "second");
    agent.delete("waits.json");
    agent.gone("waits");
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    let mut spec = one("cat /v/file; touch /v/again; sleep 1000", of_claim("data"), json!({}));
    apply(&agent, "again", spec.clone());
    let again = ready(&agent, "again");
    assert!(log(&agent, &again, "app", "kept").contains("kept"));
    assert_eq!(bound("again"), first);
    spec["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    spec["containers"][0]["command"] = json!(["sh", "-c", WAIT]);
    apply(&agent, "reads", spec);
    let reads = ready(&agent, "reads");
    assert!(exec(&agent, &reads, "touch /v/x 2>&1 || true").contains("Read-only file system"));
    assert_ne!(name, again);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_claim_of_the_pods_own_ends_with_it() {
    let place = place();
    let agent = agent(&place, &[]);
    let (kept, emptied) = (directory(&place, "kept"), directory(&place, "emptied"));
    local_volume(&agent, "kept", &kept, json!({ "storageClassName": "keep" }));
    local_volume(&agent, "emptied", &emptied, json!({ "persistentVolumeReclaimPolicy": "Delete" }));
    let own = |class: &str| {
        let spec = claim_spec(json!({ "storageClassName": class }));
        json!({ "ephemeral": { "volumeClaimTemplate": { "spec": spec } } })
    };
    let write = "mkdir -p /v/a/b && echo x >/v/a/b/c; sleep 1000";
    for (class, name) in [("keep", "keeps"), ("local", "clears")] {
        apply(&agent, name, one(write, own(class), json!({})));
    }
    for name in ["keeps", "clears"] {
        ready(&agent, name);
    }
    for path in [&kept, &emptied] {
        eventually("the file", Duration::from_secs(10), || path.join("a/b/c").exists().then_some(()));
    }
    apply(&agent, "second", one(WAIT, own("local"), json!({})));
    explained(&agent, "second", &["PVC is not bound"]);
    for name in ["keeps", "clears"] {
        agent.delete(&format!("{name}.json"));
        agent.gone(name);
    }
    assert!(kept.join("a/b/c").exists(), "Retain");
    let second = ready(&agent, "second");
    assert_eq!(exec(&agent, &second, "ls -A /v | wc -l").trim(), "0", "Delete: emptied, then free again");
    apply(&agent, "third", one(WAIT, own("keep"), json!({})));
    explained(&agent, "third", &["PVC is not bound"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_volume_belongs_to_the_group_of_its_first_pod() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let data = directory(&place, "data");
    fs::create_dir(data.join("sub")).expect("a directory");
    fs::write(data.join("sub/file"), "secret\n").expect("a file");
    fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o600)).expect("a mode");
    local_volume(&agent, "data", &data, json!({}));
    object(&agent, "PersistentVolumeClaim", "data", claim_spec(json!({})));
    let spec = |script: &str, group: u32| {
        let context = json!({ "fsGroup": group, "runAsUser": 1000, "fsGroupChangePolicy": "OnRootMismatch" });
        with(one(script, of_claim("data"), json!({})), json!({ "securityContext": context }))
    };
    apply(&agent, "first", spec(&format!("cat /v/sub/file; echo new >/v/sub/new; {WAIT}"), 4000));
    let first = ready(&agent, "first");
    log(&agent, &first, "app", "secret");
    let of = |path: &str| {
        let metadata = fs::metadata(data.join(path)).expect("it is there");
        (metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(of(""), (4000, 0o2775));
    assert_eq!((of("sub/file"), of("sub/new").0), ((4000, 0o660), 4000));
    // What a container does to it later stays, over the agent's restart and beside a second pod.
    fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o640)).expect("a mode");
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    ready(&agent, "first");
    apply(&agent, "second", spec(WAIT, 5000));
    ready(&agent, "second");
    assert_eq!((of("").0, of("sub/file")), (4000, (4000, 0o640)));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_block_volume_is_a_device_and_no_directory() {
    let place = place();
    let agent = agent(&place, &[]);
    // Nothing is behind it: it can be opened, and has no blocks.
    let block = json!({ "volumeMode": "Block" });
    local_volume(&agent, "disk", Path::new("/dev/loop0"), block.clone());
    object(&agent, "PersistentVolumeClaim", "disk", claim_spec(block));
    let (major, minor) = {
        let number = fs::metadata("/dev/loop0").expect("a loop device").rdev();
        (libc::major(number), libc::minor(number))
    };
    let open = format!(
        "for f in /dev/xvda /raw/disk; do if true <$f; then echo opened $f; fi; if [ -b $f ] && true >>$f; then echo wrote $f; fi; \
                done; mknod /mine b {major} {minor}; if true </mine; then echo mine; fi; ls -l /dev/xvda; stat -c %t:%T /dev/xvda; sleep 1000"
    );
    let devices = |path: &str| json!({ "volumeDevices": [{ "name": "v", "devicePath": path }] });
    let volume =
        |more: Value| json!([{ "name": "v", "persistentVolumeClaim": with(json!({ "claimName": "disk" }), more) }]);
    let spec = json!({
        "volumes": volume(json!({})),
        "containers": [
            container("has", &open, devices("/dev/xvda")),
            container("below", &open, devices("/raw/disk")),
            container("none", &open, json!({})),
        ],
    });
    apply(&agent, "block", spec);
    let fixed = json!({ "volumes": volume(json!({ "readOnly": true })), "containers": [container("app", &open, devices("/dev/xvda"))] });
    apply(&agent, "fixed", fixed);
    apply(&agent, "mounts", one(WAIT, of_claim("disk"), json!({})));
    let name = ready(&agent, "block");
    let last = format!("{major:x}:{minor:x}");
    let has = log(&agent, &name, "has", &last);
    assert!(has.contains("opened /dev/xvda") && has.contains("wrote /dev/xvda"), "{has}");
    let below = exec_in(&agent, &name, "below", "if true <>/raw/disk; then echo both; fi; ls -l /raw/disk");
    assert!(below.contains("both") && below.starts_with("both\nb"), "{below}");
    let none = exec_in(&agent, &name, "none", "cat /mine 2>&1 | head -c 100; ls /dev/xvda 2>&1 || true");
    assert!(none.contains("not permitted") && none.contains("No such file"), "{none}");
    let fixed = full_name(&agent.ready("fixed"));
    let fixed = log(&agent, &fixed, "app", &last);
    assert!(fixed.contains("opened /dev/xvda") && !fixed.contains("wrote /dev/xvda"), "{fixed}");
    explained(&agent, "mounts", &["volume v has volumeMode Block, but is specified in volumeMounts"]);
}

/// A directory with a `mount` that knows a server called `files` and waits for any other.
fn mount_program(place: &Place) -> String {
    let bin = directory(place, "bin");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>{}\ncase \"$*\" in\n*files:/export*) for target; do :; done; exec /bin/mount -t tmpfs files \"$target\" ;;\n\
         *denies*) echo 'mount.nfs: access denied by server' >&2; exit 32 ;;\n*) sleep 1000 ;;\nesac\n",
        place.path("mounts").display()
    );
    fs::write(bin.join("mount"), script).expect("a program");
    fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).expect("a mode");
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_server_is_mounted_by_the_systems_own_program_which_may_hang() {
    let place = place();
    let path = mount_program(&place);
    let mut agent = Agent::start_with(&place, &[], &[("PATH", &path)]).expect("an agent");
    agent.ok(&["load", "--name", "busybox:1", &fixtures::busybox()]);
    run(&agent, "first", WAIT, json!({}));
    ready(&agent, "first");
    let before = Machine::look(&place);
    let nfs = |server: &str| json!({ "nfs": { "server": server, "path": "/export", "readOnly": true } });
    apply(&agent, "served", one(&format!("touch /v/x 2>&1; {WAIT}"), nfs("files"), json!({})));
    apply(&agent, "hung", one(WAIT, nfs("silent"), json!({})));
    apply(&agent, "denied", one(WAIT, nfs("denies"), json!({})));
    let name = ready(&agent, "served");
    log(&agent, &name, "app", "Read-only file system");
    explained(&agent, "denied", &["FailedMount", "access denied by server", "-t nfs -o ro denies:/export"]);
    let asked = || fs::read_to_string(place.path("mounts")).unwrap_or_default();
    eventually("the silent one is asked", Duration::from_secs(10), || asked().contains("silent:/export").then_some(()));
    assert!(!of_place(&place, "silent:/export").is_empty(), "somebody waits for it");
    agent.kill();
    // With the agent goes what was started for it, mount(8) of the silent server included.
    eventually("nobody waits for the silent one", Duration::from_secs(10), || {
        of_place(&place, "silent:/export").is_empty().then_some(())
    });
    // A new agent finds the mount.
    let agent = Agent::start_with(&place, &[], &[("PATH", &path)]).expect("an agent");
    ready(&agent, "served");
    eventually("it is asked again", Duration::from_secs(10), || {
        (asked().matches("silent:/export").count() >= 2).then_some(())
    });
    assert_eq!(asked().matches("files:/export").count(), 1, "mounted once: {}", asked());
    for name in ["served", "hung", "denied"] {
        agent.delete(&format!("{name}.json"));
        agent.gone(name);
    }
    fs::remove_file(place.path("mounts")).expect("the list");
    before.assert_clean(&Machine::look(&place));
}

/// Command lines of processes that name both `place` and `what`.
fn of_place(place: &Place, what: &str) -> Vec<String> {
    let own = place.path("").display().to_string();
    let command = |entry: fs::DirEntry| {
        let text = fs::read(entry.path().join("cmdline")).ok()?;
        let text = String::from_utf8_lossy(&text).replace('\0', " ");
        (text.contains(own.as_str()) && text.contains(what)).then_some(text)
    };
    fs::read_dir("/proc").expect("/proc").flatten().filter_map(command).collect()
}

/// Helper processes of an agent that have been there for a while.
fn helpers(agent: &Agent) -> usize {
    let of_agent = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        stat.contains("(berth-volume)") && parent == Some(agent.pid())
    };
    let look = || -> BTreeSet<String> {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|pid| of_agent(pid)).collect()
    };
    let before = look();
    std::thread::sleep(Duration::from_millis(1500));
    before.intersection(&look()).count()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_file_system_that_hangs_holds_up_its_own_pod_alone() {
    for silence in [Silence::Whole, Silence::AfterHello] {
        let place = place();
        let mut agent = agent(&place, &[]);
        let path = directory(&place, "hung");
        let hung = Hung::mount(&place, &path, silence).expect("a mount");
        let spec = || one(WAIT, json!({ "hostPath": { "path": path.join("below") } }), json!({}));
        for number in 0..3 {
            apply(&agent, &format!("hung{number}"), spec());
        }
        match silence {
            Silence::Whole => explained(&agent, "hung0", &["FailedMount", "does not answer: given up"]),
            // Who cannot be killed is not sent company.
            Silence::AfterHello => {
                explained(&agent, "hung0", &["FailedMount", "still waits for it, and cannot be killed"])
            }
        }
        let waiting = helpers(&agent);
        assert_eq!(waiting, if silence == Silence::AfterHello { 3 } else { 0 }, "{silence:?}");
        let begun = Instant::now();
        run(&agent, "other", WAIT, json!({}));
        ready(&agent, "other");
        assert!(begun.elapsed() < Duration::from_secs(15), "{silence:?}: {:?}", begun.elapsed());
        agent.delete("hung1.json");
        agent.gone("hung1");
        assert!(helpers(&agent) <= 3, "{silence:?}");
        agent.stop();
        // The next agent is not held up either.
        let agent = Agent::start(&place, &[]).expect("an agent");
        ready(&agent, "other");
        for name in ["hung0", "hung2", "other"] {
            agent.delete(&format!("{name}.json"));
            agent.gone(name);
        }
        drop(hung);
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_that_takes_more_disk_than_it_may_is_evicted_for_good() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let fill = "dd if=/dev/zero of=$0 bs=64k count=64 2>/dev/null; sleep 1000";
    let into = |path: &str| fill.replace("$0", path);
    let limit = |amount: &str| json!({ "resources": { "limits": { "ephemeral-storage": amount } } });
    let sized = |size: &str| json!({ "emptyDir": { "sizeLimit": size } });
    apply(&agent, "volume", one(&into("/v/x"), sized("2Mi"), json!({})));
    apply(
        &agent,
        "container",
        json!({ "containers": [
        container("app", &into("/x"), limit("2Mi")), container("other", WAIT, limit("1Gi")),
    ] }),
    );
    let chatty = "yes 0123456789012345678901234567890123456789 | head -c 4000000; sleep 1000";
    apply(&agent, "logs", json!({ "containers": [container("app", chatty, limit("2Mi"))] }));
    let mut whole = one(&into("/v/x"), json!({ "emptyDir": {} }), json!({}));
    whole["containers"][0]["resources"] = limit("3Mi")["resources"].clone();
    apply(&agent, "whole", whole);
    let mut within = one(&into("/v/x"), sized("1Gi"), json!({}));
    within["containers"][0]["resources"] = limit("1Gi")["resources"].clone();
    apply(&agent, "within", within);
    let mut critical = one(&into("/v/x"), sized("2Mi"), json!({}));
    critical["priorityClassName"] = json!("system-node-critical");
    apply(&agent, "critical", critical);
    let messages = [
        ("volume", "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". "),
        ("container", "Container app exceeded its local ephemeral storage limit \"2Mi\". "),
        ("logs", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
        ("whole", "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
    ];
    let evicted = |agent: &Agent| {
        for (name, message) in messages {
            let pod = agent.until(name, "evicted", |pod| pod["status"]["reason"] == "Evicted");
            assert_eq!(
                (&pod["status"]["phase"], &pod["status"]["message"]),
                (&json!("Failed"), &json!(message)),
                "{name}"
            );
        }
    };
    evicted(&agent);
    for (name, _) in messages {
        ended(&agent, name);
    }
    assert_eq!(agent.ready("within")["status"]["phase"], "Running");
    assert_eq!(agent.ready("critical")["status"]["phase"], "Running");
    // It is not forgotten, and what is evicted has given everything back but its record.
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    evicted(&agent);
    let volumes = eventually("the volume is removed", Duration::from_secs(20), || {
        let uid = agent.pod("volume")?["metadata"]["uid"].as_str()?.to_owned();
        let volumes = place.path("root/pods").join(uid).join("volumes");
        (!volumes.exists()).then_some(volumes)
    });
    assert!(!volumes.exists());
    ready(&agent, "within");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_an_agent_mounted_before_it_died_is_found_by_the_next() {
    let place = place();
    let mut agent = agent(&place, &[]);
    run(&agent, "first", WAIT, json!({}));
    ready(&agent, "first");
    load(&agent, "model", Layout::new().file("weights", 0o644, b"heavy\n"));
    let before = Machine::look(&place);
    let source = json!({ "image": { "reference": "model:1" } });
    // Killed at about any moment of the set-up, many times over, and taken away while nobody looks.
    for round in 0..8_u64 {
        apply(&agent, "brief", one(WAIT, source.clone(), json!({})));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(round * 8) {
            std::thread::yield_now();
        }
        agent.kill();
        agent = Agent::start(&place, &[]).expect("an agent");
        if round % 2 == 0 {
            ready(&agent, "brief");
            agent.kill();
            agent.delete("brief.json");
            agent = Agent::start(&place, &[]).expect("an agent");
        } else {
            agent.delete("brief.json");
        }
        agent.gone("brief");
        before.assert_clean(&Machine::look(&place));
    }
}
