//! gRPC on unix sockets, which may lie deeper than a socket's address (108 bytes) can say: they are bound and reached through
//! `/proc/self/fd/<directory>/<name>`.

use std::{
    convert::Infallible,
    fs::{self, File},
    future::Future,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{Request, body::Incoming, http::Response, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tonic::body::Body;
use tracing::warn;

/// How long nothing is accepted after an accept failed: there are no descriptors left, and that does not change at once.
const PAUSE: Duration = Duration::from_secs(1);

/// The directory of a socket, which has to be kept open, and the way to the socket through it.
fn through(path: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(parent)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((directory, through))
}

/// Listens at `path`; a socket that is there is replaced.
///
/// # Errors
/// There is no such directory, or it cannot be written.
pub fn listen_at(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_directory, through) = through(path)?;
    UnixListener::bind(through)
}

/// Connects to the socket at `path`.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_directory, through) = through(path)?;
    UnixStream::connect(through).await
}

/// Answers requests for as long as it is polled, and those of open connections for as long as the runtime lives.
pub async fn accept<F, A>(listener: UnixListener, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, answer.clone()));
            }
            Err(error) => {
                warn!(%error, "accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Answers on one connection until the other side closes it.
async fn serve<F, A>(stream: UnixStream, answer: F)
where
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let answer = move |request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    };
    let served = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service_fn(answer));
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended, ignoring");
    }
}
