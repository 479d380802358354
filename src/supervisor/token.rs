//! The names by which the poll loop knows what is ready.

/// A watched descriptor. Attempts, execs and connections are numbered from one counter and numbers are never used again,
/// so that an event for something that ended a moment ago finds nothing rather than something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// New connections.
    Listener,
    /// SIGCHLD.
    Signals,
    /// An agent.
    Connection(u64),
    /// The set-up report of an attempt.
    AttemptStatus(u64),
    /// Standard output of an attempt, or its terminal.
    Stdout(u64),
    /// Standard error of an attempt.
    Stderr(u64),
    /// Standard input of an attempt has room again.
    Stdin(u64),
    /// The set-up report of an exec.
    ExecStatus(u64),
    /// Standard input of somebody attached.
    AttachInput(u64),
    /// Standard output of somebody attached.
    AttachStdout(u64),
    /// Standard error of somebody attached.
    AttachStderr(u64),
    /// The line of an attempt's conductor.
    Line(u64),
}

/// The lowest bits say what it is, the others which one.
const KINDS: u64 = 16;

impl Token {
    /// As epoll carries it.
    pub fn encode(self) -> u64 {
        let (number, kind) = match self {
            Token::Listener => (0, 0),
            Token::Signals => (0, 1),
            Token::Connection(number) => (number, 2),
            Token::AttemptStatus(number) => (number, 3),
            Token::Stdout(number) => (number, 4),
            Token::Stderr(number) => (number, 5),
            Token::Stdin(number) => (number, 6),
            Token::ExecStatus(number) => (number, 7),
            Token::AttachInput(number) => (number, 8),
            Token::AttachStdout(number) => (number, 9),
            Token::AttachStderr(number) => (number, 10),
            Token::Line(number) => (number, 11),
        };
        number * KINDS + kind
    }

    /// The reverse; `None` for what was never encoded.
    pub fn decode(encoded: u64) -> Option<Token> {
        let number = encoded / KINDS;
        Some(match encoded % KINDS {
            0 => Token::Listener,
            1 => Token::Signals,
            2 => Token::Connection(number),
            3 => Token::AttemptStatus(number),
            4 => Token::Stdout(number),
            5 => Token::Stderr(number),
            6 => Token::Stdin(number),
            7 => Token::ExecStatus(number),
            8 => Token::AttachInput(number),
            9 => Token::AttachStdout(number),
            10 => Token::AttachStderr(number),
            11 => Token::Line(number),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_way_through_the_kernel() {
        for encoded in (0..12).chain(7 * KINDS + 2..7 * KINDS + 12) {
            assert_eq!(Token::decode(encoded).unwrap().encode(), encoded);
        }
        assert_eq!(Token::decode(12), None);
    }
}
