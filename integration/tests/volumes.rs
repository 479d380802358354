//! Volumes: what containers share, what the host lends, and what is left when they are gone.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    time::Duration,
};

use berth_integration::{
    Agent, Machine, Place, eventually,
    layout::Layout,
    scenario::{
        agent, apply, container, ended, exec, exec_in, explained, full_name, load, log, place, ready, run, with,
    },
};
use serde_json::{Value, json};

/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";

/// The fields of a container with these mounts.
fn mounts(mounts: Value) -> Value {
    json!({ "volumeMounts": mounts })
}

/// A pod of one container with one volume `v`.
fn one(script: &str, source: Value, mount: Value) -> Value {
    let mount = with(json!({ "name": "v" }), mount);
    let volume = with(json!({ "name": "v" }), source);
    json!({ "volumes": [volume], "containers": [container("app", script, mounts(json!([mount])))] })
}

fn host_path(path: &Path, kind: &str) -> Value {
    json!({ "hostPath": { "path": path, "type": kind } })
}

/// Runs a command in the place, which must succeed.
fn host(place: &Place, program: &str, arguments: &[&str]) {
    let output = place.run(program, arguments).expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_empty_dir_is_shared_outlives_a_restart_and_is_bounded_in_memory() {
    let place = place();
    let agent = agent(&place, &[]);
    let count = "echo x >>/v/starts; [ $(wc -l </v/starts) -ge 2 ] || exit 1; echo second start; sleep 1000";
    let fill = "dd if=/dev/zero of=/m/fill bs=64k count=64 2>&1; wc -c </m/fill; echo filled; sleep 1000";
    let disk = json!({ "name": "disk", "mountPath": "/v" });
    let memory = json!({ "name": "memory", "mountPath": "/m" });
    let spec = json!({
        "volumes": [
            { "name": "disk", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "2Mi" } },
        ],
        "containers": [
            container("counts", count, mounts(json!([disk, memory]))),
            container("fills", fill, mounts(json!([memory]))),
            container("reads", WAIT, mounts(json!([with(disk.clone(), json!({ "readOnly": true }))]))),
        ],
    });
    apply(&agent, "shared", spec);
    let name = full_name(&agent.until("shared", "restarted", |pod| {
        let counts = &pod["status"]["containerStatuses"][0];
        counts["restartCount"] == 1 && counts["state"]["running"].is_object()
    }));
    log(&agent, &name, "counts", "second start");
    assert_eq!(exec_in(&agent, &name, "reads", "cat /v/starts; touch /v/x 2>&1 || true").lines().count(), 3);
    let filled = log(&agent, &name, "fills", "filled");
    assert!(filled.contains("No space left on device") && filled.contains("2097152"), "{filled}");
    assert_eq!(exec_in(&agent, &name, "counts", "wc -c </m/fill; stat -c %a /v /m"), "2097152\n777\n777\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn host_paths_are_what_their_type_says_or_refused() {
    let place = place();
    let agent = agent(&place, &[]);
    let data = place.path("data");
    fs::create_dir_all(data.join("directory")).expect("a directory");
    fs::write(data.join("file"), "content\n").expect("a file");
    symlink("file", data.join("link")).expect("a link");
    let _socket = UnixListener::bind(data.join("socket")).expect("a socket");
    let block = Path::new("/dev/loop0");
    let good = [
        ("none-file", "", data.join("file"), "[ -f /m ]"),
        ("none-new", "", data.join("new/untyped"), "[ -d /m ]"),
        ("dir-or-create", "DirectoryOrCreate", data.join("new/directory"), "[ -d /m ] && touch /m/x"),
        ("dir", "Directory", data.join("directory"), "[ -d /m ]"),
        ("file-or-create", "FileOrCreate", data.join("created"), "[ -f /m ] && echo x >/m"),
        ("file", "File", data.join("link"), "grep -q content /m"),
        ("socket", "Socket", data.join("socket"), "[ -S /m ]"),
        ("char", "CharDevice", "/dev/null".into(), "[ -c /m ] && echo x >/m"),
        ("block", "BlockDevice", block.into(), "[ -b /m ]"),
    ];
    let bad = [
        ("or-dir", "DirectoryOrCreate", "file", "is not a directory, it's a File"),
        ("wrong-dir", "Directory", "none", "is not a directory, it does not exist"),
        ("or-file", "FileOrCreate", "directory", "is not a file, it's a Directory"),
        ("wrong-file", "File", "socket", "is not a file, it's a Socket"),
        ("wrong-socket", "Socket", "file", "is not a socket file, it's a File"),
        ("wrong-char", "CharDevice", "file", "is not a character device, it's a File"),
        ("wrong-block", "BlockDevice", "directory", "is not a block device, it's a Directory"),
    ];
    let test = |check: &str| format!("{check} && echo good; {WAIT}");
    let spec = |path: &Path, kind: &str, script: &str| one(script, host_path(path, kind), json!({ "mountPath": "/m" }));
    let volumes: Vec<Value> =
        good.iter().map(|(name, kind, path, _)| with(json!({ "name": name }), host_path(path, kind))).collect();
    let containers: Vec<Value> = good
        .iter()
        .map(|(name, _, _, check)| container(name, &test(check), mounts(json!([{ "name": name, "mountPath": "/m" }]))))
        .collect();
    apply(&agent, "good", json!({ "volumes": volumes, "containers": containers }));
    for (name, kind, path, _) in &bad {
        apply(&agent, name, spec(&data.join(path), kind, WAIT));
    }
    apply(&agent, "bad-kind", spec(&data, "Pipe", WAIT));
    apply(&agent, "bad-path", spec(&data.join("../x"), "", WAIT));
    let name = ready(&agent, "good");
    for (container, ..) in &good {
        log(&agent, &name, container, "good");
    }
    assert!(data.join("new/directory/x").exists());
    assert_eq!(fs::read_to_string(data.join("created")).expect("the file"), "x\n");
    for (name, _, path, end) in &bad {
        explained(&agent, name, &[&format!("hostPath type check failed: {} {end}", data.join(path).display())]);
    }
    let problems = eventually("both are refused", Duration::from_secs(10), || {
        let text = agent.ok(&["pods", "--problems"]);
        (text.contains("bad-kind.json") && text.contains("bad-path.json")).then_some(text)
    });
    assert!(problems.contains("hostPath.type") && problems.contains("hostPath.path"), "{problems}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn mounts_propagate_only_as_far_as_asked() {
    let place = place();
    let agent = agent(&place, &[]);
    let (data, private) = (place.path("data"), place.path("private"));
    for (directory, propagation) in [(&data, "--make-shared"), (&private, "--make-private")] {
        fs::create_dir(directory).expect("a directory");
        let path = directory.to_str().expect("UTF-8");
        host(&place, "mount", &["-t", "tmpfs", "outer", path]);
        host(&place, "mount", &[propagation, path]);
        host(&place, "mkdir", &[&format!("{path}/before"), &format!("{path}/late"), &format!("{path}/inner")]);
        host(&place, "mount", &["-t", "tmpfs", "before", &format!("{path}/before")]);
    }
    let privileged = json!({ "securityContext": { "privileged": true } });
    let mount = |propagation: &str| json!([{ "name": "v", "mountPath": "/m", "mountPropagation": propagation }]);
    let spec = json!({
        "volumes": [with(json!({ "name": "v" }), host_path(&data, "Directory"))],
        "containers": [
            container("none", WAIT, mounts(mount("None"))),
            container("down", WAIT, mounts(mount("HostToContainer"))),
            container("both", WAIT, with(mounts(mount("Bidirectional")), privileged.clone())),
        ],
    });
    apply(&agent, "propagate", spec);
    let shared = |script: &str, source: &Path, more: Value| {
        let mount = json!({ "mountPath": "/m", "mountPropagation": "Bidirectional" });
        let mut spec = one(script, host_path(source, ""), mount);
        spec["containers"][0] = with(spec["containers"][0].clone(), more);
        spec
    };
    apply(&agent, "notshared", shared(WAIT, &private, privileged));
    apply(&agent, "notprivileged", shared(WAIT, &data, json!({})));
    let name = ready(&agent, "propagate");
    host(&place, "mount", &["-t", "tmpfs", "late", &format!("{}/late", data.display())]);
    exec_in(&agent, &name, "both", "mount -t tmpfs inner /m/inner && touch /m/inner/from-container");
    let has = |container: &str, path: &str| {
        exec_in(&agent, &name, container, "cat /proc/mounts").contains(&format!(" /m/{path} "))
    };
    for (container, expected) in [("none", false), ("down", true), ("both", true)] {
        assert!(has(container, "before"), "a bind is recursive: {container}");
        assert_eq!(has(container, "late"), expected, "from the host to {container}");
        assert_eq!(has(container, "inner"), expected, "from a container by way of the host to {container}");
    }
    host(&place, "test", &["-e", &format!("{}/inner/from-container", data.display())]);
    exec_in(&agent, &name, "both", "umount /m/inner");
    assert!(!has("down", "inner"));
    exec_in(&agent, &name, "down", "umount /m/late 2>/dev/null; true");
    host(&place, "mountpoint", &["-q", &format!("{}/late", data.display())]);
    explained(&agent, "notshared", &["is not a shared mount"]);
    let text = || agent.ok(&["pods", "--problems"]) + &agent.pods().iter().map(Value::to_string).collect::<String>();
    assert!(text().contains("available only to privileged containers"), "{}", text());
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn read_only_means_the_top_and_recursively_all_of_it() {
    let place = place();
    let agent = agent(&place, &[]);
    let data = place.path("data");
    fs::create_dir_all(data.join("sub")).expect("directories");
    host(&place, "mount", &["-t", "tmpfs", "sub", data.join("sub").to_str().expect("UTF-8")]);
    let check = |more: Value| {
        let mount = with(json!({ "name": "v", "mountPath": "/m", "readOnly": true }), more);
        mounts(json!([mount]))
    };
    let recursive = |mode: &str| check(json!({ "recursiveReadOnly": mode }));
    let spec = json!({
        "volumes": [with(json!({ "name": "v" }), host_path(&data, "Directory"))],
        "containers": [
            container("top", WAIT, check(json!({}))),
            container("disabled", WAIT, recursive("Disabled")),
            container("possible", WAIT, recursive("IfPossible")),
            container("enabled", WAIT, recursive("Enabled")),
        ],
    });
    apply(&agent, "readonly", spec);
    let name = ready(&agent, "readonly");
    let touch = "for f in /m/x /m/sub/x; do touch $f 2>/dev/null && echo -n w || echo -n r; done";
    for (container, expected) in [("top", "rw"), ("disabled", "rw"), ("possible", "rr"), ("enabled", "rr")] {
        assert_eq!(exec_in(&agent, &name, container, touch), expected, "{container}");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_sub_path_never_leads_out_of_its_volume() {
    let place = place();
    let agent = agent(&place, &[]);
    let secret = place.path("secret");
    fs::create_dir_all(secret.join("sub")).expect("directories");
    fs::write(secret.join("marker"), "from the host\n").expect("a file");
    // One container swaps the directory for links to the host, relative and absolute, while others start on it.
    let (target, up) = (secret.display(), "../".repeat(20));
    let swap = format!(
        "mkdir /v/sub; touch /v/ready; while :; do mkdir /v/new; mv /v/sub /v/old; ln -s {target} /v/sub; \
         rm /v/sub; ln -s {up}{target} /v/sub; rm /v/sub; mv /v/new /v/sub; rmdir /v/old; done 2>/dev/null"
    );
    let mut containers = vec![container("swap", &swap, mounts(json!([{ "name": "v", "mountPath": "/v" }])))];
    for number in 0..8 {
        let mount = json!([{ "name": "v", "mountPath": "/m", "subPath": "sub" }]);
        containers.push(container(&format!("victim{number}"), "cat /m/marker; ls -a /m; exit 1", mounts(mount)));
    }
    apply(&agent, "race", json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "containers": containers }));
    // Without a race: a link that is just there is refused, one that stays inside is followed.
    let mount = |path: &str| json!([{ "name": "v", "mountPath": "/m", "subPath": path }]);
    let all = mounts(json!([{ "name": "v", "mountPath": "/v" }]));
    let links = format!("mkdir /v/real; ln -s real /v/inside; ln -s {target} /v/outside; ln -s /v/real /v/absolute");
    let spec = |path: &str| {
        json!({
            "volumes": [{ "name": "v", "emptyDir": {} }],
            "initContainers": [container("links", &links, all.clone())],
            "containers": [container("app", WAIT, mounts(mount(path)))],
        })
    };
    for (name, path) in [("inside", "inside"), ("outside", "outside/sub"), ("absolute", "absolute"), ("made", "a/b/c")]
    {
        apply(&agent, name, spec(path));
    }
    apply(&agent, "upwards", spec("x/../../y"));
    ready(&agent, "inside");
    ready(&agent, "made");
    explained(&agent, "outside", &["CreateContainerConfigError", "subPath", "leads out of its volume"]);
    explained(&agent, "absolute", &["CreateContainerConfigError", "subPath", "leads out of its volume"]);
    let problems = agent.ok(&["pods", "--problems"]);
    assert!(problems.contains("upwards.json") && problems.contains("subPath"), "{problems}");
    let race = agent.until("race", "tried twice", |pod| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.iter()
            .skip(1)
            .all(|one| one["restartCount"].as_i64().unwrap_or(0) > 0 || one["state"]["waiting"]["message"].is_string())
            && all.len() == 9
    });
    for number in 0..8 {
        let output = agent.cli(&["logs", &full_name(&race), "-c", &format!("victim{number}")]).expect("logs");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("from the host"), "victim{number}");
    }
    let made: Vec<_> = fs::read_dir(&secret).expect("the directory").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(made.len(), 2, "made on the host: {made:?}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn mounts_land_inside_the_root_whatever_the_image_has_there() {
    let place = place();
    let agent = agent(&place, &[]);
    let file = place.path("file");
    fs::write(&file, "content\n").expect("a file");
    let image = Layout::new()
        .link("data", "/elsewhere")
        .link("dangling", "../../../../nowhere/yet")
        .file("existing", 0o644, b"from the image\n")
        .directory("directory");
    load(&agent, "links", image);
    let mount = |name: &str, path: &str| json!({ "name": name, "mountPath": path });
    let expression = json!({ "name": "v", "mountPath": "/e", "subPathExpr": "pods/$(NAME)" });
    let list = json!([
        mount("v", "/data"),
        mount("v", "/dangling"),
        mount("f", "/existing"),
        mount("f", "/new/file"),
        expression
    ]);
    let env = json!([{ "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]);
    let volumes = json!([{ "name": "v", "emptyDir": {} }, with(json!({ "name": "f" }), host_path(&file, "File"))]);
    let app = container("app", WAIT, json!({ "image": "links:1", "env": env, "volumeMounts": list }));
    apply(&agent, "lands", json!({ "volumes": volumes, "containers": [app] }));
    let wrong = |source: Value, path: &str| {
        let mut spec = one(WAIT, source, json!({ "mountPath": path }));
        spec["containers"][0]["image"] = json!("links:1");
        spec
    };
    apply(&agent, "onfile", wrong(json!({ "emptyDir": {} }), "/existing"));
    apply(&agent, "ondir", wrong(host_path(&file, "File"), "/directory"));
    let missing = json!({ "name": "v", "mountPath": "/e", "subPathExpr": "$(NONE)" });
    let app = container("app", WAIT, mounts(json!([missing])));
    apply(&agent, "novalue", json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "containers": [app] }));
    let name = ready(&agent, "lands");
    let script = "touch /data/one; ls /elsewhere /nowhere/yet; cat /existing /new/file; echo >>/existing; \
                  touch /e/two; ls /data/pods/*";
    let expected = "/elsewhere:\none\npods\n\n/nowhere/yet:\none\npods\ncontent\ncontent\ntwo\n";
    assert_eq!(exec(&agent, &name, script), expected);
    assert_eq!(fs::read_to_string(&file).expect("the file"), "content\n\n");
    assert_eq!(exec(&agent, &name, "ls /data/pods").trim(), name);
    explained(&agent, "onfile", &["/existing", "a directory cannot be mounted on a file"]);
    explained(&agent, "ondir", &["/directory", "a file cannot be mounted on a directory"]);
    explained(&agent, "novalue", &["CreateContainerConfigError", "subPathExpr", "NONE"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn volumes_of_other_kinds_are_refused_by_name() {
    let place = place();
    let agent = agent(&place, &[]);
    let kinds = [
        ("fc", json!({ "targetWWNs": ["w"], "lun": 0 })),
        ("iscsi", json!({ "targetPortal": "p", "iqn": "iqn.2001-04.com.example:x", "lun": 0 })),
        ("gitRepo", json!({ "repository": "r" })),
    ];
    for (index, (kind, source)) in kinds.iter().enumerate() {
        apply(&agent, &format!("v{index}"), one("touch /ran", json!({ *kind: source }), json!({ "mountPath": "/m" })));
    }
    // Nobody asks for pages of any size.
    apply(&agent, "huge", one(WAIT, json!({ "emptyDir": { "medium": "HugePages" } }), json!({ "mountPath": "/m" })));
    for (index, (kind, _)) in kinds.iter().enumerate() {
        explained(&agent, &format!("v{index}"), &[&format!("spec.volumes[0].{kind}"), "not supported"]);
    }
    explained(&agent, "huge", &["FailedMount", "there is no resource request for huge pages"]);
}

/// A volume that a privileged container has made as hard to remove as it can.
fn stubborn(agent: &Agent, place: &Place) {
    fs::write(place.path("keep"), "the host's\n").expect("a file");
    let script = "mkdir -p /v/deep/er /v/mnt /v/host /v/over; touch /v/immutable /v/deep/append; chattr +i /v/immutable; \
                  chattr +a /v/deep/append; chmod 0 /v/deep/er; mount -t tmpfs t /v/mnt; touch /v/mnt/x; \
                  mount -t tmpfs t /v/mnt; mount --bind /h /v/host; mount --bind /v/deep /v/over; mknod /v/fifo p; \
                  ln -s /h/keep /v/link; chattr +i /v/deep; echo done; sleep 1000";
    let list = json!([
        { "name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional" },
        { "name": "h", "mountPath": "/h" },
    ]);
    let app = container("app", script, with(mounts(list), json!({ "securityContext": { "privileged": true } })));
    let volumes =
        json!([{ "name": "v", "emptyDir": {} }, with(json!({ "name": "h" }), host_path(place.dir.path(), ""))]);
    apply(agent, "stubborn", json!({ "volumes": volumes, "containers": [app] }));
    let name = ready(agent, "stubborn");
    log(agent, &name, "app", "done");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn nothing_is_left_of_a_volume_however_stubborn() {
    let place = place();
    host(&place, "mount", &["--make-rshared", "/"]);
    let agent = agent(&place, &[]);
    run(&agent, "first", WAIT, json!({}));
    ready(&agent, "first");
    fs::write(place.path("keep"), "").expect("a file");
    let before = Machine::look(&place);
    stubborn(&agent, &place);
    let mounted = place.run("cat", &["/proc/self/mountinfo"]).expect("it runs");
    let mounted = String::from_utf8_lossy(&mounted.stdout).into_owned();
    assert!(
        mounted.contains("/v/mnt ") && mounted.contains("/v/host "),
        "the container's mounts reach the host: {mounted}"
    );
    agent.delete("stubborn.json");
    agent.gone("stubborn");
    before.assert_clean(&Machine::look(&place));
    assert_eq!(fs::read_to_string(place.path("keep")).expect("the host's own file"), "the host's\n");
    // A pod that ends by itself leaves no less.
    apply(
        &agent,
        "brief",
        with(
            one("touch /m/x", json!({ "emptyDir": { "medium": "Memory" } }), json!({ "mountPath": "/m" })),
            json!({ "restartPolicy": "Never" }),
        ),
    );
    ended(&agent, "brief");
    agent.delete("brief.json");
    agent.gone("brief");
    before.assert_clean(&Machine::look(&place));
}
