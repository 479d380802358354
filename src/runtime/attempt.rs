//! The directories an attempt needs before its supervisor may start it.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{store::layout::AttemptDirs, supervisor::spec::LaunchSpec};

/// A file or directory of an attempt could not be made.
#[derive(Debug, thiserror::Error)]
#[error("create {path}")]
pub struct PrepareError {
    /// Which.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Makes what `spec` says exists: the parts of its overlay, the file for its last words, the directory of its log.
/// What exists already stays as it is, so that a repeated start keeps what the container has written.
///
/// Nothing of this is synced: a start that a crash interrupts is done again.
pub fn prepare(spec: &LaunchSpec, attempt: &AttemptDirs) -> Result<(), PrepareError> {
    directory(&attempt.dir, 0o700)?;
    for path in [&spec.rootfs.upper, &spec.rootfs.work, &spec.rootfs.target] {
        // The mode of the upper directory is that of the container's root.
        directory(path, 0o755)?;
    }
    if let Some(directory_of_log) = spec.log.path.parent() {
        directory(directory_of_log, 0o755)?;
    }
    let log = attempt.termination_log();
    match OpenOptions::new().write(true).create_new(true).mode(0o666).open(&log) {
        // Whoever the container runs as may write, whatever the agent's umask.
        Ok(_) => fs::set_permissions(&log, Permissions::from_mode(0o666)).map_err(failed(&log)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(&log)(error)),
    }
}

/// Makes a directory, and those above it when they are missing.
fn directory(path: &Path, mode: u32) -> Result<(), PrepareError> {
    let mut builder = DirBuilder::new();
    builder.mode(mode);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            builder.recursive(true).create(path).map_err(failed(path))
        }
        result => result.map_err(failed(path)),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PrepareError {
    let path = path.to_owned();
    move |source| PrepareError { path, source }
}
