//! The static memory manager, on machines read from sysfs trees.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Amounts, Grants, Machine, MemoryManager, TopologyOptions, TopologyPolicy, TopologyScope, grant};
use crate::{pod::admission::Rejection, worker::sysfs::testing::regular};

const GIB: u64 = 1 << 30;

/// Two nodes of 16 GiB, of the first of which one is reserved; a GiB of each in huge pages.
fn machine() -> Machine {
    let mut build = regular(2, 1, 4, 1, 1);
    build.huge_pages = vec![512, 512];
    build.machine()
}

fn memory(bytes: u64) -> Amounts {
    Amounts::from([("memory".to_owned(), bytes)])
}

fn manager() -> MemoryManager {
    MemoryManager::new(&machine(), &BTreeMap::from([(0, memory(GIB))]), &memory(GIB)).unwrap()
}

fn container(name: &str, memory: &str) -> Value {
    let amounts = json!({"cpu": "1", "memory": memory});
    json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
}

fn pod(init: Vec<Value>, containers: Vec<Value>) -> Pod {
    serde_json::from_value(json!({"spec": {"initContainers": init, "containers": containers}})).unwrap()
}

fn alone(memory: &str) -> Pod {
    pod(vec![], vec![container("app", memory)])
}

fn give(pod: &Pod, others: &[&Grants], policy: TopologyPolicy, scope: TopologyScope) -> Result<Grants, Rejection> {
    let manager = manager();
    let options = TopologyOptions { policy, scope, prefer_closest: false };
    grant(pod, &machine().numa, options, &[&manager.provider(others.to_vec())])
}

fn given(pod: &Pod, others: &[&Grants]) -> Grants {
    give(pod, others, TopologyPolicy::None, TopologyScope::Container).unwrap()
}

/// `name resource nodes GiB` of each grant.
fn shown(grants: &Grants) -> Vec<String> {
    let of = |(name, grant): (&String, &crate::pod::grants::Grant)| {
        let line = |grant: &crate::pod::grants::MemoryGrant| {
            format!("{name} {} {} {}", grant.resource, grant.nodes, grant.bytes as f64 / GIB as f64)
        };
        grant.memory.iter().map(line).collect::<Vec<_>>()
    };
    grants.containers.iter().flat_map(of).collect()
}

#[test]
fn a_guaranteed_container_has_memory_of_as_few_nodes_as_will_do() {
    assert_eq!(shown(&given(&alone("10Gi"), &[])), ["app memory 0 10"]);
    assert_eq!(shown(&given(&alone("15Gi"), &[])), ["app memory 1 15"], "of the first node one is reserved");
    assert_eq!(shown(&given(&alone("20Gi"), &[])), ["app memory 0-1 20"]);
    let burstable = json!({"name": "app", "resources": {"requests": {"memory": "1Gi"}}});
    assert!(given(&pod(vec![], vec![burstable]), &[]).is_empty());
}

#[test]
fn what_others_have_is_not_given() {
    let first = given(&alone("10Gi"), &[]);
    let second = given(&alone("10Gi"), &[&first]);
    assert_eq!(shown(&second), ["app memory 1 10"]);
    let error = give(&alone("10Gi"), &[&first, &second], TopologyPolicy::None, TopologyScope::Container).unwrap_err();
    let message = "Allocate failed due to [memorymanager] failed to get the default NUMA affinity, no NUMA nodes with \
                   enough memory is available, which is unexpected";
    assert_eq!((error.reason.as_str(), error.message.as_str()), ("UnexpectedAdmissionError", message));
    assert_eq!(shown(&given(&alone("10Gi"), &[&second])), ["app memory 0 10"], "what was returned can be had again");
}

#[test]
fn a_node_serves_single_containers_or_groups_but_not_both() {
    let group = given(&alone("20Gi"), &[]);
    let same = given(&alone("5Gi"), &[]);
    assert!(give(&alone("5Gi"), &[&group], TopologyPolicy::None, TopologyScope::Container).is_ok());
    assert_eq!(shown(&given(&alone("5Gi"), &[&group])), ["app memory 0-1 5"], "only with the whole group");
    let error = give(&alone("20Gi"), &[&same], TopologyPolicy::None, TopologyScope::Container).unwrap_err();
    assert!(error.message.contains("no NUMA nodes with enough memory"), "{error}");
}

#[test]
fn huge_pages_come_from_where_the_memory_does() {
    let amounts = json!({"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "1Gi"});
    let huge = json!({"name": "app", "resources": {"requests": amounts, "limits": amounts}});
    let huge = pod(vec![], vec![huge]);
    let first = given(&huge, &[]);
    assert_eq!(shown(&first), ["app hugepages-2Mi 0 1", "app memory 0 1"]);
    assert_eq!(shown(&given(&huge, &[&first])), ["app hugepages-2Mi 1 1", "app memory 1 1"]);
}

#[test]
fn init_containers_leave_theirs_to_those_after_them() {
    let pod = pod(vec![container("i", "6Gi")], vec![container("a", "4Gi"), container("b", "4Gi")]);
    let grants = given(&pod, &[]);
    // Ten are in use at most, and their sum is eight.
    assert_eq!(shown(&grants), ["a memory 0 4", "b memory 0 4", "i memory 0 0"]);
    assert_eq!(shown(&given(&alone("6Gi"), &[&grants])), ["app memory 0 6"]);
    assert_eq!(shown(&given(&alone("7Gi"), &[&grants])), ["app memory 1 7"]);
}

#[test]
fn the_topology_manager_decides_where() {
    let single = |pod: &Pod, others: &[&Grants], scope| give(pod, others, TopologyPolicy::SingleNumaNode, scope);
    let two = pod(vec![], vec![container("a", "10Gi"), container("b", "10Gi")]);
    let grants = single(&two, &[], TopologyScope::Container).unwrap();
    assert_eq!(shown(&grants), ["a memory 0 10", "b memory 1 10"]);
    assert_eq!(single(&two, &[], TopologyScope::Pod).unwrap_err().reason, "TopologyAffinityError");
    let restricted = give(&two, &[], TopologyPolicy::Restricted, TopologyScope::Pod).unwrap();
    assert_eq!(shown(&restricted), ["a memory 0-1 10", "b memory 0-1 10"]);
}

#[test]
fn what_is_reserved_has_to_be_what_is_kept() {
    let new = |reserved: &[(u32, u64)], kept: u64| {
        let reserved = reserved.iter().map(|(node, bytes)| (*node, memory(*bytes))).collect();
        MemoryManager::new(&machine(), &reserved, &memory(kept)).map(drop)
    };
    assert_eq!(new(&[(0, GIB), (1, GIB)], 2 * GIB), Ok(()));
    let sums = "the total amount \"1073741824\" of type \"memory\" is not equal to the value \"2147483648\" determined by \
                Node Allocatable feature";
    assert_eq!(new(&[(0, GIB)], 2 * GIB), Err(sums.to_owned()));
    let node = "the reserved memory configuration references a NUMA node 7 that does not exist on this machine";
    assert_eq!(new(&[(7, GIB)], GIB), Err(node.to_owned()));
    assert_eq!(new(&[], 0), Err("you should specify the system reserved memory".to_owned()));
}
