//! Security contexts.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSpec, SeccompProfile, SecurityContext, Sysctl};

use super::{Errors, FieldError, names};
use crate::api::sysctl::{Namespace, namespace};

const MAX_SYSCTL_NAME: usize = 253;
/// Users and groups: upstream keeps to what fits into a signed 32-bit number.
const MAX_ID: i64 = i32::MAX as i64;

pub(super) fn pod(spec: &PodSpec, errors: &mut Errors) {
    let path = "spec.securityContext";
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid("spec.shareProcessNamespace", true, detail));
    }
    if spec.host_users == Some(false) {
        let namespaces = [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
        for (field, _) in namespaces.into_iter().filter(|(_, shared)| *shared == Some(true)) {
            errors.push(FieldError::forbidden(format!("spec.{field}"), "when `hostUsers` is false"));
        }
    }
    let Some(context) = &spec.security_context else { return };
    for (field, id) in
        [("fsGroup", context.fs_group), ("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)]
    {
        if let Some(id) = id {
            errors.between(&format!("{path}.{field}"), id, 0, MAX_ID);
        }
    }
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        errors.between(&format!("{path}.supplementalGroups[{index}]"), *group, 0, MAX_ID);
    }
    sysctls(spec, context.sysctls.as_deref().unwrap_or_default(), errors);
    let policy = context.fs_group_change_policy.as_deref();
    errors.one_of_if_set(&format!("{path}.fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    let policy = context.supplemental_groups_policy.as_deref();
    errors.one_of_if_set(&format!("{path}.supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    let policy = context.se_linux_change_policy.as_deref();
    errors.one_of_if_set(&format!("{path}.seLinuxChangePolicy"), policy, &["MountOption", "Recursive"]);
    seccomp(&format!("{path}.seccompProfile"), context.seccomp_profile.as_ref(), errors);
    app_armor(&format!("{path}.appArmorProfile"), context.app_armor_profile.as_ref(), errors);
    if is_linux(spec) && context.windows_options.is_some() {
        let detail = "windows options cannot be set for a linux pod";
        errors.push(FieldError::forbidden(format!("{path}.windowsOptions"), detail));
    }
}

fn is_linux(spec: &PodSpec) -> bool {
    spec.os.as_ref().is_some_and(|os| os.name == "linux")
}

/// Segments of lower-case letters, digits, `-` and `_`, joined by dots or slashes.
fn is_sysctl_name(name: &str) -> bool {
    let outer = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let inner = |byte: &u8| outer(Some(byte)) || matches!(byte, b'-' | b'_');
    let is_segment = |segment: &str| {
        let bytes = segment.as_bytes();
        outer(bytes.first()) && outer(bytes.last()) && bytes.iter().all(inner)
    };
    name.len() <= MAX_SYSCTL_NAME && name.split(['.', '/']).all(is_segment)
}

fn sysctls(spec: &PodSpec, sysctls: &[Sysctl], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, sysctl) in sysctls.iter().enumerate() {
        let path = format!("spec.securityContext.sysctls[{index}].name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.push(FieldError::required(&path));
        } else if !is_sysctl_name(name) {
            let detail = format!(
                "must have at most {MAX_SYSCTL_NAME} characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
            );
            errors.push(FieldError::invalid(&path, name, detail));
        } else if !seen.insert(name.replace('/', ".")) {
            errors.push(FieldError::duplicate(&path, name));
        }
        if spec.host_network == Some(true) && namespace(name) == Namespace::Net {
            errors.push(FieldError::invalid(&path, name, "may not be specified when 'hostNetwork' is true"));
        }
        if spec.host_ipc == Some(true) && namespace(name) == Namespace::Ipc {
            errors.push(FieldError::invalid(&path, name, "may not be specified when 'hostIPC' is true"));
        }
    }
}

pub(super) fn container(path: &str, context: &SecurityContext, spec: &PodSpec, errors: &mut Errors) {
    for (field, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if let Some(id) = id {
            errors.between(&format!("{path}.{field}"), id, 0, MAX_ID);
        }
    }
    let proc_mount = context.proc_mount.as_deref();
    errors.one_of_if_set(&format!("{path}.procMount"), proc_mount, &["Default", "Unmasked"]);
    if proc_mount == Some("Unmasked") && spec.host_users != Some(false) {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(format!("{path}.procMount"), "Unmasked", detail));
    }
    seccomp(&format!("{path}.seccompProfile"), context.seccomp_profile.as_ref(), errors);
    app_armor(&format!("{path}.appArmorProfile"), context.app_armor_profile.as_ref(), errors);
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(format!("{path}.privileged"), true, detail));
        }
        let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        if added.is_some_and(|added| added.iter().any(|name| name == "CAP_SYS_ADMIN" || name == "SYS_ADMIN")) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(format!("{path}.allowPrivilegeEscalation"), false, detail));
        }
    }
    if is_linux(spec) && context.windows_options.is_some() {
        let detail = "windows options cannot be set for a linux pod";
        errors.push(FieldError::forbidden(format!("{path}.windowsOptions"), detail));
    }
}

const PROFILE_TYPES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(path: &str, profile: Option<&SeccompProfile>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let type_path = format!("{path}.type");
    if profile.type_.is_empty() {
        let detail = "type is required when seccompProfile is set";
        errors.push(FieldError::required_because(&type_path, detail));
    } else {
        errors.one_of(&type_path, Some(&profile.type_), &PROFILE_TYPES);
    }
    let path = format!("{path}.localhostProfile");
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", None) => {
            errors.push(FieldError::required_because(path, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(file)) => errors.check(&path, file, names::descending_path(file)),
        (_, Some(file)) => {
            errors.push(FieldError::invalid(path, file, "can only be set when seccomp type is Localhost"));
        }
        (_, None) => {}
    }
}

fn app_armor(path: &str, profile: Option<&AppArmorProfile>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let type_path = format!("{path}.type");
    if profile.type_.is_empty() {
        let detail = "type is required when appArmorProfile is set";
        errors.push(FieldError::required_because(&type_path, detail));
    } else {
        errors.one_of(&type_path, Some(&profile.type_), &PROFILE_TYPES);
    }
    let path = format!("{path}.localhostProfile");
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", None | Some("")) => {
            errors.push(FieldError::required_because(path, "must be set when AppArmor type is Localhost"));
        }
        ("Localhost", Some(name)) if name.trim() != name => {
            errors.push(FieldError::invalid(path, name, "must not be padded with whitespace"));
        }
        ("Localhost", Some(_)) | (_, None) => {}
        (_, Some(name)) => {
            errors.push(FieldError::invalid(path, name, "can only be set when AppArmor type is Localhost"));
        }
    }
}
