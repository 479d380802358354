//! Confinement as a pod's author asks for it, and input that tries to get out of it.

use std::{
    fs::{self, File},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use berth_integration::{
    Agent, agent, eventually,
    layout::Layout,
    scenario::{agent, apply, container, ended, exec, exec_in, explained, load, log, place, ready, run, with},
};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use serde_json::{Value, json};

/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";
/// Prints how many bytes can be read of what must be hidden. (Most kernels lack some of these.)
const MASKED: &str = "for p in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats \
                      /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware \
                      /sys/devices/virtual/powercap; do if [ -d $p ]; then ls -A $p; else head -c 100 $p; fi; \
                      done 2>/dev/null | wc -c";
/// Tries to change a setting of the machine to what it already is.
const WRITE_SYSCTL: &str = "f=/proc/sys/kernel/printk_ratelimit; v=$(cat $f); if echo $v > $f; then echo WROTE; fi";

fn bits(agent: &Agent, pod: &str, container: &str, field: &str) -> u64 {
    let status = exec_in(agent, pod, container, "cat /proc/1/status");
    let line = status.lines().find(|line| line.starts_with(&format!("{field}:"))).expect("the field").to_owned();
    u64::from_str_radix(line.split_whitespace().nth(1).expect("a value"), 16).expect("hexadecimal digits")
}

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
    assert!(File::options().write(true).open(&running).is_err(), "not even root on the host");
    let seals = fcntl(File::open(&running).expect("it can be read"), FcntlArg::F_GET_SEALS).expect("it has seals");
    assert!(SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL), "{seals}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2019_19921_2023_27561_2023_28642_proc_and_sys_are_what_they_are() {
    let place = place();
    let agent = agent(&place, &[]);
    load(&agent, "proc", Layout::new().directory("evil").link("proc", "/evil"));
    load(&agent, "sys", Layout::new().directory("evil").link("sys", "evil"));
    load(&agent, "data", Layout::new().link("data", "/proc").link("attr", "/proc/self/attr"));
    let volume = |image: &str, path: &str| {
        let mounts = json!([{ "name": "v", "mountPath": path }]);
        let app = container("app", WAIT, json!({ "image": image, "volumeMounts": mounts }));
        json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "containers": [app] })
    };
    run(&agent, "proc", WAIT, json!({ "image": "proc:1" }));
    run(&agent, "sys", WAIT, json!({ "image": "sys:1" }));
    apply(&agent, "onproc", volume("busybox:1", "/proc"));
    apply(&agent, "inproc", volume("busybox:1", "/tmp/../proc/self/attr"));
    apply(&agent, "linked", volume("data:1", "/data"));
    apply(&agent, "within", volume("data:1", "/attr/exec"));
    explained(&agent, "proc", &["/proc", "not a symbolic link"]);
    explained(&agent, "sys", &["/sys", "not a symbolic link"]);
    explained(&agent, "onproc", &["mountPath", "must not be inside /proc"]);
    explained(&agent, "inproc", &["mountPath", "must not be inside /proc"]);
    explained(&agent, "linked", &["/data", "inside a proc file system"]);
    explained(&agent, "within", &["/attr/exec"]);
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

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cve_2025_31133_2025_52565_2025_52881_dev_is_not_believed() {
    let place = place();
    let agent = agent(&place, &[]);
    // The image says that the null device and the console are settings of the machine, and so does a volume.
    let sysctl = "/proc/sys/kernel/printk_ratelimit";
    let links = ["null", "console", "zero", "ptmx", "tty"];
    let image = links.iter().fold(Layout::new(), |image, name| image.link(&format!("dev/{name}"), sysctl));
    load(&agent, "devices", image);
    let check = format!("{WRITE_SYSCTL}; echo readable: $({MASKED}); echo done; {WAIT}");
    for (name, tty) in [("console", true), ("null", false)] {
        run(&agent, name, &check, json!({ "image": "devices:1", "tty": tty }));
    }
    let script: String = links.iter().map(|name| format!("ln -s {sysctl} /dev/{name}; ")).collect();
    let mounts = json!({ "volumeMounts": [{ "name": "dev", "mountPath": "/dev" }], "tty": true });
    let prepare = with(mounts.clone(), json!({ "volumeMounts": [{ "name": "dev", "mountPath": "/v" }], "tty": false }));
    let spec = json!({
        "volumes": [{ "name": "dev", "emptyDir": {} }],
        "initContainers": [container("prepare", &script.replace("/dev/", "/v/"), prepare)],
        "containers": [container("app", &check, mounts)],
    });
    apply(&agent, "volume", spec);
    for name in ["console", "null", "volume"] {
        let pod = ready(&agent, name);
        let log = log(&agent, &pod, "app", "done");
        assert!(!log.contains("WROTE"), "{name}: {log}");
        assert!(log.replace('\r', "").contains("readable: 0\n"), "{name}: {log}");
        assert!(!exec(&agent, &pod, WRITE_SYSCTL).contains("WROTE"), "{name}: exec");
        // Written through the real /proc, whatever the image has there.
        assert_eq!(exec(&agent, &pod, "cat /proc/1/oom_score_adj"), "1000\n", "{name}");
    }
    let console = ready(&agent, "console");
    assert_eq!(exec(&agent, &console, "[ -c /dev/console ] && [ -c /dev/null ] && echo devices"), "devices\n");
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
fn capabilities_are_those_asked_for_and_privileged_means_it() {
    let place = place();
    let agent = agent(&place, &[]);
    let own = fs::read_to_string("/proc/self/status").expect("status");
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("CapBnd").trim().to_owned();
    let own = u64::from_str_radix(&own, 16).expect("hexadecimal digits");
    let context = |context: Value| json!({ "securityContext": context });
    let capabilities = |add: Value, drop: Value| context(json!({ "capabilities": { "add": add, "drop": drop } }));
    let containers = json!([
        container("few", WAIT, capabilities(json!(["NET_ADMIN", "CAP_SYS_TIME"]), json!(["ALL"]))),
        container("less", WAIT, capabilities(json!([]), json!(["MKNOD", "CAP_NET_RAW"]))),
        container("all", WAIT, capabilities(json!(["ALL"]), json!([]))),
        container("most", WAIT, capabilities(json!(["ALL"]), json!(["SYS_ADMIN"]))),
        container("privileged", WAIT, context(json!({ "privileged": true }))),
        container("plain", WAIT, json!({})),
    ]);
    apply(&agent, "capable", json!({ "containers": containers }));
    run(&agent, "unknown", WAIT, capabilities(json!(["NO_SUCH"]), json!([])));
    let name = ready(&agent, "capable");
    const DEFAULT: u64 = 0xa804_25fb;
    for (container, expected) in [
        ("few", (1 << 12 | 1 << 25) & own),
        ("less", DEFAULT & !(1 << 27) & !(1 << 13)),
        ("all", own),
        ("most", own & !(1 << 21)),
        ("privileged", own),
        ("plain", DEFAULT),
    ] {
        for field in ["CapBnd", "CapEff", "CapPrm"] {
            assert_eq!(bits(&agent, &name, container, field), expected, "{field} of {container}");
        }
    }
    explained(&agent, "unknown", &["NO_SUCH"]);
    // Device nodes may be made, but block devices not used.
    let device = fs::read_to_string("/sys/class/block/loop0/dev").expect("a block device").trim().replace(':', " ");
    let open = format!("mknod /b b {device} 2>&1 && dd if=/b of=/dev/null bs=512 count=1 2>&1 && echo OPENED; true");
    assert!(exec_in(&agent, &name, "plain", &open).contains("Operation not permitted"));
    assert!(!exec_in(&agent, &name, "less", &open).contains("OPENED"));
    assert!(exec_in(&agent, &name, "privileged", &open).contains("OPENED"));
    let devices = exec_in(&agent, &name, "privileged", "ls /dev");
    for device in ["loop0", "kmsg", "null", "tty0"] {
        let exists = fs::exists(format!("/dev/{device}")).expect("/dev");
        assert_eq!(devices.lines().any(|line| line == device), exists, "{device}");
    }
    let mounts = exec_in(&agent, &name, "privileged", "cat /proc/mounts");
    let sys = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/sys")).expect("/sys");
    assert!(sys.contains(" rw,"), "{sys}");
    assert!(!mounts.contains(" /proc/"), "nothing is masked: {mounts}");
    assert!(!exec_in(&agent, &name, "privileged", WRITE_SYSCTL).is_empty(), "/proc/sys can be written");
    let mounts = exec_in(&agent, &name, "plain", "cat /proc/mounts");
    for path in ["/sys", "/sys/fs/cgroup", "/proc/sys", "/proc/bus", "/proc/irq", "/proc/fs", "/proc/sysrq-trigger"] {
        if !fs::exists(path).expect("a path of the host") {
            continue;
        }
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(path));
        assert!(line.is_some_and(|line| line.contains(" ro,")), "{path}: {mounts}");
    }
    assert_eq!(exec_in(&agent, &name, "plain", MASKED), "0\n");
    assert_ne!(exec_in(&agent, &name, "privileged", MASKED), "0\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn seccomp_profiles_are_the_default_none_or_a_file() {
    let place = place();
    let profiles = place.path("root/seccomp/sub");
    fs::create_dir_all(&profiles).expect("a directory");
    let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 });
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    fs::write(profiles.join("nodirs.json"), profile.to_string()).expect("a profile");
    fs::write(profiles.join("broken.json"), "{").expect("a profile");
    let agent = agent(&place, &[]);
    let profile = |kind: &str, file: Option<&str>| {
        let profile = json!({ "type": kind, "localhostProfile": file });
        json!({ "securityContext": { "seccompProfile": profile } })
    };
    let containers = json!([
        container("default", WAIT, profile("RuntimeDefault", None)),
        container("none", WAIT, profile("Unconfined", None)),
        container("unsaid", WAIT, json!({})),
        container("file", WAIT, profile("Localhost", Some("sub/nodirs.json"))),
    ]);
    apply(&agent, "filtered", json!({ "containers": containers }));
    run(&agent, "missing", WAIT, profile("Localhost", Some("sub/none.json")));
    run(&agent, "broken", WAIT, profile("Localhost", Some("sub/broken.json")));
    run(&agent, "upwards", WAIT, profile("Localhost", Some("../../etc/passwd")));
    let name = ready(&agent, "filtered");
    for (container, mode) in [("default", 2), ("none", 0), ("unsaid", 0), ("file", 2)] {
        assert_eq!(bits(&agent, &name, container, "Seccomp"), mode, "{container}");
        assert!(exec_in(&agent, &name, container, "grep Seccomp: /proc/self/status").contains(&mode.to_string()));
    }
    let namespace = "unshare -U true 2>&1 && echo made; true";
    assert!(exec_in(&agent, &name, "default", namespace).contains("Operation not permitted"));
    if exec_in(&agent, &name, "none", namespace).trim() != "made" {
        eprintln!("this kernel lets nobody make user namespaces: RuntimeDefault is seen by its mode only");
    }
    assert!(exec_in(&agent, &name, "file", "mkdir /x 2>&1; true").contains("No space left"));
    assert_eq!(exec_in(&agent, &name, "default", "mkdir /x && echo made"), "made\n");
    explained(&agent, "missing", &["seccompProfile", "sub/none.json"]);
    explained(&agent, "broken", &["seccompProfile", "sub/broken.json"]);
    let refused = agent.ok(&["pods", "--problems"]);
    assert!(refused.contains("upwards.json") && refused.contains("localhostProfile"), "{refused}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn users_come_from_the_image_and_gain_nothing() {
    let place = place();
    let agent = agent(&place, &[]);
    let busybox = fs::read("/bin/busybox").expect("busybox");
    let user = |user: &str| Layout::new().config("User", json!(user));
    load(&agent, "named", user("web:extra").file("suid/busybox", 0o4755, &busybox));
    load(&agent, "unknown", user("ghost"));
    load(&agent, "nogroup", user("web:ghosts"));
    load(&agent, "number", user("4242"));
    let image = |image: &str, more: Value| with(json!({ "image": image }), json!({ "securityContext": more }));
    // ping is one of the few applets that keep what the setuid bit gives.
    let gain = format!("/suid/busybox ping -i 100 127.0.0.1 >/dev/null & {WAIT}");
    let containers = json!([
        container("may", &gain, image("named:1", json!({}))),
        container("maynot", &gain, image("named:1", json!({ "allowPrivilegeEscalation": false }))),
        container("number", WAIT, image("number:1", json!({ "runAsNonRoot": true }))),
        container("other", WAIT, image("named:1", json!({ "runAsUser": 77, "runAsNonRoot": true }))),
        container("limits", WAIT, json!({})),
    ]);
    apply(&agent, "users", json!({ "containers": containers }));
    run(&agent, "unknown", WAIT, image("unknown:1", json!({})));
    run(&agent, "nogroup", WAIT, image("nogroup:1", json!({})));
    run(&agent, "root", WAIT, json!({ "securityContext": { "runAsNonRoot": true } }));
    run(&agent, "zero", WAIT, image("named:1", json!({ "runAsNonRoot": true, "runAsUser": 0 })));
    run(&agent, "nonnumeric", WAIT, image("named:1", json!({ "runAsNonRoot": true })));
    let name = ready(&agent, "users");
    let id = |container: &str| exec_in(&agent, &name, container, "id");
    assert_eq!(id("may").trim(), "uid=1000(web) gid=2000(extra) groups=2000(extra)");
    assert_eq!(id("number").trim(), "uid=4242 gid=0(root) groups=0(root)");
    assert_eq!(id("other").trim(), "uid=77 gid=0(root) groups=0(root)");
    let effective = |container: &str| {
        let script = "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' <$p/cmdline | cut -d' ' -f2)\" = ping ] && \
                      awk '/^Uid:/ {print $3}' $p/status; done; true";
        eventually("ping runs", Duration::from_secs(10), || {
            let text = exec_in(&agent, &name, container, script);
            Some(text).filter(|text| !text.is_empty())
        })
    };
    assert_eq!(effective("may"), "0\n", "the bit counts where escalation is allowed");
    log(&agent, &name, "maynot", "ping: permission denied");
    assert_eq!(bits(&agent, &name, "maynot", "NoNewPrivs"), 1);
    assert_eq!(bits(&agent, &name, "may", "NoNewPrivs"), 0);
    assert_eq!(exec_in(&agent, &name, "limits", "ulimit -Sn; ulimit -Hn"), "1024\n524288\n");
    explained(&agent, "unknown", &["CreateContainerError", "unable to find user ghost"]);
    explained(&agent, "nogroup", &["CreateContainerError", "unable to find group ghosts"]);
    explained(&agent, "root", &["CreateContainerConfigError", "image will run as root"]);
    explained(&agent, "zero", &["CreateContainerConfigError", "breaks non-root policy"]);
    explained(&agent, "nonnumeric", &["CreateContainerConfigError", "non-numeric user (web)"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_fork_bomb_and_a_memory_hog_harm_nobody_else() {
    let place = place();
    let config = place.path("config.yaml");
    let kind = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    fs::write(&config, format!("{kind}podPidsLimit: 64\n")).expect("a configuration");
    let agent = agent(&place, &["--config", config.to_str().expect("UTF-8")]);
    run(&agent, "neighbour", WAIT, json!({}));
    run(&agent, "bomb", "b() { b | b & }; b; while :; do b; done", json!({}));
    let hog = "head -c 100000000 /dev/zero | tail >/dev/null; echo child ended with $?; sleep 1000";
    let limits = json!({ "memory": "24Mi", "cpu": "250m" });
    run(&agent, "hog", hog, json!({ "resources": { "limits": limits } }));
    let neighbour = ready(&agent, "neighbour");
    let begun = std::time::Instant::now();
    assert_eq!(exec(&agent, &neighbour, "for i in 1 2 3 4 5 6 7 8; do (true) & done; wait; echo fine"), "fine\n");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let root = place.cgroup_root.trim_start_matches('/');
    let uid = |name: &str| agent.pod(name).expect("the pod")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let v1 = |controller: &str, file: &str, class: &str, pod: &str| {
        let path = format!("/sys/fs/cgroup/{controller}/{root}/kubepods{class}/pod{}/{file}", uid(pod));
        fs::read_to_string(&path).ok().map(|text| text.trim().to_owned())
    };
    let hog = agent.until("hog", "short of memory", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let log = agent.cli(&["logs", name]).map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        // With one version of cgroups the child alone is killed, with the other the whole container.
        log.is_ok_and(|log| log.contains("ended with 137")) || status.to_string().contains("OOMKilled")
    });
    assert_eq!(hog["status"]["qosClass"], "Guaranteed");
    if fs::exists("/sys/fs/cgroup/cpu,cpuacct").expect("cgroups") || fs::exists("/sys/fs/cgroup/cpu").expect("cgroups")
    {
        assert_eq!(v1("cpu", "cpu.cfs_quota_us", "", "hog").as_deref(), Some("25000"));
        assert_eq!(v1("cpu", "cpu.cfs_period_us", "", "hog").as_deref(), Some("100000"));
        assert_eq!(v1("cpu", "cpu.shares", "", "hog").as_deref(), Some("256"));
        assert_eq!(v1("memory", "memory.limit_in_bytes", "", "hog"), Some((24 << 20).to_string()));
        assert_eq!(v1("pids", "pids.max", "/besteffort", "bomb").as_deref(), Some("64"));
        let current = v1("pids", "pids.current", "/besteffort", "bomb").and_then(|text| text.parse::<u64>().ok());
        assert!(current.is_some_and(|current| current <= 64), "{current:?}");
    }
    agent.delete("bomb.json");
    agent.gone("bomb");
    assert_eq!(exec(&agent, &neighbour, "echo still here"), "still here\n");
}
