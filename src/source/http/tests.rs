use std::sync::{Arc, Mutex};

use axum::{Router, extract::State, http::HeaderMap as RequestHeaders, routing::get};

use super::*;

const BOUND: Duration = Duration::from_secs(20);

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: x:1}}]}}\n")
}

fn config(url: &str) -> HttpSourceConfig {
    HttpSourceConfig {
        url: url.to_owned(),
        headers: vec![("x-token".to_owned(), "secret".to_owned())],
        node_name: "n".to_owned(),
        period: Duration::from_millis(10),
    }
}

#[test]
fn failures_keep_what_was_last_good_and_say_so() {
    let config = config("http://host/pods");
    let now = Timestamp::UNIX_EPOCH;
    let mut fetched = Fetched::default();
    fetched.take(Err(FetchError::Empty), &config, now);
    let update = fetched.update(&config.url);
    assert!(update.incomplete && update.pods.is_empty(), "nothing is known yet");
    fetched.take(Ok(pod("a").into_bytes()), &config, now);
    let good = fetched.update(&config.url);
    assert_eq!((good.pods.len(), good.incomplete, good.problems.len()), (1, false, 0));
    assert_eq!(good.pods[0].origin, "http://host/pods");
    for answer in [Err(FetchError::Status(StatusCode::NOT_FOUND)), Err(FetchError::TooLarge), Ok(b"kind: [".to_vec())] {
        fetched.take(answer, &config, now);
        let bad = fetched.update(&config.url);
        assert_eq!(bad.pods, good.pods);
        assert_eq!((bad.problems.len(), bad.unusable.len(), bad.incomplete), (1, 1, false));
    }
    fetched.take(Ok(b"apiVersion: v1\nkind: PodList\n".to_vec()), &config, now);
    let none = fetched.update(&config.url);
    assert!(none.pods.is_empty() && none.problems.is_empty(), "an empty list wants nothing");
}

#[test]
fn a_header_that_is_none_is_refused() {
    let mut config = config("http://host/pods");
    config.headers.push(("no header".to_owned(), String::new()));
    assert!(matches!(start(config), Err(HttpSourceError::Header { name }) if name == "no header"));
}

#[tokio::test]
async fn a_manifest_is_fetched_with_its_headers_and_followed() {
    // The process that uses this installs the provider first thing; here the test is that process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let body = Arc::new(Mutex::new(pod("a")));
    let answer = |State(body): State<Arc<Mutex<String>>>, headers: RequestHeaders| async move {
        match headers.get("x-token").and_then(|value| value.to_str().ok()) {
            Some("secret") => Ok(body.lock().unwrap().clone()),
            _ => Err(axum::http::StatusCode::FORBIDDEN),
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/pods.yaml", listener.local_addr().unwrap());
    let router = Router::new().route("/pods.yaml", get(answer)).with_state(body.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut updates = start(config(&url)).unwrap();
    for name in ["a", "b"] {
        *body.lock().unwrap() = pod(name);
        let wanted = format!("default/{name}-n");
        let found = updates.wait_for(|update| {
            update.as_ref().is_some_and(|update| update.pods.iter().any(|pod| pod.full_name() == wanted))
        });
        tokio::time::timeout(BOUND, found).await.expect("in time").expect("the source lives");
    }
}
