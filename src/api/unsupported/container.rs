//! The fields of a container.

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, EnvVarSource, EphemeralContainer, ResourceRequirements, SecurityContext,
    VolumeDevice, VolumeMount,
};

use super::{Issues, NO_LABELS, any, has_labels};
use crate::api::resources::{CPU, EPHEMERAL_STORAGE, HUGEPAGES_PREFIX, MEMORY, is_extended};

/// Resources a container may be limited in: those the kernel keeps it within, and those that are given to it whole. Which
/// of the latter there are is a matter of admission.
fn is_enforced(resource: &str) -> bool {
    matches!(resource, CPU | MEMORY | EPHEMERAL_STORAGE)
        || resource.starts_with(HUGEPAGES_PREFIX)
        || is_extended(resource)
}

pub(super) fn check(container: &Container, path: &str, issues: &mut Issues) {
    let Container {
        env,
        env_from,
        resources,
        security_context,
        volume_devices,
        volume_mounts,
        // Honoured.
        args: _,
        command: _,
        image: _,
        image_pull_policy: _,
        lifecycle: _,
        name: _,
        ports: _,
        restart_policy: _,
        restart_policy_rules: _,
        stdin: _,
        stdin_once: _,
        termination_message_path: _,
        termination_message_policy: _,
        tty: _,
        working_dir: _,
        // Honoured by the pod's life cycle.
        liveness_probe: _,
        readiness_probe: _,
        startup_probe: _,
        resize_policy: _,
    } = container;

    for variable in env.iter().flatten() {
        check_variable(variable);
    }
    for source in env_from.iter().flatten() {
        // Every field is honoured.
        let EnvFromSource { config_map_ref: _, prefix: _, secret_ref: _ } = source;
    }
    if let Some(resources) = resources {
        check_resources(resources, path, issues);
    }
    if let Some(context) = security_context {
        check_security(context, &format!("{path}.securityContext"), issues);
    }
    for device in volume_devices.iter().flatten() {
        // Every field of a block volume is honoured.
        let VolumeDevice { device_path: _, name: _ } = device;
    }
    for mount in volume_mounts.iter().flatten() {
        // Every field of a mount is honoured.
        let VolumeMount {
            mount_path: _,
            mount_propagation: _,
            name: _,
            read_only: _,
            recursive_read_only: _,
            sub_path: _,
            sub_path_expr: _,
        } = mount;
    }
}

/// Every source of a variable is honoured.
fn check_variable(variable: &EnvVar) {
    let EnvVar { name: _, value: _, value_from } = variable;
    let Some(source) = value_from else { return };
    let EnvVarSource { config_map_key_ref: _, field_ref: _, file_key_ref: _, resource_field_ref: _, secret_key_ref: _ } =
        source;
}

fn check_resources(resources: &ResourceRequirements, path: &str, issues: &mut Issues) {
    let ResourceRequirements { claims, limits, requests } = resources;
    issues.refuse_if(any(claims), format!("{path}.resources.claims"), "resource claims are not supported yet");
    for name in limits.iter().flatten().map(|(name, _)| name) {
        let field = format!("{path}.resources.limits[{name}]");
        if !is_enforced(name) {
            issues.refuse(field, "nothing on this node offers such a resource");
        }
    }
    // One that has a limit beside it has been named above.
    let limited = |name: &String| limits.as_ref().is_some_and(|limits| limits.contains_key(name));
    for name in requests.iter().flatten().map(|(name, _)| name) {
        if !is_enforced(name) && !limited(name) {
            let field = format!("{path}.resources.requests[{name}]");
            issues.refuse(field, "nothing on this node offers such a resource");
        }
    }
}

/// An ephemeral container. What it may not have at all (ports, probes, hooks, resources) is a matter of validation.
pub(super) fn check_ephemeral(container: &EphemeralContainer, path: &str, issues: &mut Issues) {
    let EphemeralContainer {
        args: _,
        command: _,
        env,
        env_from: _,
        image: _,
        image_pull_policy: _,
        lifecycle: _,
        liveness_probe: _,
        name: _,
        ports: _,
        readiness_probe: _,
        resize_policy: _,
        resources: _,
        restart_policy: _,
        restart_policy_rules: _,
        security_context,
        startup_probe: _,
        stdin: _,
        stdin_once: _,
        target_container_name: _,
        termination_message_path: _,
        termination_message_policy: _,
        tty: _,
        volume_devices: _,
        volume_mounts: _,
        working_dir: _,
    } = container;
    for variable in env.iter().flatten() {
        check_variable(variable);
    }
    if let Some(context) = security_context {
        check_security(context, &format!("{path}.securityContext"), issues);
    }
}

fn check_security(context: &SecurityContext, path: &str, issues: &mut Issues) {
    let SecurityContext {
        se_linux_options,
        windows_options,
        // Honoured; AppArmor at admission, by what the kernel has.
        app_armor_profile: _,
        allow_privilege_escalation: _,
        capabilities: _,
        privileged: _,
        proc_mount: _,
        read_only_root_filesystem: _,
        run_as_group: _,
        run_as_non_root: _,
        run_as_user: _,
        seccomp_profile: _,
    } = context;
    issues.refuse_if(se_linux_options.as_ref().is_some_and(has_labels), format!("{path}.seLinuxOptions"), NO_LABELS);
    if windows_options.is_some() {
        issues.warn(format!("{path}.windowsOptions"), "has no meaning on this node");
    }
}
