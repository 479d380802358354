//! What the supervisor makes of itself before it serves: the holder of the pod's namespaces.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use super::{
    pause,
    spec::{CgroupPlacement, IdRange, SandboxSpec, VERSION},
    user_namespace::{self, Parameter, UserNamespace, UserNamespaceError},
};
use crate::{
    store::durable::{self, StoreError},
    sys::process::{Child, flags},
};

/// Why the sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The record that says what to make.
    #[error("read the sandbox's record")]
    Record(#[source] StoreError),
    /// There is none.
    #[error("{0} does not exist")]
    NoRecord(PathBuf),
    /// It was written by another version.
    #[error("{path} has version {found}, this program understands {VERSION}")]
    Version {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A v1 cgroup.
    #[error("join the cgroup {path}")]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// unshare(2).
    #[error("unshare the namespaces {names}")]
    Unshare {
        /// `net, ipc, uts`.
        names: String,
        /// Cause.
        #[source]
        source: nix::Error,
    },
    /// sethostname(2).
    #[error("set the host name {name:?}")]
    Hostname {
        /// The name.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A name that would lead out of /proc/sys.
    #[error("{0:?} is not the name of a sysctl")]
    SysctlName(String),
    /// A sysctl could not be set.
    #[error("set the sysctl {name} to {value:?}")]
    Sysctl {
        /// Its name.
        name: String,
        /// The value wanted.
        value: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The socket for whoever sets up the network.
    #[error("open a netlink socket in the network namespace")]
    Netlink(#[source] nix::Error),
    /// hostUsers is false.
    #[error("make the pod's user namespace")]
    Users(#[source] UserNamespaceError),
    /// Process 1 of the shared PID namespace.
    #[error("start the pause process of the shared PID namespace")]
    Pause(#[source] io::Error),
}

/// A complete sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// NETLINK_ROUTE socket of the network namespace, unless that is the host's.
    pub netlink: Option<OwnedFd>,
    /// Process 1 of the shared PID namespace.
    pub pause: Option<Child>,
    /// The pod's user namespace, unless that is the host's.
    pub users: Option<UserNamespace>,
    /// What could not be done, and is not worth failing for.
    pub warnings: Vec<String>,
}

/// Reads `<directory>/sandbox.json`.
///
/// # Errors
/// It is not there or cannot be understood.
pub fn read(directory: &Path) -> Result<SandboxSpec, SandboxError> {
    let path = directory.join("sandbox.json");
    let spec = durable::read_json::<SandboxSpec>(&path).map_err(SandboxError::Record)?;
    match spec {
        None => Err(SandboxError::NoRecord(path)),
        Some(spec) if spec.version != VERSION => Err(SandboxError::Version { path, found: spec.version }),
        Some(spec) => Ok(spec),
    }
}

/// Turns the calling process into the sandbox that `spec` describes. With `made` it has its namespaces already.
///
/// # Errors
/// The first step that failed. The namespaces vanish with the process, so there is nothing to undo.
pub fn set_up(spec: &SandboxSpec, run_directory: &Path, made: bool) -> Result<Sandbox, SandboxError> {
    let mut warnings = Vec::new();
    // First of all, so that whatever is allocated from here on is charged to the pod.
    join(&spec.cgroup)?;
    if let Err(error) = fs::write("/proc/self/oom_score_adj", spec.oom_score_adj.to_string()) {
        warnings.push(format!("oom_score_adj {} of the supervisor: {error}, ignoring", spec.oom_score_adj));
    }
    let users = match spec.users {
        Some(range) => Some(make_user_namespace(spec, range)?),
        None => {
            if !made {
                unshare_namespaces(spec)?;
            }
            for (name, value) in &spec.sysctls {
                set_sysctl(name, value)?;
            }
            None
        }
    };
    if spec.new_uts {
        set_names(spec)?;
    }
    let netlink = if spec.new_net { Some(netlink_socket()?) } else { None };
    // Last: it inherits the namespaces, and stands for the sandbox as much as this process does.
    let pause = match spec.shared_pid {
        true => Some(pause::start(run_directory, users.as_ref()).map_err(SandboxError::Pause)?),
        false => None,
    };
    Ok(Sandbox { netlink, pause, users, warnings })
}

/// Joins the v1 hierarchies; the unified one was entered at birth.
fn join(cgroup: &CgroupPlacement) -> Result<(), SandboxError> {
    for path in &cgroup.v1 {
        // `tasks` and 0, not `cgroup.procs` and a pid: see `CgroupPlacement::v1`.
        fs::write(path.join("tasks"), "0").map_err(|source| SandboxError::Cgroup { path: path.clone(), source })?;
    }
    Ok(())
}

fn unshare_namespaces(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let wanted = [
        (spec.new_net, CloneFlags::CLONE_NEWNET, "net"),
        (spec.new_ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
        (spec.new_uts, CloneFlags::CLONE_NEWUTS, "uts"),
    ];
    let (mut flags, mut names) = (CloneFlags::empty(), Vec::new());
    for (_, flag, name) in wanted.into_iter().filter(|(wanted, ..)| *wanted) {
        flags |= flag;
        names.push(name);
    }
    if flags.is_empty() {
        return Ok(());
    }
    unshare(flags).map_err(|source| SandboxError::Unshare { names: names.join(", "), source })
}

/// The user namespace and, belonging to it, the other new ones, which this process joins.
fn make_user_namespace(spec: &SandboxSpec, range: IdRange) -> Result<UserNamespace, SandboxError> {
    let wanted = [(spec.new_net, flags::NEWNET), (spec.new_ipc, flags::NEWIPC), (spec.new_uts, flags::NEWUTS)];
    let kinds = wanted.into_iter().filter(|(wanted, _)| *wanted).fold(0, |kinds, (_, kind)| kinds | kind);
    let parameter = |(name, value): &(String, String)| {
        let path = sysctl_path(name).ok_or_else(|| SandboxError::SysctlName(name.clone()))?;
        Ok(Parameter { path, name: name.clone(), value: value.clone() })
    };
    let parameters = spec.sysctls.iter().map(parameter).collect::<Result<Vec<_>, SandboxError>>()?;
    user_namespace::make(range, kinds, &parameters).map_err(SandboxError::Users)
}

fn set_names(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let failed = |name: &str| {
        let name = name.to_owned();
        move |source| SandboxError::Hostname { name, source }
    };
    nix::unistd::sethostname(&spec.hostname).map_err(|error| failed(&spec.hostname)(error.into()))?;
    if !spec.domainname.is_empty() {
        fs::write("/proc/sys/kernel/domainname", &spec.domainname).map_err(failed(&spec.domainname))?;
    }
    Ok(())
}

fn set_sysctl(name: &str, value: &str) -> Result<(), SandboxError> {
    let path = sysctl_path(name).ok_or_else(|| SandboxError::SysctlName(name.to_owned()))?;
    fs::write(path, value).map_err(|source| SandboxError::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// The file of a sysctl, in either notation of sysctl(8): the first separator seen is the separator, and the other
/// character stands for itself (`net/ipv4/conf/eth0.1/forwarding`, `net.ipv4.conf.eth0/1.forwarding`).
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let dotted = name.find(['.', '/']).is_none_or(|first| name.as_bytes()[first] == b'.');
    let parts = name.split(if dotted { '.' } else { '/' }).map(|part| {
        let part = if dotted { part.replace('/', ".") } else { part.to_owned() };
        (!matches!(part.as_str(), "" | "." | "..") && !part.contains(['/', '\0'])).then_some(part)
    });
    parts.collect::<Option<PathBuf>>().map(|relative| Path::new("/proc/sys").join(relative))
}

fn netlink_socket() -> Result<OwnedFd, SandboxError> {
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
        .map_err(SandboxError::Netlink)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_named_in_two_ways_and_stay_beneath_their_directory() {
        let path = |name: &str| sysctl_path(name).map(|path| path.to_str().unwrap().to_owned());
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(path("net/ipv4/ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(path("net/ipv4/conf/eth0.1/x").as_deref(), Some("/proc/sys/net/ipv4/conf/eth0.1/x"));
        assert_eq!(path("net.ipv4.conf.eth0/1.x").as_deref(), Some("/proc/sys/net/ipv4/conf/eth0.1/x"));
        for wrong in ["", "net/../../etc/passwd", "net..ipv4", "/etc/passwd", "net.ipv4.", "net./.x"] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }
}
