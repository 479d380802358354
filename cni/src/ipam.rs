//! Who has which address.
//!
//! Addresses are given as upstream's host-local plugin gives them: the one after the last given, round and
//! round, so that an address rests for as long as possible before it is used again. Unlike there, nothing is
//! kept in files of its own: leases are derived from the pods that have them (the caller's records), so none can
//! outlive its pod.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::error::NetworkError;

/// A subnet seen as the addresses pods can have: all but the network's own, the gateway (the first) and, in
/// IPv4, the broadcast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    /// First and last address for pods, as numbers.
    first: u128,
    last: u128,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl Range {
    /// The range of `subnet`; a sentence when it is not a network address or too small for a gateway and a pod.
    pub fn new(subnet: IpNet) -> Result<Range, String> {
        if subnet.addr() != subnet.network() {
            return Err(format!("subnet {subnet} has host bits set; the network is {}", subnet.trunc()));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(format!("subnet {subnet} has no room for a gateway and a pod"));
        }
        let broadcast = u128::from(matches!(subnet, IpNet::V4(_)));
        Ok(Range { subnet, first: number(subnet.network()) + 2, last: number(subnet.broadcast()) - broadcast })
    }

    /// The subnet.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The address of the bridge.
    pub fn gateway(&self) -> IpAddr {
        self.address(self.first - 1)
    }

    /// How many pods can have an address; the largest number for a whole /0 of IPv6 and the like.
    pub fn capacity(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// A pod can have `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address) && (self.first..=self.last).contains(&number(address))
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.subnet {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }

    /// Every address of the range once, beginning after `last` and wrapping round.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + use<> {
        let range = *self;
        let start = match last {
            Some(last) if range.contains(last) && number(last) < range.last => number(last) + 1,
            _ => range.first,
        };
        (start..=range.last).chain(range.first..start).map(move |number| range.address(number))
    }
}

/// The leases of all subnets.
#[derive(Debug)]
pub(crate) struct Ipam {
    ranges: Vec<Range>,
    /// Per range: the address given last.
    last: Vec<Option<IpAddr>>,
    taken: HashMap<IpAddr, String>,
    owners: HashMap<String, Vec<IpAddr>>,
}

impl Ipam {
    pub(crate) fn new(ranges: Vec<Range>) -> Ipam {
        Ipam { last: vec![None; ranges.len()], ranges, taken: HashMap::new(), owners: HashMap::new() }
    }

    pub(crate) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// One address per range for `owner`: what it has already, else those of `wanted`, else the next free ones.
    /// Either all are given or none.
    pub(crate) fn lease(&mut self, owner: &str, wanted: &[IpAddr]) -> Result<Vec<IpAddr>, NetworkError> {
        if let Some(addresses) = self.owners.get(owner) {
            return Ok(addresses.clone());
        }
        for address in wanted {
            self.check(owner, *address)?;
        }
        let mut addresses = Vec::with_capacity(self.ranges.len());
        for (range, last) in self.ranges.iter().zip(&self.last) {
            let asked = wanted.iter().copied().find(|address| range.contains(*address));
            let address = match asked {
                Some(address) => address,
                None => self.next_free(range, *last)?,
            };
            addresses.push(address);
        }
        self.insert(owner, &addresses);
        Ok(addresses)
    }

    fn next_free(&self, range: &Range, last: Option<IpAddr>) -> Result<IpAddr, NetworkError> {
        let used = self.taken.keys().filter(|address| range.contains(**address));
        // The iterator alone would find this out too, but only after a walk through the whole subnet.
        let exhausted =
            self.taken.len() as u128 >= range.capacity() && used.clone().count() as u128 >= range.capacity();
        let free = if exhausted { None } else { range.after(last).find(|address| !self.taken.contains_key(address)) };
        free.ok_or_else(|| NetworkError::Exhausted { subnet: range.subnet, used: used.count() })
    }

    fn check(&self, owner: &str, address: IpAddr) -> Result<(), NetworkError> {
        if !self.ranges.iter().any(|range| range.contains(address)) {
            return Err(NetworkError::AddressOutside(address));
        }
        match self.taken.get(&address) {
            Some(other) if other != owner => Err(NetworkError::AddressTaken { address, owner: other.clone() }),
            _ => Ok(()),
        }
    }

    /// Takes over a lease of an earlier run. Addresses outside of today's subnets are accepted (the pod has them,
    /// whatever the configuration says now), those of another owner are not.
    pub(crate) fn adopt(&mut self, owner: &str, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        for address in addresses {
            match self.check(owner, *address) {
                Err(NetworkError::AddressOutside(_)) | Ok(()) => (),
                Err(error) => return Err(error),
            }
        }
        self.release(owner);
        self.insert(owner, addresses);
        Ok(())
    }

    fn insert(&mut self, owner: &str, addresses: &[IpAddr]) {
        for address in addresses {
            self.taken.insert(*address, owner.to_owned());
            if let Some(index) = self.ranges.iter().position(|range| range.contains(*address)) {
                self.last[index] = Some(*address);
            }
        }
        self.owners.insert(owner.to_owned(), addresses.to_vec());
    }

    /// Gives back what `owner` has; false when it has nothing.
    pub(crate) fn release(&mut self, owner: &str) -> bool {
        let Some(addresses) = self.owners.remove(owner) else { return false };
        for address in addresses {
            self.taken.remove(&address);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(subnet: &str) -> Range {
        Range::new(subnet.parse().unwrap()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn network_gateway_and_broadcast_are_skipped() {
        let all: Vec<IpAddr> = range("10.0.0.0/29").after(None).collect();
        assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"].map(ip));
        let all: Vec<IpAddr> = range("fd00::/126").after(None).collect();
        assert_eq!(all, ["fd00::2", "fd00::3"].map(ip));
        assert_eq!(range("10.0.0.0/29").gateway(), ip("10.0.0.1"));
    }

    #[test]
    fn the_walk_wraps_after_the_last_one_given() {
        let all: Vec<IpAddr> = range("10.0.0.0/29").after(Some(ip("10.0.0.5"))).collect();
        assert_eq!(all, ["10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"].map(ip));
        assert_eq!(range("10.0.0.0/29").after(Some(ip("10.0.0.6"))).next(), Some(ip("10.0.0.2")));
        assert_eq!(range("10.0.0.0/29").after(Some(ip("192.0.2.1"))).next(), Some(ip("10.0.0.2")));
    }

    #[test]
    fn whole_address_spaces_do_not_overflow() {
        assert_eq!(range("0.0.0.0/0").capacity(), (1 << 32) - 3);
        assert_eq!(range("::/0").after(None).next(), Some(ip("::2")));
        assert!(range("::/0").capacity() > 1 << 127);
        assert!(Range::new("10.0.0.0/31".parse().unwrap()).is_err());
        assert!(Range::new("fd00::/127".parse().unwrap()).is_err());
    }

    #[test]
    fn a_released_address_rests_until_the_walk_comes_round() {
        let mut ipam = Ipam::new(vec![range("10.0.0.0/29")]);
        assert_eq!(ipam.lease("a", &[]).unwrap(), [ip("10.0.0.2")]);
        assert!(ipam.release("a") && !ipam.release("a"));
        assert_eq!(ipam.lease("b", &[]).unwrap(), [ip("10.0.0.3")]);
        assert_eq!(ipam.lease("b", &[]).unwrap(), [ip("10.0.0.3")], "a second call gives the same");
    }

    #[test]
    fn exhaustion_says_how_many_are_in_use_and_takes_nothing_from_the_other_family() {
        let mut ipam = Ipam::new(vec![range("fd00::/64"), range("10.85.0.0/28")]);
        for index in 0..13 {
            ipam.lease(&format!("pod{index}"), &[]).unwrap();
        }
        let error = ipam.lease("one more", &[]).unwrap_err();
        assert_eq!(error.to_string(), "no addresses left in 10.85.0.0/28 (13 in use)");
        ipam.release("pod4");
        let addresses = ipam.lease("one more", &[]).unwrap();
        assert_eq!(addresses, [ip("fd00::f"), ip("10.85.0.6")], "the failed try used up no address");
    }

    #[test]
    fn wanted_addresses_are_given_or_refused_by_name() {
        let mut ipam = Ipam::new(vec![range("10.0.0.0/24")]);
        assert_eq!(ipam.lease("a", &[ip("10.0.0.77")]).unwrap(), [ip("10.0.0.77")]);
        assert_eq!(ipam.lease("b", &[ip("10.0.0.77")]).unwrap_err().to_string(), "address 10.0.0.77 is leased to a");
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.2", "fd00::2"] {
            assert!(matches!(ipam.lease("b", &[ip(reserved)]), Err(NetworkError::AddressOutside(_))), "{reserved}");
        }
    }

    #[test]
    fn adopted_leases_are_not_given_again() {
        let mut ipam = Ipam::new(vec![range("10.0.0.0/29")]);
        ipam.adopt("old", &[ip("10.0.0.3")]).unwrap();
        ipam.adopt("old", &[ip("10.0.0.3")]).unwrap();
        ipam.adopt("elsewhere", &[ip("192.0.2.9")]).unwrap();
        assert!(ipam.adopt("thief", &[ip("10.0.0.3")]).is_err());
        let given: Vec<IpAddr> = (0..4).flat_map(|index| ipam.lease(&format!("new{index}"), &[]).unwrap()).collect();
        assert_eq!(given, ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"].map(ip));
    }

    proptest! {
        #[test]
        fn the_walk_visits_every_address_once(prefix in 20_u8..=30, offset in 0_u32..4096) {
            let subnet = IpNet::V4(ipnet::Ipv4Net::new(Ipv4Addr::new(10, 7, 0, 0), prefix).unwrap()).trunc();
            let range = Range::new(subnet).unwrap();
            let last = range.after(None).nth(offset as usize % range.capacity() as usize);
            let all: Vec<IpAddr> = range.after(last).collect();
            let mut sorted = all.clone();
            sorted.sort();
            sorted.dedup();
            prop_assert_eq!(all.len() as u128, range.capacity());
            prop_assert_eq!(sorted.len(), all.len());
            prop_assert!(all.iter().all(|address| range.contains(*address) && *address != range.gateway()));
            prop_assert_eq!(all.last().copied(), last);
        }

        #[test]
        fn no_address_has_two_owners(steps in proptest::collection::vec((0_u8..20, any::<bool>()), 1..200)) {
            let mut ipam = Ipam::new(vec![range("10.0.0.0/28"), range("fd00::/120")]);
            let mut model: HashMap<String, Vec<IpAddr>> = HashMap::new();
            for (owner, take) in steps {
                let owner = format!("pod{owner}");
                if take {
                    match ipam.lease(&owner, &[]) {
                        Ok(addresses) => {
                            if let Some(before) = model.insert(owner.clone(), addresses.clone()) {
                                prop_assert_eq!(before, addresses);
                            }
                        }
                        Err(_) => prop_assert_eq!(model.len(), 13),
                    }
                } else {
                    prop_assert_eq!(ipam.release(&owner), model.remove(&owner).is_some());
                }
                let mut all: Vec<IpAddr> = model.values().flatten().copied().collect();
                all.sort();
                let count = all.len();
                all.dedup();
                prop_assert_eq!(all.len(), count);
            }
        }
    }
}
