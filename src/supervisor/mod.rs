//! The pod's own small process: pause, parent and scribe.
//!
//! It holds the pod's namespaces, is the parent of every container of the pod, writes their output to log files and
//! records how they ended, so that none of this depends on the agent being alive. It is single-threaded and waits in one
//! place (`server`); it knows nothing of Kubernetes ([`spec`]); what it is asked and answers is in [`protocol`].
//!
//! The order at the end of a container is the heart of it: reap, read the output to its end, read the OOM counter, sync
//! the log, write `exit.json` durably, and only then tell. The file is the truth, the message a hint.

pub mod container;
pub mod log;
pub mod protocol;
pub mod spec;
pub mod user_namespace;

mod attach;
mod attempt;
mod connection;
mod exec;
mod exec_group;
mod kill;
mod pause;
mod record;
mod sandbox;
mod server;
mod token;

use std::{
    env,
    error::Error,
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use connection::Connection;
use protocol::{Answer, Call, Message};
use server::Server;

use crate::sys::{
    epoll::{Epoll, Interest},
    process, seqpacket, signal,
};

/// `argv[0]` of a supervisor: what `main` dispatches on.
pub const PROGRAM: &str = "berth-sandbox";

/// Name of the listening socket in the pod's run directory.
pub const SOCKET: &str = "supervisor.sock";

/// `argv[3]` of a supervisor that was started in network, IPC and UTS namespaces made for it.
pub const NAMESPACES_MADE: &str = "namespaces-made";

/// How long a supervisor that could not make its sandbox stays to tell the agent why.
const FAREWELL: Duration = Duration::from_secs(5);

/// The whole life of a supervisor: `argv[1]` is the pod's directory (with `sandbox.json`), `argv[2]` its run directory,
/// `argv[3]` perhaps [`NAMESPACES_MADE`], descriptor 0 the listening socket. Errors go to standard error, which is a file, and to whoever says Hello.
pub fn run() -> ExitCode {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (Some(directory), Some(run_directory)) = (arguments.next(), arguments.next()) else {
        eprintln!("{PROGRAM}: is started by the agent, with a pod's directories and a socket");
        return ExitCode::from(2);
    };
    let made = arguments.next().is_some_and(|argument| argument == Path::new(NAMESPACES_MADE));
    let listener = match prepare() {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("{PROGRAM}: take over the listening socket: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match serve(&directory, (&run_directory, made), &listener) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = chain(&*error);
            eprintln!("{PROGRAM}: {message}");
            // Ignoring: without anybody to tell, the log has it.
            let _ = say_farewell(&listener, &message);
            ExitCode::FAILURE
        }
    };
    // A socket nobody listens on would only be refused; its absence says the same sooner.
    let _ = fs::remove_file(run_directory.join(SOCKET));
    result
}

/// Makes the process its own: name, directory, signals. Returns the listening socket, moved away from descriptor 0.
fn prepare() -> io::Result<OwnedFd> {
    process::set_name(c"berth-sandbox");
    // Already so when the agent started it; harmless then.
    let _ = nix::unistd::setsid();
    env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // When the pod ends is for the agent to say, by message; a service manager's SIGTERM to everything is not that.
    for ignored in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
        signal::ignore(ignored);
    }
    let stdin = io::stdin();
    let listener = stdin.as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(listener)
}

fn serve(directory: &Path, (run_directory, made): (&Path, bool), listener: &OwnedFd) -> Result<(), Box<dyn Error>> {
    let spec = sandbox::read(directory)?;
    // Before the first child: its end must not be missed.
    let signals = signal::descriptor_for(&[libc::SIGCHLD])?;
    signal::block(container::TAKE_ALL);
    let sandbox = sandbox::set_up(&spec, run_directory, made)?;
    drop(spec);
    Server::new(listener.try_clone()?, signals, sandbox)?.run()?;
    Ok(())
}

/// Answers the first Hello with `message`.
fn say_farewell(listener: &OwnedFd, message: &str) -> io::Result<()> {
    let until = Instant::now() + FAREWELL;
    let wait = |descriptor: &dyn AsFd| -> io::Result<bool> {
        let (epoll, mut ready) = (Epoll::new()?, Vec::new());
        epoll.add(descriptor, 0, Interest::Read)?;
        epoll.wait(Some(until.saturating_duration_since(Instant::now())), &mut ready)?;
        Ok(!ready.is_empty())
    };
    while wait(listener)? {
        let Some(socket) = seqpacket::accept(listener.as_fd())? else { continue };
        let mut connection = Connection::new(socket);
        while wait(&connection.descriptor())? {
            match connection.receive() {
                Ok(Some((request, _))) => {
                    let answer = Answer::Error { message: message.to_owned() };
                    let _ = connection.send(&Message::Reply { id: request.id, answer }, None);
                    if matches!(request.call, Call::Hello { .. }) {
                        return Ok(());
                    }
                }
                Ok(None) => {}
                Err(connection::Broken) => break,
            }
        }
    }
    Ok(())
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
