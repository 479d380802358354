//! Turns what a supervisor tells into what happened to a pod: each hint is checked against the records.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    execute::{Host, blocking},
    host::PodEvent,
    records,
};
use crate::{
    pod::observed::Attempt,
    runtime::client::{Event, Supervisor},
    store::layout::PodDirs,
};

/// Runs until the supervisor is gone or nobody listens any more.
pub async fn watch(host: Arc<Host>, generation: u32, mut hints: mpsc::Receiver<Event>, events: mpsc::Sender<PodEvent>) {
    while let Some(hint) = hints.recv().await {
        let told = match hint {
            Event::Exited { container, attempt } => ended(&host, container, attempt, &events).await,
            Event::Lost => match Supervisor::reconnect(&host.dirs).await {
                Ok(connected) => {
                    // What ended in between is found by looking at every record; what ends from now on is told by the
                    // new connection, which has a watcher of its own.
                    let found = of_sandbox(&host, generation, true).await;
                    host.connected(connected, generation);
                    for (container, attempt) in found {
                        if events.send(PodEvent::Ended { container, attempt }).await.is_err() {
                            return;
                        }
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(pod = host.uid(), %error, "the supervisor cannot be reached again");
                    gone(&host, generation, &events).await
                }
            },
            Event::Gone => gone(&host, generation, &events).await,
        };
        if told.is_err() {
            return;
        }
    }
}

type Told = Result<(), mpsc::error::SendError<PodEvent>>;

async fn ended(host: &Arc<Host>, container: String, attempt: u32, events: &mpsc::Sender<PodEvent>) -> Told {
    let reader = host.clone();
    let read = blocking(move || {
        let directory = reader.dirs.attempt(&container, attempt);
        let found = match records::read(&directory) {
            Ok(Some(recorded)) => {
                let fall_back = reader.falls_back_to_logs(&container);
                Some((container, recorded.ended(&directory, fall_back, Timestamp::now())))
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(pod = reader.uid(), container, attempt, %error, "the record of an ended container is unreadable");
                None
            }
        };
        Ok(found)
    });
    match read.await {
        Ok(Some((container, attempt))) => events.send(PodEvent::Ended { container, attempt }).await,
        _ => Ok(()),
    }
}

/// The supervisor died, and its containers with it: those without a record ended in an unknown way.
async fn gone(host: &Arc<Host>, generation: u32, events: &mpsc::Sender<PodEvent>) -> Told {
    let ended = of_sandbox(host, generation, false).await;
    events.send(PodEvent::SandboxLost { generation, ended }).await
}

async fn of_sandbox(host: &Arc<Host>, generation: u32, recorded: bool) -> Vec<(String, Attempt)> {
    let host = host.clone();
    let read = blocking(move || {
        let fall_back = |container: &str| host.falls_back_to_logs(container);
        Ok(attempts(&host.dirs, generation, recorded, &fall_back))
    });
    read.await.unwrap_or_default()
}

/// The attempts of one sandbox, each as ended; only those whose end is on `recorded` if that is asked for. A later
/// sandbox of the same pod may be at work already when the end of this one is noticed.
pub(super) fn attempts(
    dirs: &PodDirs,
    generation: u32,
    recorded: bool,
    falls_back_to_logs: &dyn Fn(&str) -> bool,
) -> Vec<(String, Attempt)> {
    let mut found = Vec::new();
    for (directory, read) in records::read_all(dirs) {
        let Some(read) = read.ok().flatten().filter(|read| read.launch.generation == generation) else { continue };
        if recorded && read.exit.is_none() {
            continue;
        }
        let container = read.launch.container.clone();
        let attempt = read.ended(&directory, falls_back_to_logs(&container), Timestamp::now());
        found.push((container, attempt));
    }
    found
}
