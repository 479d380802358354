//! Containers that cannot start, and what is said of them.

use std::{fs, os::unix::fs::PermissionsExt};

use berth::supervisor::{
    container::{self, ChildStdio},
    spec::{MountKind, PidMode, UserSpec},
};

use super::{
    Case,
    world::{World, bind, mount_spec},
};

pub const CASES: &[Case] = &[
    ("an_app_armor_profile_that_the_kernel_refuses", an_app_armor_profile_that_the_kernel_refuses),
    ("a_command_that_does_not_exist", a_command_that_does_not_exist),
    ("a_command_that_cannot_be_executed", a_command_that_cannot_be_executed),
    ("a_user_that_the_image_does_not_know", a_user_that_the_image_does_not_know),
    ("run_as_non_root_with_a_root_image", run_as_non_root_with_a_root_image),
    ("user_files_that_are_no_files", user_files_that_are_no_files),
    ("a_bind_source_that_does_not_exist", a_bind_source_that_does_not_exist),
    ("a_directory_on_a_file", a_directory_on_a_file),
    ("a_bad_tmpfs_option", a_bad_tmpfs_option),
    ("a_layer_that_does_not_exist", a_layer_that_does_not_exist),
    ("a_pid_namespace_that_is_gone", a_pid_namespace_that_is_gone),
];

fn a_command_that_does_not_exist() {
    let world = World::new();
    let error = |name: &str| {
        let mut spec = world.spec("");
        spec.args = vec![name.to_owned()];
        spec.no_new_privs = true;
        world.run_spec(spec).start_error()
    };
    let missing = error("nope");
    assert_eq!(missing.message, "exec: \"nope\": executable file not found in $PATH");
    assert_eq!((missing.reason.as_str(), missing.step.as_str()), ("StartError", "exec \"nope\""));
    assert_eq!(error("/bin/nope").message, "exec: \"/bin/nope\": stat /bin/nope: no such file or directory");
}

fn a_command_that_cannot_be_executed() {
    let world = World::new();
    fs::write(world.image().join("bin/data"), "no program").unwrap();
    let run = |name: &str| {
        let mut spec = world.spec("");
        spec.args = vec![name.to_owned()];
        world.run_spec(spec).start_error()
    };
    let denied = run("data");
    assert_eq!((denied.message.as_str(), denied.errno), ("exec: \"data\": permission denied", 13));
    assert_eq!(run("/etc").message, "exec: \"/etc\": permission denied");
    fs::set_permissions(world.image().join("bin/data"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run("data").message, "exec: \"data\": exec format error");
}

fn a_user_that_the_image_does_not_know() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.user.image_user = "nobody".to_owned();
    let error = world.run_spec(spec).start_error();
    assert_eq!(error.message, "unable to find user nobody: no matching entries in passwd file");
    assert_eq!(error.reason, "CreateContainerError");
}

fn run_as_non_root_with_a_root_image() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.user = UserSpec { non_root: true, ..UserSpec::default() };
    let error = world.run_spec(spec).start_error();
    assert_eq!(error.message, "container has runAsNonRoot and image will run as root");
    assert_eq!(error.reason, "CreateContainerConfigError");
}

fn user_files_that_are_no_files() {
    let world = World::new();
    let passwd = world.image().join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = world.run("").start_error();
    assert_eq!(
        (error.step.as_str(), error.message.as_str()),
        ("read /etc/passwd of the container", "it is not a regular file")
    );
    fs::remove_file(&passwd).unwrap();
    fs::File::create(&passwd).unwrap().set_len(1 << 40).unwrap();
    assert!(world.run("").start_error().message.contains("larger than"));
    fs::remove_file(&passwd).unwrap();
    assert_eq!(world.run("id -u").printed(), "0\n");
}

fn a_bind_source_that_does_not_exist() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.mounts.push(bind("/no/such/volume", "/data"));
    let error = world.run_spec(spec).start_error();
    assert_eq!((error.step.as_str(), error.errno), ("open /no/such/volume for /data", 2));
}

fn a_directory_on_a_file() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.mounts.push(bind(world.image(), "/etc/passwd"));
    let error = world.run_spec(spec).start_error();
    assert_eq!(error.message, "a directory cannot be mounted on a file", "{error:?}");
    let mut spec = world.spec("");
    spec.mounts.push(bind(world.image().join("etc/passwd"), "/etc"));
    assert_eq!(world.run_spec(spec).start_error().message, "a file cannot be mounted on a directory");
}

fn a_bad_tmpfs_option() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.mounts.push(mount_spec("/data", MountKind::Tmpfs { options: "size=much".to_owned() }));
    let error = world.run_spec(spec).start_error();
    assert_eq!((error.step.as_str(), error.errno), ("mount tmpfs on /data", 22));
    assert_eq!(error.message, "invalid argument: tmpfs: Bad value for 'size'");
}

fn a_layer_that_does_not_exist() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.rootfs.lower.push("/no/such/layer".into());
    let error = world.run_spec(spec).start_error();
    assert!(error.step.starts_with("mount overlay on "), "{error:?}");
    assert_eq!(error.errno, 2);
}

fn a_pid_namespace_that_is_gone() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.pid = PidMode::Pod;
    let error = container::spawn(&spec, ChildStdio::Terminal, &world.context()).unwrap_err();
    assert_eq!(error.step, "join the PID namespace of the pod's pause process");
    // The next container is born where it should be.
    assert_eq!(world.run("readlink /proc/self").printed().trim(), "1");
}

fn an_app_armor_profile_that_the_kernel_refuses() {
    // Here for want of AppArmor, elsewhere because there is no such profile: never a start without it.
    let world = World::new();
    let mut spec = world.spec("echo started");
    spec.app_armor = Some("berth-test-none".to_owned());
    let outcome = world.run_spec(spec);
    assert_eq!(outcome.output, "");
    let error = outcome.start_error();
    assert!(error.step.ends_with("AppArmor profile berth-test-none"), "{error:?}");
}
