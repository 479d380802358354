//! What a container may do: users, capabilities, filters, limits, read-only and hidden paths.

use std::fs;

use berth::{
    supervisor::{container::StatusOutcome, spec::UserSpec},
    sys::{caps, pidfd::Ended, session},
};
use nix::libc;

use super::{
    Case,
    world::{DEFAULT_CAPABILITIES, World, field},
};

pub const CASES: &[Case] = &[
    ("masked_paths_are_empty_and_protected_ones_read_only", masked_paths_are_empty_and_protected_ones_read_only),
    ("root_has_exactly_the_capabilities_of_the_spec", root_has_exactly_the_capabilities_of_the_spec),
    ("another_user_has_none_but_the_bounding_set", another_user_has_none_but_the_bounding_set),
    ("a_capability_that_nobody_has_is_a_warning", a_capability_that_nobody_has_is_a_warning),
    ("no_new_privs_and_seccomp_are_in_force", no_new_privs_and_seccomp_are_in_force),
    ("a_filter_without_no_new_privs_is_loaded_too", a_filter_without_no_new_privs_is_loaded_too),
    ("a_filter_may_forbid_all_but_exec", a_filter_may_forbid_all_but_exec),
    ("users_and_groups_are_looked_up_by_name", users_and_groups_are_looked_up_by_name),
    ("a_user_can_open_its_own_streams", a_user_can_open_its_own_streams),
    ("a_read_only_root_is_read_only", a_read_only_root_is_read_only),
    ("limits_and_working_directory_are_set", limits_and_working_directory_are_set),
    ("a_session_keyring_of_its_own_is_joined", a_session_keyring_of_its_own_is_joined),
];

/// `ret ALLOW`.
const ALLOW: u64 = 0x0006_0000_7fff_0000;

/// Refuses the system calls `numbers` with EPERM (x86-64 and aarch64 numbers differ: the caller's affair).
fn refusing(numbers: &[i64]) -> Vec<u64> {
    // ld [0]: the number
    let mut program = vec![0x0020_0000_0000_0000];
    for number in numbers {
        // jeq #number, 0, 1; ret ERRNO|EPERM
        program.push(0x0015_0001_0000_0000 | *number as u64);
        program.push(0x0006_0000_0005_0001);
    }
    program.push(ALLOW);
    program
}

fn masked_paths_are_empty_and_protected_ones_read_only() {
    let world = World::new();
    let script = "cat /proc/timer_list /proc/keys /proc/kcore 2>/dev/null; ls -A /proc/acpi /sys/firmware 2>/dev/null \
        | grep -v -e : -e '^$'; stat -c '%t:%T %F' /proc/timer_list; \
        (echo 1 > /proc/sys/kernel/panic) 2>&1 | grep -o Read-only; (echo h > /proc/sysrq-trigger) 2>&1 | grep -o Read-only; \
        touch /sys/firmware/x 2>&1 | grep -o Read-only; cat /proc/self/mountinfo";
    let mut spec = world.spec(script);
    spec.masked_paths.push("/does/not/exist".into());
    spec.masked_paths.push("/etc/passwd/neither".into());
    let printed = world.run_spec(spec).printed();
    let expected = "1:3 character special file\nRead-only\nRead-only\n";
    let mounts = printed.strip_prefix(expected).unwrap_or_else(|| panic!("{printed}"));
    // All directories are covered by one and the same file system.
    let device = |target: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(target));
        line.map(|line| line.split(' ').nth(2).unwrap().to_owned())
    };
    let covered: Vec<_> = ["/proc/acpi", "/sys/firmware"].iter().filter_map(|path| device(path)).collect();
    assert!(!covered.is_empty() && covered.iter().all(|device| *device == covered[0]), "{mounts}");
}

fn root_has_exactly_the_capabilities_of_the_spec() {
    let world = World::new();
    let status = world.run("cat /proc/self/status").printed();
    let set = format!("{DEFAULT_CAPABILITIES:016x}");
    for (name, expected) in [
        ("CapBnd", set.as_str()),
        ("CapPrm", &set),
        ("CapEff", &set),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(field(&status, name), expected, "{name}");
    }
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("0", "0"));
}

fn another_user_has_none_but_the_bounding_set() {
    let world = World::new();
    let mut spec = world.spec("cat /proc/self/status");
    spec.user = UserSpec { uid: Some(65534), gid: Some(65533), ..UserSpec::default() };
    let status = world.run_spec(spec).printed();
    assert_eq!(field(&status, "CapBnd"), format!("{DEFAULT_CAPABILITIES:016x}"));
    for name in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(field(&status, name), "0000000000000000", "{name}");
    }
    assert_eq!(field(&status, "Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(field(&status, "Gid"), "65533\t65533\t65533\t65533");
    assert_eq!(field(&status, "Groups"), "65533");
}

fn a_capability_that_nobody_has_is_a_warning() {
    let world = World::new();
    let own = caps::get().unwrap();
    // CAP_SYS_BOOT given up here stands for any that the supervisor lacks.
    let without = own.permitted & !(1 << 22);
    caps::set(caps::Sets { effective: without, permitted: without, inheritable: 0 }).unwrap();
    let mut spec = world.spec("cat /proc/self/status");
    spec.capabilities = DEFAULT_CAPABILITIES | 1 << 22;
    let outcome = world.run_spec(spec);
    let StatusOutcome::Started { warnings, .. } = &outcome.status else { panic!("{outcome:?}") };
    assert!(warnings.iter().any(|warning| warning.contains("CAP_SYS_BOOT")), "{warnings:?}");
    assert_eq!(field(&outcome.printed(), "CapEff"), format!("{DEFAULT_CAPABILITIES:016x}"));
}

fn no_new_privs_and_seccomp_are_in_force() {
    let world = World::new();
    let mut spec = world.spec("cat /proc/self/status; mkdir /made 2>&1 | grep -o 'not permitted'");
    spec.no_new_privs = true;
    spec.seccomp = refusing(&[libc::SYS_mkdirat, MKDIR]);
    spec.user = UserSpec { uid: Some(1000), ..UserSpec::default() };
    let printed = world.run_spec(spec).printed();
    assert_eq!((field(&printed, "NoNewPrivs"), field(&printed, "Seccomp")), ("1", "2"));
    assert_eq!(field(&printed, "Seccomp_filters"), "1");
    assert!(printed.ends_with("not permitted\n"), "{printed}");
}

#[cfg(target_arch = "x86_64")]
const MKDIR: i64 = libc::SYS_mkdir;
#[cfg(not(target_arch = "x86_64"))]
const MKDIR: i64 = libc::SYS_mkdirat;

fn a_filter_without_no_new_privs_is_loaded_too() {
    let world = World::new();
    for uid in [0, 1000] {
        let mut spec = world.spec("cat /proc/self/status");
        spec.seccomp = refusing(&[libc::SYS_mkdirat, MKDIR]);
        spec.user = UserSpec { uid: Some(uid), ..UserSpec::default() };
        let status = world.run_spec(spec).printed();
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("0", "2"), "{uid}");
        let effective = if uid == 0 { DEFAULT_CAPABILITIES } else { 0 };
        assert_eq!(field(&status, "CapEff"), format!("{effective:016x}"), "CAP_SYS_ADMIN is gone again");
    }
}

/// Nothing that the set-up itself needs may be needed after the filter is there.
fn a_filter_may_forbid_all_but_exec() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.no_new_privs = true;
    // ld [0]; jeq #execve, 0, 1; ret ALLOW; ret KILL_PROCESS
    spec.seccomp =
        vec![0x0020_0000_0000_0000, 0x0015_0001_0000_0000 | libc::SYS_execve as u64, ALLOW, 0x0006_0000_8000_0000];
    let outcome = world.run_spec(spec);
    assert!(matches!(outcome.status, StatusOutcome::Started { .. }), "{outcome:?}");
    assert_eq!(outcome.ended, Ended::Signaled(31));
}

fn users_and_groups_are_looked_up_by_name() {
    let world = World::new();
    let run = |user: UserSpec| {
        let mut spec = world.spec("id && echo $HOME");
        spec.user = user;
        let outcome = world.run_spec(spec);
        let StatusOutcome::Started { user, .. } = &outcome.status else { panic!("{outcome:?}") };
        (user.clone(), outcome.printed())
    };
    let image = |user: &str| UserSpec { image_user: user.to_owned(), ..UserSpec::default() };
    let (user, printed) = run(image("app"));
    assert_eq!(user, (1000, 1001, vec![10, 1001]));
    assert_eq!(printed, "uid=1000(app) gid=1001(app) groups=10(wheel),1001(app)\n/srv/app\n");
    let (_, printed) = run(UserSpec { groups: vec![3000], strict_groups: true, ..image("app:wheel") });
    assert_eq!(printed, "uid=1000(app) gid=10(wheel) groups=10(wheel),3000\n/srv/app\n");
    let (_, printed) = run(UserSpec { uid: Some(4242), groups: vec![7], ..image("app") });
    assert_eq!(printed, "uid=4242 gid=0(root) groups=0(root),7\n/\n");
}

fn a_user_can_open_its_own_streams() {
    let world = World::new();
    let mut spec = world.spec("echo out > /dev/stdout && echo err > /dev/stderr");
    spec.user = UserSpec { uid: Some(1000), ..UserSpec::default() };
    let outcome = world.run_spec(spec);
    assert_eq!(outcome.errors, "err\n");
    assert_eq!(outcome.printed(), "out\n");
}

fn a_read_only_root_is_read_only() {
    let world = World::new();
    let mut spec = world.spec("touch /x 2>&1 | grep -o Read-only; touch /dev/shm/x && pwd");
    spec.rootfs.readonly = true;
    // Made although it does not exist and the root ends up read-only.
    spec.cwd = "/work/deep".into();
    assert_eq!(world.run_spec(spec).printed(), "Read-only\n/work/deep\n");
}

fn limits_and_working_directory_are_set() {
    let world = World::new();
    let mut spec = world.spec("ulimit -n; ulimit -Hn; ulimit -c; pwd; umask");
    let (_, hard) = session::limit(7).unwrap();
    spec.rlimits = vec![(7, 512, 513), (4, 0, u64::MAX)];
    spec.cwd = "/srv/app".into();
    spec.user = UserSpec { uid: Some(1000), ..UserSpec::default() };
    assert_eq!(world.run_spec(spec).printed(), "512\n513\n0\n/srv/app\n0022\n");

    // One that cannot be raised is clamped and said so; a machine where it can be raised gets it.
    let mut spec = world.spec("ulimit -Hn");
    spec.rlimits = vec![(7, hard + 1, hard + 1)];
    let outcome = world.run_spec(spec);
    let StatusOutcome::Started { warnings, .. } = &outcome.status else { panic!("{outcome:?}") };
    let may_raise = caps::get().unwrap().effective & 1 << 24 != 0;
    assert_eq!(warnings.iter().filter(|warning| warning.contains("resource limit 7")).count(), usize::from(!may_raise));
    let expected = if may_raise { hard + 1 } else { hard };
    assert_eq!(outcome.printed(), format!("{expected}\n"));
}

fn a_session_keyring_of_its_own_is_joined() {
    let world = World::new();
    let before = fs::read_to_string("/proc/keys").unwrap_or_default();
    let mut spec = world.spec("cat /proc/keys");
    spec.masked_paths.clear();
    let outcome = world.run_spec(spec);
    // Those of this process are listed as well (they are root's), but another one is the container's session keyring.
    let sessions = |keys: &str| {
        let lines = keys.lines().filter(|line| line.contains("_ses"));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let inside = sessions(&outcome.printed());
    assert!(inside.iter().any(|key| !sessions(&before).contains(key)), "{inside:?} {before}");
}
