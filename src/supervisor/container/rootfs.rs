//! The container's root: an overlay of its image's layers and its own writable directory.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
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
    match configure(&file_system, spec).and_then(|()| file_system.mount(0)) {
        Ok(root) => {
            mount::attach(root.as_fd(), target.as_fd()).step(step)?;
            Ok(root)
        }
        Err(source) => {
            let failure = Failure::of_file_system(step(), source, &file_system);
            // An overlay before Linux 6.8 takes its layers as one string only. Where that fails as well, the first
            // failure is the one that says more.
            let is_old = failure.source.as_ref().is_some_and(|source| source.kind() == io::ErrorKind::InvalidInput);
            if is_old { mount_by_string(spec).map_err(|_| failure) } else { Err(failure) }
        }
    }
}

fn configure(file_system: &FileSystem, spec: &RootfsSpec) -> io::Result<()> {
    file_system.option("source", OsStr::new("overlay"))?;
    for layer in &spec.lower {
        set_path(file_system, "lowerdir+", layer, false)?;
    }
    set_path(file_system, "upperdir", &spec.upper, true)?;
    set_path(file_system, "workdir", &spec.work, true)?;
    // The writable directory lives and dies with the attempt, so nothing in it needs to survive a crash. Without this
    // option (Linux 5.10) the end of the last process in it would sync the whole file system it is on.
    file_system.flag("volatile")
}

/// Makes the overlay the root of the process and all that it becomes, and lets go of the host's.
pub(super) fn enter(root: BorrowedFd<'_>, spec: &RootfsSpec) -> Result<(), Failure> {
    mount::enter_root(root).step(|| format!("pivot_root into {}", spec.target.display())).map_err(|failure| {
        let is_refused = failure.source.as_ref().is_some_and(|source| source.kind() == io::ErrorKind::InvalidInput);
        // All that can be wrong with the new root has been ruled out by making it.
        let message = is_refused.then(|| {
            "invalid argument: the machine's root must not be the initial ramfs (see switch_root(8))".to_owned()
        });
        Failure { message, ..failure }
    })
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
    options.push(",volatile");
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
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::sys::session::{self, namespace};

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn layers_can_be_given_as_a_string_however_many_they_are() {
        // A thread may have a mount namespace of its own; the others stay where they are.
        let mounting = std::thread::spawn(|| {
            session::leave(namespace::MOUNT).unwrap();
            mount::make_all_slave().unwrap();
            let directory = tempfile::tempdir().unwrap();
            for count in [2, 60] {
                let path = |name: &str| {
                    let path = directory.path().join(format!("{count}-{}-{name}", "x".repeat(100)));
                    fs::create_dir(&path).unwrap();
                    path
                };
                let lower: Vec<PathBuf> = (0..count).map(|layer| path(&format!("a:b,{layer}"))).collect();
                fs::write(lower[count - 1].join("lowest"), "").unwrap();
                let (upper, work, target) = (path("upper"), path("work"), path("target"));
                let spec = RootfsSpec { lower, upper, work, target, readonly: false };
                mount_by_string(&spec).unwrap();
                assert!(spec.target.join("lowest").exists());
                fs::write(spec.target.join("new"), "").unwrap();
                assert!(spec.upper.join("new").exists());
                // The directories go while the namespace, which this thread takes along, still has the mounts.
                mount::detach(&spec.target).unwrap();
            }
        });
        mounting.join().unwrap();
    }

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
        assert_eq!(
            options,
            "lowerdir=/layers/a\\:b:/layers/c\\,d,upperdir=/pods/x\\\\y/upper,workdir=/pods/work,volatile"
        );
    }
}
