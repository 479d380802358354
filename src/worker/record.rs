//! The ledger's entry of a pod: what was admitted, from where, and when.

use std::sync::Arc;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use md5::{Digest, Md5};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    api::static_pod::SEEN_ANNOTATION,
    pod::{Grants, Verdict, desired::SourceId, resize::Allocation},
    supervisor::spec::IdRange,
};

/// Version of `pod.json`.
pub const VERSION: u32 = 1;

/// `pods/<uid>/pod.json`: durable before anything is done for the pod, removed after everything else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// As it is wanted, without a status.
    #[serde(serialize_with = "write_pod", deserialize_with = "read_pod")]
    pub pod: Arc<Pod>,
    /// What the node has given the pod, where that is not what its spec asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<Allocation>,
    /// Which source wanted it.
    pub source: SourceId,
    /// Where exactly (`file:<path>`).
    pub origin: String,
    /// Ids of the pod's own user namespace (hostUsers false), which no other pod has as long as this record is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<IdRange>,
    /// The RuntimeClass handler that makes its containers, as its class had it when the pod came; absent: the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// What its containers were given for themselves: processors, memory of NUMA nodes, devices. No other pod has it as
    /// long as this record is there.
    #[serde(default, skip_serializing_if = "Grants::is_empty")]
    pub grants: Grants,
    /// When the agent took it up (`status.startTime`).
    pub start_time: Timestamp,
    /// Digest of the pod as its source last wanted it (see [`digest`]), which tells a change at the source from one that
    /// was made here. Older agents wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sourced: Option<String>,
    /// Why it has failed, if that was decided rather than seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

impl PodRecord {
    /// UID of the pod.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The pod with what it is allocated in its spec: what runs, and what it counts for.
    pub fn effective(&self) -> Arc<Pod> {
        match &self.allocated {
            None => self.pod.clone(),
            Some(allocated) => Arc::new(allocated.apply(&self.pod)),
        }
    }
}

/// Tells two pods of a source apart. When a pod was first seen is no part of it: every start of the agent sees it anew.
pub fn digest(pod: &Pod) -> String {
    let mut pod = pod.clone();
    pod.metadata.creation_timestamp = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(SEEN_ANNOTATION);
    }
    pod.status = None;
    // An object of the API always has a JSON form, and its maps are sorted.
    let digest = Md5::digest(serde_json::to_vec(&pod).unwrap_or_default());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_pod<S: Serializer>(pod: &Arc<Pod>, serializer: S) -> Result<S::Ok, S::Error> {
    Pod::serialize(pod, serializer)
}

fn read_pod<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Pod>, D::Error> {
    Pod::deserialize(deserializer).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        pod::grants::{DeviceGrant, MemoryGrant},
        worker::testing::{pod, record},
    };

    #[test]
    fn what_was_granted_is_read_back() {
        let plain = record(pod("u1", "web"), Timestamp::UNIX_EPOCH);
        let text = serde_json::to_value(&plain).unwrap();
        assert_eq!(text.get("grants"), None);
        let mut granted = plain.clone();
        let grant = granted.grants.of_mut("app");
        grant.cpus = [2, 3, 7].into_iter().collect();
        let nodes = [0, 1].into_iter().collect();
        grant.memory.push(MemoryGrant { resource: "memory".to_owned(), nodes, bytes: 1 << 30 });
        let device = DeviceGrant { id: "gpu-0".to_owned(), nodes: [1].into_iter().collect() };
        grant.devices.insert("example.com/gpu".to_owned(), vec![device]);
        let text = serde_json::to_value(&granted).unwrap();
        let expected = json!({"app": {
            "cpus": "2-3,7",
            "memory": [{"resource": "memory", "nodes": "0-1", "bytes": 1 << 30}],
            "devices": {"example.com/gpu": [{"id": "gpu-0", "nodes": "1"}]},
        }});
        assert_eq!(text["grants"], expected);
        assert_eq!(serde_json::from_value::<PodRecord>(text).unwrap(), granted);
    }
}
