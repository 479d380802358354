//! Calls to a plugin: one connection to its unix socket for one operation, and nothing kept in between.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{Uri, http::uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    net::UnixStream,
    time::{Instant, timeout_at},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// A connection to the service at `socket`.
///
/// # Errors
/// `Unavailable` in gRPC's words; `DeadlineExceeded` after `until`.
pub async fn connect(socket: &Path, until: Instant) -> Result<Channel, Status> {
    // The name of a unix socket is no authority: `localhost` is what gRPC libraries send.
    let endpoint = Endpoint::from_static("http://localhost");
    let connecting = endpoint.connect_with_connector(Dialer { socket: socket.to_owned() });
    match timeout_at(until, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            Err(Status::unavailable(format!(
                "connection error: desc = \"transport: Error while dialing: dial unix {}: connect: {cause}\"",
                socket.display()
            )))
        }
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}

/// Calls `method` (`/csi.v1.Node/NodeGetInfo`) and waits for the answer, which the server is told to give before `until`.
///
/// # Errors
/// What the server answers instead; `DeadlineExceeded` after `until`.
pub async fn call<Q, A>(channel: &Channel, method: &'static str, request: Q, until: Instant) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let answer = async {
        let mut client = Grpc::new(channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(request);
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        let codec = ProstCodec::<Q, A>::default();
        Ok(client.unary(request, PathAndQuery::from_static(method), codec).await?.into_inner())
    };
    timeout_at(until, answer).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")))
}

/// A status as upstream prints it: `rpc error: code = Internal desc = no such volume`.
pub fn sentence(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

struct Dialer {
    socket: PathBuf,
}

impl tower_service::Service<Uri> for Dialer {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let socket = self.socket.clone();
        Box::pin(async move { UnixStream::connect(socket).await.map(TokioIo::new) })
    }
}
