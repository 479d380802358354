//! What the local API needs of the image store.

use std::{path::PathBuf, pin::Pin};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncRead, sync::mpsc};

use crate::worker::handle::{BoxFuture, NodeError};

/// An image as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageView {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// Never collected.
    pub pinned: bool,
}

/// Credentials for one pull.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never in a log.
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How far a pull is; sent now and then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// Digest of the layer this is about.
    pub digest: String,
    /// Bytes that have arrived of it.
    pub received: u64,
    /// Bytes it has.
    pub total: u64,
}

/// Where a load reads from.
pub enum LoadSource {
    /// An OCI layout (directory or tar) or a docker-archive on this machine; absolute.
    Path(PathBuf),
    /// The bytes of an archive.
    Archive(Pin<Box<dyn AsyncRead + Send>>),
}

/// What a collection has removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Names (or ids) of the images removed.
    pub removed: Vec<String>,
    /// Bytes given back.
    pub freed: u64,
}

/// The image store, as the local API sees it. Errors say for themselves what failed; an image that does not exist is
/// [`NodeError::NotFound`], one that is in use [`NodeError::Conflict`].
pub trait Images: Send + Sync + 'static {
    /// All images, sorted by name.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageView>, NodeError>>;

    /// Pulls one, whatever is there already. `progress` may be full: then a report is left out.
    fn pull(
        &self,
        reference: String,
        credentials: Option<Credentials>,
        progress: mpsc::Sender<PullProgress>,
    ) -> BoxFuture<'_, Result<ImageView, NodeError>>;

    /// Loads everything in an archive or layout; `name` is given to its only image.
    fn load(&self, source: LoadSource, name: Option<String>) -> BoxFuture<'_, Result<Vec<ImageView>, NodeError>>;

    /// Removes a name, and the image with its last one. Returns what was removed.
    fn remove(&self, reference: String) -> BoxFuture<'_, Result<Vec<String>, NodeError>>;

    /// Removes all images that no pod uses and that are not pinned.
    fn collect(&self) -> BoxFuture<'_, Result<Collected, NodeError>>;
}
