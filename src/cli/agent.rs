//! `berth node`, wired: the worker and the servers in front of it.

use std::{error::Error, sync::Arc};

use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::image_adapter::StoreImages;
use crate::{
    config::NodeConfig,
    server::{
        local::{ServerState, Version, router},
        logs::{Compressor, LogWatch},
        pod_resources, socket, stream,
    },
    worker::run::Agent,
};

/// Runs the agent until SIGTERM or SIGINT. Pods stay as they are.
///
/// # Errors
/// The agent could not start; nothing was changed then that the next start does not find again.
pub async fn run(config: NodeConfig) -> Result<(), Box<dyn Error + Send + Sync>> {
    let layout = config.layout.clone();
    let node_name = config.node_name.clone();
    let agent = Agent::start(config).await?;
    let state = ServerState {
        node: agent.node.clone(),
        images: Arc::new(StoreImages { store: agent.shared().images.clone(), node: agent.node.clone() }),
        layout: layout.clone(),
        events: agent.shared().events.clone(),
        version: Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: node_name,
            pid: std::process::id(),
            started: jiff::Timestamp::now(),
        },
        watch: LogWatch::default(),
    };
    // Without it logs take more room and nothing else changes.
    if let Err(error) = Compressor::new(&layout.log).and_then(Compressor::spawn) {
        warn!(directory = %layout.log.display(), %error, "rotated logs are not compressed, ignoring");
    }
    let api = socket::bind_api(&layout.api_socket())?;
    let streams = socket::bind_stream(&layout.stream_socket())?;
    let node: Arc<dyn crate::worker::handle::Node> = agent.node.clone();
    // A node without it runs its pods all the same.
    if let Err(error) = pod_resources::serve(&layout.pod_resources(), node.clone()) {
        warn!(path = %layout.pod_resources().display(), %error, "what pods were given cannot be asked for, ignoring");
    }
    let (shutdown, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(socket::serve(api, router(state), async {
        let _ = stopped.await;
    }));
    let streaming = tokio::spawn(stream::serve(streams, node));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    info!("ready");
    agent
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM: stopping"),
                _ = interrupt.recv() => info!("SIGINT: stopping"),
            }
        })
        .await;
    // What is being answered is finished; a follower of a log is cut off with the runtime.
    let _ = shutdown.send(());
    streaming.abort();
    if tokio::time::timeout(std::time::Duration::from_millis(500), serving).await.is_err() {
        info!("requests still under way are cut off");
    }
    let sockets = [layout.api_socket(), layout.stream_socket(), layout.pod_resources(), layout.registration()];
    for path in sockets {
        if let Err(error) = std::fs::remove_file(&path) {
            warn!(path = %path.display(), %error, "remove a socket, ignoring");
        }
    }
    Ok(())
}
