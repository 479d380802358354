//! Volumes of a pod: set up before its containers, and written anew when what they are made from has changed.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Pod, Volume},
    jiff::Timestamp,
};

use super::{
    execute::{Host, blocking, spec_of},
    far_volumes,
    host::{ActionError, Done},
};
use crate::{
    api::{
        content::{self, ContentInput, Payload, Tokens},
        objects::Objects,
    },
    obs::events::Severity,
    pod::{Outcome, observed::Written},
    volume::{self, MountedVolume, VolumeContext, VolumeInput},
};

/// Upstream's reason of every failure here.
const REASON: &str = "FailedMount";

impl Host {
    /// Sets up a volume, or writes it anew. One whose objects are gone, or are not known yet after a restart of the
    /// agent, stays as it is if it was set up before: a pod that runs is not to suffer from that.
    pub(super) async fn mount_volume(self: &Arc<Self>, pod: Arc<Pod>, name: String) -> Result<Done, ActionError> {
        let volumes = spec_of(&pod).volumes.as_deref().unwrap_or_default();
        let Some(volume) = volumes.iter().find(|volume| volume.name == name).cloned() else {
            return Ok(Done::new(Outcome::Done));
        };
        let objects = self.shared.objects.borrow().clone();
        if far_volumes::is_far(&volume) {
            return self.mount_far(&pod, &volume, objects).await;
        }
        if !content::has_content(&volume) {
            let host = self.clone();
            return blocking(move || {
                host.set_up_volume(&pod, &volume, &objects, None)?;
                Ok(Done::new(Outcome::Volume(Written::default())))
            })
            .await;
        }
        let input = ContentInput { pod: &pod, objects: &objects, allocatable: &self.shared.launch.allocatable };
        let version = content::version(&volume, &input);
        // A source that needs a token is refused before this.
        let payload = content::payload(&volume, &input, &Tokens::new());
        let payload = payload.map_err(|error| ActionError::new(REASON, &error));
        let written = Written { content: Some(version), renew_at: None };
        let host = self.clone();
        blocking(move || {
            match payload {
                Ok(payload) => host.set_up_volume(&pod, &volume, &objects, Some(&payload))?,
                Err(error) => host.keep_volume(&pod, &volume, error)?,
            }
            Ok(Done::new(Outcome::Volume(written)))
        })
        .await
    }

    fn set_up_volume(
        &self,
        pod: &Pod,
        volume: &Volume,
        objects: &Objects,
        content: Option<&Payload>,
    ) -> Result<(), ActionError> {
        let spec = spec_of(pod);
        let security = spec.security_context.as_ref();
        let context = VolumeContext {
            fs_group: security.and_then(|security| security.fs_group).and_then(|group| u32::try_from(group).ok()),
            memory_limit: self.shared.pod_limits(spec).memory,
            node_memory: self.shared.memory,
        };
        let input = VolumeInput { volume, pod, objects, content };
        let mounted = volume::set_up(&input, &self.dirs, &context).map_err(|error| ActionError::new(REASON, &error))?;
        self.hold_volume(&volume.name, mounted);
        Ok(())
    }

    /// Goes on with a volume as it was written before, if it was; says why in an event.
    fn keep_volume(&self, pod: &Pod, volume: &Volume, error: ActionError) -> Result<(), ActionError> {
        let Some(present) = volume::present(volume, &self.dirs) else { return Err(error) };
        let message = format!("MountVolume.SetUp failed for volume {:?} : {}", volume.name, error.message);
        tracing::warn!(pod = pod.metadata.name, volume = volume.name, "kept as it is: {}", error.message);
        self.shared.events.record(pod, None, Severity::Warning, REASON, message, Timestamp::now());
        self.hold_volume(&volume.name, present);
        Ok(())
    }

    /// What stands for the content that each volume of `pod` should have now.
    pub(super) fn wanted_contents(&self, pod: &Pod) -> BTreeMap<String, u64> {
        let volumes = spec_of(pod).volumes.as_deref().unwrap_or_default();
        let objects = self.shared.objects.borrow().clone();
        let input = ContentInput { pod, objects: &objects, allocatable: &self.shared.launch.allocatable };
        let of_content = volumes.iter().filter(|volume| content::has_content(volume));
        of_content.map(|volume| (volume.name.clone(), content::version(volume, &input))).collect()
    }

    pub(super) fn hold_volume(&self, name: &str, mounted: MountedVolume) {
        self.state().volumes.insert(name.to_owned(), mounted);
    }
}
