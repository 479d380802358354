//! attach over `<run>/stream.sock`: as exec, but the streams are connected to those of a container that runs already.
//!
//! [`AttachRequest`] comes with stdin, stdout and stderr; it is answered with [`ExecReply::Waiting`] (each time the reason why
//! the container does not run yet becomes another one), with [`ExecReply::Attached`] (unless it was over before) and, when the container has ended, [`ExecReply::Exited`] with its code. In between the client may send the [`TerminalSize`] of its terminal.

use std::{io, pin::pin, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    find,
    stream::{Connection, ExecReply, failed},
};
use crate::{
    sys::seqpacket::Packet,
    worker::handle::{ExecSession, Node, NodeError, TerminalSize},
};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Pod, as [`find::pod`] understands it.
    pub attach: String,
    /// Container; `None`: the default one.
    pub container: Option<String>,
    /// Wait until the container runs, if it is still to be started.
    pub wait: bool,
}

/// Where a session is attached.
struct Target {
    uid: String,
    container: String,
    terminal: bool,
}

/// Serves one client until the container has ended or the client goes.
pub(super) async fn session(
    connection: &Connection,
    request: AttachRequest,
    packet: Packet,
    node: &Arc<dyn Node>,
) -> io::Result<()> {
    // One reason at a time: a client that is slow holds nobody up but itself.
    let (waits, mut reasons) = mpsc::channel(1);
    let started = {
        let mut started = pin!(start(request, packet, node, waits));
        loop {
            // A client that waits for a container may well give up. All arms are cancel-safe.
            tokio::select! {
                started = &mut started => break started,
                _ = connection.receive() => return Ok(()),
                Some(why) = reasons.recv() => connection.send(&ExecReply::Waiting { why }, &[]).await?,
            }
        }
    };
    let (target, mut session) = match started {
        Ok(started) => started,
        Err(error) => return connection.send(&failed(&error), &[]).await,
    };
    if !session.over {
        let reply = ExecReply::Attached { container: target.container.clone(), terminal: target.terminal };
        connection.send(&reply, &[]).await?;
    }
    loop {
        // Cancel-safe: the session stays where it is, and `receive` loses nothing.
        tokio::select! {
            result = &mut session.exit => {
                let reply = result.map_or_else(|error| failed(&error), |code| ExecReply::Exited { code });
                return connection.send(&reply, &[]).await;
            }
            received = connection.receive() => {
                let Some(packet) = received? else { return Ok(()) };
                let Ok(size) = serde_json::from_slice::<TerminalSize>(&packet.bytes) else { continue };
                // Fails when the container has just ended, which is told next.
                if let Err(error) = node.resize_terminal(target.uid.clone(), target.container.clone(), size).await {
                    tracing::debug!("set the size of a terminal: {error}, ignoring");
                }
            }
        }
    }
}

async fn start(
    request: AttachRequest,
    packet: Packet,
    node: &Arc<dyn Node>,
    waits: mpsc::Sender<String>,
) -> Result<(Target, ExecSession), NodeError> {
    if packet.descriptors.len() != 3 {
        return Err(NodeError::Internal("the request came without its standard streams".to_owned()));
    }
    let target = {
        let pods = node.pods();
        let view = find::pod(&pods, &request.attach)?;
        let container = find::container(view, request.container.as_deref())?;
        if container.pid.is_none() && !request.wait {
            let pod = find::name_of(&view.pod);
            let text = format!("container {} in pod {pod} is not running", container.name);
            return Err(NodeError::Conflict(text));
        }
        Target {
            uid: view.pod.metadata.uid.clone().unwrap_or_default(),
            container: container.name.clone(),
            terminal: container.tty,
        }
    };
    let session = node.attach(target.uid.clone(), target.container.clone(), packet.descriptors, waits).await?;
    Ok((target, session))
}
