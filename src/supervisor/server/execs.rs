//! Further processes in containers.

use std::{fs::File, io, os::fd::OwnedFd, path::PathBuf, time::Instant};

use super::Server;
use crate::{
    store::durable,
    supervisor::{
        attempt::{self, Phase},
        container::LaunchContext,
        exec::Exec,
        protocol::{Answer, Message},
        spec::{ExecSpec, HookRecord, VERSION},
        token::Token,
    },
    sys::{epoll::Interest, pidfd::Exit},
};

impl Server {
    /// Runs a hook, joins it, or says how it ended.
    pub(super) fn hook(&mut self, from: (u64, u64), spec: &ExecSpec, record: PathBuf) {
        match durable::read_json::<HookRecord>(&record) {
            Ok(None) => {}
            Ok(Some(HookRecord { failure, .. })) => return self.reply(from, Answer::HookEnded { failure }),
            Err(error) => return self.reply(from, Answer::Error { message: error.to_string() }),
        }
        if let Some((number, exec)) = self.execs.iter_mut().find(|(_, exec)| exec.record.as_ref() == Some(&record)) {
            exec.connection = from.0;
            if exec.request.is_some() {
                exec.request = Some(from.1); // answered when its program has begun
                return;
            }
            let answer = Answer::ExecStarted { exec: *number, pid: exec.pid };
            return self.reply(from, answer);
        }
        let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let streams: io::Result<Vec<OwnedFd>> = (0..3).map(|_| null()).collect();
        match streams {
            Ok(streams) => self.begin_exec(from, spec, streams, Some(record)),
            Err(error) => self.reply(from, Answer::Error { message: format!("/dev/null: {error}") }),
        }
    }

    pub(super) fn exec(&mut self, from: (u64, u64), spec: &ExecSpec, descriptors: Vec<OwnedFd>) {
        self.begin_exec(from, spec, descriptors, None);
    }

    fn begin_exec(&mut self, from: (u64, u64), spec: &ExecSpec, descriptors: Vec<OwnedFd>, record: Option<PathBuf>) {
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
        let number = self.next;
        let started = Exec::start(number, from, spec, descriptors, attempt.pidfd(), &launch, &context);
        self.next += 1;
        match started {
            Ok(mut exec) => {
                exec.record = record;
                if let Some(status) = &exec.status {
                    let token = Token::ExecStatus(number).encode();
                    let _ = self.epoll.add(status.descriptor(), token, Interest::Read);
                }
                self.execs.insert(number, exec);
            }
            Err(error) => self.reply(from, Answer::StartFailed(error)),
        }
    }

    pub(super) fn exec_status(&mut self, number: u64) {
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

    pub(super) fn exec_started(&mut self, number: u64, console: Option<OwnedFd>) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        let (connection, pid) = (exec.connection, exec.pid);
        if let Some(id) = exec.request.take() {
            let answer = Answer::ExecStarted { exec: number, pid };
            self.send(connection, &Message::Reply { id, answer }, console);
        }
    }

    pub(super) fn exec_ended(&mut self, number: u64, exit: Exit) {
        let Some(exec) = self.execs.get_mut(&number) else { return };
        if let Some(status) = &mut exec.status {
            self.epoll.remove(status.descriptor());
            status.read();
            if let Some(set_up) = exec.finish_status() {
                self.exec_started(number, set_up.console);
            }
        }
        let Some(mut exec) = self.execs.remove(&number) else { return };
        let (connection, request, timed_out) = (exec.connection, exec.request, exec.timed_out);
        let failure = exec.failure.take();
        if let (None, None, Some(path)) = (&failure, request, &exec.record) {
            let code = exit.ended.code();
            let failure = (code != 0).then(|| format!("command terminated with exit code {code}"));
            // If it cannot be written (the disk is full) the hook may be run again by a restarted agent, ignoring.
            let _ = durable::write_json(path, &HookRecord { version: VERSION, failure });
        }
        // Before anybody hears of it: what they are told has ended is not there any more.
        let leftover = exec.clean_up();
        self.look_at_leftovers();
        self.leftovers.extend(leftover.map(|leftover| (leftover.wait().map(|wait| Instant::now() + wait), leftover)));
        match (failure, request) {
            // Its time was over before its program ran: it is told like any other whose time was over.
            (_, Some(id)) if timed_out => {
                self.reply((connection, id), Answer::ExecStarted { exec: number, pid: exit.pid });
                self.exec_exited(connection, number, exit, timed_out);
            }
            (Some(error), Some(id)) => self.reply((connection, id), Answer::StartFailed(error)),
            (Some(_), None) => {}
            (None, _) => self.exec_exited(connection, number, exit, timed_out),
        }
        self.finish_shutdown();
    }

    fn exec_exited(&mut self, connection: u64, exec: u64, exit: Exit, timed_out: bool) {
        let message = Message::ExecExited { exec, exit_code: exit.ended.code(), timed_out };
        self.send(connection, &message, None);
    }

    /// Execs that were started for whoever is gone now.
    pub(super) fn end_execs_of(&mut self, connection: u64) {
        let now = Instant::now();
        for exec in self.execs.values_mut().filter(|exec| exec.bound && exec.connection == connection) {
            exec.kill(now);
        }
    }

    pub(super) fn exec_deadline(&self) -> Option<Instant> {
        let leftovers = self.leftovers.iter().filter_map(|(at, _)| *at);
        self.execs.values().filter_map(Exec::deadline).chain(leftovers).min()
    }

    pub(super) fn pass_exec_deadlines(&mut self, now: Instant) {
        for exec in self.execs.values_mut() {
            exec.pass_deadline(now);
        }
        if self.leftovers.iter().any(|(at, _)| at.is_some_and(|at| at <= now)) {
            self.look_at_leftovers();
        }
    }

    fn look_at_leftovers(&mut self) {
        self.leftovers.retain_mut(|(at, leftover)| {
            let gone = leftover.look();
            *at = leftover.wait().map(|wait| Instant::now() + wait);
            !gone
        });
    }
}
