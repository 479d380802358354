//! SOCK_SEQPACKET sockets in the file system: whole messages, with descriptors beside them (unix(7), SCM_RIGHTS).

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    ptr,
    time::Duration,
};

use libc::{c_int, c_uint};
use nix::sys::{
    socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
    stat::{Mode, fchmod},
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// At most this many descriptors travel with a message.
pub const MAX_DESCRIPTORS: usize = 4;

/// Room for one SCM_RIGHTS control message, aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct Control([u8; 64]);

// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as c_uint) } <= 64);

/// A received message.
#[derive(Debug)]
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it; close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Binds a new socket to `directory`/`name`, mode 0600, and listens. An existing socket of that name is replaced.
///
/// `sun_path` holds 108 bytes only, so the directory is named through /proc/self/fd: it may be as deep as it likes.
///
/// # Errors
/// The directory cannot be opened, or bind(2) failed.
pub fn listen(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    listen_for(SockType::SeqPacket, directory, name)
}

/// As [`listen`], for streams.
///
/// # Errors
/// As [`listen`].
pub fn listen_for_streams(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    listen_for(SockType::Stream, directory, name)
}

fn listen_for(kind: SockType, directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = File::open(directory)?;
    match std::fs::remove_file(through(&directory, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket::socket(AddressFamily::Unix, kind, flags, None)?;
    // The file that bind makes has the mode of the socket itself: nobody slips in before a chmod, and no umask has to be
    // set, which would be that of all other threads, too.
    fchmod(&listener, Mode::from_bits_truncate(0o600))?;
    socket::bind(listener.as_raw_fd(), &UnixAddr::new(through(&directory, name).as_str())?)?;
    socket::listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Connects to the socket `directory`/`name`; the result is non-blocking and close-on-exec.
///
/// # Errors
/// NotFound when there is no socket, ConnectionRefused when nobody listens any more, WouldBlock when its backlog is full.
pub fn connect(directory: &Path, name: &str) -> io::Result<OwnedFd> {
    let directory = File::open(directory)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connection = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    socket::connect(connection.as_raw_fd(), &UnixAddr::new(through(&directory, name).as_str())?)?;
    Ok(connection)
}

fn through(directory: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())
}

/// Accepts one connection (non-blocking, close-on-exec); `None` when there is none to accept.
///
/// # Errors
/// EMFILE and the like.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
        // SAFETY: the kernel has just made it and nothing else knows its number.
        Ok(descriptor) => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
        Err(nix::Error::EAGAIN | nix::Error::ECONNABORTED | nix::Error::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The user id of the process on the other side, as of its connect.
///
/// # Errors
/// ENOTSOCK and the like.
pub fn peer_user(connection: impl AsFd) -> io::Result<u32> {
    Ok(socket::getsockopt(&connection, socket::sockopt::PeerCredentials)?.uid())
}

/// Two connected sockets, non-blocking and close-on-exec.
///
/// # Errors
/// EMFILE and the like.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message with `descriptors` (at most [`MAX_DESCRIPTORS`]), whole or not at all, never waiting.
///
/// # Errors
/// WouldBlock when the receiver's queue is full; BrokenPipe (never SIGPIPE) when it is gone.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let size = size_of_val(descriptors) as c_uint;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: `control` is aligned and has room for MAX_DESCRIPTORS, so CMSG_FIRSTHDR is not null and the data
        // lie within it. BorrowedFd is a transparent wrapper of the number that is sent.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size) as _;
            ptr::copy_nonoverlapping(descriptors.as_ptr().cast::<u8>(), libc::CMSG_DATA(message), size as usize);
        }
    }
    loop {
        // SAFETY: `header` refers to `vector`, `bytes` and `control`, which outlive the call and are only read.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one message of at most `limit` bytes, never waiting. `None`: the other side has closed.
///
/// # Errors
/// WouldBlock when there is none; InvalidData when it was longer or brought more than [`MAX_DESCRIPTORS`] (what did
/// arrive is closed again).
pub fn receive(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Option<Packet>> {
    // Not zeroed: pages that no message reaches are never touched.
    let mut bytes = Vec::<u8>::with_capacity(limit);
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: limit };
    // SAFETY: msghdr is plain data for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let length = loop {
        // SAFETY: `header` refers to `vector` and `control`, which outlive the call; the kernel writes at most `limit`
        // bytes into the vector's capacity.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) };
        if received >= 0 {
            break received as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: the kernel has just filled in the header and the control buffer it points to.
    let descriptors = unsafe { received_descriptors(&header) };
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long or with too many descriptors"));
    }
    // A packet socket tells its end by a message of no length; we never send such a one.
    if length == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has initialised that many bytes, and no more than the capacity.
    unsafe { bytes.set_len(length) };
    bytes.shrink_to_fit();
    Ok(Some(Packet { bytes, descriptors }))
}

/// Waits until there is a message (or the other side has closed), or with `room` until there is room for one; at most
/// `limit`, for ever without one. False when that has passed.
///
/// # Errors
/// Those of poll(2).
pub fn wait(socket: BorrowedFd<'_>, room: bool, limit: Option<Duration>) -> io::Result<bool> {
    let events = if room { libc::POLLOUT } else { libc::POLLIN };
    let milliseconds = limit.map_or(-1, |limit| c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX));
    loop {
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => return Ok(false),
            ready if ready > 0 => return Ok(true),
            _ => {}
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes ownership of the descriptors in a message just received.
///
/// # Safety
/// `header` must have been filled in by recvmsg(2), and must not be given here twice.
unsafe fn received_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: the CMSG macros walk the buffer within the bounds that the kernel has set; each number in an SCM_RIGHTS
    // message is a new descriptor of this process that nothing else knows.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(message).cast::<MaybeUninit<c_int>>();
                let size = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for index in 0..size / size_of::<c_int>() {
                    let number = ptr::read_unaligned(data.add(index)).assume_init();
                    descriptors.push(OwnedFd::from_raw_fd(number));
                }
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    descriptors
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::sys::process;

    #[test]
    fn messages_keep_their_bounds_and_descriptors_work() {
        let (left, right) = pair().unwrap();
        let (reader, writer) = process::pipe().unwrap();
        send(left.as_fd(), b"one", &[]).unwrap();
        send(left.as_fd(), b"two", &[reader.as_fd(), writer.as_fd()]).unwrap();
        assert_eq!(receive(right.as_fd(), 64).unwrap().unwrap().bytes, b"one");
        let packet = receive(right.as_fd(), 64).unwrap().unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (b"two".as_slice(), 2));
        drop((reader, writer));
        let [reader, writer] = <[OwnedFd; 2]>::try_from(packet.descriptors).unwrap();
        File::from(writer).write_all(b"through").unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(receive(right.as_fd(), 64).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert!(receive(right.as_fd(), 64).unwrap().is_none());
        assert_eq!(send(right.as_fd(), b"late", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_and_its_descriptors_are_closed() {
        let (left, right) = pair().unwrap();
        let (reader, writer) = process::pipe().unwrap();
        send(left.as_fd(), &[0; 100], &[writer.as_fd()]).unwrap();
        drop(writer);
        assert_eq!(receive(right.as_fd(), 99).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut rest = Vec::new();
        assert_eq!(File::from(reader).read_to_end(&mut rest).unwrap(), 0);
    }

    #[test]
    fn a_full_queue_is_said_and_not_waited_for() {
        let (left, _right) = pair().unwrap();
        let error = (0..100_000).find_map(|_| send(left.as_fd(), &[0; 1000], &[]).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_socket_in_a_deep_directory_can_be_bound_and_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(connect(&deep, "s.sock").unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = listen(&deep, "s.sock").unwrap();
        let client = connect(&deep, "s.sock").unwrap();
        let server = accept(listener.as_fd()).unwrap().unwrap();
        assert!(accept(listener.as_fd()).unwrap().is_none());
        assert_eq!(peer_user(&server).unwrap(), nix::unistd::geteuid().as_raw());
        send(client.as_fd(), b"hello", &[]).unwrap();
        assert_eq!(receive(server.as_fd(), 64).unwrap().unwrap().bytes, b"hello");
        drop(listener);
        assert_eq!(connect(&deep, "s.sock").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        listen(&deep, "s.sock").unwrap();
    }
}
