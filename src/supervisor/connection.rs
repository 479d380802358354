//! One agent's connection: requests in, replies and events out, and never a wait for the other side.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::protocol::{MAX_PACKET, Message, Request};
use crate::sys::{
    epoll::Interest,
    seqpacket::{self, Packet},
};

/// Messages kept for an agent that does not read. The kernel's own queue comes before this one; whoever lets both fill up
/// is dropped, and learns from Hello and the records what it has missed.
const QUEUE: usize = 64;

/// A connected agent.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    queue: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    /// It has said Hello: it gets events.
    pub greeted: bool,
}

/// The connection is of no more use: the other side is gone, does not read, or talks nonsense.
#[derive(Debug)]
pub struct Broken;

impl Connection {
    /// Takes over an accepted socket.
    pub fn new(socket: OwnedFd) -> Connection {
        Connection { socket, queue: VecDeque::new(), greeted: false }
    }

    /// The descriptor to watch.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to watch it for.
    pub fn interest(&self) -> Interest {
        if self.queue.is_empty() { Interest::Read } else { Interest::Both }
    }

    /// The next request, if one has arrived.
    ///
    /// # Errors
    /// The other side has closed or sent what is no request.
    pub fn receive(&self) -> Result<Option<(Request, Vec<OwnedFd>)>, Broken> {
        match seqpacket::receive(self.descriptor(), MAX_PACKET) {
            Ok(Some(Packet { bytes, descriptors })) => {
                let request = serde_json::from_slice(&bytes).map_err(|_| Broken)?;
                Ok(Some((request, descriptors)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Ok(None) | Err(_) => Err(Broken),
        }
    }

    /// Sends a message, or queues it behind those that wait already.
    ///
    /// # Errors
    /// The other side is gone, or has let its queue fill up.
    pub fn send(&mut self, message: &Message, descriptor: Option<OwnedFd>) -> Result<(), Broken> {
        let bytes = serde_json::to_vec(message).map_err(|_| Broken)?;
        if bytes.len() > MAX_PACKET || self.queue.len() == QUEUE {
            return Err(Broken);
        }
        self.queue.push_back((bytes, descriptor));
        self.flush()
    }

    /// Sends what is queued, as far as the other side takes it.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn flush(&mut self) -> Result<(), Broken> {
        while let Some((bytes, descriptor)) = self.queue.front() {
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            match seqpacket::send(self.socket.as_fd(), bytes, descriptor.as_slice()) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Broken),
            }
        }
        if self.queue.capacity() > 4 {
            self.queue = VecDeque::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::protocol::{Answer, Call};

    fn message(id: u64) -> Message {
        Message::Reply { id, answer: Answer::Error { message: "x".repeat(4000) } }
    }

    #[test]
    fn an_agent_that_does_not_read_is_queued_for_and_then_dropped() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let mut connection = Connection::new(ours);
        let sent = (0..10_000).find(|id| connection.send(&message(*id), None).is_err()).unwrap();
        assert!(sent > QUEUE as u64);
        assert_eq!(connection.interest(), Interest::Both);
        // What was accepted arrives in order once it reads again.
        for id in 0..sent {
            let packet = loop {
                match seqpacket::receive(theirs.as_fd(), MAX_PACKET) {
                    Ok(packet) => break packet.unwrap(),
                    Err(_) => connection.flush().unwrap(),
                }
            };
            let received = serde_json::from_slice::<Message>(&packet.bytes).unwrap();
            assert!(matches!(received, Message::Reply { id: found, .. } if found == id));
        }
        assert_eq!(connection.interest(), Interest::Read);
    }

    #[test]
    fn nonsense_breaks_the_connection_and_nothing_else() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let connection = Connection::new(ours);
        assert!(connection.receive().unwrap().is_none());
        let request = Request { id: 7, call: Call::Shutdown };
        seqpacket::send(theirs.as_fd(), &serde_json::to_vec(&request).unwrap(), &[]).unwrap();
        assert_eq!(connection.receive().unwrap().unwrap().0, request);
        seqpacket::send(theirs.as_fd(), b"{\"id\":1}", &[]).unwrap();
        assert!(connection.receive().is_err());
        drop(theirs);
        assert!(connection.receive().is_err());
    }
}
