//! nodes, and the leases by which they say that they are alive.

use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use serde_json::Value;

use super::cells::{field, items, name, none_if_empty, or_none, own_age};
use crate::control::registry::{
    resource::{Column, Kind, NAME, Resource, STATUS, column, wide},
    text,
};

impl Kind for Node {}
impl Kind for Lease {}

const ROLE: &str = "node-role.kubernetes.io/";

const COLUMNS: &[Column] = &[
    NAME,
    column("Status"),
    column("Roles"),
    column("Age"),
    column("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

/// v1 Node.
pub static NODES: Resource = Resource {
    short: &["no"],
    subresources: &[STATUS],
    fields: &[("spec.unschedulable", "false")],
    columns: COLUMNS,
    cells,
    ..Resource::of::<Node>("nodes", "node", false)
};

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let condition = items(&node["status"]["conditions"]).iter().find(|condition| condition["type"] == "Ready");
    let mut status = match condition.map(|condition| text(condition, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix(ROLE).filter(|role| !role.is_empty()) {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|role| !role.is_empty()));
        }
    }
    roles.sort_unstable();
    let address = |kind: &str| {
        let found = items(&node["status"]["addresses"]).iter().find(|address| address["type"] == kind);
        none_if_empty(found.map(|address| text(address, "address").to_owned()).unwrap_or_default())
    };
    let info = &node["status"]["nodeInfo"];
    let or_unknown = |path: &str| match text(info, path) {
        "" => "<unknown>".into(),
        found => Value::from(found),
    };
    vec![
        name(node),
        status.into(),
        none_if_empty(roles.join(",")),
        own_age(node, now),
        field(info, "kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        or_unknown("osImage"),
        or_unknown("kernelVersion"),
        or_unknown("containerRuntimeVersion"),
    ]
}

/// coordination.k8s.io/v1 Lease.
pub static LEASES: Resource = Resource {
    create_on_update: true,
    columns: &[NAME, column("Holder"), column("Age")],
    cells: |lease, now| vec![name(lease), or_none(lease, "spec.holderIdentity"), own_age(lease, now)],
    ..Resource::of::<Lease>("leases", "lease", true)
};
