//! Against the outcomes upstream documents and tests (`cpu_assignment_test.go`), on machines read from sysfs trees.

use super::{
    CpuTopology, Cpus,
    distribute::distributed,
    take::{Style, packed},
};
use crate::worker::sysfs::testing::{Build, regular};

fn cpus(text: &str) -> Cpus {
    Cpus::parse(text).unwrap()
}

/// One socket, four cores of two threads: 0 and 4, 1 and 5, ….
fn one_socket() -> CpuTopology {
    regular(1, 1, 4, 2, 1).machine().cpus
}

/// Two sockets, each a node, whose processors alternate: 0, 2, 4 (6, 8, 10) and 1, 3, 5 (7, 9, 11).
fn two_sockets() -> CpuTopology {
    let cpus = (0..12).map(|cpu| (cpu % 6, cpu % 2, cpu % 2, cpu % 2)).collect();
    Build { cpus, ..regular(2, 1, 3, 2, 1) }.machine().cpus
}

/// Two sockets of two nodes of ten cores: 0-9,40-49 and 10-19,50-59 in the first.
fn four_nodes() -> CpuTopology {
    regular(2, 2, 10, 2, 1).machine().cpus
}

/// One socket, four caches of four cores.
fn caches() -> CpuTopology {
    regular(1, 1, 16, 1, 4).machine().cpus
}

/// One socket, two caches of four cores of two threads.
fn caches_smt() -> CpuTopology {
    regular(1, 1, 8, 2, 2).machine().cpus
}

#[test]
fn whole_places_are_taken_from_where_the_least_is_free() {
    let case = |sentence: &str, topology: CpuTopology, free: &str, count: usize, expected: &str| {
        let found = packed(&topology, &cpus(free), count, Style::default()).unwrap();
        assert_eq!(found, cpus(expected), "{sentence}");
    };
    case("nothing", one_socket(), "0-7", 0, "");
    case("one", one_socket(), "0-7", 1, "0");
    case("one, from a core that is broken already", one_socket(), "1,3,5-7", 1, "6");
    case("a core", one_socket(), "0-7", 2, "0,4");
    case("the only whole core", one_socket(), "0-3,6", 2, "2,6");
    case("all", one_socket(), "0-7", 8, "0-7");
    case("a socket", two_sockets(), "0-11", 6, "0,2,4,6,8,10");
    case("one, from the socket with less", two_sockets(), "1-5,7-11", 1, "2");
    case("a socket and a core of the other", two_sockets(), "0-11", 8, "0,6,2,8,4,10,1,7");
    case("a socket of two nodes", four_nodes(), "0-79", 40, "0-19,40-59");
    case("a node", four_nodes(), "0-79", 20, "0-9,40-49");
    case("a node, the first being taken", four_nodes(), "10-39,50-79", 20, "10-19,50-59");
    case("a socket and a node", four_nodes(), "0-79", 60, "0-29,40-69");
    case("a socket and a node, of the first a core is taken", four_nodes(), "1-39,41-79", 60, "10-39,50-79");
    case("three nodes and two cores", four_nodes(), "0-79", 64, "0-29,40-69,30,31,70,71");
}

#[test]
fn more_than_is_free_is_refused_in_upstreams_words() {
    let expected = "not enough cpus available to satisfy request: requested=5, available=4";
    assert_eq!(packed(&one_socket(), &cpus("0,2,4,6"), 5, Style::default()).unwrap_err(), expected);
    assert_eq!(distributed(&one_socket(), &cpus("0,2,4,6"), 5, 1, Style::default()).unwrap_err(), expected);
}

#[test]
fn across_cores_the_second_thread_comes_last() {
    let style = Style { across_cores: true, ..Style::default() };
    let case = |sentence: &str, topology: CpuTopology, free: &str, count: usize, expected: &str| {
        let found = packed(&topology, &cpus(free), count, style).unwrap();
        assert_eq!(found, cpus(expected), "{sentence}");
    };
    case("three cores", one_socket(), "0-7", 3, "0-2");
    case("two cores of a socket", two_sockets(), "0-11", 2, "0,2");
    case("three cores of a socket", two_sockets(), "0-11", 3, "0,2,4");
    case("a socket", two_sockets(), "0-11", 6, "0,2,4,6,8,10");
    case("a socket and two", two_sockets(), "0-11", 8, "0,2,4,6,8,10,1,3");
    case("without regard to nodes", four_nodes(), "0-79", 8, "0-7");
}

#[test]
fn caches_stay_together() {
    let style = Style { by_cache: true, ..Style::default() };
    let case = |sentence: &str, topology: CpuTopology, free: &str, count: usize, expected: &str| {
        let found = packed(&topology, &cpus(free), count, style).unwrap();
        assert_eq!(found, cpus(expected), "{sentence}");
    };
    case("two whole and a part of the smallest", caches(), "1-15", 10, "1,2,4-11");
    case("a cache", caches(), "0-15", 4, "0-3");
    case("the first with room", regular(1, 2, 8, 1, 2).machine().cpus, "3,4-8,12", 2, "4,5");
    case("the cache with room for all of it", caches_smt(), "2-3,10-11,4-7,12-15", 6, "4,5,6,12,13,14");
    case("a cache and a core", caches_smt(), "1-7,9-15", 10, "4-7,12-15,1,9");
    case("an odd number", caches_smt(), "0-15", 3, "0,1,8");
    case("two sockets", regular(2, 1, 8, 1, 2).machine().cpus, "2-15", 6, "2-7");
}

#[test]
fn distributed_over_nodes_each_gives_as_much() {
    let case = |sentence: &str, topology: CpuTopology, free: &str, count: usize, group: usize, expected: &str| {
        let found = distributed(&topology, &cpus(free), count, group, Style::default()).unwrap();
        assert_eq!(found, cpus(expected), "{sentence}");
    };
    case("nothing", four_nodes(), "0-79", 0, 1, "");
    case("one", two_sockets(), "1-5,7-11", 1, 1, "1");
    case("one, but only cores are shared out", two_sockets(), "1-5,7-11", 1, 2, "2");
    case("two cores from each socket", two_sockets(), "0-11", 8, 1, "0,6,2,8,1,7,3,9");
    case("one node is enough", four_nodes(), "0-79", 20, 1, "0-9,40-49");
    case("eight cores from each node", four_nodes(), "0-79", 64, 1, "0-7,10-17,20-27,30-37,40-47,50-57,60-67,70-77");
    case("three nodes", four_nodes(), "0-79", 48, 1, "0-7,10-17,20-27,40-47,50-57,60-67");
    case(
        "three nodes, the first has least",
        four_nodes(),
        "1-29,32-39,41-69,72-79",
        48,
        1,
        "1-8,10-17,20-27,41-48,50-57,60-67",
    );
    case(
        "the nodes are most alike afterwards",
        four_nodes(),
        "2-29,31-39,42-69,71-79",
        48,
        1,
        "10-17,20-27,31-38,50-57,60-67,71-78",
    );
    case("thirteen cores, single threads", four_nodes(), "0-79", 26, 1, "0-6,10-16,40-45,50-55");
    case("thirteen cores, whole ones", four_nodes(), "0-79", 26, 2, "0-6,10-15,40-46,50-55");
    case("a remainder for two nodes", four_nodes(), "0-79", 62, 1, "0-7,10-17,20-27,30-37,40-47,50-57,60-66,70-76");
    case(
        "a remainder of cores for three",
        four_nodes(),
        "0-79",
        62,
        2,
        "0-7,10-17,20-27,30-36,40-47,50-57,60-67,70-76",
    );
    case(
        "a remainder from where more is left",
        four_nodes(),
        "0-8,10-18,20-39,40-48,50-58,60-79",
        62,
        1,
        "0-7,10-17,20-27,30-37,40-46,50-56,60-67,70-77",
    );
    case(
        "a remainder of cores from where more is left",
        four_nodes(),
        "0-8,10-18,20-39,40-48,50-58,60-79",
        62,
        2,
        "0-7,10-16,20-27,30-37,40-47,50-56,60-67,70-77",
    );
    case(
        "only nodes that have enough give the remainder",
        four_nodes(),
        "0-3,10-13,20-23,30-36,40-43,50-53,60-63,70-76",
        34,
        1,
        "0-3,10-13,20-23,30-34,40-43,50-53,60-63,70-74",
    );
}
