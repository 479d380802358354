//! What a device plugin offers.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::pod::topology::NodeMask;

/// How long the devices of a plugin that is gone still count as the node's capacity (upstream `endpointStopGracePeriod`).
pub const GRACE: Duration = Duration::from_secs(5 * 60);

/// By resource: what its plugin offers.
pub type Offers = BTreeMap<String, Offer>;

/// A device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Device {
    /// It can be given to a container.
    pub healthy: bool,
    /// Where it is; empty: its plugin does not say.
    pub nodes: NodeMask,
}

/// What is known of the plugin behind an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// It has registered and is about to say which devices there are.
    Registered,
    /// What it offers is what it said last.
    Listed,
    /// It is gone since then. Its devices are not healthy.
    Stopped(Timestamp),
}

/// The devices of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// By id.
    pub devices: BTreeMap<String, Device>,
    /// The state of the plugin.
    pub plugin: Plugin,
    /// It wants to be asked which devices suit each other.
    pub preferred: bool,
    /// It wants to be told before each start of a container.
    pub pre_start: bool,
}

impl Offer {
    /// Whether what is offered is known at this moment.
    pub fn is_current(&self) -> bool {
        self.plugin == Plugin::Listed
    }

    /// Whether its plugin has been gone for so long that it is as if it had never been.
    pub fn is_over(&self, now: Timestamp) -> bool {
        let grace = SignedDuration::try_from(GRACE).unwrap_or(SignedDuration::from_secs(300));
        matches!(self.plugin, Plugin::Stopped(since) if now.duration_since(since) > grace)
    }

    /// Devices that can be given away, or are.
    pub fn healthy(&self) -> impl Iterator<Item = (&str, Device)> {
        let healthy = self.devices.iter().filter(|(_, device)| self.is_current() && device.healthy);
        healthy.map(|(id, device)| (id.as_str(), *device))
    }

    /// All devices, those that cannot be given away too: the node's capacity.
    pub fn capacity(&self) -> usize {
        self.devices.len()
    }

    /// Whether it matters to the plugin on which NUMA node a container is.
    pub fn is_aligned(&self) -> bool {
        self.devices.values().any(|device| !device.nodes.is_empty())
    }
}
