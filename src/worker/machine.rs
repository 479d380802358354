//! Facts about this machine, read once at start.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use caps::CapSet;
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        statvfs::statvfs,
    },
    unistd::{SysconfVar, sysconf},
};

use crate::{
    api::{quantity::Quantity, resources::CPU, resources::EPHEMERAL_STORAGE, resources::MEMORY},
    cgroup::NodeLimits,
    config::NodeConfig,
    pod::admission::NodeFacts,
    runtime::downward::Allocatable,
};

/// The resource that counts processes and threads, in what is kept for others.
const PIDS: &str = "pid";

/// Addresses of the node: global ones of interfaces that are up, IPv4 first; loopback when there is nothing else. Those
/// of `bridge` are the pods' side of the node.
pub fn addresses(bridge: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let flags = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        if !interface.flags.contains(flags) || interface.interface_name == bridge {
            continue;
        }
        let Some(address) = interface.address else { continue };
        let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        let usable = match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        if usable && !found.contains(&address) {
            found.push(address);
        }
    }
    found.sort_by_key(|address| address.is_ipv6());
    // One of each family is what a status shows.
    let mut kept: Vec<IpAddr> = Vec::new();
    for address in found {
        if !kept.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            kept.push(address);
        }
    }
    if kept.is_empty() {
        kept.push(IpAddr::from([127, 0, 0, 1]));
    }
    kept
}

/// Gives this process room for descriptors (each pod needs a few) and a place among the last to be killed. Either may
/// need more than this process may do: it runs all the same then.
pub fn prepare_process(config: &NodeConfig) {
    let wanted = config.max_open_files;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        // The hard limit can be raised by those who may; within it everybody may move.
        setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted.max(hard))
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", config.oom_score_adj.to_string()) {
        tracing::warn!(%error, wanted = config.oom_score_adj, "oom_score_adj of the agent stays as it is");
    }
}

/// Bytes of a page.
pub fn page_size() -> u64 {
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0).unwrap_or(4096)
    })
}

/// Bytes of memory.
pub fn memory() -> u64 {
    meminfo("MemTotal:")
}

/// Bytes of swap; 0 when there is none.
pub fn swap() -> u64 {
    meminfo("SwapTotal:")
}

fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes: u64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default();
    kibibytes * 1024
}

/// Most processes and threads the machine can have at a time (proc_sys_kernel(5)).
fn most_pids() -> u64 {
    let read = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].into_iter().filter_map(read);
    limits.min().unwrap_or(u64::MAX)
}

/// What pods may have together: what there is less what the configuration keeps for others. Never less than nothing.
pub fn allocatable(config: &NodeConfig, capacity: &Allocatable) -> Allocatable {
    let kept = |name: &str| config.reserved.get(name).copied().unwrap_or_default();
    Allocatable {
        cpu_milli: (capacity.cpu_milli - kept(CPU).milli()).max(0),
        memory: (capacity.memory - kept(MEMORY).value()).max(0),
        ephemeral_storage: (capacity.ephemeral_storage - kept(EPHEMERAL_STORAGE).value()).max(0),
    }
}

/// What the cgroup of all pods is limited to, if it is.
pub fn node_limits(config: &NodeConfig, allocatable: &Allocatable) -> Option<NodeLimits> {
    let whole = |amount: i64| u64::try_from(amount).unwrap_or(0);
    let pids = config.reserved.get(PIDS).map(|kept| most_pids().saturating_sub(whole(kept.value())));
    let limits = NodeLimits { cpu_milli: whole(allocatable.cpu_milli), memory: whole(allocatable.memory), pids };
    config.enforce_allocatable.then_some(limits)
}

/// Bytes of the file system that holds `path`.
pub fn file_system_size(path: &Path) -> i64 {
    statvfs(path).map_or(0, |stat| i64::try_from(stat.blocks() * stat.fragment_size()).unwrap_or(i64::MAX))
}

/// `/sys/devices/system/cpu/cpu<N>/thermal_throttle` of every processor that has one: timings an attacker could read.
pub fn thermal_throttles() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let throttles = entries.map(|entry| entry.path().join("thermal_throttle"));
    let mut found: Vec<PathBuf> = throttles.filter(|path| path.exists()).collect();
    found.sort();
    found
}

/// Contents of `/etc/subuid` and `/etc/subgid`; empty where there is none.
pub fn subordinate_ids() -> [String; 2] {
    ["/etc/subuid", "/etc/subgid"].map(|path| fs::read_to_string(path).unwrap_or_default())
}

/// Huge pages this machine has in stock: size of a page and of all of them, in bytes.
pub fn huge_pages() -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kibibytes = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB")?.parse::<u64>().ok());
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        let count = count.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or_default();
        if let Some(kibibytes) = kibibytes.filter(|_| count > 0) {
            found.push((kibibytes * 1024, kibibytes * 1024 * count));
        }
    }
    found
}

/// What admission has to know.
pub fn facts(config: &NodeConfig, allocatable: &Allocatable) -> NodeFacts {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut labels = config.node_labels.clone();
    labels.extend([
        ("kubernetes.io/hostname".to_owned(), config.node_name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture.to_owned()),
    ]);
    let mut resources = BTreeMap::from([
        (CPU.to_owned(), Quantity::from_milli(allocatable.cpu_milli)),
        (MEMORY.to_owned(), Quantity::from_bytes(allocatable.memory)),
        (EPHEMERAL_STORAGE.to_owned(), Quantity::from_bytes(allocatable.ephemeral_storage)),
        ("pods".to_owned(), Quantity::from_units(i64::from(config.max_pods))),
    ]);
    for (size, total) in huge_pages() {
        let [size, total] = [size, total].map(|bytes| Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX)));
        let name = format!("hugepages-{size}");
        let kept = config.reserved.get(&name).copied().unwrap_or_default();
        resources.insert(name, (total + -kept).max(Quantity::ZERO));
    }
    NodeFacts {
        name: config.node_name.clone(),
        labels,
        allocatable: resources,
        allowed_sysctls: config.allowed_unsafe_sysctls.clone(),
        taints: config.taints.clone(),
        host_ports: Vec::new(),
        app_armor: false,
    }
}

/// The agent's own bounding set (bit mask): the most that any container can get.
pub fn bounding_set() -> u64 {
    let bounding = caps::read(None, CapSet::Bounding).unwrap_or_default();
    bounding.into_iter().fold(0, |mask, capability| mask | capability.bitmask())
}
