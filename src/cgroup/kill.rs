//! Ending every process of a pod or a leaf, whatever it forks meanwhile, within a bounded time.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use cgroups_rs::fs::freezer::FreezerController;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    Cgroups, Controller,
    error::CgroupError,
    files::{keyed, read, write},
    path,
};
use crate::{api::qos::QosClass, sys::pidfd};

/// How a whole cgroup is killed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KillWay {
    /// `cgroup.kill` (Linux 5.14): the kernel sees to forks.
    Kill,
    /// Frozen with `cgroup.freeze`, then signalled.
    Freeze,
    /// Frozen with the v1 freezer, then signalled.
    Freezer,
    /// Signalled until nothing is left.
    Signals,
}

impl Cgroups {
    /// Kills everything in a pod and waits until it is gone, at most `within`. Ok when there is no such pod.
    ///
    /// # Errors
    /// [`CgroupError::StillPopulated`] lists what is left: processes in uninterruptible sleep.
    pub fn kill_pod(&self, qos: QosClass, uid: &str, within: Duration) -> Result<(), CgroupError> {
        self.kill(&path::pod(qos, uid), within)
    }

    /// Kills everything in a leaf; as [`Cgroups::kill_pod`].
    pub fn kill_leaf(&self, qos: QosClass, uid: &str, leaf: &str, within: Duration) -> Result<(), CgroupError> {
        self.kill(&path::leaf(qos, uid, leaf), within)
    }

    fn kill(&self, relative: &Path, within: Duration) -> Result<(), CgroupError> {
        let directory = self.tracking(relative);
        let deadline = Instant::now() + within;
        match self.kill_way() {
            KillWay::Kill => match write(&directory, "cgroup.kill", "1") {
                Ok(()) => wait_empty(&directory, deadline, within),
                Err(error) if error.is_absent() => Ok(()),
                Err(error) => Err(error),
            },
            way => kill_by_signals(&directory, way, deadline, within),
        }
    }

    /// Asks the tree itself, not the kernel's version.
    fn kill_way(&self) -> KillWay {
        *self.kill_way.get_or_init(|| {
            let kubepods = Path::new(path::KUBEPODS);
            let unified_has = |file| self.in_unified(kubepods).is_some_and(|directory| directory.join(file).exists());
            if unified_has("cgroup.kill") {
                KillWay::Kill
            } else if unified_has("cgroup.freeze") {
                KillWay::Freeze
            } else if self.unified.is_none() && self.has(Controller::Freezer) {
                KillWay::Freezer
            } else {
                KillWay::Signals
            }
        })
    }
}

/// Freezes so that nothing can fork away, signals all, thaws so that they can die; again until nothing is left (a
/// process being forked while the freezer takes hold may be missed).
fn kill_by_signals(directory: &Path, way: KillWay, deadline: Instant, within: Duration) -> Result<(), CgroupError> {
    let freezer = match way {
        KillWay::Freeze => Some(FreezerController::new(directory.to_owned(), directory.to_owned(), true)),
        KillWay::Freezer => Some(FreezerController::new(directory.to_owned(), directory.to_owned(), false)),
        KillWay::Kill | KillWay::Signals => None,
    };
    loop {
        // Failing to freeze or thaw is a process missed or late, which the next round sees.
        if let Some(freezer) = &freezer {
            let _ = freezer.freeze();
        }
        let dying = signal_all(directory);
        if let Some(freezer) = &freezer {
            let _ = freezer.thaw();
        }
        let dying = dying?;
        if dying.is_empty() {
            return match members(directory)?.is_empty() {
                true => Ok(()),
                false if Instant::now() < deadline => continue,
                false => Err(still_populated(directory, within)),
            };
        }
        if !wait_ended(&dying, deadline) {
            return Err(still_populated(directory, within));
        }
    }
}

/// SIGKILL to every member; their descriptors. A process id read here may be another's by the time it is opened, so
/// only those that are members still are signalled.
fn signal_all(directory: &Path) -> Result<Vec<OwnedFd>, CgroupError> {
    let opened: Vec<(i32, OwnedFd)> =
        members(directory)?.into_iter().filter_map(|pid| Some((pid, pidfd::open(pid).ok()?))).collect();
    let still = members(directory)?;
    Ok(opened
        .into_iter()
        .filter(|(pid, _)| still.contains(pid))
        // One that has ended meanwhile is what was wanted.
        .inspect(|(_, descriptor)| drop(pidfd::send_signal(descriptor.as_fd(), libc::SIGKILL)))
        .map(|(_, descriptor)| descriptor)
        .collect())
}

/// Waits for all to end; whether they did.
fn wait_ended(processes: &[OwnedFd], deadline: Instant) -> bool {
    processes.iter().all(|process| {
        loop {
            match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], remaining(deadline)) {
                Ok(ready) => break ready == 1,
                Err(Errno::EINTR) => {}
                Err(_) => break false,
            }
        }
    })
}

/// Waits until a cgroup of the tracking hierarchy holds no process, nor does any below it. Ok when it does not exist.
pub(super) fn wait_empty(directory: &Path, deadline: Instant, within: Duration) -> Result<(), CgroupError> {
    let Ok(mut events) = File::open(directory.join("cgroup.events")) else {
        return wait_empty_v1(directory, deadline, within);
    };
    loop {
        let mut text = String::with_capacity(64);
        // ENODEV: the cgroup was removed meanwhile.
        if events.rewind().and_then(|()| events.read_to_string(&mut text)).is_err()
            || keyed(&text, "populated") != Some(1)
        {
            return Ok(());
        }
        // The file signals a change since it was last read, so that none between the read and the poll is lost.
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], remaining(deadline)) {
            Ok(0) => return Err(still_populated(directory, within)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Err(still_populated(directory, within)),
        }
    }
}

/// v1 tells nobody when a cgroup becomes empty; its processes do.
fn wait_empty_v1(directory: &Path, deadline: Instant, within: Duration) -> Result<(), CgroupError> {
    loop {
        let pids = members(directory)?;
        if pids.is_empty() {
            return Ok(());
        }
        let processes: Vec<OwnedFd> = pids.into_iter().filter_map(|pid| pidfd::open(pid).ok()).collect();
        if !wait_ended(&processes, deadline) || Instant::now() >= deadline {
            return Err(still_populated(directory, within));
        }
    }
}

fn remaining(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up: the last millisecond is waited for, not spun through.
    PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}

fn still_populated(directory: &Path, waited: Duration) -> CgroupError {
    let mut pids = members(directory).unwrap_or_default();
    pids.truncate(CgroupError::PIDS_SHOWN);
    CgroupError::StillPopulated { path: directory.to_owned(), pids, waited }
}

/// Process ids in a cgroup and all below it; none when it does not exist.
pub(super) fn members(directory: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut pids = Vec::new();
    visit(directory, &mut |directory| {
        match read(directory, "cgroup.procs") {
            // 0 stands for a process outside our PID namespace, which cannot be named.
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0)),
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(pids)
}

/// Calls `each` for a directory and all directories below it, as far as they exist.
pub(super) fn visit(
    directory: &Path,
    each: &mut dyn FnMut(&Path) -> Result<(), CgroupError>,
) -> Result<(), CgroupError> {
    each(directory)?;
    for child in children(directory) {
        visit(&child, each)?;
    }
    Ok(())
}

/// Directories in a cgroup; none when it is gone.
pub(super) fn children(directory: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
