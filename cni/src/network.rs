//! The network of one node: host set-up, and pods attached to it and detached from it.

use std::{
    collections::HashSet,
    net::IpAddr,
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use netlink_packet_route::link::InfoKind;
use nix::errno::Errno;

use crate::{
    config::NetworkConfig,
    conntrack::{self, Change},
    error::NetworkError,
    ipam::{Ipam, Range},
    lease::{self, Attachment, Lease, MacAddress, POD_INTERFACE, PortMapping},
    link::{self, Link},
    monitor::RulesetMonitor,
    netlink::{Family, RequestError, Socket},
    netns,
    nft::{
        Table,
        ports::{self, HostPort, Target},
    },
    pool::Pool,
    sysctl::{self, Sysctls},
};

/// MTU where no default route says another: Ethernet's.
const DEFAULT_MTU: u32 = 1500;
/// How often attaching removes what an earlier sandbox of the same pod left and tries again.
const ATTACH_ATTEMPTS: usize = 2;

/// The pod network of this node. All methods block, none for long; any number of threads may call them at once
/// (of the network namespace [`Network::new`] was called in). Every one of them can be repeated.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    route: Pool,
    netfilter: Pool,
    sysctls: Sysctls,
    ipam: Mutex<Ipam>,
    /// Held during a transaction: the kernel handles one per namespace at a time, and pods without host ports have none.
    table: Mutex<Table>,
    /// Set by [`Network::ensure_host`]; the lock also keeps two of them from running at once.
    host: Mutex<Option<Host>>,
}

/// What attaching needs to know of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Host {
    bridge: u32,
    mtu: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data consistent at each point where it could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(step: impl Into<String>) -> impl FnOnce(RequestError) -> NetworkError {
    let step = step.into();
    move |source| NetworkError::Netlink { step, source }
}

impl Network {
    /// Checks the configuration; touches nothing. `state_dir` (made when needed) keeps a record of kernel settings
    /// that were changed, and must survive a restart of the agent.
    pub fn new(config: NetworkConfig, state_dir: &Path) -> Result<Network, NetworkError> {
        config.validate()?;
        let ranges = config.subnets.iter().map(|subnet| Range::new(*subnet)).collect::<Result<Vec<_>, _>>();
        Ok(Network {
            route: Pool::new(Family::Route),
            netfilter: Pool::new(Family::Netfilter),
            sysctls: Sysctls::new(state_dir),
            ipam: Mutex::new(Ipam::new(ranges.map_err(NetworkError::Config)?)),
            table: Mutex::new(Table::new(config.clone())),
            host: Mutex::new(None),
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Sets the host up: bridge, its addresses, forwarding, the nftables table. What is there already and right
    /// is left alone (some ten system calls); host ports of an earlier run are found and kept.
    pub fn ensure_host(&self) -> Result<(), NetworkError> {
        let mut host = lock(&self.host);
        self.ensure_host_locked(&mut host).map(|_| ())
    }

    fn ensure_host_locked(&self, host: &mut Option<Host>) -> Result<Host, NetworkError> {
        let mut socket = self.route.take().map_err(NetworkError::Socket)?;
        let mtu = match (self.config.mtu, *host) {
            (Some(mtu), _) => mtu,
            (None, Some(known)) => known.mtu,
            (None, None) => self.uplink_mtu(&mut socket)?,
        };
        if self.config.has_v4() {
            self.sysctls.forward_v4()?;
        }
        if self.config.has_v6() {
            self.sysctls.forward_v6(&self.config.bridge)?;
        }
        let bridge = self.ensure_bridge(&mut socket, mtu)?;
        let mut netfilter = self.netfilter.take().map_err(NetworkError::Socket)?;
        lock(&self.table).ensure(&mut netfilter)?;
        let found = Host { bridge, mtu };
        *host = Some(found);
        Ok(found)
    }

    fn host(&self) -> Result<Host, NetworkError> {
        let mut host = lock(&self.host);
        match *host {
            Some(host) => Ok(host),
            None => self.ensure_host_locked(&mut host),
        }
    }

    fn uplink_mtu(&self, socket: &mut Socket) -> Result<u32, NetworkError> {
        let uplink = link::uplink_mtu(socket).map_err(failed("find the MTU of the default route's interface"))?;
        // Loopback and some tunnels have more than a veth takes; IPv6 needs 1280.
        let smallest = if self.config.has_v6() { 1280 } else { 68 };
        Ok(uplink.unwrap_or(DEFAULT_MTU).clamp(smallest, 65535))
    }

    fn ensure_bridge(&self, socket: &mut Socket, mtu: u32) -> Result<u32, NetworkError> {
        let name = &self.config.bridge;
        let step = || failed(format!("set up bridge {name}"));
        let gateways: Vec<IpNet> = lock(&self.ipam)
            .ranges()
            .iter()
            .map(|range| IpNet::new_assert(range.gateway(), range.subnet().prefix_len()))
            .collect();
        let mut found = link::find(socket, name).map_err(step())?;
        if found.is_none() {
            let mac = MacAddress::for_address(gateways[0].addr());
            match socket.transact(vec![link::create_bridge(name, mac, mtu)]) {
                Err(error) if !error.is(Errno::EEXIST) => {
                    return Err(failed(format!("create bridge {name}"))(error));
                }
                _ => found = link::find(socket, name).map_err(step())?,
            }
        }
        let Some(bridge) = found else { return Err(NetworkError::LinkGone(name.clone())) };
        if bridge.kind != Some(InfoKind::Bridge) {
            return Err(NetworkError::WrongKind { name: name.clone(), expected: "a bridge" });
        }
        // A pod must not be able to give the host routes (CVE-2020-10749), and the bridge's addresses are ours
        // alone. The last one lets connections from 127.0.0.1 to a host port reach the pod.
        sysctl::set_unrecorded(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::set_unrecorded(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        sysctl::set_unrecorded(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        if !bridge.up || bridge.mtu != mtu {
            socket.transact(vec![link::up_with_mtu(bridge.index, mtu)]).map_err(step())?;
        }
        let present = link::addresses(socket, bridge.index).map_err(step())?;
        let missing = gateways.iter().filter(|gateway| !present.contains(gateway));
        let stale = present.iter().filter(|address| !gateways.contains(address));
        let changes = stale
            .map(|address| link::remove_address(bridge.index, *address))
            .chain(missing.map(|address| link::add_address(bridge.index, *address)))
            .collect();
        socket.transact(changes).map_err(step())?;
        Ok(bridge.index)
    }

    /// Gives `owner` (a pod UID) an address of every subnet: those of `wanted`, where given, else the next free
    /// ones. A second call gives the same lease. Nothing is done on the host yet, so that the caller can put the
    /// lease in its records first.
    pub fn lease(&self, owner: &str, wanted: &[IpAddr]) -> Result<Lease, NetworkError> {
        if owner.is_empty() || owner.len() > ports::MAX_OWNER || owner.contains('\0') {
            return Err(NetworkError::Config(format!("owner {owner:?} is not 1 to {} bytes", ports::MAX_OWNER)));
        }
        let mut ipam = lock(&self.ipam);
        let given = ipam.lease(owner, wanted)?;
        let mut addresses = Vec::with_capacity(given.len());
        let mut gateways = Vec::with_capacity(given.len());
        for address in &given {
            // An adopted lease can have an address of a subnet that is not configured any more.
            if let Some(range) = ipam.ranges().iter().find(|range| range.contains(*address)) {
                addresses.push(IpNet::new_assert(*address, range.subnet().prefix_len()));
                gateways.push(range.gateway());
            }
        }
        let Some(first) = addresses.first() else {
            return Err(NetworkError::AddressOutside(given.first().copied().unwrap_or(IpAddr::from([0; 4]))));
        };
        Ok(Lease {
            mac: MacAddress::for_address(first.addr()),
            addresses,
            gateways,
            interface: POD_INTERFACE.to_owned(),
            host_interface: lease::host_interface(&self.config.bridge, owner),
        })
    }

    /// Takes over a lease from the records of an earlier run.
    pub fn adopt(&self, owner: &str, lease: &Lease) -> Result<(), NetworkError> {
        let addresses: Vec<IpAddr> = lease.addresses.iter().map(IpNet::addr).collect();
        lock(&self.ipam).adopt(owner, &addresses)
    }

    /// Gives the addresses of `owner` back; false when it has none. After [`Network::detach`], never before: the
    /// next pod may get them at once.
    pub fn release(&self, owner: &str) -> bool {
        lock(&self.ipam).release(owner)
    }

    /// Connects a pod: veth pair, bridge port, addresses, default routes, loopback, host ports. `netlink` is a
    /// NETLINK_ROUTE socket that was opened in the pod's network namespace. On failure what was made is removed
    /// again.
    ///
    /// The pair is made by one request on the host, with the pod's end directly in its namespace; one message
    /// to the pod's socket does the rest there, and a look at the host's end makes sure that it forwards. So a pod
    /// without host ports costs three round trips to the kernel.
    pub fn attach(
        &self,
        owner: &str,
        netlink: OwnedFd,
        lease: &Lease,
        mappings: &[PortMapping],
    ) -> Result<Attachment, NetworkError> {
        let host = self.host()?;
        let namespace = netns::of_socket(std::os::fd::AsFd::as_fd(&netlink)).map_err(NetworkError::Namespace)?;
        let mut pod = Socket::adopt(netlink);
        let mut route = self.route.take().map_err(NetworkError::Socket)?;

        let index = self.connect(&mut route, &mut pod, &namespace, host, lease).inspect_err(|_| {
            // Perhaps somebody deleted the bridge: the next attempt looks again.
            *lock(&self.host) = None;
        })?;
        let result = configure(&mut pod, lease, index).and_then(|()| {
            let port = settle(&mut route, lease)?;
            self.open_ports(owner, lease, mappings)?;
            Ok(Attachment { host_interface: port.name, mac: lease.mac, mtu: port.mtu })
        });
        if result.is_err()
            && let Err(error) = link::delete(&mut route, std::slice::from_ref(&lease.host_interface))
        {
            tracing::warn!(link = lease.host_interface, %error, "cannot remove the link of a failed attachment, ignoring");
        }
        result
    }

    /// Makes the pair, or finds the one that an earlier call has made. Returns the index of the pod's interface.
    fn connect(
        &self,
        route: &mut Socket,
        pod: &mut Socket,
        namespace: &OwnedFd,
        host: Host,
        lease: &Lease,
    ) -> Result<u32, NetworkError> {
        let name = &lease.host_interface;
        let step = || failed(format!("connect {name} to {}", self.config.bridge));
        for attempt in 1.. {
            let mut requests =
                vec![link::create_pair(lease, std::os::fd::AsFd::as_fd(namespace), host.bridge, host.mtu)];
            if self.config.hairpin {
                requests.push(link::hairpin(name));
            }
            match route.transact(requests) {
                Ok(replies) => match Link::first(&replies).and_then(|link| link.peer) {
                    Some(index) => return Ok(index),
                    // A kernel that does not echo: the pod's end has the name we gave it.
                    None => {
                        let found = link::find(pod, &lease.interface).map_err(step())?;
                        return found.map(|link| link.index).ok_or_else(|| NetworkError::LinkGone(name.clone()));
                    }
                },
                Err(error) if error.refusals().iter().any(|refusal| refusal.errno == Errno::EEXIST) => {
                    let ours = link::find(route, name).map_err(step())?;
                    let theirs = link::find(pod, &lease.interface).map_err(step())?;
                    match (ours, theirs) {
                        (Some(ours), Some(theirs))
                            if theirs.peer == Some(ours.index)
                                && ours.peer == Some(theirs.index)
                                && ours.controller == Some(host.bridge) =>
                        {
                            return Ok(theirs.index);
                        }
                        // Left from an earlier sandbox of this pod, whose namespace the kernel has yet to take down.
                        (Some(_), None) if attempt < ATTACH_ATTEMPTS => {
                            link::delete(route, std::slice::from_ref(name)).map_err(step())?;
                        }
                        _ => return Err(step()(error)),
                    }
                }
                Err(error) => {
                    // The pair may exist and only the bridge port's settings have failed.
                    let _ = link::delete(route, std::slice::from_ref(name));
                    return Err(step()(error));
                }
            }
        }
        Err(NetworkError::LinkGone(name.clone()))
    }

    fn open_ports(&self, owner: &str, lease: &Lease, mappings: &[PortMapping]) -> Result<(), NetworkError> {
        let elements = ports::elements(owner, lease, mappings);
        if elements.is_empty() {
            return Ok(());
        }
        let mut netfilter = self.netfilter.take().map_err(NetworkError::Socket)?;
        lock(&self.table).add(&mut netfilter, elements.clone())?;
        forget_connections(&mut netfilter, &elements, Change::Opened);
        Ok(())
    }

    /// Closes the host ports whose owner is not `wanted`; says which.
    fn close_ports(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<(HostPort, Target)>, NetworkError> {
        let mut netfilter = self.netfilter.take().map_err(NetworkError::Socket)?;
        let closed = lock(&self.table).retain(&mut netfilter, wanted)?;
        forget_connections(&mut netfilter, &closed, Change::Closed);
        Ok(closed)
    }

    /// Disconnects a pod: its link (and with it the pod's end) and its host ports are gone when this returns. A
    /// link would vanish with its namespace, but only some time after that. Both are attempted whatever happens.
    ///
    /// All host ports of `owner` are closed; `mappings` only tells whether to look for any.
    pub fn detach(&self, owner: &str, mappings: &[PortMapping]) -> Result<(), NetworkError> {
        self.host()?;
        let mut errors = Vec::new();
        let name = lease::host_interface(&self.config.bridge, owner);
        match Socket::open(Family::Route) {
            Ok(route) => {
                let deleted = link::delete_from_sight(route, &name);
                errors.extend(deleted.map_err(failed(format!("delete {name}"))).err());
            }
            Err(error) => errors.push(NetworkError::Socket(error)),
        }
        if !mappings.is_empty() || lock(&self.table).owns(owner) {
            errors.extend(self.close_ports(|other| other != owner).err());
        }
        NetworkError::collect(errors)
    }

    /// Removes links and host ports whose owner is not in `owners`, and says what was removed. For the start,
    /// when every pod's lease has been adopted.
    pub fn sweep(&self, owners: &HashSet<String>) -> Result<Vec<String>, NetworkError> {
        let host = self.host()?;
        let names: HashSet<String> =
            owners.iter().map(|owner| lease::host_interface(&self.config.bridge, owner)).collect();
        let mut route = self.route.take().map_err(NetworkError::Socket)?;
        let stale: Vec<String> = link::list(&mut route)
            .map_err(failed("list links"))?
            .into_iter()
            .filter(|link| link.controller == Some(host.bridge))
            .map(|link| link.name)
            .filter(|name| lease::is_host_interface(name) && !names.contains(name))
            .collect();
        let mut errors = Vec::new();
        let mut removed = Vec::new();
        match link::delete(&mut route, &stale) {
            Ok(()) => removed.extend(stale.into_iter().map(|name| format!("link {name}"))),
            Err(error) => errors.push(failed("delete stale links")(error)),
        }
        match self.close_ports(|owner| owners.contains(owner)) {
            Ok(ports) => {
                removed.extend(ports.iter().map(|(host, target)| format!("host port {host} of {}", target.owner)))
            }
            Err(error) => errors.push(error),
        }
        NetworkError::collect(errors).map(|()| removed)
    }

    /// Takes everything down: all pods' links, bridge, nftables table, and puts kernel settings back. Goes on
    /// after a failure and reports all of them.
    pub fn teardown_host(&self) -> Result<(), NetworkError> {
        let mut host = lock(&self.host);
        *host = None;
        let mut errors = Vec::new();
        match self.route.take() {
            Ok(mut route) => errors.extend(self.remove_links(&mut route).err()),
            Err(error) => errors.push(NetworkError::Socket(error)),
        }
        match self.netfilter.take() {
            Ok(mut netfilter) => errors.extend(lock(&self.table).remove(&mut netfilter).err()),
            Err(error) => errors.push(NetworkError::Socket(error)),
        }
        errors.extend(self.sysctls.restore().err());
        NetworkError::collect(errors)
    }

    fn remove_links(&self, route: &mut Socket) -> Result<(), NetworkError> {
        let step = || failed(format!("delete bridge {}", self.config.bridge));
        let Some(bridge) = link::find(route, &self.config.bridge).map_err(step())? else { return Ok(()) };
        if bridge.kind != Some(InfoKind::Bridge) {
            return Err(NetworkError::WrongKind { name: bridge.name, expected: "a bridge" });
        }
        let mut names: Vec<String> = link::list(route)
            .map_err(step())?
            .into_iter()
            .filter(|link| link.controller == Some(bridge.index) && lease::is_host_interface(&link.name))
            .map(|link| link.name)
            .collect();
        names.push(bridge.name);
        link::delete(route, &names).map_err(step())
    }

    /// Watches for somebody else removing our nftables table (a flush of the whole ruleset, most often), so that
    /// [`Network::ensure_host`] can be called then rather than every so often.
    pub fn monitor(&self) -> Result<RulesetMonitor, NetworkError> {
        RulesetMonitor::new(&self.config.table).map_err(NetworkError::Socket)
    }
}

/// Loopback, addresses and routes within the pod. What an earlier call has done already is no error.
fn configure(pod: &mut Socket, lease: &Lease, index: u32) -> Result<(), NetworkError> {
    match pod.transact(link::configure_pod(lease, index)) {
        Err(error) if !error.is(Errno::EEXIST) => {
            Err(failed(format!("configure {} of the pod", lease.interface))(error))
        }
        _ => Ok(()),
    }
}

/// Makes sure that the host's end, which had no carrier until the pod's end came up, forwards from now on: the
/// kernel would see to it soon, but the pod's first packet might be lost to that, and TCP and ARP wait a second.
fn settle(route: &mut Socket, lease: &Lease) -> Result<Link, NetworkError> {
    let name = &lease.host_interface;
    let replies = route.transact(vec![link::get_by_name(name)]).map_err(failed(format!("look at {name}")))?;
    Link::first(&replies).ok_or_else(|| NetworkError::LinkGone(name.clone()))
}

/// Not worth failing for: the worst that stays is a UDP client that has to wait for its old entry to expire.
fn forget_connections(netfilter: &mut Socket, ports: &[(HostPort, Target)], change: Change) {
    if let Err(error) = conntrack::forget(netfilter, ports, change) {
        tracing::warn!(%error, "cannot forget the UDP connections of host ports, ignoring");
    }
}
