//! `/etc/resolv.conf` (the kubelet's `dns.Configurer`; the order of lines is containerd's).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodDNSConfigOption};

use super::host_network;

/// glibc looks at no more nameservers (MAXNS).
const MAX_NAMESERVERS: usize = 3;
/// Upstream's limits of the search line since 1.28, in entries and in characters.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;
/// A longer search domain made glibc 2.28 abort.
const MAX_SEARCH_LENGTH: usize = 253;
/// Options of a pod that asks the cluster's nameserver.
const CLUSTER_OPTIONS: [&str; 1] = ["ndots:5"];

/// systemd-resolved's file for everybody, which names only its own stub on loopback, and the one with the true
/// nameservers beside it.
const STUB_ADDRESSES: [&str; 2] = ["127.0.0.53", "127.0.0.54"];
/// Where systemd-resolved keeps the nameservers it asks itself.
pub const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";

/// What the node knows about names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// clusterDNS: nameservers of pods with ClusterFirst.
    pub cluster_dns: Vec<String>,
    /// clusterDomain; empty: no search domains of the cluster.
    pub cluster_domain: String,
    /// Text of the file that resolvConf names; `None` when it is configured to be empty, which means that pods
    /// with policy Default look up nothing.
    pub host_resolv_conf: Option<String>,
    /// Addresses of the node, for the case of no file.
    pub node_addresses: Vec<IpAddr>,
}

/// The content of a resolver configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// `nameserver` lines.
    pub nameservers: Vec<String>,
    /// `search` line.
    pub searches: Vec<String>,
    /// `options` line: `name` or `name:value`.
    pub options: Vec<String>,
}

/// A resolver configuration, and what was left out of it: each warning is the message of an event
/// `DNSConfigForming` (or `MissingClusterDNS`) upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodResolver {
    /// The configuration.
    pub resolver: Resolver,
    /// Warnings.
    pub warnings: Vec<Warning>,
}

/// Something a person should know about a pod's resolver configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Reason of upstream's event: `DNSConfigForming` or `MissingClusterDNS`. The latter is about the node: show it
    /// once, not for every pod.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
}

/// The file is systemd-resolved's for everybody: its only nameservers are stubs on loopback, which a pod cannot
/// reach and which would make a nameserver in a pod ask itself. [`RESOLVED_FILE`] is to be used instead.
pub fn is_resolved_stub(text: &str) -> bool {
    let nameservers = Resolver::parse(text).nameservers;
    !nameservers.is_empty() && nameservers.iter().all(|address| STUB_ADDRESSES.contains(&address.as_str()))
}

impl Resolver {
    /// Reads a file as upstream does: nameservers add up, the last `search` line wins, options add up with the last
    /// of each name winning, everything else is ignored.
    pub fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    // With and without the final dot it is the same domain; the root alone stays.
                    resolver.searches = words
                        .map(|domain| if domain == "." { domain } else { domain.strip_suffix('.').unwrap_or(domain) })
                        .map(str::to_owned)
                        .collect();
                }
                Some("options") => words.for_each(|option| set_option(&mut resolver.options, option.to_owned())),
                _ => (),
            }
        }
        resolver
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for address in &self.nameservers {
            text.push_str(&format!("nameserver {address}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }

    fn append(&mut self, config: &PodDNSConfig) {
        self.nameservers.extend(config.nameservers.iter().flatten().cloned());
        omit_duplicates(&mut self.nameservers);
        self.searches.extend(config.searches.iter().flatten().cloned());
        omit_duplicates(&mut self.searches);
        for PodDNSConfigOption { name, value } in config.options.iter().flatten() {
            let name = name.as_deref().unwrap_or_default();
            let option = match value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            };
            set_option(&mut self.options, option);
        }
    }
}

/// Sets an option in place of one of the same name, else at the end (upstream's order is random).
fn set_option(options: &mut Vec<String>, option: String) {
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    match options.iter_mut().find(|present| name(present) == name(&option)) {
        Some(present) => *present = option,
        None => options.push(option),
    }
}

fn omit_duplicates(texts: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    texts.retain(|text| seen.insert(text.clone()));
}

/// Whose nameserver a pod asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Cluster,
    Host,
    Nothing,
}

fn policy(pod: &Pod) -> Policy {
    match pod.spec.as_ref().and_then(|spec| spec.dns_policy.as_deref()) {
        Some("None") => Policy::Nothing,
        Some("Default") => Policy::Host,
        Some("ClusterFirst") | None if host_network(pod) => Policy::Host,
        // ClusterFirst, ClusterFirstWithHostNet, and what validation does not let pass.
        _ => Policy::Cluster,
    }
}

/// The resolver configuration of `pod`.
pub fn generate(pod: &Pod, node: &DnsConfig) -> PodResolver {
    let mut resolver = node.host_resolv_conf.as_deref().map(Resolver::parse).unwrap_or_default();
    let mut warnings = Vec::new();
    match policy(pod) {
        Policy::Nothing => resolver = Resolver::default(),
        Policy::Cluster if !node.cluster_dns.is_empty() => {
            resolver.nameservers = node.cluster_dns.clone();
            resolver.searches = cluster_searches(pod, node, resolver.searches);
            resolver.options = CLUSTER_OPTIONS.map(str::to_owned).to_vec();
        }
        policy => {
            if policy == Policy::Cluster {
                warnings.push(Warning {
                    reason: "MissingClusterDNS",
                    message: "kubelet does not have ClusterDNS IP configured and cannot create Pod using \
                              \"ClusterFirst\" policy. Falling back to \"Default\" policy."
                        .to_owned(),
                });
            }
            if node.host_resolv_conf.is_none() {
                resolver = nowhere(&node.node_addresses);
            }
        }
    }
    if let Some(config) = pod.spec.as_ref().and_then(|spec| spec.dns_config.as_ref()) {
        resolver.append(config);
    }
    limit(&mut resolver, &mut warnings);
    PodResolver { resolver, warnings }
}

fn cluster_searches(pod: &Pod, node: &DnsConfig, host: Vec<String>) -> Vec<String> {
    let domain = &node.cluster_domain;
    if domain.is_empty() {
        return host;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    searches.extend(host);
    omit_duplicates(&mut searches);
    searches
}

/// No lookups: a nameserver on the pod's own loopback, where there is none, and no search domain.
fn nowhere(node_addresses: &[IpAddr]) -> Resolver {
    let mut nameservers: Vec<String> = node_addresses
        .iter()
        .map(|address| if address.is_ipv6() { "::1" } else { "127.0.0.1" })
        .map(str::to_owned)
        .collect();
    if nameservers.is_empty() {
        nameservers.push("127.0.0.1".to_owned());
    }
    Resolver { nameservers, searches: vec![".".to_owned()], options: Vec::new() }
}

/// Cuts off what resolvers do not read or cannot stand.
fn limit(resolver: &mut Resolver, warnings: &mut Vec<Warning>) {
    let warn = |what: &str, omitted: &str, line: &str, applied: &[String]| Warning {
        reason: "DNSConfigForming",
        message: format!(
            "{what} limits were exceeded, some {omitted} have been omitted, the applied {line} line is: {}",
            applied.join(" ")
        ),
    };
    if resolver.nameservers.len() > MAX_NAMESERVERS {
        resolver.nameservers.truncate(MAX_NAMESERVERS);
        warnings.push(warn("Nameserver", "nameservers", "nameserver", &resolver.nameservers));
    }
    let searches = &mut resolver.searches;
    let before = searches.len();
    searches.truncate(MAX_SEARCHES);
    searches.retain(|search| search.len() <= MAX_SEARCH_LENGTH);
    while searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        searches.pop();
    }
    if searches.len() != before {
        warnings.push(warn("Search Line", "search paths", "search", searches));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;
    use crate::network::testing::pod;

    const HOST: &str = "# a comment\nnameserver 192.0.2.53\nnameserver 192.0.2.54 # more\ndomain old.example\n\
        search first.example\nsearch example.com. corp.example.com\noptions timeout:1 rotate\noptions timeout:2\n";

    fn node() -> DnsConfig {
        DnsConfig {
            cluster_dns: vec!["10.96.0.10".to_owned()],
            cluster_domain: "cluster.local".to_owned(),
            host_resolv_conf: Some(HOST.to_owned()),
            node_addresses: Vec::new(),
        }
    }

    fn text(change: impl FnOnce(&mut PodSpec)) -> String {
        generate(&pod(change), &node()).resolver.to_text()
    }

    const CLUSTER: &str = "search ns.svc.cluster.local svc.cluster.local cluster.local example.com corp.example.com\n\
        nameserver 10.96.0.10\noptions ndots:5\n";
    const DEFAULT: &str =
        "search example.com corp.example.com\nnameserver 192.0.2.53\nnameserver 192.0.2.54\noptions timeout:2 rotate\n";

    fn with_policy(policy: &str, host_network: bool) -> String {
        text(|spec| {
            spec.dns_policy = Some(policy.to_owned());
            spec.host_network = Some(host_network);
        })
    }

    #[test]
    fn each_policy_with_and_without_the_hosts_network() {
        assert_eq!(with_policy("ClusterFirst", false), CLUSTER);
        assert_eq!(with_policy("ClusterFirst", true), DEFAULT);
        assert_eq!(with_policy("ClusterFirstWithHostNet", true), CLUSTER);
        assert_eq!(with_policy("Default", false), DEFAULT);
        assert_eq!(with_policy("None", false), "");
    }

    #[test]
    fn cluster_first_without_a_cluster_falls_back_with_a_warning() {
        let node = DnsConfig { cluster_dns: Vec::new(), ..node() };
        let pod_resolver = generate(&pod(|_| ()), &node);
        assert_eq!(pod_resolver.resolver.to_text(), DEFAULT);
        assert_eq!(pod_resolver.warnings.len(), 1);
        assert_eq!(pod_resolver.warnings[0].reason, "MissingClusterDNS");
    }

    #[test]
    fn a_hosts_network_pod_does_not_warn_about_the_missing_cluster() {
        let node = DnsConfig { cluster_dns: Vec::new(), ..node() };
        assert_eq!(generate(&pod(|spec| spec.host_network = Some(true)), &node).warnings, []);
    }

    #[test]
    fn without_a_cluster_domain_the_hosts_searches_remain() {
        let node = DnsConfig { cluster_domain: String::new(), ..node() };
        assert_eq!(generate(&pod(|_| ()), &node).resolver.searches, ["example.com", "corp.example.com"]);
    }

    #[test]
    fn no_file_means_no_lookups() {
        let mut node = DnsConfig { host_resolv_conf: None, ..node() };
        let default = pod(|spec| spec.dns_policy = Some("Default".to_owned()));
        assert_eq!(generate(&default, &node).resolver.to_text(), "search .\nnameserver 127.0.0.1\n");
        node.node_addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(generate(&default, &node).resolver.nameservers, ["127.0.0.1", "::1"]);
    }

    fn dns_config(nameservers: &[&str], searches: &[&str], options: &[(&str, Option<&str>)]) -> Option<PodDNSConfig> {
        let owned = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
        let options = options.iter().map(|(name, value)| PodDNSConfigOption {
            name: Some((*name).to_owned()),
            value: value.map(str::to_owned),
        });
        Some(PodDNSConfig {
            nameservers: owned(nameservers),
            searches: owned(searches),
            options: Some(options.collect()),
        })
    }

    #[test]
    fn the_pods_own_configuration_is_added_and_its_options_win() {
        let text = text(|spec| {
            spec.dns_config = dns_config(
                &["10.96.0.10", "192.0.2.9"],
                &["svc.cluster.local", "my.example"],
                &[("ndots", Some("2")), ("edns0", None)],
            );
        });
        assert_eq!(
            text,
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.com corp.example.com my.example\n\
             nameserver 10.96.0.10\nnameserver 192.0.2.9\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn policy_none_has_only_the_pods_own() {
        let text = text(|spec| {
            spec.dns_policy = Some("None".to_owned());
            spec.dns_config = dns_config(&["192.0.2.9"], &["my.example"], &[("ndots", Some("1"))]);
        });
        assert_eq!(text, "search my.example\nnameserver 192.0.2.9\noptions ndots:1\n");
    }

    fn limited(nameservers: &[&str], searches: &[String]) -> PodResolver {
        let searches: Vec<&str> = searches.iter().map(String::as_str).collect();
        let pod = pod(|spec| {
            spec.dns_policy = Some("None".to_owned());
            spec.dns_config = dns_config(nameservers, &searches, &[]);
        });
        generate(&pod, &node())
    }

    #[test]
    fn a_fourth_nameserver_is_left_out_and_said() {
        let pod = limited(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"], &[]);
        assert_eq!(pod.resolver.nameservers.len(), 3);
        assert_eq!(
            pod.warnings[0].message,
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
             192.0.2.1 192.0.2.2 192.0.2.3"
        );
    }

    #[test]
    fn searches_have_a_number_a_length_and_a_total() {
        let many: Vec<String> = (0..40).map(|index| format!("d{index}.example")).collect();
        let pod = limited(&[], &many);
        assert_eq!(pod.resolver.searches, many[..32]);
        assert!(pod.warnings[0].message.starts_with("Search Line limits were exceeded, some search paths have been"));
        assert!(pod.warnings[0].message.contains("the applied search line is: d0.example d1.example"));

        let long = limited(&[], &["a".repeat(254), "b".repeat(253)]);
        assert_eq!(long.resolver.searches, ["b".repeat(253)]);

        let wide: Vec<String> = (0..20).map(|index| format!("{index:0>200}")).collect();
        let pod = limited(&[], &wide);
        assert_eq!(pod.resolver.searches, wide[..10], "ten of 200 and nine spaces are 2009 characters");
        assert_eq!(limited(&[], &many[..32]).warnings, []);
    }

    #[test]
    fn systemd_resolveds_stub_is_recognised() {
        assert!(is_resolved_stub("# resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"));
        assert!(!is_resolved_stub("nameserver 127.0.0.53\nnameserver 192.0.2.53\n"));
        assert!(!is_resolved_stub("nameserver 127.0.0.1\n"));
        assert!(!is_resolved_stub(""));
    }

    #[test]
    fn the_root_as_search_domain_stays() {
        assert_eq!(Resolver::parse("search . a.example.\n").searches, [".", "a.example"]);
    }
}
