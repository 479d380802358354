//! exec: a command in the container, its output's start, and its end within a time.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    time::{Instant, timeout_at},
};

use super::{HandlerError, OUTPUT};
use crate::{
    runtime::client::{ClientError, Exec, Supervisor},
    supervisor::spec::ExecSpec,
    sys::{process, stream},
};

/// How much longer than the command's own time the supervisor is waited for: it keeps that time, kills what is left and
/// waits for its end. Only a process that waits in the kernel needs more.
const SUPERVISOR: Duration = Duration::from_secs(30);

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecReply {
    /// 0-255, 128 + signal.
    pub exit_code: i32,
    /// Start of what it wrote to either stream, at most [`OUTPUT`] bytes, invalid UTF-8 replaced.
    pub output: String,
}

/// Runs `command` in `container` (which runs) and waits for its end. When its time is over, or nobody waits any more, it
/// is killed with all that it started.
///
/// # Errors
/// [`HandlerError::ExecTimeout`], [`HandlerError::Start`], [`HandlerError::Streams`], [`HandlerError::Supervisor`]. Any
/// exit code is Ok.
pub async fn exec(
    supervisor: &Supervisor,
    container: &str,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<ExecReply, HandlerError> {
    let spec = ExecSpec {
        container: container.to_owned(),
        args: command.to_vec(),
        bound: true,
        time_limit: timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        ..ExecSpec::default()
    };
    let failed = |source: ClientError| HandlerError::Supervisor { container: container.to_owned(), source };
    let (streams, output) = streams().map_err(HandlerError::Streams)?;
    let ended = async {
        let exec = match supervisor.exec(spec, streams).await {
            Ok(Ok(exec)) => exec,
            Ok(Err(error)) => return Err(HandlerError::Start(error)),
            Err(error) => return Err(failed(error)),
        };
        let mut guard = Guard { supervisor, exec: Some(exec) };
        let mut bytes = Vec::new();
        let end = guard.wait(&output, &mut bytes).await.map_err(failed)?;
        // What it wrote before its end is in the pipe; what others still write is not waited for.
        read(output.get_ref(), &mut bytes);
        if end.timed_out {
            let (command, within) = (command.join(" "), timeout.unwrap_or_default());
            return Err(HandlerError::ExecTimeout { command, within });
        }
        Ok(ExecReply { exit_code: end.exit_code, output: String::from_utf8_lossy(&bytes).into_owned() })
    };
    let Some(until) = timeout.and_then(|timeout| Instant::now().checked_add(timeout + SUPERVISOR)) else {
        return ended.await;
    };
    let late = || ClientError::Deadline { call: "run a command", after: timeout.unwrap_or_default() + SUPERVISOR };
    timeout_at(until, ended).await.unwrap_or_else(|_| Err(failed(late())))
}

/// /dev/null, and one pipe for both streams of output; the pipe's other end.
fn streams() -> io::Result<(Vec<OwnedFd>, AsyncFd<OwnedFd>)> {
    let null = OwnedFd::from(File::open("/dev/null")?);
    let (reader, writer) = process::pipe()?;
    stream::set_nonblocking(reader.as_fd())?;
    #[expect(deprecated, reason = "unsound for types that lie about their descriptor only: OwnedFd cannot")]
    let reader = AsyncFd::new(reader)?;
    Ok((vec![null, writer.try_clone()?, writer], reader))
}

/// Kills what nobody waits for any more.
struct Guard<'a> {
    supervisor: &'a Supervisor,
    exec: Option<Exec>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(exec) = self.exec.take() {
            let supervisor = self.supervisor.clone();
            tokio::spawn(async move { supervisor.exec_kill(exec.id).await });
        }
    }
}

impl Guard<'_> {
    async fn wait(
        &mut self,
        output: &AsyncFd<OwnedFd>,
        bytes: &mut Vec<u8>,
    ) -> Result<crate::runtime::client::ExecEnd, ClientError> {
        let Some(exec) = &mut self.exec else { return Err(ClientError::Gone) };
        let mut open = true;
        loop {
            // Both are cancel-safe: nothing is taken from the pipe before it is readable, and the end stays told.
            tokio::select! {
                biased;
                end = exec.wait() => {
                    self.exec = None;
                    return end;
                }
                ready = output.readable(), if open => match ready {
                    Ok(mut ready) => match read(output.get_ref(), bytes) {
                        Pipe::More => {}
                        Pipe::Empty => ready.clear_ready(),
                        Pipe::Ended => open = false,
                    },
                    Err(_) => open = false,
                },
            }
        }
    }
}

/// What is known of a pipe after reading from it.
enum Pipe {
    More,
    Empty,
    Ended,
}

/// Reads what there is, so that nobody waits to write it, and keeps the start.
fn read(pipe: &OwnedFd, bytes: &mut Vec<u8>) -> Pipe {
    let mut piece = Vec::with_capacity(4096);
    // A pipe holds 64 KiB: more comes from one who writes on while it is read, and has its turn later.
    for _ in 0..16 {
        piece.clear();
        match stream::read_spare(pipe.as_fd(), &mut piece) {
            Ok(0) => return Pipe::Ended,
            Ok(count) => bytes.extend_from_slice(&piece[..count.min(OUTPUT.saturating_sub(bytes.len()))]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Pipe::Empty,
            Err(_) => return Pipe::Ended,
        }
    }
    Pipe::More
}
