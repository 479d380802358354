//! Volumes whose content comes from objects.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Volume, VolumeProjection,
};

use super::{Errors, FieldError, env, names};

/// What a file of the downward API can show of the pod. Addresses and the node are not known when it is written.
const FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const MODE_RULE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Least and most seconds a token may be asked to be valid.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;

pub(super) fn validate(path: &str, volume: &Volume, errors: &mut Errors) {
    if let Some(source) = &volume.config_map {
        let path = format!("{path}.configMap");
        require(&format!("{path}.name"), &source.name, errors);
        mode(&format!("{path}.defaultMode"), source.default_mode, errors);
        items(&path, source.items.as_deref(), errors);
    }
    if let Some(source) = &volume.secret {
        let path = format!("{path}.secret");
        require(&format!("{path}.secretName"), source.secret_name.as_deref().unwrap_or_default(), errors);
        mode(&format!("{path}.defaultMode"), source.default_mode, errors);
        items(&path, source.items.as_deref(), errors);
    }
    if let Some(source) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        mode(&format!("{path}.defaultMode"), source.default_mode, errors);
        for item in source.items.iter().flatten() {
            downward_file(&path, item, errors);
        }
    }
    if let Some(source) = &volume.projected {
        projected(&format!("{path}.projected"), source, errors);
    }
}

fn projected(path: &str, projected: &ProjectedVolumeSource, errors: &mut Errors) {
    mode(&format!("{path}.defaultMode"), projected.default_mode, errors);
    let mut seen = BTreeSet::new();
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let source_path = format!("{path}.sources[{index}]");
        for taken in projection(&source_path, source, errors) {
            if !taken.is_empty() && !seen.insert(taken.to_owned()) {
                errors.push(FieldError::invalid(path, taken, "conflicting duplicate paths"));
            }
        }
    }
}

/// One source; the paths it names.
fn projection<'s>(path: &str, source: &'s VolumeProjection, errors: &mut Errors) -> Vec<&'s str> {
    // Every kind, so that one added upstream is decided upon here.
    let VolumeProjection {
        cluster_trust_bundle,
        config_map,
        downward_api,
        pod_certificate,
        secret,
        service_account_token,
    } = source;
    let kinds = [
        cluster_trust_bundle.is_some(),
        config_map.is_some(),
        downward_api.is_some(),
        pod_certificate.is_some(),
        secret.is_some(),
        service_account_token.is_some(),
    ];
    if kinds.into_iter().filter(|set| *set).count() > 1 {
        errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
    }
    let mut taken: Vec<&str> = Vec::new();
    if let Some(source) = secret {
        let path = format!("{path}.secret");
        require(&format!("{path}.name"), &source.name, errors);
        items(&path, source.items.as_deref(), errors);
        taken.extend(source.items.iter().flatten().map(|item| item.path.as_str()));
    }
    if let Some(source) = config_map {
        let path = format!("{path}.configMap");
        require(&format!("{path}.name"), &source.name, errors);
        items(&path, source.items.as_deref(), errors);
        taken.extend(source.items.iter().flatten().map(|item| item.path.as_str()));
    }
    for item in downward_api.iter().flat_map(|source| source.items.iter().flatten()) {
        downward_file(&format!("{path}.downwardAPI"), item, errors);
        taken.push(&item.path);
    }
    if let Some(bundle) = cluster_trust_bundle {
        let path = format!("{path}.clusterTrustBundle");
        trust_bundle(&path, bundle, errors);
        taken.push(&bundle.path);
    }
    if let Some(token) = service_account_token {
        let path = format!("{path}.serviceAccountToken");
        if let Some(seconds) = token.expiration_seconds.filter(|seconds| !TOKEN_SECONDS.contains(seconds)) {
            let rule = match seconds < *TOKEN_SECONDS.start() {
                true => "may not specify a duration less than 10 minutes",
                false => "may not specify a duration larger than 2^32 seconds",
            };
            errors.push(FieldError::invalid(format!("{path}.expirationSeconds"), seconds, rule));
        }
        file_path(&format!("{path}.path"), &token.path, errors);
    }
    taken
}

/// One bundle by its name, or all of a signer that have certain labels.
fn trust_bundle(path: &str, source: &ClusterTrustBundleProjection, errors: &mut Errors) {
    let ClusterTrustBundleProjection { label_selector, name, optional: _, path: file, signer_name } = source;
    match (name, signer_name) {
        (Some(_), Some(_)) => {
            let rule = "only one of name and signerName may be used";
            errors.push(FieldError::invalid(path, "clusterTrustBundle", rule));
        }
        (Some(name), None) => {
            if name.is_empty() {
                errors.push(FieldError::required_because(format!("{path}.name"), "must be a valid object name"));
            }
            if label_selector.is_some() {
                let rule = "labelSelector must be unset if name is specified";
                errors.push(FieldError::invalid(format!("{path}.labelSelector"), "labelSelector", rule));
            }
        }
        (None, Some(signer)) if signer.is_empty() => {
            errors.push(FieldError::required_because(format!("{path}.signerName"), "must be a valid signer name"));
        }
        (None, Some(_)) => {}
        (None, None) => {
            errors.push(FieldError::required_because(path, "either name or signerName must be specified"));
        }
    }
    file_path(&format!("{path}.path"), file, errors);
}

fn require(path: &str, value: &str, errors: &mut Errors) {
    if value.is_empty() {
        errors.push(FieldError::required(path));
    }
}

fn items(path: &str, items: Option<&[KeyToPath]>, errors: &mut Errors) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        require(&format!("{path}.key"), &item.key, errors);
        file_path(&format!("{path}.path"), &item.path, errors);
        mode(&format!("{path}.mode"), item.mode, errors);
    }
}

/// Upstream names the list here, not the item.
fn downward_file(path: &str, file: &DownwardAPIVolumeFile, errors: &mut Errors) {
    file_path(&format!("{path}.path"), &file.path, errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            env::field_ref(&format!("{path}.fieldRef"), field, &FIELDS, errors);
            if resource.is_some() {
                let rule = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", rule));
            }
        }
        (None, Some(resource)) => {
            let path = format!("{path}.resourceFieldRef");
            let container = resource.container_name.as_deref().unwrap_or_default();
            require(&format!("{path}.containerName"), container, errors);
            env::resource_field_ref(&path, resource, errors);
        }
        (None, None) => {
            errors.push(FieldError::required_because(path, "one of fieldRef and resourceFieldRef is required"));
        }
    }
    mode(&format!("{path}.mode"), file.mode, errors);
}

/// Relative, without `..`, and not what the writer of such volumes keeps to itself.
fn file_path(path: &str, text: &str, errors: &mut Errors) {
    require(path, text, errors);
    errors.check(path, text, names::descending_path(text));
    if text.starts_with("..") && text != ".." && !text.starts_with("../") {
        errors.push(FieldError::invalid(path, text, "must not start with '..'"));
    }
}

fn mode(path: &str, mode: Option<i32>, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.push(FieldError::invalid(path, mode, MODE_RULE));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(source: Value) -> Vec<String> {
        let mut source = source;
        source["name"] = json!("v");
        let mut errors = Errors::default();
        validate("v", &serde_json::from_value(source).unwrap(), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn case(source: Value, expected: &[&str]) {
        let found = errors(source);
        let same = found.len() == expected.len() && found.iter().zip(expected).all(|(one, other)| one.contains(other));
        assert!(same, "{found:#?}");
    }

    #[test]
    fn names_paths_and_modes_are_checked() {
        case(json!({"configMap": {"name": "c", "defaultMode": 0o777}}), &[]);
        case(json!({"configMap": {}}), &["v.configMap.name: Required value"]);
        case(json!({"secret": {}}), &["v.secret.secretName: Required value"]);
        case(json!({"secret": {"secretName": "s", "defaultMode": 512}}), &["v.secret.defaultMode: Invalid value: 512"]);
        let item = |item: Value| json!({"configMap": {"name": "c", "items": [item]}});
        case(item(json!({"key": "k", "path": "a/b", "mode": 0})), &[]);
        case(item(json!({"path": "a"})), &["v.configMap.items[0].key: Required value"]);
        case(item(json!({"key": "k"})), &["v.configMap.items[0].path: Required value"]);
        case(
            item(json!({"key": "k", "path": "/a"})),
            &["items[0].path: Invalid value: \"/a\": must be a relative path"],
        );
        case(item(json!({"key": "k", "path": "a/../b"})), &["must not contain '..'"]);
        case(item(json!({"key": "k", "path": ".."})), &["must not contain '..'"]);
        case(item(json!({"key": "k", "path": "..data"})), &["must not start with '..'"]);
        case(
            item(json!({"key": "k", "path": "a", "mode": -1})),
            &["items[0].mode: Invalid value: -1: must be a number"],
        );
    }

    #[test]
    fn files_of_the_downward_api_are_checked() {
        let file = |file: Value| json!({"downwardAPI": {"items": [file]}});
        case(file(json!({"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}})), &[]);
        case(file(json!({"path": "l", "fieldRef": {"fieldPath": "metadata.labels['a']"}})), &[]);
        case(
            file(json!({"path": "l", "fieldRef": {"fieldPath": "status.podIP"}})),
            &["v.downwardAPI.fieldRef.fieldPath: Unsupported value: \"status.podIP\""],
        );
        case(file(json!({"path": "l"})), &["one of fieldRef and resourceFieldRef is required"]);
        let resource = json!({"resource": "limits.cpu", "containerName": "c"});
        case(file(json!({"path": "l", "resourceFieldRef": resource})), &[]);
        case(
            file(json!({"path": "l", "resourceFieldRef": {"resource": "limits.cpu"}})),
            &["v.downwardAPI.resourceFieldRef.containerName: Required value"],
        );
        case(
            file(json!({"path": "l", "fieldRef": {"fieldPath": "metadata.name"}, "resourceFieldRef": resource})),
            &["can not be specified simultaneously"],
        );
    }

    #[test]
    fn sources_of_a_projected_volume_are_checked() {
        let of = |sources: Value| json!({"projected": {"sources": sources}});
        let token = |token: Value| of(json!([{"serviceAccountToken": token}]));
        case(token(json!({"path": "t", "expirationSeconds": 600})), &[]);
        case(token(json!({"path": "t"})), &[]);
        case(
            token(json!({"path": "t", "expirationSeconds": 599})),
            &["expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"],
        );
        case(token(json!({"path": "t", "expirationSeconds": (1_i64 << 32) + 1})), &["larger than 2^32 seconds"]);
        case(token(json!({"path": ""})), &["v.projected.sources[0].serviceAccountToken.path: Required value"]);
        case(of(json!([{"secret": {}, "configMap": {"name": "c"}}])), &["more than 1 volume type", "secret.name: Req"]);
        let same = json!([{"key": "k", "path": "a"}]);
        let twice = json!([{"secret": {"name": "s", "items": same}}, {"configMap": {"name": "c", "items": same}}]);
        case(of(twice), &["v.projected: Invalid value: \"a\": conflicting duplicate paths"]);
    }
}
