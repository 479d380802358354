//! The content store: what is here, kept so that a crash at any moment leaves either the old or the new.
//!
//! `<root>/images.json` (all records), `<root>/blobs/<algorithm>/<hex>` (manifests and configurations) and
//! `<root>/layers` (see [`super::layers`]). An image is recorded last, after everything it refers to is durable.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use tokio::{sync::Semaphore, task::JoinHandle};

use super::{
    config::ImageConfig,
    digest::Digest,
    error::ImageError,
    index::{Image, Index, LayerRecord, Record},
    layers::{LayerStore, make_private},
    manifest::Config,
    pull::{LayerFetches, Pulls},
    rebuild::rebuild,
    reference::ImageReference,
    registry::Registry,
    skeleton::skeleton,
    unpack::{LayerSummary, remove::remove_tree},
};
use crate::store::durable;

/// The images of this node. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) root: PathBuf,
    pub(super) config: Arc<ImageConfig>,
    pub(super) layers: LayerStore,
    pub(super) registry: Registry,
    /// Pulls that are going on.
    pub(super) pulls: Pulls,
    /// Layers that are being fetched, for whichever pull.
    pub(super) fetches: LayerFetches,
    /// How many layers may be fetched at once.
    pub(super) permits: Semaphore,
    index: RwLock<Arc<Index>>,
    /// One change at a time; held over the disk write, which readers of `index` do not wait for.
    change: Mutex<()>,
    /// Layers that pulls and loads under way rely on, with how many do.
    pins: Mutex<HashMap<Digest, usize>>,
    /// Removal of what an earlier run left half-made.
    sweep: Mutex<Option<JoinHandle<()>>>,
}

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Removed {
    /// Names that were taken away.
    pub untagged: Vec<String>,
    /// Ids of images that are gone.
    pub deleted: Vec<String>,
}

/// What [`ImageStore::prune`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pruned {
    /// Ids of images that are gone.
    pub images: Vec<String>,
    /// Layers that are gone.
    pub layers: usize,
    /// Bytes of file data they had.
    pub bytes: u64,
}

/// Which images [`ImageStore::prune`] removes besides layers and blobs that no image refers to. Images in use and pinned
/// ones always stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneScope {
    /// None.
    Unreferenced,
    /// Those without a tag.
    Untagged,
    /// All.
    Unused,
}

/// An image whose layers are in the store.
pub(super) struct NewImage {
    pub id: Digest,
    /// What it is called, by whoever asked for it.
    pub names: Vec<ImageReference>,
    /// What the names resolved to.
    pub digest: Option<Digest>,
    /// Manifest and index, as far as there are such.
    pub manifests: Vec<(Digest, Vec<u8>)>,
    pub config: Config,
    pub config_bytes: Vec<u8>,
    /// In the order of the configuration's diff ids.
    pub layers: Vec<LayerSummary>,
}

/// Keeps layers from being pruned.
pub(super) struct Pins {
    inner: Arc<Inner>,
    layers: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = lock(&self.inner.pins);
        for layer in &self.layers {
            if let Some(count) = pins.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(layer);
                }
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs file system work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    subject: &str,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(ImageError::Interrupted(subject.to_owned())),
    }
}

impl ImageStore {
    /// Opens or makes the store in `root` (`<agent root>/images`), which must be on one local file system.
    ///
    /// Leftovers of an interrupted run are removed in the background. An image that lacks a layer or its configuration
    /// is dropped with a warning (it will be pulled again). An index that cannot be read, or is not there, is made again
    /// from the rest of the store: its images have lost their names, and keep their layers.
    pub async fn open(root: &Path, config: ImageConfig) -> Result<ImageStore, ImageError> {
        let root = root.to_owned();
        let subject = root.display().to_string();
        let (inner, leftovers) = blocking(&subject, move || Inner::open(root, config)).await?;
        if !leftovers.is_empty() {
            let sweep = tokio::task::spawn_blocking(move || leftovers.iter().for_each(|path| discard(path)));
            *lock(&inner.sweep) = Some(sweep);
        }
        Ok(ImageStore { inner: Arc::new(inner) })
    }

    /// The image for a reference (normalized as Docker does; by tag or digest), an id, or a prefix of an id that fits
    /// only one. No I/O.
    pub fn get(&self, reference: &str) -> Option<Arc<Image>> {
        self.find(reference).ok()
    }

    /// Like [`ImageStore::get`], telling why not: malformed, ambiguous or not present.
    pub fn find(&self, reference: &str) -> Result<Arc<Image>, ImageError> {
        let index = self.inner.index();
        let id = index.find(reference)?;
        index.get(id).cloned().ok_or_else(|| ImageError::NotPresent { reference: reference.to_owned() })
    }

    /// All images, by id. No I/O.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.index().list().map(|(_, image)| Arc::clone(image)).collect()
    }

    /// Protects an image from removal, or ends that.
    pub async fn set_pinned(&self, reference: &str, pinned: bool) -> Result<(), ImageError> {
        let (inner, reference) = (Arc::clone(&self.inner), reference.to_owned());
        blocking("pin", move || {
            inner.update(|index| {
                let id = index.find(&reference)?.clone();
                index.set_pinned(&id, pinned);
                Ok(())
            })
        })
        .await
    }

    /// Removes a name, and with the last tag the image with its layers. By id, the image with all its names.
    ///
    /// `in_use` tells for an image id whether a container uses it: then it is not removed, but a name beside others is.
    pub async fn remove(&self, reference: &str, in_use: &(dyn Fn(&str) -> bool + Sync)) -> Result<Removed, ImageError> {
        let image = self.find(reference)?;
        let used = in_use(&image.id);
        let (inner, reference) = (Arc::clone(&self.inner), reference.to_owned());
        blocking("remove", move || inner.remove(&reference, &image.id, used)).await
    }

    /// Removes images according to `scope`, then layers and blobs that no image refers to and no pull relies on.
    pub async fn prune(&self, scope: PruneScope, in_use: &(dyn Fn(&str) -> bool + Sync)) -> Result<Pruned, ImageError> {
        let candidate = |image: &Arc<Image>| match scope {
            PruneScope::Unreferenced => false,
            PruneScope::Untagged => image.repo_tags.is_empty(),
            PruneScope::Unused => true,
        };
        let doomed: Vec<String> = self
            .list()
            .into_iter()
            .filter(|image| candidate(image) && !image.pinned && !in_use(&image.id))
            .map(|image| image.id.clone())
            .collect();
        let sweep = lock(&self.inner.sweep).take();
        if let Some(sweep) = sweep {
            let _ = sweep.await;
        }
        let inner = Arc::clone(&self.inner);
        blocking("prune", move || inner.prune(&doomed)).await
    }
}

impl Inner {
    fn open(root: PathBuf, config: ImageConfig) -> Result<(Inner, Vec<PathBuf>), ImageError> {
        make_private(&root)?;
        for algorithm in ["sha256", "sha512"] {
            make_private(&root.join("blobs").join(algorithm))?;
        }
        let (layers, mut leftovers) = LayerStore::open(root.join("layers"))?;
        leftovers.extend(spools(&root)?);
        let index = match read_index(&root, &layers)? {
            Some(index) => index,
            None => {
                let index = rebuild(&root, &layers, &config)?;
                let images = index.list().count();
                if images > 0 {
                    tracing::warn!(images, "there is no image index: the images that are here have no names");
                }
                index
            }
        };
        let permits = config.max_parallel_layers.clamp(1, Semaphore::MAX_PERMITS);
        let config = Arc::new(config);
        let inner = Inner {
            root,
            registry: Registry::new(Arc::clone(&config)),
            config,
            layers,
            pulls: Pulls::default(),
            fetches: LayerFetches::default(),
            permits: Semaphore::new(permits),
            index: RwLock::new(Arc::new(index)),
            change: Mutex::default(),
            pins: Mutex::default(),
            sweep: Mutex::default(),
        };
        Ok((inner, leftovers))
    }

    pub(super) fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the index: on disk first, then for readers. Blocking.
    fn update<T>(&self, change: impl FnOnce(&mut Index) -> Result<T, ImageError>) -> Result<T, ImageError> {
        let _one_at_a_time = lock(&self.change);
        let mut index = Index::clone(&self.index());
        let result = change(&mut index)?;
        let path = self.root.join("images.json");
        let bytes = index.encode().map_err(|error| ImageError::io("encode", &path)(error.into()))?;
        durable::write(&path, &bytes)?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
        Ok(result)
    }

    /// Records an image whose layers are here. Blocking.
    pub(super) fn add(&self, new: NewImage) -> Result<Arc<Image>, ImageError> {
        let names: Vec<String> = self.config.pinned.iter().filter_map(|text| key(text)).collect();
        let digests = new.digest.iter().flat_map(|digest| new.names.iter().map(|name| name.repo_digest(digest)));
        let mut record = Record {
            repo_tags: new.names.iter().filter_map(ImageReference::repo_tag).collect(),
            repo_digests: digests.collect(),
            manifests: new.manifests.iter().map(|(digest, _)| digest.clone()).collect(),
            config_size: new.config_bytes.len() as u64,
            config: new.config.run,
            platform: new.config.platform,
            layers: Vec::new(),
            pinned: false,
            id: new.id.clone(),
        };
        record.pinned = record.repo_tags.iter().chain(&record.repo_digests).any(|name| names.contains(name));
        let layers: Vec<(Digest, LayerSummary)> = new.config.diff_ids.into_iter().zip(new.layers).collect();
        self.update(|index| {
            // Within the change, so that what no record refers to yet is not collected.
            let skeleton = skeleton(&self.layers, &layers, self.config.ownership)?;
            for (digest, bytes) in new.manifests.iter().chain([&(new.id, new.config_bytes)]) {
                let path = self.blob(digest);
                if !path.exists() {
                    durable::write(&path, bytes)?;
                }
            }
            let layer = |(diff_id, summary): (Digest, LayerSummary)| LayerRecord {
                diff_id,
                size: summary.size,
                entries: summary.entries,
            };
            record.layers = layers.into_iter().map(layer).chain(skeleton).collect();
            index.add(record, &self.layers)
        })
    }

    /// Where a small blob is kept.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// A name for a file that is gone after the next start.
    pub(super) fn spool(&self) -> PathBuf {
        self.root.join(format!("{SPOOL}{}", super::random_name()))
    }

    /// Keeps layers from being pruned until the result is dropped.
    pub(super) fn pin(self: &Arc<Self>, layers: impl IntoIterator<Item = Digest>) -> Pins {
        let layers: Vec<Digest> = layers.into_iter().collect();
        let mut pins = lock(&self.pins);
        for layer in &layers {
            *pins.entry(layer.clone()).or_default() += 1;
        }
        drop(pins);
        Pins { inner: Arc::clone(self), layers }
    }

    fn remove(&self, reference: &str, id: &str, used: bool) -> Result<Removed, ImageError> {
        let removed = self.update(|index| {
            let found = index.find(reference)?.clone();
            let Some(image) = index.get(&found).filter(|image| image.id == id).cloned() else {
                return Err(ImageError::NotPresent { reference: reference.to_owned() });
            };
            let name = ImageReference::parse(reference).map(|reference| reference.key()).ok();
            let name = name.filter(|name| image.repo_tags.contains(name) || image.repo_digests.contains(name));
            // A tag beside other tags is only a name. Everything else means the image.
            if let Some(name) = name.filter(|name| image.repo_tags.contains(name) && image.repo_tags.len() > 1) {
                index.unname(&name);
                return Ok(Removed { untagged: vec![name], deleted: Vec::new() });
            }
            let why = match (used, image.pinned) {
                (true, _) => Some("is used by a container"),
                (_, true) => Some("is pinned"),
                _ => None,
            };
            if let Some(why) = why {
                return Err(ImageError::InUse { reference: reference.to_owned(), id: image.id.clone(), why });
            }
            index.remove(&found);
            let untagged = image.repo_tags.iter().chain(&image.repo_digests).cloned().collect();
            Ok(Removed { untagged, deleted: vec![image.id.clone()] })
        })?;
        if !removed.deleted.is_empty() {
            self.collect()?;
        }
        Ok(removed)
    }

    fn prune(&self, doomed: &[String]) -> Result<Pruned, ImageError> {
        let images = if doomed.is_empty() {
            Vec::new()
        } else {
            self.update(|index| {
                let ids: Vec<Digest> = doomed.iter().filter_map(|id| Digest::parse(id).ok()).collect();
                let present = ids.iter().filter(|id| index.get(id).is_some()).map(Digest::to_string).collect();
                ids.iter().for_each(|id| index.remove(id));
                Ok(present)
            })?
        };
        let (layers, bytes) = self.collect()?;
        Ok(Pruned { images, layers, bytes })
    }

    /// Removes layers and blobs nothing refers to. Returns how many layers, and how much was in them.
    fn collect(&self) -> Result<(usize, u64), ImageError> {
        let mut bytes = 0;
        let mut retired = Vec::new();
        {
            // With these two held nobody can start to rely on a layer that is being retired, nor record an image.
            let _no_changes = lock(&self.change);
            let pins = lock(&self.pins);
            let index = self.index();
            let wanted: HashSet<&Digest> = index.layer_directories().chain(pins.keys()).collect();
            for layer in self.layers.list()?.iter().filter(|layer| !wanted.contains(layer)) {
                bytes += self.layers.summary(layer).map_or(0, |summary| summary.size);
                retired.push(self.layers.retire(layer)?);
            }
            // Blobs of a pull under way are written and recorded in one step, under the same lock.
            let wanted: HashSet<PathBuf> = index.blobs().map(|digest| self.blob(digest)).collect();
            for algorithm in ["sha256", "sha512"] {
                let directory = self.root.join("blobs").join(algorithm);
                for entry in fs::read_dir(&directory).map_err(ImageError::io("list", &directory))? {
                    let path = entry.map_err(ImageError::io("list", &directory))?.path();
                    if !wanted.contains(&path) {
                        fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
                    }
                }
            }
        }
        retired.iter().for_each(|path| discard(path));
        Ok((retired.len(), bytes))
    }
}

fn key(reference: &str) -> Option<String> {
    ImageReference::parse(reference).ok().map(|reference| reference.key())
}

const SPOOL: &str = ".spool-";

fn spools(root: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = fs::read_dir(root).map_err(ImageError::io("list", root))?;
    let paths = entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(SPOOL));
    Ok(paths.map(|entry| entry.path()).collect())
}

fn discard(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove what is left of a layer, leaving it to the next start");
    }
}

/// `None` if there is none that can be used.
fn read_index(root: &Path, layers: &LayerStore) -> Result<Option<Index>, ImageError> {
    let path = root.join("images.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("read", &path)(error)),
    };
    let usable = |record: &Record| {
        let config = root.join("blobs").join(record.id.algorithm()).join(record.id.hex());
        config.is_file() && record.layers.iter().all(|layer| layers.has(&layer.diff_id))
    };
    match Index::decode(&bytes, layers, usable) {
        Ok((index, dropped)) => {
            for record in dropped {
                let names = record.repo_tags.join(", ");
                tracing::warn!(image = %record.id, %names, "image dropped: a layer or its configuration is missing");
            }
            Ok(Some(index))
        }
        Err(problem) => {
            let aside = root.join("images.json.bad");
            tracing::warn!(path = %path.display(), problem, "image index cannot be used, setting it aside");
            fs::rename(&path, &aside).map_err(ImageError::io("rename", &path))?;
            Ok(None)
        }
    }
}
