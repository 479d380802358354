//! `berth exec`: asks the agent for a process in a container and connects it with the streams of this one.
//!
//! What is no terminal is handed over as it is. A terminal of the caller never is: whoever holds it could type into it
//! on the host; its bytes are copied instead.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};

use super::{
    args::ExecArgs,
    client::unreachable,
    exit::{Exit, Failed},
    pump::{Pump, Route},
};
use crate::{
    server::{
        socket,
        stream::{ExecReply, ExecRequest, MAX_PACKET},
    },
    sys::{
        process::pipe,
        seqpacket::{self, Packet},
        signal, terminal,
    },
};

/// Runs the command; the exit code is its own.
///
/// # Errors
/// It could not be run.
pub fn run(socket: &Path, args: &ExecArgs) -> Result<ExitCode, Failed> {
    let env = args.env.iter().map(|text| variable(text)).collect::<Result<_, _>>()?;
    if args.tty && !(args.stdin && io::stdin().is_terminal()) {
        let message = "a terminal (-t) needs standard input (-i) that is a terminal";
        return Err(Failed::new(Exit::Usage, message).hint("leave -t out to run the command without one"));
    }
    let connection = socket::connect_stream(socket).map_err(|error| unreachable(socket, &error))?;
    let request = ExecRequest {
        pod: args.pod.clone(),
        container: args.container.clone(),
        args: args.command.clone(),
        env,
        tty: args.tty,
    };
    let broken = |error: io::Error| Failed::new(Exit::Failure, format!("pass the streams of the command: {error}"));
    let code = match args.tty {
        true => with_terminal(&connection, &request)?,
        false => with_streams(&connection, &request, args.stdin).map_err(|trouble| trouble.unwrap_or_else(broken))?,
    };
    // Codes are 0-255; anything else cannot come from a process.
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(Exit::Failure as u8)))
}

fn variable(text: &str) -> Result<(String, String), Failed> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failed::new(Exit::Usage, format!("--env: expected NAME=VALUE, found {text:?}"))),
    }
}

/// Either the agent said no, or something here broke.
pub(super) enum Trouble {
    Refused(Failed),
    Broken(io::Error),
}

impl Trouble {
    pub(super) fn unwrap_or_else(self, broken: impl FnOnce(io::Error) -> Failed) -> Failed {
        match self {
            Trouble::Refused(failed) => failed,
            Trouble::Broken(error) => broken(error),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Broken(error)
    }
}

impl From<nix::Error> for Trouble {
    fn from(error: nix::Error) -> Trouble {
        Trouble::Broken(error.into())
    }
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Trouble {
        Trouble::Refused(failed)
    }
}

fn with_streams(connection: &OwnedFd, request: &ExecRequest, stdin: bool) -> Result<i32, Trouble> {
    let mut pump = Pump::default();
    let own_stdin = io::stdin();
    let input = if !stdin {
        OwnedFd::from(File::open("/dev/null")?)
    } else if own_stdin.is_terminal() {
        let (reader, writer) = pipe()?;
        pump.add(Route::input(own_stdin.as_fd().try_clone_to_owned()?, writer)?);
        reader
    } else {
        own_stdin.as_fd().try_clone_to_owned()?
    };
    let mut output = |own: BorrowedFd<'_>| -> io::Result<OwnedFd> {
        if !own.is_terminal() {
            return own.try_clone_to_owned();
        }
        let (reader, writer) = pipe()?;
        pump.add(Route::output(reader, own.try_clone_to_owned()?)?);
        Ok(writer)
    };
    let stdout = output(io::stdout().as_fd())?;
    let stderr = output(io::stderr().as_fd())?;
    send(connection, request, &[input.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
    // The other ends are the command's alone now: when it closes them, that is the end.
    drop((input, stdout, stderr));
    session(connection, pump, None)
}

fn with_terminal(connection: &OwnedFd, request: &ExecRequest) -> Result<i32, Failed> {
    let broken = |error: io::Error| Failed::new(Exit::Failure, format!("connect the terminal: {error}"));
    let run = || -> Result<i32, Trouble> {
        // Blocked and watched before the size is first read, so that no change of it is missed.
        let resized = signal::descriptor_for(&[nix::libc::SIGWINCH])?;
        send(connection, request, &[])?;
        let mut packet = wait_for_packet(connection)?;
        started(&packet)?;
        let master = packet.descriptors.pop().ok_or_else(|| {
            Failed::new(Exit::Failure, "the agent sent no terminal").hint("it may be of another version: berth version")
        })?;
        copy_size(master.as_fd());
        let own = io::stdin().as_fd().try_clone_to_owned()?;
        let _raw = RawMode::enter(&own)?;
        let mut pump = Pump::default();
        pump.add(Route::input(own, master.try_clone()?)?);
        pump.add(Route::output(master.try_clone()?, io::stdout().as_fd().try_clone_to_owned()?)?);
        session(connection, pump, Some((resized, master)))
    };
    run().map_err(|trouble| trouble.unwrap_or_else(broken))
}

pub(super) fn send(
    connection: &OwnedFd,
    request: &impl serde::Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Trouble> {
    let bytes = serde_json::to_vec(request).map_err(io::Error::from)?;
    if bytes.len() > MAX_PACKET {
        let message = format!("the command has {} bytes, at most {MAX_PACKET} can be passed", bytes.len());
        return Err(Failed::new(Exit::Usage, message).into());
    }
    Ok(seqpacket::send(connection.as_fd(), &bytes, descriptors)?)
}

pub(super) fn wait_for_packet(connection: &OwnedFd) -> Result<Packet, Trouble> {
    loop {
        poll(&mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        match seqpacket::receive(connection.as_fd(), MAX_PACKET) {
            Ok(Some(packet)) => return Ok(packet),
            Ok(None) => return Err(gone().into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn gone() -> Failed {
    Failed::new(Exit::Unreachable, "the agent went away; what has become of the command is not known")
}

pub(super) fn decode(packet: &Packet) -> Result<ExecReply, Failed> {
    serde_json::from_slice(&packet.bytes).map_err(|error| {
        Failed::new(Exit::Failure, format!("understand the agent's answer: {error}"))
            .hint("the agent may be of another version: berth version")
    })
}

fn started(packet: &Packet) -> Result<(), Failed> {
    match decode(packet)? {
        ExecReply::Started { .. } | ExecReply::Attached { .. } | ExecReply::Waiting { .. } => Ok(()),
        ExecReply::Exited { .. } => Err(Failed::new(Exit::Failure, "the command ended before it started")),
        ExecReply::Failed { not_found, not_run, message } => Err(refused(not_found, not_run, message)),
    }
}

pub(super) fn refused(not_found: bool, not_run: bool, message: String) -> Failed {
    match (not_found, not_run) {
        (true, _) => Failed::new(Exit::NotFound, message).hint("berth pods lists the pods"),
        (_, true) => Failed::new(Exit::CannotRun, message),
        _ => Failed::new(Exit::Failure, message),
    }
}

/// Copies until the command has ended and all it wrote has been passed on.
fn session(connection: &OwnedFd, mut pump: Pump, terminal: Option<(OwnedFd, OwnedFd)>) -> Result<i32, Trouble> {
    loop {
        let (mut polled, routes) = pump.interests();
        let first = polled.len();
        polled.push(PollFd::new(connection.as_fd(), PollFlags::POLLIN));
        if let Some((resized, _)) = &terminal {
            polled.push(PollFd::new(resized.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            result => result?,
        };
        let ready: Vec<bool> = polled.iter().map(|entry| entry.any().unwrap_or(true)).collect();
        drop(polled);
        pump.advance(&routes, &ready[..first])?;
        if let (Some((resized, master)), Some(true)) = (&terminal, ready.get(first + 1)) {
            signal::drain(resized.as_fd());
            copy_size(master.as_fd());
        }
        if ready[first] {
            let reply = match seqpacket::receive(connection.as_fd(), MAX_PACKET) {
                Ok(Some(packet)) => decode(&packet)?,
                Ok(None) => return Err(gone().into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            match reply {
                ExecReply::Started { .. } | ExecReply::Attached { .. } | ExecReply::Waiting { .. } => {}
                ExecReply::Exited { code } => {
                    // What it wrote is in the pipes by now; what its descendants may still write is not waited for.
                    pump.drain()?;
                    return Ok(code);
                }
                ExecReply::Failed { not_found, not_run, message } => {
                    return Err(refused(not_found, not_run, message).into());
                }
            }
        }
    }
}

/// Gives the command's terminal the size of ours. One without a size leaves it as it is.
fn copy_size(master: BorrowedFd<'_>) {
    if let Ok(size) = terminal::size(io::stdout().as_fd()).or_else(|_| terminal::size(io::stdin().as_fd())) {
        // Fails only when the command is gone, which is then noticed anyway.
        let _ = terminal::set_size(master, size);
    }
}

/// The caller's terminal passes every key on; put back when dropped.
pub(super) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    pub(super) fn enter(terminal: &OwnedFd) -> io::Result<RawMode> {
        let terminal = terminal.try_clone()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(RawMode { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Fails when the terminal is gone: then nobody minds.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_need_a_name() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert_eq!(variable("A=").unwrap(), ("A".to_owned(), String::new()));
        assert_eq!(variable("=b").unwrap_err().exit, Exit::Usage);
        assert_eq!(variable("A").unwrap_err().exit, Exit::Usage);
    }
}
