//! Gives devices to the containers of a new pod, near the processors and the memory that they get.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
};

use k8s_openapi::api::core::v1::Pod;

use super::{
    Taken,
    choose::{Choice, Preference, Refusal},
    offer::{Offer, Offers},
    wanted,
};
use crate::{
    api::{container_ref::ContainerRef, resources::is_sidecar},
    pod::{
        Grants, Rejection,
        grants::DeviceGrant,
        topology::{Hint, NodeMask, NumaNodes, Provider, ResourceHints, reject},
    },
};

/// What has to be asked of a plugin before devices can be chosen as it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The resource.
    pub resource: String,
    /// Ids to choose from.
    pub available: Vec<String>,
    /// Ids that have to be among those chosen.
    pub must_include: Vec<String>,
    /// How many are wanted.
    pub size: usize,
}

/// Chooses devices. Where a plugin has to be asked, what it said before is taken from the answers; when they are used up the
/// next question is kept, to be put to the plugin and answered the next time that everything is chosen anew.
pub struct DeviceProvider<'a> {
    offers: &'a Offers,
    taken: Taken,
    numa: &'a NumaNodes,
    answers: &'a [Vec<String>],
    used: Cell<usize>,
    question: RefCell<Option<Question>>,
}

/// Resources that no plugin offers are left to whoever counts them (upstream's cluster-level resources).
fn is_known(offers: &Offers, taken: &Taken, resource: &str) -> bool {
    offers.contains_key(resource) || taken.contains_key(resource)
}

impl<'a> DeviceProvider<'a> {
    /// A provider of what is offered and not taken. `answers` are those to the questions that came before.
    pub fn new(offers: &'a Offers, taken: Taken, numa: &'a NumaNodes, answers: &'a [Vec<String>]) -> Self {
        DeviceProvider { offers, taken, numa, answers, used: Cell::new(0), question: RefCell::new(None) }
    }

    /// What has to be asked, and everything chosen once more, before what was chosen counts.
    pub fn question(self) -> Option<Question> {
        self.question.into_inner()
    }

    fn answer(&self, offer: &Offer, question: Question) -> BTreeSet<String> {
        if !offer.preferred {
            return BTreeSet::new();
        }
        let place = self.used.replace(self.used.get() + 1);
        match self.answers.get(place) {
            Some(answer) => answer.iter().cloned().collect(),
            None => {
                self.question.borrow_mut().get_or_insert(question);
                BTreeSet::new()
            }
        }
    }

    fn in_use(&self, resource: &str, grants: &Grants) -> BTreeSet<String> {
        let others = self.taken.get(resource).into_iter().flatten().cloned();
        others.chain(grants.devices(resource).map(|device| device.id.clone())).collect()
    }

    fn choose(
        &self,
        pod: &Pod,
        container: ContainerRef<'_>,
        resource: &str,
        required: usize,
        affinity: Option<NodeMask>,
        grants: &Grants,
    ) -> Result<Vec<DeviceGrant>, Refusal> {
        let offer = self.offers.get(resource);
        let in_use = self.in_use(resource, grants);
        let reusable = reusable(pod, container, resource, grants);
        let choice = Choice { resource, required, offer, in_use: &in_use, reusable: &reusable, affinity };
        let chosen = choice.make(&mut |Preference { available, must_include }| {
            let question = Question {
                resource: resource.to_owned(),
                available: available.into_iter().collect(),
                must_include: must_include.into_iter().collect(),
                size: required,
            };
            offer.map(|offer| self.answer(offer, question)).unwrap_or_default()
        })?;
        let nodes = |id: &str| offer.and_then(|offer| offer.devices.get(id)).map(|device| device.nodes);
        Ok(chosen.into_iter().map(|id| DeviceGrant { nodes: nodes(&id).unwrap_or_default(), id }).collect())
    }

    /// The sets of nodes that could serve `requested` devices from `available` and all of `reusable`.
    fn ways(
        &self,
        offer: &Offer,
        available: &BTreeSet<String>,
        reusable: &BTreeSet<String>,
        requested: usize,
    ) -> Vec<Hint> {
        let all = self.numa.all();
        let nodes = |id: &String| offer.devices.get(id).map(|device| device.nodes).unwrap_or_default();
        let mut fewest = all.count();
        let mut masks = Vec::new();
        for mask in all.subsets() {
            let within = |nodes: NodeMask| !nodes.and(mask).is_empty();
            let there = offer.devices.values().filter(|device| within(device.nodes)).count();
            if there >= requested {
                fewest = fewest.min(mask.count());
            }
            let placed: Vec<NodeMask> = reusable.iter().map(nodes).filter(|nodes| !nodes.is_empty()).collect();
            if !placed.iter().all(|nodes| within(*nodes)) {
                continue;
            }
            if placed.len() + available.iter().filter(|id| within(nodes(id))).count() >= requested {
                masks.push(mask);
            }
        }
        let hint = |mask: NodeMask| Hint { affinity: Some(mask), preferred: mask.count() == fewest };
        masks.into_iter().map(hint).collect()
    }

    fn hints_of(
        &self,
        resource: String,
        requested: usize,
        reusable: &BTreeSet<String>,
        in_use: &BTreeSet<String>,
    ) -> ResourceHints {
        let hints = match self.offers.get(&resource) {
            Some(offer) if offer.is_aligned() => {
                let free = offer.healthy().map(|(id, _)| id.to_owned()).filter(|id| !in_use.contains(id));
                let available: BTreeSet<String> = free.collect();
                let enough = available.union(reusable).count() >= requested;
                Some(if enough { self.ways(offer, &available, reusable, requested) } else { Vec::new() })
            }
            // Where it is does not matter; if there is none, that is said when it is to be given.
            _ => None,
        };
        ResourceHints { resource, hints }
    }
}

/// What init containers before `container` had and it may have after them. What a sidecar or a container has is in use as
/// long as there is the pod.
fn reusable(pod: &Pod, container: ContainerRef<'_>, resource: &str, grants: &Grants) -> BTreeSet<String> {
    let mut reusable = BTreeSet::new();
    for before in ContainerRef::all(pod).take_while(|before| before.name() != container.name()) {
        let devices = grants.of(before.name()).and_then(|grant| grant.devices.get(resource));
        let ids = devices.into_iter().flatten().map(|device| device.id.clone());
        match before {
            ContainerRef::Init(_, init) if !is_sidecar(init) => reusable.extend(ids),
            _ => ids.for_each(|id| {
                reusable.remove(&id);
            }),
        }
    }
    reusable
}

impl Provider for DeviceProvider<'_> {
    fn hints(&self, pod: &Pod, container: ContainerRef<'_>, grants: &Grants) -> Vec<ResourceHints> {
        let known = wanted(container.resources()).into_iter();
        let known = known.filter(|(resource, _)| is_known(self.offers, &self.taken, resource));
        let hints = |(resource, requested): (String, usize)| {
            let (reusable, in_use) = (reusable(pod, container, &resource, grants), self.in_use(&resource, grants));
            self.hints_of(resource, requested, &reusable, &in_use)
        };
        known.map(hints).collect()
    }

    fn pod_hints(&self, pod: &Pod) -> Vec<ResourceHints> {
        let none = BTreeSet::new();
        let known = of_pod(pod).into_iter();
        let known = known.filter(|(resource, _)| is_known(self.offers, &self.taken, resource));
        let hints = |(resource, requested): (String, usize)| {
            let in_use = self.in_use(&resource, &Grants::default());
            self.hints_of(resource, requested, &none, &in_use)
        };
        known.map(hints).collect()
    }

    fn give(&self, pod: &Pod, container: ContainerRef<'_>, hint: Hint, grants: &mut Grants) -> Result<(), Rejection> {
        for (resource, required) in wanted(container.resources()) {
            if !is_known(self.offers, &self.taken, &resource) {
                continue;
            }
            let devices = self.choose(pod, container, &resource, required, hint.affinity, grants).map_err(reject)?;
            grants.of_mut(container.name()).devices.insert(resource, devices);
        }
        Ok(())
    }
}

/// What a pod needs of each resource at most at one time (upstream `getPodDeviceRequest`).
fn of_pod(pod: &Pod) -> BTreeMap<String, usize> {
    let (mut starting, mut staying) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    let mut sidecars = BTreeMap::<String, usize>::new();
    for container in ContainerRef::all(pod) {
        for (resource, count) in wanted(container.resources()) {
            match container {
                ContainerRef::Init(_, init) if is_sidecar(init) => {
                    *sidecars.entry(resource.clone()).or_default() += count;
                    *staying.entry(resource).or_default() += count;
                }
                ContainerRef::Init(..) => {
                    let now = count + sidecars.get(&resource).copied().unwrap_or(0);
                    let most = starting.entry(resource).or_default();
                    *most = now.max(*most);
                }
                _ => *staying.entry(resource).or_default() += count,
            }
        }
    }
    for (resource, count) in starting {
        let most = staying.entry(resource).or_default();
        *most = count.max(*most);
    }
    staying
}
