//! One request: from what it is about to its answer.

use hyper::{
    Method, Request, Response,
    body::{Body as HttpBody, Bytes},
};
use rustls::pki_types::{CertificateDer, UnixTime};
use tracing::{debug, warn};

use super::{
    SharedApi, discovery, health, impersonation,
    request_info::RequestInfo,
    resources,
    response::{self, Body},
    version,
};
use crate::control::{
    authz::{self, Attributes},
    error::ApiError,
    registry::options::Query,
};

/// Answers a request that came over a connection whose client presented `chain`.
pub async fn handle<B>(api: SharedApi, request: Request<B>, chain: &[CertificateDer<'static>]) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let head = method == Method::HEAD;
    let answered = answer(api, request, chain).await.unwrap_or_else(|error| {
        if error.code >= 500 {
            warn!(%method, path, code = error.code, message = error.message, "a request failed");
        }
        response::error(&error)
    });
    debug!(%method, path, code = answered.status().as_u16(), "answered");
    if head { answered.map(|_| response::full("")) } else { answered }
}

async fn answer<B>(
    api: SharedApi,
    request: Request<B>,
    chain: &[CertificateDer<'static>],
) -> Result<Response<Body>, ApiError>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let info = RequestInfo::parse(request.method().as_str(), request.uri().path(), &query);
    let user = api.authenticator.authenticate(chain, request.headers(), UnixTime::now()).map_err(|error| {
        debug!(path = info.path, %error, "nobody is recognised");
        ApiError::unauthorized()
    })?;
    let user = impersonation::user(user, request.headers())?;
    authz::require(&user, &Attributes::of(&info))?;
    match &info.resource {
        Some(resource) => resources::answer(api, &info, resource, user, query, request).await,
        None => other(&api, &info, &query, &request).await,
    }
}

/// What is no resource.
async fn other<B>(
    api: &SharedApi,
    info: &RequestInfo,
    query: &Query,
    request: &Request<B>,
) -> Result<Response<Body>, ApiError> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(match info.path.as_str() {
            "/" | "/version" | "/api" | "/apis" => ApiError::method_not_allowed(),
            _ => ApiError::no_such_path(),
        });
    }
    if let Some(answer) = health::answer(api, &info.path, query).await {
        return Ok(answer);
    }
    if let Some(answer) = discovery::answer(api.registry.resources, &info.path, request.headers()) {
        return Ok(answer);
    }
    if info.path.starts_with("/openapi/") {
        return api.openapi.answer(api.registry.resources, &info.path, request.headers()).await;
    }
    match info.path.trim_end_matches('/') {
        "/version" => Ok(response::json(200, &version::version())),
        "" => Ok(response::json(200, &paths(api))),
        _ => Err(ApiError::no_such_path()),
    }
}

/// Everything that can be asked for.
fn paths(api: &SharedApi) -> serde_json::Value {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for resource in api.registry.resources {
        match resource.group {
            "" => paths.push(format!("/api/{}", resource.version)),
            group => {
                paths.push(format!("/apis/{group}"));
                paths.push(format!("/apis/{group}/{}", resource.version));
            }
        }
    }
    paths.extend(["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    paths.sort();
    paths.dedup();
    serde_json::json!({ "paths": paths })
}
