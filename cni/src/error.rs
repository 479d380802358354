//! What can go wrong, one variant per step.

use std::{io, net::IpAddr, path::PathBuf};

use ipnet::IpNet;

use crate::{lease::Protocol, netlink::RequestError};

/// A step of the network's set-up or tear-down failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The configuration cannot work; every mistake is named, separated by `; `.
    #[error("network configuration: {0}")]
    Config(String),
    /// Every address of the subnet is leased.
    #[error("no addresses left in {subnet} ({used} in use)")]
    Exhausted {
        /// The subnet.
        subnet: IpNet,
        /// Leases in it.
        used: usize,
    },
    /// An address that was asked for is leased to somebody else.
    #[error("address {address} is leased to {owner}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// An address that was asked for cannot be given to a pod (outside of every subnet, or a reserved one).
    #[error("address {0} is not one that pods of this network can have")]
    AddressOutside(IpAddr),
    /// A host port is in use by another pod.
    #[error("host port {port}/{protocol} is taken by {owner}")]
    PortTaken {
        /// The port on the host.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Who has it.
        owner: String,
    },
    /// A netlink request was refused or not answered.
    #[error("{step}")]
    Netlink {
        /// What was being done, with its object: `create bridge berth0`.
        step: String,
        /// Cause.
        #[source]
        source: RequestError,
    },
    /// A netlink socket could not be made.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// The network namespace behind a socket could not be learnt.
    #[error("find the network namespace of the pod's netlink socket")]
    Namespace(#[source] io::Error),
    /// A link of this name exists and is something else.
    #[error("{name} exists and is not {expected}")]
    WrongKind {
        /// Link name.
        name: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The bridge was made and could not be found afterwards.
    #[error("{0} vanished while it was being set up")]
    LinkGone(String),
    /// A kernel setting could not be read or written.
    #[error("{step} {path}")]
    Sysctl {
        /// `read` or `write`.
        step: &'static str,
        /// File under /proc/sys.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The record of what was changed on the host could not be read or written.
    #[error("{step} {path}")]
    State {
        /// `read`, `decode`, `write`, `sync`, `rename` or `remove`.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Several steps of a teardown failed; all were attempted.
    #[error("{}", join(.0))]
    Several(Vec<NetworkError>),
}

fn join(errors: &[NetworkError]) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|error| {
            let mut line = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(inner) = cause {
                line.push_str(": ");
                line.push_str(&inner.to_string());
                cause = inner.source();
            }
            line
        })
        .collect();
    lines.join("; ")
}

impl NetworkError {
    /// The outcome of a teardown that goes on after a failure: nothing, the one error, or all of them.
    pub(crate) fn collect(mut errors: Vec<NetworkError>) -> Result<(), NetworkError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(NetworkError::Several(errors)),
        }
    }
}
