//! The configuration of a bundle (config.md and config-linux.md of the OCI runtime specification) for a container that is
//! launched: the same container that the supervisor would make, in a runtime's words. Pure.
//!
//! What can only be known beside the pod is left to be filled in there (`supervisor::handler::bundle`): the root, the
//! sources of binds, the user, the paths of namespaces.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde_json::{Value, json};

use super::Features;
use crate::{
    cgroup::{
        devices::DeviceRule,
        limits::{self, DeviceAccess, LeafLimits},
    },
    runtime::{config_error::ConfigError, launch::CgroupVersion},
    supervisor::spec::{LaunchSpec, MountKind, MountSpec, PidMode, Propagation, RecursiveReadOnly},
    sys::caps,
};

/// The version of the specification that is written: what every runtime in use understands.
const VERSION: &str = "1.0.2";

/// Devices that the specification has a runtime make by itself ("Default Devices").
const DEFAULT_DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// What a configuration follows from, beside the launch itself.
pub struct BundleInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What is launched.
    pub spec: &'a LaunchSpec,
    /// Its profile; `None`: unconfined.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// Its limits, which its cgroup has already.
    pub limits: &'a LeafLimits,
    /// Its cgroup, from the root of each hierarchy.
    pub cgroup: &'a Path,
    /// Version of cgroups.
    pub version: CgroupVersion,
    /// What the runtime can do.
    pub features: &'a Features,
}

/// The configuration, to be completed.
///
/// # Errors
/// A value that the specification has no place for.
pub fn config(input: &BundleInput<'_>) -> Result<Value, ConfigError> {
    let BundleInput { pod, spec, seccomp, limits, features, .. } = input;
    let mut linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(pod, spec),
        "resources": resources(limits, input.version),
        "maskedPaths": spec.masked_paths,
        "readonlyPaths": spec.readonly_paths,
        "devices": devices(spec),
    });
    if let Some(profile) = seccomp {
        linux["seccomp"] = json!(profile);
    }
    // Events only travel through a root that lets them pass.
    let asked = |propagation| spec.mounts.iter().any(|mount| mount.propagation == propagation);
    if asked(Propagation::Shared) {
        linux["rootfsPropagation"] = "rshared".into();
    } else if asked(Propagation::Slave) {
        linux["rootfsPropagation"] = "rslave".into();
    }
    let mounts: Vec<Value> = spec.mounts.iter().map(|spec| mount(spec, features)).collect();
    let config = json!({
        "ociVersion": VERSION,
        "root": { "path": spec.rootfs.target, "readonly": spec.rootfs.readonly },
        "mounts": mounts,
        "process": process(spec),
        "annotations": annotations(pod, spec),
        "linux": linux,
    });
    // Through the specification's own types: what they have no place for is a mistake of ours.
    let failed = |error: serde_json::Error| ConfigError::create("", format!("write the OCI configuration: {error}"));
    serde_json::to_value(serde_json::from_value::<Spec>(config).map_err(failed)?).map_err(failed)
}

fn process(spec: &LaunchSpec) -> Value {
    let capabilities = caps::names(spec.capabilities);
    let env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let rlimits: Vec<Value> = spec
        .rlimits
        .iter()
        .filter_map(|(resource, soft, hard)| {
            Some(json!({ "type": limit_name(*resource)?, "soft": soft, "hard": hard }))
        })
        .collect();
    let mut process = json!({
        "terminal": spec.stdio.tty,
        // Filled in when the image's own files can be read.
        "user": { "uid": 0, "gid": 0, "umask": 0o022 },
        "args": spec.args,
        "env": env,
        "cwd": spec.cwd,
        // Neither inheritable nor ambient: no program gets a capability that its user does not have.
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        "rlimits": rlimits,
        "noNewPrivileges": spec.no_new_privs,
        "oomScoreAdj": spec.oom_score_adj,
    });
    if let Some(profile) = &spec.app_armor {
        process["apparmorProfile"] = json!(profile);
    }
    process
}

/// Names of getrlimit(2).
fn limit_name(resource: u32) -> Option<&'static str> {
    const NAMES: [(u32, &str); 16] = [
        (libc::RLIMIT_CPU, "RLIMIT_CPU"),
        (libc::RLIMIT_FSIZE, "RLIMIT_FSIZE"),
        (libc::RLIMIT_DATA, "RLIMIT_DATA"),
        (libc::RLIMIT_STACK, "RLIMIT_STACK"),
        (libc::RLIMIT_CORE, "RLIMIT_CORE"),
        (libc::RLIMIT_RSS, "RLIMIT_RSS"),
        (libc::RLIMIT_NPROC, "RLIMIT_NPROC"),
        (libc::RLIMIT_NOFILE, "RLIMIT_NOFILE"),
        (libc::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"),
        (libc::RLIMIT_AS, "RLIMIT_AS"),
        (libc::RLIMIT_LOCKS, "RLIMIT_LOCKS"),
        (libc::RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING"),
        (libc::RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE"),
        (libc::RLIMIT_NICE, "RLIMIT_NICE"),
        (libc::RLIMIT_RTPRIO, "RLIMIT_RTPRIO"),
        (libc::RLIMIT_RTTIME, "RLIMIT_RTTIME"),
    ];
    NAMES.iter().find(|(number, _)| *number == resource).map(|(_, name)| *name)
}

/// Mount and, as far as they are its own, PID and cgroup namespaces are new; those of the pod are joined.
fn namespaces(pod: &Pod, spec: &LaunchSpec) -> Vec<Value> {
    let of_pod = pod.spec.as_ref();
    let host = |field: Option<bool>| field == Some(true);
    let host_network = of_pod.is_some_and(|of_pod| host(of_pod.host_network));
    let kinds = [
        (true, "mount"),
        (!host_network, "network"),
        (!of_pod.is_some_and(|of_pod| host(of_pod.host_ipc)), "ipc"),
        (!host_network, "uts"),
        (spec.pid != PidMode::Host, "pid"),
        (spec.new_cgroup_ns, "cgroup"),
    ];
    kinds.into_iter().filter(|(own, _)| *own).map(|(_, kind)| json!({ "type": kind })).collect()
}

fn mount(spec: &MountSpec, features: &Features) -> Value {
    let (kind, source, mut options): (&str, &Path, Vec<&str>) = match &spec.kind {
        MountKind::Proc => ("proc", Path::new("proc"), Vec::new()),
        MountKind::Sysfs => ("sysfs", Path::new("sysfs"), Vec::new()),
        MountKind::Tmpfs { options } => {
            ("tmpfs", Path::new("tmpfs"), ["strictatime"].into_iter().chain(options.split(',')).collect())
        }
        MountKind::Devpts => {
            ("devpts", Path::new("devpts"), vec!["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])
        }
        MountKind::Mqueue => ("mqueue", Path::new("mqueue"), Vec::new()),
        MountKind::Cgroup => ("cgroup", Path::new("cgroup"), vec!["relatime"]),
        MountKind::Bind { source, .. } => {
            let propagation = match spec.propagation {
                Propagation::Private => "rprivate",
                Propagation::Slave => "rslave",
                Propagation::Shared => "rshared",
            };
            ("bind", source, vec!["rbind", propagation])
        }
    };
    let recursive = spec.recursive_readonly != RecursiveReadOnly::Disabled && features.recursive_read_only;
    let flags = [
        (spec.nosuid, "nosuid"),
        (spec.noexec, "noexec"),
        (spec.nodev, "nodev"),
        (spec.readonly, "ro"),
        (spec.readonly && recursive, "rro"),
    ];
    options.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag));
    json!({ "destination": spec.target, "type": kind, "source": source, "options": options })
}

/// Those beyond what a runtime makes by itself.
fn devices(spec: &LaunchSpec) -> Vec<Value> {
    let own = spec.devices.iter().filter(|device| !DEFAULT_DEVICES.iter().any(|path| device.path == Path::new(path)));
    own.map(|device| {
        json!({
            "path": device.path, "type": if device.block { "b" } else { "c" }, "major": device.major,
            "minor": device.minor, "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
        })
    })
    .collect()
}

/// The same for a container that runs: what is not limited any more is said, too.
pub fn changed_resources(limits: &LeafLimits, version: CgroupVersion) -> Value {
    let mut resources = resources(limits, version);
    if limits.memory.is_none() {
        resources["memory"] = json!({ "limit": -1 });
    }
    // What it may open stays as it is.
    if let Some(resources) = resources.as_object_mut() {
        resources.remove("devices");
    }
    resources
}

/// What the container may use, as `linux.resources`: what its cgroup says, for runtimes that have more to limit than that.
fn resources(limits: &LeafLimits, version: CgroupVersion) -> Value {
    let shares = limits.cpu.shares();
    let mut cpu = json!({ "shares": shares, "period": limits.cpu.period_micros });
    cpu["quota"] = limits.cpu.quota_micros().map_or(json!(-1), Value::from);
    if let Some(set) = &limits.cpuset {
        cpu["cpus"] = json!(set.cpus);
        cpu["mems"] = json!(set.mems);
    }
    let mut resources = json!({
        "cpu": cpu,
        "devices": device_rules(&limits.devices),
    });
    if let Some(memory) = limits.memory {
        resources["memory"] = json!({ "limit": memory });
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    if version == CgroupVersion::V2 {
        // Runtimes of before 2025 make another weight of the shares.
        resources["unified"] = json!({ "cpu.weight": limits::weight(shares).to_string() });
    }
    resources
}

fn device_rules(access: &DeviceAccess) -> Vec<Value> {
    let rule = |rule: &DeviceRule| {
        let access = [(rule.read, 'r'), (rule.write, 'w'), (rule.make, 'm')];
        let access: String = access.into_iter().filter(|(allowed, _)| *allowed).map(|(_, letter)| letter).collect();
        let mut value = json!({ "allow": true, "type": if rule.block { "b" } else { "c" }, "access": access });
        for (name, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number {
                value[name] = number.into();
            }
        }
        value
    };
    let all = |allow: bool| json!({ "allow": allow, "access": "rwm" });
    match access {
        DeviceAccess::All => vec![all(true)],
        // The default ones are the runtime's to add.
        DeviceAccess::Default => vec![all(false)],
        DeviceAccess::Only(rules) => std::iter::once(all(false)).chain(rules.iter().map(rule)).collect(),
    }
}

/// What runtimes are told of pods (containerd's names). Each container is by itself: nothing makes one the sandbox of others.
fn annotations(pod: &Pod, spec: &LaunchSpec) -> Value {
    let metadata = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    json!({
        "io.kubernetes.cri.container-name": spec.container,
        "io.kubernetes.cri.image-name": spec.image,
        "io.kubernetes.cri.sandbox-name": text(&metadata.name),
        "io.kubernetes.cri.sandbox-namespace": text(&metadata.namespace),
        "io.kubernetes.cri.sandbox-uid": text(&metadata.uid),
    })
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
