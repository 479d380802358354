//! One attempt at a container: everything its supervisor has to know, worked out from pod, image and node.
//!
//! No I/O, but for what the arguments for seccomp and files of variables do.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

use super::{
    capabilities,
    config_error::ConfigError,
    container_ref::ContainerRef,
    devices::{Granted, volume_devices},
    downward::{Allocatable, Surroundings},
    env::{EnvSources, environment, pod_env},
    mounts::{AgentFiles, Surface, mounts},
    oom, process,
    security::{SeccompChoice, Security},
};
use crate::{
    api::app_armor::Profile,
    store::layout::PodDirs,
    supervisor::spec::{
        CgroupPlacement, DeviceSpec, IdRange, LaunchSpec, LogSpec, MountSpec, PidMode, RootfsSpec, StdioSpec, VERSION,
    },
    volume::{MountedVolume, shm},
};

/// The devices of every container that does not see the host's, as (name, minor); all are character devices that
/// everybody may use.
const MEMORY_DEVICES: [(&str, u32); 5] = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];

/// Paths through which a container could learn about, or change, the host.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths a container may read only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What an image says of itself and where its layers are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Image ID (`sha256:…` of its configuration).
    pub id: String,
    /// What a status calls it: `repository@digest`, or the id of one without.
    pub reference: String,
    /// USER: `name`, `uid`, `name:group`, …; empty for none.
    pub user: String,
    /// Variables, each `NAME=value`.
    pub env: Vec<String>,
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// WORKDIR; empty for none.
    pub working_dir: String,
    /// STOPSIGNAL, a name or a number; empty for none.
    pub stop_signal: String,
    /// Layer directories, topmost first.
    pub layers: Vec<PathBuf>,
}

/// The version of the machine's cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// v1, or hybrid with the controllers in v1.
    V1,
    /// The unified hierarchy.
    V2,
}

/// Settings of the node that are the same for all containers.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// seccompDefault: containers without a profile have the runtime's default one.
    pub seccomp_default: bool,
    /// Directory of Localhost seccomp profiles.
    pub seccomp_root: PathBuf,
    /// containerLogMaxSize in bytes.
    pub log_max_size: u64,
    /// containerLogMaxFiles.
    pub log_max_files: u32,
    /// The node's memory in bytes, for the OOM score.
    pub memory_capacity: u64,
    /// What a container without limits is told that it may use.
    pub allocatable: Allocatable,
    /// Version of cgroups.
    pub cgroup_version: CgroupVersion,
    /// The agent's own bounding set: what privileged containers have and the most anybody gets.
    pub bounding_capabilities: u64,
    /// `(RLIMIT_* number, soft, hard)` of every container.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Further masked paths, which depend on the machine
    /// (`/sys/devices/system/cpu/cpu<N>/thermal_throttle`, where it exists).
    pub masked_paths: Vec<PathBuf>,
}

impl LaunchOptions {
    /// Limits a container does not inherit from whatever started the agent: files as systemd gives them to a
    /// service, hence to containers under containerd 2. Everything else is inherited.
    pub fn default_rlimits() -> Vec<(u32, u64, u64)> {
        vec![(libc::RLIMIT_NOFILE, 1024, 524_288)]
    }
}

/// Compiles a seccomp profile for a container with these capabilities (bit mask): instructions as in
/// [`LaunchSpec::seccomp`], never asked for [`SeccompChoice::Unconfined`].
pub type SeccompCompiler<'a> =
    &'a dyn Fn(&SeccompChoice, u64) -> Result<Vec<u64>, Box<dyn std::error::Error + Send + Sync>>;

/// Makes sure that an AppArmor profile is loaded and names it; `None` when nothing is to be done.
pub type AppArmorLoader<'a> = &'a dyn Fn(&Profile) -> Result<Option<String>, Box<dyn std::error::Error + Send + Sync>>;

/// Everything a launch follows from.
pub struct LaunchInput<'a> {
    /// An admitted pod, with its defaults.
    pub pod: &'a Pod,
    /// Which container.
    pub container: ContainerRef<'a>,
    /// Attempt, from 0.
    pub attempt: u32,
    /// Generation of the sandbox it is for.
    pub generation: u32,
    /// How often the pod had been begun anew.
    pub epoch: u32,
    /// Its image.
    pub image: &'a ImageFacts,
    /// Host name of the pod (the node's with hostNetwork), for HOSTNAME.
    pub hostname: &'a str,
    /// Addresses of the pod, the primary one first; those of the node with hostNetwork.
    pub pod_ips: &'a [IpAddr],
    /// Addresses of the node, the primary one first.
    pub host_ips: &'a [IpAddr],
    /// Name of the node.
    pub node_name: &'a str,
    /// Paths of the pod.
    pub dirs: &'a PodDirs,
    /// Objects and files that variables come from.
    pub env_sources: EnvSources<'a>,
    /// The pod's volumes by name, all set up.
    pub volumes: &'a BTreeMap<String, MountedVolume>,
    /// What it is given for the devices of plugins.
    pub granted: &'a Granted,
    /// Where its processes go.
    pub cgroup: CgroupPlacement,
    /// Ids of the pod's user namespace (hostUsers false).
    pub users: Option<IdRange>,
    /// Loads AppArmor profiles.
    pub app_armor: AppArmorLoader<'a>,
    /// Settings of the node.
    pub options: &'a LaunchOptions,
    /// Compiles seccomp profiles.
    pub seccomp: SeccompCompiler<'a>,
}

/// Works out one attempt. The same input always gives the same result, the container's id included.
pub fn launch_spec(input: &LaunchInput<'_>) -> Result<LaunchSpec, ConfigError> {
    let LaunchInput { pod, container, image, dirs, options, .. } = input;
    let (container, path) = (*container, container.path());
    if image.layers.is_empty() {
        return Err(ConfigError::create("image", format!("image {} has no layers", image.id)));
    }
    let pod_spec = pod.spec.as_ref();
    let pod_uid = pod.metadata.uid.clone().unwrap_or_default();
    let surroundings = Surroundings {
        node_name: input.node_name,
        pod_ips: input.pod_ips,
        host_ips: input.host_ips,
        allocatable: &options.allocatable,
    };
    let own_env = pod_env(pod, container, &surroundings, &input.env_sources)?;

    let security = Security::new(pod, container, &path);
    security.check()?;
    let privileged = security.privileged();
    let mut user = security.user(&image.user)?;
    user.groups.extend(&input.granted.groups);
    let wanted = container.security_context().and_then(|context| context.capabilities.as_ref());
    let security_path = format!("{path}.securityContext");
    let capabilities = capabilities::mask(wanted, privileged, options.bounding_capabilities, &security_path)?;
    let seccomp = match security.seccomp(options.seccomp_default, &options.seccomp_root)? {
        SeccompChoice::Unconfined => Vec::new(),
        choice => (input.seccomp)(&choice, capabilities)
            .map_err(|error| ConfigError::create(security.field("seccompProfile"), chain(&*error)))?,
    };

    let app_armor = match security.app_armor() {
        Some(profile) => (input.app_armor)(&profile)
            .map_err(|error| ConfigError::create(security.field("appArmorProfile"), chain(&*error)))?,
        None => None,
    };

    let attempt = dirs.attempt(container.name(), input.attempt);
    let surface = Surface {
        privileged,
        read_only_root: security.read_only_root(),
        own_users: input.users.is_some(),
        shm: if pod_spec.is_none_or(shm::is_needed) { shm::path(dirs) } else { PathBuf::from(shm::HOST) },
    };
    let has_termination_log = !container.termination_message_path().is_empty();
    let termination_log = has_termination_log.then(|| attempt.termination_log());
    let files = AgentFiles { etc: dirs.etc(), termination_log };
    let mounts = mounts(container, &surface, &files, input.volumes, &own_env)?;
    let mounts = with_granted(mounts, &input.granted.mounts);
    // With a /dev of its own choice a container has what is there.
    let own_dev = container.volume_mounts().iter().any(|mount| is_dev(&mount.mount_path));
    let mut devices = if privileged || own_dev { Vec::new() } else { default_devices() };
    let block_volumes = volume_devices(container, input.volumes)?;
    if own_dev && !block_volumes.is_empty() {
        let message = "cannot be made in a /dev that is a volume itself";
        return Err(ConfigError::create(format!("{path}.volumeDevices"), message));
    }
    devices.extend(block_volumes.into_iter().map(|device| device.node));
    if !own_dev {
        devices.retain(|device| !input.granted.nodes.iter().any(|granted| granted.path == device.path));
        devices.extend(input.granted.nodes.iter().cloned());
    }
    let granted_env = input.granted.env.iter().map(|(name, value)| format!("{name}={value}"));
    let image_env: Vec<String> = image.env.iter().cloned().chain(granted_env).collect();
    let mut env = environment(&image_env, &own_env, input.hostname, container.tty());
    for (name, value) in &input.granted.cdi_env {
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value.clone()));
    }
    let to_paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    let (mut masked_paths, mut readonly_paths) = (Vec::new(), Vec::new());
    if security.masked() {
        masked_paths = to_paths(&MASKED);
        masked_paths.extend(options.masked_paths.iter().cloned());
        readonly_paths = to_paths(&READ_ONLY);
    }

    Ok(LaunchSpec {
        version: VERSION,
        generation: input.generation,
        id: process::container_id(&pod_uid, container.name(), input.attempt),
        pod_uid,
        container: container.name().to_owned(),
        attempt: input.attempt,
        image: container.image().to_owned(),
        image_id: image.id.clone(),
        image_ref: image.reference.clone(),
        epoch: input.epoch,
        args: process::arguments(container, &image.entrypoint, &image.cmd, &own_env)?,
        env,
        cwd: process::working_directory(container, &image.working_dir)?,
        rootfs: RootfsSpec {
            lower: image.layers.clone(),
            upper: attempt.upper(),
            work: attempt.work(),
            target: attempt.rootfs(),
            readonly: surface.read_only_root,
        },
        mounts,
        masked_paths,
        readonly_paths,
        devices,
        all_devices: privileged && !own_dev,
        users: input.users,
        user,
        capabilities,
        no_new_privs: security.no_new_privs(),
        app_armor,
        seccomp,
        rlimits: options.rlimits.clone(),
        oom_score_adj: oom::score(pod, container, options.memory_capacity),
        cgroup: input.cgroup.clone(),
        pid: pid_mode(pod, container),
        // As containerd: a privileged container sees the host's cgroups, and on v1 nobody has a namespace. In a user
        // namespace the host's cannot be mounted.
        new_cgroup_ns: options.cgroup_version == CgroupVersion::V2 && (!privileged || input.users.is_some()),
        stdio: StdioSpec { tty: container.tty(), stdin: container.stdin(), stdin_once: container.stdin_once() },
        log: LogSpec {
            path: dirs.log_file(container.name(), input.attempt),
            max_size: options.log_max_size,
            max_files: options.log_max_files,
        },
        stop_signal: process::stop_signal(container, &image.stop_signal)?,
        handler: None,
    })
}

/// Adds the mounts of devices to those of the container: over what every container has, beneath its volumes.
fn with_granted(mut mounts: Vec<MountSpec>, granted: &[MountSpec]) -> Vec<MountSpec> {
    for mount in granted {
        mounts.retain(|known| known.volume.is_some() || known.target != mount.target);
    }
    let mut all = granted.to_vec();
    all.append(&mut mounts);
    // As they were sorted before: what is below another comes after it.
    all.sort_by_key(|mount| mount.target.components().count());
    all
}

fn is_dev(mount_path: &str) -> bool {
    Path::new("/").join(mount_path).components().eq(Path::new("/dev").components())
}

fn default_devices() -> Vec<DeviceSpec> {
    let device = |name: &str, major: u32, minor: u32| DeviceSpec {
        path: Path::new("/dev").join(name),
        host_path: None,
        block: false,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mut devices: Vec<_> = MEMORY_DEVICES.iter().map(|(name, minor)| device(name, 1, *minor)).collect();
    devices.push(device("tty", 5, 0));
    devices
}

fn pid_mode(pod: &Pod, container: ContainerRef<'_>) -> PidMode {
    let set = |field: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>| {
        pod.spec.as_ref().and_then(field) == Some(true)
    };
    if set(|spec| spec.host_pid) {
        PidMode::Host
    } else if set(|spec| spec.share_process_namespace) {
        PidMode::Pod
    } else if let Some(target) = container.target() {
        PidMode::Target(target.to_owned())
    } else {
        PidMode::Container
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
