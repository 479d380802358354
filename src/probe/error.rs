//! Why a handler did not succeed, in upstream's words.

use std::{io, time::Duration};

use super::dial::DialError;
use crate::{runtime::client::ClientError, supervisor::spec::StartError};

/// A handler that failed, or could not be run.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// No port of the container has the name, and it is no number either.
    #[error("port {name:?} is not a port of the container")]
    UnknownPort {
        /// As written in the handler.
        name: String,
    },
    /// Outside 1 to 65535.
    #[error("invalid port number: {0}")]
    InvalidPort(i64),
    /// A header that HTTP does not allow.
    #[error("header {name:?} cannot be sent")]
    Header {
        /// Its name.
        name: String,
    },
    /// No connection could be made.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// There was no answer to an HTTP request.
    #[error("Get \"{url}\"")]
    Get {
        /// Where it was sent, redirects followed.
        url: String,
        /// Cause.
        #[source]
        source: FetchError,
    },
    /// There was an answer, but not the whole of it.
    #[error("read the body of {url}")]
    Body {
        /// Where it came from.
        url: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A gRPC server that could not be connected to in time.
    #[error("timeout: failed to connect service {address:?} within {within:?}: context deadline exceeded")]
    GrpcConnectTimeout {
        /// Host and port.
        address: String,
        /// The handler's timeout.
        within: Duration,
    },
    /// A gRPC server that could not be connected to.
    #[error("error: failed to connect service at {address:?}")]
    GrpcConnect {
        /// Host and port.
        address: String,
        /// Cause.
        #[source]
        source: tonic::transport::Error,
    },
    /// A gRPC server that does not answer.
    #[error("timeout: health rpc did not complete within {0:?}")]
    GrpcTimeout(Duration),
    /// A gRPC server without the health service.
    #[error("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {0}")]
    GrpcUnimplemented(String),
    /// The health service refused.
    #[error("error: health rpc probe failed: rpc error: code = {code} desc = {message}")]
    GrpcRefused {
        /// gRPC status code by name.
        code: String,
        /// What the server says.
        message: String,
    },
    /// The service says that it does not serve.
    #[error("service unhealthy (responded with {0:?})")]
    GrpcUnhealthy(String),
    /// A command that could not be started.
    #[error("{}", .0.sentence())]
    Start(StartError),
    /// A command that did not end in time; it and all that it started are gone.
    #[error("command timed out: {command:?} timed out after {within:?}")]
    ExecTimeout {
        /// Its words, joined by blanks.
        command: String,
        /// The handler's timeout.
        within: Duration,
    },
    /// The pipes of a command could not be made.
    #[error("make the streams of a command")]
    Streams(#[source] io::Error),
    /// The supervisor could not be asked to run a command.
    #[error("run a command in container {container}")]
    Supervisor {
        /// Container.
        container: String,
        /// Cause.
        #[source]
        source: ClientError,
    },
}

impl HandlerError {
    /// Whether it says something about the container. Otherwise it is the handler that is wrong, or the node that could
    /// not run it, and upstream throws the result away.
    pub fn is_verdict(&self) -> bool {
        match self {
            HandlerError::Dial(_)
            | HandlerError::Get { .. }
            | HandlerError::GrpcConnectTimeout { .. }
            | HandlerError::GrpcConnect { .. }
            | HandlerError::GrpcTimeout(_)
            | HandlerError::GrpcUnimplemented(_)
            | HandlerError::GrpcRefused { .. }
            | HandlerError::GrpcUnhealthy(_)
            | HandlerError::ExecTimeout { .. }
            // Upstream's runtimes fail such a command with 126 or 127, as a shell would.
            | HandlerError::Start(_) => true,
            HandlerError::UnknownPort { .. }
            | HandlerError::InvalidPort(_)
            | HandlerError::Header { .. }
            | HandlerError::Body { .. }
            | HandlerError::Streams(_)
            | HandlerError::Supervisor { .. } => false,
        }
    }
}

/// Why there was no answer to an HTTP request.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The time was over before the answer's head was there.
    #[error("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Timeout,
    /// What answered does not speak TLS. A lifecycle hook may fall back to HTTP.
    #[error("http: server gave HTTP response to HTTPS client")]
    NotTls,
    /// TLS could not be agreed upon.
    #[error("tls handshake")]
    Tls(#[source] io::Error),
    /// The connection was closed without an answer.
    #[error("EOF")]
    Closed,
    /// What came back is not HTTP, or the connection broke.
    #[error("http")]
    Http(#[source] hyper::Error),
    /// More redirects than anybody means.
    #[error("stopped after 10 redirects")]
    Redirects,
    /// A redirect to something that is no address.
    #[error("failed to parse Location header {0:?}")]
    Location(String),
}
