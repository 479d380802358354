//! The mounts of a container: the file systems every container has, the files the agent writes for it, its volumes.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::VolumeMount;

use super::{config_error::ConfigError, container_ref::ContainerRef, env::PodEnv, expansion::expand_all};
use crate::{
    supervisor::spec::{MountKind, MountSpec, Propagation, RecursiveReadOnly},
    volume::{MountedVolume, Restrictions},
};

/// What a container may mount over below /proc: files that tools like lxcfs replace (the list is runc's). Anything
/// else there would undo the masking.
const PROC_FILES: [&str; 12] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
    "cmdline",
];

/// Files the agent writes for the container, on the host.
#[derive(Debug, Clone)]
pub struct AgentFiles {
    /// Directory of `hosts`, `hostname` and `resolv.conf`.
    pub etc: PathBuf,
    /// Bound to terminationMessagePath; `None` when the container has none.
    pub termination_log: Option<PathBuf>,
}

/// What decides the mounts every container has.
#[derive(Debug, Clone)]
pub struct Surface {
    /// /sys and the cgroups can be written.
    pub privileged: bool,
    /// The root cannot be written, hence neither can the agent's files.
    pub read_only_root: bool,
    /// The pod has a user namespace of its own.
    pub own_users: bool,
    /// Source of /dev/shm: the pod's own tmpfs or, with hostIPC, the host's.
    pub shm: PathBuf,
}

/// All mounts in the order they are to be made: a path before what lies below it. A volume takes the place of a
/// mount every container has at the same path.
pub fn mounts(
    container: ContainerRef<'_>,
    surface: &Surface,
    files: &AgentFiles,
    volumes: &BTreeMap<String, MountedVolume>,
    env: &PodEnv,
) -> Result<Vec<MountSpec>, ConfigError> {
    let own = volume_mounts(container, surface, volumes, env)?;
    let is_own = |target: &Path| own.iter().any(|mount| mount.target == target);
    let mut all = base_mounts(surface);
    all.retain(|mount| !is_own(&mount.target));
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = Path::new("/etc").join(name);
        if !is_own(&target) {
            all.push(MountSpec { readonly: surface.read_only_root, ..bind(target, files.etc.join(name), None) });
        }
    }
    all.extend(own);
    if let Some(file) = &files.termination_log {
        let path = container.termination_message_path();
        let field = format!("{}.terminationMessagePath", container.path());
        // Relative ones are below the root, as upstream.
        let target = clean(path).filter(|target| target.parent().is_some());
        let target = target.ok_or_else(|| ConfigError::create(field, format!("{path:?} is not the path of a file")))?;
        all.push(bind(target, file.clone(), None));
    }
    // Stable: of two at the same path the later one is on top.
    all.sort_by_key(|mount| mount.target.components().count());
    Ok(all)
}

/// What every container has, as containerd sets it up (config-linux.md of the OCI runtime specification lists them).
fn base_mounts(surface: &Surface) -> Vec<MountSpec> {
    let new = |target: &str, kind: MountKind| MountSpec {
        target: PathBuf::from(target),
        kind,
        readonly: false,
        recursive_readonly: RecursiveReadOnly::Disabled,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Propagation::Private,
        volume: None,
    };
    let dev = MountKind::Tmpfs { options: "mode=755,size=65536k".to_owned() };
    let shm = MountKind::Bind { source: surface.shm.clone(), sub_path: None };
    let readonly = !surface.privileged;
    vec![
        new("/proc", MountKind::Proc),
        // Device nodes work here and devices may be mapped executable.
        MountSpec { nodev: false, noexec: false, ..new("/dev", dev) },
        MountSpec { nodev: false, ..new("/dev/pts", MountKind::Devpts) },
        new("/dev/mqueue", MountKind::Mqueue),
        new("/dev/shm", shm),
        MountSpec { readonly, ..new("/sys", MountKind::Sysfs) },
        MountSpec { readonly, ..new("/sys/fs/cgroup", MountKind::Cgroup) },
    ]
}

fn bind(target: PathBuf, source: PathBuf, sub_path: Option<PathBuf>) -> MountSpec {
    MountSpec {
        target,
        kind: MountKind::Bind { source, sub_path },
        readonly: false,
        recursive_readonly: RecursiveReadOnly::Disabled,
        nosuid: false,
        nodev: false,
        noexec: false,
        propagation: Propagation::Private,
        volume: None,
    }
}

fn volume_mounts(
    container: ContainerRef<'_>,
    surface: &Surface,
    volumes: &BTreeMap<String, MountedVolume>,
    env: &PodEnv,
) -> Result<Vec<MountSpec>, ConfigError> {
    let mut all: Vec<MountSpec> = Vec::new();
    for (index, mount) in container.volume_mounts().iter().enumerate() {
        let path = format!("{}.volumeMounts[{index}]", container.path());
        let volume = volumes.get(&mount.name).ok_or_else(|| {
            let message = format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name());
            ConfigError::config(format!("{path}.name"), message)
        })?;
        if volume.device.is_some() {
            let message = format!("volume {} has volumeMode Block, but is specified in volumeMounts", mount.name);
            return Err(ConfigError::create(format!("{path}.name"), message));
        }
        let target = mount_target(&mount.mount_path)
            .map_err(|message| ConfigError::create(format!("{path}.mountPath"), message))?;
        if all.iter().any(|other| other.target == target) {
            return Err(ConfigError::create(format!("{path}.mountPath"), "must be unique"));
        }
        let sub_path = sub_path(mount, &path, env)?;
        let readonly = mount.read_only == Some(true) || volume.readonly;
        let propagation = propagation(mount, surface, &path)?;
        let recursive_readonly = recursive_readonly(mount, readonly, &path)?;
        let bound = bind(target, volume.host_path.clone(), sub_path);
        let Restrictions { nosuid, nodev, noexec } = volume.restrictions;
        let name = Some(mount.name.clone());
        all.push(MountSpec { readonly, recursive_readonly, nosuid, nodev, noexec, propagation, volume: name, ..bound });
    }
    Ok(all)
}

/// `path` below the root without `.`, `..` and repeated slashes; `None` when it cannot be a path.
fn clean(path: &str) -> Option<PathBuf> {
    if path.is_empty() || path.contains('\0') {
        return None;
    }
    let mut cleaned = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(cleaned)
}

/// Where a volume goes; a relative path is below the root, as upstream.
fn mount_target(path: &str) -> Result<PathBuf, String> {
    if path.contains(':') {
        return Err(format!("{path:?} must not contain ':'"));
    }
    let target = clean(path).ok_or_else(|| format!("{path:?} is not a path"))?;
    if target == Path::new("/") {
        return Err(format!("{path:?} is the root itself, which comes from the image"));
    }
    match target.strip_prefix("/proc") {
        Ok(below) if !PROC_FILES.iter().any(|file| below == Path::new(file)) => {
            Err(format!("{path:?} must not be inside /proc"))
        }
        _ => Ok(target),
    }
}

/// subPath or subPathExpr with its references replaced: a relative path that does not lead upwards.
fn sub_path(mount: &VolumeMount, path: &str, env: &PodEnv) -> Result<Option<PathBuf>, ConfigError> {
    let plain = mount.sub_path.as_deref().unwrap_or_default();
    let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
    let (text, field) = match (plain, expression) {
        ("", "") => return Ok(None),
        (plain, "") => (plain.to_owned(), format!("{path}.subPath")),
        ("", expression) => {
            let field = format!("{path}.subPathExpr");
            let expanded = expand_all(expression, |name| env.get(name))
                .map_err(|name| ConfigError::config(&field, format!("missing value for {name:?}")))?;
            (expanded, field)
        }
        _ => {
            return Err(ConfigError::config(
                format!("{path}.subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
    };
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with('/') {
        return Err(ConfigError::config(field, format!("error SubPath {text:?} must not be an absolute path")));
    }
    if text.contains('\0') || Path::new(&text).components().any(|part| part == Component::ParentDir) {
        return Err(ConfigError::config(field, format!("unable to provision SubPath {text:?}: must not contain '..'")));
    }
    Ok(Some(PathBuf::from(text)))
}

fn propagation(mount: &VolumeMount, surface: &Surface, path: &str) -> Result<Propagation, ConfigError> {
    let field = || format!("{path}.mountPropagation");
    match mount.mount_propagation.as_deref() {
        None | Some("" | "None") => Ok(Propagation::Private),
        Some("HostToContainer") => Ok(Propagation::Slave),
        Some("Bidirectional") if surface.own_users => {
            let message = "what is mounted in a user namespace (hostUsers: false) does not reach the host";
            Err(ConfigError::config(field(), message))
        }
        Some("Bidirectional") if surface.privileged => Ok(Propagation::Shared),
        Some("Bidirectional") => {
            let message = "Bidirectional mount propagation is available only to privileged containers";
            Err(ConfigError::config(field(), message))
        }
        Some(other) => Err(ConfigError::config(field(), format!("unknown mount propagation mode: {other:?}"))),
    }
}

fn recursive_readonly(mount: &VolumeMount, readonly: bool, path: &str) -> Result<RecursiveReadOnly, ConfigError> {
    let field = || format!("{path}.recursiveReadOnly");
    let wanted = match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => return Ok(RecursiveReadOnly::Disabled),
        Some("IfPossible") => RecursiveReadOnly::IfPossible,
        Some("Enabled") => RecursiveReadOnly::Enabled,
        Some(other) => return Err(ConfigError::config(field(), format!("unknown recursive read-only mode {other:?}"))),
    };
    let name = &mount.name;
    if !readonly {
        let message = format!("volume {name:?} requested recursive read-only mode, but it is not read-only");
        return Err(ConfigError::config(field(), message));
    }
    match mount.mount_propagation.as_deref() {
        None | Some("" | "None") => Ok(wanted),
        Some(other) => {
            let message = format!(
                "volume {name:?} requested recursive read-only mode, but it is not compatible with propagation {other:?}"
            );
            Err(ConfigError::config(field(), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::objects::Objects,
        runtime::{
            downward::{Allocatable, Surroundings},
            env::{EnvSources, pod_env},
        },
    };

    fn surface() -> Surface {
        Surface { privileged: false, read_only_root: false, own_users: false, shm: "/pod/shm".into() }
    }

    fn of(container: Value, surface: &Surface) -> Result<Vec<MountSpec>, ConfigError> {
        let mut container = container;
        container["name"] = json!("app");
        container["env"] = json!([{"name": "A", "value": "a"}, {"name": "UP", "value": ".."}]);
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap();
        let app = ContainerRef::find(&pod, "app").unwrap();
        let allocatable = Allocatable::default();
        let surroundings = Surroundings { node_name: "", pod_ips: &[], host_ips: &[], allocatable: &allocatable };
        let sources = EnvSources { objects: &Objects::default(), read_file: &|_, _| Ok(None) };
        let env = pod_env(&pod, app, &surroundings, &sources).unwrap();
        let volume = |path: &str, readonly| MountedVolume::at(path.into(), readonly);
        let volumes = BTreeMap::from([
            ("data".to_owned(), volume("/v/data", false)),
            ("fixed".to_owned(), volume("/v/fixed", true)),
        ]);
        let files = AgentFiles { etc: "/pod/etc".into(), termination_log: Some("/attempt/termination-log".into()) };
        mounts(app, surface, &files, &volumes, &env)
    }

    fn targets(mounts: &[MountSpec]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.target.to_str().unwrap()).collect()
    }

    fn mount(value: Value) -> Result<MountSpec, ConfigError> {
        mount_in(value, &surface())
    }

    fn mount_in(value: Value, surface: &Surface) -> Result<MountSpec, ConfigError> {
        let mut value = value;
        for (key, default) in [("name", "data"), ("mountPath", "/data")] {
            if value.get(key).is_none() {
                value[key] = json!(default);
            }
        }
        let all = of(json!({"volumeMounts": [value]}), surface)?;
        let is_volume =
            |mount: &MountSpec| matches!(&mount.kind, MountKind::Bind { source, .. } if source.starts_with("/v"));
        Ok(all.into_iter().find(is_volume).unwrap())
    }

    #[test]
    fn every_container_has_the_same_mounts_parents_first() {
        let all = of(json!({}), &surface()).unwrap();
        let expected = [
            "/proc",
            "/dev",
            "/sys",
            "/dev/pts",
            "/dev/mqueue",
            "/dev/shm",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/termination-log",
            "/sys/fs/cgroup",
        ];
        assert_eq!(targets(&all), expected);
        let readonly: Vec<_> = all.iter().filter(|mount| mount.readonly).cloned().collect();
        assert_eq!(targets(&readonly), ["/sys", "/sys/fs/cgroup"]);
        let shm = all.iter().find(|mount| mount.target == Path::new("/dev/shm")).unwrap();
        assert_eq!(shm.kind, MountKind::Bind { source: "/pod/shm".into(), sub_path: None });
        assert!(shm.nosuid && shm.nodev && shm.noexec);
    }

    #[test]
    fn a_privileged_container_may_write_sys_and_cgroups() {
        let all = of(json!({}), &Surface { privileged: true, ..surface() }).unwrap();
        assert!(all.iter().all(|mount| !mount.readonly));
    }

    #[test]
    fn nothing_is_passed_out_of_a_user_namespace() {
        let both = json!({"mountPropagation": "Bidirectional"});
        let privileged = Surface { privileged: true, ..surface() };
        assert_eq!(mount_in(both.clone(), &privileged).unwrap().propagation, Propagation::Shared);
        let error = mount_in(both, &Surface { own_users: true, ..privileged }).unwrap_err();
        assert!(error.message.contains("does not reach the host"), "{error}");
    }

    #[test]
    fn the_agents_files_are_read_only_with_the_root() {
        let all = of(json!({}), &Surface { read_only_root: true, ..surface() }).unwrap();
        let readonly = |target: &str| all.iter().find(|mount| mount.target == Path::new(target)).unwrap().readonly;
        assert!(readonly("/etc/hosts") && readonly("/etc/resolv.conf"));
        // It is there to be written.
        assert!(!readonly("/dev/termination-log"));
    }

    #[test]
    fn a_volume_takes_the_place_of_what_every_container_has() {
        for target in ["/dev/shm", "/etc/hosts", "/dev", "/sys/fs/cgroup", "/etc//./hostname/"] {
            let all = of(json!({"volumeMounts": [{"name": "data", "mountPath": target}]}), &surface()).unwrap();
            assert_eq!(all.len(), 11, "{target}");
        }
        let all = of(json!({"volumeMounts": [{"name": "data", "mountPath": "/etc"}]}), &surface()).unwrap();
        let position = |target: &str| targets(&all).iter().position(|one| *one == target).unwrap();
        assert!(position("/etc") < position("/etc/hosts"));
    }

    #[test]
    fn mount_paths_are_below_the_root_and_not_in_proc() {
        assert_eq!(mount(json!({"mountPath": "data/x"})).unwrap().target, Path::new("/data/x"));
        assert_eq!(mount(json!({"mountPath": "/a/../../b"})).unwrap().target, Path::new("/b"));
        assert_eq!(mount(json!({"mountPath": "/proc/meminfo"})).unwrap().target, Path::new("/proc/meminfo"));
        for path in ["", "/", "/..", "/a:b", "/proc", "/proc/sys", "/x/../proc/1", "a\0b"] {
            let error = mount(json!({"mountPath": path})).unwrap_err();
            assert_eq!(error.field, "spec.containers[0].volumeMounts[0].mountPath", "{path:?}");
        }
        let twice =
            json!({"volumeMounts": [{"name": "data", "mountPath": "/a"}, {"name": "fixed", "mountPath": "/a/"}]});
        assert_eq!(of(twice, &surface()).unwrap_err().field, "spec.containers[0].volumeMounts[1].mountPath");
        let unknown = mount(json!({"name": "other"})).unwrap_err();
        assert_eq!(unknown.message, "cannot find volume \"other\" to mount into container \"app\"");
    }

    #[test]
    fn sub_paths_stay_below_their_volume() {
        let sub = |value: Value| match mount(value)?.kind {
            MountKind::Bind { sub_path, .. } => Ok::<_, ConfigError>(sub_path),
            other => panic!("{other:?}"),
        };
        assert_eq!(sub(json!({})), Ok(None));
        assert_eq!(sub(json!({"subPath": "a/b"})), Ok(Some("a/b".into())));
        assert_eq!(sub(json!({"subPath": "$(A)"})), Ok(Some("$(A)".into())));
        assert_eq!(sub(json!({"subPathExpr": "x/$(A)"})), Ok(Some("x/a".into())));
        for (value, message) in [
            (json!({"subPath": "/a"}), "error SubPath \"/a\" must not be an absolute path"),
            (json!({"subPath": "a/../.."}), "unable to provision SubPath \"a/../..\": must not contain '..'"),
            (json!({"subPathExpr": "$(UP)/x"}), "unable to provision SubPath \"../x\": must not contain '..'"),
            (json!({"subPathExpr": "$(NONE)"}), "missing value for \"NONE\""),
            (json!({"subPathExpr": "`id`/$(A)", "subPath": "x"}), "subPathExpr and subPath are mutually exclusive"),
        ] {
            assert_eq!(sub(value).unwrap_err().message, message);
        }
    }

    #[test]
    fn read_only_comes_from_the_mount_or_the_volume() {
        assert!(!mount(json!({})).unwrap().readonly);
        assert!(mount(json!({"readOnly": true})).unwrap().readonly);
        assert!(mount(json!({"name": "fixed"})).unwrap().readonly);
        let recursive = json!({"readOnly": true, "recursiveReadOnly": "Enabled"});
        assert_eq!(mount(recursive).unwrap().recursive_readonly, RecursiveReadOnly::Enabled);
        for wrong in [
            json!({"recursiveReadOnly": "Enabled"}),
            json!({"readOnly": true, "recursiveReadOnly": "Maybe"}),
            json!({"readOnly": true, "recursiveReadOnly": "IfPossible", "mountPropagation": "HostToContainer"}),
        ] {
            assert!(mount(wrong).unwrap_err().field.ends_with(".recursiveReadOnly"));
        }
    }

    #[test]
    fn only_privileged_containers_propagate_mounts_to_the_host() {
        let with = |mode: &str, privileged| {
            mount_in(json!({"mountPropagation": mode}), &Surface { privileged, ..surface() })
                .map(|mount| mount.propagation)
        };
        assert_eq!(with("None", false), Ok(Propagation::Private));
        assert_eq!(with("HostToContainer", false), Ok(Propagation::Slave));
        assert_eq!(with("Bidirectional", true), Ok(Propagation::Shared));
        assert!(with("Bidirectional", false).is_err());
        assert!(with("Both", true).is_err());
    }
}
