//! What this machine and this process are set up for.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};
use nix::sys::{
    statfs::{FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, statfs},
    statvfs::statvfs,
};

use super::Finding;
use crate::{server::socket, store::layout::Layout};

/// Without one of these no pod can be started.
const NEEDED: [Capability; 12] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_MKNOD,
];

pub(super) fn capabilities() -> Vec<Finding> {
    const NAME: &str = "capabilities";
    let has = |capability: Capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let missing: Vec<String> =
        NEEDED.into_iter().filter(|capability| !has(*capability)).map(|c| c.to_string()).collect();
    let needed = match missing.as_slice() {
        [] => Finding::ok(NAME, "all that are needed"),
        missing => Finding::error(NAME, format!("{} missing", missing.join(", ")), "run as root: sudo berth doctor"),
    };
    let resource = match has(Capability::CAP_SYS_RESOURCE) {
        true => Finding::ok("CAP_SYS_RESOURCE", "present"),
        false => Finding::warning(
            "CAP_SYS_RESOURCE",
            "missing: limits cannot be raised, nor agent and supervisors be kept from the OOM killer; pods run all the same",
            "give the agent CAP_SYS_RESOURCE, where it may have it",
        ),
    };
    vec![needed, resource]
}

/// A mounted file system.
pub(super) struct Mount {
    /// Where.
    pub(super) target: PathBuf,
    /// File system type.
    pub(super) kind: String,
    /// Options of the file system (for cgroup v1: its controllers).
    options: Vec<String>,
}

/// Reads /proc/self/mountinfo (proc_pid_mountinfo(5)).
pub(super) fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        Some(Mount {
            target: PathBuf::from(before.split(' ').nth(4)?.replace("\\040", " ")),
            kind: after.next()?.to_owned(),
            options: after.nth(1)?.split(',').map(str::to_owned).collect(),
        })
    };
    text.lines().filter_map(mount).collect()
}

pub(super) fn cgroups() -> Vec<Finding> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts(&text);
    let unified = mounts.iter().find(|mount| mount.kind == "cgroup2");
    let controllers = unified.map(|mount| fs::read_to_string(mount.target.join("cgroup.controllers")));
    let v2: Vec<String> = controllers
        .and_then(Result::ok)
        .map(|text| text.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default();
    let v1: Vec<String> =
        mounts.iter().filter(|mount| mount.kind == "cgroup").flat_map(|mount| mount.options.clone()).collect();
    of_controllers(&v1, &v2)
}

fn of_controllers(v1: &[String], v2: &[String]) -> Vec<Finding> {
    const NAME: &str = "cgroups";
    let on = |list: &[String], name: &str| list.iter().any(|controller| controller == name);
    let version = match (on(v1, "memory") || on(v1, "cpu"), on(v2, "memory") || on(v2, "cpu")) {
        (false, true) => Finding::ok(NAME, "version 2"),
        (true, _) => Finding::warning(
            NAME,
            "version 1 (or a mixture): works, without memory protection and kills by one write",
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel command line",
        ),
        (false, false) => {
            let advice = "mount -t cgroup2 none /sys/fs/cgroup, and enable the controllers in cgroup.subtree_control";
            Finding::error(NAME, "no hierarchy with cpu and memory is mounted", advice)
        }
    };
    let mut findings = vec![version];
    for (name, needed) in [("cpu", true), ("memory", true), ("pids", true), ("cpuset", false), ("hugetlb", false)] {
        let label = match name {
            "cpu" => "cgroup cpu",
            "memory" => "cgroup memory",
            "pids" => "cgroup pids",
            "cpuset" => "cgroup cpuset",
            _ => "cgroup hugetlb",
        };
        let advice = match name {
            "memory" => "boot with cgroup_enable=memory on the kernel command line".to_owned(),
            name => format!("run a kernel with the {name} controller, and do not disable it with cgroup_disable"),
        };
        findings.push(match (on(v1, name) || on(v2, name), needed) {
            (true, _) => Finding::ok(label, "present"),
            (false, true) => Finding::error(label, "missing: limits of pods cannot be kept", advice),
            (false, false) => Finding::warning(label, "missing: pods that ask for it fail", advice),
        });
    }
    findings
}

pub(super) fn forwarding() -> Vec<Finding> {
    let settings = [
        ("IPv4 forwarding", "net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("IPv6 forwarding", "net.ipv6.conf.all.forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"),
    ];
    settings
        .into_iter()
        .map(|(name, key, path)| match fs::read_to_string(path).as_deref().map(str::trim) {
            Ok("0") => Finding::warning(
                name,
                "off: the agent turns it on when it makes a network of this family",
                format!("sysctl -w {key}=1, to have it on before"),
            ),
            Ok(_) => Finding::ok(name, "on"),
            Err(_) => Finding::warning(name, "this family is not there", "nothing, unless pods are to have it"),
        })
        .collect()
}

pub(super) fn inotify() -> Vec<Finding> {
    // One instance for manifests, one for logs, and what else runs on the machine; a watch for each file of a volume.
    let limits = [
        ("inotify instances", "fs.inotify.max_user_instances", "/proc/sys/fs/inotify/max_user_instances", 64),
        ("inotify watches", "fs.inotify.max_user_watches", "/proc/sys/fs/inotify/max_user_watches", 8192),
    ];
    limits
        .into_iter()
        .map(|(name, key, path, least)| {
            let limit = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
            match limit {
                Some(limit) if limit >= least => Finding::ok(name, format!("up to {limit}")),
                Some(limit) => {
                    let meaning = format!("only {limit}: programs in pods may run out of them");
                    Finding::warning(name, meaning, format!("sysctl -w {key}={}", least * 8))
                }
                None => Finding::error(
                    name,
                    "inotify is missing: changes of manifests go unnoticed",
                    "run a kernel with CONFIG_INOTIFY_USER",
                ),
            }
        })
        .collect()
}

pub(super) fn file_system(root: &Path) -> Finding {
    const NAME: &str = "root directory";
    // Where it will be made, if it is not there yet.
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let shown = root.display();
    let elsewhere = "choose a directory on ext4 or xfs with --root-dir";
    match statfs(existing).map(|data| data.filesystem_type()) {
        Ok(OVERLAYFS_SUPER_MAGIC) => Finding::error(
            NAME,
            format!("{shown} is on an overlay, on which the writable layers of containers cannot be"),
            elsewhere,
        ),
        Ok(NFS_SUPER_MAGIC) | Ok(SMB | CIFS | SMB2) => {
            Finding::error(NAME, format!("{shown} is on a network file system"), elsewhere)
        }
        Ok(FUSE_SUPER_MAGIC) => {
            Finding::warning(NAME, format!("{shown} is on FUSE, which may lack what overlays need"), elsewhere)
        }
        Ok(_) => match statvfs(existing) {
            Ok(data) if data.blocks() > 0 && data.blocks_available() * 100 / data.blocks() < 10 => Finding::warning(
                NAME,
                format!("{shown} has less than a tenth of its space left"),
                "berth gc removes images that no pod uses",
            ),
            _ => Finding::ok(NAME, format!("{shown} can hold the layers of containers")),
        },
        Err(error) => Finding::error(NAME, format!("{shown}: {error}"), elsewhere),
    }
}

const SMB: FsType = FsType(0x517B);
const CIFS: FsType = FsType(0xFF53_4D42);
const SMB2: FsType = FsType(0xFE53_4D42);

pub(super) fn agent(layout: &Layout) -> Finding {
    const NAME: &str = "agent";
    let socket = layout.api_socket();
    match socket::connect_api(&socket) {
        Ok(_) => Finding::ok(NAME, format!("listens on {}", socket.display())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            let advice = "berth node --pod-manifest-path DIR";
            Finding::warning(NAME, format!("does not run ({}: {error})", socket.display()), advice)
        }
        Err(error) => {
            Finding::warning(NAME, format!("{}: {error}", socket.display()), "run as root: sudo berth doctor")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    fn verdicts(v1: &[&str], v2: &[&str]) -> Vec<(&'static str, Verdict)> {
        let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        of_controllers(&own(v1), &own(v2)).into_iter().map(|finding| (finding.name, finding.verdict)).collect()
    }

    #[test]
    fn controllers_may_be_in_either_hierarchy() {
        let v2 = verdicts(&[], &["cpu", "memory", "pids", "cpuset", "hugetlb"]);
        assert!(v2.iter().all(|(_, verdict)| *verdict == Verdict::Ok), "{v2:?}");
        let hybrid = verdicts(&["rw", "cpu", "cpuacct", "memory", "pids", "cpuset"], &["hugetlb"]);
        let not_ok: Vec<_> = hybrid.into_iter().filter(|(_, verdict)| *verdict != Verdict::Ok).collect();
        assert_eq!(not_ok, [("cgroups", Verdict::Warning)]);
        let nothing = verdicts(&[], &[]);
        assert_eq!(nothing.iter().filter(|(_, verdict)| *verdict == Verdict::Error).count(), 4);
    }

    #[test]
    fn mountinfo_is_read() {
        let text = "36 35 98:0 / /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                    30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
        let mounts = mounts(text);
        assert_eq!(mounts[0].target, PathBuf::from("/mnt 2"));
        assert_eq!((mounts[1].kind.as_str(), mounts[1].options.join(",").as_str()), ("cgroup", "rw,cpu,cpuacct"));
    }

    #[test]
    fn a_root_directory_that_does_not_exist_is_judged_by_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let finding = file_system(&directory.path().join("a/b"));
        assert_ne!(finding.verdict, Verdict::Error, "{finding:?}");
        assert_eq!(file_system(Path::new("/proc/1")).name, "root directory");
    }
}
