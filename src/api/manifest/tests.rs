use proptest::prelude::*;

use super::*;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec:\n  containers:\n  - name: app\n    image: nginx\n";

const USABLE: &str = "v1 Pod, ConfigMap, Secret, ServiceAccount, Service, PersistentVolumeClaim, PersistentVolume, \
    node.k8s.io/v1 RuntimeClass, storage.k8s.io/v1 CSIDriver and lists of them";

fn only(text: &str) -> Decoded {
    let mut all = decode_manifest(text.as_bytes());
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

fn pod(decoded: Decoded) -> Pod {
    match decoded.item.unwrap() {
        Item::Pod(pod) => *pod,
        Item::Object(object) => panic!("{} instead of a pod", object.key()),
    }
}

fn error(text: &str) -> String {
    only(text).item.unwrap_err().to_string()
}

#[test]
fn yaml_and_json_give_the_same_pod() {
    let yaml = only(POD);
    let json = only(
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop"},
            "spec":{"containers":[{"name":"app","image":"nginx"}]}}"#,
    );
    assert_eq!(yaml, json);
    assert_eq!(yaml.name.as_deref(), Some("shop/web"));
    assert_eq!(
        pod(only("{apiVersion: v1, kind: Pod, spec: {hostNetwork: yes}}")).spec.unwrap().host_network,
        Some(true)
    );
}

#[test]
fn octal_modes_and_old_booleans_are_read_as_upstream_reads_them() {
    let text = "apiVersion: v1\nkind: Pod\nspec:\n  hostPID: on\n  volumes:\n  - name: v\n    secret: {secretName: s, defaultMode: 0644}\n";
    let spec = pod(only(text)).spec.unwrap();
    assert_eq!(spec.host_pid, Some(true));
    assert_eq!(spec.volumes.unwrap()[0].secret.as_ref().unwrap().default_mode, Some(0o644));
}

#[test]
fn documents_are_independent_of_each_other() {
    let text = format!("# first\n---\n{POD}---\nkind: [\n--- # comment\n---\n{}...\n", POD.replace("web", "db"));
    let all = decode_manifest(text.as_bytes());
    let documents: Vec<_> = all.iter().map(|one| (one.document, one.item.is_ok())).collect();
    assert_eq!(documents, [(Some(0), true), (Some(1), false), (Some(2), true)]);
    let message = all[1].item.as_ref().unwrap_err().to_string();
    assert!(message.starts_with("invalid YAML: ") && message.contains("line 1"), "{message}");
}

#[test]
fn lists_are_taken_apart() {
    let item = POD.lines().map(|line| format!("  {line}\n")).collect::<String>().replacen("  ", "- ", 1);
    for kind in ["List", "PodList"] {
        let text = format!(
            "apiVersion: v1\nkind: {kind}\nitems:\n{item}- {{metadata: {{name: bare}}, spec: {{x: 1}}}}\n- {{apiVersion: v1, kind: Node}}\n"
        );
        let all = decode_manifest(text.as_bytes());
        assert_eq!(all[0].name.as_deref(), Some("shop/web"));
        assert!(all[1].item.is_ok());
        assert_eq!(all[1].warnings, [r#"unknown field "items[1].spec.x""#]);
        assert_eq!(
            all[2].item.as_ref().unwrap_err().to_string(),
            format!(
                r#"items[2]: kind "Node" of apiVersion "v1" cannot be used by a node: only {} can"#,
                if kind == "List" { USABLE } else { "v1 Pod" }
            )
        );
    }
    assert!(decode_manifest(b"apiVersion: v1\nkind: List\nitems: []\n").is_empty());
    assert!(decode_manifest(b"apiVersion: v1\nkind: List\n").is_empty());
}

#[test]
fn bad_input_gets_a_clear_error() {
    for (text, message) in [
        ("", "the manifest is empty"),
        ("# nothing\n---\n\n", "the manifest is empty"),
        ("hello", "expected a Kubernetes object, found a string"),
        ("- a", "expected a Kubernetes object, found a sequence"),
        ("metadata: {name: a}", "apiVersion: Required value"),
        ("apiVersion: v1", "kind: Required value"),
        (
            "apiVersion: apps/v1\nkind: Deployment",
            &format!(r#"kind "Deployment" of apiVersion "apps/v1" cannot be used by a node: only {USABLE} can"#),
        ),
        ("apiVersion: v1\nkind: List\nitems: 3", "items: expected a sequence, found a number"),
        (
            "apiVersion: v1\nkind: Pod\nspec: {containers: [{ports: [{containerPort: http}]}]}",
            r#"spec.containers[0].ports[0].containerPort: invalid type: string "http", expected i32"#,
        ),
        (r#"{"apiVersion": "v1", "kind": "Po"#, "invalid JSON: EOF while parsing a string at line 1 column 32"),
    ] {
        assert_eq!(error(text), message, "{text}");
    }
    assert_eq!(decode_manifest(b"a: \xff")[0].item, Err(ManifestError::NotText(3)));
    assert_eq!(
        decode_manifest(&vec![b' '; MAX_BYTES + 1])[0].item,
        Err(ManifestError::TooLarge { size: MAX_BYTES + 1 })
    );
    assert_eq!(decode_manifest("---\n".repeat(2000).as_bytes())[0].item, Err(ManifestError::TooManyDocuments));
}

#[test]
fn syntax_errors_give_the_line_of_the_file() {
    let text = format!("{POD}---\napiVersion: v1\nkind: Pod\nspec: {{\n");
    let all = decode_manifest(text.as_bytes());
    let message = all[1].item.as_ref().unwrap_err().to_string();
    assert!(message.contains("line 11") || message.contains("line 12"), "{message}");
}

#[test]
fn repeated_and_unknown_fields_are_warned_about() {
    let decoded = only(&POD.replace("image: nginx", "image: nginx\n    imge: x\n    image: other"));
    assert_eq!(decoded.warnings.len(), 2, "{:?}", decoded.warnings);
    assert!(
        decoded.warnings[0].contains("duplicate") && decoded.warnings[0].contains("image"),
        "{:?}",
        decoded.warnings
    );
    assert_eq!(decoded.warnings[1], r#"unknown field "spec.containers[0].imge""#);
    assert_eq!(pod(decoded).spec.unwrap().containers[0].image.as_deref(), Some("other"));
}

#[test]
fn repeated_keys_of_json_are_warned_about_too() {
    let text = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "name": "b"}, "kind": "Pod"}"#;
    let decoded = only(text);
    assert_eq!(
        decoded.warnings,
        [r#"duplicate field "metadata.name"; the last one is used"#, r#"duplicate field "kind"; the last one is used"#,]
    );
    assert_eq!(pod(decoded).metadata.name.as_deref(), Some("b"));
}

#[test]
fn objects_stand_beside_pods() {
    let text = format!(
        "{POD}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings, namespace: shop}}\ndata: {{a: b}}\ndatta: {{}}\n\
         ---\napiVersion: node.k8s.io/v1\nkind: RuntimeClassList\nitems:\n- {{metadata: {{name: x}}, handler: h}}\n\
         - {{apiVersion: v1, kind: Pod}}\n---\napiVersion: v1\nkind: RuntimeClass\n"
    );
    let all = decode_manifest(text.as_bytes());
    let names: Vec<_> = all.iter().map(|one| one.name.as_deref().unwrap_or_default()).collect();
    assert_eq!(names, ["shop/web", "ConfigMap shop/settings", "RuntimeClass x", "", ""]);
    assert_eq!(all[1].warnings, [r#"unknown field "datta""#]);
    assert!(matches!(&all[2].item, Ok(Item::Object(Object::RuntimeClass(class))) if class.handler == "h"));
    assert_eq!(
        all[3].item.as_ref().unwrap_err().to_string(),
        r#"items[1]: kind "Pod" of apiVersion "v1" cannot be used by a node: only node.k8s.io/v1 RuntimeClass can"#
    );
    assert!(all[4].item.is_err(), "a kind belongs to its apiVersion");
}

#[test]
fn alias_bombs_and_deep_nesting_are_refused() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let previous = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [previous.as_str(); 10].join(",")));
    }
    assert!(error(&bomb).starts_with("invalid YAML"), "{}", error(&bomb));
    assert!(error(&format!("a: {}", "[".repeat(10_000))).starts_with("invalid YAML"));
    assert!(error(&"{\"a\":".repeat(10_000)).starts_with("invalid JSON"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_manifest(&bytes);
    }

    #[test]
    fn no_damaged_manifest_makes_it_panic(cut in 0usize..120, at in 0usize..120, junk in "[-{}\\[\\]:,&*!|>'\"%@`\n\t a1]{0,8}") {
        let mut text = POD.to_owned();
        text.truncate(cut.max(1).min(POD.len()));
        text.insert_str(at.min(text.len()), &junk);
        decode_manifest(text.as_bytes());
    }
}
