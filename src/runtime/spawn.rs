//! Starting a supervisor: its socket, its process, in this order.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};

use super::spare::{self, SpareNamespaces};
use crate::{
    store::{
        durable::{self, StoreError},
        layout::PodDirs,
    },
    supervisor::{self, spec::SandboxSpec},
    sys::{
        self, memfd, pidfd,
        process::{self, Child},
        seqpacket,
    },
};

/// Why a supervisor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program could not be copied to where nobody can write.
    #[error("copy {path} to memory")]
    Seal {
        /// The program.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A record could not be written.
    #[error("write a record of the sandbox")]
    Record(#[source] StoreError),
    /// A step on a path.
    #[error("{step} {path}")]
    Path {
        /// `create`, `open`, `listen on`, `look at`.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A path with a zero byte.
    #[error("{0} contains a zero byte")]
    ZeroByte(PathBuf),
    /// The process.
    #[error("start the supervisor")]
    Start(#[source] sys::spawn::SpawnError),
}

fn path_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpawnError {
    let path = path.to_owned();
    move |source| SpawnError::Path { step, path, source }
}

/// The program that supervisors run: a copy of our own that nothing can change, neither a container that is root nor a
/// package manager that replaces the file. Made once, cheap to clone; all supervisors share its pages.
#[derive(Debug, Clone)]
pub struct SealedBinary {
    file: Arc<OwnedFd>,
}

impl SealedBinary {
    /// A copy of the running program.
    ///
    /// # Errors
    /// [`SpawnError::Seal`].
    pub fn load() -> Result<SealedBinary, SpawnError> {
        SealedBinary::from_path(Path::new("/proc/self/exe"))
    }

    /// A copy of another program, for tests of this one.
    ///
    /// # Errors
    /// [`SpawnError::Seal`].
    pub fn from_path(path: &Path) -> Result<SealedBinary, SpawnError> {
        File::open(path)
            .and_then(|file| memfd::sealed_copy(c"berth", &file))
            .map(|file| SealedBinary { file: Arc::new(file) })
            .map_err(|source| SpawnError::Seal { path: path.to_owned(), source })
    }
}

impl AsFd for SealedBinary {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Which process a supervisor is. Stored as `<run>/pods/<uid>/supervisor.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the writer's records.
    pub version: u32,
    /// Process id on the host.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`: pids and start times repeat after a reboot.
    pub boot_id: String,
}

impl Identity {
    /// That of the process `pid`.
    ///
    /// # Errors
    /// It does not exist.
    pub fn of(pid: i32) -> io::Result<Identity> {
        let start_time = process::start_time(pid)?;
        Ok(Identity { version: supervisor::spec::VERSION, pid, start_time, boot_id: boot_id()?.to_owned() })
    }

    /// Whether that very process still exists.
    pub fn is_alive(&self) -> bool {
        boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
            && process::start_time(self.pid).is_ok_and(|start_time| start_time == self.start_time)
    }
}

/// Which does not change as long as anybody can ask.
fn boot_id() -> io::Result<&'static str> {
    static READ: OnceLock<String> = OnceLock::new();
    if let Some(boot_id) = READ.get() {
        return Ok(boot_id);
    }
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned();
    Ok(READ.get_or_init(|| read))
}

/// A process that is killed and reaped unless somebody takes charge of it.
#[derive(Debug)]
pub struct Fledgling(Option<OwnedFd>);

impl Fledgling {
    /// Another descriptor of the process.
    ///
    /// # Errors
    /// EMFILE.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.as_ref().map_or_else(|| Err(io::ErrorKind::NotFound.into()), OwnedFd::try_clone)
    }

    /// Takes charge: the process is the caller's to reap from now on.
    pub fn adopt(mut self) {
        self.0 = None;
    }
}

impl Drop for Fledgling {
    fn drop(&mut self) {
        if let Some(pidfd) = self.0.take() {
            // Fails only when it has ended already; the wait is then short, too.
            let _ = pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = pidfd::wait(pidfd.as_fd(), true);
        }
    }
}

/// A supervisor's process, just started, and a connection that it will find in its backlog.
#[derive(Debug)]
pub struct Started {
    /// The process, a child of ours.
    pub process: Fledgling,
    /// Connected to its socket.
    pub connection: OwnedFd,
}

/// Makes the socket of a supervisor and starts it on that and on `sandbox.json`, which is `spec` and in place: whoever
/// looks finds the record before there is a process. The caller must have made sure that no supervisor of this pod runs:
/// the socket of an older one is replaced.
///
/// The record need not be durable before something runs in the sandbox. A power cut until then takes the process with it,
/// and the record, whole or not, tells of nothing that is left.
///
/// # Errors
/// The step that failed; no process is left behind.
pub fn start(
    binary: &SealedBinary,
    spare: &SpareNamespaces,
    directories: &PodDirs,
    spec: &SandboxSpec,
) -> Result<Started, SpawnError> {
    let run = &directories.run;
    DirBuilder::new().recursive(true).mode(0o700).create(run).map_err(path_error("create", run))?;
    let socket = directories.supervisor_socket();
    let listener = seqpacket::listen(run, supervisor::SOCKET).map_err(path_error("listen on", &socket))?;
    // Before the process exists: once it runs, a request is already waiting for it.
    let connection = seqpacket::connect(run, supervisor::SOCKET).map_err(path_error("connect to", &socket))?;
    let log = directories.supervisor_log();
    let output =
        OpenOptions::new().append(true).create(true).mode(0o600).open(&log).map_err(path_error("open", &log))?;
    let cgroup = match &spec.cgroup.unified {
        Some(path) => Some(File::open(path).map_err(path_error("open", path))?),
        None => None,
    };
    let argument =
        |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| SpawnError::ZeroByte(path.to_owned()));
    let program = CString::new(supervisor::PROGRAM).unwrap_or_default();
    let mut arguments = vec![program, argument(&directories.dir)?, argument(run)?];
    let binary = binary.clone();
    let start_with = |arguments: Vec<CString>| -> spare::Start {
        Box::new(move || {
            sys::spawn::spawn(&sys::spawn::Program {
                executable: binary.file.as_fd(),
                arguments: &arguments,
                environment: &[],
                stdio: [listener.as_fd(), output.as_fd(), output.as_fd()],
                cgroup: cgroup.as_ref().map(AsFd::as_fd),
            })
        })
    };
    // Those of a pod with users of its own belong to its user namespace.
    let ahead = spec.new_net && spec.new_ipc && spec.new_uts && spec.users.is_none() && spare.take();
    if ahead {
        arguments.push(CString::new(supervisor::NAMESPACES_MADE).unwrap_or_default());
    }
    let start = start_with(arguments);
    let child = if ahead { spare.start(start) } else { start() };
    let Child { pid, pidfd } = child.map_err(SpawnError::Start)?;
    // Dropped, and with it the process, if the record fails: no later agent would find it.
    let process = Fledgling(Some(pidfd));
    let identity = Identity::of(pid).map_err(path_error("look at", &Path::new("/proc").join(pid.to_string())))?;
    // Of this boot only, as the process is.
    durable::write_json_until_reboot(&directories.supervisor_file(), &identity).map_err(SpawnError::Record)?;
    Ok(Started { process, connection })
}
