//! Discovery: which groups, versions and types there are, each path by itself and all in one document.

use std::collections::BTreeMap;

use hyper::{HeaderMap, Response};
use serde_json::{Value, json};

use super::{
    form::accepted,
    response::{Body, full, json as answer_json, with_type},
};
use crate::control::registry::resource::{Action, Resource, Subresource};

/// Groups in upstream's order of preference come first.
fn groups(resources: &[&'static Resource]) -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resource in resources {
        let versions = groups.entry(resource.group).or_default();
        if !versions.contains(&resource.version) {
            versions.push(resource.version);
        }
    }
    groups
}

fn kind_of(resource: &Resource, subresource: &Subresource) -> (&'static str, &'static str, &'static str) {
    match subresource.action {
        Action::Part(_) => (resource.group, resource.version, resource.kind),
        Action::Scale => ("autoscaling", "v1", "Scale"),
        Action::Binding => ("", "v1", "Binding"),
        Action::Eviction => ("policy", "v1", "Eviction"),
    }
}

/// What a subresource can be asked to do.
pub fn verbs_of(subresource: &Subresource) -> &'static [&'static str] {
    match subresource.action {
        Action::Part(crate::control::registry::resource::Part::Finalize) => &["update"],
        Action::Part(_) | Action::Scale => &["get", "patch", "update"],
        Action::Binding | Action::Eviction => &["create"],
    }
}

/// Answers a path of discovery; `None` if it is none.
pub fn answer(resources: &[&'static Resource], path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let groups = groups(resources);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let value = match parts.as_slice() {
        ["api"] => match aggregated(headers) {
            Some(version) => return Some(aggregate(resources, version, true)),
            None => json!({
                "kind": "APIVersions", "versions": groups.get("")?,
                "serverAddressByClientCIDRs": [],
            }),
        },
        ["apis"] => match aggregated(headers) {
            Some(version) => return Some(aggregate(resources, version, false)),
            None => {
                let list: Vec<Value> = groups
                    .iter()
                    .filter(|(group, _)| !group.is_empty())
                    .map(|(group, versions)| without_type(api_group(group, versions)))
                    .collect();
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
            }
        },
        ["apis", group] => api_group(group, groups.get(group)?),
        ["api", version] => resource_list(resources, "", version)?,
        ["apis", group, version] if !group.is_empty() => resource_list(resources, group, version)?,
        _ => return None,
    };
    Some(answer_json(200, &value))
}

fn without_type(mut group: Value) -> Value {
    if let Some(fields) = group.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    group
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": all, "preferredVersion": all.first()})
}

fn resource_list(resources: &[&'static Resource], group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    let mut found: Vec<_> = resources.iter().filter(|one| (one.group, one.version) == (group, version)).collect();
    found.sort_by_key(|resource| resource.plural);
    let api_version = found.first()?.api_version();
    for resource in found {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs(),
        });
        if !resource.short.is_empty() {
            entry["shortNames"] = json!(resource.short);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        list.push(entry);
        for subresource in resource.subresources {
            let (group, version, kind) = kind_of(resource, subresource);
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, subresource.name), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind, "verbs": verbs_of(subresource),
            });
            if (group, version) != (resource.group, resource.version) {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            list.push(entry);
        }
    }
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": list}))
}

/// The version of the aggregated form that the client prefers to the plain one, if any.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    for accepted in accepted(headers).into_iter().filter(|one| one.is_json()) {
        match (accepted.get("as"), accepted.get("g"), accepted.get("v")) {
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Some("v2"),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => return Some("v2beta1"),
            ("", ..) => return None,
            _ => {}
        }
    }
    None
}

fn aggregate(resources: &[&'static Resource], version: &str, core: bool) -> Response<Body> {
    let mut items = Vec::new();
    for (group, versions) in groups(resources).into_iter().filter(|(group, _)| group.is_empty() == core) {
        let versions: Vec<Value> = versions
            .into_iter()
            .map(|version| {
                let mut found: Vec<_> =
                    resources.iter().filter(|one| (one.group, one.version) == (group, version)).collect();
                found.sort_by_key(|resource| resource.plural);
                let list: Vec<Value> = found.into_iter().map(|resource| discovered(resource)).collect();
                json!({"version": version, "resources": list, "freshness": "Current"})
            })
            .collect();
        let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
        items.push(json!({"metadata": metadata, "versions": versions}));
    }
    let value = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    });
    let media_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    with_type(200, media_type, full(value.to_string()))
}

fn discovered(resource: &Resource) -> Value {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let mut entry = json!({
        "resource": resource.plural, "singularResource": resource.singular,
        "responseKind": kind((resource.group, resource.version, resource.kind)),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" }, "verbs": resource.verbs(),
    });
    if !resource.short.is_empty() {
        entry["shortNames"] = json!(resource.short);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let below: Vec<Value> = resource
        .subresources
        .iter()
        .map(|one| {
            json!({"subresource": one.name, "responseKind": kind(kind_of(resource, one)), "verbs": verbs_of(one)})
        })
        .collect();
    if !below.is_empty() {
        entry["subresources"] = below.into();
    }
    entry
}
