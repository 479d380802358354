//! What was decided about a pod that it does not come back from.

use serde::{Deserialize, Serialize};

use super::{admission::Rejection, preemption::Eviction};

/// The pod has failed, whatever its containers do. Durable, so that another agent does not decide again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It was never started here.
    Rejected(Rejection),
    /// It was, and had to go.
    Evicted(Eviction),
}
