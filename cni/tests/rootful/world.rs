//! A small world per test: a host, an outside it is connected to, and pods, each a network namespace of its own.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use berth_cni::{
    Attachment, Lease, Network, NetworkConfig, NetworkError, PortMapping, Protocol, netns::NetworkNamespace,
};
use tempfile::TempDir;

/// The host's address towards the outside, and the outside's.
pub const HOST: &str = "192.0.2.1";
pub const OUTSIDE: &str = "192.0.2.2";
pub const HOST_V6: &str = "2001:db8::1";
pub const OUTSIDE_V6: &str = "2001:db8::2";
/// Long enough for any answer on a busy machine; only failures wait for it.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct World {
    pub host: NetworkNamespace,
    pub outside: NetworkNamespace,
    pub network: Network,
    pub state: TempDir,
}

pub struct Pod {
    pub namespace: NetworkNamespace,
    pub lease: Lease,
    pub attachment: Attachment,
}

impl Pod {
    pub fn address(&self) -> IpAddr {
        self.lease.addresses[0].addr()
    }
}

pub fn config() -> NetworkConfig {
    NetworkConfig {
        subnets: vec!["10.85.0.0/16".parse().unwrap(), "fd00:85::/64".parse().unwrap()],
        ..NetworkConfig::default()
    }
}

/// Runs a program within `namespace`; its output.
pub fn program(namespace: &NetworkNamespace, command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = namespace
        .run(|| Command::new(words.next().unwrap()).args(words).output().expect("run a program"))
        .expect("enter a namespace");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl World {
    pub fn new(config: NetworkConfig) -> World {
        let host = NetworkNamespace::create().expect("needs root");
        let outside = NetworkNamespace::create().unwrap();
        let process = std::process::id();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&outside));
        for command in [
            "ip link set lo up".to_owned(),
            "ip link add uplink type veth peer name wan0".to_owned(),
            format!("ip link set wan0 netns /proc/{process}/fd/{descriptor}"),
            format!("ip address add {HOST}/24 dev uplink"),
            format!("ip address add {HOST_V6}/64 dev uplink nodad"),
            "ip link set uplink mtu 1400 up".to_owned(),
        ] {
            program(&host, &command);
        }
        for command in [
            "ip link set lo up".to_owned(),
            format!("ip address add {OUTSIDE}/24 dev wan0"),
            format!("ip address add {OUTSIDE_V6}/64 dev wan0 nodad"),
            "ip link set wan0 mtu 1400 up".to_owned(),
        ] {
            program(&outside, &command);
        }
        program(&host, &format!("ip route add default via {OUTSIDE}"));
        program(&host, &format!("ip route add default via {OUTSIDE_V6}"));
        let state = tempfile::tempdir().unwrap();
        let network = Network::new(config, state.path()).unwrap();
        let world = World { host, outside, network, state };
        // The links' own addresses settle on their own time; tests compare the host before and after.
        world.settle();
        world
    }

    /// Waits until no address of the host is tentative.
    fn settle(&self) {
        for _ in 0..500 {
            let tentative = program(&self.host, "ip -6 address show tentative");
            if tentative.trim().is_empty() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the host's addresses stay tentative");
    }

    /// Runs `work` on the host.
    pub fn on_host<T: Send>(&self, work: impl FnOnce(&Network) -> T + Send) -> T {
        self.host.run(|| work(&self.network)).unwrap()
    }

    pub fn pod(&self, owner: &str, mappings: &[PortMapping]) -> Pod {
        self.try_pod(owner, mappings).unwrap()
    }

    pub fn try_pod(&self, owner: &str, mappings: &[PortMapping]) -> Result<Pod, NetworkError> {
        let namespace = NetworkNamespace::create().unwrap();
        let netlink = namespace.route_socket().unwrap();
        self.on_host(|network| {
            let lease = network.lease(owner, &[])?;
            let attachment = network.attach(owner, netlink, &lease, mappings)?;
            Ok(Pod { namespace, lease, attachment })
        })
    }

    /// Names of the host's links.
    pub fn links(&self) -> Vec<String> {
        program(&self.host, "ip -o link")
            .lines()
            .map(|line| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned())
            .collect()
    }

    /// The nftables ruleset of the host.
    pub fn ruleset(&self) -> String {
        program(&self.host, "nft list ruleset")
    }

    /// Every setting under /proc/sys/net of the host.
    pub fn sysctls(&self) -> BTreeMap<String, String> {
        self.on_host(|_| {
            let mut all = BTreeMap::new();
            collect(Path::new("/proc/sys/net"), &mut all);
            all
        })
    }
}

fn collect(directory: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), all);
        } else if let Ok(value) = fs::read_to_string(entry.path())
            // What the kernel counts or draws at random is no setting.
            && !["nf_conntrack_count", "stable_secret", "flush", "netdev_rss_key", "nf_conntrack_buckets"]
                .iter()
                .any(|name| entry.path().ends_with(name))
        {
            all.insert(entry.path().display().to_string(), value.trim().to_owned());
        }
    }
}

pub fn port(host_port: u16, container_port: u16, protocol: Protocol, host_ip: Option<&str>) -> PortMapping {
    PortMapping { host_ip: host_ip.map(|address| address.parse().unwrap()), host_port, container_port, protocol }
}

/// A TCP server in `namespace` that tells each of its clients where it sees it come from.
pub fn serve_tcp(namespace: &NetworkNamespace, address: impl Into<IpAddr>, port: u16) {
    let address = SocketAddr::new(address.into(), port);
    let listener = namespace.run(|| TcpListener::bind(address)).unwrap().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(peer) = stream.peer_addr() else { continue };
            let _ = write!(stream, "{}", peer.ip());
        }
    });
}

/// As [`serve_tcp`], over UDP.
pub fn serve_udp(namespace: &NetworkNamespace, address: impl Into<IpAddr>, port: u16) {
    let address = SocketAddr::new(address.into(), port);
    let socket = namespace.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

/// Asks a TCP server; where it says the question came from.
pub fn ask_tcp(namespace: &NetworkNamespace, address: impl Into<IpAddr>, port: u16) -> io::Result<IpAddr> {
    ask_tcp_within(namespace, address, port, PATIENCE)
}

pub fn ask_tcp_within(
    namespace: &NetworkNamespace,
    address: impl Into<IpAddr>,
    port: u16,
    patience: Duration,
) -> io::Result<IpAddr> {
    let address = SocketAddr::new(address.into(), port);
    let mut answer = String::new();
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&address, patience))??;
    stream.set_read_timeout(Some(patience))?;
    stream.read_to_string(&mut answer)?;
    answer.parse().map_err(io::Error::other)
}

/// Asks a UDP server.
pub fn ask_udp(namespace: &NetworkNamespace, address: impl Into<IpAddr>, port: u16) -> io::Result<IpAddr> {
    let address = SocketAddr::new(address.into(), port);
    let any: IpAddr = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = namespace.run(|| UdpSocket::bind((any, 0)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    String::from_utf8_lossy(&buffer[..length]).parse().map_err(io::Error::other)
}
