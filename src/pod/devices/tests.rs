use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::pod::topology::{Hint, NumaNodes, Provider, TopologyOptions, TopologyPolicy, TopologyScope, grant};

const GPU: &str = "example.com/gpu";

/// Devices `0`, `1`, … of one resource, each healthy and on the node given for it.
fn offer(nodes: &[Option<u32>]) -> Offer {
    let device = |(index, node): (usize, &Option<u32>)| {
        let nodes = node.iter().copied().collect();
        (index.to_string(), Device { healthy: true, nodes })
    };
    let devices = nodes.iter().enumerate().map(device).collect();
    Offer { devices, plugin: Plugin::Listed, preferred: false, pre_start: false }
}

fn offers(offer: Offer) -> Offers {
    Offers::from([(GPU.to_owned(), offer)])
}

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
}

fn container(name: &str, count: u32) -> serde_json::Value {
    let amounts = json!({GPU: count.to_string()});
    json!({"name": name, "resources": {"limits": amounts, "requests": amounts}})
}

fn one(count: u32) -> Pod {
    pod(json!({"containers": [container("app", count)]}))
}

fn have(ids: &[&str]) -> Taken {
    Taken::from([(GPU.to_owned(), ids.iter().map(|id| (*id).to_owned()).collect())])
}

struct World {
    offers: Offers,
    taken: Taken,
    numa: NumaNodes,
    options: TopologyOptions,
    answers: Vec<Vec<String>>,
}

impl World {
    fn new(offer: Offer) -> World {
        World {
            offers: offers(offer),
            taken: Taken::new(),
            numa: NumaNodes { distances: (0..2).map(|node| (node, Vec::new())).collect() },
            options: TopologyOptions::default(),
            answers: Vec::new(),
        }
    }

    fn give(&self, pod: &Pod) -> Result<(Grants, Option<Question>), String> {
        let provider = DeviceProvider::new(&self.offers, self.taken.clone(), &self.numa, &self.answers);
        let grants = grant(pod, &self.numa, self.options, &[&provider]).map_err(|rejection| rejection.to_string())?;
        Ok((grants, provider.question()))
    }

    /// Ids that each container gets: `app:0,1`.
    fn given(&self, pod: &Pod) -> Result<Vec<String>, String> {
        let (grants, question) = self.give(pod)?;
        assert_eq!(question, None, "nothing is to be asked");
        let ids = |devices: &[crate::pod::grants::DeviceGrant]| {
            devices.iter().map(|device| device.id.clone()).collect::<Vec<_>>().join(",")
        };
        Ok(grants.containers.iter().map(|(name, grant)| format!("{name}:{}", ids(&grant.devices[GPU]))).collect())
    }
}

#[test]
fn what_cannot_be_given_is_said_in_upstreams_words() {
    let case = |change: fn(&mut World), count: u32, expected: &str| {
        let mut world = World::new(offer(&[None, None]));
        change(&mut world);
        let error = world.give(&one(count)).unwrap_err();
        let expected = format!("UnexpectedAdmissionError: Allocate failed due to {expected}, which is unexpected");
        assert_eq!(error, expected);
    };
    let unhealthy = |world: &mut World| {
        world.offers.get_mut(GPU).unwrap().devices.values_mut().for_each(|device| device.healthy = false);
    };
    case(|_| {}, 3, "requested number of devices unavailable for example.com/gpu. Requested: 3, Available: 2");
    case(
        |world| world.taken = have(&["1"]),
        2,
        "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1",
    );
    case(unhealthy, 1, "no healthy devices present; cannot allocate unhealthy devices example.com/gpu");
    case(
        |world| world.offers.get_mut(GPU).unwrap().plugin = Plugin::Stopped(Timestamp::UNIX_EPOCH),
        1,
        "no healthy devices present; cannot allocate unhealthy devices example.com/gpu",
    );
    case(
        |world| {
            world.offers.clear();
            world.taken = have(&["0"]);
        },
        1,
        "cannot allocate unregistered device example.com/gpu",
    );
}

#[test]
fn a_device_is_free_if_it_is_healthy_and_nobody_has_it() {
    let mut world = World::new(offer(&[None, None, None]));
    assert_eq!(world.given(&one(2)).unwrap(), ["app:0,1"]);
    world.taken = have(&["0"]);
    assert_eq!(world.given(&one(2)).unwrap(), ["app:1,2"]);
    world.offers.get_mut(GPU).unwrap().devices.get_mut("0").unwrap().healthy = false;
    // What a pod has stays its own, and takes nothing from the others that are healthy.
    assert_eq!(world.given(&one(2)).unwrap(), ["app:1,2"]);
    world.taken = Taken::new();
    assert_eq!(world.given(&one(2)).unwrap(), ["app:1,2"]);
    assert_eq!(
        world.given(&pod(json!({"containers": [container("a", 1), container("b", 1)]}))).unwrap(),
        ["a:1", "b:2"]
    );
    assert_eq!(world.given(&one(0)).unwrap(), [""; 0]);
}

#[test]
fn a_resource_of_the_cluster_is_none_of_the_nodes() {
    let mut world = World::new(offer(&[]));
    world.offers.clear();
    assert_eq!(world.given(&one(7)).unwrap(), [""; 0]);
}

#[test]
fn containers_have_what_init_containers_had_and_sidecars_keep_theirs() {
    let mut sidecar = container("sidecar", 1);
    sidecar["restartPolicy"] = json!("Always");
    let pod = pod(json!({
        "initContainers": [container("first", 2), sidecar, container("second", 1)],
        "containers": [container("app", 2)],
    }));
    let world = World::new(offer(&[None, None, None]));
    // The first has 0 and 1. The sidecar takes 0 of them for good, the second what is left, and the container 1 and a new one.
    assert_eq!(world.given(&pod).unwrap(), ["app:1,2", "first:0,1", "second:1", "sidecar:0"]);
    let world = World::new(offer(&[None, None]));
    let error = world.give(&pod).unwrap_err();
    assert!(error.contains("Requested: 1, Available: 0"), "{error}");
}

#[test]
fn a_plugin_is_asked_before_its_devices_are_chosen() {
    let mut world = World::new(Offer { preferred: true, ..offer(&[None, None, None]) });
    let both = pod(json!({"initContainers": [container("init", 1)], "containers": [container("app", 2)]}));
    let (_, question) = world.give(&both).unwrap();
    let strings = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let expected =
        Question { resource: GPU.to_owned(), available: strings(&["0", "1", "2"]), must_include: Vec::new(), size: 1 };
    assert_eq!(question, Some(expected));
    world.answers.push(strings(&["2"]));
    let (_, question) = world.give(&both).unwrap();
    // The container has what the init container had, and the plugin says what goes with it.
    let expected = Question {
        resource: GPU.to_owned(),
        available: strings(&["0", "1", "2"]),
        must_include: strings(&["2"]),
        size: 2,
    };
    assert_eq!(question, Some(expected));
    world.answers.push(strings(&["2", "1"]));
    assert_eq!(world.given(&both).unwrap(), ["app:1,2", "init:2"]);
    // What it prefers and is not to be had is left out, what is missing is made up for.
    world.answers = vec![strings(&["7"]), Vec::new()];
    assert_eq!(world.given(&both).unwrap(), ["app:0,1", "init:0"]);
}

#[test]
fn devices_come_from_the_nodes_of_the_hint() {
    let world = World::new(offer(&[Some(1), Some(0), None, Some(0)]));
    let pod = one(2);
    let app = ContainerRef::find(&pod, "app").unwrap();
    let near = |nodes: &[u32]| {
        let provider = DeviceProvider::new(&world.offers, Taken::new(), &world.numa, &[]);
        let hint = Hint { affinity: Some(nodes.iter().copied().collect()), preferred: true };
        let mut grants = Grants::default();
        provider.give(&pod, app, hint, &mut grants).unwrap();
        grants.devices(GPU).map(|device| device.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(near(&[0]), ["1", "3"]);
    // One is there; of the others one with a node comes before one without.
    assert_eq!(near(&[1]), ["0", "1"]);
}

#[test]
fn the_hints_of_devices_are_the_sets_of_nodes_that_have_enough() {
    let mut world = World::new(offer(&[Some(0), Some(0), Some(1)]));
    let hints = |world: &World, count| {
        let pod = one(count);
        let provider = DeviceProvider::new(&world.offers, world.taken.clone(), &world.numa, &[]);
        let hints = provider.hints(&pod, ContainerRef::find(&pod, "app").unwrap(), &Grants::default());
        let told = |hint: Hint| format!("{}{}", hint.affinity.unwrap(), if hint.preferred { "!" } else { "" });
        assert_eq!(provider.pod_hints(&pod), hints);
        hints[0].hints.clone().map(|hints| hints.into_iter().map(told).collect::<Vec<_>>())
    };
    assert_eq!(hints(&world, 1).unwrap(), ["0!", "1!", "0-1"]);
    assert_eq!(hints(&world, 2).unwrap(), ["0!", "0-1"]);
    world.taken = have(&["0"]);
    // Node 0 could serve two if it were free: to take both nodes is not the best there could be.
    assert_eq!(hints(&world, 2).unwrap(), ["0-1"]);
    assert_eq!(hints(&world, 3).unwrap(), [""; 0]);
    world.offers = offers(offer(&[None, None]));
    assert_eq!(hints(&world, 1), None);
}

#[test]
fn a_pod_that_must_be_on_one_node_is_rejected_if_its_devices_are_not() {
    let mut world = World::new(offer(&[Some(0), Some(1), Some(1)]));
    world.options.policy = TopologyPolicy::SingleNumaNode;
    assert_eq!(world.given(&one(2)).unwrap(), ["app:1,2"]);
    assert!(world.give(&one(3)).unwrap_err().starts_with("TopologyAffinityError: "));
    world.options.scope = TopologyScope::Pod;
    let two = pod(json!({"containers": [container("a", 1), container("b", 1)]}));
    assert_eq!(world.given(&two).unwrap(), ["a:1", "b:2"]);
}

#[test]
fn what_is_gone_for_five_minutes_is_forgotten() {
    let gone = Offer { plugin: Plugin::Stopped(Timestamp::UNIX_EPOCH), ..offer(&[None, None]) };
    let after = |seconds| Timestamp::from_second(seconds).unwrap();
    assert!(!gone.is_over(after(300)) && gone.is_over(after(301)));
    assert!(!offer(&[None]).is_over(after(1_000_000)));
    // Until then it is capacity that nobody can be given.
    assert_eq!((gone.capacity(), gone.healthy().count()), (2, 0));
}

#[test]
fn the_health_of_devices_is_that_of_the_last_list() {
    let mut world = World::new(offer(&[None, None, None]));
    let (grants, _) = world.give(&one(2)).unwrap();
    let told = |offers: &Offers| -> Vec<String> {
        let statuses = statuses(&grants, offers, "app").unwrap();
        assert_eq!((statuses.len(), statuses[0].name.as_str()), (1, GPU));
        let health = statuses[0].resources.as_ref().unwrap().iter();
        health.map(|one| format!("{} {}", one.resource_id, one.health.as_deref().unwrap())).collect()
    };
    world.offers.get_mut(GPU).unwrap().devices.get_mut("1").unwrap().healthy = false;
    assert_eq!(told(&world.offers), ["0 Healthy", "1 Unhealthy"]);
    world.offers.get_mut(GPU).unwrap().devices.remove("0");
    assert_eq!(told(&world.offers), ["0 Unknown", "1 Unhealthy"]);
    world.offers.get_mut(GPU).unwrap().plugin = Plugin::Stopped(Timestamp::UNIX_EPOCH);
    assert_eq!(told(&world.offers), ["0 Unknown", "1 Unknown"]);
    assert_eq!(statuses(&grants, &world.offers, "other"), None);
    assert_eq!(taken([&grants, &grants]), BTreeMap::from([(GPU.to_owned(), ["0", "1"].map(str::to_owned).into())]));
}
