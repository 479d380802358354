//! Why a pod or a container cannot be turned into what its supervisor needs.

use std::fmt;

/// Reasons as upstream shows them in a container's waiting state (or, for [`Reason::SysctlForbidden`], in the
/// status of a rejected pod).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The configuration of the container could not be worked out. May succeed later, so it is tried again.
    CreateContainerConfigError,
    /// The container was refused by what upstream calls the runtime.
    CreateContainerError,
    /// The container could not be run.
    RunContainerError,
    /// The pod asks for a sysctl it may not set; it fails for good.
    SysctlForbidden,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::CreateContainerConfigError => "CreateContainerConfigError",
            Reason::CreateContainerError => "CreateContainerError",
            Reason::RunContainerError => "RunContainerError",
            Reason::SysctlForbidden => "SysctlForbidden",
        })
    }
}

/// A field of a pod (or of an image) that cannot be acted upon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}{}{message}", if field.is_empty() { "" } else { ": " })]
pub struct ConfigError {
    /// Kubernetes reason.
    pub reason: Reason,
    /// Path from the pod's root, `spec.containers[0].env[1].valueFrom`; `image` for the image's own configuration. Empty
    /// where the message is upstream's, which says by itself what is missing and is what people look for.
    pub field: String,
    /// Upstream's words where it has some; what status.containerStatuses[].state.waiting.message shows.
    pub message: String,
}

impl ConfigError {
    /// The configuration could not be worked out.
    pub fn config(field: impl Into<String>, message: impl Into<String>) -> ConfigError {
        let (field, message) = (field.into(), message.into());
        ConfigError { reason: Reason::CreateContainerConfigError, field, message }
    }

    /// Something that the pod refers to is missing; `message` names it in upstream's words.
    pub fn missing(message: impl Into<String>) -> ConfigError {
        ConfigError::config("", message)
    }

    /// The container cannot be created.
    pub fn create(field: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { reason: Reason::CreateContainerError, field: field.into(), message: message.into() }
    }

    /// A sysctl is not allowed.
    pub fn sysctl(field: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { reason: Reason::SysctlForbidden, field: field.into(), message: message.into() }
    }
}
