//! Conductors: what they say, and their end.

use std::io;

use super::{Server, find, of_result};
use crate::supervisor::{
    attempt::{Attempt, Outcome},
    handler::{Conductor, Heard, Word},
    log::Stream,
    protocol::Answer,
};

impl Server {
    fn conductor(&mut self, number: u64) -> Option<&mut Conductor> {
        let of_attempt = self.attempts.get_mut(&number).and_then(|attempt| attempt.conductor.as_deref_mut());
        of_attempt.or_else(|| self.conductors.get_mut(&number).map(Box::as_mut))
    }

    /// The conductor of a container whose program runs.
    pub(super) fn conducted(&mut self, container: &str) -> Option<&mut Conductor> {
        let attempt = self.attempts.values_mut().find(|attempt| attempt.container == container && attempt.runs())?;
        attempt.conductor.as_deref_mut()
    }

    /// A conductor has something to say, or nothing any more.
    pub(super) fn hear(&mut self, number: u64) {
        loop {
            let Some(conductor) = self.conductor(number) else { return };
            match conductor.hear() {
                Heard::Word(Word::Done { failure }, _) => {
                    let Some(from) = conductor.next_waiting() else { continue };
                    // A container that has ended meanwhile has no use for it.
                    let failure = failure.filter(|_| self.attempts.get(&number).is_some_and(Attempt::runs));
                    self.reply(from, failure.map_or(Answer::Ok, |message| Answer::Error { message }));
                }
                Heard::Word(word, descriptor) => self.heard(number, word, descriptor),
                Heard::Nothing => return,
                Heard::Closed => return self.stop_hearing(number),
            }
        }
    }

    fn heard(&mut self, number: u64, word: Word, descriptor: Option<std::os::fd::OwnedFd>) {
        let parent = self.pid;
        let Some(attempt) = self.attempts.get_mut(&number) else { return };
        let outcome = attempt.heard(word, descriptor, parent);
        let started = matches!(outcome, Outcome::Started);
        self.conclude(number, outcome);
        if started {
            // It may have ended before this was heard: all of its output is there then.
            self.pump(number, Stream::Stdout);
            self.pump(number, Stream::Stderr);
            self.settle(number, false);
        }
    }

    /// Its end is told by its process; the line would be ready for ever.
    fn stop_hearing(&self, number: u64) {
        let attempt = self.attempts.get(&number).and_then(|attempt| attempt.conductor.as_ref());
        if let Some(conductor) = attempt.or_else(|| self.conductors.get(&number)) {
            self.epoll.remove(conductor.line());
        }
    }

    /// Whether the process that has ended was a conductor. What it was asked last is answered.
    pub(super) fn conductor_ended(&mut self, pid: i32) -> bool {
        let of_attempt = |attempt: &Attempt| attempt.conductor.as_ref().is_some_and(|conductor| conductor.pid == pid);
        let number =
            find(&self.attempts, of_attempt).or_else(|| find(&self.conductors, |conductor| conductor.pid == pid));
        let Some(number) = number else { return false };
        // Its last words are in the line.
        self.hear(number);
        self.stop_hearing(number);
        while let Some(from) = self.conductor(number).and_then(Conductor::next_waiting) {
            let gone = Err(io::Error::other("the process that calls the runtime has ended"));
            self.reply(from, if self.attempts.contains_key(&number) { of_result(gone) } else { Answer::Ok });
        }
        self.conductors.remove(&number);
        if let Some(attempt) = self.attempts.get_mut(&number) {
            let outcome = attempt.conductor_ended();
            self.conclude(number, outcome);
        }
        self.finish_shutdown();
        true
    }
}
