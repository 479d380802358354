//! On this machine's own hierarchies, below a cgroup root of the test's own.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::*;
use crate::{api::qos::QosClass, supervisor::spec::CgroupPlacement};

const BOUND: Duration = Duration::from_secs(10);
const QOS: QosClass = QosClass::Burstable;
const UID: &str = "11111111-2222-3333-4444-555555555555";

/// A tree that is gone, with everything in it, when the test ends, however it ends.
struct World {
    cgroups: Cgroups,
    root: PathBuf,
}

impl World {
    fn new(name: &str) -> World {
        let root = PathBuf::from(format!("/berth-test-{}-{name}", std::process::id()));
        let cgroups = Cgroups::detect(&root).unwrap();
        cgroups.ensure_tree().unwrap();
        World { cgroups, root }
    }

    fn pod(&self, limits: &PodLimits) {
        self.cgroups.ensure_pod(QOS, UID, limits).unwrap();
        self.cgroups.ensure_leaf(QOS, UID, path::SANDBOX, &LeafLimits::default()).unwrap();
    }

    fn leaf(&self, limits: &LeafLimits) -> CgroupPlacement {
        self.cgroups.ensure_leaf(QOS, UID, "c1", limits).unwrap()
    }

    /// Directories of this world in any hierarchy.
    fn left(&self) -> Vec<PathBuf> {
        let name = self.root.strip_prefix("/").unwrap();
        let mounts = self.cgroups.everywhere(Path::new(""));
        let tops = mounts.iter().map(|mount| mount.ancestors().find(|at| !at.ends_with(name)).unwrap().join(name));
        tops.filter(|top| top.exists()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (uid, qos) in self.cgroups.list_pods() {
            let _ = self.cgroups.kill_pod(qos, &uid, BOUND);
            let _ = self.cgroups.remove_pod(qos, &uid);
        }
        let _ = self.cgroups.remove_tree();
    }
}

/// Runs a shell script that first moves itself into the placement.
fn run(placement: &CgroupPlacement, script: &str) -> Child {
    let mut joins = String::new();
    for directory in placement.unified.iter() {
        joins += &format!("echo 0 > {}/cgroup.procs && ", directory.display());
    }
    for directory in &placement.v1 {
        joins += &format!("echo 0 > {}/tasks && ", directory.display());
    }
    let script = format!("{joins} echo joined && {script}");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The join is done when its first line arrives.
    let mut line = [0; 7];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    child
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn removal_leaves_nothing_and_everything_may_be_repeated() {
    let world = World::new("repeat");
    let limits = PodLimits { memory: Some(64 << 20), pids: Some(100), ..PodLimits::default() };
    for _ in 0..2 {
        world.pod(&limits);
        let container = LeafLimits {
            cpu: CpuLimits { request_milli: 100, limit_milli: Some(500), ..CpuLimits::default() },
            memory: Some(32 << 20),
            oom_group: true,
            ..LeafLimits::default()
        };
        let first = world.leaf(&container);
        assert_eq!(first, world.leaf(&container));
        world.cgroups.update_leaf(QOS, UID, "c1", &LeafLimits { memory: Some(48 << 20), ..container.clone() }).unwrap();
        world.cgroups.update_leaf(QOS, UID, "c1", &LeafLimits { memory: Some(16 << 20), ..container.clone() }).unwrap();
        let usage = world.cgroups.usage(QOS, UID, "c1").unwrap().unwrap();
        assert_eq!(usage.memory_limit, Some(16 << 20));
        world.cgroups.update_leaf(QOS, UID, "c1", &LeafLimits { memory: None, ..container }).unwrap();
        assert_eq!(world.cgroups.usage(QOS, UID, "c1").unwrap().unwrap().memory_limit, None);
    }
    world.cgroups.update_qos(&ClassTotals { burstable_milli: 1500, ..ClassTotals::default() }).unwrap();
    assert_eq!(world.cgroups.list_pods(), [(UID.to_owned(), QOS)]);
    for _ in 0..2 {
        world.cgroups.kill_pod(QOS, UID, BOUND).unwrap();
        world.cgroups.remove_leaf(QOS, UID, "c1").unwrap();
        world.cgroups.remove_pod(QOS, UID).unwrap();
        assert_eq!(world.cgroups.list_pods(), []);
        assert_eq!(world.cgroups.pod_usage(QOS, UID).unwrap(), None);
    }
    for _ in 0..2 {
        world.cgroups.remove_tree().unwrap();
        assert_eq!(world.left(), Vec::<PathBuf>::new());
    }
    // A pod after the tree was taken away brings it back.
    world.pod(&limits);
    assert_eq!(world.cgroups.list_pods().len(), 1);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_tree_that_still_holds_a_pod_stays() {
    let world = World::new("stays");
    world.pod(&PodLimits::default());
    world.cgroups.remove_tree().unwrap_err();
    assert_eq!(world.cgroups.list_pods().len(), 1);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn the_number_of_processes_is_limited_for_the_whole_pod() {
    let world = World::new("pids");
    world.pod(&PodLimits { pids: Some(5), ..PodLimits::default() });
    let sandbox = world.cgroups.ensure_leaf(QOS, UID, path::SANDBOX, &LeafLimits::default()).unwrap();
    let container = world.leaf(&LeafLimits::default());
    // As the supervisor does: first into the sandbox, then from there into the container's.
    let mut both = sandbox.clone();
    both.v1.extend(container.v1);
    both.unified = container.unified;
    let mut child = run(&both, "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; wait");
    assert!(!child.wait().unwrap().success(), "fork was refused");
    let usage = world.cgroups.pod_usage(QOS, UID).unwrap().unwrap();
    assert!((1..=4).contains(&usage.pids), "{usage:?}");
    world.cgroups.kill_pod(QOS, UID, BOUND).unwrap();
    // `pids.current` counts the dead until they are reaped; the members are what lives.
    assert_eq!(kill::members(&world.cgroups.tracking(&path::pod(QOS, UID))).unwrap(), Vec::<i32>::new());
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn memory_beyond_the_limit_is_an_oom_kill_that_the_leaf_counts() {
    let world = World::new("oom");
    world.pod(&PodLimits { memory: Some(64 << 20), ..PodLimits::default() });
    let placement = world.leaf(&LeafLimits { memory: Some(16 << 20), ..LeafLimits::default() });
    // `tail` keeps its last line in memory, and this one never ends.
    let status = run(&placement, "exec tail /dev/zero").wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    let events = fs::read_to_string(placement.oom_events.unwrap()).unwrap();
    assert!(files::keyed(&events, "oom_kill").unwrap() >= 1, "{events}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_limit_below_what_is_in_use_says_so() {
    let world = World::new("small");
    world.pod(&PodLimits::default());
    let container = LeafLimits { memory: Some(64 << 20), ..LeafLimits::default() };
    let placement = world.leaf(&container);
    let mut child =
        run(&placement, "exec /bin/sh -c 'x=$(head -c 20000000 /dev/zero | tr \"\\\\0\" x); echo full; sleep 60'");
    let mut line = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let error =
        world.cgroups.update_leaf(QOS, UID, "c1", &LeafLimits { memory: Some(1 << 20), ..container }).unwrap_err();
    assert!(error.to_string().starts_with("memory limit 1Mi is too small: "), "{error}");
    world.cgroups.kill_leaf(QOS, UID, "c1", BOUND).unwrap();
    child.wait().unwrap();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_tree_of_forking_processes_is_killed_in_bounded_time() {
    let world = World::new("kill");
    world.pod(&PodLimits { pids: Some(200), ..PodLimits::default() });
    let sandbox = world.cgroups.ensure_leaf(QOS, UID, path::SANDBOX, &LeafLimits::default()).unwrap();
    let bomb = "f() { setsid sh -c 'while :; do sleep 1 & done' & }; f; f; f; f; echo lit; sleep 60";
    for way in [KillWay::Kill, KillWay::Freeze, KillWay::Signals] {
        let container = world.leaf(&LeafLimits::default());
        let mut both = sandbox.clone();
        both.v1.extend(container.v1);
        both.unified = container.unified;
        let mut child = run(&both, bomb);
        let mut line = [0; 4];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let cgroups = Cgroups::detect(&world.root).unwrap();
        cgroups.kill_way.set(way).unwrap();
        let began = Instant::now();
        let killed = cgroups.kill_pod(QOS, UID, BOUND);
        // Without a freezer a fork bomb may win a race for a while, but never for ever.
        if way != KillWay::Signals {
            killed.unwrap();
        }
        assert!(began.elapsed() < BOUND + Duration::from_secs(5), "{way:?}: {:?}", began.elapsed());
        world.cgroups.kill_pod(QOS, UID, BOUND).unwrap();
        child.wait().unwrap();
        assert_eq!(kill::members(&world.cgroups.tracking(&path::pod(QOS, UID))).unwrap(), Vec::<i32>::new());
        world.cgroups.remove_leaf(QOS, UID, "c1").unwrap();
    }
    world.cgroups.remove_pod(QOS, UID).unwrap();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_cannot_be_emptied_is_named() {
    let world = World::new("left");
    world.pod(&PodLimits::default());
    let placement = world.leaf(&LeafLimits::default());
    let mut child = run(&placement, "exec sleep 60");
    let directory = placement.unified.or(placement.v1.first().cloned()).unwrap();
    let within = Duration::from_millis(20);
    let error = kill::wait_empty(&directory, Instant::now() + within, within).unwrap_err();
    assert!(error.to_string().contains(&child.id().to_string()), "{error}");
    world.cgroups.kill_pod(QOS, UID, BOUND).unwrap();
    child.wait().unwrap();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_opens_its_default_devices_and_no_others() {
    let world = World::new("devices");
    world.pod(&PodLimits::default());
    let placement = world.leaf(&LeafLimits { devices: DeviceAccess::Default, ..LeafLimits::default() });
    let node = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {} && mknod null c 1 3 && mknod mem c 1 1 && echo > null && ! head -c 1 mem && exit 7",
        node.path().display()
    );
    assert_eq!(run(&placement, &script).wait().unwrap().code(), Some(7));
    let only = DeviceAccess::Only(vec![devices::DeviceRule {
        block: false,
        major: Some(1),
        minor: Some(5),
        read: true,
        write: true,
        make: true,
    }]);
    let placement =
        world.cgroups.ensure_leaf(QOS, UID, "c2", &LeafLimits { devices: only, ..LeafLimits::default() }).unwrap();
    let status = run(&placement, "head -c 1 /dev/zero && ! true < /dev/full && exit 7").wait().unwrap();
    assert_eq!(status.code(), Some(7));
}

/// Not a limit, which a shared machine could break: it prints what `--nocapture` shows.
#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn the_time_a_pod_takes() {
    let world = World::new("time");
    let pod = PodLimits {
        cpu: CpuLimits { request_milli: 100, limit_milli: Some(500), ..CpuLimits::default() },
        memory: Some(64 << 20),
        ..PodLimits::default()
    };
    let container = LeafLimits {
        cpu: pod.cpu,
        memory: pod.memory,
        oom_group: true,
        devices: DeviceAccess::Default,
        ..LeafLimits::default()
    };
    let mut times = Vec::new();
    for index in 0..50 {
        let uid = format!("u{index}");
        let began = Instant::now();
        world.cgroups.ensure_pod(QOS, &uid, &pod).unwrap();
        world.cgroups.ensure_leaf(QOS, &uid, path::SANDBOX, &LeafLimits::default()).unwrap();
        world.cgroups.ensure_leaf(QOS, &uid, "c1", &container).unwrap();
        let made = began.elapsed();
        let began = Instant::now();
        world.cgroups.remove_pod(QOS, &uid).unwrap();
        times.push((made, began.elapsed()));
    }
    times.sort();
    println!("a pod with one container: made {:?}, removed {:?} (median of 50)", times[25].0, times[25].1);
}

/// The program works wherever a unified hierarchy is mounted, so that this machine need not be a v2 one.
#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn the_device_program_passes_the_verifier_and_holds() {
    let world = World::new("bpf");
    world.pod(&PodLimits::default());
    let placement = world.leaf(&LeafLimits::default());
    let Some(directory) = placement.unified.clone() else { return };
    let program = match devices::load_v2(&directory, devices::default_rules()) {
        Ok(program) => program,
        // A kernel without cgroup BPF has to be named as such.
        Err(error) => {
            assert!(error.to_string().contains("eBPF program"), "{error}");
            return;
        }
    };
    for _ in 0..2 {
        devices::attach_v2(&directory, &program).unwrap();
    }
    let cgroup = fs::File::open(&directory).unwrap();
    assert_eq!(crate::sys::bpf::cgroup_device_programs(&cgroup).unwrap(), 1, "attached once");
    let node = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {} && mknod null c 1 3 && mknod mem c 1 1 && echo > null && ! head -c 1 mem && exit 7",
        node.path().display()
    );
    assert_eq!(run(&placement, &script).wait().unwrap().code(), Some(7));
}
