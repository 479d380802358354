//! Talking to a supervisor: calls with deadlines, events, and the moment it is gone.
//!
//! One task per connection reads the socket and watches the process; callers wait for their own reply. A supervisor that
//! hangs costs its callers a deadline and nobody else anything.

mod error;
pub(crate) mod link;
#[cfg(test)]
mod tests;

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    task,
};

pub use error::ClientError;
use link::Link;

use super::spawn::{Identity, Started};
use crate::{
    store::{durable, layout::PodDirs},
    supervisor::{
        self,
        protocol::{Answer, Call, RunningContainer, Snapshot},
        spec::{ExecSpec, StartError, VERSION},
    },
    sys::{pidfd, process, seqpacket},
};

/// For a supervisor to make its sandbox and answer: milliseconds normally, much more on a machine that thrashes.
const SANDBOX: Duration = Duration::from_secs(30);

/// For a running supervisor to answer the first Hello of a restarted agent.
const RECONNECT: Duration = Duration::from_secs(5);

/// For what a supervisor does at once.
const CALL: Duration = Duration::from_secs(5);

/// For a container or a process in one to reach its program: the kubelet's `runtimeRequestTimeout`. The attempt goes on
/// when this has passed; a repeated start joins it, a kill ends it.
const START: Duration = Duration::from_secs(120);

/// For Shutdown: longer than the supervisor waits for the killed to end.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// Events kept for a busy consumer. They only say "look again": with this many waiting, one more says nothing new.
const EVENTS: usize = 16;

/// What a supervisor tells of its own accord. Hints to look again: the records on disk and [`Supervisor::observe`] are
/// the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An attempt has ended; its exit record is on disk.
    Exited {
        /// Container name.
        container: String,
        /// Attempt.
        attempt: u32,
    },
    /// The process has ended, and all its containers with it. The last event.
    Gone,
    /// The process lives, but the connection broke (it dropped us as too slow): reconnect. The last event.
    Lost,
}

/// A supervisor that has answered, and everything that came with it.
#[derive(Debug)]
pub struct Connected {
    /// For calls; cheap to clone.
    pub supervisor: Supervisor,
    /// What it said of itself.
    pub snapshot: Snapshot,
    /// NETLINK_ROUTE socket in the pod's network namespace, unless that is the host's.
    pub netlink: Option<OwnedFd>,
    /// Its events. The connection lasts as long as this receiver.
    pub events: mpsc::Receiver<Event>,
}

/// A running supervisor.
#[derive(Debug, Clone)]
pub struct Supervisor {
    link: Arc<Link>,
}

/// A process started by [`Supervisor::exec`].
#[derive(Debug)]
pub struct Exec {
    /// Names it for [`Supervisor::exec_kill`].
    pub id: u64,
    /// Process id on the host.
    pub pid: i32,
    /// Master of its terminal, if one was asked for.
    pub terminal: Option<OwnedFd>,
    exit: oneshot::Receiver<ExecEnd>,
}

/// How an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecEnd {
    /// 0-255, 128 + signal.
    pub exit_code: i32,
    /// It was killed as its time was over.
    pub timed_out: bool,
}

/// What [`Supervisor::hook`] found.
#[derive(Debug)]
pub enum HookRun {
    /// It runs.
    Running(Exec),
    /// It has ended before.
    Ended {
        /// `None`: well.
        failure: Option<String>,
    },
}

impl Exec {
    /// Waits for its end.
    ///
    /// # Errors
    /// [`ClientError::Gone`] when the supervisor ended first: the exit code cannot be learnt.
    pub async fn wait(&mut self) -> Result<ExecEnd, ClientError> {
        (&mut self.exit).await.map_err(|_| ClientError::Gone)
    }
}

impl Supervisor {
    /// Waits until a supervisor that was just started is complete. On failure nothing of it is left.
    ///
    /// # Errors
    /// [`ClientError::Sandbox`], [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn meet(started: Started) -> Result<Connected, ClientError> {
        // Killed if it is dropped: on every failure from here on, and when the caller stops waiting.
        let Started { process, connection } = started;
        let pidfd = process.descriptor().and_then(link::register).map_err(ClientError::Watch)?;
        let socket = link::register(connection).map_err(ClientError::Watch)?;
        let greeting = tokio::select! {
            biased;
            greeting = link::greet(&socket, SANDBOX) => greeting,
            _ = pidfd.readable() => Err(ClientError::Gone),
        };
        match greeting {
            Ok((snapshot, netlink)) => {
                process.adopt();
                Ok(connected(socket, pidfd, snapshot, netlink))
            }
            Err(error) => {
                blocking(move || {
                    drop(process);
                    Ok(())
                })
                .await?;
                Err(match error {
                    ClientError::Refused { message, .. } => ClientError::Sandbox { message },
                    error => error,
                })
            }
        }
    }

    /// Finds the supervisor that an earlier agent started.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] when it has ended; [`ClientError::Deadline`] when it hangs: it and its cgroup are then
    /// the caller's to kill. [`ClientError::Identity`] when somebody else listens there.
    pub async fn reconnect(directories: &PodDirs) -> Result<Connected, ClientError> {
        let path = directories.supervisor_socket();
        let directories = directories.clone();
        let (recorded, connection) = blocking({
            let path = path.clone();
            move || find(&directories, &path)
        })
        .await?;
        let socket = link::register(connection).map_err(ClientError::Watch)?;
        let (snapshot, netlink) = link::greet(&socket, RECONNECT).await?;
        let found = (snapshot.pid, snapshot.start_time);
        if let Some(recorded) = recorded.map(|identity| (identity.pid, identity.start_time))
            && recorded != found
        {
            let name = |(pid, start_time): (i32, u64)| format!("{pid}/{start_time}");
            return Err(ClientError::Identity { path, found: name(found), recorded: name(recorded) });
        }
        // The descriptor is of whatever has this number now; the start time, read after it was opened, tells whether that
        // is the process that answered.
        let pidfd = pidfd::open(snapshot.pid).map_err(|_| ClientError::Gone)?;
        match process::start_time(snapshot.pid) {
            Ok(start_time) if start_time == snapshot.start_time => {}
            Ok(_) | Err(_) => return Err(ClientError::Gone),
        }
        let pidfd = link::register(pidfd).map_err(ClientError::Watch)?;
        Ok(connected(socket, pidfd, snapshot, netlink))
    }

    /// Process id on the host: `/proc/<pid>/ns/net` is the pod's network namespace.
    pub fn pid(&self) -> i32 {
        self.link.pid()
    }

    /// Field 22 of /proc/PID/stat.
    pub fn start_time(&self) -> u64 {
        self.link.start_time()
    }

    /// Resolves when the process has ended.
    pub async fn ended(&self) {
        self.link.process_ended().await;
    }

    /// What runs now, asked anew.
    ///
    /// # Errors
    /// [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn observe(&self) -> Result<Snapshot, ClientError> {
        let reply = self.link.call("observe", Call::Hello { version: VERSION }, &[], CALL).await?;
        match reply.answer {
            Answer::Hello(snapshot) => Ok(snapshot),
            _ => Err(ClientError::Nonsense { call: "observe" }),
        }
    }

    /// Starts the attempt in `directory` (with its `launch.json`) and waits for its program to run, which with `hold` it
    /// does after [`Supervisor::release`] only. May be repeated: a running attempt is reported, one that is being started
    /// is joined.
    ///
    /// # Errors
    /// Inside: why it could not be started; its exit record is on disk. Outside: [`ClientError::AlreadyEnded`],
    /// [`ClientError::Refused`], [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn start(
        &self,
        directory: &Path,
        hold: bool,
    ) -> Result<Result<RunningContainer, StartError>, ClientError> {
        let reply = self.link.call("start", Call::Start { dir: directory.to_owned(), hold }, &[], START).await?;
        match reply.answer {
            Answer::Started(running) => Ok(Ok(running)),
            Answer::StartFailed(error) => Ok(Err(error)),
            Answer::Ended => Err(ClientError::AlreadyEnded),
            _ => Err(ClientError::Nonsense { call: "start" }),
        }
    }

    /// Lets the program of a held attempt run. May be repeated, and come before the start.
    ///
    /// # Errors
    /// [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn release(&self, directory: &Path) -> Result<(), ClientError> {
        self.done("release", Call::Release { dir: directory.to_owned() }, &[], CALL).await
    }

    /// Signals a container's first process. One that has ended is no error.
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a number that is no signal; [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), ClientError> {
        self.done("signal", Call::Signal { container: container.to_owned(), signal }, &[], CALL).await
    }

    /// SIGKILL for everything in a container's cgroup. Its end is told by an event, as any other.
    ///
    /// # Errors
    /// [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn kill(&self, container: &str) -> Result<(), ClientError> {
        self.done("kill", Call::Kill { container: container.to_owned() }, &[], CALL).await
    }

    /// Runs a process in a container. `streams` are its stdin, stdout and stderr; none with a terminal.
    ///
    /// # Errors
    /// Inside: why it could not be started. Outside: [`ClientError::Refused`] when the container does not run,
    /// [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn exec(&self, spec: ExecSpec, streams: Vec<OwnedFd>) -> Result<Result<Exec, StartError>, ClientError> {
        let reply = self.link.call("exec", Call::Exec(spec), &streams, START).await?;
        match (reply.answer, reply.exit) {
            (Answer::ExecStarted { exec, pid }, Some(exit)) => {
                Ok(Ok(Exec { id: exec, pid, terminal: reply.descriptors.into_iter().next(), exit }))
            }
            (Answer::StartFailed(error), _) => Ok(Err(error)),
            _ => Err(ClientError::Nonsense { call: "exec" }),
        }
    }

    /// Runs a hook in a container and keeps how it ends in `record`. May be repeated, by a restarted agent too: one that runs
    /// is joined, one that has ended is not run again.
    ///
    /// # Errors
    /// As [`Supervisor::exec`].
    pub async fn hook(&self, spec: ExecSpec, record: &Path) -> Result<Result<HookRun, StartError>, ClientError> {
        let call = Call::Hook { spec, record: record.to_owned() };
        let reply = self.link.call("run a hook", call, &[], START).await?;
        match (reply.answer, reply.exit) {
            (Answer::ExecStarted { exec, pid }, Some(exit)) => {
                Ok(Ok(HookRun::Running(Exec { id: exec, pid, terminal: None, exit })))
            }
            (Answer::HookEnded { failure }, _) => Ok(Ok(HookRun::Ended { failure })),
            (Answer::StartFailed(error), _) => Ok(Err(error)),
            _ => Err(ClientError::Nonsense { call: "run a hook" }),
        }
    }

    /// Kills an exec, if it still runs.
    ///
    /// # Errors
    /// [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn exec_kill(&self, exec: u64) -> Result<(), ClientError> {
        self.done("kill the exec", Call::ExecKill { exec }, &[], CALL).await
    }

    /// Attaches stdin, stdout and (not with a terminal) stderr to a container. A reader that stays behind by more than
    /// its pipe and 256 KiB is let go.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it does not run or a stream is a file; [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn attach(&self, container: &str, streams: Vec<OwnedFd>) -> Result<(), ClientError> {
        self.done("attach", Call::Attach { container: container.to_owned() }, &streams, CALL).await
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it has none; [`ClientError::Deadline`], [`ClientError::Gone`].
    pub async fn resize(&self, container: &str, rows: u16, columns: u16) -> Result<(), ClientError> {
        let call = Call::Resize { container: container.to_owned(), rows, cols: columns };
        self.done("resize", call, &[], CALL).await
    }

    /// Kills what still runs, waits for its records, and for the process to end. One that is gone already is Ok.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when something does not die, [`ClientError::Deadline`].
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        match self.done("shut down", Call::Shutdown, &[], SHUTDOWN).await {
            // It answers and ends: which of the two is seen first does not matter.
            Ok(()) | Err(ClientError::Gone) => {
                let ended = async {
                    self.ended().await;
                    Ok(())
                };
                link::within("shut down", CALL, ended).await
            }
            Err(error) => Err(error),
        }
    }

    /// SIGKILL for the supervisor itself: its containers die with it, without exit records. For one that hangs.
    pub fn kill_supervisor(&self) {
        // Fails only when it has ended.
        let _ = pidfd::send_signal(self.link.pidfd(), libc::SIGKILL);
    }

    async fn done(
        &self,
        name: &'static str,
        call: Call,
        streams: &[OwnedFd],
        deadline: Duration,
    ) -> Result<(), ClientError> {
        match self.link.call(name, call, streams, deadline).await?.answer {
            Answer::Ok => Ok(()),
            _ => Err(ClientError::Nonsense { call: name }),
        }
    }
}

/// The recorded identity, if there is one, and a connection to the socket.
fn find(directories: &PodDirs, path: &Path) -> Result<(Option<Identity>, OwnedFd), ClientError> {
    // Without a (readable) record the socket decides: only root can have put it there.
    let recorded = durable::read_json::<Identity>(&directories.supervisor_file()).ok().flatten();
    if recorded.as_ref().is_some_and(|identity| !identity.is_alive()) {
        return Err(ClientError::NotRunning { path: path.to_owned() });
    }
    let connection =
        seqpacket::connect(&directories.run, supervisor::SOCKET).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path.to_owned() }
            }
            _ => ClientError::Connect { path: path.to_owned(), source },
        })?;
    Ok((recorded, connection))
}

fn connected(
    socket: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
    snapshot: Snapshot,
    netlink: Option<OwnedFd>,
) -> Connected {
    let link = Arc::new(Link::new(socket, pidfd, &snapshot));
    let (sender, events) = mpsc::channel(EVENTS);
    task::spawn(link::follow(Arc::clone(&link), sender));
    Connected { supervisor: Supervisor { link }, snapshot, netlink, events }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    // Cancelled only when the runtime shuts down.
    task::spawn_blocking(work).await.unwrap_or(Err(ClientError::Gone))
}
