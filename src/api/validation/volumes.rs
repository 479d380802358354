//! Volumes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Volume;
use serde_json::Value;

use super::{Errors, FieldError, content, names};
use crate::api::{decode::to_value, quantity::Quantity};

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks the volumes and returns the names of all of them.
pub(super) fn validate<'v>(volumes: &'v [Volume], errors: &mut Errors) -> BTreeSet<&'v str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        if volume.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name")));
        } else {
            errors.check(&format!("{path}.name"), &volume.name, names::label(&volume.name));
        }
        if !seen.insert(volume.name.as_str()) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &volume.name));
        }
        source(&path, volume, errors);
    }
    seen
}

fn source(path: &str, volume: &Volume, errors: &mut Errors) {
    match kinds(volume).as_slice() {
        [] => errors.push(FieldError::required_because(path, "must specify a volume type")),
        [_] => {}
        [_, others @ ..] => {
            for kind in others {
                let detail = "may not specify more than 1 volume type";
                errors.push(FieldError::forbidden(format!("{path}.{kind}"), detail));
            }
        }
    }
    content::validate(path, volume, errors);
    if let Some(empty_dir) = &volume.empty_dir
        && let Some(limit) = &empty_dir.size_limit
    {
        let path = format!("{path}.emptyDir.sizeLimit");
        match Quantity::try_from(limit) {
            Ok(amount) if amount.is_negative() => {
                errors.push(FieldError::forbidden(path, "SizeLimit field must be a valid resource quantity"));
            }
            Ok(_) => {}
            Err(error) => errors.push(FieldError::invalid(path, &limit.0, error)),
        }
    }
    if let Some(host_path) = &volume.host_path {
        let base = format!("{path}.hostPath");
        if host_path.path.is_empty() {
            errors.push(FieldError::required(format!("{base}.path")));
        } else if let Some(rule) = names::no_backsteps(&host_path.path) {
            errors.push(FieldError::invalid(format!("{base}.path"), &host_path.path, rule));
        }
        let kind = host_path.type_.as_deref().unwrap_or_default();
        if !HOST_PATH_TYPES.contains(&kind) {
            errors.push(FieldError::unsupported(format!("{base}.type"), kind, &HOST_PATH_TYPES));
        }
    }
}

/// The sources a volume names, as they are written. Asked of its JSON form, so that no kind can be forgotten.
fn kinds(volume: &Volume) -> Vec<String> {
    match to_value(volume) {
        Ok(Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).filter(|name| name != "name").collect(),
        _ => Vec::new(),
    }
}
