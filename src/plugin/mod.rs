//! Plugins of the node: programs that offer it something (storage, devices) over a socket of their own, and say so by a
//! registration socket in `<root>/plugins_registry` (`pkg/kubelet/pluginmanager` upstream).
//!
//! What a kind of plugin does is a [`Handler`]'s business. Where no plugin is there, this is one inotify descriptor and
//! one sleeping task.

pub mod call;
mod registration;
pub mod registry;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, pin::Pin};

/// A future of a handler's.
pub type Registering<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// What a plugin says of itself (`PluginInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// What it is called: `hostpath.csi.k8s.io`.
    pub name: String,
    /// Where it serves.
    pub endpoint: PathBuf,
    /// Versions of its service, as it writes them.
    pub versions: Vec<String>,
}

/// What is done with the plugins of one kind (`CSIPlugin`, `DevicePlugin`).
pub trait Handler: Send + Sync + 'static {
    /// Whether a plugin can be used.
    ///
    /// # Errors
    /// Why not, for the plugin to be told. It is asked again later.
    fn validate(&self, plugin: &Plugin) -> Result<(), String>;

    /// Takes up a plugin, within a bounded time. Whether this has ended or not, [`Handler::deregister`] follows when the
    /// plugin is gone.
    ///
    /// # Errors
    /// Why it cannot be used, for the plugin to be told. Tried again later.
    fn register(&self, plugin: Plugin) -> Registering<'_>;

    /// A plugin that was to be registered is gone, or will be registered anew.
    fn deregister(&self, plugin: &Plugin);
}
