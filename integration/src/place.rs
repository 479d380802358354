//! A place of its own: network and mount namespaces, directories, a cgroup parent. Nothing a test does in it can
//! be seen by another test or by the machine.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// A place.
pub struct Place {
    /// Parent of the agent's directories.
    pub dir: tempfile::TempDir,
    /// `--cgroup-root`: parent of `kubepods` in every hierarchy.
    pub cgroup_root: String,
    network: OwnedFd,
    mounts: OwnedFd,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// How long a command in a test may take.
const COMMAND: Duration = Duration::from_secs(60);

impl Place {
    /// Makes one, with loopback up.
    pub fn new() -> Result<Place> {
        let dir = tempfile::Builder::new().prefix("berth-test-").tempdir().context("temporary directory")?;
        let cgroup_root = format!("/berth-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (network, mounts) = thread::spawn(namespaces).join().expect("the namespace thread does not panic")?;
        let place = Place { dir, cgroup_root, network, mounts };
        for name in ["root", "run", "log", "manifests"] {
            fs::create_dir_all(place.dir.path().join(name))?;
        }
        ensure!(place.run("ip", &["link", "set", "lo", "up"])?.status.success(), "loopback up");
        Ok(place)
    }

    /// Connects the place to `outside` as a machine is connected to its network: the place's uplink `up0`
    /// (192.0.2.1, 2001:db8::1) leads to `out0` (192.0.2.2, 2001:db8::2), which is its gateway.
    pub fn connect(&self, outside: &Place) -> Result<()> {
        let there = format!("/proc/{}/fd/{}", std::process::id(), outside.network.as_raw_fd());
        let run = |place: &Place, line: &str| -> Result<()> {
            let output = place.run("ip", &line.split(' ').collect::<Vec<_>>())?;
            ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        run(self, &format!("link add up0 mtu 1400 type veth peer name out0 mtu 1400 netns {there}"))?;
        for (place, link, number) in [(self, "up0", 1), (outside, "out0", 2)] {
            run(place, &format!("address add 192.0.2.{number}/24 dev {link}"))?;
            run(place, &format!("address add 2001:db8::{number}/64 dev {link} nodad"))?;
            run(place, &format!("link set {link} up"))?;
        }
        run(self, "route add default via 192.0.2.2")?;
        run(self, "route add default via 2001:db8::2")
    }

    /// A path below the place's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that will run inside the place's namespaces.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let (network, mounts) = (self.network.as_raw_fd(), self.mounts.as_raw_fd());
        // SAFETY: setns is async-signal-safe, and the descriptors outlive the spawn because `self` does.
        unsafe {
            command.pre_exec(move || {
                for (descriptor, kind) in [(network, libc::CLONE_NEWNET), (mounts, libc::CLONE_NEWNS)] {
                    if libc::setns(descriptor, kind) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command
    }

    /// Runs a command inside and waits, for at most a minute.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command("/usr/bin/timeout");
        command.arg("--kill-after=5").arg(COMMAND.as_secs().to_string()).arg(program).args(arguments);
        command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))
    }

    /// Runs `work` on a thread of its own inside the place's network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.network, CloneFlags::CLONE_NEWNET).expect("enter the place's network namespace");
                    work()
                })
                .join()
                .expect("the work inside the place does not panic")
        })
    }
}

/// New network and mount namespaces, mounts private, made on a thread that ends right after.
fn namespaces() -> Result<(OwnedFd, OwnedFd)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).context("unshare")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make mounts private")?;
    let open = |name: &str| File::open(format!("/proc/thread-self/ns/{name}")).map(OwnedFd::from);
    Ok((open("net")?, open("mnt")?))
}
