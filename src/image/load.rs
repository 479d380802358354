//! Loads images from OCI layouts and docker-archives.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use futures_util::future::try_join_all;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWriteExt};

use super::{
    archive::{Archive, spool_file},
    digest::Digest,
    error::ImageError,
    fetch::{Source, Wanted},
    index::Image,
    manifest::{
        Blob, CONFIG_LIMIT, Choice, Config, Document, MANIFEST_LIMIT, Manifest, check_layers, choose, decode,
        decode_config, malformed,
    },
    reference::ImageReference,
    store::{ImageStore, Inner, NewImage, blocking},
    unpack::Expected,
};

/// The whole reference, as containerd and Docker write it into an index.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// A tag or a whole reference (OCI image specification, "annotations.md").
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";
const DOCKER_MANIFEST: &str = "manifest.json";

/// An image found in an archive, ready to be unpacked.
struct Found {
    names: Vec<ImageReference>,
    /// Of the manifest or index it is known by; a docker-archive has none.
    digest: Option<Digest>,
    /// With their digests.
    manifests: Vec<(Digest, Vec<u8>)>,
    id: Digest,
    config: Config,
    config_bytes: Vec<u8>,
    /// Member and, where it is known, digest and size. Bottom first.
    layers: Vec<(String, Option<(Digest, u64)>)>,
}

impl ImageStore {
    /// Loads every image of an OCI layout (directory or tar) or docker-archive (`docker save`; also unpacked) at `path`;
    /// a tar may be compressed with gzip or zstd. `name` names the image instead of what the archive says, if it has one.
    ///
    /// An image without any name is loaded too; it is known by its id. The tags of what is returned are those that it was
    /// loaded by, in the order of the archive.
    pub async fn load(&self, path: &Path, name: Option<&str>) -> Result<Vec<Arc<Image>>, ImageError> {
        let name = name.map(ImageReference::parse).transpose()?;
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        let subject = path.display().to_string();
        let open = move || {
            let archive = Archive::open_path(&path, &|| inner.spool())?;
            find_images(&inner, archive, name)
        };
        let found = blocking(&subject, open).await?;
        self.load_found(found).await
    }

    /// Like [`ImageStore::load`] for a stream (standard input, a request's body). It is spooled into the store's
    /// directory, because the parts of an archive may come in any order.
    pub async fn load_reader(
        &self,
        mut reader: impl AsyncRead + Unpin + Send,
        name: Option<&str>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let name = name.map(ImageReference::parse).transpose()?;
        let path = self.inner.spool();
        let create = path.clone();
        let file = blocking("spool", move || spool_file(&create).map_err(ImageError::io("create", &create))).await?;
        let mut file = tokio::fs::File::from_std(file);
        tokio::io::copy(&mut reader, &mut file).await.map_err(ImageError::io("spool into", &path))?;
        file.flush().await.map_err(ImageError::io("write", &path))?;
        let file = file.into_std().await;
        let inner = Arc::clone(&self.inner);
        let open = move || {
            let archive = Archive::open_file("standard input".to_owned(), file, &|| inner.spool())?;
            find_images(&inner, archive, name)
        };
        let found = blocking("standard input", open).await?;
        self.load_found(found).await
    }

    async fn load_found(&self, (archive, found): (Arc<Archive>, Vec<Found>)) -> Result<Vec<Arc<Image>>, ImageError> {
        let mut images = Vec::new();
        for image in found {
            images.push(self.inner.load_one(&archive, image).await?);
        }
        Ok(images)
    }
}

impl Inner {
    async fn load_one(self: &Arc<Self>, archive: &Arc<Archive>, found: Found) -> Result<Arc<Image>, ImageError> {
        let _pins = self.pin(found.config.diff_ids.iter().cloned());
        let layers = found.layers.iter().zip(&found.config.diff_ids).map(|((member, blob), diff_id)| {
            self.ensure_layer(Wanted {
                source: Source::Local { archive: Arc::clone(archive), member: member.clone() },
                expected: Expected { blob: blob.clone(), diff_id: diff_id.clone() },
                subject: archive.name.clone(),
            })
        });
        let layers = try_join_all(layers).await?;
        let names: Vec<String> = found.names.iter().map(ToString::to_string).collect();
        let new = NewImage {
            id: found.id,
            names: found.names,
            digest: found.digest,
            manifests: found.manifests,
            config: found.config,
            config_bytes: found.config_bytes,
            layers,
        };
        let inner = Arc::clone(self);
        let mut image = Arc::unwrap_or_clone(blocking(&archive.name, move || inner.add(new)).await?);
        // The same image may have been there under other names.
        image.repo_tags.retain(|tag| names.contains(tag));
        image.repo_tags.sort_by_key(|tag| names.iter().position(|name| name == tag));
        Ok(Arc::new(image))
    }
}

fn find_images(
    inner: &Inner,
    archive: Archive,
    name: Option<ImageReference>,
) -> Result<(Arc<Archive>, Vec<Found>), ImageError> {
    let mut found = if archive.has("index.json") && archive.has("oci-layout") {
        find_in_layout(inner, &archive)?
    } else if archive.has(DOCKER_MANIFEST) {
        find_in_docker_archive(inner, &archive)?
    } else {
        return Err(archive.failed("neither an OCI layout (index.json) nor a docker-archive (manifest.json)"));
    };
    if let Some(name) = name {
        if let [one] = found.as_mut_slice() {
            one.names = vec![name];
        } else {
            let names: Vec<String> = found
                .iter()
                .map(|image| image.names.first().map_or(image.id.to_string(), |name| name.to_string()))
                .collect();
            return Err(archive.failed(format!(
                "it holds {} images ({}), which cannot all be named {name}",
                found.len(),
                names.join(", ")
            )));
        }
    }
    Ok((Arc::new(archive), found))
}

fn blob_member(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Reads a small blob of a layout and checks it.
fn read_blob(archive: &Archive, blob: &Blob, limit: u64) -> Result<Vec<u8>, ImageError> {
    let bytes = archive.read(&blob_member(&blob.digest), limit)?;
    let subject = || format!("{}: {}", archive.name, blob.digest);
    if bytes.len() as u64 != blob.size {
        return Err(ImageError::SizeMismatch { subject: subject(), expected: blob.size, actual: bytes.len() as u64 });
    }
    let actual = blob.digest.same_algorithm_of(&bytes);
    if actual != blob.digest {
        return Err(ImageError::DigestMismatch { subject: subject(), expected: blob.digest.clone(), actual });
    }
    Ok(bytes)
}

fn find_in_layout(inner: &Inner, archive: &Archive) -> Result<Vec<Found>, ImageError> {
    let bytes = archive.read("index.json", MANIFEST_LIMIT)?;
    let subject = format!("{}: index.json", archive.name);
    let Document::Index(choices) = decode(&bytes, None, &subject)? else {
        return Err(malformed(&subject, "it is not an index"));
    };
    let mut by_config: BTreeMap<String, Vec<ImageReference>> = BTreeMap::new();
    let mut found: Vec<Found> = Vec::new();
    let mut other_platform = None;
    for choice in &choices {
        let foreign = choice.platform.as_ref().is_some_and(|platform| inner.config.platform.rank(platform).is_none());
        let result = if foreign && choices.len() > 1 { Ok(None) } else { find_choice(inner, archive, choice) };
        match result {
            Ok(Some(image)) => match found.iter_mut().find(|other| other.id == image.id) {
                Some(other) => other.names.extend(image.names),
                None => found.push(image),
            },
            Ok(None) => {}
            Err(error @ ImageError::NoPlatform { .. }) => other_platform = Some(error),
            Err(error) => return Err(error),
        }
    }
    if found.is_empty() {
        return Err(other_platform.unwrap_or_else(|| archive.failed("no image for this platform in it")));
    }
    // `docker save` writes both forms; the names may be in the other one only.
    if found.iter().all(|image| image.names.is_empty()) && archive.has(DOCKER_MANIFEST) {
        for entry in docker_entries(archive)? {
            by_config.entry(entry.config.clone()).or_default().extend(entry.names());
        }
        for image in &mut found {
            let names = by_config.iter().filter(|(config, _)| config.contains(image.id.hex()));
            image.names = names.flat_map(|(_, names)| names.iter().cloned()).collect();
        }
    }
    Ok(found)
}

/// `None`: not an image (an attestation, an artifact).
fn find_choice(inner: &Inner, archive: &Archive, choice: &Choice) -> Result<Option<Found>, ImageError> {
    let subject = format!("{}: manifest {}", archive.name, choice.blob.digest);
    let bytes = read_blob(archive, &choice.blob, MANIFEST_LIMIT)?;
    let mut manifests = Vec::new();
    let manifest: Manifest = match decode(&bytes, Some(&choice.blob.media_type), &subject)? {
        Document::Manifest(manifest) => manifest,
        Document::Index(choices) => {
            let chosen = choose(&choices, &inner.config.platform, &subject)?;
            let bytes = read_blob(archive, &chosen.blob, MANIFEST_LIMIT)?;
            let Document::Manifest(manifest) = decode(&bytes, Some(&chosen.blob.media_type), &subject)? else {
                return Err(malformed(&subject, "an index within an index within an index"));
            };
            manifests.push((chosen.blob.digest.clone(), bytes));
            manifest
        }
    };
    manifests.push((choice.blob.digest.clone(), bytes));
    let config_bytes = read_blob(archive, &manifest.config, CONFIG_LIMIT)?;
    let config = decode_config(&config_bytes, &inner.config.platform, &subject)?;
    check_layers(&manifest, &config, &subject)?;
    let layers = manifest.layers.iter().map(|blob| (blob_member(&blob.digest), Some((blob.digest.clone(), blob.size))));
    Ok(Some(Found {
        names: layout_name(choice).into_iter().collect(),
        digest: Some(choice.blob.digest.clone()),
        layers: layers.collect(),
        manifests,
        id: manifest.config.digest,
        config,
        config_bytes,
    }))
}

/// The name an index gives an image. A bare tag says nothing about the repository, so it is none.
fn layout_name(choice: &Choice) -> Option<ImageReference> {
    let whole = choice.annotations.get(NAME_ANNOTATION).and_then(|name| ImageReference::parse(name).ok());
    let by_tag = choice.annotations.get(REF_ANNOTATION).filter(|text| text.contains([':', '/']));
    whole.or_else(|| by_tag.and_then(|text| ImageReference::parse(text).ok()))
}

/// An entry of a docker-archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerEntry {
    fn names(&self) -> impl Iterator<Item = ImageReference> {
        self.repo_tags.iter().flatten().filter_map(|text| ImageReference::parse(text).ok())
    }
}

fn docker_entries(archive: &Archive) -> Result<Vec<DockerEntry>, ImageError> {
    let bytes = archive.read(DOCKER_MANIFEST, MANIFEST_LIMIT)?;
    let subject = format!("{}: {DOCKER_MANIFEST}", archive.name);
    serde_json::from_slice(&bytes).map_err(|error| malformed(&subject, error))
}

fn find_in_docker_archive(inner: &Inner, archive: &Archive) -> Result<Vec<Found>, ImageError> {
    let mut found = Vec::new();
    for entry in docker_entries(archive)? {
        let subject = format!("{}: {}", archive.name, entry.config);
        let bytes = archive.read(&entry.config, CONFIG_LIMIT)?;
        let id = Digest::of(&bytes);
        // Its name is its digest, in every version of the format; if it looks like one, it must be right.
        let stem = Path::new(&entry.config).file_name().unwrap_or_default().to_string_lossy();
        let stem = stem.strip_suffix(".json").unwrap_or(&stem);
        if let Ok(expected) = Digest::parse(&format!("sha256:{stem}"))
            && expected != id
        {
            return Err(ImageError::DigestMismatch { subject, expected, actual: id });
        }
        let config = decode_config(&bytes, &inner.config.platform, &subject)?;
        if config.diff_ids.len() != entry.layers.len() {
            let (layers, diff_ids) = (entry.layers.len(), config.diff_ids.len());
            return Err(malformed(
                &subject,
                format!("{layers} layers in {DOCKER_MANIFEST}, {diff_ids} in the configuration"),
            ));
        }
        found.push(Found {
            names: entry.names().collect(),
            digest: None,
            manifests: Vec::new(),
            config_bytes: bytes,
            id,
            config,
            layers: entry.layers.into_iter().map(|layer| (layer, None)).collect(),
        });
    }
    if found.is_empty() {
        return Err(archive.failed("no image in it"));
    }
    Ok(found)
}
