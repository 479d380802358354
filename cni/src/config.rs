//! What a person configures.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{error::NetworkError, ipam::Range};

/// The pod network of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkConfig {
    /// Name of the bridge all pods hang on; at most 15 bytes.
    pub bridge: String,
    /// Subnets that pods get their addresses from: at most one of each family, at least one. The first address
    /// of each belongs to the bridge and is the pods' gateway.
    pub subnets: Vec<IpNet>,
    /// MTU of bridge and pods; unset: that of the interface of the default route, or 1500 without one.
    pub mtu: Option<u32>,
    /// Give pod traffic that leaves for the outside the node's address. Off where the network beyond the node
    /// routes the pods' subnets.
    pub masquerade: bool,
    /// Let the bridge send a frame back out of the port it came in by. Needed for a pod that reaches itself by
    /// its own host port while br_netfilter is on, which translates the address within the bridge.
    pub hairpin: bool,
    /// Name of our nftables table (family inet).
    pub table: String,
}

impl Default for NetworkConfig {
    fn default() -> NetworkConfig {
        NetworkConfig {
            bridge: "berth0".to_owned(),
            // Not the 10.88.0.0/16 of podman nor the 10.244.0.0/16 of kubeadm's examples, so that they can share a machine.
            subnets: vec![IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 85, 0, 0), 16))],
            mtu: None,
            masquerade: true,
            hairpin: true,
            table: "berth".to_owned(),
        }
    }
}

/// A smaller MTU breaks IPv4 hosts (RFC 791 asks for 68) and, with an IPv6 subnet, IPv6 (RFC 8200 asks for 1280).
const MIN_MTU: [u32; 2] = [68, 1280];
/// Largest MTU a veth takes (ETH_MAX_MTU, less nothing: 65535).
const MAX_MTU: u32 = 65535;

impl NetworkConfig {
    /// All mistakes at once, as one error.
    pub fn validate(&self) -> Result<(), NetworkError> {
        let mut mistakes = Vec::new();
        if !valid_link_name(&self.bridge) {
            mistakes.push(format!(
                "bridge {:?} is not an interface name (1 to 15 bytes, no slash, colon or space)",
                self.bridge
            ));
        }
        let table_ok = self.table.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
            && self.table.len() <= 64
            && self.table.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if !table_ok {
            mistakes.push(format!(
                "table {:?} is not an nftables name (a letter, then letters, digits, _ - .)",
                self.table
            ));
        }
        if self.subnets.is_empty() {
            mistakes.push("subnets: at least one is needed".to_owned());
        }
        for v4 in [true, false] {
            if self.subnets.iter().filter(|subnet| matches!(subnet, IpNet::V4(_)) == v4).count() > 1 {
                mistakes.push(format!("subnets: more than one IPv{} subnet", if v4 { 4 } else { 6 }));
            }
        }
        mistakes.extend(self.subnets.iter().filter_map(|subnet| Range::new(*subnet).err()));
        let smallest = MIN_MTU[usize::from(self.has_v6())];
        if self.mtu.is_some_and(|mtu| !(smallest..=MAX_MTU).contains(&mtu)) {
            mistakes.push(format!("mtu {} is not within {smallest} to {MAX_MTU}", self.mtu.unwrap_or_default()));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(NetworkError::Config(mistakes.join("; "))) }
    }

    /// An IPv6 subnet is configured.
    pub fn has_v6(&self) -> bool {
        self.subnets.iter().any(|subnet| matches!(subnet, IpNet::V6(_)))
    }

    /// An IPv4 subnet is configured.
    pub fn has_v4(&self) -> bool {
        self.subnets.iter().any(|subnet| matches!(subnet, IpNet::V4(_)))
    }
}

/// The kernel's own rule (`dev_valid_name`, net/core/dev.c).
fn valid_link_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(change: impl FnOnce(&mut NetworkConfig)) -> String {
        let mut config = NetworkConfig::default();
        change(&mut config);
        config.validate().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn the_default_is_valid() {
        assert_eq!(mistakes(|_| ()), "");
    }

    #[test]
    fn every_mistake_is_named() {
        let message = mistakes(|config| {
            config.bridge = "a/b".to_owned();
            config.table = "1".to_owned();
            config.subnets = vec!["10.0.0.0/31".parse().unwrap(), "10.1.0.0/24".parse().unwrap()];
            config.mtu = Some(10);
        });
        for part in ["bridge", "table", "more than one IPv4", "10.0.0.0/31", "mtu 10"] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn ipv6_needs_its_minimum_mtu() {
        assert!(
            mistakes(|config| {
                config.subnets.push("fd00:85::/64".parse().unwrap());
                config.mtu = Some(1279);
            })
            .contains("1280")
        );
    }

    #[test]
    fn a_host_address_is_not_a_subnet() {
        assert!(mistakes(|config| config.subnets = vec!["10.85.0.1/16".parse().unwrap()]).contains("10.85.0.0/16"));
    }

    #[test]
    fn missing_fields_have_defaults_and_unknown_ones_are_refused() {
        let config: NetworkConfig = serde_json::from_str(r#"{"bridge": "br1"}"#).unwrap();
        assert_eq!(config, NetworkConfig { bridge: "br1".to_owned(), ..NetworkConfig::default() });
        assert!(serde_json::from_str::<NetworkConfig>(r#"{"brigde": "br1"}"#).is_err());
    }
}
