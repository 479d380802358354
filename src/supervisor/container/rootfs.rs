//! The container's root: an overlay of its image's layers and its own writable directory.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use super::error::{Failure, Step};
use crate::{
    supervisor::spec::RootfsSpec,
    sys::{
        mount::{self, FileSystem, MAX_OPTION},
        openat2::name_of,
    },
};

/// What mount(2) takes as options: a page with its terminating zero.
const MAX_OPTIONS: usize = 4095;

/// Mounts the overlay on `spec.target` and returns its root.
pub(super) fn mount_overlay(spec: &RootfsSpec) -> Result<OwnedFd, Failure> {
    let step = || format!("mount overlay on {}", spec.target.display());
    let target = mount::open_place(&spec.target).step(step)?;
    let file_system = FileSystem::open(c"overlay").step(step)?;
    match configure(&file_system, spec) {
        Ok(()) => {}
        // An overlay before Linux 6.8 takes its layers as one string only.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return mount_by_string(spec).step(step),
        Err(error) => return Err(error).step(step),
    }
    let root = file_system.mount(0).map_err(|source| Failure {
        message: file_system.complaint().map(|complaint| format!("{}: {complaint}", super::error::describe(&source))),
        ..Err::<(), _>(source).step(step).unwrap_err()
    })?;
    mount::attach(root.as_fd(), target.as_fd()).step(step)?;
    Ok(root)
}

fn configure(file_system: &FileSystem, spec: &RootfsSpec) -> io::Result<()> {
    file_system.option("source", OsStr::new("overlay"))?;
    for layer in &spec.lower {
        set_path(file_system, "lowerdir+", layer, false)?;
    }
    set_path(file_system, "upperdir", &spec.upper, true)?;
    set_path(file_system, "workdir", &spec.work, true)?;
    // The writable directory lives and dies with the attempt, so nothing in it needs to survive a crash. Without
    // `volatile` the end of the last process in it would sync the whole file system it is on.
    // A kernel that does not know the option (before 5.10) syncs; that is slower and otherwise the same.
    let _ = file_system.flag("volatile");
    Ok(())
}

/// Sets an option to a path. One that is longer than the kernel takes is named by a descriptor, which may be closed
/// as soon as the overlay has looked it up.
fn set_path(file_system: &FileSystem, key: &str, path: &Path, escape: bool) -> io::Result<()> {
    let text = if escape { escaped(path, b"\\") } else { path.as_os_str().to_owned() };
    if text.len() <= MAX_OPTION {
        return file_system.option(key, &text);
    }
    let place = mount::open_place(path)?;
    file_system.option(key, &name_of(place.as_fd()))
}

fn mount_by_string(spec: &RootfsSpec) -> io::Result<OwnedFd> {
    let options = options(spec.lower.iter().map(|layer| escaped(layer, b"\\:,")), spec);
    if options.len() <= MAX_OPTIONS {
        mount::mount_overlay(&spec.target, &options)?;
        return mount::open_place(&spec.target);
    }
    // Too many layers for their names: 17 bytes each suffice when descriptors name them.
    let places = spec.lower.iter().map(|layer| mount::open_place(layer)).collect::<io::Result<Vec<_>>>()?;
    let options = self::options(places.iter().map(|place| name_of(place.as_fd())), spec);
    if options.len() > MAX_OPTIONS {
        return Err(io::Error::other(format!("{} layers are more than this kernel takes", spec.lower.len())));
    }
    mount::mount_overlay(&spec.target, &options)?;
    mount::open_place(&spec.target)
}

fn options(layers: impl Iterator<Item = OsString>, spec: &RootfsSpec) -> OsString {
    let mut options = OsString::from("lowerdir=");
    for (index, layer) in layers.enumerate() {
        if index > 0 {
            options.push(":");
        }
        options.push(layer);
    }
    for (key, path) in [(",upperdir=", &spec.upper), (",workdir=", &spec.work)] {
        options.push(key);
        options.push(escaped(path, b"\\,"));
    }
    options
}

/// A path with a backslash before each of `special`, as overlayfs reads its options.
fn escaped(path: &Path, special: &[u8]) -> OsString {
    let mut text = Vec::with_capacity(path.as_os_str().len());
    for byte in path.as_os_str().as_bytes() {
        if special.contains(byte) {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    OsString::from_vec(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_escape_what_overlayfs_gives_a_meaning() {
        let spec = RootfsSpec {
            lower: vec!["/layers/a:b".into(), "/layers/c,d".into()],
            upper: "/pods/x\\y/upper".into(),
            work: "/pods/work".into(),
            target: "/pods/root".into(),
            readonly: false,
        };
        let options = options(spec.lower.iter().map(|layer| escaped(layer, b"\\:,")), &spec);
        assert_eq!(options, "lowerdir=/layers/a\\:b:/layers/c\\,d,upperdir=/pods/x\\\\y/upper,workdir=/pods/work");
    }
}
