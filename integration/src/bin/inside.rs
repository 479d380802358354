//! What a container sees, as one JSON object on standard output: run as a container's program, by berth or by runc.
//!
//! With arguments it then goes on as that program (`inside sleep 1000`).

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use serde_json::{Map, Value, json};

/// What must be hidden from a container, or is (runtime-spec, "Masked Paths"; containerd's list).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
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

/// What must not be written by a container; each is tried in a way that changes nothing.
const READ_ONLY: [&str; 9] = [
    "/proc/sys/kernel/printk_ratelimit",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/bus",
    "/proc/fs",
    "/sys/kernel/uevent_seqnum",
    "/sys/fs/cgroup",
    "/",
    "/dev",
];

const SYSCTLS: [&str; 10] = [
    "kernel/hostname",
    "kernel/domainname",
    "kernel/shm_rmid_forced",
    "kernel/msgmax",
    "kernel/sem",
    "fs/mqueue/msg_max",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/ip_forward",
    "net/core/somaxconn",
];

/// Figures of the container's own cgroup, of either version.
const CGROUP: [&str; 12] = [
    "memory/memory.limit_in_bytes",
    "cpu/cpu.shares",
    "cpu/cpu.cfs_quota_us",
    "cpu/cpu.cfs_period_us",
    "pids/pids.max",
    "devices/devices.list",
    "memory.max",
    "memory.oom.group",
    "cpu.max",
    "cpu.weight",
    "pids.max",
    "cgroup.controllers",
];

fn main() {
    println!("{}", look());
    let arguments: Vec<CString> =
        std::env::args_os().skip(1).filter_map(|argument| CString::new(argument.as_bytes()).ok()).collect();
    if let Some(program) = arguments.first() {
        let error = nix::unistd::execvp(program, &arguments);
        panic!("{program:?}: {error:?}");
    }
}

fn look() -> Value {
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    json!({
        "status": status(),
        "maps": { "uid": text("/proc/self/uid_map"), "gid": text("/proc/self/gid_map") },
        "mounts": mounts(),
        "rlimits": rlimits(),
        "namespaces": namespaces(),
        "cgroups": cgroups(),
        "environment": std::env::vars().collect::<BTreeMap<_, _>>(),
        "directory": std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default(),
        "umask": format!("{:03o}", umask.bits()),
        "hostname": nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        "files": of(["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"], text),
        "devices": devices(Path::new("/dev")),
        "masked": of(MASKED, |path| readable(Path::new(path)).into()),
        "writable": of(READ_ONLY, |path| writable(Path::new(path)).into()),
        "sysctls": of(SYSCTLS, |name| text(&format!("/proc/sys/{name}"))),
        "oom_score_adj": text("/proc/self/oom_score_adj"),
        "descriptors": descriptors(),
        "signals": signals(),
        "session": session(),
        "processes": processes(),
    })
}

fn of<const N: usize>(names: [&str; N], look: impl Fn(&str) -> Value) -> Value {
    names.into_iter().map(|name| (name.to_owned(), look(name))).collect::<Map<_, _>>().into()
}

/// The contents of a file without the end of its last line; null when it cannot be read.
fn text(path: &str) -> Value {
    match fs::read_to_string(path) {
        Ok(text) => text.split_whitespace().collect::<Vec<_>>().join(" ").into(),
        Err(_) => Value::Null,
    }
}

/// Identity and privileges (proc_pid_status(5)).
fn status() -> Value {
    const FIELDS: [&str; 11] = [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Cpus_allowed",
    ];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Value::from(line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "))
    };
    FIELDS.into_iter().map(|name| (name.to_owned(), field(name))).collect::<Map<_, _>>().into()
}

/// By mount point: type, options of the mount and of the file system, and how it is connected to others. The last one
/// at a place is what is seen there.
fn mounts() -> Value {
    let mut mounts = Map::new();
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mount: Vec<&str> = mount.split(' ').collect();
        let file_system: Vec<&str> = file_system.split(' ').collect();
        let sorted = |options: &str| {
            let mut options: Vec<&str> = options.split(',').collect();
            options.sort_unstable();
            options.join(",")
        };
        let (Some(point), Some(flags), Some(kind)) = (mount.get(4), mount.get(5), file_system.first()) else {
            continue;
        };
        mounts.insert(
            (*point).to_owned(),
            json!({
                "type": kind,
                "options": sorted(flags),
                "super": sorted(file_system.get(2).unwrap_or(&"")),
                "propagation": mount[6..].iter().map(|tag| tag.split(':').next().unwrap_or_default()).collect::<Vec<_>>(),
            }),
        );
    }
    mounts.into()
}

fn rlimits() -> Value {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = |line: &str| {
        // The name fills 26 columns, the two limits 21 each.
        let (name, limits) = line.split_at_checked(26)?;
        let limits: Vec<&str> = limits.split_whitespace().take(2).collect();
        Some((name.trim().to_owned(), Value::from(limits.join(" "))))
    };
    text.lines().skip(1).filter_map(line).collect::<Map<_, _>>().into()
}

fn namespaces() -> Value {
    let link = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).map(|link| link.display().to_string());
    ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .into_iter()
        .map(|kind| (kind.to_owned(), link(kind).map_or(Value::Null, Value::from)))
        .collect::<Map<_, _>>()
        .into()
}

fn cgroups() -> Value {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let paths: Map<String, Value> = membership
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.into()))
        })
        .collect();
    let figure = |file: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?;
        let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.sort_unstable();
        Some(lines.join("; "))
    };
    json!({ "paths": paths, "figures": of(CGROUP, |file| figure(file).into()) })
}

/// Everything below /dev that is no directory, and the directories too: `c 1:3 666 0:0`, `l /proc/self/fd`, `d 755 0:0`.
fn devices(directory: &Path) -> Value {
    let mut found = Map::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let (mode, owner) = (metadata.mode() & 0o7777, format!("{}:{}", metadata.uid(), metadata.gid()));
            let number = || format!("{}:{}", libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
            let kind = metadata.file_type();
            let what = if kind.is_symlink() {
                format!("l {}", fs::read_link(&path).map(|link| link.display().to_string()).unwrap_or_default())
            } else if kind.is_dir() {
                pending.push(path.clone());
                format!("d {mode:o} {owner}")
            } else if kind.is_char_device() {
                format!("c {} {mode:o} {owner}", number())
            } else if kind.is_block_device() {
                format!("b {} {mode:o} {owner}", number())
            } else {
                format!("f {mode:o} {owner}")
            };
            found.insert(path.display().to_string(), what.into());
        }
    }
    found.into()
}

/// `absent`, `hidden` (nothing to read) or `readable`.
fn readable(path: &Path) -> &'static str {
    let Ok(metadata) = fs::metadata(path) else { return "absent" };
    if metadata.is_dir() {
        return match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) | Err(_) => "hidden",
            Ok(false) => "readable",
        };
    }
    // Some would make a reader wait for what may never come.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    match file.and_then(|mut file| file.read(&mut [0; 16])) {
        Ok(0) | Err(_) => "hidden",
        Ok(_) => "readable",
    }
}

/// `absent`, or whether something could be written: `yes`, or why not.
fn writable(path: &Path) -> String {
    let Ok(metadata) = fs::metadata(path) else { return "absent".to_owned() };
    let result = if metadata.is_dir() {
        let probe = path.join(".inside");
        File::create_new(&probe).and_then(|_| fs::remove_file(&probe))
    } else {
        File::options().write(true).open(path).map(drop)
    };
    match result {
        Ok(()) => "yes".to_owned(),
        Err(error) => io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(0)).kind().to_string(),
    }
}

/// The open descriptors, each with the kind of file it is.
fn descriptors() -> Value {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut found = Map::new();
    for entry in entries {
        // That of the listing itself is gone by now.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.display().to_string();
        if target.ends_with("/fd") {
            continue;
        }
        let kind = target.split(':').next().unwrap_or_default().to_owned();
        found.insert(entry.file_name().to_string_lossy().into_owned(), kind.into());
    }
    found.into()
}

/// Ignored and blocked signals: both outlive an execve.
fn signals() -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    // This program's own runtime ignores SIGPIPE (bit 12).
    let ignored = u64::from_str_radix(&field("SigIgn:"), 16).unwrap_or(u64::MAX) & !(1 << 12);
    json!({ "ignored": format!("{ignored:016x}"), "blocked": field("SigBlk:") })
}

fn session() -> Value {
    let own = nix::unistd::getpid();
    let session = nix::unistd::getsid(None).ok();
    json!({
        "leads": session == Some(own),
        "terminal": File::open("/dev/tty").is_ok(),
        "dumpable": nix::sys::prctl::get_dumpable().unwrap_or(false),
        "dies_with_parent": nix::sys::prctl::get_pdeathsig().ok().flatten().map(|signal| signal.as_str()),
    })
}

/// How many processes can be seen, and which this one is.
fn processes() -> Value {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let seen = numbers.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).count();
    json!({ "own": nix::unistd::getpid().as_raw(), "first_only": seen == 1 })
}
