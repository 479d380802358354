//! Questions about users and what they may do: answered, never stored.

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    authorization::v1::{LocalSubjectAccessReview, SelfSubjectAccessReview, SubjectAccessReview},
};
use serde_json::{Value, json};

use crate::{
    api::validation::FieldError,
    control::{
        authn::User,
        authz::{Attributes, is_allowed},
        error::{ApiError, Subject},
        registry::{
            resource::{Kind, Resource},
            text,
        },
    },
};

/// A question has no name.
macro_rules! question {
    ($type:ty) => {
        impl Kind for $type {
            fn validate(&self) -> Vec<FieldError> {
                Vec::new()
            }
        }
    };
}
question!(SelfSubjectReview);
question!(SelfSubjectAccessReview);
question!(SubjectAccessReview);
question!(LocalSubjectAccessReview);

/// authentication.k8s.io/v1 SelfSubjectReview: `kubectl auth whoami`.
pub static SELF_SUBJECT_REVIEWS: Resource = Resource {
    answer: Some(|object, user| {
        object["status"]["userInfo"] = user_info(user);
        Ok(())
    }),
    ..Resource::of::<SelfSubjectReview>("selfsubjectreviews", "selfsubjectreview", false)
};

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// authorization.k8s.io/v1 SelfSubjectAccessReview: `kubectl auth can-i`.
pub static SELF_SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    answer: Some(|object, user| decide(object, user, "SelfSubjectAccessReview")),
    ..Resource::of::<SelfSubjectAccessReview>("selfsubjectaccessreviews", "selfsubjectaccessreview", false)
};

/// authorization.k8s.io/v1 SubjectAccessReview.
pub static SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    answer: Some(|object, _| {
        let user = named_user(object, "SubjectAccessReview")?;
        decide(object, &user, "SubjectAccessReview")
    }),
    ..Resource::of::<SubjectAccessReview>("subjectaccessreviews", "subjectaccessreview", false)
};

/// authorization.k8s.io/v1 LocalSubjectAccessReview.
pub static LOCAL_SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    answer: Some(|object, _| {
        let kind = "LocalSubjectAccessReview";
        let user = named_user(object, kind)?;
        let (own, asked) = (text(object, "metadata.namespace"), text(object, "spec.resourceAttributes.namespace"));
        if own != asked {
            let error =
                FieldError::invalid("spec.resourceAttributes.namespace", asked, "must match metadata.namespace");
            return Err(invalid(kind, error));
        }
        decide(object, &user, kind)
    }),
    ..Resource::of::<LocalSubjectAccessReview>("localsubjectaccessreviews", "localsubjectaccessreview", true)
};

fn invalid(kind: &str, error: FieldError) -> ApiError {
    ApiError::invalid(Subject { group: "authorization.k8s.io", kind, name: "" }, &[error])
}

fn named_user(object: &Value, kind: &str) -> Result<User, ApiError> {
    let spec = &object["spec"];
    let groups: Vec<String> =
        spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if text(spec, "user").is_empty() && groups.is_empty() {
        let detail = "at least one of user or group must be specified";
        return Err(invalid(kind, FieldError::required_because("spec.user", detail)));
    }
    Ok(User { name: text(spec, "user").to_owned(), uid: text(spec, "uid").to_owned(), groups, ..User::default() })
}

fn decide(object: &mut Value, user: &User, kind: &str) -> Result<(), ApiError> {
    let spec = &object["spec"];
    let allowed = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(asked), None) => is_allowed(
            user,
            &Attributes {
                verb: text(asked, "verb"),
                path: "",
                is_resource: true,
                group: text(asked, "group"),
                resource: text(asked, "resource"),
                subresource: text(asked, "subresource"),
                namespace: text(asked, "namespace"),
                name: text(asked, "name"),
            },
        ),
        (None, Some(asked)) => is_allowed(
            user,
            &Attributes {
                verb: text(asked, "verb"),
                path: text(asked, "path"),
                is_resource: false,
                group: "",
                resource: "",
                subresource: "",
                namespace: "",
                name: "",
            },
        ),
        _ => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(invalid(kind, FieldError::invalid("spec.resourceAttributes", "", detail)));
        }
    };
    object["status"] = json!({ "allowed": allowed });
    Ok(())
}
