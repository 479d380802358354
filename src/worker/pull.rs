//! Pulls images for pods: with the credentials of the pod's secrets, then with the node's own.

use k8s_openapi::{ByteString, api::core::v1::Pod, jiff::Timestamp};

use super::{
    host::ActionError,
    shared::{Pulled, Shared},
};
use crate::{
    api::{
        objects::{Objects, find},
        references::service_account,
        validation::secret_type,
    },
    image::{Credentials, ImageError, ImageReference, Keyring, RegistryError},
    obs::events::Severity,
};

/// What a pod's secrets hold for registries.
#[derive(Debug, Default)]
struct PullSecrets {
    keyring: Keyring,
    /// Names of secrets that are not there.
    missing: Vec<String>,
    /// Secrets that cannot be read, and why.
    unusable: Vec<String>,
}

/// Reads the secrets a pod names, or else those of its service account (which upstream's admission would have written
/// into the pod).
fn pull_secrets(pod: &Pod, objects: &Objects) -> PullSecrets {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let own = pod.spec.as_ref().and_then(|spec| spec.image_pull_secrets.as_deref()).unwrap_or_default();
    let account = find(&objects.service_accounts, namespace, service_account(pod));
    let named = match own {
        [] => account.and_then(|account| account.image_pull_secrets.as_deref()).unwrap_or_default(),
        own => own,
    };
    let mut secrets = PullSecrets::default();
    for name in named.iter().map(|reference| &reference.name).filter(|name| !name.is_empty()) {
        let Some(secret) = find(&objects.secrets, namespace, name) else {
            secrets.missing.push(name.clone());
            continue;
        };
        let value = |key| secret.data.as_ref().and_then(|data| data.get(key)).map(|ByteString(value)| value);
        // A secret of any other type is none for registries.
        let added = match secret.type_.as_deref() {
            Some(secret_type::DOCKERCONFIGJSON) => {
                value(".dockerconfigjson").map(|json| secrets.keyring.add_config_json(json))
            }
            Some(secret_type::DOCKERCFG) => value(".dockercfg").map(|json| secrets.keyring.add_dockercfg(json)),
            _ => None,
        };
        if let Some(Err(error)) = added {
            secrets.unusable.push(format!("secret {namespace}/{name}: {error}"));
        }
    }
    secrets
}

/// Whether a registry may give to others what it refused.
fn depends_on_who_asks(error: &ImageError) -> bool {
    match error {
        ImageError::Registry { source, .. } => {
            matches!(source, RegistryError::Unauthorized(_) | RegistryError::Denied(_) | RegistryError::NotFound(_))
        }
        _ => false,
    }
}

/// Reason and message of all that was tried.
fn failure(errors: &[ImageError], unusable: Vec<String>) -> ActionError {
    let reason = errors.last().map_or("ErrImagePull", |error| error.reason().as_str()).to_owned();
    let mut messages = unusable;
    for message in errors.iter().map(ImageError::message) {
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    let message = match messages.as_slice() {
        [only] => only.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    ActionError { reason, message }
}

impl Shared {
    /// Pulls an image for a pod, one credential after the other until the registry gives it. The node's own credentials
    /// come last; nobody's at all are tried only where there are none, as upstream.
    pub async fn pull_for(&self, pod: &Pod, reference: &str) -> Result<Pulled, ActionError> {
        let objects = self.objects.borrow().clone();
        let PullSecrets { keyring, missing, unusable } = pull_secrets(pod, &objects);
        let parsed = ImageReference::parse(reference).map_err(|error| failure(&[error], Vec::new()))?;
        let mut tries: Vec<Option<Credentials>> = keyring.lookup(&parsed).into_iter().map(Some).collect();
        let node =
            self.config.registries.iter().any(|registry| registry.host == parsed.host() && registry.username.is_some());
        if tries.is_empty() || node {
            tries.push(None);
        }
        let mut errors = Vec::new();
        for credentials in tries {
            match self.pull(reference, credentials).await {
                Ok(pulled) => return Ok(pulled),
                Err(error) => {
                    let others_may = depends_on_who_asks(&error);
                    errors.push(error);
                    if !others_may {
                        break;
                    }
                }
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            let now = Timestamp::now();
            self.events.record(pod, None, Severity::Warning, "FailedToRetrieveImagePullSecret", message, now);
        }
        Err(failure(&errors, unusable))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::object::{Object, ObjectKind};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn objects() -> Objects {
        let object = |kind, value: Value| Object::decode(kind, &value, "").object.unwrap();
        let named = |name: &str| json!({"name": name, "namespace": "shop"});
        let secret = |name: &str, kind: &str, key: &str, content: &str| {
            use base64::Engine;
            let content = base64::engine::general_purpose::STANDARD.encode(content);
            object(ObjectKind::Secret, json!({"metadata": named(name), "type": kind, "data": {key: content}}))
        };
        let entry = |user: &str| json!({"r.io": {"username": user, "password": "p"}});
        let config = |user: &str| json!({"auths": entry(user)}).to_string();
        [
            secret("json", secret_type::DOCKERCONFIGJSON, ".dockerconfigjson", &config("json")),
            secret("cfg", secret_type::DOCKERCFG, ".dockercfg", &entry("cfg").to_string()),
            secret("account", secret_type::DOCKERCONFIGJSON, ".dockerconfigjson", &config("account")),
            secret("opaque", "Opaque", ".dockerconfigjson", &config("opaque")),
            secret("bad", secret_type::DOCKERCONFIGJSON, ".dockerconfigjson", r#"{"auths": 7}"#),
            object(
                ObjectKind::ServiceAccount,
                json!({"metadata": named("robot"), "imagePullSecrets": [{"name": "account"}]}),
            ),
        ]
        .into_iter()
        .collect()
    }

    fn users(secrets: &PullSecrets) -> Vec<String> {
        let found = secrets.keyring.lookup(&ImageReference::parse("r.io/a").unwrap());
        let name = |credentials| match credentials {
            Credentials::Basic { username, .. } => username,
            other => format!("{other:?}"),
        };
        found.into_iter().map(name).collect()
    }

    #[test]
    fn secrets_are_read_in_the_order_in_which_they_are_named() {
        let names = ["cfg", "none", "json", "opaque", "", "bad"].map(|name| json!({"name": name}));
        let secrets = pull_secrets(&pod(json!({"containers": [], "imagePullSecrets": names})), &objects());
        assert_eq!(users(&secrets), ["cfg", "json"]);
        assert_eq!(secrets.missing, ["none"]);
        assert_eq!(secrets.unusable, ["secret shop/bad: not a Docker client configuration (line 1, column 11)"]);
    }

    #[test]
    fn those_of_the_service_account_are_for_pods_that_name_none() {
        let with = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
            let spec = json!({"containers": [], "serviceAccountName": "robot", "imagePullSecrets": names});
            users(&pull_secrets(&pod(spec), &objects()))
        };
        assert_eq!(with(&[]), ["account"]);
        assert_eq!(with(&["json"]), ["json"]);
        assert!(users(&pull_secrets(&pod(json!({"containers": []})), &objects())).is_empty());
    }

    #[test]
    fn a_failure_says_all_that_was_tried_once() {
        let refused = |source| ImageError::Registry {
            reference: "r.io/a:1".to_owned(),
            host: "r.io".to_owned(),
            subject: "manifest 1".to_owned(),
            source,
        };
        let unauthorized = || refused(RegistryError::Unauthorized("no".to_owned()));
        let unreachable = refused(RegistryError::Unreachable("gone".to_owned()));
        assert!(depends_on_who_asks(&unauthorized()) && !depends_on_who_asks(&unreachable));
        let one = failure(&[unauthorized(), unauthorized()], Vec::new());
        assert_eq!((one.reason.as_str(), one.message.clone()), ("ErrImagePull", unauthorized().message()));
        let both = failure(&[unauthorized(), unreachable.clone()], vec!["secret a/b: bad".to_owned()]);
        assert_eq!(both.reason, "RegistryUnavailable");
        let expected = format!("[secret a/b: bad, {}, {}]", unauthorized().message(), unreachable.message());
        assert_eq!(both.message, expected);
    }
}
