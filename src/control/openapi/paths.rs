//! Paths of the documents: as much of them as clients look at, which is what can be done with which type, and by which
//! parameters and kinds of patches.

use serde_json::{Map, Value, json};

use crate::control::registry::{patch::PatchKind, resource::Resource};

/// Which OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// 2.
    V2,
    /// 3.
    V3,
}

/// Adds the paths of a type.
pub fn add(resource: &Resource, paths: &mut Map<String, Value>, dialect: Dialect) {
    let base = match resource.group {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    };
    let in_one = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{in_one}/{}", resource.plural);
    let mut operations = Map::new();
    let verbs = resource.verbs();
    let has = |verb: &str| verbs.contains(&verb);
    if has("list") {
        operations.insert("get".to_owned(), operation(resource, "list", dialect));
    }
    if has("create") {
        operations.insert("post".to_owned(), operation(resource, "post", dialect));
    }
    if has("deletecollection") {
        operations.insert("delete".to_owned(), operation(resource, "deletecollection", dialect));
    }
    paths.insert(collection.clone(), operations.into());
    if !has("get") {
        return;
    }
    if resource.namespaced {
        let all = json!({"get": operation(resource, "list", dialect)});
        paths.insert(format!("{base}/{}", resource.plural), all);
    }
    let mut operations = Map::new();
    for (method, action) in [("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete")] {
        operations.insert(method.to_owned(), operation(resource, action, dialect));
    }
    paths.insert(format!("{collection}/{{name}}"), operations.into());
}

fn operation(resource: &Resource, action: &str, dialect: Dialect) -> Value {
    let mut parameters = vec!["pretty"];
    match action {
        "list" => parameters.extend([
            "allowWatchBookmarks",
            "continue",
            "fieldSelector",
            "labelSelector",
            "limit",
            "resourceVersion",
            "resourceVersionMatch",
            "sendInitialEvents",
            "timeoutSeconds",
            "watch",
        ]),
        "post" | "put" | "patch" => parameters.extend(["dryRun", "fieldManager", "fieldValidation"]),
        "delete" | "deletecollection" => {
            parameters.extend(["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"]);
        }
        _ => {}
    }
    let parameters: Vec<Value> = parameters.into_iter().map(|name| parameter(name, dialect)).collect();
    let name = (resource.schema_name)();
    let reference = match dialect {
        Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
        Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
    };
    let mut operation = json!({
        "operationId": format!("{action}{}{}{}", resource.group.replace('.', ""), resource.version, resource.kind),
        "parameters": parameters,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind":
            {"group": resource.group, "version": resource.version, "kind": resource.kind},
    });
    match dialect {
        Dialect::V3 => {
            operation["responses"] =
                json!({"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}});
            let media_types: Vec<&str> = match action {
                "patch" => PatchKind::MEDIA_TYPES.to_vec(),
                "post" | "put" => vec!["application/json"],
                _ => Vec::new(),
            };
            if !media_types.is_empty() {
                let schema = if action == "patch" { json!({"type": "object"}) } else { reference };
                let content = media_types.iter().map(|name| ((*name).to_owned(), json!({"schema": schema})));
                operation["requestBody"] = json!({"content": content.collect::<Map<String, Value>>()});
            }
        }
        Dialect::V2 => {
            operation["produces"] = json!(["application/json"]);
            operation["responses"] = json!({"200": {"description": "OK", "schema": reference}});
            if action == "patch" {
                operation["consumes"] = json!(PatchKind::MEDIA_TYPES);
            }
        }
    }
    operation
}

fn parameter(name: &str, dialect: Dialect) -> Value {
    let kind = match name {
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
        "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "orphanDependents" => "boolean",
        _ => "string",
    };
    match dialect {
        Dialect::V2 => json!({"name": name, "in": "query", "type": kind, "uniqueItems": true}),
        Dialect::V3 => json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}}),
    }
}
