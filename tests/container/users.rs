//! Containers in a user namespace of their pod.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, chown},
    },
};

use berth::{
    supervisor::{
        container::{self, ChildStdio, LaunchContext, StatusOutcome, decode_status},
        spec::{IdRange, LaunchSpec, MountKind, PidMode, UserSpec},
        user_namespace::{self, Parameter, UserNamespace},
    },
    sys::{
        pidfd,
        process::{self, flags},
    },
};

use super::{
    Case,
    world::{Cgroups, World, bind, exec_spec, field, mount_spec, receive_master},
};

pub const CASES: &[Case] = &[
    ("root_inside_is_nobody_outside", root_inside_is_nobody_outside),
    ("all_namespaces_belong_to_the_user_namespace", all_namespaces_belong_to_the_user_namespace),
    ("owners_are_the_same_inside_and_on_disk", owners_are_the_same_inside_and_on_disk),
    ("what_cannot_be_mapped_is_named", what_cannot_be_mapped_is_named),
    ("ids_that_the_namespace_lacks_are_refused", ids_that_the_namespace_lacks_are_refused),
    ("exec_and_terminals_work_inside", exec_and_terminals_work_inside),
    ("a_bound_exec_and_its_parent_are_inside", a_bound_exec_and_its_parent_are_inside),
    ("containers_can_share_a_pid_namespace_inside", containers_can_share_a_pid_namespace_inside),
    ("limits_and_scores_are_set_before", limits_and_scores_are_set_before),
    ("many_layers_cost_two_mounts", many_layers_cost_two_mounts),
    ("parameters_are_set_by_the_namespaces_own_root", parameters_are_set_by_the_namespaces_own_root),
    ("version_1_cgroups_are_shown_inside", version_1_cgroups_are_shown_inside),
];

const RANGE: IdRange = IdRange { first: 5 << 16, count: 1 << 16 };

fn world() -> (World, UserNamespace) {
    let world = World::new();
    let users = user_namespace::make(RANGE, flags::NEWNET | flags::NEWIPC | flags::NEWUTS, &[]).expect("make it");
    (world, users)
}

fn spec(world: &World, script: &str) -> LaunchSpec {
    LaunchSpec { users: Some(RANGE), ..world.spec(script) }
}

fn context<'a>(world: &'a World, users: &'a UserNamespace) -> LaunchContext<'a> {
    LaunchContext { users: Some(users.as_fd()), ..world.context() }
}

fn root_inside_is_nobody_outside() {
    let (world, users) = world();
    let mut running =
        world.start(spec(&world, "cat /proc/self/status; echo ready; sleep 60"), &context(&world, &users));
    let user = running.started();
    assert_eq!(user, (0, 0, vec![0, 10]));
    let pid = running.spawned.pid;
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), RANGE.first);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = |name: &str| field(&status, name).split_whitespace().next().unwrap().parse::<u32>().unwrap();
    assert_eq!((ids("Uid"), ids("Gid")), (RANGE.first, RANGE.first));
    let groups = format!("{} {}", RANGE.first, RANGE.first + 10);
    assert_eq!(field(&status, "Groups"), groups);
    assert_eq!(field(&status, "CapBnd"), "00000000a80425fb");
    let map = fs::read_to_string(format!("/proc/{pid}/gid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "327680", "65536"]);
    assert_eq!(running.kill().status, StatusOutcome::Died, "its report has been read");
}

fn all_namespaces_belong_to_the_user_namespace() {
    let (world, users) = world();
    let mut spec = spec(
        &world,
        "for p in / /bin/busybox /proc /proc/sys /sys /dev /dev/pts /dev/pts/ptmx /dev/shm /dev/mqueue; do \
         stat -c '%n %u:%g' $p; done; mkdir /mnt && /bin/busybox mount -t tmpfs none /mnt && echo mounted; \
         /bin/busybox umount /mnt && echo unmounted; /bin/busybox hostname inside && echo named; \
         echo 1 > /proc/sys/net/ipv4/ip_forward && echo set; echo 0 > /proc/sys/kernel/printk_ratelimit && echo BAD; \
         /bin/busybox mknod /b b 7 0 && echo BAD; \
         /bin/busybox mount -t tmpfs none /dev/shm && /bin/busybox umount /dev/shm && echo covered; true",
    );
    spec.capabilities = u64::MAX >> 23;
    spec.readonly_paths = Vec::new();
    let printed = world.start(spec, &context(&world, &users)).finish().printed();
    let (owners, rest) = printed.split_at(printed.find("mounted").expect("mounted"));
    for line in owners.lines() {
        let (path, owner) = line.split_once(' ').unwrap();
        // The settings of the machine, and files that only show that they are not ours.
        let is_kernels = ["/proc", "/proc/sys", "/sys"].contains(&path);
        let expected = if is_kernels { "65534:65534" } else { "0:0" };
        assert_eq!(owner, expected, "{path}: {printed}");
    }
    assert_eq!(rest, "mounted\nunmounted\nnamed\nset\ncovered\n");
}

fn owners_are_the_same_inside_and_on_disk() {
    let (world, users) = world();
    let volume = world.directory.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content").unwrap();
    chown(volume.join("file"), Some(1000), Some(2000)).unwrap();
    chown(&volume, Some(1000), Some(2000)).unwrap();
    chown(world.image().join("etc/group"), Some(7), Some(8)).unwrap();
    let script = "stat -c %u:%g /data /data/file /etc/group /etc/passwd; echo x > /etc/passwd2; echo y > /data/new; \
                  /bin/busybox chown 5:6 /data/new /etc/group; stat -c %u:%g /data/new /etc/group";
    let mut spec = spec(&world, script);
    spec.mounts.push(bind(&volume, "/data"));
    let upper = spec.rootfs.upper.clone();
    let printed = world.start(spec, &context(&world, &users)).finish().printed();
    assert_eq!(printed, "1000:2000\n1000:2000\n7:8\n0:0\n5:6\n5:6\n");
    let owner = |path: &std::path::Path| fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
    assert_eq!(owner(&volume.join("new")), (5, 6));
    assert_eq!(owner(&upper.join("etc/group")), (5, 6));
    assert_eq!(owner(&upper.join("etc/passwd2")), (0, 0));
    assert_eq!(owner(&world.image().join("etc/group")), (7, 8), "the layer is as it was");
}

fn what_cannot_be_mapped_is_named() {
    let (world, users) = world();
    let mut spec = spec(&world, "");
    spec.mounts.push(berth::supervisor::spec::MountSpec {
        volume: Some("settings".to_owned()),
        ..bind("/proc/sys", "/settings")
    });
    let error = world.start(spec, &context(&world, &users)).finish().start_error();
    assert_eq!(error.step, "map the owners of volume \"settings\", /proc/sys on /settings");
    assert!(error.message.contains("does not support idmapped mounts"), "{error:?}");
}

fn ids_that_the_namespace_lacks_are_refused() {
    let (world, users) = world();
    for (user, message) in [
        (UserSpec { uid: Some(70_000), ..UserSpec::default() }, "user 70000 is not in"),
        (UserSpec { gid: Some(65_536), ..UserSpec::default() }, "group 65536 is not in"),
        (UserSpec { groups: vec![1, 100_000], ..UserSpec::default() }, "supplementary group 100000 is not in"),
    ] {
        let spec = LaunchSpec { user, ..spec(&world, "") };
        let error = world.start(spec, &context(&world, &users)).finish().start_error();
        assert!(error.message.starts_with(message), "{error:?}");
        assert_eq!(error.reason, "CreateContainerError");
    }
    let highest = UserSpec { uid: Some(65_535), gid: Some(65_535), ..UserSpec::default() };
    let spec = LaunchSpec { user: highest, ..spec(&world, "id -u; echo to-stdout >/dev/stdout") };
    let printed = world.start(spec, &context(&world, &users)).finish().printed();
    assert_eq!(printed, "65535\nto-stdout\n");
}

fn exec_and_terminals_work_inside() {
    let (world, users) = world();
    let mut first = spec(&world, "echo ready; sleep 60");
    first.user = UserSpec { uid: Some(1000), ..UserSpec::default() };
    first.seccomp = vec![0x0006_0000_7fff_0000];
    let mut running = world.start(first, &context(&world, &users));
    let user = running.started();
    assert_eq!(running.first_line(), "ready");
    let context_of_exec = LaunchContext { user: Some(&user), ..context(&world, &users) };
    let script = "id -u; for kind in cgroup ipc mnt net pid user uts; do a=$(readlink /proc/1/ns/$kind); \
                  b=$(readlink /proc/self/ns/$kind); [ \"$a\" = \"$b\" ] || echo $kind differs; done; \
                  echo x >/dev/stdout; ls /proc/self/fd; cat /proc/self/oom_score_adj";
    let printed = world.exec(&running, &exec_spec(script), &context_of_exec).printed();
    assert_eq!(printed, "1000\nx\n0\n1\n2\n3\n500\n");

    let with_terminal = berth::supervisor::spec::ExecSpec { tty: true, ..exec_spec("tty; stat -c %u:%g /dev/pts/0") };
    let init = running.spawned.pidfd.as_fd();
    let spawned = container::exec(
        &with_terminal,
        &running.spec,
        &running.spec.cgroup,
        init,
        ChildStdio::Terminal,
        &context_of_exec,
    )
    .unwrap();
    let mut master = File::from(receive_master(spawned.console_socket.as_ref().unwrap()));
    assert_eq!(read_terminal(&mut master), "/dev/pts/0\r\n1000:5\r\n");
    pidfd::wait(spawned.pidfd.as_fd(), true).unwrap();
    running.kill();

    let mut own = spec(&world, "tty; stat -c %u:%g /dev/pts/0; echo to-console >/dev/console");
    own.stdio.tty = true;
    let spawned = container::spawn(&own, ChildStdio::Terminal, &context(&world, &users)).unwrap();
    let mut master = File::from(receive_master(spawned.console_socket.as_ref().unwrap()));
    let mut status = Vec::new();
    File::from(spawned.status).read_to_end(&mut status).unwrap();
    assert!(matches!(decode_status(&status), StatusOutcome::Started { .. }), "{}", String::from_utf8_lossy(&status));
    assert_eq!(read_terminal(&mut master), "/dev/pts/0\r\n0:5\r\nto-console\r\n");
    pidfd::wait(spawned.pidfd.as_fd(), true).unwrap();
}

fn a_bound_exec_and_its_parent_are_inside() {
    let (world, users) = world();
    let mut running = world.start(spec(&world, "echo ready; exec sleep 60"), &context(&world, &users));
    running.started();
    running.first_line();
    let script = "sleep 30 & id -u; for p in /proc/[0-9]*; do n=$(cat $p/comm); [ $n = berth-exec ] || continue; \
                  [ \"$(readlink $p/ns/user)\" = \"\" ] && echo not to be traced; \
                  grep -E '^(Uid|CapPrm|NoNewPrivs)' $p/status; done";
    let bound = berth::supervisor::spec::ExecSpec { bound: true, ..exec_spec(script) };
    let printed = world.exec(&running, &bound, &context(&world, &users)).printed();
    let expected = "0\nnot to be traced\nUid:\t65535\t65535\t65535\t65535\nCapPrm:\t0000000000000000\nNoNewPrivs:\t1\n";
    assert_eq!(printed, expected);
    running.kill();
}

/// Everything up to the end, which a terminal's master tells by EIO.
fn read_terminal(master: &mut File) -> String {
    let mut printed = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        printed.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(printed).unwrap()
}

fn containers_can_share_a_pid_namespace_inside() {
    let (world, users) = world();
    let mut first = world.start(spec(&world, "echo ready; exec sleep 60"), &context(&world, &users));
    first.started();
    first.first_line();
    for pid in [PidMode::Pod, PidMode::Target("c".to_owned())] {
        let second = LaunchSpec { pid, ..spec(&world, "cat /proc/1/comm; echo $$; stat -c %u /proc /etc/passwd") };
        let process = Some(first.spawned.pidfd.as_fd());
        let context = LaunchContext { pause: process, target: process, ..context(&world, &users) };
        let printed = world.start(second, &context).finish().printed();
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!((lines[0], lines[2], lines[3]), ("sleep", "65534", "0"));
        assert_ne!(lines[1], "1");
    }
    first.kill();
    let gone = LaunchSpec { pid: PidMode::Pod, ..spec(&world, "") };
    let (stdio, context) = (ChildStdio::Terminal, context(&world, &users));
    let error = container::spawn(&gone, stdio, &context).unwrap_err();
    assert_eq!(error.message, "it is not running");
}

fn limits_and_scores_are_set_before() {
    let (world, users) = world();
    let (soft, hard) = berth::sys::session::limit(7).unwrap();
    let mut spec = spec(&world, "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj");
    spec.rlimits = vec![(7, soft.min(200), hard.min(300))];
    spec.oom_score_adj = 777;
    assert_eq!(world.start(spec, &context(&world, &users)).finish().printed(), "200\n300\n777\n");
}

fn many_layers_cost_two_mounts() {
    let (world, users) = world();
    let mut spec = spec(&world, "cat /layer-0 /layer-69; /bin/busybox wc -l < /proc/self/mountinfo");
    for number in 0..70 {
        let layer = world.directory.join("layers").join(format!("{number}-{}", "x".repeat(80))).join("fs");
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("layer-{number}")), format!("{number}\n")).unwrap();
        spec.rootfs.lower.insert(0, layer);
    }
    let plain = LaunchSpec { users: None, ..spec.clone() };
    let printed = world.start(spec, &context(&world, &users)).finish().printed();
    assert!(printed.starts_with("0\n69\n"), "{printed}");
    // Device nodes are binds of the host's own there; beyond them nothing is added however many layers there are.
    let count = |printed: &str| printed.lines().last().and_then(|line| line.parse::<usize>().ok()).expect("a number");
    let devices = plain.devices.len();
    let plain = LaunchSpec { attempt: plain.attempt, ..world.spec(&plain.args[2]) };
    let expected = count(
        &world
            .run_spec(LaunchSpec {
                args: ["sh", "-c", "/bin/busybox wc -l < /proc/self/mountinfo"].map(str::to_owned).to_vec(),
                ..plain
            })
            .printed(),
    );
    assert_eq!(count(&printed), expected + devices);
}

fn parameters_are_set_by_the_namespaces_own_root() {
    let _world = World::new();
    let parameter = |name: &str, value: &str| Parameter {
        path: format!("/proc/sys/{}", name.replace('.', "/")).into(),
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let kinds = flags::NEWNET | flags::NEWIPC | flags::NEWUTS;
    let good = [
        parameter("net.ipv4.ip_unprivileged_port_start", "17"),
        parameter("net.ipv4.ping_group_range", "0 65535"),
        parameter("kernel.shm_rmid_forced", "1"),
        parameter("kernel.msgmax", "4097"),
        parameter("fs.mqueue.msg_max", "11"),
    ];
    user_namespace::make(RANGE, kinds, &good).unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap().trim().to_owned();
    assert_eq!(read("net/ipv4/ip_unprivileged_port_start"), "17");
    assert_eq!((read("kernel/shm_rmid_forced"), read("kernel/msgmax")), ("1".to_owned(), "4097".to_owned()));
    assert_eq!(read("fs/mqueue/msg_max"), "11");
    assert_eq!(read("net/ipv4/ping_group_range"), format!("{}\t{}", RANGE.first, RANGE.first + 65_535));
    let error = user_namespace::make(RANGE, kinds, &[parameter("vm.swappiness", "60")]).unwrap_err();
    assert_eq!(error.to_string(), "set the sysctl vm.swappiness to \"60\"");
    // Whoever asked is as before: a process like any other.
    process::clone_running(0, None, || 0).map(|child| pidfd::wait(child.pidfd.as_fd(), true).unwrap()).unwrap();
}

fn version_1_cgroups_are_shown_inside() {
    let (world, users) = world();
    let cgroups = Cgroups::new();
    let mut spec = spec(&world, "ls /sys/fs/cgroup; mkdir /sys/fs/cgroup/memory/x 2>/dev/null && echo BAD; true");
    spec.cgroup = cgroups.placement.clone();
    let mut mount = mount_spec("/sys/fs/cgroup", MountKind::Cgroup);
    mount.readonly = true;
    spec.mounts.push(mount);
    if cgroups.placement.v1.is_empty() {
        spec.new_cgroup_ns = true;
    }
    let printed = world.start(spec, &context(&world, &users)).finish().printed();
    assert!(!printed.contains("BAD") && printed.lines().count() > 0, "{printed}");
}
