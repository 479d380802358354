//! What pods refer to beside themselves: objects of manifests, and the variables made of them.

use std::{fs, time::Duration};

use berth_integration::{
    Agent, Place, eventually,
    scenario::{agent, apply, container, exec, explained, full_name, log, place, ready, run, with},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::{Value, json};

/// Waits without end.
const WAIT: &str = "exec sleep 1000";

fn object(kind: &str, name: &str, fields: Value) -> Value {
    with(json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } }), fields)
}

/// Applies several objects in one file.
fn list(agent: &Agent, file: &str, items: Value) {
    agent.apply(file, &json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string());
}

fn config_map(name: &str, data: Value) -> Value {
    object("ConfigMap", name, json!({ "data": data }))
}

fn variable(name: &str, source: Value) -> Value {
    json!({ "name": name, "valueFrom": source })
}

/// Waits for a line of `berth pods --problems` with all of `words`.
#[track_caller]
fn problem(agent: &Agent, words: &[&str]) {
    eventually(&format!("a problem with {words:?}"), Duration::from_secs(20), || {
        let problems = agent.ok(&["pods", "--problems"]);
        problems.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    });
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn variables_come_from_objects_of_the_same_file() {
    let place = place();
    let agent = agent(&place, &[]);
    let service = object(
        "Service",
        "db",
        json!({ "spec": { "clusterIP": "10.0.0.9", "ports": [{ "name": "pg", "port": 5432 }] } }),
    );
    let fields = json!({
        "envFrom": [
            { "configMapRef": { "name": "settings" }, "prefix": "S_" },
            { "secretRef": { "name": "login" } },
            { "configMapRef": { "name": "none", "optional": true } },
        ],
        "env": [
            variable("COLOR", json!({ "configMapKeyRef": { "name": "settings", "key": "color" } })),
            variable("NONE", json!({ "secretKeyRef": { "name": "login", "key": "none", "optional": true } })),
            { "name": "user", "value": "$(user)@$(COLOR):$(DB_SERVICE_PORT_PG)" },
        ],
        // The shell does not pass on a name with a dot.
        "args": ["tr '\\0' '\\n' </proc/1/environ; echo from-args $(COLOR) $(DB_PORT); echo the end; exec sleep 1000"],
        "command": ["sh", "-c"],
    });
    let spec = json!({ "terminationGracePeriodSeconds": 0, "containers": [container("app", "", fields)] });
    list(
        &agent,
        "all.json",
        json!([
            object("Pod", "shown", json!({ "spec": spec })),
            config_map("settings", json!({ "color": "blue", "log.level": "info" })),
            object("Secret", "login", json!({ "stringData": { "user": "me" }, "data": { "password": "eA==" } })),
            service,
        ]),
    );
    let shown = log(&agent, &ready(&agent, "shown"), "app", "the end");
    for line in [
        "COLOR=blue",
        "S_color=blue",
        "S_log.level=info",
        "password=x",
        "user=me@blue:5432",
        "DB_SERVICE_HOST=10.0.0.9",
        "DB_PORT_5432_TCP=tcp://10.0.0.9:5432",
        "from-args blue tcp://10.0.0.9:5432",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    assert!(!shown.contains("NONE="), "{shown}");

    run(&agent, "unlinked", "env; echo the end; exec sleep 1000", json!({}));
    let linked = log(&agent, &ready(&agent, "unlinked"), "app", "the end");
    assert!(linked.contains("DB_SERVICE_HOST"), "{linked}");
    agent.delete("unlinked.json");
    agent.gone("unlinked");
    let spec = json!({
        "enableServiceLinks": false,
        "containers": [container("app", "env; echo the end; exec sleep 1000", json!({}))],
    });
    apply(&agent, "unlinked", spec);
    let unlinked = log(&agent, &ready(&agent, "unlinked"), "app", "the end");
    assert!(!unlinked.contains("DB_SERVICE_HOST"), "{unlinked}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_waits_for_what_it_refers_to() {
    let place = place();
    let agent = agent(&place, &[]);
    let fields = json!({ "env": [variable("A", json!({ "configMapKeyRef": { "name": "late", "key": "key" } }))] });
    run(&agent, "waits", "echo A is $A; exec sleep 1000", fields);
    explained(&agent, "waits", &["CreateContainerConfigError", r#""configmap \"late\" not found""#]);
    // It is there, and has no such key.
    list(&agent, "late.json", json!([config_map("late", json!({ "other": "1" }))]));
    explained(&agent, "waits", &["CreateContainerConfigError", "couldn't find key key in ConfigMap default/late"]);
    list(&agent, "late.json", json!([config_map("late", json!({ "key": "here" }))]));
    let name = ready(&agent, "waits");
    log(&agent, &name, "app", "A is here");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn variables_come_from_a_file_that_an_init_container_wrote() {
    let place = place();
    let agent = agent(&place, &[]);
    let volumes = json!([{ "name": "made", "emptyDir": {} }]);
    let mounts = json!({ "volumeMounts": [{ "name": "made", "mountPath": "/made" }] });
    let from = |path: &str, key: &str, optional: bool| json!({ "fileKeyRef": { "volumeName": "made", "path": path, "key": key, "optional": optional } });
    let write = r#"mkdir /made/sub; printf "A='two words'\nB='second'\n" >/made/sub/vars; ln -s sub/vars /made/link;
                   ln -s /etc/passwd /made/host"#;
    let shown = json!({ "env": [
        variable("A", from("sub/vars", "A", false)),
        variable("B", from("link", "B", false)),
        variable("NONE", from("sub/vars", "NONE", true)),
        variable("NOWHERE", from("nowhere", "A", true)),
        variable("HOST", from("host", "root", true)),
        { "name": "BOTH", "value": "$(A), $(B)" },
    ] });
    let spec = json!({
        "volumes": volumes,
        "initContainers": [container("write", write, mounts.clone())],
        // The volume is not mounted here.
        "containers": [container("app", "env; echo the end; exec sleep 1000", shown)],
    });
    apply(&agent, "file", spec);
    let shown = log(&agent, &ready(&agent, "file"), "app", "the end");
    for line in ["A=two words", "B=second", "BOTH=two words, second"] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    for name in ["NONE=", "NOWHERE=", "HOST="] {
        assert!(!shown.contains(name), "{shown}");
    }

    for (name, write, path, words) in [
        ("absent", "true", "nowhere", "there is no such file"),
        ("broken", "echo A=1 >/made/vars", "vars", "at line 1: value must be enclosed in single quotes"),
        ("keyless", r#"echo "B='1'" >/made/vars"#, "vars", r#"environment variable key \"A\" not found in file"#),
        ("pipe", "mkfifo /made/vars", "vars", "it is not a regular file"),
    ] {
        let fields = json!({ "env": [variable("A", from(path, "A", false))] });
        let spec = json!({
            "volumes": volumes,
            "initContainers": [container("write", write, mounts.clone())],
            "containers": [container("app", WAIT, fields)],
        });
        apply(&agent, name, spec);
        explained(&agent, name, &["CreateContainerConfigError", words]);
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn bad_objects_are_named_and_lose_nothing() {
    let place = place();
    let agent = agent(&place, &[]);
    let show = |name: &str| {
        let fields = json!({ "env": [variable("A", json!({ "configMapKeyRef": { "name": "fixed", "key": "key" } }))] });
        run(&agent, name, "echo A is $A; exec sleep 1000", fields);
        let name = full_name(&agent.ready(name));
        log(&agent, &name, "app", "A is")
    };
    let fixed = |value: &str| {
        let immutable = with(config_map("fixed", json!({ "key": value })), json!({ "immutable": true }));
        list(&agent, "fixed.json", json!([immutable]));
    };
    fixed("one");
    assert_eq!(show("first"), "A is one\n");
    fixed("two");
    problem(&agent, &["fixed.json", "ConfigMap default/fixed", "field is immutable when `immutable` is set"]);
    assert_eq!(show("second"), "A is one\n");
    agent.apply("again.json", &config_map("fixed", json!({ "key": "three" })).to_string());
    problem(&agent, &["again.json", "ConfigMap default/fixed is not used", "fixed.json"]);
    agent.delete("again.json");
    agent.apply("bad.json", &config_map("bad", json!({ "a key": "x" })).to_string());
    problem(&agent, &["bad.json", "ConfigMap bad", "data[a key]: Invalid value"]);
    agent.apply("secret.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {password: hunter2!}\n");
    problem(&agent, &["secret.yaml", "Secret s", "data.password: expected base64-encoded text"]);
    assert!(!agent.ok(&["pods", "--problems"]).contains("hunter2"));
    assert!(!agent.log().contains("hunter2"));

    // Broken, it stays what it was; and when it has been gone, it may be another.
    agent.apply("fixed.json", "{");
    problem(&agent, &["fixed.json", "invalid JSON"]);
    assert_eq!(show("third"), "A is one\n");
    agent.delete("fixed.json");
    eventually("it is gone", Duration::from_secs(20), || {
        (!agent.ok(&["pods", "--problems"]).contains("fixed.json")).then_some(())
    });
    fixed("two");
    assert_eq!(show("fourth"), "A is two\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_agent_that_starts_again_knows_the_objects() {
    let place = place();
    let mut first = agent(&place, &[]);
    let immutable = with(config_map("settings", json!({ "key": "one" })), json!({ "immutable": true }));
    list(&first, "settings.json", json!([immutable]));
    let fields = json!({ "env": [variable("A", json!({ "configMapKeyRef": { "name": "settings", "key": "key" } }))] });
    let script = "echo A is $A; while [ ! -e /volume/end ]; do sleep 0.1; done; rm /volume/end; exit 1";
    let fields = with(fields, json!({ "volumeMounts": [{ "name": "v", "mountPath": "/volume" }] }));
    let spec = json!({
        "volumes": [{ "name": "v", "hostPath": { "path": place.path("end"), "type": "DirectoryOrCreate" } }],
        "containers": [container("app", script, fields)],
    });
    apply(&first, "goes-on", spec);
    first.ready("goes-on");
    let record = place.path("root").join("objects.json");
    eventually("the objects are written down", Duration::from_secs(20), || {
        fs::read_to_string(&record).ok().filter(|text| text.contains("settings"))
    });
    first.kill();
    // While nobody looks, the manifest breaks.
    fs::write(place.path("manifests").join("settings.json"), "{").expect("write a manifest");
    let mut second = Agent::start(&place, &[]).expect("an agent");
    fs::write(place.path("end").join("end"), "").expect("write a file");
    let again = second.until("goes-on", "restarted", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && !status["state"]["running"].is_null()
    });
    assert!(log(&second, &full_name(&again), "app", "A is").contains("A is one"));
    // An immutable object is not another one because the agent was away.
    second.kill();
    let immutable = with(config_map("settings", json!({ "key": "two" })), json!({ "immutable": true }));
    fs::write(place.path("manifests").join("settings.json"), immutable.to_string()).expect("write a manifest");
    let third = Agent::start(&place, &[]).expect("an agent");
    problem(&third, &["settings.json", "field is immutable when `immutable` is set"]);
}

/// The claims of a token, after its signature was checked with the key set that the agent published.
fn claims(place: &Place, token: &str, audience: &str) -> Value {
    let keys = fs::read_to_string(place.path("root").join("service-account-jwks.json")).expect("the key set");
    let keys: JwkSet = serde_json::from_str(&keys).expect("a key set");
    let header = jsonwebtoken::decode_header(token).expect("a header");
    let key = keys.find(&header.kid.expect("a key's name")).expect("the key");
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[audience]);
    let key = DecodingKey::from_jwk(key).expect("a key");
    jsonwebtoken::decode::<Value>(token, &key, &validation).expect("a valid token").claims
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_gets_tokens_of_its_service_account() {
    let place = place();
    let mut first = agent(&place, &[]);
    let source = |path: &str, audience: &str| json!({ "serviceAccountToken": { "path": path, "audience": audience, "expirationSeconds": 600 } });
    let sources = json!([source("vault", "vault"), { "serviceAccountToken": { "path": "token" } }]);
    let mounts = json!({ "volumeMounts": [{ "name": "tokens", "mountPath": "/tokens" }] });
    let spec = json!({
        "serviceAccountName": "robot",
        "volumes": [{ "name": "tokens", "projected": { "sources": sources } }],
        "containers": [container("app", WAIT, mounts)],
    });
    apply(&first, "holder", spec);
    explained(&first, "holder", &[r#"failed to fetch token: serviceaccounts \"robot\" not found"#]);
    list(&first, "robot.json", json!([object("ServiceAccount", "robot", json!({}))]));
    let pod = first.ready("holder");
    let name = full_name(&pod);
    let vault = exec(&first, &name, "cat /tokens/vault");
    let told = claims(&place, &vault, "vault");
    assert_eq!(told["sub"], "system:serviceaccount:default:robot");
    assert_eq!(told["exp"].as_i64().expect("a time") - told["iat"].as_i64().expect("a time"), 600);
    assert_eq!(told["kubernetes.io"]["pod"], json!({ "name": name, "uid": pod["metadata"]["uid"] }));
    let own = claims(&place, &exec(&first, &name, "cat /tokens/token"), "https://kubernetes.default.svc");
    assert_eq!(own["exp"].as_i64().expect("a time") - own["iat"].as_i64().expect("a time"), 3600);
    assert_eq!(
        exec(&first, &name, "stat -Lc %a /tokens/vault; test -e /var/run/secrets || echo nothing else"),
        "644\nnothing else\n"
    );

    // Another agent signs with the same key.
    first.kill();
    let second = Agent::start(&place, &[]).expect("an agent");
    let renewed = eventually("the token is written anew", Duration::from_secs(20), || {
        Some(exec(&second, &name, "cat /tokens/vault")).filter(|token| *token != vault)
    });
    claims(&place, &renewed, "vault");
    claims(&place, &vault, "vault");
}
