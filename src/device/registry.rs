//! The plugins that are there, and what they offer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tonic::Streaming;
use tracing::{info, warn};

use super::{
    client::{Plugin, PluginError},
    wire::{self, HEALTHY, ListAndWatchResponse, VERSION},
};
use crate::{
    api::resources,
    obs::chain::Chain,
    pod::{
        devices::{self, Device, Offer, Offers},
        topology::NodeMask,
    },
    store::durable,
};

/// Why a plugin cannot register. In upstream's words.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It speaks another version.
    #[error("requested API version {version:?} is not supported by kubelet. Supported version is [{VERSION:?}]")]
    Version {
        /// The version.
        version: String,
    },
    /// Not the name of an extended resource.
    #[error("the ResourceName {name:?} is invalid")]
    Resource {
        /// The name.
        name: String,
    },
    /// It does not answer.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// All plugins. Empty and idle until the first one registers.
#[derive(Debug)]
pub struct Devices {
    state: Mutex<State>,
    /// Counts the changes of what is offered.
    changed: watch::Sender<u64>,
    /// Names the resources that were offered since the machine started. Locked while it is written.
    known_file: Mutex<PathBuf>,
}

#[derive(Debug, Default)]
struct State {
    offers: Arc<Offers>,
    plugins: BTreeMap<String, Arc<Plugin>>,
    /// As in the file.
    known: BTreeSet<String>,
}

impl Devices {
    /// Nothing is offered yet. `known_file` does not survive a reboot.
    pub fn new(known_file: PathBuf) -> Devices {
        // A list that cannot be read only has containers wait for plugins that were there already.
        let known = durable::read_json(&known_file).unwrap_or_default().unwrap_or_default();
        let state = Mutex::new(State { known, ..State::default() });
        Devices { state, changed: watch::Sender::new(0), known_file: Mutex::new(known_file) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is offered. Plugins that have been gone for too long are forgotten.
    pub fn offers(&self) -> Arc<Offers> {
        let mut state = self.state();
        let now = Timestamp::now();
        if state.offers.values().any(|offer| offer.is_over(now)) {
            Arc::make_mut(&mut state.offers).retain(|_, offer| !offer.is_over(now));
        }
        state.offers.clone()
    }

    /// Changes whenever what is offered does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The plugin of a resource, if it is there.
    pub fn plugin(&self, resource: &str) -> Option<Arc<Plugin>> {
        self.state().plugins.get(resource).cloned()
    }

    /// Whether a plugin has offered `resource` since the machine was started: its devices are ready then.
    pub fn is_known(&self, resource: &str) -> bool {
        self.state().known.contains(resource)
    }

    /// Takes up the plugin of `resource` that listens at `socket`, in place of any other. What it offers is known when it
    /// has said so. For the registration socket, and for whoever finds plugins otherwise.
    ///
    /// # Errors
    /// The resource has no good name, or the plugin does not answer.
    pub async fn register(self: &Arc<Self>, resource: &str, socket: &Path) -> Result<(), RegisterError> {
        if !resources::is_extended(resource) {
            return Err(RegisterError::Resource { name: resource.to_owned() });
        }
        let plugin = Arc::new(Plugin::connect(socket).await?);
        {
            let mut state = self.state();
            if let Some(replaced) = state.plugins.insert(resource.to_owned(), plugin.clone()) {
                replaced.stopped.send_replace(true);
            }
            let offers = Arc::make_mut(&mut state.offers);
            // What its predecessor said holds no more.
            let devices = offers.remove(resource).map(|offer| offer.devices).unwrap_or_default();
            let offer = Offer {
                devices,
                plugin: devices::Plugin::Registered,
                preferred: plugin.options.get_preferred_allocation_available,
                pre_start: plugin.options.pre_start_required,
            };
            offers.insert(resource.to_owned(), offer);
        }
        self.tell();
        tokio::spawn(self.clone().watch(resource.to_owned(), plugin));
        Ok(())
    }

    /// Gives up the plugin of `resource` at `socket`, if that is the one there is. For whoever finds plugins otherwise.
    pub fn deregister(&self, resource: &str, socket: &Path) {
        let plugin = self.plugin(resource).filter(|plugin| plugin.socket == socket);
        if let Some(plugin) = plugin {
            self.stopped(resource, &plugin);
        }
    }

    /// Follows what a plugin offers until it is gone or another has taken its place.
    async fn watch(self: Arc<Self>, resource: String, plugin: Arc<Plugin>) {
        let mut replaced = plugin.stopped.subscribe();
        let follow = async {
            let mut lists: Streaming<ListAndWatchResponse> = plugin.list_and_watch().await?;
            while let Some(list) = lists.message().await? {
                self.listed(&resource, &plugin, list).await;
            }
            Ok::<(), tonic::Status>(())
        };
        // Cancel-safe: the stream is given up as a whole.
        let end = tokio::select! {
            biased;
            _ = replaced.wait_for(|stopped| *stopped) => return,
            end = follow => end,
        };
        let cause = end.err().map(|status| status.message().to_owned()).unwrap_or_default();
        warn!(resource, cause, "the device plugin is gone");
        self.stopped(&resource, &plugin);
    }

    /// The plugin has said which devices there are.
    async fn listed(self: &Arc<Self>, resource: &str, plugin: &Arc<Plugin>, list: ListAndWatchResponse) {
        let device = |device: wire::Device| {
            let nodes = device.topology.into_iter().flat_map(|topology| topology.nodes);
            let nodes: NodeMask = nodes.filter_map(|node| u32::try_from(node.id).ok()).collect();
            (device.id, Device { healthy: device.health == HEALTHY, nodes })
        };
        let devices: BTreeMap<String, Device> = list.devices.into_iter().map(device).collect();
        let (count, healthy) = (devices.len(), devices.values().filter(|device| device.healthy).count());
        let known = {
            let mut state = self.state();
            if !state.plugins.get(resource).is_some_and(|current| Arc::ptr_eq(current, plugin)) {
                return;
            }
            if let Some(offer) = Arc::make_mut(&mut state.offers).get_mut(resource) {
                offer.devices = devices;
                offer.plugin = devices::Plugin::Listed;
            }
            state.known.insert(resource.to_owned())
        };
        info!(resource, count, healthy, "devices of a plugin");
        if known {
            let devices = self.clone();
            let write = move || {
                // The set is read under the lock, so that nothing older is written after it.
                let path = devices.known_file.lock().unwrap_or_else(PoisonError::into_inner);
                let known = devices.state().known.clone();
                durable::write_json_until_reboot(&path, &known)
            };
            if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
                warn!("after a restart of the agent containers wait for this plugin again: {}", Chain(&error));
            }
        }
        self.tell();
    }

    fn stopped(&self, resource: &str, plugin: &Arc<Plugin>) {
        {
            let mut state = self.state();
            if !state.plugins.get(resource).is_some_and(|current| Arc::ptr_eq(current, plugin)) {
                return;
            }
            state.plugins.remove(resource);
            if let Some(offer) = Arc::make_mut(&mut state.offers).get_mut(resource) {
                offer.plugin = devices::Plugin::Stopped(Timestamp::now());
            }
        }
        plugin.stopped.send_replace(true);
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }
}
