//! imagePullPolicy: upstream's default and what it means for an image that is or is not here. Pure.

use super::{error::ImageError, reference::ImageReference};

/// `imagePullPolicy` of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry at every start; what is here already is not downloaded again.
    Always,
    /// Pull only what is not here.
    IfNotPresent,
    /// Never ask a registry.
    Never,
}

impl PullPolicy {
    /// Upstream's spelling, `None` for anything else.
    pub fn parse(text: &str) -> Option<PullPolicy> {
        match text {
            "Always" => Some(PullPolicy::Always),
            "IfNotPresent" => Some(PullPolicy::IfNotPresent),
            "Never" => Some(PullPolicy::Never),
            _ => None,
        }
    }

    /// Upstream's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }

    /// The default for an image: `Always` for `:latest` (also when the tag is left out), `IfNotPresent` for any other
    /// tag and for a digest. A reference that cannot be parsed gets `IfNotPresent`, as upstream; it fails later.
    pub fn default_for(image: &str) -> PullPolicy {
        match ImageReference::parse(image) {
            Ok(reference) if reference.tag() == Some("latest") => PullPolicy::Always,
            _ => PullPolicy::IfNotPresent,
        }
    }
}

/// What is to be done before a container may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Use the image that is here.
    UsePresent,
    /// Pull it.
    Pull,
}

/// Decides for an image as written in the pod. `present`: the store has it.
///
/// A reference that is not a valid name is refused, except an image id, which can only be present.
pub fn decide(policy: PullPolicy, image: &str, present: bool) -> Result<Decision, ImageError> {
    if present && policy != PullPolicy::Always {
        return Ok(Decision::UsePresent);
    }
    ImageReference::parse(image)?;
    match (policy, present) {
        (PullPolicy::Never, false) => Err(ImageError::NeverPull { reference: image.to_owned() }),
        (PullPolicy::Never | PullPolicy::IfNotPresent, true) => Ok(Decision::UsePresent),
        (PullPolicy::Always | PullPolicy::IfNotPresent, _) => Ok(Decision::Pull),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::error::Reason;

    #[test]
    fn the_default_depends_on_the_tag() {
        let digest = format!("nginx@sha256:{}", "a".repeat(64));
        let both = format!("nginx:latest@sha256:{}", "a".repeat(64));
        for (image, policy) in [
            ("nginx", PullPolicy::Always),
            ("nginx:latest", PullPolicy::Always),
            ("localhost:5000/nginx", PullPolicy::Always),
            ("nginx:1.27", PullPolicy::IfNotPresent),
            (&digest, PullPolicy::IfNotPresent),
            (&both, PullPolicy::Always),
            ("UPPER", PullPolicy::IfNotPresent),
        ] {
            assert_eq!(PullPolicy::default_for(image), policy, "{image}");
            assert_eq!(PullPolicy::parse(policy.as_str()), Some(policy));
        }
    }

    #[test]
    fn decisions() {
        use Decision::{Pull, UsePresent};
        assert_eq!(decide(PullPolicy::Always, "nginx", true).unwrap(), Pull);
        assert_eq!(decide(PullPolicy::Always, "nginx", false).unwrap(), Pull);
        assert_eq!(decide(PullPolicy::IfNotPresent, "nginx", true).unwrap(), UsePresent);
        assert_eq!(decide(PullPolicy::IfNotPresent, "nginx", false).unwrap(), Pull);
        assert_eq!(decide(PullPolicy::Never, "nginx", true).unwrap(), UsePresent);
        let never = decide(PullPolicy::Never, "nginx", false).unwrap_err();
        assert_eq!(never.reason(), Reason::ErrImageNeverPull);
        let invalid = decide(PullPolicy::IfNotPresent, "Not A Name", false).unwrap_err();
        assert_eq!(invalid.reason(), Reason::InvalidImageName);
        assert!(invalid.message().contains("Not A Name"));
    }
}
