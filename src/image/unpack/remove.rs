//! Removes directory trees of any depth and shape with two open descriptors and no recursion.
//!
//! An image can nest directories deeper than the number of descriptors or the stack allows (also deeper than PATH_MAX,
//! through its own symbolic links), so a recursive removal can be made to fail. Here each subdirectory is moved up
//! beside the directory being emptied, until all are empty.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, openat, renameat},
    sys::stat::{FchmodatFlags, Mode, fchmodat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::sys::beneath;

/// Removes `path` (a directory that nobody else uses) and everything beneath it. Fine when it does not exist.
pub(in crate::image) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match beneath::open_directory(path) {
        Ok(top) => top,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A plain file among the leftovers.
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => return std::fs::remove_file(path),
        Err(error) => return Err(error),
    };
    let mut moved = Moved { prefix: format!(".removed-{}-", crate::image::random_name()), count: 0 };
    let mut done = 0u64;
    empty(top.as_fd().try_clone_to_owned()?, &top, &mut moved)?;
    while done < moved.count {
        let name = moved.name(done);
        done += 1;
        let _ = fchmodat(&top, name.as_c_str(), Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink);
        let directory = openat(
            &top,
            name.as_c_str(),
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        empty(directory, &top, &mut moved)?;
        unlinkat(&top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
    }
    std::fs::remove_dir(path)
}

/// The directories moved up so far. Their names cannot be guessed, so no name in the tree is mistaken for one.
struct Moved {
    prefix: String,
    count: u64,
}

impl Moved {
    fn name(&self, number: u64) -> CString {
        CString::new(format!("{}{number}", self.prefix)).unwrap_or_default()
    }
}

/// Unlinks the files of `directory` and moves its subdirectories to `top`.
fn empty(directory: OwnedFd, top: &OwnedFd, moved: &mut Moved) -> io::Result<()> {
    let mut stream = Dir::from_fd(directory)?;
    let mut names: Vec<(CString, Option<Type>)> = Vec::new();
    loop {
        // In batches, each read from the start: entries that vanish while readdir(3) goes on may hide others.
        names.clear();
        for entry in stream.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") && !name.starts_with(moved.prefix.as_bytes()) {
                names.push((entry.file_name().to_owned(), entry.file_type()));
            }
            if names.len() >= 1024 {
                break;
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        for (name, kind) in &names {
            if *kind != Some(Type::Directory) {
                match unlinkat(&stream, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => continue,
                    Err(Errno::EISDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // Most directories of a tree that is nearly empty go at once.
            match unlinkat(&stream, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) => continue,
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            renameat(&stream, name.as_c_str(), top, moved.name(moved.count).as_c_str())?;
            moved.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_the_descriptor_limit_goes() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        let mut current = beneath::open_directory(&victim).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&current, "d", Mode::S_IRWXU).unwrap();
            for name in ["file", "other"] {
                openat(&current, name, OFlag::O_CREAT | OFlag::O_CLOEXEC, Mode::S_IRUSR).unwrap();
            }
            current = openat(&current, "d", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        }
        std::os::unix::fs::symlink("/", victim.join("root")).unwrap();
        remove_tree(&victim).unwrap();
        assert!(!victim.exists());
        remove_tree(&victim).unwrap();
    }

    #[test]
    fn a_wide_directory_goes() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::create_dir_all(victim.join("sub/sub")).unwrap();
        for number in 0..3000 {
            std::fs::write(victim.join(format!("sub/f{number}")), "").unwrap();
        }
        remove_tree(&victim).unwrap();
        assert!(!victim.exists());
    }
}
