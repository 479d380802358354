//! Supervisors with real containers, each test in directories and cgroups of its own. Needs root: `make test` runs these.

use std::{
    fs,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use berth::{
    runtime::{
        client::{ClientError, Connected, Event, Exec, HookRun, Supervisor},
        spare::SpareNamespaces,
        spawn::{self, SealedBinary},
    },
    store::{
        durable,
        layout::{Layout, PodDirs},
    },
    supervisor::{
        SOCKET,
        protocol::{Call, Request},
        spec::{
            CgroupPlacement, DeviceSpec, ExecSpec, ExitRecord, HookRecord, LaunchSpec, LogSpec, MountKind, MountSpec,
            PidMode, Propagation, RecursiveReadOnly, RootfsSpec, SandboxSpec, StdioSpec, UserSpec, VERSION,
        },
    },
    sys::{pidfd, process, seqpacket},
};

/// Everything that should take milliseconds must not take longer than this on the busiest machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The v1 hierarchies used where the machine has them.
const V1: [&str; 2] = ["memory", "freezer"];

/// One pod's world: directories, an image with busybox, cgroups.
struct World {
    _temporary: tempfile::TempDir,
    directories: PodDirs,
    image: PathBuf,
    cgroup: String,
    leaves: Vec<String>,
    binary: SealedBinary,
}

impl World {
    fn new() -> World {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = tempfile::tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        let layout = Layout { root: path("root"), run: path("run"), log: path("log") };
        let directories = layout.pod(&format!("uid-{number}"), "default", "pod");
        fs::create_dir_all(&directories.dir).unwrap();
        let image = path("image");
        fs::create_dir_all(image.join("bin")).unwrap();
        fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", image.join("bin/sh")).unwrap();
        World {
            _temporary: temporary,
            directories,
            image,
            cgroup: format!("berth-test-{}-{number}", std::process::id()),
            leaves: Vec::new(),
            binary: SealedBinary::from_path(Path::new(env!("CARGO_BIN_EXE_berth"))).unwrap(),
        }
    }

    /// A cgroup leaf in every hierarchy of this machine that is used here.
    fn leaf(&mut self, name: &str) -> CgroupPlacement {
        let name = format!("{}-{name}", self.cgroup);
        let base = Path::new("/sys/fs/cgroup");
        let unified = [base.to_owned(), base.join("unified")]
            .into_iter()
            .find(|directory| directory.join("cgroup.controllers").exists())
            .map(|directory| directory.join(&name));
        let v1 =
            V1.map(|hierarchy| base.join(hierarchy)).into_iter().filter(|directory| directory.join("tasks").exists());
        let v1 = v1.map(|directory| directory.join(&name)).collect::<Vec<_>>();
        for directory in unified.iter().chain(&v1) {
            fs::create_dir_all(directory).unwrap();
        }
        self.leaves.push(name);
        let oom_events = v1
            .iter()
            .map(|directory| directory.join("memory.oom_control"))
            .chain(unified.iter().map(|directory| directory.join("memory.events")))
            .find(|file| file.exists());
        CgroupPlacement { unified, v1, oom_events }
    }

    fn sandbox(&mut self) -> SandboxSpec {
        SandboxSpec {
            generation: 1,
            version: VERSION,
            pod_uid: "uid".into(),
            pod: "default/pod".into(),
            hostname: "pod".into(),
            domainname: String::new(),
            new_net: true,
            new_ipc: true,
            new_uts: true,
            shared_pid: false,
            users: None,
            sysctls: vec![("net.ipv4.ip_unprivileged_port_start".into(), "0".into())],
            cgroup: self.leaf("sandbox"),
            oom_score_adj: -998,
        }
    }

    async fn spawn(&mut self) -> Connected {
        let sandbox = self.sandbox();
        self.spawn_as(&sandbox).await.unwrap()
    }

    async fn spawn_as(&self, sandbox: &SandboxSpec) -> Result<Connected, ClientError> {
        durable::place_json(&self.directories.sandbox_file(), sandbox).unwrap().sync().unwrap();
        Supervisor::meet(spawn::start(&self.binary, &SpareNamespaces::default(), &self.directories, sandbox).unwrap())
            .await
    }

    /// A container that runs `script`, changed by `change`; its directory.
    fn container(&mut self, name: &str, script: &str, change: impl FnOnce(&mut LaunchSpec)) -> PathBuf {
        let attempt = self.directories.attempt(name, 0);
        for directory in [attempt.rootfs(), attempt.upper(), attempt.work(), self.directories.log.join(name)] {
            fs::create_dir_all(directory).unwrap();
        }
        let mount = |target: &str, kind: MountKind| MountSpec {
            target: target.into(),
            kind,
            readonly: false,
            recursive_readonly: RecursiveReadOnly::Disabled,
            nosuid: true,
            nodev: false,
            noexec: true,
            propagation: Propagation::Private,
            volume: None,
        };
        let mut launch = LaunchSpec {
            generation: 1,
            version: VERSION,
            pod_uid: "uid".into(),
            container: name.into(),
            attempt: 0,
            id: format!("{:064x}", 7),
            image: "busybox".into(),
            image_id: "sha256:0".into(),
            image_ref: String::new(),
            epoch: 0,
            args: ["/bin/sh", "-c", script].map(Into::into).to_vec(),
            env: vec![("PATH".into(), "/bin".into())],
            cwd: "/".into(),
            rootfs: RootfsSpec {
                lower: vec![self.image.clone()],
                upper: attempt.upper(),
                work: attempt.work(),
                target: attempt.rootfs(),
                readonly: false,
            },
            mounts: vec![
                mount("/proc", MountKind::Proc),
                mount("/dev", MountKind::Tmpfs { options: "mode=755,size=64k".into() }),
                mount("/dev/pts", MountKind::Devpts),
            ],
            masked_paths: vec![],
            readonly_paths: vec![],
            devices: vec![DeviceSpec {
                path: "/dev/null".into(),
                host_path: None,
                block: false,
                major: 1,
                minor: 3,
                mode: 0o666,
                uid: 0,
                gid: 0,
            }],
            all_devices: false,
            users: None,
            user: UserSpec::default(),
            capabilities: 0xa804_25fb,
            no_new_privs: false,
            app_armor: None,
            seccomp: vec![],
            rlimits: vec![],
            oom_score_adj: 1000,
            cgroup: self.leaf(name),
            pid: PidMode::Container,
            new_cgroup_ns: true,
            stdio: StdioSpec::default(),
            log: LogSpec { path: self.directories.log_file(name, 0), max_size: 0, max_files: 5 },
            stop_signal: libc::SIGTERM,
            handler: None,
        };
        change(&mut launch);
        durable::write_json(&attempt.launch_file(), &launch).unwrap();
        attempt.dir
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.directories.log_file(name, 0)).unwrap()
    }

    /// The contents of a container's log records.
    fn lines(&self, name: &str) -> Vec<String> {
        self.log(name).lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned()).collect()
    }

    /// How many processes are in a container's cgroups.
    fn processes_in(&self, name: &str) -> usize {
        let leaf = format!("{}-{name}", self.cgroup);
        let base = Path::new("/sys/fs/cgroup");
        let hierarchies = [base.to_owned(), base.join("unified")].into_iter().chain(V1.map(|name| base.join(name)));
        let read = |directory: PathBuf| fs::read_to_string(directory.join(&leaf).join("cgroup.procs")).ok();
        hierarchies.filter_map(read).map(|text| text.lines().count()).max().unwrap_or_default()
    }

    fn exit(&self, name: &str) -> ExitRecord {
        durable::read_json(&self.directories.attempt(name, 0).exit_file()).unwrap().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let base = Path::new("/sys/fs/cgroup");
        for name in &self.leaves {
            for parent in [base.to_owned(), base.join("unified")].into_iter().chain(V1.map(|name| base.join(name))) {
                let directory = parent.join(name);
                let until = Instant::now() + PATIENCE;
                // A killed process leaves its cgroup a moment after it has been reaped.
                while directory.exists() && fs::remove_dir(&directory).is_err() && Instant::now() < until {
                    let _ = fs::write(directory.join("cgroup.kill"), "1");
                    std::thread::yield_now();
                }
            }
        }
    }
}

async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

async fn next(connected: &mut Connected) -> Event {
    patiently(connected.events.recv()).await.expect("no more events")
}

fn exited(container: &str) -> Event {
    Event::Exited { container: container.into(), attempt: 0 }
}

/// Waits until `condition` holds: for what only the file system can tell.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        tokio::task::yield_now().await;
    }
}

fn exec(container: &str, script: &str) -> ExecSpec {
    ExecSpec {
        container: container.into(),
        args: ["/bin/sh", "-c", script].map(Into::into).to_vec(),
        ..ExecSpec::default()
    }
}

/// Standard streams for an exec and the far ends of its output: stdout, stderr.
fn streams() -> (Vec<OwnedFd>, OwnedFd, OwnedFd) {
    let null = fs::File::open("/dev/null").unwrap();
    let (output, stdout) = process::pipe().unwrap();
    let (errors, stderr) = process::pipe().unwrap();
    (vec![null.into(), stdout, stderr], output, errors)
}

fn text(descriptor: OwnedFd) -> String {
    let mut text = String::new();
    fs::File::from(descriptor).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_sandbox_has_its_own_namespaces_and_leaves_nothing_behind() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let pid = connected.supervisor.pid();
    assert_eq!((connected.snapshot.pid, connected.snapshot.start_time), (pid, process::start_time(pid).unwrap()));
    assert!(connected.netlink.is_some());
    for namespace in ["net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups.lines().filter(|line| line.ends_with("-sandbox")).count() >= 1, "{cgroups}");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(descriptors < 16, "{descriptors} descriptors");
    connected.supervisor.shutdown().await.unwrap();
    assert_eq!(next(&mut connected).await, Event::Gone);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!world.directories.supervisor_socket().exists());
    assert_eq!(fs::read_to_string(world.directories.supervisor_log()).unwrap(), "");
    let error = Supervisor::reconnect(&world.directories).await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_sandbox_that_cannot_be_made_says_why() {
    let mut world = World::new();
    let mut sandbox = world.sandbox();
    sandbox.sysctls = vec![("net.no.such".into(), "1".into())];
    let error = world.spawn_as(&sandbox).await.unwrap_err();
    let ClientError::Sandbox { message } = &error else { panic!("{error}") };
    assert_eq!(message, "set the sysctl net.no.such to \"1\": No such file or directory (os error 2)");
    assert!(fs::read_to_string(world.directories.supervisor_log()).unwrap().contains(message));
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_container_runs_is_logged_and_recorded() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let directory = world.container("app", "echo out; echo err >&2; hostname; printf unfinished; exit 3", |_| {});
    let running = patiently(connected.supervisor.start(&directory, false)).await.unwrap().unwrap();
    assert_eq!((running.container.as_str(), running.attempt, running.user.0), ("app", 0, 0));
    assert!(!running.stages.is_empty());
    assert_eq!(next(&mut connected).await, exited("app"));
    let exit = world.exit("app");
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed, exit.start_error), (3, None, false, None));
    assert_eq!(exit.started_at, running.started_at);
    assert!(exit.finished_at >= exit.started_at);
    let log = world.log("app");
    let records = log.lines().map(|line| line.split_once(' ').unwrap().1).collect::<Vec<_>>();
    let of = |stream: &str| records.iter().filter(|record| record.starts_with(stream)).copied().collect::<Vec<_>>();
    assert_eq!(of("stdout"), ["stdout F out", "stdout F pod", "stdout P unfinished"]);
    assert_eq!(of("stderr"), ["stderr F err"]);
    // Asking again changes nothing.
    assert!(matches!(connected.supervisor.start(&directory, false).await, Err(ClientError::AlreadyEnded)));
    assert!(connected.supervisor.observe().await.unwrap().running.is_empty());
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_held_program_runs_when_it_is_let_go() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let supervisor = connected.supervisor.clone();
    let held = world.container("held", "echo ran", |_| {});
    let started = tokio::spawn({
        let (supervisor, held) = (supervisor.clone(), held.clone());
        async move { supervisor.start(&held, true).await }
    });
    // Nobody waits for the first answer any more; the attempt waits on, and is joined.
    until("it is set up", || world.processes_in("held") == 1).await;
    started.abort();
    assert!(supervisor.observe().await.unwrap().running.is_empty(), "it does not run yet");
    assert_eq!(world.log("held"), "");
    let (running, released) = tokio::join!(patiently(supervisor.start(&held, true)), supervisor.release(&held));
    released.unwrap();
    assert_eq!(running.unwrap().unwrap().container, "held");
    assert_eq!(next(&mut connected).await, exited("held"));
    assert!(world.log("held").contains("ran"));
    supervisor.release(&held).await.unwrap();

    // The word to go may come first.
    let early = world.container("early", "exit 4", |_| {});
    supervisor.release(&early).await.unwrap();
    patiently(supervisor.start(&early, true)).await.unwrap().unwrap();
    assert_eq!(next(&mut connected).await, exited("early"));
    assert_eq!(world.exit("early").exit_code, 4);

    // One that is killed while it is held was never run.
    let killed = world.container("killed", "echo ran", |_| {});
    let start = patiently(supervisor.start(&killed, true));
    let kill = async {
        until("it is set up", || world.processes_in("killed") == 1).await;
        supervisor.kill("killed").await.unwrap();
    };
    let (start, ()) = tokio::join!(start, kill);
    start.unwrap().unwrap_err();
    let exit = world.exit("killed");
    assert_eq!((exit.started_at, exit.start_error.is_some()), (0, true));
    supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_command_that_does_not_exist_is_a_start_error_on_record() {
    let mut world = World::new();
    let connected = world.spawn().await;
    let directory = world.container("app", "", |launch| launch.args = vec!["/no/such".into()]);
    let error = patiently(connected.supervisor.start(&directory, false)).await.unwrap().unwrap_err();
    assert!(error.step.contains("/no/such") && error.message.contains("no such file"), "{error:?}");
    let exit = world.exit("app");
    assert_eq!((exit.exit_code, exit.started_at, exit.start_error), (128, 0, Some(error)));
    assert!(matches!(connected.supervisor.start(&directory, false).await, Err(ClientError::AlreadyEnded)));
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn signals_and_kills_end_a_container_with_128_and_the_signal() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let trap = world.container("trap", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done", |_| {});
    let sleep = world.container("sleep", "sleep 1000 & sleep 1000", |_| {});
    connected.supervisor.start(&trap, false).await.unwrap().unwrap();
    let first = connected.supervisor.start(&sleep, false).await.unwrap().unwrap();
    assert_eq!(connected.supervisor.start(&sleep, false).await.unwrap().unwrap(), first);
    until("the trap is set", || world.log("trap").contains("ready")).await;
    connected.supervisor.signal("trap", libc::SIGTERM).await.unwrap();
    assert_eq!(next(&mut connected).await, exited("trap"));
    assert_eq!(world.exit("trap").exit_code, 5);
    connected.supervisor.kill("sleep").await.unwrap();
    assert_eq!(next(&mut connected).await, exited("sleep"));
    assert_eq!((world.exit("sleep").exit_code, world.exit("sleep").signal), (137, Some(libc::SIGKILL)));
    // Both are fine for what has ended.
    connected.supervisor.signal("sleep", libc::SIGTERM).await.unwrap();
    connected.supervisor.kill("sleep").await.unwrap();
    assert!(matches!(connected.supervisor.signal("sleep", 0).await, Ok(())));
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn nothing_is_lost_while_no_agent_is_connected() {
    let mut world = World::new();
    let connected = world.spawn().await;
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; exit 9";
    let directory = world.container("app", script, |launch| {
        launch.log.max_size = 20_000;
        launch.log.max_files = 100;
    });
    let sleeper = world.container("other", "sleep 1000", |_| {});
    let running = connected.supervisor.start(&sleeper, false).await.unwrap().unwrap();
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    let pid = connected.supervisor.pid();
    // As if the agent had died: the connection is closed.
    drop(connected);
    until("the exit record", || world.directories.attempt("app", 0).exit_file().exists()).await;
    assert_eq!(world.exit("app").exit_code, 9);
    let mut files =
        fs::read_dir(world.directories.log.join("app")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    files.sort();
    files.rotate_left(1);
    assert!(files.len() > 2);
    let all = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect::<String>();
    let lines = all.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned());
    assert!(lines.eq((1..=2000).map(|number| format!("line {number}"))));
    let connected = Supervisor::reconnect(&world.directories).await.unwrap();
    assert_eq!((connected.supervisor.pid(), connected.snapshot.running), (pid, vec![running]));
    connected.supervisor.shutdown().await.unwrap();
    assert_eq!(world.exit("other").exit_code, 137);
}

/// State letter and name of every process in the PID namespace of `pid` but its first.
fn companions(pid: i32) -> Vec<String> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let of_init = namespace(&pid.to_string());
    assert!(of_init.is_some(), "the container runs");
    let numbers = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let others = numbers.filter(|number| number.parse::<i32>().is_ok_and(|number| number != pid));
    // A zombie has no namespaces any more; its line in the status file still tells of the inner one.
    let inside = |number: &String| {
        let status = fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
        let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim().to_owned();
        namespace(number) == of_init
            || inner.split_ascii_whitespace().count() > 1
                && namespace(&parent) == of_init
                && status.contains("Z (zombie)")
    };
    others.filter(inside).map(|number| fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default()).collect()
}

/// cgroups of execs that are there.
fn exec_groups(launch: &LaunchSpec) -> Vec<PathBuf> {
    let directories = launch.cgroup.v1.iter().chain(&launch.cgroup.unified);
    let children = directories.flat_map(|directory| fs::read_dir(directory).unwrap().flatten());
    children.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn bound(script: &str, limit: Duration) -> ExecSpec {
    ExecSpec { bound: true, time_limit: Some(limit.as_millis() as u64), ..exec("app", script) }
}

const HANGING: &str =
    "(setsid sh -c 'sleep 1000 & sleep 1000' &); (sleep 1000 &); trap '' TERM; echo up; sleep 1000; true";

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_bound_exec_whose_time_is_over_is_gone_with_all_that_it_started() {
    let mut world = World::new();
    let connected = world.spawn().await;
    // The first process of the container reaps nobody.
    let directory = world.container("app", "exec sleep 1000", |_| {});
    let launch: LaunchSpec = durable::read_json(&directory.join("launch.json")).unwrap().unwrap();
    let running = connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    for _ in 0..3 {
        let (given, output, _errors) = streams();
        let spec = bound(HANGING, Duration::from_millis(300));
        let mut hanging = connected.supervisor.exec(spec, given).await.unwrap().unwrap();
        let mut output = fs::File::from(output);
        output.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(exec_groups(&launch).len(), 1);
        let end = patiently(hanging.wait()).await.unwrap();
        assert_eq!((end.exit_code, end.timed_out), (137, true));
        assert_eq!(companions(running.pid), Vec::<String>::new());
        assert_eq!(output.read(&mut [0]).unwrap(), 0, "nobody holds the streams");
    }
    until("the cgroups are removed", || exec_groups(&launch).is_empty()).await;
    // In time, nothing is told about time; a failing start is a failing start.
    let (given, ..) = streams();
    let mut quick = connected.supervisor.exec(bound("exit 3", PATIENCE), given).await.unwrap().unwrap();
    let end = patiently(quick.wait()).await.unwrap();
    assert_eq!((end.exit_code, end.timed_out), (3, false));
    let (given, ..) = streams();
    let missing = ExecSpec { args: vec!["/no/such".into()], ..bound("", PATIENCE) };
    let error = connected.supervisor.exec(missing, given).await.unwrap().unwrap_err();
    assert!(error.message.contains("no such file"), "{error:?}");
    until("the cgroups are removed", || exec_groups(&launch).is_empty()).await;
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_bound_exec_ends_with_the_connection_and_another_goes_on() {
    let mut world = World::new();
    let connected = world.spawn().await;
    let directory = world.container("app", "exec sleep 1000", |_| {});
    let launch: LaunchSpec = durable::read_json(&directory.join("launch.json")).unwrap().unwrap();
    let running = connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    // As an agent that is killed in the middle of it: its end of the socket closes.
    let socket = seqpacket::connect(&world.directories.run, SOCKET).unwrap();
    let (given, output, _errors) = streams();
    let spec = ExecSpec { time_limit: None, ..bound(HANGING, PATIENCE) };
    let request = serde_json::to_vec(&Request { id: 1, call: Call::Exec(spec) }).unwrap();
    let given: Vec<_> = given.iter().map(AsFd::as_fd).collect();
    seqpacket::send(socket.as_fd(), &request, &given).unwrap();
    let (free, free_output, _free_errors) = streams();
    let _free = connected.supervisor.exec(exec("app", "echo up; exec sleep 999"), free).await.unwrap().unwrap();
    let mut output = fs::File::from(output);
    output.read_exact(&mut [0; 3]).unwrap();
    fs::File::from(free_output).read_exact(&mut [0; 3]).unwrap();
    drop(socket);
    until("what was bound is gone", || companions(running.pid) == ["sleep\n"]).await;
    until("its cgroup is removed", || exec_groups(&launch).len() == 1).await;
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn what_an_exec_leaves_running_is_the_containers_and_counts_there() {
    let mut world = World::new();
    let connected = world.spawn().await;
    let directory = world.container("app", "exec sleep 1000", |_| {});
    let launch: LaunchSpec = durable::read_json(&directory.join("launch.json")).unwrap().unwrap();
    let running = connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    for spec in [bound("setsid sleep 998 & exit 0", PATIENCE), exec("app", "setsid sleep 998 & exit 0")] {
        let (given, ..) = streams();
        let mut left = connected.supervisor.exec(spec, given).await.unwrap().unwrap();
        assert_eq!(patiently(left.wait()).await.unwrap().exit_code, 0);
    }
    until("both go on", || companions(running.pid) == ["sleep\n", "sleep\n"]).await;
    assert_eq!(exec_groups(&launch).len(), 2);
    connected.supervisor.kill("app").await.unwrap();
    until("the container has ended", || directory.join("exit.json").exists()).await;
    until("what was left ended with it", || {
        // One that is removed meanwhile has nothing in it either.
        let busy = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty());
        !exec_groups(&launch).iter().any(busy)
    })
    .await;
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn execs_have_their_own_streams_codes_and_end() {
    let mut world = World::new();
    let connected = world.spawn().await;
    let directory = world.container("app", "sleep 1000", |_| {});
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    let (given, output, errors) = streams();
    let mut quick =
        connected.supervisor.exec(exec("app", "echo hello; echo bad >&2; exit 42"), given).await.unwrap().unwrap();
    assert_eq!(patiently(quick.wait()).await.unwrap().exit_code, 42);
    assert_eq!((text(output), text(errors)), ("hello\n".to_owned(), "bad\n".to_owned()));
    // Killed with its children.
    let (given, output, errors) = streams();
    let mut long = connected.supervisor.exec(exec("app", "sleep 1000 & wait"), given).await.unwrap().unwrap();
    connected.supervisor.exec_kill(long.id).await.unwrap();
    assert_eq!((patiently(long.wait()).await.unwrap().exit_code, text(errors)), (137, String::new()));
    assert_eq!(text(output), "");
    // A terminal.
    let spec = ExecSpec { tty: true, ..exec("app", "test -t 0 && stty size; exit 4") };
    let mut terminal = connected.supervisor.exec(spec, vec![]).await.unwrap().unwrap();
    assert!(terminal.terminal.is_some());
    assert_eq!(patiently(terminal.wait()).await.unwrap().exit_code, 4);
    // What cannot be run.
    let (given, ..) = streams();
    let missing = ExecSpec { args: vec!["/no/such".into()], ..exec("app", "") };
    let error = connected.supervisor.exec(missing, given).await.unwrap().unwrap_err();
    assert!(error.message.contains("no such file"), "{error:?}");
    let (given, ..) = streams();
    let error = connected.supervisor.exec(exec("nobody", "true"), given).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_terminal_is_logged_and_can_be_attached_to() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let directory = world.container("app", "echo ready; read line; echo \"got $line\"", |launch| {
        launch.stdio = StdioSpec { tty: true, stdin: true, stdin_once: false };
    });
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    until("it is ready", || world.log("app").contains("ready")).await;
    connected.supervisor.resize("app", 50, 132).await.unwrap();
    let (stdin, input) = process::pipe().unwrap();
    let (output, stdout) = process::pipe().unwrap();
    connected.supervisor.attach("app", vec![stdin, stdout]).await.unwrap();
    fs::File::from(input).write_all(b"typed\n").unwrap();
    assert_eq!(next(&mut connected).await, exited("app"));
    assert_eq!(text(output), "typed\r\ngot typed\r\n");
    assert_eq!(world.lines("app"), ["ready", "typed", "got typed"]);
    assert!(world.log("app").contains(" stdout F got typed\r\n"));
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn standard_input_reaches_the_container_and_ends_with_the_first_attachment() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let directory = world.container("app", "cat; echo the end", |launch| {
        launch.stdio = StdioSpec { tty: false, stdin: true, stdin_once: true };
    });
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    let (stdin, input) = process::pipe().unwrap();
    let (output, stdout) = process::pipe().unwrap();
    let (_errors, stderr) = process::pipe().unwrap();
    connected.supervisor.attach("app", vec![stdin, stdout, stderr]).await.unwrap();
    // More than the pipes hold at once.
    let typed = (0..20_000).map(|line| format!("{line}\n")).collect::<String>();
    let writer = std::thread::spawn({
        let typed = typed.clone();
        move || fs::File::from(input).write_all(typed.as_bytes()).unwrap()
    });
    let reader = std::thread::spawn(move || text(output));
    assert_eq!(next(&mut connected).await, exited("app"));
    writer.join().unwrap();
    assert!(reader.join().unwrap() == format!("{typed}the end\n"));
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_shared_pid_namespace_is_reaped_and_confined() {
    let mut world = World::new();
    let mut sandbox = world.sandbox();
    sandbox.shared_pid = true;
    let mut connected = world.spawn_as(&sandbox).await.unwrap();
    // A grandchild outlives its parent: pause adopts and reaps it, and it dies with the container.
    let script = "test $$ -ne 1 && (sleep 0.1 & exec sleep 0.01); ls /proc/1/root/ && exit 1; sleep 1000 & exit 7";
    let directory = world.container("app", script, |launch| launch.pid = PidMode::Pod);
    let other = world.container("other", "sleep 1000", |launch| launch.pid = PidMode::Pod);
    connected.supervisor.start(&other, false).await.unwrap().unwrap();
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    assert_eq!(next(&mut connected).await, exited("app"));
    assert_eq!(world.exit("app").exit_code, 7, "{}", world.log("app"));
    let leaf = world.leaf("app");
    let processes = leaf.unified.into_iter().chain(leaf.v1).next().unwrap().join("cgroup.procs");
    until("its other processes are gone", || fs::read_to_string(&processes).unwrap().is_empty()).await;
    assert_eq!(connected.supervisor.observe().await.unwrap().running.len(), 1);
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn an_oom_kill_is_on_record() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let mut limit = None;
    let directory = world.container("app", "x=x; while :; do x=$x$x; done", |launch| {
        limit = launch.cgroup.oom_events.as_ref().map(|events| events.parent().unwrap().to_owned());
    });
    let Some(limit) = limit else { panic!("this machine has no memory controller to test with") };
    let file =
        ["memory.limit_in_bytes", "memory.max"].map(|name| limit.join(name)).into_iter().find(|file| file.exists());
    fs::write(file.unwrap(), "8388608").unwrap();
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    assert_eq!(next(&mut connected).await, exited("app"));
    let exit = world.exit("app");
    assert_eq!((exit.exit_code, exit.oom_killed), (137, true));
    connected.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn containers_die_with_their_supervisor_and_that_is_told() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let directory = world.container("app", "sleep 1000", |_| {});
    let running = connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    let container = pidfd::open(running.pid).unwrap();
    connected.supervisor.kill_supervisor();
    assert_eq!(next(&mut connected).await, Event::Gone);
    assert!(matches!(connected.supervisor.observe().await, Err(ClientError::Gone)));
    until("the container ends", || {
        pidfd::send_signal(container.as_fd(), 0).is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH))
    })
    .await;
    assert!(!world.directories.attempt("app", 0).exit_file().exists());
    let error = Supervisor::reconnect(&world.directories).await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn an_idle_supervisor_sleeps_and_is_small() {
    let mut world = World::new();
    let connected = world.spawn().await;
    let directory = world.container("app", "echo started; sleep 1000", |_| {});
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    until("it has started", || world.log("app").contains("started")).await;
    let pid = connected.supervisor.pid();
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let switches = || {
        let status = status();
        let count =
            |line: &str| line.contains("ctxt_switches").then(|| line.split_whitespace().last()?.parse::<u64>().ok());
        status.lines().filter_map(count).flatten().sum::<u64>()
    };
    // It goes to sleep when the last event is dealt with.
    until("it sleeps", || status().contains("State:\tS")).await;
    let before = switches();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(switches(), before);
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    eprintln!("{memory}");
    connected.supervisor.shutdown().await.unwrap();
}

/// A hook that has been begun, or joined.
fn running(run: HookRun) -> Exec {
    match run {
        HookRun::Running(exec) => exec,
        HookRun::Ended { .. } => panic!("{run:?}"),
    }
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_hook_runs_once_and_the_next_agent_joins_it() {
    let mut world = World::new();
    let connected = world.spawn().await;
    let directory = world.container("app", "sleep 1000", |_| {});
    connected.supervisor.start(&directory, false).await.unwrap().unwrap();
    let record = world.directories.attempt("app", 0).post_start_file();
    let hook = exec("app", "echo ran >> /ran; while [ ! -e /go ]; do sleep 0.02; done; exit 3");
    let first = running(connected.supervisor.hook(hook.clone(), &record).await.unwrap().unwrap());

    // The agent dies; the next one asks for the same.
    let id = first.id;
    drop((first, connected));
    let next = Supervisor::reconnect(&world.directories).await.unwrap();
    let mut joined = running(next.supervisor.hook(hook.clone(), &record).await.unwrap().unwrap());
    assert_eq!(joined.id, id);
    assert!(!record.exists(), "it has not ended");
    let (given, ..) = streams();
    let mut go = next.supervisor.exec(exec("app", ">/go"), given).await.unwrap().unwrap();
    assert_eq!(patiently(go.wait()).await.unwrap().exit_code, 0);
    assert_eq!(patiently(joined.wait()).await.unwrap().exit_code, 3);
    let written: HookRecord = durable::read_json(&record).unwrap().expect("on record before it is told");
    assert_eq!(written.failure.as_deref(), Some("command terminated with exit code 3"));
    let again = next.supervisor.hook(hook, &record).await.unwrap().unwrap();
    let HookRun::Ended { failure } = again else { panic!("{again:?}") };
    assert_eq!(failure, written.failure);
    let (given, output, _errors) = streams();
    let mut count = next.supervisor.exec(exec("app", "cat /ran"), given).await.unwrap().unwrap();
    patiently(count.wait()).await.unwrap();
    assert_eq!(text(output), "ran\n");

    // One that is given up ends as anything that is killed.
    let record = world.directories.attempt("app", 0).pre_stop_file();
    let long = next.supervisor.hook(exec("app", "sleep 1000"), &record).await.unwrap().unwrap();
    let mut long = running(long);
    next.supervisor.exec_kill(long.id).await.unwrap();
    assert_eq!(patiently(long.wait()).await.unwrap().exit_code, 137);
    assert!(record.exists());
    next.supervisor.shutdown().await.unwrap();
}

#[tokio::test]
#[ignore = "rootful: run by make test with --include-ignored"]
async fn a_container_can_look_at_another_and_ends_with_it() {
    let mut world = World::new();
    let mut connected = world.spawn().await;
    let target = |launch: &mut LaunchSpec| launch.pid = PidMode::Target("app".into());
    // Nothing to look at: no namespace of its own instead.
    let early = world.container("early", "true", target);
    let error = patiently(connected.supervisor.start(&early, false)).await.unwrap().unwrap_err();
    assert_eq!((error.step.as_str(), error.message.as_str()), ("join the PID namespace of app", "it does not run"));

    let app = world.container("app", "sleep 1000", |_| {});
    connected.supervisor.start(&app, false).await.unwrap().unwrap();
    let short = world.container("short", "echo $(cat /proc/1/cmdline | tr '\\0' ' ')", target);
    connected.supervisor.start(&short, false).await.unwrap().unwrap();
    assert_eq!(next(&mut connected).await, exited("short"));
    assert_eq!(world.lines("short"), ["sleep 1000"]);
    let running = connected.supervisor.observe().await.unwrap().running;
    assert_eq!(running.len(), 1, "whoever looks harms nobody by ending: {running:?}");

    let long = world.container("long", "sleep 1000", target);
    connected.supervisor.start(&long, false).await.unwrap().unwrap();
    connected.supervisor.kill("app").await.unwrap();
    let mut ended = [next(&mut connected).await, next(&mut connected).await];
    ended.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(ended, [exited("app"), exited("long")], "the namespace ends with its first process");
    assert_eq!((world.exit("long").exit_code, world.exit("long").user), (137, Some((0, 0, vec![0]))));
    connected.supervisor.shutdown().await.unwrap();
}
