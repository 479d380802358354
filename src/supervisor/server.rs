//! The one loop: what is ready, what was asked, who ended. It waits in exactly one place, and without a deadline unless
//! an ended container's output is being drained.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    attach::{Attachment, Fed, Written},
    attempt::{self, Attempt, Outcome, Phase, SCRATCH},
    connection::{Broken, Connection},
    container::LaunchContext,
    exec::Exec,
    log::Stream,
    protocol::{Answer, Call, Message, Request, Snapshot},
    sandbox::Sandbox,
    spec::{ExecSpec, LaunchSpec, PidMode, StartError, VERSION},
    token::Token,
};
use crate::sys::{
    epoll::{Epoll, Interest, Ready},
    pidfd::{self, Exit},
    process, seqpacket, signal,
    terminal::{self, Size},
};

/// How long Shutdown waits for the killed to end before it says that they do not.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Requests taken from one connection before the others get a turn.
const REQUESTS_PER_WAKE: usize = 16;

/// The supervisor at work.
pub struct Server {
    epoll: Epoll,
    listener: OwnedFd,
    signals: OwnedFd,
    sandbox: Sandbox,
    pid_namespace: File,
    pid: i32,
    start_time: u64,
    connections: BTreeMap<u64, Connection>,
    attempts: BTreeMap<u64, Attempt>,
    execs: BTreeMap<u64, Exec>,
    attachments: BTreeMap<u64, Attachment>,
    next: u64,
    scratch: Vec<u8>,
    /// Set once the end has been asked for: who asked (connection, id), and until when they are kept waiting.
    shutdown: Option<(Vec<(u64, u64)>, Instant)>,
    finished: bool,
}

impl Server {
    /// Serves `listener` for the sandbox that this process has become. `signals` reports SIGCHLD.
    ///
    /// # Errors
    /// epoll(7) or /proc fail.
    pub fn new(listener: OwnedFd, signals: OwnedFd, sandbox: Sandbox) -> io::Result<Server> {
        let epoll = Epoll::new()?;
        epoll.add(&listener, Token::Listener.encode(), Interest::Read)?;
        epoll.add(&signals, Token::Signals.encode(), Interest::Read)?;
        let pid = std::process::id() as i32;
        Ok(Server {
            epoll,
            listener,
            signals,
            sandbox,
            pid_namespace: File::open("/proc/self/ns/pid")?,
            pid,
            start_time: process::start_time(pid)?,
            connections: BTreeMap::new(),
            attempts: BTreeMap::new(),
            execs: BTreeMap::new(),
            attachments: BTreeMap::new(),
            next: 1,
            scratch: Vec::with_capacity(SCRATCH),
            shutdown: None,
            finished: false,
        })
    }

    /// Serves until Shutdown is done, or the sandbox has lost its process 1 and the containers with it.
    ///
    /// # Errors
    /// epoll(7) fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while !self.finished {
            let timeout = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            self.epoll.wait(timeout, &mut ready)?;
            for event in ready.drain(..) {
                if let Some(token) = Token::decode(event.token) {
                    self.handle(token, event);
                }
            }
            self.pass_deadlines();
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn handle(&mut self, token: Token, event: Ready) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.reap(),
            Token::Connection(number) => self.serve(number, event),
            Token::AttemptStatus(number) => self.attempt_status(number),
            Token::Stdout(number) => self.pump(number, Stream::Stdout),
            Token::Stderr(number) => self.pump(number, Stream::Stderr),
            Token::Stdin(number) => self.stdin_has_room(number),
            Token::ExecStatus(number) => self.exec_status(number),
            Token::AttachInput(number) => self.attach_input(number),
            Token::AttachStdout(number) => self.attach_output(number, Stream::Stdout, event),
            Token::AttachStderr(number) => self.attach_output(number, Stream::Stderr, event),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let shutdown = self.shutdown.as_ref().filter(|(waiting, _)| !waiting.is_empty()).map(|(_, at)| *at);
        self.attempts.values().filter_map(Attempt::deadline).chain(shutdown).min()
    }

    fn pass_deadlines(&mut self) {
        let Some(deadline) = self.next_deadline() else { return };
        let now = Instant::now();
        if deadline > now {
            return;
        }
        let due = self.attempts.iter().filter(|(_, attempt)| attempt.deadline().is_some_and(|at| at <= now));
        for number in due.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.pump(number, Stream::Stdout);
            self.pump(number, Stream::Stderr);
            self.settle(number, true);
        }
        self.give_up_shutdown(now);
    }

    // Connections.

    fn accept(&mut self) {
        while let Ok(Some(socket)) = seqpacket::accept(self.listener.as_fd()) {
            // The directory keeps others out already; whoever may open it need not be one who may command.
            if !seqpacket::peer_user(&socket).is_ok_and(|user| user == nix::unistd::geteuid().as_raw()) {
                continue;
            }
            let number = self.number();
            if self.epoll.add(&socket, Token::Connection(number).encode(), Interest::Read).is_ok() {
                self.connections.insert(number, Connection::new(socket));
            }
        }
    }

    fn serve(&mut self, number: u64, event: Ready) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if event.writable && connection.flush().is_err() {
            return self.drop_connection(number);
        }
        if event.readable {
            for _ in 0..REQUESTS_PER_WAKE {
                let Some(connection) = self.connections.get(&number) else { return };
                match connection.receive() {
                    Ok(Some((request, descriptors))) => self.request(number, request, descriptors),
                    Ok(None) => break,
                    Err(Broken) => return self.drop_connection(number),
                }
            }
        }
        self.watch_connection(number);
    }

    fn watch_connection(&mut self, number: u64) {
        if let Some(connection) = self.connections.get(&number) {
            let token = Token::Connection(number).encode();
            let _ = self.epoll.change(connection.descriptor(), token, connection.interest());
        }
    }

    /// Containers and execs go on: a restarted agent connects again.
    fn drop_connection(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.epoll.remove(connection.descriptor());
        }
    }

    fn send(&mut self, number: u64, message: &Message, descriptor: Option<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        match connection.send(message, descriptor) {
            Ok(()) => self.watch_connection(number),
            Err(Broken) => self.drop_connection(number),
        }
    }

    fn reply(&mut self, (connection, id): (u64, u64), answer: Answer) {
        self.send(connection, &Message::Reply { id, answer }, None);
    }

    fn broadcast(&mut self, message: &Message) {
        let greeted = self.connections.iter().filter(|(_, connection)| connection.greeted);
        for number in greeted.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.send(number, message, None);
        }
    }

    // Requests.

    fn request(&mut self, connection: u64, request: Request, descriptors: Vec<OwnedFd>) {
        let from = (connection, request.id);
        match request.call {
            Call::Hello { version } => self.hello(from, version),
            Call::Start { dir } => self.start(from, dir),
            Call::Signal { container, signal } => {
                let result = self.running(&container).map_or(Ok(()), |attempt| attempt.signal(signal));
                self.reply(from, of_result(result));
            }
            Call::Kill { container } => {
                if let Some(attempt) = self.attempts.values_mut().find(|attempt| attempt.container == container) {
                    attempt.kill();
                }
                self.reply(from, Answer::Ok);
            }
            Call::Exec(spec) => self.exec(from, &spec, descriptors),
            Call::ExecKill { exec } => {
                if let Some(exec) = self.execs.get(&exec) {
                    exec.kill();
                }
                self.reply(from, Answer::Ok);
            }
            Call::Attach { container } => self.attach(from, &container, descriptors),
            Call::Resize { container, rows, cols } => {
                let result = match self.running(&container) {
                    Some(attempt) if attempt.terminal => match attempt.output(Stream::Stdout) {
                        Some(console) => terminal::set_size(console, Size { rows, columns: cols }),
                        None => Ok(()),
                    },
                    Some(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "the container has no terminal")),
                    None => Err(io::Error::new(io::ErrorKind::NotFound, "the container does not run")),
                };
                self.reply(from, of_result(result));
            }
            Call::Shutdown => self.shut_down(from),
        }
    }

    fn hello(&mut self, from: (u64, u64), version: u32) {
        if version + 1 < VERSION {
            let message = format!("the agent speaks version {version}, the supervisor {VERSION}");
            return self.reply(from, Answer::Error { message });
        }
        if let Some(connection) = self.connections.get_mut(&from.0) {
            connection.greeted = true;
        }
        let mut warnings = self.sandbox.warnings.clone();
        warnings.extend(self.attempts.values().flat_map(Attempt::warnings));
        let running = self.attempts.values().filter(|attempt| attempt.has_run());
        let snapshot = Snapshot {
            version: VERSION,
            pid: self.pid,
            start_time: self.start_time,
            running: running.map(Attempt::describe).collect(),
            warnings,
        };
        let netlink = self.sandbox.netlink.as_ref().and_then(|socket| socket.try_clone().ok());
        self.send(from.0, &Message::Reply { id: from.1, answer: Answer::Hello(snapshot) }, netlink);
    }

    /// The attempt of `container` whose program runs.
    fn running(&self, container: &str) -> Option<&Attempt> {
        self.attempts.values().find(|attempt| attempt.container == container)
    }

    fn start(&mut self, from: (u64, u64), directory: PathBuf) {
        let received = Instant::now();
        if let Some(attempt) = self.attempts.values_mut().find(|attempt| attempt.directory == directory) {
            if !attempt.has_run() {
                return attempt.waiting.push(from);
            }
            let answer = Answer::Started(attempt.describe());
            return self.reply(from, answer);
        }
        if let Err(answer) = self.launch(from, directory, received) {
            self.reply(from, answer);
        }
    }

    /// Starts an attempt that is not known yet; its answer comes later unless it is returned as an error.
    fn launch(&mut self, from: (u64, u64), directory: PathBuf, received: Instant) -> Result<(), Answer> {
        let refuse = |message: String| Answer::Error { message };
        if !attempt::is_attempt_directory(&directory) {
            return Err(refuse(format!("{}: no such directory", directory.display())));
        }
        if attempt::has_ended(&directory) {
            return Err(Answer::Ended);
        }
        if self.shutdown.is_some() {
            return Err(refuse("the sandbox is being shut down".to_owned()));
        }
        let launch = attempt::read_launch(&directory).map_err(refuse)?;
        if let Some(other) = self.running(&launch.container) {
            return Err(refuse(format!("attempt {} of {} has not ended", other.attempt, launch.container)));
        }
        let id = launch.id.clone();
        let launched =
            self.context(&launch, received).and_then(|context| Attempt::launch(&directory, launch, &context));
        match launched {
            Ok(mut attempt) => {
                attempt.waiting.push(from);
                let number = self.number();
                self.watch_attempt(number, &attempt);
                self.attempts.insert(number, attempt);
                Ok(())
            }
            Err(error) => match attempt::record_failure(&directory, &id, &error) {
                Ok(()) => Err(Answer::StartFailed(error)),
                Err(store) => Err(refuse(format!("{}: {}; and {store}", error.step, error.message))),
            },
        }
    }

    fn context(&self, launch: &LaunchSpec, received: Instant) -> Result<LaunchContext<'_>, StartError> {
        let target = match &launch.pid {
            PidMode::Target(container) => {
                let gone = || io::Error::new(io::ErrorKind::NotFound, "it does not run");
                let step = || format!("join the PID namespace of {container}");
                let target = self.running(container).ok_or_else(|| attempt::start_error(&step(), &gone()))?;
                Some(target.pidfd())
            }
            PidMode::Container | PidMode::Pod | PidMode::Host => None,
        };
        Ok(LaunchContext { target, ..self.base_context(received) })
    }

    fn base_context(&self, received: Instant) -> LaunchContext<'_> {
        LaunchContext {
            pause: self.sandbox.pause.as_ref().map(|pause| pause.pidfd.as_fd()),
            target: None,
            own_pid_ns: self.pid_namespace.as_fd(),
            received,
            user: None,
        }
    }

    fn watch_attempt(&self, number: u64, attempt: &Attempt) {
        // Adding fails only without memory; the attempt's end is then still seen by SIGCHLD.
        if let Phase::Starting(status) = &attempt.phase {
            let _ = self.epoll.add(status.descriptor(), Token::AttemptStatus(number).encode(), Interest::Read);
        }
        for (stream, token) in [(Stream::Stdout, Token::Stdout(number)), (Stream::Stderr, Token::Stderr(number))] {
            if let Some(output) = attempt.output(stream) {
                let _ = self.epoll.add(output, token.encode(), Interest::Read);
            }
        }
    }

    // Attempts.

    fn attempt_status(&mut self, number: u64) {
        let Some(attempt) = self.attempts.get_mut(&number) else { return };
        if let Phase::Starting(status) = &attempt.phase {
            // Level-triggered, and a pipe at its end is always readable: added again below if it is not at its end.
            self.epoll.remove(status.descriptor());
        }
        let outcome = attempt.read_status();
        if let Phase::Starting(status) = &attempt.phase {
            let _ = self.epoll.add(status.descriptor(), Token::AttemptStatus(number).encode(), Interest::Read);
        }
        self.conclude(number, outcome);
    }

    /// Tells what became of an attempt.
    fn conclude(&mut self, number: u64, outcome: Outcome) {
        let Some(attempt) = self.attempts.get_mut(&number) else { return };
        match outcome {
            Outcome::Nothing => {}
            Outcome::Started => {
                let waiting = std::mem::take(&mut attempt.waiting);
                let description = attempt.describe();
                if attempt.terminal
                    && let Some(console) = attempt.output(Stream::Stdout)
                {
                    let _ = self.epoll.add(console, Token::Stdout(number).encode(), Interest::Read);
                }
                for from in waiting {
                    self.reply(from, Answer::Started(description.clone()));
                }
                // The launch record and the report were the largest things in memory: give it back.
                process::trim_heap();
            }
            Outcome::StartFailed(error) => {
                let waiting = std::mem::take(&mut attempt.waiting);
                self.forget(number);
                for from in waiting {
                    self.reply(from, Answer::StartFailed(error.clone()));
                }
            }
            Outcome::Ended => {
                let message = Message::Exited { container: attempt.container.clone(), attempt: attempt.attempt };
                self.forget(number);
                self.broadcast(&message);
            }
        }
    }

    fn forget(&mut self, number: u64) {
        if let Some(attempt) = self.attempts.remove(&number) {
            for descriptor in [attempt.output(Stream::Stdout), attempt.output(Stream::Stderr)].into_iter().flatten() {
                self.epoll.remove(descriptor);
            }
            if let Some(stdin) = &attempt.stdin {
                self.epoll.remove(stdin);
            }
        }
        let attached = self.attachments.iter().filter(|(_, attachment)| attachment.attempt == number);
        for attached in attached.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.detach(attached);
        }
        self.finish_shutdown();
    }

    fn pump(&mut self, number: u64, stream: Stream) {
        let Some(attempt) = self.attempts.get_mut(&number) else { return };
        if attempt.output(stream).is_none() {
            return;
        }
        let (attachments, mut scratch) = (&mut self.attachments, std::mem::take(&mut self.scratch));
        let mut slow = Vec::new();
        let ended = attempt.pump(stream, &mut scratch, &mut |bytes| {
            for (attached, attachment) in attachments.iter_mut().filter(|(_, attachment)| attachment.attempt == number)
            {
                match attachment.copy(stream, bytes) {
                    Written::All => {}
                    written => slow.push((*attached, written)),
                }
            }
        });
        self.scratch = scratch;
        if ended {
            if let Some(output) = attempt.output(stream) {
                self.epoll.remove(output);
            }
            attempt.close(stream);
            let outcome = attempt.settle(false);
            self.conclude(number, outcome);
        }
        for (attached, written) in slow {
            self.after_write(attached, stream, written);
        }
    }

    fn settle(&mut self, number: u64, waited: bool) {
        let Some(attempt) = self.attempts.get_mut(&number) else { return };
        let open = [Stream::Stdout, Stream::Stderr].map(|stream| attempt.output(stream));
        if waited {
            for output in open.into_iter().flatten() {
                self.epoll.remove(output);
            }
        }
        let outcome = attempt.settle(waited);
        self.conclude(number, outcome);
    }

    /// SIGCHLD: some children have ended, one signal possibly standing for many.
    fn reap(&mut self) {
        signal::drain(self.signals.as_fd());
        while let Ok(Some(exit)) = pidfd::wait_any() {
            self.process_ended(exit);
        }
    }

    fn process_ended(&mut self, exit: Exit) {
        if let Some(number) = find(&self.attempts, |attempt| attempt.pid == exit.pid) {
            let Some(attempt) = self.attempts.get_mut(&number) else { return };
            if let Phase::Starting(status) = &attempt.phase {
                self.epoll.remove(status.descriptor());
            }
            let outcome = attempt.process_ended(exit.ended);
            self.conclude(number, outcome);
            // Usually everything is in the pipes already, and this is the whole drain.
            self.pump(number, Stream::Stdout);
            self.pump(number, Stream::Stderr);
            self.settle(number, false);
        } else if let Some(number) = find(&self.execs, |exec| exec.pid == exit.pid) {
            self.exec_ended(number, exit);
        } else if self.sandbox.pause.as_ref().is_some_and(|pause| pause.pid == exit.pid) {
            // Every process of the shared namespace is gone with it, and no new one can be made there.
            self.sandbox.pause = None;
            self.begin_shutdown();
        }
    }

    // Execs.

    fn exec(&mut self, from: (u64, u64), spec: &ExecSpec, descriptors: Vec<OwnedFd>) {
        let Some(attempt) = self.running(&spec.container).filter(|attempt| matches!(attempt.phase, Phase::Running))
        else {
            let message = format!("container {} does not run", spec.container);
            return self.reply(from, Answer::Error { message });
        };
        let launch = match attempt::read_launch(&attempt.directory) {
            Ok(launch) => launch,
            Err(message) => return self.reply(from, Answer::Error { message }),
        };
        // All namespaces are those of the container's first process, whatever they were made from.
        let context = LaunchContext { user: Some(&attempt.user), ..self.base_context(Instant::now()) };
        match Exec::start(from, spec, descriptors, attempt.pidfd(), &launch, &context) {
            Ok(exec) => {
                let number = self.number();
                if let Some(status) = &exec.status {
                    let token = Token::ExecStatus(number).encode();
                    let _ = self.epoll.add(status.descriptor(), token, Interest::Read);
                }
                self.execs.insert(number, exec);
            }
            Err(error) => self.reply(from, Answer::StartFailed(error)),
        }
    }

    fn exec_status(&mut self, number: u64) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if let Some(status) = &exec.status {
            self.epoll.remove(status.descriptor());
        }
        let set_up = exec.read_status();
        if let Some(status) = &exec.status {
            let _ = self.epoll.add(status.descriptor(), Token::ExecStatus(number).encode(), Interest::Read);
        }
        if let Some(set_up) = set_up {
            self.exec_started(number, set_up.console);
        }
    }

    fn exec_started(&mut self, number: u64, console: Option<OwnedFd>) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let (connection, pid) = (exec.connection, exec.pid);
        if let Some(id) = exec.request.take() {
            let answer = Answer::ExecStarted { exec: number, pid };
            self.send(connection, &Message::Reply { id, answer }, console);
        }
    }

    fn exec_ended(&mut self, number: u64, exit: Exit) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if let Some(status) = &mut exec.status {
            self.epoll.remove(status.descriptor());
            status.read();
            if let Some(set_up) = exec.finish_status() {
                self.exec_started(number, set_up.console);
            }
        }
        let Some(exec) = self.execs.remove(&number) else { return };
        match (exec.failure, exec.request) {
            (Some(error), Some(id)) => self.reply((exec.connection, id), Answer::StartFailed(error)),
            (Some(_), None) => {}
            (None, _) => {
                let message = Message::ExecExited { exec: number, exit_code: exit.ended.code() };
                self.send(exec.connection, &message, None);
            }
        }
        self.finish_shutdown();
    }

    // Attachments.

    fn attach(&mut self, from: (u64, u64), container: &str, descriptors: Vec<OwnedFd>) {
        let found = find(&self.attempts, |attempt| attempt.container == container);
        let Some((attempt, running)) = found.and_then(|number| Some((number, self.attempts.get(&number)?))) else {
            let message = format!("container {container} does not run");
            return self.reply(from, Answer::Error { message });
        };
        let mut attachment = match Attachment::new(attempt, descriptors) {
            Ok(attachment) => attachment,
            Err(error) => return self.reply(from, Answer::Error { message: format!("attach: {error}") }),
        };
        if running.stdin.is_none() {
            attachment.close_input();
        }
        let number = self.number();
        let watched = [
            (attachment.input(), Token::AttachInput(number), Interest::Read),
            // Only to notice that it broke, until there is something to wait for.
            (attachment.output(Stream::Stdout), Token::AttachStdout(number), Interest::Nothing),
            (attachment.output(Stream::Stderr), Token::AttachStderr(number), Interest::Nothing),
        ];
        for (descriptor, token, interest) in watched {
            if let Some(descriptor) = descriptor
                && let Err(error) = self.epoll.add(descriptor, token.encode(), interest)
            {
                return self.reply(from, Answer::Error { message: format!("watch the attached streams: {error}") });
            }
        }
        self.attachments.insert(number, attachment);
        self.reply(from, Answer::Ok);
    }

    fn attach_input(&mut self, number: u64) {
        let Some(attachment) = self.attachments.get_mut(&number) else { return };
        let attempt = attachment.attempt;
        let stdin = self.attempts.get(&attempt).and_then(|attempt| attempt.stdin.as_ref());
        match stdin.map_or(Fed::Ended, |stdin| attachment.feed(stdin.as_fd())) {
            Fed::More => {}
            Fed::Full => {
                if let (Some(input), Some(stdin)) = (attachment.input(), stdin) {
                    // Not merely no interest: a hang-up would be reported again and again.
                    self.epoll.remove(input);
                    let _ = self.epoll.add(stdin, Token::Stdin(attempt).encode(), Interest::Write);
                }
            }
            Fed::Ended => {
                if let Some(input) = attachment.input() {
                    self.epoll.remove(input);
                }
                attachment.close_input();
                self.input_ended(attempt);
            }
        }
    }

    /// The container's standard input has room: those who were stopped for it go on.
    fn stdin_has_room(&mut self, attempt: u64) {
        if let Some(stdin) = self.attempts.get(&attempt).and_then(|attempt| attempt.stdin.as_ref()) {
            self.epoll.remove(stdin);
        }
        let attached = self.attachments.iter().filter(|(_, attachment)| attachment.attempt == attempt);
        for number in attached.map(|(number, _)| *number).collect::<Vec<_>>() {
            if let Some(input) = self.attachments.get(&number).and_then(Attachment::input) {
                let _ = self.epoll.add(input, Token::AttachInput(number).encode(), Interest::Read);
            }
            self.attach_input(number);
        }
    }

    fn input_ended(&mut self, attempt: u64) {
        let Some(attempt) = self.attempts.get_mut(&attempt) else { return };
        // A terminal has no end of input to be passed on: its other direction is the same descriptor.
        if attempt.stdin_once
            && !attempt.terminal
            && let Some(stdin) = attempt.stdin.take()
        {
            self.epoll.remove(stdin);
        }
    }

    fn attach_output(&mut self, number: u64, stream: Stream, event: Ready) {
        let Some(attachment) = self.attachments.get_mut(&number) else { return };
        // Also seen while nothing is waiting to be written.
        let written = if event.hung_up { Written::Broken } else { attachment.flush(stream) };
        self.after_write(number, stream, written);
    }

    fn after_write(&mut self, number: u64, stream: Stream, written: Written) {
        let Some(attachment) = self.attachments.get(&number) else { return };
        let token = match stream {
            Stream::Stdout => Token::AttachStdout(number),
            Stream::Stderr => Token::AttachStderr(number),
        };
        let interest = match written {
            Written::All => Interest::Nothing,
            Written::Waiting => Interest::Write,
            Written::Broken => return self.detach(number),
        };
        if let Some(output) = attachment.output(stream) {
            let _ = self.epoll.change(output, token.encode(), interest);
        }
    }

    fn detach(&mut self, number: u64) {
        let Some(attachment) = self.attachments.remove(&number) else { return };
        let outputs = [attachment.output(Stream::Stdout), attachment.output(Stream::Stderr)];
        for descriptor in outputs.into_iter().flatten() {
            self.epoll.remove(descriptor);
        }
        if let Some(input) = attachment.input() {
            self.epoll.remove(input);
            self.input_ended(attachment.attempt);
        }
    }

    // The end.

    fn shut_down(&mut self, from: (u64, u64)) {
        self.begin_shutdown();
        if let Some((waiting, deadline)) = &mut self.shutdown {
            waiting.push(from);
            *deadline = Instant::now() + SHUTDOWN;
        }
        self.finish_shutdown();
    }

    fn begin_shutdown(&mut self) {
        self.shutdown.get_or_insert_with(|| (Vec::new(), Instant::now() + SHUTDOWN));
        for attempt in self.attempts.values_mut() {
            attempt.kill();
        }
        for exec in self.execs.values() {
            exec.kill();
        }
        self.finish_shutdown();
    }

    /// Ends the loop once there is nothing left to record.
    fn finish_shutdown(&mut self) {
        if self.shutdown.is_none() || !self.attempts.is_empty() || !self.execs.is_empty() {
            return;
        }
        if let Some((waiting, _)) = &mut self.shutdown {
            for from in std::mem::take(waiting) {
                self.reply(from, Answer::Ok);
            }
        }
        self.finished = true;
    }

    /// Something does not die (it hangs in the kernel): say so. The request may be repeated.
    fn give_up_shutdown(&mut self, now: Instant) {
        let Some((waiting, deadline)) = &mut self.shutdown else { return };
        if *deadline > now {
            return;
        }
        let waiting = std::mem::take(waiting);
        let alive = self.attempts.values().map(|attempt| attempt.container.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!("killed, but not ended after {} seconds: {alive}", SHUTDOWN.as_secs());
        for from in waiting {
            self.reply(from, Answer::Error { message: message.clone() });
        }
    }
}

fn find<T>(map: &BTreeMap<u64, T>, wanted: impl Fn(&T) -> bool) -> Option<u64> {
    map.iter().find(|(_, value)| wanted(value)).map(|(number, _)| *number)
}

fn of_result(result: io::Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Ok,
        Err(error) => Answer::Error { message: error.to_string() },
    }
}
