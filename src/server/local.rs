//! The local HTTP API on `<run>/berth.sock`: what the commands of `berth` ask. Only root can open the socket (0600).

use std::{convert::Infallible, io, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, TRAILER},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::StreamBody;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::{
    events, find,
    images::{Credentials, ImageView, Images, LoadSource, PullProgress},
    logs::{self, LogFiles, LogQuery, LogReader, LogWatch},
};
use crate::{
    api::update::Change,
    obs::events::Recorder,
    store::layout::Layout,
    worker::handle::{ManifestProblem, Node, NodeError, PodView, Usage},
};

/// Name of the container whose log is sent, in a response header.
pub const CONTAINER_HEADER: &str = "berth-container";

/// What the API serves.
#[derive(Clone)]
pub struct ServerState {
    /// Pods.
    pub node: Arc<dyn Node>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// Where records and logs are.
    pub layout: Layout,
    /// What the agent says of itself.
    pub version: Version,
    /// What happened to pods.
    pub events: Recorder,
    /// Followers of logs; shared with every other server of the agent.
    pub watch: LogWatch,
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Version of the program.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
}

/// What is answered when a question cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One line.
    pub error: String,
}

/// A line of the answer to a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PullLine {
    /// Still at it.
    Progress(PullProgress),
    /// Done; the last line.
    Image(ImageView),
    /// Failed; the last line.
    Error(String),
}

/// What a pull is asked with.
#[derive(Debug, Serialize, Deserialize)]
pub struct PullRequest {
    /// Image reference.
    pub reference: String,
    /// For this pull only.
    pub credentials: Option<Credentials>,
}

/// What a change of a pod is asked with.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChangeRequest {
    /// As [`find::pod`] understands it.
    pub pod: String,
    /// What is to change.
    pub change: Change,
}

/// What a log is asked with.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogRequest {
    /// As [`find::pod`] understands it.
    pub pod: String,
    /// Container; `None`: the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Go on until the container ends.
    pub follow: bool,
    /// Last so many lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// Written since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// With times.
    pub timestamps: bool,
    /// Of the attempt before the latest.
    pub previous: bool,
    /// At most so many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct ReferenceQuery {
    #[serde(rename = "ref")]
    reference: String,
}

#[derive(Deserialize)]
struct LoadQuery {
    name: Option<String>,
    path: Option<PathBuf>,
}

/// The API, apart from any socket.
pub fn router(state: ServerState) -> Router {
    Router::new()
        .route("/v1/version", get(async |State(state): State<ServerState>| Json(state.version)))
        .route("/v1/pods", get(pods))
        .route("/v1/pods/change", post(change))
        .route("/v1/problems", get(problems))
        .route("/v1/usage", get(usage))
        .route("/v1/events", get(events::list))
        .route("/v1/logs", get(log))
        .route("/v1/images", get(images).delete(remove_image))
        .route("/v1/images/pull", post(pull))
        .route("/v1/images/load", post(load))
        .route("/v1/images/gc", post(collect))
        .fallback(async |request: Request| {
            let text = format!("there is no {} {}", request.method(), request.uri().path());
            (StatusCode::NOT_FOUND, Json(Failure { error: text }))
        })
        .with_state(state)
}

impl IntoResponse for NodeError {
    fn into_response(self) -> Response {
        let status = match self {
            NodeError::NotFound(_) => StatusCode::NOT_FOUND,
            NodeError::Ambiguous(..) => StatusCode::BAD_REQUEST,
            NodeError::Conflict(_) => StatusCode::CONFLICT,
            NodeError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            NodeError::Exec(_) | NodeError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(Failure { error: self.to_string() })).into_response()
    }
}

/// A question that was asked wrongly.
pub(super) struct BadRequest(String);

impl IntoResponse for BadRequest {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(Failure { error: self.0 })).into_response()
    }
}

impl From<QueryRejection> for BadRequest {
    fn from(rejection: QueryRejection) -> BadRequest {
        BadRequest(rejection.body_text())
    }
}

async fn pods(State(state): State<ServerState>) -> Json<Vec<PodView>> {
    Json(state.node.pods())
}

/// Answers with the pod, once the change is durable.
async fn change(State(state): State<ServerState>, Json(request): Json<ChangeRequest>) -> Result<Json<Pod>, NodeError> {
    let uid = find::pod(&state.node.pods(), &request.pod)?.pod.metadata.uid.clone().unwrap_or_default();
    state.node.update(uid, request.change).await.map(Json)
}

async fn problems(State(state): State<ServerState>) -> Json<Vec<ManifestProblem>> {
    Json(state.node.problems())
}

async fn usage(State(state): State<ServerState>) -> Json<Vec<Usage>> {
    Json(state.node.usage().await)
}

async fn images(State(state): State<ServerState>) -> Result<Json<Vec<ImageView>>, NodeError> {
    state.images.list().await.map(Json)
}

async fn remove_image(
    State(state): State<ServerState>,
    query: Result<Query<ReferenceQuery>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(query) = query.map_err(|rejection| BadRequest::from(rejection).into_response())?;
    let removed = state.images.remove(query.reference).await.map_err(IntoResponse::into_response)?;
    Ok(Json(removed).into_response())
}

async fn collect(State(state): State<ServerState>) -> Result<Response, NodeError> {
    state.images.collect().await.map(|collected| Json(collected).into_response())
}

/// Answers with JSON lines, so that a person sees a pull go on. The status is 200 however it ends: the last line tells.
async fn pull(State(state): State<ServerState>, Json(request): Json<PullRequest>) -> Response {
    // Reports beyond what the client takes up are left out by the sender.
    let (sender, mut receiver) = mpsc::channel(16);
    let lines = async_lines(move |out| async move {
        let work = state.images.pull(request.reference, request.credentials, sender);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(progress) = receiver.recv() => {
                    if out.send(PullLine::Progress(progress)).await.is_err() {
                        return;
                    }
                }
                result = &mut work => {
                    let line = match result {
                        Ok(image) => PullLine::Image(image),
                        Err(error) => PullLine::Error(error.to_string()),
                    };
                    // Fails when the client is gone: the image is there all the same.
                    let _ = out.send(line).await;
                    return;
                }
            }
        }
    });
    ([(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))], lines).into_response()
}

/// A body of JSON lines that `work` sends.
pub(super) fn async_lines<T, W>(work: impl FnOnce(mpsc::Sender<T>) -> W) -> Body
where
    T: Serialize + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(work(sender));
    let lines = stream::unfold(receiver, |mut receiver: mpsc::Receiver<T>| async move {
        let mut line = serde_json::to_vec(&receiver.recv().await?).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<Bytes, Infallible>(line.into()), receiver))
    });
    Body::from_stream(lines)
}

async fn load(
    State(state): State<ServerState>,
    query: Result<Query<LoadQuery>, QueryRejection>,
    body: Body,
) -> Result<Response, Response> {
    let Query(query) = query.map_err(|rejection| BadRequest::from(rejection).into_response())?;
    let source = match query.path {
        Some(path) if path.is_absolute() => LoadSource::Path(path),
        Some(path) => {
            let text = format!("the path {} is not absolute", path.display());
            return Err(BadRequest(text).into_response());
        }
        None => {
            let bytes = body.into_data_stream().map_err(io::Error::other);
            LoadSource::Archive(Box::pin(StreamReader::new(bytes)))
        }
    };
    let loaded = state.images.load(source, query.name).await.map_err(IntoResponse::into_response)?;
    Ok(Json(loaded).into_response())
}

async fn log(
    State(state): State<ServerState>,
    query: Result<Query<LogRequest>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(request) = query.map_err(|rejection| BadRequest::from(rejection).into_response())?;
    let (container, body) = open_log(&state, &request).map_err(IntoResponse::into_response)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(TRAILER, HeaderValue::from_static(logs::INCOMPLETE));
    if let Ok(name) = HeaderValue::from_str(&container) {
        headers.insert(CONTAINER_HEADER, name);
    }
    Ok((headers, body).into_response())
}

/// The name of the container and its log.
fn open_log(state: &ServerState, request: &LogRequest) -> Result<(String, Body), NodeError> {
    let pods = state.node.pods();
    let view = find::pod(&pods, &request.pod)?;
    let container = find::container(view, request.container.as_deref())?;
    if container.id.is_empty() {
        let pod = find::name_of(&view.pod);
        return Err(NodeError::Conflict(format!("container {} in pod {pod} has not been started yet", container.name)));
    }
    let attempt = match (request.previous, container.attempt) {
        (false, attempt) => attempt,
        (true, 0) => {
            let pod = find::name_of(&view.pod);
            let text = format!("a previous container {} in pod {pod} (it was never restarted)", container.name);
            return Err(NodeError::NotFound(text));
        }
        (true, attempt) => attempt - 1,
    };
    let files = LogFiles::new(container.log_dir.as_ref(), attempt);
    let uid = view.pod.metadata.uid.clone().unwrap_or_default();
    let pod_name = view.pod.metadata.name.as_deref().unwrap_or_default();
    let dirs = state.layout.pod(&uid, find::namespace_of(&view.pod), pod_name).attempt(&container.name, attempt);
    let watching = match request.follow {
        true => {
            let directories = [files.directory(), &dirs.dir];
            let watching = state.watch.watch(&directories);
            Some(watching.map_err(|error| NodeError::Internal(format!("follow the log with inotify: {error}")))?)
        }
        false => None,
    };
    let (node, name) = (state.node.clone(), container.name.clone());
    let ended = move || {
        // The record is on disk before anything else is told; without one, the agent's own view decides.
        dirs.exit_file().exists()
            || !node.pods().iter().any(|view| {
                view.pod.metadata.uid.as_ref() == Some(&uid)
                    && view.containers.iter().any(|container| {
                        container.name == name && container.attempt == attempt && container.state == "running"
                    })
            })
    };
    let query = LogQuery {
        tail: request.tail,
        since: request.since,
        timestamps: request.timestamps,
        limit_bytes: request.limit_bytes,
    };
    let body = logs::stream(LogReader::new(files, query), watching, ended);
    Ok((container.name.clone(), Body::new(StreamBody::new(body.boxed()))))
}
