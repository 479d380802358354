//! An API server without a socket, for tests.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, body::Bytes};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::{Api, SharedApi, handler::handle, response::Body};
use crate::control::{
    authn::{Authenticator, Tokens},
    openapi::OpenApi,
    registry::Registry,
    storage::embedded::Embedded,
    types::ALL,
};

/// See the module.
pub struct Server {
    /// The API.
    pub api: SharedApi,
    /// Turn it to true to stop.
    pub stop: watch::Sender<bool>,
    _directory: TempDir,
}

/// An answer that has been read to its end.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub code: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body; a string where it is no JSON.
    pub body: Value,
}

impl Answer {
    /// The body, of an answer that must have this status.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{:#}", self.body);
        self.body
    }
}

impl Server {
    /// With the namespaces `default` and `shop`, the users `admin` and `nobody`, and nothing else.
    pub async fn new() -> Server {
        let directory = tempfile::tempdir().unwrap();
        let tokens = directory.path().join("tokens");
        std::fs::write(&tokens, "admin,admin,1,system:masters\nnobody,nobody,2,people\n").unwrap();
        let storage = Embedded::open(&directory.path().join("store.redb")).unwrap();
        let registry = Registry { storage: Arc::new(storage), resources: ALL };
        let authenticator = Authenticator { certificates: None, tokens: Tokens::read(&tokens).unwrap() };
        let (stop, stopping) = watch::channel(false);
        let api = Arc::new(Api { registry, authenticator, openapi: OpenApi, stopping });
        let server = Server { api, stop, _directory: directory };
        for name in ["default", "shop"] {
            server.post("/api/v1/namespaces", json!({"metadata": {"name": name}})).await.expect(201);
        }
        server
    }

    /// Sends a request and returns the answer before its body.
    pub async fn begin(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", "Bearer admin");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        handle(self.api.clone(), request, &[]).await
    }

    /// Sends a request and reads the answer, within a minute.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let response = self.begin(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(Duration::from_secs(60), body.collect()).await.expect("an end").unwrap();
        let text = String::from_utf8(bytes.to_bytes().to_vec()).unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    /// POST of an object.
    pub async fn post(&self, path: &str, object: Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], object.to_string().as_bytes()).await
    }

    /// PUT of an object.
    pub async fn put(&self, path: &str, object: Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], object.to_string().as_bytes()).await
    }

    /// PATCH: `kind` is `json`, `merge` or `strategic-merge`.
    pub async fn patch(&self, path: &str, kind: &str, patch: Value) -> Answer {
        let media_type = format!("application/{kind}-patch+json");
        self.send("PATCH", path, &[("content-type", &media_type)], patch.to_string().as_bytes()).await
    }

    /// DELETE with options.
    pub async fn delete(&self, path: &str, options: Value) -> Answer {
        let body = if options.is_null() { String::new() } else { options.to_string() };
        self.send("DELETE", path, &[], body.as_bytes()).await
    }

    /// Starts to watch.
    pub async fn watch(&self, path: &str) -> Lines {
        let response = self.begin("GET", path, &[], b"").await;
        assert_eq!(response.status(), 200);
        Lines { body: response.into_body(), rest: String::new() }
    }
}

/// The events of a watch.
pub struct Lines {
    body: Body,
    rest: String,
}

impl Lines {
    /// The next event, within ten seconds; `None`: the watch has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.rest.split_once('\n') {
                let event = serde_json::from_str(line).unwrap();
                self.rest = rest.to_owned();
                return Some(event);
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await.expect("an event");
            let data = frame?.unwrap().into_data().unwrap();
            self.rest.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn short(&mut self) -> String {
        let event = self.next().await.expect("an event");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

/// A config map.
pub fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A pod with one container.
pub fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "a", "image": "busybox:1"}]}})
}

/// A deployment.
pub fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "a", "image": "busybox:1"}]}}}})
}

/// Config maps of the namespace `shop`.
pub const MAPS: &str = "/api/v1/namespaces/shop/configmaps";
/// Pods of the namespace `shop`.
pub const PODS: &str = "/api/v1/namespaces/shop/pods";
/// Deployments of the namespace `shop`.
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/shop/deployments";
