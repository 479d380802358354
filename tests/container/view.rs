//! What a container sees: mounts, devices, its place among processes and cgroups.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::symlink},
    path::PathBuf,
};

use berth::{
    supervisor::spec::{MountKind, MountSpec, Propagation, RecursiveReadOnly},
    sys::mount::{self, PropagationType},
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{
    Case,
    world::{Cgroups, World, bind, field, mount_spec, mount_tmpfs},
};

pub const CASES: &[Case] = &[
    ("mounts_are_present_with_their_flags", mounts_are_present_with_their_flags),
    ("binds_have_the_flags_of_the_spec_and_of_their_source", binds_have_the_flags_of_the_spec_and_of_their_source),
    ("read_only_binds_can_be_recursive", read_only_binds_can_be_recursive),
    ("propagation_follows_the_spec", propagation_follows_the_spec),
    ("devices_and_links_are_usable", devices_and_links_are_usable),
    ("a_privileged_container_has_all_devices", a_privileged_container_has_all_devices),
    ("a_host_dev_is_left_alone", a_host_dev_is_left_alone),
    ("only_the_standard_streams_are_open", only_the_standard_streams_are_open),
    ("a_root_of_many_layers_with_long_names_works", a_root_of_many_layers_with_long_names_works),
    ("cgroups_are_joined_and_shown", cgroups_are_joined_and_shown),
    ("the_host_sees_no_mount", the_host_sees_no_mount),
];

/// Options of the last mount on `target`, per mount and per file system, from the lines of a mountinfo.
fn options(mounts: &str, target: &str) -> String {
    let line = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(target));
    let line = line.unwrap_or_else(|| panic!("{target} is not in\n{mounts}"));
    let fields: Vec<&str> = line.split(' ').collect();
    format!("{} {}", fields[5], fields[fields.len() - 3..].join(" "))
}

fn mounts_are_present_with_their_flags() {
    let world = World::new();
    let mounts = world.run("cat /proc/self/mountinfo").printed();
    let proc = options(&mounts, "/proc");
    assert!(proc.starts_with("rw,nosuid,nodev,noexec,relatime proc proc"), "{proc}");
    let sys = options(&mounts, "/sys");
    assert!(sys.starts_with("ro,nosuid,nodev,noexec,relatime sysfs"), "{sys}");
    let dev = options(&mounts, "/dev");
    assert!(dev.starts_with("rw,nosuid,relatime tmpfs tmpfs") && dev.contains("size=65536k,mode=755"), "{dev}");
    let pts = options(&mounts, "/dev/pts");
    assert!(
        pts.starts_with("rw,nosuid,noexec,relatime devpts") && pts.contains("gid=5,mode=620,ptmxmode=666"),
        "{pts}"
    );
    assert!(options(&mounts, "/dev/mqueue").contains("mqueue"));
    assert!(options(&mounts, "/").starts_with("rw,relatime overlay"));
    // Nothing of the host is left: every mount is one of the spec's, a mask, or a protected path.
    assert!(mounts.lines().all(|line| !line.contains("ext4")), "{mounts}");

    let listing = world.run("ls -d /dev/shm /proc/1 && readlink /proc/1/exe && cat /proc/1/oom_score_adj").printed();
    assert_eq!(listing, "/dev/shm\n/proc/1\n/bin/busybox\n500\n");
}

fn binds_have_the_flags_of_the_spec_and_of_their_source() {
    let world = World::new();
    let volume = world.directory.join("volume");
    mount_tmpfs(&volume);
    fs::write(volume.join("file"), "content").unwrap();
    let mut spec = world.spec("cat /data/file /etc/resolv.conf && cat /proc/self/mountinfo");
    let mut data = bind(&volume, "/data");
    (data.readonly, data.nosuid) = (true, true);
    spec.mounts.push(data);
    // The place is a link to something that does not exist, as in many images.
    symlink("../run/stub-resolv.conf", world.image().join("etc/resolv.conf")).unwrap();
    spec.mounts.push(bind(volume.join("file"), "/etc/resolv.conf"));
    // /sys is nosuid,nodev,noexec and read-only where it was mounted so; a plain bind of it stays what it is.
    spec.mounts.push(bind("/proc/sys", "/host-sysctl"));
    let printed = world.run_spec(spec).printed();
    assert!(printed.starts_with("contentcontent"), "{printed}");
    assert!(options(&printed, "/data").starts_with("ro,nosuid,relatime tmpfs"), "{printed}");
    assert!(options(&printed, "/run/stub-resolv.conf").starts_with("rw,relatime tmpfs"), "{printed}");
}

fn read_only_binds_can_be_recursive() {
    let world = World::new();
    let volume = world.directory.join("volume");
    mount_tmpfs(&volume);
    mount_tmpfs(&volume.join("inner"));
    let write = "touch /data/x 2>/dev/null; touch /data/inner/x 2>/dev/null; ls /data /data/inner";
    let result = |recursive| {
        let mut spec = world.spec(write);
        let mut data = bind(&volume, "/data");
        (data.readonly, data.recursive_readonly) = (true, recursive);
        spec.mounts.push(data);
        world.run_spec(spec).printed()
    };
    assert_eq!(result(RecursiveReadOnly::Enabled), "/data:\ninner\n\n/data/inner:\n");
    assert_eq!(result(RecursiveReadOnly::IfPossible), "/data:\ninner\n\n/data/inner:\n");
    assert_eq!(result(RecursiveReadOnly::Disabled), "/data:\ninner\n\n/data/inner:\nx\n");
}

fn propagation_follows_the_spec() {
    let world = World::new();
    let volume = world.directory.join("volume");
    mount_tmpfs(&volume);
    let place = mount::open_place(&volume).unwrap();
    let shared = Some(PropagationType::Shared);
    mount::set_attributes(place.as_fd(), false, 0, shared).unwrap();
    let tags = |propagation| {
        let mut spec = world.spec("grep ' /data ' /proc/self/mountinfo");
        let mut data = bind(&volume, "/data");
        data.propagation = propagation;
        spec.mounts.push(data);
        let line = world.run_spec(spec).printed();
        line.split(' ')
            .skip(6)
            .take_while(|tag| *tag != "-")
            .map(|tag| tag.split(':').next().unwrap().to_owned())
            .collect()
    };
    let nothing: Vec<String> = tags(Propagation::Private);
    assert!(nothing.is_empty(), "{nothing:?}");
    assert_eq!(tags(Propagation::Slave), ["master"]);
    assert_eq!(tags(Propagation::Shared), ["shared"]);

    // Where the host passes nothing on, nothing is promised.
    let private = world.directory.join("private");
    mount_tmpfs(&private);
    for propagation in [Propagation::Slave, Propagation::Shared] {
        let mut spec = world.spec("");
        spec.mounts.push(MountSpec { propagation, ..bind(&private, "/data") });
        let error = world.run_spec(spec).start_error();
        assert!(
            error.message.starts_with("path \"/tmp/private\" is mounted on \"/tmp/private\" but it is not a shared")
        );
        assert_eq!(error.reason, "CreateContainerError");
    }

    // Bidirectional: what the container mounts, the host sees.
    let mut spec = world.spec("mkdir /data/made && busybox mount -t tmpfs none /data/made && echo done && sleep 60");
    spec.capabilities = u64::MAX;
    let mut data = bind(&volume, "/data");
    data.propagation = Propagation::Shared;
    spec.mounts.push(data);
    let mut running = world.start(spec, &world.context());
    assert_eq!(running.first_line(), "done");
    let seen = fs::read_to_string("/proc/self/mountinfo").unwrap();
    running.kill();
    assert!(seen.contains(" /tmp/volume/made "), "{seen}");
}

fn devices_and_links_are_usable() {
    let world = World::new();
    let script = "echo x > /dev/null && busybox head -c 2 /dev/zero | busybox wc -c && echo out > /dev/stdout \
        && stat -c '%t:%T %a' /dev/null /dev/tty && readlink /dev/fd && readlink /dev/ptmx";
    let printed = world.run(script).printed();
    assert_eq!(printed, "2\nout\n1:3 666\n5:0 666\n/proc/self/fd\npts/ptmx\n");
}

fn a_privileged_container_has_all_devices() {
    let world = World::new();
    let mut spec = world.spec("stat -c '%t:%T' /dev/null /dev/kmsg; ls /dev/console; ls -l /dev/ptmx");
    (spec.all_devices, spec.devices) = (true, Vec::new());
    let outcome = world.run_spec(spec);
    assert!(outcome.output.starts_with("1:3\n1:b\n"), "{outcome:?}");
    assert!(outcome.errors.contains("/dev/console: No such file"), "{outcome:?}");
    assert!(outcome.output.contains("/dev/ptmx -> pts/ptmx"), "{outcome:?}");
}

fn a_host_dev_is_left_alone() {
    let world = World::new();
    let dev = world.directory.join("host-dev");
    fs::create_dir(&dev).unwrap();
    let mut spec = world.spec("ls -A /dev");
    spec.mounts.retain(|mount| !mount.target.starts_with("/dev"));
    spec.mounts.push(bind(&dev, "/dev"));
    assert_eq!(world.run_spec(spec).printed(), "");
    assert_eq!(fs::read_dir(&dev).unwrap().count(), 0);
}

fn only_the_standard_streams_are_open() {
    let world = World::new();
    // Inheritable on purpose, as a careless library would leave it.
    let careless = fs::File::open("/").unwrap();
    fcntl(&careless, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    // ls itself has the directory open as 3.
    assert_eq!(world.run("exec ls /proc/self/fd").printed(), "0\n1\n2\n3\n");
    let status = world.run("exec cat /proc/self/status").printed();
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
}

fn a_root_of_many_layers_with_long_names_works() {
    let world = World::new();
    let mut spec = world.spec("cat /layer-0 /layer-63 /same");
    let deep = world.directory.join("x".repeat(200)).join("y".repeat(200));
    let layers: Vec<PathBuf> = (0..64).map(|number| deep.join(format!("layer:{number},\\"))).collect();
    for (number, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer).unwrap();
        fs::write(layer.join(format!("layer-{number}")), format!("{number} ")).unwrap();
        fs::write(layer.join("same"), format!("top {number}")).unwrap();
    }
    spec.rootfs.lower.splice(0..0, layers);
    assert_eq!(world.run_spec(spec).printed(), "0 63 top 0");
}

fn cgroups_are_joined_and_shown() {
    let world = World::new();
    let cgroups = Cgroups::new();
    let mut spec = world.spec("read line; cat /proc/self/cgroup; echo; cat /proc/self/mountinfo");
    spec.cgroup = cgroups.placement.clone();
    let mut view = mount_spec("/sys/fs/cgroup", MountKind::Cgroup);
    view.readonly = true;
    spec.mounts.push(view);
    let mut running = world.start(spec, &world.context());
    running.started();
    let name = format!("berth-test-{}", std::process::id());
    let seen = fs::read_to_string(format!("/proc/{}/cgroup", running.spawned.pid)).unwrap();
    let joined = seen.lines().filter(|line| line.ends_with(&name)).count();
    let outcome = running.finish();
    assert_eq!(joined, cgroups.directories().count(), "{seen}");
    // A container of the unified hierarchy alone has it mounted at the usual place, with itself as the root.
    if let Some(unified) = &cgroups.placement.unified {
        let mut spec = world.spec("cat /sys/fs/cgroup/cgroup.procs; cat /proc/self/mountinfo");
        spec.cgroup.unified = Some(unified.clone());
        spec.mounts.push(mount_spec("/sys/fs/cgroup", MountKind::Cgroup));
        let printed = world.run_spec(spec).printed();
        assert!(printed.starts_with("1\n"), "{printed}");
        assert!(options(&printed, "/sys/fs/cgroup").contains("cgroup2"), "{printed}");
    }
    // In its own namespace each of them is the root.
    let (own, rest) = outcome.output.split_once("\n\n").unwrap();
    assert_eq!(own.lines().filter(|line| line.ends_with(":/")).count(), own.lines().count(), "{own}");
    if !cgroups.placement.v1.is_empty() {
        for leaf in cgroups.directories() {
            let hierarchy = leaf.parent().unwrap().to_str().unwrap();
            assert!(options(rest, hierarchy).starts_with("ro,nosuid,nodev,noexec"), "{rest}");
        }
    }
    assert!(options(rest, "/sys/fs/cgroup").starts_with("ro,nosuid,nodev,noexec"), "{rest}");
}

fn the_host_sees_no_mount() {
    let world = World::new();
    // The worst case: everything of the host propagates.
    let root = mount::open_place("/".as_ref()).unwrap();
    let shared = Some(PropagationType::Shared);
    mount::set_attributes(root.as_fd(), true, 0, shared).unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut running = world.start(world.spec("sleep 60"), &world.context());
    running.started();
    let during = fs::read_to_string("/proc/self/mountinfo").unwrap();
    running.kill();
    assert_eq!(before, during);
    assert_eq!(before, fs::read_to_string("/proc/self/mountinfo").unwrap());
}
