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
        match Exec::start(from, spec, descriptors, attempt.pidfd(), &launch, &context) {
            Ok(mut exec) => {
                exec.record = record;
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
        let Some(exec) = self.execs.remove(&number) else { return };
        match (exec.failure, exec.request) {
            (Some(error), Some(id)) => self.reply((exec.connection, id), Answer::StartFailed(error)),
            (Some(_), None) => {}
            (None, _) => {
                if let Some(path) = &exec.record {
                    let code = exit.ended.code();
                    let failure = (code != 0).then(|| format!("command terminated with exit code {code}"));
                    // If it cannot be written (the disk is full) the hook may be run again by a restarted agent, ignoring.
                    let _ = durable::write_json(path, &HookRecord { version: VERSION, failure });
                }
                let message = Message::ExecExited { exec: number, exit_code: exit.ended.code() };
                self.send(exec.connection, &message, None);
            }
        }
        self.finish_shutdown();
    }
}
