//! exec over `<run>/stream.sock`: the client sends its request with its own standard streams as descriptors, which go
//! straight to the process in the container; or it asks for a terminal and gets the master of a pty back. No byte of
//! the session passes through the agent.
//!
//! One request per connection (SOCK_SEQPACKET, JSON): [`ExecRequest`], answered with [`ExecReply::Started`] and then
//! [`ExecReply::Exited`], or with [`ExecReply::Failed`] at any point.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::{
    attach::{self, AttachRequest},
    find,
};
use crate::{
    obs::chain::Chain,
    supervisor::spec::ExecSpec,
    sys::seqpacket::{self, Packet},
    worker::handle::{Node, NodeError},
};

/// Longest request; arguments and environment of a command fit.
pub const MAX_PACKET: usize = 64 * 1024;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// As [`find::pod`] understands it.
    pub pod: String,
    /// Container; `None`: the default one.
    pub container: Option<String>,
    /// Command and arguments.
    pub args: Vec<String>,
    /// Variables beside those of the container.
    pub env: Vec<(String, String)>,
    /// Allocate a terminal. Otherwise stdin, stdout and stderr come with this message.
    pub tty: bool,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecReply {
    /// The process runs; the master of its terminal comes with this message if one was asked for.
    Started {
        /// Name of the container.
        container: String,
    },
    /// The container a client wants to be attached to does not run yet.
    Waiting {
        /// What for: `ErrImagePull: …`.
        why: String,
    },
    /// The client is attached to a container that runs (see [`super::attach`]).
    Attached {
        /// Name of the container.
        container: String,
        /// It has a terminal.
        terminal: bool,
    },
    /// It has ended. The last message.
    Exited {
        /// 0-255, 128 + signal.
        code: i32,
    },
    /// It could not be started, or its end not be learnt. The last message.
    Failed {
        /// What was asked for does not exist.
        not_found: bool,
        /// The command could not be run: shells call that 126 or 127.
        not_run: bool,
        /// One line.
        message: String,
    },
}

/// Serves until the task is dropped; so are the sessions then, but not the processes they started.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(listener: OwnedFd, node: Arc<dyn Node>) -> io::Result<()> {
    let listener = asynchronous(listener)?;
    let mut sessions = tokio::task::JoinSet::new();
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            ready = listener.readable() => {
                let mut ready = ready?;
                match seqpacket::accept(listener.get_ref().as_fd()) {
                    Ok(Some(connection)) => {
                        let node = node.clone();
                        sessions.spawn(async move {
                            if let Err(error) = session(connection, node).await {
                                // A client that goes away in the middle is its own business.
                                tracing::debug!("exec session ended: {}", Chain(&error));
                            }
                        });
                    }
                    Ok(None) => ready.clear_ready(),
                    Err(error) => {
                        // Out of descriptors, most likely: those of other sessions come back in time.
                        tracing::warn!("accept on the stream socket: {error}, waiting");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
            Some(_) = sessions.join_next() => {}
        }
    }
}

async fn session(connection: OwnedFd, node: Arc<dyn Node>) -> io::Result<()> {
    let connection = Connection::new(connection)?;
    let Some(packet) = connection.receive().await? else { return Ok(()) };
    if let Ok(request) = serde_json::from_slice::<AttachRequest>(&packet.bytes) {
        return attach::session(&connection, request, packet, &node).await;
    }
    match start(packet, &node).await {
        Ok((container, session)) => {
            let terminal: Vec<_> = session.terminal.iter().map(AsFd::as_fd).collect();
            connection.send(&ExecReply::Started { container }, &terminal).await?;
            drop(terminal);
            // The client has its own copy now; the terminal hangs up when that is closed.
            drop(session.terminal);
            let reply = tokio::select! {
                result = session.exit => match result {
                    Ok(code) => ExecReply::Exited { code },
                    Err(error) => failed(&error),
                },
                // Nothing more is expected from the client: this is its end.
                _ = connection.receive() => return Ok(()),
            };
            connection.send(&reply, &[]).await
        }
        Err(error) => connection.send(&failed(&error), &[]).await,
    }
}

async fn start(
    packet: Packet,
    node: &Arc<dyn Node>,
) -> Result<(String, crate::worker::handle::ExecSession), NodeError> {
    let request: ExecRequest = serde_json::from_slice(&packet.bytes)
        .map_err(|error| NodeError::Internal(format!("decode the request: {error}")))?;
    if packet.descriptors.len() != if request.tty { 0 } else { 3 } {
        return Err(NodeError::Internal("the request came without its standard streams".to_owned()));
    }
    if request.args.is_empty() {
        return Err(NodeError::Exec("there is no command".to_owned()));
    }
    let (uid, container) = {
        let pods = node.pods();
        let view = find::pod(&pods, &request.pod)?;
        let container = find::container(view, request.container.as_deref())?;
        if container.pid.is_none() {
            let pod = find::name_of(&view.pod);
            let text = format!("container {} in pod {pod} is not running", container.name);
            return Err(NodeError::Conflict(text));
        }
        (view.pod.metadata.uid.clone().unwrap_or_default(), container.name.clone())
    };
    let spec = ExecSpec {
        container: container.clone(),
        args: request.args,
        env: request.env,
        tty: request.tty,
        ..ExecSpec::default()
    };
    let session = node.exec(uid, spec, packet.descriptors).await?;
    Ok((container, session))
}

pub(super) fn failed(error: &NodeError) -> ExecReply {
    ExecReply::Failed {
        not_found: matches!(error, NodeError::NotFound(_) | NodeError::Ambiguous(..)),
        not_run: matches!(error, NodeError::Exec(_)),
        message: error.to_string(),
    }
}

/// A packet connection that waits without blocking; also what the client uses.
pub struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// Of a non-blocking packet socket.
    ///
    /// # Errors
    /// It cannot be polled.
    pub fn new(socket: OwnedFd) -> io::Result<Connection> {
        asynchronous(socket).map(Connection)
    }

    /// The next message; `None` when the other side has closed. Cancel-safe.
    ///
    /// # Errors
    /// As [`seqpacket::receive`].
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(|socket| seqpacket::receive(socket.get_ref().as_fd(), MAX_PACKET)) {
                return result;
            }
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// As [`seqpacket::send`]; InvalidInput when the message is longer than [`MAX_PACKET`].
    pub async fn send(&self, message: &impl Serialize, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_PACKET {
            let text = format!("the message has {} bytes, at most {MAX_PACKET} can be sent", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        loop {
            let mut ready = self.0.writable().await?;
            let send = |socket: &AsyncFd<OwnedFd>| seqpacket::send(socket.get_ref().as_fd(), &bytes, descriptors);
            if let Ok(result) = ready.try_io(send) {
                return result;
            }
        }
    }
}

/// Deprecated for types whose descriptor may change behind tokio's back; that of an `OwnedFd` cannot, and the
/// replacement is unsafe, which has no place here.
#[allow(deprecated)]
fn asynchronous(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}
