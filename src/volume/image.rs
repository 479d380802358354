//! image volumes (KEP-4639): what is in an image, mounted so that it can be read and nothing else.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use super::{VolumeError, empty_dir, error::io_error, mount_table};
use crate::{
    store::layout::PodDirs,
    sys::{
        mount::{self, FileSystem, attribute},
        openat2::name_of,
    },
};

/// Upstream's name of the plug-in, part of the path.
const PLUGIN: &str = "kubernetes.io/image";

/// `ro` and `noexec` are what upstream promises; devices and set-user-ID bits of an image have no business either.
const ATTRIBUTES: u64 = attribute::RDONLY | attribute::NOEXEC | attribute::NOSUID | attribute::NODEV;

/// What a mount takes as options: a page with its terminating zero.
const MAX_OPTIONS: usize = 4095;

/// Mounts the layers (topmost first, at least one) at the volume's place, unless something is mounted there.
pub fn set_up(name: &str, layers: &[PathBuf], dirs: &PodDirs) -> Result<PathBuf, VolumeError> {
    let path = dirs.volume(PLUGIN, name);
    empty_dir::create(&path)?;
    let mounts = mount_table::beneath(&path).map_err(io_error("read the mount table for", &path))?;
    if mounts.is_empty() {
        mount_layers(layers, &path).map_err(io_error("mount the image on", &path))?;
    }
    Ok(path)
}

fn mount_layers(layers: &[PathBuf], path: &Path) -> io::Result<()> {
    let place = mount::open_place(path)?;
    match layers {
        [] => Err(io::Error::other("the image has no layers")),
        [only] => mount::attach(bind(only)?.as_fd(), place.as_fd()),
        several => {
            let places = several.iter().map(|layer| mount::open_place(layer)).collect::<io::Result<Vec<_>>>()?;
            let names: Vec<OsString> = places.iter().map(|place| name_of(place.as_fd())).collect();
            match overlay(&names) {
                // Before Linux 6.8 an overlay takes its layers as one string only.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    overlay_by_string(&names, path).map_err(|_| error)
                }
                tree => mount::attach(tree?.as_fd(), place.as_fd()),
            }
        }
    }
}

fn bind(layer: &Path) -> io::Result<OwnedFd> {
    let tree = mount::clone_tree(mount::open_place(layer)?.as_fd(), false)?;
    mount::set_attributes(tree.as_fd(), false, ATTRIBUTES, Some(mount::PropagationType::Private))?;
    Ok(tree)
}

/// An overlay without a writable layer.
fn overlay(names: &[OsString]) -> io::Result<OwnedFd> {
    let file_system = FileSystem::open(c"overlay")?;
    file_system.option("source", OsStr::new("overlay"))?;
    names.iter().try_for_each(|name| file_system.option("lowerdir+", name))?;
    file_system.mount(ATTRIBUTES)
}

fn overlay_by_string(names: &[OsString], path: &Path) -> io::Result<()> {
    let mut options = b"lowerdir=".to_vec();
    options.extend(names.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b':'));
    if options.len() > MAX_OPTIONS {
        return Err(io::Error::other(format!("{} layers are more than this kernel takes", names.len())));
    }
    mount::mount_overlay(path, OsStr::from_bytes(&options))?;
    mount::set_attributes(mount::open_place(path)?.as_fd(), false, ATTRIBUTES, None)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::volume::tear_down::{
        tear_down,
        testing::{dirs, with_own_mounts},
    };

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn layers_are_seen_as_one_and_can_only_be_read() {
        with_own_mounts(|root| {
            let layers: Vec<PathBuf> = ["top", "middle", "bottom"].map(|name| root.join(name)).to_vec();
            for layer in &layers {
                fs::create_dir(layer).unwrap();
                fs::write(layer.join("same"), layer.file_name().unwrap().as_bytes()).unwrap();
                fs::write(layer.join(layer.file_name().unwrap()), "").unwrap();
            }
            fs::write(layers[0].join("program"), "#!/bin/sh\n").unwrap();
            fs::set_permissions(layers[0].join("program"), fs::Permissions::from_mode(0o755)).unwrap();
            let dirs = dirs(root, "u");
            for (name, count) in [("one", 1), ("all", 3)] {
                let path = set_up(name, &layers[..count], &dirs).unwrap();
                assert_eq!(fs::read_to_string(path.join("same")).unwrap(), "top");
                assert_eq!(path.join("bottom").exists(), count == 3);
                let error = fs::write(path.join("new"), "").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{name}");
                let run = std::process::Command::new(path.join("program")).status().unwrap_err();
                assert_eq!(run.raw_os_error(), Some(libc::EACCES), "{name}");
                assert_eq!(set_up(name, &layers[..count], &dirs).unwrap(), path);
                assert_eq!(mount_table::beneath(&path).unwrap().len(), 1, "mounted once");
            }
            overlay_by_string(
                &layers.iter().map(|layer| layer.clone().into_os_string()).collect::<Vec<_>>(),
                &root.join("bottom"),
            )
            .unwrap();
            assert!(root.join("bottom/middle").exists(), "as older kernels mount it");
            tear_down(&dirs).unwrap();
            assert!(!dirs.volumes().exists());
            assert!(layers[0].join("same").exists(), "the layers stay");
        });
    }
}
