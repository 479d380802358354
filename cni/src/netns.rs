//! Network namespaces: which one a socket belongs to, and work in another one on a thread of its own.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

/// `SIOCGSKNS` (linux/sockios.h): a descriptor of the network namespace a socket belongs to.
const SIOCGSKNS: libc::Ioctl = 0x894C;

/// The network namespace `socket` was opened in. Needs CAP_NET_ADMIN there; Linux 4.10.
pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: SIOCGSKNS takes no argument and reads or writes none of our memory; `socket` is open during the call.
    // The descriptor it returns is new and nobody else's, so that an OwnedFd may own it.
    unsafe {
        let descriptor = libc::ioctl(socket.as_raw_fd(), SIOCGSKNS);
        if descriptor < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(descriptor)) }
    }
}

/// Sets an integer option of a netlink socket (netlink(7)); nix knows none of them.
pub(crate) fn set_netlink_option(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads `size` bytes from `value`, which lives until the call returns and is that large.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A network namespace, kept alive by a descriptor: it vanishes with the last one (and the last process in it).
#[derive(Debug)]
pub struct NetworkNamespace {
    descriptor: OwnedFd,
}

impl NetworkNamespace {
    /// A new, empty one.
    pub fn create() -> io::Result<NetworkNamespace> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            NetworkNamespace::current()
        })
    }

    /// That of the calling thread.
    pub fn current() -> io::Result<NetworkNamespace> {
        Ok(NetworkNamespace { descriptor: File::open("/proc/thread-self/ns/net")?.into() })
    }

    /// Runs `work` in this namespace, on a thread of its own that ends with it: no thread that does anything else
    /// ever changes its namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_thread(|| {
            setns(&self.descriptor, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    /// A NETLINK_ROUTE socket of this namespace, as a pod's supervisor hands one over.
    pub fn route_socket(&self) -> io::Result<OwnedFd> {
        self.run(|| socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute))?
            .map_err(io::Error::from)
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
