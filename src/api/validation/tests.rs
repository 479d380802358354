use serde_json::{Value, json};

use super::*;
use crate::api::defaults::set_pod_defaults;

/// A pod with everything in order.
fn healthy() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "containers": [{
                "name": "app", "image": "nginx:1",
                "ports": [{"name": "http", "containerPort": 80, "hostPort": 8080}],
                "env": [{"name": "A.B-c", "value": "1"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}],
                "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "64Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": "a/..b"}],
                "livenessProbe": {"httpGet": {"port": "http"}},
                "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                "securityContext": {"runAsUser": 1000, "capabilities": {"add": ["NET_ADMIN"]}},
            }],
            "initContainers": [{"name": "proxy", "image": "p:1", "restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": 1}}}],
            "volumes": [{"name": "data", "hostPath": {"path": "/srv"}}, {"name": "tmp"}],
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a.example"]}],
            "dnsConfig": {"nameservers": ["::1"], "searches": ["_tcp.example.", "."]},
            "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}], "fsGroup": 5},
            "tolerations": [{"operator": "Exists"}],
        },
    })
}

fn errors(value: Value) -> Vec<String> {
    let mut pod: Pod = serde_json::from_value(value).unwrap();
    set_pod_defaults(&mut pod);
    validate_pod(&pod).iter().map(ToString::to_string).collect()
}

#[test]
fn a_healthy_pod_has_no_errors() {
    assert_eq!(errors(healthy()), Vec::<String>::new());
}

/// Sets one field of the healthy pod and expects exactly one error that begins with the text.
#[track_caller]
fn broken(pointer: &str, value: Value, expected: &str) {
    let mut pod = healthy();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = pod.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(items) => items.push(value),
        parent => parent[field] = value,
    }
    let errors = errors(pod);
    assert_eq!(errors.len(), 1, "{pointer}: {errors:#?}");
    assert!(errors[0].starts_with(expected), "{pointer}: {}", errors[0]);
}

#[test]
fn names_labels_and_annotations_have_their_forms() {
    broken(
        "/metadata/name",
        json!("Web"),
        r#"metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain must consist of"#,
    );
    broken(
        "/metadata/namespace",
        json!("a.b"),
        r#"metadata.namespace: Invalid value: "a.b": a lowercase RFC 1123 label must"#,
    );
    broken("/metadata/labels/-", json!("x"), r#"metadata.labels: Invalid value: "-": name part must consist"#);
    broken("/metadata/labels/app", json!("a b"), r#"metadata.labels: Invalid value: "a b": a valid label must"#);
    broken(
        "/metadata/annotations",
        json!({"a/b/c": ""}),
        r#"metadata.annotations: Invalid value: "a/b/c": a qualified name must"#,
    );
    broken(
        "/metadata/annotations",
        json!({"a": "x".repeat(300_000)}),
        "metadata.annotations: Too long: may not be more than 262144 bytes",
    );
}

#[test]
fn containers_are_checked_field_by_field() {
    let container = "/spec/containers/0";
    let case = |field: &str, value: Value, expected: &str| {
        broken(&format!("{container}/{field}"), value, &format!("spec.containers[0].{expected}"));
    };
    broken("/spec/containers", json!([]), "spec.containers: Required value");
    case("name", json!(""), "name: Required value");
    case("name", json!("App"), r#"name: Invalid value: "App": a lowercase RFC 1123 label must"#);
    broken(&format!("{container}/name"), json!("proxy"), r#"spec.initContainers[0].name: Duplicate value: "proxy""#);
    case("image", json!(""), "image: Required value");
    case("image", json!(" nginx"), r#"image: Invalid value: " nginx": must not have leading"#);
    case(
        "imagePullPolicy",
        json!("Maybe"),
        r#"imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never""#,
    );
    case("terminationMessagePolicy", json!("Mail"), "terminationMessagePolicy: Unsupported value");
    case("ports/0/containerPort", json!(0), "ports[0].containerPort: Required value");
    case(
        "ports/0/containerPort",
        json!(70000),
        "ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    );
    case("ports/0/hostPort", json!(-1), "ports[0].hostPort: Invalid value: -1");
    case("ports/0/hostIP", json!("here"), r#"ports[0].hostIP: Invalid value: "here": must be a valid IP address"#);
    case("ports/0/protocol", json!("ICMP"), "ports[0].protocol: Unsupported value");
    case(
        "ports/1",
        json!({"containerPort": 81, "hostPort": 8080}),
        r#"ports[1].hostPort: Duplicate value: "TCP//8080""#,
    );
    case("env/2", json!({"name": "A=B"}), r#"env[2].name: Invalid value: "A=B": a valid environment variable name"#);
    case("env/2", json!({"value": "x"}), "env[2].name: Required value");
    case("env/2", json!({"name": "X", "valueFrom": {}}), r#"env[2].valueFrom: Invalid value: "": must specify one of"#);
    case(
        "env/2",
        json!({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}),
        "env[2].valueFrom.fieldRef.fieldPath: Unsupported value",
    );
    case(
        "env/2",
        json!({"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "3"}}}),
        "env[2].valueFrom.resourceFieldRef.divisor: Invalid value",
    );
    case("volumeMounts/1", json!({"name": "gone", "mountPath": "/x"}), r#"volumeMounts[1].name: Not found: "gone""#);
    case(
        "volumeMounts/1",
        json!({"name": "tmp", "mountPath": "/data"}),
        r#"volumeMounts[1].mountPath: Invalid value: "/data": must be unique"#,
    );
    case(
        "volumeMounts/0/subPath",
        json!("/abs"),
        r#"volumeMounts[0].subPath: Invalid value: "/abs": must be a relative path"#,
    );
    case(
        "volumeMounts/0/subPath",
        json!("a/../b"),
        "volumeMounts[0].subPath: Invalid value: \"a/../b\": must not contain '..'",
    );
    case("volumeMounts/0/mountPropagation", json!("Bidirectional"), "volumeMounts[0].mountPropagation: Forbidden");
    case("volumeMounts/0/recursiveReadOnly", json!("Enabled"), "volumeMounts[0].recursiveReadOnly: Forbidden");
    case("livenessProbe", json!({}), "livenessProbe: Required value: must specify a handler type");
    case(
        "livenessProbe/exec",
        json!({"command": ["x"]}),
        "livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type",
    );
    case("livenessProbe/successThreshold", json!(2), "livenessProbe.successThreshold: Invalid value: 2: must be 1");
    case(
        "lifecycle/preStop/sleep/seconds",
        json!(31),
        "lifecycle.preStop.sleep: Invalid value: 31: must be non-negative",
    );
    case("lifecycle/stopSignal", json!("SIGTERM"), "lifecycle.stopSignal: Forbidden");
    case(
        "restartPolicyRules",
        json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]),
        "restartPolicy: Required value",
    );
    broken(
        "/spec/initContainers/0/restartPolicy",
        json!(null),
        "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers",
    );
    let probe = json!({"tcpSocket": {"port": 1}});
    for (field, value) in [
        ("livenessProbe", probe.clone()),
        ("readinessProbe", probe.clone()),
        ("startupProbe", probe),
        ("lifecycle", json!({"preStop": {"exec": {"command": ["true"]}}})),
    ] {
        let forbidden = format!("spec.initContainers[1].{field}: Forbidden: may not be set for init containers");
        broken("/spec/initContainers/1", json!({"name": "first", "image": "f:1", field: value}), &forbidden);
    }
}

#[test]
fn a_file_of_variables_is_in_a_volume_of_the_pods_own() {
    let variable = |volume: &str, path: &str, key: &str| {
        let reference = json!({"volumeName": volume, "path": path, "key": key});
        json!({"name": "X", "valueFrom": {"fileKeyRef": reference}})
    };
    let case = |value: Value, expected: &str| {
        let expected = format!("spec.containers[0].env[2].valueFrom.fileKeyRef.{expected}");
        broken("/spec/containers/0/env/2", value, &expected);
    };
    case(variable("none", "a", "K"), r#"volumeName: Not found: "none""#);
    case(
        variable("data", "a", "K"),
        r#"volumeName: Invalid value: "data": referenced volume must be of type emptyDir"#,
    );
    case(variable("tmp", "", "K"), "path: Required value");
    case(variable("tmp", "a/../b", "K"), r#"path: Invalid value: "a/../b": must not contain '..'"#);
    case(variable("tmp", "a", ""), "key: Required value");
    case(variable("tmp", "a", "K="), r#"key: Invalid value: "K=": a valid environment variable name"#);
    let mut pod = healthy();
    pod["spec"]["containers"][0]["env"].as_array_mut().unwrap().push(variable("tmp", "a/b", "K"));
    assert_eq!(errors(pod), Vec::<String>::new());
}

#[test]
fn resources_are_checked() {
    let case = |pointer: &str, value: Value, expected: &str| {
        broken(
            &format!("/spec/containers/0/resources/{pointer}"),
            value,
            &format!("spec.containers[0].resources.{expected}"),
        );
    };
    case("requests/cpu", json!("2"), r#"requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#);
    case("limits/memory", json!("64Mb"), r#"limits[memory]: Invalid value: "64Mb": quantities must match"#);
    case("requests/cpu", json!("-1"), r#"requests[cpu]: Invalid value: "-1": must be greater than or equal to 0"#);
    case(
        "limits/storage",
        json!("1"),
        r#"limits[storage]: Invalid value: "storage": must be a standard resource for containers"#,
    );
    case(
        "requests",
        json!({"example.com/gpu": "1"}),
        "limits: Required value: Limit must be set for non overcommitable resources",
    );
    case(
        "limits",
        json!({"requests.example.com/gpu": "1"}),
        r#"limits[requests.example.com/gpu]: Invalid value: "requests.example.com/gpu": doesn't follow extended resource name standard"#,
    );
    case(
        "limits",
        json!({"example.com/gpu": "500m"}),
        r#"limits[example.com/gpu]: Invalid value: "500m": must be an integer"#,
    );
}

#[test]
fn volumes_have_one_source_and_a_safe_path() {
    broken(
        "/spec/volumes/0/emptyDir",
        json!({}),
        "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
    );
    broken(
        "/spec/volumes/0/hostPath/path",
        json!("/a/../b"),
        "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
    );
    broken("/spec/volumes/0/hostPath/type", json!("Pipe"), "spec.volumes[0].hostPath.type: Unsupported value");
    let image = json!({"name": "v", "image": {"pullPolicy": "Never"}});
    broken("/spec/volumes/2", image, "spec.volumes[2].image.reference: Required value");
    let image = json!({"name": "v", "image": {"reference": "x", "pullPolicy": "Once"}});
    broken("/spec/volumes/2", image, "spec.volumes[2].image.pullPolicy: Unsupported value");
    let nfs = json!({"name": "v", "nfs": {"server": "s", "path": "export"}});
    broken("/spec/volumes/2", nfs, r#"spec.volumes[2].nfs.path: Invalid value: "export": must be an absolute path"#);
    let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": ""}});
    broken("/spec/volumes/2", claim, "spec.volumes[2].persistentVolumeClaim.claimName: Required value");
    let own = json!({"name": "v", "ephemeral": {}});
    broken("/spec/volumes/2", own, "spec.volumes[2].ephemeral.volumeClaimTemplate: Required value");
    let spec = json!({"resources": {"requests": {"storage": "1Gi"}}});
    let own = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}});
    let modes = "spec.volumes[2].ephemeral.volumeClaimTemplate.spec.accessModes: Required value";
    broken("/spec/volumes/2", own, modes);
    let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let own = |metadata: Value| json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"metadata": metadata, "spec": spec}}});
    let metadata = "spec.volumes[2].ephemeral.volumeClaimTemplate.metadata";
    broken("/spec/volumes/2", own(json!({"name": "data"})), &format!("{metadata}.name: Forbidden: cannot be set"));
    let owners = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]);
    let forbidden = format!("{metadata}.ownerReferences: Forbidden: cannot be set");
    broken("/spec/volumes/2", own(json!({"ownerReferences": owners})), &forbidden);
    broken("/spec/volumes/2", own(json!({"labels": {"a": "b c"}})), &format!("{metadata}.labels: Invalid value"));
    let mut pod = healthy();
    let fine = own(json!({"labels": {"a": "b"}, "annotations": {"c": "d e"}, "name": ""}));
    pod["spec"]["volumes"].as_array_mut().unwrap().push(fine);
    assert_eq!(errors(pod), [""; 0]);
    let device = json!([{"name": "tmp", "devicePath": "/dev/x"}]);
    let refused = r#"spec.containers[0].volumeDevices[0].name: Invalid value: "tmp": can only use volume source type"#;
    broken("/spec/containers/0/volumeDevices", device, refused);
    broken("/spec/volumes/2", json!({"name": "tmp"}), r#"spec.volumes[2].name: Duplicate value: "tmp""#);
    broken("/spec/volumes/1/emptyDir", json!({"sizeLimit": "-1"}), "spec.volumes[1].emptyDir.sizeLimit: Forbidden");
    broken("/spec/volumes/2", json!({"name": "Data"}), "spec.volumes[2].name: Invalid value");
}

#[test]
fn the_rest_of_the_spec_is_checked() {
    broken(
        "/spec/restartPolicy",
        json!("Sometimes"),
        r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
    );
    broken("/spec/dnsPolicy", json!("Mine"), "spec.dnsPolicy: Unsupported value");
    broken("/spec/dnsConfig/nameservers", json!(["10.0.0.256"]), "spec.dnsConfig.nameservers[0]: Invalid value");
    broken(
        "/spec/dnsConfig/nameservers",
        json!(["::1", "::2", "::3", "::4"]),
        "spec.dnsConfig.nameservers: Invalid value",
    );
    broken("/spec/dnsConfig/searches", json!(["Exa mple"]), "spec.dnsConfig.searches[0]: Invalid value");
    broken("/spec/hostname", json!("a.b"), "spec.hostname: Invalid value");
    broken("/spec/subdomain", json!("_"), "spec.subdomain: Invalid value");
    broken("/spec/hostAliases/0/ip", json!("x"), "spec.hostAliases[0].ip: Invalid value");
    broken("/spec/hostAliases/0/hostnames", json!(["A"]), "spec.hostAliases[0].hostnames[0]: Invalid value");
    broken(
        "/spec/activeDeadlineSeconds",
        json!(0),
        "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
    );
    broken("/spec/os", json!({"name": "plan9"}), "spec.os.name: Unsupported value");
    broken(
        "/spec/ephemeralContainers",
        json!([{"name": "d", "image": "d"}]),
        "spec.ephemeralContainers: Forbidden: cannot be set on create",
    );
    broken(
        "/spec/tolerations",
        json!([{"key": "a", "operator": "Exists", "value": "b"}]),
        "spec.tolerations[0].operator: Invalid value",
    );
    broken("/spec/nodeSelector", json!({"a": "b c"}), "spec.nodeSelector: Invalid value");
    let gates = "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared";
    let mut pod = healthy();
    pod["spec"]["nodeName"] = json!("n");
    pod["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    assert_eq!(errors(pod), [gates]);
    let mut pod = healthy();
    pod["spec"]["dnsPolicy"] = json!("None");
    pod["spec"]["dnsConfig"] = json!(null);
    assert_eq!(errors(pod), ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]);
}

#[test]
fn security_contexts_are_checked() {
    broken(
        "/spec/securityContext/runAsUser",
        json!(-1),
        "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
    );
    broken(
        "/spec/securityContext/sysctls/1",
        json!({"name": "net/core/somaxconn", "value": "2"}),
        r#"spec.securityContext.sysctls[1].name: Duplicate value: "net/core/somaxconn""#,
    );
    broken(
        "/spec/securityContext/sysctls/1",
        json!({"name": "../x", "value": "2"}),
        "spec.securityContext.sysctls[1].name: Invalid value",
    );
    broken(
        "/spec/securityContext/seccompProfile",
        json!({"type": "Localhost", "localhostProfile": "../x"}),
        "spec.securityContext.seccompProfile.localhostProfile: Invalid value",
    );
    broken(
        "/spec/securityContext/seccompProfile",
        json!({"type": "Strict"}),
        "spec.securityContext.seccompProfile.type: Unsupported value",
    );
    let container = "/spec/containers/0/securityContext";
    broken(
        container,
        json!({"privileged": true, "allowPrivilegeEscalation": false}),
        "spec.containers[0].securityContext.privileged: Invalid value: true: cannot set",
    );
    broken(
        container,
        json!({"capabilities": {"add": ["SYS_ADMIN"]}, "allowPrivilegeEscalation": false}),
        "spec.containers[0].securityContext.allowPrivilegeEscalation: Invalid value: false",
    );
    broken(container, json!({"procMount": "Unmasked"}), "spec.containers[0].securityContext.procMount: Invalid value");
    let mut pod = healthy();
    pod["spec"]["hostPID"] = json!(true);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    assert_eq!(
        errors(pod),
        ["spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled"]
    );
    let mut pod = healthy();
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["containers"][0]["ports"][0]["hostPort"] = json!(8080);
    assert_eq!(
        errors(pod),
        [
            "spec.containers[0].ports[0].hostPort: Invalid value: 8080: must match `containerPort` when `hostNetwork` is true",
            r#"spec.securityContext.sysctls[0].name: Invalid value: "net.core.somaxconn": may not be specified when 'hostNetwork' is true"#,
        ]
    );
}
