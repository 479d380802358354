//! Pods and the world: other machines, host ports, both families, addresses that run out, names.

use std::{
    io::Read,
    net::{IpAddr, TcpListener, UdpSocket},
    time::Duration,
};

use berth_integration::{
    Machine, Place, eventually, fixtures,
    help::{address, addresses, agent, get, in_pod, manifest, place, run, sh},
};
use serde_json::json;

const SECONDS: Duration = Duration::from_secs(8);

const SERVER: &str = "mkdir /www; echo from-$HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www";

fn outside(place: &Place) -> Place {
    let outside = Place::new().expect("the outside");
    place.connect(&outside).expect("a connection to the outside");
    outside
}

/// One UDP question and its answer, from inside a place.
fn ask(place: &Place, address: &str, question: &[u8]) -> Option<String> {
    place.inside(|| {
        let local = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(local).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        socket.send_to(question, address).ok()?;
        let mut buffer = [0; 100];
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from.to_string(), address, "the answer comes from where it was asked");
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pods_reach_the_outside_under_the_nodes_address_and_are_reached_by_a_route() {
    let place = place();
    let outside = outside(&place);
    let before = Machine::look(&place);
    let mut agent = agent(&place, &["--pod-cidr", "10.85.0.0/24,fd85::/64"]);
    agent.apply("web.json", &fixtures::pod("web", SERVER));
    let pod = agent.ready("web");
    let all = addresses(&pod);
    assert_eq!(all.len(), 2, "one address of each family: {all:?}");
    assert!(all[0].starts_with("10.85.0.") && all[1].starts_with("fd85::"), "{all:?}");
    let listener = outside.inside(|| TcpListener::bind("[::]:9000").expect("listen outside"));
    let accepting = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (mut stream, peer) = listener.accept().expect("a connection");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("read");
            assert_eq!(text, "hello\n");
            seen.push(peer.ip().to_canonical());
        }
        seen
    });
    // The connection is closed by the server's end of reading: -w bounds it where nc waits for the other side.
    sh(&agent, "web", "echo hello | nc -w 2 192.0.2.2 9000; echo hello | nc -w 2 2001:db8::2 9000");
    let peers = accepting.join().expect("both connections arrive");
    let expected: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("an address")).into();
    assert_eq!(peers, expected, "what a pod sends out carries the node's address");
    assert!(sh(&agent, "web", "cat /sys/class/net/eth0/mtu").starts_with("1400"), "the uplink's MTU");

    run(&outside, "ip route add 10.85.0.0/24 via 192.0.2.1; ip route add fd85::/64 via 2001:db8::1");
    for target in [format!("{}:8080", all[0]), format!("[{}]:8080", all[1])] {
        eventually(&format!("outside to {target}"), SECONDS, || get(&outside, &target));
        eventually(&format!("the host to {target}"), SECONDS, || get(&place, &target));
    }
    agent.apply("peer.json", &fixtures::pod("peer", "sleep 1000"));
    agent.ready("peer");
    for pod in ["web", "peer"] {
        // wget of this busybox cannot read an IPv6 address.
        let answer = sh(&agent, pod, &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {} 8080", all[1]));
        assert!(answer.contains("from-web"), "{pod} over IPv6: {answer}");
    }
    for name in ["web", "peer"] {
        agent.delete(&format!("{name}.json"));
        agent.gone(name);
    }
    agent.stop();
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn host_ports_answer_from_outside_from_the_host_and_from_the_pod_itself() {
    let place = place();
    let outside = outside(&place);
    let mut agent = agent(&place, &["--pod-cidr", "10.85.0.0/24,fd85::/64"]);
    agent.apply("other.json", &fixtures::pod("other", "sleep 1000"));
    agent.ready("other");
    let before = Machine::look(&place);
    let script = "mkdir /www; echo web > /www/index.html; exec httpd -f -p 8080 -h /www";
    let mut web = manifest("web", script);
    web["spec"]["containers"][0]["ports"] = json!([
        { "containerPort": 8080, "hostPort": 18080 },
        { "containerPort": 5353, "hostPort": 15353, "protocol": "UDP" },
        { "containerPort": 8080, "hostPort": 18081, "hostIP": "127.0.0.1" },
    ]);
    agent.apply("web.json", &web.to_string());
    agent.ready("web");
    let service = in_pod(&agent, "web", || UdpSocket::bind("[::]:5353").expect("a UDP service in the pod"));
    service.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let serving = std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((length, from)) = service.recv_from(&mut buffer) {
            if &buffer[..length] == b"end" {
                return;
            }
            service.send_to(&buffer[..length], from).ok();
        }
    });
    for target in ["192.0.2.1:18080", "[2001:db8::1]:18080"] {
        eventually(&format!("outside to {target}"), SECONDS, || get(&outside, target));
    }
    for target in ["127.0.0.1:18080", "192.0.2.1:18080", "127.0.0.1:18081"] {
        eventually(&format!("the host to {target}"), SECONDS, || get(&place, target));
    }
    let from_outside = ["192.0.2.1:15353", "[2001:db8::1]:15353"].map(|target| (&outside, target));
    let from_host = ["127.0.0.1:15353", "192.0.2.1:15353"].map(|target| (&place, target));
    for (place, target) in from_outside.into_iter().chain(from_host) {
        let answer = eventually(&format!("UDP to {target}"), SECONDS, || ask(place, target, b"question"));
        assert_eq!(answer, "question");
    }
    ask(&place, "127.0.0.1:15353", b"end");
    serving.join().expect("the UDP service ends");
    for pod in ["web", "other"] {
        let answer = sh(&agent, pod, "wget -q -O - http://192.0.2.1:18080/");
        assert_eq!(answer, "web\n", "{pod} by the node's address");
    }
    assert!(get(&outside, "192.0.2.1:18081").is_none(), "a hostIP is not another address's");
    agent.delete("web.json");
    agent.gone("web");
    assert!(get(&place, "127.0.0.1:18080").is_none(), "nobody answers any more");
    before.assert_clean(&Machine::look(&place));
    // The port is free for a process of the host and for another pod.
    web["metadata"]["name"] = json!("next");
    agent.apply("next.json", &web.to_string());
    agent.ready("next");
    eventually("the next pod's port", SECONDS, || get(&place, "127.0.0.1:18080"));
    agent.delete("next.json");
    agent.gone("next");
    agent.delete("other.json");
    agent.gone("other");
    agent.stop();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_on_the_hosts_network_shares_it_and_leaves_it_alone() {
    let place = place();
    let _outside = outside(&place);
    let before = Machine::look(&place);
    let mut agent = agent(&place, &["--hostname-override", "node-a"]);
    let mut pod = manifest("web", SERVER);
    pod["spec"]["hostNetwork"] = json!(true);
    agent.apply("web.json", &pod.to_string());
    let pod = agent.ready("web");
    assert_eq!(address(&pod), "192.0.2.1", "the node's address");
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    eventually("the server on the host's address", SECONDS, || get(&place, "127.0.0.1:8080"));
    assert!(sh(&agent, "web", "ip -o link").contains("up0"));
    assert_eq!(sh(&agent, "web", "hostname"), sh(&agent, "web", "cat /proc/sys/kernel/hostname"));
    agent.delete("web.json");
    agent.gone("web");
    agent.stop();
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn the_pod_that_finds_no_address_says_so_and_starts_when_another_goes() {
    let place = place();
    let mut agent = agent(&place, &["--pod-cidr", "10.85.0.0/29"]);
    // Of eight addresses the network, the gateway and the broadcast are not for pods.
    let names: Vec<String> = (0..5).map(|number| format!("pod-{number}")).collect();
    for name in &names {
        agent.apply(&format!("{name}.json"), &fixtures::pod(name, "sleep 1000"));
        agent.ready(name);
    }
    agent.apply("late.json", &fixtures::pod("late", "sleep 1000"));
    agent.until("late", "told that there are no addresses", |pod| {
        pod["status"].to_string().contains("no addresses left")
    });
    agent.delete("pod-2.json");
    agent.gone("pod-2");
    agent.ready("late");
    for name in names.iter().map(String::as_str).filter(|name| *name != "pod-2").chain(["late"]) {
        agent.delete(&format!("{name}.json"));
    }
    eventually("all pods are gone", Duration::from_secs(20), || agent.pods().is_empty().then_some(()));
    agent.stop();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn forty_pods_at_once_come_and_go() {
    let place = place();
    let before = Machine::look(&place);
    let mut agent = agent(&place, &[]);
    let names: Vec<String> = (0..40).map(|number| format!("pod-{number:02}")).collect();
    for name in &names {
        agent.apply(&format!("{name}.json"), &fixtures::pod(name, "exec sleep 1000"));
    }
    eventually("forty running pods", Duration::from_secs(40), || {
        let pods = agent.pods();
        let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        (running == 40).then_some(())
    });
    let mut all: Vec<String> = agent.pods().iter().map(address).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 40, "no address twice");
    for name in &names {
        agent.delete(&format!("{name}.json"));
    }
    eventually("no pods", Duration::from_secs(40), || agent.pods().is_empty().then_some(()));
    agent.stop();
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn names_and_resolvers_are_written_as_the_kubelet_writes_them() {
    let place = place();
    std::fs::write(place.path("resolv.conf"), "nameserver 192.0.2.53\nsearch host.example\noptions ndots:2\n")
        .expect("write");
    let resolv = place.path("resolv.conf").to_string_lossy().into_owned();
    let more = ["--resolv-conf", &resolv, "--cluster-dns", "10.96.0.10", "--cluster-domain", "cluster.local"];
    let agent = agent(&place, &more);
    let mut none = manifest("none", "sleep 1000");
    none["spec"]["dnsPolicy"] = json!("None");
    none["spec"]["dnsConfig"] = json!({
        "nameservers": ["192.0.2.54", "2001:db8::54"],
        "searches": ["one.example", "two.example"],
        "options": [{ "name": "ndots", "value": "3" }, { "name": "edns0" }],
    });
    none["spec"]["hostAliases"] = json!([{ "ip": "192.0.2.77", "hostnames": ["alias-a", "alias-b"] }]);
    none["spec"]["hostname"] = json!("short");
    none["spec"]["subdomain"] = json!("sub");
    agent.apply("none.json", &none.to_string());
    let mut full = none.clone();
    full["metadata"]["name"] = json!("full");
    full["spec"]["setHostnameAsFQDN"] = json!(true);
    full["spec"]["dnsPolicy"] = json!("Default");
    full["spec"].as_object_mut().expect("a spec").remove("dnsConfig");
    agent.apply("full.json", &full.to_string());
    agent.apply("plain.json", &fixtures::pod("plain", "sleep 1000"));

    let own = address(&agent.ready("none"));
    let resolv = sh(&agent, "none", "cat /etc/resolv.conf");
    for line in ["nameserver 192.0.2.54", "nameserver 2001:db8::54", "search one.example two.example"] {
        assert!(resolv.lines().any(|found| found == line), "{line} in:\n{resolv}");
    }
    let options = resolv.lines().find(|line| line.starts_with("options")).unwrap_or_default();
    assert!(options.contains("ndots:3") && options.contains("edns0"), "{resolv}");
    assert!(!resolv.contains("192.0.2.53") && !resolv.contains("10.96.0.10"), "{resolv}");
    let hosts = sh(&agent, "none", "cat /etc/hosts");
    let has = |words: &[&str]| hosts.lines().any(|line| line.split_whitespace().eq(words.iter().copied()));
    assert!(has(&["127.0.0.1", "localhost"]), "{hosts}");
    assert!(has(&[&own, "short.sub.default.svc.cluster.local", "short"]), "{hosts}");
    assert!(has(&["192.0.2.77", "alias-a", "alias-b"]), "{hosts}");
    assert_eq!(sh(&agent, "none", "hostname; cat /etc/hostname"), "short\nshort\n");

    agent.ready("full");
    assert_eq!(sh(&agent, "full", "hostname"), "short.sub.default.svc.cluster.local\n");
    let resolv = sh(&agent, "full", "cat /etc/resolv.conf");
    assert!(resolv.contains("nameserver 192.0.2.53") && resolv.contains("search host.example"), "{resolv}");

    agent.ready("plain");
    let resolv = sh(&agent, "plain", "cat /etc/resolv.conf");
    assert!(resolv.contains("nameserver 10.96.0.10"), "{resolv}");
    let search = "search default.svc.cluster.local svc.cluster.local cluster.local host.example";
    assert!(resolv.lines().any(|line| line == search), "{resolv}");
    assert!(resolv.contains("ndots:5"), "{resolv}");
}
