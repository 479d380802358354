//! Devices of device plugins: which there are, and which of them a container is given. Pure.
//!
//! An extended resource (`example.com/device`) counts devices that a plugin on the node offers by their ids. What is free
//! is what is healthy and in no pod's [`Grants`](super::Grants). [`DeviceProvider`] chooses among them; what the plugin then
//! says that a container needs for them ([`Artifacts`]) is durable with the grant.

mod choose;
mod offer;
mod provider;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, ResourceHealth, ResourceRequirements, ResourceStatus};
use serde::{Deserialize, Serialize};

pub use self::{
    choose::Refusal,
    offer::{Device, GRACE, Offer, Offers, Plugin},
    provider::{DeviceProvider, Question},
};
use super::Grants;
use crate::api::{container_ref::ContainerRef, resources};

/// What a plugin says a container needs for the devices it is given (`ContainerAllocateResponse`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifacts {
    /// Variables; the container's own go before them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    /// Files and directories of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<ArtifactMount>,
    /// Device nodes of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<ArtifactDevice>,
    /// Annotations for a runtime. Nobody here reads them; they are part of the record.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fully qualified names of CDI devices (`vendor.com/class=name`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    /// The plugin is to be asked before each start of the container (`PreStartContainer`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pre_start: bool,
}

/// A bind of a path of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactMount {
    /// Path in the container.
    pub container_path: String,
    /// Path on the host.
    pub host_path: String,
    /// It cannot be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// A device node of the host, or a directory of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactDevice {
    /// Path in the container.
    pub container_path: String,
    /// Path on the host.
    pub host_path: String,
    /// Of `r`, `w` and `m`: read, write, make the node.
    pub permissions: String,
}

/// Devices that pods have, by resource.
pub type Taken = BTreeMap<String, BTreeSet<String>>;

/// The devices of all these pods.
pub fn taken<'a>(grants: impl IntoIterator<Item = &'a Grants>) -> Taken {
    let mut taken = Taken::new();
    for (resource, devices) in
        grants.into_iter().flat_map(|grants| grants.containers.values()).flat_map(|grant| &grant.devices)
    {
        taken.entry(resource.clone()).or_default().extend(devices.iter().map(|device| device.id.clone()));
    }
    taken
}

/// The extended resources that a container asks for and how many of each, none of them zero. Their requests are their
/// limits.
pub fn wanted(requirements: Option<&ResourceRequirements>) -> BTreeMap<String, usize> {
    let limits = resources::limits(requirements).into_iter().filter(|(name, _)| resources::is_extended(name));
    let count = |(name, amount): (String, crate::api::quantity::Quantity)| {
        usize::try_from(amount.value()).ok().filter(|count| *count > 0).map(|count| (name, count))
    };
    limits.filter_map(count).collect()
}

/// The extended resources that any container of a pod asks for.
pub fn all_wanted(pod: &Pod) -> BTreeSet<String> {
    ContainerRef::all(pod).flat_map(|container| wanted(container.resources()).into_keys()).collect()
}

/// The health of a container's devices for its status, as far as it was given any (KEP-4680).
pub fn statuses(grants: &Grants, offers: &Offers, container: &str) -> Option<Vec<ResourceStatus>> {
    let grant = grants.of(container).filter(|grant| !grant.devices.is_empty())?;
    let statuses = grant.devices.iter().map(|(resource, devices)| {
        let health = |id: &str| {
            let offer = offers.get(resource).filter(|offer| offer.is_current());
            match offer.and_then(|offer| offer.devices.get(id)) {
                Some(device) if device.healthy => "Healthy",
                Some(_) => "Unhealthy",
                // Nobody is there who would know.
                None => "Unknown",
            }
        };
        let resources = devices.iter().map(|device| ResourceHealth {
            resource_id: device.id.clone(),
            health: Some(health(&device.id).to_owned()),
            message: None,
        });
        ResourceStatus { name: resource.clone(), resources: Some(resources.collect()) }
    });
    Some(statuses.collect())
}
