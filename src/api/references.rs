//! Which objects a pod refers to: when one of them appears or changes, what failed for want of it is worth another try.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{
    certificates::v1beta1::ClusterTrustBundle,
    core::v1::{ClusterTrustBundleProjection, EnvFromSource, EnvVar, LocalObjectReference, Pod, Volume},
};

use super::{
    object::{ObjectKey, ObjectKind},
    objects::{Objects, find},
};

/// The service account of a pod that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// The name of a pod's service account.
pub fn service_account(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_SERVICE_ACCOUNT)
}

/// The keys of all objects that `pod` refers to, whether they exist or not: by its variables, volumes, pull secrets,
/// service account and runtime class, and through objects of `objects` (pull secrets of its service account, the
/// volume of a claim). Services are not among them: their variables are those of the moment a container starts.
pub fn references(pod: &Pod, objects: &Objects) -> BTreeSet<ObjectKey> {
    let mut found = Found { keys: BTreeSet::new(), namespace: pod.metadata.namespace.as_deref().unwrap_or("default") };
    let Some(spec) = &pod.spec else { return found.keys };
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        found.environment(container.env.as_deref(), container.env_from.as_deref());
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        found.environment(container.env.as_deref(), container.env_from.as_deref());
    }
    for volume in spec.volumes.iter().flatten() {
        found.volume(volume, pod.metadata.name.as_deref().unwrap_or_default(), objects);
    }
    found.pull_secrets(spec.image_pull_secrets.as_deref());
    found.add(ObjectKind::ServiceAccount, service_account(pod));
    let account = find(&objects.service_accounts, found.namespace, service_account(pod));
    found.pull_secrets(account.and_then(|account| account.image_pull_secrets.as_deref()));
    if let Some(class) = &spec.runtime_class_name {
        found.add(ObjectKind::RuntimeClass, class);
    }
    found.keys
}

struct Found<'p> {
    keys: BTreeSet<ObjectKey>,
    namespace: &'p str,
}

impl Found<'_> {
    fn add(&mut self, kind: ObjectKind, name: &str) {
        if !name.is_empty() {
            self.keys.insert(ObjectKey::new(kind, self.namespace, name));
        }
    }

    fn environment(&mut self, env: Option<&[EnvVar]>, from: Option<&[EnvFromSource]>) {
        for source in env.iter().copied().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            if let Some(reference) = &source.config_map_key_ref {
                self.add(ObjectKind::ConfigMap, &reference.name);
            }
            if let Some(reference) = &source.secret_key_ref {
                self.add(ObjectKind::Secret, &reference.name);
            }
        }
        for source in from.iter().copied().flatten() {
            if let Some(reference) = &source.config_map_ref {
                self.add(ObjectKind::ConfigMap, &reference.name);
            }
            if let Some(reference) = &source.secret_ref {
                self.add(ObjectKind::Secret, &reference.name);
            }
        }
    }

    fn pull_secrets(&mut self, secrets: Option<&[LocalObjectReference]>) {
        for secret in secrets.iter().copied().flatten() {
            self.add(ObjectKind::Secret, &secret.name);
        }
    }

    fn volume(&mut self, volume: &Volume, pod: &str, objects: &Objects) {
        if let Some(source) = &volume.config_map {
            self.add(ObjectKind::ConfigMap, &source.name);
        }
        if let Some(source) = &volume.secret {
            self.add(ObjectKind::Secret, source.secret_name.as_deref().unwrap_or_default());
        }
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(source) = &source.config_map {
                self.add(ObjectKind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret {
                self.add(ObjectKind::Secret, &source.name);
            }
            if let Some(source) = &source.cluster_trust_bundle {
                self.trust_bundles(source, objects);
            }
        }
        if let Some(source) = &volume.persistent_volume_claim {
            self.claim(&source.claim_name, objects);
        }
        if volume.ephemeral.is_some() {
            // The claim of a generic ephemeral volume has the names of the pod and of the volume.
            self.claim(&format!("{pod}-{}", volume.name), objects);
        }
        if let Some(source) = &volume.csi {
            self.add(ObjectKind::CsiDriver, &source.driver);
            let secret = source.node_publish_secret_ref.as_ref();
            self.add(ObjectKind::Secret, secret.map(|secret| secret.name.as_str()).unwrap_or_default());
        }
        let secret = volume.iscsi.as_ref().and_then(|source| source.secret_ref.as_ref());
        self.add(ObjectKind::Secret, secret.map(|secret| secret.name.as_str()).unwrap_or_default());
    }

    /// A bundle by its name, or all of a signer: which of them are meant may change with their labels.
    fn trust_bundles(&mut self, source: &ClusterTrustBundleProjection, objects: &Objects) {
        self.add(ObjectKind::ClusterTrustBundle, source.name.as_deref().unwrap_or_default());
        let of_signer = |bundle: &&Arc<ClusterTrustBundle>| {
            source.signer_name.is_some() && bundle.spec.signer_name == source.signer_name
        };
        for bundle in objects.trust_bundles.values().filter(of_signer) {
            self.add(ObjectKind::ClusterTrustBundle, bundle.metadata.name.as_deref().unwrap_or_default());
        }
    }

    /// A claim, the volume it is bound to or that is bound to it, and what that needs. One that names no volume, and that
    /// no volume names, may have any.
    fn claim(&mut self, name: &str, objects: &Objects) {
        self.add(ObjectKind::PersistentVolumeClaim, name);
        let claim = find(&objects.persistent_volume_claims, self.namespace, name);
        let wanted = claim.and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
        self.add(ObjectKind::PersistentVolume, wanted.as_deref().unwrap_or_default());
        let mut is_open = wanted.is_none();
        for ((_, volume), object) in &objects.persistent_volumes {
            let Some(spec) = &object.spec else { continue };
            let claimed = spec.claim_ref.as_ref().is_some_and(|claim| {
                claim.name.as_deref() == Some(name) && claim.namespace.as_deref() == Some(self.namespace)
            });
            if claimed || wanted.as_ref() == Some(volume) {
                is_open = false;
                self.add(ObjectKind::PersistentVolume, volume);
                let Some(source) = &spec.csi else { continue };
                self.add(ObjectKind::CsiDriver, &source.driver);
                for secret in [&source.node_publish_secret_ref, &source.node_stage_secret_ref].into_iter().flatten() {
                    let namespace = secret.namespace.as_deref().unwrap_or_default();
                    let name = secret.name.as_deref().unwrap_or_default();
                    self.keys.insert(ObjectKey::new(ObjectKind::Secret, namespace, name));
                }
            }
        }
        if is_open {
            for (_, volume) in objects.persistent_volumes.keys() {
                self.add(ObjectKind::PersistentVolume, volume);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::object::Object, *};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn told(spec: Value, objects: &Objects) -> Vec<String> {
        references(&pod(spec), objects).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_a_pod_names_is_found() {
        let spec = json!({
            "serviceAccountName": "robot", "runtimeClassName": "kata", "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "from"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "key", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "volumes": [
                {"name": "a", "configMap": {"name": "volume"}},
                {"name": "b", "secret": {"secretName": "volume"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "part"}}, {"secret": {"name": "part"}}]}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "disk"}},
                {"name": "e", "ephemeral": {}},
                {"name": "t", "projected": {"sources": [{"clusterTrustBundle": {"name": "roots", "path": "p"}}]}},
                {"name": "f", "csi": {"driver": "d.example", "nodePublishSecretRef": {"name": "publish"}}},
            ],
        });
        assert_eq!(
            told(spec, &Objects::default()),
            [
                "ConfigMap shop/key",
                "ConfigMap shop/part",
                "ConfigMap shop/volume",
                "Secret shop/from",
                "Secret shop/key",
                "Secret shop/part",
                "Secret shop/publish",
                "Secret shop/pull",
                "Secret shop/volume",
                "ServiceAccount shop/robot",
                "PersistentVolumeClaim shop/disk",
                "PersistentVolumeClaim shop/web-e",
                "RuntimeClass kata",
                "CSIDriver d.example",
                "ClusterTrustBundle roots",
            ]
        );
    }

    #[test]
    fn what_it_names_through_an_object_is_found_too() {
        let object = |kind, value: Value| Object::decode(kind, &value, "").object.unwrap();
        let objects: Objects = [
            object(
                ObjectKind::ServiceAccount,
                json!({"metadata": {"name": "default", "namespace": "shop"}, "imagePullSecrets": [{"name": "pull"}]}),
            ),
            object(
                ObjectKind::PersistentVolumeClaim,
                json!({"metadata": {"name": "disk", "namespace": "shop"}, "spec": {"volumeName": "one"}}),
            ),
            object(
                ObjectKind::PersistentVolume,
                json!({"metadata": {"name": "one"}, "spec": {"csi": {"driver": "d.example", "volumeHandle": "h",
                    "nodeStageSecretRef": {"namespace": "kube-system", "name": "stage"}}}}),
            ),
            object(
                ObjectKind::PersistentVolume,
                json!({"metadata": {"name": "two"}, "spec": {"claimRef": {"namespace": "other", "name": "disk"}}}),
            ),
        ]
        .into_iter()
        .collect();
        let spec =
            json!({"containers": [], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "disk"}}]});
        assert_eq!(
            told(spec, &objects),
            [
                "Secret kube-system/stage",
                "Secret shop/pull",
                "ServiceAccount shop/default",
                "PersistentVolumeClaim shop/disk",
                "PersistentVolume one",
                "CSIDriver d.example",
            ]
        );
    }

    #[test]
    fn a_claim_that_any_volume_may_answer_refers_to_all_of_them() {
        let object = |kind, value: Value| Object::decode(kind, &value, "").object.unwrap();
        let volume = |name: &str, spec: Value| {
            object(ObjectKind::PersistentVolume, json!({"metadata": {"name": name}, "spec": spec}))
        };
        let claim = |spec: Value| {
            let metadata = json!({"name": "disk", "namespace": "shop"});
            object(ObjectKind::PersistentVolumeClaim, json!({"metadata": metadata, "spec": spec}))
        };
        let pod = json!({"containers": [], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "disk"}}]});
        let volumes = |objects: Vec<Object>| -> Vec<String> {
            let told = told(pod.clone(), &objects.into_iter().collect());
            told.into_iter().filter_map(|key| key.strip_prefix("PersistentVolume ").map(str::to_owned)).collect()
        };
        let (one, two) = (volume("one", json!({})), volume("two", json!({})));
        let mine = volume("mine", json!({"claimRef": {"namespace": "shop", "name": "disk"}}));
        assert_eq!(volumes(vec![one.clone(), two.clone()]), ["one", "two"], "the claim itself may still come");
        assert_eq!(volumes(vec![claim(json!({})), one.clone(), two.clone()]), ["one", "two"]);
        assert_eq!(volumes(vec![claim(json!({"volumeName": "two"})), one.clone(), two]), ["two"]);
        assert_eq!(volumes(vec![claim(json!({})), one, mine]), ["mine"]);
    }
}
