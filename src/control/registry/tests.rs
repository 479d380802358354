use serde_json::{Value, json};

use crate::control::rest::testing::{DEPLOYMENTS, MAPS, PODS, Server, config_map, deployment, pod};

fn at(base: &str, name: &str) -> String {
    format!("{base}/{name}")
}

#[tokio::test]
async fn what_is_created_is_read_back_with_what_the_server_decides() {
    let server = Server::new().await;
    let created = server.post(MAPS, config_map("a", json!({"x": "1"}))).await.expect(201);
    let metadata = &created["metadata"];
    assert_eq!((&metadata["namespace"], &created["kind"]), (&json!("shop"), &json!("ConfigMap")));
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert!(metadata["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert!(metadata["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(server.get(&at(MAPS, "a")).await.expect(200), created);
    let again = server.post(MAPS, config_map("a", json!({}))).await.expect(409);
    assert_eq!(
        (&again["reason"], &again["message"]),
        (&json!("AlreadyExists"), &json!("configmaps \"a\" already exists"))
    );
    let gone = server.get(&at(MAPS, "b")).await.expect(404);
    assert_eq!(gone["message"], "configmaps \"b\" not found");
    assert_eq!(gone["details"], json!({"name": "b", "kind": "configmaps"}));
}

#[tokio::test]
async fn names_are_generated_and_tried_anew() {
    let server = Server::new().await;
    let map = json!({"metadata": {"generateName": "a-"}});
    let one = server.post(MAPS, map.clone()).await.expect(201);
    let other = server.post(MAPS, map).await.expect(201);
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&one).starts_with("a-") && name(&one).len() == 7 && name(&one) != name(&other));
    let nameless = server.post(MAPS, json!({"metadata": {}})).await.expect(422);
    assert_eq!(
        nameless["message"],
        "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
    );
}

#[tokio::test]
async fn objects_that_do_not_belong_here_are_refused() {
    let server = Server::new().await;
    for (object, code, part) in [
        (json!({"kind": "Secret", "metadata": {"name": "a"}}), 400, "Secret in version"),
        (json!({"apiVersion": "v2", "metadata": {"name": "a"}}), 400, "the API version in the data (v2)"),
        (json!({"metadata": {"name": "a", "namespace": "other"}}), 400, "the namespace of the provided object"),
        (json!({"metadata": {"name": "A"}}), 422, "a lowercase RFC 1123 subdomain"),
        (json!({"metadata": {"name": "a", "resourceVersion": "7"}}), 400, "resourceVersion should not be set"),
        (json!({"metadata": {"name": "a"}, "data": {"x": 1}}), 400, "data.x: invalid type: integer `1`"),
        (json!({"metadata": "a"}), 400, "metadata: expected an object"),
        (json!([]), 400, "must be a JSON object"),
    ] {
        let status = server.post(MAPS, object.clone()).await.expect(code);
        assert!(status["message"].as_str().unwrap().contains(part), "{object}: {status:#}");
    }
    let status = server.post("/api/v1/namespaces/none/configmaps", config_map("a", json!({}))).await.expect(404);
    assert_eq!(status["message"], "namespaces \"none\" not found");
    let status = server.send("POST", MAPS, &[], b"{").await.expect(400);
    assert_eq!(status["reason"], "BadRequest");
}

#[tokio::test]
async fn unknown_fields_are_ignored_warned_about_or_refused() {
    let server = Server::new().await;
    let object = br#"{"metadata": {"name": "a", "colour": 1}, "data": {"x": "1", "x": "2"}}"#;
    let answer = server.send("POST", &format!("{MAPS}?fieldValidation=Strict"), &[], object).await;
    let message = answer.expect(400)["message"].as_str().unwrap().to_owned();
    assert!(
        message.ends_with("strict decoding error: duplicate field \"data.x\", unknown field \"metadata.colour\""),
        "{message}"
    );
    let answer = server.send("POST", &format!("{MAPS}?dryRun=All"), &[], object).await;
    let warnings: Vec<_> = answer.headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(
        warnings,
        ["299 - \"duplicate field \\\"data.x\\\"\"", "299 - \"unknown field \\\"metadata.colour\\\"\""]
    );
    let created = answer.expect(201);
    assert_eq!((created["metadata"].get("colour"), &created["data"]["x"]), (None, &json!("2")));
    server.get(&at(MAPS, "a")).await.expect(404);
    let answer = server.send("POST", &format!("{MAPS}?fieldValidation=Ignore"), &[], object).await;
    assert!(answer.headers.get("warning").is_none());
    answer.expect(201);
    server.post(&format!("{MAPS}?fieldValidation=Maybe"), config_map("b", json!({}))).await.expect(400);
    server.post(&format!("{MAPS}?dryRun=Some"), config_map("b", json!({}))).await.expect(400);
}

#[tokio::test]
async fn a_change_needs_the_object_it_was_made_from() {
    let server = Server::new().await;
    let first = server.post(MAPS, config_map("a", json!({"x": "1"}))).await.expect(201);
    let mut second = first.clone();
    second["data"]["x"] = "2".into();
    let second = server.put(&at(MAPS, "a"), second).await.expect(200);
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
    let stale = server.put(&at(MAPS, "a"), first.clone()).await.expect(409);
    assert_eq!(stale["reason"], "Conflict");
    assert!(stale["message"].as_str().unwrap().starts_with("Operation cannot be fulfilled on configmaps \"a\""));
    // Without a revision the client takes whatever there is.
    let third = server.put(&at(MAPS, "a"), config_map("a", json!({"x": "3"}))).await.expect(200);
    assert_eq!(third["metadata"]["creationTimestamp"], first["metadata"]["creationTimestamp"]);
    // What changes nothing is not written.
    let same = server.put(&at(MAPS, "a"), third.clone()).await.expect(200);
    assert_eq!(same, third);
    let mut other = third.clone();
    other["metadata"]["uid"] = "another".into();
    assert!(
        server.put(&at(MAPS, "a"), other).await.expect(409)["message"]
            .as_str()
            .unwrap()
            .contains("UID in precondition")
    );
    server.put(&at(MAPS, "b"), config_map("b", json!({}))).await.expect(404);
    server.put(&at(MAPS, "a"), config_map("b", json!({}))).await.expect(400);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/n";
    server.put(leases, json!({"metadata": {"name": "n"}, "spec": {"holderIdentity": "n"}})).await.expect(201);
}

#[tokio::test]
async fn patches_change_what_they_name() {
    let server = Server::new().await;
    server.post(DEPLOYMENTS, deployment("web")).await.expect(201);
    let path = at(DEPLOYMENTS, "web");
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "busybox:2"}]}}}});
    let patched = server.patch(&path, "strategic-merge", patch).await.expect(200);
    let container = &patched["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], &container["imagePullPolicy"]), (&json!("busybox:2"), &json!("IfNotPresent")));
    assert_eq!(patched["metadata"]["generation"], 2);
    let labelled = server.patch(&path, "merge", json!({"metadata": {"labels": {"a": "b"}}})).await.expect(200);
    assert_eq!(labelled["metadata"]["generation"], 2, "labels are no change of the spec");
    let patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    assert_eq!(server.patch(&path, "json", patch).await.expect(200)["spec"]["replicas"], 3);
    let failed = server.patch(&path, "json", json!([{"op": "remove", "path": "/spec/nothing"}])).await.expect(422);
    assert_eq!(failed["reason"], "Invalid");
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"c": "d"}}});
    server.patch(&path, "merge", stale).await.expect(409);
    server.patch(&path, "apply", json!({})).await.expect(415);
    let apply = [("content-type", "application/apply-patch+yaml")];
    let status = server.send("PATCH", &format!("{path}?fieldManager=x"), &apply, b"{}").await.expect(415);
    assert_eq!(status["reason"], "UnsupportedMediaType");
    let immutable = json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}});
    let status = server.patch(&path, "merge", immutable).await.expect(422);
    assert!(status["message"].as_str().unwrap().contains("field is immutable"), "{status:#}");
}

#[tokio::test]
async fn status_and_the_rest_are_changed_apart() {
    let server = Server::new().await;
    let mut written = pod("a");
    written["status"] = json!({"phase": "Running"});
    let created = server.post(PODS, written).await.expect(201);
    assert_eq!(
        (&created["status"]["phase"], &created["status"]["qosClass"]),
        (&json!("Pending"), &json!("BestEffort"))
    );
    assert_eq!(created["metadata"]["generation"], 1);
    let path = at(PODS, "a");
    let both = json!({"status": {"phase": "Running"}, "metadata": {"annotations": {"a": "b"}}});
    let after = server.patch(&path, "strategic-merge", both).await.expect(200);
    assert_eq!((&after["status"]["phase"], &after["metadata"]["annotations"]["a"]), (&json!("Pending"), &json!("b")));
    let both = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        "spec": {"activeDeadlineSeconds": 5}});
    let after = server.patch(&format!("{path}/status"), "strategic-merge", both).await.expect(200);
    assert_eq!((&after["status"]["phase"], after["spec"].get("activeDeadlineSeconds")), (&json!("Running"), None));
    assert_eq!(after["metadata"]["generation"], 1);
    assert_eq!(server.get(&format!("{path}/status")).await.expect(200)["status"]["phase"], "Running");
    let refused = json!({"spec": {"nodeName": "other"}});
    let status = server.patch(&path, "merge", refused).await.expect(422);
    assert!(status["message"].as_str().unwrap().contains("pod updates may not change fields other than"), "{status:#}");
    server.get(&format!("{path}/nothing")).await.expect(404);
    server.delete(&format!("{path}/status"), Value::Null).await.expect(405);
}

#[tokio::test]
async fn scale_shows_and_sets_the_number_of_replicas() {
    let server = Server::new().await;
    server.post(DEPLOYMENTS, deployment("web")).await.expect(201);
    let path = format!("{DEPLOYMENTS}/web/scale");
    let scale = server.get(&path).await.expect(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
    assert_eq!(scale["status"]["selector"], "app=web");
    let mut more = scale.clone();
    more["spec"]["replicas"] = 4.into();
    let after = server.put(&path, more.clone()).await.expect(200);
    assert_eq!(after["spec"]["replicas"], 4);
    server.put(&path, more).await.expect(409);
    server.patch(&path, "merge", json!({"spec": {"replicas": 2}})).await.expect(200);
    assert_eq!(server.get(&at(DEPLOYMENTS, "web")).await.expect(200)["spec"]["replicas"], 2);
    let status = server.patch(&path, "merge", json!({"spec": {"replicas": -1}})).await.expect(422);
    assert_eq!(status["details"]["causes"][0]["field"], "spec.replicas");
    server.patch(&format!("{DEPLOYMENTS}/none/scale"), "merge", json!({})).await.expect(404);
}

#[tokio::test]
async fn what_has_finalizers_goes_when_they_are_gone() {
    let server = Server::new().await;
    let mut map = config_map("a", json!({}));
    map["metadata"]["finalizers"] = json!(["example.com/a"]);
    let created = server.post(MAPS, map).await.expect(201);
    let path = at(MAPS, "a");
    let wrong = json!({"preconditions": {"uid": "another"}});
    assert_eq!(server.delete(&path, wrong).await.expect(409)["reason"], "Conflict");
    let right = json!({"preconditions": {"uid": created["metadata"]["uid"]}});
    let going = server.delete(&path, right).await.expect(200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(server.delete(&path, Value::Null).await.expect(200), going, "twice is as once");
    let more = json!({"metadata": {"finalizers": ["example.com/a", "example.com/b"]}});
    server.patch(&path, "merge", more).await.expect(422);
    server.patch(&path, "merge", json!({"metadata": {"finalizers": null}})).await.expect(200);
    server.get(&path).await.expect(404);
    let plain = server.post(MAPS, config_map("b", json!({}))).await.expect(201);
    let status = server.delete(&at(MAPS, "b"), Value::Null).await.expect(200);
    assert_eq!((&status["status"], &status["details"]["uid"]), (&json!("Success"), &plain["metadata"]["uid"]));
    server.delete(&at(MAPS, "b"), Value::Null).await.expect(404);
    server.delete(&at(MAPS, "b"), json!({"propagationPolicy": "Sometimes"})).await.expect(400);
}

#[tokio::test]
async fn a_pod_that_a_node_has_takes_its_time_and_another_does_not() {
    let server = Server::new().await;
    server.post(PODS, pod("a")).await.expect(201);
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    let bound = server.post(&format!("{PODS}/a/binding"), binding.clone()).await.expect(201);
    assert_eq!(bound["status"], "Success");
    let status = server.post(&format!("{PODS}/a/binding"), binding).await.expect(409);
    assert!(status["message"].as_str().unwrap().contains("is already assigned to node \"n1\""), "{status:#}");
    let path = at(PODS, "a");
    let found = server.get(&path).await.expect(200);
    assert_eq!(
        (&found["spec"]["nodeName"], &found["status"]["conditions"][0]["type"]),
        (&json!("n1"), &json!("PodScheduled"))
    );
    let going = server.delete(&path, json!({"gracePeriodSeconds": 20})).await.expect(200);
    assert_eq!(
        (&going["metadata"]["deletionGracePeriodSeconds"], &going["metadata"]["generation"]),
        (&json!(20), &json!(2))
    );
    let longer = server.delete(&path, json!({"gracePeriodSeconds": 40})).await.expect(200);
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 20, "it only becomes shorter");
    let shorter = server.delete(&path, json!({"gracePeriodSeconds": 5})).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let gone = server.delete(&path, json!({"gracePeriodSeconds": 0})).await.expect(200);
    assert_eq!(gone["metadata"]["name"], "a", "a pod is answered with itself");
    server.get(&path).await.expect(404);
    server.post(PODS, pod("b")).await.expect(201);
    server.post(&format!("{PODS}/b/eviction"), json!({"metadata": {"name": "b"}})).await.expect(201);
    server.get(&at(PODS, "b")).await.expect(404);
}

#[tokio::test]
async fn deleting_a_collection_removes_what_is_selected() {
    let server = Server::new().await;
    for (name, tier) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut map = config_map(name, json!({}));
        map["metadata"]["labels"] = json!({ "tier": tier });
        server.post(MAPS, map).await.expect(201);
    }
    let deleted = server.delete(&format!("{MAPS}?labelSelector=tier%3Dx"), Value::Null).await.expect(200);
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = server.get(MAPS).await.expect(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_namespace_waits_until_it_is_finalized_and_takes_nothing_new() {
    let server = Server::new().await;
    let path = "/api/v1/namespaces/shop";
    let going = server.delete(path, Value::Null).await.expect(200);
    assert_eq!(
        (&going["status"]["phase"], &going["spec"]["finalizers"]),
        (&json!("Terminating"), &json!(["kubernetes"]))
    );
    let refused = server.post(MAPS, config_map("a", json!({}))).await.expect(403);
    assert_eq!(
        refused["message"],
        "configmaps \"a\" is forbidden: unable to create new content in namespace shop because it is being terminated"
    );
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut final_one = going.clone();
    final_one["spec"]["finalizers"] = json!([]);
    server.put(&format!("{path}/finalize"), final_one).await.expect(200);
    server.get(path).await.expect(404);
    let status = server.delete("/api/v1/namespaces/default", Value::Null).await.expect(403);
    assert!(status["message"].as_str().unwrap().ends_with("this namespace may not be deleted"));
}

#[tokio::test]
async fn the_controller_empties_a_namespace_that_is_going() {
    let server = Server::new().await;
    let controller = tokio::spawn(crate::control::controllers::namespaces::run(server.api.registry.clone()));
    server.post(MAPS, config_map("a", json!({}))).await.expect(201);
    server.post(PODS, pod("p")).await.expect(201);
    let kept = json!({"metadata": {"name": "s", "finalizers": ["example.com/x"]}});
    server.post("/api/v1/namespaces/shop/secrets", kept).await.expect(201);
    server.delete("/api/v1/namespaces/shop", Value::Null).await.expect(200);
    let begun = std::time::Instant::now();
    let within = |what: &str| assert!(begun.elapsed().as_secs() < 20, "not in time: {what}");
    while server.get(&at(MAPS, "a")).await.code != 404 {
        within("the config map goes");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    server.get("/api/v1/namespaces/shop").await.expect(200);
    let secret = "/api/v1/namespaces/shop/secrets/s";
    server.patch(secret, "merge", json!({"metadata": {"finalizers": []}})).await.expect(200);
    while server.get("/api/v1/namespaces/shop").await.code != 404 {
        within("the namespace goes");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    controller.abort();
}

#[tokio::test]
async fn many_writers_of_one_object_all_get_their_way() {
    let server = std::sync::Arc::new(Server::new().await);
    server.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let tasks: Vec<_> = (0..8)
        .map(|index| {
            let server = server.clone();
            tokio::spawn(async move {
                let patch = json!({"data": {format!("k{index}"): "1"}});
                server.patch(&at(MAPS, "a"), "merge", patch).await.expect(200)
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(server.get(&at(MAPS, "a")).await.expect(200)["data"].as_object().unwrap().len(), 8);
}
