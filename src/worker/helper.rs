//! Sends a helper process ([`volume::helper`]) on an errand, waits for a bounded time, and ends it.
//!
//! A process that waits in the kernel for a server may not even die of SIGKILL. Such a one is left behind: nobody waits
//! for it, and nothing is sent after it, so that a server that is down costs one process for each volume and no more.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    runtime::spawn::SealedBinary,
    sys::{
        pidfd, process,
        spawn::{Program, spawn},
    },
    volume::helper::{Answer, Errand, PROGRAM},
};

/// For a process that was killed to be gone.
const DYING: Duration = Duration::from_secs(1);

/// Longest answer, bytes: a path or a message.
const ANSWER: usize = 64 << 10;

/// Why an errand was not done.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// No process could be started.
    #[error("start a helper process")]
    Start(#[source] io::Error),
    /// It ended without a word, or said something else than an answer.
    #[error("the helper process ended without an answer")]
    NoAnswer(#[source] io::Error),
    /// The time is over.
    #[error("{subject} does not answer: given up after {}s", .limit.as_secs())]
    TimedOut {
        /// What was waited for.
        subject: String,
        /// How long.
        limit: Duration,
    },
    /// An earlier one is still waiting in the kernel.
    #[error("{subject} does not answer: process {pid} still waits for it, and cannot be killed")]
    Stuck {
        /// What is waited for.
        subject: String,
        /// Who waits.
        pid: i32,
    },
    /// The pod is to go: what it would have been done for is not needed any more.
    #[error("given up, as the pod is to go")]
    Cancelled,
    /// What was the matter, in the helper's words.
    #[error("{0}")]
    Failed(String),
}

/// The helpers of one pod.
pub struct Helpers {
    binary: SealedBinary,
    /// By what they wait for: those that could not be killed.
    stuck: Mutex<BTreeMap<String, Left>>,
    cancelled: watch::Sender<bool>,
}

struct Left {
    pid: i32,
    gone: Arc<AtomicBool>,
}

impl Helpers {
    /// Of a pod that has sent none yet. They run `binary`.
    pub fn new(binary: SealedBinary) -> Helpers {
        Helpers { binary, stuck: Mutex::default(), cancelled: watch::Sender::new(false) }
    }

    /// Ends the errands that set something up, and lets none begin.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Does an errand that is about `subject` (`/srv/data`). [`Helpers::cancel`] ends it if it `sets_up` something.
    pub async fn send(
        &self,
        errand: &Errand,
        subject: &str,
        limit: Duration,
        sets_up: bool,
    ) -> Result<Answer, HelperError> {
        if let Some(pid) = self.stuck(subject) {
            return Err(HelperError::Stuck { subject: subject.to_owned(), pid });
        }
        let mut cancelled = self.cancelled.subscribe();
        let until = Instant::now() + limit;
        let running = Running::start(&self.binary, errand).map_err(HelperError::Start)?;
        let cancel = async {
            match sets_up {
                true => cancelled.wait_for(|cancelled| *cancelled).await.map(drop).unwrap_or_default(),
                false => std::future::pending().await,
            }
        };
        // Dropping the answer half-read loses nothing: the process is killed then.
        let answer = tokio::select! {
            biased;
            () = cancel => Err(HelperError::Cancelled),
            answer = timeout_at(until, running.answer()) => match answer {
                Ok(answer) => answer.map_err(HelperError::NoAnswer),
                Err(_) => Err(HelperError::TimedOut { subject: subject.to_owned(), limit }),
            },
        };
        if let Some(left) = running.end().await {
            self.leave(subject, left);
        }
        answer?.map_err(HelperError::Failed)
    }

    fn stuck(&self, subject: &str) -> Option<i32> {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        stuck.retain(|_, left| !left.gone.load(Ordering::Acquire));
        stuck.get(subject).map(|left| left.pid)
    }

    /// Keeps in mind what could not be killed, and reaps it when it ends after all.
    fn leave(&self, subject: &str, running: Running) {
        tracing::warn!(subject, pid = running.pid, "a helper process cannot be killed; it is left behind");
        let gone = Arc::new(AtomicBool::new(false));
        let left = Left { pid: running.pid, gone: gone.clone() };
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.to_owned(), left);
        tokio::spawn(async move {
            running.ended().await;
            running.reap();
            gone.store(true, Ordering::Release);
        });
    }
}

/// Lets the runtime watch a descriptor of ours.
fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "unsound for types that lie about their descriptor only: OwnedFd cannot")]
    AsyncFd::new(descriptor)
}

/// A helper process; killed when dropped.
struct Running {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    output: AsyncFd<OwnedFd>,
}

impl Running {
    /// Must not be called on a thread that may end before the process does: it would take the process along.
    fn start(binary: &SealedBinary, errand: &Errand) -> io::Result<Running> {
        let (input, question) = process::pipe()?;
        let (output, answer) = process::pipe()?;
        // Far less than a pipe holds, so that this does not wait.
        File::from(question).write_all(&serde_json::to_vec(errand)?)?;
        let program = CString::new(PROGRAM)?;
        // For mount(8) to be found.
        let path = std::env::var_os("PATH").map(|path| CString::new([b"PATH=", path.as_bytes()].concat()));
        let environment: Vec<CString> = path.transpose()?.into_iter().chain([CString::new("LC_ALL=C")?]).collect();
        let errors = io::stderr();
        let child = spawn(&Program {
            executable: binary.as_fd(),
            arguments: &[program],
            environment: &environment,
            stdio: [input.as_fd(), answer.as_fd(), errors.as_fd()],
            cgroup: None,
        })
        .map_err(io::Error::other)?;
        nix::fcntl::fcntl(&output, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Running { pid: child.pid, pidfd: register(child.pidfd)?, output: register(output)? })
    }

    /// What it says before it closes its output.
    async fn answer(&self) -> io::Result<Result<Answer, String>> {
        let mut text = Vec::new();
        loop {
            let mut part = [0; 4096];
            let read = |output: &OwnedFd| Ok(nix::unistd::read(output, &mut part)?);
            let read = self.output.async_io(Interest::READABLE, read).await?;
            if read == 0 || text.len() > ANSWER {
                return Ok(serde_json::from_slice(&text)?);
            }
            text.extend_from_slice(&part[..read]);
        }
    }

    /// Kills it, if need be, and what it has started. Returns it when it does not die.
    async fn end(self) -> Option<Running> {
        self.kill();
        match timeout(DYING, self.ended()).await {
            Ok(()) => {
                self.reap();
                None
            }
            Err(_) => Some(self),
        }
    }

    async fn ended(&self) {
        // An error means that the runtime is shutting down.
        let _ = self.pidfd.readable().await;
    }

    fn kill(&self) {
        // It leads its own group, and its number is its own until it is reaped. Ignoring: it has ended already.
        let _ = process::kill_group(self.pid, libc::SIGKILL);
    }

    fn reap(&self) {
        let _ = pidfd::wait(self.pidfd.get_ref().as_fd(), false);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Reaped already: the number may be somebody else's by now.
        if matches!(pidfd::wait(self.pidfd.get_ref().as_fd(), false), Ok(None)) {
            self.kill();
        }
    }
}
