//! A copy of a program that nothing can change, to be executed any number of times.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::{
    memfd,
    mount::{self, FileSystem, attribute},
};

/// What a fault maps at a time (`fault_around_bytes` of the kernel), bytes.
const PIECE: usize = 64 * 1024;

/// Copies a program to where nobody can write: root in a container that gets hold of it by `/proc/PID/exe` neither
/// (CVE-2019-5736), nor who replaces the file on disk.
///
/// The place is a file system in memory of its own, of which nothing is left but this file: read-only as a whole, never in
/// any mount namespace, gone with the last process that uses it. Unlike a memory file it can be asked to keep the program
/// in larger pieces than pages (Linux 6.14): the faults with which a process that starts maps what it touches, 64 KiB at a
/// time, then take less than half of their time. Where there can be no such file system (no CAP_SYS_ADMIN, Linux before 5.2)
/// it is a sealed memory file.
///
/// Not in whole huge pages: a process would have all of the program mapped by a few faults, and the OOM killer, which goes by
/// what is mapped, would find every supervisor larger than its containers.
///
/// # Errors
/// Those of [`memfd::sealed_copy`].
pub fn sealed_copy(source: &File) -> io::Result<OwnedFd> {
    in_file_system(source).or_else(|_| memfd::sealed_copy(c"berth", source))
}

fn in_file_system(source: &File) -> io::Result<OwnedFd> {
    let name = Path::new("berth");
    let file_system = FileSystem::open(c"tmpfs")?;
    // A kernel without huge pages does not know the option; one before 6.14 has a file that grows in small pages.
    let _ = file_system.option("huge", "within_size".as_ref());
    let place = file_system.mount(attribute::NOSUID | attribute::NODEV)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut copy = File::from(openat(&place, name, flags, Mode::from_bits_truncate(0o500))?);
    copy_in_pieces(&mut source.try_clone()?, &mut copy)?;
    // Nothing can be executed while somebody may write to it.
    drop(copy);
    mount::set_attributes(place.as_fd(), false, attribute::RDONLY, None)?;
    file_system.make_read_only()?;
    Ok(openat(&place, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Copies so that each write is one piece of the file, at a multiple of its size: the kernel keeps it together.
fn copy_in_pieces(source: &mut File, copy: &mut File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let mut filled = 0;
        while filled < PIECE {
            match source.read(&mut piece[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        copy.write_all(&piece[..filled])?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Seek, SeekFrom},
        os::fd::AsRawFd,
        process::Command,
    };

    use super::*;

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn a_copy_is_whole_runs_and_cannot_be_changed() {
        let shell = File::open("/bin/sh").unwrap();
        let copy = in_file_system(&shell).unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        assert!(fs::read(&path).unwrap() == fs::read("/bin/sh").unwrap());
        for options in [File::options().write(true), File::options().read(true).write(true)] {
            assert_eq!(options.open(&path).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        let chmod = fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777));
        assert_eq!(chmod.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        // From a script: a program that exec'd /proc/self/fd/N itself would need the descriptor to be inherited.
        let mut clone = File::from(copy.try_clone().unwrap());
        clone.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(clone.read(&mut [0; 4]).unwrap(), 4);
        assert!(clone.write(b"x").is_err());
        let output = Command::new(&path).args(["-c", "echo it runs"]).output().unwrap();
        assert_eq!(output.stdout, b"it runs\n");
        // It belongs to no mount namespace.
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("huge=within_size"));
    }
}
