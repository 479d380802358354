//! One call of a runtime's command line (runc(8)): started, waited for within its time, and asked for its words if it
//! failed. A runtime that hangs is killed; it holds up nobody but its container.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    supervisor::{
        container::error::{Failure, Step, describe},
        spec::HandlerSpec,
    },
    sys::{
        epoll::{Epoll, Interest},
        exec::{self, Strings},
        pidfd::{self, Ended},
        process::{self, Child, clone_running},
        session, stream,
    },
};

/// For a runtime that was killed to be gone. One that hangs in the kernel is left behind.
const DYING: Duration = Duration::from_secs(2);

/// What is read of a runtime's log and of what it prints, bytes. Its last words say why it failed.
const WORDS: u64 = 8 * 1024;

/// Where a runtime finds the programs that it needs itself.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A runtime and the container that it is called for.
pub(super) struct Runtime<'a> {
    pub(super) handler: &'a HandlerSpec,
    pub(super) id: &'a str,
    /// Where it writes its log: each caller's own, as several may call at a time.
    pub(super) log: PathBuf,
}

/// The streams of a call.
pub(super) struct Streams<'a> {
    /// Standard input, output and error; with `create` and `exec` they become the container's.
    pub(super) standard: [BorrowedFd<'a>; 3],
    /// Non-blocking read end of the last one, for the words of a runtime that writes no log.
    pub(super) words: Option<BorrowedFd<'a>>,
}

/// A call.
pub(super) struct Call<'a> {
    /// `create`, `start`, …
    pub(super) verb: &'static str,
    /// Its options; the container's id follows.
    pub(super) options: Vec<OsString>,
    /// What follows the id.
    pub(super) operands: Vec<OsString>,
    pub(super) streams: Streams<'a>,
    /// The call is given up when this becomes readable.
    pub(super) given_up: Option<BorrowedFd<'a>>,
    /// Directory of the unified hierarchy that it is born in.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    pub(super) limit: Duration,
}

/// How the wait for a call ended.
enum Outcome {
    Ended(Ended),
    GivenUp,
    TimedOut,
}

impl Runtime<'_> {
    /// The longest that one call may take.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_millis(self.handler.time_limit)
    }

    /// Calls it and waits for its end.
    ///
    /// # Errors
    /// It could not be run, failed, or took too long. The step is `OCI runtime create failed` and the like, as upstream
    /// has it, the message is the runtime's own.
    pub(super) fn call(&self, call: &Call<'_>) -> Result<(), Failure> {
        let failed = |message: String| Failure::refused(format!("OCI runtime {} failed", call.verb), message);
        // What an earlier call had to say is not this one's.
        let _ = fs::remove_file(&self.log);
        let program = CString::new(self.handler.program.as_os_str().as_bytes());
        let program = program.map_err(|error| failed(error.to_string()))?;
        let arguments = self.arguments(call).map_err(|error| failed(error.to_string()))?;
        let environment = Strings::new([PATH].into_iter().filter_map(|text| CString::new(text).ok()).collect());
        let (failure, report) = process::pipe().step(|| "make a pipe")?;
        let child = clone_running(0, call.cgroup, || {
            let error = become_runtime(&program, (&arguments, &environment), call.streams.standard);
            // Somebody reads as long as there is the parent; the pipe closes when the program runs.
            let _ = nix::unistd::write(&report, &error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
            127
        })
        .step(|| "clone")?;
        drop(report);
        match wait(&child, call).step(|| format!("wait for {}", self.handler.program.display()))? {
            Outcome::Ended(Ended::Exited(0)) => Ok(()),
            Outcome::Ended(ended) => Err(failed(match exec_error(failure) {
                Some(error) => format!("exec {}: {}", self.handler.program.display(), describe(&error)),
                None => self.words(call).unwrap_or_else(|| {
                    let program = self.handler.program.display();
                    match ended {
                        Ended::Exited(code) => format!("{program} ended with code {code}"),
                        Ended::Signaled(signal) => format!("{program} was ended by signal {signal}"),
                    }
                }),
            })),
            Outcome::GivenUp => Err(failed("it was given up".to_owned())),
            Outcome::TimedOut => {
                let words = self.words(call).map_or_else(String::new, |words| format!(": {words}"));
                let program = self.handler.program.display();
                Err(failed(format!("{program} did not end within {:?} and was killed{words}", call.limit)))
            }
        }
    }

    fn arguments(&self, call: &Call<'_>) -> Result<Strings, std::ffi::NulError> {
        let handler = self.handler;
        let before: [&OsStr; 6] = [
            "--root".as_ref(),
            handler.state.as_os_str(),
            "--log".as_ref(),
            self.log.as_os_str(),
            "--log-format".as_ref(),
            "json".as_ref(),
        ];
        let all = std::iter::once(handler.program.as_os_str())
            .chain(handler.arguments.iter().map(OsStr::new))
            .chain(before)
            .chain([call.verb.as_ref()])
            .chain(call.options.iter().map(OsString::as_os_str))
            .chain([self.id.as_ref()])
            .chain(call.operands.iter().map(OsString::as_os_str));
        Ok(Strings::new(all.map(|argument| CString::new(argument.as_bytes())).collect::<Result<_, _>>()?))
    }

    /// Why it failed, in its own words: of its log, else of what it printed.
    fn words(&self, call: &Call<'_>) -> Option<String> {
        let logged = last_part(&self.log).as_deref().and_then(logged);
        logged.or_else(|| printed(call.streams.words?))
    }
}

/// Runs in the child. Returns what execve(2) said.
fn become_runtime(
    program: &CString,
    (arguments, environment): (&Strings, &Strings),
    standard: [BorrowedFd<'_>; 3],
) -> std::io::Error {
    let prepared = session::start()
        .and_then(|()| exec::set_standard_streams(standard))
        .and_then(|()| exec::close_others_on_exec());
    exec::reset_signals();
    match prepared {
        Ok(()) => exec::execve(program, arguments, environment),
        Err(error) => error,
    }
}

/// Waits until the child has ended and reaps it; one that must not go on is killed with its process group.
fn wait(child: &Child, call: &Call<'_>) -> std::io::Result<Outcome> {
    const CHILD: u64 = 0;
    const GIVEN_UP: u64 = 1;
    let epoll = Epoll::new()?;
    epoll.add(&child.pidfd, CHILD, Interest::Read)?;
    if let Some(given_up) = call.given_up {
        epoll.add(given_up, GIVEN_UP, Interest::Read)?;
    }
    let until = Instant::now() + call.limit;
    let mut ready = Vec::new();
    let outcome = loop {
        ready.clear();
        epoll.wait(Some(until.saturating_duration_since(Instant::now())), &mut ready)?;
        if ready.iter().any(|event| event.token == CHILD) {
            let exit = pidfd::wait(child.pidfd.as_fd(), true)?;
            return Ok(Outcome::Ended(exit.map_or(Ended::Signaled(libc::SIGKILL), |exit| exit.ended)));
        }
        if !ready.is_empty() {
            break Outcome::GivenUp;
        }
        if Instant::now() >= until {
            break Outcome::TimedOut;
        }
    };
    // Its number is its own until it is reaped. The group may not be there yet, if it has hardly begun.
    let _ = process::kill_group(child.pid, libc::SIGKILL);
    let _ = pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL);
    ready.clear();
    let epoll = Epoll::new()?;
    epoll.add(&child.pidfd, CHILD, Interest::Read)?;
    epoll.wait(Some(DYING), &mut ready)?;
    pidfd::wait(child.pidfd.as_fd(), false)?;
    Ok(outcome)
}

/// Why the program could not be executed, if that was the trouble.
fn exec_error(failure: OwnedFd) -> Option<std::io::Error> {
    let mut errno = [0; 4];
    // All writers are gone: this does not wait.
    File::from(failure).read_exact(&mut errno).ok()?;
    Some(std::io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
}

/// The end of a file.
fn last_part(path: &std::path::Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WORDS))).ok()?;
    let mut bytes = Vec::new();
    file.take(WORDS).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last error of a log, one JSON object a line (`--log-format json`); of a runtime that writes something else its
/// last line.
fn logged(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let message = |line: &&str| {
        let entry: Value = serde_json::from_str(line).ok()?;
        let level = entry.get("level").and_then(Value::as_str).unwrap_or("error");
        let text = entry.get("msg").and_then(Value::as_str)?.trim();
        matches!(level, "error" | "fatal" | "panic").then(|| text.to_owned())
    };
    let last = lines.last()?;
    let is_json = last.starts_with('{');
    lines.iter().rev().find_map(message).or_else(|| (!is_json).then(|| (*last).to_owned()))
}

/// What is in a pipe now, on one line.
fn printed(pipe: BorrowedFd<'_>) -> Option<String> {
    let mut bytes = Vec::with_capacity(WORDS as usize);
    while let Ok(1..) = stream::read_spare(pipe, &mut bytes) {}
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_counts() {
        let log = "{\"level\":\"warning\",\"msg\":\"lchown\",\"time\":\"x\"}\n\
                   {\"level\":\"error\",\"msg\":\"first\"}\n\
                   {\"level\":\"error\",\"msg\":\"runc create failed: unable to start\\n\"}\n\
                   {\"level\":\"debug\",\"msg\":\"cleaning up\"}\n";
        assert_eq!(logged(log).as_deref(), Some("runc create failed: unable to start"));
        assert_eq!(logged("{\"level\":\"warning\",\"msg\":\"only that\"}\n"), None);
        assert_eq!(logged("half a line\",\"time\":1}\nno such device\n\n").as_deref(), Some("no such device"));
        assert_eq!(logged("\n"), None);
    }

    #[test]
    fn what_was_printed_becomes_one_line() {
        let (reader, writer) = process::pipe().unwrap();
        stream::set_nonblocking(reader.as_fd()).unwrap();
        assert_eq!(printed(reader.as_fd()), None);
        nix::unistd::write(&writer, b"usage:\n  runtime COMMAND\n\n").unwrap();
        assert_eq!(printed(reader.as_fd()).as_deref(), Some("usage:; runtime COMMAND"));
    }
}
