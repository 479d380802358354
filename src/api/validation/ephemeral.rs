//! Ephemeral containers: a container's fields less all that is about starting again, ports and resources.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

use super::{Errors, FieldError, container};

pub(super) fn validate(spec: &PodSpec, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let others = || spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|one| one.name.as_str());
    let mut seen: BTreeSet<&str> = others().collect();
    for (index, ephemeral) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = format!("spec.ephemeralContainers[{index}]");
        container::validate(&path, &common(ephemeral), spec, volumes, errors);
        if !seen.insert(&ephemeral.name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &ephemeral.name));
        }
        if let Some(target) = ephemeral.target_container_name.as_deref().filter(|target| !target.is_empty())
            && !others().any(|name| name == target)
        {
            errors.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
        }
        forbidden(&path, ephemeral, errors);
    }
}

/// The fields that both kinds have and that mean the same.
fn common(ephemeral: &EphemeralContainer) -> Container {
    let EphemeralContainer {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        name,
        security_context,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
        // Judged by `forbidden`, or of ephemeral containers alone.
        lifecycle: _,
        liveness_probe: _,
        ports: _,
        readiness_probe: _,
        resize_policy: _,
        resources: _,
        restart_policy: _,
        restart_policy_rules: _,
        startup_probe: _,
        target_container_name: _,
    } = ephemeral.clone();
    Container {
        args,
        command,
        env,
        env_from,
        image,
        image_pull_policy,
        name,
        security_context,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
        working_dir,
        ..Container::default()
    }
}

fn forbidden(path: &str, container: &EphemeralContainer, errors: &mut Errors) {
    for (field, set) in [
        ("ports", container.ports.is_some()),
        ("resources", container.resources.as_ref().is_some_and(|resources| *resources != Default::default())),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
        ("resizePolicy", container.resize_policy.is_some()),
        ("restartPolicy", container.restart_policy.is_some()),
        ("restartPolicyRules", container.restart_policy_rules.is_some()),
    ] {
        if set {
            let detail = "cannot be set for an Ephemeral Container";
            errors.push(FieldError::forbidden(format!("{path}.{field}"), detail));
        }
    }
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        for (field, text) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
            if text.as_deref().is_some_and(|text| !text.is_empty()) {
                let detail = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(format!("{path}.volumeMounts[{index}].{field}"), detail));
            }
        }
    }
}
