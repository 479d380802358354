use std::time::Duration;

use serde_json::{Value, json};

use super::testing::{DEPLOYMENTS, MAPS, PODS, Server, config_map, deployment, pod};

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

async fn with_maps(count: usize) -> Server {
    let server = Server::new().await;
    for index in 0..count {
        let mut map = config_map(&format!("m{index}"), json!({}));
        map["metadata"]["labels"] = json!({"even": (index % 2 == 0).to_string()});
        server.post(MAPS, map).await.expect(201);
    }
    server
}

#[tokio::test]
async fn who_is_not_known_is_told_so_and_who_may_not_too() {
    let server = Server::new().await;
    for header in ["Bearer wrong", "Basic YTpi", ""] {
        let status = server.send("GET", MAPS, &[("authorization", header)], b"").await.expect(401);
        assert_eq!((&status["reason"], &status["message"]), (&json!("Unauthorized"), &json!("Unauthorized")));
    }
    let nobody = [("authorization", "Bearer nobody")];
    let status = server.send("GET", MAPS, &nobody, b"").await.expect(403);
    assert_eq!(
        status["message"],
        "configmaps is forbidden: User \"nobody\" cannot list resource \"configmaps\" in API group \"\" in the \
         namespace \"shop\""
    );
    server.send("GET", "/api", &nobody, b"").await.expect(200);
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}).to_string();
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = server.send("POST", path, &nobody, review.as_bytes()).await.expect(201);
    assert_eq!(answer["status"], json!({"allowed": false}));
    let answer = server.send("POST", path, &[], review.as_bytes()).await.expect(201);
    assert_eq!(answer["status"], json!({"allowed": true}));
}

#[tokio::test]
async fn one_may_ask_as_another_who_may_do_everything() {
    let server = Server::new().await;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let as_jane = [("impersonate-user", "jane"), ("impersonate-group", "dev")];
    let review = server.send("POST", path, &as_jane, b"{}").await.expect(201);
    assert_eq!(review["status"]["userInfo"], json!({"username": "jane", "groups": ["dev", "system:authenticated"]}));
    server.send("GET", MAPS, &as_jane, b"").await.expect(403);
    let nobody = [("authorization", "Bearer nobody"), ("impersonate-user", "admin")];
    let status = server.send("GET", MAPS, &nobody, b"").await.expect(403);
    assert!(status["message"].as_str().unwrap().contains("cannot impersonate resource \"users\""), "{status:#}");
    server.send("GET", MAPS, &[("impersonate-group", "dev")], b"").await.expect(400);
}

#[tokio::test]
async fn lists_are_selected_limited_and_continued() {
    let server = with_maps(5).await;
    let all = server.get(MAPS).await.expect(200);
    assert_eq!((&all["kind"], &all["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
    assert_eq!(names(&all), ["m0", "m1", "m2", "m3", "m4"]);
    let even = server.get(&format!("{MAPS}?labelSelector=even%3Dtrue")).await.expect(200);
    assert_eq!(names(&even), ["m0", "m2", "m4"]);
    let one = server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm3")).await.expect(200);
    assert_eq!(names(&one), ["m3"]);
    let status = server.get(&format!("{MAPS}?fieldSelector=data.x%3D1")).await.expect(400);
    assert_eq!(status["message"], "field label not supported: data.x");
    server.get(&format!("{MAPS}?labelSelector=a%20b")).await.expect(400);

    let first = server.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["m0", "m1"], &json!(3)));
    server.post(MAPS, config_map("m11", json!({}))).await.expect(201);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = server.get(&format!("{MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["m2", "m3"], "what came in between is not in it");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let limited = server.get(&format!("{MAPS}?limit=1&labelSelector=even%3Dtrue")).await.expect(200);
    assert_eq!((names(&limited), limited["metadata"].get("remainingItemCount")), (vec!["m0"], None));
    let token = limited["metadata"]["continue"].as_str().unwrap();
    let rest = server.get(&format!("{MAPS}?limit=9&labelSelector=even%3Dtrue&continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["m2", "m4"]);
    server.get(&format!("{MAPS}?continue=nonsense")).await.expect(400);
    server.api.registry.storage.compact(server.api.registry.storage.revision()).await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let status = server.get(&format!("{MAPS}?limit=2&continue={token}")).await.expect(410);
    assert_eq!(status["reason"], "Expired");
    let token = status["metadata"]["continue"].as_str().unwrap();
    let second = server.get(&format!("{MAPS}?limit=3&continue={token}")).await.expect(200);
    assert_eq!(
        names(&second),
        ["m11", "m2", "m3"].map(|name| name)[1..].iter().chain(&["m4"]).copied().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn revisions_of_lists_mean_what_upstream_says() {
    let server = with_maps(1).await;
    let list = server.get(MAPS).await.expect(200);
    let revision: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    server.post(MAPS, config_map("later", json!({}))).await.expect(201);
    let asked = |query: String| format!("{MAPS}?{query}");
    let exact = server.get(&asked(format!("resourceVersion={revision}&resourceVersionMatch=Exact"))).await.expect(200);
    assert_eq!(names(&exact), ["m0"]);
    let at_least = server.get(&asked(format!("resourceVersion={revision}"))).await.expect(200);
    assert_eq!(names(&at_least), ["later", "m0"]);
    server.get(&asked("resourceVersion=0".to_owned())).await.expect(200);
    for wrong in [
        "resourceVersion=x",
        "resourceVersionMatch=Exact",
        "resourceVersion=0&resourceVersionMatch=Exact",
        "resourceVersion=1&resourceVersionMatch=Sometimes",
        "sendInitialEvents=true",
        "limit=x",
    ] {
        server.get(&asked(wrong.to_owned())).await.expect(400);
    }
    let status = server.get(&asked(format!("resourceVersion={}", revision + 100))).await.expect(504);
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn a_watch_tells_what_there_is_and_what_happens_to_it() {
    let server = with_maps(2).await;
    let mut watch = server.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(watch.short().await, "ADDED m0");
    assert_eq!(watch.short().await, "ADDED m1");
    server.patch(&format!("{MAPS}/m0"), "merge", json!({"data": {"x": "1"}})).await.expect(200);
    assert_eq!(watch.short().await, "MODIFIED m0");
    server.delete(&format!("{MAPS}/m0"), Value::Null).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("DELETED"), &json!("ConfigMap")));
    let list = server.get(MAPS).await.expect(200);
    assert_eq!(event["object"]["metadata"]["resourceVersion"], list["metadata"]["resourceVersion"]);
    // Others do not concern it.
    server.post("/api/v1/namespaces/default/configmaps", config_map("z", json!({}))).await.expect(201);
    server.post(MAPS, config_map("m9", json!({}))).await.expect(201);
    assert_eq!(watch.short().await, "ADDED m9");
    server.stop.send_replace(true);
    assert!(watch.next().await.is_none(), "it ends with the server");
}

#[tokio::test]
async fn a_watch_that_selects_sees_what_comes_and_goes_by_its_selector() {
    let server = Server::new().await;
    let revision = server.get(MAPS).await.expect(200)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let path = format!("{MAPS}?watch=true&resourceVersion={revision}&labelSelector=tier%3Dx");
    let mut watch = server.watch(&path).await;
    server.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let label = |value: Value| json!({"metadata": {"labels": {"tier": value}}});
    server.patch(&format!("{MAPS}/a"), "merge", label("x".into())).await.expect(200);
    assert_eq!(watch.short().await, "ADDED a");
    server.patch(&format!("{MAPS}/a"), "merge", json!({"data": {"x": "1"}})).await.expect(200);
    assert_eq!(watch.short().await, "MODIFIED a");
    server.patch(&format!("{MAPS}/a"), "merge", label(Value::Null)).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"], json!({"tier": "x"}), "as it was when it last matched");
}

#[tokio::test(start_paused = true)]
async fn a_watch_says_how_far_it_is_and_ends_in_time() {
    let server = with_maps(1).await;
    let list = server.get(MAPS).await.expect(200);
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let query = format!("watch=true&resourceVersion={revision}&allowWatchBookmarks=true&timeoutSeconds=70");
    let response = server.begin("GET", &format!("{MAPS}?{query}"), &[], b"").await;
    server.post("/api/v1/namespaces/default/configmaps", config_map("z", json!({}))).await.expect(201);
    let latest = server.api.registry.storage.revision().to_string();
    let body = http_body_util::BodyExt::collect(response.into_body());
    let bytes = tokio::time::timeout(Duration::from_secs(100), body).await.expect("an end").unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 2, "after a minute, and at the end: {text}");
    for event in events {
        assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
        assert_eq!(event["object"]["metadata"]["resourceVersion"], latest, "also past what does not concern it");
    }
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark_that_says_so() {
    let server = with_maps(1).await;
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = server.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.short().await, "ADDED m0");
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let mut without =
        server.watch(&format!("{MAPS}?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan")).await;
    server.post(MAPS, config_map("m1", json!({}))).await.expect(201);
    assert_eq!(without.short().await, "ADDED m1");
    server.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await.expect(400);
    server.get(&format!("{MAPS}?watch=true&resourceVersionMatch=Exact")).await.expect(400);
}

#[tokio::test]
async fn a_watch_from_what_is_gone_is_told_so_in_an_event() {
    let server = with_maps(3).await;
    server.api.registry.storage.compact(server.api.registry.storage.revision()).await.unwrap();
    let mut watch = server.watch(&format!("{MAPS}?watch=true&resourceVersion=2")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(event["object"]["message"].as_str().unwrap().starts_with("too old resource version: 2 ("));
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn tables_have_the_columns_of_the_type() {
    let server = Server::new().await;
    server.post(PODS, pod("a")).await.expect(201);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = server.send("GET", PODS, &accept, b"").await.expect(200);
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    let columns: Vec<_> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(
        columns,
        ["Name", "Ready", "Status", "Restarts", "Age", "IP", "Node", "Nominated Node", "Readiness Gates"]
    );
    let row = &table["rows"][0];
    assert_eq!(row["cells"].as_array().unwrap()[..4], [json!("a"), json!("0/1"), json!("Pending"), json!("0")]);
    assert_eq!((&row["object"]["kind"], row["object"].get("spec")), (&json!("PartialObjectMetadata"), None));
    let one = server.send("GET", &format!("{PODS}/a?includeObject=Object"), &accept, b"").await.expect(200);
    assert_eq!(one["rows"][0]["object"]["spec"]["containers"][0]["name"], "a");
    let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let list = server.send("GET", PODS, &partial, b"").await.expect(200);
    assert_eq!((&list["kind"], list["items"][0].get("spec")), (&json!("PartialObjectMetadataList"), None));
    server.send("GET", PODS, &[("accept", "text/html")], b"").await.expect(406);
    let mut response = server.begin("GET", &format!("{PODS}?watch=true"), &accept, b"").await;
    let frame = http_body_util::BodyExt::frame(response.body_mut()).await.unwrap().unwrap().into_data().unwrap();
    let event: Value = serde_json::from_slice(&frame).unwrap();
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
}

#[tokio::test]
async fn bodies_come_in_json_or_yaml_and_are_bounded() {
    let server = Server::new().await;
    let yaml = [("content-type", "application/yaml")];
    let created = server.send("POST", MAPS, &yaml, b"metadata:\n  name: a\ndata:\n  x: \"1\"\n").await.expect(201);
    assert_eq!(created["data"]["x"], "1");
    server.send("POST", MAPS, &yaml, b"a: [").await.expect(400);
    let protobuf = [("content-type", "application/vnd.kubernetes.protobuf")];
    let object = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x05\x0a\x03\x0a\x01p";
    let created = server.send("POST", MAPS, &protobuf, object).await.expect(201);
    assert_eq!(created["metadata"]["name"], "p");
    server.send("POST", MAPS, &protobuf, b"{}").await.expect(400);
    let cbor = [("content-type", "application/cbor")];
    let status = server.send("POST", MAPS, &cbor, b"\xa0").await.expect(415);
    assert!(status["message"].as_str().unwrap().starts_with("the body of the request was in an unknown format"));
    let big = config_map("b", json!({"x": "a".repeat(4 << 20)})).to_string();
    let status = server.send("POST", MAPS, &[], big.as_bytes()).await.expect(413);
    assert_eq!(status["message"], "Request entity too large: limit is 3145728");
}

#[tokio::test]
async fn what_is_absent_answers_as_absent() {
    let server = Server::new().await;
    for (method, path, code) in [
        ("GET", "/api/v1/nothings", 404),
        ("GET", "/apis/example.com/v1/things", 404),
        ("GET", "/api/v2/pods", 404),
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
        ("GET", "/apis/apps/v9", 404),
        ("POST", "/version", 405),
        ("PUT", MAPS, 405),
        ("PATCH", MAPS, 405),
        ("POST", "/api/v1/configmaps", 405),
        ("GET", "/api/v1/configmaps/a", 404),
        ("GET", "/api/v1/namespaces/shop/nodes/a", 404),
        ("GET", "/api/v1/namespaces/shop/pods/a/log", 404),
        ("POST", "/api/v1/namespaces/shop/pods/a/exec", 404),
        ("GET", "/apis/authentication.k8s.io/v1/selfsubjectreviews", 405),
        ("OPTIONS", MAPS, 404),
    ] {
        let answer = server.send(method, path, &[], b"").await;
        assert_eq!(answer.code, code, "{method} {path}: {:#}", answer.body);
        assert_eq!(answer.body["kind"], "Status", "{method} {path}");
    }
}

#[tokio::test]
async fn discovery_says_the_same_in_both_forms() {
    let server = Server::new().await;
    let groups = server.get("/apis").await.expect(200);
    let v2 = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    let answer = server.send("GET", "/apis", &v2, b"").await;
    assert!(answer.headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
    let all = answer.expect(200);
    let found: Vec<_> = all["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    let plain: Vec<_> = groups["groups"].as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert_eq!(found, plain);
    for group in all["items"].as_array().unwrap() {
        let name = group["metadata"]["name"].as_str().unwrap();
        let version = group["versions"][0]["version"].as_str().unwrap();
        let list = server.get(&format!("/apis/{name}/{version}")).await.expect(200);
        let plain: Vec<&str> =
            list["resources"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        let mut found = Vec::new();
        for resource in group["versions"][0]["resources"].as_array().unwrap() {
            let plural = resource["resource"].as_str().unwrap();
            found.push(plural.to_owned());
            for below in resource["subresources"].as_array().into_iter().flatten() {
                found.push(format!("{plural}/{}", below["subresource"].as_str().unwrap()));
            }
        }
        assert_eq!(found, plain, "{name}");
    }
    let core = server.get("/api/v1").await.expect(200);
    let pods = core["resources"].as_array().unwrap().iter().find(|one| one["name"] == "pods").unwrap();
    assert_eq!((&pods["shortNames"], &pods["categories"]), (&json!(["po"]), &json!(["all"])));
    let eviction = core["resources"].as_array().unwrap().iter().find(|one| one["name"] == "pods/eviction").unwrap();
    assert_eq!((&eviction["group"], &eviction["kind"]), (&json!("policy"), &json!("Eviction")));
    assert_eq!(server.get("/api").await.expect(200)["versions"], json!(["v1"]));
    assert_eq!(server.get("/version").await.expect(200)["minor"], "36");
}

#[tokio::test]
async fn health_is_told_as_a_whole_and_by_check() {
    let server = Server::new().await;
    assert_eq!(server.get("/healthz").await.expect(200), "ok");
    let report = server.get("/livez?verbose").await.expect(200);
    assert_eq!(report, "[+]ping ok\n[+]storage ok\nlivez check passed\n");
    assert_eq!(server.get("/readyz/storage").await.expect(200), "ok");
    server.get("/readyz/nothing").await.expect(404);
    server.stop.send_replace(true);
    let report = server.get("/readyz").await.expect(500);
    assert_eq!(report, "[+]ping ok\n[+]storage ok\n[-]shutdown failed: reason withheld\nreadyz check failed\n");
    server.get("/readyz?exclude=shutdown").await.expect(200);
    server.get("/livez").await.expect(200);
}

#[tokio::test]
async fn what_is_wrong_with_a_workload_is_told_with_its_field() {
    let server = Server::new().await;
    let mut wrong = deployment("web");
    wrong["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    wrong["spec"]["template"]["spec"]["containers"][0]["name"] = "A".into();
    wrong["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    let status = server.post(DEPLOYMENTS, wrong).await.expect(422);
    let fields: Vec<_> =
        status["details"]["causes"].as_array().unwrap().iter().map(|cause| cause["field"].as_str().unwrap()).collect();
    assert_eq!(
        fields,
        ["spec.template.metadata.labels", "spec.template.spec.containers[0].name", "spec.template.spec.restartPolicy"]
    );
    assert_eq!((&status["details"]["group"], &status["details"]["kind"]), (&json!("apps"), &json!("Deployment")));
}
