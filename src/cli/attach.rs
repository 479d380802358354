//! `berth attach`: connects this process's streams with those of a container that runs.
//!
//! Always by pipes: the supervisor writes to them without ever waiting, which a file or the caller's own terminal would
//! not allow.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::ExitCode,
};

use nix::{
    libc::SIGWINCH,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    args::AttachArgs,
    client::unreachable,
    exec::{RawMode, Trouble, decode, gone, refused, send},
    exit::{Exit, Failed},
    pump::{Pump, Route},
};
use crate::{
    server::{
        attach::AttachRequest,
        socket,
        stream::{ExecReply, MAX_PACKET},
    },
    sys::{process::pipe, seqpacket, signal, terminal},
    worker::handle::TerminalSize,
};

/// Runs the command; the exit code is the container's.
///
/// # Errors
/// It could not be attached to.
pub fn run(socket: &Path, args: &AttachArgs) -> Result<ExitCode, Failed> {
    let request = AttachRequest { attach: args.pod.clone(), container: args.container.clone(), wait: false };
    let end = attach(socket, &request, args.stdin)?;
    if !end.attached {
        eprintln!("berth: the container has just ended; berth logs has what it wrote");
    }
    Ok(end.code)
}

/// How an attachment came to its end.
pub struct End {
    /// The container's code.
    pub code: ExitCode,
    /// Whether there was one: a container may be over before anybody can attach to it.
    pub attached: bool,
    /// Nothing was written while it lasted.
    pub silent: bool,
}

/// Attaches and stays until the container ends.
///
/// # Errors
/// It could not be attached to.
pub fn attach(socket: &Path, request: &AttachRequest, stdin: bool) -> Result<End, Failed> {
    let connection = socket::connect_stream(socket).map_err(|error| unreachable(socket, &error))?;
    let broken = |error: io::Error| Failed::new(Exit::Failure, format!("pass the streams of the container: {error}"));
    let (code, attached, silent) =
        session(&connection, request, stdin).map_err(|trouble| trouble.unwrap_or_else(broken))?;
    // Codes are 0-255; anything else cannot come from a process.
    Ok(End { code: ExitCode::from(u8::try_from(code).unwrap_or(Exit::Failure as u8)), attached, silent })
}

/// The container's code, whether it was attached to, and whether it was silent.
fn session(connection: &OwnedFd, request: &AttachRequest, stdin: bool) -> Result<(i32, bool, bool), Trouble> {
    let mut pump = Pump::default();
    let own_stdin = io::stdin();
    let input = match stdin {
        true => {
            let (reader, writer) = pipe()?;
            pump.add(Route::input(own_stdin.as_fd().try_clone_to_owned()?, writer)?);
            reader
        }
        false => OwnedFd::from(File::open("/dev/null")?),
    };
    let (stdout_reader, stdout) = pipe()?;
    pump.add(Route::output(stdout_reader, io::stdout().as_fd().try_clone_to_owned()?)?);
    let (stderr_reader, stderr) = pipe()?;
    pump.add(Route::output(stderr_reader, io::stderr().as_fd().try_clone_to_owned()?)?);
    // Blocked and watched before the size is first read, so that no change of it is missed.
    let resized = signal::descriptor_for(&[SIGWINCH])?;
    send(connection, request, &[input.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
    // The other ends are the supervisor's alone now: when it closes them, that is the end.
    drop((input, stdout, stderr));
    let mut raw = None;
    let mut attached = false;
    loop {
        let (mut polled, routes) = pump.interests();
        let first = polled.len();
        polled.push(PollFd::new(connection.as_fd(), PollFlags::POLLIN));
        polled.push(PollFd::new(resized.as_fd(), PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            result => result?,
        };
        let ready: Vec<bool> = polled.iter().map(|entry| entry.any().unwrap_or(true)).collect();
        drop(polled);
        pump.advance(&routes, &ready[..first])?;
        if ready[first + 1] {
            signal::drain(resized.as_fd());
            if raw.is_some() {
                send_size(connection)?;
            }
        }
        if !ready[first] {
            continue;
        }
        let reply = match seqpacket::receive(connection.as_fd(), MAX_PACKET) {
            Ok(Some(packet)) => decode(&packet)?,
            Ok(None) => return Err(gone().into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        match reply {
            ExecReply::Attached { terminal, .. } => {
                attached = true;
                if terminal && stdin && own_stdin.is_terminal() {
                    send_size(connection)?;
                    raw = Some(RawMode::enter(&own_stdin.as_fd().try_clone_to_owned()?)?);
                }
            }
            ExecReply::Waiting { why } => eprintln!("berth: the container is not started yet: {why}"),
            ExecReply::Started { .. } => {}
            ExecReply::Exited { code } => {
                // What it wrote before it ended is in the pipes by now.
                pump.drain()?;
                return Ok((code, attached, !pump.has_output()));
            }
            ExecReply::Failed { not_found, not_run, message } => {
                return Err(refused(not_found, not_run, message).into());
            }
        }
    }
}

/// Gives the container's terminal the size of ours. One without a size leaves it as it is.
fn send_size(connection: &OwnedFd) -> Result<(), Trouble> {
    let own = terminal::size(io::stdout().as_fd()).or_else(|_| terminal::size(io::stdin().as_fd()));
    match own {
        Ok(size) => send(connection, &TerminalSize { rows: size.rows, columns: size.columns }, &[]),
        Err(_) => Ok(()),
    }
}
