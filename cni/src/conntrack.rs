//! UDP "connections" that the kernel tracks outlive the host port they belong to.
//!
//! Translation is decided by a connection's first packet. A client that keeps sending from one port (a resolver, a
//! log shipper) would reach nobody after the pod behind the host port has come or gone: its entry says "not
//! translated", or names the pod that was. Such entries are deleted; the next packet makes a new one.
//! TCP needs nothing of the kind, as its connections end.

use std::net::IpAddr;

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use nix::errno::Errno;

use crate::{
    lease,
    netlink::{Request, RequestError, Socket},
    nft::ports::{HostPort, Target},
};

/// Whether a host port has just been opened or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Opened,
    Closed,
}

/// One direction of a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Direction {
    udp: bool,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    destination_port: u16,
}

/// Deletes the entries of UDP connections that `change` to `ports` has made wrong. The whole of the kernel's table
/// is read for this, so it is done for pods with UDP host ports only.
pub(crate) fn forget(socket: &mut Socket, ports: &[(HostPort, Target)], change: Change) -> Result<(), RequestError> {
    let udp: Vec<&(HostPort, Target)> =
        ports.iter().filter(|(host, _)| host.protocol == lease::Protocol::Udp as u8).collect();
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let of_family = |host: &HostPort| host.address.is_ipv4() == (family == NetfilterProtoFamily::IPv4);
        if !udp.iter().any(|(host, _)| of_family(host)) {
            continue;
        }
        let message = |inner| NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
        let mut stale = Vec::new();
        for reply in socket.dump(message(ConntrackMessage::Get(Vec::new())))? {
            let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = reply.inner else { continue };
            if udp.iter().any(|(host, target)| is_stale(&attributes, host, target, change)) {
                // The original direction identifies the entry, its zone completes it where it has one.
                let identity = attributes.into_iter().filter(|attribute| match attribute {
                    ConntrackAttribute::CtaTupleOrig(_) => true,
                    ConntrackAttribute::Other(other) => netlink_packet_core::Nla::kind(other) == ZONE,
                    _ => false,
                });
                stale.push(Request::new(message(ConntrackMessage::Delete(identity.collect())), 0));
            }
        }
        // One that has ended by itself since is no error.
        match socket.transact(stale) {
            Err(error) if !error.is(Errno::ENOENT) => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

/// `CTA_ZONE` (linux/netfilter/nfnetlink_conntrack.h).
const ZONE: u16 = 18;

fn is_stale(attributes: &[ConntrackAttribute], host: &HostPort, target: &Target, change: Change) -> bool {
    let mut original = Direction::default();
    let mut reply = Direction::default();
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = direction(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = direction(tuple),
            _ => (),
        }
    }
    let to_the_port = original.udp
        && original.destination_port == host.port
        && (host.address.is_unspecified() || original.destination == Some(host.address));
    to_the_port
        && match change {
            Change::Opened => reply.source == original.destination,
            Change::Closed => reply.source == Some(target.address),
        }
}

fn direction(tuple: &[Tuple]) -> Direction {
    let mut direction = Direction::default();
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => direction.source = Some(*address),
                        IPTuple::DestinationAddress(address) => direction.destination = Some(*address),
                        _ => (),
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => direction.udp = *protocol == Protocol::Udp,
                        ProtoTuple::DestinationPort(port) => direction.destination_port = *port,
                        _ => (),
                    }
                }
            }
            _ => (),
        }
    }
    direction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str, protocol: Protocol, port: u16) -> Vec<Tuple> {
        vec![
            Tuple::Ip(vec![
                IPTuple::SourceAddress(source.parse().unwrap()),
                IPTuple::DestinationAddress(destination.parse().unwrap()),
            ]),
            Tuple::Proto(vec![ProtoTuple::Protocol(protocol), ProtoTuple::DestinationPort(port)]),
        ]
    }

    /// A client's packets to `destination`, answered by `answering`.
    fn entry(destination: &str, answering: &str, protocol: Protocol, port: u16) -> Vec<ConntrackAttribute> {
        vec![
            ConntrackAttribute::CtaTupleOrig(tuple("192.0.2.2", destination, protocol, port)),
            ConntrackAttribute::CtaTupleReply(tuple(answering, "192.0.2.2", protocol, 40000)),
        ]
    }

    fn stale(entry: &[ConntrackAttribute], change: Change) -> bool {
        let host = HostPort { address: "0.0.0.0".parse().unwrap(), protocol: 17, port: 53 };
        let target = Target { address: "10.85.0.2".parse().unwrap(), port: 5353, owner: "a".to_owned() };
        is_stale(entry, &host, &target, change)
    }

    #[test]
    fn an_opened_port_makes_untranslated_entries_stale() {
        let untranslated = entry("192.0.2.1", "192.0.2.1", Protocol::Udp, 53);
        assert!(stale(&untranslated, Change::Opened) && !stale(&untranslated, Change::Closed));
    }

    #[test]
    fn a_closed_port_makes_entries_to_its_pod_stale() {
        let translated = entry("192.0.2.1", "10.85.0.2", Protocol::Udp, 53);
        assert!(stale(&translated, Change::Closed) && !stale(&translated, Change::Opened));
        assert!(!stale(&entry("192.0.2.1", "10.85.0.3", Protocol::Udp, 53), Change::Closed), "another pod's");
    }

    #[test]
    fn other_ports_and_protocols_are_left_alone() {
        for change in [Change::Opened, Change::Closed] {
            assert!(!stale(&entry("192.0.2.1", "192.0.2.1", Protocol::Udp, 54), change));
            assert!(!stale(&entry("192.0.2.1", "10.85.0.2", Protocol::Tcp, 53), change));
        }
    }
}
