//! Manifests in a directory, or in one file (`staticPodPath`).
//!
//! The source has a thread of its own: manifests may lie on a file system that hangs, and a blocking read must delay
//! nobody else. It sleeps in poll(2) until inotify has something or the next resync is due. A file renamed into place
//! is read and published at once, one written in place when its writer closes it; there is no delay to collect
//! changes, but what has happened by the time the thread runs is published together.

use std::{
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tracing::warn;

use super::{Publisher, Updates, scan::Manifests, watcher::Watcher};

/// Enough for decoding a manifest of the deepest nesting allowed.
const STACK: usize = 2 << 20;

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSourceConfig {
    /// Directory or file, absolute (`staticPodPath`). It need not exist yet.
    pub path: PathBuf,
    /// Name of this node.
    pub node_name: String,
    /// How often everything is looked at without being told (`fileCheckFrequency`, 20 s upstream).
    pub resync: Duration,
}

/// Why a file source could not be started.
#[derive(Debug, thiserror::Error)]
pub enum FileSourceError {
    /// No inotify instance.
    #[error("watch {path} with inotify")]
    Watch {
        /// The manifest path.
        path: PathBuf,
        /// Cause; EMFILE when the user's instances are used up (fs.inotify.max_user_instances).
        #[source]
        source: io::Error,
    },
    /// No thread, or no descriptor to stop it by.
    #[error("start the thread that reads {path}")]
    Start {
        /// The manifest path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A running file source; it ends when this is dropped.
#[derive(Debug)]
pub struct FileSource {
    stop: Arc<EventFd>,
}

impl FileSource {
    /// Starts a file source.
    pub fn start(config: FileSourceConfig) -> Result<(FileSource, Updates), FileSourceError> {
        let path = config.path.clone();
        let watcher = Watcher::new(config.path.clone())
            .map_err(|source| FileSourceError::Watch { path: path.clone(), source })?;
        let failed = |source| FileSourceError::Start { path: path.clone(), source };
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let stop = Arc::new(stop.map_err(|error| failed(error.into()))?);
        let (publisher, updates) = Publisher::new();
        let stopped = stop.clone();
        thread::Builder::new()
            .name("file-source".to_owned())
            .stack_size(STACK)
            .spawn(move || run(&config, watcher, &publisher, &stopped))
            .map_err(failed)?;
        Ok((FileSource { stop }, updates))
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        // The thread ends as soon as it has done what it is at; there is nothing of it to wait for.
        let _ = self.stop.write(1);
    }
}

fn run(config: &FileSourceConfig, mut watcher: Watcher, publisher: &Publisher, stop: &EventFd) {
    let mut manifests = Manifests::new(config.path.clone(), config.node_name.clone());
    let mut resync = Instant::now();
    loop {
        if Instant::now() >= resync {
            let in_place = watcher.check();
            manifests.scan(!in_place, Timestamp::now());
            publisher.publish(manifests.update());
            resync = Instant::now() + config.resync;
        }
        match wait(&watcher, stop, resync.saturating_duration_since(Instant::now())) {
            Ok(Woken::Changed) => {}
            Ok(Woken::Due) => continue,
            Ok(Woken::Stopped) => return,
            Err(error) => {
                // Not to be expected of poll(2). The resync still notices everything, only later.
                warn!(path = %config.path.display(), %error, "cannot wait for manifest changes, falling back to resync");
                thread::sleep(config.resync);
                continue;
            }
        }
        match watcher.changes() {
            Ok(changes) if changes.is_empty() => {}
            Ok(changes) => {
                let now = Timestamp::now();
                for path in &changes.removed {
                    manifests.remove(path);
                }
                for path in &changes.written {
                    manifests.look_at(path, true, now);
                }
                for path in &changes.touched {
                    manifests.look_at(path, false, now);
                }
                if changes.everything {
                    manifests.scan(true, now);
                }
                publisher.publish(manifests.update());
            }
            Err(error) => {
                warn!(path = %config.path.display(), %error, "cannot read manifest changes, looking at everything");
                manifests.scan(true, Timestamp::now());
                publisher.publish(manifests.update());
            }
        }
    }
}

/// Why the thread goes on.
enum Woken {
    Changed,
    Due,
    Stopped,
}

fn wait(watcher: &Watcher, stop: &EventFd, most: Duration) -> Result<Woken, Errno> {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(watcher.as_fd(), PollFlags::POLLIN)];
    // Rounded up, so as not to wake just before the time and go round for nothing.
    let timeout = PollTimeout::try_from(most + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error),
    }
    let ready = |fd: &PollFd| fd.any().unwrap_or(false);
    Ok(match (ready(&fds[0]), ready(&fds[1])) {
        (true, _) => Woken::Stopped,
        (_, true) => Woken::Changed,
        _ => Woken::Due,
    })
}

#[cfg(test)]
mod tests;
