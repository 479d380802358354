//! Who can reach whom, and which address is seen.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use berth_cni::Protocol;

use crate::world::{
    HOST, HOST_V6, OUTSIDE, OUTSIDE_V6, World, ask_tcp, ask_tcp_within, ask_udp, config, port, program, serve_tcp,
    serve_udp,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const ANY: [[u16; 8]; 1] = [[0; 8]];

fn any_address() -> IpAddr {
    IpAddr::from(ANY[0])
}

/// Every test of traffic runs with the bridge's frames shown to nftables (the default of a new namespace) and not.
fn with_and_without_bridge_filter(test: impl Fn(&World)) {
    for filter in ["1", "0"] {
        let world = World::new(config());
        for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let path = format!("/proc/sys/net/bridge/{name}");
            if std::path::Path::new(&path).exists() {
                world.on_host(|_| std::fs::write(&path, filter)).unwrap();
            }
        }
        eprintln!("bridge-nf-call-iptables = {filter}");
        test(&world);
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pods_host_and_outside_reach_each_other() {
    with_and_without_bridge_filter(|world| {
        let (a, b) = (world.pod("a", &[]), world.pod("b", &[]));
        for namespace in [&a.namespace, &b.namespace, &world.host, &world.outside] {
            serve_tcp(namespace, any_address(), 80);
        }
        program(&world.outside, &format!("ip route add 10.85.0.0/16 via {HOST}"));
        program(&world.outside, &format!("ip route add fd00:85::/64 via {HOST_V6}"));
        for (family, host, outside) in [(0, HOST, OUTSIDE), (1, HOST_V6, OUTSIDE_V6)] {
            let (of_a, of_b) = (a.lease.addresses[family].addr(), b.lease.addresses[family].addr());
            let gateway = a.lease.gateways[family];
            let seen = |from, to| ask_tcp(from, to, 80).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(canonical(seen(&a.namespace, of_b)), of_a, "pod to pod keeps its source");
            assert_eq!(canonical(seen(&a.namespace, of_a)), of_a, "pod to itself");
            assert_eq!(canonical(seen(&a.namespace, gateway)), of_a, "pod to gateway");
            assert_eq!(canonical(seen(&a.namespace, ip(host))), of_a, "pod to host");
            assert_eq!(canonical(seen(&world.host, of_b)), gateway, "host to pod");
            assert_eq!(canonical(seen(&a.namespace, ip(outside))), ip(host), "pod to outside is masqueraded");
            assert_eq!(canonical(seen(&world.outside, of_a)), ip(outside), "outside to pod keeps its source");
            let loopback = ip(if family == 0 { "127.0.0.1" } else { "::1" });
            assert_eq!(canonical(seen(&a.namespace, loopback)), loopback, "loopback of the pod is up");
        }
    });
}

fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn host_ports_lead_to_the_pod_from_everywhere() {
    with_and_without_bridge_filter(|world| {
        let ports = [port(8080, 80, Protocol::Tcp, None), port(5353, 53, Protocol::Udp, None)];
        let (a, b) = (world.pod("a", &ports), world.pod("b", &[]));
        serve_tcp(&a.namespace, any_address(), 80);
        serve_udp(&a.namespace, ip("0.0.0.0"), 53);
        let gateway = a.lease.gateways[0];
        for ask in [
            (|from, to| ask_tcp(from, to, 8080).unwrap_or_else(|error| panic!("TCP {to}: {error}")))
                as fn(&_, IpAddr) -> IpAddr,
            |from, to| ask_udp(from, to, 5353).unwrap_or_else(|error| panic!("UDP {to}: {error}")),
        ] {
            let ask = |from, to| canonical(ask(from, to));
            assert_eq!(ask(&world.outside, ip(HOST)), ip(OUTSIDE), "outside keeps its source");
            assert_eq!(ask(&world.host, ip("127.0.0.1")), gateway, "host by loopback");
            assert_eq!(ask(&world.host, ip(HOST)), ip(HOST), "host by its own address");
            assert_eq!(ask(&b.namespace, ip(HOST)), gateway, "another pod");
            assert_eq!(ask(&b.namespace, gateway), gateway, "another pod by the bridge's address");
            assert_eq!(ask(&a.namespace, ip(HOST)), gateway, "the pod itself");
        }
        assert_eq!(ask_tcp(&world.outside, ip(HOST_V6), 8080).unwrap(), ip(OUTSIDE_V6), "IPv6 from outside");
        assert_eq!(ask_tcp(&world.host, ip(HOST_V6), 8080).unwrap(), ip(HOST_V6), "IPv6 from the host");
        assert_eq!(ask_tcp(&a.namespace, ip(HOST_V6), 8080).unwrap(), a.lease.gateways[1], "IPv6 from the pod itself");
    });
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_udp_client_that_keeps_its_port_follows_the_pods() {
    let world = World::new(config());
    world.on_host(|network| network.ensure_host()).unwrap();
    let client = world.outside.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 40000))).unwrap().unwrap();
    let ask = |patience| {
        client.set_read_timeout(Some(Duration::from_millis(patience))).unwrap();
        client.send_to(b"?", (HOST, 5353)).unwrap();
        client.recv(&mut [0; 64])
    };
    assert!(ask(100).is_err(), "nobody is there yet");
    let ports = [port(5353, 53, Protocol::Udp, None)];
    for owner in ["first", "second"] {
        let pod = world.pod(owner, &ports);
        serve_udp(&pod.namespace, ip("0.0.0.0"), 53);
        assert!(ask(5000).is_ok(), "{owner}");
        world.on_host(|network| network.detach(owner, &ports)).unwrap();
        assert!(ask(100).is_err(), "{owner} has gone");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_host_address_limits_its_port() {
    let world = World::new(config());
    let a =
        world.pod("a", &[port(8080, 80, Protocol::Tcp, Some("127.0.0.1")), port(8081, 80, Protocol::Tcp, Some(HOST))]);
    serve_tcp(&a.namespace, any_address(), 80);
    assert!(ask_tcp(&world.host, ip("127.0.0.1"), 8080).is_ok());
    assert!(ask_tcp(&world.outside, ip(HOST), 8080).is_err(), "8080 is for 127.0.0.1 only");
    assert!(ask_tcp(&world.outside, ip(HOST), 8081).is_ok());
    assert!(ask_tcp(&world.host, ip("127.0.0.1"), 8081).is_err(), "8081 is for {HOST} only");
    assert!(ask_tcp(&a.namespace, ip(HOST), 8081).is_ok(), "the pod itself by the address");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_host_port_is_only_taken_from_traffic_to_the_host() {
    let world = World::new(config());
    let (a, b) = (world.pod("a", &[port(80, 80, Protocol::Tcp, None)]), world.pod("b", &[]));
    serve_tcp(&a.namespace, any_address(), 80);
    serve_tcp(&world.outside, any_address(), 80);
    serve_tcp(&b.namespace, any_address(), 80);
    assert_eq!(canonical(ask_tcp(&b.namespace, ip(OUTSIDE), 80).unwrap()), ip(HOST), "goes out, not to the pod");
    assert_eq!(canonical(ask_tcp(&a.namespace, b.address(), 80).unwrap()), a.address());
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_cannot_reach_what_listens_on_the_hosts_loopback() {
    let world = World::new(config());
    let a = world.pod("a", &[]);
    serve_tcp(&world.host, ip("127.0.0.1"), 9999);
    // The pod does its worst: no loopback of its own, and a route for 127/8 by the gateway.
    for command in [
        "ip address del 127.0.0.1/8 dev lo",
        "ip route del table local local 127.0.0.0/8",
        "ip route add 127.0.0.1/32 via 10.85.0.1 dev eth0",
    ] {
        let _ = a.namespace.run(|| std::process::Command::new("sh").args(["-c", command]).output());
    }
    a.namespace.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1")).unwrap().unwrap();
    let patience = std::time::Duration::from_millis(500);
    assert!(ask_tcp_within(&a.namespace, ip("127.0.0.1"), 9999, patience).is_err());
    assert_eq!(world.ruleset().matches("127.0.0.0/8 drop").count(), 2, "the guard is in place:\n{}", world.ruleset());
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn without_masquerade_the_outside_sees_the_pod() {
    let world = World::new(berth_cni::NetworkConfig { masquerade: false, ..config() });
    let a = world.pod("a", &[]);
    serve_tcp(&world.outside, any_address(), 80);
    program(&world.outside, &format!("ip route add 10.85.0.0/16 via {HOST}"));
    assert_eq!(canonical(ask_tcp(&a.namespace, ip(OUTSIDE), 80).unwrap()), a.address());
}
