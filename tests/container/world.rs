//! The world of one case: namespaces of its own, a tmpfs with an image made from busybox, and a healthy spec that a
//! case changes a little.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth::{
    supervisor::{
        container::{self, ChildStdio, LaunchContext, Spawned, StatusOutcome, decode_status},
        spec::{
            CgroupPlacement, DeviceSpec, ExecSpec, LaunchSpec, LogSpec, MountKind, MountSpec, PidMode, Propagation,
            RecursiveReadOnly, RootfsSpec, StartError, StdioSpec, UserSpec, VERSION,
        },
    },
    sys::{
        mount::{self, FileSystem},
        pidfd::{self, Ended},
        process, seqpacket,
        session::{self, namespace},
        signal,
    },
};

/// The 14 capabilities of container runtimes.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// Where everything of a case lies: on a tmpfs in its own mount namespace, so that nothing has to be removed.
pub struct World {
    pub directory: PathBuf,
    own_pid_ns: File,
    attempts: std::cell::Cell<u32>,
}

/// How a container went.
#[derive(Debug)]
pub struct Outcome {
    pub status: StatusOutcome,
    pub output: String,
    pub errors: String,
    pub ended: Ended,
}

impl Outcome {
    /// What it printed, provided that it started, and ended with 0.
    #[track_caller]
    pub fn printed(self) -> String {
        assert!(matches!(self.status, StatusOutcome::Started { .. }), "{self:#?}");
        assert_eq!(self.ended, Ended::Exited(0), "{self:#?}");
        self.output
    }

    /// Why it did not start.
    #[track_caller]
    pub fn start_error(self) -> StartError {
        assert_eq!(self.ended, Ended::Exited(128), "{self:#?}");
        match self.status {
            StatusOutcome::Failed(error) => error,
            status => panic!("{status:?}"),
        }
    }
}

/// A container that runs.
pub struct Running {
    pub spawned: Spawned,
    streams: Streams,
    pub spec: LaunchSpec,
}

struct Streams {
    output: File,
    errors: File,
    /// Its end is what the container sees when this is dropped.
    input: File,
}

impl World {
    /// Leaves the host's namespaces for good and makes an image.
    pub fn new() -> World {
        session::leave(namespace::MOUNT | namespace::NET | namespace::IPC | namespace::UTS).expect("unshare");
        mount::make_all_slave().expect("make all mounts slaves");
        // As the runtime of a supervisor has it: blocked signals and an ignored one, which must not be inherited.
        signal::block_all();
        signal::ignore(13);
        let directory = PathBuf::from("/tmp");
        let tmpfs = FileSystem::open(c"tmpfs").and_then(|tmpfs| tmpfs.mount(0)).expect("make a tmpfs");
        let place = mount::open_place(&directory).expect("open /tmp");
        mount::attach(tmpfs.as_fd(), place.as_fd()).expect("mount a tmpfs");
        let world = World {
            directory,
            own_pid_ns: File::open("/proc/self/ns/pid").expect("own PID namespace"),
            attempts: std::cell::Cell::new(0),
        };
        world.make_image();
        world
    }

    /// The image's only layer.
    pub fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    fn make_image(&self) {
        let image = self.image();
        for directory in ["bin", "etc", "root", "tmp", "srv/app", "var", "proc", "sys", "dev"] {
            fs::create_dir_all(image.join(directory)).expect("make the image");
        }
        fs::copy("/bin/busybox", image.join("bin/busybox")).expect("busybox-static is installed");
        for applet in
            ["sh", "cat", "id", "ls", "stat", "sleep", "env", "pwd", "tty", "readlink", "grep", "mkdir", "touch", "ps"]
        {
            symlink("busybox", image.join("bin").join(applet)).expect("link an applet");
        }
        fs::write(image.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/srv/app:/bin/sh\n")
            .expect("write passwd");
        fs::write(image.join("etc/group"), "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\n").expect("write group");
    }

    /// A new attempt that runs `script` in a shell.
    pub fn spec(&self, script: &str) -> LaunchSpec {
        let attempt = self.attempts.replace(self.attempts.get() + 1);
        let directory = self.directory.join(format!("attempt-{attempt}"));
        for name in ["upper", "work", "root"] {
            fs::create_dir_all(directory.join(name)).expect("make an attempt");
        }
        let mut sys = mount_spec("/sys", MountKind::Sysfs);
        sys.readonly = true;
        let mut dev = mount_spec("/dev", MountKind::Tmpfs { options: "mode=755,size=65536k".to_owned() });
        (dev.nodev, dev.noexec) = (false, false);
        let mut pts = mount_spec("/dev/pts", MountKind::Devpts);
        pts.nodev = false;
        LaunchSpec {
            generation: 1,
            version: VERSION,
            pod_uid: "0".to_owned(),
            container: "c".to_owned(),
            attempt,
            id: "0".repeat(64),
            image: "busybox".to_owned(),
            image_id: "sha256:0".to_owned(),
            image_ref: String::new(),
            epoch: 0,
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("PATH".to_owned(), "/bin".to_owned()), ("GREETING".to_owned(), "hello".to_owned())],
            cwd: "/".into(),
            rootfs: RootfsSpec {
                lower: vec![self.image()],
                upper: directory.join("upper"),
                work: directory.join("work"),
                target: directory.join("root"),
                readonly: false,
            },
            mounts: vec![
                mount_spec("/proc", MountKind::Proc),
                dev,
                pts,
                mount_spec("/dev/mqueue", MountKind::Mqueue),
                mount_spec("/dev/shm", MountKind::Tmpfs { options: "mode=1777,size=65536k".to_owned() }),
                sys,
            ],
            masked_paths: MASKED.iter().map(PathBuf::from).collect(),
            readonly_paths: READ_ONLY.iter().map(PathBuf::from).collect(),
            devices: DEVICES.iter().map(|(name, major, minor)| device(name, *major, *minor)).collect(),
            all_devices: false,
            users: None,
            user: UserSpec::default(),
            capabilities: DEFAULT_CAPABILITIES,
            no_new_privs: false,
            app_armor: None,
            seccomp: Vec::new(),
            rlimits: Vec::new(),
            oom_score_adj: 500,
            cgroup: CgroupPlacement::default(),
            pid: PidMode::Container,
            new_cgroup_ns: true,
            stdio: StdioSpec::default(),
            log: LogSpec { path: "/dev/null".into(), max_size: 0, max_files: 2 },
            stop_signal: 15,
            handler: None,
        }
    }

    /// What a supervisor would pass.
    pub fn context(&self) -> LaunchContext<'_> {
        LaunchContext {
            pause: None,
            target: None,
            users: None,
            own_pid_ns: self.own_pid_ns.as_fd(),
            received: Instant::now(),
            gate: None,
            user: None,
        }
    }

    /// Runs `script` in a healthy container.
    pub fn run(&self, script: &str) -> Outcome {
        self.run_spec(self.spec(script))
    }

    /// Runs a container to its end.
    pub fn run_spec(&self, spec: LaunchSpec) -> Outcome {
        self.start(spec, &self.context()).finish()
    }

    /// Starts a container. Whether that succeeded is not known yet.
    pub fn start(&self, spec: LaunchSpec, context: &LaunchContext<'_>) -> Running {
        let (stdio, streams) = pipes();
        let spawned = container::spawn(&spec, stdio, context).expect("spawn");
        Running { spawned, streams, spec }
    }

    /// Runs a further process in a container to its end.
    pub fn exec(&self, running: &Running, spec: &ExecSpec, context: &LaunchContext<'_>) -> Outcome {
        let (stdio, streams) = pipes();
        let init = running.spawned.pidfd.as_fd();
        let spawned = container::exec(spec, &running.spec, &running.spec.cgroup, init, stdio, context).expect("exec");
        Running { spawned, streams, spec: running.spec.clone() }.finish()
    }
}

impl Running {
    /// Waits until it runs; returns uid, gid and groups.
    pub fn started(&mut self) -> (u32, u32, Vec<u32>) {
        match decode_status(&read_all(self.spawned.status.try_clone().expect("copy a descriptor"))) {
            StatusOutcome::Started { user, .. } => user,
            status => panic!("{status:?}"),
        }
    }

    /// Waits until it runs; returns the stages.
    pub fn stages(&mut self) -> Vec<(String, u64)> {
        match decode_status(&read_all(self.spawned.status.try_clone().expect("copy a descriptor"))) {
            StatusOutcome::Started { stages, .. } => stages,
            status => panic!("{status:?}"),
        }
    }

    /// Waits for its end without looking at its output.
    pub fn reap(self) {
        pidfd::wait(self.spawned.pidfd.as_fd(), true).expect("wait");
    }

    /// Waits for its first line of output.
    pub fn first_line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.streams.output.read(&mut byte).expect("read output") == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("text")
    }

    /// Ends its input and waits for its end.
    pub fn finish(self) -> Outcome {
        drop(self.streams.input);
        let status = decode_status(&read_all(self.spawned.status));
        let output = text(read_all(self.streams.output.into()));
        let errors = text(read_all(self.streams.errors.into()));
        let exit = pidfd::wait(self.spawned.pidfd.as_fd(), true).expect("wait").expect("it has ended");
        assert_eq!(exit.pid, self.spawned.pid);
        Outcome { status, output, errors, ended: exit.ended }
    }

    /// Kills it and waits for its end.
    pub fn kill(self) -> Outcome {
        pidfd::send_signal(self.spawned.pidfd.as_fd(), 9).expect("kill");
        self.finish()
    }
}

/// A directory of ours in every hierarchy of this machine, removed at the end.
pub struct Cgroups {
    pub placement: CgroupPlacement,
}

impl Cgroups {
    pub fn new() -> Cgroups {
        let name = format!("berth-test-{}", std::process::id());
        let mut placement = CgroupPlacement::default();
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            let (mount, file_system) = line.split_once(" - ").unwrap();
            let leaf = PathBuf::from(mount.split(' ').nth(4).unwrap()).join(&name);
            match file_system.split(' ').next() {
                Some("cgroup2") => placement.unified = Some(leaf),
                // Only what can be entered without configuring it first (cpuset cannot).
                Some("cgroup") if !file_system.contains("cpuset") => placement.v1.push(leaf),
                _ => continue,
            }
        }
        let cgroups = Cgroups { placement };
        cgroups.directories().for_each(|leaf| fs::create_dir(leaf).expect("make a cgroup"));
        cgroups
    }

    /// All of them.
    pub fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        self.placement.v1.iter().chain(&self.placement.unified)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.directories().for_each(|leaf| drop(fs::remove_dir(leaf)));
    }
}

/// Waits for the master of a container's terminal.
pub fn receive_master(socket: &OwnedFd) -> OwnedFd {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match seqpacket::receive(socket.as_fd(), 64) {
            Ok(Some(mut packet)) => return packet.descriptors.pop().expect("a descriptor"),
            Ok(None) => panic!("closed without a master"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A mount with the flags that almost all have.
pub fn mount_spec(target: &str, kind: MountKind) -> MountSpec {
    MountSpec {
        target: target.into(),
        kind,
        readonly: false,
        recursive_readonly: RecursiveReadOnly::Disabled,
        nosuid: true,
        nodev: true,
        noexec: true,
        propagation: Propagation::Private,
        volume: None,
    }
}

/// A bind without any flag.
pub fn bind(source: impl AsRef<Path>, target: &str) -> MountSpec {
    let kind = MountKind::Bind { source: source.as_ref().to_owned(), sub_path: None };
    MountSpec { nosuid: false, nodev: false, noexec: false, ..mount_spec(target, kind) }
}

/// An exec of a shell.
pub fn exec_spec(script: &str) -> ExecSpec {
    ExecSpec {
        container: "c".to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    }
}

/// A character device with mode 666.
pub fn device(name: &str, major: u32, minor: u32) -> DeviceSpec {
    let path = Path::new("/dev").join(name);
    DeviceSpec { path, host_path: None, block: false, major, minor, mode: 0o666, uid: 0, gid: 0 }
}

/// A tmpfs on `directory`, which is made.
pub fn mount_tmpfs(directory: &Path) {
    fs::create_dir_all(directory).expect("make a directory");
    let tmpfs = FileSystem::open(c"tmpfs").expect("open tmpfs");
    tmpfs.option("source", OsStr::new("test")).expect("name a tmpfs");
    let tree = tmpfs.mount(0).expect("make a tmpfs");
    mount::attach(tree.as_fd(), mount::open_place(directory).expect("open").as_fd()).expect("mount a tmpfs");
}

fn pipes() -> (ChildStdio, Streams) {
    let (stdin, input) = process::pipe().expect("pipe");
    let (output, stdout) = process::pipe().expect("pipe");
    let (errors, stderr) = process::pipe().expect("pipe");
    let streams = Streams { output: output.into(), errors: errors.into(), input: input.into() };
    (ChildStdio::Pipes { stdin, stdout, stderr }, streams)
}

fn read_all(descriptor: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(descriptor).read_to_end(&mut bytes).expect("read");
    bytes
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

/// The field of /proc/self/status called `name` in `status`.
pub fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim()).expect("a field of /proc/self/status")
}

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
