//! docs/support.md says what is refused: every field the code refuses or warns about has to be there.

use std::{collections::BTreeSet, fs, path::Path};

use berth::api::unsupported::unsupported;
use serde_json::{Value, json};

/// A pod in which everything is set that berth does not honour. What cannot be set together is in a second one.
fn pods() -> Vec<Value> {
    let container = json!({
        "name": "app",
        "resources": {
            "claims": [{"name": "x"}],
            "limits": {"kubernetes.io/device": "1"},
            "requests": {"kubernetes.io/other": "1"},
        },
        "securityContext": {
            "seLinuxOptions": {"level": "s0"}, "windowsOptions": {},
        },
    });
    let kinds = [
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "csi",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "glusterfs",
        "iscsi",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ];
    let mut volumes: Vec<Value> = kinds.iter().map(|kind| json!({"name": "v", *kind: {}})).collect();
    let sources = json!([
        {"clusterTrustBundle": {"path": "p"}}, {"podCertificate": {"signerName": "s", "keyType": "k"}},
    ]);
    volumes.push(json!({"name": "v", "projected": {"sources": sources}}));
    let source = json!({"kind": "k", "name": "n"});
    let claim = json!({"dataSource": source, "dataSourceRef": source});
    volumes.push(json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}));
    vec![json!({
        "metadata": {"name": "p"},
        "spec": {
            "containers": [container],
            "ephemeralContainers": [{"name": "debug", "securityContext": {"seLinuxOptions": {"level": "s0"}}}],
            "os": {"name": "windows"},
            "resourceClaims": [{"name": "x"}], "resources": {"claims": [{"name": "x"}]}, "runtimeClassName": "x",
            "securityContext": {
                "seLinuxOptions": {"level": "s0"}, "windowsOptions": {},
            },
            "volumes": volumes,
        },
    })]
}

/// A path as the documentation has it: without `spec.`, without what stands in brackets.
fn documented(field: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0;
    for character in field.chars() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ if depth == 0 => plain.push(character),
            _ => {}
        }
    }
    plain.trim_start_matches("spec.").to_owned()
}

#[test]
fn what_the_code_does_not_honour_is_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/support.md");
    let text = fs::read_to_string(path).expect("docs/support.md");
    let mut fields = BTreeSet::new();
    for pod in pods() {
        let pod = serde_json::from_value(pod).expect("a pod");
        fields.extend(unsupported(&pod).iter().map(|issue| documented(&issue.field)));
    }
    assert!(fields.len() > 20, "only {}: {fields:?}", fields.len());
    let missing: Vec<&String> = fields.iter().filter(|field| !text.contains(&format!("`{field}`"))).collect();
    assert!(missing.is_empty(), "not in docs/support.md: {missing:?}");
}
