//! The one loop: what is ready, what was asked, who ended. It waits in exactly one place, and without a deadline unless
//! an ended container's output is being drained.

mod attachments;
mod attempts;
mod conductors;
mod execs;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    attach::Attachment,
    attempt::{Attempt, SCRATCH},
    connection::{Broken, Connection},
    exec::{Exec, Leftover},
    handler::Conductor,
    log::Stream,
    protocol::{Answer, Call, Message, Request, Snapshot},
    sandbox::Sandbox,
    spec::VERSION,
    token::Token,
};
use crate::sys::{
    epoll::{Epoll, Interest, Ready},
    process, seqpacket,
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
    /// Directories of attempts that are not to be held when they are started.
    released: BTreeSet<PathBuf>,
    /// Those whose container has ended: they have its runtime forget it.
    conductors: BTreeMap<u64, Box<Conductor>>,
    execs: BTreeMap<u64, Exec>,
    /// cgroups of execs that could not be removed yet, and when to look at them again.
    leftovers: Vec<(Option<Instant>, Leftover)>,
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
            released: BTreeSet::new(),
            conductors: BTreeMap::new(),
            execs: BTreeMap::new(),
            leftovers: Vec::new(),
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
            Token::Line(number) => self.hear(number),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let shutdown = self.shutdown.as_ref().filter(|(waiting, _)| !waiting.is_empty()).map(|(_, at)| *at);
        self.attempts.values().filter_map(Attempt::deadline).chain(shutdown).chain(self.exec_deadline()).min()
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
        self.pass_exec_deadlines(now);
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

    /// Containers go on, and execs that are not bound to it: a restarted agent connects again.
    fn drop_connection(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.epoll.remove(connection.descriptor());
            self.end_execs_of(number);
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
            Call::Start { dir, hold } => self.start(from, dir, hold),
            Call::Release { dir } => self.release(from, dir),
            Call::Signal { container, signal } => {
                if let Some(conductor) = self.conducted(&container) {
                    return conductor.signal(from, signal);
                }
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
            Call::Hook { spec, record } => self.hook(from, &spec, record),
            Call::ExecKill { exec } => {
                if let Some(exec) = self.execs.get_mut(&exec) {
                    exec.kill(Instant::now());
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
            Call::Update { container, resources } => match self.conducted(&container) {
                Some(conductor) => conductor.update(from, resources),
                None => self.reply(from, Answer::Ok),
            },
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
        for exec in self.execs.values_mut() {
            exec.kill(Instant::now());
        }
        self.finish_shutdown();
    }

    /// Ends the loop once there is nothing left to record.
    fn finish_shutdown(&mut self) {
        let busy = !self.attempts.is_empty() || !self.execs.is_empty() || !self.conductors.is_empty();
        if self.shutdown.is_none() || busy {
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
        let mut alive: Vec<&str> = self.attempts.values().map(|attempt| attempt.container.as_str()).collect();
        if !self.conductors.is_empty() {
            alive.push("the runtime that is to forget its containers");
        }
        let alive = alive.join(", ");
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
