//! The end of everything in a cgroup.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::spec::CgroupPlacement;
use crate::sys::process;

/// Rounds of freeze, signal, thaw on v1. Each one gets everything that existed when the freezer closed; a few more are
/// for processes that were moved in meanwhile.
const ROUNDS: usize = 8;

/// SIGKILL for every process in the leaf. Repeating it, or an empty or absent cgroup, is fine. The processes end a
/// little later: their end is observed, not assumed.
///
/// # Errors
/// The kernel offers no way to find the processes, or refuses.
pub fn everything_in(cgroup: &CgroupPlacement) -> io::Result<()> {
    if let Some(unified) = &cgroup.unified {
        // Linux 5.14; also in the unified hierarchy of a hybrid machine.
        match fs::write(unified.join("cgroup.kill"), "1") {
            Ok(()) => return Ok(()),
            Err(error) if gone(&error) && !unified.exists() => return Ok(()),
            Err(error) if gone(&error) => return one_by_one(unified, None),
            Err(error) => return Err(error),
        }
    }
    let freezer = cgroup.v1.iter().find(|directory| directory.join("freezer.state").exists());
    match freezer.or(cgroup.v1.first()) {
        Some(directory) => one_by_one(directory, freezer),
        None => Ok(()),
    }
}

/// Signals all that `cgroup.procs` lists until it lists nothing, each time with the freezer closed: nothing in it can
/// fork away from the signal, and a number just read cannot have been given to another process.
fn one_by_one(directory: &Path, freezer: Option<&PathBuf>) -> io::Result<()> {
    for _ in 0..ROUNDS {
        if let Some(freezer) = freezer {
            // A process in the middle of a system call may hold FREEZING for long: it is signalled all the same.
            let _ = fs::write(freezer.join("freezer.state"), "FROZEN");
        }
        let listed = members(directory);
        let processes = listed.as_deref().unwrap_or_default();
        for pid in processes {
            // 0 would be a process outside our PID namespace, which this would turn into our own group.
            if *pid > 0 {
                let _ = process::kill(*pid, libc::SIGKILL);
            }
        }
        if let Some(freezer) = freezer {
            let _ = fs::write(freezer.join("freezer.state"), "THAWED");
        }
        match listed {
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(processes) if processes.is_empty() => return Ok(()),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Process ids in a cgroup and, of execs, one level below it.
fn members(directory: &Path) -> io::Result<Vec<i32>> {
    let read = |directory: &Path| {
        let text = fs::read_to_string(directory.join("cgroup.procs"))?;
        Ok::<_, io::Error>(text.lines().filter_map(|line| line.parse::<i32>().ok()).collect::<Vec<_>>())
    };
    let mut found = read(directory)?;
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // One that has been removed meanwhile has nothing in it.
            found.extend(read(&entry.path()).unwrap_or_default());
        }
    }
    Ok(found)
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
