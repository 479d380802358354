//! Which PersistentVolume a claim has: the answer of upstream's binder (`pkg/controller/volume/persistentvolume` and
//! `k8s.io/component-helpers/storage/volume`), for a node that has to give it by itself.
//!
//! What has been decided is an argument: the same claim has the same volume for as long as its binding is kept.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaimSpec, PersistentVolumeSpec},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use serde::{Deserialize, Serialize};

use super::admission::{NodeFacts, matches_any};
use crate::api::{objects::Objects, quantity::Quantity, selector::selects};

/// Annotation by which a class was chosen before there was a field; upstream still reads it.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// A claim, from an object or from the template of a pod's own volume.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// UID of the pod whose own it is.
    pub owner: Option<&'a str>,
    /// What is claimed.
    pub spec: &'a PersistentVolumeClaimSpec,
    /// Class named by an annotation.
    pub annotated_class: Option<&'a str>,
}

impl<'a> Claim<'a> {
    /// The class an annotation names.
    pub fn annotated(annotations: Option<&'a BTreeMap<String, String>>) -> Option<&'a str> {
        annotations.and_then(|annotations| annotations.get(CLASS_ANNOTATION)).map(String::as_str)
    }

    /// No class is the empty one: there is no default without an API server.
    fn class(&self) -> &'a str {
        self.annotated_class.or(self.spec.storage_class_name.as_deref()).unwrap_or_default()
    }

    fn request(&self) -> Quantity {
        capacity(self.spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
    }

    fn modes(&self) -> &'a [String] {
        self.spec.access_modes.as_deref().unwrap_or_default()
    }

    fn is_of(&self, binding: &Binding) -> bool {
        (self.namespace, self.name) == (binding.namespace.as_str(), binding.claim.as_str())
            && self.owner == binding.owner.as_deref()
    }
}

/// Who has a volume. Kept durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// UID of the pod whose own claim it is; such a claim ends with its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The claim is gone. What it wrote is still there, so nobody else gets the volume.
    #[serde(default)]
    pub released: bool,
}

/// Bindings by the volume's name.
pub type Bindings = BTreeMap<String, Binding>;

/// Why a claim has no volume that can be used (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unbound {
    /// Upstream's reason: `FailedBinding`, `VolumeMismatch`, …
    pub reason: &'static str,
    /// Upstream's sentence.
    pub message: String,
}

fn unbound<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Unbound> {
    Err(Unbound { reason, message: message.into() })
}

/// The volume of `claim`: the one it is bound to, the one it names (or that names it), or the smallest that fits.
pub fn volume_of(
    claim: &Claim<'_>,
    objects: &Objects,
    bindings: &Bindings,
    node: &NodeFacts,
) -> Result<Arc<PersistentVolume>, Unbound> {
    let find = |name: &str| objects.persistent_volumes.get(&(String::new(), name.to_owned()));
    if claim.spec.data_source.is_some() || claim.spec.data_source_ref.is_some() {
        return unbound("ProvisioningFailed", "a claim with a dataSource needs a provisioner, and this node has none");
    }
    let bound = bindings.iter().find(|(_, binding)| claim.is_of(binding) && !binding.released);
    if let Some((name, _)) = bound {
        return match find(name) {
            Some(volume) => here(volume, node),
            None => unbound("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
        };
    }
    if let Some(name) = claim.spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        let Some(volume) = find(name) else {
            return unbound("FailedBinding", format!("volume {name:?} not found"));
        };
        if let Some(why) = taken(claim, volume, bindings) {
            return unbound("FailedBinding", format!("volume {name:?} {why}"));
        }
        if let Err(why) = satisfies(claim, volume) {
            return unbound("VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}"));
        }
        return here(volume, node);
    }
    let free = objects.persistent_volumes.values().filter(|volume| taken(claim, volume, bindings).is_none());
    let fitting: Vec<&Arc<PersistentVolume>> =
        free.filter(|volume| satisfies(claim, volume).is_ok() && is_here(volume, node)).collect();
    let named = fitting.iter().find(|volume| spec(volume).is_some_and(|spec| spec.claim_ref.is_some()));
    let selected = |volume: &&&Arc<PersistentVolume>| {
        let selector = claim.spec.selector.as_ref();
        selector.is_none_or(|selector| selects(selector, volume.metadata.labels.as_ref()))
    };
    // As few modes more than asked for as possible, then as little more room; the name decides between equals.
    let rank = |volume: &&&Arc<PersistentVolume>| {
        let spec = spec(volume);
        let modes = spec.and_then(|spec| spec.access_modes.as_ref()).map_or(0, Vec::len);
        (modes, capacity(spec.and_then(|spec| spec.capacity.as_ref())).nanos(), volume.metadata.name.clone())
    };
    match named.or_else(|| fitting.iter().filter(selected).min_by_key(rank)) {
        Some(volume) => Ok((*volume).clone()),
        None if claim.class().is_empty() => {
            unbound("FailedBinding", "no persistent volumes available for this claim and no storage class is set")
        }
        None => unbound("ProvisioningFailed", format!("storageclass.storage.k8s.io {:?} not found", claim.class())),
    }
}

fn spec(volume: &PersistentVolume) -> Option<&PersistentVolumeSpec> {
    volume.spec.as_ref()
}

fn here(volume: &Arc<PersistentVolume>, node: &NodeFacts) -> Result<Arc<PersistentVolume>, Unbound> {
    if is_here(volume, node) {
        return Ok(volume.clone());
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    unbound(
        "FailedMount",
        format!("MountVolume.NodeAffinity check failed for volume {name:?} : no matching NodeSelectorTerms"),
    )
}

/// Whether the volume can be reached from this node.
fn is_here(volume: &PersistentVolume, node: &NodeFacts) -> bool {
    let affinity = spec(volume).and_then(|spec| spec.node_affinity.as_ref());
    affinity.and_then(|affinity| affinity.required.as_ref()).is_none_or(|required| matches_any(required, node))
}

/// Why somebody else has the volume, if so.
fn taken(claim: &Claim<'_>, volume: &PersistentVolume, bindings: &Bindings) -> Option<&'static str> {
    const OTHER: &str = "already bound to a different claim.";
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match bindings.get(name) {
        Some(binding) if binding.released => return Some("is released: what an earlier claim wrote is still on it"),
        Some(binding) if !claim.is_of(binding) => return Some(OTHER),
        _ => {}
    }
    let reference = spec(volume).and_then(|spec| spec.claim_ref.as_ref())?;
    let named = (reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref().unwrap_or_default());
    (named != (claim.namespace, claim.name)).then_some(OTHER)
}

/// Upstream's `checkVolumeSatisfyClaim`.
fn satisfies(claim: &Claim<'_>, volume: &PersistentVolume) -> Result<(), &'static str> {
    let default = PersistentVolumeSpec::default();
    let spec = spec(volume).unwrap_or(&default);
    if capacity(spec.capacity.as_ref()) < claim.request() {
        return Err("requested PV is too small");
    }
    let annotated = Claim::annotated(volume.metadata.annotations.as_ref());
    if annotated.or(spec.storage_class_name.as_deref()).unwrap_or_default() != claim.class() {
        return Err("storageClassName does not match");
    }
    if mode(spec.volume_mode.as_deref()) != mode(claim.spec.volume_mode.as_deref()) {
        return Err("incompatible volumeMode");
    }
    let attributes = |class: &Option<String>| class.clone().unwrap_or_default();
    if attributes(&spec.volume_attributes_class_name) != attributes(&claim.spec.volume_attributes_class_name) {
        return Err("volumeAttributesClassName does not match");
    }
    let offered = spec.access_modes.as_deref().unwrap_or_default();
    match claim.modes().iter().all(|wanted| offered.contains(wanted)) {
        true => Ok(()),
        false => Err("incompatible accessMode"),
    }
}

/// `volumeMode`, whose default is Filesystem.
pub fn mode(mode: Option<&str>) -> &str {
    mode.filter(|mode| !mode.is_empty()).unwrap_or("Filesystem")
}

fn capacity(amounts: Option<&BTreeMap<String, ApiQuantity>>) -> Quantity {
    let storage = amounts.and_then(|amounts| amounts.get("storage"));
    storage.and_then(|storage| Quantity::try_from(storage).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn objects(volumes: &[(&str, Value)]) -> Objects {
        let volume = |(name, spec): &(&str, Value)| {
            let mut full =
                json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/x"}});
            full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let labels = json!({"disk": name});
            let volume = json!({"metadata": {"name": name, "labels": labels}, "spec": full});
            ((String::new(), (*name).to_owned()), Arc::new(serde_json::from_value(volume).unwrap()))
        };
        Objects { persistent_volumes: volumes.iter().map(volume).collect(), ..Objects::default() }
    }

    fn bind(claim: Value, objects: &Objects, bindings: &Bindings) -> Result<String, String> {
        let mut full = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        full.as_object_mut().unwrap().extend(claim.as_object().unwrap().clone());
        let spec = serde_json::from_value(full).unwrap();
        let claim = Claim { namespace: "n", name: "data", owner: None, spec: &spec, annotated_class: None };
        let node = NodeFacts { name: "n1".to_owned(), ..NodeFacts::default() };
        let found = volume_of(&claim, objects, bindings, &node);
        found.map(|volume| volume.metadata.name.clone().unwrap()).map_err(|error| error.message)
    }

    fn bound(volume: &str, claim: &str, released: bool) -> Bindings {
        let binding = Binding { namespace: "n".to_owned(), claim: claim.to_owned(), owner: None, released };
        Bindings::from([(volume.to_owned(), binding)])
    }

    const NONE: &str = "no persistent volumes available for this claim and no storage class is set";

    #[test]
    fn the_smallest_that_fits_is_the_one() {
        let objects = objects(&[
            ("big", json!({"capacity": {"storage": "10Gi"}})),
            ("fits", json!({"capacity": {"storage": "2Gi"}})),
            ("many", json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]})),
            ("small", json!({"capacity": {"storage": "500Mi"}})),
            ("classed", json!({"storageClassName": "fast"})),
            ("block", json!({"volumeMode": "Block"})),
            ("gold", json!({"volumeAttributesClassName": "gold"})),
        ]);
        let case = |claim: Value| bind(claim, &objects, &Bindings::new());
        let ok = |name: &str| Ok(name.to_owned());
        assert_eq!(case(json!({})), ok("fits"), "one with more modes than asked for comes last");
        assert_eq!(case(json!({"accessModes": ["ReadOnlyMany"]})), ok("many"));
        assert_eq!(case(json!({"resources": {"requests": {"storage": "3Gi"}}})), ok("big"));
        assert_eq!(case(json!({"resources": {"requests": {"storage": "30Gi"}}})), Err(NONE.to_owned()));
        assert_eq!(case(json!({"storageClassName": "fast"})), ok("classed"));
        let missing = "storageclass.storage.k8s.io \"slow\" not found";
        assert_eq!(case(json!({"storageClassName": "slow"})), Err(missing.to_owned()));
        assert_eq!(case(json!({"volumeMode": "Block"})), ok("block"));
        assert_eq!(case(json!({"volumeAttributesClassName": "gold"})), ok("gold"));
        assert_eq!(case(json!({"accessModes": ["ReadWriteMany"]})), Err(NONE.to_owned()));
        assert_eq!(case(json!({"selector": {"matchLabels": {"disk": "big"}}})), ok("big"));
        let expression = json!({"key": "disk", "operator": "NotIn", "values": ["fits"]});
        assert_eq!(case(json!({"selector": {"matchExpressions": [expression]}})), ok("big"));
    }

    #[test]
    fn what_was_decided_stays_and_is_nobody_elses() {
        let both = objects(&[("a", json!({})), ("b", json!({}))]);
        assert_eq!(bind(json!({}), &both, &Bindings::new()), Ok("a".to_owned()));
        assert_eq!(bind(json!({}), &both, &bound("b", "data", false)), Ok("b".to_owned()));
        assert_eq!(bind(json!({}), &both, &bound("a", "other", false)), Ok("b".to_owned()));
        assert_eq!(bind(json!({}), &both, &bound("a", "data", true)), Ok("b".to_owned()), "released is not free");
        let lost = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        assert_eq!(bind(json!({}), &both, &bound("gone", "data", false)), Err(lost.to_owned()));
    }

    #[test]
    fn a_name_on_either_side_decides() {
        let reference = |name: &str| json!({"claimRef": {"namespace": "n", "name": name}});
        let objects = objects(&[
            ("free", json!({})),
            ("mine", json!({"claimRef": {"namespace": "n", "name": "data"}, "capacity": {"storage": "9Gi"}})),
            ("others", reference("else")),
            ("small", json!({"capacity": {"storage": "1Mi"}})),
        ]);
        let case = |claim: Value, bindings: &Bindings| bind(claim, &objects, bindings);
        let none = Bindings::new();
        assert_eq!(case(json!({}), &none), Ok("mine".to_owned()), "a volume that waits for this claim goes first");
        assert_eq!(case(json!({"volumeName": "free"}), &none), Ok("free".to_owned()));
        let said = |name: &str, bindings: &Bindings| case(json!({"volumeName": name}), bindings).unwrap_err();
        assert_eq!(said("none", &none), "volume \"none\" not found");
        assert_eq!(said("others", &none), "volume \"others\" already bound to a different claim.");
        assert_eq!(said("free", &bound("free", "x", false)), "volume \"free\" already bound to a different claim.");
        assert_eq!(said("small", &none), "Cannot bind to requested volume \"small\": requested PV is too small");
    }

    #[test]
    fn a_local_volume_is_on_its_own_node() {
        let on = |node: &str| {
            let values = json!([node]);
            let fields = json!([{"key": "metadata.name", "operator": "In", "values": values}]);
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchFields": fields}]}}})
        };
        let objects = objects(&[("a", on("elsewhere")), ("b", on("n1"))]);
        assert_eq!(bind(json!({}), &objects, &Bindings::new()), Ok("b".to_owned()));
        let said = bind(json!({"volumeName": "a"}), &objects, &Bindings::new()).unwrap_err();
        assert!(said.contains("NodeAffinity check failed"), "{said}");
    }
}
