//! Answers.

use std::convert::Infallible;

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Response,
    body::Bytes,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::Value;

use super::form::JSON;
use crate::control::error::ApiError;

/// What an answer consists of: all at once, or as it comes.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// An answer with a body of some type.
pub fn with_type(code: u16, media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A JSON value.
pub fn json(code: u16, value: &Value) -> Response<Body> {
    with_type(code, JSON, full(value.to_string()))
}

/// Text for people.
pub fn text(code: u16, text: impl Into<Bytes>) -> Response<Body> {
    with_type(code, "text/plain; charset=utf-8", full(text))
}

/// A refusal.
pub fn error(error: &ApiError) -> Response<Body> {
    let mut response = json(error.code, &error.to_value());
    if let Some(seconds) = error.details.get("retryAfterSeconds").and_then(Value::as_u64) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds warnings, which kubectl shows.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    const NAME: HeaderName = HeaderName::from_static("warning");
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        // What cannot stand in a header is not said: a warning is not worth failing for.
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(NAME, value);
        }
    }
}
