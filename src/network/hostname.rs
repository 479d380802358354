//! The pod's host name (`GeneratePodHostNameAndDomain` and `GetNodenameForKernel` of the kubelet).

use k8s_openapi::api::core::v1::Pod;

/// Longest host name: 64 bytes of `struct utsname` less the final NUL, as upstream counts.
const HOSTNAME_MAX: usize = 63;
/// Longest name that setHostnameAsFQDN may give the kernel (`__NEW_UTS_LEN`).
const FQDN_MAX: usize = 64;

/// What a pod is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodHostname {
    /// First label (or the whole of hostnameOverride): `web`.
    pub hostname: String,
    /// `subdomain.namespace.svc.cluster-domain`, or empty.
    pub domain: String,
    /// What the kernel's UTS namespace is set to: `hostname`, or with setHostnameAsFQDN `hostname.domain`.
    pub nodename: String,
}

/// The pod cannot have the name it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// spec.hostname or spec.subdomain is not a DNS label.
    #[error("{field} {value:?} is not a valid DNS label")]
    NotALabel {
        /// `spec.hostname` or `spec.subdomain`.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// spec.hostnameOverride is not a DNS name.
    #[error("spec.hostnameOverride {0:?} is not a valid DNS subdomain")]
    NotASubdomain(String),
    /// Nothing is left of the name after it was cut.
    #[error("hostname for pod {pod:?} was invalid: {hostname:?}")]
    Empty {
        /// Pod name.
        pod: String,
        /// The name before it was cut.
        hostname: String,
    },
    /// setHostnameAsFQDN with a name the kernel cannot hold.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long \
         ({FQDN_MAX} characters is the max, {} characters requested)", fqdn.len()
    )]
    TooLong {
        /// The name.
        fqdn: String,
    },
}

impl PodHostname {
    /// The names of `pod`. The pod's own name is cut at 63 characters, as it may be longer than a label.
    pub fn of(pod: &Pod, cluster_domain: &str) -> Result<PodHostname, HostnameError> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let spec = pod.spec.clone().unwrap_or_default();
        if let Some(hostname) = spec.hostname_override {
            if !is_subdomain(&hostname) {
                return Err(HostnameError::NotASubdomain(hostname));
            }
            let hostname = truncate(name, &hostname)?;
            return Ok(PodHostname { nodename: hostname.clone(), hostname, domain: String::new() });
        }
        let wanted = spec.hostname.filter(|hostname| !hostname.is_empty());
        if let Some(hostname) = &wanted {
            check_label("spec.hostname", hostname)?;
        }
        let hostname = truncate(name, wanted.as_deref().unwrap_or(name))?;
        let mut domain = String::new();
        if let Some(subdomain) = spec.subdomain.filter(|subdomain| !subdomain.is_empty()) {
            check_label("spec.subdomain", &subdomain)?;
            domain = format!("{subdomain}.{namespace}.svc.{cluster_domain}");
        }
        let mut nodename = hostname.clone();
        if !domain.is_empty() && spec.set_hostname_as_fqdn == Some(true) {
            nodename = format!("{hostname}.{domain}");
            if nodename.len() > FQDN_MAX {
                return Err(HostnameError::TooLong { fqdn: nodename });
            }
        }
        Ok(PodHostname { hostname, domain, nodename })
    }
}

fn truncate(pod: &str, hostname: &str) -> Result<String, HostnameError> {
    if hostname.len() <= HOSTNAME_MAX {
        return Ok(hostname.to_owned());
    }
    // A DNS name is ASCII; of anything else no half of a character is kept.
    let cut = hostname.floor_char_boundary(HOSTNAME_MAX);
    let truncated = hostname[..cut].trim_end_matches(['-', '.']);
    if truncated.is_empty() {
        return Err(HostnameError::Empty { pod: pod.to_owned(), hostname: hostname.to_owned() });
    }
    Ok(truncated.to_owned())
}

/// RFC 1123 label: lower-case letters, digits and inner dashes, at most 63.
fn is_label(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= HOSTNAME_MAX
        && text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().last().is_some_and(alphanumeric)
        && text.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
}

/// RFC 1123 subdomain; upstream does not limit the length of its labels.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            label.bytes().next().is_some_and(alphanumeric)
                && label.bytes().last().is_some_and(alphanumeric)
                && label.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
        })
}

fn check_label(field: &'static str, value: &str) -> Result<(), HostnameError> {
    if is_label(value) { Ok(()) } else { Err(HostnameError::NotALabel { field, value: value.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::pod;

    fn names(pod: &Pod) -> (String, String, String) {
        let names = PodHostname::of(pod, "cluster.local").unwrap();
        (names.hostname, names.domain, names.nodename)
    }

    fn strings(texts: [&str; 3]) -> (String, String, String) {
        let [hostname, domain, nodename] = texts.map(str::to_owned);
        (hostname, domain, nodename)
    }

    #[test]
    fn the_pods_name_is_its_host_name() {
        assert_eq!(names(&pod(|_| ())), strings(["web", "", "web"]));
    }

    #[test]
    fn hostname_and_subdomain_make_a_domain() {
        let pod = pod(|spec| {
            spec.hostname = Some("db".to_owned());
            spec.subdomain = Some("sub".to_owned());
        });
        assert_eq!(names(&pod), strings(["db", "sub.ns.svc.cluster.local", "db"]));
    }

    #[test]
    fn set_hostname_as_fqdn_names_the_kernel() {
        let mut pod = pod(|spec| {
            spec.subdomain = Some("sub".to_owned());
            spec.set_hostname_as_fqdn = Some(true);
        });
        assert_eq!(names(&pod), strings(["web", "sub.ns.svc.cluster.local", "web.sub.ns.svc.cluster.local"]));
        pod.metadata.name = Some("a".repeat(40));
        let error = PodHostname::of(&pod, "cluster.local").unwrap_err();
        assert!(error.to_string().ends_with("(64 characters is the max, 65 characters requested)"), "{error}");
    }

    #[test]
    fn set_hostname_as_fqdn_without_subdomain_changes_nothing() {
        assert_eq!(names(&pod(|spec| spec.set_hostname_as_fqdn = Some(true))), strings(["web", "", "web"]));
    }

    #[test]
    fn a_long_pod_name_is_cut_and_does_not_end_in_a_dash() {
        let mut pod = pod(|_| ());
        pod.metadata.name = Some(format!("{}-.{}", "a".repeat(61), "b".repeat(20)));
        assert_eq!(names(&pod).0, "a".repeat(61));
        pod.metadata.name = Some("-".repeat(70));
        assert!(matches!(PodHostname::of(&pod, "x"), Err(HostnameError::Empty { .. })));
    }

    #[test]
    fn an_override_is_the_whole_name() {
        let pod = pod(|spec| {
            spec.hostname = Some("db".to_owned());
            spec.subdomain = Some("sub".to_owned());
            spec.hostname_override = Some("db.example.com".to_owned());
        });
        assert_eq!(names(&pod), strings(["db.example.com", "", "db.example.com"]));
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["-a", "a-", "A", "a.b", "a_b"] {
            assert!(PodHostname::of(&pod(|spec| spec.hostname = Some(bad.to_owned())), "x").is_err(), "{bad}");
            assert!(PodHostname::of(&pod(|spec| spec.subdomain = Some(bad.to_owned())), "x").is_err(), "{bad}");
        }
        for bad in ["", "a..b", "-a.b", "A.b"] {
            assert!(PodHostname::of(&pod(|spec| spec.hostname_override = Some(bad.to_owned())), "x").is_err(), "{bad}");
        }
    }
}
