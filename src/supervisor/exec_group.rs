//! The cgroup of one exec: how all that it starts is found again, whatever it forks and whatever session that is in.
//!
//! It lies below the container's in the hierarchy that tells what is alive (the unified one; on a machine without, the v1
//! freezer's or else memory's). In the others the exec joins the container's own, so that the container's limits count it.
//! Each is made anew: Linux (seen with 6.18) kills what is born by CLONE_INTO_CGROUP into one that was once killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{kill, spec::CgroupPlacement};

/// The cgroup of one exec.
#[derive(Debug)]
pub struct ExecGroup {
    /// Where the exec goes.
    pub placement: CgroupPlacement,
    directory: Option<PathBuf>,
}

impl ExecGroup {
    /// Makes the cgroup of exec `number` below those of its container.
    ///
    /// # Errors
    /// The directory and why it cannot be made.
    pub fn make(container: &CgroupPlacement, number: u64) -> Result<ExecGroup, (PathBuf, io::Error)> {
        let mut placement = container.clone();
        let freezer = |directory: &&mut PathBuf| directory.join("freezer.state").exists();
        let memory = |directory: &&mut PathBuf| directory.join("memory.limit_in_bytes").exists();
        let above = match &mut placement.unified {
            Some(unified) => Some(unified),
            None => match placement.v1.iter_mut().find(freezer) {
                Some(freezer) => Some(freezer),
                None => placement.v1.iter_mut().find(memory),
            },
        };
        let Some(above) = above else { return Ok(ExecGroup { placement, directory: None }) };
        let directory = above.join(format!("exec-{number}"));
        if let Err(error) = fs::create_dir(&directory) {
            return Err((directory, error));
        }
        above.clone_from(&directory);
        Ok(ExecGroup { placement, directory: Some(directory) })
    }

    /// SIGKILL for everything in it. May be repeated.
    pub fn kill(&self) {
        if let Some(directory) = &self.directory {
            let own = match &self.placement.unified {
                Some(_) => CgroupPlacement { unified: Some(directory.clone()), ..CgroupPlacement::default() },
                None => CgroupPlacement { v1: vec![directory.clone()], ..CgroupPlacement::default() },
            };
            // Ignored: whether it helped is seen by what is left.
            let _ = kill::everything_in(&own);
        }
    }

    /// Removes it; false while something is in it.
    pub fn remove(&self) -> bool {
        self.directory.as_deref().is_none_or(removed)
    }
}

fn removed(directory: &Path) -> bool {
    match fs::remove_dir(directory) {
        Ok(()) => true,
        // With the container, whose end it was; or a file system that is none of ours, where nothing can be done.
        Err(error) => error.raw_os_error() != Some(libc::EBUSY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path.parent().unwrap().to_owned()
    }

    #[test]
    fn an_exec_has_a_cgroup_where_processes_are_found_and_joins_the_containers_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let unified = file(root.path().join("unified/c/cgroup.procs"));
        let memory = file(root.path().join("memory/c/memory.limit_in_bytes"));
        let freezer = file(root.path().join("freezer/c/freezer.state"));
        let cpu = file(root.path().join("cpu/c/cpu.shares"));
        let make = |unified: Option<&PathBuf>, v1: &[&PathBuf]| {
            let v1 = v1.iter().map(|directory| (*directory).clone()).collect();
            let container = CgroupPlacement { unified: unified.cloned(), v1, oom_events: None };
            let group = ExecGroup::make(&container, 7).unwrap();
            assert!(group.directory.iter().all(|directory| directory.is_dir()));
            assert!(group.remove() && group.remove(), "removed, and removed again");
            group.placement
        };
        let placement = make(Some(&unified), &[&memory, &cpu]);
        assert_eq!(placement.unified, Some(unified.join("exec-7")));
        assert_eq!(placement.v1, [memory.clone(), cpu.clone()]);
        assert_eq!(make(None, &[&memory, &freezer, &cpu]).v1, [memory.clone(), freezer.join("exec-7"), cpu.clone()]);
        assert_eq!(make(None, &[&cpu, &memory]).v1, [cpu.clone(), memory.join("exec-7")]);
        assert_eq!(make(None, &[&cpu]).v1, std::slice::from_ref(&cpu));
    }
}
