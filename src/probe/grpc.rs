//! grpc: the standard health service, without encryption.

use std::{net::IpAddr, time::Duration};

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use tonic::{
    Code, Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    HandlerError,
    dial::{self, Connection, DialError},
};

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    fn name(self) -> &'static str {
        match self {
            ServingStatus::Unknown => "UNKNOWN",
            ServingStatus::Serving => "SERVING",
            ServingStatus::NotServing => "NOT_SERVING",
            ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// Asks whether `service` (empty: the server as a whole) is served at `port` of `host`.
///
/// # Errors
/// [`HandlerError`], every kind of which begins with `Grpc`.
pub async fn grpc_check(host: IpAddr, port: u16, service: &str, timeout: Duration) -> Result<(), HandlerError> {
    let until = Instant::now() + timeout;
    let address = dial::join(&host.to_string(), port);
    let channel = match timeout_at(until, connect(host, port, &address, until)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(source)) if was_late(&source) => {
            return Err(HandlerError::GrpcConnectTimeout { address, within: timeout });
        }
        Ok(Err(source)) => return Err(HandlerError::GrpcConnect { address, source }),
        Err(_) => return Err(HandlerError::GrpcConnectTimeout { address, within: timeout }),
    };
    let status = match timeout_at(until, check(channel, service)).await {
        Ok(Ok(response)) => ServingStatus::try_from(response.status),
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            return Err(HandlerError::GrpcUnimplemented(status.message().to_owned()));
        }
        Ok(Err(status)) if status.code() == Code::DeadlineExceeded => return Err(HandlerError::GrpcTimeout(timeout)),
        Ok(Err(status)) => {
            let (code, message) = (format!("{:?}", status.code()), status.message().to_owned());
            return Err(HandlerError::GrpcRefused { code, message });
        }
        Err(_) => return Err(HandlerError::GrpcTimeout(timeout)),
    };
    match status {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(HandlerError::GrpcUnhealthy(other.name().to_owned())),
        Err(unknown) => Err(HandlerError::GrpcUnhealthy(unknown.0.to_string())),
    }
}

async fn connect(host: IpAddr, port: u16, address: &str, until: Instant) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.user_agent("kube-probe/1.36")?;
    let connector = Dialer { host: host.to_string(), port, until };
    endpoint.connect_with_connector(connector).await
}

async fn check(channel: Channel, service: &str) -> Result<HealthCheckResponse, tonic::Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = hyper::http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    Ok(client.unary(request, path, codec).await?.into_inner())
}

fn was_late(error: &tonic::transport::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref::<DialError>(), Some(DialError::Timeout { .. })) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Gives the channel a connection of our kind.
struct Dialer {
    host: String,
    port: u16,
    until: Instant,
}

impl tower_service::Service<Uri> for Dialer {
    type Response = TokioIo<Connection>;
    type Error = DialError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<TokioIo<Connection>, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), DialError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (host, port, until) = (self.host.clone(), self.port, self.until);
        Box::pin(async move { dial::connect(&host, port, until).await.map(TokioIo::new) })
    }
}
