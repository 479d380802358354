//! Places inside a container's root: found, or made when missing, without ever leaving it.
//!
//! The image decides what lies on the way, and a volume shared with a running container may change under our feet.
//! So every look-up is one openat2(2) with the container's root as its root, and whoever mounts there uses the
//! descriptor, never the path again.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use crate::sys::{
    node,
    openat2::{Scope, openat2, purpose},
};

/// What to make when there is nothing at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum Missing {
    /// A directory, 0755.
    Directory,
    /// An empty file, 0644, in a directory that is made as well.
    File,
}

/// Dangling links that are followed by hand, as many as the kernel follows of the others (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Opens the place at `path` beneath `root` (O_PATH). Links are followed with `root` as their root.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    openat2(root, path, purpose::PLACE, 0, Scope::InRoot)
}

/// Opens the place at `path` beneath `root`, where no component may be a link.
pub(super) fn resolve_without_links(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    openat2(root, relative(path), purpose::PLACE, 0, Scope::NoLinks)
}

/// As [`resolve`]; what is missing is made. A link to something that does not exist (an image's /etc/resolv.conf often
/// is one) leads to where it points, beneath `root`.
pub(in crate::supervisor) fn resolve_or_create(
    root: BorrowedFd<'_>,
    path: &Path,
    missing: Missing,
) -> io::Result<OwnedFd> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let not_found = match resolve(root, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            found => return found,
        };
        let (parent, prefix, rest) = deepest_existing(root, &path)?;
        // Nothing can be made there, and its links are no paths: what they say is how the host names a file.
        if node::is_on_proc(parent.as_fd())? {
            return Err(not_found);
        }
        let mut rest_components = rest.components();
        let Some(Component::Normal(name)) = rest_components.next() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match node::read_link(parent.as_fd(), Path::new(name)) {
            // An absolute destination replaces the prefix, as `join` has it.
            Ok(destination) => path = prefix.join(destination).join(rest_components.as_path()),
            Err(_) => match create(parent, &rest, missing) {
                // Someone else has just made it, or put a link there: look again.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created,
            },
        }
    }
    Err(io::Error::other("too many symbolic links or changes on the way"))
}

/// The longest leading part of `path` that exists as a directory, opened; that part; and the rest.
fn deepest_existing(root: BorrowedFd<'_>, path: &Path) -> io::Result<(OwnedFd, PathBuf, PathBuf)> {
    for prefix in path.ancestors().skip(1) {
        let shown = if prefix.as_os_str().is_empty() { Path::new("/") } else { prefix };
        match openat2(root, shown, purpose::DIRECTORY, 0, Scope::InRoot) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => {
                let rest = path.strip_prefix(prefix).unwrap_or(path).to_path_buf();
                return Ok((found?, shown.to_path_buf(), rest));
            }
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Makes all of `rest` beneath `directory`; none of it may exist.
fn create(directory: OwnedFd, rest: &Path, missing: Missing) -> io::Result<OwnedFd> {
    let mut directory = directory;
    let mut components = rest.components().peekable();
    while let Some(component) = components.next() {
        // `..` behind something that does not exist is nothing that a path in a pod should say.
        let Component::Normal(name) = component else { return Err(io::ErrorKind::InvalidInput.into()) };
        let name = Path::new(name);
        if components.peek().is_none() && missing == Missing::File {
            return openat2(directory.as_fd(), name, purpose::NEW_FILE, 0o644, Scope::NoLinks);
        }
        node::make_directory(directory.as_fd(), name, 0o755)?;
        directory = openat2(directory.as_fd(), name, purpose::DIRECTORY, 0, Scope::NoLinks)?;
    }
    Ok(directory)
}

/// A path without its leading slash; `.` for the root itself.
pub(super) fn relative(path: &Path) -> &Path {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::symlink,
    };

    use super::*;

    fn root() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let root = File::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let (directory, root) = root();
        resolve_or_create(root.as_fd(), Path::new("/a/b/c"), Missing::Directory).unwrap();
        resolve_or_create(root.as_fd(), Path::new("/a/b/d/file"), Missing::File).unwrap();
        resolve_or_create(root.as_fd(), Path::new("/a/b"), Missing::Directory).unwrap();
        assert!(directory.path().join("a/b/c").is_dir());
        assert!(directory.path().join("a/b/d/file").is_file());
    }

    #[test]
    fn dangling_links_lead_to_where_they_point_inside_the_root() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", directory.path().join("etc/resolv.conf")).unwrap();
        symlink("/run", directory.path().join("var-run")).unwrap();
        resolve_or_create(root.as_fd(), Path::new("/etc/resolv.conf"), Missing::File).unwrap();
        resolve_or_create(root.as_fd(), Path::new("/var-run/secrets/token"), Missing::Directory).unwrap();
        assert!(directory.path().join("run/systemd/resolve/stub-resolv.conf").is_file());
        assert!(directory.path().join("run/secrets/token").is_dir());
    }

    #[test]
    fn links_that_point_upwards_or_at_themselves_stay_inside_or_fail() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), directory.path().join("absolute")).unwrap();
        symlink("../../../../../../escaped", directory.path().join("upwards")).unwrap();
        symlink("loop", directory.path().join("loop")).unwrap();
        resolve_or_create(root.as_fd(), Path::new("/absolute/made"), Missing::Directory).unwrap();
        resolve_or_create(root.as_fd(), Path::new("/upwards"), Missing::Directory).unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(directory.path().join("escaped").is_dir());
        assert!(resolve_or_create(root.as_fd(), Path::new("/loop/x"), Missing::Directory).is_err());
        assert!(resolve_or_create(root.as_fd(), Path::new("/none/../../x"), Missing::Directory).is_err());
    }

    #[test]
    fn a_file_on_the_way_is_an_error() {
        let (directory, root) = root();
        fs::write(directory.path().join("file"), "").unwrap();
        let error = resolve_or_create(root.as_fd(), Path::new("/file/x"), Missing::Directory).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
