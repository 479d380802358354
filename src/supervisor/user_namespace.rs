//! The pod's user namespace: how it is made, held, and how processes get into it.
//!
//! The supervisor stays outside: it needs its own privileges for cgroups, logs and records. It holds the namespace by a
//! descriptor, and is itself in the network, IPC and UTS namespaces that belong to it.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use super::spec::IdRange;
use crate::sys::{
    ids,
    pidfd::{self, Ended},
    process::{self, Child, clone_running, flags, pipe},
    seqpacket,
    session::{self, namespace},
    signal,
};

/// For a helper to make a few system calls: much more than it takes on a machine that thrashes.
const HELPER: Duration = Duration::from_secs(20);

/// SIGKILL.
const KILL: i32 = 9;

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    /// clone3(2) with CLONE_NEWUSER.
    #[error("clone a process into a new user namespace")]
    Clone(#[source] io::Error),
    /// A file of /proc that says who is who.
    #[error("write {ids} to {path}")]
    Map {
        /// `uid_map` or `gid_map` of the first process in it.
        path: PathBuf,
        /// What was to be written.
        ids: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A pipe to, or a descriptor of, the first process in it.
    #[error("{step}")]
    Step {
        /// What failed.
        step: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A parameter of the kernel could not be set.
    #[error("set the sysctl {name} to {value:?}")]
    Sysctl {
        /// Its name.
        name: String,
        /// The value wanted.
        value: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The first process in it ended otherwise than by itself.
    #[error("the first process in the user namespace ended with {0:?}")]
    Ended(Option<Ended>),
}

/// A parameter to be set inside: its file, and name and value for messages.
pub struct Parameter {
    /// Path below /proc/sys.
    pub path: PathBuf,
    /// As the pod wrote it.
    pub name: String,
    /// As the pod wrote it.
    pub value: String,
}

/// A user namespace; it lasts as long as this or anything in it.
#[derive(Debug)]
pub struct UserNamespace {
    descriptor: OwnedFd,
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Makes a user namespace with `range`, and in it the namespaces of `kinds` ([`flags`]), which the caller joins. The
/// parameters are set by the namespace's own root: those of IPC listen to nobody else, and ids in a value are its ids.
///
/// # Errors
/// The first step that failed; nothing is left of it then.
pub fn make(range: IdRange, kinds: u64, parameters: &[Parameter]) -> Result<UserNamespace, UserNamespaceError> {
    let (wait, go) = pipe().step("make a pipe")?;
    let (report, reporter) = pipe().step("make a pipe")?;
    let child = clone_running(flags::NEWUSER, None, || match first_process(&wait, &reporter, kinds, parameters) {
        Ok(()) => 0,
        Err((index, error)) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let _ = nix::unistd::write(&reporter, &[index.to_ne_bytes(), errno.to_ne_bytes()].concat());
            1
        }
    })
    .map_err(UserNamespaceError::Clone)?;
    let child = Guarded(child);
    let Child { pid, pidfd } = &child.0;
    drop((wait, reporter));
    let ids = format!("0 {} {}\n", range.first, range.count);
    for name in ["uid_map", "gid_map"] {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        fs::write(&path, &ids).map_err(|source| UserNamespaceError::Map {
            path: path.clone(),
            ids: ids.trim_end().to_owned(),
            source,
        })?;
    }
    let descriptor =
        fs::File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from).step("open the new user namespace")?;
    nix::unistd::write(&go, b"g").map_err(io::Error::from).step("let the first process go on")?;
    let mut answer = [0; 8];
    match nix::unistd::read(&report, &mut answer).map_err(io::Error::from).step("read its report")? {
        1 => {}
        8 => {
            let [index, errno] = [0, 4].map(|at| i32::from_ne_bytes([at, at + 1, at + 2, at + 3].map(|at| answer[at])));
            let source = io::Error::from_raw_os_error(errno);
            return Err(match usize::try_from(index).ok().and_then(|index| parameters.get(index)) {
                Some(Parameter { name, value, .. }) => {
                    UserNamespaceError::Sysctl { name: name.clone(), value: value.clone(), source }
                }
                None => UserNamespaceError::Step { step: "make namespaces in the user namespace", source },
            });
        }
        _ => {
            let ended = pidfd::wait(pidfd.as_fd(), true).step("wait for its end")?.map(|exit| exit.ended);
            return Err(UserNamespaceError::Ended(ended));
        }
    }
    let joined = [(flags::NEWNET, namespace::NET), (flags::NEWIPC, namespace::IPC), (flags::NEWUTS, namespace::UTS)];
    let joined = joined.into_iter().filter(|(flag, _)| kinds & flag != 0).fold(0, |all, (_, kind)| all | kind);
    if joined != 0 {
        session::join(pidfd.as_fd(), joined).step("join the namespaces of the user namespace")?;
    }
    Ok(UserNamespace { descriptor })
}

trait Named<T> {
    fn step(self, step: &'static str) -> Result<T, UserNamespaceError>;
}

impl<T> Named<T> for io::Result<T> {
    fn step(self, step: &'static str) -> Result<T, UserNamespaceError> {
        self.map_err(|source| UserNamespaceError::Step { step, source })
    }
}

/// A child that is killed and reaped unless it has ended before.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // Both fail when it has been reaped.
        let _ = pidfd::send_signal(self.0.pidfd.as_fd(), KILL);
        let _ = pidfd::wait(self.0.pidfd.as_fd(), true);
    }
}

/// Waits for the mappings, becomes root, makes the namespaces of `kinds`, sets the parameters, and stays until the
/// namespaces have been joined. A failure has the index of the parameter, -1 for none.
fn first_process(
    wait: &OwnedFd,
    reporter: &OwnedFd,
    kinds: u64,
    parameters: &[Parameter],
) -> Result<(), (i32, io::Error)> {
    let own = |error: io::Error| (-1, error);
    // Should the supervisor end, nobody else would ever let this process go on.
    process::set_parent_death_signal(KILL).map_err(own)?;
    let mut byte = [0];
    match nix::unistd::read(wait, &mut byte) {
        Ok(1) => {}
        Ok(_) => return Err(own(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => return Err(own(error.into())),
    }
    become_root().map_err(own)?;
    process::set_parent_death_signal(KILL).map_err(own)?; // forgotten when ids change
    // Now, so that what they are made with (the root of the message queues) belongs to root.
    session::leave(kinds as i32).map_err(own)?;
    for (index, parameter) in parameters.iter().enumerate() {
        fs::write(&parameter.path, &parameter.value).map_err(|error| (index as i32, error))?;
    }
    nix::unistd::write(reporter, b"r").map_err(|error| own(error.into()))?;
    // The guard of the supervisor ends this process.
    signal::wait_for_ever()
}

/// From the host's root, who is nobody in a user namespace that it has just entered, to the namespace's own, without
/// further groups. Capabilities stay: they are all there are, within the namespace.
///
/// # Errors
/// EINVAL before the mappings are written.
pub fn become_root() -> io::Result<()> {
    ids::set_groups(&[])?;
    ids::set_group(0)?;
    ids::set_user(0)
}

/// Clones a child of the calling process by way of a helper. The helper (born in `cgroup`) runs `prepare`, in which it may
/// enter other namespaces for good, and then makes the child with `flags`; what `prepare` returns goes to `body`, which
/// the child runs. So a process that is not in a user namespace has a child whose namespaces belong to that.
///
/// `None`: `prepare` failed, and has told so where it tells things.
///
/// # Errors
/// clone3(2) failed, or the helper ended without a word.
pub fn clone_by_helper<T>(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    prepare: impl FnOnce(BorrowedFd<'_>) -> Result<T, i32>,
    body: impl FnOnce(T) -> i32,
) -> io::Result<Option<Child>> {
    let (ours, theirs) = seqpacket::pair()?;
    let helper = clone_running(0, cgroup, || {
        let prepared = match prepare(theirs.as_fd()) {
            Ok(prepared) => prepared,
            Err(code) => return code,
        };
        // The caller becomes the parent, so that it is the one to reap, and the one to die with.
        let (number, child) = match clone_running(flags | flags::PARENT, None, || body(prepared)) {
            Ok(Child { pid, pidfd }) => (pid, Some(pidfd)),
            Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), None),
        };
        let child: Vec<_> = child.iter().map(AsFd::as_fd).collect();
        i32::from(seqpacket::send(theirs.as_fd(), &number.to_ne_bytes(), &child).is_err())
    });
    drop(theirs);
    let _helper = Guarded(helper?);
    if !seqpacket::wait(ours.as_fd(), false, Some(HELPER))? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let Some(packet) = seqpacket::receive(ours.as_fd(), 16)? else { return Ok(None) };
    let number = <[u8; 4]>::try_from(packet.bytes).map(i32::from_ne_bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    match packet.descriptors.into_iter().next() {
        Some(pidfd) => Ok(Some(Child { pid: number, pidfd })),
        None => Err(io::Error::from_raw_os_error(number.saturating_neg())),
    }
}
