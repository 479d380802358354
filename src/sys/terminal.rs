//! Pseudo-terminals as seen from the host's side.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A new pty of the host's devpts: master and slave, both close-on-exec.
///
/// # Errors
/// ENOSPC when there are too many.
pub fn open_pair(size: Size) -> io::Result<(OwnedFd, OwnedFd)> {
    let size = nix::pty::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = nix::pty::openpty(&size, None)?;
    for descriptor in [&pair.master, &pair.slave] {
        nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    Ok((pair.master, pair.slave))
}

/// Sets the size; the foreground process group gets SIGWINCH if it changed. Either end will do.
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn set_size(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel only reads `size`, which outlives the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The size.
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes a winsize into `size`, which outlives the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(Size { rows: size.ws_row, columns: size.ws_col }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_new_size_is_seen_at_the_other_end() {
        let (master, slave) = open_pair(Size { rows: 24, columns: 80 }).unwrap();
        assert_eq!(size(slave.as_fd()).unwrap(), Size { rows: 24, columns: 80 });
        set_size(master.as_fd(), Size { rows: 50, columns: 132 }).unwrap();
        assert_eq!(size(slave.as_fd()).unwrap(), Size { rows: 50, columns: 132 });
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            set_size(null.as_fd(), Size { rows: 1, columns: 1 }).unwrap_err().raw_os_error(),
            Some(libc::ENOTTY)
        );
    }
}
