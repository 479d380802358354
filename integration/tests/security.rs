//! Confinement as a pod's author asks for it.

use std::{fs, time::Duration};

use berth_integration::{
    Agent, eventually,
    layout::Layout,
    scenario::{
        MASKED, WRITE_SYSCTL, agent, apply, container, exec, exec_in, explained, load, log, place, ready, run, with,
    },
};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";

fn bits(agent: &Agent, pod: &str, container: &str, field: &str) -> u64 {
    let status = exec_in(agent, pod, container, "cat /proc/1/status");
    let line = status.lines().find(|line| line.starts_with(&format!("{field}:"))).expect("the field").to_owned();
    u64::from_str_radix(line.split_whitespace().nth(1).expect("a value"), 16).expect("hexadecimal digits")
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
    let volume = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
    let containers = json!([
        container("may", &gain, image("named:1", json!({}))),
        container("maynot", &gain, image("named:1", json!({ "allowPrivilegeEscalation": false }))),
        container("number", WAIT, image("number:1", json!({ "runAsNonRoot": true }))),
        container("other", WAIT, image("named:1", json!({ "runAsUser": 77, "runAsNonRoot": true }))),
        container("limits", WAIT, json!({})),
        container("frozen", WAIT, with(volume, json!({ "securityContext": { "readOnlyRootFilesystem": true } }))),
    ]);
    apply(&agent, "users", json!({ "containers": containers, "volumes": [{ "name": "v", "emptyDir": {} }] }));
    run(&agent, "unmasked", WAIT, json!({ "securityContext": { "procMount": "Unmasked" } }));
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
    let touch = "for f in /x /etc/x /etc/hosts /dev/x /v/x /dev/shm/x /dev/termination-log; do \
                 (echo >>$f) 2>/dev/null && echo -n w || echo -n r; done";
    assert_eq!(exec_in(&agent, &name, "frozen", touch), "rrrwwww");
    // The ceiling cannot be raised without CAP_SYS_RESOURCE.
    let (_, ceiling) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let own = format!("1024\n{}\n", ceiling.min(524_288));
    let limits = exec_in(&agent, &name, "limits", "ulimit -Sn; ulimit -Hn");
    assert!(limits == own || limits == "1024\n524288\n", "{limits}");
    let problems = agent.ok(&["pods", "--problems"]);
    assert!(problems.contains("unmasked.json") && problems.contains("procMount"), "{problems}");
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

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_confinement_that_the_kernel_lacks_is_refused_aloud() {
    let place = place();
    let agent = agent(&place, &[]);
    let has_app_armor =
        fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y'));
    let profile = |profile: Value| json!({ "securityContext": { "appArmorProfile": profile } });
    run(&agent, "default", WAIT, profile(json!({ "type": "RuntimeDefault" })));
    run(&agent, "local", WAIT, profile(json!({ "type": "Localhost", "localhostProfile": "berth-test-none" })));
    run(&agent, "unconfined", WAIT, profile(json!({ "type": "Unconfined" })));
    run(&agent, "labelled", WAIT, json!({ "securityContext": { "seLinuxOptions": { "level": "s0:c1,c2" } } }));
    let annotated = |value: &str| {
        let annotation = "container.apparmor.security.beta.kubernetes.io/app";
        json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "annotated", "annotations": { annotation: value } },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [container("app", WAIT, json!({}))] } })
    };
    agent.apply("annotated.json", &annotated("runtime/default").to_string());
    agent.apply("nonsense.json", &with(annotated("docker/default"), json!({})).to_string());
    ready(&agent, "unconfined");
    if !has_app_armor {
        for name in ["default", "local", "annotated"] {
            let pod = agent.until(name, "rejected", |pod| pod["status"]["phase"] == "Failed");
            assert_eq!(pod["status"]["reason"], "AppArmor");
            let message = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
            assert_eq!(pod["status"]["message"], message);
        }
    } else {
        explained(&agent, "local", &["CreateContainerError", "apparmor profile not found berth-test-none"]);
    }
    explained(&agent, "labelled", &["UnsupportedField", "seLinuxOptions", "SELinux labels are not set"]);
    let problems = agent.ok(&["pods", "--problems"]);
    assert!(problems.contains("invalid AppArmor profile name: \"docker/default\""), "{problems}");
}
