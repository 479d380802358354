//! Which images there are and what they are called: held in memory, kept in `images.json`.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    config::Platform, digest::Digest, error::ImageError, layers::LayerStore, manifest::ImageRunConfig,
    reference::ImageReference,
};

/// Version of `images.json`.
const VERSION: u32 = 1;
/// Digits of an id that are enough without `sha256:` (as many as tables show): fewer might be meant as a name.
const SHORT_ID: usize = 12;

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// `sha256:<digest of the configuration>`.
    pub id: String,
    /// Normalized `host/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// Normalized `host/repository@digest`, sorted; the digest is what the reference resolved to (an index's, if so).
    pub repo_digests: Vec<String>,
    /// Bytes of file data in its distinct layers, unpacked, and of its configuration. Shared layers count in each image.
    pub size: u64,
    /// Never removed by garbage collection.
    pub pinned: bool,
    /// How it runs.
    pub config: ImageRunConfig,
    /// Overlay lower directories, topmost first, at least one, without duplicates.
    pub layers: Vec<PathBuf>,
    /// What it runs on.
    pub platform: Platform,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// Uncompressed digest.
    pub diff_id: Digest,
    /// Bytes of file data.
    pub size: u64,
    /// Entries of its archive.
    pub entries: u64,
}

/// What is kept of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// Digest of the configuration.
    pub id: Digest,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Digests of its manifest and of the index it was chosen from, as far as they are known.
    #[serde(default)]
    pub manifests: Vec<Digest>,
    pub config_size: u64,
    pub config: ImageRunConfig,
    pub platform: Platform,
    /// Bottom first; a skeleton (see [`super::skeleton`]) last, if there is one.
    pub layers: Vec<LayerRecord>,
    #[serde(default)]
    pub pinned: bool,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    images: Vec<Record>,
}

#[derive(Debug, Clone)]
struct Held {
    image: Arc<Image>,
    manifests: Vec<Digest>,
    config_size: u64,
    layers: Vec<LayerRecord>,
}

/// All images. Cloned for a change, so that readers never wait for the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    images: BTreeMap<Digest, Held>,
    names: HashMap<String, Digest>,
}

impl Record {
    fn image(&self, store: &LayerStore) -> Result<Image, ImageError> {
        let mut lower = Vec::new();
        let mut size = self.config_size;
        let mut seen = std::collections::HashSet::new();
        for layer in self.layers.iter().rev() {
            // A layer that occurs again further down is covered by itself; overlayfs refuses the same directory twice.
            if !seen.insert(&layer.diff_id) {
                continue;
            }
            size += layer.size;
            // Each lower directory costs every path lookup: those that change nothing are left out.
            if layer.entries > 0 {
                lower.push(store.lower(&layer.diff_id));
            }
        }
        if lower.is_empty() {
            lower.push(store.empty_lower()?);
        }
        Ok(Image {
            id: self.id.to_string(),
            repo_tags: self.repo_tags.clone(),
            repo_digests: self.repo_digests.clone(),
            size,
            pinned: self.pinned,
            config: self.config.clone(),
            layers: lower,
            platform: self.platform.clone(),
        })
    }
}

impl Index {
    /// From `images.json`. Records for which `usable` says no are left out and returned.
    pub(super) fn decode(
        bytes: &[u8],
        store: &LayerStore,
        usable: impl Fn(&Record) -> bool,
    ) -> Result<(Index, Vec<Record>), String> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if file.version != VERSION {
            return Err(format!("version {} is not known", file.version));
        }
        let mut index = Index::default();
        let mut dropped = Vec::new();
        for record in file.images {
            match record.image(store) {
                Ok(image) if usable(&record) => index.hold(record, image),
                _ => dropped.push(record),
            }
        }
        Ok((index, dropped))
    }

    /// As `images.json`.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let images = self.images.iter().map(|(id, held)| held.record(id)).collect();
        serde_json::to_vec(&File { version: VERSION, images })
    }

    fn hold(&mut self, record: Record, image: Image) {
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            self.names.insert(name.clone(), record.id.clone());
        }
        let Record { id, manifests, config_size, layers, .. } = record;
        self.images.insert(id, Held { image: Arc::new(image), manifests, config_size, layers });
    }

    /// Adds an image or more names for it. Names that another image has move here.
    pub(super) fn add(&mut self, mut record: Record, store: &LayerStore) -> Result<Arc<Image>, ImageError> {
        for name in record.repo_tags.iter().chain(&record.repo_digests) {
            if self.names.get(name).is_some_and(|owner| *owner != record.id) {
                self.unname(name);
            }
        }
        if let Some(held) = self.images.get(&record.id) {
            record.repo_tags.extend(held.image.repo_tags.iter().cloned());
            record.repo_digests.extend(held.image.repo_digests.iter().cloned());
            record.manifests.extend(held.manifests.iter().cloned());
            record.pinned |= held.image.pinned;
        }
        for names in [&mut record.repo_tags, &mut record.repo_digests] {
            names.sort();
            names.dedup();
        }
        record.manifests.sort();
        record.manifests.dedup();
        let id = record.id.clone();
        let image = record.image(store)?;
        self.hold(record, image);
        self.images.get(&id).map(|held| Arc::clone(&held.image)).ok_or_else(|| ImageError::Interrupted(id.to_string()))
    }

    /// Takes a name away from whichever image has it.
    pub(super) fn unname(&mut self, name: &str) {
        if let Some(id) = self.names.remove(name)
            && let Some(held) = self.images.get_mut(&id)
        {
            let image = Arc::make_mut(&mut held.image);
            image.repo_tags.retain(|other| other != name);
            image.repo_digests.retain(|other| other != name);
        }
    }

    /// Removes an image with all its names.
    pub(super) fn remove(&mut self, id: &Digest) {
        self.images.remove(id);
        self.names.retain(|_, owner| owner != id);
    }

    pub(super) fn set_pinned(&mut self, id: &Digest, pinned: bool) {
        if let Some(held) = self.images.get_mut(id) {
            Arc::make_mut(&mut held.image).pinned = pinned;
        }
    }

    pub(super) fn get(&self, id: &Digest) -> Option<&Arc<Image>> {
        self.images.get(id).map(|held| &held.image)
    }

    pub(super) fn list(&self) -> impl Iterator<Item = (&Digest, &Arc<Image>)> {
        self.images.iter().map(|(id, held)| (id, &held.image))
    }

    /// Ids that an image id or a prefix of one means.
    fn by_id(&self, text: &str) -> Vec<&Digest> {
        let prefix = match text.strip_prefix("sha256:") {
            Some(hex) if !hex.is_empty() => hex,
            None if text.len() >= SHORT_ID => text,
            _ => return Vec::new(),
        };
        if prefix.len() > 64 || !prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Vec::new();
        }
        self.images.keys().filter(|id| id.hex().starts_with(prefix)).collect()
    }

    /// Finds by name, then by id or prefix of an id.
    pub(super) fn find(&self, text: &str) -> Result<&Digest, ImageError> {
        let name = ImageReference::parse(text);
        if let Ok(reference) = &name
            && let Some(id) = self.names.get(&reference.key())
        {
            return Ok(id);
        }
        let mut ids = self.by_id(text);
        match (ids.pop(), ids.is_empty(), name) {
            (Some(id), true, _) => Ok(id),
            (Some(id), false, _) => {
                ids.push(id);
                let matches: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
                Err(ImageError::Ambiguous { reference: text.to_owned(), matches: matches.join(", ") })
            }
            (None, _, Err(error)) if !text.starts_with("sha256:") => Err(error),
            (None, ..) => Err(ImageError::NotPresent { reference: text.to_owned() }),
        }
    }

    /// The directories of all layers of all images.
    pub(super) fn layer_directories(&self) -> impl Iterator<Item = &Digest> {
        self.images.values().flat_map(|held| held.layers.iter().map(|layer| &layer.diff_id))
    }

    /// All blobs that are kept for images.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.images.iter().flat_map(|(id, held)| held.manifests.iter().chain([id]))
    }
}

impl Held {
    fn record(&self, id: &Digest) -> Record {
        Record {
            id: id.clone(),
            repo_tags: self.image.repo_tags.clone(),
            repo_digests: self.image.repo_digests.clone(),
            manifests: self.manifests.clone(),
            config_size: self.config_size,
            config: self.image.config.clone(),
            platform: self.image.platform.clone(),
            layers: self.layers.clone(),
            pinned: self.image.pinned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, LayerStore) {
        let directory = tempfile::tempdir().unwrap();
        let (layers, _) = LayerStore::open(directory.path().join("layers")).unwrap();
        (directory, layers)
    }

    fn record(name: &str, layers: &[&str]) -> Record {
        let layers = layers.iter().map(|layer| LayerRecord {
            diff_id: Digest::of(layer.as_bytes()),
            size: 10,
            entries: layer.len() as u64,
        });
        Record {
            id: Digest::of(name.as_bytes()),
            repo_tags: vec![format!("docker.io/library/{name}:latest")],
            repo_digests: Vec::new(),
            manifests: Vec::new(),
            config_size: 1,
            config: ImageRunConfig::default(),
            platform: Platform::host(),
            layers: layers.collect(),
            pinned: false,
        }
    }

    #[test]
    fn lower_directories_are_topmost_first_without_repetition_or_empty_layers() {
        let (_guard, store) = store();
        let image = record("a", &["x", "", "y", "x"]).image(&store).unwrap();
        assert_eq!(image.layers, [store.lower(&Digest::of(b"x")), store.lower(&Digest::of(b"y"))]);
        assert_eq!(image.size, 31);
        assert_eq!(record("a", &[]).image(&store).unwrap().layers.len(), 1);
    }

    #[test]
    fn images_are_found_by_name_and_by_id() {
        let (_guard, store) = store();
        let mut index = Index::default();
        let id = index.add(record("a", &["x"]), &store).unwrap().id.clone();
        index.add(record("b", &["x"]), &store).unwrap();
        for text in ["a", "docker.io/library/a", "a:latest", &id, &id[..20], &id[7..7 + SHORT_ID]] {
            assert_eq!(index.find(text).unwrap().as_str(), id, "{text}");
        }
        assert!(matches!(index.find(&id[7..15]), Err(ImageError::NotPresent { .. })), "too short for an id");
        assert!(matches!(index.find("sha256:"), Err(ImageError::NotPresent { .. })));
        assert!(matches!(index.find("No Name"), Err(ImageError::InvalidReference { .. })));
    }

    #[test]
    fn a_tag_moves_and_the_old_image_stays_without_it() {
        let (_guard, store) = store();
        let mut index = Index::default();
        let old = index.add(record("a", &["x"]), &store).unwrap().id.clone();
        let mut newer = record("a", &["y"]);
        newer.id = Digest::of(b"newer");
        let new = index.add(newer, &store).unwrap().id.clone();
        assert_eq!(index.find("a").unwrap().as_str(), new);
        assert!(index.get(&Digest::parse(&old).unwrap()).unwrap().repo_tags.is_empty());
        let bytes = index.encode().unwrap();
        let (again, dropped) = Index::decode(&bytes, &store, |_| true).unwrap();
        assert!(dropped.is_empty());
        assert_eq!(again.find("a").unwrap().as_str(), new);
        let (without, dropped) = Index::decode(&bytes, &store, |record| record.id.as_str() != new).unwrap();
        assert_eq!((without.list().count(), dropped.len()), (1, 1));
        assert!(Index::decode(br#"{"version":99,"images":[]}"#, &store, |_| true).is_err());
    }
}
