//! Who may do what. For now: members of `system:masters` everything, others nothing but to ask who they are and what
//! they may do.

use super::{
    authn::User,
    error::{ApiError, Subject},
    pki::MASTERS,
    rest::request_info::RequestInfo,
};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// `get`, `list`, …
    pub verb: &'a str,
    /// Path, for what is no resource.
    pub path: &'a str,
    /// Whether it is a resource.
    pub is_resource: bool,
    /// API group.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Subresource; may be empty.
    pub subresource: &'a str,
    /// Namespace; may be empty.
    pub namespace: &'a str,
    /// Name; may be empty.
    pub name: &'a str,
}

impl<'a> Attributes<'a> {
    /// Those of a request.
    pub fn of(info: &'a RequestInfo) -> Attributes<'a> {
        let verb = info.verb.as_str();
        match &info.resource {
            Some(resource) => Attributes {
                verb,
                path: &info.path,
                is_resource: true,
                group: &resource.group,
                resource: &resource.plural,
                subresource: &resource.subresource,
                namespace: &resource.namespace,
                name: &resource.name,
            },
            None => Attributes {
                verb,
                path: &info.path,
                is_resource: false,
                group: "",
                resource: "",
                subresource: "",
                namespace: "",
                name: "",
            },
        }
    }

    fn full_resource(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

/// Whether the user may; otherwise nobody has said so.
pub fn is_allowed(user: &User, attributes: &Attributes<'_>) -> bool {
    // What upstream's roles `system:basic-user` and `system:discovery` give everybody who is known.
    let basic = attributes.is_resource
        && attributes.verb == "create"
        && matches!(
            (attributes.group, attributes.resource),
            ("authentication.k8s.io", "selfsubjectreviews")
                | ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
        );
    let path = attributes.path;
    let discovery = !attributes.is_resource
        && attributes.verb == "get"
        && (matches!(
            path,
            "/api" | "/apis" | "/healthz" | "/livez" | "/readyz" | "/version" | "/version/" | "/openapi"
        ) || ["/api/", "/apis/", "/openapi/"].iter().any(|prefix| path.starts_with(prefix)));
    basic || discovery || user.groups.iter().any(|group| group == MASTERS)
}

/// Refuses what the user may not do.
///
/// # Errors
/// Forbidden, in upstream's words.
pub fn require(user: &User, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    if is_allowed(user, attributes) {
        return Ok(());
    }
    Err(forbidden(user, attributes))
}

fn forbidden(user: &User, attributes: &Attributes<'_>) -> ApiError {
    let (name, verb) = (&user.name, attributes.verb);
    if !attributes.is_resource {
        let because = format!("User {name:?} cannot {verb} path {:?}", attributes.path);
        return ApiError::forbidden(Subject { group: "", kind: "", name: "" }, &because);
    }
    let place = match attributes.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let because = format!(
        "User {name:?} cannot {verb} resource {:?} in API group {:?} {place}",
        attributes.full_resource(),
        attributes.group,
    );
    ApiError::forbidden(Subject { group: attributes.group, kind: attributes.resource, name: attributes.name }, &because)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(groups: &[&str]) -> User {
        User {
            name: "jane".to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..User::default()
        }
    }

    const LIST: Attributes<'_> = Attributes {
        verb: "list",
        path: "",
        is_resource: true,
        group: "apps",
        resource: "deployments",
        subresource: "",
        namespace: "shop",
        name: "",
    };

    #[test]
    fn only_masters_may_and_others_are_told_in_words_they_can_search_for() {
        assert!(require(&user(&["a", MASTERS]), &LIST).is_ok());
        let message = |attributes: &Attributes<'_>| require(&user(&["a"]), attributes).unwrap_err().message;
        assert_eq!(
            message(&LIST),
            "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API group \"apps\" \
             in the namespace \"shop\""
        );
        let one = Attributes { verb: "update", subresource: "scale", namespace: "", name: "web", ..LIST };
        assert_eq!(
            message(&one),
            "deployments.apps \"web\" is forbidden: User \"jane\" cannot update resource \"deployments/scale\" in API \
             group \"apps\" at the cluster scope"
        );
        let path = Attributes { is_resource: false, path: "/metrics", verb: "get", ..LIST };
        assert_eq!(message(&path), "forbidden: User \"jane\" cannot get path \"/metrics\"");
        assert!(require(&user(&[]), &Attributes { path: "/apis/apps/v1", ..path }).is_ok());
    }
}
