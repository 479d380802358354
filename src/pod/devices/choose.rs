//! The choice of devices for one resource of one container (upstream `devicesToAllocate`).

use std::collections::{BTreeMap, BTreeSet};

use super::offer::{Device, Offer, Plugin};
use crate::pod::topology::NodeMask;

/// Why devices cannot be given. The words are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No plugin offers the resource.
    #[error("cannot allocate unregistered device {resource}")]
    Unregistered {
        /// Resource.
        resource: String,
    },
    /// No device is healthy, perhaps because the plugin is gone.
    #[error("no healthy devices present; cannot allocate unhealthy devices {resource}")]
    NoneHealthy {
        /// Resource.
        resource: String,
    },
    /// Others have too many of them.
    #[error("requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}")]
    TooFew {
        /// Resource.
        resource: String,
        /// How many are wanted beside those that an init container had.
        requested: usize,
        /// How many there are.
        available: usize,
    },
}

/// What is to be chosen.
pub(super) struct Choice<'a> {
    pub(super) resource: &'a str,
    pub(super) required: usize,
    pub(super) offer: Option<&'a Offer>,
    /// What pods have, this one included.
    pub(super) in_use: &'a BTreeSet<String>,
    /// What init containers of the pod had and is free for this container.
    pub(super) reusable: &'a BTreeSet<String>,
    /// The NUMA nodes it should come from.
    pub(super) affinity: Option<NodeMask>,
}

/// What can be put to a plugin that knows better (`GetPreferredAllocation`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Preference {
    pub(super) available: BTreeSet<String>,
    pub(super) must_include: BTreeSet<String>,
}

impl Choice<'_> {
    /// Chooses. `preferred` answers a [`Preference`]; what of it is not to be had is left out.
    pub(super) fn make(
        &self,
        preferred: &mut dyn FnMut(Preference) -> BTreeSet<String>,
    ) -> Result<BTreeSet<String>, Refusal> {
        let resource = || self.resource.to_owned();
        let Some(offer) = self.offer else { return Err(Refusal::Unregistered { resource: resource() }) };
        let healthy: BTreeMap<&str, Device> = offer.healthy().collect();
        if healthy.is_empty() {
            return Err(match offer.plugin {
                // Nothing was ever listed.
                Plugin::Registered if offer.devices.is_empty() => Refusal::Unregistered { resource: resource() },
                _ => Refusal::NoneHealthy { resource: resource() },
            });
        }
        let mut chosen = BTreeSet::new();
        let take = |from: &BTreeSet<String>, chosen: &mut BTreeSet<String>| {
            let missing = self.required - chosen.len();
            let more: Vec<String> = from.difference(chosen).take(missing).cloned().collect();
            chosen.extend(more);
            chosen.len() == self.required
        };
        if take(self.reusable, &mut chosen) {
            return Ok(chosen);
        }
        let available: BTreeSet<String> =
            healthy.keys().filter(|id| !self.in_use.contains(**id)).map(|id| (*id).to_owned()).collect();
        let requested = self.required - chosen.len();
        if available.len() < requested {
            return Err(Refusal::TooFew { resource: resource(), requested, available: available.len() });
        }
        let [aligned, unaligned, nowhere] = self.by_affinity(offer, &available);
        let with = |more: &BTreeSet<String>, chosen: &BTreeSet<String>| more.union(chosen).cloned().collect();
        if requested < aligned.len() {
            // Any of them is near enough: the plugin may say which.
            let question = Preference { available: with(&aligned, &chosen), must_include: chosen.clone() };
            let wished = preferred(question).intersection(&aligned).cloned().collect();
            let _ = take(&wished, &mut chosen) || take(&aligned, &mut chosen);
            return Ok(chosen);
        }
        if take(&aligned, &mut chosen) {
            return Ok(chosen);
        }
        let question = Preference { available: with(&available, &chosen), must_include: chosen.clone() };
        let wished = preferred(question).intersection(&available).cloned().collect();
        let _ = take(&wished, &mut chosen) || take(&unaligned, &mut chosen) || take(&nowhere, &mut chosen);
        Ok(chosen)
    }

    /// Devices of the wanted nodes, of others, and of none that is known. Without a wish all are of the last kind.
    fn by_affinity(&self, offer: &Offer, available: &BTreeSet<String>) -> [BTreeSet<String>; 3] {
        let mut sorted: [BTreeSet<String>; 3] = Default::default();
        let Some(affinity) = self.affinity.filter(|_| offer.is_aligned()) else {
            sorted[2].clone_from(available);
            return sorted;
        };
        for id in available {
            let nodes = offer.devices.get(id).map(|device| device.nodes).unwrap_or_default();
            let kind = match (nodes.is_empty(), nodes.and(affinity).is_empty()) {
                (true, _) => 2,
                (false, false) => 0,
                (false, true) => 1,
            };
            sorted[kind].insert(id.clone());
        }
        sorted
    }
}
