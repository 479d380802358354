//! Somebody who looks at a container's standard streams. The log is complete without them, and the container is never held
//! up by them: who does not keep up is let go.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::log::Stream;
use crate::sys::stream::{Direction, Lent};

/// Output kept for a slow reader beyond what its pipe or socket holds, bytes.
const QUEUE: usize = 256 * 1024;

/// Input taken at once; no more is read before the container has taken it.
const INPUT: usize = 4096;

/// A set of streams attached to an attempt.
#[derive(Debug)]
pub struct Attachment {
    /// Number of the attempt.
    pub attempt: u64,
    input: Option<Lent>,
    pending: Vec<u8>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

#[derive(Debug)]
struct Sink {
    to: Lent,
    queue: Vec<u8>,
}

/// What became of a write to a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Nothing is left.
    All,
    /// Wait for room.
    Waiting,
    /// It is broken, or too slow: let it go.
    Broken,
}

/// What became of input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// It went to the container; there may be more.
    More,
    /// The container has no room: wait for that before reading more.
    Full,
    /// Input has ended, or there is nobody to take it.
    Ended,
}

impl Attachment {
    /// Takes stdin, stdout and (not with a terminal) stderr.
    ///
    /// # Errors
    /// One of them is neither pipe, terminal nor socket, or the number is wrong.
    pub fn new(attempt: u64, descriptors: Vec<OwnedFd>) -> io::Result<Attachment> {
        let mut descriptors = descriptors.into_iter();
        let (Some(stdin), Some(stdout)) = (descriptors.next(), descriptors.next()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "stdin, stdout and stderr must come with attach"));
        };
        let sink = |descriptor| Lent::new(descriptor, Direction::Write).map(|to| Sink { to, queue: Vec::new() });
        Ok(Attachment {
            attempt,
            input: Some(Lent::new(stdin, Direction::Read)?),
            pending: Vec::new(),
            stdout: Some(sink(stdout)?),
            stderr: descriptors.next().map(sink).transpose()?,
        })
    }

    /// The descriptor from which input comes.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(Lent::descriptor)
    }

    /// The descriptor to which output goes.
    pub fn output(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
        .map(|sink| sink.to.descriptor())
    }

    fn sink(&mut self, stream: Stream) -> &mut Option<Sink> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Passes on a piece of output.
    pub fn copy(&mut self, stream: Stream, bytes: &[u8]) -> Written {
        let Some(sink) = self.sink(stream) else { return Written::All };
        if sink.queue.len() + bytes.len() > QUEUE {
            return Written::Broken;
        }
        sink.queue.extend_from_slice(bytes);
        self.flush(stream)
    }

    /// Writes what is queued, as far as there is room.
    pub fn flush(&mut self, stream: Stream) -> Written {
        let Some(sink) = self.sink(stream) else { return Written::All };
        let mut written = 0;
        while written < sink.queue.len() {
            match sink.to.write(&sink.queue[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sink.queue.drain(..written);
                    return Written::Waiting;
                }
                Err(_) => return Written::Broken,
            }
        }
        sink.queue = Vec::new();
        Written::All
    }

    /// Everything has been written.
    pub fn is_drained(&self) -> bool {
        self.stdout.iter().chain(&self.stderr).all(|sink| sink.queue.is_empty())
    }

    /// No more input is taken.
    pub fn close_input(&mut self) {
        self.input = None;
        self.pending = Vec::new();
    }

    /// Moves input on to the container's `stdin`, which does not block.
    pub fn feed(&mut self, stdin: BorrowedFd<'_>) -> Fed {
        let Some(input) = &self.input else { return Fed::Ended };
        if self.pending.is_empty() {
            self.pending.reserve_exact(INPUT);
            match input.read(&mut self.pending) {
                Ok(0) => return Fed::Ended,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pending = Vec::new();
                    return Fed::More;
                }
                Err(_) => return Fed::Ended,
            }
        }
        match nix::unistd::write(stdin, &self.pending) {
            Ok(count) if count == self.pending.len() => {
                self.pending = Vec::new();
                Fed::More
            }
            Ok(count) => {
                self.pending.drain(..count);
                Fed::Full
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Fed::Full,
            Err(_) => Fed::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, os::fd::AsFd};

    use super::*;
    use crate::sys::{process, stream};

    /// An attachment and the far ends of its streams: input writer, output reader, error reader.
    fn attachment() -> (Attachment, OwnedFd, OwnedFd, OwnedFd) {
        let (stdin, input) = process::pipe().unwrap();
        let (output, stdout) = process::pipe().unwrap();
        let (errors, stderr) = process::pipe().unwrap();
        (Attachment::new(1, vec![stdin, stdout, stderr]).unwrap(), input, output, errors)
    }

    #[test]
    fn a_reader_that_stops_is_queued_for_and_then_let_go() {
        let (mut attachment, _input, output, _errors) = attachment();
        let mut sent = 0;
        let piece = [b'x'; 16 * 1024];
        loop {
            match attachment.copy(Stream::Stdout, &piece) {
                Written::Broken => break,
                Written::All | Written::Waiting => sent += piece.len(),
            }
        }
        assert!(sent >= QUEUE, "{sent}");
        assert_eq!(attachment.copy(Stream::Stderr, b"still fine"), Written::All);
        drop(output);
        assert_eq!(attachment.flush(Stream::Stdout), Written::Broken);
    }

    #[test]
    fn input_waits_for_the_container_and_loses_nothing() {
        let (mut attachment, input, _output, _errors) = attachment();
        let (stdin, writer) = process::pipe().unwrap();
        stream::set_nonblocking(writer.as_fd()).unwrap();
        // Fill the container's pipe.
        while nix::unistd::write(&writer, &[b'.'; 4096]).is_ok() {}
        nix::unistd::write(&input, b"typed").unwrap();
        assert_eq!(attachment.feed(writer.as_fd()), Fed::Full);
        let mut filled = vec![0; 65_536];
        File::from(stdin.try_clone().unwrap()).read_exact(&mut filled).unwrap();
        assert_eq!(attachment.feed(writer.as_fd()), Fed::More);
        drop(input);
        assert_eq!(attachment.feed(writer.as_fd()), Fed::Ended);
        drop(writer);
        let mut typed = String::new();
        File::from(stdin).read_to_string(&mut typed).unwrap();
        assert_eq!(typed, "typed");
    }
}
