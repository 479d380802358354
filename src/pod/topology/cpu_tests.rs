//! The static CPU manager and the topology manager together, on machines read from sysfs trees.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{CpuManager, CpuOptions, Cpus, Grants, Machine, TopologyOptions, TopologyPolicy, TopologyScope, grant};
use crate::{
    pod::admission::Rejection,
    worker::sysfs::testing::{Build, regular},
};

fn cpus(text: &str) -> Cpus {
    Cpus::parse(text).unwrap()
}

/// A Guaranteed container that asks for so much CPU.
fn guaranteed(name: &str, cpu: &str) -> Value {
    let amounts = json!({"cpu": cpu, "memory": "1Gi"});
    json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
}

fn pod(init: Vec<Value>, containers: Vec<Value>) -> Pod {
    serde_json::from_value(json!({"spec": {"initContainers": init, "containers": containers}})).unwrap()
}

fn alone(cpu: &str) -> Pod {
    pod(vec![], vec![guaranteed("app", cpu)])
}

/// A node with a static CPU manager.
struct Place {
    machine: Machine,
    options: CpuOptions,
    reserved: &'static str,
    topology: TopologyOptions,
    taken: Cpus,
}

fn place(build: Build) -> Place {
    let topology = TopologyOptions::default();
    Place { machine: build.machine(), options: CpuOptions::default(), reserved: "0", topology, taken: Cpus::new() }
}

impl Place {
    fn manager(&self) -> CpuManager {
        let reserved = cpus(self.reserved);
        let (count, named) = (reserved.len(), Some(reserved));
        CpuManager::new(self.machine.cpus.clone(), self.options, count, named, self.topology.policy).unwrap()
    }

    fn with(mut self, change: impl FnOnce(&mut Place)) -> Place {
        change(&mut self);
        self
    }

    fn policy(self, policy: TopologyPolicy, scope: TopologyScope) -> Place {
        self.with(|place| place.topology = TopologyOptions { policy, scope, prefer_closest: false })
    }

    fn grant(&self, pod: &Pod) -> Result<Grants, Rejection> {
        let manager = self.manager();
        grant(pod, &self.machine.numa, self.topology, &[&manager.provider(self.taken.clone())])
    }

    fn given(&self, pod: &Pod) -> Vec<(String, String)> {
        let grants = self.grant(pod).unwrap();
        grants.containers.into_iter().map(|(name, grant)| (name, grant.cpus.to_string())).collect()
    }

    fn refused(&self, pod: &Pod) -> (String, String) {
        let Rejection { reason, message } = self.grant(pod).unwrap_err();
        (reason, message)
    }
}

fn named(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, cpus)| ((*name).to_owned(), (*cpus).to_owned())).collect()
}

/// One socket, four cores of two threads.
fn small() -> Build {
    regular(1, 1, 4, 2, 1)
}

#[test]
fn only_whole_processors_of_guaranteed_pods_are_exclusive() {
    let place = place(small());
    let case = |sentence: &str, pod: Pod, expected: &[(&str, &str)]| {
        assert_eq!(place.given(&pod), named(expected), "{sentence}");
    };
    case("two", alone("2"), &[("app", "1,5")]);
    case("the thread beside the reserved one", alone("1"), &[("app", "4")]);
    case("a part", alone("1500m"), &[]);
    let burstable = json!({"name": "app", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}}});
    case("Burstable", pod(vec![], vec![burstable]), &[]);
    case("BestEffort", pod(vec![], vec![json!({"name": "app"})]), &[]);
    let mixed = pod(vec![], vec![guaranteed("app", "2"), guaranteed("aside", "500m")]);
    case("one of two containers", mixed, &[("app", "1,5")]);
    let mut of_pod = alone("2");
    of_pod.spec.as_mut().unwrap().resources = serde_json::from_value(
        json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}),
    )
    .unwrap();
    case("resources of the pod as a whole", of_pod, &[]);
}

#[test]
fn what_others_have_is_not_given_and_too_much_is_refused() {
    let place = place(small()).with(|place| place.taken = cpus("1,5,2,6"));
    assert_eq!(place.given(&alone("2")), named(&[("app", "3,7")]));
    let message = "Allocate failed due to not enough cpus available to satisfy request: requested=4, available=3, \
                   which is unexpected";
    assert_eq!(place.refused(&alone("4")), ("UnexpectedAdmissionError".to_owned(), message.to_owned()));
}

#[test]
fn init_containers_leave_theirs_to_those_after_them_and_sidecars_keep_theirs() {
    let place = place(small());
    let init = |name, cpu| guaranteed(name, cpu);
    let sidecar = |name, cpu| {
        let mut container = guaranteed(name, cpu);
        container["restartPolicy"] = json!("Always");
        container
    };
    let case = |sentence: &str, pod: Pod, expected: &[(&str, &str)]| {
        assert_eq!(place.given(&pod), named(expected), "{sentence}");
    };
    let two = || vec![guaranteed("app", "2")];
    case("an init container as large", pod(vec![init("a", "2")], two()), &[("a", "1,5"), ("app", "1,5")]);
    case(
        "two of them, the second larger",
        pod(vec![init("a", "2"), init("b", "4")], two()),
        &[("a", "1,5"), ("app", "1,5"), ("b", "1-2,5-6")],
    );
    case(
        "a sidecar",
        pod(vec![sidecar("a", "2"), init("b", "2")], two()),
        &[("a", "1,5"), ("app", "2,6"), ("b", "2,6")],
    );
    case(
        "two main containers share out what was the init container's",
        pod(vec![init("a", "4")], vec![guaranteed("app", "2"), guaranteed("beside", "2")]),
        &[("a", "1-2,5-6"), ("app", "1,5"), ("beside", "2,6")],
    );
}

#[test]
fn whole_cores_or_none() {
    let full = |place: &mut Place| place.options.full_cores = true;
    let place = place(small()).with(full);
    assert_eq!(place.given(&alone("2")), named(&[("app", "1,5")]));
    let message = "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2";
    assert_eq!(place.refused(&alone("3")), ("SMTAlignmentError".to_owned(), message.to_owned()));
    let place = place.with(|place| place.taken = cpus("1,5"));
    // Seven processors are not reserved and five free, but the reserved one has broken its core.
    let message = "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 4, requested CPUs = 6, \
                   CPUs per core = 2";
    assert_eq!(place.refused(&alone("6")), ("SMTAlignmentError".to_owned(), message.to_owned()));
    let init = pod(vec![guaranteed("a", "4")], vec![guaranteed("app", "4")]);
    assert_eq!(place.given(&init), named(&[("a", "2-3,6-7"), ("app", "2-3,6-7")]), "what init had counts as free");
}

#[test]
fn the_shared_pool_is_what_nobody_has() {
    let place = place(small());
    assert_eq!(place.manager().shared(&Cpus::new()), cpus("0-7"));
    assert_eq!(place.manager().shared(&cpus("1,5")), cpus("0,2-4,6-7"), "reserved processors are shared");
    let place = place.with(|place| place.options.strict = true);
    assert_eq!(place.manager().shared(&Cpus::new()), cpus("1-7"));
    assert_eq!(place.manager().shared(&cpus("1-7")), cpus("0"), "there is nothing else left");
}

#[test]
fn as_many_are_reserved_as_system_and_kubelet_need_from_the_lowest_core_on() {
    let reserved = |build: Build, count| {
        let manager =
            CpuManager::new(build.machine().cpus, CpuOptions::default(), count, None, TopologyPolicy::None).unwrap();
        manager.reserved().to_string()
    };
    assert_eq!(reserved(small(), 1), "0");
    assert_eq!(reserved(small(), 2), "0,4");
    assert_eq!(reserved(regular(2, 1, 4, 1, 1), 3), "0-2");
    let wrong = |options, named, policy| {
        CpuManager::new(regular(2, 1, 2, 1, 1).machine().cpus, options, 2, named, policy).unwrap_err()
    };
    let error = wrong(CpuOptions::default(), Some(cpus("3,9")), TopologyPolicy::None);
    assert_eq!(error, "unable to reserve the required amount of CPUs (size of 3 did not equal 2)");
    let by_socket = CpuOptions { by_socket: true, ..CpuOptions::default() };
    assert!(wrong(by_socket, None, TopologyPolicy::SingleNumaNode).contains("incompatible"));
}

#[test]
fn processors_come_from_the_node_that_everything_else_comes_from() {
    // Two sockets of four cores of two threads; of the first socket only two threads are free.
    let build = || regular(2, 1, 4, 2, 1);
    let busy = |place: &mut Place| place.taken = cpus("1-2,8-10");
    let of = |policy, scope| place(build()).policy(policy, scope).with(busy);
    let none = of(TopologyPolicy::None, TopologyScope::Container);
    assert_eq!(none.given(&alone("4")), named(&[("app", "3-4,11-12")]), "packed, without regard to nodes");
    for policy in [TopologyPolicy::BestEffort, TopologyPolicy::Restricted, TopologyPolicy::SingleNumaNode] {
        let place = of(policy, TopologyScope::Container);
        assert_eq!(place.given(&alone("4")), named(&[("app", "4-5,12-13")]), "{policy:?}");
    }
    let error = ("TopologyAffinityError".to_owned(), "Resources cannot be allocated with Topology locality".to_owned());
    // Ten are free, but no node has as many; any machine would need both for it.
    let restricted = of(TopologyPolicy::Restricted, TopologyScope::Container);
    assert_eq!(restricted.given(&alone("10")), named(&[("app", "3-7,11-15")]));
    assert_eq!(of(TopologyPolicy::SingleNumaNode, TopologyScope::Container).refused(&alone("10")), error);
    // Eight would fit one node of an unused machine.
    let busier = |place: &mut Place| place.taken = cpus("1-2,4,8-10");
    let restricted = restricted.with(busier);
    assert_eq!(restricted.refused(&alone("8")), error);
    let best = of(TopologyPolicy::BestEffort, TopologyScope::Container).with(busier);
    assert_eq!(best.grant(&alone("8")).unwrap().of("app").unwrap().cpus.len(), 8);
}

#[test]
fn a_pod_scope_keeps_all_containers_of_a_pod_together() {
    let build = || regular(2, 1, 4, 1, 1);
    let two = pod(vec![], vec![guaranteed("a", "2"), guaranteed("b", "2")]);
    let single = |scope| place(build()).policy(TopologyPolicy::SingleNumaNode, scope);
    assert_eq!(single(TopologyScope::Container).given(&two), named(&[("a", "1-2"), ("b", "4-5")]));
    assert_eq!(single(TopologyScope::Pod).given(&two), named(&[("a", "4-5"), ("b", "6-7")]));
    let three = pod(vec![], vec![guaranteed("a", "2"), guaranteed("b", "2"), guaranteed("c", "2")]);
    assert_eq!(single(TopologyScope::Pod).refused(&three).0, "TopologyAffinityError");
    let init = pod(vec![guaranteed("i", "4")], vec![guaranteed("a", "2"), guaranteed("b", "2")]);
    assert_eq!(single(TopologyScope::Pod).given(&init), named(&[("a", "4-5"), ("b", "6-7"), ("i", "4-7")]));
}

#[test]
fn a_socket_can_count_as_one_place() {
    // Two sockets of two nodes of four processors: five need two nodes, of one socket if there is a choice.
    let build = || regular(2, 2, 4, 1, 1);
    let restricted = place(build()).policy(TopologyPolicy::Restricted, TopologyScope::Container);
    let busy = |place: &mut Place| place.taken = cpus("1-3,4-5,8-10,12");
    // Nodes 1 and 2 have two and one left, 3 has three: four need one node of an unused machine, and none has as many.
    assert_eq!(restricted.with(busy).refused(&alone("4")).0, "TopologyAffinityError");
    let aligned = |place: &mut Place| place.options.by_socket = true;
    let aligned = place(build()).policy(TopologyPolicy::Restricted, TopologyScope::Container).with(busy).with(aligned);
    assert_eq!(aligned.given(&alone("4")), named(&[("app", "11,13-15")]), "the second socket has four");
}

#[test]
fn closest_nodes_are_preferred_where_one_is_not_enough() {
    let mut build = regular(4, 1, 4, 1, 1);
    build.distances = vec![vec![10, 30, 20, 30], vec![30, 10, 30, 20], vec![20, 30, 10, 30], vec![30, 20, 30, 10]];
    let place = place(build).with(|place| {
        place.taken = cpus("1-2");
        place.topology = TopologyOptions {
            policy: TopologyPolicy::BestEffort,
            prefer_closest: true,
            scope: TopologyScope::Container,
        };
    });
    assert_eq!(place.given(&alone("8")), named(&[("app", "4-7,12-15")]), "nodes 1 and 3, not 1 and 2");
}
