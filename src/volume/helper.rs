//! Work on volumes that a server can keep waiting for ever, done by a process of its own that can be killed.
//!
//! A thread that waits in the kernel for a file system that does not answer cannot be ended, and holds up the end of
//! the whole agent. So whatever may touch such a file system is an [`Errand`] of a small process: this same program
//! under another name, which reads the errand from its standard input, does it and prints the answer.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Deserialize, Serialize};

use super::{
    VolumeError,
    error::io_error,
    host_path,
    nfs::{self, Nfs},
    ownership::{self, Ownership},
    remove, tear_down,
};
use crate::sys::{node, process, signal};

/// `argv[0]` of a helper: what `main` dispatches on.
pub const PROGRAM: &str = "berth-volume";

/// What a helper is sent to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Errand {
    /// Check a hostPath: [`host_path::resolve`]. Answered by its path.
    HostPath {
        /// `hostPath.path`.
        path: String,
        /// `hostPath.type`.
        kind: String,
    },
    /// Look for a directory that a PersistentVolume promises. Answered by its path without links.
    Directory {
        /// `local.path`.
        path: PathBuf,
    },
    /// Give a volume to a group. Takes as long as there are files in it.
    Own {
        /// Its root.
        path: PathBuf,
        /// Whose it becomes.
        ownership: Ownership,
    },
    /// Look for a block device. Answered by what it is.
    Device {
        /// Where its node is.
        path: PathBuf,
    },
    /// Mount a file system of a server.
    Mount {
        /// Which.
        nfs: Nfs,
        /// Where; made when missing.
        target: PathBuf,
    },
    /// Unmount and remove everything below a pod's directory of volumes: [`tear_down::tear_down_in`].
    TearDown {
        /// The directory.
        volumes: PathBuf,
    },
    /// Remove what is in a directory, not the directory.
    Empty {
        /// The directory.
        path: PathBuf,
    },
}

/// What a helper says of an errand done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing beyond that it is done.
    Done,
    /// Where it is.
    Path(PathBuf),
    /// The device.
    Device(BlockDevice),
}

/// A block device on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits of the host's node.
    pub mode: u32,
    /// Owner of the host's node.
    pub uid: u32,
    /// Group of the host's node.
    pub gid: u32,
}

/// The whole life of a helper.
pub fn run() -> ExitCode {
    process::set_name(c"berth-volume");
    if let Err(error) = end_with_the_agent() {
        eprintln!("{PROGRAM}: {error}");
        return ExitCode::FAILURE;
    }
    let mut errand = Vec::new();
    let read = io::stdin().read_to_end(&mut errand);
    let errand: Errand = match read.map_err(serde_json::Error::io).and_then(|_| serde_json::from_slice(&errand)) {
        Ok(errand) => errand,
        Err(error) => {
            eprintln!("{PROGRAM}: is started by the agent, with an errand: {error}");
            return ExitCode::from(2);
        }
    };
    let answer = perform(&errand).map_err(|error| chain(&error));
    let written = serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|text| io::stdout().write_all(&text));
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nobody waits for the answer once the agent is gone: what was started for the errand then ends as well, such as a
/// mount(8) that would wait for its server all alone.
fn end_with_the_agent() -> io::Result<()> {
    // The agent starts it as the leader of a session, and so of a group of its own. Anybody else's must not be killed.
    if !process::leads_its_group() {
        return Err(io::Error::other("is started by the agent, in a session of its own"));
    }
    signal::kill_group_upon(libc::SIGTERM)?;
    process::set_parent_death_signal(libc::SIGTERM)?;
    // The agent may have died before that was asked for.
    match process::is_heard(io::stdout().as_fd()) {
        true => Ok(()),
        false => Err(io::Error::other("the agent is gone")),
    }
}

/// Does an errand, however long that takes.
pub fn perform(errand: &Errand) -> Result<Answer, VolumeError> {
    match errand {
        Errand::HostPath { path, kind } => host_path::resolve(path, kind).map(Answer::Path),
        Errand::Directory { path } => directory(path).map(Answer::Path),
        Errand::Own { path, ownership } => ownership::change(path, *ownership).map(|()| Answer::Done),
        Errand::Device { path } => device(path).map(Answer::Device),
        Errand::Mount { nfs, target } => nfs::mount(nfs, target).map(|()| Answer::Done),
        Errand::TearDown { volumes } => tear_down::tear_down_in(volumes).map(|()| Answer::Done),
        Errand::Empty { path } => Ok(remove::empty_directory(path).map(|()| Answer::Done)?),
    }
}

fn directory(path: &Path) -> Result<PathBuf, VolumeError> {
    let resolved = fs::canonicalize(path).map_err(io_error("resolve", path))?;
    match fs::symlink_metadata(&resolved).map_err(io_error("examine", &resolved))?.is_dir() {
        true => Ok(resolved),
        false => Err(VolumeError::Invalid {
            field: "local.path",
            message: format!(
                "{} is not a directory; a device is given to containers with volumeMode Block",
                path.display()
            ),
        }),
    }
}

fn device(path: &Path) -> Result<BlockDevice, VolumeError> {
    let metadata = fs::metadata(path).map_err(io_error("examine", path))?;
    if !metadata.file_type().is_block_device() {
        let message = format!("{} is not a block device", path.display());
        return Err(VolumeError::Invalid { field: "local.path", message });
    }
    let (major, minor) = node::device_number(metadata.rdev());
    let mode = metadata.mode() & 0o7777;
    Ok(BlockDevice { major, minor, mode, uid: metadata.uid(), gid: metadata.gid() })
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errands_are_answered_or_say_why_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let path = root.join("directory");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        fs::create_dir_all(path.join("a/b")).unwrap();
        assert_eq!(perform(&Errand::Directory { path: path.clone() }).unwrap(), Answer::Path(path.clone()));
        let said = |errand: Errand| chain(&perform(&errand).unwrap_err());
        assert!(said(Errand::Directory { path: path.join("file") }).contains("is not a directory"));
        assert!(said(Errand::Directory { path: path.join("none") }).contains("No such file"));
        assert!(said(Errand::Device { path: "/dev/null".into() }).contains("/dev/null is not a block device"));
        assert_eq!(perform(&Errand::Empty { path: path.clone() }).unwrap(), Answer::Done);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "emptied, and still there");
        let kind = "DirectoryOrCreate".to_owned();
        let made = root.join("made");
        let errand = Errand::HostPath { path: made.display().to_string(), kind };
        assert_eq!(perform(&errand).unwrap(), Answer::Path(made));
    }
}
