//! Namespaces that are going: what is in them is removed, and they go when nothing is left
//! (`pkg/controller/namespace` upstream).

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::control::{
    error::ApiError,
    registry::{
        Change, Deleted, Registry, Target,
        incoming::Incoming,
        options::{DeleteOptions, FieldValidation, ListOptions, WriteOptions},
        resource::{Part, Resource},
        text,
        watch::Event,
    },
};

/// How soon a namespace is looked at again in which something takes its time.
const FIRST: Duration = Duration::from_millis(200);
/// How late at most.
const LATEST: Duration = Duration::from_secs(5);
/// What keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

/// When a namespace is looked at again.
struct Next {
    at: Instant,
    pause: Duration,
}

/// Works for ever. While no namespace is going nothing wakes.
pub async fn run(registry: Registry) {
    let Some(resource) = registry.resource("", "v1", "namespaces") else { return };
    let all = Target { resource, namespace: "", name: "" };
    let mut going: BTreeMap<String, Next> = BTreeMap::new();
    loop {
        let mut watching = match registry.watch(all, ListOptions::all()).await {
            Ok(watching) => watching,
            Err(error) => {
                warn!(error = error.message, "watch namespaces, trying again");
                tokio::time::sleep(LATEST).await;
                continue;
            }
        };
        'watch: loop {
            let due = going.values().map(|next| next.at).min();
            tokio::select! {
                // May be dropped: events that were not handed out wait.
                events = watching.next() => {
                    for event in events {
                        match event {
                            Event::Added(namespace) | Event::Modified(namespace) => note(&namespace, &mut going),
                            Event::Deleted(namespace) => drop(going.remove(text(&namespace, "metadata.name"))),
                            Event::Bookmark(..) => {}
                            Event::Error(error) => {
                                warn!(error = error.message, "the watch of namespaces ended, beginning anew");
                                break 'watch;
                            }
                        }
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    look(&registry, resource, &mut going).await;
                }
            }
        }
    }
}

fn note(namespace: &Value, going: &mut BTreeMap<String, Next>) {
    if text(namespace, "metadata.deletionTimestamp").is_empty() {
        return;
    }
    let next = || Next { at: Instant::now(), pause: FIRST };
    going.entry(text(namespace, "metadata.name").to_owned()).or_insert_with(next);
}

async fn look(registry: &Registry, resource: &'static Resource, going: &mut BTreeMap<String, Next>) {
    let now = Instant::now();
    let due: Vec<String> = going.iter().filter(|(_, next)| next.at <= now).map(|(name, _)| name.clone()).collect();
    for name in due {
        let result = match sweep(registry, &name).await {
            Ok(true) => finalize(registry, Target { resource, namespace: "", name: &name }).await.map(|()| true),
            other => other,
        };
        match result {
            Ok(true) => drop(going.remove(&name)),
            Err(error) if error.reason == "NotFound" => drop(going.remove(&name)),
            waits => {
                if let Err(error) = waits {
                    warn!(namespace = name, error = error.message, "empty a namespace, trying again");
                }
                if let Some(next) = going.get_mut(&name) {
                    next.at = Instant::now() + next.pause;
                    next.pause = (next.pause * 2).min(LATEST);
                }
            }
        }
    }
}

/// Removes what is in a namespace. Says whether it is empty.
async fn sweep(registry: &Registry, namespace: &str) -> Result<bool, ApiError> {
    let mut empty = true;
    for resource in registry.resources.iter().filter(|one| one.namespaced && one.answer.is_none()) {
        let all = Target { resource, namespace, name: "" };
        let listed = registry.list(all, &ListOptions::all()).await?;
        for object in &listed.items {
            let one = Target { name: text(object, "metadata.name"), ..all };
            match registry.delete(one, &DeleteOptions::default(), false).await {
                Ok(Deleted::Gone(_)) => {}
                Ok(Deleted::Going(_)) => empty = false,
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(empty)
}

/// Takes the finalizer away, upon which the namespace goes unless others keep it.
async fn finalize(registry: &Registry, target: Target<'_>) -> Result<(), ApiError> {
    let without = |namespace: &Value| {
        let mut namespace = namespace.clone();
        if let Some(list) = namespace["spec"]["finalizers"].as_array_mut() {
            list.retain(|known| known != FINALIZER);
        }
        Incoming::new(namespace, Vec::new())
    };
    let change = Change { part: Part::Finalize, make: &without, replaces: false };
    let options = WriteOptions { dry_run: false, validation: FieldValidation::Ignore };
    registry.update(target, change, options, &mut Vec::new()).await.map(drop)
}
