//! Containers that an OCI runtime makes (runc, crun, …; RuntimeClass): the supervisor stays their parent and scribe.
//!
//! A *conductor* stands between the supervisor and the runtime, one for each such container, as long as that lives. It is
//! a copy of the supervisor, which may wait: it puts root and mounts in place in a mount namespace of its own, completes
//! the bundle, calls the runtime within a time limit, and tells over its *line* how that went. The supervisor itself never
//! waits for a runtime, and is what it always is: it adopts the container's first process (as the nearest subreaper),
//! reads its output, reaps it, and writes its record.
//!
//! ```text
//! conductor: runtime create            -> Created(pid, terminal)     the supervisor takes the process over
//! supervisor: Go                       -> runtime start -> Started   or Failed, after runtime delete
//! supervisor: Signal, Update           -> runtime kill, update -> Done
//! supervisor: Delete, or its own end   -> runtime delete --force, the end of the conductor
//! ```
//!
//! When the supervisor ends without a word, the conductor kills everything in the container's cgroup and has the runtime
//! forget it. When the conductor is killed, the container goes on; what the runtime keeps of it goes with the pod's run
//! directory.

mod bundle;
mod command;
mod conduct;
mod console;
mod exec;
mod stage;

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

pub use exec::start as exec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    attempt::start_error,
    container::{ChildStdio, LaunchContext},
    spec::{LaunchSpec, StartError},
};
use crate::sys::{
    pidfd,
    process::{self, Child, clone_running, flags},
    seqpacket,
};

/// Supervisor to conductor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Order {
    /// The process is taken over, and its program may run.
    Go,
    /// What was begun is not wanted any more.
    GiveUp,
    /// A signal for the container.
    Signal(i32),
    /// New limits.
    Update(Value),
    /// The container has ended and is on record.
    Delete,
}

/// Conductor to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// The runtime has made the container, whose first process waits. Its terminal's master comes with this, if it has one.
    Created {
        /// Process id on the host; a child of the supervisor.
        pid: i32,
    },
    /// The program runs.
    Started {
        /// Stages, in microseconds since the request.
        stages: Vec<(String, u64)>,
        /// uid, gid and supplementary groups.
        user: (u32, u32, Vec<u32>),
        /// What could not be done, and was not worth failing for.
        warnings: Vec<String>,
    },
    /// It does not, and will not: the conductor is about to end.
    Failed(StartError),
    /// A signal or an update has been passed on.
    Done {
        /// Why not.
        failure: Option<String>,
    },
}

/// The longest order or word, bytes.
const MAX_MESSAGE: usize = 64 * 1024;

/// The supervisor's side of a conductor.
#[derive(Debug)]
pub struct Conductor {
    /// Its process id.
    pub pid: i32,
    line: OwnedFd,
    /// Still held: the program is not to run before [`Conductor::release`].
    held: bool,
    /// The container's first process has been taken over.
    adopted: bool,
    /// Requests (connection, id) that are answered when what they ask for is done, in order.
    waiting: VecDeque<(u64, u64)>,
}

/// What a conductor's line brings.
pub enum Heard {
    /// A word, and what came with it.
    Word(Word, Option<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// Nothing any more: it has ended or is about to.
    Closed,
}

impl Conductor {
    /// Starts one for `spec`, which has a handler. `words` is the non-blocking read end of the container's standard error.
    /// Descriptor: names the process.
    ///
    /// # Errors
    /// There is no process then.
    pub fn start(
        spec: &LaunchSpec,
        stdio: ChildStdio,
        words: Option<BorrowedFd<'_>>,
        context: &LaunchContext<'_>,
        held: bool,
    ) -> Result<(Conductor, OwnedFd), StartError> {
        let failed = |step: &'static str| move |error: io::Error| start_error(step, &error);
        let Some(handler) = spec.handler.as_deref() else {
            return Err(failed("find the handler of the container")(io::ErrorKind::NotFound.into()));
        };
        // What a runtime leaves behind is ours: the first processes of containers above all.
        process::adopt_orphans().map_err(failed("adopt orphans"))?;
        let shared = match (context.target, context.pause) {
            (Some(target), _) => Some(target),
            (None, Some(pause)) if spec.pid == super::spec::PidMode::Pod => Some(pause),
            _ => None,
        };
        let pid = shared.map(pidfd::number).transpose().map_err(failed("find the PID namespace to join"))?;
        let namespaces = bundle::Namespaces { pod: std::process::id() as i32, pid };
        let (line, theirs) = seqpacket::pair().map_err(failed("make the conductor's line"))?;
        let received = context.received;
        let child = clone_running(flags::NEWNS, None, || {
            conduct::run(conduct::Part {
                spec,
                handler,
                stdio: &stdio,
                words,
                line: theirs.as_fd(),
                namespaces,
                received,
            })
        });
        let Child { pid, pidfd } = child.map_err(failed("clone the conductor"))?;
        Ok((Conductor { pid, line, held, adopted: false, waiting: VecDeque::new() }, pidfd))
    }

    /// The descriptor to watch.
    pub fn line(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    /// The next word.
    pub fn hear(&self) -> Heard {
        let received = match seqpacket::receive(self.line(), MAX_MESSAGE) {
            // It ended with orders unread. The kernel says so once, and before what it had to say itself.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                seqpacket::receive(self.line(), MAX_MESSAGE)
            }
            received => received,
        };
        match received {
            Ok(Some(packet)) => match serde_json::from_slice(&packet.bytes) {
                Ok(word) => Heard::Word(word, packet.descriptors.into_iter().next()),
                Err(_) => Heard::Closed,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Ok(None) | Err(_) => Heard::Closed,
        }
    }

    /// Whether the container's first process is the supervisor's by now.
    pub fn has_adopted(&self) -> bool {
        self.adopted
    }

    /// The container's first process has been taken over: its end is not missed any more.
    pub fn adopted(&mut self) {
        self.adopted = true;
        self.go();
    }

    /// Lets the program run, as soon as it can.
    pub fn release(&mut self) {
        self.held = false;
        self.go();
    }

    fn go(&self) {
        if self.adopted && !self.held {
            self.order(&Order::Go);
        }
    }

    /// Gives up what has not been started yet.
    pub fn give_up(&self) {
        self.order(&Order::GiveUp);
    }

    /// Passes a signal on; `from` is answered when that is done.
    pub fn signal(&mut self, from: (u64, u64), signal: i32) {
        self.ask(from, &Order::Signal(signal));
    }

    /// Passes new limits on; `from` is answered when that is done.
    pub fn update(&mut self, from: (u64, u64), resources: Value) {
        self.ask(from, &Order::Update(resources));
    }

    /// Has the runtime forget the container. The end of the conductor is the end of that.
    pub fn delete(&self) {
        self.order(&Order::Delete);
    }

    /// Who asked for what has just been done.
    pub fn next_waiting(&mut self) -> Option<(u64, u64)> {
        self.waiting.pop_front()
    }

    fn ask(&mut self, from: (u64, u64), order: &Order) {
        self.waiting.push_back(from);
        self.order(order);
    }

    /// A line that takes no more is that of a conductor that has ended, which is seen elsewhere, or of one that has not
    /// read what would fill a socket's buffer, all of which says the same by then.
    fn order(&self, order: &Order) {
        if let Ok(bytes) = serde_json::to_vec(order) {
            let _ = seqpacket::send(self.line(), &bytes, &[]);
        }
    }
}

/// When `stage` ended, counted from the arrival of the request.
fn stage(name: &str, received: Instant) -> (String, u64) {
    (name.to_owned(), u64::try_from(received.elapsed().as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_goes_once_it_is_released_and_taken_over_in_either_order() {
        for released_first in [true, false] {
            let (line, theirs) = seqpacket::pair().unwrap();
            let mut conductor = Conductor { pid: 1, line, held: true, adopted: false, waiting: VecDeque::new() };
            let steps: [fn(&mut Conductor); 2] = [Conductor::release, Conductor::adopted];
            let (first, second) = if released_first { (steps[0], steps[1]) } else { (steps[1], steps[0]) };
            first(&mut conductor);
            assert!(seqpacket::receive(theirs.as_fd(), 64).is_err(), "not yet");
            second(&mut conductor);
            let packet = seqpacket::receive(theirs.as_fd(), 64).unwrap().unwrap();
            assert_eq!(serde_json::from_slice::<Order>(&packet.bytes).unwrap(), Order::Go);
        }
    }

    #[test]
    fn words_come_in_order_and_the_end_is_told() {
        let (line, theirs) = seqpacket::pair().unwrap();
        let mut conductor = Conductor { pid: 1, line, held: false, adopted: false, waiting: VecDeque::new() };
        assert!(matches!(conductor.hear(), Heard::Nothing));
        conductor.signal((1, 2), 15);
        conductor.update((1, 3), serde_json::json!({}));
        seqpacket::send(theirs.as_fd(), &serde_json::to_vec(&Word::Done { failure: None }).unwrap(), &[]).unwrap();
        drop(theirs);
        assert!(matches!(conductor.hear(), Heard::Word(Word::Done { failure: None }, None)));
        assert_eq!([conductor.next_waiting(), conductor.next_waiting()], [Some((1, 2)), Some((1, 3))]);
        assert!(matches!(conductor.hear(), Heard::Closed));
    }
}
