//! Debian's runc as an oracle: the same container as a pod asks for, started by the program whose behaviour the field
//! expects, and what is seen inside compared line by line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Permissions},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
};

use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};

use crate::{Place, help::run};

/// The 14 capabilities that containerd gives.
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What containerd hides (`oci.defaultMaskedPaths`).
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

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A place for runc's bundles and state, with the root of an image.
pub struct Runc<'a> {
    place: &'a Place,
    directory: PathBuf,
    image: PathBuf,
}

impl<'a> Runc<'a> {
    /// Unpacks the layers of an OCI layout with one image.
    #[track_caller]
    pub fn new(place: &'a Place, layout: &Path) -> Runc<'a> {
        let directory = place.path("runc");
        let image = directory.join("image");
        fs::create_dir_all(&image).expect("a directory");
        let read = |path: PathBuf| -> Value {
            serde_json::from_slice(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
                .expect("JSON")
        };
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
            layout.join("blobs/sha256").join(digest.expect("a SHA-256 digest"))
        };
        let index = read(layout.join("index.json"));
        let manifest = read(blob(&index["manifests"][0]));
        for layer in manifest["layers"].as_array().expect("layers") {
            run(place, &format!("tar --extract --file {} --directory {}", blob(layer).display(), image.display()));
        }
        Runc { place, directory, image }
    }

    /// Runs the first container of a pod and returns what its program prints. The root directory is a fresh copy, owned by
    /// `owner` where that is given.
    #[track_caller]
    pub fn see(&self, name: &str, pod: &Pod, env: &[(&str, &str)], owner: Option<u32>) -> Value {
        let bundle = self.directory.join(name);
        let root = bundle.join("rootfs");
        for file in ["hosts", "hostname", "resolv.conf", "termination-log"] {
            fs::create_dir_all(&bundle).expect("a bundle");
            fs::write(bundle.join(file), "").expect("a file");
            let mode = if file == "termination-log" { 0o666 } else { 0o644 };
            fs::set_permissions(bundle.join(file), Permissions::from_mode(mode)).expect("a mode");
            chown(bundle.join(file), owner, owner).expect("an owner");
        }
        run(self.place, &format!("cp --archive {} {}", self.image.display(), root.display()));
        if let Some(owner) = owner {
            // A shift of all owners, of which the image has but few.
            for id in [0, 1000, 65534] {
                run(self.place, &format!("find {} -uid {id} -exec chown -h {} {{}} +", root.display(), owner + id));
                run(self.place, &format!("find {} -gid {id} -exec chgrp -h {} {{}} +", root.display(), owner + id));
            }
        }
        let cgroup = format!("{}/runc-{name}", self.place.cgroup_root);
        let config = config(pod, &bundle, &cgroup, env, owner);
        fs::write(bundle.join("config.json"), config.to_string()).expect("a configuration");
        let state = self.directory.join("state");
        let mut command = self.place.command("/usr/bin/timeout");
        command.args(["--kill-after=5", "60", "/usr/sbin/runc", "--root"]).arg(&state);
        command.arg("run").arg("--bundle").arg(&bundle).arg(name).stdin(Stdio::null());
        let output = command.output().expect("runc runs");
        assert!(output.status.success(), "runc: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(text.lines().next().unwrap_or_default()).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// The configuration that containerd would write for the first container of `pod`, as far as its fields are known here.
fn config(pod: &Pod, bundle: &Path, cgroup: &str, env: &[(&str, &str)], owner: Option<u32>) -> Value {
    let spec = pod.spec.as_ref().expect("a pod");
    let container = spec.containers.first().expect("a container");
    let own = container.security_context.clone().unwrap_or_default();
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let capabilities = capabilities(&own);
    let uid = own.run_as_user.or(of_pod.run_as_user).unwrap_or(0);
    let gid = own.run_as_group.or(of_pod.run_as_group).unwrap_or(0);
    let groups: Vec<i64> =
        of_pod.supplemental_groups.iter().flatten().copied().chain(of_pod.fs_group).chain([gid]).collect();
    let mount = |target: &str, kind: &str, source: &str, options: &str| {
        let options: Vec<&str> = options.split(',').collect();
        json!({ "destination": target, "type": kind, "source": source, "options": options })
    };
    let system = if privileged { "rw" } else { "ro" };
    let bind = |target: &str, source: &str| {
        let writable =
            if own.read_only_root_filesystem == Some(true) && source != "termination-log" { "ro" } else { "rw" };
        mount(target, "bind", &bundle.join(source).display().to_string(), &format!("rbind,rprivate,{writable}"))
    };
    let mounts = json!([
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        mount("/sys", "sysfs", "sysfs", &format!("nosuid,noexec,nodev,{system}")),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &format!("nosuid,noexec,nodev,relatime,{system}")),
        bind("/etc/hosts", "hosts"),
        bind("/etc/hostname", "hostname"),
        bind("/etc/resolv.conf", "resolv.conf"),
        bind("/dev/termination-log", "termination-log"),
    ]);
    let mut namespaces = vec![json!({ "type": "pid" }), json!({ "type": "ipc" }), json!({ "type": "uts" })];
    namespaces.extend([json!({ "type": "mount" }), json!({ "type": "network" })]);
    let mut linux = json!({
        "cgroupsPath": cgroup,
        "resources": resources(container, privileged),
        "sysctl": sysctls(pod),
    });
    if privileged {
        linux["devices"] = host_devices(Path::new("/dev"));
    }
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() && (!privileged || owner.is_some()) {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    if let Some(owner) = owner {
        namespaces.push(json!({ "type": "user" }));
        let mapping = json!([{ "containerID": 0, "hostID": owner, "size": 65536 }]);
        linux["uidMappings"] = mapping.clone();
        linux["gidMappings"] = mapping;
    }
    linux["namespaces"] = namespaces.into();
    if !privileged && own.proc_mount.as_deref() != Some("Unmasked") {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    let profile = own.seccomp_profile.or(of_pod.seccomp_profile).map(|profile| profile.type_);
    if profile.as_deref().is_some_and(|kind| kind != "Unconfined") && !privileged {
        // Which calls it allows is for the tests of the profile; here it is that there is one.
        linux["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["kexec_load"], "action": "SCMP_ACT_ERRNO" },
        ] });
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let environment: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let value = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": own.read_only_root_filesystem == Some(true) },
        "hostname": pod.metadata.name,
        "mounts": mounts,
        "linux": linux,
        "process": {
            "args": container.command,
            "cwd": container.working_dir.as_deref().unwrap_or("/"),
            "env": environment,
            "user": { "uid": uid, "gid": gid, "additionalGids": groups, "umask": 0o022 },
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": own.allow_privilege_escalation == Some(false),
            "oomScoreAdj": 1000,
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": hard.min(524_288) }],
        },
    });
    // Through the specification's own types: a misspelt field would otherwise only be ignored.
    let typed: Spec = serde_json::from_value(value).expect("a configuration by the runtime specification");
    serde_json::to_value(typed).expect("JSON")
}

/// containerd's order: ALL is added, then dropped, then the single ones.
fn capabilities(own: &SecurityContext) -> Vec<String> {
    let every = || caps_of_this_process();
    if own.privileged == Some(true) {
        return every();
    }
    let lists = own.capabilities.clone().unwrap_or_default();
    let (add, drop) = (lists.add.unwrap_or_default(), lists.drop.unwrap_or_default());
    let full = |name: &str| format!("CAP_{}", name.strip_prefix("CAP_").unwrap_or(name));
    let mut set: Vec<String> = CAPABILITIES.iter().map(|name| full(name)).collect();
    if add.iter().any(|name| name == "ALL") {
        set = every();
    }
    if drop.iter().any(|name| name == "ALL") {
        set.clear();
    }
    set.extend(add.iter().filter(|name| *name != "ALL").map(|name| full(name)));
    set.retain(|name| !drop.iter().any(|dropped| full(dropped) == *name));
    set.sort();
    set.dedup();
    set
}

/// Those in the bounding set, by name.
fn caps_of_this_process() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("CapBnd").trim().to_owned();
    let output = std::process::Command::new("/usr/sbin/capsh").arg(format!("--decode={bounding}")).output();
    let text = String::from_utf8(output.expect("capsh of libcap2-bin").stdout).expect("text");
    let names = text.trim().split_once('=').expect("a list").1;
    names.split(',').map(str::to_uppercase).collect()
}

/// All nodes that containerd takes over (`getDevices`), with their owners.
fn host_devices(directory: &Path) -> Value {
    const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".udev", "console", "ptmx"];
    let (mut found, mut pending) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of devices").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a kind of file"));
            if SKIPPED.iter().any(|name| *name == entry.file_name()) {
                continue;
            }
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_char_device() || kind.is_block_device() {
                let metadata = entry.metadata().expect("a device");
                found.push(json!({
                    "path": path, "type": if kind.is_block_device() { "b" } else { "c" },
                    "major": libc::major(metadata.rdev()), "minor": libc::minor(metadata.rdev()),
                    "fileMode": metadata.mode() & 0o7777, "uid": metadata.uid(), "gid": metadata.gid(),
                }));
            }
        }
    }
    found.into()
}

fn resources(container: &Container, privileged: bool) -> Value {
    let limit = |name: &str| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        limits.get(name).map(|quantity| quantity.0.clone())
    };
    let mut resources = json!({ "devices": [{ "allow": privileged, "access": "rwm" }] });
    if let Some(memory) = limit("memory") {
        let mebibytes: i64 = memory.strip_suffix("Mi").and_then(|number| number.parse().ok()).expect("mebibytes");
        resources["memory"] = json!({ "limit": mebibytes << 20 });
    }
    let milli = limit("cpu").map(|cpu| cpu.strip_suffix('m').and_then(|n| n.parse::<i64>().ok()).expect("thousandths"));
    resources["cpu"] = match milli {
        Some(milli) => json!({ "shares": milli * 1024 / 1000, "quota": milli * 100, "period": 100_000 }),
        None => json!({ "shares": 2 }),
    };
    resources
}

fn sysctls(pod: &Pod) -> Value {
    let mut all = BTreeMap::from([
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
        ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()),
    ]);
    if pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false) {
        all.insert("net.ipv4.ping_group_range".to_owned(), "0 65535".to_owned());
    }
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    all.extend(context.sysctls.into_iter().flatten().map(|sysctl| (sysctl.name, sysctl.value)));
    json!(all)
}

/// A difference: the path of the value, and what each side sees (null: nothing).
pub type Difference = (String, Value, Value);

/// All values that are not the same, by path (`mounts|/proc|options`).
pub fn differences(berth: &Value, runc: &Value) -> Vec<Difference> {
    let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
    flatten(berth, "", &mut ours);
    flatten(runc, "", &mut theirs);
    let mut paths: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    paths.sort();
    paths.dedup();
    let of = |side: &BTreeMap<String, Value>, path: &String| side.get(path).cloned().unwrap_or_default();
    let both = paths.into_iter().map(|path| (path.clone(), of(&ours, path), of(&theirs, path)));
    both.filter(|(_, ours, theirs)| ours != theirs).collect()
}

fn flatten(value: &Value, path: &str, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}|{name}") };
                flatten(value, &path, found);
            }
        }
        other => {
            found.insert(path.to_owned(), other.clone());
        }
    }
}

/// Makes comparable what is different by its nature: namespaces become whether they are the host's, cgroups whether they
/// are the container's own, the hierarchies below /sys/fs/cgroup one; the root's file system and the contents of the
/// pod's files go.
pub fn normalize(seen: &Value, place: &Place) -> Value {
    let mut seen = seen.clone();
    for (kind, id) in seen["namespaces"].as_object_mut().into_iter().flatten() {
        // The test's own user and cgroup namespaces are those of the agent.
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).map(|link| link.display().to_string());
        *id = if own.is_ok_and(|own| *id == own) { "host" } else { "own" }.into();
    }
    let paths = seen["cgroups"]["paths"].take();
    // Those with limits; a version 1 hierarchy without any has no directory for a container.
    for (controllers, path) in paths.as_object().into_iter().flatten() {
        for controller in controllers.split(',').filter(|name| ["cpu", "memory", "devices", ""].contains(name)) {
            let within = path.as_str().is_some_and(|path| path.starts_with(&place.cgroup_root) || path == "/");
            seen["cgroups"]["paths"][controller] = if within { "own" } else { "elsewhere" }.into();
        }
    }
    if let Some(mounts) = seen["mounts"].as_object_mut() {
        let (hierarchies, others): (Map<_, _>, Map<_, _>) =
            std::mem::take(mounts).into_iter().partition(|(point, _)| point.starts_with("/sys/fs/cgroup/"));
        *mounts = others;
        let options: BTreeSet<&str> = hierarchies.values().filter_map(|mount| mount["options"].as_str()).collect();
        let options: Vec<&str> = options.into_iter().collect();
        mounts.insert("/sys/fs/cgroup/*".to_owned(), json!({ "options": options.join(" or ") }));
        if let Some(root) = mounts.get_mut("/").and_then(Value::as_object_mut) {
            root.retain(|field, _| field == "options");
        }
    }
    if let Some(seen) = seen.as_object_mut() {
        seen.insert("files".to_owned(), Value::Object(Map::new()));
    }
    seen
}
