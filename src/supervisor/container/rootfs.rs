//! The container's root: an overlay of its image's layers and its own writable directory.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use super::error::{Failure, Step};
use crate::{
    supervisor::spec::RootfsSpec,
    sys::{
        mount::{self, FileSystem, MAX_OPTION},
        node,
        openat2::{Scope, name_of, openat2, purpose},
    },
};

/// What mount(2) takes as options: a page with its terminating zero.
const MAX_OPTIONS: usize = 4095;

/// A directory of the overlay, as it is named to the kernel.
enum Place<'a> {
    Path(&'a Path),
    /// Seen through a mount that has no path that everybody could walk.
    Descriptor(OwnedFd),
}

impl Place<'_> {
    /// The name, with a backslash before each of `special`.
    fn name(&self, special: &[u8]) -> OsString {
        match self {
            Place::Path(path) => escaped(path, special),
            Place::Descriptor(place) => name_of(place.as_fd()),
        }
    }
}

/// All directories of the overlay.
struct Places<'a> {
    /// Topmost first.
    lower: Vec<Place<'a>>,
    upper: Place<'a>,
    work: Place<'a>,
}

impl<'a> Places<'a> {
    fn plain(spec: &'a RootfsSpec) -> Places<'a> {
        Places {
            lower: spec.lower.iter().map(|layer| Place::Path(layer)).collect(),
            upper: Place::Path(&spec.upper),
            work: Place::Path(&spec.work),
        }
    }

    /// The same, their owners mapped to the user namespace behind `users`. One mapped mount of the directory above all
    /// layers serves however many there are: each mount taken and given up holds locks that all of the machine's
    /// mounts share.
    fn mapped(spec: &RootfsSpec, users: BorrowedFd<'_>) -> io::Result<Places<'static>> {
        let mut layers = Vec::new();
        let above = common_parent(&spec.lower);
        let shared = Mapped::new(&above, &spec.target, users)?;
        for layer in &spec.lower {
            let place = match shared.open(layer)? {
                Some(place) => place,
                // Something is mounted on the way to it.
                None => Mapped::new(layer, &spec.target, users)?.tree,
            };
            layers.push(Place::Descriptor(place));
        }
        // The kernel wants these two within one mount.
        let above = common_parent([&spec.upper, &spec.work]);
        let writable = Mapped::new(&above, &spec.target, users)?;
        let open = |path: &Path| {
            writable.open(path)?.map(Place::Descriptor).ok_or_else(|| {
                io::Error::other(format!("{} is on another mount than {}", path.display(), above.display()))
            })
        };
        Ok(Places { lower: layers, upper: open(&spec.upper)?, work: open(&spec.work)? })
    }
}

/// A mapped copy of the mount that a directory is in, with that directory as its root.
struct Mapped<'a> {
    tree: OwnedFd,
    directory: &'a Path,
    /// Number of the mount it is a copy of.
    mount: u64,
}

impl<'a> Mapped<'a> {
    /// It is attached to `anywhere`, on top of whatever is there: kernels before 6.15 take no detached layers.
    fn new(directory: &'a Path, anywhere: &Path, users: BorrowedFd<'_>) -> io::Result<Mapped<'a>> {
        let place = mount::open_place(directory)?;
        let tree = mount::clone_tree(place.as_fd(), false)?;
        mount::set_id_map(tree.as_fd(), false, users)?;
        mount::attach(tree.as_fd(), mount::open_place(anywhere)?.as_fd())?;
        Ok(Mapped { tree, directory, mount: node::mount_id(place.as_fd())? })
    }

    /// `path` within it; `None` when it is on another mount.
    fn open(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        if node::mount_id(mount::open_place(path)?.as_fd())? != self.mount {
            return Ok(None);
        }
        let below = path.strip_prefix(self.directory).map_err(io::Error::other)?;
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        openat2(self.tree.as_fd(), below, purpose::DIRECTORY, 0, Scope::NoLinks).map(Some)
    }
}

/// The longest path above all of `paths`, which are absolute.
fn common_parent<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> PathBuf {
    let mut paths = paths.into_iter();
    let mut common = paths.next().and_then(|path| path.parent()).unwrap_or(Path::new("/"));
    for path in paths {
        while !path.starts_with(common) || path == common {
            common = common.parent().unwrap_or(Path::new("/"));
        }
    }
    common.to_path_buf()
}

/// Mounts the overlay on `spec.target` and returns its root.
pub(in crate::supervisor) fn mount_overlay(spec: &RootfsSpec) -> Result<OwnedFd, Failure> {
    let step = || format!("mount overlay on {}", spec.target.display());
    let target = mount::open_place(&spec.target).step(step)?;
    let places = Places::plain(spec);
    match make(spec, &places)? {
        Made::Detached(root) => {
            mount::attach(root.as_fd(), target.as_fd()).step(step)?;
            Ok(root)
        }
        Made::OnTarget => mount::open_place(&spec.target).step(step),
    }
}

/// Makes the overlay with all owners mapped to the user namespace behind `users`, as a detached mount. What it needs on
/// the way is mounted on `spec.target`, in a mount namespace that the caller gives up afterwards.
pub(super) fn make_mapped_overlay(spec: &RootfsSpec, users: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let step = || "map the owners of the image's layers";
    let places = Places::mapped(spec, users).step(step).map_err(|failure| {
        let is_unknown = failure.source.as_ref().is_some_and(|source| source.kind() == io::ErrorKind::InvalidInput);
        let message = is_unknown.then(|| {
            "the file system of the images and pods does not support idmapped mounts, which hostUsers: false needs"
                .to_owned()
        });
        Failure { message, ..failure }
    })?;
    match make(spec, &places)? {
        Made::Detached(root) => Ok(root),
        Made::OnTarget => mount::open_place(&spec.target)
            .and_then(|root| mount::clone_tree(root.as_fd(), false))
            .step(|| "detach the overlay"),
    }
}

/// Where a new overlay is.
enum Made {
    Detached(OwnedFd),
    OnTarget,
}

fn make(spec: &RootfsSpec, places: &Places<'_>) -> Result<Made, Failure> {
    let step = || format!("mount overlay on {}", spec.target.display());
    let file_system = FileSystem::open(c"overlay").step(step)?;
    match configure(&file_system, places).and_then(|()| file_system.mount(0)) {
        Ok(root) => Ok(Made::Detached(root)),
        Err(source) => {
            let failure = Failure::of_file_system(step(), source, &file_system);
            // An overlay before Linux 6.8 takes its layers as one string only. Where that fails as well, the first
            // failure is the one that says more.
            let is_old = failure.source.as_ref().is_some_and(|source| source.kind() == io::ErrorKind::InvalidInput);
            match is_old && mount_by_string(spec, places).is_ok() {
                true => Ok(Made::OnTarget),
                false => Err(failure),
            }
        }
    }
}

fn configure(file_system: &FileSystem, places: &Places<'_>) -> io::Result<()> {
    file_system.option("source", OsStr::new("overlay"))?;
    for layer in &places.lower {
        set_place(file_system, "lowerdir+", layer, b"")?;
    }
    set_place(file_system, "upperdir", &places.upper, b"\\")?;
    set_place(file_system, "workdir", &places.work, b"\\")?;
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

/// Sets an option to a place. A path that is longer than the kernel takes is named by a descriptor, which may be closed
/// as soon as the overlay has looked it up.
fn set_place(file_system: &FileSystem, key: &str, place: &Place<'_>, special: &[u8]) -> io::Result<()> {
    match (place, place.name(special)) {
        (Place::Path(path), name) if name.len() > MAX_OPTION => {
            let place = mount::open_place(path)?;
            file_system.option(key, &name_of(place.as_fd()))
        }
        (_, name) => file_system.option(key, &name),
    }
}

fn mount_by_string(spec: &RootfsSpec, places: &Places<'_>) -> io::Result<()> {
    let options = options(places.lower.iter().map(|layer| layer.name(b"\\:,")), places);
    if options.len() <= MAX_OPTIONS {
        return mount::mount_overlay(&spec.target, &options);
    }
    // Too many layers for their names: 17 bytes each suffice when descriptors name them.
    let mut opened = Vec::new();
    for layer in &places.lower {
        if let Place::Path(path) = layer {
            opened.push(mount::open_place(path)?);
        }
    }
    let mut opened = opened.iter();
    let layers = places.lower.iter().filter_map(|layer| match layer {
        Place::Path(_) => opened.next().map(|place| name_of(place.as_fd())),
        Place::Descriptor(place) => Some(name_of(place.as_fd())),
    });
    let options = self::options(layers, places);
    if options.len() > MAX_OPTIONS {
        return Err(io::Error::other(format!("{} layers are more than this kernel takes", spec.lower.len())));
    }
    mount::mount_overlay(&spec.target, &options)
}

fn options(layers: impl Iterator<Item = OsString>, places: &Places<'_>) -> OsString {
    let mut options = OsString::from("lowerdir=");
    for (index, layer) in layers.enumerate() {
        if index > 0 {
            options.push(":");
        }
        options.push(layer);
    }
    for (key, place) in [(",upperdir=", &places.upper), (",workdir=", &places.work)] {
        options.push(key);
        options.push(place.name(b"\\,"));
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
    use std::fs;

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
                let mut places = Places::plain(&spec);
                // One that has no path any more can be had by its descriptor alone.
                let hidden = mount::open_place(&spec.lower[0]).unwrap();
                places.lower[0] = Place::Descriptor(hidden);
                fs::write(spec.lower[0].join("topmost"), "").unwrap();
                fs::rename(&spec.lower[0], path("moved")).unwrap();
                mount_by_string(&spec, &places).unwrap();
                assert!(spec.target.join("topmost").exists());
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
        let options = options(spec.lower.iter().map(|layer| escaped(layer, b"\\:,")), &Places::plain(&spec));
        assert_eq!(
            options,
            "lowerdir=/layers/a\\:b:/layers/c\\,d,upperdir=/pods/x\\\\y/upper,workdir=/pods/work,volatile"
        );
    }
}
