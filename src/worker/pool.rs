//! The shared pool in force: which processors containers run on that have none of their own.
//!
//! When it changes, the cpusets of what runs are written at once, by one task that sleeps otherwise. A container that has
//! processors of its own waits until all others have left them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tracing::{info, warn};

use super::shared::Shared;
use crate::{api::qos::QosClass, pod::topology::Cpus};

/// How long a container waits for the others to leave its processors; it is started again after that.
const LEAVING: Duration = Duration::from_secs(10);

/// The pool as it is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Counts the changes.
    pub version: u64,
    /// The processors; `None`: nobody is confined.
    pub cpus: Option<Cpus>,
}

/// A container on the pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    uid: String,
    id: String,
}

/// The pool.
#[derive(Debug, Default)]
pub struct Pool {
    wanted: watch::Sender<Wanted>,
    /// The newest version that every member has.
    written: watch::Sender<u64>,
    members: Mutex<BTreeMap<Member, QosClass>>,
}

impl Pool {
    /// Changes it. What runs follows soon ([`keep`]); what is made from now on has it from the start.
    pub fn set(&self, cpus: Option<Cpus>) {
        self.wanted.send_if_modified(|wanted| {
            // Who was confined once is told where it may run now.
            let cpus = cpus.or_else(|| wanted.cpus.as_ref().map(|_| Cpus::new()));
            let changed = wanted.cpus != cpus;
            if changed {
                *wanted = Wanted { version: wanted.version + 1, cpus };
            }
            changed
        });
    }

    /// What it is to be now.
    pub fn now(&self) -> Wanted {
        self.wanted.borrow().clone()
    }

    /// From now on the container follows the pool. Look at [`Pool::now`] again afterwards: what has changed in between was
    /// not written for it.
    pub fn join(&self, qos: QosClass, uid: &str, id: &str) {
        let member = Member { uid: uid.to_owned(), id: id.to_owned() };
        self.members().insert(member, qos);
    }

    /// The container is gone.
    pub fn leave(&self, uid: &str, id: &str) {
        self.members().remove(&Member { uid: uid.to_owned(), id: id.to_owned() });
    }

    /// Waits until every member has left what is not the pool's now; false when that takes too long.
    pub async fn settled(&self) -> bool {
        let version = self.now().version;
        let mut written = self.written.subscribe();
        let settled = written.wait_for(|written| *written >= version);
        tokio::time::timeout(LEAVING, settled).await.is_ok()
    }

    fn members(&self) -> std::sync::MutexGuard<'_, BTreeMap<Member, QosClass>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the pool to what runs on it each time it changes, until it is dropped.
pub async fn keep(shared: Arc<Shared>) {
    let mut changes = shared.pool.wanted.subscribe();
    loop {
        let Wanted { version, cpus } = changes.borrow_and_update().clone();
        if let Some(cpus) = cpus {
            let writing = shared.clone();
            let written = tokio::task::spawn_blocking(move || write(&writing, &cpus)).await;
            if let Err(error) = written {
                warn!(%error, "write the shared pool");
            }
        }
        shared.pool.written.send_replace(version);
        // Its sender lives in `shared`.
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn write(shared: &Shared, cpus: &Cpus) {
    let members: Vec<(Member, QosClass)> =
        shared.pool.members().iter().map(|(member, qos)| (member.clone(), *qos)).collect();
    let mut count = 0;
    for (Member { uid, id }, qos) in members {
        match shared.cgroups.update_cpus(qos, &uid, &id, &cpus.to_string()) {
            Ok(true) => count += 1,
            // Ended: it leaves the pool when that has been seen.
            Ok(false) => {}
            Err(error) => warn!(uid, id, %error, "a container does not follow the shared pool"),
        }
    }
    info!(pool = %cpus, containers = count, "the shared pool is in force");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Option<Cpus> {
        Some(Cpus::parse(text).unwrap())
    }

    #[test]
    fn only_changes_count_and_who_was_confined_is_let_go() {
        let pool = Pool::default();
        pool.set(None);
        assert_eq!(pool.now(), Wanted::default());
        pool.set(cpus("0-3"));
        pool.set(cpus("0-3"));
        assert_eq!(pool.now(), Wanted { version: 1, cpus: cpus("0-3") });
        pool.set(None);
        assert_eq!(pool.now(), Wanted { version: 2, cpus: cpus("") }, "an empty list: all that the parent has");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_processors_of_its_own_waits_for_the_others_to_leave() {
        let pool = Arc::new(Pool::default());
        assert!(pool.settled().await, "nothing has changed");
        pool.set(cpus("0-1"));
        assert!(!pool.settled().await, "nobody writes");
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.settled().await }
        });
        tokio::task::yield_now().await;
        pool.written.send_replace(1);
        assert!(waiting.await.unwrap());
    }
}
