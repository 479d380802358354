//! Which fields of a pod berth does not honour yet. Such a field is named, with its path, before anything is done
//! for the pod: a pod that would run differently from what its manifest says is refused, one that would only miss
//! something it does not depend on is warned about.
//!
//! Every structure of the API is taken apart without `..`, so that a field added upstream does not compile here
//! until somebody has decided what it means. A field bound to `_` is either honoured elsewhere or of no concern to
//! a node agent; the comments say which.

mod container;
mod volume;

use std::fmt;

use k8s_openapi::api::core::v1::{Pod, PodSecurityContext, PodSpec, ResourceRequirements, SELinuxOptions};

pub use self::volume::{persistent_volume_kind, volume_kind};

/// What follows from a field that is not honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consequence {
    /// The pod runs without it; the problem is shown as a warning.
    Warned,
    /// The pod must not run: it would not be what its manifest describes.
    Refused,
}

/// One field that is not honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldIssue {
    /// Path from the pod's root: `spec.containers[0].volumeDevices`.
    pub field: String,
    /// What is the matter, without the path: `block volumes are not supported yet`.
    pub message: String,
    /// What follows.
    pub consequence: Consequence,
}

impl fmt::Display for FieldIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All fields of `pod` that are set and not honoured, in the order of the API.
pub fn unsupported(pod: &Pod) -> Vec<FieldIssue> {
    let mut issues = Issues::default();
    if let Some(spec) = &pod.spec {
        check_spec(spec, &mut issues);
    }
    issues.0
}

/// Issues in the order they are found.
#[derive(Default)]
struct Issues(Vec<FieldIssue>);

impl Issues {
    fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldIssue { field: field.into(), message: message.into(), consequence: Consequence::Refused });
    }

    fn refuse_if(&mut self, set: bool, field: impl Into<String>, message: &str) {
        if set {
            self.refuse(field, message);
        }
    }

    fn warn(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldIssue { field: field.into(), message: message.into(), consequence: Consequence::Warned });
    }
}

/// Whether a list is there and holds something.
fn any<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn check_spec(spec: &PodSpec, issues: &mut Issues) {
    let PodSpec {
        containers,
        ephemeral_containers,
        init_containers,
        resource_claims,
        resources,
        security_context,
        volumes,
        // Honoured by the sandbox, its network and its cgroups.
        dns_config: _,
        dns_policy: _,
        host_aliases: _,
        host_ipc: _,
        host_network: _,
        host_pid: _,
        host_users: _,
        hostname: _,
        hostname_override: _,
        overhead: _,
        runtime_class_name: _,
        set_hostname_as_fqdn: _,
        share_process_namespace: _,
        subdomain: _,
        // Honoured when images are pulled.
        image_pull_secrets: _,
        // Honoured by the environment of its containers.
        enable_service_links: _,
        // Honoured by the pod's life cycle.
        active_deadline_seconds: _,
        readiness_gates: _,
        restart_policy: _,
        termination_grace_period_seconds: _,
        // Decided at admission, as far as it concerns a node.
        affinity: _,
        node_name: _,
        node_selector: _,
        os: _,
        preemption_policy: _,
        priority: _,
        priority_class_name: _,
        scheduler_name: _,
        scheduling_gates: _,
        scheduling_group: _,
        tolerations: _,
        topology_spread_constraints: _,
        // Honoured by tokens and pull secrets.
        service_account: _,
        service_account_name: _,
        // Acted on at admission, before a pod reaches its node.
        automount_service_account_token: _,
    } = spec;

    for (index, container) in init_containers.iter().flatten().enumerate() {
        container::check(container, &format!("spec.initContainers[{index}]"), issues);
    }
    for (index, container) in containers.iter().enumerate() {
        container::check(container, &format!("spec.containers[{index}]"), issues);
    }
    for (index, container) in ephemeral_containers.iter().flatten().enumerate() {
        container::check_ephemeral(container, &format!("spec.ephemeralContainers[{index}]"), issues);
    }
    issues.refuse_if(any(resource_claims), "spec.resourceClaims", "resource claims are not supported yet");
    // Honoured by the pod's cgroup and by those of containers without limits of their own.
    if let Some(ResourceRequirements { claims, limits: _, requests: _ }) = resources {
        issues.refuse_if(any(claims), "spec.resources.claims", "resource claims are not supported yet");
    }
    if let Some(context) = security_context {
        check_pod_security(context, issues);
    }
    for (index, volume) in volumes.iter().flatten().enumerate() {
        volume::check(volume, &format!("spec.volumes[{index}]"), issues);
    }
}

fn check_pod_security(context: &PodSecurityContext, issues: &mut Issues) {
    let PodSecurityContext {
        se_linux_options,
        windows_options,
        // Decided at admission, by what the kernel has.
        app_armor_profile: _,
        // Honoured.
        fs_group: _,
        fs_group_change_policy: _,
        run_as_group: _,
        run_as_non_root: _,
        run_as_user: _,
        seccomp_profile: _,
        supplemental_groups: _,
        supplemental_groups_policy: _,
        sysctls: _,
        // How labels are put on volumes; without labels there is nothing to do.
        se_linux_change_policy: _,
    } = context;
    const PATH: &str = "spec.securityContext";
    issues.refuse_if(se_linux_options.as_ref().is_some_and(has_labels), format!("{PATH}.seLinuxOptions"), NO_LABELS);
    if windows_options.is_some() {
        issues.warn(format!("{PATH}.windowsOptions"), "has no meaning on this node");
    }
}

/// Upstream leaves labels out in silence where the kernel has no SELinux; berth sets none anywhere.
const NO_LABELS: &str = "SELinux labels are not set on this node: no process and no volume would have them";

/// Whether a label is asked for at all.
fn has_labels(options: &SELinuxOptions) -> bool {
    let SELinuxOptions { level, role, type_, user } = options;
    [level, role, type_, user].into_iter().flatten().any(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn healthy() -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {
                "hostNetwork": false, "imagePullSecrets": [{"name": "x"}], "schedulerName": "default-scheduler", "serviceAccountName": "default",
                "activeDeadlineSeconds": 3, "tolerations": [{"operator": "Exists"}], "priorityClassName": "system-node-critical",
                "containers": [{
                    "name": "app", "image": "busybox", "ports": [{"containerPort": 80, "hostPort": 8080}],
                    "resources": {"limits": {"cpu": "1", "memory": "64Mi", "hugepages-2Mi": "2Mi", "ephemeral-storage": "1Gi"}},
                    "env": [
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                        {"name": "C", "valueFrom": {"fileKeyRef": {"volumeName": "scratch", "path": "p", "key": "k"}}},
                    ],
                    "envFrom": [{"secretRef": {"name": "x"}}, {"configMapRef": {"name": "x"}, "prefix": "P_"}],
                    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                    "volumeDevices": [{"name": "claim", "devicePath": "/dev/x"}],
                    "lifecycle": {"postStart": {"exec": {"command": ["true"]}}, "preStop": {"sleep": {"seconds": 1}}},
                    "restartPolicy": "Never",
                    "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [3]}}],
                    "securityContext": {"privileged": true, "appArmorProfile": {"type": "Unconfined"}},
                }],
                "initContainers": [{"name": "first", "image": "busybox"}, {"name": "beside", "restartPolicy": "Always"}],
                "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
                "readinessGates": [{"conditionType": "example.com/open"}],
                "securityContext": {"fsGroup": 7, "seLinuxOptions": {}},
                "volumes": [
                    {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                    {"name": "host", "hostPath": {"path": "/srv", "type": "Directory"}},
                    {"name": "pages", "emptyDir": {"medium": "HugePages-2Mi"}},
                    {"name": "disk", "emptyDir": {"sizeLimit": "1Gi"}},
                    {"name": "image", "image": {"reference": "busybox", "pullPolicy": "Never"}},
                    {"name": "claim", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}},
                    {"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}},
                    {"name": "server", "nfs": {"server": "s", "path": "/", "readOnly": true}},
                ],
            },
        })
    }

    /// The healthy pod with the value at a JSON pointer's place replaced.
    fn issues_with(pointer: &str, value: Value) -> Vec<FieldIssue> {
        let mut pod = healthy();
        match pod.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                pod.pointer_mut(parent).unwrap()[key] = value;
            }
        }
        unsupported(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_of_supported_fields_has_no_issues() {
        assert_eq!(unsupported(&serde_json::from_value(healthy()).unwrap()), []);
    }

    #[test]
    fn what_is_not_honoured_is_named_by_its_path() {
        let cases: &[(&str, Value, &str)] = &[
            (
                "/spec/ephemeralContainers",
                json!([{"name": "debug", "securityContext": {"seLinuxOptions": {"level": "s0"}}}]),
                "spec.ephemeralContainers[0].securityContext.seLinuxOptions",
            ),
            ("/spec/resourceClaims", json!([{"name": "x"}]), "spec.resourceClaims"),
            ("/spec/resources", json!({"claims": [{"name": "x"}]}), "spec.resources.claims"),
            ("/spec/securityContext/seLinuxOptions", json!({"level": "s0"}), "spec.securityContext.seLinuxOptions"),
            (
                "/spec/containers/0/resources",
                json!({"limits": {"kubernetes.io/gpu": "1", "example.com/gpu": "1"}}),
                "spec.containers[0].resources.limits[kubernetes.io/gpu]",
            ),
            (
                "/spec/volumes/1",
                json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "c"}}, {"podCertificate": {"signerName": "s", "keyType": "k"}}]}}),
                "spec.volumes[1].projected.sources[1].podCertificate",
            ),
            (
                "/spec/volumes/1",
                json!({"name": "v", "iscsi": {"targetPortal": "s", "iqn": "i", "lun": 0}}),
                "spec.volumes[1].iscsi",
            ),
            (
                "/spec/volumes/1",
                json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {"dataSource": {"kind": "k", "name": "n"}}}}}),
                "spec.volumes[1].ephemeral.volumeClaimTemplate.spec.dataSource",
            ),
        ];
        for (pointer, value, field) in cases {
            let issues = issues_with(pointer, value.clone());
            let found: Vec<_> = issues.iter().map(|issue| (issue.field.as_str(), issue.consequence)).collect();
            assert_eq!(found, [(*field, Consequence::Refused)], "{pointer}");
        }
    }

    #[test]
    fn what_the_pod_does_not_depend_on_is_only_warned_about() {
        let cases: &[(&str, Value, &str)] =
            &[("/spec/securityContext/windowsOptions", json!({}), "spec.securityContext.windowsOptions")];
        for (pointer, value, field) in cases {
            let issues = issues_with(pointer, value.clone());
            let found: Vec<_> = issues.iter().map(|issue| (issue.field.as_str(), issue.consequence)).collect();
            assert_eq!(found, [(*field, Consequence::Warned)], "{pointer}");
        }
    }
}
