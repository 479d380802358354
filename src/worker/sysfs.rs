//! The machine's topology as sysfs has it (`/sys/devices/system/{cpu,node}`, Documentation/ABI/stable/sysfs-devices-node and
//! sysfs-devices-system-cpu). Only processors that are online count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::pod::topology::{
    CpuTopology, Cpus, Machine, NodeMask, NumaNodes,
    machine::{NodeMemory, Place},
};

/// Why the topology is not known.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file or directory cannot be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file says something else than expected.
    #[error("{path}: {message}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// More than can be counted here.
    #[error("NUMA node {node}: nodes past {} are not supported", NodeMask::HIGHEST)]
    Node {
        /// Its number.
        node: u32,
    },
}

/// Reads `/sys` (`root`) of a machine. `memory` is all of its memory in bytes, for one without NUMA nodes.
pub fn machine(root: &Path, memory: u64) -> Result<Machine, TopologyError> {
    let online = online(root)?;
    let nodes = nodes(root)?;
    let mut machine = Machine { cpus: CpuTopology(cpus(root, &online, &nodes)?), ..Machine::default() };
    if nodes.is_empty() {
        // A kernel without NUMA: all of it is one node.
        let huge_pages = huge_pages(&root.join("kernel/mm/hugepages"))?;
        machine.numa = NumaNodes { distances: BTreeMap::from([(0, vec![10])]) };
        machine.memory.insert(0, NodeMemory { total: memory, huge_pages });
    }
    for (node, directory) in nodes.keys().map(|node| (*node, root.join(format!("devices/system/node/node{node}")))) {
        machine.numa.distances.insert(node, distances(&directory.join("distance"))?);
        let huge_pages = huge_pages(&directory.join("hugepages"))?;
        machine.memory.insert(node, NodeMemory { total: total(&directory.join("meminfo"))?, huge_pages });
    }
    Ok(machine)
}

/// The processors that are online.
pub fn online(root: &Path) -> Result<Cpus, TopologyError> {
    list(&root.join("devices/system/cpu/online"))
}

/// By NUMA node: its processors, those that are offline too. Empty on a kernel without NUMA.
fn nodes(root: &Path) -> Result<BTreeMap<u32, Cpus>, TopologyError> {
    let directory = root.join("devices/system/node");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(TopologyError::Read { path: directory, source }),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(|source| TopologyError::Read { path: directory.clone(), source })?;
        let name = entry.file_name();
        let Some(node) = name.to_str().and_then(|name| name.strip_prefix("node")?.parse::<u32>().ok()) else {
            continue;
        };
        if node > NodeMask::HIGHEST {
            return Err(TopologyError::Node { node });
        }
        found.insert(node, list(&entry.path().join("cpulist"))?);
    }
    Ok(found)
}

fn cpus(root: &Path, online: &Cpus, nodes: &BTreeMap<u32, Cpus>) -> Result<BTreeMap<u32, Place>, TopologyError> {
    let directory = |cpu: u32| root.join(format!("devices/system/cpu/cpu{cpu}"));
    let mut sockets = BTreeMap::new();
    for cpu in online.iter() {
        // -1 on machines that do not say.
        let socket = number(&directory(cpu).join("topology/physical_package_id"))?.unwrap_or(0);
        sockets.insert(cpu, u32::try_from(socket).unwrap_or(0));
    }
    let mut places = BTreeMap::new();
    for (cpu, socket) in &sockets {
        let topology = directory(*cpu).join("topology");
        // The newer name first (Linux 5.3).
        let threads = match optional_list(&topology.join("core_cpus_list"))? {
            Some(threads) => Some(threads),
            None => optional_list(&topology.join("thread_siblings_list"))?,
        };
        let lowest = |cpus: &Cpus| cpus.intersection(online).iter().next();
        let core = threads.as_ref().and_then(lowest).unwrap_or(*cpu);
        let of_socket = || sockets.iter().find(|(_, other)| *other == socket).map(|(cpu, _)| *cpu);
        let cache = last_cache(&directory(*cpu).join("cache"))?.as_ref().and_then(lowest).or_else(of_socket);
        let node = nodes.iter().find(|(_, cpus)| cpus.contains(*cpu)).map(|(node, _)| *node);
        let node = node.or_else(|| nodes.keys().next().copied()).unwrap_or(0);
        places.insert(*cpu, Place { core, cache: cache.unwrap_or(core), socket: *socket, node });
    }
    Ok(places)
}

/// The processors that share the first cache beyond the second level.
fn last_cache(directory: &Path) -> Result<Option<Cpus>, TopologyError> {
    let mut found: Option<(i64, Cpus)> = None;
    for index in entries(directory)?.into_iter().filter(|name| name.starts_with("index")) {
        let cache = directory.join(index);
        let Some(level) = number(&cache.join("level"))?.filter(|level| *level > 2) else { continue };
        let Some(shared) = optional_list(&cache.join("shared_cpu_list"))? else { continue };
        if found.as_ref().is_none_or(|(known, _)| level < *known) {
            found = Some((level, shared));
        }
    }
    Ok(found.map(|(_, shared)| shared))
}

/// Huge pages in stock: bytes by the size of a page.
fn huge_pages(directory: &Path) -> Result<BTreeMap<u64, u64>, TopologyError> {
    let mut found = BTreeMap::new();
    for name in entries(directory)? {
        let size = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB")?.parse::<u64>().ok());
        let Some(size) = size.map(|kibibytes| kibibytes * 1024) else { continue };
        let count = number(&directory.join(&name).join("nr_hugepages"))?.unwrap_or(0);
        found.insert(size, size * u64::try_from(count).unwrap_or(0));
    }
    Ok(found)
}

/// Bytes of a node's memory: the line `Node 0 MemTotal: 16384 kB`.
fn total(path: &Path) -> Result<u64, TopologyError> {
    let text = read(path)?;
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let line = text.lines().map(words).find(|words| words.get(2).is_some_and(|word| word == "MemTotal:"));
    let kibibytes = line.as_ref().and_then(|words| words.get(3)?.parse::<u64>().ok());
    kibibytes
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| TopologyError::Content { path: path.to_owned(), message: "no line MemTotal".to_owned() })
}

fn distances(path: &Path) -> Result<Vec<u32>, TopologyError> {
    let text = read(path)?;
    let distances: Option<Vec<u32>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    let message = || format!("expected distances, found {:?}", text.trim());
    distances.ok_or_else(|| TopologyError::Content { path: path.to_owned(), message: message() })
}

fn read(path: &Path) -> Result<String, TopologyError> {
    fs::read_to_string(path).map_err(|source| TopologyError::Read { path: path.to_owned(), source })
}

fn list(path: &Path) -> Result<Cpus, TopologyError> {
    Cpus::parse(&read(path)?).map_err(|message| TopologyError::Content { path: path.to_owned(), message })
}

/// `None` where the kernel has no such file.
fn absent<T>(result: Result<T, TopologyError>) -> Result<Option<T>, TopologyError> {
    match result {
        Err(TopologyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn optional_list(path: &Path) -> Result<Option<Cpus>, TopologyError> {
    absent(list(path))
}

fn number(path: &Path) -> Result<Option<i64>, TopologyError> {
    let Some(text) = absent(read(path))? else { return Ok(None) };
    let message = || format!("expected a number, found {:?}", text.trim());
    let number = text.trim().parse();
    number.map(Some).map_err(|_| TopologyError::Content { path: path.to_owned(), message: message() })
}

/// Names in a directory; none where there is no such directory.
fn entries(directory: &Path) -> Result<BTreeSet<String>, TopologyError> {
    let read = fs::read_dir(directory).and_then(|entries| {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        entries.map(name).collect::<io::Result<BTreeSet<String>>>()
    });
    let read = read.map_err(|source| TopologyError::Read { path: directory.to_owned(), source });
    Ok(absent(read)?.unwrap_or_default())
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::{testing::regular, *};

    fn place(machine: &Machine, cpu: u32) -> (u32, u32, u32, u32) {
        let Place { core, cache, socket, node } = *machine.cpus.place(cpu).unwrap();
        (core, cache, socket, node)
    }

    #[test]
    fn threads_caches_sockets_and_nodes_are_found() {
        let machine = regular(2, 2, 4, 2, 2).machine();
        assert_eq!(machine.cpus.all().len(), 32);
        assert_eq!(machine.cpus.threads_per_core(), 2);
        assert_eq!(place(&machine, 0), (0, 0, 0, 0));
        assert_eq!(place(&machine, 18), (2, 2, 0, 0), "the second thread of core 2, in the second cache");
        assert_eq!(place(&machine, 15), (15, 14, 1, 3));
        assert_eq!(machine.numa.all().to_string(), "0-3");
        assert_eq!(machine.memory[&3].total, 16 << 30);
    }

    #[test]
    fn distances_and_huge_pages_are_those_of_each_node() {
        let mut build = regular(2, 1, 2, 1, 1);
        build.distances = vec![vec![10, 32], vec![32, 10]];
        build.huge_pages = vec![0, 512];
        let machine = build.machine();
        assert_eq!(machine.numa.average_distance([0, 1].into_iter().collect()), 21.0);
        assert_eq!(machine.memory[&1].huge_pages, BTreeMap::from([(2 << 20, 1 << 30)]));
    }

    #[test]
    fn processors_that_are_offline_are_not_there() {
        let mut build = regular(1, 1, 4, 2, 1);
        build.offline = Cpus::parse("0,5").unwrap();
        let machine = build.machine();
        assert_eq!(machine.cpus.all().to_string(), "1-4,6-7");
        assert_eq!(place(&machine, 4), (4, 1, 0, 0), "its core has lost its first thread");
    }

    #[test]
    fn without_numa_all_of_it_is_one_node() {
        let mut build = regular(1, 1, 2, 1, 1);
        build.memory.clear();
        let machine = build.machine();
        assert_eq!(machine.numa.distances, BTreeMap::from([(0, vec![10])]));
        assert_eq!(machine.memory[&0].total, 8 << 30);
        assert_eq!(place(&machine, 1), (1, 0, 0, 0));
    }

    #[test]
    fn where_nothing_is_said_each_processor_is_a_core_of_one_socket() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("devices/system/cpu")).unwrap();
        fs::write(root.path().join("devices/system/cpu/online"), "0-1\n").unwrap();
        let machine = machine(root.path(), 1 << 30).unwrap();
        assert_eq!([0, 1].map(|cpu| place(&machine, cpu)), [(0, 0, 0, 0), (1, 0, 0, 0)]);
    }

    #[test]
    fn an_error_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        regular(1, 1, 2, 1, 1).write(root.path());
        fs::write(root.path().join("devices/system/node/node0/distance"), "ten\n").unwrap();
        let error = machine(root.path(), 0).unwrap_err().to_string();
        assert!(error.ends_with("node0/distance: expected distances, found \"ten\""), "{error}");
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = machine(Path::new("/sys"), 1 << 30).unwrap();
        assert_eq!(machine.cpus.all(), online(Path::new("/sys")).unwrap());
        assert!(!machine.numa.all().is_empty());
    }
}
