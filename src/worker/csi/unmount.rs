//! Unpublishing and unstaging (`TearDownAt`, `UnmountDevice` and `TearDownDevice` of `pkg/volume/csi` upstream).

use std::sync::{Arc, PoisonError};

use futures_util::future::join_all;

use super::records::{self, Record};
use crate::{
    csi::{
        PLUGIN,
        client::{CallError, Client},
        messages::{NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest},
    },
    worker::{
        execute::{Host, blocking},
        host::ActionError,
    },
};

/// Upstream's reason.
const REASON: &str = "FailedUnMount";

fn because<E: std::error::Error>(error: E) -> ActionError {
    ActionError::new(REASON, &error)
}

impl Host {
    /// Takes back every volume that a driver may have published for the pod, all at the same time: one driver that does
    /// not answer does not hold up what others have done.
    pub(in crate::worker) async fn unpublish_volumes(self: &Arc<Self>) -> Result<(), ActionError> {
        let host = self.clone();
        let records = blocking(move || records::all(&host.dirs).map_err(because)).await?;
        let done = join_all(records.iter().map(|(volume, record)| self.unpublish(volume, record))).await;
        done.into_iter().collect()
    }

    async fn unpublish(self: &Arc<Self>, volume: &str, record: &Record) -> Result<(), ActionError> {
        let Record { name, driver, handle, target, staging, block, .. } = record;
        let failed = |unstaging: bool, what: String| {
            let operation = match (block, unstaging) {
                (true, true) => "UnmapDevice.TearDownDevice",
                (true, false) => "UnmapVolume.UnmapPodDevice",
                (false, true) => "UnmountDevice",
                (false, false) => "UnmountVolume.TearDown",
            };
            ActionError {
                reason: REASON.to_owned(),
                message: format!("{operation} failed for volume {name:?} : {what}"),
            }
        };
        let _turn = self.csi().turn(driver, handle).await;
        let known = self.csi().drivers.get(driver).map_err(|error| {
            failed(false, format!("{PLUGIN}: Unmounter.TearDownAt failed to get CSI client: {error}"))
        })?;
        let call = |error: CallError| failed(false, format!("{PLUGIN}: Unmounter.TearDownAt failed: {error}"));
        let client = Client::connect(&known).await.map_err(call)?;
        let target_path = target.display().to_string();
        let unpublish = NodeUnpublishVolumeRequest { volume_id: handle.clone(), target_path };
        client.unpublish(unpublish).await.map_err(call)?;
        let last = {
            let (host, record) = (self.clone(), record.clone());
            let used = move || records::is_used_by_others(&record, &host.shared.config.layout, host.uid());
            !blocking(move || used().map_err(because)).await?
        };
        if let Some(staging) = staging.as_ref().filter(|_| last) {
            let staging_target_path = staging.display().to_string();
            let unstage = NodeUnstageVolumeRequest { volume_id: handle.clone(), staging_target_path };
            // From here on it may not be staged any more.
            self.csi().note_unstaged(staging);
            let client = client.for_another();
            client
                .unstage(unstage)
                .await
                .map_err(|error| failed(true, format!("{PLUGIN}: attacher.UnmountDevice failed: {error}")))?;
        }
        let (host, volume, record) = (self.clone(), volume.to_owned(), record.clone());
        blocking(move || {
            let layout = &host.shared.config.layout;
            let _alone = host.csi().directories.lock().unwrap_or_else(PoisonError::into_inner);
            if last {
                record.remove_staging(layout).map_err(because)?;
            }
            record.remove(&volume, layout, &host.dirs).map_err(because)
        })
        .await
    }
}
