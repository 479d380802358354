//! What is said over a registration socket (`k8s.io/kubelet/pkg/apis/pluginregistration/v1/api.proto`): the plugin is
//! asked what it is, and told whether it has been taken up.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::transport::Channel;

use super::{
    Handler, Plugin,
    call::{call, connect, sentence},
    registry::{Handlers, Slot},
};

/// Upstream's `dialTimeoutDuration`.
const DIAL: Duration = Duration::from_secs(10);
/// For `GetInfo`.
const INFO: Duration = Duration::from_secs(1);
/// Upstream's `notifyTimeoutDuration`.
const NOTIFY: Duration = Duration::from_secs(5);

/// `pluginregistration.InfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {}

/// `pluginregistration.PluginInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DevicePlugin`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Unique among those of its kind.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Socket of the service; empty: the registration socket itself.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// Versions of the service.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationStatus {
    /// Whether it has been taken up.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `pluginregistration.RegistrationStatusResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistrationStatusResponse {}

/// Why a plugin is not registered.
#[derive(Debug)]
pub(super) struct Refusal {
    /// In upstream's words.
    pub message: String,
    /// The socket could not even be connected to.
    pub nobody_listens: bool,
}

impl From<String> for Refusal {
    fn from(message: String) -> Refusal {
        Refusal { message, nobody_listens: false }
    }
}

/// Registers the plugin behind `socket`: upstream's `GenerateRegisterPluginFunc`. `slot` holds what is to be taken back
/// when the socket is gone, from before the handler is told.
///
/// # Errors
/// The plugin has been told, as far as it listens.
pub(super) async fn register(socket: &Path, handlers: &Handlers, slot: &Slot) -> Result<(), Refusal> {
    let place = socket.display();
    let channel = connect(socket, Instant::now() + DIAL).await.map_err(|status| {
        let why = sentence(&status);
        let message = format!("RegisterPlugin error -- dial failed at socket {place}, err: {why}");
        Refusal { message, nobody_listens: true }
    })?;
    let asked = call(&channel, "/pluginregistration.Registration/GetInfo", InfoRequest {}, Instant::now() + INFO);
    let info: PluginInfo = asked.await.map_err(|status| {
        let why = sentence(&status);
        format!("RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {place}, err: {why}")
    })?;
    let Some(handler) = handlers.get(info.kind.as_str()) else {
        let kind = &info.kind;
        let why = format!("RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {place}");
        return Err(refuse(&channel, why).await.into());
    };
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { info.endpoint.into() };
    let plugin = Plugin { name: info.name, endpoint, versions: info.supported_versions };
    if let Err(error) = handler.validate(&plugin) {
        let why = format!("RegisterPlugin error -- plugin validation failed with err: {error}");
        return Err(refuse(&channel, why).await.into());
    }
    slot.fill(handler.clone(), plugin.clone());
    if let Err(error) = handler.register(plugin).await {
        slot.empty();
        let why = format!("RegisterPlugin error -- plugin registration failed with err: {error}");
        return Err(refuse(&channel, why).await.into());
    }
    // The plugin is taken up whether it hears of it or not.
    notify(&channel, true, String::new()).await.map_err(|error| {
        format!("RegisterPlugin error -- failed to send registration status at socket {place}, err: {error}").into()
    })
}

async fn refuse(channel: &Channel, why: String) -> String {
    match notify(channel, false, why.clone()).await {
        Ok(()) => why,
        Err(error) => format!("{why}: {error}"),
    }
}

async fn notify(channel: &Channel, plugin_registered: bool, error: String) -> Result<(), String> {
    let status = RegistrationStatus { plugin_registered, error };
    let method = "/pluginregistration.Registration/NotifyRegistrationStatus";
    let told = call::<_, RegistrationStatusResponse>(channel, method, status, Instant::now() + NOTIFY).await;
    told.map(drop).map_err(|status| sentence(&status))
}

/// For the types of the signatures above.
pub(super) type AnyHandler = Arc<dyn Handler>;
