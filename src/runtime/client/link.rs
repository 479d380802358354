//! One connection to a supervisor: who waits for which reply, and the task that reads.

use std::{
    collections::HashMap,
    future::Future,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot},
    time,
};

use super::{ClientError, Event, ExecEnd};
use crate::{
    supervisor::{
        protocol::{Answer, Call, MAX_PACKET, Message, Request, Snapshot},
        spec::VERSION,
    },
    sys::{
        pidfd,
        seqpacket::{self, Packet},
    },
};

/// For the process to be seen to end after its connection did, before that is called a lost connection.
const ENDING: Duration = Duration::from_secs(1);

/// The connection, shared by the handles and the task that reads.
#[derive(Debug)]
pub(super) struct Link {
    socket: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
    pid: i32,
    start_time: u64,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<Reply>>,
    execs: HashMap<u64, oneshot::Sender<ExecEnd>>,
    closed: bool,
}

/// A reply and what came with it.
#[derive(Debug)]
pub(super) struct Reply {
    pub answer: Answer,
    pub descriptors: Vec<OwnedFd>,
    /// Resolves at the end of the exec that the answer speaks of.
    pub exit: Option<oneshot::Receiver<ExecEnd>>,
}

/// Forgets a call whose caller no longer waits.
struct Registered<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.link.waiting().replies.remove(&self.id);
    }
}

impl Link {
    pub fn new(socket: AsyncFd<OwnedFd>, pidfd: AsyncFd<OwnedFd>, snapshot: &Snapshot) -> Link {
        Link {
            socket,
            pidfd,
            pid: snapshot.pid,
            start_time: snapshot.start_time,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
        }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    pub async fn process_ended(&self) {
        // An error means that the runtime is shutting down: nobody is there to be told.
        let _ = self.pidfd.readable().await;
    }

    /// One request and its reply. Refusals are errors here already.
    pub async fn call(
        &self,
        name: &'static str,
        call: Call,
        streams: &[OwnedFd],
        deadline: Duration,
    ) -> Result<Reply, ClientError> {
        let id = self.number();
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.closed {
                return Err(ClientError::Gone);
            }
            waiting.replies.insert(id, sender);
        }
        let _registered = Registered { link: self, id };
        let reply = within(name, deadline, async {
            send(&self.socket, &Request { id, call }, streams).await?;
            receiver.await.map_err(|_| ClientError::Gone)
        })
        .await?;
        match reply.answer {
            Answer::Error { message } => Err(ClientError::Refused { call: name, message }),
            _ => Ok(reply),
        }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code panics while it holds the lock, and the maps are whole at any moment.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a message to whoever waits for it.
    fn deliver(&self, message: Message, descriptors: Vec<OwnedFd>, events: &mpsc::Sender<Event>) {
        match message {
            Message::Reply { id, answer } => {
                let mut waiting = self.waiting();
                let started = if let Answer::ExecStarted { exec, .. } = answer { Some(exec) } else { None };
                // Before the caller hears of it, as its end may be the next message.
                let exit = started.map(|exec| {
                    let (sender, receiver) = oneshot::channel();
                    waiting.execs.insert(exec, sender);
                    receiver
                });
                let caller = waiting.replies.remove(&id);
                drop(waiting);
                let undelivered = match caller {
                    Some(caller) => caller.send(Reply { answer, descriptors, exit }).is_err(),
                    None => true,
                };
                if let (true, Some(exec)) = (undelivered, started) {
                    // Nobody would ever hear of it: whoever asked has gone away meanwhile.
                    self.waiting().execs.remove(&exec);
                    let request = Request { id: self.number(), call: Call::ExecKill { exec } };
                    if let Ok(bytes) = serde_json::to_vec(&request) {
                        let _ = seqpacket::send(self.socket.get_ref().as_fd(), &bytes, &[]);
                    }
                }
            }
            Message::Exited { container, attempt } => {
                let _ = events.try_send(Event::Exited { container, attempt });
            }
            Message::ExecExited { exec, exit_code, timed_out } => {
                let caller = self.waiting().execs.remove(&exec);
                if let Some(caller) = caller {
                    let _ = caller.send(ExecEnd { exit_code, timed_out });
                }
            }
        }
    }

    /// Nothing more will come: everyone who waits is told by the drop of the sending half.
    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.replies.clear();
        waiting.execs.clear();
    }
}

/// Says Hello on a new connection and waits for the answer.
pub(super) async fn greet(
    socket: &AsyncFd<OwnedFd>,
    deadline: Duration,
) -> Result<(Snapshot, Option<OwnedFd>), ClientError> {
    let call = "say hello";
    within(call, deadline, async {
        send(socket, &Request { id: 0, call: Call::Hello { version: VERSION } }, &[]).await?;
        let (message, descriptors) = receive(socket).await?;
        match message {
            Message::Reply { answer: Answer::Hello(snapshot), .. } => {
                if snapshot.version > VERSION || snapshot.version + 1 < VERSION {
                    return Err(ClientError::Version { found: snapshot.version });
                }
                Ok((snapshot, descriptors.into_iter().next()))
            }
            Message::Reply { answer: Answer::Error { message }, .. } => Err(ClientError::Refused { call, message }),
            Message::Reply { .. } | Message::Exited { .. } | Message::ExecExited { .. } => {
                Err(ClientError::Nonsense { call })
            }
        }
    })
    .await
}

/// Reads until the connection or its consumer ends, then sees the process to its end.
pub(super) async fn follow(link: Arc<Link>, events: mpsc::Sender<Event>) {
    loop {
        // Messages first: those sent before the end count. Both are cancel-safe: a message is taken whole or not at all.
        tokio::select! {
            biased;
            received = receive(&link.socket) => match received {
                Ok((message, descriptors)) => link.deliver(message, descriptors, &events),
                Err(_) => break,
            },
            () = events.closed() => break,
        }
    }
    link.close();
    if time::timeout(ENDING, link.pidfd.readable()).await.is_ok() {
        reap(&link);
        // Awaited, unlike the others: it is the last, and without it the pod would look alive.
        let _ = events.send(Event::Gone).await;
        return;
    }
    let _ = events.send(Event::Lost).await;
    // If it is a child of ours, nobody else can reap it.
    link.process_ended().await;
    reap(&link);
}

fn reap(link: &Link) {
    // Not a child (an earlier agent started it): then init has taken care of it.
    let _ = pidfd::wait(link.pidfd(), false);
}

async fn send(socket: &AsyncFd<OwnedFd>, request: &Request, streams: &[OwnedFd]) -> Result<(), ClientError> {
    let bytes = serde_json::to_vec(request).map_err(|_| ClientError::Nonsense { call: "encode a request" })?;
    let streams = streams.iter().map(AsFd::as_fd).collect::<Vec<_>>();
    let sent = socket.async_io(Interest::WRITABLE, |socket| seqpacket::send(socket.as_fd(), &bytes, &streams)).await;
    match sent {
        Ok(()) => Ok(()),
        // EMSGSIZE and the like: the request itself is impossible.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput) || bytes.len() > MAX_PACKET => {
            Err(ClientError::Refused { call: "take a request", message: error.to_string() })
        }
        Err(_) => Err(ClientError::Gone),
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> Result<(Message, Vec<OwnedFd>), ClientError> {
    let received = socket.async_io(Interest::READABLE, |socket| seqpacket::receive(socket.as_fd(), MAX_PACKET)).await;
    let Ok(Some(Packet { bytes, descriptors })) = received else { return Err(ClientError::Gone) };
    let message = serde_json::from_slice(&bytes).map_err(|_| ClientError::Gone)?;
    Ok((message, descriptors))
}

/// Lets the runtime watch a descriptor of ours.
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "unsound for types that lie about their descriptor only: OwnedFd cannot")]
    AsyncFd::new(descriptor)
}

/// Gives up on `future` after the deadline.
pub(super) async fn within<T>(
    call: &'static str,
    deadline: Duration,
    future: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    time::timeout(deadline, future).await.unwrap_or(Err(ClientError::Deadline { call, after: deadline }))
}
