//! A terminal from the container's own devpts.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::error::{Failure, Step};
use crate::sys::{
    exec, mount,
    node::{self, Kind},
    openat2::{Scope, openat2, purpose},
    seqpacket, session,
};

/// A new pair.
pub(super) struct Console {
    /// For the supervisor.
    master: OwnedFd,
    /// For the container.
    terminal: OwnedFd,
}

/// Opens a new pair in the devpts beneath `root`, which must really be one: the path could lead to any device.
pub(super) fn open(root: BorrowedFd<'_>) -> Result<Console, Failure> {
    let step = || "open /dev/pts/ptmx";
    // Examined before it is opened for real: merely opening some devices has effects.
    let place = openat2(root, Path::new("dev/pts/ptmx"), purpose::PLACE, 0, Scope::NoLinks).step(step)?;
    require_on_devpts(place.as_fd(), step)?;
    let master = openat2(root, Path::new("dev/pts/ptmx"), purpose::TERMINAL, 0, Scope::NoLinks).step(step)?;
    require_on_devpts(master.as_fd(), step)?;
    let terminal = session::open_terminal(master.as_fd()).step(|| "open the terminal of /dev/pts/ptmx")?;
    Ok(Console { master, terminal })
}

fn require_on_devpts(file: BorrowedFd<'_>, step: fn() -> &'static str) -> Result<(), Failure> {
    if node::is_on_devpts(file).step(step)? && node::status(file).step(step)?.kind == Kind::CharacterDevice {
        return Ok(());
    }
    Err(Failure::refused(step(), "it is not on a devpts file system"))
}

impl Console {
    /// Shows the terminal as /dev/console too. It is bound by descriptor onto a file that is made here or is not a
    /// link: neither name can be swapped for another (CVE-2025-52565).
    pub(super) fn bind(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        let step = || "bind the terminal on /dev/console";
        let (dev, console) = (Path::new("dev"), Path::new("console"));
        let dev = openat2(root, dev, purpose::DIRECTORY, 0, Scope::InRoot).step(step)?;
        let place = match openat2(dev.as_fd(), console, purpose::NEW_FILE, 0o644, Scope::NoLinks) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                openat2(dev.as_fd(), console, purpose::PLACE, 0, Scope::NoLinks)
            }
            made => made,
        };
        let tree = mount::clone_tree(self.terminal.as_fd(), false).step(step)?;
        mount::attach(tree.as_fd(), place.step(step)?.as_fd()).step(step)
    }

    /// Makes the terminal the controlling one and the three standard streams, and hands the master over.
    pub(super) fn take(self, socket: BorrowedFd<'_>) -> Result<(), Failure> {
        session::set_controlling_terminal(self.terminal.as_fd()).step(|| "take the terminal")?;
        exec::set_standard_streams([self.terminal.as_fd(); 3]).step(|| "set up the standard streams")?;
        seqpacket::send(socket, b"console", &[self.master.as_fd()]).step(|| "hand over the terminal")
    }
}
