//! SCTP through host ports: packets made by hand, so that the kernel needs no SCTP of its own to be tested with, only
//! its address translation (nf_conntrack and nf_nat know the protocol).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::{FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use berth_cni::{Protocol, netns::NetworkNamespace};

use crate::world::{HOST, OUTSIDE, World, config, port};

/// Chunk types of RFC 9260.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A packet that arrived.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    from: IpAddr,
    source: u16,
    destination: u16,
    tag: u32,
    chunk: u8,
}

/// A raw socket for SCTP in `namespace`. Sending and receiving are those of any datagram socket, whatever its type is
/// called.
fn socket(namespace: &NetworkNamespace) -> UdpSocket {
    let open = || {
        // SAFETY: integer arguments only.
        match unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a new descriptor, known to nobody else.
            descriptor => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        }
    };
    let socket = UdpSocket::from(namespace.run(open).unwrap().unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// CRC-32C, bit by bit.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// The first packet of an association (INIT) or the answer to it (INIT ACK).
fn packet(source: u16, destination: u16, tag: u32, chunk: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20]);
    // Initiate tag, window, streams out and in, initial sequence number.
    packet.extend(0x0102_0304_u32.to_be_bytes());
    packet.extend(65535_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(7_u32.to_be_bytes());
    let sum = checksum(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

fn send(socket: &UdpSocket, to: &str, packet: &[u8]) {
    // A raw socket has no ports.
    socket.send_to(packet, (to, 0)).unwrap();
}

/// The next packet, behind its IP header and with a correct checksum.
fn receive(socket: &UdpSocket) -> Option<Packet> {
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    let header = usize::from(buffer[0] & 0x0f) * 4;
    let mut bytes = buffer[header..length].to_vec();
    let sum = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    bytes[8..12].fill(0);
    assert_eq!(sum, checksum(&bytes), "the checksum is that of the translated packet");
    let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let tag = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
    Some(Packet { from: from.ip(), source: number(0), destination: number(2), tag, chunk: bytes[12] })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_association_through_a_host_port_is_translated_both_ways() {
    let world = World::new(config());
    let ports = [port(9000, 3868, Protocol::Sctp, None)];
    let pod = world.pod("a", &ports);
    let ruleset = world.ruleset();
    assert!(ruleset.contains("sctp . 9000") || ruleset.contains("132 . 9000"), "{ruleset}");
    let (inside, outside) = (socket(&pod.namespace), socket(&world.outside));
    let begun = Instant::now();
    // The first packet may be lost while addresses are being resolved.
    let seen = loop {
        send(&outside, HOST, &packet(40000, 9000, 0, INIT));
        if let Some(seen) = receive(&inside) {
            break seen;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing arrives in the pod");
    };
    let client: IpAddr = OUTSIDE.parse().unwrap();
    assert_eq!(seen, Packet { from: client, source: 40000, destination: 3868, tag: 0, chunk: INIT });
    send(&inside, OUTSIDE, &packet(3868, 40000, 0x0102_0304, INIT_ACK));
    let answer = receive(&outside).expect("an answer");
    let host: IpAddr = HOST.parse().unwrap();
    assert_eq!(
        answer,
        Packet { from: host, source: 9000, destination: 40000, tag: 0x0102_0304, chunk: INIT_ACK },
        "the answer comes from where was asked"
    );

    world.on_host(|network| network.detach("a", &ports)).unwrap();
    assert!(!world.ruleset().contains(". 9000"), "{}", world.ruleset());
    let local: Ipv4Addr = HOST.parse().unwrap();
    // Another association: the old one is known to the kernel for a while.
    send(&outside, &local.to_string(), &packet(40001, 9000, 0, INIT));
    assert_eq!(receive(&inside), None, "nothing leads to the pod any more");
}
