//! OpenAPI documents: what kubectl validates, explains and makes patches with. They are made from the types themselves
//! when somebody asks, and not kept: a client keeps them.

mod paths;
mod schemas;
#[cfg(test)]
mod tests;

use aws_lc_rs::digest::{SHA256, digest};
use hyper::{
    HeaderMap, Response,
    header::{CACHE_CONTROL, HeaderValue},
};
use serde_json::{Map, Value, json};

use super::{
    error::ApiError,
    registry::resource::Resource,
    rest::{
        form::{JSON, accepted},
        response::{self, Body},
        version::git_version,
    },
};

/// See the module.
#[derive(Debug, Default)]
pub struct OpenApi;

impl OpenApi {
    /// Answers a path below `/openapi/`.
    ///
    /// # Errors
    /// There is no such document, or none in a form that the client accepts.
    pub async fn answer(
        &self,
        resources: &'static [&'static Resource],
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        if !accepted(headers).iter().any(|one| one.is_json()) {
            return Err(ApiError::not_acceptable(&[JSON]));
        }
        match path {
            "/openapi/v2" => made(move || v2(resources)).await,
            "/openapi/v3" => Ok(response::json(200, &index(resources))),
            _ => {
                let document = path.strip_prefix("/openapi/v3/").ok_or_else(ApiError::no_such_path)?.to_owned();
                let of = of_document(resources, &document);
                if of.is_empty() {
                    return Err(ApiError::no_such_path());
                }
                let mut answer = made(move || v3(&of)).await?;
                // Its URL has a hash in it and is asked for anew when that changes.
                let forever = HeaderValue::from_static("public, max-age=86400, immutable");
                answer.headers_mut().insert(CACHE_CONTROL, forever);
                Ok(answer)
            }
        }
    }
}

/// Makes a document where it holds nobody up.
async fn made(make: impl FnOnce() -> Value + Send + 'static) -> Result<Response<Body>, ApiError> {
    let document = tokio::task::spawn_blocking(move || make().to_string()).await;
    let document = document.map_err(|_| ApiError::internal("the document could not be made"))?;
    Ok(response::with_type(200, JSON, response::full(document)))
}

/// `api/v1`, `apis/apps/v1`.
fn document_of(resource: &Resource) -> String {
    match resource.group {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    }
}

fn of_document(resources: &[&'static Resource], document: &str) -> Vec<&'static Resource> {
    resources.iter().copied().filter(|resource| document_of(resource) == document).collect()
}

fn index(resources: &[&'static Resource]) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        let document = document_of(resource);
        let hash = hash(&of_document(resources, &document));
        let url = format!("/openapi/v3/{document}?hash={hash}");
        paths.insert(document, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// Changes with the program's version and with what is served.
fn hash(resources: &[&'static Resource]) -> String {
    let mut text = git_version();
    for resource in resources {
        let below: Vec<&str> = resource.subresources.iter().map(|one| one.name).collect();
        text.push_str(&format!("\n{resource:?} {} {}", resource.kind, below.join(",")));
    }
    digest(&SHA256, text.as_bytes()).as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect()
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": git_version()})
}

fn v3(resources: &[&'static Resource]) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        paths::add(resource, &mut paths, paths::Dialect::V3);
    }
    let schemas = schemas::make(resources, schemas::V3);
    json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}})
}

fn v2(resources: &[&'static Resource]) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        paths::add(resource, &mut paths, paths::Dialect::V2);
    }
    let definitions = schemas::make(resources, schemas::V2);
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions})
}
