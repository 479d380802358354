//! Volumes that are somebody else's: of the host, of a server, of an image, of a claim. What may wait for ever is sent
//! out in a process of its own ([`super::helper`]), so that a hung file system holds up its own pod and nothing else.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{
        ImageVolumeSource, NFSVolumeSource, PersistentVolume, PersistentVolumeClaimSpec, PersistentVolumeSpec, Pod,
        Volume,
    },
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{
    execute::{Host, blocking},
    helper::HelperError,
    host::{ActionError, Done},
    shared::Pulled,
};
use crate::{
    api::{
        objects::{Objects, find},
        unsupported::{persistent_volume_kind, volume_kind},
    },
    csi::volume::CsiVolume,
    image::{Image, ImageError, policy},
    obs::events::Severity,
    pod::{
        Outcome,
        claims::{self, Claim},
        happening::{self, Happening},
        observed::Written,
    },
    store::{durable, layout::PodDirs},
    volume::{
        self, BlockDevice, MountedVolume, Restrictions,
        helper::{Answer, Errand},
        host_path, image,
        nfs::Nfs,
        ownership::Ownership,
        remove,
    },
};

/// Upstream's reason of every failure here.
const REASON: &str = "FailedMount";

/// For a file system to say what is at a path. The longest that a server takes to come back after a short break, by
/// the time-outs of NFS; whoever takes longer is asked again.
const LOOK: Duration = Duration::from_secs(20);
/// For a server to be mounted: mount.nfs(8) tries for two minutes.
const MOUNT: Duration = Duration::from_secs(130);
/// For the files of a volume to be given to a group, of which there may be millions.
const OWN: Duration = Duration::from_secs(3600);
/// For a server to be unmounted in order. After that its mount is taken away without.
const UNMOUNT: Duration = Duration::from_secs(30);
/// For a volume to be emptied.
const EMPTY: Duration = Duration::from_secs(600);

/// Which image a volume of a pod is made from: that one for as long as the pod lives.
#[derive(Debug, Serialize, Deserialize)]
struct Chosen {
    /// `sha256:…` of its configuration.
    id: String,
}

/// That a pod has a persistent volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    /// Nobody else may have it at the same time (ReadWriteOncePod).
    exclusive: bool,
    /// It has been given to this group, or to none, for this pod.
    given: bool,
    /// `fsGroup`.
    group: Option<u32>,
}

/// A volume that a pod has by a claim.
struct Claimed<'a> {
    volume: Arc<PersistentVolume>,
    name: String,
    spec: &'a PersistentVolumeSpec,
    read_only: bool,
}

/// Whether a volume is set up here.
pub(super) fn is_far(volume: &Volume) -> bool {
    matches!(volume_kind(volume).0, "csi" | "hostPath" | "image" | "nfs" | "persistentVolumeClaim" | "ephemeral")
}

fn failed(message: impl Into<String>) -> ActionError {
    ActionError { reason: REASON.to_owned(), message: message.into() }
}

fn because<E: std::error::Error>(error: E) -> ActionError {
    ActionError::new(REASON, &error)
}

impl Host {
    /// Sets up a volume of the kinds of [`is_far`].
    pub(super) async fn mount_far(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        volume: &Volume,
        objects: Arc<Objects>,
    ) -> Result<Done, ActionError> {
        if let Some(source) = &volume.image {
            return self.mount_image(pod, &volume.name, source).await;
        }
        let mut renew_at = None;
        let mounted = if let Some(source) = &volume.csi {
            let csi = CsiVolume::inline(pod, &volume.name, source);
            let mounted;
            (mounted, renew_at) = self.mount_csi(pod, &volume.name, &csi, &objects).await?;
            mounted
        } else if let Some(source) = &volume.host_path {
            let kind = source.type_.as_deref().unwrap_or_default();
            MountedVolume::at(self.host_path(&source.path, kind).await?, false)
        } else if let Some(source) = &volume.nfs {
            self.mount_nfs(&volume.name, source, source.read_only == Some(true), Vec::new()).await?
        } else {
            let mounted;
            (mounted, renew_at) = self.mount_claimed(pod, volume, objects).await?;
            mounted
        };
        self.hold_volume(&volume.name, mounted);
        Ok(Done::new(Outcome::Volume(Written { renew_at, ..Written::default() })))
    }

    async fn host_path(&self, path: &str, kind: &str) -> Result<PathBuf, ActionError> {
        if let Some(known) = host_path::resolve_remembered(path, kind) {
            return known.map_err(because);
        }
        let errand = Errand::HostPath { path: path.to_owned(), kind: kind.to_owned() };
        self.path(&errand, path).await
    }

    /// An errand that is answered by a path.
    async fn path(&self, errand: &Errand, subject: &str) -> Result<PathBuf, ActionError> {
        match self.helpers.send(errand, subject, LOOK, true).await.map_err(because)? {
            Answer::Path(path) => Ok(path),
            other => Err(failed(format!("an answer to another question: {other:?}"))),
        }
    }

    async fn mount_nfs(
        &self,
        name: &str,
        source: &NFSVolumeSource,
        read_only: bool,
        options: Vec<String>,
    ) -> Result<MountedVolume, ActionError> {
        let target = self.dirs.volume("kubernetes.io/nfs", name);
        let nfs = Nfs { server: source.server.clone(), path: source.path.clone(), read_only, options };
        let subject = format!("{}:{}", source.server, source.path);
        let errand = Errand::Mount { nfs, target: target.clone() };
        self.helpers.send(&errand, &subject, MOUNT, true).await.map_err(because)?;
        Ok(MountedVolume::at(target, read_only))
    }

    /// An image is pulled by its policy once in the life of a pod: a pod that runs is not to see its volume change, nor
    /// to need its registry, because the agent starts again.
    async fn mount_image(
        self: &Arc<Self>,
        pod: &Pod,
        name: &str,
        source: &ImageVolumeSource,
    ) -> Result<Done, ActionError> {
        let record = self.dirs.image_file(name);
        let chosen: Option<Chosen> = durable::read_json(&record).map_err(because)?;
        let kept = chosen.and_then(|chosen| self.shared.images.get(&chosen.id));
        let found = match kept {
            Some(image) => image,
            None => self.ensure_image(pod, source).await?,
        };
        let (host, volume) = (self.clone(), name.to_owned());
        let id = found.id.clone();
        let path = blocking(move || {
            make(&host.dirs.images())?;
            durable::write_json(&record, &Chosen { id: found.id.clone() }).map_err(because)?;
            image::set_up(&volume, &found.layers, &host.dirs).map_err(because)
        })
        .await?;
        self.hold_volume(name, MountedVolume::at(path, true));
        Ok(Done::new(Outcome::Image(id)))
    }

    async fn ensure_image(&self, pod: &Pod, source: &ImageVolumeSource) -> Result<Arc<Image>, ActionError> {
        let refused =
            |error: ImageError| ActionError { reason: error.reason().as_str().to_owned(), message: error.message() };
        let reference = source.reference.as_deref().unwrap_or_default();
        let present = self.shared.images.get(reference);
        let wanted = source.pull_policy.as_deref().and_then(policy::PullPolicy::parse);
        let wanted = wanted.unwrap_or_else(|| policy::PullPolicy::default_for(reference));
        let tell = |happening: Happening| {
            // An image of a volume is the pod's, not a container's.
            let happening = Happening { container: None, ..happening };
            self.shared.events.happened(pod, happening, Timestamp::now());
        };
        match (policy::decide(wanted, reference, present.is_some()).map_err(refused)?, present) {
            (policy::Decision::UsePresent, Some(image)) => {
                tell(happening::present("", reference));
                Ok(image)
            }
            _ => {
                tell(happening::pulling("", reference));
                let Pulled { image, took, waited } = self.shared.pull_for(pod, reference).await?;
                tell(happening::pulled("", reference, took, waited, image.size));
                Ok(image)
            }
        }
    }

    async fn mount_claimed(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        volume: &Volume,
        objects: Arc<Objects>,
    ) -> Result<(MountedVolume, Option<Timestamp>), ActionError> {
        let bound = {
            let (host, pod, volume, objects) = (self.clone(), pod.clone(), volume.clone(), objects.clone());
            blocking(move || host.bind(&pod, &volume, &objects)).await?
        };
        let default = PersistentVolumeSpec::default();
        let spec = bound.spec.as_ref().unwrap_or(&default);
        let mode = claims::mode(spec.volume_mode.as_deref());
        agrees(pod, &volume.name, mode).map_err(failed)?;
        let claimed = Claimed {
            name: bound.metadata.name.clone().unwrap_or_default(),
            spec,
            read_only: volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only == Some(true)),
            volume: bound.clone(),
        };
        if let Some(csi) = CsiVolume::persistent(&bound, claimed.read_only) {
            return self.mount_csi(pod, &volume.name, &csi, &objects).await;
        }
        let mounted = match mode {
            "Block" => self.block_device(&claimed).await,
            _ => self.file_system(pod, &claimed).await,
        };
        Ok((mounted?, None))
    }

    /// The volume of a claim, or why there is none. Blocking.
    fn bind(&self, pod: &Pod, volume: &Volume, objects: &Objects) -> Result<Arc<PersistentVolume>, ActionError> {
        let metadata = &pod.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let default = PersistentVolumeClaimSpec::default();
        let own;
        let (name, owner, spec, annotations) = if let Some(source) = &volume.persistent_volume_claim {
            let name = source.claim_name.as_str();
            let claim = find(&objects.persistent_volume_claims, namespace, name).ok_or_else(|| {
                failed(format!(
                    "error processing PVC {namespace}/{name}: failed to fetch PVC: persistentvolumeclaims {name:?} not found"
                ))
            })?;
            (name, None, claim.spec.as_ref().unwrap_or(&default), claim.metadata.annotations.as_ref())
        } else {
            own = format!("{}-{}", metadata.name.as_deref().unwrap_or_default(), volume.name);
            if find(&objects.persistent_volume_claims, namespace, &own).is_some() {
                let pod = metadata.name.as_deref().unwrap_or_default();
                return Err(failed(format!(
                    "PVC {namespace}/{own} was not created for pod {namespace}/{pod} (pod is not owner)"
                )));
            }
            let template = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref());
            let annotations = template.and_then(|template| template.metadata.as_ref()?.annotations.as_ref());
            (own.as_str(), metadata.uid.as_deref(), template.map_or(&default, |template| &template.spec), annotations)
        };
        let claim = Claim { namespace, name, owner, spec, annotated_class: Claim::annotated(annotations) };
        let bound = self.shared.claims.bind(&claim, objects, &self.shared.facts).map_err(|error| {
            let why = ActionError::new("", &error).message;
            failed(format!("error processing PVC {namespace}/{name}: PVC is not bound: {why}"))
        })?;
        let exclusive = spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod");
        self.use_volume(bound.metadata.name.as_deref().unwrap_or_default(), exclusive)?;
        Ok(bound)
    }

    /// Notes that this pod has the volume, unless another one has it for itself. Blocking.
    fn use_volume(&self, volume: &str, exclusive: bool) -> Result<(), ActionError> {
        // Two pods that look at the same time would both find nobody.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, others) = self.users(volume)?;
        if others.iter().any(|other| exclusive || other.exclusive) {
            return Err(failed("volume uses the ReadWriteOncePod access mode and is already in use by another pod"));
        }
        match own {
            Some(_) => Ok(()),
            None => self.note_use(volume, Use { exclusive, ..Use::default() }),
        }
    }

    fn note_use(&self, volume: &str, noted: Use) -> Result<(), ActionError> {
        make(&self.dirs.claims())?;
        durable::write_json(&self.dirs.claim_file(volume), &noted).map_err(because)
    }

    /// How this pod has a volume, and how others have it now. Blocking, briefly.
    fn users(&self, volume: &str) -> Result<(Option<Use>, Vec<Use>), ActionError> {
        let (mut own, mut others) = (None, Vec::new());
        let pods = self.shared.config.layout.pods();
        let entries = fs::read_dir(&pods).map_err(|error| failed(format!("list {}: {error}", pods.display())))?;
        for entry in entries.flatten() {
            let path = entry.path().join("claims").join(format!("{volume}.json"));
            let Some(found) = durable::read_json::<Use>(&path).map_err(because)? else { continue };
            match entry.file_name() == self.uid() {
                true => own = Some(found),
                false => others.push(found),
            }
        }
        Ok((own, others))
    }

    async fn block_device(&self, claimed: &Claimed<'_>) -> Result<MountedVolume, ActionError> {
        let Some(local) = &claimed.spec.local else {
            let kind = persistent_volume_kind(&claimed.volume);
            return Err(failed(format!("volumes of the kind {kind} cannot be given to a container as a device")));
        };
        let errand = Errand::Device { path: PathBuf::from(&local.path) };
        match self.helpers.send(&errand, &local.path, LOOK, true).await.map_err(because)? {
            Answer::Device(device @ BlockDevice { .. }) => Ok(MountedVolume {
                device: Some(device),
                ..MountedVolume::at(PathBuf::from(&local.path), claimed.read_only)
            }),
            other => Err(failed(format!("an answer to another question: {other:?}"))),
        }
    }

    async fn file_system(&self, pod: &Pod, claimed: &Claimed<'_>) -> Result<MountedVolume, ActionError> {
        let Claimed { spec, name, read_only, .. } = claimed;
        let options = spec.mount_options.as_deref().unwrap_or_default();
        if let Some(nfs) = &spec.nfs {
            let read_only = *read_only || nfs.read_only == Some(true);
            return self.mount_nfs(name, nfs, read_only, options.to_vec()).await;
        }
        if let Some(source) = &spec.host_path {
            if !options.is_empty() {
                return Err(failed("mount options are not supported for volumes of the kind hostPath"));
            }
            let kind = source.type_.as_deref().unwrap_or_default();
            return Ok(MountedVolume::at(self.host_path(&source.path, kind).await?, *read_only));
        }
        let Some(local) = &spec.local else {
            let kind = persistent_volume_kind(&claimed.volume);
            return Err(failed(format!(
                "persistent volume {name:?}: volumes of the kind {kind} are not supported yet"
            )));
        };
        let (restrictions, option_read_only) = restrictions(options).map_err(failed)?;
        let path = self.path(&Errand::Directory { path: PathBuf::from(&local.path) }, &local.path).await?;
        let read_only = *read_only || option_read_only;
        if !read_only {
            self.give_to_group(pod, name, &path).await?;
        }
        Ok(MountedVolume { restrictions, ..MountedVolume::at(path, read_only) })
    }

    /// fsGroup, for the first pod that has the volume: those that come later find it as it is.
    async fn give_to_group(&self, pod: &Pod, volume: &str, path: &Path) -> Result<(), ActionError> {
        let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let group = security.and_then(|security| security.fs_group).and_then(|group| u32::try_from(group).ok());
        let (own, others) = self.users(volume)?;
        let own = own.unwrap_or_default();
        if own.given {
            return Ok(()); // before the agent started again
        }
        let others: Vec<u32> = others.iter().filter(|other| other.given).filter_map(|other| other.group).collect();
        if let Some(group) = group {
            if others.is_empty() {
                let policy = security.and_then(|security| security.fs_group_change_policy.as_deref());
                let ownership = Ownership { group, on_root_mismatch: policy == Some("OnRootMismatch") };
                let errand = Errand::Own { path: path.to_owned(), ownership };
                self.helpers.send(&errand, &path.display().to_string(), OWN, true).await.map_err(because)?;
            } else if let Some(other) = others.iter().find(|other| **other != group) {
                let message = format!(
                    "The requested fsGroup is {group}, but the volume {volume} has GID {other}. \
                     The volume may not be shareable."
                );
                let now = Timestamp::now();
                self.shared.events.record(pod, None, Severity::Warning, "AlreadyMountedVolume", message, now);
            }
        }
        self.note_use(volume, Use { given: true, group, ..own })
    }

    /// Unmounts and removes the volumes, and gives back what the pod's own claims had.
    pub(super) async fn unmount_volumes(self: &Arc<Self>) -> Result<Done, ActionError> {
        const REASON: &str = "FailedUnMount";
        // Before anything is unmounted behind the back of a driver.
        self.unpublish_volumes().await?;
        let volumes = self.dirs.volumes();
        if volumes.join("kubernetes.io~nfs").exists() {
            let errand = Errand::TearDown { volumes };
            match self.helpers.send(&errand, &format!("volumes of pod {}", self.uid()), UNMOUNT, false).await {
                Err(HelperError::Failed(message)) => return Err(ActionError { reason: REASON.to_owned(), message }),
                Err(error) => {
                    tracing::warn!(pod = self.uid(), %error, "volumes are detached without their servers");
                    let host = self.clone();
                    let detach = move || volume::detach_remote(&host.dirs).map_err(|e| ActionError::new(REASON, &e));
                    blocking(detach).await?;
                }
                Ok(_) => {}
            }
        }
        let host = self.clone();
        let owned = blocking(move || {
            volume::tear_down(&host.dirs).map_err(|error| ActionError::new(REASON, &error))?;
            for records in [host.dirs.images(), host.dirs.claims(), host.dirs.csi()] {
                remove::remove_tree(&records).map_err(|error| ActionError::new(REASON, &error))?;
            }
            host.shared.claims.owned_by(host.uid()).map_err(|error| ActionError::new(REASON, &error))
        })
        .await?;
        for name in owned {
            self.release(&name).await?;
        }
        Ok(Done::new(Outcome::Done))
    }

    /// What becomes of the volume of a claim that ends with its pod. Retain: it stays as it is, and nobody gets it.
    /// Delete: it is emptied and free again, where it is of a kind that this node may empty.
    async fn release(self: &Arc<Self>, name: &str) -> Result<(), ActionError> {
        let objects = self.shared.objects.borrow().clone();
        let volume = objects.persistent_volumes.get(&(String::new(), name.to_owned()));
        let clean = match volume.and_then(|volume| deletable(volume)) {
            None => false,
            Some(path) => {
                let errand = Errand::Empty { path: path.clone() };
                let emptied = self.helpers.send(&errand, &path.display().to_string(), EMPTY, false).await;
                if let Err(error) = &emptied {
                    let message = format!("empty volume {name}: {error}");
                    let now = Timestamp::now();
                    let pod = self.pod();
                    self.shared.events.record(&pod, None, Severity::Warning, "VolumeFailedDelete", message, now);
                }
                emptied.is_ok()
            }
        };
        let (host, name) = (self.clone(), name.to_owned());
        blocking(move || host.shared.claims.release(&name, clean).map_err(because)).await
    }
}

fn make(directory: &Path) -> Result<(), ActionError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| failed(format!("create {}: {error}", directory.display())))
}

/// Ids of the images that the volumes of a pod are made from, by volume, as they were chosen. What cannot be read is
/// chosen again.
pub(super) fn chosen_images(dirs: &PodDirs) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dirs.images()).into_iter().flatten().flatten();
    let chosen = |entry: fs::DirEntry| {
        let path = entry.path();
        let name = path.file_stem()?.to_str().filter(|_| path.extension().is_some_and(|kind| kind == "json"))?;
        Some((name.to_owned(), durable::read_json::<Chosen>(&path).ok().flatten()?.id))
    };
    entries.filter_map(chosen).collect()
}

/// Where a volume is that its reclaim policy lets be emptied: a local one, and as upstream's deleter a hostPath only
/// below /tmp.
fn deletable(volume: &PersistentVolume) -> Option<PathBuf> {
    let spec = volume.spec.as_ref()?;
    let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    if !deletes || claims::mode(spec.volume_mode.as_deref()) != "Filesystem" {
        return None;
    }
    let host_path = spec.host_path.as_ref().map(|source| PathBuf::from(&source.path));
    let below_tmp = |path: &PathBuf| path.strip_prefix("/tmp").is_ok_and(|below| below.components().count() > 0);
    spec.local.as_ref().map(|local| PathBuf::from(&local.path)).or(host_path.filter(below_tmp))
}

/// Whether the pod uses a volume of this mode as such.
fn agrees(pod: &Pod, volume: &str, mode: &str) -> Result<(), String> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let mounted = container.volume_mounts.iter().flatten().any(|mount| mount.name == volume);
        let device = container.volume_devices.iter().flatten().any(|device| device.name == volume);
        if mounted && mode != "Filesystem" {
            return Err(format!("volume {volume} has volumeMode {mode}, but is specified in volumeMounts"));
        }
        if device && mode != "Block" {
            return Err(format!("volume {volume} has volumeMode {mode}, but is specified in volumeDevices"));
        }
    }
    Ok(())
}

/// `mountOptions` of a directory: what each mount of it can be held to, and whether it may be written.
fn restrictions(options: &[String]) -> Result<(Restrictions, bool), String> {
    let mut restrictions = Restrictions::default();
    let mut read_only = false;
    for option in options.iter().flat_map(|option| option.split(',')) {
        match option {
            "ro" => read_only = true,
            "nosuid" => restrictions.nosuid = true,
            "nodev" => restrictions.nodev = true,
            "noexec" => restrictions.noexec = true,
            "" | "rw" | "suid" | "dev" | "exec" | "defaults" | "bind" | "relatime" => {}
            other => return Err(format!("mount option {other:?} is not supported for a local volume")),
        }
    }
    Ok((restrictions, read_only))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_what_may_be_emptied_is() {
        let path = |spec: Value| {
            let mut full = json!({"persistentVolumeReclaimPolicy": "Delete"});
            full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            deletable(&serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": full})).unwrap())
        };
        let local = json!({"path": "/mnt/disks/1"});
        assert_eq!(path(json!({"local": local})), Some("/mnt/disks/1".into()));
        assert_eq!(path(json!({"local": local, "persistentVolumeReclaimPolicy": "Retain"})), None);
        assert_eq!(path(json!({"local": local, "volumeMode": "Block"})), None);
        assert_eq!(path(json!({"hostPath": {"path": "/tmp/x/y"}})), Some("/tmp/x/y".into()));
        for refused in ["/tmp", "/tmpx", "/srv/data", "/"] {
            assert_eq!(path(json!({"hostPath": {"path": refused}})), None, "{refused}");
        }
        assert_eq!(path(json!({"nfs": {"server": "s", "path": "/"}})), None);
    }

    #[test]
    fn a_volume_is_used_as_what_it_is() {
        let pod =
            |container: Value| -> Pod { serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap() };
        let mounts = pod(json!({"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
        let has = pod(json!({"name": "a", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}));
        assert_eq!(agrees(&mounts, "v", "Filesystem"), Ok(()));
        assert_eq!(agrees(&has, "v", "Block"), Ok(()));
        assert_eq!(agrees(&mounts, "other", "Block"), Ok(()));
        assert!(agrees(&mounts, "v", "Block").unwrap_err().ends_with("is specified in volumeMounts"));
        assert!(agrees(&has, "v", "Filesystem").unwrap_err().ends_with("is specified in volumeDevices"));
    }

    #[test]
    fn options_are_held_to_or_refused() {
        let of =
            |options: &[&str]| restrictions(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>());
        let all = Restrictions { nosuid: true, nodev: true, noexec: true };
        assert_eq!(of(&["nosuid,nodev", "noexec", "rw"]), Ok((all, false)));
        assert_eq!(of(&["ro"]), Ok((Restrictions::default(), true)));
        assert!(of(&["noatime"]).unwrap_err().contains("noatime"));
    }
}
