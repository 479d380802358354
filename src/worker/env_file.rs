//! Reads the files of variables that containers wrote into volumes of their pod.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::OFlag};

use crate::sys::beneath;

/// Largest file of variables, in bytes: whoever wrote it must not fill the agent's memory.
const LIMIT: u64 = 1 << 20;

/// Why such a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    /// The volume itself.
    #[error("open {path}: {source}")]
    Volume {
        /// Its place on the host.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file.
    #[error("open it: {0}")]
    Open(Errno),
    /// Something else has its name.
    #[error("it is not a regular file")]
    NotAFile,
    /// Over the limit.
    #[error("it has more than {LIMIT} bytes")]
    TooLarge,
    /// A read failed.
    #[error("read it: {0}")]
    Read(io::Error),
}

/// Reads `path` beneath the volume at `root`, whatever links its writer has put there; `None` if there is no such file.
pub fn read(root: &Path, path: &Path) -> Result<Option<Vec<u8>>, EnvFileError> {
    let root =
        beneath::open_directory(root).map_err(|source| EnvFileError::Volume { path: root.to_owned(), source })?;
    // Only looked at: opening a pipe would wait for its writer, and opening some devices is an act.
    let place = match beneath::open_in_root(&root, path, OFlag::O_PATH) {
        Ok(place) => File::from(place),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(EnvFileError::Open(error)),
    };
    if !place.metadata().map_err(EnvFileError::Read)?.is_file() {
        return Err(EnvFileError::NotAFile);
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(EnvFileError::Read)?;
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(EnvFileError::Read)?;
    if bytes.len() as u64 > LIMIT {
        return Err(EnvFileError::TooLarge);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn only_files_of_the_volume_are_read() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "no").unwrap();
        let volume = outside.path().join("volume");
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(volume.join("sub/vars"), "A='1'").unwrap();
        symlink("sub/vars", volume.join("inside")).unwrap();
        symlink("/sub/vars", volume.join("absolute")).unwrap();
        symlink("../secret", volume.join("up")).unwrap();
        symlink(outside.path().join("secret"), volume.join("away")).unwrap();
        symlink("loop", volume.join("loop")).unwrap();
        nix::unistd::mkfifo(&volume.join("pipe"), Mode::S_IRWXU).unwrap();
        File::create(volume.join("large")).unwrap().set_len(LIMIT + 1).unwrap();

        let of = |path: &str| read(&volume, Path::new(path));
        for path in ["sub/vars", "inside", "absolute", "./sub//vars"] {
            assert_eq!(of(path).unwrap().as_deref(), Some(&b"A='1'"[..]), "{path}");
        }
        for path in ["none", "sub/vars/x", "up", "away"] {
            assert_eq!(of(path).unwrap(), None, "{path}: what is outside is not there");
        }
        assert!(matches!(of("pipe"), Err(EnvFileError::NotAFile)));
        assert!(matches!(of("sub"), Err(EnvFileError::NotAFile)));
        assert!(matches!(of("large"), Err(EnvFileError::TooLarge)));
        assert!(matches!(of("loop"), Err(EnvFileError::Open(Errno::ELOOP))));
        assert!(matches!(read(&volume.join("gone"), Path::new("x")), Err(EnvFileError::Volume { .. })));
    }
}
