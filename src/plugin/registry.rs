//! Follows a directory of registration sockets: each that appears is asked who it is, each that goes is forgotten.
//!
//! Events only say "look again": what counts is which sockets are there. A socket made anew under the same name is
//! another one.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use inotify::{Inotify, WatchMask};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};
use tracing::{info, warn};

use super::{
    Plugin,
    registration::{AnyHandler, register},
};

/// Handlers by the kind of plugin they are for.
pub type Handlers = BTreeMap<&'static str, AnyHandler>;

/// Sockets are looked for in directories down to here.
const DEPTH: usize = 4;

/// The first wait after a registration that failed; each doubles it, up to [`LONGEST`] (upstream's
/// `exponentialbackoff`).
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(122);

/// So many times in a row a socket is called at which nobody listens. Its owner has died without taking it away, and
/// cannot come back but with another one.
const DEAD: u32 = 8;

/// Before a directory that could not be watched is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Room for about a hundred events; more are read in turns.
const BUFFER: usize = 8 << 10;

/// Tells a socket from another one that comes under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    /// Inode numbers are used again; where the file system knows when a file was made, that tells.
    created: Option<SystemTime>,
}

/// What a registration has to take back.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<(AnyHandler, Plugin)>>);

impl Slot {
    pub(super) fn fill(&self, handler: AnyHandler, plugin: Plugin) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((handler, plugin));
    }

    pub(super) fn empty(&self) {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((handler, plugin)) = taken {
            info!(plugin = plugin.name, "plugin gone");
            handler.deregister(&plugin);
        }
    }
}

/// A socket that is there.
struct Known {
    stamp: Stamp,
    slot: Arc<Slot>,
    task: JoinHandle<()>,
}

impl Known {
    fn begin(socket: &Path, stamp: Stamp, handlers: &Arc<Handlers>) -> Known {
        let slot = Arc::new(Slot::default());
        let (path, handlers, held) = (socket.to_owned(), handlers.clone(), slot.clone());
        let task = tokio::spawn(async move { keep_trying(&path, &handlers, &held).await });
        Known { stamp, slot, task }
    }

    async fn end(self) {
        self.task.abort();
        // Nothing is registered behind our back after this. An error is the abort itself.
        let _ = self.task.await;
        self.slot.empty();
    }
}

async fn keep_trying(socket: &Path, handlers: &Handlers, slot: &Slot) {
    let mut wait = FIRST;
    let (mut said, mut silent) = (String::new(), 0);
    loop {
        let error = match register(socket, handlers, slot).await {
            Ok(()) => return info!(socket = %socket.display(), "plugin registered"),
            Err(error) => error,
        };
        silent = if error.nobody_listens { silent + 1 } else { 0 };
        if silent == DEAD {
            return warn!(socket = %socket.display(), "nobody listens at the socket of a plugin; it is left alone");
        }
        if error.message != said {
            warn!(socket = %socket.display(), "{}", error.message);
            said = error.message;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
    }
}

/// Follows `directory` until it is dropped. The directory is made when it is missing.
pub async fn follow(directory: PathBuf, handlers: Handlers) {
    let handlers = Arc::new(handlers);
    let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
    loop {
        match watch(&directory, &handlers, &mut known).await {
            // The directory has been taken away: it is made again.
            Ok(()) => {}
            Err(error) => {
                warn!(directory = %directory.display(), %error, "plugins cannot register; tried again in a minute");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Follows the directory as long as it is the one that is watched.
async fn watch(directory: &Path, handlers: &Arc<Handlers>, known: &mut BTreeMap<PathBuf, Known>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let mut inotify = Inotify::init()?;
    let descriptor = inotify.as_fd().try_clone_to_owned()?;
    #[expect(deprecated, reason = "unsound for types that lie about their descriptor only: OwnedFd cannot")]
    let readable = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
    let place = identity(directory);
    loop {
        follow_up(sockets(&inotify, directory)?, handlers, known).await;
        readable.readable().await?.clear_ready();
        drain(&mut inotify)?;
        if identity(directory) != place {
            return Ok(());
        }
    }
}

/// Which directory is there under this name.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Takes all events. What they say does not matter: everything is looked at.
fn drain(inotify: &mut Inotify) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        match inotify.read_events(&mut buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Ends what is gone, then begins what is new.
async fn follow_up(found: BTreeMap<PathBuf, Stamp>, handlers: &Arc<Handlers>, known: &mut BTreeMap<PathBuf, Known>) {
    let gone = |(path, known): (&PathBuf, &Known)| (found.get(path) != Some(&known.stamp)).then(|| path.clone());
    for path in known.iter().filter_map(gone).collect::<Vec<_>>() {
        if let Some(gone) = known.remove(&path) {
            gone.end().await;
        }
    }
    for (path, stamp) in found {
        known.entry(path).or_insert_with_key(|path| Known::begin(path, stamp, handlers));
    }
}

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

/// The sockets at and below `directory`, each of whose directories is watched from before it is read.
fn sockets(inotify: &Inotify, directory: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(directory.to_owned(), DEPTH)];
    while let Some((path, depth)) = pending.pop() {
        let entries = inotify.watches().add(&path, mask()).and_then(|_| fs::read_dir(&path));
        let entries = match entries {
            Ok(entries) => entries,
            // One below may be gone again.
            Err(error) if path == directory => return Err(error),
            Err(_) => continue,
        };
        for entry in entries.flatten().filter(|entry| !is_hidden(&entry.file_name())) {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && depth > 1 {
                pending.push((entry.path(), depth - 1));
            } else if metadata.file_type().is_socket() {
                let created = metadata.created().ok();
                found.insert(entry.path(), Stamp { device: metadata.dev(), inode: metadata.ino(), created });
            }
        }
    }
    Ok(found)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}
