//! Which processors to take out of those that are free: upstream's `cpu_assignment.go` as a function.

use super::{
    CpuTopology, Cpus,
    machine::Level::{self, Cache, Core, Node, Socket},
};

/// How processors are picked once no whole place is needed any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// `distribute-cpus-across-cores`: by number within a socket, which on usual machines is one thread of each core before
    /// the second of any. Otherwise core by core.
    pub across_cores: bool,
    /// `prefer-align-cpus-by-uncorecache`: from as few last-level caches as possible.
    pub by_cache: bool,
}

/// Takes `count` processors out of `free`, packed: whole sockets and NUMA nodes, (caches,) cores and then single threads, each
/// time from the place with the least that is free, so that large places stay whole for others.
///
/// # Errors
/// There are not as many (upstream's sentence).
pub fn packed(topology: &CpuTopology, free: &Cpus, count: usize, style: Style) -> Result<Cpus, String> {
    let mut taking = Taking::new(topology, free, count)?;
    let (first, second) = if taking.nodes_first { (Node, Socket) } else { (Socket, Node) };
    taking.take_whole(first);
    taking.take_whole(second);
    if style.by_cache {
        taking.take_caches();
    }
    if !style.across_cores {
        taking.take_whole(Core);
    }
    taking.take_rest(style);
    Ok(taking.taken)
}

/// The processors taken so far, and those left to take from.
pub(super) struct Taking<'t> {
    topology: &'t CpuTopology,
    /// Nodes are the larger places: each has as many sockets or more.
    nodes_first: bool,
    pub(super) free: Cpus,
    pub(super) taken: Cpus,
    pub(super) needed: usize,
}

impl<'t> Taking<'t> {
    pub(super) fn new(topology: &'t CpuTopology, free: &Cpus, count: usize) -> Result<Taking<'t>, String> {
        // Of what is not there nothing can be taken.
        let free = free.intersection(&topology.all());
        if count > free.len() {
            let available = free.len();
            return Err(format!(
                "not enough cpus available to satisfy request: requested={count}, available={available}"
            ));
        }
        let nodes_first = topology.places(Socket).len() >= topology.places(Node).len();
        Ok(Taking { topology, nodes_first, free, taken: Cpus::new(), needed: count })
    }

    pub(super) fn take(&mut self, cpus: &Cpus) {
        self.taken = self.taken.union(cpus);
        self.free = self.free.difference(cpus);
        self.needed = self.needed.saturating_sub(cpus.len());
    }

    pub(super) fn free_in(&self, level: Level, place: u32) -> Cpus {
        self.topology.within(level, place).intersection(&self.free)
    }

    /// The places of a kind with something free, those with the least first; within each of `above` in turn, if given.
    fn by_free(&self, level: Level, above: Option<(Level, Vec<u32>)>) -> Vec<u32> {
        let places = |within: Option<(Level, u32)>| {
            let inside = |cpu: &u32| {
                let place = self.topology.place(*cpu);
                place.filter(|place| within.is_none_or(|(level, number)| place.at(level) == number)).is_some()
            };
            let numbers = self.free.iter().filter(inside).filter_map(|cpu| Some(self.topology.place(cpu)?.at(level)));
            let mut numbers: Vec<u32> = numbers.collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers.sort_by_cached_key(|number| (self.free_in(level, *number).len(), *number));
            numbers
        };
        let Some((outer, above)) = above else { return places(None) };
        let mut found = Vec::new();
        for number in above {
            found.extend(
                places(Some((outer, number))).into_iter().filter(|place| !found.contains(place)).collect::<Vec<_>>(),
            );
        }
        found
    }

    pub(super) fn nodes(&self) -> Vec<u32> {
        match self.nodes_first {
            true => self.by_free(Node, None),
            false => self.by_free(Node, Some((Socket, self.by_free(Socket, None)))),
        }
    }

    fn sockets(&self) -> Vec<u32> {
        match self.nodes_first {
            true => self.by_free(Socket, Some((Node, self.by_free(Node, None)))),
            false => self.by_free(Socket, None),
        }
    }

    fn places(&self, level: Level) -> Vec<u32> {
        match level {
            Node => self.nodes(),
            Socket => self.sockets(),
            Cache => self.by_free(Cache, Some((Node, self.nodes()))),
            Core if self.nodes_first => self.by_free(Core, Some((Socket, self.sockets()))),
            Core => self.by_free(Core, Some((Node, self.nodes()))),
        }
    }

    /// Takes places that are wholly free, as long as a whole one is needed.
    fn take_whole(&mut self, level: Level) {
        for place in self.places(level) {
            let all = self.topology.within(level, place);
            if self.needed >= all.len() && all.is_subset(&self.free) && self.needed > 0 {
                self.take(&all);
            }
        }
    }

    /// Whole caches, then the rest from one that has room for all of it.
    fn take_caches(&mut self) {
        for cache in self.places(Cache) {
            if self.needed == 0 {
                return;
            }
            if self.needed >= self.topology.within(Cache, cache).len() {
                self.take_whole(Cache);
            }
            self.take_part_of(cache);
        }
    }

    /// Takes all that is still needed from one cache, in as few cores as possible, or nothing.
    fn take_part_of(&mut self, cache: u32) {
        if self.needed == 0 {
            return;
        }
        let free = self.free_in(Cache, cache);
        let mut cores: Vec<u32> = free.iter().filter_map(|cpu| Some(self.topology.place(cpu)?.core)).collect();
        cores.sort_unstable();
        cores.dedup();
        cores.truncate(self.needed.div_ceil(self.topology.threads_per_core()));
        let of_cores = |cpu: &u32| self.topology.place(*cpu).is_some_and(|place| cores.contains(&place.core));
        let part: Cpus = free.iter().filter(of_cores).take(self.needed).collect();
        if part.len() == self.needed {
            self.take(&part);
        }
    }

    fn take_rest(&mut self, style: Style) {
        let (level, places) = match style.across_cores {
            true => (Socket, self.sockets()),
            false => (Core, self.places(Core)),
        };
        let order: Vec<u32> = places
            .into_iter()
            .flat_map(|place| self.free_in(level, place).iter().collect::<Vec<_>>())
            .take(self.needed)
            .collect();
        self.take(&order.into_iter().collect());
    }
}
