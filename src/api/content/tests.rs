//! Small volumes and the files that follow.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

const ALLOCATABLE: Allocatable = Allocatable { cpu_milli: 4000, memory: 1 << 33, ephemeral_storage: 10 };

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "web", "namespace": "prod", "uid": "u-1",
            "labels": {"zone": "b", "app": "shop"},
            "annotations": {"text": "a \"b\"\\c\n\u{1}é\u{a0}\u{301}'", "empty": ""},
        },
        "spec": {
            "containers": [{"name": "app", "resources": {"limits": {"cpu": "1500m"}}}, {"name": "free"}],
            "initContainers": [{"name": "first", "resources": {"requests": {"memory": "32Mi"}}}],
        },
    }))
    .unwrap()
}

fn objects() -> Objects {
    let mut objects = Objects::default();
    let key = |name: &str| ("prod".to_owned(), name.to_owned());
    let config =
        json!({"data": {"a": "one", "b": "two", "both": "text"}, "binaryData": {"raw": "AP8=", "both": "AA=="}});
    objects.config_maps.insert(key("config"), Arc::new(serde_json::from_value(config).unwrap()));
    objects.config_maps.insert(key("empty"), Arc::default());
    let bad = json!({"data": {"..data": "x"}});
    objects.config_maps.insert(key("bad"), Arc::new(serde_json::from_value(bad).unwrap()));
    let secret = json!({"data": {"user": "cm9vdA==", "password": "eA=="}});
    objects.secrets.insert(key("login"), Arc::new(serde_json::from_value(secret).unwrap()));
    objects
}

fn volume(source: Value) -> Volume {
    let mut source = source;
    source["name"] = json!("v");
    serde_json::from_value(source).unwrap()
}

/// `path mode content` per file, or the error.
fn files(source: Value) -> Result<Vec<String>, String> {
    files_of(&pod(), source)
}

fn files_of(pod: &Pod, source: Value) -> Result<Vec<String>, String> {
    let (objects, volume) = (objects(), volume(source));
    let input = ContentInput { pod, objects: &objects, allocatable: &ALLOCATABLE };
    let tokens: Tokens =
        token_requests(&volume).iter().map(|need| (need.source, format!("t{}", need.source))).collect();
    let payload = payload(&volume, &input, &tokens).map_err(|error| error.to_string())?;
    let line = |(path, file): (String, ContentFile)| {
        let owner = file.owner.map(|owner| format!(" owner {owner}")).unwrap_or_default();
        format!("{path} {:o} {}{owner}", file.mode, String::from_utf8_lossy(&file.bytes))
    };
    Ok(payload.into_iter().map(line).collect())
}

#[track_caller]
fn case(sentence: &str, source: Value, expected: Result<&[&str], &str>) {
    let expected = expected.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect()).map_err(str::to_owned);
    assert_eq!(files(source), expected, "{sentence}");
}

#[test]
fn objects_become_files() {
    let items = |items: Value| json!({"configMap": {"name": "config", "items": items}});
    case(
        "every key is a file, text before binary",
        json!({"configMap": {"name": "config"}}),
        Ok(&["a 644 one", "b 644 two", "both 644 text", "raw 644 \0\u{fffd}"]),
    );
    case("an object without keys", json!({"configMap": {"name": "empty"}}), Ok(&[]));
    case(
        "the volume's mode",
        json!({"secret": {"secretName": "login", "defaultMode": 0o400}}),
        Ok(&["password 400 x", "user 400 root"]),
    );
    case(
        "items choose keys, paths and modes",
        items(json!([{"key": "b", "path": "x/./y//b", "mode": 0o440}, {"key": "a", "path": "a"}])),
        Ok(&["a 644 one", "x/y/b 440 two"]),
    );
    case(
        "a key that is not there",
        items(json!([{"key": "none", "path": "x"}])),
        Err("configmap references non-existent config key: none"),
    );
    case(
        "a secret's key that is not there",
        json!({"secret": {"secretName": "login", "items": [{"key": "none", "path": "x"}]}}),
        Err("references non-existent secret key: none"),
    );
    case(
        "optional covers keys",
        json!({"configMap": {"name": "config", "optional": true, "items": [{"key": "none", "path": "x"}, {"key": "a", "path": "y"}]}}),
        Ok(&["y 644 one"]),
    );
    case("a missing object", json!({"configMap": {"name": "x"}}), Err("configmap \"x\" not found"));
    case("a missing secret", json!({"secret": {"secretName": "x"}}), Err("secret \"x\" not found"));
    case("an optional one", json!({"configMap": {"name": "x", "optional": true}}), Ok(&[]));
    case("an optional secret", json!({"secret": {"secretName": "x", "optional": true}}), Ok(&[]));
}

#[test]
fn files_stay_in_the_volume_and_out_of_the_writers_names() {
    let long = "n".repeat(256);
    for (path, error) in [
        ("/a", "must be relative path: /a"),
        ("a/../b", "must not contain '..': a/../b"),
        ("..", "must not contain '..': .."),
        ("..data", "must not start with '..': ..data"),
        ("./..data", "must not start with '..': ./..data"),
        ("", "must not be empty: \"\""),
        (".", "must name a file: ."),
        (&long, "filenames must be less than or equal to 255 characters"),
        (&"x/".repeat(2049), "must be less than or equal to 4096 characters"),
    ] {
        let source = json!({"configMap": {"name": "config", "items": [{"key": "a", "path": path}]}});
        case(path, source, Err(&format!("invalid path: {error}")));
    }
    let source = json!({"configMap": {"name": "config", "items": [{"key": "a", "path": "x/..data"}]}});
    case("below the top it is a name like others", source, Ok(&["x/..data 644 one"]));
    let bad = json!({"configMap": {"name": "bad"}});
    case("a key is a path, too", bad, Err("invalid path: must not start with '..': ..data"));
}

#[test]
fn the_downward_api_lists_what_it_is_asked_for() {
    let field = |path: &str| json!({"downwardAPI": {"items": [{"path": "f", "fieldRef": {"fieldPath": path}}]}});
    case("labels, sorted", field("metadata.labels"), Ok(&["f 644 app=\"shop\"\nzone=\"b\""]));
    case(
        "annotations, quoted",
        field("metadata.annotations"),
        Ok(&["f 644 empty=\"\"\ntext=\"a \\\"b\\\"\\\\c\\n\\x01é\\u00a0\u{301}'\""]),
    );
    case("one label", field("metadata.labels['zone']"), Ok(&["f 644 b"]));
    case("the name", field("metadata.name"), Ok(&["f 644 web"]));
    case("what is not a field", field("spec"), Err("unsupported fieldPath: spec"));
    let resource = |container: &str, resource: &str, divisor: &str| {
        let selector = json!({"containerName": container, "resource": resource, "divisor": divisor});
        json!({"downwardAPI": {"defaultMode": 0o400, "items": [{"path": "r", "resourceFieldRef": selector}]}})
    };
    case("a limit", resource("app", "limits.cpu", "1m"), Ok(&["r 400 1500"]));
    case("a limit that is not set", resource("free", "limits.cpu", "1"), Ok(&["r 400 4"]));
    case("an init container's", resource("first", "requests.memory", "1Mi"), Ok(&["r 400 32"]));
    case("of nobody", resource("nobody", "limits.cpu", "1"), Err("container nobody not found"));
    let mut none = pod();
    (none.metadata.labels, none.metadata.annotations) = (None, None);
    assert_eq!(files_of(&none, field("metadata.labels")), Ok(vec!["f 644 ".to_owned()]));
}

fn everything() -> Value {
    json!({"projected": {"defaultMode": 0o440, "sources": [
        {"secret": {"name": "login", "items": [{"key": "user", "path": "login/user", "mode": 0o400}]}},
        {"configMap": {"name": "config", "items": [{"key": "a", "path": "a"}]}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}},
        {"serviceAccountToken": {"path": "a"}},
    ]}})
}

#[test]
fn a_projected_volume_joins_its_sources() {
    case(
        "later ones over earlier ones",
        everything(),
        Ok(&["a 440 t4", "login/user 400 root", "name 440 web", "token 440 t3"]),
    );
    let requests = token_requests(&volume(everything()));
    let asked: Vec<_> =
        requests.iter().map(|one| (one.source, one.audience.as_str(), one.expiration_seconds)).collect();
    assert_eq!(asked, [(3, "vault", 600), (4, "", 3600)]);
    let missing = json!({"projected": {"sources": [
        {"secret": {"name": "x"}}, {"configMap": {"name": "y"}}, {"configMap": {"name": "z", "optional": true}},
    ]}});
    case("all that is missing", missing, Err("[secret \"x\" not found, configmap \"y\" not found]"));
    let one = json!({"projected": {"sources": [{"secret": {"name": "x"}}, {"configMap": {"name": "config"}}]}});
    case("one that is missing", one, Err("secret \"x\" not found"));
}

#[test]
fn a_token_belongs_to_the_user_of_all_containers_or_the_group() {
    let token = json!({"projected": {"defaultMode": 0o644, "sources": [{"serviceAccountToken": {"path": "token"}}]}});
    for (sentence, of_pod, of_app, of_free, expected) in [
        ("nobody says", json!({}), json!({}), json!({}), "token 644 t0"),
        ("the pod says", json!({"runAsUser": 7}), json!({}), json!({}), "token 600 t0 owner 7"),
        ("one container differs", json!({"runAsUser": 7}), json!({"runAsUser": 8}), json!({}), "token 644 t0"),
        ("not all say", json!({}), json!({"runAsUser": 7}), json!({}), "token 644 t0"),
        ("there is a group", json!({"fsGroup": 9}), json!({}), json!({}), "token 600 t0"),
    ] {
        let mut pod = serde_json::to_value(pod()).unwrap();
        pod["spec"]["securityContext"] = of_pod;
        pod["spec"]["containers"][0]["securityContext"] = of_app;
        pod["spec"]["containers"][1]["securityContext"] = of_free;
        let pod = serde_json::from_value(pod).unwrap();
        assert_eq!(files_of(&pod, token.clone()), Ok(vec![expected.to_owned()]), "{sentence}");
    }
}

#[test]
fn the_version_follows_the_content_and_nothing_else() {
    let base = objects();
    let version_of = |pod: &Pod, objects: &Objects, source: Value| {
        version(&volume(source), &ContentInput { pod, objects, allocatable: &ALLOCATABLE })
    };
    let version = |objects: &Objects, source: Value| version_of(&pod(), objects, source);
    let change = |name: &str, data: Value| {
        let mut changed = base.clone();
        let object = serde_json::from_value(json!({"metadata": {"resourceVersion": "2"}, "data": data})).unwrap();
        changed.config_maps.insert(("prod".to_owned(), name.to_owned()), Arc::new(object));
        changed
    };
    let whole = || json!({"configMap": {"name": "config"}});
    let item = || json!({"configMap": {"name": "config", "items": [{"key": "a", "path": "a"}]}});
    let changed = change("config", json!({"a": "one", "b": "three"}));
    assert_ne!(version(&base, whole()), version(&changed, whole()));
    assert_eq!(version(&base, item()), version(&changed, item()), "another key changed");
    assert_eq!(version(&base, whole()), version(&change("other", json!({})), whole()), "another object changed");
    let late = || json!({"configMap": {"name": "late"}});
    assert_ne!(version(&base, late()), version(&change("late", json!({})), late()), "it appears, without a key");
    let labels = || json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}});
    let mut relabelled = pod();
    relabelled.metadata.labels.as_mut().unwrap().insert("new".to_owned(), String::new());
    assert_ne!(version(&base, labels()), version_of(&relabelled, &base, labels()));
}

#[test]
fn a_token_is_renewed_with_a_fifth_of_its_life_left_and_daily() {
    const HOUR: i64 = 3600;
    for (life, after) in
        [(600, 480), (HOUR, 2880), (24 * HOUR, 69_120), (30 * HOUR, 24 * HOUR), (8760 * HOUR, 24 * HOUR)]
    {
        let issued = 1_700_000_000;
        let expires = Timestamp::from_second(issued + life).unwrap();
        assert_eq!(renew_at(life, expires).as_second() - issued, after, "{life} s");
    }
}

#[test]
fn trust_anchors_are_joined_and_each_is_there_once() {
    use crate::api::pem::{blocks, certificate};
    let mut objects = Objects::default();
    let anchor = |number: u8| certificate(&[0x30, 1, number]);
    let mut add = |name: &str, signer: Option<&str>, labels: Value, text: String| {
        let bundle =
            json!({"metadata": {"name": name, "labels": labels}, "spec": {"signerName": signer, "trustBundle": text}});
        objects
            .trust_bundles
            .insert((String::new(), name.to_owned()), Arc::new(serde_json::from_value(bundle).unwrap()));
    };
    add("roots", None, json!({}), format!("# ours\n{}{}{}", anchor(1), anchor(2), anchor(1)));
    add("s:old", Some("s"), json!({"age": "old"}), anchor(3));
    add("s:new", Some("s"), json!({"age": "new"}), format!("{}{}", anchor(3), anchor(4)));
    let text = |uid: &str, source: Value| {
        let mut pod = pod();
        pod.metadata.uid = Some(uid.to_owned());
        let mut source = source;
        source["path"] = json!("anchors.pem");
        let volume = volume(json!({"projected": {"sources": [{"clusterTrustBundle": source}]}}));
        let input = ContentInput { pod: &pod, objects: &objects, allocatable: &ALLOCATABLE };
        let payload = payload(&volume, &input, &Tokens::new()).map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8(payload["anchors.pem"].bytes.clone()).unwrap())
    };
    let numbers = |source: Value| {
        let mut found: Vec<u8> = blocks(&text("u", source)?).iter().map(|block| block.bytes[2]).collect();
        found.sort();
        Ok(found)
    };
    assert_eq!(numbers(json!({"name": "roots"})), Ok(vec![1, 2]));
    assert_eq!(numbers(json!({"signerName": "s", "labelSelector": {}})), Ok(vec![3, 4]));
    assert_eq!(numbers(json!({"signerName": "s", "labelSelector": {"matchLabels": {"age": "old"}}})), Ok(vec![3]));
    let nothing = "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned();
    assert_eq!(numbers(json!({"signerName": "s"})), Err(nothing.clone()), "no selector selects nothing");
    assert_eq!(numbers(json!({"signerName": "t", "labelSelector": {}})), Err(nothing));
    let missing = "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"x\" not found".to_owned();
    assert_eq!(numbers(json!({"name": "x"})), Err(missing));
    for source in [json!({"name": "x", "optional": true}), json!({"signerName": "t", "optional": true})] {
        assert_eq!(text("u", source), Ok(String::new()));
    }
    assert!(!text("u", json!({"name": "roots"})).unwrap().contains("ours"), "comments are left out");
    let orders: std::collections::BTreeSet<String> =
        (0..32).map(|number| text(&number.to_string(), json!({"name": "roots"})).unwrap()).collect();
    assert_eq!(orders.len(), 2, "no order can be relied on");
}
