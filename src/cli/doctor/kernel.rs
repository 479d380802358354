//! What the kernel can do.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::AsRawFd,
    path::Path,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};

use super::{Finding, Verdict};
use crate::sys::probe::{self, Call};

/// Below this, something that is always needed is missing (openat2 is from 5.6, close_range from 5.9).
const OLDEST: (u32, u32) = (5, 10);
/// From here on nothing is done in a roundabout way (cgroup.kill).
const GOOD: (u32, u32) = (5, 14);

pub(super) fn version() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    of_release(release.trim())
}

fn of_release(release: &str) -> Finding {
    const NAME: &str = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Finding::warning(
            NAME,
            format!("the release {release:?} is not understood"),
            "rely on the checks below",
        );
    };
    match (major, minor) {
        version if version < OLDEST => {
            Finding::error(NAME, format!("Linux {release} is too old"), "run Linux 5.10 or later, better 5.14")
        }
        version if version < GOOD => Finding::warning(
            NAME,
            format!("Linux {release}: containers are killed process by process, without cgroup.kill"),
            "run Linux 5.14 or later",
        ),
        _ => Finding::ok(NAME, format!("Linux {release}")),
    }
}

pub(super) fn calls() -> Vec<Finding> {
    let calls = [
        (Call::Clone3, "clone3", "5.3", "processes are started with it"),
        (Call::PidfdOpen, "pidfd_open", "5.3", "processes are watched with it"),
        (Call::Openat2, "openat2", "5.6", "paths in containers are resolved with it"),
        (Call::MoveMount, "move_mount", "5.2", "mounts are made with it"),
        (Call::CloseRange, "close_range", "5.9", "descriptors are kept from containers with it"),
        (Call::MountSetattr, "mount_setattr", "5.12", "recursive read-only mounts and user namespaces need it"),
    ];
    calls
        .into_iter()
        .map(|(call, name, since, purpose)| {
            let advice = format!("run Linux {since} or later");
            match probe::has(call) {
                Ok(true) => Finding::ok(name, "present"),
                Ok(false) if call == Call::MountSetattr => {
                    Finding::warning(name, format!("missing; {purpose}"), advice)
                }
                Ok(false) => Finding::error(name, format!("missing; {purpose}"), advice),
                Err(error) => Finding::error(
                    name,
                    format!("forbidden ({error}); {purpose}"),
                    "run berth outside of the container or filter that forbids it",
                ),
            }
        })
        .collect()
}

pub(super) fn features() -> Vec<Finding> {
    let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = file_systems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay"));
    let overlay = match overlay {
        true => Finding::ok("overlayfs", "present"),
        false => {
            Finding::error("overlayfs", "not there (yet); the roots of containers are made with it", "modprobe overlay")
        }
    };
    let seccomp = match probe::has_seccomp_filter() {
        true => Finding::ok("seccomp", "filters can be installed"),
        false => Finding::error(
            "seccomp",
            "filters cannot be installed; RuntimeDefault and Localhost profiles fail",
            "run a kernel with CONFIG_SECCOMP_FILTER",
        ),
    };
    let kill = cgroup_kill(Path::new("/proc/self/mountinfo"));
    let namespaces = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let namespaces = match namespaces.trim().parse::<u64>() {
        Ok(count) if count > 0 => Finding::ok("user namespaces", format!("up to {count}")),
        _ => Finding::warning(
            "user namespaces",
            "none may be made; pods with hostUsers: false fail",
            "sysctl -w user.max_user_namespaces=65536",
        ),
    };
    vec![overlay, seccomp, kill, namespaces]
}

/// The file is in every cgroup but the root. Where there is no other yet, the kernel's version has to do.
fn cgroup_kill(mountinfo: &Path) -> Finding {
    const NAME: &str = "cgroup.kill";
    let text = fs::read_to_string(mountinfo).unwrap_or_default();
    let Some(mount) = super::host::mounts(&text).into_iter().find(|mount| mount.kind == "cgroup2") else {
        return Finding::warning(
            NAME,
            "there is no cgroup v2; containers are killed process by process",
            "boot with cgroup v2: systemd.unified_cgroup_hierarchy=1 on the kernel command line",
        );
    };
    let children = fs::read_dir(&mount.target).into_iter().flatten().flatten();
    let cgroups: Vec<_> = children.filter(|child| child.path().join("cgroup.procs").exists()).collect();
    let present = cgroups.iter().any(|child| child.path().join("cgroup.kill").exists());
    match (present, cgroups.is_empty(), version().verdict) {
        (true, ..) => Finding::ok(NAME, "present"),
        (false, true, Verdict::Ok) => Finding::ok(NAME, "present, by the kernel's version"),
        _ => Finding::warning(NAME, "missing; containers are killed process by process", "run Linux 5.14 or later"),
    }
}

/// Asks nf_tables for its generation, which changes nothing.
pub(super) fn nftables() -> Finding {
    const NAME: &str = "nftables";
    match generation() {
        Ok(()) => Finding::ok(NAME, "answers"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Finding::error(NAME, "not allowed to ask it", "run as root with CAP_NET_ADMIN: sudo berth doctor")
        }
        Err(error) => Finding::error(
            NAME,
            format!("does not answer ({error}); address translation and host ports need it"),
            "modprobe nf_tables; modprobe nft_chain_nat; modprobe nft_masq",
        ),
    }
}

fn generation() -> io::Result<()> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_GETGEN: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const NLMSG_ERROR: u16 = 2;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    // The answer comes at once or never.
    setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(2, 0))?;
    // nlmsghdr: length, type, flags, sequence, port; nfgenmsg: family, version, resource.
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let field = |range: std::ops::Range<usize>| answer[..length].get(range).map(<[u8]>::to_vec);
    match (field(4..6), field(16..20)) {
        (Some(kind), Some(error)) if kind == NLMSG_ERROR.to_ne_bytes() => {
            let error = i32::from_ne_bytes([error[0], error[1], error[2], error[3]]);
            Err(io::Error::from_raw_os_error(-error))
        }
        (Some(_), _) => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_decides_with_its_first_two_numbers() {
        for (release, verdict) in [
            ("6.18.5-cloud", Verdict::Ok),
            ("5.14.0-427.el9", Verdict::Ok),
            ("5.10.0-8-amd64", Verdict::Warning),
            ("5.4.0-150-generic", Verdict::Error),
            ("4.18.0", Verdict::Error),
            ("weird", Verdict::Warning),
        ] {
            assert_eq!(of_release(release).verdict, verdict, "{release}");
        }
    }
}
