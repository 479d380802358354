//! The connection to one device plugin.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{Uri, http::uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::watch, time::timeout};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    socket,
    wire::{
        AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
        DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest, PreferredAllocationRequest,
        PreferredAllocationResponse,
    },
};
use crate::pod::devices::{Artifacts, Question};

/// How long a plugin may take to accept a connection (upstream's dial).
const DIAL: Duration = Duration::from_secs(10);
/// How long a plugin may take for what costs it nothing: its options, which devices it prefers.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may take to make devices ready. Upstream waits for ever, and with it every other pod.
const ALLOCATE: Duration = Duration::from_secs(120);
/// How long it may take before each start (upstream `KubeletPreStartContainerRPCTimeoutInSecs`).
const PRE_START: Duration = Duration::from_secs(30);
/// How long the news that a plugin is gone may take to come by the other way.
const GONE: Duration = Duration::from_secs(1);

/// Why a plugin did not do what it was asked for. In upstream's words, which are those of gRPC.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// Nobody listens at its socket.
    #[error("failed to dial device plugin: {path}: {cause}")]
    Dial {
        /// Socket.
        path: PathBuf,
        /// Why, in the text already.
        cause: String,
    },
    /// It answered with an error, or not in time.
    #[error("rpc error: code = {code:?} desc = {message}")]
    Rpc {
        /// gRPC's code.
        code: Code,
        /// Its message.
        message: String,
        /// The plugin is gone.
        gone: bool,
    },
    /// It says nothing about the one container that it was asked for.
    #[error("no containers return in allocation response")]
    NoContainer,
}

impl PluginError {
    /// Whether the plugin is gone, and another that takes its place could be asked.
    pub fn is_gone(&self) -> bool {
        matches!(self, PluginError::Rpc { gone: true, .. } | PluginError::Dial { .. })
    }
}

/// One plugin, which has registered.
#[derive(Debug)]
pub struct Plugin {
    /// Its socket.
    pub(super) socket: PathBuf,
    channel: Channel,
    pub(super) options: DevicePluginOptions,
    /// True as soon as it is known to be gone.
    pub(super) stopped: watch::Sender<bool>,
}

impl Plugin {
    /// Connects to the plugin at `socket` and asks for its options.
    pub(super) async fn connect(socket: &Path) -> Result<Plugin, PluginError> {
        let failed = |cause: String| PluginError::Dial { path: socket.to_owned(), cause };
        let endpoint = Endpoint::from_static("http://localhost");
        let dialled = timeout(DIAL, endpoint.connect_with_connector(Dialer(socket.to_owned()))).await;
        let channel = match dialled {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(failed(innermost(&error))),
            Err(_) => return Err(failed("context deadline exceeded".to_owned())),
        };
        let options = DevicePluginOptions::default();
        let mut plugin = Plugin { socket: socket.to_owned(), channel, options, stopped: watch::Sender::new(false) };
        plugin.options = plugin.call("GetDevicePluginOptions", Empty {}, ANSWER).await?;
        Ok(plugin)
    }

    /// The lists of devices that it sends from now on.
    pub(super) async fn list_and_watch(&self) -> Result<Streaming<ListAndWatchResponse>, Status> {
        let mut client = self.client().await?;
        let codec = ProstCodec::<Empty, ListAndWatchResponse>::default();
        Ok(client.server_streaming(Request::new(Empty {}), method("ListAndWatch")?, codec).await?.into_inner())
    }

    /// Which of the devices it would rather have chosen.
    ///
    /// # Errors
    /// [`PluginError::Rpc`].
    pub async fn preferred(&self, question: &Question) -> Result<Vec<String>, PluginError> {
        let request = ContainerPreferredAllocationRequest {
            available: question.available.clone(),
            must_include: question.must_include.clone(),
            allocation_size: i32::try_from(question.size).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        let answer: PreferredAllocationResponse = self.call("GetPreferredAllocation", request, ANSWER).await?;
        Ok(answer.container_responses.into_iter().next().map(|container| container.devices_ids).unwrap_or_default())
    }

    /// Has devices made ready for a container, and says what the container needs for them.
    ///
    /// # Errors
    /// [`PluginError::Rpc`], [`PluginError::NoContainer`].
    pub async fn allocate(&self, devices_ids: Vec<String>) -> Result<Artifacts, PluginError> {
        let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids }] };
        let answer: AllocateResponse = self.call("Allocate", request, ALLOCATE).await?;
        let answer = answer.container_responses.into_iter().next().ok_or(PluginError::NoContainer)?;
        Ok(answer.into_artifacts(self.options.pre_start_required))
    }

    /// Tells that a container with these devices is about to be started.
    ///
    /// # Errors
    /// [`PluginError::Rpc`].
    pub async fn pre_start(&self, devices_ids: Vec<String>) -> Result<(), PluginError> {
        let request = PreStartContainerRequest { devices_ids };
        self.call::<_, Empty>("PreStartContainer", request, PRE_START).await.map(drop)
    }

    async fn client(&self) -> Result<Grpc<Channel>, Status> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(innermost(&error)))?;
        Ok(client)
    }

    async fn call<Q, A>(&self, name: &str, request: Q, within: Duration) -> Result<A, PluginError>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let call = async {
            let codec = ProstCodec::<Q, A>::default();
            Ok(self.client().await?.unary(Request::new(request), method(name)?, codec).await?.into_inner())
        };
        let late = || Status::deadline_exceeded("context deadline exceeded");
        let status: Status = match timeout(within, call).await.unwrap_or_else(|_| Err(late())) {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        // A plugin that ends while it is asked, and one that only says that it cannot, sound the same.
        let broken = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
        let mut stopped = self.stopped.subscribe();
        let gone = broken && timeout(GONE, stopped.wait_for(|stopped| *stopped)).await.is_ok_and(|seen| seen.is_ok());
        Err(PluginError::Rpc { code: status.code(), message: status.message().to_owned(), gone })
    }
}

fn method(name: &str) -> Result<PathAndQuery, Status> {
    let path = format!("/v1beta1.DevicePlugin/{name}");
    path.parse().map_err(|_| Status::internal(format!("{path} is not a path")))
}

/// The last cause of an error, in the words of whoever found it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Gives a channel its connection to a socket.
struct Dialer(PathBuf);

impl tower_service::Service<Uri> for Dialer {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { socket::connect(&path).await.map(TokioIo::new) })
    }
}
