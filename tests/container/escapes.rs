//! Images, volumes and specs that try to reach the host, after the vulnerabilities that other runtimes had.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    process::Command,
};

use berth::{
    supervisor::{
        container::{self, ChildStdio, StatusOutcome, decode_status},
        spec::{LaunchSpec, MountKind, MountSpec, PidMode, StartError},
    },
    sys::{memfd, mount, openat2, pidfd},
};

use super::{
    Case,
    world::{World, bind, mount_spec, mount_tmpfs},
};

pub const CASES: &[Case] = &[
    ("a_sub_path_link_out_of_its_volume_is_refused", a_sub_path_link_out_of_its_volume_is_refused),
    ("a_missing_sub_path_is_made_like_its_volume", a_missing_sub_path_is_made_like_its_volume),
    ("a_dev_link_in_the_image_stays_inside", a_dev_link_in_the_image_stays_inside),
    ("a_proc_link_in_the_image_is_refused", a_proc_link_in_the_image_is_refused),
    ("a_mount_inside_proc_is_refused", a_mount_inside_proc_is_refused),
    ("a_working_directory_through_a_descriptor_is_refused", a_working_directory_through_a_descriptor_is_refused),
    ("a_swapped_dev_null_is_not_used_for_masking", a_swapped_dev_null_is_not_used_for_masking),
    ("a_console_link_is_not_followed", a_console_link_is_not_followed),
    ("a_pts_that_is_no_devpts_is_refused", a_pts_that_is_no_devpts_is_refused),
    ("the_supervisor_s_program_cannot_be_changed", the_supervisor_s_program_cannot_be_changed),
    ("targets_through_links_stay_inside", targets_through_links_stay_inside),
];

fn sub_path(world: &World, path: &str) -> MountSpec {
    let source = world.directory.join("volume");
    let kind = MountKind::Bind { source, sub_path: Some(path.into()) };
    MountSpec { kind, ..bind("", "/data") }
}

fn a_sub_path_link_out_of_its_volume_is_refused() {
    let world = World::new();
    let volume = world.directory.join("volume");
    fs::create_dir_all(volume.join("inside")).unwrap();
    fs::write(volume.join("inside/file"), "content").unwrap();
    symlink("/etc", volume.join("absolute")).unwrap();
    symlink("../image", volume.join("upwards")).unwrap();
    symlink("/proc/self/root", volume.join("magic")).unwrap();
    symlink("inside", volume.join("fine")).unwrap();
    for path in ["absolute", "upwards", "upwards/etc", "magic", "inside/../../image", "/etc"] {
        let mut spec = world.spec("");
        spec.mounts.push(sub_path(&world, path));
        let error = world.run_spec(spec).start_error();
        assert_eq!(error.reason, "CreateContainerConfigError");
        assert!(error.message.contains("leads out of its volume"), "{path}: {error:?}");
    }
    for path in ["fine", "inside", "inside/../fine"] {
        let mut spec = world.spec("cat /data/file");
        spec.mounts.push(sub_path(&world, path));
        assert_eq!(world.run_spec(spec).printed(), "content");
    }
    let mut spec = world.spec("cat /data");
    spec.mounts.push(sub_path(&world, "fine/file"));
    assert_eq!(world.run_spec(spec).printed(), "content");
}

fn a_missing_sub_path_is_made_like_its_volume() {
    let world = World::new();
    let volume = world.directory.join("volume");
    fs::create_dir(&volume).unwrap();
    chown(&volume, Some(1000), Some(2000)).unwrap();
    fs::set_permissions(&volume, PermissionsExt::from_mode(0o2770)).unwrap();
    let mut spec = world.spec("stat -c '%u:%g %a' /data");
    spec.mounts.push(sub_path(&world, "new/deep"));
    assert_eq!(world.run_spec(spec).printed(), "1000:2000 2770\n");
    let made = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 2000, 0o2770));
}

/// CVE-2026-41579, CVE-2024-45310.
fn a_dev_link_in_the_image_stays_inside() {
    let world = World::new();
    let outside = world.directory.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("ptmx"), "").unwrap();
    fs::remove_dir(world.image().join("dev")).unwrap();
    symlink(&outside, world.image().join("dev")).unwrap();
    // The link resolves inside the container's root, where it leads to a directory of the container's own.
    assert_eq!(world.run("readlink /dev && echo x > /dev/null && ls /dev/ptmx").printed(), "/tmp/outside\n/dev/ptmx\n");
    let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ptmx"]);
    assert!(!fs::symlink_metadata(outside.join("ptmx")).unwrap().is_symlink());
}

/// CVE-2019-19921, CVE-2023-27561.
fn a_proc_link_in_the_image_is_refused() {
    let world = World::new();
    for name in ["proc", "sys"] {
        fs::remove_dir(world.image().join(name)).unwrap();
        symlink("/tmp", world.image().join(name)).unwrap();
        let error = world.run("").start_error();
        assert!(error.message.contains("ordinary directory"), "{error:?}");
        fs::remove_file(world.image().join(name)).unwrap();
        fs::create_dir(world.image().join(name)).unwrap();
    }
}

/// CVE-2025-52881, CVE-2019-16884.
fn a_mount_inside_proc_is_refused() {
    let world = World::new();
    symlink("/proc/self/attr", world.image().join("harmless")).unwrap();
    let volume = world.directory.join("volume");
    fs::create_dir(&volume).unwrap();
    for target in ["/proc/self/attr", "/harmless", "/tmp/../proc/sys"] {
        let mut spec = world.spec("");
        spec.mounts.push(bind(&volume, target));
        assert_eq!(world.run_spec(spec).start_error().message, "the place is inside a proc file system", "{target}");
    }
    let mut spec = world.spec("");
    spec.mounts.push(mount_spec("/proc/self/attr", MountKind::Tmpfs { options: String::new() }));
    assert_eq!(world.run_spec(spec).start_error().message, "the place is inside a proc file system");
    // Anything but a procfs in the place of /proc.
    let mut spec = world.spec("");
    spec.mounts[0] = bind(&volume, "/proc");
    assert!(world.run_spec(spec).start_error().message.contains("only a proc file system"));
    // The view that lxcfs gives, and the host's own /proc, are allowed.
    let file = world.directory.join("uptime");
    fs::write(&file, "1.0 1.0\n").unwrap();
    let mut spec = world.spec("cat /proc/uptime");
    spec.mounts.push(bind(&file, "/proc/uptime"));
    assert_eq!(world.run_spec(spec).printed(), "1.0 1.0\n");
    let mut spec = world.spec("ls -d /proc/self");
    spec.mounts[0] = bind("/proc", "/proc");
    world.run_spec(spec);
}

/// CVE-2024-21626.
fn a_working_directory_through_a_descriptor_is_refused() {
    let world = World::new();
    symlink("/proc/self/fd/7", world.image().join("work")).unwrap();
    for number in 3..12 {
        let mut spec = world.spec("pwd; ls");
        spec.cwd = format!("/proc/self/fd/{number}").into();
        assert_ne!(world.run_spec(spec).start_error().errno, 0);
    }
    let mut spec = world.spec("pwd; ls");
    spec.cwd = "/work".into();
    world.run_spec(spec).start_error();
    let mut spec = world.spec("pwd; ls");
    spec.cwd = "/proc/1/root".into();
    assert_eq!(world.run_spec(spec).start_error().errno, 40);
}

/// CVE-2025-31133.
fn a_swapped_dev_null_is_not_used_for_masking() {
    let world = World::new();
    symlink("/proc/sys/kernel/core_pattern", world.image().join("dev/null")).unwrap();
    let mut spec = world.spec("stat -c '%t:%T' /proc/timer_list; cat /proc/timer_list");
    // The image's own /dev, with nothing mounted over it.
    spec.mounts.retain(|mount| !mount.target.starts_with("/dev"));
    spec.devices.clear();
    assert_eq!(world.run_spec(spec).printed(), "1:3\n");

    // And if the host's is not what it should be, nothing starts.
    let fake = world.directory.join("fake");
    fs::write(&fake, "").unwrap();
    let tree = mount::clone_tree(mount::open_place(&fake).unwrap().as_fd(), false).unwrap();
    let null = mount::open_place("/dev/null".as_ref()).unwrap();
    mount::attach(tree.as_fd(), null.as_fd()).unwrap();
    assert_eq!(world.run("").start_error().message, "it is not the null device");
}

/// CVE-2025-52565.
fn a_console_link_is_not_followed() {
    let world = World::new();
    let outside = world.directory.join("outside");
    fs::write(&outside, "untouched").unwrap();
    symlink("/proc/sysrq-trigger", world.image().join("dev/console")).unwrap();
    let mut spec = world.spec("");
    // /dev/pts alone is mounted: /dev is the image's.
    spec.mounts.retain(|mount| !mount.target.starts_with("/dev") || mount.target.ends_with("pts"));
    spec.stdio.tty = true;
    let error = terminal_error(&world, &spec);
    assert_eq!((error.step.as_str(), error.errno), ("bind the terminal on /dev/console", 40));
}

fn a_pts_that_is_no_devpts_is_refused() {
    let world = World::new();
    let volume = world.directory.join("volume");
    mount_tmpfs(&volume);
    fs::write(volume.join("ptmx"), "").unwrap();
    let mut spec = world.spec("");
    spec.mounts.retain(|mount| !mount.target.ends_with("pts"));
    spec.mounts.push(bind(&volume, "/dev/pts"));
    let error = terminal_error(&world, &spec);
    assert_eq!(error.message, "it is not on a devpts file system");
}

/// CVE-2019-5736: an image whose program is a link to the program that starts it, which another container then opens.
fn the_supervisor_s_program_cannot_be_changed() {
    let own = fs::read_link("/proc/self/exe").unwrap();
    if !own.as_os_str().as_encoded_bytes().starts_with(b"/memfd:") {
        // As a supervisor is started: from a sealed copy of the program.
        let copy = memfd::sealed_copy(c"sealed", &fs::File::open(own).unwrap()).unwrap();
        let status = Command::new(openat2::name_of(copy.as_fd()))
            .args(["--case", "the_supervisor_s_program_cannot_be_changed"])
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let world = World::new();
    symlink("/proc/self/exe", world.image().join("bin/again")).unwrap();
    let mut spec = world.spec("");
    spec.args = vec!["/bin/again".to_owned(), "--hold".to_owned()];
    spec.pid = PidMode::Host;
    let mut program = world.start(spec, &world.context());
    program.started();
    let pid = program.spawned.pid;
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), fs::read_link("/proc/self/exe").unwrap());

    let script = format!(
        "exec 3</proc/{pid}/exe; echo opened; read line; (echo x > /proc/self/fd/3) 2>&1 | grep -o -e busy -e 'not permitted'"
    );
    let mut spec = world.spec(&script);
    spec.pid = PidMode::Host;
    let mut intruder = world.start(spec, &world.context());
    assert_eq!(intruder.first_line(), "opened");
    program.kill();
    // Busy while anything still runs it (this process does), sealed for ever after.
    let refusal = intruder.finish().output;
    assert!(["busy\n", "not permitted\n"].contains(&refusal.as_str()), "{refusal:?}");
}

fn targets_through_links_stay_inside() {
    let world = World::new();
    let outside = world.directory.join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, world.image().join("absolute")).unwrap();
    symlink("../../../../tmp/outside", world.image().join("upwards")).unwrap();
    let volume = world.directory.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content").unwrap();
    let mut spec = world.spec("cat /tmp/outside/one/file /tmp/outside/two/file");
    spec.mounts.push(bind(&volume, "/absolute/one"));
    spec.mounts.push(bind(&volume, "/upwards/two"));
    assert_eq!(world.run_spec(spec).printed(), "contentcontent");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// Why a container with a terminal did not start.
fn terminal_error(world: &World, spec: &LaunchSpec) -> StartError {
    let spawned = container::spawn(spec, ChildStdio::Terminal, &world.context()).unwrap();
    let mut status = Vec::new();
    File::from(spawned.status).read_to_end(&mut status).unwrap();
    pidfd::wait(spawned.pidfd.as_fd(), true).unwrap();
    match decode_status(&status) {
        StatusOutcome::Failed(error) => error,
        status => panic!("{status:?}"),
    }
}
