//! What the first process of a container and an exec into it have in common: their first steps as a child of the
//! supervisor, and their last ones before they become a program.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{
    ChildStdio, cgroup,
    command::Command,
    error::{Failure, Reason, Step},
    label::Label,
    status::Reporter,
    user::Identity,
};
use crate::{
    supervisor::{
        spec::{CgroupPlacement, LaunchSpec, StartError},
        user_namespace,
    },
    sys::{
        caps::{self, SYS_ADMIN, Sets},
        exec, ids, mount,
        node::{self, Kind},
        openat2::{Scope, openat2, purpose},
        process,
        seccomp::Filter,
        session,
    },
};

/// SIGKILL: nothing of a container outlives its supervisor.
const DEATH_SIGNAL: i32 = 9;

/// The first steps of the child, in the host's view of things. With `users` it is about to enter a user namespace, in
/// which some of them could not be done any more.
pub(super) fn begin(
    spec: &LaunchSpec,
    placement: &CgroupPlacement,
    stdio: ChildStdio,
    keep: &[BorrowedFd<'_>],
    reporter: &mut Reporter,
) -> Result<(), Failure> {
    // The container must not trace or inspect us while we are half inside (CVE-2016-9962).
    process::set_dumpable(false).step(|| "become undumpable")?;

    // Pipes become the standard streams at once; a terminal has to wait for the container's devpts.
    if let ChildStdio::Pipes { stdin, stdout, stderr } = &stdio {
        exec::set_standard_streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            .step(|| "set up the standard streams")?;
        // Inside, the host's root is nobody, and what belongs to it cannot be given away.
        if let Some(users) = spec.users {
            own_standard_streams(users.first, Some(users.first), false)?;
        }
    }
    // Their numbers are closed with everything else of the supervisor's that a fork copies (CVE-2024-21626); from here
    // on this process holds what `keep` names and what it opens itself.
    std::mem::forget(stdio);
    let keep: Vec<_> = keep.iter().copied().chain([reporter.as_fd()]).collect();
    exec::close_all_but(&keep).step(|| "close inherited descriptors")?;

    // The supervisor's end is ours too. (getppid(2) could not tell: it says 0 in a PID namespace of its own.)
    die_with_supervisor(reporter)?;

    // A weight for the OOM killer, written through the host's /proc while that is what /proc is.
    adjust_oom_score(spec.oom_score_adj, reporter)?;
    if spec.users.is_some() {
        set_limits(spec, reporter)?;
    }

    // Version 1 cgroups are joined one by one, before the cgroup namespace takes the present ones as its roots.
    cgroup::join(placement)
}

/// The first steps as a process of its own: a session without a terminal, and no key of whoever started the agent.
pub(super) fn start_session() -> Result<(), Failure> {
    session::start().step(|| "start a session")?;
    match session::join_new_keyring() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        joined => joined.step(|| "join a new session keyring")?,
    }
    node::set_umask(0);
    Ok(())
}

/// From the host's root, who is nobody in the user namespace just entered, to the root of that. The kernel forgets then
/// what was asked of it for this process.
pub(super) fn become_root_inside(reporter: &Reporter) -> Result<(), Failure> {
    user_namespace::become_root().step(|| "become root of the pod's user namespace")?;
    process::set_dumpable(false).step(|| "become undumpable")?;
    die_with_supervisor(reporter)
}

/// Asks for SIGKILL at the supervisor's end, and fails if that has come already: nobody reads the status pipe then.
pub(super) fn die_with_supervisor(reporter: &Reporter) -> Result<(), Failure> {
    let step = || "die with the supervisor";
    process::set_parent_death_signal(DEATH_SIGNAL).step(step)?;
    if exec::is_broken(reporter.as_fd()).step(step)? {
        return Err(Failure::refused(step(), "it is gone already"));
    }
    Ok(())
}

fn adjust_oom_score(score: i32, reporter: &mut Reporter) -> Result<(), Failure> {
    let step = || "write oom_score_adj";
    let path = Path::new("/proc/self/oom_score_adj");
    let file = openat2(mount::here(), path, purpose::WRITE, 0, Scope::NoMagicLinks).step(step)?;
    // Something mounted over it could turn the write into one to another file (CVE-2025-52881).
    if !node::is_on_proc(file.as_fd()).step(step)? {
        return Err(Failure::refused(step(), "/proc is not a proc file system"));
    }
    match File::from(file).write_all(score.to_string().as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            reporter.warn(format!("oom_score_adj {score} needs CAP_SYS_RESOURCE, ignoring"));
            Ok(())
        }
        written => written.step(step),
    }
}

/// What the last steps need, all of it resolved.
pub(super) struct Program<'a> {
    pub(super) spec: &'a LaunchSpec,
    pub(super) command: Command,
    pub(super) identity: Identity,
    /// The working directory and its path for messages.
    pub(super) directory: (OwnedFd, &'a Path),
    /// The AppArmor profile it gets.
    pub(super) label: Option<Label<'a>>,
    /// The standard streams are a terminal made for this process.
    pub(super) has_own_terminal: bool,
}

/// The last steps: from the supervisor's privileges inside the container to its program.
pub(super) fn execute(program: Program<'_>, reporter: &mut Reporter) -> Result<Infallible, Failure> {
    let Program { spec, command, identity, directory: (directory, directory_path), label, has_own_terminal } = program;
    let filter = (!spec.seccomp.is_empty()).then(|| Filter::new(&spec.seccomp));
    node::set_umask(0o022);
    require_mapped(spec, &identity)?;

    // The user must be able to open what it already has: /dev/stdout is a link to the open pipe.
    own_standard_streams(identity.uid, None, has_own_terminal)?;

    // As root first: a directory that the user may not enter by its path is still one it may be started in.
    let entered = match node::change_directory(directory.as_fd()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
        entered => entered.step(|| format!("change to {}", directory_path.display())).map(|()| true)?,
    };

    // Privileges can only shrink from here, through execve too.
    if spec.no_new_privs {
        caps::set_no_new_privileges().step(|| "set no_new_privs")?;
    }

    // Limits, while those that may raise them are still permitted.
    if spec.users.is_none() {
        set_limits(spec, reporter)?;
    }

    // The bounding set is dropped while CAP_SETPCAP is in force; it is what root gets back at execve.
    let available = caps::get().step(|| "read capabilities")?.permitted;
    let wanted = spec.capabilities & available;
    if wanted != spec.capabilities {
        let missing = caps::names(spec.capabilities & !available).join(", ");
        if !missing.is_empty() {
            reporter.warn(format!("capabilities that the supervisor lacks: {missing}, ignoring"));
        }
    }
    caps::limit_bounding(wanted).step(|| "limit the capability bounding set")?;

    // Groups first: setting them needs what giving up root takes away. Permitted capabilities are kept until the end.
    caps::keep_over_user_change(true).step(|| "keep capabilities")?;
    ids::set_groups(&identity.groups).step(|| "set the supplementary groups")?;
    ids::set_group(identity.gid).step(|| format!("change to group {}", identity.gid))?;
    ids::set_user(identity.uid).step(|| format!("change to user {}", identity.uid))?;

    // The kernel forgets both when ids change.
    process::set_dumpable(false).step(|| "become undumpable")?;
    die_with_supervisor(reporter)?;

    if !entered {
        node::change_directory(directory.as_fd()).step(|| format!("change to {}", directory_path.display()))?;
    }
    // Whatever way was found to a directory outside, it ends here (CVE-2024-21626).
    if !node::is_inside_root() {
        let message = "the working directory is outside the container's root";
        return Err(Failure::refused(format!("change to {}", directory_path.display()), message));
    }

    if let Some(mut label) = label {
        label.apply()?;
    }
    exec::reset_signals();
    exec::close_others_on_exec().step(|| "close descriptors on exec")?;

    // Without no_new_privs only CAP_SYS_ADMIN may load a filter, so that it goes last; it is not in the bounding set
    // (unless asked for), and no program is run with it.
    let last = Sets { effective: wanted, permitted: wanted, inheritable: 0 };
    let loading = wanted | if filter.is_some() && !spec.no_new_privs { SYS_ADMIN & available } else { 0 };
    caps::set(Sets { effective: loading, permitted: loading, inheritable: 0 }).step(|| "set capabilities")?;

    // The filter may forbid even write(2): what there is to say is said before it.
    reporter.stage("exec");
    reporter.ready((identity.uid, identity.gid, identity.groups.clone())).step(|| "report to the supervisor")?;
    if let Some(filter) = filter {
        filter.load().step(|| "load the seccomp filter")?;
        if loading != wanted {
            caps::set(last).step(|| "set capabilities under the seccomp filter")?;
        }
    }
    Err(command.execute())
}

/// An id that the pod's user namespace does not have would only be an invalid argument to the kernel.
fn require_mapped(spec: &LaunchSpec, identity: &Identity) -> Result<(), Failure> {
    let Some(users) = spec.users else { return Ok(()) };
    let ids = [("user", identity.uid), ("group", identity.gid)];
    let groups = identity.groups.iter().map(|group| ("supplementary group", *group));
    match ids.into_iter().chain(groups).find(|(_, id)| *id >= users.count) {
        None => Ok(()),
        Some((kind, id)) => {
            let message = format!("{kind} {id} is not in the pod's user namespace, which has {} ids", users.count);
            Err(Failure::refused(StartError::USER, message).because(Reason::Create))
        }
    }
}

/// Gives pipes, sockets and a terminal made for it to the user. Files and devices, the terminal of someone who calls
/// exec among them, are not ours to give.
fn own_standard_streams(uid: u32, gid: Option<u32>, has_own_terminal: bool) -> Result<(), Failure> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let step = || "give the standard streams to the user";
        let status = node::status(stream).step(step)?;
        if status.uid != uid && (has_own_terminal || matches!(status.kind, Kind::Fifo | Kind::Socket)) {
            match node::change_owner(stream, Some(uid), gid) {
                // A pipe of whoever called exec, which may be of a kind that has no owner to change.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                changed => changed.step(step)?,
            }
        }
    }
    Ok(())
}

/// Sets the limits; one that cannot be raised so far becomes what it can be.
fn set_limits(spec: &LaunchSpec, reporter: &mut Reporter) -> Result<(), Failure> {
    for (resource, soft, hard) in spec.rlimits.iter().copied() {
        let step = || format!("set resource limit {resource}");
        match session::set_limit(resource, soft, hard) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let (_, ceiling) = session::limit(resource).step(step)?;
                session::set_limit(resource, soft.min(ceiling), hard.min(ceiling)).step(step)?;
                reporter.warn(format!("resource limit {resource} stays at {ceiling} without CAP_SYS_RESOURCE"));
            }
            set => set.step(step)?,
        }
    }
    Ok(())
}
