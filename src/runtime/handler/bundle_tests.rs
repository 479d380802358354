use serde_json::json;

use super::*;
use crate::{
    cgroup::limits::{CpuLimits, MemoryQuality},
    supervisor::spec::DeviceSpec,
    worker::testing::launch,
};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "prod", "uid": "u-1" }, "spec": spec }))
        .unwrap()
}

fn bind(target: &str) -> MountSpec {
    MountSpec {
        target: target.into(),
        kind: MountKind::Bind { source: "/srv/data".into(), sub_path: None },
        readonly: false,
        recursive_readonly: RecursiveReadOnly::Disabled,
        nosuid: false,
        nodev: false,
        noexec: false,
        propagation: Propagation::Private,
        volume: Some("data".into()),
    }
}

struct Case {
    pod: Pod,
    spec: LaunchSpec,
    limits: LeafLimits,
    features: Features,
    version: CgroupVersion,
}

/// The configuration of a healthy container, changed.
fn made(change: impl FnOnce(&mut Case)) -> Value {
    let mut spec = launch("app", 0, 1);
    spec.capabilities = 1 | 1 << 5;
    spec.rlimits = vec![(libc::RLIMIT_NOFILE, 1024, 4096)];
    let limits = LeafLimits { devices: DeviceAccess::Default, ..LeafLimits::default() };
    let features = Features { recursive_read_only: true, ..Features::unknown() };
    let mut case = Case { pod: pod(json!({ "containers": [] })), spec, limits, features, version: CgroupVersion::V1 };
    change(&mut case);
    config(&BundleInput {
        pod: &case.pod,
        spec: &case.spec,
        seccomp: None,
        limits: &case.limits,
        cgroup: Path::new("/kubepods/burstable/podu-1/c1"),
        version: case.version,
        features: &case.features,
    })
    .unwrap()
}

fn namespaces_of(config: &Value) -> Vec<&str> {
    let list = config["linux"]["namespaces"].as_array().unwrap();
    list.iter().map(|namespace| namespace["type"].as_str().unwrap()).collect()
}

#[test]
fn the_process_is_the_launchs() {
    let config = made(|case| {
        case.spec.args = vec!["sh".into(), "-c".into(), "id".into()];
        case.spec.env = vec![("A".into(), "b c".into())];
        case.spec.cwd = "/srv".into();
        case.spec.no_new_privs = true;
        case.spec.oom_score_adj = 900;
        case.spec.stdio.tty = true;
    });
    let process = &config["process"];
    assert_eq!(process["args"], json!(["sh", "-c", "id"]));
    assert_eq!((&process["env"], &process["cwd"]), (&json!(["A=b c"]), &json!("/srv")));
    assert_eq!((&process["noNewPrivileges"], &process["terminal"]), (&json!(true), &json!(true)));
    assert_eq!(process["oomScoreAdj"], 900);
    assert_eq!(process["rlimits"], json!([{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 }]));
    for set in ["bounding", "effective", "permitted"] {
        let mut names: Vec<&str> =
            process["capabilities"][set].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["CAP_CHOWN", "CAP_KILL"], "{set}");
    }
    for set in ["inheritable", "ambient"] {
        assert!(process["capabilities"][set].as_array().is_none_or(Vec::is_empty), "{set}");
    }
    assert_eq!(config["annotations"]["io.kubernetes.cri.sandbox-name"], "web");
}

#[test]
fn the_pods_namespaces_are_joined_and_the_hosts_are_left_out() {
    let own = made(|_| {});
    assert_eq!(namespaces_of(&own), ["mount", "network", "ipc", "uts", "pid"]);
    let host = made(|case| {
        case.pod = pod(json!({ "containers": [], "hostNetwork": true, "hostIPC": true, "hostPID": true }));
        case.spec.pid = PidMode::Host;
    });
    assert_eq!(namespaces_of(&host), ["mount"]);
    let unified = made(|case| case.spec.new_cgroup_ns = true);
    assert!(namespaces_of(&unified).contains(&"cgroup"));
}

#[test]
fn mounts_keep_their_order_their_flags_and_their_propagation() {
    let config = made(|case| {
        let plain = |kind, target: &str| MountSpec { kind, nosuid: true, noexec: true, nodev: true, ..bind(target) };
        case.spec.mounts = vec![
            plain(MountKind::Proc, "/proc"),
            MountSpec {
                noexec: false,
                nodev: false,
                ..plain(MountKind::Tmpfs { options: "mode=755,size=64k".into() }, "/dev")
            },
            MountSpec { readonly: true, ..plain(MountKind::Sysfs, "/sys") },
            MountSpec { propagation: Propagation::Slave, readonly: true, ..bind("/data") },
            MountSpec { readonly: true, recursive_readonly: RecursiveReadOnly::Enabled, ..bind("/fixed") },
        ];
    });
    let mounts = config["mounts"].as_array().unwrap();
    let options = |index: usize| {
        mounts[index]["options"].as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
    };
    assert_eq!(options(0), "nosuid,noexec,nodev");
    assert_eq!(options(1), "strictatime,mode=755,size=64k,nosuid");
    assert_eq!(options(2), "nosuid,noexec,nodev,ro");
    assert_eq!(options(3), "rbind,rslave,ro");
    assert_eq!(options(4), "rbind,rprivate,ro,rro");
    assert_eq!(mounts[3]["source"], "/srv/data");
    assert_eq!(config["linux"]["rootfsPropagation"], "rslave");
    let shared = made(|case| {
        case.spec.mounts = vec![MountSpec { propagation: Propagation::Shared, ..bind("/data") }];
    });
    assert_eq!(shared["linux"]["rootfsPropagation"], "rshared");
    assert!(made(|_| {})["linux"].get("rootfsPropagation").is_none());
}

#[test]
fn only_devices_beyond_the_default_ones_are_asked_for() {
    let config = made(|case| {
        let device = |path: &str, minor| DeviceSpec {
            path: path.into(),
            host_path: None,
            block: path.ends_with("disk"),
            major: 1,
            minor,
            mode: 0o660,
            uid: 0,
            gid: 6,
        };
        case.spec.devices = vec![device("/dev/null", 3), device("/dev/disk", 0)];
        let rule = DeviceRule { block: true, major: Some(1), minor: Some(0), read: true, write: false, make: false };
        case.limits.devices = DeviceAccess::Only(vec![rule]);
    });
    let expected =
        json!([{ "path": "/dev/disk", "type": "b", "major": 1, "minor": 0, "fileMode": 0o660, "uid": 0, "gid": 6 }]);
    assert_eq!(config["linux"]["devices"], expected);
    let rules = config["linux"]["resources"]["devices"].as_array().unwrap().clone();
    assert_eq!((rules[0]["allow"].clone(), rules.len()), (json!(false), 2));
    let expected = json!({ "allow": true, "type": "b", "major": 1, "minor": 0, "access": "r" });
    assert_eq!(rules[1], expected);
}

#[test]
fn limits_are_told_as_the_cgroup_has_them() {
    let limited = LeafLimits {
        cpu: CpuLimits { request_milli: 500, limit_milli: Some(1500), period_micros: 100_000 },
        memory: Some(64 << 20),
        pids: Some(100),
        quality: MemoryQuality::default(),
        ..LeafLimits::default()
    };
    let config = made(|case| case.limits = limited.clone());
    let resources = &config["linux"]["resources"];
    assert_eq!(resources["cpu"], json!({ "shares": 512, "quota": 150_000, "period": 100_000 }));
    assert_eq!((&resources["memory"]["limit"], &resources["pids"]["limit"]), (&json!(64 << 20), &json!(100)));
    assert!(resources.get("unified").is_none());
    assert_eq!(config["linux"]["cgroupsPath"], "/kubepods/burstable/podu-1/c1");
    let free = changed_resources(&LeafLimits::default(), CgroupVersion::V2);
    assert_eq!((&free["memory"]["limit"], &free["cpu"]["quota"]), (&json!(-1), &json!(-1)));
    assert_eq!(free["unified"]["cpu.weight"], "1");
    assert!(free.get("devices").is_none());
}

#[test]
fn a_profile_is_passed_on_as_it_is() {
    let profile = crate::runtime::seccomp::default_profile(0);
    let case = made(|_| {});
    assert!(case["linux"].get("seccomp").is_none());
    let (pod, spec, limits, features) =
        (pod(json!({ "containers": [] })), launch("app", 0, 1), LeafLimits::default(), Features::unknown());
    let config = config(&BundleInput {
        pod: &pod,
        spec: &spec,
        seccomp: Some(&profile),
        limits: &limits,
        cgroup: Path::new("/c"),
        version: CgroupVersion::V1,
        features: &features,
    });
    assert_eq!(config.unwrap()["linux"]["seccomp"], serde_json::to_value(&profile).unwrap());
}
