//! How a command ends: its exit code, and what is said when it fails.

use std::{error::Error, fmt, process::ExitCode};

use crate::obs::chain::Chain;

/// Every exit code of berth. `exec` ends with the command's own code instead when that could be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Failed, or `doctor` found an error.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The pod, container or image does not exist.
    NotFound = 3,
    /// The agent cannot be reached (EX_UNAVAILABLE of sysexits.h).
    Unreachable = 69,
    /// The configuration is wrong (EX_CONFIG of sysexits.h).
    Config = 78,
    /// The command of `exec` could not be run (as shells say).
    CannotRun = 126,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// A command failed.
#[derive(Debug)]
pub struct Failed {
    /// The exit code.
    pub exit: Exit,
    /// What happened: one line, causes included.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

impl Failed {
    /// With a message of one line.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failed {
        Failed { exit, message: message.into(), hint: None }
    }

    /// Of an error and its causes, exit code 1.
    pub fn of(error: &(dyn Error + 'static)) -> Failed {
        Failed::new(Exit::Failure, Chain(error).to_string())
    }

    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Failed {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "berth: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_a_hint() {
        let failed = Failed::of(&std::io::Error::other("x")).hint("try y");
        assert_eq!(failed.to_string(), "berth: x\nhint: try y");
    }
}
