//! What belongs to one pod: its addresses and its ports on the host.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Name of the pod's interface inside its namespace.
pub const POD_INTERFACE: &str = "eth0";

/// Prefix of the host's end of every pod's veth pair; twelve hexadecimal digits follow.
const HOST_PREFIX: &str = "bh";

/// Addresses and names of one pod's attachment. The caller keeps it in the pod's record, durably, before
/// [`Network::attach`](crate::Network::attach), and hands it to [`Network::adopt`](crate::Network::adopt) after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// One address per configured subnet, in the order of the configuration, with the subnet's prefix length.
    pub addresses: Vec<IpNet>,
    /// The bridge's address of the same subnet, in the same order: next hop of the default routes.
    pub gateways: Vec<IpAddr>,
    /// Interface inside the pod (`eth0`).
    pub interface: String,
    /// Interface on the host, a port of the bridge.
    pub host_interface: String,
    /// Hardware address of the pod's interface.
    pub mac: MacAddress,
}

/// An Ethernet address; written `0a:58:0a:55:00:02`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of an interface whose first IP address is `address`: the locally administered prefix 0a:58,
    /// then the IPv4 address (or the last 32 bits of an IPv6 one). Upstream's bridge plugin used to do the same.
    /// An address that goes to the next pod keeps its hardware address, so that no neighbour entry is ever wrong.
    pub fn for_address(address: IpAddr) -> MacAddress {
        let tail = match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => (u128::from(address) as u32).to_be_bytes(),
        };
        MacAddress([0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<MacAddress, String> {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None })
            .collect::<Option<_>>()
            .ok_or_else(|| format!("{text:?} is not a hardware address"))?;
        bytes.try_into().map(MacAddress).map_err(|_| format!("{text:?} is not a hardware address"))
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<MacAddress, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Transport protocol of a port; the value is the IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl Protocol {
    /// By IP protocol number.
    pub(crate) fn from_number(number: u8) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| *protocol as u8 == number)
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Only this address of the host; unset (or an unspecified address): every one, of both families.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What attaching made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Interface on the host.
    pub host_interface: String,
    /// Hardware address of the pod's interface.
    pub mac: MacAddress,
    /// MTU of the pod's interface.
    pub mtu: u32,
}

/// Name of the host's interface for `owner` on `bridge`: always the same, so that what a crash left behind is
/// found again. The bridge is part of it, so that two agents with one static pod do not meet in one name.
pub(crate) fn host_interface(bridge: &str, owner: &str) -> String {
    // FNV-1a, 64 bits folded to 48: short, stable for ever, and no adversary chooses both pod UIDs of a collision
    // that would only make the second attach fail.
    let hash = bridge
        .bytes()
        .chain([0])
        .chain(owner.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{HOST_PREFIX}{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

/// A name that [`host_interface`] could have made.
pub(crate) fn is_host_interface(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX).is_some_and(|digits| {
        digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interface_names_are_stable_and_valid() {
        let name = host_interface("berth0", "5f2d2c4e-0b1c-4b8e-9a51-7d6c3e1f0a9b");
        assert_eq!(name, host_interface("berth0", "5f2d2c4e-0b1c-4b8e-9a51-7d6c3e1f0a9b"));
        assert_ne!(name, host_interface("berth1", "5f2d2c4e-0b1c-4b8e-9a51-7d6c3e1f0a9b"));
        assert!(name.len() <= 15 && is_host_interface(&name), "{name}");
        assert!(
            !is_host_interface("bh00000000000") && !is_host_interface("bh00000000000G") && !is_host_interface("veth0")
        );
    }

    #[test]
    fn hardware_addresses_follow_the_address() {
        let mac = MacAddress::for_address("10.85.1.2".parse().unwrap());
        assert_eq!(mac.to_string(), "0a:58:0a:55:01:02");
        assert_eq!(mac.to_string().parse::<MacAddress>(), Ok(mac));
        assert!("0a:58:0a:55:01".parse::<MacAddress>().is_err());
        assert_eq!(MacAddress::for_address("fd00::1:2".parse().unwrap()).to_string(), "0a:58:00:01:00:02");
    }

    #[test]
    fn a_lease_survives_its_record() {
        let lease = Lease {
            addresses: vec!["10.85.0.2/16".parse().unwrap(), "fd00:85::2/64".parse().unwrap()],
            gateways: vec!["10.85.0.1".parse().unwrap(), "fd00:85::1".parse().unwrap()],
            interface: POD_INTERFACE.to_owned(),
            host_interface: host_interface("berth0", "uid"),
            mac: MacAddress::for_address("10.85.0.2".parse().unwrap()),
        };
        let text = serde_json::to_string(&lease).unwrap();
        assert_eq!(serde_json::from_str::<Lease>(&text).unwrap(), lease, "{text}");
    }
}
