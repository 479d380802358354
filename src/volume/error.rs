//! What can go wrong with a volume.

use std::{io, path::PathBuf};

use nix::errno::Errno;

use super::Unsupported;

/// A volume could not be set up or torn down.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// berth does not provide it.
    #[error("unsupported volume")]
    Unsupported(#[from] Unsupported),
    /// The manifest says something that cannot be: a quantity that is none, a relative hostPath.
    #[error("{field}: {message}")]
    Invalid {
        /// Field below the volume.
        field: &'static str,
        /// Cause.
        message: String,
    },
    /// What is at a hostPath is not what its type says.
    #[error("{0}")]
    HostPathType(String),
    /// A step on a file failed.
    #[error("{step} {path}")]
    Io {
        /// `create directory`, `change owner of`, …
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file system could not be mounted.
    #[error("mount {kind} ({options}) on {path}")]
    Mount {
        /// `tmpfs`, `hugetlbfs`.
        kind: &'static str,
        /// Where.
        path: PathBuf,
        /// Mount options.
        options: String,
        /// Cause.
        #[source]
        source: Errno,
    },
    /// mount(8) could not mount a file system of a server.
    #[error("mount failed: {status}, mounting arguments: {arguments}, output: {output}")]
    MountProgram {
        /// How it ended: `exit status: 32`.
        status: String,
        /// What it was asked.
        arguments: String,
        /// What it printed, on one line.
        output: String,
    },
    /// A mount could not be taken away.
    #[error("unmount {path}")]
    Unmount {
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Errno,
    },
    /// A directory could not be removed.
    #[error("tear down volumes")]
    Remove(#[from] super::remove::RemoveError),
}

/// For `map_err`: the step that failed and on what.
pub(super) fn io_error(step: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { step, path, source }
}
