//! Decodes indexes, manifests and image configurations, whoever sent them.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{config::Platform, digest::Digest, error::ImageError};

/// Largest manifest or index taken: what registries accept (distribution specification: at least 4 MiB).
pub(super) const MANIFEST_LIMIT: u64 = 4 << 20;
/// Largest configuration taken. Histories and labels make them a few kilobytes.
pub(super) const CONFIG_LIMIT: u64 = 8 << 20;
/// overlayfs refuses more lower directories.
const LAYER_LIMIT: usize = 500;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Everything a registry may answer a manifest request with.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// How a container of this image runs unless the pod says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRunConfig {
    /// `name`, `uid`, `name:group`, `uid:gid`; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=value`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// ENTRYPOINT.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// CMD.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// WORKDIR; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// STOPSIGNAL: `SIGQUIT`, `3`; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// VOLUME paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// LABELs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// EXPOSEd ports: `80/tcp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
}

/// An object of a registry: what it is, how it is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

impl Blob {
    fn from_descriptor(descriptor: &Descriptor, subject: &str) -> Result<Blob, ImageError> {
        let digest = Digest::parse(descriptor.digest().as_ref()).map_err(|error| malformed(subject, error))?;
        Ok(Blob { media_type: descriptor.media_type().to_string(), digest, size: descriptor.size() })
    }
}

/// What a manifest request was answered with.
#[derive(Debug)]
pub(super) enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, of which one is chosen.
    Index(Vec<Choice>),
}

/// The parts of one image.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub config: Blob,
    /// Bottom first.
    pub layers: Vec<Blob>,
}

/// An entry of an index.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub blob: Blob,
    pub platform: Option<Platform>,
    pub annotations: BTreeMap<String, String>,
}

/// A configuration, checked.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub run: ImageRunConfig,
    pub platform: Platform,
    /// Bottom first.
    pub diff_ids: Vec<Digest>,
}

/// Decodes an index or manifest. `media_type`: what the sender said, which must not contradict the document.
pub(super) fn decode(bytes: &[u8], media_type: Option<&str>, subject: &str) -> Result<Document, ImageError> {
    let value = parse(bytes, subject)?;
    let said = media_type.map(|text| text.split(';').next().unwrap_or(text).trim()).filter(|text| !text.is_empty());
    let inside = value.get("mediaType").and_then(Value::as_str);
    let (has_manifests, has_layers) = (value.get("manifests").is_some(), value.get("layers").is_some());
    // A document that is both could be read differently by whoever signed or scanned it (CVE-2021-41190).
    if has_manifests && (has_layers || value.get("config").is_some()) {
        return Err(malformed(subject, "it is an index and a manifest at once"));
    }
    let known = |text: &&str| matches!(*text, OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST);
    let kind = match (said.filter(known), inside) {
        (Some(said), Some(inside)) if said != inside => {
            return Err(malformed(subject, format!("announced as {said}, but says {inside}")));
        }
        (Some(kind), _) => kind,
        (None, Some(inside)) => inside,
        (None, None) if has_manifests => OCI_INDEX,
        (None, None) if has_layers => OCI_MANIFEST,
        (None, None) => said.unwrap_or("none"),
    };
    match kind {
        OCI_INDEX | DOCKER_LIST => {
            let index: ImageIndex = from_value(value, subject)?;
            let choices = index.manifests().iter().map(|descriptor| choice(descriptor, subject));
            Ok(Document::Index(choices.collect::<Result<_, _>>()?))
        }
        OCI_MANIFEST | DOCKER_MANIFEST => {
            let manifest: ImageManifest = from_value(value, subject)?;
            let config = Blob::from_descriptor(manifest.config(), subject)?;
            if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
                return Err(unsupported(format!("{subject}: configuration"), &config.media_type));
            }
            let layers: Vec<Blob> = manifest
                .layers()
                .iter()
                .map(|descriptor| Blob::from_descriptor(descriptor, subject))
                .collect::<Result<_, _>>()?;
            for layer in &layers {
                if !is_layer(&layer.media_type) {
                    return Err(unsupported(format!("{subject}: layer {}", layer.digest), &layer.media_type));
                }
            }
            Ok(Document::Manifest(Manifest { config, layers }))
        }
        other => Err(unsupported(subject.to_owned(), other)),
    }
}

fn choice(descriptor: &Descriptor, subject: &str) -> Result<Choice, ImageError> {
    let platform = descriptor.platform().as_ref().map(|platform| Platform {
        os: platform.os().to_string(),
        architecture: platform.architecture().to_string(),
        variant: platform.variant().clone().unwrap_or_default(),
    });
    let annotations = descriptor.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    Ok(Choice { blob: Blob::from_descriptor(descriptor, subject)?, platform, annotations: annotations.collect() })
}

/// Tar layers, plain or compressed; the compression itself is seen from the first bytes.
fn is_layer(media_type: &str) -> bool {
    let base = media_type.strip_suffix("+gzip").or_else(|| media_type.strip_suffix("+zstd")).unwrap_or(media_type);
    matches!(
        base,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// The entry of an index for `wanted`: the best variant, the first among equals. An entry without a platform is taken
/// when it is the only one; its configuration tells.
pub(super) fn choose<'a>(choices: &'a [Choice], wanted: &Platform, reference: &str) -> Result<&'a Choice, ImageError> {
    let images =
        || choices.iter().filter(|choice| matches!(choice.blob.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST));
    let mut best: Option<(u32, &Choice)> = None;
    for choice in images() {
        let rank = choice.platform.as_ref().and_then(|platform| wanted.rank(platform));
        if let Some(rank) = rank
            && best.is_none_or(|(other, _)| rank > other)
        {
            best = Some((rank, choice));
        }
    }
    if let Some((_, choice)) = best {
        return Ok(choice);
    }
    let mut unnamed = images().filter(|choice| choice.platform.is_none());
    if let (Some(choice), None) = (unnamed.next(), unnamed.next()) {
        return Ok(choice);
    }
    let available: Vec<String> =
        images().filter_map(|choice| choice.platform.as_ref()).map(Platform::to_string).collect();
    Err(no_platform(reference, wanted, &available))
}

fn no_platform(reference: &str, wanted: &Platform, available: &[String]) -> ImageError {
    ImageError::NoPlatform {
        reference: reference.to_owned(),
        wanted: format!("{}/{}", wanted.os, wanted.architecture),
        available: if available.is_empty() { "none".into() } else { available.join(", ") },
    }
}

/// Decodes a configuration and checks that this machine can run it.
pub(super) fn decode_config(bytes: &[u8], wanted: &Platform, subject: &str) -> Result<Config, ImageError> {
    let mut value = parse(bytes, subject)?;
    // An image without layers has `diff_ids: null`, dropped by `parse`.
    if let Some(rootfs) = value.get_mut("rootfs").and_then(Value::as_object_mut) {
        rootfs.entry("diff_ids").or_insert_with(|| Value::Array(Vec::new()));
    }
    let configuration: ImageConfiguration = from_value(value, subject)?;
    let platform = Platform {
        os: configuration.os().to_string(),
        architecture: configuration.architecture().to_string(),
        variant: configuration.variant().clone().unwrap_or_default(),
    };
    if wanted.os != platform.os || wanted.architecture != platform.architecture {
        return Err(no_platform(subject, wanted, &[platform.to_string()]));
    }
    let diff_ids = configuration.rootfs().diff_ids();
    if diff_ids.len() > LAYER_LIMIT {
        return Err(malformed(subject, format!("{} layers, more than {LAYER_LIMIT}", diff_ids.len())));
    }
    let diff_ids = diff_ids
        .iter()
        .map(|text| Digest::parse(text).map_err(|error| malformed(subject, error)))
        .collect::<Result<_, _>>()?;
    let run = configuration.config().as_ref().map_or_else(ImageRunConfig::default, |config| ImageRunConfig {
        user: config.user().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
        volumes: config.volumes().clone().unwrap_or_default(),
        labels: config.labels().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
        exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
    });
    Ok(Config { run, platform, diff_ids })
}

/// Pairs each layer with its uncompressed digest.
pub(super) fn check_layers(manifest: &Manifest, config: &Config, subject: &str) -> Result<(), ImageError> {
    if manifest.layers.len() == config.diff_ids.len() {
        return Ok(());
    }
    let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
    Err(malformed(subject, format!("{layers} layers in the manifest, {diff_ids} in the configuration")))
}

pub(super) fn malformed(subject: &str, problem: impl ToString) -> ImageError {
    ImageError::Malformed { subject: subject.to_owned(), problem: problem.to_string() }
}

fn unsupported(subject: String, media_type: &str) -> ImageError {
    ImageError::UnsupportedMediaType { subject, media_type: media_type.to_owned() }
}

fn parse(bytes: &[u8], subject: &str) -> Result<Value, ImageError> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| malformed(subject, error))?;
    drop_nulls(&mut value);
    Ok(value)
}

pub(super) fn from_value<T: DeserializeOwned>(value: Value, subject: &str) -> Result<T, ImageError> {
    serde_json::from_value(value).map_err(|error| malformed(subject, error))
}

/// Builders in Go write `null` for what is empty; the types know "absent" only.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(media_type: &str, platform: Option<(&str, &str)>) -> Value {
        let mut value = json!({"mediaType": media_type, "digest": Digest::of(media_type.as_bytes()), "size": 3});
        if let Some((architecture, variant)) = platform {
            value["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
            value["digest"] = json!(Digest::of(format!("{architecture}{variant}").as_bytes()));
        }
        value
    }

    fn index(manifests: &[Value]) -> Vec<Choice> {
        let text = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string();
        match decode(text.as_bytes(), None, "test").unwrap() {
            Document::Index(choices) => choices,
            Document::Manifest(_) => panic!("not an index"),
        }
    }

    #[test]
    fn the_platform_is_chosen_from_an_index() {
        let wanted = Platform { os: "linux".into(), architecture: "amd64".into(), variant: "v3".into() };
        let choices = index(&[
            descriptor(OCI_MANIFEST, Some(("arm64", "v8"))),
            descriptor(OCI_MANIFEST, Some(("amd64", ""))),
            descriptor(OCI_MANIFEST, Some(("amd64", "v2"))),
            descriptor(OCI_MANIFEST, Some(("amd64", "v4"))),
            descriptor(OCI_MANIFEST, Some(("unknown", ""))),
        ]);
        assert_eq!(choose(&choices, &wanted, "x").unwrap().blob.digest, Digest::of(b"amd64v2"));
        let error = choose(&choices[..1], &wanted, "docker.io/library/x:1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "docker.io/library/x:1: no manifest for platform linux/amd64 (available: linux/arm64/v8)"
        );
        assert!(choose(&index(&[descriptor(DOCKER_MANIFEST, None)]), &wanted, "x").is_ok());
    }

    #[test]
    fn documents_that_contradict_themselves_are_refused() {
        let both = json!({"schemaVersion": 2, "manifests": [], "layers": []}).to_string();
        assert!(decode(both.as_bytes(), None, "x").is_err());
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, None), "layers": []})
        .to_string();
        assert!(decode(manifest.as_bytes(), Some(OCI_INDEX), "x").is_err());
        assert!(decode(manifest.as_bytes(), Some("application/vnd.oci.image.manifest.v1+json; x=y"), "x").is_ok());
        assert!(decode(manifest.as_bytes(), Some("application/json"), "x").is_ok());
    }

    #[test]
    fn what_is_not_an_image_is_named() {
        let old = json!({"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+json"});
        let artifact = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": descriptor("application/vnd.oci.empty.v1+json", None)});
        let encrypted = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, None),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+encrypted", None)]});
        for (document, part) in [(old, "manifest.v1"), (artifact, "empty"), (encrypted, "encrypted")] {
            let error = decode(document.to_string().as_bytes(), None, "x").unwrap_err();
            assert!(matches!(&error, ImageError::UnsupportedMediaType { .. }), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn nulls_of_go_builders_are_absent_values() {
        let wanted = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
        let config = json!({"architecture": "amd64", "os": "linux", "history": null,
            "config": {"Cmd": null, "Entrypoint": ["/init"], "Volumes": null, "ExposedPorts": {"80/tcp": {}},
                "Labels": null, "Env": ["A=b"], "User": "", "StopSignal": "SIGQUIT"},
            "rootfs": {"type": "layers", "diff_ids": null}})
        .to_string();
        let config = decode_config(config.as_bytes(), &wanted, "x").unwrap();
        assert!(config.diff_ids.is_empty() && config.run.cmd.is_empty());
        assert_eq!(config.run.entrypoint, ["/init"]);
        assert_eq!(config.run.exposed_ports, ["80/tcp"]);
        assert_eq!(config.run.stop_signal, "SIGQUIT");
        let other = json!({"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
        let error = decode_config(other.to_string().as_bytes(), &wanted, "x").unwrap_err();
        assert!(matches!(error, ImageError::NoPlatform { .. }));
    }
}
