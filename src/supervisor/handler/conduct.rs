//! The life of a conductor.

use std::{
    ffi::OsString,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    MAX_MESSAGE, Order, Word,
    bundle::{self, Namespaces},
    command::{Call, Runtime, Streams},
    console::ConsoleSocket,
    stage,
};
use crate::{
    supervisor::{
        container::{
            ChildStdio,
            error::{Failure, Step},
            user::{self, Files},
        },
        kill,
        spec::{HandlerSpec, LaunchSpec, StartError},
    },
    sys::{
        exec, mount, node,
        openat2::{Scope, openat2, purpose},
        process, seqpacket, session, stream,
    },
};

/// The longest that a call at the end may take: what the runtime does not do is done without it.
const AT_THE_END: Duration = Duration::from_secs(8);

/// What a conductor is given.
pub(super) struct Part<'a> {
    pub(super) spec: &'a LaunchSpec,
    pub(super) handler: &'a HandlerSpec,
    pub(super) stdio: &'a ChildStdio,
    /// Non-blocking read end of the container's standard error.
    pub(super) words: Option<BorrowedFd<'a>>,
    pub(super) line: BorrowedFd<'a>,
    pub(super) namespaces: Namespaces,
    pub(super) received: Instant,
}

/// Runs in the child, which has its own mount namespace; everything else is the supervisor's, its cgroups among it: what a
/// runtime needs for itself is the pod's overhead.
pub(super) fn run(part: Part<'_>) -> i32 {
    process::set_name(c"berth-runtime");
    let runtime = Runtime { handler: part.handler, id: &part.spec.id, log: part.handler.bundle.join("log.json") };
    let begun = prepare(&part).and_then(|()| begin(&part, &runtime));
    // The container has them now, or never will: as long as we hold them their readers see no end.
    let closed = exec::close_all_but(&[part.line]);
    match begun.and_then(|()| closed.step(|| "close the container's streams")) {
        Ok(()) => serve(&part, &runtime),
        Err(failure) => {
            end(&part, &runtime);
            // Ignored: nobody is there to be told.
            let _ = say(part.line, &Word::Failed(failure.into()), None);
            1
        }
    }
}

fn prepare(part: &Part<'_>) -> Result<(), Failure> {
    process::set_dumpable(false).step(|| "become undumpable")?;
    let mut keep = vec![part.line];
    keep.extend(part.words);
    if let ChildStdio::Pipes { stdin, stdout, stderr } = part.stdio {
        keep.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    }
    // What keeps the output of other containers open, above all.
    exec::close_all_but(&keep).step(|| "close inherited descriptors")?;
    session::start().step(|| "start a session")?;
    node::set_umask(0o022);
    Ok(())
}

/// Everything up to the program.
fn begin(part: &Part<'_>, runtime: &Runtime<'_>) -> Result<(), Failure> {
    let Part { spec, handler, received, .. } = part;
    let mut stages = vec![super::stage("clone", *received)];
    for directory in [&handler.state, &handler.bundle] {
        stage::make_directory(directory).step(|| format!("make {}", directory.display()))?;
    }
    let staged = stage::stage(spec, handler)?;
    stages.push(super::stage("rootfs", *received));
    let files = Files::read(staged.root.as_fd())?;
    let identity = user::identify(&spec.user, &files)?;
    let warnings = bundle::complete(spec, handler, (&staged, &identity), part.namespaces)?;
    stages.push(super::stage("user", *received));

    let pid_file = handler.bundle.join("pid");
    let _ = fs::remove_file(&pid_file);
    let console = create(part, runtime, &pid_file)?;
    let pid = read_pid(&pid_file)?;
    stages.push(super::stage("create", *received));
    // Whose child it is, its end is told to: the supervisor, as the nearest who adopts.
    let parent = process::parent(pid).step(|| format!("look at process {pid}"))?;
    if parent != part.namespaces.pod {
        let message = format!("process {pid} is a child of {parent}: how it ends could not be learnt");
        return Err(Failure::refused("take over the container's first process", message));
    }
    say(part.line, &Word::Created { pid }, console.as_ref().map(AsFd::as_fd)).step(|| "report to the supervisor")?;
    drop(console);

    match receive(part.line, None).step(|| "wait for the word to go")? {
        Some(Order::Go) => {}
        _ => return Err(Failure::refused("wait for the word to go", "it was given up")),
    }
    let (words, errors) = pipe_for_words()?;
    let streams = Streams { standard: standard(&errors), words: Some(words.as_fd()) };
    call(runtime, "start", streams, (Vec::new(), Vec::new()), (Some(part.line), runtime.limit()))?;
    stages.push(super::stage("start", *received));
    let user = (identity.uid, identity.gid, identity.groups);
    say(part.line, &Word::Started { stages, user, warnings }, None).step(|| "report to the supervisor")
}

/// Has the runtime make the container. The master of its terminal, if it has one.
fn create(part: &Part<'_>, runtime: &Runtime<'_>, pid_file: &Path) -> Result<Option<OwnedFd>, Failure> {
    let Part { spec, handler, .. } = part;
    let mut options = vec!["--bundle".into(), handler.bundle.clone().into(), "--pid-file".into(), pid_file.into()];
    // On a machine with version 1 hierarchies, the unified one limits nothing: who is born there is found and killed with
    // the container, whatever the runtime knows of that hierarchy. Where it does limit, the runtime's own memory is not
    // the container's.
    let cgroup = match (&spec.cgroup.unified, spec.cgroup.v1.is_empty()) {
        (Some(unified), false) => Some(
            openat2(mount::here(), unified, purpose::DIRECTORY, 0, Scope::NoMagicLinks)
                .step(|| format!("open cgroup {}", unified.display()))?,
        ),
        _ => None,
    };
    let call = |options, streams| Call {
        verb: "create",
        options,
        operands: Vec::new(),
        streams,
        given_up: Some(part.line),
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        limit: runtime.limit(),
    };
    match part.stdio {
        ChildStdio::Pipes { stdin, stdout, stderr } => {
            let streams = Streams { standard: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], words: part.words };
            runtime.call(&call(options, streams))?;
            Ok(None)
        }
        ChildStdio::Terminal => {
            let socket = ConsoleSocket::listen(&handler.bundle, "console.sock").step(|| "make the console socket")?;
            options.extend(["--console-socket".into(), socket.path().into()]);
            let (words, errors) = pipe_for_words()?;
            runtime.call(&call(options, Streams { standard: standard(&errors), words: Some(words.as_fd()) }))?;
            socket.take().step(|| "receive the terminal").map(Some)
        }
    }
}

/// The number that a runtime has written into the file it was given.
pub(super) fn read_pid(file: &Path) -> Result<i32, Failure> {
    let step = || format!("read {}", file.display());
    let text = fs::read_to_string(file).step(step)?;
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| Failure::refused(step(), format!("{text:?} is no pid")))
}

/// A pipe for what a call prints: its non-blocking read end first.
pub(super) fn pipe_for_words() -> Result<(OwnedFd, OwnedFd), Failure> {
    let (reader, writer) = process::pipe().step(|| "make a pipe")?;
    stream::set_nonblocking(reader.as_fd()).step(|| "make a pipe")?;
    Ok((reader, writer))
}

/// Standard streams of a call that has nothing to do with the container's. (Our own input is /dev/null.)
pub(super) fn standard(errors: &OwnedFd) -> [BorrowedFd<'_>; 3] {
    static STDIN: std::sync::OnceLock<std::io::Stdin> = std::sync::OnceLock::new();
    [STDIN.get_or_init(std::io::stdin).as_fd(), errors.as_fd(), errors.as_fd()]
}

fn call(
    runtime: &Runtime<'_>,
    verb: &'static str,
    streams: Streams<'_>,
    (options, operands): (Vec<OsString>, Vec<OsString>),
    (given_up, limit): (Option<BorrowedFd<'_>>, Duration),
) -> Result<(), Failure> {
    runtime.call(&Call { verb, options, operands, streams, given_up, cgroup: None, limit })
}

/// Until the container is to be forgotten.
fn serve(part: &Part<'_>, runtime: &Runtime<'_>) -> i32 {
    loop {
        let done = match receive(part.line, None) {
            Ok(Some(Order::Signal(signal))) => simple(runtime, "kill", (Vec::new(), vec![signal.to_string().into()])),
            Ok(Some(Order::Update(resources))) => update(part.handler, runtime, &resources),
            Ok(Some(Order::Go | Order::GiveUp)) => continue,
            Ok(Some(Order::Delete)) => {
                forget(runtime);
                return 0;
            }
            Ok(None) | Err(_) => {
                end(part, runtime);
                return 0;
            }
        };
        let failure = done.err().map(|failure| StartError::from(failure).sentence());
        // Without the supervisor the line is closed, which is seen next.
        let _ = say(part.line, &Word::Done { failure }, None);
    }
}

fn update(handler: &HandlerSpec, runtime: &Runtime<'_>, resources: &serde_json::Value) -> Result<(), Failure> {
    let file = handler.bundle.join("resources.json");
    bundle::write(&file, resources)?;
    simple(runtime, "update", (vec!["--resources".into(), file.into()], Vec::new()))
}

/// A call of a running container's.
fn simple(runtime: &Runtime<'_>, verb: &'static str, arguments: (Vec<OsString>, Vec<OsString>)) -> Result<(), Failure> {
    let (words, errors) = pipe_for_words()?;
    let streams = Streams { standard: standard(&errors), words: Some(words.as_fd()) };
    call(runtime, verb, streams, arguments, (None, runtime.limit()))
}

/// The end of a container that nobody records: nothing of it goes on.
fn end(part: &Part<'_>, runtime: &Runtime<'_>) {
    // Ignored: the agent does the same for the whole pod.
    let _ = kill::everything_in(&part.spec.cgroup);
    forget(runtime);
}

/// Has the runtime forget the container, if it knows it. One that cannot leaves what goes with the pod.
fn forget(runtime: &Runtime<'_>) {
    let Ok((words, errors)) = pipe_for_words() else { return };
    let streams = Streams { standard: standard(&errors), words: Some(words.as_fd()) };
    let options = (vec!["--force".into()], Vec::new());
    let forgotten = call(runtime, "delete", streams, options, (None, AT_THE_END.min(runtime.limit())));
    if let Err(failure) = forgotten {
        // Standard error is the supervisor's log.
        eprintln!("{}: {}", runtime.id, StartError::from(failure).sentence());
    }
}

/// The next order; `None` when the supervisor is gone.
fn receive(line: BorrowedFd<'_>, limit: Option<Duration>) -> std::io::Result<Option<Order>> {
    seqpacket::wait(line, false, limit)?;
    let Some(packet) = seqpacket::receive(line, MAX_MESSAGE)? else { return Ok(None) };
    serde_json::from_slice(&packet.bytes).map(Some).map_err(std::io::Error::other)
}

fn say(line: BorrowedFd<'_>, word: &Word, descriptor: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(word)?;
    loop {
        match seqpacket::send(line, &bytes, descriptor.as_slice()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => drop(seqpacket::wait(line, true, None)?),
            sent => return sent,
        }
    }
}
