//! Further processes in containers.

use std::{os::fd::OwnedFd, time::Instant};

use super::Server;
use crate::{
    supervisor::{
        attempt::{self, Phase},
        container::LaunchContext,
        exec::Exec,
        protocol::{Answer, Message},
        spec::ExecSpec,
        token::Token,
    },
    sys::{epoll::Interest, pidfd::Exit},
};

impl Server {
    pub(super) fn exec(&mut self, from: (u64, u64), spec: &ExecSpec, descriptors: Vec<OwnedFd>) {
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
                let message = Message::ExecExited { exec: number, exit_code: exit.ended.code() };
                self.send(exec.connection, &message, None);
            }
        }
        self.finish_shutdown();
    }
}
