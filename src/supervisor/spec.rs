//! What a supervisor is told: the shape of a sandbox and of one container attempt.
//!
//! Everything here is fully resolved by `runtime::launch`: no defaults are filled in by the supervisor and
//! nothing in it refers to Kubernetes. The two specs are written to disk (`sandbox.json`, `launch.json`)
//! before they are acted upon, so they are also the record a restarted agent reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of the files and of the protocol. An agent speaks this one and the one before.
pub const VERSION: u32 = 1;

/// The pod's sandbox: which namespaces the supervisor makes for itself. Stored as `<pod dir>/sandbox.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Counts the sandboxes a pod has had, from 1.
    #[serde(default)]
    pub generation: u32,
    /// Pod UID.
    pub pod_uid: String,
    /// `<namespace>/<name>`, for the process title and messages only.
    pub pod: String,
    /// Host name of the UTS namespace (ignored with the host's network: the UTS namespace is then the host's).
    pub hostname: String,
    /// NIS domain name; empty leaves it alone.
    pub domainname: String,
    /// Unshare the network namespace (false: hostNetwork).
    pub new_net: bool,
    /// Unshare the IPC namespace (false: hostIPC).
    pub new_ipc: bool,
    /// Unshare the UTS namespace (false: hostNetwork).
    pub new_uts: bool,
    /// Start `pause` as PID 1 of a PID namespace all containers join (shareProcessNamespace).
    pub shared_pid: bool,
    /// A user namespace with these ids (hostUsers false), to which all other new namespaces belong.
    #[serde(default)]
    pub users: Option<IdRange>,
    /// Written under /proc/sys inside the new namespaces: `("net.ipv4.ip_unprivileged_port_start", "0")`.
    /// One whose namespace is the host's is refused before it gets here.
    pub sysctls: Vec<(String, String)>,
    /// Where the supervisor (and `pause`) goes; already created by the agent.
    pub cgroup: CgroupPlacement,
    /// `oom_score_adj` of the supervisor itself; lowering needs CAP_SYS_RESOURCE and failure is only noted.
    pub oom_score_adj: i32,
}

/// The ids of a user namespace: user and group `0..count` inside are `first..first + count` on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's number of the namespace's root.
    pub first: u32,
    /// How many ids there are; a multiple of 65536.
    pub count: u32,
}

impl IdRange {
    /// Whether the two have an id of the host in common.
    pub fn overlaps(self, other: IdRange) -> bool {
        let end = |range: IdRange| u64::from(range.first) + u64::from(range.count);
        u64::from(self.first) < end(other) && u64::from(other.first) < end(self)
    }
}

/// The cgroups of one leaf, one directory per hierarchy. All exist already and carry their limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlacement {
    /// Directory in the unified hierarchy (v2, or the v2 part of a hybrid machine), entered at clone3 with
    /// CLONE_INTO_CGROUP; also the place of `cgroup.kill`.
    pub unified: Option<PathBuf>,
    /// Directories in v1 hierarchies. The child joins each by writing `0` to its `tasks` file: for a
    /// single-threaded process that moves itself the kernel skips the global threadgroup lock, whose RCU
    /// grace period costs about 10 ms (`cgroup_procs_write_start`, kernel/cgroup/cgroup.c).
    pub v1: Vec<PathBuf>,
    /// The file that counts OOM kills of this leaf: `memory.events` (v2) or `memory.oom_control` (v1); both
    /// have a line `oom_kill N`.
    pub oom_events: Option<PathBuf>,
}

/// One attempt at one container. Stored as `<attempt dir>/launch.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Generation of the sandbox it is started in.
    #[serde(default)]
    pub generation: u32,
    /// Pod UID.
    pub pod_uid: String,
    /// Container name within the pod (init containers share the name space).
    pub container: String,
    /// Attempt, from 0; the restart count of the container's status.
    pub attempt: u32,
    /// 64 lower-case hex digits: the `berth://<id>` of the status.
    pub id: String,
    /// Image reference as written in the pod, for records.
    pub image: String,
    /// Image ID (`sha256:…` of the config) the root was made from.
    pub image_id: String,
    /// What a status calls the image: `repository@digest` where it is known by one, else the id. For records.
    #[serde(default)]
    pub image_ref: String,
    /// How often the pod had been begun anew, for records (`pod::policy::epoch`).
    #[serde(default)]
    pub epoch: u32,
    /// Executable and arguments; never empty. `args[0]` is looked up in the environment's PATH when it has no slash.
    pub args: Vec<String>,
    /// Whole environment in order; a later entry of the same name has already won.
    pub env: Vec<(String, String)>,
    /// Working directory inside the container; created (0755, container's user ids unchanged) if missing.
    pub cwd: PathBuf,
    /// Root file system.
    pub rootfs: RootfsSpec,
    /// Mounts in order, after the root and before masking.
    pub mounts: Vec<MountSpec>,
    /// Paths hidden by an empty read-only directory or /dev/null.
    pub masked_paths: Vec<PathBuf>,
    /// Paths remounted read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// Device nodes.
    pub devices: Vec<DeviceSpec>,
    /// Privileged: every device node of the host's /dev is made in the container's, too.
    pub all_devices: bool,
    /// The ids of the pod's user namespace; `None`: it is the host's.
    #[serde(default)]
    pub users: Option<IdRange>,
    /// Who it runs as.
    pub user: UserSpec,
    /// Capability bit mask (bit = number of the capability, capabilities(7)) for bounding, permitted and
    /// effective. Inheritable and ambient stay empty. For a non-root user only the bounding set remains after exec.
    pub capabilities: u64,
    /// Set `no_new_privs`.
    pub no_new_privs: bool,
    /// Name of the (loaded) AppArmor profile of the program; `None`: it keeps the agent's.
    #[serde(default)]
    pub app_armor: Option<String>,
    /// Classic BPF program of the seccomp filter, each instruction packed as
    /// `code << 48 | jt << 40 | jf << 32 | k`; empty: unconfined.
    pub seccomp: Vec<u64>,
    /// `(RLIMIT_* number, soft, hard)`. One that cannot be raised (no CAP_SYS_RESOURCE) is clamped and noted.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `oom_score_adj` of the container's processes.
    pub oom_score_adj: i32,
    /// Where its processes go.
    pub cgroup: CgroupPlacement,
    /// PID namespace.
    pub pid: PidMode,
    /// Own cgroup namespace (v2 and hybrid).
    pub new_cgroup_ns: bool,
    /// Standard streams.
    pub stdio: StdioSpec,
    /// Log file of this attempt.
    pub log: LogSpec,
    /// Signal to stop with (`SIGTERM` number unless the image says otherwise).
    pub stop_signal: i32,
    /// The OCI runtime that makes it; `None`: the supervisor does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<Box<HandlerSpec>>,
}

/// An OCI runtime that makes a container in the supervisor's place: how it is called, and where its bundle and its state
/// are. What it is to make is in the bundle (`runtime::handler::bundle`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerSpec {
    /// Name of the handler, for messages.
    pub name: String,
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments before the command and its options.
    pub arguments: Vec<String>,
    /// Directory of its state (`--root`): the pod's own, gone with the pod and with a reboot.
    pub state: PathBuf,
    /// Directory of the bundle, in the attempt's.
    pub bundle: PathBuf,
    /// How long one call may take, milliseconds.
    pub time_limit: u64,
}

/// Overlay root: `lower` are the image's layers (topmost first), mounted inside the container's own mount
/// namespace only, so that the mount vanishes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsSpec {
    /// Layer directories, topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Writable upper directory (exists).
    pub upper: PathBuf,
    /// Overlay work directory (exists, same file system as `upper`).
    pub work: PathBuf,
    /// An empty directory of the attempt on which the root is mounted within the new namespace.
    pub target: PathBuf,
    /// Remount read-only after set-up.
    pub readonly: bool,
}

/// One mount. `target` is a path inside the container, resolved beneath its root (openat2 RESOLVE_IN_ROOT);
/// missing directories (or, for a file source, a file) are created in the upper layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path inside the container.
    pub target: PathBuf,
    /// What is mounted there.
    pub kind: MountKind,
    /// Read-only.
    pub readonly: bool,
    /// Whether read-only also holds for mounts beneath a recursive bind.
    pub recursive_readonly: RecursiveReadOnly,
    /// MS_NOSUID.
    pub nosuid: bool,
    /// MS_NODEV.
    pub nodev: bool,
    /// MS_NOEXEC.
    pub noexec: bool,
    /// Propagation of a bind.
    pub propagation: Propagation,
    /// Name of the volume, for messages; `None` for what every container has.
    #[serde(default)]
    pub volume: Option<String>,
}

/// What a mount is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum MountKind {
    /// A new procfs of the container's PID namespace.
    Proc,
    /// A new sysfs of the pod's network namespace.
    Sysfs,
    /// tmpfs with options as in mount(8): `mode=755,size=65536k`.
    Tmpfs {
        /// Comma-separated `key=value` options.
        options: String,
    },
    /// A new devpts instance: `newinstance,ptmxmode=0666,mode=0620,gid=5`.
    Devpts,
    /// mqueue of the pod's IPC namespace.
    Mqueue,
    /// The container's own view of its cgroups (cgroup2 in its namespace; on v1 a bind of each hierarchy's leaf).
    Cgroup,
    /// Recursive bind of a host path (opened without following a final symlink swap: the agent has checked it).
    Bind {
        /// Absolute host path: a file, directory, socket or device.
        source: PathBuf,
        /// Resolved beneath `source` by openat2 (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) and bound from the
        /// descriptor; created as a directory (0750 of the container's volume owner) when missing.
        sub_path: Option<PathBuf>,
    },
}

/// `recursiveReadOnly` of a volume mount (KEP-3857).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecursiveReadOnly {
    /// Only the top mount is read-only.
    #[default]
    Disabled,
    /// Recursive when the kernel can.
    IfPossible,
    /// Recursive, else the start fails.
    Enabled,
}

/// Mount propagation (Kubernetes names in brackets).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// rprivate (`None`).
    #[default]
    Private,
    /// rslave (`HostToContainer`).
    Slave,
    /// rshared (`Bidirectional`).
    Shared,
}

/// A device node under the container's /dev.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Absolute path inside the container.
    pub path: PathBuf,
    /// The host's node, which takes its place where none can be made; `None`: the one of the same path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<PathBuf>,
    /// `true`: block device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Who the process runs as. Names are looked up in the container's own /etc/passwd and /etc/group after
/// pivot_root, so that nothing outside its root can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// The image's USER (`name`, `uid`, `name:group`, `uid:gid`), empty for none.
    pub image_user: String,
    /// runAsUser: overrides the user part of `image_user`.
    pub uid: Option<u32>,
    /// runAsGroup: overrides the group.
    pub gid: Option<u32>,
    /// supplementalGroups and fsGroup.
    pub groups: Vec<u32>,
    /// supplementalGroupsPolicy Strict: do not add memberships found in the image's /etc/group.
    pub strict_groups: bool,
    /// runAsNonRoot: refuse to start as uid 0.
    pub non_root: bool,
}

/// PID namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// A new one.
    Container,
    /// The pod's shared one, held by `pause`.
    Pod,
    /// The host's.
    Host,
    /// That of another running container of this pod (ephemeral containers).
    Target(String),
}

/// Standard streams of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioSpec {
    /// A terminal: one pty, its output logged as stdout.
    pub tty: bool,
    /// Keep standard input open (a pipe whose writer the supervisor holds); otherwise it is /dev/null.
    pub stdin: bool,
    /// Close standard input after the first attach has ended.
    pub stdin_once: bool,
}

/// Log file of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    /// `/var/log/pods/<ns>_<name>_<uid>/<container>/<attempt>.log`; its directory exists.
    pub path: PathBuf,
    /// Rotate when the file would grow past this many bytes (containerLogMaxSize).
    pub max_size: u64,
    /// How many files are kept, the current one included (containerLogMaxFiles, at least 2).
    pub max_files: u32,
}

/// A further process in a running container (exec).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Container name.
    pub container: String,
    /// Executable and arguments.
    pub args: Vec<String>,
    /// Variables added to (and overriding) those of the container.
    pub env: Vec<(String, String)>,
    /// `None`: the container's own.
    pub cwd: Option<PathBuf>,
    /// Allocate a terminal; its master is sent back with the reply.
    pub tty: bool,
    /// It is run for somebody who waits: it ends, with all that it started, when the connection that asked is gone; and
    /// what it started and left to itself is reaped while it runs.
    #[serde(default)]
    pub bound: bool,
    /// After this many milliseconds it is killed, with all that it started.
    #[serde(default)]
    pub time_limit: Option<u64>,
}

/// How an attempt ended. Stored as `<attempt dir>/exit.json`, durable before it is announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Container id.
    pub id: String,
    /// 0-255; 128 + signal number when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The OOM killer took a process of this attempt.
    pub oom_killed: bool,
    /// Unix time in nanoseconds at which exec succeeded; 0 when it never did.
    pub started_at: i64,
    /// Unix time in nanoseconds at which the process was reaped.
    pub finished_at: i64,
    /// Set when the container could not be started at all.
    pub start_error: Option<StartError>,
    /// uid, gid and supplementary groups it ran with; `None` when it never did.
    #[serde(default)]
    pub user: Option<(u32, u32, Vec<u32>)>,
}

/// How a lifecycle hook ended: it is not run again for this attempt. Stored as `<attempt dir>/post-start.json` or
/// `pre-stop.json`, durable before the end is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// `None`: well. Otherwise why not, in one line.
    pub failure: Option<String>,
}

/// Why a container (or an exec) could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartError {
    /// Which step failed, as a short phrase with its object: `mount proc on /proc`.
    pub step: String,
    /// errno, when the kernel said no; 0 otherwise.
    pub errno: i32,
    /// One line for people: cause included, `step` not repeated.
    pub message: String,
    /// Kubernetes reason: `ContainerCannotRun`, `CreateContainerConfigError`, `CreateContainerError` or `StartError`.
    pub reason: String,
}

impl StartError {
    /// The step in which a user is refused; its messages are upstream's.
    pub const USER: &str = "resolve the container's user";

    /// One line that says by itself what failed and why. Messages of upstream's name their object anyway.
    pub fn sentence(&self) -> String {
        let is_complete = self.message.starts_with("exec") || self.step == StartError::USER;
        if is_complete { self.message.clone() } else { format!("{}: {}", self.step, self.message) }
    }
}
