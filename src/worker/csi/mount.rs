//! Staging and publishing (`MountDevice`, `SetUpAt` and `SetUpDevice` of `pkg/volume/csi` upstream).

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::{
        core::v1::{Pod, Secret},
        storage::v1::CSIDriverSpec,
    },
    jiff::{SignedDuration, Timestamp},
};
use serde_json::json;

use super::records::{self, Node, Record};
use crate::{
    api::objects::{Objects, find},
    csi::{
        PLUGIN,
        client::{CallError, Capabilities, Client},
        messages::{NodePublishVolumeRequest, NodeStageVolumeRequest},
        volume::{CsiVolume, SecretName},
    },
    store::durable,
    volume::{
        MountedVolume,
        helper::{Answer, Errand},
        ownership::Ownership,
    },
    worker::{
        execute::{Host, blocking, spec_of},
        host::ActionError,
        token::TokenRequest,
    },
};

/// How often a volume of a driver with `requiresRepublish` is published again: upstream does with each sync of the pod.
const REPUBLISH: SignedDuration = SignedDuration::from_secs(60);

/// For the files of a volume to be given to a group, of which there may be millions.
const OWN: Duration = Duration::from_secs(3600);
/// For a device to be looked at.
const LOOK: Duration = Duration::from_secs(20);

/// How long a token holds if the driver does not say (an API server's default), seconds.
const TOKEN: i64 = 3600;

/// Where a token goes, in what the driver is told.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// What a volume is being set up for, and from what.
struct Setting<'a> {
    pod: &'a Arc<Pod>,
    /// What the pod calls the volume.
    volume: &'a str,
    csi: &'a CsiVolume,
    spec: Option<&'a CSIDriverSpec>,
    objects: &'a Objects,
}

impl Setting<'_> {
    /// A failure of a step, as upstream's events name it.
    fn failed(&self, step: Step, what: impl std::fmt::Display) -> ActionError {
        let (reason, operation) = match (self.csi.block, step) {
            (true, Step::Attach) => ("FailedMapVolume", "MapVolume.WaitForAttach"),
            (true, _) => ("FailedMapVolume", "MapVolume.SetUpDevice"),
            (false, Step::Attach) => ("FailedMount", "MountVolume.WaitForAttach"),
            (false, Step::Stage) => ("FailedMount", "MountVolume.MountDevice"),
            (false, Step::Publish) => ("FailedMount", "MountVolume.SetUp"),
        };
        let message = format!("{operation} failed for volume {:?} : {what}", self.csi.name);
        ActionError { reason: reason.to_owned(), message }
    }

    fn group(&self) -> Option<u32> {
        let security = spec_of(self.pod).security_context.as_ref();
        security.and_then(|security| security.fs_group).and_then(|group| u32::try_from(group).ok())
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Attach,
    Stage,
    Publish,
}

impl Host {
    /// Sets up a volume of a driver, or publishes it again; with when that is to be done again.
    ///
    /// One that was published before, since the machine started and perhaps for an earlier agent, stays as it is: a pod
    /// that runs does not depend on the driver being there.
    pub(in crate::worker) async fn mount_csi(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        volume: &str,
        csi: &CsiVolume,
        objects: &Objects,
    ) -> Result<(MountedVolume, Option<Timestamp>), ActionError> {
        let driver = find(&objects.csi_drivers, "", &csi.driver);
        let setting = Setting { pod, volume, csi, spec: driver.map(|driver| &driver.spec), objects };
        let republishes = setting.spec.and_then(|spec| spec.requires_republish) == Some(true);
        let again = || Timestamp::now().saturating_add(REPUBLISH).unwrap_or(Timestamp::MAX);
        // One that is held is to be published again. If that fails, its containers go on with what they have.
        let refresh = self.state().volumes.contains_key(volume);
        let before = if refresh { None } else { self.published_before(volume).await? };
        let (target, renew_at) = match before {
            // How long ago that was is not known.
            Some(record) => (record.target, republishes.then(Timestamp::now)),
            None => (self.publish(&setting, refresh).await?.target, republishes.then(again)),
        };
        let mounted = MountedVolume::at(target, csi.read_only);
        match csi.block {
            true => Ok((self.device_of(&setting, mounted).await?, renew_at)),
            false => Ok((mounted, renew_at)),
        }
    }

    /// The record of a volume that is known to be published, now and completely.
    async fn published_before(self: &Arc<Self>, volume: &str) -> Result<Option<Record>, ActionError> {
        let (host, volume) = (self.clone(), volume.to_owned());
        blocking(move || {
            if !host.dirs.published_file(&volume).exists() {
                return Ok(None);
            }
            let because = |error| ActionError::new("FailedMount", &error);
            let known = records::all(&host.dirs).map_err(because)?;
            let Some((_, record)) = known.into_iter().find(|(name, _)| *name == volume) else { return Ok(None) };
            Ok(record.is_published().map_err(because)?.then_some(record))
        })
        .await
    }

    async fn device_of(&self, setting: &Setting<'_>, mounted: MountedVolume) -> Result<MountedVolume, ActionError> {
        let path = mounted.host_path.clone();
        let failed = |what: String| setting.failed(Step::Publish, what);
        let asked = self.helpers.send(&Errand::Device { path }, &setting.csi.name, LOOK, true).await;
        match asked.map_err(|error| failed(ActionError::new("", &error).message))? {
            Answer::Device(device) => Ok(MountedVolume { device: Some(device), ..mounted }),
            other => Err(failed(format!("an answer to another question: {other:?}"))),
        }
    }

    /// Gives up when the pod is to go. What was asked for by then may still be done; the record tells.
    async fn unless_ending<T>(&self, setting: &Setting<'_>, work: impl Future<Output = T>) -> Result<T, ActionError> {
        tokio::select! {
            biased;
            () = self.helpers.cancelled() => Err(setting.failed(Step::Publish, "given up, as the pod is to go")),
            done = work => Ok(done),
        }
    }

    /// Stages, if need be, and publishes: for the first time, or as a `refresh` of what is there.
    async fn publish(self: &Arc<Self>, setting: &Setting<'_>, refresh: bool) -> Result<Record, ActionError> {
        let Setting { pod, volume, csi, spec, .. } = *setting;
        let turn = self.unless_ending(setting, self.csi().turn(&csi.driver, &csi.handle)).await?;
        let first = if csi.lifecycle == crate::csi::volume::Lifecycle::Persistent && !csi.block {
            Step::Stage
        } else {
            Step::Publish
        };
        let driver = self.csi().drivers.get(&csi.driver).map_err(|error| {
            let what = match first {
                Step::Stage => "attacher.MountDevice failed to create newCsiDriverClient",
                _ if csi.block => "blockMapper.SetUpDevice failed to get CSI client",
                _ => "mounter.SetUpAt failed to get CSI client",
            };
            setting.failed(first, format!("{PLUGIN}: {what}: {error}"))
        })?;
        csi.has_its_lifecycle(spec).map_err(|error| {
            let what = "mounter.SetupAt failed to check volume lifecycle mode";
            setting.failed(Step::Publish, format!("{PLUGIN}: {what}: {error}"))
        })?;
        if csi.needs_attachment(spec) {
            let (handle, name) = (&csi.handle, csi.attachment(&self.shared.config.node_name));
            let what = format!(
                "volume {handle} has GET error for volume attachment {name}: \
                 volumeattachments.storage.k8s.io {name:?} not found"
            );
            return Err(setting.failed(Step::Attach, what));
        }
        let call = |error: CallError| setting.failed(first, error);
        let client = self.unless_ending(setting, Client::connect(&driver)).await?.map_err(call)?;
        let can = self.unless_ending(setting, client.capabilities()).await?.map_err(call)?;
        let record = Record::of(csi, can.stages, &self.shared.config.layout, &self.dirs, self.uid());
        // Everything that can fail without the driver comes before anything is on record.
        let stage = match &record.staging {
            Some(staging) if !self.csi().is_staged(staging) => Some(self.stage_request(setting, can, staging)?),
            _ => None,
        };
        let publish = self.publish_request(setting, can, &record).await?;
        self.keep_record(setting, &record).await?;
        if let Some(request) = stage {
            let staging = request.staging_target_path.clone();
            if let Err(error) = self.unless_ending(setting, client.stage(request)).await? {
                if error.is_final() && !refresh {
                    self.undo(volume, &record).await;
                }
                return Err(setting.failed(first, error));
            }
            self.csi().note_staged(staging.into());
        }
        let client = client.for_another();
        if let Err(error) = self.unless_ending(setting, client.publish(publish)).await? {
            // One that is staged is unstaged with its last pod, for which the record stays.
            if error.is_final() && record.staging.is_none() && !refresh {
                self.undo(volume, &record).await;
            }
            return Err(setting.failed(Step::Publish, error));
        }
        // Files can be many. As long as the record is there nobody unstages the volume.
        drop(turn);
        if !can.mount_group && csi.is_given_to_group(spec) {
            self.give_to_its_group(setting, &record.target).await?;
        }
        let (host, noted) = (self.clone(), volume.to_owned());
        let note = move || {
            let path = host.dirs.published_file(&noted);
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.map_err(|error| format!("create the directory of {}: {error}", path.display()))?;
            durable::write_json_until_reboot(&path, &()).map_err(|error| ActionError::new("", &error).message)
        };
        let noted =
            blocking(move || note().map_err(|message| ActionError { reason: "FailedMount".to_owned(), message }));
        noted.await?;
        tracing::debug!(pod = pod.metadata.name, volume, driver = csi.driver, "published");
        Ok(record)
    }

    async fn keep_record(self: &Arc<Self>, setting: &Setting<'_>, record: &Record) -> Result<(), ActionError> {
        let (host, volume, record) = (self.clone(), setting.volume.to_owned(), record.clone());
        let lifecycle = setting.csi.lifecycle;
        let attachment = setting.csi.attachment(&self.shared.config.node_name);
        let written = blocking(move || {
            let config = &host.shared.config;
            let node =
                Node { layout: &config.layout, pod: &host.dirs, name: &config.node_name, attachment: &attachment };
            let _alone = host.csi().directories.lock().unwrap_or_else(PoisonError::into_inner);
            record.write(&volume, lifecycle, &node).map_err(|error| ActionError::new("", &error))
        });
        written.await.map_err(|error| {
            let what = "failed to save volume info data";
            setting.failed(Step::Publish, format!("{PLUGIN}: {what}: {}", error.message))
        })
    }

    /// After the first call failed for sure: nothing is kept on record, unless an earlier try has come to something.
    async fn undo(self: &Arc<Self>, volume: &str, record: &Record) {
        let (host, volume, record) = (self.clone(), volume.to_owned(), record.clone());
        let undone = blocking(move || {
            let because = |error| ActionError::new("", &error);
            let layout = &host.shared.config.layout;
            let _alone = host.csi().directories.lock().unwrap_or_else(PoisonError::into_inner);
            if record.is_there().map_err(because)? {
                return Ok(());
            }
            if !records::is_used_by_others(&record, layout, host.uid()).map_err(because)? {
                record.remove_staging(layout).map_err(because)?;
            }
            record.remove(&volume, layout, &host.dirs).map_err(because)
        });
        if let Err(error) = undone.await {
            // It stays on record, and is taken back with the pod.
            tracing::warn!(pod = self.uid(), "what a driver did not do is kept on record: {}", error.message);
        }
    }

    fn stage_request(
        &self,
        setting: &Setting<'_>,
        can: Capabilities,
        staging: &Path,
    ) -> Result<NodeStageVolumeRequest, ActionError> {
        let csi = setting.csi;
        let secrets = secrets("NodeStageSecretRef", csi.stage_secret.as_ref(), setting.objects);
        Ok(NodeStageVolumeRequest {
            volume_id: csi.handle.clone(),
            publish_context: BTreeMap::new(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(csi.capability(can, setting.group())),
            secrets: secrets.map_err(|error| setting.failed(Step::Stage, error))?,
            volume_context: csi.attributes.clone(),
        })
    }

    async fn publish_request(
        &self,
        setting: &Setting<'_>,
        can: Capabilities,
        record: &Record,
    ) -> Result<NodePublishVolumeRequest, ActionError> {
        let Setting { pod, csi, spec, objects, .. } = *setting;
        let secrets = secrets("NodePublishSecretRef", csi.publish_secret.as_ref(), objects);
        let mut secrets = secrets.map_err(|error| setting.failed(Step::Publish, error))?;
        let mut context = csi.attributes.clone();
        if !csi.block {
            context = csi.context(pod, spec);
            let tokens = self.csi_tokens(pod, spec).await.map_err(|error| {
                let what = "mounter.SetUpAt failed to get service account token attributes";
                setting.failed(Step::Publish, format!("{PLUGIN}: {what}: {error}"))
            })?;
            if let Some(tokens) = tokens {
                let hidden = spec.and_then(|spec| spec.service_account_token_in_secrets) == Some(true);
                let place = if hidden { &mut secrets } else { &mut context };
                place.insert(TOKENS.to_owned(), tokens);
            }
        }
        Ok(NodePublishVolumeRequest {
            volume_id: csi.handle.clone(),
            publish_context: BTreeMap::new(),
            staging_target_path: record.staging.iter().map(|path| path.display().to_string()).collect(),
            target_path: record.target.display().to_string(),
            volume_capability: Some(csi.capability(can, setting.group())),
            readonly: csi.read_only,
            secrets,
            volume_context: context,
        })
    }

    /// Tokens of the pod's service account that the driver asks for, by audience.
    async fn csi_tokens(&self, pod: &Pod, spec: Option<&CSIDriverSpec>) -> Result<Option<String>, String> {
        let requests = spec.and_then(|spec| spec.token_requests.as_deref()).unwrap_or_default();
        let mut tokens = serde_json::Map::new();
        for request in requests {
            let wanted = TokenRequest::of(pod, &request.audience, request.expiration_seconds.unwrap_or(TOKEN));
            let token = self.shared.tokens.token(wanted).await;
            let token = token.map_err(|error| ActionError::new("", &error).message)?;
            let expires = token.expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            tokens.insert(request.audience.clone(), json!({"token": token.value, "expirationTimestamp": expires}));
        }
        Ok((!tokens.is_empty()).then(|| serde_json::Value::Object(tokens).to_string()))
    }

    /// fsGroup, each time the volume is published.
    async fn give_to_its_group(&self, setting: &Setting<'_>, path: &Path) -> Result<(), ActionError> {
        let Some(group) = setting.group() else { return Ok(()) };
        let security = spec_of(setting.pod).security_context.as_ref();
        let policy = security.and_then(|security| security.fs_group_change_policy.as_deref());
        let ownership = Ownership { group, on_root_mismatch: policy == Some("OnRootMismatch") };
        let errand = Errand::Own { path: path.to_owned(), ownership };
        self.helpers.send(&errand, &path.display().to_string(), OWN, true).await.map(drop).map_err(|error| {
            let why = ActionError::new("", &error).message;
            setting.failed(Step::Publish, format!("applyFSGroup failed for vol {}: {why}", setting.csi.handle))
        })
    }
}

/// What is in a secret, as text.
fn secrets(field: &str, name: Option<&SecretName>, objects: &Objects) -> Result<BTreeMap<String, String>, String> {
    let Some(name) = name else { return Ok(BTreeMap::new()) };
    let failed = |why: String| format!("fetching {field} {name} failed: {why}");
    let found: Option<&Arc<Secret>> = find(&objects.secrets, &name.namespace, &name.name);
    let secret = found.ok_or_else(|| failed(format!("secrets {:?} not found", name.name)))?;
    let text = |(key, value): (&String, &k8s_openapi::ByteString)| match String::from_utf8(value.0.clone()) {
        Ok(text) => Ok((key.clone(), text)),
        Err(_) => Err(failed(format!("{key:?} is no UTF-8 text, which is all that drivers can be given"))),
    };
    secret.data.iter().flatten().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_secret_is_handed_over_as_text() {
        let object = |data: serde_json::Value| -> Objects {
            let secret = serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "s"}, "data": data}));
            let secrets = [(("n".to_owned(), "s".to_owned()), Arc::new(secret.unwrap()))].into();
            Objects { secrets, ..Objects::default() }
        };
        let name = SecretName { namespace: "n".to_owned(), name: "s".to_owned() };
        let of = |objects: &Objects| secrets("NodeStageSecretRef", Some(&name), objects);
        assert_eq!(of(&object(json!({"user": "YWRtaW4="}))).unwrap()["user"], "admin");
        let missing = of(&Objects::default()).unwrap_err();
        assert_eq!(missing, "fetching NodeStageSecretRef n/s failed: secrets \"s\" not found");
        assert!(of(&object(json!({"key": "/w=="}))).unwrap_err().contains("no UTF-8"));
        assert_eq!(secrets("NodeStageSecretRef", None, &Objects::default()), Ok(BTreeMap::new()));
    }
}
