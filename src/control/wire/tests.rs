use proptest::prelude::*;

use super::{table::MESSAGES, *};
use crate::control::types::ALL;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw), bytes(3, b""), bytes(4, b"")].concat()
}

#[test]
fn what_kubectl_sends_for_whoami_is_understood() {
    let sent = [
        0x6b, 0x38, 0x73, 0x00, 0x0a, 0x2d, 0x0a, 0x18, 0x61, 0x75, 0x74, 0x68, 0x65, 0x6e, 0x74, 0x69, 0x63, 0x61,
        0x74, 0x69, 0x6f, 0x6e, 0x2e, 0x6b, 0x38, 0x73, 0x2e, 0x69, 0x6f, 0x2f, 0x76, 0x31, 0x12, 0x11, 0x53, 0x65,
        0x6c, 0x66, 0x53, 0x75, 0x62, 0x6a, 0x65, 0x63, 0x74, 0x52, 0x65, 0x76, 0x69, 0x65, 0x77, 0x12, 0x1a, 0x0a,
        0x10, 0x0a, 0x00, 0x12, 0x00, 0x1a, 0x00, 0x22, 0x00, 0x2a, 0x00, 0x32, 0x00, 0x38, 0x00, 0x42, 0x00, 0x12,
        0x06, 0x0a, 0x04, 0x0a, 0x00, 0x12, 0x00, 0x1a, 0x00, 0x22, 0x00,
    ];
    assert_eq!(
        decode(&sent).unwrap(),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "status": {"userInfo": {}}})
    );
}

#[test]
fn fields_of_every_form_become_what_they_are_in_json() {
    let time = [number(1, 1_767_225_600), number(2, 5)].concat();
    let label = [bytes(1, b"app"), bytes(2, b"web")].concat();
    let metadata = [bytes(1, b"a"), bytes(2, b""), bytes(8, &time), bytes(9, b""), bytes(11, &label)].concat();
    let cpu = [bytes(1, b"cpu"), bytes(2, &bytes(1, b"500m"))].concat();
    let port = [number(2, 0), number(3, 80), bytes(4, b"TCP")].concat();
    let get = [bytes(1, b"/"), bytes(2, &[number(1, 1), number(2, 0), bytes(3, b"http")].concat())].concat();
    let probe = [bytes(1, &bytes(2, &get)), number(2, 0), number(6, 3)].concat();
    let container = [
        bytes(1, b"c"),
        bytes(3, b"sh"),
        bytes(3, b"-c"),
        bytes(6, &port),
        bytes(8, &bytes(1, &cpu)),
        bytes(10, &probe),
        number(16, 0),
    ]
    .concat();
    let secret = [bytes(1, b"v"), bytes(2, &bytes(6, &[bytes(1, b"s"), number(3, 0o644)].concat()))].concat();
    let spec = [bytes(1, &secret), bytes(2, &container), number(4, 0), number(11, 0)].concat();
    let pod = [bytes(1, &metadata), bytes(2, &spec), bytes(3, b"")].concat();
    assert_eq!(
        decode(&envelope("v1", "Pod", &pod)).unwrap(),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web"}},
            "spec": {
                "volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 0o644}}],
                "containers": [{
                    "name": "c", "command": ["sh", "-c"], "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "500m"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "failureThreshold": 3},
                }],
                "terminationGracePeriodSeconds": 0,
            },
        })
    );
    let secret = [bytes(2, &[bytes(1, b"pin"), bytes(2, b"\x00\xff")].concat()), bytes(3, b"Opaque")].concat();
    assert_eq!(decode(&envelope("v1", "Secret", &secret)).unwrap()["data"], json!({"pin": "AP8="}));
    let lease = bytes(2, &bytes(4, &[number(1, 1_767_225_600), number(2, 123_456_789)].concat()));
    let lease = decode(&envelope("coordination.k8s.io/v1", "Lease", &lease)).unwrap();
    assert_eq!(lease["spec"]["renewTime"], "2026-01-01T00:00:00.123456Z");
    // A pointer to zero is a choice.
    let deployment = decode(&envelope("apps/v1", "Deployment", &bytes(2, &number(1, 0)))).unwrap();
    assert_eq!(deployment["spec"]["replicas"], 0);
    let options = decode(&envelope("v1", "DeleteOptions", &[number(1, 5), bytes(4, b"Foreground")].concat())).unwrap();
    assert_eq!((&options["gracePeriodSeconds"], &options["propagationPolicy"]), (&json!(5), &json!("Foreground")));
    let negative = decode(&envelope("v1", "DeleteOptions", &number(1, (-1_i64).cast_unsigned()))).unwrap();
    assert_eq!(negative["gracePeriodSeconds"], -1);
}

#[test]
fn what_is_no_object_is_refused() {
    for (body, error) in [
        (b"{}".to_vec(), WireError::Magic),
        (b"k8s\0\x0a".to_vec(), WireError::Malformed("the envelope")),
        (
            envelope("v1", "Nothing", b""),
            WireError::Unknown { api_version: "v1".to_owned(), kind: "Nothing".to_owned() },
        ),
        (envelope("v1", "Pod", b"\x0a\x05ab"), WireError::Malformed("core/v1.pod")),
        (envelope("v1", "Pod", &number(1, 1)), WireError::Malformed("core/v1.pod")),
        (envelope("v1", "Pod", &bytes(1, &bytes(1, b"\xff"))), WireError::Malformed("meta/v1.objectmeta")),
        ([MAGIC.to_vec(), bytes(3, b"gzip")].concat(), WireError::Content("gzip".to_owned())),
    ] {
        assert_eq!(decode(&body).unwrap_err(), error);
    }
}

#[test]
fn the_table_has_every_type_and_every_message_that_it_names() {
    for resource in ALL {
        assert!(table::root(&resource.api_version(), resource.kind).is_some(), "{resource:?}: make the table anew");
    }
    for (api_version, kind) in [("policy/v1", "Eviction"), ("autoscaling/v1", "Scale"), ("v1", "Binding")] {
        assert!(table::root(api_version, kind).is_some(), "{kind}");
    }
    for message in MESSAGES.values() {
        for field in &message.fields {
            if let Form::Message(name) = &field.form {
                assert!(table::message(name).is_ok(), "{}: {name}", message.name);
            }
        }
    }
    assert!(MESSAGES.len() > 250, "{}", MESSAGES.len());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(raw in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&envelope("v1", "Pod", &raw));
        let _ = decode(&[MAGIC, &raw].concat());
    }
}
