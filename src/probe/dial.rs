//! Connections of handlers: made within a time, and gone without a trace when they are done.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    os::fd::AsRawFd,
    pin::Pin,
    task::{Context, Poll},
};

use nix::{
    errno::Errno,
    sys::socket::{Shutdown, shutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// Names looked up at a time: each takes a thread for as long as the name servers let it wait, and goes on when its
/// handler has given up.
static LOOKUPS: Semaphore = Semaphore::const_new(16);

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The time was over.
    #[error("dial tcp {address}: i/o timeout")]
    Timeout {
        /// Host and port.
        address: String,
    },
    /// Refused, no route, …
    #[error("dial tcp {address}: connect: {}", plain(.error))]
    Connect {
        /// Address and port that were tried last.
        address: SocketAddr,
        /// Cause, in the text already.
        error: io::Error,
    },
    /// The host's name means nothing here.
    #[error("dial tcp: lookup {host}: no such host")]
    Lookup {
        /// As written in the handler.
        host: String,
    },
}

/// The kernel's word for an error, as Go has it: without number, in small letters.
fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_ascii_lowercase(),
        None => error.to_string(),
    }
}

/// Host and port as in a URL: an IPv6 address stands in brackets.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Connects to `host` (an address, or a name that the node can look up), the first of its addresses that answers.
///
/// # Errors
/// [`DialError`].
pub(super) async fn connect(host: &str, port: u16, until: Instant) -> Result<Connection, DialError> {
    let late = || DialError::Timeout { address: join(host, port) };
    timeout_at(until, async {
        let mut failure = DialError::Lookup { host: host.to_owned() };
        for address in addresses(host, port).await {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(Connection(stream)),
                Err(error) => failure = DialError::Connect { address, error },
            }
        }
        Err(failure)
    })
    .await
    .unwrap_or_else(|_| Err(late()))
}

async fn addresses(host: &str, port: u16) -> Vec<SocketAddr> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return vec![SocketAddr::new(address, port)];
    }
    // Never closed.
    let Ok(permit) = LOOKUPS.acquire().await else { return Vec::new() };
    let host = host.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        (host.as_str(), port).to_socket_addrs().map(Iterator::collect).unwrap_or_default()
    });
    found.await.unwrap_or_default()
}

/// A connection that, when it is dropped, says its farewell and leaves nothing waiting on the node: what is probed every
/// few seconds must not fill the tables with sockets in TIME_WAIT. (Upstream lingers for a second, which would block a
/// thread here.)
#[derive(Debug)]
pub(super) struct Connection(TcpStream);

impl Drop for Connection {
    fn drop(&mut self) {
        // An orderly end for the other side, which reads to the end of the stream; then the socket is forgotten at once,
        // before the other side has ended its half, which is when TIME_WAIT would begin. (One that does so in between the
        // two leaves it all the same.) Ignored: it may be broken already.
        let _ = self.0.set_zero_linger();
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Write);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The farewell is said when it is dropped, and not any time before.
        Poll::Ready(Ok(()))
    }
}
