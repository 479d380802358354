//! A further process in a container that a runtime made (`exec`): a helper calls the runtime, adopts the process, waits
//! for it, and ends with its code. It stands between the supervisor and the process as the parent of a bound exec does
//! (`container::reaper`), and is told in the same way to kill what it waits for.

use std::{
    convert::Infallible,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    bundle,
    command::{Call, Runtime, Streams},
    conduct::{pipe_for_words, read_pid, standard},
    console::ConsoleSocket,
};
use crate::{
    supervisor::{
        container::{
            ChildStdio, LaunchContext, Spawned, TAKE_ALL,
            error::{Failure, Step},
            status::Reporter,
        },
        spec::{CgroupPlacement, ExecSpec, HandlerSpec, LaunchSpec, StartError},
    },
    sys::{
        epoll::{Epoll, Interest},
        exec, mount,
        openat2::{Scope, openat2, purpose},
        pidfd,
        process::{self, Child, clone_running},
        seqpacket, session, signal,
    },
};

/// SIGKILL.
const KILL: i32 = 9;

/// For a process that was killed to be gone. One that hangs in the kernel is the container's.
const DYING: Duration = Duration::from_secs(2);

/// What a helper works from.
struct Part<'a> {
    spec: &'a ExecSpec,
    launch: &'a LaunchSpec,
    handler: &'a HandlerSpec,
    placement: &'a CgroupPlacement,
    number: u64,
    user: (u32, u32, Vec<u32>),
}

/// Starts exec `number` in the container of `launch`, which has a handler.
///
/// # Errors
/// There is no process then.
pub fn start(
    (spec, number): (&ExecSpec, u64),
    launch: &LaunchSpec,
    placement: &CgroupPlacement,
    stdio: ChildStdio,
    context: &LaunchContext<'_>,
) -> Result<Spawned, StartError> {
    let Some(handler) = launch.handler.as_deref() else {
        return Err(Failure::refused("find the handler of the container", "there is none").into());
    };
    let part = Part { spec, launch, handler, placement, number, user: context.user.cloned().unwrap_or_default() };
    let (status, status_writer) = process::pipe().step(|| "make the status pipe")?;
    let (console_socket, console) = match &stdio {
        ChildStdio::Terminal => {
            let (ours, theirs) = seqpacket::pair().step(|| "make the console socket")?;
            (Some(ours), Some(theirs))
        }
        ChildStdio::Pipes { .. } => (None, None),
    };
    let received = context.received;
    let child = clone_running(0, None, || {
        let mut reporter = Reporter::new(status_writer, received);
        match run(&part, &stdio, console, &mut reporter) {
            Ok(never) => match never {},
            Err(failure) => {
                kill_children();
                reporter.failed(failure);
                127
            }
        }
    });
    let Child { pid, pidfd } = child.step(|| "clone")?;
    Ok(Spawned { pid, pidfd, status, console_socket })
}

/// Runs in the child, in the supervisor's cgroups.
fn run(
    part: &Part<'_>,
    stdio: &ChildStdio,
    console: Option<OwnedFd>,
    reporter: &mut Reporter,
) -> Result<Infallible, Failure> {
    process::set_name(c"berth-exec");
    process::set_dumpable(false).step(|| "become undumpable")?;
    process::set_parent_death_signal(KILL).step(|| "die with the supervisor")?;
    let mut keep: Vec<BorrowedFd<'_>> = console.iter().map(AsFd::as_fd).chain([reporter.as_fd()]).collect();
    if let ChildStdio::Pipes { stdin, stdout, stderr } = stdio {
        keep.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    }
    exec::close_all_but(&keep).step(|| "close inherited descriptors")?;
    session::start().step(|| "start a session")?;
    let killed = signal::descriptor_for(&[TAKE_ALL]).step(|| "watch for the end")?;
    // What the runtime leaves behind is this process's, to be waited for.
    process::adopt_orphans().step(|| "adopt orphans")?;
    reporter.stage("clone");

    let files = Files::new(part);
    bundle::write(&files.process, &process_of(part)?)?;
    let terminal = begin(part, stdio, &files, killed.as_fd())?;
    let pid = read_pid(&files.pid)?;
    drop(files);
    let pidfd = pidfd::open(pid).step(|| format!("open process {pid}"))?;
    let parent = process::parent(pid).step(|| format!("look at process {pid}"))?;
    if parent != std::process::id() as i32 {
        let message = format!("process {pid} is a child of {parent}: how it ends could not be learnt");
        return Err(Failure::refused("take over the process", message));
    }
    // The runtime has put it into the container's cgroup; there it could not be told from the container's own.
    let name = format!("exec-{}", part.number);
    let own = part.placement.unified.iter().chain(&part.placement.v1).find(|directory| directory.ends_with(&name));
    if let Some(directory) = own {
        let joined = fs::write(directory.join("cgroup.procs"), pid.to_string());
        if !matches!(&joined, Err(error) if error.raw_os_error() == Some(libc::ESRCH)) {
            joined.step(|| format!("join cgroup {}", directory.display()))?;
        }
    }
    if let (Some(master), Some(socket)) = (&terminal, &console) {
        seqpacket::send(socket.as_fd(), b"console", &[master.as_fd()]).step(|| "hand over the terminal")?;
    }
    reporter.stage("exec");
    reporter.ready(part.user.clone()).step(|| "report to the supervisor")?;
    // The status pipe, the terminal and the streams are the process's alone. (Owners of closed numbers are never dropped.)
    let closed = exec::close_all_but(&[pidfd.as_fd(), killed.as_fd()]);
    std::mem::forget((terminal, console));
    if closed.is_err() {
        process::exit_now(127);
    }
    process::exit_now(wait(&pidfd, &killed))
}

/// The files of one call, removed with this.
struct Files {
    process: PathBuf,
    pid: PathBuf,
    log: PathBuf,
    console: String,
}

impl Files {
    fn new(part: &Part<'_>) -> Files {
        let name = |what: &str| part.handler.bundle.join(format!("exec-{}{what}", part.number));
        Files {
            process: name(".json"),
            pid: name(".pid"),
            log: name(".log"),
            console: format!("exec-{}.sock", part.number),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in [&self.process, &self.pid, &self.log] {
            // Left over it goes with the attempt.
            let _ = fs::remove_file(file);
        }
    }
}

/// Has the runtime start the process. The master of its terminal, if it has one.
fn begin(
    part: &Part<'_>,
    stdio: &ChildStdio,
    files: &Files,
    killed: BorrowedFd<'_>,
) -> Result<Option<OwnedFd>, Failure> {
    let runtime = Runtime { handler: part.handler, id: &part.launch.id, log: files.log.clone() };
    let mut options = vec!["--detach".into(), "--process".into(), (&files.process).into()];
    options.extend(["--pid-file".into(), (&files.pid).into()]);
    // As with the container itself (`conduct`).
    let cgroup = match &part.placement.unified {
        Some(unified) if !part.placement.v1.is_empty() => Some(open(unified)?),
        _ => None,
    };
    let call = |options, streams| Call {
        verb: "exec",
        options,
        operands: Vec::new(),
        streams,
        given_up: Some(killed),
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        limit: runtime.limit(),
    };
    match stdio {
        ChildStdio::Pipes { stdin, stdout, stderr } => {
            // What it prints goes to whoever asked.
            let streams = Streams { standard: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], words: None };
            runtime.call(&call(options, streams)).map(|()| None)
        }
        ChildStdio::Terminal => {
            let socket = ConsoleSocket::listen(&part.handler.bundle, &files.console);
            let socket = socket.step(|| "make the console socket")?;
            options.extend(["--console-socket".into(), socket.path().into()]);
            let (words, errors) = pipe_for_words()?;
            runtime.call(&call(options, Streams { standard: standard(&errors), words: Some(words.as_fd()) }))?;
            socket.take().step(|| "receive the terminal").map(Some)
        }
    }
}

fn open(directory: &Path) -> Result<OwnedFd, Failure> {
    openat2(mount::here(), directory, purpose::DIRECTORY, 0, Scope::NoMagicLinks)
        .step(|| format!("open cgroup {}", directory.display()))
}

/// The process of the container's configuration, with what this one has of its own.
fn process_of(part: &Part<'_>) -> Result<Value, Failure> {
    let mut config = bundle::read(&part.handler.bundle.join("config.json"))?;
    Ok(specialize(config["process"].take(), part.spec))
}

fn specialize(mut process: Value, spec: &ExecSpec) -> Value {
    process["args"] = json!(spec.args);
    process["terminal"] = spec.tty.into();
    if let Some(cwd) = &spec.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(variables) = process["env"].as_array_mut() {
        let name =
            |value: &Value| value.as_str().and_then(|text| text.split_once('=')).map(|(name, _)| name.to_owned());
        variables.retain(|value| !spec.env.iter().any(|(own, _)| name(value).as_ref() == Some(own)));
        variables.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}").into()));
        if spec.tty && !variables.iter().any(|value| name(value).as_deref() == Some("TERM")) {
            variables.push("TERM=xterm".into());
        }
    }
    process
}

/// What a runtime that was given up has left to this process, which has no other children and has reaped none of these.
fn kill_children() {
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        let _ = process::kill(child, KILL);
    }
}

/// Waits for the process and kills it when that is asked for. Its code.
fn wait(pidfd: &OwnedFd, killed: &OwnedFd) -> i32 {
    const ENDED: u64 = 0;
    const KILLED: u64 = 1;
    let mut ready = Vec::new();
    let Ok(epoll) = Epoll::new() else { return 128 + KILL };
    if epoll.add(pidfd, ENDED, Interest::Read).and_then(|()| epoll.add(killed, KILLED, Interest::Read)).is_err() {
        return 128 + KILL;
    }
    let mut limit = None;
    loop {
        ready.clear();
        if epoll.wait(limit, &mut ready).is_err() {
            return 128 + KILL;
        }
        if ready.iter().any(|event| event.token == ENDED) {
            let exit = pidfd::wait(pidfd.as_fd(), true).ok().flatten();
            return exit.map_or(128 + KILL, |exit| exit.ended.code());
        }
        if ready.is_empty() && limit.is_some() {
            return 128 + KILL;
        }
        if ready.iter().any(|event| event.token == KILLED) {
            signal::drain(killed.as_fd());
            let _ = pidfd::send_signal(pidfd.as_fd(), KILL);
            limit = Some(DYING);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_is_the_containers_process_but_for_what_it_asks_for() {
        let process = json!({
            "args": ["init"], "cwd": "/srv", "terminal": false, "env": ["A=1", "B=2", "PATH=/bin"],
            "user": {"uid": 7, "gid": 8}, "noNewPrivileges": true,
        });
        let plain = ExecSpec { args: vec!["id".to_owned()], ..ExecSpec::default() };
        let found = specialize(process.clone(), &plain);
        let expected = json!({
            "args": ["id"], "cwd": "/srv", "terminal": false, "env": ["A=1", "B=2", "PATH=/bin"],
            "user": {"uid": 7, "gid": 8}, "noNewPrivileges": true,
        });
        assert_eq!(found, expected);
        let own = ExecSpec {
            tty: true,
            cwd: Some("/tmp".into()),
            env: vec![("B".to_owned(), "own".to_owned())],
            ..plain.clone()
        };
        let found = specialize(process, &own);
        assert_eq!(found["env"], json!(["A=1", "PATH=/bin", "B=own", "TERM=xterm"]));
        assert_eq!((&found["cwd"], &found["terminal"]), (&json!("/tmp"), &json!(true)));
    }
}
