//! Asks the running agent over its socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use axum::body::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Frame, Incoming},
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, TE},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::exit::{Exit, Failed};
use crate::server::{local::Failure, logs::INCOMPLETE, socket};

/// One agent.
pub struct Client {
    socket: PathBuf,
}

/// What is sent with a request.
pub type RequestBody = BoxBody<Bytes, io::Error>;

impl Client {
    /// Of the agent whose API socket this is.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    /// Sends a request; `path` includes the query. An answer that is an error becomes one.
    ///
    /// # Errors
    /// The agent is not there, or says no.
    pub async fn send(&self, method: Method, path: &str, body: RequestBody) -> Result<Response<Incoming>, Failed> {
        let stream = socket::connect_api(&self.socket).map_err(|error| unreachable(&self.socket, &error))?;
        let request = async {
            stream.set_nonblocking(true)?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(UnixStream::from_std(stream)?)).await.map_err(io::Error::other)?;
            // Ends when the request is done and the sender is dropped.
            tokio::spawn(connection);
            let uri: Uri = path.parse().map_err(io::Error::other)?;
            let mut request = Request::new(body);
            *request.method_mut() = method;
            *request.uri_mut() = uri;
            request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("berth"));
            let json = hyper::header::HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
            // Without this the agent may not send any.
            request.headers_mut().insert(TE, hyper::header::HeaderValue::from_static("trailers"));
            sender.send_request(request).await.map_err(io::Error::other)
        };
        let response = request
            .await
            .map_err(|error| Failed { message: format!("ask the agent: {error}"), ..Failed::of(&error) })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(response).await?;
        let message = match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => failure.error,
            Err(_) => format!("the agent answered {status}: {}", String::from_utf8_lossy(&bytes)),
        };
        let exit = if status == StatusCode::NOT_FOUND { Exit::NotFound } else { Exit::Failure };
        Err(Failed::new(exit, message))
    }

    /// GET with a JSON answer.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        self.call(Method::GET, path, empty()).await
    }

    /// Any request with a JSON answer.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: RequestBody) -> Result<T, Failed> {
        let bytes = collect(self.send(method, path, body).await?).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failed::new(Exit::Failure, format!("understand the agent's answer: {error}"))
                .hint("the agent may be of another version: berth version")
        })
    }
}

/// No agent listens on this socket.
pub fn unreachable(socket: &Path, error: &io::Error) -> Failed {
    let failed = Failed::new(Exit::Unreachable, format!("connect to the agent at {}: {error}", socket.display()));
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => failed.hint(
            "is the agent running? start it with: berth node --pod-manifest-path DIR \
             (and give --run-dir here if it was started with one)",
        ),
        io::ErrorKind::PermissionDenied => failed.hint("only root may talk to the agent: try sudo"),
        _ => failed,
    }
}

/// No body.
pub fn empty() -> RequestBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed()
}

/// A JSON body.
///
/// # Errors
/// It cannot be expressed in JSON.
pub fn json(value: &impl Serialize) -> Result<RequestBody, Failed> {
    let bytes = serde_json::to_vec(value).map_err(|error| Failed::of(&error))?;
    Ok(http_body_util::Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed())
}

/// A body that is read as it is sent.
pub fn streamed(chunks: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static) -> RequestBody {
    BodyExt::boxed(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))))
}

/// A path with its query, everything escaped.
pub fn path(path: &str, query: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    for (index, (name, value)) in query.iter().enumerate() {
        out.push(if index == 0 { '?' } else { '&' });
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
                byte => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}

/// The chunks of an answer as they come; an error after the last one where the agent says that something is missing.
pub fn chunks(response: Response<Incoming>) -> impl Stream<Item = Result<Bytes, Failed>> + Unpin {
    Box::pin(stream::unfold(Some(response.into_body()), |body| async move {
        let mut body = body?;
        match body.frame().await? {
            Ok(frame) => match frame.into_data() {
                Ok(data) => Some((Ok(data), Some(body))),
                Err(frame) => {
                    let missing = frame.trailers_ref().and_then(|trailers| trailers.get(INCOMPLETE))?;
                    let what = String::from_utf8_lossy(missing.as_bytes());
                    let text = format!("not everything could be read: {what}");
                    Some((Err(Failed::new(Exit::Failure, text)), None))
                }
            },
            Err(error) => {
                let text = format!("the agent went away in the middle of its answer: {error}");
                Some((Err(Failed::new(Exit::Unreachable, text)), None))
            }
        }
    }))
}

async fn collect(response: Response<Incoming>) -> Result<Vec<u8>, Failed> {
    let mut chunks = chunks(response);
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(path("/v1/images", &[("ref", "a/b:1@x y"), ("n", "1")]), "/v1/images?ref=a%2Fb%3A1%40x%20y&n=1");
    }

    #[tokio::test]
    async fn a_missing_agent_is_explained() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("berth.sock");
        let failed = Client::new(&socket).get::<()>("/v1/pods").await.unwrap_err();
        assert_eq!(failed.exit, Exit::Unreachable);
        assert!(failed.message.contains(&socket.display().to_string()), "{failed}");
        assert!(failed.hint.unwrap().contains("berth node"));
    }
}
