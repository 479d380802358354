//! A pod's spec, apart from its containers and volumes.

use k8s_openapi::api::core::v1::{HostAlias, PodDNSConfig, PodSpec};

use super::{Errors, FieldError, container, ephemeral, names, resources, scheduling, security, volumes};

/// Limits of resolvers, as upstream has them.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

pub(super) fn validate(spec: &PodSpec, errors: &mut Errors) {
    let volume_names = volumes::validate(spec.volumes.as_deref().unwrap_or_default(), errors);
    container::validate_all(spec, &volume_names, errors);
    ephemeral::validate(spec, &volume_names, errors);
    if let Some(pod_level) = &spec.resources {
        resources::pod_level(spec, pod_level, errors);
    }
    if spec.host_network == Some(true) {
        host_network_ports(spec, errors);
    }
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    errors.one_of("spec.restartPolicy", spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    errors.one_of("spec.dnsPolicy", spec.dns_policy.as_deref(), &policies);
    if let Some(selector) = &spec.node_selector {
        names::labels("spec.nodeSelector", selector, errors);
    }
    security::pod(spec, errors);
    if let Some(affinity) = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) {
        scheduling::node_affinity(affinity, errors);
    }
    dns_config(spec.dns_config.as_ref(), spec.dns_policy.as_deref(), errors);
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let path = format!("spec.readinessGates[{index}].conditionType");
        errors.check(&path, &gate.condition_type, names::qualified(&gate.condition_type));
    }
    if spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) && text(&spec.node_name).is_some() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden("spec.nodeName", detail));
    }
    for (path, value) in [
        ("spec.serviceAccountName", &spec.service_account_name),
        ("spec.nodeName", &spec.node_name),
        ("spec.priorityClassName", &spec.priority_class_name),
    ] {
        if let Some(value) = text(value) {
            errors.check(path, &value, names::subdomain(&value));
        }
    }
    if let Some(class) = &spec.runtime_class_name {
        errors.check("spec.runtimeClassName", class, names::subdomain(class));
    }
    if let Some(seconds) = spec.active_deadline_seconds {
        errors.between("spec.activeDeadlineSeconds", seconds, 1, i64::from(i32::MAX));
    }
    for (path, value) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(value) = text(value) {
            errors.check(path, &value, names::label(&value));
        }
    }
    hostname_override(spec, errors);
    scheduling::tolerations(spec.tolerations.as_deref().unwrap_or_default(), errors);
    host_aliases(spec.host_aliases.as_deref().unwrap_or_default(), errors);
    errors.one_of_if_set(
        "spec.preemptionPolicy",
        spec.preemption_policy.as_deref(),
        &["PreemptLowerPriority", "Never"],
    );
    if let Some(overhead) = &spec.overhead {
        resources::list("spec.overhead", overhead, errors);
    }
    if let Some(os) = &spec.os {
        errors.one_of("spec.os.name", Some(&os.name), &["linux", "windows"]);
    }
}

/// KEP-4762: any DNS name, but not together with what else decides the host name.
fn hostname_override(spec: &PodSpec, errors: &mut Errors) {
    let path = "spec.hostnameOverride";
    let Some(name) = &spec.hostname_override else { return };
    if spec.host_network == Some(true) {
        errors.push(FieldError::forbidden(path, "may not be set when `hostNetwork` is true"));
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        errors.push(FieldError::forbidden(path, "may not be set when `setHostnameAsFQDN` is true"));
    }
    errors.check(path, name, names::subdomain(name));
    if name.len() > 64 {
        errors.push(FieldError::invalid(path, name, "must be no more than 64 characters"));
    }
}

fn host_network_ports(spec: &PodSpec, errors: &mut Errors) {
    for (index, container) in spec.containers.iter().enumerate() {
        for (port_index, port) in container.ports.iter().flatten().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            if host_port != port.container_port {
                errors.push(FieldError::invalid(
                    format!("spec.containers[{index}].ports[{port_index}].hostPort"),
                    host_port,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

fn dns_config(config: Option<&PodDNSConfig>, policy: Option<&str>, errors: &mut Errors) {
    let path = "spec.dnsConfig";
    let servers = config.and_then(|config| config.nameservers.as_deref()).unwrap_or_default();
    if policy == Some("None") {
        if config.is_none() {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            return errors.push(FieldError::required_because(path, detail));
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.push(FieldError::required_because(format!("{path}.nameservers"), detail));
        }
    }
    let Some(config) = config else { return };
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.push(FieldError::invalid(format!("{path}.nameservers"), servers, detail));
    }
    for (index, server) in servers.iter().enumerate() {
        errors.check(&format!("{path}.nameservers[{index}]"), server, names::ip(server));
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    let searches_path = format!("{path}.searches");
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(FieldError::invalid(&searches_path, searches, detail));
    }
    if searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        let detail =
            format!("must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list");
        errors.push(FieldError::invalid(&searches_path, searches, detail));
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let name = search.strip_suffix('.').unwrap_or(search);
        errors.check(&format!("{searches_path}[{index}]"), name, names::subdomain_with_underscore(name));
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        let option_path = format!("{path}.options[{index}]");
        if option.name.as_deref().is_none_or(str::is_empty) {
            errors.push(FieldError::required_because(&option_path, "must not be empty"));
        }
        // Both go into a file of lines and words; upstream lets white space through and breaks the file.
        let words = [option.name.as_deref(), option.value.as_deref()];
        for word in words.into_iter().flatten().filter(|word| word.contains(char::is_whitespace)) {
            errors.push(FieldError::invalid(&option_path, word, "must not contain white space"));
        }
    }
}

fn host_aliases(aliases: &[HostAlias], errors: &mut Errors) {
    for (index, alias) in aliases.iter().enumerate() {
        let path = format!("spec.hostAliases[{index}]");
        errors.check(&format!("{path}.ip"), &alias.ip, names::ip(&alias.ip));
        for (name_index, name) in alias.hostnames.iter().flatten().enumerate() {
            errors.check(&format!("{path}.hostnames[{name_index}]"), name, names::subdomain(name));
        }
    }
}
