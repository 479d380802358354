//! Pods with user namespaces of their own.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};

use berth_integration::{
    Agent, Machine,
    layout::Layout,
    scenario::{MASKED, agent, apply, container, ended, exec, exec_in, explained, load, log, place, ready, run, with},
};
use serde_json::{Value, json};

/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";

/// First host id of a running pod's containers, and how many there are.
fn range(agent: &Agent, pod: &str) -> (u32, u32) {
    let map = exec(agent, pod, "cat /proc/self/uid_map; cat /proc/self/gid_map");
    let lines: Vec<Vec<u32>> =
        map.lines().map(|line| line.split_whitespace().map(|n| n.parse().expect("a number")).collect()).collect();
    assert_eq!(lines.len(), 2, "{map}");
    assert_eq!(lines[0], lines[1], "users and groups are mapped alike");
    assert_eq!(lines[0][0], 0);
    (lines[0][1], lines[0][2])
}

fn uid(agent: &Agent, pod: &str) -> String {
    agent.pod(pod).expect("the pod")["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn root_of_a_pod_is_nobody_on_the_host() {
    let place = place();
    let agent = agent(&place, &[]);
    let host = place.path("host");
    fs::create_dir(&host).expect("a directory");
    fs::write(host.join("secret"), "of root\n").expect("a file");
    fs::set_permissions(host.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    fs::write(host.join("of-web"), "of web\n").expect("a file");
    chown(host.join("of-web"), Some(1000), Some(2000)).expect("an owner");
    let mounts = json!([
        { "name": "disk", "mountPath": "/disk" },
        { "name": "memory", "mountPath": "/memory" },
        { "name": "host", "mountPath": "/host" },
    ]);
    let spec = json!({
        "hostUsers": false,
        "securityContext": { "fsGroup": 3000, "sysctls": [{ "name": "kernel.shm_rmid_forced", "value": "1" }] },
        "volumes": [
            { "name": "disk", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
            { "name": "host", "hostPath": { "path": host, "type": "Directory" } },
        ],
        "initContainers": [container("first", "echo from-init >/disk/init; chown 1000:1000 /disk/init", json!({
            "volumeMounts": mounts, "terminationMessagePath": "/dev/termination-log" }))],
        "containers": [
            container("app", WAIT, json!({ "volumeMounts": mounts })),
            container("web", &format!("id; echo to-stdout >/dev/stdout; echo last >/dev/termination-log; {WAIT}"),
                json!({ "volumeMounts": mounts, "securityContext": { "runAsUser": 1000 } })),
        ],
    });
    run(&agent, "outside", WAIT, json!({}));
    let outside = ready(&agent, "outside");
    let before = Machine::look(&place);
    apply(&agent, "inside", spec);
    let pod = ready(&agent, "inside");

    let (first, count) = range(&agent, &pod);
    assert_eq!((first % 65_536, count), (0, 65_536));
    assert_eq!(range(&agent, &outside).0, 0, "others have the host's");
    let record = place.path(&format!("root/pods/{}/pod.json", uid(&agent, "inside")));
    let record: Value = serde_json::from_slice(&fs::read(record).expect("the record")).expect("JSON");
    assert_eq!(record["users"], json!({ "first": first, "count": 65_536 }));

    let view: Value = serde_json::from_str(&agent.ok(&["inspect", &pod, "-o", "json"])).expect("JSON");
    let supervisor = view["supervisor"].as_i64().expect("the supervisor");
    assert_eq!(
        fs::metadata(format!("/proc/{supervisor}")).expect("it runs").uid(),
        0,
        "the supervisor stays the host's"
    );
    let owners = |script: &str| exec(&agent, &pod, script);
    assert_eq!(
        owners("stat -c %u:%g /disk/init /host/of-web /host/secret /etc/hosts /dev/shm /etc/passwd /dev/null"),
        "1000:1000\n1000:2000\n0:0\n0:0\n0:0\n0:0\n65534:65534\n"
    );
    // The root of a pod is the root of its volumes, as without a user namespace.
    assert_eq!(
        owners("cat /host/secret; echo x >/host/made; echo y >/memory/made; stat -c %u:%g /memory/made"),
        "of root\n0:3000\n"
    );
    assert_eq!(fs::metadata(host.join("made")).expect("made").uid(), 0);
    assert_eq!(
        exec_in(&agent, &pod, "web", "id -u; id -G; cat /host/secret 2>&1; touch /disk/w; stat -c %u:%g /disk/w"),
        "1000\n1000 2000 3000\ncat: can't open '/host/secret': Permission denied\n1000:3000\n"
    );
    assert!(
        log(&agent, &pod, "web", "to-stdout")
            .starts_with("uid=1000(web) gid=1000(web) groups=1000(web),2000(extra),3000")
    );
    assert_eq!(owners("cat /proc/sys/kernel/shm_rmid_forced"), "1\n");
    // Its network is its own, to the last setting, and works.
    assert_eq!(owners("echo 1 2>/dev/null >/proc/sys/net/ipv4/ip_forward || echo read-only"), "read-only\n");
    let address = agent.pod("inside").expect("the pod")["status"]["podIP"].as_str().expect("an address").to_owned();
    assert!(exec(&agent, &outside, &format!("ping -c1 -W5 {address} >/dev/null && echo answers")).contains("answers"));
    assert!(owners("ping -c1 -W5 127.0.0.1 >/dev/null && echo answers").contains("answers"));
    assert_eq!(owners("cat /proc/sys/net/ipv4/ping_group_range"), "0\t65535\n");
    assert_eq!(owners(MASKED), "0\n");

    agent.delete("inside.json");
    agent.gone("inside");
    fs::remove_file(host.join("made")).expect("the file made inside");
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn every_pod_has_a_range_of_its_own_also_after_a_restart() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let apply_one = |agent: &Agent, name: &str| {
        apply(agent, name, json!({ "hostUsers": false, "containers": [container("app", WAIT, json!({}))] }));
    };
    ["one", "two", "three"].iter().for_each(|name| apply_one(&agent, name));
    let names: Vec<String> = ["one", "two", "three"].iter().map(|name| ready(&agent, name)).collect();
    let ranges: Vec<(u32, u32)> = names.iter().map(|name| range(&agent, name)).collect();
    let mut distinct: Vec<u32> = ranges.iter().map(|(first, _)| *first).collect();
    distinct.sort_unstable();
    assert_eq!(distinct, [65_536, 131_072, 196_608]);

    agent.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    for (name, range_before) in names.iter().zip(&ranges) {
        agent.ready(name);
        assert_eq!(range(&agent, name), *range_before);
    }
    apply_one(&agent, "four");
    let four = ready(&agent, "four");
    assert_eq!(range(&agent, &four).0, 262_144);
    agent.delete("two.json");
    agent.gone("two");
    apply_one(&agent, "five");
    let five = ready(&agent, "five");
    assert_eq!(range(&agent, &five).0, ranges[1].0, "that of the pod that is gone");

    // A sandbox that is made again keeps its range.
    let view: Value = serde_json::from_str(&agent.ok(&["inspect", &five, "-o", "json"])).expect("JSON");
    let pid = view["supervisor"].as_i64().expect("a supervisor") as i32;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill it");
    agent.until("five", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
            && berth_integration::agent::condition(pod, "Ready") == "True"
    });
    assert_eq!(range(&agent, &five).0, ranges[1].0);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_cannot_be_had_in_a_user_namespace_is_said() {
    let place = place();
    let agent = agent(&place, &[]);
    let app = |more: Value| json!([container("app", WAIT, more)]);
    let host_path = |path: &str| json!([{ "name": "v", "hostPath": { "path": path } }]);
    let mount = |more: Value| with(json!({ "name": "v", "mountPath": "/v" }), more);
    let inside = |name: &str, spec: Value| apply(&agent, name, with(json!({ "hostUsers": false }), spec));
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        let mut spec = json!({ "containers": app(json!({})) });
        spec[field] = json!(true);
        inside(&field.to_lowercase(), spec);
    }
    inside(
        "kernel",
        json!({ "volumes": host_path("/proc/sys"), "containers": app(json!({ "volumeMounts": [mount(json!({}))] })) }),
    );
    inside(
        "device",
        json!({ "volumes": host_path("/dev/null"), "containers": app(json!({ "volumeMounts": [mount(json!({}))] })) }),
    );
    inside("high", json!({ "containers": app(json!({ "securityContext": { "runAsUser": 70_000 } })) }));
    let both = mount(json!({ "mountPropagation": "Bidirectional" }));
    inside(
        "outwards",
        json!({ "volumes": [{ "name": "v", "emptyDir": {} }],
        "containers": app(json!({ "volumeMounts": [both], "securityContext": { "privileged": true } })) }),
    );
    run(&agent, "unmasked", WAIT, json!({ "securityContext": { "procMount": "Unmasked" } }));
    for name in ["kernel", "device"] {
        explained(&agent, name, &["volume \\\"v\\\"", "does not support idmapped mounts", "hostUsers: false"]);
    }
    explained(&agent, "high", &["CreateContainerError", "user 70000 is not in the pod's user namespace"]);
    explained(&agent, "outwards", &["mountPropagation", "does not reach the host"]);
    let problems = agent.ok(&["pods", "--problems"]);
    for words in [
        "spec.hostNetwork: Forbidden: when `hostUsers` is false",
        "spec.hostPID: Forbidden",
        "spec.hostIPC: Forbidden",
        "`hostUsers` must be false to use `Unmasked`",
    ] {
        assert!(problems.contains(words), "{words}: {problems}");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn privileges_end_at_the_user_namespace() {
    let place = place();
    let agent = agent(&place, &[]);
    load(&agent, "suid", Layout::new().file("suid/busybox", 0o4755, &fs::read("/bin/busybox").expect("busybox")));
    let security = |context: Value| json!({ "securityContext": context });
    let containers = json!([
        container("privileged", WAIT, security(json!({ "privileged": true }))),
        container(
            "unmasked",
            WAIT,
            security(json!({ "procMount": "Unmasked", "capabilities": { "add": ["SYS_ADMIN"] } }))
        ),
        container("admin", WAIT, security(json!({ "capabilities": { "add": ["SYS_ADMIN"] } }))),
        container(
            "suid",
            "/suid/busybox ping -i 100 127.0.0.1 >/dev/null",
            with(json!({ "image": "suid:1" }), security(json!({ "runAsUser": 1000 })))
        ),
    ]);
    apply(&agent, "mighty", json!({ "hostUsers": false, "shareProcessNamespace": true, "containers": containers }));
    apply(
        &agent,
        "alone",
        json!({ "hostUsers": false, "containers": [
        container("app", WAIT, security(json!({ "procMount": "Unmasked", "capabilities": { "add": ["SYS_ADMIN"] } }))),
    ] }),
    );
    let pod = ready(&agent, "mighty");
    let (first, _) = range(&agent, &pod);
    // Everything about the machine is out of reach, whatever capabilities there are.
    let device = fs::read_to_string("/sys/class/block/loop0/dev").expect("a block device").trim().replace(':', " ");
    let attack = format!(
        "(f=/proc/sys/kernel/printk_ratelimit; echo $(cat $f) >$f) 2>/dev/null && echo sysctl; \
         mknod /b b {device} 2>/dev/null && echo node; dd if=/dev/loop0 of=/dev/null bs=1 count=1 2>/dev/null && echo device; \
         mount -t ext4 /dev/loop0 /mnt 2>/dev/null && echo mounted; chroot /proc/1/root true; \
         mount -t tmpfs none /tmp && umount /tmp && echo own; hostname own && hostname"
    );
    assert_eq!(exec_in(&agent, &pod, "privileged", &attack), "own\nown\n");
    assert_eq!(exec_in(&agent, &pod, "admin", MASKED), "0\n");
    assert_ne!(exec_in(&agent, &pod, "unmasked", MASKED), "0\n");
    // A nested proc, which the kernel only gives where nothing of the present one is hidden.
    let nested = "mkdir -p /n && mount -t proc none /n && echo nested";
    let alone = ready(&agent, "alone");
    assert_eq!(exec(&agent, &alone, nested), "nested\n");
    let suid = exec_in(
        &agent,
        &pod,
        "suid",
        "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' <$p/cmdline | cut -d' ' -f2)\" = ping ] && \
        awk '/^Uid:/ {print $2, $3}' $p/status; done; true",
    );
    assert_eq!(suid.lines().next(), Some("1000 0"), "set-user-ID leads to the root of the pod: {suid}");
    let pause = exec_in(&agent, &pod, "admin", "cat /proc/1/comm; awk '/^Uid:|^CapPrm:/ {print $2}' /proc/1/status");
    assert_eq!(pause, "berth-pause\n65535\n0000000000000000\n");
    let owners: Vec<u32> = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| {
            let root = fs::read_link(entry.path().join("ns/user")).ok()?;
            let view = fs::read_link(format!("/proc/{}/ns/user", sandbox_child(&agent, &pod)?)).ok()?;
            (root == view).then(|| entry.metadata().ok().map(|file| file.uid())).flatten()
        })
        .collect();
    assert!(!owners.is_empty() && owners.iter().all(|owner| (first..first + 65_536).contains(owner)), "{owners:?}");
}

/// Process id on the host of a container of the pod.
fn sandbox_child(agent: &Agent, pod: &str) -> Option<i64> {
    let view: Value = serde_json::from_str(&agent.ok(&["inspect", pod, "-o", "json"])).ok()?;
    let supervisor = view["supervisor"].as_i64()?;
    let children =
        fs::read_to_string(Path::new("/proc").join(supervisor.to_string()).join(format!("task/{supervisor}/children")))
            .ok()?;
    children.split_whitespace().last()?.parse().ok()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn objects_and_probes_reach_a_pod_in_a_user_namespace() {
    let place = place();
    let agent = agent(&place, &[]);
    let map =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "map" }, "data": { "key": "one" } });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "secret" }, "stringData": { "key": "two" } });
    agent.apply("map.json", &map.to_string());
    agent.apply("secret.json", &secret.to_string());
    let probe = |script: &str| json!({ "exec": { "command": ["sh", "-c", script] }, "periodSeconds": 1 });
    let mounts = json!([
        { "name": "map", "mountPath": "/map" }, { "name": "secret", "mountPath": "/secret" },
        { "name": "all", "mountPath": "/all" }, { "name": "scratch", "mountPath": "/scratch" },
    ]);
    let spec = json!({
        "hostUsers": false,
        "securityContext": { "runAsUser": 1000, "fsGroup": 3000 },
        "volumes": [
            { "name": "map", "configMap": { "name": "map" } },
            { "name": "secret", "secret": { "secretName": "secret", "defaultMode": 0o440 } },
            { "name": "all", "projected": { "sources": [{ "downwardAPI": { "items": [
                { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } }] } },
            { "name": "scratch", "emptyDir": {} },
        ],
        "containers": [container("app", WAIT, json!({
            "volumeMounts": mounts,
            "startupProbe": probe("echo started >/scratch/started"),
            "readinessProbe": probe("[ $(id -u) = 1000 ] && [ $(cat /map/key) = one ] && [ $(cat /secret/key) = two ]"),
        }))],
    });
    apply(&agent, "served", spec);
    let pod = ready(&agent, "served");
    assert_ne!(range(&agent, &pod).0, 0);
    let seen = exec(&agent, &pod, "cat /scratch/started /all/name; echo; stat -Lc '%u:%g %a' /map/key /secret/key");
    assert_eq!(seen, format!("started\n{pod}\n0:3000 644\n0:3000 440\n"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn ids_can_be_more_and_ends_are_told() {
    let place = place();
    let config = berth_integration::help::config(&place, "userNamespaces: { idsPerPod: 131072 }", "");
    let agent = agent(&place, &["--config", &config]);
    apply(
        &agent,
        "wide",
        json!({ "hostUsers": false, "restartPolicy": "Never", "containers": [
        container("high", "id -u; cat /proc/self/uid_map; echo why >/dev/termination-log; exit 3", json!({ "securityContext": { "runAsUser": 70_000 } })),
    ] }),
    );
    let pod = ended(&agent, "wide");
    let log = log(&agent, &pod, "high", "131072");
    let words: Vec<&str> = log.split_whitespace().collect();
    assert_eq!(words, ["70000", "0", "131072", "131072"]);
    let ended = agent.pod("wide").expect("the pod")["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((&ended["exitCode"], &ended["message"]), (&json!(3), &json!("why\n")));
}
