//! Host ports as elements of two maps, one per IP version: where on the host -> where in a pod.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, SetElementAttribute, SetElementList, SetElementMessage,
};

use super::expression::Version;
use crate::lease::{Lease, PortMapping, Protocol};

/// Type of an element's user data that nft(8) shows as its comment (`NFTNL_UDATA_SET_ELEM_COMMENT`).
const COMMENT: u8 = 0;
/// Longest owner: the user data of an element has room for 256 bytes, two of them header, one the final NUL.
pub(crate) const MAX_OWNER: usize = 253;

/// A port on the host. An unspecified address means every address of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HostPort {
    pub(crate) address: IpAddr,
    /// IP protocol number.
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

/// What a host port leads to, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) owner: String,
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Protocol::from_number(self.protocol) {
            Some(protocol) => write!(formatter, "{} {}/{protocol}", self.address, self.port),
            None => write!(formatter, "{} {}/{}", self.address, self.port, self.protocol),
        }
    }
}

/// The elements of a pod: one per mapping and address family that both the mapping and the pod have.
pub(crate) fn elements(owner: &str, lease: &Lease, mappings: &[PortMapping]) -> Vec<(HostPort, Target)> {
    let mut elements = Vec::new();
    for mapping in mappings {
        for pod in &lease.addresses {
            let any = match pod.addr() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let address = match mapping.host_ip {
                // Upstream treats "0.0.0.0" as "not given", for both families alike.
                Some(address) if !address.is_unspecified() => address,
                _ => any,
            };
            if address.is_ipv4() != pod.addr().is_ipv4() {
                continue;
            }
            elements.push((
                HostPort { address, protocol: mapping.protocol as u8, port: mapping.host_port },
                Target { address: pod.addr(), port: mapping.container_port, owner: owner.to_owned() },
            ));
        }
    }
    elements
}

/// Every part of a concatenated key or value begins at a multiple of four bytes.
fn concatenate(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl HostPort {
    pub(super) fn version(&self) -> Version {
        if self.address.is_ipv4() { Version::V4 } else { Version::V6 }
    }

    fn key(&self) -> SetElementAttribute {
        let bytes = concatenate(&[&octets(self.address), &[self.protocol], &self.port.to_be_bytes()]);
        SetElementAttribute::Key(DataAttribute::Value(bytes))
    }
}

/// The element without its value, to delete it.
pub(super) fn key_element(host: &HostPort) -> ListAttribute<SetElementAttribute> {
    ListAttribute::Element(vec![host.key()])
}

/// The whole element.
pub(super) fn element(host: &HostPort, target: &Target) -> ListAttribute<SetElementAttribute> {
    let value = concatenate(&[&octets(target.address), &target.port.to_be_bytes()]);
    let mut comment = vec![COMMENT, target.owner.len() as u8 + 1];
    comment.extend_from_slice(target.owner.as_bytes());
    comment.push(0);
    ListAttribute::Element(vec![
        host.key(),
        SetElementAttribute::Data(DataAttribute::Value(value)),
        SetElementAttribute::UserData(comment),
    ])
}

/// Reads the elements of one answer to a listing. One that is not of our making is left out.
pub(super) fn parse(message: &SetElementMessage) -> Vec<(HostPort, Target)> {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            SetElementList::Elements(elements) => Some(elements),
            _ => None,
        })
        .flatten()
        .filter_map(|element| match element {
            ListAttribute::Element(attributes) => parse_element(attributes),
            _ => None,
        })
        .collect()
}

fn parse_element(attributes: &[SetElementAttribute]) -> Option<(HostPort, Target)> {
    let mut key = None;
    let mut value = None;
    let mut owner = String::new();
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(bytes)) => key = Some(bytes),
            SetElementAttribute::Data(DataAttribute::Value(bytes)) => value = Some(bytes),
            SetElementAttribute::UserData(bytes) => {
                if let [COMMENT, length, rest @ ..] = bytes.as_slice() {
                    let text = rest.get(..usize::from(*length).saturating_sub(1)).unwrap_or_default();
                    owner = String::from_utf8_lossy(text).into_owned();
                }
            }
            _ => (),
        }
    }
    let (host, rest) = split_address(key?, 8)?;
    let (address, port) = split_address(value?, 4)?;
    Some((
        HostPort { address: host, protocol: rest[0], port: u16::from_be_bytes([rest[4], rest[5]]) },
        Target { address, port: u16::from_be_bytes([port[0], port[1]]), owner },
    ))
}

/// The address at the start of `bytes`, and the `rest` bytes behind it.
fn split_address(bytes: &[u8], rest: usize) -> Option<(IpAddr, &[u8])> {
    let (address, tail) = bytes.split_at_checked(bytes.len().checked_sub(rest)?)?;
    if let Ok(octets) = <[u8; 4]>::try_from(address) {
        return Some((octets.into(), tail));
    }
    <[u8; 16]>::try_from(address).ok().map(|octets| (octets.into(), tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::MacAddress;

    fn lease(addresses: &[&str]) -> Lease {
        let addresses: Vec<ipnet::IpNet> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Lease {
            mac: MacAddress::for_address(addresses[0].addr()),
            addresses,
            gateways: Vec::new(),
            interface: "eth0".to_owned(),
            host_interface: "bh0".to_owned(),
        }
    }

    fn mapping(host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|address| address.parse().unwrap());
        PortMapping { host_ip, host_port: 8080, container_port: 80, protocol: Protocol::Tcp }
    }

    #[test]
    fn a_mapping_without_address_is_for_every_family_of_the_pod() {
        let both = lease(&["10.85.0.2/16", "fd00::2/64"]);
        for host_ip in [None, Some("0.0.0.0"), Some("::")] {
            let hosts: Vec<String> =
                elements("a", &both, &[mapping(host_ip)]).iter().map(|(host, _)| host.to_string()).collect();
            assert_eq!(hosts, ["0.0.0.0 8080/TCP", ":: 8080/TCP"]);
        }
    }

    #[test]
    fn a_host_address_picks_the_family() {
        let both = lease(&["10.85.0.2/16", "fd00::2/64"]);
        let elements = elements("a", &both, &[mapping(Some("2001:db8::1"))]);
        assert_eq!(elements.len(), 1);
        assert_eq!(elements[0].1.address, "fd00::2".parse::<IpAddr>().unwrap());
        assert!(super::elements("a", &lease(&["10.85.0.2/16"]), &[mapping(Some("2001:db8::1"))]).is_empty());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let both = lease(&["10.85.0.2/16", "fd00::2/64"]);
        for (host, target) in elements("the owner", &both, &[mapping(None), mapping(Some("192.0.2.1"))]) {
            let message =
                SetElementMessage { attributes: vec![SetElementList::Elements(vec![element(&host, &target)])] };
            assert_eq!(parse(&message), [(host, target)]);
        }
    }
}
