//! Byte streams without waiting: pipes, terminals and sockets of our own, and those that others lend us.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
};

use libc::c_int;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Makes a descriptor of our own non-blocking. The flag belongs to the open file, so that everyone who shares it is
/// affected: for a descriptor that came from outside use [`Lent`].
///
/// # Errors
/// EBADF only.
pub fn set_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Reads once into the spare capacity of `buffer` and appends what came. `Ok(0)` is the end (or no spare capacity).
///
/// # Errors
/// WouldBlock when there is nothing now; EIO from the master of a terminal that nobody has open any more.
pub fn read_spare(descriptor: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        let spare = buffer.spare_capacity_mut();
        // SAFETY: the kernel writes at most the length of the spare capacity.
        let count = unsafe { libc::read(descriptor.as_raw_fd(), spare.as_mut_ptr().cast(), spare.len()) };
        if count >= 0 {
            // SAFETY: that many bytes behind the length have just been initialised.
            unsafe { buffer.set_len(buffer.len() + count as usize) };
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Writes as much of `parts` as the file takes at once.
///
/// # Errors
/// ENOSPC and the like.
pub fn write_vectored(file: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        match nix::sys::uio::writev(file, parts) {
            Ok(count) => return Ok(count),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where `wanted` first occurs in `bytes`. By the C library's vectorised search, as every byte
/// that a container writes goes through here.
pub fn find_byte(bytes: &[u8], wanted: u8) -> Option<usize> {
    // SAFETY: the search stays within the slice.
    let found = unsafe { libc::memchr(bytes.as_ptr().cast(), c_int::from(wanted), bytes.len()) };
    if found.is_null() { None } else { Some(found as usize - bytes.as_ptr() as usize) }
}

/// A stream that somebody else opened and may still use: never waited for, and its flags left alone.
#[derive(Debug)]
pub enum Lent {
    /// A pipe or terminal, opened anew so that O_NONBLOCK is ours alone.
    Reopened(OwnedFd),
    /// A socket, for which each call says that it does not want to wait.
    Socket(OwnedFd),
}

/// Which way a lent stream is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// We read from it.
    Read,
    /// We write to it.
    Write,
}

impl Lent {
    /// Takes over a descriptor that was passed to us.
    ///
    /// # Errors
    /// InvalidInput for a regular file or a directory, which cannot be waited for; errors of open(2).
    pub fn new(descriptor: OwnedFd, direction: Direction) -> io::Result<Lent> {
        let file = File::from(descriptor);
        let kind = file.metadata()?.file_type();
        if kind.is_socket() {
            return Ok(Lent::Socket(file.into()));
        }
        if !(kind.is_fifo() || kind.is_char_device()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let reopened = File::options()
            .read(direction == Direction::Read)
            .write(direction == Direction::Write)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(Lent::Reopened(reopened.into()))
    }

    /// The descriptor to watch.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        match self {
            Lent::Reopened(descriptor) | Lent::Socket(descriptor) => descriptor.as_fd(),
        }
    }

    /// Writes what fits now.
    ///
    /// # Errors
    /// WouldBlock when nothing fits; BrokenPipe (never SIGPIPE for a socket) when nobody reads any more.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let (number, data, length) = (self.descriptor().as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the kernel only reads `bytes`, which outlive the call.
        let written = unsafe {
            match self {
                Lent::Reopened(_) => libc::write(number, data, length),
                Lent::Socket(_) => libc::send(number, data, length, flags),
            }
        };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(written as usize) }
    }

    /// Reads once into the spare capacity of `buffer`; `Ok(0)` is the end.
    ///
    /// # Errors
    /// WouldBlock when there is nothing now.
    pub fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let Lent::Socket(socket) = self else { return read_spare(self.descriptor(), buffer) };
        let spare = buffer.spare_capacity_mut();
        // SAFETY: the kernel writes at most the length of the spare capacity, and says how much it wrote.
        unsafe {
            let count =
                libc::recv(socket.as_raw_fd(), spare.as_mut_ptr().cast(), spare.len(), libc::MSG_DONTWAIT as c_int);
            if count < 0 {
                return Err(io::Error::last_os_error());
            }
            buffer.set_len(buffer.len() + count as usize);
            Ok(count as usize)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::process;

    #[test]
    fn a_lent_pipe_is_not_waited_for_and_its_owner_notices_nothing() {
        let (reader, writer) = process::pipe().unwrap();
        let shared = writer.try_clone().unwrap();
        let lent = Lent::new(shared, Direction::Write).unwrap();
        let error = (0..1000).find_map(|_| lent.write(&[0; 4096]).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::WouldBlock);
        let flags = OFlag::from_bits_retain(fcntl(&writer, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
        drop(reader);
        assert_eq!(lent.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_regular_file_is_not_a_stream() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Lent::new(file.into(), Direction::Write).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn reading_appends_to_what_is_there() {
        let (reader, writer) = process::pipe().unwrap();
        set_nonblocking(reader.as_fd()).unwrap();
        let mut buffer = Vec::with_capacity(16);
        buffer.extend_from_slice(b"ab");
        assert_eq!(read_spare(reader.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        write_vectored(writer.as_fd(), &[IoSlice::new(b"c"), IoSlice::new(b"d")]).unwrap();
        assert_eq!(read_spare(reader.as_fd(), &mut buffer).unwrap(), 2);
        assert_eq!(buffer, b"abcd");
    }
}
