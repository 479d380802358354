//! Containers of every kind.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};

use super::{
    Errors, FieldError, env,
    handler::{self, ProbeKind},
    mounts, names, resources, security,
};
use crate::api::resources::is_sidecar;

/// Most restart rules of a container, and most exit codes of one.
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

/// Container names share one name space over all kinds.
pub(super) fn validate_all(spec: &PodSpec, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    if spec.containers.is_empty() {
        errors.push(FieldError::required("spec.containers"));
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        validate(&path, container, spec, volumes, errors);
        unique_name(&path, container, &mut seen, errors);
        hooks_and_probes(&path, container, spec, errors);
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        validate(&path, container, spec, volumes, errors);
        unique_name(&path, container, &mut seen, errors);
        if is_sidecar(container) {
            hooks_and_probes(&path, container, spec, errors);
        } else {
            let detail = "may not be set for init containers without restartPolicy=Always";
            for (field, set) in [
                ("lifecycle", container.lifecycle.is_some()),
                ("livenessProbe", container.liveness_probe.is_some()),
                ("readinessProbe", container.readiness_probe.is_some()),
                ("startupProbe", container.startup_probe.is_some()),
            ] {
                if set {
                    errors.push(FieldError::forbidden(format!("{path}.{field}"), detail));
                }
            }
        }
    }
    host_ports(spec, errors);
}

fn unique_name<'c>(path: &str, container: &'c Container, seen: &mut BTreeSet<&'c str>, errors: &mut Errors) {
    if !seen.insert(container.name.as_str()) {
        errors.push(FieldError::duplicate(format!("{path}.name"), &container.name));
    }
}

pub(super) fn validate(
    path: &str,
    container: &Container,
    spec: &PodSpec,
    volumes: &BTreeSet<&str>,
    errors: &mut Errors,
) {
    let name_path = format!("{path}.name");
    if container.name.is_empty() {
        errors.push(FieldError::required(name_path));
    } else {
        errors.check(&name_path, &container.name, names::label(&container.name));
    }
    match container.image.as_deref().unwrap_or_default() {
        "" => errors.push(FieldError::required(format!("{path}.image"))),
        image if image.trim() != image => {
            let detail = "must not have leading or trailing whitespace";
            errors.push(FieldError::invalid(format!("{path}.image"), image, detail));
        }
        _ => {}
    }
    let policy = container.termination_message_policy.as_deref();
    errors.one_of(&format!("{path}.terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]);
    ports(path, container.ports.as_deref().unwrap_or_default(), errors);
    let own_volumes = spec.volumes.as_deref().unwrap_or_default();
    env::validate(&format!("{path}.env"), container.env.as_deref().unwrap_or_default(), own_volumes, errors);
    env::validate_from(&format!("{path}.envFrom"), container.env_from.as_deref().unwrap_or_default(), errors);
    mounts::validate(path, container, volumes, errors);
    let policy = container.image_pull_policy.as_deref();
    errors.one_of(&format!("{path}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    if let Some(requirements) = &container.resources {
        resources::requirements(&format!("{path}.resources"), requirements, errors);
    }
    resize_policy(path, container, spec, errors);
    restart_policy(path, container, errors);
    if let Some(context) = &container.security_context {
        security::container(&format!("{path}.securityContext"), context, spec, errors);
    }
}

fn ports(path: &str, ports: &[ContainerPort], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let broken = names::port_name(name);
            if broken.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            errors.check(&format!("{path}.name"), name, broken);
        }
        if port.container_port == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort")));
        } else {
            errors.between(&format!("{path}.containerPort"), port.container_port.into(), 1, 65535);
        }
        if let Some(host_port) = port.host_port.filter(|host_port| *host_port != 0) {
            errors.between(&format!("{path}.hostPort"), host_port.into(), 1, 65535);
        }
        if let Some(address) = port.host_ip.as_deref().filter(|address| !address.is_empty()) {
            errors.check(&format!("{path}.hostIP"), address, names::ip(address));
        }
        errors.one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
    }
}

/// Among containers that run at the same time a host port can be had once.
fn host_ports(spec: &PodSpec, errors: &mut Errors) {
    let containers = spec.containers.iter().enumerate().map(|(index, one)| (format!("spec.containers[{index}]"), one));
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars.filter(|(_, one)| is_sidecar(one));
    let sidecars = sidecars.map(|(index, one)| (format!("spec.initContainers[{index}]"), one));
    let mut seen = BTreeSet::new();
    for (path, container) in containers.chain(sidecars) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let Some(host_port) = port.host_port.filter(|host_port| *host_port != 0) else { continue };
            let protocol = port.protocol.as_deref().unwrap_or_default();
            let key = format!("{protocol}/{}/{host_port}", port.host_ip.as_deref().unwrap_or_default());
            if !seen.insert(key.clone()) {
                errors.push(FieldError::duplicate(format!("{path}.ports[{index}].hostPort"), key));
            }
        }
    }
}

fn hooks_and_probes(path: &str, container: &Container, spec: &PodSpec, errors: &mut Errors) {
    if let Some(lifecycle) = &container.lifecycle {
        handler::lifecycle(&format!("{path}.lifecycle"), lifecycle, spec, errors);
    }
    for (field, probe, kind) in [
        ("livenessProbe", &container.liveness_probe, ProbeKind::Liveness),
        ("readinessProbe", &container.readiness_probe, ProbeKind::Readiness),
        ("startupProbe", &container.startup_probe, ProbeKind::Startup),
    ] {
        if let Some(probe) = probe {
            handler::probe(&format!("{path}.{field}"), probe, kind, errors);
        }
    }
}

fn resize_policy(path: &str, container: &Container, spec: &PodSpec, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, policy) in container.resize_policy.iter().flatten().enumerate() {
        let path = format!("{path}.resizePolicy[{index}]");
        if !seen.insert(policy.resource_name.as_str()) {
            errors.push(FieldError::duplicate(&path, &policy.resource_name));
        }
        errors.one_of(&format!("{path}.resourceName"), Some(&policy.resource_name), &["cpu", "memory"]);
        let restart = policy.restart_policy.as_str();
        errors.one_of(&format!("{path}.restartPolicy"), Some(restart), &["NotRequired", "RestartContainer"]);
        if spec.restart_policy.as_deref() == Some("Never") && restart == "RestartContainer" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(format!("{path}.restartPolicy"), restart, detail));
        }
    }
}

/// KEP-5307: a policy, and rules by exit code, of the container's own.
fn restart_policy(path: &str, container: &Container, errors: &mut Errors) {
    let policy = container.restart_policy.as_deref();
    errors.one_of_if_set(&format!("{path}.restartPolicy"), policy, &["Always", "OnFailure", "Never"]);
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    if !rules.is_empty() && policy.is_none() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(FieldError::required_because(format!("{path}.restartPolicy"), detail));
    }
    errors.at_most(&format!("{path}.restartPolicyRules"), rules.len(), MAX_RULES);
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{path}.restartPolicyRules[{index}]");
        errors.one_of(&format!("{path}.action"), Some(&rule.action), &["Restart", "RestartAllContainers"]);
        let path = format!("{path}.exitCodes");
        match &rule.exit_codes {
            None => errors.push(FieldError::required_because(path, "must be specified")),
            Some(codes) => {
                errors.one_of(&format!("{path}.operator"), Some(&codes.operator), &["In", "NotIn"]);
                errors.at_most(&format!("{path}.values"), codes.values.iter().flatten().count(), MAX_EXIT_CODES);
                for (index, code) in codes.values.iter().flatten().enumerate() {
                    errors.between(&format!("{path}.values[{index}]"), (*code).into(), 0, 255);
                }
            }
        }
    }
}
