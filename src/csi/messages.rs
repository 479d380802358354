//! Messages of the Container Storage Interface 1.x (`csi.proto`, service `csi.v1.Node`), as far as a node has to do with
//! them. Field numbers are those of the specification.

use std::collections::BTreeMap;

/// `NodeGetInfoRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetInfoRequest {}

/// `NodeGetInfoResponse`. The topology (field 3) is a scheduler's business.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetInfoResponse {
    /// What the driver calls this node.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// 0: no limit. A scheduler's business.
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
}

/// `NodeGetCapabilitiesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetCapabilitiesRequest {}

/// `NodeGetCapabilitiesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeGetCapabilitiesResponse {
    /// What the driver can do beyond publishing.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<NodeServiceCapability>,
}

/// `NodeServiceCapability`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeServiceCapability {
    /// The only variant of `oneof type`.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<Rpc>,
}

/// `NodeServiceCapability.RPC`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rpc {
    /// One of [`capability`].
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

/// `NodeServiceCapability.RPC.Type`. Those not listed are not asked for.
pub mod capability {
    /// NodeStageVolume and NodeUnstageVolume.
    pub const STAGE_UNSTAGE_VOLUME: i32 = 1;
    /// The access modes SINGLE_NODE_SINGLE_WRITER and SINGLE_NODE_MULTI_WRITER.
    pub const SINGLE_NODE_MULTI_WRITER: i32 = 5;
    /// `volume_mount_group`.
    pub const VOLUME_MOUNT_GROUP: i32 = 6;
}

/// `VolumeCapability.AccessMode.Mode`.
pub mod access_mode {
    /// `UNKNOWN`.
    pub const UNKNOWN: i32 = 0;
    /// One node may write.
    pub const SINGLE_NODE_WRITER: i32 = 1;
    /// Many nodes may read.
    pub const MULTI_NODE_READER_ONLY: i32 = 3;
    /// Many nodes may write.
    pub const MULTI_NODE_MULTI_WRITER: i32 = 5;
    /// One workload of one node may write.
    pub const SINGLE_NODE_SINGLE_WRITER: i32 = 6;
    /// Several workloads of one node may write.
    pub const SINGLE_NODE_MULTI_WRITER: i32 = 7;
}

/// `VolumeCapability`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeCapability {
    /// `oneof access_type`.
    #[prost(oneof = "AccessType", tags = "1, 2")]
    pub access_type: Option<AccessType>,
    /// How many may use it.
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessMode>,
}

/// `VolumeCapability.access_type`.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum AccessType {
    /// As a device.
    #[prost(message, tag = "1")]
    Block(BlockVolume),
    /// As a file system.
    #[prost(message, tag = "2")]
    Mount(MountVolume),
}

/// `VolumeCapability.BlockVolume`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlockVolume {}

/// `VolumeCapability.MountVolume`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountVolume {
    /// Empty: the driver chooses.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// `mountOptions` of a PersistentVolume.
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
    /// fsGroup, for drivers with VOLUME_MOUNT_GROUP.
    #[prost(string, tag = "3")]
    pub volume_mount_group: String,
}

/// `VolumeCapability.AccessMode`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AccessMode {
    /// One of [`access_mode`].
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

/// `NodeStageVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeStageVolumeRequest {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Of ControllerPublishVolume, which nobody calls here.
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: BTreeMap<String, String>,
    /// Directory of the node, made by the caller.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// How it is to be used.
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
    /// Of nodeStageSecretRef.
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: BTreeMap<String, String>,
    /// `volumeAttributes`.
    #[prost(btree_map = "string, string", tag = "6")]
    pub volume_context: BTreeMap<String, String>,
}

/// `NodeStageVolumeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeStageVolumeResponse {}

/// `NodeUnstageVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeUnstageVolumeRequest {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// As it was staged.
    #[prost(string, tag = "2")]
    pub staging_target_path: String,
}

/// `NodeUnstageVolumeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeUnstageVolumeResponse {}

/// `NodePublishVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodePublishVolumeRequest {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Of ControllerPublishVolume, which nobody calls here.
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: BTreeMap<String, String>,
    /// Where it is staged; empty for a driver that does not stage.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// Where it is to be; the caller makes the directory above it.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// How it is to be used.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Nobody may write.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// Of nodePublishSecretRef.
    #[prost(btree_map = "string, string", tag = "7")]
    pub secrets: BTreeMap<String, String>,
    /// `volumeAttributes`, and what the driver wants to know of the pod.
    #[prost(btree_map = "string, string", tag = "8")]
    pub volume_context: BTreeMap<String, String>,
}

/// `NodePublishVolumeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodePublishVolumeResponse {}

/// `NodeUnpublishVolumeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeUnpublishVolumeRequest {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// As it was published.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `NodeUnpublishVolumeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeUnpublishVolumeResponse {}
