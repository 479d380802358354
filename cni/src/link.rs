//! Links, addresses and routes: the requests, and what is read from the answers.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
        LinkMessage,
    },
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::{
    lease::{Lease, MacAddress},
    netlink::{Request, RequestError, Socket},
};

/// Queues of a veth, each way. The kernel's default is one per processor, each with its directory in sysfs to be
/// made and removed; as a veth sends without a queue discipline and without a lock, more than one gains nothing.
const QUEUES: u32 = 1;

pub(crate) type RouteRequest = Request<RouteNetlinkMessage>;

/// The loopback interface is the first of every network namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK: u32 = 1;

/// What we want to know about a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) kind: Option<InfoKind>,
    /// The bridge it is a port of.
    pub(crate) controller: Option<u32>,
    /// Of a veth: the index of its peer, in the peer's namespace.
    pub(crate) peer: Option<u32>,
}

impl Link {
    fn from_message(message: &LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
            controller: None,
            peer: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => (),
            }
        }
        link
    }

    /// The first link among the answers.
    pub(crate) fn first(replies: &[RouteNetlinkMessage]) -> Option<Link> {
        replies.iter().find_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
            _ => None,
        })
    }
}

fn without_statistics(builder: LinkMessageBuilder<LinkUnspec>) -> LinkMessage {
    builder.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])).build()
}

fn get_by_index(index: u32) -> RouteRequest {
    Request::get(RouteNetlinkMessage::GetLink(without_statistics(LinkUnspec::new_with_index(index))))
}

/// Asks for the link of this name. The kernel (6.8 and later) finishes a pending change of carrier before it
/// answers (`rtnl_getlink`): until then the end of a veth pair that came up first drops what it should send.
pub(crate) fn get_by_name(name: &str) -> RouteRequest {
    Request::get(RouteNetlinkMessage::GetLink(without_statistics(LinkUnspec::new_with_name(name))))
}

/// The link of this name, if there is one.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, RequestError> {
    match socket.transact(vec![get_by_name(name)]) {
        Ok(replies) => Ok(Link::first(&replies)),
        Err(error) if error.is(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every link of the socket's namespace.
pub(crate) fn list(socket: &mut Socket) -> Result<Vec<Link>, RequestError> {
    let all = RouteNetlinkMessage::GetLink(without_statistics(LinkMessageBuilder::<LinkUnspec>::default()));
    let replies = socket.dump(all)?;
    Ok(replies
        .iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
            _ => None,
        })
        .collect())
}

/// Deletes links by name; those that do not exist (any more) are no error.
pub(crate) fn delete(socket: &mut Socket, names: &[String]) -> Result<(), RequestError> {
    let requests = names
        .iter()
        .map(|name| Request::new(RouteNetlinkMessage::DelLink(LinkUnspec::new_with_name(name).build()), 0))
        .collect();
    match socket.transact(requests) {
        Err(error) if !error.is(Errno::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

/// Deletes a link and returns once it is gone from sight, together with its peer: out of the bridge, out of both
/// namespaces, its name free. The kernel answers a deletion only when the last reader is done with it and it
/// could free the memory, some 10 to 40 ms later (`netdev_run_todo`); what ECHO asks for comes as soon as the
/// link is unlisted (Linux 6.2; earlier ones do not echo, and this waits for all of it).
pub(crate) fn delete_from_sight(socket: Socket, name: &str) -> Result<(), RequestError> {
    let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_name(name).build());
    match socket.first_answer(Request::new(message, NLM_F_ECHO)) {
        Err(error) if !error.is(Errno::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

/// Makes a bridge, still down, with a hardware address of its own: the address of a bridge without one follows
/// its ports, and every pod would have to learn it anew.
pub(crate) fn create_bridge(name: &str, mac: MacAddress, mtu: u32) -> RouteRequest {
    let message = LinkBridge::new(name).address(mac.0.to_vec()).mtu(mtu).build();
    Request::new(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Brings a link up, with this MTU.
pub(crate) fn up_with_mtu(index: u32, mtu: u32) -> RouteRequest {
    Request::new(RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).mtu(mtu).up().build()), 0)
}

/// Makes the veth pair in one request: the host's end, enslaved to the bridge and up, and the pod's end, made
/// within the pod's namespace. The host's end is the main device because only of that one does the kernel honour
/// IFLA_MASTER (`rtnl_newlink_create`); the peer cannot be brought up before the two are paired (`veth_open`).
/// With ECHO the answer is the new link, which names the index of its peer (Linux 6.2; earlier ones do not answer).
pub(crate) fn create_pair(lease: &Lease, namespace: BorrowedFd<'_>, bridge: u32, mtu: u32) -> RouteRequest {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(lease.interface.as_str())
        .address(lease.mac.0.to_vec())
        .mtu(mtu)
        .setns_by_fd(namespace.as_raw_fd())
        .append_extra_attribute(LinkAttribute::NumTxQueues(QUEUES))
        .append_extra_attribute(LinkAttribute::NumRxQueues(QUEUES))
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(lease.host_interface.as_str())
        .mtu(mtu)
        .controller(bridge)
        .append_extra_attribute(LinkAttribute::NumTxQueues(QUEUES))
        .append_extra_attribute(LinkAttribute::NumRxQueues(QUEUES))
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .up()
        .build();
    Request::new(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO)
}

/// Lets the bridge send a frame back by the port it came from. A request of its own: the kernel ignores the
/// settings of a port in the request that makes it one.
pub(crate) fn hairpin(host_interface: &str) -> RouteRequest {
    let message = LinkMessageBuilder::<LinkBridgePort>::default()
        .name(host_interface)
        .set_port_kind(InfoPortKind::Bridge)
        .append_info_data(InfoBridgePort::HairpinMode(true))
        .build();
    Request::new(RouteNetlinkMessage::NewLink(message), 0)
}

/// What is left to do within the pod: both interfaces up, addresses, default routes.
pub(crate) fn configure_pod(lease: &Lease, index: u32) -> Vec<RouteRequest> {
    let mut requests: Vec<RouteRequest> = [LOOPBACK, index]
        .map(|link| Request::new(RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(link).up().build()), 0))
        .into();
    requests.extend(lease.addresses.iter().map(|address| add_address(index, *address)));
    requests.extend(lease.gateways.iter().map(|gateway| add_default_route(index, *gateway)));
    requests
}

/// Adds an address, without duplicate address detection: we know that it is nobody else's, and a pod must not
/// wait a second for it.
pub(crate) fn add_address(index: u32, address: IpNet) -> RouteRequest {
    let mut message = address_message(index, address);
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent));
    Request::new(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes an address.
pub(crate) fn remove_address(index: u32, address: IpNet) -> RouteRequest {
    Request::new(RouteNetlinkMessage::DelAddress(address_message(index, address)), 0)
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let length = address.prefix_len();
    match address.addr() {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(address, length).build()
        }
        IpAddr::V6(address) => {
            AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(address, length).build()
        }
    }
}

fn add_default_route(index: u32, gateway: IpAddr) -> RouteRequest {
    let message = match gateway {
        IpAddr::V4(gateway) => {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().output_interface(index).gateway(gateway).build()
        }
        IpAddr::V6(gateway) => {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().output_interface(index).gateway(gateway).build()
        }
    };
    Request::new(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Global addresses of a link.
pub(crate) fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<IpNet>, RequestError> {
    let replies = socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(replies
        .iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewAddress(message)
                if message.header.index == index && message.header.scope == AddressScope::Universe =>
            {
                Some(message)
            }
            _ => None,
        })
        .filter_map(|message| {
            let find = |local: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) if local => Some(*address),
                    AddressAttribute::Address(address) if !local => Some(*address),
                    _ => None,
                })
            };
            IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
        })
        .collect())
}

/// MTU of the interface of the default route, of IPv4 or else of IPv6; the one of the smallest metric.
pub(crate) fn uplink_mtu(socket: &mut Socket) -> Result<Option<u32>, RequestError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let routes = socket.dump(RouteNetlinkMessage::GetRoute(question))?;
        let uplink = routes
            .iter()
            .filter_map(|reply| match reply {
                RouteNetlinkMessage::NewRoute(message) => default_route(message),
                _ => None,
            })
            .min_by_key(|(metric, _)| *metric);
        if let Some((_, index)) = uplink {
            let replies = socket.transact(vec![get_by_index(index)])?;
            return Ok(Link::first(&replies).map(|link| link.mtu));
        }
    }
    Ok(None)
}

/// Metric and interface of a default route.
fn default_route(message: &RouteMessage) -> Option<(u32, u32)> {
    let header = &message.header;
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let mut metric = 0;
    let mut interface = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(hops) => interface = interface.or(hops.first().map(|hop| hop.interface_index)),
            _ => (),
        }
    }
    interface.map(|interface| (metric, interface))
}
