//! One operation with a driver: its calls over one connection, all within one time.

use std::{path::Path, time::Duration};

use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status, transport::Channel};

use super::{
    drivers::Driver,
    messages::{
        NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
        NodePublishVolumeRequest, NodePublishVolumeResponse, NodeStageVolumeRequest, NodeStageVolumeResponse,
        NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse,
        capability,
    },
};
use crate::plugin::call::{call, connect, sentence};

/// For all calls of one operation (upstream's `csiTimeout`).
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// What a driver answered instead, in gRPC's words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", sentence(.0))]
pub struct CallError(pub Status);

impl CallError {
    /// Whether the operation has ended for sure. After any other error it may go on, or have succeeded: upstream's
    /// `isFinalError`.
    pub fn is_final(&self) -> bool {
        !matches!(
            self.0.code(),
            Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted
        )
    }
}

/// What a driver can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Volumes are staged once for the node.
    pub stages: bool,
    /// It sees to fsGroup itself.
    pub mount_group: bool,
    /// It tells one writer from several on one node.
    pub single_node_multi_writer: bool,
}

/// A connection for one operation at a time.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    until: Instant,
}

impl Client {
    /// Connects to a driver; everything has to be over within [`TIMEOUT`].
    pub async fn connect(driver: &Driver) -> Result<Client, CallError> {
        Client::at(&driver.endpoint, Instant::now() + TIMEOUT).await
    }

    /// Connects to the driver that serves at `endpoint`.
    pub async fn at(endpoint: &Path, until: Instant) -> Result<Client, CallError> {
        Ok(Client { channel: connect(endpoint, until).await.map_err(CallError)?, until })
    }

    /// The same connection, for another operation.
    #[must_use]
    pub fn for_another(self) -> Client {
        Client { until: Instant::now() + TIMEOUT, ..self }
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, CallError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        call(&self.channel, method, request, self.until).await.map_err(CallError)
    }

    /// What the driver says of this node.
    pub async fn info(&self) -> Result<NodeGetInfoResponse, CallError> {
        self.call("/csi.v1.Node/NodeGetInfo", NodeGetInfoRequest {}).await
    }

    /// What the driver can do.
    pub async fn capabilities(&self) -> Result<Capabilities, CallError> {
        let answer: NodeGetCapabilitiesResponse =
            self.call("/csi.v1.Node/NodeGetCapabilities", NodeGetCapabilitiesRequest {}).await?;
        let has = |wanted: i32| {
            let mut kinds = answer.capabilities.iter().filter_map(|capability| capability.rpc.as_ref());
            kinds.any(|rpc| rpc.kind == wanted)
        };
        Ok(Capabilities {
            stages: has(capability::STAGE_UNSTAGE_VOLUME),
            mount_group: has(capability::VOLUME_MOUNT_GROUP),
            single_node_multi_writer: has(capability::SINGLE_NODE_MULTI_WRITER),
        })
    }

    /// Makes a volume ready on the node.
    pub async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), CallError> {
        let done: Result<NodeStageVolumeResponse, _> = self.call("/csi.v1.Node/NodeStageVolume", request).await;
        done.map(drop)
    }

    /// Undoes [`Client::stage`].
    pub async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<(), CallError> {
        let done: Result<NodeUnstageVolumeResponse, _> = self.call("/csi.v1.Node/NodeUnstageVolume", request).await;
        done.map(drop)
    }

    /// Makes a volume available at a pod's place.
    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), CallError> {
        let done: Result<NodePublishVolumeResponse, _> = self.call("/csi.v1.Node/NodePublishVolume", request).await;
        done.map(drop)
    }

    /// Undoes [`Client::publish`].
    pub async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), CallError> {
        let done: Result<NodeUnpublishVolumeResponse, _> = self.call("/csi.v1.Node/NodeUnpublishVolume", request).await;
        done.map(drop)
    }
}
