//! Image references: `[host[:port]/]repository[:tag][@digest]`, normalized as Docker does.
//!
//! Grammar: the distribution project's `reference` package. It is parsed by hand because the usual regular expression,
//! with its bounded repetition of a Unicode class, takes megabytes once compiled, in an agent that should fit into 20.

use std::fmt;

use super::{digest::Digest, error::ImageError};

const DEFAULT_HOST: &str = "docker.io";
const LEGACY_DEFAULT_HOST: &str = "index.docker.io";
const REPOSITORY_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// A normalized reference. It has a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageReference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageReference {
    /// Parses and normalizes: host `docker.io` and repository prefix `library/` where they are left out, tag `latest`
    /// where neither tag nor digest is given.
    pub fn parse(text: &str) -> Result<ImageReference, ImageError> {
        parse(text).map_err(|problem| ImageError::InvalidReference { reference: text.to_owned(), problem })
    }

    /// Registry host with port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Repository within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, if there is one. It decides; a tag beside it is only for people.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `host/repository:tag`, when there is a tag and no digest.
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// `host/repository@digest`.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What a registry is asked for: the digest, else the tag.
    pub fn version(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The key under which the store knows it: with a digest the tag is dropped.
    pub fn key(&self) -> String {
        match &self.digest {
            Some(digest) => self.repo_digest(digest),
            None => format!("{}:{}", self.name(), self.version()),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<ImageReference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    // Whitespace and control characters would otherwise be blamed on whichever part they are in.
    if let Some(bad) = text.chars().find(|character| !character.is_ascii_graphic()) {
        return Err(format!("character {bad:?} is not allowed"));
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(|error| error.to_string())?)),
    };
    let (name, tag) = match rest.rfind(':') {
        Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (host, path) = match name.split_once('/') {
        Some((first, path)) if looks_like_host(first) => {
            check_host(first)?;
            (if first == LEGACY_DEFAULT_HOST { DEFAULT_HOST } else { first }, path)
        }
        _ => (DEFAULT_HOST, name),
    };
    check_repository(path)?;
    let repository =
        if host == DEFAULT_HOST && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if host.len() + 1 + repository.len() > REPOSITORY_LIMIT {
        return Err(format!("the name is longer than {REPOSITORY_LIMIT} characters"));
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(ImageReference { host: host.to_owned(), repository, tag, digest })
}

/// Docker's rule: the first component is a host when it has a dot, a port or an upper-case letter, or is `localhost`.
fn looks_like_host(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':', '['])
        || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), String> {
    let problem = || format!("{host:?} is not a registry host");
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(problem)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| problem())?;
        match rest.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if rest.is_empty() => (None, None),
            None => return Err(problem()),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    if let Some(port) = port
        && (port.is_empty() || port.parse::<u16>().is_err() || !port.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err(problem());
    }
    if let Some(name) = name {
        let good = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !name.split('.').all(good) {
            return Err(problem());
        }
    }
    Ok(())
}

/// Components of `[a-z0-9]+`, joined by one `.`, one or two `_`, or any number of `-`.
fn check_repository(path: &str) -> Result<(), String> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("repository {path:?} must be lower-case"));
    }
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = |component: &str| {
        let bytes = component.as_bytes();
        let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
        alphanumeric(first)
            && alphanumeric(last)
            && bytes.split(|byte| alphanumeric(*byte)).all(|separator| {
                matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
            })
    };
    if path.split('/').all(good) { Ok(()) } else { Err(format!("repository {path:?} is malformed")) }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = tag.len() <= TAG_LIMIT
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if good { Ok(()) } else { Err(format!("tag {tag:?} is malformed")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_normalized_as_docker_does() {
        let hex = "f".repeat(64);
        for (text, whole) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("test.com:5000", "docker.io/library/test.com:5000".to_owned()),
            ("test:5000/repo", "test:5000/repo:latest".to_owned()),
            ("localhost/repo:v1", "localhost/repo:v1".to_owned()),
            ("[::1]:5000/repo:v1", "[::1]:5000/repo:v1".to_owned()),
            ("a/b__c/d---e:Tag.1", "docker.io/a/b__c/d---e:Tag.1".to_owned()),
            (&format!("r@sha256:{hex}"), format!("docker.io/library/r@sha256:{hex}")),
            (&format!("h.io/r:t@sha256:{hex}"), format!("h.io/r:t@sha256:{hex}")),
        ] {
            let reference = ImageReference::parse(text).unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(ImageReference::parse(&whole).unwrap(), reference);
        }
        let both = ImageReference::parse(&format!("h.io/r:t@sha256:{hex}")).unwrap();
        assert_eq!(both.key(), format!("h.io/r@sha256:{hex}"));
        assert_eq!((both.version(), both.repo_tag()), (format!("sha256:{hex}").as_str(), None));
    }

    #[test]
    fn malformed_references_are_refused_with_the_cause() {
        let long = format!("a/{}", "b".repeat(300));
        for (text, cause) in [
            ("", "empty"),
            ("UPPER", "lower-case"),
            ("a b", "character"),
            (":tag", "repository"),
            ("repo:", "tag"),
            ("repo:-x", "tag"),
            ("repo@sha256:short", "digest"),
            ("repo@md5:d41d8cd98f00b204e9800998ecf8427e", "algorithm"),
            ("a//b", "repository"),
            ("-a", "repository"),
            ("a..b", "repository"),
            ("host:port/a", "host"),
            ("../../etc", "host"),
            ("a/../b", "repository"),
            (&long, "longer"),
        ] {
            let error = ImageReference::parse(text).unwrap_err();
            assert!(error.to_string().contains(cause), "{text:?}: {error}");
            assert_eq!(error.reason().as_str(), "InvalidImageName");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(text in "[a-zA-Z0-9:/@._\\[\\] -]{0,80}") {
            if let Ok(reference) = ImageReference::parse(&text) {
                prop_assert_eq!(ImageReference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
