//! What makes a pod of a manifest a static pod of this node: a UID derived from its content, a name of its own on
//! every node, the annotations by which clients recognise it (`pkg/kubelet/config/common.go` upstream).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use md5::{Digest, Md5};

use super::{
    decode::to_value,
    defaults::set_pod_defaults,
    validation::{FieldError, validate_pod},
};

/// Annotation: hash of the manifest a pod was made from. Its UID, unless the manifest brings its own.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// Annotation: `file`, `http` or `api`.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// Annotation: when the pod was first seen, RFC 3339.
pub const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";

/// Longest UID accepted from a manifest: it is a part of directory, cgroup and link names.
const MAX_UID: usize = 63;

/// Where a manifest was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'o> {
    /// A file, by its absolute path.
    File(&'o str),
    /// A URL.
    Url(&'o str),
}

/// The static pod that `written` describes, complete and valid, on the node `node`, first seen at `seen`.
///
/// The UID is the MD5 of host and path (or the URL) and the manifest's content, as upstream's, so that every change of
/// the content makes another pod. Upstream hashes its own dump of the object in memory; here it is the object's JSON
/// with sorted keys before defaults are set, so a new default in a later version does not replace running pods. The
/// values therefore differ from upstream's, which no client can depend on.
pub fn static_pod(written: Pod, origin: Origin<'_>, node: &str, seen: Timestamp) -> Result<Pod, Vec<FieldError>> {
    let mut pod = written;
    let required = |field: &str| Err(vec![FieldError::required(field)]);
    let Some(name) = pod.metadata.name.clone().filter(|name| !name.is_empty()) else {
        return required("metadata.name");
    };
    if pod.spec.is_none() {
        return required("spec");
    }
    // What a status or a deletion in a manifest says is not about this pod.
    pod.status = None;
    pod.metadata.deletion_timestamp = None;
    pod.metadata.deletion_grace_period_seconds = None;
    pod.metadata.managed_fields = None;
    pod.metadata.resource_version = None;

    let uid = match pod.metadata.uid.take().filter(|uid| !uid.is_empty()) {
        Some(uid) if is_safe_uid(&uid) => uid,
        Some(uid) => {
            let cause =
                format!("must be at most {MAX_UID} letters, digits and '-', since it becomes a part of file names");
            return Err(vec![FieldError::invalid("metadata.uid", &uid, cause)]);
        }
        None => content_hash(&pod, origin, node),
    };
    set_pod_defaults(&mut pod);
    let metadata = &mut pod.metadata;
    metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    metadata.namespace =
        metadata.namespace.take().filter(|namespace| !namespace.is_empty()).or(Some("default".to_owned()));
    metadata.creation_timestamp = Some(Time(seen));
    // As an API server begins to count; whoever changes the pod in place counts on.
    metadata.generation = Some(1);
    let annotations = metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(HASH_ANNOTATION.to_owned(), uid.clone());
    annotations.insert(SEEN_ANNOTATION.to_owned(), seen.to_string());
    let source = match origin {
        Origin::File(_) => "file",
        Origin::Url(_) => "http",
    };
    annotations.insert(SOURCE_ANNOTATION.to_owned(), source.to_owned());
    metadata.uid = Some(uid);
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_owned());
        // As on creation upstream: below zero means one second.
        spec.termination_grace_period_seconds =
            spec.termination_grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds });
        if matches!(origin, Origin::File(_)) {
            // Trouble of the node must not evict what may be there to mend it.
            let forever = Toleration {
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                ..Toleration::default()
            };
            let tolerations = spec.tolerations.get_or_insert_default();
            if !tolerations.contains(&forever) {
                tolerations.push(forever);
            }
        }
    }
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
    let errors = validate_pod(&pod);
    if errors.is_empty() { Ok(pod) } else { Err(errors) }
}

/// Whether a pod was made by [`static_pod`].
pub fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SOURCE_ANNOTATION));
    source.is_some_and(|source| source != "api")
}

fn is_safe_uid(uid: &str) -> bool {
    uid.len() <= MAX_UID
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !uid.starts_with('-')
}

fn content_hash(pod: &Pod, origin: Origin<'_>, node: &str) -> String {
    let mut hasher = Md5::new();
    match origin {
        Origin::File(path) => {
            hasher.update(format!("host:{node}"));
            hasher.update(format!("file:{path}"));
        }
        Origin::Url(url) => hasher.update(format!("url:{url}")),
    }
    // A value's keys are sorted; an object of the API always has a JSON form.
    let content = to_value(pod).unwrap_or_default();
    hasher.update(content.to_string());
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(extra: serde_json::Value) -> Pod {
        let mut value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "app", "image": "nginx:1"}]}});
        json_patch_merge(&mut value, extra);
        serde_json::from_value(value).unwrap()
    }

    fn json_patch_merge(target: &mut serde_json::Value, patch: serde_json::Value) {
        match patch {
            serde_json::Value::Object(fields) if target.is_object() => {
                for (name, value) in fields {
                    json_patch_merge(&mut target[name], value);
                }
            }
            other => *target = other,
        }
    }

    fn seen() -> Timestamp {
        "2026-01-02T03:04:05.678Z".parse().unwrap()
    }

    fn uid(pod: Pod, origin: Origin<'_>, node: &str) -> String {
        static_pod(pod, origin, node, seen()).unwrap().metadata.uid.unwrap()
    }

    #[test]
    fn a_static_pod_is_named_after_its_node_and_marked() {
        let pod =
            static_pod(written(json!({"status": {"phase": "Failed"}})), Origin::File("/m/web.yaml"), "node1", seen())
                .unwrap();
        let metadata = &pod.metadata;
        assert_eq!(metadata.name.as_deref(), Some("web-node1"));
        assert_eq!(metadata.namespace.as_deref(), Some("default"));
        assert_eq!(metadata.generation, Some(1));
        let annotations = metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[HASH_ANNOTATION], *metadata.uid.as_ref().unwrap());
        assert_eq!(annotations[SOURCE_ANNOTATION], "file");
        assert_eq!(annotations[SEEN_ANNOTATION], "2026-01-02T03:04:05.678Z");
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("node1"));
        assert_eq!(spec.tolerations.as_ref().unwrap()[0].effect.as_deref(), Some("NoExecute"));
        assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
        assert!(is_static(&pod));
    }

    #[test]
    fn what_a_manifest_says_of_its_time_at_a_server_is_left_out() {
        let past = "2001-02-03T04:05:06Z";
        let metadata = json!({
            "creationTimestamp": past, "deletionTimestamp": past, "deletionGracePeriodSeconds": 3, "generation": 7,
            "resourceVersion": "8", "managedFields": [{"manager": "m"}], "labels": {"a": "b"},
        });
        let pod = static_pod(written(json!({"metadata": metadata})), Origin::File("/m"), "n", seen()).unwrap();
        let metadata = &pod.metadata;
        assert_eq!(metadata.creation_timestamp, Some(Time(seen())));
        assert_eq!((&metadata.deletion_timestamp, metadata.deletion_grace_period_seconds), (&None, None));
        assert_eq!((&metadata.resource_version, &metadata.managed_fields), (&None, &None));
        assert_eq!((metadata.generation, metadata.labels.as_ref().unwrap()["a"].as_str()), (Some(1), "b"));
    }

    #[test]
    fn the_uid_changes_with_content_path_and_node_only() {
        let file = Origin::File("/m/web.yaml");
        let base = uid(written(json!({})), file, "n");
        assert_eq!(base.len(), 32);
        assert!(base.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
        assert_eq!(uid(written(json!({})), file, "n"), base);
        assert_eq!(uid(written(json!({"status": {"phase": "Running"}})), file, "n"), base, "the status is not content");
        assert_ne!(uid(written(json!({"spec": {"hostNetwork": true}})), file, "n"), base);
        assert_ne!(uid(written(json!({})), Origin::File("/m/other.yaml"), "n"), base);
        assert_ne!(uid(written(json!({})), Origin::Url("http://h/web"), "n"), base);
        assert_ne!(uid(written(json!({})), file, "m"), base);
    }

    #[test]
    fn a_uid_of_the_manifest_is_kept_if_it_can_be_a_file_name() {
        let own = |uid: &str| static_pod(written(json!({"metadata": {"uid": uid}})), Origin::File("/m"), "n", seen());
        assert_eq!(
            own("1b4e28ba-2fa1-11d2-883f-0016d3cca427").unwrap().metadata.uid.unwrap(),
            "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
        );
        for uid in ["../../etc", "a/b", ".", "a b", "-x", &"a".repeat(64)] {
            assert_eq!(own(uid).unwrap_err()[0].path, "metadata.uid", "{uid}");
        }
    }

    #[test]
    fn a_name_and_a_spec_are_required() {
        let error = |extra| static_pod(written(extra), Origin::File("/m"), "n", seen()).unwrap_err()[0].to_string();
        assert_eq!(error(json!({"metadata": {"name": ""}})), "metadata.name: Required value");
        let prefix = json!({"metadata": {"name": null, "generateName": "web-"}});
        assert_eq!(error(prefix), "metadata.name: Required value", "nobody here makes names up");
        assert_eq!(error(json!({"spec": null})), "spec: Required value");
    }
}
