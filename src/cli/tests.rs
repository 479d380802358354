//! The local API from end to end: our client, a socket, the router, and a scripted node behind it.

use std::{fs, sync::Arc};

use axum::body::Bytes;
use futures_util::{StreamExt, stream};
use hyper::Method;
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use super::{
    client::{self, Client},
    exit::Exit,
};
use crate::{
    obs::events::{Recorder, Severity},
    server::{
        images::{Collected, Credentials, ImageView},
        local::{CONTAINER_HEADER, PullLine, PullRequest, Version, router},
        socket,
        testing::{self, FakeImages, FakeNode},
    },
    store::layout::Layout,
    worker::handle::{ManifestProblem, PodView, Usage},
};

struct Served {
    _directory: tempfile::TempDir,
    layout: Layout,
    node: Arc<FakeNode>,
    images: Arc<FakeImages>,
    events: Recorder,
    client: Client,
}

/// A server with the pod default/web, the log of whose container `app` is in the layout's log directory.
fn served() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let (state, node, images) = testing::state(directory.path());
    let layout = state.layout.clone();
    let events = state.events.clone();
    let mut view = testing::pod("default", "web", "u1");
    let log_dir = layout.pod("u1", "default", "web").log_file("app", 0).parent().unwrap().to_owned();
    fs::create_dir_all(&log_dir).unwrap();
    view.containers[1].log_dir = log_dir.display().to_string();
    node.pods.lock().unwrap().push(view);
    let listener = socket::bind_api(&layout.api_socket()).unwrap();
    tokio::spawn(socket::serve(listener, router(state), std::future::pending()));
    let client = Client::new(&layout.api_socket());
    Served { _directory: directory, layout, node, images, events, client }
}

impl Served {
    fn write_log(&self, attempt: u32, lines: &[&str]) {
        let path = self.layout.pod("u1", "default", "web").log_file("app", attempt);
        let line = |line: &&str| format!("2026-01-01T00:00:00Z stdout F {line}\n");
        fs::write(path, lines.iter().map(line).collect::<String>()).unwrap();
    }

    async fn log(&self, query: &[(&str, &str)]) -> Result<(String, String), (Exit, String)> {
        let path = client::path("/v1/logs", query);
        let response = self.client.send(Method::GET, &path, client::empty()).await;
        let response = response.map_err(|failed| (failed.exit, failed.message))?;
        let container = response.headers()[CONTAINER_HEADER].to_str().unwrap().to_owned();
        let mut chunks = client::chunks(response);
        let mut text = Vec::new();
        while let Some(chunk) = chunks.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        Ok((container, String::from_utf8(text).unwrap()))
    }
}

#[tokio::test]
async fn pods_problems_usage_and_version_are_answered() {
    let served = served();
    let problem = ManifestProblem {
        source: "file:/m/a.yaml".to_owned(),
        document: None,
        pod: None,
        warning: false,
        message: "not YAML".to_owned(),
    };
    served.node.problems.lock().unwrap().push(problem.clone());
    let pods: Vec<PodView> = served.client.get("/v1/pods").await.unwrap();
    assert_eq!(pods[0].pod.metadata.name.as_deref(), Some("web"));
    assert_eq!(served.client.get::<Vec<ManifestProblem>>("/v1/problems").await.unwrap(), [problem]);
    assert_eq!(served.client.get::<Vec<Usage>>("/v1/usage").await.unwrap()[0].cpu_nanos, 5);
    assert_eq!(served.client.get::<Version>("/v1/version").await.unwrap().node, "node1");
    let failed = served.client.get::<Value>("/v2/pods").await.unwrap_err();
    assert_eq!(failed.message, "there is no GET /v2/pods");
}

#[tokio::test]
async fn images_are_listed_removed_and_collected() {
    let served = served();
    let images: Value = served.client.get("/v1/images").await.unwrap();
    assert_eq!(images[0]["repoTags"], json!(["docker.io/library/busybox:1"]));
    let remove = async |reference: &str| {
        let path = client::path("/v1/images", &[("ref", reference)]);
        let result = served.client.call::<Vec<String>>(Method::DELETE, &path, client::empty()).await;
        result.map_err(|failed| (failed.exit, failed.message))
    };
    assert_eq!(remove("busybox").await.unwrap(), ["docker.io/library/busybox:1"]);
    assert_eq!(remove("nope").await.unwrap_err(), (Exit::NotFound, "image nope not found".to_owned()));
    assert_eq!(remove("used").await.unwrap_err().0, Exit::Failure);
    let collected: Collected = served.client.call(Method::POST, "/v1/images/gc", client::empty()).await.unwrap();
    assert_eq!(collected.freed, 3);
}

#[tokio::test]
async fn a_pull_reports_progress_and_then_its_end() {
    let served = served();
    let pull = async |reference: &str| {
        let credentials = Some(Credentials { username: "robot".to_owned(), password: "secret".to_owned() });
        let request = PullRequest { reference: reference.to_owned(), credentials };
        let body = client::json(&request).unwrap();
        let mut chunks = client::chunks(served.client.send(Method::POST, "/v1/images/pull", body).await.unwrap());
        let mut text = Vec::new();
        while let Some(chunk) = chunks.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| serde_json::from_slice::<PullLine>(line).unwrap()).collect::<Vec<_>>()
    };
    let lines = pull("busybox").await;
    assert!(matches!(&lines[..2], [PullLine::Progress(first), PullLine::Progress(second)]
        if first.received == 10 && second.received == 20));
    assert_eq!(lines[2], PullLine::Image(testing::image()));
    assert_eq!(pull("nope").await[2], PullLine::Error("image nope not found".to_owned()));
}

#[tokio::test]
async fn an_archive_is_loaded_from_a_path_or_from_what_is_sent() {
    let served = served();
    let load = async |query: &[(&str, &str)], body| {
        let path = client::path("/v1/images/load", query);
        served.client.call::<Vec<ImageView>>(Method::POST, &path, body).await
    };
    load(&[("path", "/a b.tar"), ("name", "x:1")], client::empty()).await.unwrap();
    let chunks = stream::iter((0..100).map(|index| Ok(Bytes::from(vec![index; 10_000]))));
    load(&[], client::streamed(chunks)).await.unwrap();
    let error = load(&[("path", "a.tar")], client::empty()).await.unwrap_err();
    assert_eq!(error.message, "the path a.tar is not absolute");
    let loaded = served.images.loaded.lock().unwrap();
    assert_eq!(loaded[0], (Some("x:1".to_owned()), b"/a b.tar".to_vec()));
    assert_eq!((loaded[1].0.as_deref(), loaded[1].1.len()), (None, 1_000_000));
}

#[tokio::test]
async fn a_log_is_found_by_pod_and_container() {
    let served = served();
    served.write_log(0, &["one", "two", "three"]);
    assert_eq!(served.log(&[("pod", "web")]).await.unwrap(), ("app".to_owned(), "one\ntwo\nthree\n".to_owned()));
    let (_, text) = served.log(&[("pod", "default/web"), ("container", "app"), ("tail", "1")]).await.unwrap();
    assert_eq!(text, "three\n");
    let (_, text) = served.log(&[("pod", "u1"), ("timestamps", "true"), ("limitBytes", "24")]).await.unwrap();
    assert_eq!(text, "2026-01-01T00:00:00Z one");
    let failures = [
        (vec![("pod", "nope")], Exit::NotFound, "pod nope not found"),
        (vec![("pod", "web"), ("previous", "true")], Exit::NotFound, "a previous container app in pod default/web"),
        (vec![("pod", "web"), ("container", "x")], Exit::NotFound, "container x in pod default/web"),
        (vec![("pod", "web"), ("tail", "many")], Exit::Failure, "Failed to deserialize query string"),
    ];
    for (query, exit, message) in failures {
        let (found, text) = served.log(&query).await.unwrap_err();
        assert!(found == exit && text.starts_with(message), "{query:?}: {found:?} {text}");
    }
    served.node.pods.lock().unwrap()[0].containers[1].id.clear();
    let (exit, text) = served.log(&[("pod", "web")]).await.unwrap_err();
    assert_eq!((exit, text.as_str()), (Exit::Failure, "container app in pod default/web has not been started yet"));
}

#[tokio::test]
async fn a_restarted_container_has_a_previous_log() {
    let served = served();
    served.write_log(0, &["first life"]);
    served.write_log(1, &["second life"]);
    served.node.pods.lock().unwrap()[0].containers[1].attempt = 1;
    assert_eq!(served.log(&[("pod", "web")]).await.unwrap().1, "second life\n");
    assert_eq!(served.log(&[("pod", "web"), ("previous", "true")]).await.unwrap().1, "first life\n");
}

#[tokio::test]
async fn what_could_not_be_read_of_a_log_is_said_at_its_end() {
    let served = served();
    served.write_log(0, &["the newest"]);
    let file = served.layout.pod("u1", "default", "web").log_file("app", 0);
    let damaged = file.with_file_name("0.log.20260101-000000.gz");
    fs::write(&damaged, "nonsense").unwrap();
    let path = client::path("/v1/logs", &[("pod", "web")]);
    let response = served.client.send(Method::GET, &path, client::empty()).await.unwrap();
    let mut chunks = client::chunks(response);
    assert_eq!(chunks.next().await.unwrap().unwrap(), "the newest\n");
    let failed = chunks.next().await.unwrap().unwrap_err();
    assert_eq!(failed.exit, Exit::Failure);
    assert!(failed.message.starts_with("not everything could be read: "), "{failed}");
    assert!(failed.message.contains(&damaged.display().to_string()), "{failed}");
    assert!(chunks.next().await.is_none());
}

#[tokio::test]
async fn following_ends_when_the_exit_record_is_there() {
    let served = served();
    served.write_log(0, &["one"]);
    let attempt = served.layout.pod("u1", "default", "web").attempt("app", 0);
    fs::create_dir_all(&attempt.dir).unwrap();
    let path = client::path("/v1/logs", &[("pod", "web"), ("follow", "true")]);
    let mut chunks = client::chunks(served.client.send(Method::GET, &path, client::empty()).await.unwrap());
    assert_eq!(chunks.next().await.unwrap().unwrap(), "one\n");
    served.write_log(0, &["one", "two"]);
    // The rest of the file is new; the file is the same.
    assert_eq!(chunks.next().await.unwrap().unwrap(), "two\n");
    fs::write(attempt.exit_file(), "{}").unwrap();
    assert!(chunks.next().await.is_none());
}

#[tokio::test]
async fn events_are_listed_and_followed() {
    let served = served();
    let pod = served.node.pods.lock().unwrap()[0].pod.clone();
    let note = |reason: &str, second: i64| {
        let now = jiff::Timestamp::from_second(second).unwrap();
        served.events.record(&pod, Some("app"), Severity::Normal, reason, "a", now);
    };
    note("Pulled", 1);
    note("Started", 2);
    let reasons = async |query: &[(&str, &str)]| {
        let events: Vec<Event> = served.client.get(&client::path("/v1/events", query)).await.unwrap();
        events.into_iter().filter_map(|event| event.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(&[]).await, ["Pulled", "Started"]);
    assert_eq!(reasons(&[("pod", "web"), ("namespace", "default")]).await.len(), 2);
    assert_eq!(reasons(&[("pod", "gone")]).await, Vec::<String>::new());

    let path = client::path("/v1/events", &[("watch", "true"), ("pod", "default/web")]);
    let mut chunks = client::chunks(served.client.send(Method::GET, &path, client::empty()).await.unwrap());
    let mut next = async || {
        let line = chunks.next().await.unwrap().unwrap();
        let event: Event = serde_json::from_slice(&line).unwrap();
        (event.reason.unwrap(), event.count.unwrap())
    };
    assert_eq!(next().await, ("Pulled".to_owned(), 1));
    assert_eq!(next().await, ("Started".to_owned(), 1));
    note("Pulled", 3);
    assert_eq!(next().await, ("Pulled".to_owned(), 2));
}
