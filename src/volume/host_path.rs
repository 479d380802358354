//! hostPath: something of the host's own, checked against the type its manifest gives.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::{Component, Path, PathBuf},
};

use super::{VolumeError, error::io_error};
use crate::sys::{node, openat2};

/// What is at `path` on the host, with all symbolic links resolved (the host's own may be in it), so that what is
/// checked here is what is mounted later. What does not exist is created where the type says so: directories 0755
/// with those above them, files 0644 without. A path without a type is created as a directory, as runtimes do.
///
/// A server that does not answer keeps this waiting for ever: see [`resolve_remembered`].
pub fn resolve(path: &str, wanted: &str) -> Result<PathBuf, VolumeError> {
    let (asked, kind) = check(path, wanted)?;
    let found = match fs::canonicalize(asked) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && kind.create.is_some() => {
            create(asked, kind.create)?;
            fs::canonicalize(asked)
        }
        result => result,
    };
    let resolved = match found {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(mismatch(path, &kind, "it does not exist"));
        }
        Err(error) => return Err(io_error("resolve", asked)(error)),
    };
    // Not followed: the last component was no link a moment ago and must not have become one.
    let mode = fs::symlink_metadata(&resolved).map_err(io_error("examine", &resolved))?.mode();
    judge(path, &kind, resolved, mode)
}

/// As [`resolve`], for what the kernel knows without asking a disk or a server, on a file system of this machine's own
/// disks: this cannot hang. `None`: it takes more than that.
pub fn resolve_remembered(path: &str, wanted: &str) -> Option<Result<PathBuf, VolumeError>> {
    let (asked, kind) = match check(path, wanted) {
        Ok(checked) => checked,
        Err(error) => return Some(Err(error)),
    };
    let place = openat2::open_remembered(asked)?;
    let extent = node::extent(place.as_fd(), c"").ok()?;
    // A file system without a device may be a server's, or a program's that does not answer.
    if extent.device.0 == 0 {
        return None;
    }
    let resolved = fs::read_link(openat2::name_of(place.as_fd())).ok()?;
    // Deleted meanwhile, or not below the root.
    let reachable = resolved.is_absolute() && !resolved.as_os_str().as_bytes().ends_with(b" (deleted)");
    reachable.then(|| judge(path, &kind, resolved, extent.mode))
}

/// What can be said of a hostPath without looking at the host.
fn check<'p>(path: &'p str, wanted: &str) -> Result<(&'p Path, Kind), VolumeError> {
    let asked = Path::new(path);
    let invalid = |message: String| VolumeError::Invalid { field: "hostPath.path", message };
    if !asked.is_absolute() || path.contains('\0') {
        return Err(invalid(format!("{path:?} is not an absolute path")));
    }
    if asked.components().any(|part| part == Component::ParentDir) {
        return Err(invalid(format!("invalid HostPath `{path}`: must not contain '..'")));
    }
    let kind = Kind::parse(wanted).ok_or_else(|| VolumeError::Invalid {
        field: "hostPath.type",
        message: format!("{wanted} is an invalid volume type"),
    })?;
    Ok((asked, kind))
}

/// Whether what was found (by its `st_mode`) is what the type says.
fn judge(path: &str, kind: &Kind, resolved: PathBuf, mode: u32) -> Result<PathBuf, VolumeError> {
    let found = mode & libc::S_IFMT;
    if found == libc::S_IFLNK || !(kind.matches)(found) {
        return Err(mismatch(path, kind, &format!("it's a {}", name(found))));
    }
    Ok(resolved)
}

/// Upstream's sentence, and what is there instead.
fn mismatch(path: &str, kind: &Kind, instead: &str) -> VolumeError {
    VolumeError::HostPathType(format!("hostPath type check failed: {path} is not a {}, {instead}", kind.name))
}

#[derive(Clone, Copy)]
enum Creation {
    Directory,
    File,
}

/// A `hostPath.type`.
struct Kind {
    /// In messages.
    name: &'static str,
    create: Option<Creation>,
    /// By the type bits of `st_mode`.
    matches: fn(u32) -> bool,
}

impl Kind {
    fn parse(wanted: &str) -> Option<Kind> {
        let directory = |found| found == libc::S_IFDIR;
        // Upstream's File is a regular file.
        let file = |found| found == libc::S_IFREG;
        let (name, create, matches): (_, _, fn(u32) -> bool) = match wanted {
            "" => ("file or directory", Some(Creation::Directory), |_| true),
            "DirectoryOrCreate" => ("directory", Some(Creation::Directory), directory),
            "Directory" => ("directory", None, directory),
            "FileOrCreate" => ("file", Some(Creation::File), file),
            "File" => ("file", None, file),
            "Socket" => ("socket file", None, |found| found == libc::S_IFSOCK),
            "CharDevice" => ("character device", None, |found| found == libc::S_IFCHR),
            "BlockDevice" => ("block device", None, |found| found == libc::S_IFBLK),
            _ => return None,
        };
        Some(Kind { name, create, matches })
    }
}

/// Types by the names they have in manifests.
fn name(found: u32) -> &'static str {
    match found {
        libc::S_IFDIR => "Directory",
        libc::S_IFREG => "File",
        libc::S_IFSOCK => "Socket",
        libc::S_IFCHR => "CharDevice",
        libc::S_IFBLK => "BlockDevice",
        libc::S_IFLNK => "symbolic link",
        _ => "named pipe",
    }
}

fn create(path: &Path, what: Option<Creation>) -> Result<(), VolumeError> {
    match what {
        Some(Creation::Directory) => {
            DirBuilder::new().mode(0o755).recursive(true).create(path).map_err(io_error("create directory", path))
        }
        Some(Creation::File) => {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
            file.map(drop).map_err(io_error("create file", path))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    };

    use super::*;

    #[test]
    fn every_type_is_checked() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir(root.join("directory")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        symlink("directory", root.join("link")).unwrap();
        symlink("nowhere", root.join("broken")).unwrap();
        let check = |path: &str, kind: &str| {
            let path = if path.starts_with('/') { PathBuf::from(path) } else { root.join(path) };
            let path = path.to_str().unwrap();
            let found = resolve(path, kind).map_err(|error| error.to_string());
            // Known without asking: the same, or not known. (Which of the two depends on what this is tested on.)
            if let Some(remembered) = resolve_remembered(path, kind) {
                assert_eq!(remembered.map_err(|error| error.to_string()), found, "{path} {kind}");
            }
            found
        };
        let good = [
            ("directory", "Directory"),
            ("directory", "DirectoryOrCreate"),
            ("file", "File"),
            ("file", "FileOrCreate"),
            ("socket", "Socket"),
            ("/dev/null", "CharDevice"),
            ("directory", ""),
            ("file", ""),
            ("socket", ""),
        ];
        for (path, kind) in good {
            assert_eq!(check(path, kind), Ok(root.join(path)), "{path} {kind}");
        }
        assert_eq!(check("link", "Directory"), Ok(root.join("directory")));
        let bad = [
            ("file", "Directory", "is not a directory, it's a File"),
            ("file", "DirectoryOrCreate", "is not a directory, it's a File"),
            ("directory", "File", "is not a file, it's a Directory"),
            ("directory", "FileOrCreate", "is not a file, it's a Directory"),
            ("socket", "File", "is not a file, it's a Socket"),
            ("file", "Socket", "is not a socket file, it's a File"),
            ("file", "CharDevice", "is not a character device, it's a File"),
            ("/dev/null", "BlockDevice", "is not a block device, it's a CharDevice"),
            ("none", "Directory", "is not a directory, it does not exist"),
            ("none/x", "File", "is not a file, it does not exist"),
            ("broken", "File", "is not a file, it does not exist"),
        ];
        for (path, kind, end) in bad {
            let path_text = if path.starts_with('/') { path.to_owned() } else { root.join(path).display().to_string() };
            assert_eq!(check(path, kind), Err(format!("hostPath type check failed: {path_text} {end}")));
        }
        assert!(check("file", "Pipe").unwrap_err().contains("Pipe is an invalid volume type"));
        assert!(resolve("relative", "").unwrap_err().to_string().contains("not an absolute path"));
        assert!(resolve("/a/../b", "").unwrap_err().to_string().contains("must not contain '..'"));
    }

    #[test]
    fn what_is_missing_is_created_only_where_the_type_says_so() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name).display().to_string();
        resolve(&at("a/b"), "DirectoryOrCreate").unwrap();
        assert_eq!(fs::metadata(root.join("a/b")).unwrap().permissions().mode() & 0o777, 0o755);
        resolve(&at("c"), "FileOrCreate").unwrap();
        assert_eq!(fs::metadata(root.join("c")).unwrap().permissions().mode() & 0o777, 0o644);
        // The directory of a file is not created, as documented upstream.
        let error = resolve(&at("d/e"), "FileOrCreate").unwrap_err();
        assert!(matches!(error, VolumeError::Io { step: "create file", .. }));
        resolve(&at("plain"), "").unwrap();
        assert!(root.join("plain").is_dir());
        for kind in ["Directory", "File", "Socket", "CharDevice", "BlockDevice"] {
            assert!(resolve(&at("none"), kind).is_err());
        }
        assert!(!root.join("none").exists());
    }
}
