//! exec, terminals, shared PID namespaces, and the end of a supervisor.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::AsFd,
};

use berth::{
    supervisor::{
        container::{self, ChildStdio, LaunchContext, StatusOutcome, decode_status},
        spec::{ExecSpec, PidMode, UserSpec},
    },
    sys::{
        pidfd::{self, Ended},
        process,
    },
};

use super::{
    Case,
    world::{DEFAULT_CAPABILITIES, World, exec_spec, field, receive_master},
};

pub const CASES: &[Case] = &[
    ("exec_joins_the_container", exec_joins_the_container),
    ("exec_keeps_the_user_of_the_start", exec_keeps_the_user_of_the_start),
    ("exec_failures_are_reported", exec_failures_are_reported),
    ("a_terminal_is_the_container_s_own", a_terminal_is_the_container_s_own),
    ("an_exec_can_have_a_terminal", an_exec_can_have_a_terminal),
    ("containers_can_share_a_pid_namespace", containers_can_share_a_pid_namespace),
    ("the_host_s_pid_namespace_can_be_used", the_host_s_pid_namespace_can_be_used),
    ("a_container_dies_with_its_supervisor", a_container_dies_with_its_supervisor),
    ("stages_are_told_in_order", stages_are_told_in_order),
];

fn exec_joins_the_container() {
    let world = World::new();
    let mut spec = world.spec("echo mark > /tmp/mark; echo ready; sleep 60");
    spec.no_new_privs = true;
    spec.seccomp = vec![0x0006_0000_7fff_0000];
    spec.cwd = "/srv/app".into();
    spec.oom_score_adj = 321;
    let mut running = world.start(spec, &world.context());
    let user = running.started();
    assert_eq!(running.first_line(), "ready");
    let context = LaunchContext { user: Some(&user), ..world.context() };

    let script = "cat /tmp/mark && pwd && echo $GREETING $MORE && echo $HOME && cat /proc/self/oom_score_adj && ls /proc/self/fd";
    let spec = ExecSpec { env: vec![("MORE".to_owned(), "more".to_owned())], ..exec_spec(script) };
    assert_eq!(world.exec(&running, &spec, &context).printed(), "mark\n/srv/app\nhello more\n/root\n321\n0\n1\n2\n3\n");

    let namespaces =
        "for kind in cgroup ipc mnt net pid uts; do readlink /proc/1/ns/$kind; readlink /proc/self/ns/$kind; done";
    let printed = world.exec(&running, &exec_spec(namespaces), &context).printed();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 12);
    assert!(lines.chunks(2).all(|pair| pair[0] == pair[1]), "{printed}");

    let status = world.exec(&running, &exec_spec("cat /proc/self/status"), &context).printed();
    assert_eq!(field(&status, "CapEff"), format!("{DEFAULT_CAPABILITIES:016x}"));
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"));

    let elsewhere = ExecSpec { cwd: Some("/tmp".into()), ..exec_spec("pwd") };
    assert_eq!(world.exec(&running, &elsewhere, &context).printed(), "/tmp\n");
    // And this process is where it was: its next container has a PID namespace of its own.
    assert_eq!(world.run("readlink /proc/self").printed(), "1\n");
    running.kill();
}

fn exec_keeps_the_user_of_the_start() {
    let world = World::new();
    let mut spec = world.spec("echo ready; sleep 60");
    spec.user = UserSpec { image_user: "app".to_owned(), ..UserSpec::default() };
    let mut running = world.start(spec, &world.context());
    let user = running.started();
    running.first_line();
    // As if the container had been root and had rewritten who `app` is.
    let root = format!("/proc/{}/root/etc/passwd", running.spawned.pid);
    fs::write(&root, "app:x:0:0::/root:/bin/sh\n").unwrap();
    let context = LaunchContext { user: Some(&user), ..world.context() };
    let printed = world.exec(&running, &exec_spec("id -u; id -g; id -G"), &context).printed();
    assert_eq!(printed, "1000\n1001\n1001 10\n");
    running.kill();
}

fn exec_failures_are_reported() {
    let world = World::new();
    let mut running = world.start(world.spec("sleep 60"), &world.context());
    running.started();
    let error = |spec: &ExecSpec| world.exec(&running, spec, &world.context()).start_error();
    let missing = ExecSpec { args: vec!["nope".to_owned()], ..exec_spec("") };
    assert_eq!(error(&missing).message, "exec: \"nope\": executable file not found in $PATH");
    let nowhere = ExecSpec { cwd: Some("/nowhere".into()), ..exec_spec("") };
    assert_eq!(error(&nowhere).step, "change to /nowhere");
    let outside = ExecSpec { cwd: Some("/proc/self/fd/3".into()), ..exec_spec("") };
    assert_ne!(error(&outside).errno, 0);

    // Ended but not reaped, then reaped: never a process anywhere else.
    let launch = running.spec.clone();
    let pidfd = running.spawned.pidfd.try_clone().unwrap();
    running.kill();
    let gone =
        container::exec(&exec_spec(""), &launch, &launch.cgroup, pidfd.as_fd(), ChildStdio::Terminal, &world.context());
    assert_eq!(gone.unwrap_err().step, "join the PID namespace of c");
}

fn a_terminal_is_the_container_s_own() {
    let world = World::new();
    for uid in [0, 1000] {
        let script = "tty; stat -c '%u %t' /dev/pts/0; echo to-console > /dev/console; echo x > /dev/tty; read line; echo got $line";
        let mut spec = world.spec(script);
        spec.stdio.tty = true;
        spec.user = UserSpec { uid: Some(uid), ..UserSpec::default() };
        let spawned = container::spawn(&spec, ChildStdio::Terminal, &world.context()).unwrap();
        let master = receive_master(spawned.console_socket.as_ref().unwrap());
        let mut status = Vec::new();
        File::from(spawned.status).read_to_end(&mut status).unwrap();
        let status = decode_status(&status);
        assert!(matches!(status, StatusOutcome::Started { .. }), "{status:?}");
        let mut master = File::from(master);
        master.write_all(b"input\n").unwrap();
        let printed = read_terminal(&mut master);
        assert!(printed.starts_with("/dev/pts/0\r\n") || printed.starts_with("input\r\n/dev/pts/0\r\n"), "{printed:?}");
        for line in [&format!("{uid} 88"), "to-console", "x", "got input"] {
            assert!(printed.contains(&format!("{line}\r\n")), "{line}: {printed:?}");
        }
        pidfd::wait(spawned.pidfd.as_fd(), true).unwrap();
    }
}

fn an_exec_can_have_a_terminal() {
    let world = World::new();
    let mut running = world.start(world.spec("sleep 60"), &world.context());
    running.started();
    let spec = ExecSpec { tty: true, ..exec_spec("tty; echo $TERM") };
    let init = running.spawned.pidfd.as_fd();
    let spawned =
        container::exec(&spec, &running.spec, &running.spec.cgroup, init, ChildStdio::Terminal, &world.context())
            .unwrap();
    let mut master = File::from(receive_master(spawned.console_socket.as_ref().unwrap()));
    assert_eq!(read_terminal(&mut master), "/dev/pts/0\r\nxterm\r\n");
    let exit = pidfd::wait(spawned.pidfd.as_fd(), true).unwrap().unwrap();
    assert_eq!(exit.ended, Ended::Exited(0));
    running.kill();
}

/// Everything up to the end, which a terminal's master tells by EIO.
fn read_terminal(master: &mut File) -> String {
    let mut printed = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = master.read(&mut buffer) {
        if length == 0 {
            break;
        }
        printed.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(printed).unwrap()
}

fn containers_can_share_a_pid_namespace() {
    let world = World::new();
    let mut first = world.start(world.spec("echo ready; exec sleep 60"), &world.context());
    first.started();
    first.first_line();
    for pid in [PidMode::Pod, PidMode::Target("c".to_owned())] {
        let mut spec = world.spec("cat /proc/1/comm; echo $$");
        spec.pid = pid;
        let process = Some(first.spawned.pidfd.as_fd());
        let context = LaunchContext { pause: process, target: process, ..world.context() };
        let printed = world.start(spec, &context).finish().printed();
        let (name, own) = printed.trim().split_once('\n').unwrap();
        assert_eq!(name, "sleep");
        assert_ne!(own, "1");
    }
    first.kill();
}

fn the_host_s_pid_namespace_can_be_used() {
    let world = World::new();
    let mut spec = world.spec("echo $$");
    spec.pid = PidMode::Host;
    let running = world.start(spec, &world.context());
    let pid = running.spawned.pid;
    assert_eq!(running.finish().printed(), format!("{pid}\n"));
}

fn a_container_dies_with_its_supervisor() {
    let world = World::new();
    for uid in [0, 1000] {
        let (mut output, writer) = process::pipe().map(|(read, write)| (File::from(read), write)).unwrap();
        let mut spec = world.spec("echo ready; sleep 60");
        // The setting is lost when ids change: it must have been made again.
        spec.user = UserSpec { uid: Some(uid), ..UserSpec::default() };
        let supervisor = process::clone_running(0, None, || {
            let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
            let stdio = ChildStdio::Pipes { stdin: null(), stdout: writer, stderr: null() };
            let spawned = container::spawn(&spec, stdio, &world.context()).unwrap();
            let _ = pidfd::wait(spawned.pidfd.as_fd(), true);
            0
        })
        .unwrap();
        let mut line = [0; 6];
        output.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        pidfd::send_signal(supervisor.pidfd.as_fd(), 9).unwrap();
        pidfd::wait(supervisor.pidfd.as_fd(), true).unwrap();
        // The end of the pipe is the end of everything that had it open.
        assert_eq!(output.read(&mut line).unwrap(), 0);
    }
}

fn stages_are_told_in_order() {
    let world = World::new();
    let outcome = world.run("");
    let StatusOutcome::Started { stages, .. } = &outcome.status else { panic!("{outcome:?}") };
    let names: Vec<&str> = stages.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["clone", "cgroup", "rootfs", "mounts", "user", "exec"]);
    assert!(stages.is_sorted_by_key(|(_, microseconds)| *microseconds), "{stages:?}");
}
