//! Whether a container that ended is started again, by its own policy and rules or the pod's, and whether its end begins
//! the whole pod anew.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod, PodSpec};

use super::{
    lifecycle::{containers, init_containers},
    observed::{Attempt, AttemptState, Ended, ObservedPod},
};

/// Action of a rule: begin the pod anew, init containers and all (KEP-5532).
const RESTART_ALL: &str = "RestartAllContainers";

/// A `restartPolicy`, the pod's or a container's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// Unless it exited with 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// By its name; upstream's default is Always.
    fn parse(name: Option<&str>) -> RestartPolicy {
        match name {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// The pod's.
    pub fn of(spec: &PodSpec) -> RestartPolicy {
        RestartPolicy::parse(spec.restart_policy.as_deref())
    }

    fn restarts(self, exit_code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// Whether `container` is started again after an end with this code: its rules go before its own policy, and that before
/// the pod's (upstream `ContainerShouldRestart`).
pub fn restarts(pod: &Pod, container: &Container, ended: &Ended) -> bool {
    match container.restart_policy.as_deref() {
        // Both actions of a rule restart the container itself.
        Some(own) => {
            matching_rule(container, ended.exit_code).is_some()
                || RestartPolicy::parse(Some(own)).restarts(ended.exit_code)
        }
        None => pod.spec.as_ref().map_or(RestartPolicy::Always, RestartPolicy::of).restarts(ended.exit_code),
    }
}

/// Whether `container` is started again after some end or other.
pub fn may_restart(pod: &Pod, container: &Container) -> bool {
    let pods = || pod.spec.as_ref().map_or(RestartPolicy::Always, RestartPolicy::of);
    let policy = container.restart_policy.as_deref().map_or_else(pods, |own| RestartPolicy::parse(Some(own)));
    policy != RestartPolicy::Never
}

/// The first rule for this exit code (KEP-5307).
fn matching_rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    })
}

/// Whether an end of some container can begin the pod anew.
pub fn may_restart_all(pod: &Pod) -> bool {
    let rules = members(pod).flat_map(|container| container.restart_policy_rules.iter().flatten());
    rules.into_iter().any(|rule| rule.action == RESTART_ALL)
}

/// Whether this end begins the pod anew.
pub fn restarts_all(container: &Container, attempt: &Attempt) -> bool {
    let AttemptState::Ended(ended) = &attempt.state else { return false };
    matching_rule(container, ended.exit_code).is_some_and(|rule| rule.action == RESTART_ALL)
}

fn members(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod).iter().chain(containers(pod))
}

/// How often the pod has been begun anew by a rule. It follows from the attempts alone, each of which has on record in
/// which epoch it was started, so that a restarted agent comes to the same number: the end of an attempt that matches such
/// a rule begins the next one.
pub fn epoch(pod: &Pod, observed: &ObservedPod) -> u32 {
    let of_container = |container: &Container| {
        let attempts = observed.containers.get(&container.name).map(Vec::as_slice).unwrap_or_default();
        attempts.iter().map(|attempt| attempt.epoch + u32::from(restarts_all(container, attempt))).max()
    };
    members(pod).filter_map(of_container).max().unwrap_or(0)
}

/// Containers that still run although the pod is begun anew. Ephemeral ones are left alone.
pub fn outlived<'a>(pod: &'a Pod, observed: &'a ObservedPod) -> Vec<(&'a str, &'a Attempt)> {
    let epoch = epoch(pod, observed);
    let old = |(name, attempt): &(&str, &Attempt)| {
        attempt.epoch < epoch && members(pod).any(|container| container.name == *name)
    };
    observed.running().filter(old).collect()
}
