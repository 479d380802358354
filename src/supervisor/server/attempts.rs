//! Starting containers and seeing them to their end.

use std::{io, os::fd::AsFd, path::PathBuf, time::Instant};

use super::{Server, find};
use crate::{
    supervisor::{
        attach::Written,
        attempt::{self, Attempt, Outcome, Phase},
        container::LaunchContext,
        log::Stream,
        protocol::{Answer, Message},
        spec::{LaunchSpec, PidMode, StartError},
        token::Token,
    },
    sys::{
        epoll::Interest,
        memory,
        pidfd::{self, Exit},
        signal,
    },
};

impl Server {
    /// The attempt of `container` whose program runs.
    pub(super) fn running(&self, container: &str) -> Option<&Attempt> {
        self.attempts.values().find(|attempt| attempt.container == container)
    }

    pub(super) fn start(&mut self, from: (u64, u64), directory: PathBuf, hold: bool) {
        let received = Instant::now();
        if let Some(attempt) = self.attempts.values_mut().find(|attempt| attempt.directory == directory) {
            if !attempt.has_run() {
                return attempt.waiting.push(from);
            }
            let answer = Answer::Started(attempt.describe());
            return self.reply(from, answer);
        }
        let hold = hold && !self.released.contains(&directory);
        if let Err(answer) = self.launch(from, directory, (received, hold)) {
            self.reply(from, answer);
        }
    }

    pub(super) fn release(&mut self, from: (u64, u64), directory: PathBuf) {
        if let Some(attempt) = self.attempts.values_mut().find(|attempt| attempt.directory == directory) {
            attempt.release();
        } else if attempt::is_attempt_directory(&directory) && !attempt::has_ended(&directory) {
            self.released.insert(directory);
        }
        self.reply(from, Answer::Ok);
    }

    /// Starts an attempt that is not known yet; its answer comes later unless it is returned as an error.
    pub(super) fn launch(
        &mut self,
        from: (u64, u64),
        directory: PathBuf,
        (received, hold): (Instant, bool),
    ) -> Result<(), Answer> {
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
        self.released.remove(&directory);
        let id = launch.id.clone();
        let launched =
            self.context(&launch, received).and_then(|context| Attempt::launch(&directory, launch, &context, hold));
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

    pub(super) fn context(&self, launch: &LaunchSpec, received: Instant) -> Result<LaunchContext<'_>, StartError> {
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

    pub(super) fn base_context(&self, received: Instant) -> LaunchContext<'_> {
        LaunchContext {
            pause: self.sandbox.pause.as_ref().map(|pause| pause.pidfd.as_fd()),
            target: None,
            users: self.sandbox.users.as_ref().map(AsFd::as_fd),
            own_pid_ns: self.pid_namespace.as_fd(),
            received,
            gate: None,
            user: None,
        }
    }

    pub(super) fn watch_attempt(&self, number: u64, attempt: &Attempt) {
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

    pub(super) fn attempt_status(&mut self, number: u64) {
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
    pub(super) fn conclude(&mut self, number: u64, outcome: Outcome) {
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
                memory::trim_heap();
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

    pub(super) fn forget(&mut self, number: u64) {
        if let Some(attempt) = self.attempts.remove(&number) {
            for descriptor in [attempt.output(Stream::Stdout), attempt.output(Stream::Stderr)].into_iter().flatten() {
                self.epoll.remove(descriptor);
            }
            if let Some(stdin) = &attempt.stdin {
                self.epoll.remove(stdin);
            }
        }
        self.attempt_over(number);
        self.finish_shutdown();
    }

    pub(super) fn pump(&mut self, number: u64, stream: Stream) {
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

    pub(super) fn settle(&mut self, number: u64, waited: bool) {
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
    pub(super) fn reap(&mut self) {
        signal::drain(self.signals.as_fd());
        while let Ok(Some(exit)) = pidfd::wait_any() {
            self.process_ended(exit);
        }
    }

    pub(super) fn process_ended(&mut self, exit: Exit) {
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
}
