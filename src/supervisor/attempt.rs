//! One attempt at a container, from the request to the exit record.
//!
//! An attempt goes through [`Phase`] in one direction only. Nothing here waits: a child that hangs in its set-up (on a
//! dead network file system, say) holds up nobody but itself, and can be killed like any other.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    container::{self, ChildStdio, LaunchContext, Spawned, StatusOutcome},
    handler::{Conductor, Word},
    kill,
    log::{LogFile, Stream, now},
    protocol::RunningContainer,
    record,
    spec::{CgroupPlacement, ExitRecord, LaunchSpec, PidMode, StartError, VERSION},
};
use crate::{
    store::{
        durable::{self, StoreError},
        layout::AttemptDirs,
    },
    sys::{
        pidfd::{self, Ended},
        process, seqpacket, stream,
    },
};

/// How long output is waited for after the container's first process has ended, when something that outlived it keeps a
/// pipe open. Whatever is in the pipes at that moment is still read.
const DRAIN: Duration = Duration::from_secs(2);

/// How soon an exit record that could not be written is tried again: the disk is full, and somebody has to act.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// The longest set-up report that is read.
const MAX_STATUS: usize = 64 * 1024;

/// Bytes asked for at once from a container's output; with a held-back partial line before them they fill the scratch
/// buffer that all attempts share.
pub const SCRATCH: usize = super::log::CONTENT_LIMIT + READ;
const READ: usize = 16 * 1024;

/// Reads per wake-up and stream, so that one chatty container does not starve the others: the poll is level-triggered
/// and comes back. 64 of them empty any pipe that was not made larger on purpose.
const READS_PER_WAKE: usize = 4;
const READS_TO_DRAIN: usize = 64;

/// Where an attempt stands.
#[derive(Debug)]
pub enum Phase {
    /// The child sets itself up. Its report says how that went; its end without a report is a failure, too.
    Starting(Status),
    /// A runtime makes it: its conductor says how that goes.
    Conducted {
        /// How the first process ended, and when, if that was seen before the word that it was started.
        ended: Option<(Ended, i64)>,
    },
    /// Set-up has failed and the child is about to end. Its end makes the record.
    Failed(StartError),
    /// exec has succeeded.
    Running,
    /// The first process has ended; output is read to its end, at most until the deadline.
    Draining {
        /// How it ended.
        ended: Ended,
        /// When it was reaped, Unix nanoseconds.
        finished_at: i64,
        /// When to stop waiting.
        deadline: Instant,
    },
    /// All is known, but the record could not be written: nothing is announced before it is.
    Unrecorded {
        /// What is to be written.
        record: ExitRecord,
        /// When to try again.
        retry_at: Instant,
    },
}

/// The report of a child's set-up, as far as it has arrived.
#[derive(Debug)]
pub struct Status {
    pipe: OwnedFd,
    bytes: Vec<u8>,
    console_socket: Option<OwnedFd>,
}

/// What set-up came to.
pub struct SetUp {
    /// Stages, in microseconds since the request.
    pub stages: Vec<(String, u64)>,
    /// uid, gid and supplementary groups.
    pub user: (u32, u32, Vec<u32>),
    /// What could not be done, and was not worth failing for.
    pub warnings: Vec<String>,
    /// Master of the process's terminal.
    pub console: Option<OwnedFd>,
}

impl Status {
    /// Takes the reporting side of a new process.
    ///
    /// # Errors
    /// None in practice.
    pub fn new(pipe: OwnedFd, console_socket: Option<OwnedFd>) -> io::Result<Status> {
        stream::set_nonblocking(pipe.as_fd())?;
        Ok(Status { pipe, bytes: Vec::new(), console_socket })
    }

    /// The descriptor to watch.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads on; true at the end of the report.
    pub fn read(&mut self) -> bool {
        loop {
            self.bytes.reserve(512);
            match stream::read_spare(self.pipe.as_fd(), &mut self.bytes) {
                Ok(0) => return true,
                Ok(_) if self.bytes.len() > MAX_STATUS => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    /// Understands a report that has ended.
    ///
    /// # Errors
    /// What the child reported, or that it died before it could.
    pub fn finish(self) -> Result<SetUp, StartError> {
        let (stages, user, warnings) = match container::decode_status(&self.bytes) {
            StatusOutcome::Started { stages, user, warnings } => (stages, user, warnings),
            StatusOutcome::Failed(error) => return Err(error),
            StatusOutcome::Died => {
                return Err(StartError {
                    step: "set up the process".into(),
                    errno: 0,
                    message: "it was killed before it could execute its program".into(),
                    reason: "StartError".into(),
                });
            }
        };
        // The child sends it before it executes the program, so it is here by now.
        let console = self.console_socket.map(|socket| match seqpacket::receive(socket.as_fd(), 16) {
            Ok(Some(packet)) => packet.descriptors.into_iter().next(),
            Ok(None) | Err(_) => None,
        });
        let console = match console {
            Some(None) => return Err(start_error("receive the terminal", &io::ErrorKind::BrokenPipe.into())),
            Some(Some(console)) => Some(console),
            None => None,
        };
        Ok(SetUp { stages, user, warnings, console })
    }
}

/// A stream of output and the beginning of a line that has not ended yet.
#[derive(Debug)]
struct Output {
    source: OwnedFd,
    partial: Vec<u8>,
}

/// An attempt that has not been recorded as ended.
#[derive(Debug)]
pub struct Attempt {
    /// Its directory, with the launch record.
    pub directory: PathBuf,
    /// Container name.
    pub container: String,
    /// Attempt number.
    pub attempt: u32,
    id: String,
    cgroup: CgroupPlacement,
    /// Its processes die with the first one, by the kernel's hand.
    private_pid: bool,
    /// A terminal was asked for.
    pub terminal: bool,
    /// Standard input ends with the first attachment.
    pub stdin_once: bool,
    keep_stdin: bool,
    /// First process. (Of a container that a runtime makes, its conductor until that process is there.)
    pub pid: i32,
    pidfd: OwnedFd,
    /// Who calls the runtime that makes the container, if one does.
    pub conductor: Option<Box<Conductor>>,
    /// Where the word to go is written, while the program is held.
    gate: Option<OwnedFd>,
    /// Where it stands.
    pub phase: Phase,
    log: LogFile,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// Write end of standard input (or the terminal), non-blocking.
    pub stdin: Option<OwnedFd>,
    oom_kills_before: u64,
    started_at: i64,
    stages: Vec<(String, u64)>,
    /// uid, gid and supplementary groups of the program.
    pub user: (u32, u32, Vec<u32>),
    /// Requests (connection, id) to answer when the start has succeeded or failed.
    pub waiting: Vec<(u64, u64)>,
    /// From the set-up of its process.
    warnings: Vec<String>,
    /// Latest trouble at its end.
    end_warning: Option<String>,
}

/// What happened to an attempt, for the others to hear.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to tell yet.
    Nothing,
    /// exec has succeeded.
    Started,
    /// It could not be started; the record is on disk.
    StartFailed(StartError),
    /// It has ended; the record is on disk.
    Ended,
}

/// Reads the launch record in `directory`.
///
/// # Errors
/// In words: there is none, or it cannot be understood.
pub fn read_launch(directory: &Path) -> Result<LaunchSpec, String> {
    let path = AttemptDirs::at(directory).launch_file();
    match durable::read_json::<LaunchSpec>(&path) {
        Ok(Some(launch)) if launch.version == VERSION => Ok(launch),
        Ok(Some(launch)) => Err(format!("{}: version {}", path.display(), launch.version)),
        Ok(None) => Err(format!("{}: no such file", path.display())),
        Err(error @ (StoreError::Io { .. } | StoreError::Decode { .. })) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Err(format!("{error}: {cause}"))
        }
    }
}

/// Whether the attempt in `directory` has an exit record.
pub fn has_ended(directory: &Path) -> bool {
    AttemptDirs::at(directory).exit_file().exists()
}

impl Attempt {
    /// Starts the child.
    ///
    /// # Errors
    /// The step that failed; there is no process then, and no record yet.
    pub fn launch(
        directory: &Path,
        launch: LaunchSpec,
        context: &LaunchContext<'_>,
        hold: bool,
    ) -> Result<Attempt, StartError> {
        let log = LogFile::open(&launch.log)
            .map_err(|error| start_error(&format!("open the log {}", launch.log.path.display()), &error))?;
        let oom_kills_before = record::oom_kills(&launch.cgroup);
        let streams = |error: io::Error| start_error("make the standard streams", &error);
        let (stdio, stdin, outputs) = if launch.stdio.tty {
            (ChildStdio::Terminal, None, None)
        } else {
            let (stdin, writer) = standard_input(launch.stdio.stdin).map_err(streams)?;
            let (out_reader, stdout) = reading_pipe().map_err(streams)?;
            let (error_reader, stderr) = reading_pipe().map_err(streams)?;
            (ChildStdio::Pipes { stdin, stdout, stderr }, writer, Some((out_reader, error_reader)))
        };
        if launch.handler.is_some() {
            return Attempt::conduct(
                directory,
                launch,
                context,
                hold,
                (log, oom_kills_before),
                (stdio, stdin, outputs),
            );
        }
        let gate =
            if hold { Some(process::pipe().map_err(|error| start_error("make the gate", &error))?) } else { None };
        let context = LaunchContext { gate: gate.as_ref().map(|(reader, _)| reader.as_fd()), ..*context };
        let Spawned { pid, pidfd, status, console_socket } = container::spawn(&launch, stdio, &context)?;
        let status = Status::new(status, console_socket).map_err(streams)?;
        let (stdout, stderr) = outputs.unzip();
        let output = |source| Output { source, partial: Vec::new() };
        Ok(Attempt {
            directory: directory.to_owned(),
            container: launch.container,
            attempt: launch.attempt,
            id: launch.id,
            cgroup: launch.cgroup,
            private_pid: launch.pid == PidMode::Container,
            terminal: launch.stdio.tty,
            stdin_once: launch.stdio.stdin_once,
            keep_stdin: launch.stdio.stdin,
            pid,
            pidfd,
            conductor: None,
            gate: gate.map(|(_, writer)| writer),
            phase: Phase::Starting(status),
            log,
            stdout: stdout.map(output),
            stderr: stderr.map(output),
            stdin,
            oom_kills_before,
            started_at: 0,
            stages: Vec::new(),
            user: Default::default(),
            waiting: Vec::new(),
            warnings: Vec::new(),
            end_warning: None,
        })
    }

    /// Starts the conductor of an attempt that a runtime makes.
    fn conduct(
        directory: &Path,
        launch: LaunchSpec,
        context: &LaunchContext<'_>,
        hold: bool,
        (log, oom_kills_before): (LogFile, u64),
        (stdio, stdin, outputs): (ChildStdio, Option<OwnedFd>, Option<(OwnedFd, OwnedFd)>),
    ) -> Result<Attempt, StartError> {
        let words = outputs.as_ref().map(|(_, error_reader)| error_reader.as_fd());
        let (conductor, pidfd) = Conductor::start(&launch, stdio, words, context, hold)?;
        let (stdout, stderr) = outputs.unzip();
        let output = |source| Output { source, partial: Vec::new() };
        Ok(Attempt {
            directory: directory.to_owned(),
            container: launch.container,
            attempt: launch.attempt,
            id: launch.id,
            cgroup: launch.cgroup,
            private_pid: launch.pid == PidMode::Container,
            terminal: launch.stdio.tty,
            stdin_once: launch.stdio.stdin_once,
            keep_stdin: launch.stdio.stdin,
            pid: conductor.pid,
            pidfd,
            conductor: Some(Box::new(conductor)),
            gate: None,
            phase: Phase::Conducted { ended: None },
            log,
            stdout: stdout.map(output),
            stderr: stderr.map(output),
            stdin,
            oom_kills_before,
            started_at: 0,
            stages: Vec::new(),
            user: Default::default(),
            waiting: Vec::new(),
            warnings: Vec::new(),
            end_warning: None,
        })
    }

    /// Takes in a word of the conductor's, and what came with it. `parent` is this process.
    pub fn heard(&mut self, word: Word, descriptor: Option<OwnedFd>, parent: i32) -> Outcome {
        let Phase::Conducted { ended } = self.phase else { return Outcome::Nothing };
        match word {
            Word::Created { pid } => {
                if let Err(error) = self.take_over(pid, descriptor, parent) {
                    if let Some(conductor) = &self.conductor {
                        conductor.give_up();
                    }
                    self.phase = Phase::Failed(error);
                }
                Outcome::Nothing
            }
            Word::Started { stages, user, warnings } => {
                self.phase = Phase::Running;
                (self.stages, self.user, self.warnings) = (stages, user, warnings);
                self.started_at = ended.map_or_else(now, |(_, at)| at.min(now()));
                if let Some((ended, finished_at)) = ended {
                    self.drain(ended, finished_at);
                }
                Outcome::Started
            }
            Word::Failed(error) => {
                self.phase = Phase::Failed(error);
                Outcome::Nothing
            }
            Word::Done { .. } => Outcome::Nothing,
        }
    }

    /// Takes over the first process that the runtime has made: a child of ours since the runtime has ended.
    fn take_over(&mut self, pid: i32, console: Option<OwnedFd>, parent: i32) -> Result<(), StartError> {
        let failed = |error: io::Error| start_error("take over the container's first process", &error);
        let pidfd = pidfd::open(pid).map_err(failed)?;
        // Looked at after the descriptor was opened: as a child that was not reaped it is no other process.
        if process::parent(pid).map_err(failed)? != parent {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        (self.pid, self.pidfd) = (pid, pidfd);
        self.adopt_console(console)?;
        if let Some(conductor) = &mut self.conductor {
            conductor.adopted();
        }
        Ok(())
    }

    /// The conductor has ended. One that has not said that the container runs has failed.
    pub fn conductor_ended(&mut self) -> Outcome {
        self.conductor = None;
        let error = match &self.phase {
            Phase::Failed(error) => error.clone(),
            Phase::Conducted { .. } => StartError {
                step: "make the container".to_owned(),
                errno: 0,
                message: "the process that calls its runtime was killed".to_owned(),
                reason: "StartError".to_owned(),
            },
            _ => {
                self.warnings.push("the process that calls its runtime has ended".to_owned());
                return Outcome::Nothing;
            }
        };
        // Whatever the runtime has made of it by now.
        self.kill();
        self.record(record::of_failure(&self.id, now(), error))
    }

    /// Lets a held program go. Repeated, and for one that was not held, it does nothing.
    pub fn release(&mut self) {
        if let Some(gate) = self.gate.take() {
            // Fails only when the process has ended, which is told elsewhere.
            let _ = File::from(gate).write_all(&[1]);
        }
        if let Some(conductor) = &mut self.conductor {
            conductor.release();
        }
    }

    /// exec has succeeded, and the end is not on record yet.
    pub fn has_run(&self) -> bool {
        match &self.phase {
            Phase::Starting(_) | Phase::Conducted { .. } | Phase::Failed(_) => false,
            Phase::Running | Phase::Draining { .. } => true,
            Phase::Unrecorded { record, .. } => record.start_error.is_none(),
        }
    }

    /// Its program runs, as far as is known.
    pub fn runs(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Its first process, while it exists.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The descriptor of a stream of output that has not ended.
    pub fn output(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        let output = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        output.as_ref().map(|output| output.source.as_fd())
    }

    /// As the agent is told of it.
    pub fn describe(&self) -> RunningContainer {
        RunningContainer {
            container: self.container.clone(),
            attempt: self.attempt,
            id: self.id.clone(),
            pid: self.pid,
            started_at: self.started_at,
            stages: self.stages.clone(),
            user: self.user.clone(),
        }
    }

    /// What the agent should know of things that did not work.
    pub fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        let all = self.warnings.iter().chain(&self.end_warning).cloned().chain(self.log.warning());
        all.map(|warning| format!("{}: {warning}", self.container))
    }

    /// Reads the set-up report. On success the program runs: its terminal, if it has one, is watched by the caller from
    /// now on. On failure the child is on its way out, and its end is the end of the attempt.
    pub fn read_status(&mut self) -> Outcome {
        let Phase::Starting(status) = &mut self.phase else { return Outcome::Nothing };
        if !status.read() {
            return Outcome::Nothing;
        }
        self.finish_status()
    }

    fn finish_status(&mut self) -> Outcome {
        let Phase::Starting(status) = std::mem::replace(&mut self.phase, Phase::Running) else {
            return Outcome::Nothing;
        };
        match status.finish().and_then(|set_up| self.adopt(set_up)) {
            Ok(()) => Outcome::Started,
            Err(error) => {
                // It ends by itself after a failure; where it did not report one (a report we could not read), it must.
                self.kill();
                self.phase = Phase::Failed(error);
                Outcome::Nothing
            }
        }
    }

    fn adopt(&mut self, set_up: SetUp) -> Result<(), StartError> {
        self.started_at = now();
        self.stages = set_up.stages;
        self.user = set_up.user;
        self.warnings = set_up.warnings;
        self.adopt_console(set_up.console)
    }

    fn adopt_console(&mut self, console: Option<OwnedFd>) -> Result<(), StartError> {
        if let Some(console) = console {
            let adopt = || {
                stream::set_nonblocking(console.as_fd())?;
                if self.keep_stdin { console.try_clone().map(Some) } else { Ok(None) }
            };
            self.stdin = adopt().map_err(|error: io::Error| start_error("take over the terminal", &error))?;
            self.stdout = Some(Output { source: console, partial: Vec::new() });
        }
        Ok(())
    }

    /// Reads output into the log and hands each piece to `copy`. True when the stream has ended, or had before; its
    /// descriptor is kept until [`Attempt::close`], so that the caller can stop watching it first.
    pub fn pump(&mut self, stream: Stream, scratch: &mut Vec<u8>, copy: &mut dyn FnMut(&[u8])) -> bool {
        let reads = if matches!(self.phase, Phase::Draining { .. }) { READS_TO_DRAIN } else { READS_PER_WAKE };
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(output) = output else { return true };
        for _ in 0..reads {
            scratch.clear();
            scratch.extend_from_slice(&output.partial);
            let held = scratch.len();
            let ended = match stream::read_spare(output.source.as_fd(), scratch) {
                Ok(count) => count == 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // The master of a terminal ends with EIO.
                Err(_) => true,
            };
            copy(&scratch[held..]);
            let done = self.log.append(stream, now(), scratch, ended);
            if done == scratch.len() {
                output.partial = Vec::new();
            } else {
                output.partial.clear();
                output.partial.extend_from_slice(&scratch[done..]);
            }
            if ended {
                return true;
            }
        }
        false
    }

    /// Gives up a stream of output, after its end or after the deadline for it.
    pub fn close(&mut self, stream: Stream) {
        let output = match stream {
            Stream::Stdout => self.stdout.take(),
            Stream::Stderr => self.stderr.take(),
        };
        if let Some(output) = output {
            self.log.append(stream, now(), &output.partial, true);
        }
    }

    /// The first process has been reaped.
    pub fn process_ended(&mut self, ended: Ended) -> Outcome {
        let mut outcome = Outcome::Nothing;
        if let Phase::Starting(status) = &mut self.phase {
            // The report may be complete and not read yet: a short-lived program has started all the same.
            status.read();
            outcome = self.finish_status();
        }
        if let Phase::Conducted { ended: seen } = &mut self.phase {
            // Either its program was short, or it never ran: the conductor is about to say which.
            *seen = Some((ended, now()));
            return Outcome::Nothing;
        }
        if let Phase::Failed(error) = &self.phase {
            if self.conductor.is_some() {
                // Whose end is the end of the attempt.
                return Outcome::Nothing;
            }
            let error = error.clone();
            return self.record(record::of_failure(&self.id, now(), error));
        }
        self.drain(ended, now());
        outcome
    }

    fn drain(&mut self, ended: Ended, finished_at: i64) {
        if !self.private_pid {
            // In a shared PID namespace nothing else takes the rest of the container along.
            self.kill();
        }
        self.phase = Phase::Draining { ended, finished_at, deadline: Instant::now() + DRAIN };
    }

    /// Writes the exit record if all is known by now: the process reaped, and its output read to the end (or `waited`
    /// for long enough).
    pub fn settle(&mut self, waited: bool) -> Outcome {
        let record = match &self.phase {
            Phase::Draining { ended, finished_at, .. }
                if waited || (self.stdout.is_none() && self.stderr.is_none()) =>
            {
                ExitRecord {
                    version: VERSION,
                    id: self.id.clone(),
                    exit_code: ended.code(),
                    signal: ended.signal(),
                    oom_killed: record::oom_kills(&self.cgroup) > self.oom_kills_before,
                    started_at: self.started_at,
                    finished_at: *finished_at,
                    start_error: None,
                    user: Some(self.user.clone()),
                }
            }
            Phase::Unrecorded { record, .. } if waited => record.clone(),
            _ => return Outcome::Nothing,
        };
        self.close(Stream::Stdout);
        self.close(Stream::Stderr);
        // The record says that the log is complete. A log that cannot be synced is told of, and no reason to hide the end.
        if let Err(error) = self.log.sync() {
            self.end_warning = Some(format!("sync the log: {error}, ignoring"));
        }
        self.record(record)
    }

    fn record(&mut self, record: ExitRecord) -> Outcome {
        match record::write(&self.directory, &record) {
            Ok(()) => match record.start_error {
                Some(error) => Outcome::StartFailed(error),
                None => Outcome::Ended,
            },
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                self.end_warning = Some(format!("{error}: {cause}; trying again"));
                self.phase = Phase::Unrecorded { record, retry_at: Instant::now() + RECORD_RETRY };
                Outcome::Nothing
            }
        }
    }

    /// When [`Attempt::settle`] is due although nothing happened.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Draining { deadline, .. } => Some(deadline),
            Phase::Unrecorded { retry_at, .. } => Some(retry_at),
            Phase::Starting(_) | Phase::Conducted { .. } | Phase::Failed(_) | Phase::Running => None,
        }
    }

    /// Signals the first process. One that has ended is no error.
    ///
    /// # Errors
    /// EINVAL for a number that is no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match pidfd::send_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// SIGKILL for everything in its cgroup, and for the first process even if it has not got there yet.
    pub fn kill(&mut self) {
        if let Err(error) = kill::everything_in(&self.cgroup) {
            self.end_warning = Some(format!("kill the cgroup: {error}, ignoring"));
        }
        if let (Some(conductor), false) = (&self.conductor, self.has_run()) {
            conductor.give_up();
            if !conductor.has_adopted() {
                // The process is the conductor, which has to tidy up.
                return;
            }
        }
        let _ = self.signal(libc::SIGKILL);
    }
}

/// A start error of the supervisor's own making.
pub fn start_error(step: &str, error: &io::Error) -> StartError {
    StartError {
        step: step.to_owned(),
        errno: error.raw_os_error().unwrap_or(0),
        message: error.to_string(),
        reason: "CreateContainerError".to_owned(),
    }
}

/// Records an attempt that failed before there was a process.
///
/// # Errors
/// The record could not be written.
pub fn record_failure(directory: &Path, id: &str, error: &StartError) -> Result<(), StoreError> {
    record::write(directory, &record::of_failure(id, now(), error.clone()))
}

/// The container's end of standard input, and ours if it is to be kept open.
fn standard_input(keep: bool) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    if !keep {
        return Ok((File::open("/dev/null")?.into(), None));
    }
    let (reader, writer) = process::pipe()?;
    stream::set_nonblocking(writer.as_fd())?;
    Ok((reader, Some(writer)))
}

/// A pipe whose read end does not block.
fn reading_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = process::pipe()?;
    stream::set_nonblocking(reader.as_fd())?;
    Ok((reader, writer))
}

/// Whether `directory` can hold records: it exists and is a directory.
pub fn is_attempt_directory(directory: &Path) -> bool {
    directory.is_absolute() && fs::metadata(directory).is_ok_and(|metadata| metadata.is_dir())
}
