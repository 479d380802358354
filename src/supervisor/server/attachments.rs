//! Those who are attached to a container's standard streams.

use std::os::fd::{AsFd, OwnedFd};

use super::{Server, find};
use crate::{
    supervisor::{
        attach::{Attachment, Fed, Written},
        log::Stream,
        protocol::Answer,
        token::Token,
    },
    sys::epoll::{Interest, Ready},
};

impl Server {
    pub(super) fn attach(&mut self, from: (u64, u64), container: &str, descriptors: Vec<OwnedFd>) {
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

    pub(super) fn attach_input(&mut self, number: u64) {
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
    pub(super) fn stdin_has_room(&mut self, attempt: u64) {
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

    pub(super) fn input_ended(&mut self, attempt: u64) {
        let Some(attempt) = self.attempts.get_mut(&attempt) else { return };
        // A terminal has no end of input to be passed on: its other direction is the same descriptor.
        if attempt.stdin_once
            && !attempt.terminal
            && let Some(stdin) = attempt.stdin.take()
        {
            self.epoll.remove(stdin);
        }
    }

    pub(super) fn attach_output(&mut self, number: u64, stream: Stream, event: Ready) {
        let Some(attachment) = self.attachments.get_mut(&number) else { return };
        // Also seen while nothing is waiting to be written.
        let written = if event.hung_up { Written::Broken } else { attachment.flush(stream) };
        self.after_write(number, stream, written);
    }

    pub(super) fn after_write(&mut self, number: u64, stream: Stream, written: Written) {
        let Some(attachment) = self.attachments.get(&number) else { return };
        let token = match stream {
            Stream::Stdout => Token::AttachStdout(number),
            Stream::Stderr => Token::AttachStderr(number),
        };
        let interest = match written {
            Written::All if attachment.is_drained() && !self.attempts.contains_key(&attachment.attempt) => {
                return self.detach(number);
            }
            Written::All => Interest::Nothing,
            Written::Waiting => Interest::Write,
            Written::Broken => return self.detach(number),
        };
        if let Some(output) = attachment.output(stream) {
            let _ = self.epoll.change(output, token.encode(), interest);
        }
    }

    /// The container has ended: those who have all of its output are let go, the others once they have.
    pub(super) fn attempt_over(&mut self, attempt: u64) {
        let attached = self.attachments.iter().filter(|(_, attachment)| attachment.attempt == attempt);
        for number in attached.map(|(number, _)| *number).collect::<Vec<_>>() {
            let Some(attachment) = self.attachments.get_mut(&number) else { continue };
            if attachment.is_drained() {
                self.detach(number);
            } else {
                if let Some(input) = attachment.input() {
                    self.epoll.remove(input);
                }
                attachment.close_input();
            }
        }
    }

    pub(super) fn detach(&mut self, number: u64) {
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
}
