//! A step that failed, on its way to becoming a [`StartError`].

use std::io;

use crate::{supervisor::spec::StartError, sys::mount::FileSystem};

/// The Kubernetes reason of a failure, as upstream's kubelet and containerd give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum Reason {
    /// The pod contradicts the image (runAsNonRoot, a subPath that leaves its volume): found by the kubelet upstream.
    Config,
    /// The container cannot be made from its image (a user it does not know): CreateContainer upstream.
    Create,
    /// Everything else: containerd's reason for a container that was made and did not start.
    Start,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Reason::Config => "CreateContainerConfigError",
            Reason::Create => "CreateContainerError",
            Reason::Start => "StartError",
        }
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub(in crate::supervisor) struct Failure {
    /// A short phrase with its object: `mount proc on /proc`.
    pub(in crate::supervisor) step: String,
    /// What the kernel said.
    #[source]
    pub(in crate::supervisor) source: Option<io::Error>,
    /// One line with the cause, where the kernel's word alone does not do.
    pub(in crate::supervisor) message: Option<String>,
    /// Whose fault it is.
    pub(in crate::supervisor) reason: Reason,
}

impl Failure {
    /// A step that was refused by us rather than by the kernel.
    pub(in crate::supervisor) fn refused(step: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure { step: step.into(), source: None, message: Some(message.into()), reason: Reason::Start }
    }

    /// The same with another reason.
    pub(in crate::supervisor) fn because(self, reason: Reason) -> Failure {
        Failure { reason, ..self }
    }
}

impl Failure {
    /// A step with a file system being made, which may itself have said why it failed.
    pub(super) fn of_file_system(step: impl Into<String>, source: io::Error, file_system: &FileSystem) -> Failure {
        let complaint = file_system.complaint();
        let message = complaint.map(|complaint| format!("{}: {complaint}", describe(&source)));
        Failure { step: step.into(), source: Some(source), message, reason: Reason::Start }
    }
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> StartError {
        let errno = failure.source.as_ref().and_then(io::Error::raw_os_error).unwrap_or(0);
        let message = match (failure.message, &failure.source) {
            (Some(message), _) => message,
            (None, Some(source)) => describe(source),
            (None, None) => "failed".to_owned(),
        };
        // The message comes from names in pods and images; a status has room for one short line.
        let message = message.replace('\n', " ").chars().take(MAX_MESSAGE).collect();
        StartError { step: failure.step, errno, message, reason: failure.reason.as_str().to_owned() }
    }
}

/// Characters of a message that are kept: a record must fit the pipe with room to spare, and so must a pod's status.
const MAX_MESSAGE: usize = 1024;

/// strerror, in lower case as runc and Go print it, without Rust's `(os error N)`.
pub(in crate::supervisor) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

/// Gives a result of the kernel the name of its step.
pub(in crate::supervisor) trait Step<T> {
    /// `step` is made only when it is needed.
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T> Step<T> for io::Result<T> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|source| Failure {
            step: step().into(),
            source: Some(source),
            message: None,
            reason: Reason::Start,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_step_errno_and_cause_once() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(2));
        let error = StartError::from(failed.step(|| "mount proc on /proc").unwrap_err().because(Reason::Create));
        assert_eq!(
            error,
            StartError {
                step: "mount proc on /proc".to_owned(),
                errno: 2,
                message: "no such file or directory".to_owned(),
                reason: "CreateContainerError".to_owned(),
            }
        );
        let refused = StartError::from(Failure::refused("set up user", "line one\nline two"));
        assert_eq!((refused.errno, refused.message.as_str()), (0, "line one line two"));
    }
}
