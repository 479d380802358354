//! Turns what a supervisor tells into what happened to a pod: each hint is checked against the records.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    execute::Host,
    host::PodEvent,
    records::{self, Recorded},
};
use crate::{
    pod::observed::AttemptState,
    runtime::client::{Event, Supervisor},
    store::layout::AttemptDirs,
};

/// Runs until the supervisor is gone or nobody listens any more.
pub async fn watch(host: Arc<Host>, generation: u32, mut hints: mpsc::Receiver<Event>, events: mpsc::Sender<PodEvent>) {
    while let Some(hint) = hints.recv().await {
        let told = match hint {
            Event::Exited { container, attempt } => ended(&host, &container, attempt, &events).await,
            Event::Lost => match Supervisor::reconnect(&host.dirs).await {
                Ok(connected) => {
                    // What ended in between is found by looking at every record.
                    let _ = all_ended(&host, &events).await;
                    host.connected(connected, generation);
                    return; // the new connection has a watcher of its own
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

async fn ended(host: &Host, container: &str, attempt: u32, events: &mpsc::Sender<PodEvent>) -> Told {
    let directory = host.dirs.attempt(container, attempt);
    match records::read(&directory) {
        Ok(Some(recorded)) => tell(host, &directory, &recorded, events).await,
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::warn!(pod = host.uid(), container, attempt, %error, "the record of an ended container is unreadable");
            Ok(())
        }
    }
}

async fn tell(host: &Host, directory: &AttemptDirs, recorded: &Recorded, events: &mpsc::Sender<PodEvent>) -> Told {
    let container = recorded.launch.container.clone();
    let attempt = recorded.ended(directory, host.falls_back_to_logs(&container), Timestamp::now());
    debug_assert!(matches!(attempt.state, AttemptState::Ended(_)));
    events.send(PodEvent::Ended { container, attempt }).await
}

/// Every attempt with an exit record.
async fn all_ended(host: &Host, events: &mpsc::Sender<PodEvent>) -> Told {
    for (directory, recorded) in records::read_all(&host.dirs).into_iter().flatten() {
        if let Some(recorded) = recorded.filter(|recorded| recorded.exit.is_some()) {
            tell(host, &directory, &recorded, events).await?;
        }
    }
    Ok(())
}

/// The supervisor died, and its containers with it: those without a record ended in an unknown way.
async fn gone(host: &Host, generation: u32, events: &mpsc::Sender<PodEvent>) -> Told {
    for (directory, recorded) in records::read_all(&host.dirs).into_iter().flatten() {
        if let Some(recorded) = recorded {
            tell(host, &directory, &recorded, events).await?;
        }
    }
    events.send(PodEvent::SandboxLost { generation }).await
}
