//! The form of an answer: the object itself, a table of it, or its metadata alone; as the client accepts it.

use hyper::{HeaderMap, header::ACCEPT};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::control::{
    error::ApiError,
    registry::{options::Query, resource::Resource},
};

/// What of an object goes into a row of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// See the module. Versions are those of `meta.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The object.
    Plain,
    /// A table.
    Table(&'static str, Include),
    /// Metadata.
    Partial(&'static str),
}

/// What every answer can be.
pub const JSON: &str = "application/json";

/// One of the media types that a client accepts.
pub struct Accepted<'h> {
    /// `application/json`.
    pub media_type: &'h str,
    /// `as`, `g`, `v`.
    pub parameters: Vec<(&'h str, &'h str)>,
}

impl Accepted<'_> {
    /// A parameter.
    pub fn get(&self, name: &str) -> &str {
        self.parameters.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// Whether JSON is meant or included.
    pub fn is_json(&self) -> bool {
        matches!(self.media_type, JSON | "*/*" | "application/*")
    }
}

/// What a client accepts, in its order; everything if it does not say.
pub fn accepted(headers: &HeaderMap) -> Vec<Accepted<'_>> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut found: Vec<Accepted<'_>> = values
        .flat_map(|value| value.split(','))
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().filter(|name| !name.is_empty())?;
            let parameters = parts.filter_map(|part| part.split_once('=')).collect();
            Some(Accepted { media_type, parameters })
        })
        .collect();
    if found.is_empty() {
        found.push(Accepted { media_type: "*/*", parameters: Vec::new() });
    }
    found
}

impl Form {
    /// The first form that the client accepts and that there is.
    ///
    /// # Errors
    /// There is none.
    pub fn negotiate(headers: &HeaderMap, query: &Query) -> Result<Form, ApiError> {
        for accepted in accepted(headers) {
            if !accepted.is_json() {
                continue;
            }
            let version = match (accepted.get("g"), accepted.get("v")) {
                ("meta.k8s.io", "v1") => Some("v1"),
                ("meta.k8s.io", "v1beta1") => Some("v1beta1"),
                _ => None,
            };
            match (accepted.get("as"), version) {
                ("", _) => return Ok(Form::Plain),
                ("Table", Some(version)) => {
                    let include = match query.get("includeObject") {
                        Some("None") => Include::None,
                        None | Some("Metadata") => Include::Metadata,
                        Some("Object") => Include::Object,
                        Some(other) => {
                            return Err(ApiError::bad_request(format!("unrecognized includeObject value: {other:?}")));
                        }
                    };
                    return Ok(Form::Table(version, include));
                }
                ("PartialObjectMetadata" | "PartialObjectMetadataList", Some(version)) => {
                    return Ok(Form::Partial(version));
                }
                _ => {}
            }
        }
        Err(ApiError::not_acceptable(&[JSON]))
    }

    /// An object in this form.
    pub fn one(self, resource: &Resource, object: Value, now: Timestamp) -> Value {
        // A Status is a Status.
        if object["kind"] == "Status" {
            return object;
        }
        match self {
            Form::Plain => object,
            Form::Table(version, include) => {
                let revision = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                table(resource, version, include, revision, vec![object], true, now)
            }
            Form::Partial(version) => partial(object, version),
        }
    }

    /// A list in this form; `metadata` is the list's own.
    pub fn many(self, resource: &Resource, metadata: Value, mut items: Vec<Value>, now: Timestamp) -> Value {
        match self {
            Form::Plain => {
                for item in &mut items {
                    // The list says what its items are.
                    if let Some(fields) = item.as_object_mut() {
                        fields.remove("kind");
                        fields.remove("apiVersion");
                    }
                }
                let kind = format!("{}List", resource.kind);
                json!({"kind": kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items})
            }
            Form::Table(version, include) => table(resource, version, include, metadata, items, true, now),
            Form::Partial(version) => {
                let items: Vec<Value> = items.into_iter().map(|item| partial(item, version)).collect();
                let api_version = format!("meta.k8s.io/{version}");
                json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": api_version, "metadata": metadata, "items": items,
                })
            }
        }
    }

    /// An object of a watch; only the first table has columns.
    pub fn watched(self, resource: &Resource, object: Value, first: bool, now: Timestamp) -> Value {
        match self {
            Form::Table(version, include) => {
                let revision = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                table(resource, version, include, revision, vec![object], first, now)
            }
            other => other.one(resource, object, now),
        }
    }
}

fn partial(object: Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": object["metadata"],
    })
}

fn table(
    resource: &Resource,
    version: &str,
    include: Include,
    metadata: Value,
    items: Vec<Value>,
    headers: bool,
    now: Timestamp,
) -> Value {
    let columns: Vec<Value> = resource
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format, "description": "",
                "priority": i32::from(column.wide),
            })
        })
        .collect();
    let rows: Vec<Value> = items
        .into_iter()
        .map(|item| {
            let cells = (resource.cells)(&item, now);
            debug_assert_eq!(cells.len(), resource.columns.len(), "{}", resource.kind);
            match include {
                Include::None => json!({"cells": cells, "object": null}),
                Include::Metadata => json!({"cells": cells, "object": partial(item, version)}),
                Include::Object => json!({"cells": cells, "object": item}),
            }
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
        "columnDefinitions": if headers { columns } else { Vec::new() }, "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn negotiated(accept: &str) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        }
        Form::negotiate(&headers, &Query::default()).map_err(|error| error.code)
    }

    #[test]
    fn the_first_form_that_there_is_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(negotiated(kubectl), Ok(Form::Table("v1", Include::Metadata)));
        assert_eq!(negotiated("application/json;as=Table;v=v2;g=meta.k8s.io,application/json"), Ok(Form::Plain));
        assert_eq!(negotiated("application/vnd.kubernetes.protobuf,application/json"), Ok(Form::Plain));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(negotiated(metadata), Ok(Form::Partial("v1")));
        for all in ["", "*/*", "application/json, */*", "text/html,*/*;q=0.8"] {
            assert_eq!(negotiated(all), Ok(Form::Plain), "{all}");
        }
        assert_eq!(negotiated("application/vnd.kubernetes.protobuf"), Err(406));
        assert_eq!(negotiated("text/html"), Err(406));
    }
}
