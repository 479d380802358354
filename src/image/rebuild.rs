//! The images of a store whose index is lost, from what else is there: configurations, manifests and layers.
//!
//! What nobody can tell any more are the names (and which of them were pinned). But containers may run from these
//! layers: an image that is known, if only by its id, is not collected while a container uses it, and when it is pulled
//! or loaded again its layers are here.

use std::{collections::BTreeMap, fs, path::Path};

use super::{
    config::ImageConfig,
    digest::Digest,
    error::ImageError,
    index::{Index, LayerRecord, Record},
    layers::LayerStore,
    manifest::{CONFIG_LIMIT, Config, Document, MANIFEST_LIMIT, decode, decode_config},
    skeleton::skeleton,
};

/// Everything that can be made out. An image that lacks a layer is left out.
pub(super) fn rebuild(root: &Path, layers: &LayerStore, settings: &ImageConfig) -> Result<Index, ImageError> {
    let mut configs: Vec<(Digest, Config, u64)> = Vec::new();
    let mut manifests: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for (digest, bytes) in blobs(root)? {
        // Neither says what it is; each is no valid form of the other.
        let subject = format!("blob {digest}");
        if let Ok(config) = decode_config(&bytes, &settings.platform, &subject) {
            configs.push((digest, config, bytes.len() as u64));
        } else if let Ok(Document::Manifest(manifest)) = decode(&bytes, None, &subject) {
            manifests.entry(manifest.config.digest).or_default().push(digest);
        }
    }
    let mut index = Index::default();
    for (id, config, config_size) in configs {
        let held = config.diff_ids.iter().map(|diff_id| Some((diff_id.clone(), layers.summary(diff_id)?)));
        let Some(held) = held.collect::<Option<Vec<_>>>() else { continue };
        let skeleton = skeleton(layers, &held, settings.ownership)?;
        let layer = |(diff_id, summary): (Digest, super::unpack::LayerSummary)| LayerRecord {
            diff_id,
            size: summary.size,
            entries: summary.entries,
        };
        let record = Record {
            manifests: manifests.remove(&id).unwrap_or_default(),
            id,
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            config_size,
            config: config.run,
            platform: config.platform,
            layers: held.into_iter().map(layer).chain(skeleton).collect(),
            pinned: false,
        };
        index.add(record, layers)?;
    }
    Ok(index)
}

/// All small blobs that are what their names say.
fn blobs(root: &Path) -> Result<Vec<(Digest, Vec<u8>)>, ImageError> {
    let mut found = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        let directory = root.join("blobs").join(algorithm);
        for entry in fs::read_dir(&directory).map_err(ImageError::io("list", &directory))? {
            let entry = entry.map_err(ImageError::io("list", &directory))?;
            let name = entry.file_name();
            let Ok(digest) = Digest::parse(&format!("{algorithm}:{}", name.to_string_lossy())) else { continue };
            if entry.metadata().is_ok_and(|metadata| metadata.len() > CONFIG_LIMIT.max(MANIFEST_LIMIT)) {
                continue;
            }
            let bytes = fs::read(entry.path()).map_err(ImageError::io("read", entry.path()))?;
            if digest.same_algorithm_of(&bytes) == digest {
                found.push((digest, bytes));
            }
        }
    }
    Ok(found)
}
