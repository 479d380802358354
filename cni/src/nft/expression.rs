//! Expressions of nftables rules: each loads, compares or acts on registers (linux/netfilter/nf_tables.h).
//!
//! Those the library knows are built with its types, the rest (nat, masquerade, ct, fib) from plain attributes.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict,
    VerdictAttribute,
};

/// A register of 32 bits, 0 to 15.
pub(super) fn word(index: u32) -> Register {
    /// `NFT_REG32_00`.
    const FIRST: u32 = 8;
    Register::Other(FIRST + index)
}

/// Where a payload offset counts from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Base {
    /// Network header.
    Network = 1,
    /// Transport header.
    Transport = 2,
}

/// IP version of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

impl Version {
    pub(super) fn family(self) -> u8 {
        match self {
            Version::V4 => libc::NFPROTO_IPV4 as u8,
            Version::V6 => libc::NFPROTO_IPV6 as u8,
        }
    }

    /// Bytes of an address.
    pub(super) fn length(self) -> u32 {
        match self {
            Version::V4 => 4,
            Version::V6 => 16,
        }
    }

    /// 32-bit registers of an address.
    pub(super) fn words(self) -> u32 {
        self.length() / 4
    }

    fn source_offset(self) -> u32 {
        match self {
            Version::V4 => 12,
            Version::V6 => 8,
        }
    }

    fn destination_offset(self) -> u32 {
        self.source_offset() + self.length()
    }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

pub(super) fn payload(base: Base, offset: u32, length: u32, destination: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(destination),
        Payload::Base(base as u32),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

pub(super) fn source_address(version: Version, destination: Register) -> Expressions {
    payload(Base::Network, version.source_offset(), version.length(), destination)
}

pub(super) fn destination_address(version: Version, destination: Register) -> Expressions {
    payload(Base::Network, version.destination_offset(), version.length(), destination)
}

pub(super) fn meta(key: MetaKey, destination: Register) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(destination)])
}

pub(super) fn compare(register: Register, operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![Cmp::SourceRegister(register), Cmp::Op(operator), Cmp::Data(DataAttribute::Value(value))])
}

/// `register &= mask`.
pub(super) fn mask(register: Register, mask: Vec<u8>) -> Expressions {
    let zero = vec![0; mask.len()];
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register),
        Bitwise::DestinationRegister(register),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(zero)),
    ])
}

pub(super) fn load(register: Register, value: Vec<u8>) -> Expressions {
    Expressions::Immediate(vec![Immediate::DestinationRegister(register), Immediate::Data(DataAttribute::Value(value))])
}

/// Ends the rule unless `map` has the key at `source`; else its value is at `destination`.
pub(super) fn look_up(map: &str, source: Register, destination: Register) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(source),
        Lookup::DestinationRegister(destination),
    ])
}

fn verdict(attributes: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

pub(super) fn jump(chain: &str) -> Expressions {
    verdict(vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain.to_owned())])
}

pub(super) fn drop() -> Expressions {
    verdict(vec![VerdictAttribute::Code(Verdict::Other(libc::NF_DROP as u32))])
}

/// Goes on only with packets whose destination is an address of this machine.
pub(super) fn destination_is_local() -> [Expressions; 2] {
    /// `NFTA_FIB_DREG`, `NFTA_FIB_RESULT`, `NFTA_FIB_FLAGS`.
    const DREG: u16 = 1;
    const RESULT: u16 = 2;
    const FLAGS: u16 = 3;
    /// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`.
    const ADDRTYPE: u32 = 3;
    const DADDR: u32 = 1 << 1;
    let fib = other("fib", vec![number(FLAGS, DADDR), number(RESULT, ADDRTYPE), number(DREG, word(0).into())]);
    [fib, compare(word(0), Operator::Equal, u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec())]
}

/// A fact about the packet's connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Connection {
    /// Bits of its state.
    Status,
    /// Destination port of its first packet, as it came.
    OriginalPort,
    /// Destination address of its first packet, as it came.
    OriginalAddress(Version),
}

pub(super) fn connection(fact: Connection, destination: Register) -> Expressions {
    /// `NFTA_CT_DREG`, `NFTA_CT_KEY`, `NFTA_CT_DIRECTION`.
    const DREG: u16 = 1;
    const KEY: u16 = 2;
    const DIRECTION: u16 = 3;
    // `NFT_CT_STATUS`, `NFT_CT_PROTO_DST`, `NFT_CT_DST_IP`, `NFT_CT_DST_IP6`; `IP_CT_DIR_ORIGINAL`.
    let (key, directed) = match fact {
        Connection::Status => (2, false),
        Connection::OriginalPort => (12, true),
        Connection::OriginalAddress(Version::V4) => (20, true),
        Connection::OriginalAddress(Version::V6) => (22, true),
    };
    let mut attributes = vec![number(KEY, key), number(DREG, destination.into())];
    if directed {
        attributes.push(DefaultNla::new(DIRECTION, vec![0]));
    }
    other("ct", attributes)
}

/// Rewrites the destination to the address and the port in these registers.
pub(super) fn destination_nat(version: Version, address: Register, port: Register) -> Expressions {
    /// `NFTA_NAT_TYPE`, `_FAMILY`, `_REG_ADDR_MIN`, `_REG_PROTO_MIN`; `NFT_NAT_DNAT`.
    const TYPE: u16 = 1;
    const FAMILY: u16 = 2;
    const ADDRESS: u16 = 3;
    const PORT: u16 = 5;
    const DNAT: u32 = 1;
    other(
        "nat",
        vec![
            number(TYPE, DNAT),
            number(FAMILY, u32::from(version.family())),
            number(ADDRESS, address.into()),
            number(PORT, port.into()),
        ],
    )
}

/// Rewrites the source to the address of the interface the packet leaves by.
pub(super) fn masquerade() -> Expressions {
    other("masq", Vec::new())
}
