//! What only somebody on the host can put in place for a runtime: the root, and the sources of binds.
//!
//! A runtime takes both by path, and a path can be swapped under its hands (a subPath above all). So they are opened here
//! as for a container of the supervisor's own, made into mounts with all their flags, and put in a place of ours that the
//! runtime is told of. All of it is in a mount namespace of this process, from which the runtime's is copied: the host
//! never sees these mounts, and none is left when the last process in the namespace has ended, however that came about.

use std::{
    fs::{self, DirBuilder, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use crate::{
    supervisor::{
        container::{
            bind,
            error::{Failure, Step},
            rootfs,
            target::{Missing, resolve_or_create},
        },
        spec::{HandlerSpec, LaunchSpec, MountKind},
    },
    sys::{
        mount::{self, FileSystem, attribute},
        node,
    },
};

/// What has been put in place.
pub(super) struct Staged {
    /// The container's root.
    pub(super) root: OwnedFd,
    /// For each mount of the container, in order: where the source of a bind is.
    pub(super) sources: Vec<Option<PathBuf>>,
}

/// Mounts the root and the sources of binds, in the mount namespace of the caller.
pub(super) fn stage(spec: &LaunchSpec, handler: &HandlerSpec) -> Result<Staged, Failure> {
    // While mounts still belong to the groups that their propagation is to follow.
    let mut opened = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        opened.push(match &mount.kind {
            MountKind::Bind { source, sub_path } => Some(bind::open(mount, source, sub_path.as_deref(), None)?),
            _ => None,
        });
    }
    mount::make_all_slave().step(|| "make all mounts slaves")?;
    let root = rootfs::mount_overlay(&spec.rootfs)?;
    // Not every runtime makes it. Whether it can be entered is for the runtime to say.
    let _ = resolve_or_create(root.as_fd(), &spec.cwd, Missing::Directory);

    let directory = handler.bundle.join("sources");
    let step = || format!("mount tmpfs on {}", directory.display());
    make_directory(&directory).step(step)?;
    let file_system = FileSystem::open(c"tmpfs").step(step)?;
    for (key, value) in [("source", "sources"), ("mode", "0700")] {
        file_system.option(key, value.as_ref()).step(step)?;
    }
    let tree = file_system.mount(attribute::NOSUID | attribute::NODEV | attribute::NOEXEC).step(step)?;
    mount::open_place(&directory).and_then(|place| mount::attach(tree.as_fd(), place.as_fd())).step(step)?;
    let mut sources = Vec::with_capacity(opened.len());
    for (number, source) in opened.into_iter().enumerate() {
        let Some(source) = source else {
            sources.push(None);
            continue;
        };
        let place = directory.join(number.to_string());
        let made = if source.is_directory {
            node::make_directory(tree.as_fd(), Path::new(&number.to_string()), 0o700)
        } else {
            File::create(&place).map(drop)
        };
        let attached = made.and_then(|()| mount::attach(source.tree.as_fd(), mount::open_place(&place)?.as_fd()));
        attached.step(|| format!("bind {}", place.display()))?;
        sources.push(Some(place));
    }
    Ok(Staged { root, sources })
}

/// Makes a directory of root's alone, unless there is one.
pub(super) fn make_directory(path: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && fs::metadata(path)?.is_dir() => Ok(()),
        made => made,
    }
}
