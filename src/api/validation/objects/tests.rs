use serde_json::{Value, json};

use super::*;
use crate::api::{object::ObjectKind, object_defaults::set_object_defaults};

fn object(kind: ObjectKind, mut value: Value) -> Object {
    if value.get("metadata").is_none() {
        value["metadata"] = json!({"name": "a", "namespace": "n"});
        if !kind.is_namespaced() {
            value["metadata"] = json!({"name": "a"});
        }
    }
    let mut object = Object::decode(kind, &value, "").object.unwrap();
    set_object_defaults(&mut object);
    object
}

fn errors(kind: ObjectKind, value: Value) -> Vec<String> {
    validate_object(&object(kind, value)).iter().map(ToString::to_string).collect()
}

#[test]
fn healthy_objects_have_no_errors() {
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let volume =
        json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/srv"}});
    for (kind, value) in [
        (
            ObjectKind::ConfigMap,
            json!({"data": {"a.b": "1", "_": "2"}, "binaryData": {"c": "AA=="}, "immutable": true}),
        ),
        (ObjectKind::Secret, json!({"stringData": {"password": "x"}})),
        (ObjectKind::Secret, json!({"type": "kubernetes.io/basic-auth", "stringData": {"password": "x"}})),
        (
            ObjectKind::Secret,
            json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "{}"}}),
        ),
        (ObjectKind::ServiceAccount, json!({"imagePullSecrets": [{"name": "x"}]})),
        (ObjectKind::Service, json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}})),
        (ObjectKind::Service, json!({"spec": {"clusterIP": "None"}})),
        (ObjectKind::Service, json!({"spec": {"type": "ExternalName", "externalName": "a.example."}})),
        (ObjectKind::PersistentVolumeClaim, json!({"spec": claim})),
        (ObjectKind::PersistentVolume, json!({"spec": volume})),
        (ObjectKind::RuntimeClass, json!({"handler": "berth"})),
        (ObjectKind::CsiDriver, json!({"metadata": {"name": "hostpath.csi.k8s.io"}, "spec": {}})),
        (ObjectKind::ClusterTrustBundle, trust("roots", "", &[anchor(1), anchor(2)])),
        (ObjectKind::ClusterTrustBundle, trust("a.example:signer:roots", "a.example/signer", &[anchor(1)])),
    ] {
        assert_eq!(errors(kind, value), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn what_is_wrong_is_told_by_field() {
    let big = "x".repeat(MAX_DATA / 2 + 1);
    let cases = [
        (
            ObjectKind::ConfigMap,
            json!({"data": {"a": big, "b": big}}),
            vec!["data: Too long: may not be more than 1048576 bytes"],
        ),
        (
            ObjectKind::ConfigMap,
            json!({"data": {"a": ""}, "binaryData": {"a": "", "..": ""}}),
            vec![
                "data[a]: Invalid value: \"a\": duplicate of key present in binaryData",
                "binaryData[..]: Invalid value: \"..\": must not be or begin with '..'",
            ],
        ),
        (
            ObjectKind::Secret,
            json!({"type": "kubernetes.io/tls"}),
            vec!["data[tls.crt]: Required value", "data[tls.key]: Required value"],
        ),
        (
            ObjectKind::Secret,
            json!({"type": "kubernetes.io/dockercfg", "stringData": {".dockercfg": "hunter2"}}),
            vec!["data[.dockercfg]: Invalid value: \"<secret contents redacted>\": expected value at line 1 column 1"],
        ),
        (ObjectKind::Secret, json!({"type": "kubernetes.io/ssh-auth"}), vec!["data[ssh-privatekey]: Required value"]),
        (
            ObjectKind::Secret,
            json!({"type": "kubernetes.io/service-account-token"}),
            vec!["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
        ),
        (ObjectKind::Service, json!({"spec": {}}), vec!["spec.ports: Required value"]),
        (
            ObjectKind::Service,
            json!({"spec": {"clusterIP": "x", "ports": [{"port": 0, "protocol": "X"}]}}),
            vec![
                "spec.clusterIPs: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        ),
        (
            ObjectKind::PersistentVolumeClaim,
            json!({"spec": {"accessModes": []}}),
            vec![
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
        ),
        (
            ObjectKind::PersistentVolume,
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "0"}, "local": {"path": "/a/../b"}, "nfs": {"server": "s", "path": "/"}}}),
            vec![
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                "spec: Forbidden: may not specify more than 1 volume type",
                "spec.local.path: Invalid value: \"/a/../b\": must not contain '..'",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ],
        ),
        (ObjectKind::RuntimeClass, json!({"handler": ""}), vec!["handler: Required value"]),
        (
            ObjectKind::CsiDriver,
            json!({"spec": {"tokenRequests": [{"audience": "x", "expirationSeconds": 5}]}}),
            vec![
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
            ],
        ),
        (
            ObjectKind::RuntimeClass,
            json!({"metadata": {"name": "a", "namespace": "b"}, "handler": "x"}),
            vec!["metadata.namespace: Forbidden: not allowed on this type"],
        ),
    ];
    for (kind, value, expected) in cases {
        assert_eq!(errors(kind, value), expected, "{kind}");
    }
    let named = errors(
        ObjectKind::Service,
        json!({"metadata": {"name": "1a", "namespace": "n"}, "spec": {"clusterIP": "None"}}),
    );
    assert!(named[0].starts_with("metadata.name: Invalid value: \"1a\": a DNS-1035 label"), "{named:?}");
}

#[test]
fn an_immutable_object_stays_what_it_is() {
    let map = |data: &str, immutable: bool| {
        object(ObjectKind::ConfigMap, json!({"data": {"k": data}, "immutable": immutable}))
    };
    let changes = |new: &Object, old: &Object| -> Vec<String> {
        validate_object_update(new, old).iter().map(ToString::to_string).collect()
    };
    assert!(changes(&map("2", false), &map("1", false)).is_empty());
    assert!(changes(&map("2", true), &map("1", false)).is_empty());
    assert!(changes(&map("1", true), &map("1", true)).is_empty());
    assert_eq!(
        changes(&map("2", false), &map("1", true)),
        [
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set",
        ]
    );
    let secret = |text: &str, kind: &str| {
        object(ObjectKind::Secret, json!({"stringData": {"k": text}, "type": kind, "immutable": true}))
    };
    assert_eq!(
        changes(&secret("2", "b"), &secret("1", "a")),
        [
            "type: Invalid value: \"b\": field is immutable",
            "data: Forbidden: field is immutable when `immutable` is set",
        ]
    );
}

/// Something that looks like a certificate from outside.
fn anchor(number: u8) -> String {
    crate::api::pem::certificate(&[0x30, 1, number])
}

fn trust(name: &str, signer: &str, anchors: &[String]) -> Value {
    json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": anchors.concat()}})
}

#[test]
fn a_trust_bundle_has_certificates_and_the_name_of_its_signer() {
    let case = |name: &str, signer: &str, anchors: &[String], expected: &[&str]| {
        let found = errors(ObjectKind::ClusterTrustBundle, trust(name, signer, anchors));
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(found, expected)| found.contains(expected)), "{found:?}");
    };
    case("a:b", "", &[anchor(1)], &["without signer name must not have \":\" in its name"]);
    case("roots", "a.example/s", &[anchor(1)], &["must be named with prefix a.example:s:"]);
    case("roots", "", &[], &["at least one trust anchor must be provided"]);
    case("roots", "", &[anchor(1), anchor(2), anchor(1)], &["duplicate trust anchor (indices [0 2])"]);
    case("roots", "", &[anchor(1), anchor(2).replace("CERTIFICATE", "KEY")], &["entry 1 has bad block type: KEY"]);
    case("roots", "", &[anchor(1).replacen('\n', "\nA: b\n\n", 1)], &["entry 0 has PEM block headers"]);
    case("roots", "", &[crate::api::pem::certificate(b"x")], &["entry 0 does not parse as X.509"]);
}
