//! Bodies of requests: bounded, and in a form that is understood.

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    HeaderMap,
    body::{Body, Bytes},
    header::CONTENT_TYPE,
};

use crate::{
    api::manifest::read_yaml,
    control::{
        error::ApiError,
        registry::incoming::Incoming,
        wire::{self, PROTOBUF},
    },
};

/// Longest body, as upstream.
pub const LIMIT: usize = 3 << 20;

/// Media types of objects.
const OBJECTS: [&str; 3] = ["application/json", "application/yaml", PROTOBUF];

/// Reads a body to its end.
///
/// # Errors
/// It is too long, or broke off.
pub async fn read<B>(body: B) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(LIMIT)),
        Err(error) => Err(ApiError::bad_request(format!("read the body: {error}"))),
    }
}

/// The media type of a body without its parameters; JSON where there is none.
pub fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = value.split(';').next().unwrap_or_default().trim().to_lowercase();
    if name.is_empty() { OBJECTS[0].to_owned() } else { name }
}

/// Reads an object.
///
/// # Errors
/// It is in no form that is understood, or none.
pub fn object(headers: &HeaderMap, bytes: &[u8]) -> Result<Incoming, ApiError> {
    match media_type(headers).as_str() {
        "application/json" | "*/*" => Incoming::from_json(bytes),
        "application/yaml" => {
            let text = std::str::from_utf8(bytes).map_err(|_| ApiError::bad_request("the body is not UTF-8"))?;
            let value = read_yaml(text).map_err(ApiError::bad_request)?;
            Incoming::new(value, Vec::new())
        }
        PROTOBUF => {
            let value = wire::decode(bytes).map_err(|error| ApiError::bad_request(error.to_string()))?;
            Incoming::new(value, Vec::new())
        }
        _ => Err(ApiError::unsupported_media_type(&OBJECTS)),
    }
}
