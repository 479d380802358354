//! Machines as sysfs trees, for tests.

use super::*;

/// Where a processor is: core (any number that is the same for its threads), socket, node, cache.
pub type At = (u32, u32, u32, u32);

/// How a made-up machine is built.
#[derive(Debug, Clone)]
pub struct Build {
    /// By processor.
    pub cpus: Vec<At>,
    /// Gibibytes of each node; none for a kernel without NUMA.
    pub memory: Vec<u64>,
    /// Distances, row by row; empty: 10 and 20.
    pub distances: Vec<Vec<u32>>,
    /// 2 MiB pages of each node.
    pub huge_pages: Vec<u64>,
    /// Processors that are there and offline.
    pub offline: Cpus,
}

/// A machine of `sockets` with `nodes` NUMA nodes each, `cores` cores to a node and `threads` to a core; numbered as usual:
/// the first thread of every core in order, then the second. `caches` to a node.
pub fn regular(sockets: u32, nodes: u32, cores: u32, threads: u32, caches: u32) -> Build {
    let all = sockets * nodes * cores;
    let place = |cpu: u32| {
        let core = cpu % all;
        let node = core / cores;
        (core, node / nodes, node, node * caches + core % cores * caches / cores)
    };
    Build {
        cpus: (0..all * threads).map(place).collect(),
        memory: vec![16; (sockets * nodes) as usize],
        distances: Vec::new(),
        huge_pages: Vec::new(),
        offline: Cpus::new(),
    }
}

impl Build {
    /// Writes the tree.
    pub fn write(&self, root: &Path) {
        let write = |path: String, text: String| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text + "\n").unwrap();
        };
        let all: Cpus = (0..self.cpus.len() as u32).collect();
        write("devices/system/cpu/online".into(), all.difference(&self.offline).to_string());
        let like =
            |same: &dyn Fn(&At) -> bool| -> Cpus { all.iter().filter(|cpu| same(&self.cpus[*cpu as usize])).collect() };
        for cpu in all.difference(&self.offline).iter() {
            let (core, socket, _, cache) = self.cpus[cpu as usize];
            let directory = format!("devices/system/cpu/cpu{cpu}");
            write(format!("{directory}/topology/physical_package_id"), socket.to_string());
            let threads = like(&|place| (place.0, place.1) == (core, socket));
            write(format!("{directory}/topology/thread_siblings_list"), threads.to_string());
            for (index, level) in [(0, 1), (1, 1), (2, 2), (3, 3)] {
                let shared = if level < 3 { threads.clone() } else { like(&|place| place.3 == cache) };
                write(format!("{directory}/cache/index{index}/level"), level.to_string());
                write(format!("{directory}/cache/index{index}/shared_cpu_list"), shared.to_string());
            }
        }
        for (node, gibibytes) in self.memory.iter().enumerate() {
            let directory = format!("devices/system/node/node{node}");
            let row = |other: usize| if node == other { "10" } else { "20" }.to_owned();
            let row = match self.distances.get(node) {
                Some(row) => row.iter().map(ToString::to_string).collect(),
                None => (0..self.memory.len()).map(row).collect::<Vec<_>>(),
            };
            write(format!("{directory}/distance"), row.join(" "));
            write(format!("{directory}/cpulist"), like(&|place| place.2 == node as u32).to_string());
            write(format!("{directory}/meminfo"), format!("Node {node} MemTotal:  {} kB", gibibytes << 20));
            if let Some(pages) = self.huge_pages.get(node) {
                write(format!("{directory}/hugepages/hugepages-2048kB/nr_hugepages"), pages.to_string());
            }
        }
    }

    /// The machine as it is read from its tree.
    pub fn machine(&self) -> Machine {
        let root = tempfile::tempdir().unwrap();
        self.write(root.path());
        super::machine(root.path(), 8 << 30).unwrap()
    }
}
