//! Gives up history that is older than anybody needs. Upstream's API server does the same to its etcd every five minutes.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use super::Storage;
use crate::obs::chain::Chain;

/// How far back the history reaches, at least.
pub const KEPT: Duration = Duration::from_secs(300);

/// Compacts for ever. While nothing is written nothing is done and nothing wakes.
pub async fn run(storage: Arc<dyn Storage>, kept: Duration) {
    let mut given_up = storage.revision();
    loop {
        storage.reached(given_up + 1).await;
        let seen = storage.revision();
        tokio::time::sleep(kept).await;
        match storage.compact(seen).await {
            Ok(()) => given_up = seen,
            Err(error) => {
                warn!(error = %Chain(&error), "compact the store, trying again later");
                given_up = storage.revision();
            }
        }
    }
}
