//! The AppArmor profile of a container's program, which the kernel puts in force at execve.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    path::Path,
};

use super::error::{Failure, Step};
use crate::{
    supervisor::spec::LaunchSpec,
    sys::{
        mount, node,
        openat2::{Scope, openat2, purpose},
    },
};

/// The kernel's file for it, opened in the host's view of things: the container's own /proc could be made to lead
/// elsewhere (CVE-2019-19921, CVE-2025-52881). It may be written only by the process that has opened it.
pub(super) struct Label<'a> {
    file: File,
    profile: &'a str,
}

/// Where the attribute is: its own directory since Linux 5.1, shared among security modules before.
const ATTRIBUTES: [&str; 2] = ["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"];

/// Opens it, if the container is to have a profile.
pub(super) fn open(spec: &LaunchSpec) -> Result<Option<Label<'_>>, Failure> {
    let Some(profile) = &spec.app_armor else { return Ok(None) };
    let step = || format!("open the attribute for AppArmor profile {profile}");
    let open = |path: &str| openat2(mount::here(), Path::new(path), purpose::WRITE, 0, Scope::NoMagicLinks);
    let [own, shared] = ATTRIBUTES;
    let file = open(own)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { open(shared) } else { Err(error) })
        .step(step)?;
    if !node::is_on_proc(file.as_fd()).step(step)? {
        return Err(Failure::refused(step(), "/proc is not a proc file system"));
    }
    Ok(Some(Label { file: file.into(), profile }))
}

impl Label<'_> {
    /// Asks for the profile at the next execve.
    pub(super) fn apply(&mut self) -> Result<(), Failure> {
        let step = || format!("apply AppArmor profile {}", self.profile);
        // In one write: the kernel takes each as a command of its own.
        self.file.write_all(format!("exec {}", self.profile).as_bytes()).step(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_is_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut label = Label { file: file.reopen().unwrap(), profile: "ns://my profile" };
        label.apply().unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "exec ns://my profile");
    }
}
