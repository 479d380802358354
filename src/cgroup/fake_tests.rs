//! On trees in a temporary directory: what is written where, for layouts this machine does not have. A fake tree has
//! no kernel that fills new directories with files, so the test makes those first.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;
use crate::api::qos::QosClass;

const QOS: QosClass = QosClass::Burstable;
const POD: &str = "kubepods/burstable/podu1";

const V2: &[&str] = &[
    "cgroup.subtree_control",
    "cgroup.procs",
    "cgroup.threads",
    "cpu.weight",
    "cpu.max",
    "memory.max",
    "memory.swap.max",
    "memory.oom.group",
    "memory.min",
    "memory.low",
    "memory.high",
    "pids.max",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "cpuset.cpus",
    "cpuset.mems",
];

struct Fake {
    root: TempDir,
    cgroups: Cgroups,
}

impl Fake {
    /// `mounts`: mount point and controllers (none: the unified hierarchy, which offers everything).
    fn new(mounts: &[(&str, &str)], own: &str) -> Fake {
        let root = tempfile::tempdir().unwrap();
        let mut mountinfo = String::new();
        for (point, controllers) in mounts {
            let path = root.path().join(point.trim_start_matches('/'));
            fs::create_dir_all(&path).unwrap();
            let (kind, options) = if controllers.is_empty() { ("cgroup2", "rw") } else { ("cgroup", *controllers) };
            mountinfo += &format!("1 1 0:1 / {point} rw - {kind} none rw,{options}\n");
            if controllers.is_empty() {
                fs::write(path.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n").unwrap();
            }
        }
        let mounts = mounts::parse(root.path(), &mountinfo, own);
        Fake { cgroups: Cgroups::from_mounts(mounts, Path::new("/")).unwrap(), root }
    }

    fn files(&self, directory: &str, files: &[(&str, &str)]) {
        let directory = self.root.path().join(directory);
        fs::create_dir_all(&directory).unwrap();
        for (file, value) in files {
            fs::write(directory.join(file), value).unwrap();
        }
    }

    fn v2(&self, directories: &[&str]) {
        let empty: Vec<(&str, &str)> = V2.iter().map(|file| (*file, "")).collect();
        for directory in directories {
            self.files(directory, &empty);
            self.files(directory, &[("memory.current", "4096")]);
        }
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

fn pod() -> PodLimits {
    PodLimits {
        cpu: CpuLimits { request_milli: 1000, limit_milli: Some(1500), ..CpuLimits::default() },
        memory: Some(1 << 30),
        pids: Some(512),
        huge_pages: vec![HugePageLimit { page_size: 2 << 20, limit: 4 << 20 }],
        ..PodLimits::default()
    }
}

fn container() -> LeafLimits {
    LeafLimits {
        cpu: CpuLimits { request_milli: 100, limit_milli: Some(500), ..CpuLimits::default() },
        memory: Some(1 << 20),
        oom_group: true,
        cpuset: Some(CpuSet { cpus: "0-1".to_owned(), mems: String::new() }),
        ..LeafLimits::default()
    }
}

#[test]
fn v2_has_everything_in_one_place() {
    let fake = Fake::new(&[("/sys/fs/cgroup", "")], "0::/system.slice/berth.service");
    let base = "sys/fs/cgroup";
    let (pod_directory, leaf) = (format!("{base}/{POD}"), format!("{base}/{POD}/c1"));
    let kubepods = format!("{base}/kubepods");
    let burstable = format!("{kubepods}/burstable");
    let best_effort = format!("{kubepods}/besteffort");
    fake.v2(&[base, &kubepods, &burstable, &best_effort, &pod_directory, &leaf, &format!("{pod_directory}/sandbox")]);
    let cgroups = &fake.cgroups;
    assert_eq!(cgroups.layout(), Layout::Unified);

    cgroups.ensure_tree().unwrap();
    for directory in [base, &kubepods, &burstable, &best_effort] {
        assert_eq!(fake.text(&format!("{directory}/cgroup.subtree_control")), "+cpu +memory +pids", "{directory}");
    }
    assert_eq!(fake.text(&format!("{best_effort}/cpu.weight")), "1");
    cgroups.update_qos(&ClassTotals { burstable_milli: 1000, ..ClassTotals::default() }).unwrap();
    assert_eq!(fake.text(&format!("{burstable}/cpu.weight")), "100");

    cgroups.ensure_pod(QOS, "u1", &pod()).unwrap();
    for (file, value) in [
        ("cpu.weight", "100"),
        ("cpu.max", "150000 100000"),
        ("memory.max", "1073741824"),
        ("pids.max", "512"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
    ] {
        assert_eq!(fake.text(&format!("{pod_directory}/{file}")), value, "{file}");
    }

    let placement = cgroups.ensure_leaf(QOS, "u1", "c1", &container()).unwrap();
    assert_eq!(placement.unified, Some(fake.root.path().join(&leaf)));
    assert!(placement.v1.is_empty());
    assert_eq!(placement.oom_events, Some(fake.root.path().join(&leaf).join("memory.events")));
    for (file, value) in [
        ("cpu.weight", "17"),
        ("cpu.max", "50000 100000"),
        ("memory.max", "1048576"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpuset.cpus", "0-1"),
    ] {
        assert_eq!(fake.text(&format!("{leaf}/{file}")), value, "{file}");
    }
    assert_eq!(fake.text(&format!("{pod_directory}/cgroup.subtree_control")), "+cpuset");

    let none = LeafLimits { cpu: CpuLimits::default(), memory: None, oom_group: false, ..container() };
    cgroups.update_leaf(QOS, "u1", "c1", &none).unwrap();
    assert_eq!(fake.text(&format!("{leaf}/cpu.max")), "max 100000");
    assert_eq!(fake.text(&format!("{leaf}/memory.max")), "max");
    assert_eq!(fake.text(&format!("{leaf}/memory.oom.group")), "0");

    let small = LeafLimits { memory: Some(1024), ..container() };
    let error = cgroups.update_leaf(QOS, "u1", "c1", &small).unwrap_err();
    assert!(error.to_string().starts_with("memory limit 1Ki is too small: 4Ki in use"), "{error}");
}

#[test]
fn what_runs_is_moved_to_other_processors_in_either_version() {
    let v2 = Fake::new(&[("/sys/fs/cgroup", "")], "0::/");
    let base = "sys/fs/cgroup";
    let leaf = format!("{base}/{POD}/c1");
    let above: Vec<String> = ["", "/kubepods", "/kubepods/burstable"].map(|name| format!("{base}{name}")).into();
    let pod = format!("{base}/{POD}");
    v2.v2(&[&above[0], &above[1], &above[2], &pod, &leaf]);
    assert!(v2.cgroups.update_cpus(QOS, "u1", "c1", "0,2").unwrap());
    assert_eq!(v2.text(&format!("{leaf}/cpuset.cpus")), "0,2");
    assert_eq!(v2.text(&format!("{pod}/cgroup.subtree_control")), "+cpuset", "it may have been started without");
    assert!(v2.cgroups.update_cpus(QOS, "u1", "c1", "").unwrap());
    assert_eq!(v2.text(&format!("{leaf}/cpuset.cpus")), "\n", "all that the parent has");
    assert!(!v2.cgroups.update_cpus(QOS, "u1", "gone", "0").unwrap());
    assert!(v2.cgroups.can_confine(QOS, "u1", "c1"));

    let cpuset = "/sys/fs/cgroup/cpuset";
    let mounts = [("/sys/fs/cgroup/memory", "memory"), ("/sys/fs/cgroup/cpu", "cpu"), (cpuset, "cpuset")];
    let v1 = Fake::new(&mounts, "3:cpuset:/\n2:memory:/\n1:cpu:/");
    let leaf = format!("sys/fs/cgroup/cpuset/{POD}/c1");
    assert!(!v1.cgroups.can_confine(QOS, "u1", "c1"), "it was started without");
    assert!(!v1.cgroups.update_cpus(QOS, "u1", "c1", "1").unwrap());
    v1.files(&format!("sys/fs/cgroup/cpuset/{POD}"), &[("cpuset.cpus", "0-3")]);
    v1.files(&leaf, &[("cpuset.cpus", "0-3")]);
    assert!(v1.cgroups.can_confine(QOS, "u1", "c1"));
    assert!(v1.cgroups.update_cpus(QOS, "u1", "c1", "1").unwrap());
    assert_eq!(v1.text(&format!("{leaf}/cpuset.cpus")), "1");
    assert!(v1.cgroups.update_cpus(QOS, "u1", "c1", "").unwrap());
    assert_eq!(v1.text(&format!("{leaf}/cpuset.cpus")), "0-3");
}

#[test]
fn v2_figures_are_read_where_they_are() {
    let fake = Fake::new(&[("/sys/fs/cgroup", "")], "0::/");
    fake.files(
        &format!("sys/fs/cgroup/{POD}/c1"),
        &[
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
            ("memory.current", "10000"),
            ("memory.stat", "anon 1\nactive_file 5\ninactive_file 4000\n"),
            ("memory.max", "max"),
            ("pids.current", "3"),
        ],
    );
    let usage = fake.cgroups.usage(QOS, "u1", "c1").unwrap().unwrap();
    let expected =
        Usage { cpu_nanos: 1_500_000, memory_bytes: 10_000, working_set_bytes: 6000, memory_limit: None, pids: 3 };
    assert_eq!(usage, expected);
    assert_eq!(fake.cgroups.usage(QOS, "u1", "gone").unwrap(), None);
}

#[test]
fn v1_has_a_directory_in_each_hierarchy_that_matters() {
    let cpu = "/sys/fs/cgroup/cpu,cpuacct";
    let mounts = [
        (cpu, "cpu,cpuacct"),
        ("/sys/fs/cgroup/memory", "memory"),
        ("/sys/fs/cgroup/freezer", "freezer"),
        ("/sys/fs/cgroup/pids", "pids"),
        ("/sys/fs/cgroup/systemd", "name=systemd"),
        ("/sys/fs/cgroup/blkio", "blkio"),
    ];
    let own =
        "5:pids:/system.slice\n4:name=systemd:/system.slice/berth.service\n3:freezer:/\n2:memory:/\n1:cpu,cpuacct:/";
    let fake = Fake::new(&mounts, own);
    assert_eq!(fake.cgroups.layout(), Layout::Legacy);
    let leaf = format!("{POD}/c1");
    for directory in ["kubepods", "kubepods/burstable", "kubepods/besteffort", POD, &leaf] {
        fake.files(
            &format!("sys/fs/cgroup/cpu,cpuacct/{directory}"),
            &[("cpu.shares", "1024"), ("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "100000")],
        );
        fake.files(
            &format!("sys/fs/cgroup/memory/{directory}"),
            &[("memory.limit_in_bytes", ""), ("memory.memsw.limit_in_bytes", "9223372036854771712")],
        );
    }
    let cgroups = &fake.cgroups;
    cgroups.ensure_tree().unwrap();
    let limits = PodLimits { pids: None, huge_pages: Vec::new(), ..pod() };
    cgroups.ensure_pod(QOS, "u1", &limits).unwrap();
    let sandbox = cgroups.ensure_leaf(QOS, "u1", path::SANDBOX, &LeafLimits::default()).unwrap();
    let seats = |placement: &crate::supervisor::spec::CgroupPlacement| {
        let root = fake.root.path().join("sys/fs/cgroup");
        let name = |path: &std::path::PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let mut seats: Vec<String> = placement.v1.iter().map(name).collect();
        seats.sort();
        seats
    };
    // Out of the agent's own cgroups (pids, systemd), with the pod where that is limited, alone where it is
    // counted and killed.
    let expected = [
        format!("cpu,cpuacct/{POD}/sandbox"),
        format!("freezer/{POD}/sandbox"),
        format!("memory/{POD}"),
        "pids/kubepods".to_owned(),
        "systemd/kubepods".to_owned(),
    ];
    assert_eq!(seats(&sandbox), expected);
    let placement = cgroups.ensure_leaf(QOS, "u1", "c1", &LeafLimits { cpuset: None, ..container() }).unwrap();
    assert_eq!(seats(&placement), [format!("cpu,cpuacct/{leaf}"), format!("freezer/{leaf}"), format!("memory/{leaf}")]);
    assert!(placement.oom_events.unwrap().ends_with(format!("memory/{leaf}/memory.oom_control")));
    for (file, value) in [
        ("cpu,cpuacct/kubepods/besteffort/cpu.shares", "2"),
        (&format!("cpu,cpuacct/{leaf}/cpu.shares"), "102"),
        (&format!("cpu,cpuacct/{leaf}/cpu.cfs_quota_us"), "50000"),
        (&format!("memory/{leaf}/memory.limit_in_bytes"), "1048576"),
        (&format!("memory/{leaf}/memory.memsw.limit_in_bytes"), "1048576"),
    ] {
        assert_eq!(fake.text(&format!("sys/fs/cgroup/{file}")), value, "{file}");
    }
    assert!(!fake.root.path().join("sys/fs/cgroup/blkio/kubepods").exists(), "not used, and the agent is at its top");
    assert_eq!(cgroups.list_pods(), [("u1".to_owned(), QOS)]);
}

#[test]
fn what_is_missing_or_misnamed_is_said() {
    let root = tempfile::tempdir().unwrap();
    let mounts = mounts::parse(root.path(), "1 1 0:1 / /cpu rw - cgroup none rw,cpu", "");
    let error = Cgroups::from_mounts(mounts, Path::new("/")).unwrap_err();
    assert!(error.to_string().contains("controller memory is in no mounted hierarchy"), "{error}");
    let fake = Fake::new(&[("/sys/fs/cgroup", "")], "0::/");
    let error = fake.cgroups.ensure_pod(QOS, "../../x", &PodLimits::default()).unwrap_err();
    assert_eq!(error.to_string(), "\"../../x\" cannot be the name of a cgroup");
}

#[test]
fn v2_keeps_memory_slows_down_and_lets_swap() {
    let fake = Fake::new(&[("/sys/fs/cgroup", "")], "0::/");
    let base = "sys/fs/cgroup";
    let (pod_directory, leaf) = (format!("{base}/{POD}"), format!("{base}/{POD}/c1"));
    let (kubepods, burstable) = (format!("{base}/kubepods"), format!("{base}/kubepods/burstable"));
    fake.v2(&[base, &kubepods, &burstable, &format!("{kubepods}/besteffort"), &pod_directory, &leaf]);
    let mut cgroups = fake.cgroups;
    cgroups.limit_pods(NodeLimits { cpu_milli: 1000, memory: 1 << 30, pids: Some(100) });
    cgroups.ensure_tree().unwrap();
    let text = |path: &str| fs::read_to_string(fake.root.path().join(path)).unwrap();
    assert_eq!(text(&format!("{kubepods}/memory.max")), (1 << 30).to_string());
    assert_eq!(text(&format!("{kubepods}/cpu.weight")), "100");
    assert_eq!(text(&format!("{kubepods}/pids.max")), "100");
    let totals = ClassTotals { burstable_milli: 1000, guaranteed_memory: 5, burstable_memory: 7 };
    cgroups.update_qos(&totals).unwrap();
    assert_eq!(text(&format!("{kubepods}/memory.min")), "12");
    assert_eq!(text(&format!("{burstable}/memory.low")), "7");
    let quality = MemoryQuality { min: 0, low: 4096, high: Some(8192) };
    cgroups.ensure_pod(QOS, "u1", &PodLimits { quality, ..PodLimits::default() }).unwrap();
    cgroups.update_leaf(QOS, "u1", "c1", &LeafLimits { quality, swap: 512, ..LeafLimits::default() }).unwrap();
    for directory in [&pod_directory, &leaf] {
        let found = ["min", "low", "high"].map(|name| text(&format!("{directory}/memory.{name}")));
        assert_eq!(found, ["0", "4096", "8192"], "{directory}");
    }
    assert_eq!(text(&format!("{leaf}/memory.swap.max")), "512");
    cgroups.update_leaf(QOS, "u1", "c1", &LeafLimits::default()).unwrap();
    let found = ["low", "high", "swap.max"].map(|name| text(&format!("{leaf}/memory.{name}")));
    assert_eq!(found, ["0", "max", "0"], "what is not kept any more is given up");
}
