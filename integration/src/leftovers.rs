//! The machine before and after: what a test has left behind.

use std::{collections::BTreeSet, fs, path::Path};

use crate::Place;

/// What the agent keeps for itself between two runs: not a pod's.
const OWN: [&str; 13] = [
    "agent.log",
    "root/agent.lock",
    "root/device-plugins",
    "root/device-plugins/kubelet.sock",
    "root/events.jsonl",
    "root/plugins_registry",
    "root/pod-resources",
    "root/pod-resources/kubelet.sock",
    "root/pods",
    "run/agent.lock",
    "run/devices.json",
    "run/network",
    "run/pods",
];

/// What could be left: processes, links, addresses, rules, mounts, cgroups, files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// One line per thing.
    pub things: BTreeSet<String>,
}

impl Machine {
    /// Looks at the place and at the parts of the machine it can reach.
    pub fn look(place: &Place) -> Machine {
        let mut things = BTreeSet::new();
        let mut lines = |kind: &str, program: &str, arguments: &[&str]| {
            let output = place.run(program, arguments).expect("a listing program runs");
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                // Link-local addresses of links that were there before come and go with duplicate address detection.
                if !line.contains("fe80:") && !line.contains("ff00::") {
                    things.insert(format!("{kind}: {}", line.trim()));
                }
            }
        };
        lines("link", "ip", &["-o", "-br", "link"]);
        lines("address", "ip", &["-o", "-br", "address"]);
        lines("route", "ip", &["route", "show", "table", "all"]);
        lines("nftables", "nft", &["list", "ruleset"]);
        lines("mount", "cat", &["/proc/self/mountinfo"]);
        lines("sysctl", "sysctl", &["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]);
        for path in walk(place.dir.path(), 4) {
            let name = path.strip_prefix(place.dir.path()).unwrap_or(&path).display().to_string();
            if !OWN.contains(&name.as_str()) && !name.starts_with("root/images") {
                things.insert(format!("file: {name}"));
            }
        }
        let cgroup = place.cgroup_root.trim_start_matches('/');
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for path in walk(&hierarchy.path().join(cgroup), 6) {
                things.insert(format!("cgroup: {}", path.display()));
            }
        }
        let marker = place.dir.path().to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&marker) && !command.contains("berth node") && command.contains("berth") {
                let ours = command.split(' ').next().unwrap_or_default();
                if ours.contains("berth-sandbox") || ours.contains("pause") {
                    things.insert(format!("process: {command}"));
                }
            }
        }
        Machine { things }
    }

    /// Panics with what is in `after` and not in `self`.
    #[track_caller]
    pub fn assert_clean(&self, after: &Machine) {
        let left: Vec<&String> = after.things.difference(&self.things).collect();
        assert!(left.is_empty(), "left behind:\n{left:#?}");
        let missing: Vec<&String> = self.things.difference(&after.things).collect();
        assert!(missing.is_empty(), "taken away:\n{missing:#?}");
    }
}

/// Directories below `path` (itself excluded when absent), files too, down to `depth`.
fn walk(path: &Path, depth: usize) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    if depth == 0 {
        return found;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Files of a cgroup are not things of their own.
        if directory || !path.starts_with("/sys/fs/cgroup") {
            found.push(path.clone());
        }
        if directory {
            found.extend(walk(&path, depth - 1));
        }
    }
    found
}
