//! Which AppArmor profile a container asks for: by its own field, by the annotation that was there before there was a
//! field, or by the field of its pod (upstream: `pkg/security/apparmor`).

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod, SecurityContext};

/// Annotations of a pod, each followed by the name of a container.
pub const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What confines a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// The agent's own profile.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One that the node's administrator has loaded, by its name.
    Localhost(String),
}

impl Profile {
    fn of_field(field: &AppArmorProfile) -> Option<Profile> {
        match field.type_.as_str() {
            "RuntimeDefault" => Some(Profile::RuntimeDefault),
            "Unconfined" => Some(Profile::Unconfined),
            "Localhost" => Some(Profile::Localhost(field.localhost_profile.clone().unwrap_or_default())),
            _ => None,
        }
    }

    /// `runtime/default`, `unconfined` or `localhost/NAME`; anything else is no profile.
    pub fn of_annotation(value: &str) -> Option<Profile> {
        match value {
            "runtime/default" => Some(Profile::RuntimeDefault),
            "unconfined" => Some(Profile::Unconfined),
            _ => value.strip_prefix("localhost/").map(|name| Profile::Localhost(name.to_owned())),
        }
    }
}

/// The profile that a container asks for; `None` when neither it nor its pod says anything.
pub fn profile(pod: &Pod, container: &str, own: Option<&SecurityContext>) -> Option<Profile> {
    let own = own.and_then(|own| own.app_armor_profile.as_ref()).and_then(Profile::of_field);
    let annotation = || {
        let value = pod.metadata.annotations.as_ref()?.get(&format!("{ANNOTATION}{container}"))?;
        Profile::of_annotation(value)
    };
    let of_pod = || {
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        Profile::of_field(context.app_armor_profile.as_ref()?)
    };
    own.or_else(annotation).or_else(of_pod)
}

/// Whether anything in the pod asks to be confined: such a pod needs a kernel with AppArmor.
pub fn is_required(pod: &Pod) -> bool {
    let confines = |field: Option<&AppArmorProfile>| field.is_some_and(|field| field.type_ != "Unconfined");
    let annotations = pod.metadata.annotations.iter().flatten();
    if annotations.into_iter().any(|(key, value)| key.starts_with(ANNOTATION) && value != "unconfined") {
        return true;
    }
    let Some(spec) = &pod.spec else { return false };
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut contexts = containers
        .map(|container| container.security_context.as_ref())
        .chain(spec.ephemeral_containers.iter().flatten().map(|container| container.security_context.as_ref()));
    confines(of_pod) || contexts.any(|context| confines(context.and_then(|own| own.app_armor_profile.as_ref())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, of_pod: Value, own: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {"securityContext": of_pod, "containers": [{"name": "app", "securityContext": own}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_field_goes_before_the_annotation_and_that_before_the_pods_field() {
        let field = |kind: &str| json!({"appArmorProfile": {"type": kind}});
        let local = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}});
        let annotation = |value: &str| json!({format!("{ANNOTATION}app"): value});
        let local_profile = Some(Profile::Localhost("mine".to_owned()));
        for (annotations, of_pod, own, expected, required) in [
            (json!({}), json!({}), json!({}), None, false),
            (json!({}), field("RuntimeDefault"), json!({}), Some(Profile::RuntimeDefault), true),
            (json!({}), field("Unconfined"), json!({}), Some(Profile::Unconfined), false),
            (annotation("localhost/mine"), field("RuntimeDefault"), json!({}), local_profile.clone(), true),
            (annotation("runtime/default"), json!({}), field("Unconfined"), Some(Profile::Unconfined), true),
            (annotation("unconfined"), json!({}), local.clone(), local_profile, true),
            (annotation("nonsense"), field("Unconfined"), json!({}), Some(Profile::Unconfined), true),
        ] {
            let pod = pod(annotations, of_pod, own);
            let own = pod.spec.as_ref().unwrap().containers[0].security_context.as_ref();
            assert_eq!(profile(&pod, "app", own), expected, "{pod:?}");
            assert_eq!(is_required(&pod), required, "{pod:?}");
        }
    }
}
