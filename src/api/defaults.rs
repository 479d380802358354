//! What an API server fills in when a pod is created (`pkg/apis/core/v1/defaults.go` upstream). A pod from a manifest
//! gets the same, so that nothing behind this has to know a default.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, DownwardAPIVolumeFile, EnvVar, EphemeralContainer, HTTPGetAction, Lifecycle, ObjectFieldSelector,
        Pod, PodSecurityContext, PodSpec, Probe, ResourceRequirements, Volume,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::{
    quantity::Quantity,
    resources::{self, HUGEPAGES_PREFIX},
};

/// Mode of files made from secrets, config maps and the downward API.
const FILE_MODE: i32 = 0o644;

/// Fills in every default of a pod. Doing it twice changes nothing.
pub fn set_pod_defaults(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    set_spec_defaults(spec);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        set_container_defaults(container);
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        set_ephemeral_defaults(container);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        set_volume_defaults(volume);
    }
    set_pod_level_resources(spec);
    if spec.host_network == Some(true) {
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            for port in container.ports.iter_mut().flatten().filter(|port| port.host_port.unwrap_or(0) == 0) {
                port.host_port = Some(port.container_port);
            }
        }
    }
}

fn set_spec_defaults(spec: &mut PodSpec) {
    default_text(&mut spec.dns_policy, "ClusterFirst");
    default_text(&mut spec.restart_policy, "Always");
    default_text(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context.get_or_insert_with(PodSecurityContext::default);
    spec.enable_service_links.get_or_insert(true);
    // `serviceAccount` is the old name of `serviceAccountName`; both are kept the same.
    if is_empty(&spec.service_account_name) {
        spec.service_account_name = spec.service_account.clone();
    }
    spec.service_account = spec.service_account_name.clone();
    if let Some(overhead) = &mut spec.overhead {
        set_list_defaults(overhead);
    }
}

fn set_container_defaults(container: &mut Container) {
    default_text(&mut container.termination_message_path, "/dev/termination-log");
    default_text(&mut container.termination_message_policy, "File");
    let policy = default_pull_policy(container.image.as_deref().unwrap_or_default());
    default_text(&mut container.image_pull_policy, policy);
    for port in container.ports.iter_mut().flatten() {
        default_text(&mut port.protocol, "TCP");
    }
    if let Some(resources) = &mut container.resources {
        set_resource_defaults(resources);
    }
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(set_probe_defaults);
    if let Some(lifecycle) = &mut container.lifecycle {
        set_lifecycle_defaults(lifecycle);
    }
    set_env_defaults(&mut container.env);
}

fn set_ephemeral_defaults(container: &mut EphemeralContainer) {
    default_text(&mut container.termination_message_path, "/dev/termination-log");
    default_text(&mut container.termination_message_policy, "File");
    let policy = default_pull_policy(container.image.as_deref().unwrap_or_default());
    default_text(&mut container.image_pull_policy, policy);
    set_env_defaults(&mut container.env);
}

fn set_env_defaults(env: &mut Option<Vec<EnvVar>>) {
    for variable in env.iter_mut().flatten() {
        if let Some(field) = variable.value_from.as_mut().and_then(|from| from.field_ref.as_mut()) {
            set_field_ref_defaults(field);
        }
        if let Some(file) = variable.value_from.as_mut().and_then(|from| from.file_key_ref.as_mut()) {
            file.optional.get_or_insert(false);
        }
    }
}

fn set_field_ref_defaults(field: &mut ObjectFieldSelector) {
    default_text(&mut field.api_version, "v1");
}

/// Requests that are not set are as high as the limits.
fn set_resource_defaults(resources: &mut ResourceRequirements) {
    if let Some(limits) = &mut resources.limits {
        set_list_defaults(limits);
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    if let Some(requests) = &mut resources.requests {
        set_list_defaults(requests);
    }
}

/// Amounts finer than a thousandth are rounded up; the rest are put in canonical form. What is no quantity stays for
/// validation to find.
fn set_list_defaults(list: &mut BTreeMap<String, ApiQuantity>) {
    for quantity in list.values_mut() {
        if let Ok(amount) = Quantity::try_from(&*quantity) {
            let amount = if amount.is_whole_milli() { amount } else { Quantity::from_milli(amount.milli()) };
            *quantity = amount.into();
        }
    }
}

/// Defaults of KEP-2837: what is set for the pod as a whole is completed from its containers.
fn set_pod_level_resources(spec: &mut PodSpec) {
    let Some(mut resources) = spec.resources.take() else { return };
    let is_set = |list: &Option<BTreeMap<String, ApiQuantity>>| list.as_ref().is_some_and(|list| !list.is_empty());
    [&mut resources.limits, &mut resources.requests].into_iter().flatten().for_each(set_list_defaults);
    if is_set(&resources.limits) || is_set(&resources.requests) {
        for (name, limit) in resources::container_limits(spec) {
            let requested = resources.requests.as_ref().is_some_and(|requests| requests.contains_key(&name));
            if name.starts_with(HUGEPAGES_PREFIX) && !requested {
                resources.limits.get_or_insert_default().entry(name).or_insert_with(|| limit.into());
            }
        }
    }
    let limits_written = is_set(&resources.limits);
    if let Some(limits) = resources.limits.clone().filter(|limits| !limits.is_empty()) {
        let requests = resources.requests.get_or_insert_default();
        for (name, request) in resources::container_requests(spec) {
            if name == resources::CPU || name == resources::MEMORY {
                requests.entry(name).or_insert_with(|| request.into());
            }
        }
        for (name, limit) in limits.into_iter().filter(|(name, _)| resources::is_pod_level(name)) {
            requests.entry(name).or_insert(limit);
        }
    }
    if !limits_written && is_set(&resources.requests) {
        for (name, limit) in resources::container_limits(spec) {
            if (name == resources::CPU || name == resources::MEMORY) && resources::all_limited(spec, &name) {
                resources.limits.get_or_insert_default().entry(name).or_insert_with(|| limit.into());
            }
        }
    }
    spec.resources = Some(resources);
}

fn set_probe_defaults(probe: &mut Probe) {
    let default = |value: &mut Option<i32>, default| {
        if value.unwrap_or(0) == 0 {
            *value = Some(default);
        }
    };
    default(&mut probe.timeout_seconds, 1);
    default(&mut probe.period_seconds, 10);
    default(&mut probe.success_threshold, 1);
    default(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        set_http_get_defaults(get);
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn set_lifecycle_defaults(lifecycle: &mut Lifecycle) {
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop] {
        if let Some(get) = handler.as_mut().and_then(|handler| handler.http_get.as_mut()) {
            set_http_get_defaults(get);
        }
    }
}

fn set_http_get_defaults(get: &mut HTTPGetAction) {
    default_text(&mut get.path, "/");
    default_text(&mut get.scheme, "HTTP");
}

fn set_volume_defaults(volume: &mut Volume) {
    if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
        volume.empty_dir = Some(Default::default());
    }
    if let Some(host_path) = &mut volume.host_path {
        host_path.type_.get_or_insert_default();
    }
    if let Some(secret) = &mut volume.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(config_map) = &mut volume.config_map {
        config_map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(image) = &mut volume.image {
        let policy = default_pull_policy(image.reference.as_deref().unwrap_or_default());
        default_text(&mut image.pull_policy, policy);
    }
    let own = volume.ephemeral.as_mut().and_then(|source| source.volume_claim_template.as_mut());
    if let Some(template) = own {
        default_text(&mut template.spec.volume_mode, "Filesystem");
    }
    let set_item = |item: &mut DownwardAPIVolumeFile| {
        if let Some(field) = &mut item.field_ref {
            set_field_ref_defaults(field);
        }
    };
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(FILE_MODE);
        downward.items.iter_mut().flatten().for_each(set_item);
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            if let Some(downward) = &mut source.downward_api {
                downward.items.iter_mut().flatten().for_each(set_item);
            }
        }
    }
}

/// `Always` for the tag `latest`, also when it is only implied; `IfNotPresent` for any other tag and for a digest.
pub fn default_pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().is_none_or(str::is_empty)
}

fn default_text(text: &mut Option<String>, default: &str) {
    if is_empty(text) {
        *text = Some(default.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn defaulted(spec: Value) -> Value {
        let mut pod: Pod = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "spec": spec})).unwrap();
        set_pod_defaults(&mut pod);
        let once = pod.clone();
        set_pod_defaults(&mut pod);
        assert_eq!(pod, once, "defaulting twice changes nothing");
        serde_json::to_value(pod.spec).unwrap()
    }

    #[test]
    fn a_service_account_has_an_old_name_and_a_new_one() {
        for (written, account) in [
            (json!({"serviceAccount": "robot"}), "robot"),
            (json!({"serviceAccountName": "robot"}), "robot"),
            (json!({"serviceAccount": "old", "serviceAccountName": "new"}), "new"),
        ] {
            let mut spec = json!({"containers": []});
            spec.as_object_mut().unwrap().append(&mut written.as_object().unwrap().clone());
            let spec = defaulted(spec);
            assert_eq!((&spec["serviceAccount"], &spec["serviceAccountName"]), (&json!(account), &json!(account)));
        }
    }

    #[test]
    fn a_bare_pod_gets_what_an_api_server_would_give_it() {
        assert_eq!(
            defaulted(json!({"containers": [{"name": "a", "image": "busybox", "ports": [{"containerPort": 80}]}]})),
            json!({
                "containers": [{
                    "name": "a", "image": "busybox", "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
            })
        );
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:latest@sha256:0123", "Always"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn requests_default_to_limits_and_are_rounded_to_thousandths() {
        let spec = defaulted(json!({"containers": [{"name": "a", "resources": {
            "limits": {"cpu": "1.0001", "memory": "1024Mi"}, "requests": {"cpu": "500m"}}}]}));
        assert_eq!(
            spec["containers"][0]["resources"],
            json!({"limits": {"cpu": "1001m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}})
        );
    }

    #[test]
    fn resources_of_the_pod_are_completed_from_its_containers() {
        let containers = json!([{"name": "a", "resources": {"requests": {"cpu": "250m"}}}]);
        let spec = defaulted(json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "containers": containers}));
        assert_eq!(spec["resources"]["requests"], json!({"cpu": "250m", "memory": "1Gi"}));
    }

    #[test]
    fn host_network_pods_use_host_ports_and_volumes_and_probes_get_their_defaults() {
        let spec = defaulted(json!({
            "hostNetwork": true,
            "containers": [{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "e"}, {"name": "h", "hostPath": {"path": "/x"}}, {"name": "s", "secret": {"secretName": "s"}}],
        }));
        assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], 80);
        assert_eq!(
            spec["containers"][0]["livenessProbe"],
            json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "periodSeconds": 5, "timeoutSeconds": 1,
                "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(spec["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(
            spec["volumes"],
            json!([{"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/x", "type": ""}},
                {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}}])
        );
    }
}
