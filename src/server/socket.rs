//! The two sockets in the run directory, which may lie deeper than a socket address (108 bytes) can say: they are bound
//! and reached through `/proc/self/fd/<directory>/<name>`.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use axum::Router;

use crate::sys::seqpacket;

/// A socket could not be made ready.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}")]
pub struct SocketError {
    /// `create directory of`, `bind`, `restrict`.
    step: &'static str,
    /// The socket.
    path: PathBuf,
    /// Cause.
    #[source]
    source: io::Error,
}

/// Binds the socket of the HTTP API, mode 0600; one that a former agent left behind is replaced. The caller holds the
/// lock of these directories.
///
/// # Errors
/// The directory cannot be made or written.
pub fn bind_api(path: &Path) -> Result<UnixListener, SocketError> {
    prepare(path)?;
    let error = |step| move |source| SocketError { step, path: path.to_owned(), source };
    let listener = seqpacket::listen_for_streams(parent(path), name(path)).map_err(error("bind"))?;
    Ok(UnixListener::from(listener))
}

/// Binds the SOCK_SEQPACKET socket of exec, mode 0600.
///
/// # Errors
/// The directory cannot be made or written.
pub fn bind_stream(path: &Path) -> Result<OwnedFd, SocketError> {
    prepare(path)?;
    let error = |step| move |source| SocketError { step, path: path.to_owned(), source };
    seqpacket::listen(parent(path), name(path)).map_err(error("bind"))
}

/// Connects to the HTTP API.
///
/// # Errors
/// NotFound when no agent ever listened there, ConnectionRefused when it no longer does.
pub fn connect_api(path: &Path) -> io::Result<UnixStream> {
    let (_directory, through) = through(path)?;
    UnixStream::connect(through)
}

/// Connects to the stream socket; blocking.
///
/// # Errors
/// As [`connect_api`].
pub fn connect_stream(path: &Path) -> io::Result<OwnedFd> {
    seqpacket::connect(parent(path), name(path))
}

/// Serves until `shutdown` resolves and the requests then under way are done.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

fn prepare(path: &Path) -> Result<(), SocketError> {
    let error = |step| move |source| SocketError { step, path: path.to_owned(), source };
    let directory = parent(path);
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(error("create directory of"))?;
        // What is in there is nobody's business but root's.
        fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(error("restrict directory of"))?;
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("replace")(source)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn through(path: &Path) -> io::Result<(File, PathBuf)> {
    let directory = File::open(parent(path))?;
    let through = PathBuf::from(format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name(path)));
    Ok((directory, through))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_longer_than_an_address_works_and_only_the_owner_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
        let path = deep.join("berth.sock");
        assert_eq!(connect_api(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = bind_api(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
        connect_api(&path).unwrap();
        drop(listener);
        assert_eq!(connect_api(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // A left-over is replaced.
        let _again = bind_api(&path).unwrap();
        connect_api(&path).unwrap();

        let path = deep.join("stream.sock");
        let _listener = bind_stream(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        connect_stream(&path).unwrap();
    }
}
