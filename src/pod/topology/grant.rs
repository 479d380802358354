//! What a new pod is given, by all providers together.

use k8s_openapi::api::core::v1::Pod;

use super::{Grants, Hint, NumaNodes, ResourceHints, TopologyPolicy, TopologyScope, merge};
use crate::{api::container_ref::ContainerRef, pod::admission::Rejection};

/// Gives out one kind of resource. It knows what there is and what other pods have; what the pod itself was given so far
/// is in `grants` (containers in their order, init containers first, so that what an init container had can be given to
/// one after it).
pub trait Provider {
    /// The ways to serve one container; empty: it asks for nothing of this kind, or it does not matter.
    fn hints(&self, pod: &Pod, container: ContainerRef<'_>, grants: &Grants) -> Vec<ResourceHints>;

    /// The ways to serve all containers of a pod together.
    fn pod_hints(&self, pod: &Pod) -> Vec<ResourceHints>;

    /// Adds what `container` asks for to its grant, near `hint`.
    ///
    /// # Errors
    /// It cannot be given. Use [`reject`] where upstream has no reason of its own.
    fn give(&self, pod: &Pod, container: ContainerRef<'_>, hint: Hint, grants: &mut Grants) -> Result<(), Rejection>;
}

/// Settings of the topology manager.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopologyOptions {
    /// What is made of hints.
    pub policy: TopologyPolicy,
    /// For what one is decided.
    pub scope: TopologyScope,
    /// `prefer-closest-numa-nodes`.
    pub prefer_closest: bool,
}

/// Gives a new pod what it asks for. Providers are asked in the order given; upstream's is devices, processors, memory.
///
/// # Errors
/// The pod cannot be run here: `TopologyAffinityError`, or what a provider says.
pub fn grant(
    pod: &Pod,
    numa: &NumaNodes,
    options: TopologyOptions,
    providers: &[&dyn Provider],
) -> Result<Grants, Rejection> {
    let mut grants = Grants::default();
    let for_all = match (options.policy, options.scope) {
        // Without hints, and nothing is asked of a container's place.
        (TopologyPolicy::None, _) => Some(Hint::NONE),
        (_, TopologyScope::Pod) => {
            Some(decide(numa, options, providers.iter().flat_map(|one| one.pod_hints(pod)).collect())?)
        }
        (_, TopologyScope::Container) => None,
    };
    let containers = ContainerRef::all(pod).filter(|container| !matches!(container, ContainerRef::Ephemeral(..)));
    for container in containers {
        let hint = match for_all {
            Some(hint) => hint,
            None => {
                let hints = providers.iter().flat_map(|one| one.hints(pod, container, &grants)).collect();
                decide(numa, options, hints)?
            }
        };
        for provider in providers {
            provider.give(pod, container, hint, &mut grants)?;
        }
    }
    Ok(grants)
}

fn decide(numa: &NumaNodes, options: TopologyOptions, hints: Vec<ResourceHints>) -> Result<Hint, Rejection> {
    match merge(numa, options.policy, options.prefer_closest, &hints) {
        (hint, true) => Ok(hint),
        (_, false) => Err(Rejection {
            reason: "TopologyAffinityError".to_owned(),
            message: "Resources cannot be allocated with Topology locality".to_owned(),
        }),
    }
}

/// A rejection by a provider that has no reason of its own for it, in upstream's words.
pub fn reject(cause: impl std::fmt::Display) -> Rejection {
    Rejection {
        reason: "UnexpectedAdmissionError".to_owned(),
        message: format!("Allocate failed due to {cause}, which is unexpected"),
    }
}
