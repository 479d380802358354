//! Our nftables table, over netlink.
//!
//! What it should hold is known here at all times: the rules follow from the configuration, the elements of the
//! maps from the pods. A change of elements is one small transaction; should the kernel refuse it because the
//! table is not as it should be (somebody flushed the ruleset), the whole is made anew in one.

mod expression;
pub(crate) mod ports;
mod ruleset;

use std::collections::BTreeMap;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{NfTablesMessage, SetElementList, SetElementMessage, TableAttribute, TableMessage},
    none::ControlMessage,
};
use nix::errno::Errno;

use self::{
    expression::Version,
    ports::{HostPort, Target},
};
use crate::{
    config::NetworkConfig,
    error::NetworkError,
    netlink::{Request, RequestError, Socket},
};

/// Subsystem number of nf_tables, which the begin and end of a batch are addressed to.
const SUBSYSTEM: u16 = 10;
/// The nfnetlink multicast group of changes to nf_tables (`NFNLGRP_NFTABLES`).
pub(crate) const CHANGES_GROUP: i32 = 7;
/// Message type of "a table was deleted", as it is seen by a monitor.
pub(crate) const TABLE_DELETED: u16 = (SUBSYSTEM << 8) | 2;
/// Elements in one message: an attribute holds 64 KiB, an element at most some 330 bytes.
const ELEMENTS_PER_MESSAGE: usize = 128;
/// The kernel asks to try again when another transaction came between, or a module had to be loaded.
const ATTEMPTS: usize = 16;

type NftRequest = Request<NetfilterMessage>;

/// The table as it should be, and what of it the kernel has.
#[derive(Debug)]
pub(crate) struct Table {
    config: NetworkConfig,
    ports: BTreeMap<HostPort, Target>,
    /// The kernel's number of the table we made; another number (or none) means that somebody else deleted it.
    handle: Option<u64>,
}

fn message(inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), inner)
}

fn batch(messages: Vec<NfTablesMessage>) -> Vec<NftRequest> {
    let edge = |edge| {
        Request::new(NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), edge), 0)
    };
    let mut requests = vec![edge(ControlMessage::BatchBegin)];
    requests.extend(messages.into_iter().map(|inner| {
        let flags = match inner {
            NfTablesMessage::NewRule(_) => NLM_F_CREATE | NLM_F_APPEND,
            NfTablesMessage::NewSetElement(_) => NLM_F_CREATE | NLM_F_EXCL,
            NfTablesMessage::NewTable(_) | NfTablesMessage::NewChain(_) | NfTablesMessage::NewSet(_) => NLM_F_CREATE,
            _ => 0,
        };
        Request::new(message(inner), flags)
    }));
    requests.push(edge(ControlMessage::BatchEnd));
    requests
}

/// One transaction: all of it or nothing.
fn commit(socket: &mut Socket, messages: &[NfTablesMessage]) -> Result<(), RequestError> {
    let mut attempt = 1;
    loop {
        let result = socket.transact_acknowledged(batch(messages.to_vec()), 1);
        match result {
            Err(error)
                if attempt < ATTEMPTS
                    && error
                        .refusals()
                        .iter()
                        .any(|refusal| [Errno::ERESTART, Errno::EAGAIN, Errno::EINTR].contains(&refusal.errno)) =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

fn element_messages<'a>(
    table: &str,
    elements: impl Iterator<Item = (&'a HostPort, Option<&'a Target>)>,
) -> Vec<NfTablesMessage> {
    let mut lists: [Vec<_>; 2] = [Vec::new(), Vec::new()];
    let mut adding = false;
    for (host, target) in elements {
        adding = target.is_some();
        let element = match target {
            Some(target) => ports::element(host, target),
            None => ports::key_element(host),
        };
        lists[usize::from(host.version() == Version::V6)].push(element);
    }
    let mut messages = Vec::new();
    for (version, list) in [Version::V4, Version::V6].into_iter().zip(lists) {
        for chunk in list.chunks(ELEMENTS_PER_MESSAGE) {
            let message = SetElementMessage {
                attributes: vec![
                    SetElementList::Table(table.to_owned()),
                    SetElementList::Set(ruleset::map_name(version).to_owned()),
                    SetElementList::Elements(chunk.to_vec()),
                ],
            };
            messages.push(match adding {
                true => NfTablesMessage::NewSetElement(message),
                false => NfTablesMessage::DeleteSetElement(message),
            });
        }
    }
    messages
}

impl Table {
    pub(crate) fn new(config: NetworkConfig) -> Table {
        Table { config, ports: BTreeMap::new(), handle: None }
    }

    fn failed(&self, step: &str) -> impl FnOnce(RequestError) -> NetworkError + use<> {
        let step = format!("{step} nftables table {}", self.config.table);
        move |source| NetworkError::Netlink { step, source }
    }

    /// Makes the table unless it is there as we left it. The first time, host ports found in it (of an earlier
    /// run) are kept.
    pub(crate) fn ensure(&mut self, socket: &mut Socket) -> Result<(), NetworkError> {
        let present = self.read_handle(socket)?;
        if present.is_some() && present == self.handle {
            return Ok(());
        }
        if present.is_some() && self.handle.is_none() {
            for (host, target) in self.list(socket)? {
                self.ports.entry(host).or_insert(target);
            }
        }
        self.rebuild(socket)
    }

    /// Replaces whatever there is by what should be.
    fn rebuild(&mut self, socket: &mut Socket) -> Result<(), NetworkError> {
        let mut messages = ruleset::replace_table(&self.config);
        messages
            .extend(element_messages(&self.config.table, self.ports.iter().map(|(host, target)| (host, Some(target)))));
        commit(socket, &messages).map_err(self.failed("make"))?;
        self.handle = self.read_handle(socket)?;
        Ok(())
    }

    fn read_handle(&self, socket: &mut Socket) -> Result<Option<u64>, NetworkError> {
        let name = TableAttribute::Name(self.config.table.clone());
        let question = message(NfTablesMessage::GetTable(TableMessage { attributes: vec![name] }));
        match socket.transact(vec![Request::get(question)]) {
            Ok(replies) => Ok(replies.iter().find_map(|reply| match &reply.inner {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) => {
                    table.attributes.iter().find_map(|attribute| match attribute {
                        TableAttribute::Handle(handle) => Some(*handle),
                        _ => None,
                    })
                }
                _ => None,
            })),
            Err(error) if error.is(Errno::ENOENT) => Ok(None),
            Err(error) => Err(self.failed("look for")(error)),
        }
    }

    /// The elements the kernel has.
    fn list(&self, socket: &mut Socket) -> Result<Vec<(HostPort, Target)>, NetworkError> {
        let mut elements = Vec::new();
        for version in [Version::V4, Version::V6] {
            let question = message(NfTablesMessage::GetSetElement(SetElementMessage {
                attributes: vec![
                    SetElementList::Table(self.config.table.clone()),
                    SetElementList::Set(ruleset::map_name(version).to_owned()),
                ],
            }));
            match socket.dump(question) {
                Ok(replies) => elements.extend(replies.iter().flat_map(|reply| match &reply.inner {
                    NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(list)) => ports::parse(list),
                    _ => Vec::new(),
                })),
                // A table of that name without our maps: it is about to be replaced.
                Err(error) if error.is(Errno::ENOENT) => (),
                Err(error) => return Err(self.failed("list host ports of")(error)),
            }
        }
        Ok(elements)
    }

    /// Adds host ports, all or none; those that are there already are left alone.
    pub(crate) fn add(&mut self, socket: &mut Socket, elements: Vec<(HostPort, Target)>) -> Result<(), NetworkError> {
        for (host, target) in &elements {
            if let Some(present) = self.ports.get(host)
                && present.owner != target.owner
            {
                let protocol =
                    crate::lease::Protocol::from_number(host.protocol).unwrap_or(crate::lease::Protocol::Tcp);
                return Err(NetworkError::PortTaken { port: host.port, protocol, owner: present.owner.clone() });
            }
        }
        let mut changed: Vec<HostPort> = Vec::new();
        let mut added = BTreeMap::new();
        for (host, target) in elements {
            match self.ports.get(&host) {
                Some(present) if *present == target => (),
                Some(_) => changed.push(host),
                None => (),
            }
            if self.ports.get(&host) != Some(&target) {
                added.insert(host, target);
            }
        }
        if added.is_empty() {
            return Ok(());
        }
        let mut messages = element_messages(&self.config.table, changed.iter().map(|host| (host, None)));
        messages.extend(element_messages(&self.config.table, added.iter().map(|(host, target)| (host, Some(target)))));
        let before: Vec<(HostPort, Option<Target>)> =
            added.keys().map(|host| (*host, self.ports.get(host).cloned())).collect();
        self.ports.extend(added);
        let result = self.apply(socket, &messages);
        if result.is_err() {
            for (host, target) in before {
                match target {
                    Some(target) => self.ports.insert(host, target),
                    None => self.ports.remove(&host),
                };
            }
        }
        result
    }

    /// Removes the host ports whose owner is not `wanted`; says which.
    pub(crate) fn retain(
        &mut self,
        socket: &mut Socket,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(HostPort, Target)>, NetworkError> {
        let gone: Vec<(HostPort, Target)> = self
            .ports
            .iter()
            .filter(|(_, target)| !wanted(&target.owner))
            .map(|(host, target)| (*host, target.clone()))
            .collect();
        if gone.is_empty() {
            return Ok(gone);
        }
        let messages = element_messages(&self.config.table, gone.iter().map(|(host, _)| (host, None)));
        for (host, _) in &gone {
            self.ports.remove(host);
        }
        let result = self.apply(socket, &messages);
        if let Err(error) = result {
            self.ports.extend(gone);
            return Err(error);
        }
        Ok(gone)
    }

    /// Does a change of elements, or everything from the start when the kernel's table is not what we think.
    fn apply(&mut self, socket: &mut Socket, messages: &[NfTablesMessage]) -> Result<(), NetworkError> {
        match commit(socket, messages) {
            Ok(()) => Ok(()),
            Err(error) if !error.refusals().is_empty() => {
                tracing::warn!(table = %self.config.table, %error, "the nftables table was changed by somebody else, making it anew");
                self.rebuild(socket)
            }
            Err(error) => Err(self.failed("change host ports of")(error)),
        }
    }

    /// `owner` has host ports.
    pub(crate) fn owns(&self, owner: &str) -> bool {
        self.ports.values().any(|target| target.owner == owner)
    }

    /// Deletes the table; one that does not exist is no error.
    pub(crate) fn remove(&mut self, socket: &mut Socket) -> Result<(), NetworkError> {
        commit(socket, &ruleset::remove_table(&self.config.table)).map_err(self.failed("delete"))?;
        self.ports.clear();
        self.handle = None;
        Ok(())
    }
}
