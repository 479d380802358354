//! The rules, as one declarative transaction: the table is deleted and made anew with everything in it, at once.
//!
//! In the words of nft(8), for one IPv4 subnet:
//!
//! ```text
//! table inet berth {
//!     map host_ports_v4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
//!     chain guard { type filter hook prerouting priority raw;
//!         iifname berth0 ip daddr 127.0.0.0/8 drop
//!         iifname berth0 ip saddr 127.0.0.0/8 drop
//!     }
//!     chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump host_ports }
//!     chain output { type nat hook output priority dstnat; fib daddr type local jump host_ports }
//!     chain host_ports {
//!         dnat ip to ip daddr . meta l4proto . th dport map @host_ports_v4
//!         dnat ip to 0.0.0.0 . meta l4proto . th dport map @host_ports_v4
//!     }
//!     chain postrouting { type nat hook postrouting priority srcnat;
//!         ip saddr 10.85.0.0/16 ip daddr != 10.85.0.0/16 ip daddr != 224.0.0.0/4 oifname != berth0 masquerade
//!         oifname berth0 ip saddr 127.0.0.0/8 masquerade
//!         oifname berth0 ip saddr 10.85.0.0/16 ct status dnat <was for a host port> masquerade   (twice)
//!     }
//! }
//! ```
//!
//! - A new network namespace has `bridge-nf-call-iptables` on, so frames from pod to pod within the bridge pass
//!   these chains, too. They leave "by" the bridge, which the first masquerade rule excludes.
//! - `guard` makes good for `route_localnet`, which the host needs on the bridge to reach host ports by
//!   127.0.0.1: a pod must not get at what listens there. Before connection tracking (priority raw) an answer
//!   still carries the bridge's address, so nothing legitimate is dropped.
//! - A pod that connects to a host port of a pod on the same bridge must be masqueraded, or the answer would go
//!   straight back, untranslated. Only if the connection was made to a host port of ours: pods must see the true
//!   source of connections that somebody else's rules (a service proxy) translate.
//! - There is no forward chain. To accept a packet here would not help against a rule or policy elsewhere that
//!   drops it (every base chain of the hook must let it pass): a host whose firewall drops forwarded packets must
//!   be told there to let the bridge pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook, InetHookNumber, MetaKey, NfTablesMessage, Operator, RuleAttribute,
    RuleMessage, SetAttribute, SetFlags, SetMessage, TableAttribute, TableFlags, TableMessage,
};

use super::expression::{
    Base, Connection, Version, compare, connection, destination_address, destination_is_local, destination_nat, drop,
    jump, load, look_up, mask, masquerade, meta, payload, source_address, word,
};
use crate::config::NetworkConfig;

const GUARD: &str = "guard";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const HOST_PORTS: &str = "host_ports";
const POSTROUTING: &str = "postrouting";

/// Hook priorities (linux/netfilter_ipv4.h): raw, dstnat, srcnat.
const RAW: i32 = -300;
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const STATUS_DESTINATION_NAT: u32 = 1 << 5;

/// Name of the map of one IP version.
pub(super) fn map_name(version: Version) -> &'static str {
    match version {
        Version::V4 => "host_ports_v4",
        Version::V6 => "host_ports_v6",
    }
}

/// The subnet of each IP version that is configured.
fn versions(config: &NetworkConfig) -> impl Iterator<Item = (Version, IpNet)> {
    config
        .subnets
        .iter()
        .map(|subnet| (if matches!(subnet, IpNet::V4(_)) { Version::V4 } else { Version::V6 }, *subnet))
}

fn table(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned()), TableAttribute::Flags(TableFlags::empty())] }
}

/// Removes the table, whether it exists or not.
pub(super) fn remove_table(name: &str) -> Vec<NfTablesMessage> {
    vec![NfTablesMessage::NewTable(table(name)), NfTablesMessage::DeleteTable(table(name))]
}

/// Makes the table with all chains, maps and rules; the maps are empty.
pub(super) fn replace_table(config: &NetworkConfig) -> Vec<NfTablesMessage> {
    let mut messages = remove_table(&config.table);
    messages.push(NfTablesMessage::NewTable(table(&config.table)));
    messages.extend([Version::V4, Version::V6].map(|version| map(&config.table, version)));
    messages.push(base_chain(&config.table, GUARD, "filter", InetHookNumber::PreRouting, RAW));
    messages.push(base_chain(&config.table, PREROUTING, "nat", InetHookNumber::PreRouting, DESTINATION_NAT));
    messages.push(base_chain(&config.table, OUTPUT, "nat", InetHookNumber::LocalOut, DESTINATION_NAT));
    messages.push(base_chain(&config.table, POSTROUTING, "nat", InetHookNumber::PostRouting, SOURCE_NAT));
    messages.push(NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![ChainAttribute::Table(config.table.clone()), ChainAttribute::Name(HOST_PORTS.to_owned())],
    }));
    messages.extend(rules(config).into_iter().map(|(chain, expressions)| rule(&config.table, chain, expressions)));
    messages
}

fn map(table: &str, version: Version) -> NfTablesMessage {
    // Types are for nft(8) alone, which packs those of a concatenation six bits each (`datatype.h`): ipv4_addr is
    // 7, ipv6_addr 8, inet_proto 12, inet_service 13. The kernel wants lengths and an id within the transaction.
    let address = match version {
        Version::V4 => 7,
        Version::V6 => 8,
    };
    NfTablesMessage::NewSet(SetMessage {
        attributes: vec![
            SetAttribute::Table(table.to_owned()),
            SetAttribute::Name(map_name(version).to_owned()),
            SetAttribute::Flags(SetFlags::Map),
            SetAttribute::KeyType((address << 12) | (12 << 6) | 13),
            SetAttribute::KeyLen(version.length() + 8),
            SetAttribute::DataType((address << 6) | 13),
            SetAttribute::DataLen(version.length() + 4),
            SetAttribute::Id(version.length()),
        ],
    })
}

fn base_chain(table: &str, name: &str, kind: &str, hook: InetHookNumber, priority: i32) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(priority as u32)]),
            ChainAttribute::Policy(libc::NF_ACCEPT as u32),
            ChainAttribute::Type(kind.to_owned()),
        ],
    })
}

fn rule(table: &str, chain: &str, expressions: Vec<Expressions>) -> NfTablesMessage {
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ],
    })
}

type Rule = (&'static str, Vec<Expressions>);

fn rules(config: &NetworkConfig) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let loopback: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
    if config.has_v4() {
        for loopback_address in
            [within(Version::V4, Side::Destination, loopback), within(Version::V4, Side::Source, loopback)]
        {
            let mut expressions = interface(MetaKey::Iifname, Operator::Equal, &config.bridge);
            expressions.extend(is(Version::V4));
            expressions.extend(loopback_address);
            expressions.push(drop());
            rules.push((GUARD, expressions));
        }
    }
    for chain in [PREROUTING, OUTPUT] {
        rules.push((chain, destination_is_local().into_iter().chain([jump(HOST_PORTS)]).collect()));
    }
    for (version, _) in versions(config) {
        for host in [Host::This, Host::Any] {
            let key = word(0);
            let mut expressions = is(version);
            expressions.extend(match host {
                Host::This => vec![destination_address(version, key)],
                Host::Any => vec![load(key, any(version))],
            });
            expressions.push(meta(MetaKey::L4Proto, word(version.words())));
            expressions.push(payload(Base::Transport, 2, 2, word(version.words() + 1)));
            expressions.push(look_up(map_name(version), key, word(VALUE)));
            expressions.push(destination_nat(version, word(VALUE), word(VALUE + version.words())));
            rules.push((HOST_PORTS, expressions));
        }
    }
    for (version, subnet) in versions(config) {
        if config.masquerade {
            rules.push((POSTROUTING, leaving(config, version, subnet)));
        }
        if version == Version::V4 {
            let mut expressions = interface(MetaKey::Oifname, Operator::Equal, &config.bridge);
            expressions.extend(is(version));
            expressions.extend(within(version, Side::Source, loopback));
            expressions.push(masquerade());
            rules.push((POSTROUTING, expressions));
        }
        for host in [Host::This, Host::Any] {
            rules.push((POSTROUTING, back_by_host_port(config, version, subnet, host)));
        }
    }
    rules
}

/// Register where a value that was looked up begins: behind the longest key (six words).
const VALUE: u32 = 8;

/// Which address of the host a map is asked for.
#[derive(Clone, Copy)]
enum Host {
    This,
    Any,
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

fn any(version: Version) -> Vec<u8> {
    vec![0; version.length() as usize]
}

fn is(version: Version) -> Vec<Expressions> {
    vec![meta(MetaKey::Nfproto, word(0)), compare(word(0), Operator::Equal, vec![version.family()])]
}

fn interface(key: MetaKey, operator: Operator, name: &str) -> Vec<Expressions> {
    // The whole of IFNAMSIZ is compared, the rest is NUL: no name that only begins like ours matches.
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    vec![meta(key, word(0)), compare(word(0), operator, bytes)]
}

/// The address on `side` is in `net` (in: Equal, out: NotEqual).
fn belongs(version: Version, side: Side, net: IpNet, operator: Operator) -> Vec<Expressions> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let load = match side {
        Side::Source => source_address(version, word(0)),
        Side::Destination => destination_address(version, word(0)),
    };
    vec![load, mask(word(0), octets(net.netmask())), compare(word(0), operator, octets(net.network()))]
}

fn within(version: Version, side: Side, net: IpNet) -> Vec<Expressions> {
    belongs(version, side, net, Operator::Equal)
}

/// Pod traffic that leaves for the outside.
fn leaving(config: &NetworkConfig, version: Version, subnet: IpNet) -> Vec<Expressions> {
    let multicast = match version {
        Version::V4 => IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        Version::V6 => IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    };
    let mut expressions = is(version);
    expressions.extend(within(version, Side::Source, subnet));
    expressions.extend(belongs(version, Side::Destination, subnet, Operator::NotEqual));
    expressions.extend(belongs(version, Side::Destination, multicast, Operator::NotEqual));
    expressions.extend(interface(MetaKey::Oifname, Operator::NotEqual, &config.bridge));
    expressions.push(masquerade());
    expressions
}

/// Traffic from pod to pod (or to itself) by way of a host port.
fn back_by_host_port(config: &NetworkConfig, version: Version, subnet: IpNet, host: Host) -> Vec<Expressions> {
    let mut expressions = interface(MetaKey::Oifname, Operator::Equal, &config.bridge);
    expressions.extend(is(version));
    expressions.extend(within(version, Side::Source, subnet));
    expressions.push(connection(Connection::Status, word(0)));
    expressions.push(mask(word(0), STATUS_DESTINATION_NAT.to_ne_bytes().to_vec()));
    expressions.push(compare(word(0), Operator::NotEqual, vec![0; 4]));
    let key = word(0);
    expressions.push(match host {
        Host::This => connection(Connection::OriginalAddress(version), key),
        Host::Any => load(key, any(version)),
    });
    expressions.push(meta(MetaKey::L4Proto, word(version.words())));
    expressions.push(connection(Connection::OriginalPort, word(version.words() + 1)));
    expressions.push(look_up(map_name(version), key, word(VALUE)));
    expressions.push(masquerade());
    expressions
}
