//! The files of volumes whose content comes from objects: configMap, secret, downwardAPI and projected.
//!
//! What is in such a volume follows from the pod, the objects it refers to and the node alone; it is computed here and
//! written elsewhere. Messages are upstream's (`pkg/volume/{configmap,secret,downwardapi,projected}`).

mod downward;
mod path;
#[cfg(test)]
mod tests;
mod trust;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{KeyToPath, Pod, ProjectedVolumeSource, Volume, VolumeProjection},
    jiff::{SignedDuration, Timestamp},
};

use super::{
    downward::Allocatable,
    objects::{ByName, Objects, find},
};

/// Mode of a file for which neither its item nor its volume says one.
const MODE: i32 = 0o644;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContentFile {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Permission bits, before those that fsGroup adds.
    pub mode: u32,
    /// User it belongs to; `None`: the agent's.
    pub owner: Option<u32>,
}

/// The files of a volume by their paths: relative, without empty components, `.` and `..`.
pub type Payload = BTreeMap<String, ContentFile>;

/// Tokens by the index of their source in `projected.sources`.
pub type Tokens = BTreeMap<usize, String>;

/// Why the content of a volume cannot be said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ContentError {
    /// An object that is not optional does not exist.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// An object that is not optional has no such key.
    #[error("{kind}: {key}")]
    NoSuchKey {
        /// Upstream's words for it.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// A bundle of trust anchors that is not optional does not exist.
    #[error("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {0:?} not found")]
    NoTrustBundle(String),
    /// A signer has no bundle with the labels that are asked for.
    #[error("combination of signerName and labelSelector matched zero ClusterTrustBundles")]
    NoTrustBundles,
    /// A value of the downward API.
    #[error("{0}")]
    Downward(String),
    /// A path that a file cannot have.
    #[error("invalid path: {0}")]
    Path(String),
    /// Several sources of a projected volume.
    #[error("[{}]", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Several(Vec<ContentError>),
}

/// What content is made from.
#[derive(Debug, Clone, Copy)]
pub struct ContentInput<'a> {
    /// The pod, with its defaults.
    pub pod: &'a Pod,
    /// The objects there are.
    pub objects: &'a Objects,
    /// What a container without limits may use.
    pub allocatable: &'a Allocatable,
}

/// A token that a projected volume asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Index in `projected.sources`.
    pub source: usize,
    /// Whom it is for; empty: the API server.
    pub audience: String,
    /// How long it is to be valid, in seconds.
    pub expiration_seconds: i64,
}

/// Oldest a token in a volume gets.
const TOKEN_AGE: SignedDuration = SignedDuration::from_hours(24);

/// An hour, as upstream fills in.
const TOKEN_SECONDS: i64 = 3600;

/// When a token that is valid for `seconds` and until `expires` is to be replaced: when a fifth of its life is left, and
/// after a day at the latest (upstream's `pkg/kubelet/token`).
pub fn renew_at(seconds: i64, expires: Timestamp) -> Timestamp {
    let life = SignedDuration::from_secs(seconds.max(0));
    let issued = expires.saturating_sub(life).unwrap_or(Timestamp::MIN);
    let fifth = SignedDuration::from_secs(life.as_secs() / 5);
    let late = expires.saturating_sub(fifth).unwrap_or(Timestamp::MIN);
    late.min(issued.saturating_add(TOKEN_AGE).unwrap_or(Timestamp::MAX))
}

/// Whether the volume is of a kind whose content is computed here.
pub fn has_content(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Whether a volume has tokens in it.
pub fn needs_tokens(volume: &Volume) -> bool {
    !token_requests(volume).is_empty()
}

/// The tokens a volume needs.
pub fn token_requests(volume: &Volume) -> Vec<TokenRequest> {
    let sources = volume.projected.as_ref().and_then(|projected| projected.sources.as_deref()).unwrap_or_default();
    let request = |(source, projection): (usize, &VolumeProjection)| {
        let token = projection.service_account_token.as_ref()?;
        Some(TokenRequest {
            source,
            audience: token.audience.clone().unwrap_or_default(),
            expiration_seconds: token.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        })
    };
    sources.iter().enumerate().filter_map(request).collect()
}

/// What stands for the content of a volume, tokens aside: it differs when the content does, or the reason why there
/// is none. Means nothing to another process.
pub fn version(volume: &Volume, input: &ContentInput<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload(volume, input, &Tokens::new()).hash(&mut hasher);
    hasher.finish()
}

/// The files of a volume. A token that is not among `tokens` has no file.
pub fn payload(volume: &Volume, input: &ContentInput<'_>, tokens: &Tokens) -> Result<Payload, ContentError> {
    let mut payload = Payload::new();
    if let Some(source) = &volume.config_map {
        let reference = Reference::new(&source.name, source.items.as_deref(), source.optional, source.default_mode);
        reference.config_map(input, &mut payload)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let reference = Reference::new(name, source.items.as_deref(), source.optional, source.default_mode);
        reference.secret(input, &mut payload)?;
    } else if let Some(source) = &volume.downward_api {
        downward::files(source.items.as_deref(), source.default_mode, input, &mut payload)?;
    } else if let Some(source) = &volume.projected {
        projected(source, input, tokens, &mut payload)?;
    }
    Ok(payload)
}

/// All sources, later ones over earlier ones; what is wrong with each is said together.
fn projected(
    projected: &ProjectedVolumeSource,
    input: &ContentInput<'_>,
    tokens: &Tokens,
    payload: &mut Payload,
) -> Result<(), ContentError> {
    let mode = projected.default_mode;
    let mut errors = Vec::new();
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let result = if let Some(source) = &source.secret {
            Reference::new(&source.name, source.items.as_deref(), source.optional, mode).secret(input, payload)
        } else if let Some(source) = &source.config_map {
            Reference::new(&source.name, source.items.as_deref(), source.optional, mode).config_map(input, payload)
        } else if let Some(source) = &source.downward_api {
            downward::files(source.items.as_deref(), mode, input, payload)
        } else if let (Some(source), Some(token)) = (&source.service_account_token, tokens.get(&index)) {
            put(payload, &source.path, private_file(token.as_bytes().to_vec(), mode, input.pod))
        } else if let Some(source) = &source.cluster_trust_bundle {
            trust::anchors(source, input)
                .and_then(|bytes| put(payload, &source.path, private_file(bytes, mode, input.pod)))
        } else {
            Ok(())
        };
        errors.extend(result.err());
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(ContentError::Several(errors)),
    }
}

/// A token (and, as upstream, a bundle of trust anchors) is for its container alone: for the one user all containers run
/// as, or for the pod's group.
fn private_file(bytes: Vec<u8>, default_mode: Option<i32>, pod: &Pod) -> ContentFile {
    let owner = only_user(pod);
    let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
    let mode = if owner.is_some() || group.is_some() { 0o600 } else { default_mode.unwrap_or(MODE) };
    ContentFile { bytes, mode: bits(mode), owner }
}

/// The user as which all containers run, if the pod says so (ephemeral containers aside).
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = containers
        .map(|container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

/// A reference to a config map or a secret.
struct Reference<'a> {
    name: &'a str,
    items: &'a [KeyToPath],
    optional: bool,
    mode: i32,
}

impl<'a> Reference<'a> {
    fn new(
        name: &'a str,
        items: Option<&'a [KeyToPath]>,
        optional: Option<bool>,
        default_mode: Option<i32>,
    ) -> Reference<'a> {
        let items = items.unwrap_or_default();
        Reference { name, items, optional: optional == Some(true), mode: default_mode.unwrap_or(MODE) }
    }

    /// The object, or `None` when it does not exist and need not.
    fn find<T>(&self, all: &'a ByName<T>, pod: &Pod, kind: &'static str) -> Result<Option<&'a T>, ContentError> {
        match find(all, pod.metadata.namespace.as_deref().unwrap_or_default(), self.name) {
            Some(object) => Ok(Some(object)),
            None if self.optional => Ok(None),
            None => Err(ContentError::NotFound { kind, name: self.name.to_owned() }),
        }
    }

    fn config_map(&self, input: &ContentInput<'a>, payload: &mut Payload) -> Result<(), ContentError> {
        let Some(object) = self.find(&input.objects.config_maps, input.pod, "configmap")? else { return Ok(()) };
        let text = object.data.iter().flatten().map(|(key, text)| (key.as_str(), text.as_bytes()));
        // A key that is in both is text.
        let mut values: BTreeMap<&str, &[u8]> = binary(&object.binary_data).collect();
        values.extend(text);
        self.files(&values, "configmap references non-existent config key", payload)
    }

    fn secret(&self, input: &ContentInput<'a>, payload: &mut Payload) -> Result<(), ContentError> {
        let Some(object) = self.find(&input.objects.secrets, input.pod, "secret")? else { return Ok(()) };
        self.files(&binary(&object.data).collect(), "references non-existent secret key", payload)
    }

    /// All values under their keys or, when there are items, those that the items name.
    fn files(
        &self,
        values: &BTreeMap<&str, &[u8]>,
        missing: &'static str,
        payload: &mut Payload,
    ) -> Result<(), ContentError> {
        let file = |bytes: &[u8], mode: i32| ContentFile { bytes: bytes.to_vec(), mode: bits(mode), owner: None };
        if self.items.is_empty() {
            return values.iter().try_for_each(|(key, bytes)| put(payload, key, file(bytes, self.mode)));
        }
        for item in self.items {
            match values.get(item.key.as_str()) {
                Some(bytes) => put(payload, &item.path, file(bytes, item.mode.unwrap_or(self.mode)))?,
                None if self.optional => {}
                None => return Err(ContentError::NoSuchKey { kind: missing, key: item.key.clone() }),
            }
        }
        Ok(())
    }
}

fn binary(data: &Option<BTreeMap<String, ByteString>>) -> impl Iterator<Item = (&str, &[u8])> {
    data.iter().flatten().map(|(key, bytes)| (key.as_str(), bytes.0.as_slice()))
}

/// Validation has seen to it that there are no others.
fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or_default() & 0o777
}

fn put(payload: &mut Payload, path: &str, file: ContentFile) -> Result<(), ContentError> {
    payload.insert(path::clean(path)?, file);
    Ok(())
}
