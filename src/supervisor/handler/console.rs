//! Where a runtime sends the master of a terminal that it has made: a socket that it is given the path of
//! (`--console-socket`; docs/terminals.md of runc).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
};

use crate::sys::seqpacket;

/// The longest message that comes with a master: the terminal's name.
const MAX_NAME: usize = 4096;

/// A socket that waits for a master.
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    directory: File,
    file: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `directory` under `name`.
    pub(super) fn listen(directory: &Path, name: &str) -> io::Result<ConsoleSocket> {
        let file = directory.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let directory = File::open(directory)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        Ok(ConsoleSocket { listener, directory, file })
    }

    /// Its path for another process. The address of a socket holds 108 bytes only, so that the directory, which may be
    /// deeper than that, is named by our own descriptor of it.
    pub(super) fn path(&self) -> PathBuf {
        let name = self.file.file_name().unwrap_or_default();
        let directory = format!("/proc/{}/fd/{}", std::process::id(), self.directory.as_raw_fd());
        Path::new(&directory).join(name)
    }

    /// The master, once the runtime has ended well: what it has sent is here by then.
    pub(super) fn take(self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept()?;
        let packet = seqpacket::receive(connection.as_fd(), MAX_NAME)?;
        let master = packet.and_then(|packet| packet.descriptors.into_iter().next());
        master.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Left over it would only be replaced, or go with the attempt.
        let _ = fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::process;

    #[test]
    fn a_descriptor_comes_through_a_socket_in_a_deep_directory() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let socket = ConsoleSocket::listen(&deep, "console.sock").unwrap();
        let client = UnixStream::connect(socket.path()).unwrap();
        let (reader, writer) = process::pipe().unwrap();
        seqpacket::send(client.as_fd(), b"/dev/pts/0", &[reader.as_fd()]).unwrap();
        let received = socket.take().unwrap();
        nix::unistd::write(&writer, b"x").unwrap();
        assert_eq!(nix::unistd::read(&received, &mut [0; 8]).unwrap(), 1);
        assert!(!deep.join("console.sock").exists());
        let nobody = ConsoleSocket::listen(&deep, "console.sock").unwrap();
        assert!(nobody.take().is_err());
    }
}
