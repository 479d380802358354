//! What can go wrong with an image, and which of upstream's reasons a pod's status shows for it.

use std::{error::Error, io, path::PathBuf, sync::Arc, time::Duration};

use super::{digest::Digest, unpack::UnpackError};

/// An image operation failed. Cheap to clone, because everyone who waits for a shared pull is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The reference cannot be parsed.
    #[error("invalid image reference {reference:?}: {problem}")]
    InvalidReference {
        /// As written.
        reference: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `imagePullPolicy: Never` and no such image.
    #[error("image {reference:?} is not present with pull policy of Never")]
    NeverPull {
        /// As written.
        reference: String,
    },
    /// No such image in the store.
    #[error("image {reference:?} is not present")]
    NotPresent {
        /// As written.
        reference: String,
    },
    /// A prefix of an image id matches several.
    #[error("image id {reference:?} is ambiguous: {matches}")]
    Ambiguous {
        /// As written.
        reference: String,
        /// The ids, comma-separated.
        matches: String,
    },
    /// The image is used by a container, or pinned.
    #[error("image {reference:?} ({id}) {why}")]
    InUse {
        /// As written.
        reference: String,
        /// Its id.
        id: String,
        /// `is used by a container` or `is pinned`.
        why: &'static str,
    },
    /// The registry did not give what was asked for.
    #[error("{reference}: {subject} from {host}")]
    Registry {
        /// Normalized reference.
        reference: String,
        /// Host (and port) that was asked last.
        host: String,
        /// `manifest latest`, `blob sha256:…`.
        subject: String,
        /// Cause.
        #[source]
        source: RegistryError,
    },
    /// The bytes are not those that were announced.
    #[error("{subject}: digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was checked, with the reference or path it belongs to.
        subject: String,
        /// Announced.
        expected: Digest,
        /// Computed.
        actual: Digest,
    },
    /// There are more or fewer bytes than announced.
    #[error("{subject}: size mismatch: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// What was checked.
        subject: String,
        /// Announced.
        expected: u64,
        /// Counted.
        actual: u64,
    },
    /// Not a kind of object that can be run.
    #[error("{subject}: unsupported media type {media_type:?}")]
    UnsupportedMediaType {
        /// What has it.
        subject: String,
        /// As announced.
        media_type: String,
    },
    /// The index has nothing for this machine, or the image is for another one.
    #[error("{reference}: no manifest for platform {wanted} (available: {available})")]
    NoPlatform {
        /// Normalized reference.
        reference: String,
        /// `linux/amd64`.
        wanted: String,
        /// Comma-separated.
        available: String,
    },
    /// A manifest, index or configuration is not what the specification says.
    #[error("{subject}: {problem}")]
    Malformed {
        /// What was read.
        subject: String,
        /// What is wrong.
        problem: String,
    },
    /// A layer cannot be unpacked.
    #[error("{subject}: unpack layer {layer}")]
    Unpack {
        /// Image.
        subject: String,
        /// Uncompressed digest of the layer.
        layer: Digest,
        /// Cause.
        #[source]
        source: Arc<UnpackError>,
    },
    /// An archive or layout cannot be read.
    #[error("load {path}: {problem}")]
    Archive {
        /// The file or directory; `standard input` for a stream.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// No room for it.
    #[error("no space left for images: {step} {path}")]
    DiskFull {
        /// Which step.
        step: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A file of the store cannot be read or written.
    #[error("image store: {step} {path}")]
    Io {
        /// Which step.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A record of the store cannot be used.
    #[error("image store: {0}")]
    Record(#[source] Arc<crate::store::durable::StoreError>),
    /// The work was given up because the agent is stopping.
    #[error("{0}: interrupted")]
    Interrupted(String),
}

/// How a registry failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No answer: name resolution, connection, TLS, connection lost, and the retries used up.
    #[error("registry cannot be reached: {0}")]
    Unreachable(String),
    /// No byte for this long, and the retries used up.
    #[error("no data for {0:?}")]
    Stalled(Duration),
    /// 401, or the token service refused.
    #[error("unauthorized: {0}")]
    Unauthorized(String),
    /// 403.
    #[error("access denied: {0}")]
    Denied(String),
    /// 404.
    #[error("not found: {0}")]
    NotFound(String),
    /// 429 after the retries.
    #[error("rate limited: {message}")]
    RateLimited {
        /// What the registry said.
        message: String,
        /// When it may be tried again, if the registry said so.
        retry_after: Option<Duration>,
    },
    /// 5xx after the retries.
    #[error("server error {status}: {message}")]
    Server {
        /// HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// Any other status.
    #[error("unexpected status {status}: {message}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// The answer cannot be used: too large, bad redirect, bad range, bad token.
    #[error("{0}")]
    Protocol(String),
    /// The settings for this host cannot be used (CA file).
    #[error("settings of this registry: {0}")]
    Settings(String),
    /// Whoever wanted the bytes has gone; the reason is told elsewhere.
    #[error("download abandoned")]
    Abandoned,
}

impl RegistryError {
    /// Whether asking again soon may help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            RegistryError::Unreachable(_)
                | RegistryError::Stalled(_)
                | RegistryError::RateLimited { .. }
                | RegistryError::Server { .. }
        )
    }
}

/// Reasons of `containerStatuses[].state.waiting`, as upstream's kubelet spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `InvalidImageName`: retrying cannot help until the pod changes.
    InvalidImageName,
    /// `ErrImageNeverPull`.
    ErrImageNeverPull,
    /// `ImageInspectError`: the local store failed.
    ImageInspectError,
    /// `RegistryUnavailable`.
    RegistryUnavailable,
    /// `ErrImagePull`: everything else.
    ErrImagePull,
}

impl Reason {
    /// Upstream's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::InvalidImageName => "InvalidImageName",
            Reason::ErrImageNeverPull => "ErrImageNeverPull",
            Reason::ImageInspectError => "ImageInspectError",
            Reason::RegistryUnavailable => "RegistryUnavailable",
            Reason::ErrImagePull => "ErrImagePull",
        }
    }
}

impl ImageError {
    /// The reason a pod's status shows.
    pub fn reason(&self) -> Reason {
        match self {
            ImageError::InvalidReference { .. } => Reason::InvalidImageName,
            ImageError::NeverPull { .. } => Reason::ErrImageNeverPull,
            ImageError::Record(_) | ImageError::Ambiguous { .. } => Reason::ImageInspectError,
            ImageError::Registry {
                source: RegistryError::Unreachable(_) | RegistryError::Server { .. } | RegistryError::Stalled(_),
                ..
            } => Reason::RegistryUnavailable,
            _ => Reason::ErrImagePull,
        }
    }

    /// The error and its causes in one line, for a status message.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// An I/O error of the store at `path`; a full disk or quota becomes [`ImageError::DiskFull`].
    pub(crate) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.into();
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ImageError::DiskFull { step, path },
            _ => ImageError::Io { step, path, source: Arc::new(source) },
        }
    }
}

impl From<crate::store::durable::StoreError> for ImageError {
    fn from(error: crate::store::durable::StoreError) -> ImageError {
        use crate::store::durable::StoreError;
        match error {
            StoreError::Io { step, path, source } => ImageError::io(step, path)(source),
            decode => ImageError::Record(Arc::new(decode)),
        }
    }
}
