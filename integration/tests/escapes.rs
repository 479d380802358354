//! Images, entry points and containers that try to get out: the escapes that container runtimes have had, by their
//! numbers, against real pods.

use std::{
    fs::{self, File},
    io::ErrorKind,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use berth_integration::{
    Agent, agent,
    layout::Layout,
    scenario::{
        MASKED, WRITE_SYSCTL, agent, apply, container, ended, exec, explained, load, log, place, ready, run, with,
    },
};
use serde_json::{Value, json};

/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2019_5736_the_programs_own_file_cannot_be_overwritten() {
    let place = place();
    let agent = agent(&place, &[]);
    let sum = || digest(&SHA256, &fs::read(agent::berth()).expect("the program")).as_ref().to_vec();
    let before = sum();
    load(&agent, "exe", Layout::new().link("exe", "/proc/self/exe"));
    let attack = "while :; do for p in /proc/[0-9]*; do (echo x >$p/exe) 2>/dev/null && echo $p >>/wrote; done; done";
    run(&agent, "attacker", attack, json!({ "image": "exe:1" }));
    let name = ready(&agent, "attacker");
    for program in ["/proc/self/exe", "/exe"].repeat(5) {
        // Whether it runs does not matter: it is the moment at which the file would be open to the container.
        agent.cli(&["exec", &name, "--", program, "version"]).expect("exec runs");
    }
    let entry = json!({ "containers": [{ "name": "app", "image": "exe:1", "command": ["/exe", "version"] }] });
    apply(&agent, "entry", with(entry, json!({ "restartPolicy": "Never" })));
    ended(&agent, "entry");
    assert_eq!(exec(&agent, &name, "cat /wrote 2>/dev/null; echo none"), "none\n");
    assert_eq!(sum(), before, "the program on disk");
    let view: Value = serde_json::from_str(&agent.ok(&["inspect", &name, "-o", "json"])).expect("JSON");
    let running = format!("/proc/{}/exe", view["supervisor"].as_i64().expect("the supervisor's process"));
    let error = File::options().write(true).open(&running).expect_err("not even root on the host");
    let refusals = [ErrorKind::ReadOnlyFilesystem, ErrorKind::ExecutableFileBusy, ErrorKind::PermissionDenied];
    assert!(refusals.contains(&error.kind()), "{error}");
}

/// A pod whose first container makes a volume look like a procfs in which every file of interest is a link to a setting
/// of the machine, and whose second one has that volume at `/evil` and the image `image`.
fn with_fake_proc(image: &str, script: &str) -> Value {
    let fake = format!(
        "cd /evil; mkdir -p self/attr self/fd sys/net/ipv4 sys/kernel thread-self/attr; \
         for f in self/attr/exec self/oom_score_adj self/setgroups thread-self/attr/exec \
         sys/net/ipv4/ip_unprivileged_port_start sys/kernel/shm_rmid_forced; do ln -s {SETTING} $f; done; ls -R /evil"
    );
    let mounts = json!([{ "name": "v", "mountPath": "/evil" }]);
    let sysctls = json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "7" }]);
    json!({
        "securityContext": { "sysctls": sysctls },
        "volumes": [{ "name": "v", "emptyDir": {} }],
        "initContainers": [container("fake", &fake, json!({ "volumeMounts": mounts }))],
        "containers": [container("app", script, json!({ "image": image, "volumeMounts": mounts, "tty": true }))],
    })
}

/// A harmless setting of the machine, to which nothing that is written for a container may be led.
const SETTING: &str = "/proc/sys/kernel/printk_ratelimit_burst";

fn setting() -> String {
    fs::read_to_string(SETTING).expect("a setting")
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2019_19921_a_volume_does_not_become_proc() {
    let place = place();
    let agent = agent(&place, &[]);
    let before = setting();
    // The image says that /proc is a directory of a volume, which another container has prepared.
    load(&agent, "proc", Layout::new().directory("evil").link("proc", "/evil"));
    load(&agent, "sys", Layout::new().directory("evil").link("sys", "evil"));
    apply(&agent, "shared", with_fake_proc("proc:1", WAIT));
    apply(&agent, "inside", with(with_fake_proc("proc:1", WAIT), json!({ "hostUsers": false })));
    run(&agent, "sys", WAIT, json!({ "image": "sys:1" }));
    explained(&agent, "shared", &["/proc", "not a symbolic link"]);
    explained(&agent, "inside", &["/proc", "not a symbolic link"]);
    explained(&agent, "sys", &["/sys", "not a symbolic link"]);
    assert_eq!(setting(), before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2023_27561_proc_stays_what_it_is_while_volumes_change() {
    let place = place();
    let agent = agent(&place, &[]);
    let before = setting();
    // The regression of 2019-19921: a link of the image into a volume in which another container turns a directory into
    // a link to /proc and back, while containers start.
    load(&agent, "turn", Layout::new().directory("vol").link("proc", "/vol/a").link("data", "/vol/a"));
    let swap = "while :; do mkdir /vol/a; rmdir /vol/a; ln -s /proc /vol/a; rm /vol/a; ln -s /proc/self /vol/a; rm /vol/a; \
                done 2>/dev/null";
    let mounts = json!([{ "name": "v", "mountPath": "/vol" }]);
    let more = json!([mounts[0], { "name": "w", "mountPath": "/data" }]);
    let check = format!("{WRITE_SYSCTL}; echo readable: $({MASKED}); exit 1");
    let mut containers = vec![container("swap", swap, json!({ "volumeMounts": mounts }))];
    for number in 0..6 {
        containers.push(container(
            &format!("proc{number}"),
            &check,
            json!({ "image": "turn:1", "volumeMounts": mounts }),
        ));
        let name = format!("data{number}");
        containers.push(container(&name, &check, json!({ "image": "turn:1", "volumeMounts": more })));
    }
    let volumes = json!([{ "name": "v", "emptyDir": {} }, { "name": "w", "emptyDir": {} }]);
    apply(&agent, "race", json!({ "containers": containers, "volumes": volumes }));
    let pod = agent.until("race", "tried", |pod| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let tried = |one: &&Value| one["name"] != "swap" && one["state"]["waiting"]["reason"] != "ContainerCreating";
        all.len() == 13 && all.iter().filter(tried).count() == 12
    });
    // Where /proc is a link, and it always is, nothing is started.
    let started = pod["status"]["containerStatuses"]
        .as_array()
        .expect("statuses")
        .iter()
        .filter(|one| one["name"] != "swap" && one["lastState"]["terminated"]["startedAt"].is_string());
    assert_eq!(started.count(), 0, "{:#}", pod["status"]);
    assert_eq!(setting(), before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2023_28642_no_mount_lands_in_proc_by_a_link() {
    let place = place();
    let agent = agent(&place, &[]);
    let image = Layout::new().link("data", "/proc").link("attr", "/proc/self/attr").link("deep", "/proc/sys/kernel");
    load(&agent, "data", image);
    let volume = |image: &str, path: &str| {
        let mounts = json!([{ "name": "v", "mountPath": path }]);
        let app = container("app", WAIT, json!({ "image": image, "volumeMounts": mounts }));
        json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "containers": [app] })
    };
    apply(&agent, "onproc", volume("busybox:1", "/proc"));
    apply(&agent, "inproc", volume("busybox:1", "/tmp/../proc/self/attr"));
    apply(&agent, "linked", volume("data:1", "/data"));
    apply(&agent, "within", volume("data:1", "/attr/exec"));
    apply(&agent, "deep", volume("data:1", "/deep"));
    apply(&agent, "mapped", with(volume("data:1", "/data/self"), json!({ "hostUsers": false })));
    explained(&agent, "onproc", &["mountPath", "must not be inside /proc"]);
    explained(&agent, "inproc", &["mountPath", "must not be inside /proc"]);
    explained(&agent, "linked", &["/data", "inside a proc file system"]);
    explained(&agent, "within", &["/attr/exec"]);
    explained(&agent, "deep", &["/deep", "inside a proc file system"]);
    explained(&agent, "mapped", &["/data/self", "inside a proc file system"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2024_21626_no_descriptor_and_no_working_directory_leads_out() {
    let place = place();
    let agent = agent(&place, &[]);
    fs::write(place.path("marker"), "from the host\n").expect("a file");
    let marker = place.path("marker").display().to_string();
    let script = format!("ls /proc/self/fd | tr '\\n' ' '; echo; cat ../../../../../../../../..{marker}; echo done");
    for number in ["4", "9"] {
        let path = format!("/proc/self/fd/{number}");
        load(&agent, &format!("leak{number}"), Layout::new().config("WorkingDir", json!(path)));
    }
    let mut containers: Vec<Value> = (3..13)
        .map(|number| {
            let path = format!("/proc/self/fd/{number}");
            container(&format!("fd{number}"), &script, json!({ "workingDir": path }))
        })
        .collect();
    containers.push(container("one", &script, json!({ "image": "leak4:1" })));
    containers.push(container("two", &script, json!({ "image": "leak9:1" })));
    containers.push(container("up", &script, json!({ "workingDir": "/../../../proc/1/cwd/../.." })));
    containers.push(container("plain", &script, json!({})));
    let names: Vec<String> = containers.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect();
    apply(&agent, "leaks", json!({ "restartPolicy": "Never", "containers": containers }));
    let name = ended(&agent, "leaks");
    for container in &names {
        let log = agent.cli(&["logs", &name, "-c", container]).expect("logs");
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        assert!(!log.contains("from the host"), "{container}: {log}");
        if container == "plain" {
            // The fourth is that of the listing itself.
            assert_eq!(log.lines().next().map(str::trim), Some("0 1 2 3"), "{log}");
        } else if container.starts_with("fd") {
            assert!(log.is_empty(), "{container} was started: {log}");
        }
    }
    run(&agent, "waits", WAIT, json!({}));
    let name = ready(&agent, "waits");
    assert_eq!(exec(&agent, &name, "ls /proc/self/fd /proc/1/fd | tr '\\n' ' '").matches('3').count(), 1, "exec's own");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2024_45310_places_for_mounts_are_made_inside_the_root_only() {
    let place = place();
    let agent = agent(&place, &[]);
    let outside = place.path("outside");
    fs::create_dir(&outside).expect("a directory");
    let (target, up) = (outside.display().to_string(), format!("../../../../../../../../..{}", outside.display()));
    load(&agent, "links", Layout::new().link("absolute", &target).link("upwards", &up));
    let mounts = json!([
        { "name": "v", "mountPath": "/vol" },
        { "name": "w", "mountPath": "/vol/a/made/directory" },
        { "name": "f", "mountPath": "/vol/a/made/file" },
        { "name": "w", "mountPath": "/absolute/x" },
        { "name": "w", "mountPath": "/upwards/y" },
    ]);
    fs::write(place.path("file"), "").expect("a file");
    // One container turns a directory of a shared volume into a link to the host and back while others start on it.
    let swap = format!("while :; do mkdir /vol/a; rm -rf /vol/a; ln -s {target} /vol/a; rm /vol/a; done 2>/dev/null");
    let mut containers = vec![container("swap", &swap, json!({ "volumeMounts": [mounts[0]] }))];
    for number in 0..8 {
        let more = json!({ "image": "links:1", "volumeMounts": mounts });
        containers.push(container(&format!("victim{number}"), "ls -R /absolute /upwards; exit 1", more));
    }
    let volumes = json!([
        { "name": "v", "emptyDir": {} },
        { "name": "w", "emptyDir": {} },
        { "name": "f", "hostPath": { "path": place.path("file"), "type": "File" } },
    ]);
    apply(&agent, "race", json!({ "containers": containers, "volumes": volumes }));
    agent.until("race", "tried twice", |pod| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let tried = |one: &&Value| one["name"] != "swap" && one["state"]["waiting"]["reason"] != "ContainerCreating";
        all.len() == 9 && all.iter().filter(tried).count() == 8
    });
    let made: Vec<_> = fs::read_dir(&outside).expect("the directory").collect();
    assert!(made.is_empty(), "made on the host: {made:?}");
}

/// Links in /dev of an image or a volume to a setting of the machine.
fn links() -> [&'static str; 5] {
    ["null", "console", "zero", "ptmx", "tty"]
}

/// A pod with a volume at /dev in which an init container has made [`links`].
fn with_own_dev(script: &str, more: Value) -> Value {
    let fake: String = links().iter().map(|name| format!("ln -s {SETTING} /v/{name}; ")).collect();
    let app = with(json!({ "volumeMounts": [{ "name": "dev", "mountPath": "/dev" }] }), more);
    json!({
        "volumes": [{ "name": "dev", "emptyDir": {} }],
        "initContainers": [container("fake", &fake, json!({ "volumeMounts": [{ "name": "dev", "mountPath": "/v" }] }))],
        "containers": [container("app", script, app)],
    })
}

/// That nothing of the machine can be changed, and nothing hidden be read, by the container and by an exec.
#[track_caller]
fn confined(agent: &Agent, name: &str) {
    let pod = ready(agent, name);
    let log = log(agent, &pod, "app", "done").replace('\r', "");
    assert!(!log.contains("WROTE"), "{name}: {log}");
    assert!(log.contains("readable: 0\n"), "{name}: {log}");
    assert!(!exec(agent, &pod, WRITE_SYSCTL).contains("WROTE"), "{name}: exec");
    assert_eq!(exec(agent, &pod, MASKED), "0\n", "{name}: exec");
}

fn check() -> String {
    format!("{WRITE_SYSCTL}; echo readable: $({MASKED}); echo done; {WAIT}")
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2025_31133_what_is_hidden_is_hidden_by_the_real_null_device() {
    let place = place();
    let agent = agent(&place, &[]);
    let before = setting();
    let image = links().iter().fold(Layout::new(), |image, name| image.link(&format!("dev/{name}"), SETTING));
    load(&agent, "devices", image);
    run(&agent, "image", &check(), json!({ "image": "devices:1" }));
    apply(&agent, "volume", with_own_dev(&check(), json!({})));
    let mapped =
        json!({ "hostUsers": false, "containers": [container("app", &check(), json!({ "image": "devices:1" }))] });
    apply(&agent, "mapped", mapped);
    for name in ["image", "volume", "mapped"] {
        confined(&agent, name);
    }
    // Whatever hides a file is the null device itself.
    let pod = ready(&agent, "volume");
    let covers = exec(&agent, &pod, "stat -c '%F %t:%T' /proc/kcore /proc/keys /proc/timer_list 2>&1 | sort | uniq");
    let covers: Vec<&str> = covers.lines().filter(|line| !line.contains("No such file")).collect();
    assert_eq!(covers, ["character special file 1:3"]);
    assert_eq!(setting(), before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2025_52565_the_console_is_the_containers_own_terminal() {
    let place = place();
    let agent = agent(&place, &[]);
    let before = setting();
    // Names of the terminal's place and of its source that lead elsewhere.
    let image = Layout::new().link("dev/console", SETTING).link("dev/pts/0", SETTING).link("dev/pts/ptmx", SETTING);
    load(&agent, "console", image);
    load(&agent, "pts", Layout::new().link("dev/pts", "/proc/sys/kernel"));
    let tty = |image: &str| json!({ "image": image, "tty": true });
    run(&agent, "image", &check(), tty("console:1"));
    run(&agent, "pts", &check(), tty("pts:1"));
    apply(&agent, "volume", with_own_dev(&check(), json!({ "tty": true })));
    apply(
        &agent,
        "mapped",
        json!({ "hostUsers": false, "containers": [container("app", &check(), tty("console:1"))] }),
    );
    for name in ["image", "pts", "volume", "mapped"] {
        confined(&agent, name);
    }
    let terminal = "[ -c /dev/console ] && stat -c %t /dev/console";
    for name in ["image", "pts", "mapped"] {
        assert_eq!(exec(&agent, &ready(&agent, name), terminal), "88\n", "{name}: a terminal of devpts");
    }
    assert_eq!(setting(), before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2025_52881_what_is_written_to_proc_for_a_container_goes_there() {
    let place = place();
    let agent = agent(&place, &[]);
    let before = setting();
    // Weights, limits and parameters are all written; in the image and in a shared volume they lead to the machine.
    let image = Layout::new().directory("evil").link("proc/self", "/evil/self").link("proc/sys/kernel/x", SETTING);
    load(&agent, "proc", image);
    apply(&agent, "image", with_fake_proc("proc:1", &check()));
    apply(&agent, "mapped", with(with_fake_proc("proc:1", &check()), json!({ "hostUsers": false })));
    for name in ["image", "mapped"] {
        confined(&agent, name);
        let pod = ready(&agent, name);
        assert_eq!(exec(&agent, &pod, "cat /proc/1/oom_score_adj"), "1000\n", "{name}");
        assert_eq!(exec(&agent, &pod, "cat /proc/self/oom_score_adj"), "1000\n", "{name}: exec");
        assert_eq!(exec(&agent, &pod, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "7\n", "{name}");
        // And from within: a running container changes its own view, and an exec follows no path in it.
        let cover = "mkdir -p /tmp/self; mount -o bind /evil /proc 2>/dev/null; echo covered";
        assert_eq!(exec(&agent, &pod, cover), "covered\n");
        assert_eq!(exec(&agent, &pod, "cat /proc/self/oom_score_adj"), "1000\n", "{name}: exec");
    }
    assert_eq!(setting(), before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2026_41579_a_dev_that_is_a_link_makes_no_devices_elsewhere() {
    let place = place();
    let agent = agent(&place, &[]);
    let outside = place.path("outside");
    fs::create_dir(&outside).expect("a directory");
    let up = format!("../../../../../../..{}", outside.display());
    for (name, target) in [("absolute", outside.display().to_string()), ("upwards", up), ("dangling", "/none".into())] {
        load(&agent, name, Layout::new().link("dev", &target));
        run(
            &agent,
            name,
            &format!("echo x >/dev/null; ls -l /dev/null; {WAIT}"),
            json!({ "image": format!("{name}:1") }),
        );
        let pod = agent.until(name, "started or refused", |pod| {
            let state = &pod["status"]["containerStatuses"][0]["state"];
            state["running"].is_object() || state["waiting"]["reason"].as_str().is_some_and(|why| why.contains("Error"))
        });
        let made: Vec<_> = fs::read_dir(&outside).expect("the directory").collect();
        assert!(made.is_empty(), "{name}: made on the host: {made:?}");
        if pod["status"]["containerStatuses"][0]["state"]["running"].is_object() {
            let pod = ready(&agent, name);
            assert!(log(&agent, &pod, "app", "/dev/null").starts_with("crw-rw-rw-"), "{name}");
        }
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn files_of_a_container_neither_hang_nor_bloat_the_agent() {
    let place = place();
    let agent = agent(&place, &[]);
    load(&agent, "pipe", Layout::new().pipe("etc/passwd").config("User", json!("web")));
    load(&agent, "endless", Layout::new().link("etc/group", "/dev/zero").config("User", json!("web:extra")));
    run(&agent, "pipe", WAIT, json!({ "image": "pipe:1" }));
    run(&agent, "endless", WAIT, json!({ "image": "endless:1" }));
    let swap = "rm /etc/passwd /etc/group; mkfifo /etc/passwd; ln -s /dev/zero /etc/group; echo swapped; sleep 1000";
    run(&agent, "swap", swap, json!({}));
    // A long message, and a log without an end of line.
    let flood = "head -c 20000000 /dev/zero | tr '\\0' x >/dev/termination-log; head -c 20000000 /dev/zero; exit 3";
    apply(&agent, "flood", json!({ "restartPolicy": "Never", "containers": [container("app", flood, json!({}))] }));
    explained(&agent, "pipe", &["CreateContainerError", "/etc/passwd", "not a regular file"]);
    explained(&agent, "endless", &["CreateContainerError", "/etc/group", "not a regular file"]);
    let name = ready(&agent, "swap");
    log(&agent, &name, "app", "swapped");
    let begun = std::time::Instant::now();
    agent.cli(&["exec", &name, "--", "true"]).expect("exec runs");
    assert!(begun.elapsed() < Duration::from_secs(5), "exec hangs: {:?}", begun.elapsed());
    ended(&agent, "flood");
    let ended = agent.pod("flood").expect("the pod")["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!(ended["exitCode"], 3);
    assert_eq!(ended["message"].as_str().map(str::len), Some(4096));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn layers_write_nothing_outside_of_their_image() {
    let place = place();
    let agent = agent(&place, &[]);
    let outside = place.path("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("secret"), "from the host\n").expect("a file");
    let (target, up) = (outside.display().to_string(), format!("{}{}", "../".repeat(12), outside.display()));
    let layers = [
        ("upwards", Layout::new().file(&format!("{up}/made"), 0o644, b"x")),
        ("absolute", Layout::new().file(&format!("{target}/made"), 0o644, b"x")),
        ("through", Layout::new().link("a", &target).file("a/made", 0o644, b"x")),
        ("whiteout", Layout::new().link("a", &target).file("a/.wh.secret", 0o644, b"")),
        ("opaque", Layout::new().link("a", &target).file("a/.wh..wh..opq", 0o644, b"")),
        ("upopaque", Layout::new().file(&format!("{up}/.wh..wh..opq"), 0o644, b"")),
        ("dotdot", Layout::new().file("bin/.wh...", 0o644, b"")),
        ("hard", Layout::new().hard_link("stolen", &format!("{target}/secret"))),
        ("uphard", Layout::new().hard_link("stolen", &format!("{up}/secret"))),
        ("linkhard", Layout::new().link("a", &target).hard_link("stolen", "a/secret")),
    ];
    for (name, layout) in layers {
        let layout = layout.write(place.path(&format!("image-{name}")));
        let output = agent.cli(&["load", "--name", &format!("{name}:1"), &layout]).expect("it runs");
        let files: Vec<_> =
            fs::read_dir(&outside).expect("the directory").flatten().map(|file| file.file_name()).collect();
        assert_eq!(files, ["secret"], "{name}");
        if output.status.success() {
            let script = format!("cat /stolen; cat {target}/secret; ls {target} /a; echo done");
            run(&agent, name, &format!("{script}; {WAIT}"), json!({ "image": format!("{name}:1") }));
            let pod = ready(&agent, name);
            assert!(!log(&agent, &pod, "app", "done").contains("from the host"), "{name}");
        } else {
            assert!(!output.stderr.is_empty(), "{name}");
        }
    }
    assert_eq!(fs::read_to_string(outside.join("secret")).expect("the file"), "from the host\n");
}
