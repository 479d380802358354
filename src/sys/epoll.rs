//! epoll(7) with the caller's own tokens.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use libc::c_int;

/// What to be woken for. Errors and hang-ups always wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read.
    Read,
    /// There is room to write.
    Write,
    /// Either.
    Both,
    /// Only errors and hang-ups.
    Nothing,
}

impl Interest {
    fn bits(self) -> u32 {
        (match self {
            Interest::Read => libc::EPOLLIN,
            Interest::Write => libc::EPOLLOUT,
            Interest::Both => libc::EPOLLIN | libc::EPOLLOUT,
            Interest::Nothing => 0,
        }) as u32
    }
}

/// One descriptor that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// Reading will not block (it may report the end or an error).
    pub readable: bool,
    /// Writing will not block (it may report an error).
    pub writable: bool,
    /// The other side is gone.
    pub hung_up: bool,
}

/// A set of watched descriptors, level-triggered. A closed descriptor leaves the set by itself unless it was
/// duplicated or inherited meanwhile: remove it first.
#[derive(Debug)]
pub struct Epoll {
    descriptor: OwnedFd,
}

/// Events taken per wait: more are found by the next one at once.
const BATCH: usize = 32;

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: integer argument; the new descriptor is known to nobody else.
        unsafe {
            match libc::epoll_create1(libc::EPOLL_CLOEXEC) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(Epoll { descriptor: OwnedFd::from_raw_fd(descriptor) }),
            }
        }
    }

    /// Watches `descriptor`, reporting it as `token`.
    ///
    /// # Errors
    /// EPERM for a regular file, EEXIST when it is watched already.
    pub fn add(&self, descriptor: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, descriptor, token, interest)
    }

    /// Changes the interest in a watched descriptor.
    ///
    /// # Errors
    /// ENOENT when it is not watched.
    pub fn change(&self, descriptor: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, descriptor, token, interest)
    }

    /// Watches it no longer. Removing one that is not watched is no error.
    pub fn remove(&self, descriptor: impl AsFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, descriptor, 0, Interest::Nothing);
    }

    fn control(&self, operation: c_int, descriptor: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token };
        let descriptor = descriptor.as_fd().as_raw_fd();
        // SAFETY: `event` outlives the call and is only read.
        match unsafe { libc::epoll_ctl(self.descriptor.as_raw_fd(), operation, descriptor, &raw mut event) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Waits until something is ready or `timeout` has passed (`None`: for ever) and appends what is to `ready`.
    /// A signal handler that ran ends the wait early.
    ///
    /// # Errors
    /// None in practice.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        // Rounded up: a wait that ends just before its deadline would be repeated in a busy loop.
        let milliseconds =
            timeout.map_or(-1, |timeout| c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX));
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: the kernel writes at most BATCH entries of an array of that length.
        let count =
            unsafe { libc::epoll_wait(self.descriptor.as_raw_fd(), events.as_mut_ptr(), BATCH as c_int, milliseconds) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        ready.extend(events.iter().take(count as usize).map(|event| {
            let bits = event.events as c_int;
            Ready {
                token: event.u64,
                readable: bits & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) != 0,
                writable: bits & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) != 0,
                hung_up: bits & (libc::EPOLLHUP | libc::EPOLLERR) != 0,
            }
        }));
        Ok(())
    }
}
