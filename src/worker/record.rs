//! The ledger's entry of a pod: what was admitted, from where, and when.

use std::sync::Arc;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pod::desired::SourceId;

/// Version of `pod.json`.
pub const VERSION: u32 = 1;

/// `pods/<uid>/pod.json`: durable before anything is done for the pod, removed after everything else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// As admitted, without a status.
    #[serde(serialize_with = "write_pod", deserialize_with = "read_pod")]
    pub pod: Arc<Pod>,
    /// Which source wanted it.
    pub source: SourceId,
    /// Where exactly (`file:<path>`).
    pub origin: String,
    /// When the agent took it up (`status.startTime`).
    pub start_time: Timestamp,
}

impl PodRecord {
    /// UID of the pod.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

fn write_pod<S: Serializer>(pod: &Arc<Pod>, serializer: S) -> Result<S::Ok, S::Error> {
    Pod::serialize(pod, serializer)
}

fn read_pod<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Pod>, D::Error> {
    Pod::deserialize(deserializer).map(Arc::new)
}
