//! What a request is about, from its method and path alone (`apiserver/pkg/endpoints/request/requestinfo.go` upstream).

use crate::control::registry::options::{Query, unquote};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the method in lower case for what
    /// is no resource.
    pub verb: String,
    /// The path as it was sent.
    pub path: String,
    /// The resource; `None` for discovery, health and the like.
    pub resource: Option<ResourceInfo>,
}

/// The resource of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceInfo {
    /// API group; empty: the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural.
    pub plural: String,
    /// Namespace; empty: none, or all.
    pub namespace: String,
    /// Name; empty: all.
    pub name: String,
    /// Subresource; empty: the object itself.
    pub subresource: String,
    /// What of the path is behind that.
    pub rest: Vec<String>,
}

impl RequestInfo {
    /// Reads method, path and query.
    pub fn parse(method: &str, path: &str, query: &Query) -> RequestInfo {
        let parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(|part| unquote(&part.replace('+', "%2B"))).collect();
        let plain = || RequestInfo { verb: method.to_lowercase(), path: path.to_owned(), resource: None };
        let mut parts = parts.as_slice();
        let (group, version);
        match parts {
            [api, found, rest @ ..] if api == "api" && !rest.is_empty() => {
                (group, version, parts) = (String::new(), found.clone(), rest);
            }
            [apis, found, of, rest @ ..] if apis == "apis" && !rest.is_empty() => {
                (group, version, parts) = (found.clone(), of.clone(), rest);
            }
            _ => return plain(),
        }
        // The old way to watch: a word in the path.
        let mut watch = false;
        if let [word, rest @ ..] = parts
            && word == "watch"
            && !rest.is_empty()
        {
            (watch, parts) = (true, rest);
        }
        let mut namespace = String::new();
        if let [word, found, rest @ ..] = parts
            && word == "namespaces"
        {
            namespace.clone_from(found);
            // `namespaces/a/status` is of the namespace; `namespaces/a/pods` is in it.
            let own = rest.first().is_some_and(|next| matches!(next.as_str(), "status" | "finalize"));
            if !rest.is_empty() && !own {
                parts = rest;
            }
        }
        let [plural, rest @ ..] = parts else { return plain() };
        let mut rest = rest.iter().cloned();
        let name = rest.next().unwrap_or_default();
        let subresource = rest.next().unwrap_or_default();
        let rest: Vec<String> = rest.collect();
        let many = name.is_empty();
        let verb = match method {
            "GET" | "HEAD" if many && (watch || query.is_set("watch")) => "watch",
            "GET" | "HEAD" if watch => "watch",
            "GET" | "HEAD" if many => "list",
            "GET" | "HEAD" => "get",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" if many => "deletecollection",
            "DELETE" => "delete",
            _ => return RequestInfo { verb: method.to_lowercase(), ..plain() },
        };
        let resource = ResourceInfo { group, version, plural: plural.clone(), namespace, name, subresource, rest };
        RequestInfo { verb: verb.to_owned(), path: path.to_owned(), resource: Some(resource) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_what_they_are_about() {
        for (method, path, query, expected) in [
            ("GET", "/api/v1/pods", "", "list :v1:pods:::"),
            ("GET", "/api/v1/pods", "watch=true", "watch :v1:pods:::"),
            ("GET", "/api/v1/pods", "watch=false", "list :v1:pods:::"),
            ("GET", "/api/v1/namespaces/a/pods/b", "watch=1", "get :v1:pods:a:b:"),
            ("GET", "/api/v1/watch/namespaces/a/pods", "", "watch :v1:pods:a::"),
            ("GET", "/api/v1/namespaces", "", "list :v1:namespaces:::"),
            ("GET", "/api/v1/namespaces/a", "", "get :v1:namespaces:a:a:"),
            ("PUT", "/api/v1/namespaces/a/finalize", "", "update :v1:namespaces:a:a:finalize"),
            ("POST", "/api/v1/namespaces/a/pods/b/binding", "", "create :v1:pods:a:b:binding"),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", "", "patch apps:v1:deployments:a:b:scale"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "", "deletecollection apps:v1:deployments:a::"),
            ("DELETE", "/api/v1/nodes/n%2F1", "", "delete :v1:nodes::n/1:"),
            ("GET", "/api/v1", "", "get"),
            ("GET", "/apis/apps/v1/", "", "get"),
            ("GET", "/version", "", "get"),
            ("OPTIONS", "/api/v1/pods", "", "options"),
        ] {
            let info = RequestInfo::parse(method, path, &Query::parse(query));
            let found = info.resource.map(|one| {
                let parts = [one.group, one.version, one.plural, one.namespace, one.name, one.subresource];
                format!(" {}", parts.join(":"))
            });
            assert_eq!(info.verb + &found.unwrap_or_default(), expected, "{method} {path}");
        }
    }
}
