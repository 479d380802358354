//! Small changes to a healthy pod, and what they change of its launch.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::*;
use crate::{
    api::objects::Objects,
    runtime::config_error::Reason,
    store::layout::Layout,
    supervisor::spec::{MountKind, Propagation, RecursiveReadOnly},
};

fn healthy() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "prod", "uid": "u-1", "labels": {"app": "shop"}},
        "spec": {
            "initContainers": [{"name": "first", "image": "busybox:1"}],
            "containers": [{
                "name": "app",
                "image": "shop:1",
                "args": ["--name", "$(POD)"],
                "env": [
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                ],
                "resources": {"requests": {"memory": "1Gi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data", "subPathExpr": "$(POD)"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

fn options() -> LaunchOptions {
    LaunchOptions {
        seccomp_default: false,
        seccomp_root: "/profiles".into(),
        log_max_size: 10 << 20,
        log_max_files: 5,
        memory_capacity: 10 << 30,
        allocatable: Allocatable { cpu_milli: 2000, memory: 10 << 30, ephemeral_storage: 0 },
        cgroup_version: CgroupVersion::V2,
        bounding_capabilities: (1 << 41) - 1,
        rlimits: LaunchOptions::default_rlimits(),
        masked_paths: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
    }
}

fn image() -> ImageFacts {
    ImageFacts {
        id: "sha256:abc".into(),
        reference: "docker.io/library/app@sha256:ref".to_owned(),
        user: "1000:1000".into(),
        env: vec!["PATH=/bin".into(), "LANG=C".into()],
        entrypoint: vec!["/shop".into()],
        cmd: vec!["serve".into()],
        working_dir: "/srv".into(),
        stop_signal: "SIGQUIT".into(),
        layers: vec!["/images/2".into(), "/images/1".into()],
    }
}

/// The launch of a container of a pod.
fn launch(
    pod: &Value,
    container: &str,
    image: &ImageFacts,
    options: &LaunchOptions,
) -> Result<LaunchSpec, ConfigError> {
    launch_granted(pod, container, image, options, &Granted::default())
}

/// The same with what it is given for devices.
fn launch_granted(
    pod: &Value,
    container: &str,
    image: &ImageFacts,
    options: &LaunchOptions,
    granted: &Granted,
) -> Result<LaunchSpec, ConfigError> {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let layout = Layout { root: "/var/lib/berth".into(), run: "/run/berth".into(), log: "/var/log/pods".into() };
    let volume = MountedVolume::at("/volumes/data".into(), false);
    let seccomp = |choice: &SeccompChoice, capabilities: u64| match choice {
        SeccompChoice::RuntimeDefault => Ok(vec![1, capabilities]),
        SeccompChoice::Localhost(path) if path.ends_with("good.json") => Ok(vec![2]),
        other => Err(format!("no {other:?}").into()),
    };
    launch_spec(&LaunchInput {
        pod: &pod,
        container: ContainerRef::find(&pod, container).unwrap(),
        attempt: 2,
        generation: 1,
        epoch: 0,
        image,
        hostname: "web",
        pod_ips: &[Ipv4Addr::new(10, 0, 0, 2).into()],
        host_ips: &[Ipv4Addr::new(192, 0, 2, 1).into()],
        node_name: "node-1",
        dirs: &layout.pod("u-1", "prod", "web"),
        env_sources: EnvSources { objects: &Objects::default(), read_file: &|_, _| Ok(None) },
        volumes: &BTreeMap::from([("data".to_owned(), volume)]),
        granted,
        cgroup: CgroupPlacement { unified: Some("/sys/fs/cgroup/app".into()), ..CgroupPlacement::default() },
        users: None,
        app_armor: &|profile| Err(format!("no {profile:?}").into()),
        options,
        seccomp: &seccomp,
    })
}

/// The launch of `app` with some fields of the container or the pod's spec replaced.
fn with(container: Value, spec: Value) -> Result<LaunchSpec, ConfigError> {
    let mut pod = healthy();
    merge(&mut pod["spec"], spec);
    merge(&mut pod["spec"]["containers"][0], container);
    launch(&pod, "app", &image(), &options())
}

fn merge(into: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else { panic!("fields of an object") };
    for (name, value) in fields {
        into[name] = value;
    }
}

fn base() -> LaunchSpec {
    with(json!({}), json!({})).unwrap()
}

#[test]
fn the_healthy_launch() {
    insta::assert_json_snapshot!(base());
}

#[test]
fn the_same_input_gives_the_same_launch() {
    assert_eq!(base(), base());
    let other = launch(&healthy(), "first", &image(), &options()).unwrap();
    assert_ne!(other.id, base().id);
    assert_eq!(other.log.path, Path::new("/var/log/pods/prod_web_u-1/first/2.log"));
}

#[test]
fn small_changes() {
    type Expected = fn(&mut LaunchSpec);
    let case = |sentence: &str, container: Value, spec: Value, expected: Expected| {
        let mut launch = base();
        expected(&mut launch);
        assert_eq!(with(container, spec).unwrap(), launch, "{sentence}");
    };
    case("nothing", json!({}), json!({}), |_| ());
    case("a command replaces the entry point", json!({"command": ["/own"]}), json!({}), |launch| {
        launch.args = ["/own", "--name", "web"].map(str::to_owned).to_vec();
    });
    case("a working directory of its own", json!({"workingDir": "/tmp"}), json!({}), |launch| {
        launch.cwd = "/tmp".into()
    });
    case("a terminal sets TERM", json!({"tty": true, "stdin": true, "stdinOnce": true}), json!({}), |launch| {
        launch.stdio = StdioSpec { tty: true, stdin: true, stdin_once: true };
        launch.env.insert(1, ("TERM".to_owned(), "xterm".to_owned()));
    });
    case("a stop signal of its own", json!({"lifecycle": {"stopSignal": "SIGINT"}}), json!({}), |launch| {
        launch.stop_signal = 2;
    });
    case("a read-only root", json!({"securityContext": {"readOnlyRootFilesystem": true}}), json!({}), |launch| {
        launch.rootfs.readonly = true;
        for mount in launch.mounts.iter_mut().filter(|mount| mount.target.starts_with("/etc")) {
            mount.readonly = true;
        }
    });
    case(
        "no privilege escalation",
        json!({"securityContext": {"allowPrivilegeEscalation": false}}),
        json!({}),
        |launch| {
            launch.no_new_privs = true;
        },
    );
    case("a user of the pod's", json!({}), json!({"securityContext": {"runAsUser": 7, "fsGroup": 8}}), |launch| {
        launch.user.image_user = String::new();
        launch.user.uid = Some(7);
        launch.user.groups = vec![8];
    });
    case(
        "a dropped capability",
        json!({"securityContext": {"capabilities": {"drop": ["ALL"]}}}),
        json!({}),
        |launch| {
            launch.capabilities = 0;
        },
    );
    case(
        "the default seccomp profile",
        json!({}),
        json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
        |launch| {
            launch.seccomp = vec![1, launch.capabilities];
        },
    );
    case("the host's PID namespace", json!({}), json!({"hostPID": true}), |launch| launch.pid = PidMode::Host);
    case("one PID namespace for the pod", json!({}), json!({"shareProcessNamespace": true}), |launch| {
        launch.pid = PidMode::Pod;
    });
    case("the host's shared memory", json!({}), json!({"hostIPC": true}), |launch| {
        let shm = launch.mounts.iter_mut().find(|mount| mount.target == Path::new("/dev/shm")).unwrap();
        shm.kind = crate::supervisor::spec::MountKind::Bind { source: "/dev/shm".into(), sub_path: None };
    });
    case("nowhere to leave last words", json!({"terminationMessagePath": ""}), json!({}), |launch| {
        launch.mounts.retain(|mount| mount.target != Path::new("/dev/termination-log"));
    });
    case("last words elsewhere", json!({"terminationMessagePath": "/words"}), json!({}), |launch| {
        let place = launch.mounts.iter().position(|mount| mount.target == Path::new("/dev/termination-log")).unwrap();
        let mut words = launch.mounts.remove(place);
        words.target = "/words".into();
        let place = launch.mounts.iter().position(|mount| mount.target == Path::new("/dev/pts")).unwrap();
        launch.mounts.insert(place, words);
    });
    case("unmasked", json!({"securityContext": {"procMount": "Unmasked"}}), json!({}), |launch| {
        launch.masked_paths.clear();
        launch.readonly_paths.clear();
    });
    case("privileged", json!({"securityContext": {"privileged": true}}), json!({}), |launch| {
        launch.capabilities = options().bounding_capabilities;
        launch.all_devices = true;
        launch.devices.clear();
        launch.masked_paths.clear();
        launch.readonly_paths.clear();
        launch.new_cgroup_ns = false;
        for mount in &mut launch.mounts {
            mount.readonly = false;
        }
    });
}

#[test]
fn a_dev_of_its_own_has_no_devices_made_in_it() {
    let mounts =
        json!({"volumeMounts": [{"name": "data", "mountPath": "dev/"}], "securityContext": {"privileged": true}});
    let launch = with(mounts, json!({})).unwrap();
    assert!(launch.devices.is_empty() && !launch.all_devices);
    assert_eq!(launch.mounts.iter().filter(|mount| mount.target == Path::new("/dev")).count(), 1);
}

#[test]
fn what_devices_need_is_beneath_what_the_container_has_of_its_own() {
    let node = |path: &str, minor: u32| DeviceSpec {
        path: path.into(),
        host_path: Some("/dev/host".into()),
        block: false,
        major: 10,
        minor,
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    let mount = |target: &str| MountSpec {
        target: target.into(),
        kind: MountKind::Bind { source: "/vendor".into(), sub_path: None },
        readonly: true,
        recursive_readonly: RecursiveReadOnly::Disabled,
        nosuid: false,
        nodev: false,
        noexec: false,
        propagation: Propagation::Private,
        volume: None,
    };
    let strings = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let granted = Granted {
        env: strings(&[("GPU", "plugin"), ("OWN", "plugin")]),
        cdi_env: strings(&[("OWN", "cdi")]),
        mounts: vec![mount("/opt/vendor"), mount("/data"), mount("/etc/hosts")],
        nodes: vec![node("/dev/gpu", 1), node("/dev/null", 2)],
        rules: Vec::new(),
        groups: vec![44],
    };
    let mut pod = healthy();
    let own = json!([{"name": "OWN", "value": "pod"}, {"name": "GPU", "value": "pod"}]);
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    merge(&mut pod["spec"]["containers"][0], json!({"env": own, "volumeMounts": mounts}));
    let launch = launch_granted(&pod, "app", &image(), &options(), &granted).unwrap();
    let env = |name: &str| launch.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!((env("GPU"), env("OWN")), (Some("pod"), Some("cdi")));
    let at = |target: &str| {
        let there = launch.mounts.iter().filter(|mount| mount.target == Path::new(target));
        there.map(|mount| mount.volume.as_deref().unwrap_or("vendor")).collect::<Vec<_>>()
    };
    // The volume is mounted over it.
    assert_eq!(
        (at("/data"), at("/opt/vendor"), at("/etc/hosts")),
        (vec!["vendor", "data"], vec!["vendor"], vec!["vendor"])
    );
    let minors: Vec<_> = launch.devices.iter().filter(|device| device.major == 10).map(|device| device.minor).collect();
    assert_eq!(minors, [1, 2]);
    assert_eq!(launch.devices.iter().filter(|device| device.path == Path::new("/dev/null")).count(), 1);
    assert!(launch.user.groups.contains(&44));
}

#[test]
fn the_node_decides_about_seccomp_and_cgroups() {
    let options = LaunchOptions { seccomp_default: true, cgroup_version: CgroupVersion::V1, ..options() };
    let launch = launch(&healthy(), "app", &image(), &options).unwrap();
    assert_eq!(launch.seccomp, [1, launch.capabilities]);
    assert!(!launch.new_cgroup_ns);
}

#[test]
fn what_cannot_be_launched_says_which_field_is_the_cause() {
    let case = |sentence: &str, container: Value, spec: Value, reason: Reason, field: &str| {
        let error = with(container, spec).unwrap_err();
        assert_eq!((error.reason, error.field.as_str()), (reason, field), "{sentence}: {error}");
    };
    let context = |fields: Value| json!({"securityContext": fields});
    use Reason::{CreateContainerConfigError as Config, CreateContainerError as Create};
    case(
        "a volume nobody knows",
        json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
        json!({}),
        Config,
        "spec.containers[0].volumeMounts[0].name",
    );
    case(
        "a capability nobody knows",
        context(json!({"capabilities": {"add": ["X"]}})),
        json!({}),
        Create,
        "spec.containers[0].securityContext.capabilities.add[0]",
    );
    case(
        "root although not wanted",
        context(json!({"runAsNonRoot": true, "runAsUser": 0})),
        json!({}),
        Config,
        "spec.containers[0].securityContext.runAsNonRoot",
    );
    case(
        "a profile that does not compile",
        context(json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "bad.json"}})),
        json!({}),
        Create,
        "spec.containers[0].securityContext.seccompProfile",
    );
    case("a directory that is none", json!({"workingDir": "x"}), json!({}), Create, "spec.containers[0].workingDir");
    case(
        "a secret that is not there, which its message names",
        json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
        json!({}),
        Config,
        "",
    );
    case(
        "last words over the root",
        json!({"terminationMessagePath": "/"}),
        json!({}),
        Create,
        "spec.containers[0].terminationMessagePath",
    );
    let bare = ImageFacts { entrypoint: vec![], cmd: vec![], ..image() };
    let error = launch(&healthy(), "first", &bare, &options()).unwrap_err();
    assert_eq!(error.to_string(), "spec.initContainers[0].command: no command specified");
    let empty = ImageFacts { layers: vec![], ..image() };
    assert_eq!(launch(&healthy(), "app", &empty, &options()).unwrap_err().field, "image");
}

#[test]
fn an_attempt_is_prepared_once() {
    use std::os::unix::fs::PermissionsExt;

    let root = tempfile::tempdir().unwrap();
    let layout = Layout { root: root.path().join("root"), run: root.path().join("run"), log: root.path().join("log") };
    let attempt = layout.pod("u-1", "prod", "web").attempt("app", 2);
    let mut spec = base();
    spec.rootfs = RootfsSpec {
        lower: vec![],
        upper: attempt.upper(),
        work: attempt.work(),
        target: attempt.rootfs(),
        readonly: false,
    };
    spec.log.path = layout.pod("u-1", "prod", "web").log_file("app", 2);
    crate::runtime::attempt::prepare(&spec, &attempt).unwrap();
    assert!(attempt.upper().is_dir() && attempt.work().is_dir() && attempt.rootfs().is_dir());
    assert!(root.path().join("log/prod_web_u-1/app").is_dir());
    let words = attempt.termination_log();
    assert_eq!(std::fs::metadata(&words).unwrap().permissions().mode() & 0o777, 0o666);
    std::fs::write(&words, "last").unwrap();
    crate::runtime::attempt::prepare(&spec, &attempt).unwrap();
    assert_eq!(std::fs::read_to_string(&words).unwrap(), "last");
}
