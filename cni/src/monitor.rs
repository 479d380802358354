//! Notices when our nftables table is deleted behind our back.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use netlink_packet_core::{NlaBuffer, NlasIterator};

use crate::{
    netlink::{Family, Socket},
    nft,
};

/// `NFTA_TABLE_NAME`.
const TABLE_NAME: u16 = 1;
/// Length of the header between a netfilter message's netlink header and its attributes (`struct nfgenmsg`).
const NETFILTER_HEADER: usize = 4;

/// A socket that becomes readable when nftables rulesets of this namespace change. Wait for that (in tokio:
/// `AsyncFd`), then ask [`RulesetMonitor::table_lost`].
#[derive(Debug)]
pub struct RulesetMonitor {
    socket: Socket,
    table: String,
}

impl RulesetMonitor {
    pub(crate) fn new(table: &str) -> io::Result<RulesetMonitor> {
        let mut socket = Socket::open(Family::Netfilter)?;
        socket.subscribe(nft::CHANGES_GROUP)?;
        Ok(RulesetMonitor { socket, table: table.to_owned() })
    }

    /// Reads what has arrived, without blocking. True when our table was deleted, or may have been (messages were
    /// lost). Our own replacing of the table counts, too: ensuring the host once more then finds all well.
    pub fn table_lost(&mut self) -> io::Result<bool> {
        let mut lost = false;
        let table = &self.table;
        let complete = self.socket.arrived(|kind, body| {
            lost |= kind == nft::TABLE_DELETED
                && NlasIterator::new(body.get(NETFILTER_HEADER..).unwrap_or_default()).filter_map(Result::ok).any(
                    |attribute: NlaBuffer<&[u8]>| {
                        attribute.kind() == TABLE_NAME && attribute.value().strip_suffix(&[0]) == Some(table.as_bytes())
                    },
                );
        })?;
        Ok(lost || !complete)
    }
}

impl AsFd for RulesetMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for RulesetMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}
