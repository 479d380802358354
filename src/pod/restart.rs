//! Whether a running container has to be started anew because its pod has changed.

use k8s_openapi::api::core::v1::Container;

use super::{
    observed::{Launched, ObservedPod},
    resize::{self, How},
};

/// Why a running container is stopped and followed by another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RestartReason {
    /// Its image is another one.
    Definition,
    /// Its resources are others, and its policy wants it to begin with them.
    Resize,
}

impl RestartReason {
    /// Upstream's sentence, for the event `Killing`.
    pub fn message(self, container: &str) -> String {
        match self {
            RestartReason::Definition => format!("Container {container} definition changed, will be restarted"),
            RestartReason::Resize => format!("Container {container} resize requires restart"),
        }
    }
}

/// Why `container` may not go on as it was launched. Upstream compares name and image (`pickFieldsToHash`): of what
/// else makes a difference only resources can change.
pub fn needed(container: &Container, launched: &Launched) -> Option<RestartReason> {
    let image = container.image.as_deref().unwrap_or_default();
    if launched.image != image {
        return Some(RestartReason::Definition);
    }
    (resize::how(container, &launched.resources) == Some(How::Restart)).then_some(RestartReason::Resize)
}

impl ObservedPod {
    /// Whether `attempt` was stopped in order to be followed by another.
    pub fn restarting(&self, container: &str, attempt: u32) -> bool {
        self.restarts.get(container) == Some(&attempt)
    }

    /// What the newest attempt runs with, if that is known.
    pub fn launched(&self, container: &str) -> Option<&Launched> {
        let attempt = self.latest(container)?.number;
        self.launched.get(container).filter(|launched| launched.attempt == attempt)
    }
}
