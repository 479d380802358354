//! Every decision about a pod: no I/O, no clock, no logger. Time and results are arguments.
//!
//! [`desired::merge`] says which pods there should be and [`admission`] whether the node takes one. For each,
//! [`plan::plan`] looks at the pod as it is wanted, as it was observed and what is remembered, and says what to do
//! now. The worker does that, observes, and asks again.

pub mod action;
pub mod admission;
pub mod backoff;
#[cfg(test)]
mod change_tests;
pub mod claims;
mod conditions;
pub mod desired;
pub mod desired_objects;
pub mod devices;
pub mod eviction;
pub mod grants;
pub mod happening;
pub mod lifecycle;
pub mod memory;
pub mod observed;
pub mod outcome;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod policy;
pub mod preemption;
pub mod probe;
#[cfg(test)]
mod probe_tests;
pub mod resize;
pub mod restart;
pub mod runtime_class;
pub mod status;
pub mod taints;
pub mod topology;
pub mod verdict;

pub use action::{Action, Hook};
pub use admission::Rejection;
pub use grants::Grants;
pub use memory::{Memory, Termination};
pub use observed::ObservedPod;
pub use outcome::Outcome;
pub use plan::{NodeView, Plan, plan};
pub use preemption::Eviction;
pub use verdict::Verdict;
