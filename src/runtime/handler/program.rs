//! Runs a program for what it prints, within a time limit.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::sys::{pidfd, process, seqpacket};

/// For a program that was killed to be gone.
const DYING: Duration = Duration::from_secs(2);

/// What is read of its output, bytes.
const OUTPUT: u64 = 1 << 20;

/// A program could not be run, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started.
    #[error("exec {program}")]
    Start {
        /// Its path.
        program: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It did not end.
    #[error("{program} {verb} did not end within {limit:?} and was killed")]
    TimedOut {
        /// Its path.
        program: PathBuf,
        /// What it was asked.
        verb: String,
        /// How long it had.
        limit: Duration,
    },
    /// It said no.
    #[error("{program} {verb}: {message}")]
    Failed {
        /// Its path.
        program: PathBuf,
        /// What it was asked.
        verb: String,
        /// Its own words on one line.
        message: String,
    },
}

/// What `program` prints on its standard output.
pub(super) fn output<'a>(
    program: &Path,
    arguments: impl IntoIterator<Item = &'a str>,
    limit: Duration,
) -> Result<String, ProgramError> {
    let start = |source| ProgramError::Start { program: program.to_owned(), source };
    let arguments: Vec<&str> = arguments.into_iter().collect();
    // Into files, so that one that prints much does not wait for a reader. They have no names and end with us.
    let [output, errors] = [tempfile().map_err(start)?, tempfile().map_err(start)?];
    let mut command = Command::new(program);
    command.args(&arguments).current_dir("/").process_group(0).stdin(Stdio::null());
    command.stdout(output.try_clone().map_err(start)?).stderr(errors.try_clone().map_err(start)?);
    let mut child = command.spawn().map_err(start)?;
    let verb = || arguments.join(" ");
    if !ended(&mut child, limit).map_err(start)? {
        return Err(ProgramError::TimedOut { program: program.to_owned(), verb: verb(), limit });
    }
    let status = child.wait().map_err(start)?;
    if status.success() {
        return text(output).map_err(start);
    }
    let words = text(errors).unwrap_or_default();
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let message = if lines.is_empty() { status.to_string() } else { lines.join("; ") };
    Err(ProgramError::Failed {
        program: program.to_owned(),
        verb: verb(),
        message: message.chars().take(1024).collect(),
    })
}

/// Waits for its end, at most so long; kills it then. Whether it has ended by itself.
fn ended(child: &mut Child, limit: Duration) -> io::Result<bool> {
    let pid = child.id() as i32;
    let pidfd = pidfd::open(pid)?;
    if seqpacket::wait(pidfd.as_fd(), false, Some(limit))? {
        return Ok(true);
    }
    // It leads its own group, and its number is its own until it is reaped. Ignoring: it has ended just now.
    let _ = process::kill_group(pid, libc::SIGKILL);
    if seqpacket::wait(pidfd.as_fd(), false, Some(DYING))? {
        child.wait()?;
    }
    Ok(false)
}

/// A file in memory.
fn tempfile() -> io::Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    Ok(File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC)?))
}

fn text(mut file: File) -> io::Result<String> {
    use std::io::Seek;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<String, String> {
        output(Path::new("/bin/sh"), ["-c", script], limit).map_err(|error| error.to_string())
    }

    #[test]
    fn a_program_is_run_for_what_it_prints() {
        let long = Duration::from_secs(20);
        assert_eq!(shell("echo out; echo no >&2", long).as_deref(), Ok("out\n"));
        assert_eq!(shell("seq 20000 | wc -l; seq 20000 >&2", long).as_deref(), Ok("20000\n"), "much of it, too");
        assert_eq!(shell("echo one >&2; echo two >&2; exit 3", long).unwrap_err().split(": ").last(), Some("one; two"));
        assert!(shell("exit 3", long).unwrap_err().ends_with("exit status: 3"));
        let missing = output(Path::new("/nowhere/runtime"), [], long).unwrap_err();
        assert_eq!(missing.to_string(), "exec /nowhere/runtime");
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_has_started() {
        let error = shell("sleep 1000 & sleep 1000", Duration::from_millis(50)).unwrap_err();
        assert!(error.contains("did not end within 50ms"), "{error}");
    }
}
