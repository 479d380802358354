//! Volumes of a pod: set up before its containers, and written anew when what they are made from has changed.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Pod, Volume},
    jiff::{SignedDuration, Timestamp},
};

use super::{
    execute::{Host, blocking, spec_of},
    far_volumes,
    host::{ActionError, Done},
    token::TokenRequest,
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

/// How soon a token that could not be had is asked for again, beside the one that is there.
const TOKEN_RETRY: SignedDuration = SignedDuration::from_secs(60);

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
        let (payload, renew_at) = match self.tokens(&pod, &volume).await {
            Ok((tokens, renew_at)) => {
                let payload = content::payload(&volume, &input, &tokens);
                (payload.map_err(|error| ActionError::new(REASON, &error)), renew_at)
            }
            Err(error) => (Err(error), None),
        };
        // One that keeps what it had has old tokens, too, which are asked for again before long.
        let again = || Timestamp::now().checked_add(TOKEN_RETRY).ok().filter(|_| content::needs_tokens(&volume));
        let renew_at = if payload.is_ok() { renew_at } else { again() };
        let written = Written { content: Some(version), renew_at };
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

    /// The tokens that go into a volume, and when the first of them has to be replaced.
    async fn tokens(&self, pod: &Pod, volume: &Volume) -> Result<(Tokens, Option<Timestamp>), ActionError> {
        let mut tokens = Tokens::new();
        let mut renew_at: Option<Timestamp> = None;
        for content::TokenRequest { source, audience, expiration_seconds } in content::token_requests(volume) {
            let request = TokenRequest::of(pod, &audience, expiration_seconds);
            let token = self.shared.tokens.token(request).await.map_err(|error| {
                let error = ActionError::new(REASON, &error);
                ActionError { message: format!("failed to fetch token: {}", error.message), ..error }
            })?;
            let at = content::renew_at(expiration_seconds, token.expires);
            renew_at = Some(renew_at.map_or(at, |earlier| earlier.min(at)));
            tokens.insert(source, token.value);
        }
        Ok((tokens, renew_at))
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
            memory_limit: self.shared.pod_limits(spec, &self.grants).memory,
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
