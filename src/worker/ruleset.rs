//! Keeps our nftables table: a flush of the whole ruleset by somebody else is noticed when it happens, not by looking
//! every so often.

use std::{io, os::fd::AsFd, sync::Arc};

use tracing::{info, warn};

use super::shared::Shared;
use crate::runtime::client::link::register;

/// Runs until it is dropped, or nothing can be watched any more (which is said).
pub async fn keep(shared: Arc<Shared>) {
    if let Err(error) = watch(shared).await {
        warn!(%error, "the nftables table is not watched: if somebody flushes it, masquerade and host ports stop working");
    }
}

async fn watch(shared: Arc<Shared>) -> io::Result<()> {
    let mut monitor = shared.network.monitor().map_err(io::Error::other)?;
    let readable = register(monitor.as_fd().try_clone_to_owned()?)?;
    loop {
        let mut ready = readable.readable().await?;
        ready.clear_ready();
        if !monitor.table_lost()? {
            continue;
        }
        let restoring = shared.clone();
        match tokio::task::spawn_blocking(move || restoring.network.ensure_host()).await {
            Ok(Ok(())) => info!("the nftables table is in force"),
            Ok(Err(error)) => warn!(%error, "restore the nftables table"),
            Err(error) => warn!(%error, "restore the nftables table"),
        }
    }
}
