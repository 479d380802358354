//! `/etc/hosts` (`managedHostsFileContent` and `nodeHostsFileContent` of the kubelet, byte for byte).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use super::{host_network, hostname::PodHostname};

/// What stands in every pod's file. The IPv6 lines are not what Debian has; they are what pods have always had.
const HEADER: &str = "# Kubernetes-managed hosts file.\n\
    127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";

/// First line of the file of a pod in the host's network, before the host's own.
const HOST_NETWORK_HEADER: &str = "# Kubernetes-managed hosts file (host network).\n";

/// The file of `pod`. With the host's network it begins with `host_file`, the text of the host's own; else it names
/// the pod's addresses.
pub fn generate(pod: &Pod, names: &PodHostname, addresses: &[IpAddr], host_file: &str) -> String {
    let mut text = String::new();
    if host_network(pod) {
        text.push_str(HOST_NETWORK_HEADER);
        text.push_str(host_file);
    } else {
        text.push_str(HEADER);
        for address in addresses {
            let PodHostname { hostname, domain, .. } = names;
            text.push_str(&match domain.as_str() {
                "" => format!("{address}\t{hostname}\n"),
                _ => format!("{address}\t{hostname}.{domain}\t{hostname}\n"),
            });
        }
    }
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    append_aliases(&mut text, aliases);
    text
}

fn append_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::pod;

    fn alias(ip: &str, names: &[&str]) -> HostAlias {
        HostAlias { ip: ip.to_owned(), hostnames: Some(names.iter().map(|name| (*name).to_owned()).collect()) }
    }

    fn text(pod: &Pod, addresses: &[&str]) -> String {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        generate(pod, &PodHostname::of(pod, "cluster.local").unwrap(), &addresses, "127.0.0.1\tlocalhost node\n")
    }

    #[test]
    fn a_pod_with_two_addresses() {
        assert_eq!(
            text(&pod(|_| ()), &["10.85.0.2", "fd00:85::2"]),
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
             10.85.0.2\tweb\nfd00:85::2\tweb\n"
        );
    }

    #[test]
    fn a_subdomain_adds_the_full_name() {
        let text = text(&pod(|spec| spec.subdomain = Some("sub".to_owned())), &["10.85.0.2"]);
        assert!(text.ends_with("ip6-allrouters\n10.85.0.2\tweb.sub.ns.svc.cluster.local\tweb\n"), "{text}");
    }

    #[test]
    fn aliases_are_one_line_each_after_an_empty_one() {
        let pod = pod(|spec| {
            spec.host_aliases = Some(vec![alias("192.0.2.1", &["a", "b.example"]), alias("192.0.2.2", &["c"])]);
        });
        let text = text(&pod, &["10.85.0.2"]);
        assert!(
            text.ends_with(
                "10.85.0.2\tweb\n\n# Entries added by HostAliases.\n192.0.2.1\ta\tb.example\n192.0.2.2\tc\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn with_the_hosts_network_the_hosts_file_comes_first() {
        let pod = pod(|spec| {
            spec.host_network = Some(true);
            spec.host_aliases = Some(vec![alias("192.0.2.1", &["a"])]);
        });
        assert_eq!(
            text(&pod, &["192.0.2.9"]),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1\tlocalhost node\n\n\
             # Entries added by HostAliases.\n192.0.2.1\ta\n"
        );
    }
}
