//! The kernel's own price of a pod: the system calls berth makes for one, in one plain program, with no agent, no
//! supervisor, no protocol and no decisions around them.
//!
//! `floor ROOTFS BRIDGE COUNT`: for each of COUNT pods: four durable records, cgroups, network, IPC and UTS namespaces,
//! a veth pair made inside the pod's namespace with its peer on BRIDGE, an address and a route, then PID and mount
//! namespaces, an overlay over ROOTFS, the usual mounts, pivot_root, capabilities, exec of `/stamp`. Prints one JSON
//! object: `start` and `stop` durations in nanoseconds. Start ends at the time `/stamp` prints.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::exit,
};

use anyhow::{Context, Result, ensure};

mod netlink {
    //! The few rtnetlink messages of a pod, by hand.

    use std::{
        io,
        os::fd::{AsRawFd, FromRawFd, OwnedFd},
    };

    /// A request under construction.
    pub struct Request(Vec<u8>);

    impl Request {
        /// Header and fixed part.
        pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
            let mut bytes = vec![0; 16];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            // NLM_F_REQUEST | NLM_F_ACK
            bytes[6..8].copy_from_slice(&(flags | 0x5).to_ne_bytes());
            bytes.extend_from_slice(fixed);
            Request(bytes)
        }

        /// An attribute.
        pub fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
            self.0.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
            self.0.extend_from_slice(&kind.to_ne_bytes());
            self.0.extend_from_slice(value);
            self.0.resize(self.0.len().next_multiple_of(4), 0);
            self
        }

        /// Attributes within an attribute; `fixed` comes before them.
        pub fn nested(mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(Request) -> Request) -> Request {
            let inner = fill(Request(fixed.to_vec()));
            self = self.attribute(kind, &inner.0);
            self
        }
    }

    /// A socket of the namespace the caller is in.
    pub struct Socket(OwnedFd);

    impl Socket {
        /// Opens one.
        pub fn open() -> io::Result<Socket> {
            // SAFETY: no pointers; the descriptor is new and ours.
            unsafe {
                let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
                if fd < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(Socket(OwnedFd::from_raw_fd(fd)))
            }
        }

        /// Sends the requests in one packet and waits for an answer to each.
        pub fn run(&self, requests: Vec<Request>) -> io::Result<()> {
            let mut packet = Vec::new();
            let count = requests.len();
            for Request(mut bytes) in requests {
                let length = bytes.len() as u32;
                bytes[0..4].copy_from_slice(&length.to_ne_bytes());
                packet.extend_from_slice(&bytes);
                packet.resize(packet.len().next_multiple_of(4), 0);
            }
            // SAFETY: pointer and length describe `packet`.
            if unsafe { libc::send(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            let mut answered = 0;
            while answered < count {
                let mut buffer = [0_u8; 8192];
                // SAFETY: pointer and length describe `buffer`.
                let got = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
                if got < 0 {
                    return Err(io::Error::last_os_error());
                }
                let mut at = 0;
                while at + 20 <= got as usize {
                    let length = u32::from_ne_bytes(buffer[at..at + 4].try_into().expect("4 bytes")) as usize;
                    let error = i32::from_ne_bytes(buffer[at + 16..at + 20].try_into().expect("4 bytes"));
                    if error != 0 {
                        return Err(io::Error::from_raw_os_error(-error));
                    }
                    answered += 1;
                    at += length.next_multiple_of(4).max(4);
                }
            }
            Ok(())
        }
    }
}

use netlink::{Request, Socket};

const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;

/// `struct ifinfomsg` for the link `index`, up or unchanged.
fn link(index: u32, up: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&1_u32.to_ne_bytes());
    }
    bytes
}

fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: a C string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// eth0 in this namespace, its peer `host` in `outside`, an address and a default route.
fn connect_pod(outside: RawFd, host: &str, number: u8) -> io::Result<()> {
    let socket = Socket::open()?;
    let veth =
        Request::new(16, 0x600, &link(0, true)).attribute(IFLA_IFNAME, b"eth0\0").nested(IFLA_LINKINFO, &[], |info| {
            info.attribute(1, b"veth\0").nested(2, &[], |data| {
                data.nested(1, &link(0, false), |peer| {
                    peer.attribute(IFLA_IFNAME, format!("{host}\0").as_bytes())
                        .attribute(IFLA_NET_NS_FD, &(outside as u32).to_ne_bytes())
                })
            })
        });
    socket.run(vec![Request::new(16, 0, &link(1, true)), veth])?;
    let eth0 = index("eth0")?;
    let address = [10, 99, 0, number];
    let mut ifaddr = vec![libc::AF_INET as u8, 16, 0, 0];
    ifaddr.extend_from_slice(&eth0.to_ne_bytes());
    // rtmsg: family, lengths, table main, protocol static, scope universe, type unicast, flags
    let route = [libc::AF_INET as u8, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
    // Up only now: a pair that is still being made has no other end to be connected to.
    socket.run(vec![
        Request::new(16, 0, &link(eth0, true)),
        Request::new(20, 0x600, &ifaddr).attribute(2, &address).attribute(1, &address),
        Request::new(24, 0x600, &route).attribute(5, &[10, 99, 0, 1]).attribute(4, &eth0.to_ne_bytes()),
    ])
}

fn durable(path: &Path) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&[b'x'; 2000])?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The directory `name` in each hierarchy that is used.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let hierarchies = ["memory", "cpu,cpuacct", "cpu", "cpuacct", "pids", "freezer", "devices", "unified"];
    let mut found: Vec<PathBuf> = hierarchies
        .iter()
        .map(|hierarchy| Path::new("/sys/fs/cgroup").join(hierarchy))
        .filter(|path| path.is_dir() && !path.is_symlink())
        .map(|path| path.join(name))
        .collect();
    if found.is_empty() {
        found.push(Path::new("/sys/fs/cgroup").join(name));
    }
    found
}

/// Joins the v1 hierarchies: writing `0` to one's own `tasks` is the way that does not wait for an RCU grace period.
fn join(places: &[PathBuf], leaf: &str) {
    for tasks in places.iter().map(|place| place.join(leaf).join("tasks")).filter(|tasks| tasks.exists()) {
        fs::write(tasks, "0").unwrap_or_else(|error| die("join a cgroup", &error));
    }
}

fn die(what: &str, error: &dyn std::fmt::Display) -> ! {
    eprintln!("floor: {what}: {error}");
    exit(1)
}

fn check(what: &str, result: libc::c_long) -> libc::c_long {
    if result < 0 {
        die(what, &io::Error::last_os_error());
    }
    result
}

fn c(text: impl AsRef<Path>) -> CString {
    use std::os::unix::ffi::OsStrExt;
    CString::new(text.as_ref().as_os_str().as_bytes()).unwrap_or_else(|error| die("a path", &error))
}

fn mount(source: &str, target: impl AsRef<Path>, kind: &str, flags: libc::c_ulong, options: &str) {
    let (source, path, kind, options) = (c(source), c(&target), c(kind), c(options));
    // SAFETY: four C strings that outlive the call.
    let result = unsafe { libc::mount(source.as_ptr(), path.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    check(&format!("mount on {}", target.as_ref().display()), result.into());
}

/// fork-like clone3 with namespaces, born in the v2 cgroup `leaf` (the last of `places`); 0 in the child.
fn clone(flags: libc::c_int, places: &[PathBuf], leaf: &str) -> libc::c_long {
    let unified = places.last().map(|place| place.join(leaf)).filter(|place| place.join("cgroup.kill").exists());
    let unified = unified.map(|place| File::open(&place).unwrap_or_else(|error| die("open a cgroup", &error)));
    // SAFETY: all zeroes is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(unified) = &unified {
        arguments.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        arguments.cgroup = unified.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is fork: the child has its own copy of everything, and this program has one thread.
    unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) }
}

fn container(rootfs: &str, work: &Path) -> ! {
    let root = work.join("root");
    mount("none", "/", "none", libc::MS_REC | libc::MS_SLAVE, "");
    let layers = format!("lowerdir={rootfs},upperdir={0}/upper,workdir={0}/work", work.display());
    mount("overlay", &root, "overlay", 0, &layers);
    mount("proc", root.join("proc"), "proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "");
    mount("sysfs", root.join("sys"), "sysfs", libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV, "");
    mount("tmpfs", root.join("dev"), "tmpfs", libc::MS_NOSUID, "mode=755,size=65536k");
    for directory in ["pts", "shm", "mqueue"] {
        fs::create_dir(root.join("dev").join(directory)).unwrap_or_else(|error| die("a directory", &error));
    }
    mount("devpts", root.join("dev/pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=0620");
    mount("shm", root.join("dev/shm"), "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777,size=65536k");
    mount("mqueue", root.join("dev/mqueue"), "mqueue", libc::MS_NOSUID, "");
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        let path = c(root.join("dev").join(name));
        // SAFETY: a C string that outlives the call.
        let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, minor)) };
        check("mknod", made.into());
    }
    for file in ["hosts", "hostname", "resolv.conf"] {
        let source = work.join(file);
        let target = root.join("etc").join(file);
        File::create(&source).and_then(|_| File::create(&target)).unwrap_or_else(|error| die("a file", &error));
        mount(&source.to_string_lossy(), &target, "none", libc::MS_BIND, "");
    }
    for masked in ["proc/kcore", "proc/keys", "proc/timer_list"] {
        if root.join(masked).exists() {
            mount("/dev/null", root.join(masked), "none", libc::MS_BIND, "");
        }
    }
    for masked in ["proc/acpi", "sys/firmware"] {
        if root.join(masked).exists() {
            mount("tmpfs", root.join(masked), "tmpfs", libc::MS_RDONLY, "size=0k");
        }
    }
    for readonly in ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"] {
        let path = root.join(readonly);
        if path.exists() {
            mount(&path.to_string_lossy(), &path, "none", libc::MS_BIND, "");
            mount("none", &path, "none", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY, "");
        }
    }
    std::env::set_current_dir(&root).unwrap_or_else(|error| die("chdir", &error));
    // SAFETY: C string literals; the rest are plain numbers.
    unsafe {
        check("pivot_root", libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()));
        check("umount", libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into());
        for capability in [0, 2, 9, 12, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25, 26, 28, 30] {
            check("drop a capability", libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0).into());
        }
        check("setgroups", libc::setgroups(0, std::ptr::null()).into());
        check("no_new_privs", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into());
        let arguments = [c"/stamp".as_ptr(), std::ptr::null()];
        let environment = [c"PATH=/bin".as_ptr(), std::ptr::null()];
        libc::execve(c"/stamp".as_ptr(), arguments.as_ptr(), environment.as_ptr());
    }
    die("exec /stamp", &io::Error::last_os_error())
}

fn sandbox(rootfs: &str, work: &Path, places: &[PathBuf], outside: RawFd, host: &str, number: u8, go: RawFd) -> ! {
    join(places, "sandbox");
    connect_pod(outside, host, number).unwrap_or_else(|error| die("connect the pod", &error));
    // The parent puts the peer on the bridge when it reads this.
    // SAFETY: one byte from a literal.
    unsafe { libc::write(go, b"x".as_ptr().cast(), 1) };
    let pid = check("clone the container", clone(libc::CLONE_NEWPID | libc::CLONE_NEWNS, places, "container"));
    if pid == 0 {
        join(places, "container");
        container(rootfs, work);
    }
    println!("{pid}");
    io::stdout().flush().ok();
    let mut status = 0;
    // SAFETY: a pointer to a local.
    unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, 0) };
    exit(0)
}

fn now() -> i64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).expect("a clock");
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: a pointer to two ints, which are ours when it succeeds.
    unsafe {
        ensure!(libc::pipe(ends.as_mut_ptr()) == 0, "pipe");
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// One pod up and down: nanoseconds of each.
fn once(rootfs: &str, bridge: u32, base: &Path, number: usize, outside: RawFd) -> Result<(i64, i64)> {
    let work = base.join(number.to_string());
    let host = format!("floor{number}");
    let begun = now();
    for directory in ["upper", "work", "root"] {
        fs::create_dir_all(work.join(directory))?;
    }
    for record in ["pod.json", "network.json", "sandbox.json", "launch.json"] {
        durable(&work.join(record))?;
    }
    let places = cgroups(&format!("{}/{number}", parent()));
    for place in &places {
        for leaf in ["sandbox", "container"] {
            fs::create_dir_all(place.join(leaf)).with_context(|| format!("cgroup {}", place.display()))?;
        }
        if place.join("cpu.shares").exists() {
            fs::write(place.join("cpu.shares"), "2")?;
            fs::write(place.join("container/cpu.shares"), "2")?;
        }
    }
    let (output, input) = pipe()?;
    let (gone, go) = pipe()?;
    let flags = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let pid = check("clone the sandbox", clone(flags, &places, "sandbox"));
    if pid == 0 {
        // SAFETY: two descriptors this process has.
        unsafe { libc::dup2(input.as_raw_fd(), 1) };
        sandbox(rootfs, &work, &places, outside, &host, (number % 200 + 2) as u8, go.as_raw_fd());
    }
    drop((input, go));
    let mut byte = [0];
    File::from(gone).read_exact(&mut byte).context("the sandbox ended early")?;
    let peer = index(&host)?;
    let socket = Socket::open()?;
    socket.run(vec![Request::new(16, 0, &link(peer, true)).attribute(IFLA_MASTER, &bridge.to_ne_bytes())])?;
    let mut text = String::new();
    let mut output = File::from(output);
    let mut buffer = [0; 256];
    while text.lines().count() < 2 || !text.ends_with('\n') {
        let count = output.read(&mut buffer)?;
        ensure!(count > 0, "the container ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    // Either line may come first: the container's pid is the short one.
    let numbers: Vec<i64> = text.lines().map(|line| line.trim().parse()).collect::<Result<_, _>>()?;
    let (container, started) = (numbers[0].min(numbers[1]), numbers[0].max(numbers[1]));

    let ending = now();
    // SAFETY: plain numbers; the processes are children of ours.
    unsafe {
        libc::kill(container as libc::pid_t, libc::SIGTERM);
        let mut status = 0;
        libc::waitpid(pid as libc::pid_t, &raw mut status, 0);
    }
    // The pair may already have gone with its namespace, which the kernel takes down on its own time.
    socket.run(vec![Request::new(17, 0, &link(peer, false))]).ok();
    for place in &places {
        for leaf in ["sandbox", "container", "."] {
            fs::remove_dir(place.join(leaf).components().collect::<PathBuf>())
                .with_context(|| format!("remove cgroup {}", place.display()))?;
        }
    }
    fs::remove_dir_all(&work)?;
    Ok((started - begun, now() - ending))
}

/// Above all pods, and with the kernel's weight: a pod's own small one must not stand against the machine's processes.
fn parent() -> String {
    format!("berth-floor-{}", std::process::id())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, rootfs, bridge, count] = arguments.as_slice() else { anyhow::bail!("usage: floor ROOTFS BRIDGE COUNT") };
    let bridge = index(bridge).with_context(|| format!("bridge {bridge}"))?;
    let base = tempfile::Builder::new().prefix("berth-floor-").tempdir()?;
    let outside = File::open("/proc/self/ns/net")?;
    let parents = cgroups(&parent());
    for parent in &parents {
        fs::create_dir(parent).with_context(|| format!("cgroup {}", parent.display()))?;
    }
    let (mut start, mut stop) = (Vec::new(), Vec::new());
    for number in 0..count.parse::<usize>().context("COUNT")? {
        let (up, down) = once(rootfs, bridge, base.path(), number, outside.as_raw_fd())?;
        start.push(up);
        stop.push(down);
    }
    for parent in &parents {
        fs::remove_dir(parent).with_context(|| format!("remove cgroup {}", parent.display()))?;
    }
    println!("{}", serde_json::json!({ "start": start, "stop": stop }));
    Ok(())
}
