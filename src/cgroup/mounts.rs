//! Where the hierarchies are mounted, from /proc/self/mountinfo and /proc/self/cgroup (proc_pid_mountinfo(5),
//! cgroups(7)).

use std::path::{Path, PathBuf};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Mount point.
    pub path: PathBuf,
    /// v1: its controllers, or `name=systemd`. Empty for the unified hierarchy.
    pub controllers: Vec<String>,
    /// The agent itself sits in the topmost cgroup of this mount. If it does not (a service of systemd), pods have
    /// to be moved out of its cgroup here too, or they would be counted and killed with it.
    pub agent_at_top: bool,
}

/// All hierarchies that are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    /// The unified hierarchy (v2).
    pub unified: Option<Mount>,
    /// v1 hierarchies, one per set of controllers.
    pub v1: Vec<Mount>,
}

/// Reads the two files' text. `fs_root` is put before every mount point (`/` on a real machine).
pub fn parse(fs_root: &Path, mountinfo: &str, self_cgroup: &str) -> Mounts {
    let mut mounts = Mounts::default();
    for line in mountinfo.lines() {
        let Some(found) = Line::parse(line) else { continue };
        let path = fs_root.join(found.point.trim_start_matches('/'));
        if found.unified {
            let agent_at_top = own_cgroup(self_cgroup, "").is_none_or(|own| own == found.root);
            // A second mount of the same hierarchy is a bind mount somewhere; the first is the host's.
            mounts.unified.get_or_insert(Mount { path, controllers: Vec::new(), agent_at_top });
        } else if !mounts.v1.iter().any(|known| known.controllers == found.controllers) {
            let first = found.controllers.first().map_or("", String::as_str);
            let agent_at_top = own_cgroup(self_cgroup, first).is_none_or(|own| own == found.root);
            mounts.v1.push(Mount { path, controllers: found.controllers, agent_at_top });
        }
    }
    mounts
}

struct Line {
    root: String,
    point: String,
    unified: bool,
    controllers: Vec<String>,
}

impl Line {
    /// `31 23 0:28 /root /mount/point rw shared:1 - cgroup cgroup rw,cpu,cpuacct`
    fn parse(line: &str) -> Option<Line> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        let (root, point) = (before.nth(3)?, before.next()?);
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        let unified = match kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        // The super options are flags and, for v1, the controllers.
        let is_controller = |option: &&str| {
            !matches!(
                *option,
                "rw" | "ro" | "xattr" | "clone_children" | "noprefix" | "favordynmods" | "nofavordynmods" | "none"
            ) && !option.starts_with("release_agent=")
                && !option.starts_with("cpuset_")
        };
        let controllers =
            if unified { Vec::new() } else { options.split(',').filter(is_controller).map(str::to_owned).collect() };
        Some(Line { root: unescape(root), point: unescape(point), unified, controllers })
    }
}

/// The agent's own cgroup in the hierarchy with this controller (`""`: unified), from `7:cpu,cpuacct:/path`.
fn own_cgroup<'a>(self_cgroup: &'a str, controller: &str) -> Option<&'a str> {
    self_cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|known| known == controller).then_some(path)
    })
}

/// Space, tab, newline and backslash are written as `\040` and so on.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 master:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
52 31 0:32 /x /mnt/with\\040space rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn every_hierarchy_is_found_once() {
        let own = "3:memory:/system.slice/berth.service\n2:cpu,cpuacct:/\n1:name=systemd:/system.slice\n0::/\n";
        let mounts = parse(Path::new("/"), HYBRID, own);
        let seen: Vec<_> = mounts
            .v1
            .iter()
            .map(|mount| (mount.path.to_str().unwrap(), mount.controllers.join(","), mount.agent_at_top))
            .collect();
        assert_eq!(
            seen,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct".to_owned(), true),
                ("/sys/fs/cgroup/memory", "memory".to_owned(), false),
                ("/sys/fs/cgroup/systemd", "name=systemd".to_owned(), false),
            ]
        );
        assert_eq!(mounts.unified.unwrap().path, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_file_system_root_goes_before_every_mount_point() {
        let mounts = parse(Path::new("/tmp/fake"), "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 none rw", "0::/a");
        assert_eq!(
            mounts.unified,
            Some(Mount { path: "/tmp/fake/sys/fs/cgroup".into(), controllers: vec![], agent_at_top: false })
        );
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\9"), r"/a\9");
    }

    #[test]
    fn nonsense_is_passed_over() {
        assert_eq!(parse(Path::new("/"), "nonsense\n1 2 3\n - cgroup2\n", "x"), Mounts::default());
    }
}
