//! What only the host's root can do for a container in a user namespace: its overlay and the sources of its binds, with
//! all owners mapped, and the cgroups that it sees. A process of its own does it, which may hang on a dead file system
//! without holding up anybody but this container, and hands the mounts over a socket.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use serde::{Deserialize, Serialize};

use super::{
    bind::Source,
    cgroup::{self, Leaf},
    error::{Failure, Step},
    finish,
    mounts::{self, HostPart},
    rootfs,
    status::Reporter,
};
use crate::{
    supervisor::spec::{LaunchSpec, MountKind},
    sys::{
        caps::{self, Sets},
        exec, ids, mount, node, process, seqpacket,
    },
};

/// One message: what the one descriptor that comes with it is. The root comes first, then what each mount needs, in
/// order.
#[derive(Debug, Serialize, Deserialize)]
enum Part {
    /// The overlay.
    Root,
    /// The source of a bind.
    Source { is_directory: bool, is_proc: bool },
    /// A cgroup directory of the container; `more` of the same mount follow.
    Leaf { name: Vec<u8>, more: usize },
}

/// Runs in the child that provides, which has a mount namespace of its own that ends with it.
pub(super) fn provide(
    spec: &LaunchSpec,
    users: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    reporter: &mut Reporter,
) -> Result<(), Failure> {
    process::set_dumpable(false).step(|| "become undumpable")?;
    exec::close_all_but(&[users, socket, reporter.as_fd()]).step(|| "close inherited descriptors")?;
    finish::die_with_supervisor(reporter)?;
    cgroup::join(&spec.cgroup)?;
    node::set_umask(0);

    // While mounts still belong to the groups that their propagation is to follow.
    let host = mounts::open_host_parts(spec, Some(users))?;
    mount::make_all_slave().step(|| "make all mounts slaves")?;
    own_files_inside(spec, reporter)?;
    let root = rootfs::make_mapped_overlay(&spec.rootfs, users)?;
    send(socket, &Part::Root, root.as_fd())?;
    for part in &host {
        match part {
            HostPart::None => {}
            HostPart::Source(Source { tree, is_directory, is_proc }) => {
                let part = Part::Source { is_directory: *is_directory, is_proc: *is_proc };
                send(socket, &part, tree.as_fd())?;
            }
            HostPart::Leaves(leaves) => {
                for (index, leaf) in leaves.iter().enumerate() {
                    let name = leaf.name.as_bytes().to_vec();
                    send(socket, &Part::Leaf { name, more: leaves.len() - index - 1 }, leaf.tree.as_fd())?;
                }
            }
        }
    }
    Ok(())
}

/// What the overlay makes for itself must belong to somebody that its mapped directories know, which the host's root is
/// not: it would be a read-only overlay.
fn own_files_inside(spec: &LaunchSpec, reporter: &Reporter) -> Result<(), Failure> {
    let Some(users) = spec.users else { return Ok(()) };
    ids::set_file_system_ids(users.first, users.first).step(|| "take the ids of the user namespace's root")?;
    let permitted = caps::get().step(|| "read capabilities")?.permitted;
    caps::set(Sets { effective: permitted, permitted, inheritable: 0 }).step(|| "keep capabilities over files")?;
    // The kernel forgets both when ids change.
    process::set_dumpable(false).step(|| "become undumpable")?;
    finish::die_with_supervisor(reporter)
}

fn send(socket: BorrowedFd<'_>, part: &Part, descriptor: BorrowedFd<'_>) -> Result<(), Failure> {
    let step = || "hand a mount to the container's process";
    let message = serde_json::to_vec(part).map_err(io::Error::other).step(step)?;
    loop {
        match seqpacket::send(socket, &message, &[descriptor]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                seqpacket::wait(socket, true, None).step(step)?;
            }
            sent => return sent.step(step),
        }
    }
}

/// The other side: waits for the root and for the host's part of every mount of `spec`, in order.
pub(super) fn take(spec: &LaunchSpec, socket: BorrowedFd<'_>) -> Result<(OwnedFd, Vec<HostPart>), Failure> {
    let Some((Part::Root, root)) = receive(socket)? else { return Err(incomplete()) };
    let mut parts = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        parts.push(match &mount.kind {
            MountKind::Bind { .. } => match receive(socket)? {
                Some((Part::Source { is_directory, is_proc }, tree)) => {
                    HostPart::Source(Source { tree, is_directory, is_proc })
                }
                _ => return Err(incomplete()),
            },
            MountKind::Cgroup if !spec.cgroup.v1.is_empty() => HostPart::Leaves(take_leaves(socket)?),
            _ => HostPart::None,
        });
    }
    Ok((root, parts))
}

fn take_leaves(socket: BorrowedFd<'_>) -> Result<Vec<Leaf>, Failure> {
    let mut leaves = Vec::new();
    loop {
        let Some((Part::Leaf { name, more }, tree)) = receive(socket)? else { return Err(incomplete()) };
        leaves.push(Leaf { name: OsStr::from_bytes(&name).to_owned(), tree });
        if more == 0 {
            return Ok(leaves);
        }
    }
}

/// The next message; `None` at the end of the other process, which has reported why, unless it was killed.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Part, OwnedFd)>, Failure> {
    let step = || "take the mounts of the container";
    // As long as it takes: a dead file system is waited for, too, where there is no user namespace.
    seqpacket::wait(socket, false, None).step(step)?;
    let Some(packet) = seqpacket::receive(socket, MAX_MESSAGE).step(step)? else { return Ok(None) };
    let part = serde_json::from_slice(&packet.bytes).map_err(io::Error::other).step(step)?;
    Ok(packet.descriptors.into_iter().next().map(|descriptor| (part, descriptor)))
}

/// A name of a cgroup hierarchy, each byte as a number, is the longest thing in a message.
const MAX_MESSAGE: usize = 4096;

fn incomplete() -> Failure {
    Failure::refused("take the mounts of the container", "the process that makes them has ended")
}
