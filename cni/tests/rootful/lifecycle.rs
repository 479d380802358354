//! What is made, what is left, and what is repeated.

use std::{collections::HashSet, time::Duration};

use berth_cni::{Network, NetworkConfig, NetworkError, Protocol, netns::NetworkNamespace};

use crate::world::{HOST, World, ask_tcp, config, port, program, serve_tcp};

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn everything_is_taken_down_and_settings_are_as_before() {
    let world = World::new(config());
    let (links, ruleset, sysctls) = (world.links(), world.ruleset(), world.sysctls());
    let _pod = world.pod("a", &[port(8080, 80, Protocol::Tcp, None)]);
    assert_ne!(world.sysctls(), sysctls);
    world.on_host(Network::teardown_host).unwrap();
    assert_eq!(world.links(), links);
    assert_eq!(world.ruleset(), ruleset);
    assert_eq!(world.sysctls(), sysctls);
    assert_eq!(std::fs::read_dir(world.state.path()).unwrap().count(), 0);
    world.on_host(Network::teardown_host).unwrap();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn settings_are_restored_by_a_later_run() {
    let world = World::new(config());
    world.on_host(|_| std::fs::write("/proc/sys/net/ipv4/conf/all/accept_redirects", "0")).unwrap();
    let sysctls = world.sysctls();
    world.on_host(Network::ensure_host).unwrap();
    let later = Network::new(config(), world.state.path()).unwrap();
    world.host.run(|| later.ensure_host()).unwrap().unwrap();
    world.host.run(|| later.teardown_host()).unwrap().unwrap();
    assert_eq!(world.sysctls(), sysctls);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_uplink_with_router_advertisements_keeps_accepting_them() {
    let world = World::new(config());
    let accept = "/proc/sys/net/ipv6/conf/uplink/accept_ra";
    let read = || world.on_host(|_| std::fs::read_to_string(accept)).unwrap().trim().to_owned();
    assert_eq!(read(), "1");
    world.on_host(Network::ensure_host).unwrap();
    assert_eq!(read(), "2");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn repeated_calls_change_nothing() {
    let world = World::new(config());
    world.on_host(Network::ensure_host).unwrap();
    let ports = [port(8080, 80, Protocol::Tcp, None)];
    let pod = world.pod("a", &ports);
    let state = || (program(&world.host, "ip address"), world.ruleset(), program(&pod.namespace, "ip -d route"));
    // Lifetimes and the like do not move for permanent addresses, but an interface may still be settling.
    let without_state = |(addresses, ruleset, routes): (String, String, String)| {
        (addresses.replace("tentative ", "").replace(" tentative", ""), ruleset, routes)
    };
    let before = without_state(state());
    for _ in 0..2 {
        world.on_host(Network::ensure_host).unwrap();
        let socket = pod.namespace.route_socket().unwrap();
        let again = world.on_host(|network| network.attach("a", socket, &pod.lease, &ports)).unwrap();
        assert_eq!(again, pod.attachment);
    }
    assert_eq!(without_state(state()), before);
    for _ in 0..2 {
        world.on_host(|network| network.detach("a", &ports)).unwrap();
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_looks_as_it_should() {
    let world = World::new(config());
    let pod = world.pod("a", &[]);
    assert_eq!(pod.attachment.mtu, 1400, "the uplink's");
    let link = program(&pod.namespace, "ip link show eth0");
    assert!(link.contains("mtu 1400") && link.contains("UP") && link.contains(&pod.lease.mac.to_string()), "{link}");
    let addresses = program(&pod.namespace, "ip -o address show dev eth0 scope global");
    assert!(addresses.contains("inet 10.85.0.2/16 brd 10.85.255.255"), "{addresses}");
    assert!(addresses.contains("inet6 fd00:85::2/64") && !addresses.contains("tentative"), "{addresses}");
    assert!(program(&pod.namespace, "ip route").contains("default via 10.85.0.1 dev eth0"));
    assert!(program(&pod.namespace, "ip -6 route").contains("default via fd00:85::1 dev eth0"));
    let port = program(&world.host, &format!("ip -d link show {}", pod.attachment.host_interface));
    assert!(port.contains("master berth0") && port.contains("hairpin on") && port.contains("mtu 1400"), "{port}");
    let bridge = program(&world.host, "ip link show berth0");
    assert!(bridge.contains("mtu 1400") && bridge.contains("0a:58:0a:55:00:01"), "{bridge}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn detaching_leaves_nothing_of_the_pod() {
    let world = World::new(config());
    world.on_host(Network::ensure_host).unwrap();
    let before = (world.links(), world.ruleset());
    let ports = [port(8080, 80, Protocol::Tcp, None), port(53, 53, Protocol::Udp, Some(HOST))];
    let pod = world.pod("a", &ports);
    assert_ne!((world.links(), world.ruleset()), before);
    world.on_host(|network| network.detach("a", &ports)).unwrap();
    assert_eq!((world.links(), world.ruleset()), before);
    assert_eq!(program(&pod.namespace, "ip -o link").lines().count(), 1, "only loopback is left");
    assert!(world.network.release("a"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_new_sandbox_of_the_same_pod_takes_over() {
    let world = World::new(config());
    let first = world.pod("a", &[]);
    // The first namespace still exists, with its link: as after a crash of the sandbox only.
    let second = world.pod("a", &[]);
    assert_eq!(first.lease, second.lease);
    serve_tcp(&second.namespace, second.address(), 80);
    assert!(ask_tcp(&world.host, second.address(), 80).is_ok());
    assert_eq!(program(&first.namespace, "ip -o link").lines().count(), 1);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_hundred_pods_at_once() {
    let world = World::new(config());
    let before = {
        world.on_host(Network::ensure_host).unwrap();
        (world.links(), world.ruleset())
    };
    let pods: Vec<(String, NetworkNamespace)> =
        (0..100).map(|index| (format!("pod{index}"), NetworkNamespace::create().unwrap())).collect();
    let sockets: Vec<_> = pods.iter().map(|(_, namespace)| namespace.route_socket().unwrap()).collect();
    let start = std::time::Instant::now();
    world.on_host(|network| {
        std::thread::scope(|scope| {
            let attaching: Vec<_> = pods
                .iter()
                .zip(sockets)
                .enumerate()
                .map(|(index, ((owner, _), socket))| {
                    scope.spawn(move || {
                        let lease = network.lease(owner, &[])?;
                        let ports = [port(20000 + index as u16, 80, Protocol::Tcp, None)];
                        network.attach(owner, socket, &lease, &ports)
                    })
                })
                .collect();
            for attached in attaching {
                attached.join().unwrap().unwrap();
            }
        });
    });
    eprintln!("100 attached at once with a host port each: {:?}", start.elapsed());
    assert_eq!(world.links().len(), before.0.len() + 100);
    for (index, (owner, namespace)) in pods.iter().enumerate().step_by(9) {
        serve_tcp(namespace, std::net::Ipv4Addr::UNSPECIFIED, 80);
        let address = world.on_host(|network| network.lease(owner, &[])).unwrap().addresses[0].addr();
        assert!(ask_tcp(&world.host, address, 80).is_ok(), "{owner} at {address}");
        assert!(ask_tcp(&world.outside, HOST.parse::<std::net::IpAddr>().unwrap(), 20000 + index as u16).is_ok());
    }
    let start = std::time::Instant::now();
    world.on_host(|network| {
        std::thread::scope(|scope| {
            let detaching: Vec<_> =
                pods.iter().map(|(owner, _)| scope.spawn(move || network.detach(owner, &[]))).collect();
            for detached in detaching {
                detached.join().unwrap().unwrap();
            }
        });
    });
    eprintln!("100 detached at once: {:?}", start.elapsed());
    assert_eq!((world.links(), world.ruleset()), before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_no_pod_claims_is_swept() {
    let world = World::new(config());
    let kept = world.pod("kept", &[port(8080, 80, Protocol::Tcp, None)]);
    let lost = world.pod("lost", &[port(8081, 80, Protocol::Tcp, None)]);
    program(&world.host, "ip link add bh000000000000 type veth peer name elsewhere");
    // A new run, which knows of one pod only.
    let later = Network::new(config(), world.state.path()).unwrap();
    later.adopt("kept", &kept.lease).unwrap();
    let owners = HashSet::from(["kept".to_owned()]);
    let sweep = || world.host.run(|| later.sweep(&owners)).unwrap().unwrap();
    let removed = sweep();
    assert_eq!(
        removed,
        [
            format!("link {}", lost.attachment.host_interface),
            "host port 0.0.0.0 8081/TCP of lost".to_owned(),
            "host port :: 8081/TCP of lost".to_owned(),
        ]
    );
    assert_eq!(sweep(), Vec::<String>::new());
    let links = world.links();
    assert!(links.contains(&kept.attachment.host_interface));
    assert!(links.contains(&"bh000000000000".to_owned()), "a link elsewhere is not ours, whatever its name");
    serve_tcp(&kept.namespace, kept.address(), 80);
    assert!(ask_tcp(&world.host, std::net::Ipv4Addr::LOCALHOST, 8080).is_ok(), "host ports survive a restart");
    assert_ne!(later.lease("new", &[]).unwrap().addresses, kept.lease.addresses);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_flushed_ruleset_is_noticed_and_made_anew() {
    let world = World::new(config());
    let pod = world.pod("a", &[port(8080, 80, Protocol::Tcp, None)]);
    let before = world.ruleset();
    let mut monitor = world.on_host(Network::monitor).unwrap();
    assert!(!monitor.table_lost().unwrap());
    world.pod("b", &[port(8082, 80, Protocol::Tcp, None)]);
    assert!(!monitor.table_lost().unwrap(), "other changes do not count");
    world.on_host(|network| network.detach("b", &[])).unwrap();
    program(&world.host, "nft flush ruleset");
    assert!(monitor.table_lost().unwrap());
    world.on_host(Network::ensure_host).unwrap();
    assert_eq!(world.ruleset(), before);
    // Also when nobody looks before the next change.
    program(&world.host, "nft flush ruleset");
    world.pod("c", &[port(8083, 80, Protocol::Tcp, None)]);
    serve_tcp(&pod.namespace, pod.address(), 80);
    assert!(ask_tcp(&world.host, std::net::Ipv4Addr::LOCALHOST, 8080).is_ok());
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_small_subnet_runs_out_with_a_clear_error() {
    let world = World::new(NetworkConfig { subnets: vec!["10.85.0.0/30".parse().unwrap()], ..config() });
    let _first = world.pod("a", &[]);
    let error = world.try_pod("b", &[]).err().unwrap();
    assert_eq!(error.to_string(), "no addresses left in 10.85.0.0/30 (1 in use)");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_host_port_that_is_taken_names_who_has_it_and_nothing_stays_behind() {
    let world = World::new(config());
    let _first = world.pod("first", &[port(8080, 80, Protocol::Tcp, None)]);
    let before = world.links();
    let error = world.try_pod("second", &[port(8080, 81, Protocol::Tcp, None)]).err().unwrap();
    assert!(matches!(&error, NetworkError::PortTaken { port: 8080, owner, .. } if owner == "first"), "{error}");
    assert_eq!(world.links(), before);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_bridge_name_that_is_something_else_is_refused() {
    let world = World::new(config());
    program(&world.host, "ip link add berth0 type veth peer name elsewhere");
    let error = world.on_host(Network::ensure_host).unwrap_err();
    assert_eq!(error.to_string(), "berth0 exists and is not a bridge");
    assert!(world.on_host(Network::teardown_host).is_err());
    assert!(world.links().contains(&"berth0".to_owned()));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_changed_subnet_moves_the_bridge() {
    let world = World::new(config());
    world.on_host(Network::ensure_host).unwrap();
    let changed = NetworkConfig { subnets: vec!["10.86.0.0/16".parse().unwrap()], ..config() };
    let later = Network::new(changed, world.state.path()).unwrap();
    world.host.run(|| later.ensure_host()).unwrap().unwrap();
    let addresses = program(&world.host, "ip -o address show dev berth0 scope global");
    assert!(addresses.contains("10.86.0.1/16") && addresses.lines().count() == 1, "{addresses}");
}

/// Not a test of anything but a number for people: run it alone with `--nocapture`.
#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn time_of_attaching_and_detaching() {
    let world = World::new(config());
    world.on_host(Network::ensure_host).unwrap();
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..50 {
        let namespace = NetworkNamespace::create().unwrap();
        let socket = namespace.route_socket().unwrap();
        let owner = format!("pod{round}");
        let ports: &[_] = if round % 2 == 0 { &[] } else { &[port(8080, 80, Protocol::Tcp, None)] };
        let (attach, detach) = world.on_host(|network| {
            let lease = network.lease(&owner, &[]).unwrap();
            let start = std::time::Instant::now();
            network.attach(&owner, socket, &lease, ports).unwrap();
            let attach = start.elapsed();
            let start = std::time::Instant::now();
            network.detach(&owner, ports).unwrap();
            network.release(&owner);
            (attach, start.elapsed())
        });
        times[round % 2].push(attach);
        times[2 + round % 2].push(detach);
    }
    for (name, times) in
        ["attach", "attach with a host port", "detach", "detach with a host port"].iter().zip(&mut times)
    {
        times.sort();
        eprintln!("{name}: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
    }
    serve_tcp(&world.host, std::net::Ipv4Addr::UNSPECIFIED, 80);
    let mut first: Vec<Duration> = (0..20)
        .map(|round| {
            let pod = world.pod(&format!("first{round}"), &[]);
            let start = std::time::Instant::now();
            ask_tcp(&pod.namespace, pod.lease.gateways[0], 80).unwrap();
            start.elapsed()
        })
        .collect();
    first.sort();
    eprintln!("first connection of a pod, at once: median {:?}, worst {:?}", first[10], first[19]);
    let start = std::time::Instant::now();
    world.on_host(Network::ensure_host).unwrap();
    eprintln!("ensure_host with nothing to do: {:?}", start.elapsed());
}
