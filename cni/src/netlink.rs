//! A synchronous netlink socket that sends several requests in one message and knows which of them failed.
//!
//! The whole crate uses this one socket type, for the hot path and the rest alike, with the messages and message
//! builders of `netlink-packet-route`, `rtnetlink` and `netlink-packet-netfilter`. rtnetlink's own connection is
//! a task that answers one request at a time through channels: every request costs its own system calls and two
//! context switches, it needs a runtime on each thread that attaches a pod, and there would be two ways to do a thing.
//!
//! The kernel handles a request within `sendmsg`, so its answers are waiting when the call returns. Only the last
//! request of a batch asks for an acknowledgement; one that fails is answered in any case, and before the last.
//! A batch of any length that succeeds therefore costs one `send` and one `recv`.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    thread,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, setsockopt, sockopt},
    sys::time::{TimeVal, TimeValLike},
};

use crate::netns;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Attribute of an acknowledgement that carries a sentence (`NLMSGERR_ATTR_MSG`).
const ERROR_MESSAGE: u16 = 1;
/// The kernel never makes a dump message longer (`NLMSG_GOODSIZE` and netlink_dump's 32 KiB), and no single link
/// message of a link without virtual functions comes near.
const BUFFER: usize = 32 * 1024;
/// A dump is interrupted by every change of what it lists; a node that starts hundreds of pods changes much.
const DUMP_ATTEMPTS: usize = 32;

/// Why a batch of requests failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The socket failed.
    #[error("netlink {0}")]
    Socket(&'static str, #[source] io::Error),
    /// The kernel refused requests of the batch.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// An answer made no sense.
    #[error("netlink answer: {0}")]
    Malformed(String),
    /// What is listed kept changing.
    #[error("netlink listing was interrupted {DUMP_ATTEMPTS} times by changes")]
    Interrupted,
}

/// One request of a batch that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which request, from 0; requests that were not reached are not listed.
    pub request: usize,
    /// Why.
    pub errno: Errno,
    /// The kernel's sentence, where it has one.
    pub message: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(formatter, "{} ({message})", self.errno.desc()),
            None => formatter.write_str(self.errno.desc()),
        }
    }
}

impl RequestError {
    /// The requests that were refused, if that is the reason.
    pub(crate) fn refusals(&self) -> &[Refusal] {
        match self {
            RequestError::Refused(refusals) => refusals,
            _ => &[],
        }
    }

    /// Every refusal is for the reason `errno`.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        !self.refusals().is_empty() && self.refusals().iter().all(|refusal| refusal.errno == errno)
    }
}

/// One request: a message and the flags beyond NLM_F_REQUEST.
#[derive(Debug, Clone)]
pub(crate) struct Request<M> {
    pub(crate) message: M,
    pub(crate) flags: u16,
    /// Answered by a message rather than an acknowledgement.
    pub(crate) get: bool,
}

impl<M> Request<M> {
    pub(crate) fn new(message: M, flags: u16) -> Request<M> {
        Request { message, flags, get: false }
    }

    pub(crate) fn get(message: M) -> Request<M> {
        Request { message, flags: 0, get: true }
    }
}

/// Which netlink family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Route,
    Netfilter,
}

/// A netlink socket; it belongs to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// An operation ended early: answers nobody waits for may be queued.
    dirty: bool,
}

impl Socket {
    pub(crate) fn open(family: Family) -> io::Result<Socket> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let descriptor = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // A dump of many links fills the default 208 KiB while we parse; failure only makes ENOBUFS likelier.
        let _ = setsockopt(&descriptor, sockopt::RcvBufForce, &(1024 * 1024));
        Ok(Socket::adopt(descriptor))
    }

    /// A socket somebody else opened, possibly in another network namespace.
    pub(crate) fn adopt(descriptor: OwnedFd) -> Socket {
        // Both only make errors cheaper and clearer; kernels before 4.12 do without.
        let _ = netns::set_netlink_option(descriptor.as_fd(), libc::NETLINK_CAP_ACK, 1);
        let _ = netns::set_netlink_option(descriptor.as_fd(), libc::NETLINK_EXT_ACK, 1);
        Socket { descriptor, sequence: 0, buffer: Vec::new(), dirty: false }
    }

    /// Joins multicast `group` and never blocks from here on: for watching.
    pub(crate) fn subscribe(&mut self, group: i32) -> io::Result<()> {
        // Without a port number of its own the socket would be taken for the kernel's and passed over.
        socket::bind(self.descriptor.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        netns::set_netlink_option(self.descriptor.as_fd(), libc::NETLINK_ADD_MEMBERSHIP, group)?;
        nix::fcntl::fcntl(&self.descriptor, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// Calls `seen` with type and body of every message that has arrived on a subscribed socket. False: messages
    /// were lost.
    pub(crate) fn arrived(&mut self, mut seen: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    for frame in frames(&self.buffer[..length]) {
                        let frame = frame.map_err(io::Error::other)?;
                        seen(frame.kind, frame.body);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(true),
                Err(Errno::ENOBUFS) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends `requests` as one message and returns the messages that came back, in order. On failure every
    /// request the kernel refused is named; the ones after it were still tried (rtnetlink), or none took effect
    /// (an nftables batch).
    pub(crate) fn transact<M>(&mut self, requests: Vec<Request<M>>) -> Result<Vec<M>, RequestError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        // Begin and end of an nftables batch are never acknowledged: the last request before the end is.
        self.transact_acknowledged(requests, 0)
    }

    /// As [`Socket::transact`], when the last `trailing` requests are such that the kernel does not answer.
    pub(crate) fn transact_acknowledged<M>(
        &mut self,
        requests: Vec<Request<M>>,
        trailing: usize,
    ) -> Result<Vec<M>, RequestError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let count = requests.len();
        let Some(last) = count.checked_sub(trailing + 1) else { return Ok(Vec::new()) };
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut ends_with_message = false;
        for (index, request) in requests.into_iter().enumerate() {
            let mut flags = NLM_F_REQUEST | request.flags;
            if index == last {
                ends_with_message = request.get;
                flags |= if request.get { 0 } else { NLM_F_ACK };
            }
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut bytes, request.message, flags, self.sequence);
        }
        self.send(&bytes)?;

        let last_sequence = first.wrapping_add(last as u32);
        let mut refusals = Vec::new();
        let mut replies = Vec::new();
        self.dirty = true;
        loop {
            // Never blocks in practice: the kernel has answered before `send` returned.
            let length =
                self.receive(MsgFlags::empty()).map_err(|errno| RequestError::Socket("receive", errno.into()))?;
            let mut finished = false;
            for frame in frames(&self.buffer[..length]) {
                let frame = frame.map_err(RequestError::Malformed)?;
                let request = frame.sequence.wrapping_sub(first) as usize;
                if request >= count {
                    continue;
                }
                if frame.kind == NLMSG_ERROR {
                    let (errno, message) = frame.acknowledgement().map_err(RequestError::Malformed)?;
                    if let Some(errno) = errno {
                        refusals.push(Refusal { request, errno, message });
                    }
                    // A batch that fails as a whole is answered once, for its first request.
                    finished |= frame.sequence == last_sequence || (trailing > 0 && request == 0);
                } else {
                    replies.push(frame.message()?);
                    finished |= ends_with_message && frame.sequence == last_sequence;
                }
            }
            if finished {
                break;
            }
        }
        if !refusals.is_empty() {
            self.drain();
            return Err(RequestError::Refused(refusals));
        }
        self.dirty = false;
        Ok(replies)
    }

    /// Sends one request from a thread of its own and returns with the kernel's first answer, while the kernel may
    /// still be busy with the request. The socket ends with it.
    pub(crate) fn first_answer<M>(mut self, request: Request<M>) -> Result<(), RequestError>
    where
        M: NetlinkSerializable,
    {
        // Only for the case that the sending fails and no answer ever comes.
        let patience = TimeVal::seconds(10);
        let failed = |step| move |errno: Errno| RequestError::Socket(step, errno.into());
        setsockopt(&self.descriptor, sockopt::ReceiveTimeout, &patience).map_err(failed("set the timeout of"))?;
        let mut bytes = Vec::new();
        append(&mut bytes, request.message, NLM_F_REQUEST | NLM_F_ACK | request.flags, 1);
        let sender = self.descriptor.try_clone().map_err(|error| RequestError::Socket("duplicate", error))?;
        let send = move || loop {
            if socket::send(sender.as_raw_fd(), &bytes, MsgFlags::empty()) != Err(Errno::EINTR) {
                return;
            }
        };
        // It only waits in the kernel.
        thread::Builder::new()
            .name("netlink".to_owned())
            .stack_size(64 * 1024)
            .spawn(send)
            .map_err(|error| RequestError::Socket("start a thread for", error))?;
        let length = self.receive(MsgFlags::empty()).map_err(failed("receive"))?;
        for frame in frames(&self.buffer[..length]) {
            let frame = frame.map_err(RequestError::Malformed)?;
            if frame.kind == NLMSG_ERROR
                && let (Some(errno), message) = frame.acknowledgement().map_err(RequestError::Malformed)?
            {
                return Err(RequestError::Refused(vec![Refusal { request: 0, errno, message }]));
            }
        }
        Ok(())
    }

    /// Lists what `message` asks for, again from the start when the list changed on the way.
    pub(crate) fn dump<M>(&mut self, message: M) -> Result<Vec<M>, RequestError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(replies) = self.dump_once(message.clone())? {
                return Ok(replies);
            }
        }
        Err(RequestError::Interrupted)
    }

    fn dump_once<M>(&mut self, message: M) -> Result<Option<Vec<M>>, RequestError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        append(&mut bytes, message, NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
        self.send(&bytes)?;
        self.dirty = true;
        let mut replies = Vec::new();
        let mut consistent = true;
        loop {
            let length = match self.receive(MsgFlags::empty()) {
                Ok(length) => length,
                // The queue overflowed: what was lost is unknown, so begin again.
                Err(Errno::ENOBUFS) => {
                    self.drain();
                    return Ok(None);
                }
                Err(errno) => return Err(RequestError::Socket("receive", errno.into())),
            };
            for frame in frames(&self.buffer[..length]) {
                let frame = frame.map_err(RequestError::Malformed)?;
                if frame.sequence != self.sequence {
                    continue;
                }
                consistent &= frame.flags & NLM_F_DUMP_INTR == 0;
                match frame.kind {
                    NLMSG_DONE => {
                        self.dirty = false;
                        return Ok(consistent.then_some(replies));
                    }
                    NLMSG_ERROR => {
                        let (errno, message) = frame.acknowledgement().map_err(RequestError::Malformed)?;
                        self.dirty = false;
                        return match errno {
                            None => Ok(Some(replies)),
                            // nf_tables interrupts a dump with an error instead of a flag.
                            Some(Errno::EINTR) => Ok(None),
                            Some(errno) => Err(RequestError::Refused(vec![Refusal { request: 0, errno, message }])),
                        };
                    }
                    _ => {
                        replies.push(frame.message()?);
                        if frame.flags & NLM_F_MULTIPART == 0 {
                            self.dirty = false;
                            return Ok(Some(replies));
                        }
                    }
                }
            }
        }
    }

    /// The socket can serve another operation: no answer that nobody waits for is or will be queued. Frees what is
    /// not worth keeping meanwhile.
    pub(crate) fn rest(&mut self) -> bool {
        self.buffer = Vec::new();
        !self.dirty
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        loop {
            match socket::send(self.descriptor.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => (),
                Err(errno) => return Err(RequestError::Socket("send", errno.into())),
            }
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> nix::Result<usize> {
        self.buffer.resize(BUFFER, 0);
        loop {
            match socket::recv(self.descriptor.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => (),
                other => return other,
            }
        }
    }

    /// Throws away the rest of the answers to a failed batch.
    fn drain(&mut self) {
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS) => (),
                Err(errno) => {
                    self.dirty = errno != Errno::EAGAIN;
                    return;
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn append<M: NetlinkSerializable>(bytes: &mut Vec<u8>, message: M, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = bytes.len();
    let length = message.header.length as usize;
    bytes.resize(start + length.next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..start + length]);
}

/// One message of a datagram.
struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        let half = |at: usize| bytes.get(at..at + 2).and_then(|half| half.try_into().ok()).map(u16::from_ne_bytes);
        let (Some(length), Some(kind), Some(flags), Some(sequence)) = (word(0), half(4), half(6), word(8)) else {
            bytes = &[];
            return Some(Err("a header is cut off".to_owned()));
        };
        let length = length as usize;
        let Some(body) = bytes.get(HEADER..length) else {
            let available = bytes.len();
            bytes = &[];
            return Some(Err(format!("a message of {length} bytes in {available}")));
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Frame { kind, flags, sequence, body }))
    })
}

impl Frame<'_> {
    /// errno of an acknowledgement (none: success) and the kernel's sentence.
    fn acknowledgement(&self) -> Result<(Option<Errno>, Option<String>), String> {
        let code = self.body.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
        let code = code.ok_or("an acknowledgement without a code")?;
        // Behind the code: the header of the request (without its body, as asked for), then attributes.
        let attributes = self.body.get(4 + HEADER..).unwrap_or_default();
        let message = NlasIterator::new(attributes)
            .filter_map(Result::ok)
            .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == ERROR_MESSAGE)
            .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
        Ok(((code != 0).then(|| Errno::from_raw(-code)), message))
    }

    fn message<M: NetlinkDeserializable>(&self) -> Result<M, RequestError> {
        let mut header = NetlinkHeader::default();
        header.length = (self.body.len() + HEADER) as u32;
        header.message_type = self.kind;
        header.flags = self.flags;
        header.sequence_number = self.sequence;
        M::deserialize(&header, self.body).map_err(|error| RequestError::Malformed(error.to_string()))
    }
}
