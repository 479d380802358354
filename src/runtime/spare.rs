//! Namespaces made ahead: the kernel takes two thirds of a millisecond for a network namespace, and a pod that starts need
//! not wait for that.
//!
//! A thread has them. They are its own, so that they are gone with it, however the agent ends; a process that it starts is
//! born in them. It then waits a moment, so as not to compete with the pod that has just begun, and makes the next ones.
//! Nobody waits for it: where nothing is ready, a supervisor makes its namespaces itself.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

use crate::sys::{process::Child, spawn::SpawnError};

/// After a process has been started, before the next namespaces are made: the start of a pod takes about as long.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts a process as soon as it is called.
pub type Start = Box<dyn FnOnce() -> Result<Child, SpawnError> + Send>;

/// A start, and where its result goes.
type Job = (Start, Sender<Result<Child, SpawnError>>);

/// The thread, made when namespaces are asked for the first time, which are not there then.
#[derive(Debug, Default)]
pub struct SpareNamespaces {
    thread: OnceLock<Thread>,
}

#[derive(Debug)]
struct Thread {
    jobs: Sender<Job>,
    ready: Arc<AtomicBool>,
}

impl SpareNamespaces {
    /// Whether there are namespaces; they are the caller's then, to be used by [`SpareNamespaces::start`].
    pub fn take(&self) -> bool {
        self.thread.get_or_init(Thread::begin).ready.swap(false, Ordering::AcqRel)
    }

    /// Calls `start` in the network, IPC and UTS namespaces that were taken, which nobody else has.
    ///
    /// # Errors
    /// Those of `start`.
    pub fn start(&self, start: Start) -> Result<Child, SpawnError> {
        let gone = || SpawnError::Clone(io::Error::other("the thread that makes namespaces has ended"));
        let (sender, answer) = channel();
        let jobs = &self.thread.get_or_init(Thread::begin).jobs;
        jobs.send((start, sender)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Thread {
    fn begin() -> Thread {
        let (jobs, receiver) = channel();
        let ready = Arc::new(AtomicBool::new(false));
        let mark = ready.clone();
        let named = thread::Builder::new().name("spare-ns".to_owned());
        if let Err(error) = named.spawn(move || provide(&receiver, &mark)) {
            tracing::debug!(%error, "namespaces cannot be made ahead, ignoring");
        }
        Thread { jobs, ready }
    }
}

fn provide(jobs: &Receiver<Job>, ready: &AtomicBool) {
    loop {
        thread::sleep(PAUSE);
        let kinds = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        if let Err(error) = unshare(kinds) {
            // A limit, most likely; the supervisor, which needs them, will say so.
            tracing::debug!(%error, "namespaces cannot be made ahead, ignoring");
            return;
        }
        ready.store(true, Ordering::Release);
        let Ok((start, answer)) = jobs.recv() else { return };
        // Nobody listens any more when the agent is about to end.
        let _ = answer.send(start());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;

    /// In which network namespace a start is called.
    fn place(spare: &SpareNamespaces) -> String {
        let (sender, receiver) = channel();
        let start: Start = Box::new(move || {
            let name = fs::read_link("/proc/thread-self/ns/net").unwrap();
            sender.send(name.to_str().unwrap().to_owned()).unwrap();
            Err(SpawnError::Clone(io::ErrorKind::Other.into()))
        });
        assert!(spare.start(start).is_err());
        receiver.recv().unwrap()
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn each_process_is_started_in_namespaces_of_its_own_once_there_are_any() {
        let spare = SpareNamespaces::default();
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let mut seen = vec![own.to_str().unwrap().to_owned()];
        assert!(!spare.take(), "nothing is there when it is asked for the first time");
        let begun = Instant::now();
        while seen.len() < 4 {
            assert!(begun.elapsed() < Duration::from_secs(10));
            if spare.take() {
                assert!(!spare.take(), "they are given away once");
                let name = place(&spare);
                assert!(!seen.contains(&name), "{name} in {seen:?}");
                seen.push(name);
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
    }
}
