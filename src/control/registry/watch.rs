//! Watching: what changes, as a client that selects sees it. What begins to match is added, what no longer matches is
//! deleted, whatever happened to the object itself.

use std::{collections::VecDeque, sync::Arc};

use serde_json::{Value, json};

use super::{
    Registry, Target,
    options::{ListOptions, Since},
    with_revision,
};
use crate::control::{
    error::ApiError,
    storage::{Change, StorageError, Watch},
};

/// What a client is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// `ADDED`, with the object.
    Added(Value),
    /// `MODIFIED`, with the object.
    Modified(Value),
    /// `DELETED`, with the object as it was last.
    Deleted(Value),
    /// Everything up to this revision has been told; whether that is the end of what there was at first.
    Bookmark(u64, bool),
    /// The watch ends, and why.
    Error(ApiError),
}

/// A watch under way.
pub struct Watching {
    watch: Box<dyn Watch>,
    options: ListOptions,
    /// What is to be told before the watch goes on.
    pending: VecDeque<Event>,
}

impl Registry {
    /// Starts to watch.
    ///
    /// # Errors
    /// What there is could not be listed. A revision that is gone is an event, as upstream has it.
    pub async fn watch(&self, target: Target<'_>, options: ListOptions) -> Result<Watching, ApiError> {
        let prefix = target.resource.prefix(Some(target.namespace));
        let with_what_is = match (options.initial_events, options.since) {
            (Some(initial), _) => initial,
            (None, Since::Latest | Since::Any) => true,
            (None, Since::NotBefore(_) | Since::Exactly(_)) => false,
        };
        let mut pending = VecDeque::new();
        let after = match options.since {
            _ if with_what_is => {
                let list = ListOptions { limit: 0, continuation: None, ..options.clone() };
                let listed = self.list(target, &list).await?;
                pending.extend(listed.items.into_iter().map(Event::Added));
                if options.initial_events == Some(true) && options.bookmarks {
                    pending.push_back(Event::Bookmark(listed.revision, true));
                }
                listed.revision
            }
            Since::NotBefore(revision) | Since::Exactly(revision) => revision,
            Since::Latest | Since::Any => self.storage.revision(),
        };
        Ok(Watching { watch: self.storage.watch(prefix, after), options, pending })
    }
}

impl Watching {
    /// Waits for the next events; at least one. May be dropped and called again.
    pub async fn next(&mut self) -> Vec<Event> {
        while self.pending.is_empty() {
            match self.watch.next().await {
                Ok(changes) => {
                    let seen = changes.iter().filter_map(|change| self.seen(change));
                    self.pending = seen.collect();
                }
                Err(error) => self.pending.push_back(Event::Error(ended(error))),
            }
        }
        self.pending.drain(..).collect()
    }

    /// A bookmark, if everything up to a revision is known to have been told and the client understands it.
    pub fn bookmark(&mut self) -> Option<Event> {
        if !self.options.bookmarks || !self.pending.is_empty() {
            return None;
        }
        self.watch.position().map(|revision| Event::Bookmark(revision, false))
    }

    fn seen(&self, change: &Arc<Change>) -> Option<Event> {
        let matching = |document: &Option<crate::control::storage::Document>| {
            let document = document.as_ref()?;
            let value = document.value();
            let selected = self.options.labels.matches(value) && self.options.fields.matches(value);
            selected.then(|| with_revision(value.clone(), change.revision))
        };
        match (matching(&change.previous), matching(&change.document)) {
            (None, None) => None,
            (None, Some(new)) => Some(Event::Added(new)),
            (Some(_), Some(new)) => Some(Event::Modified(new)),
            // As it was last, with the revision at which it went.
            (Some(old), None) => Some(Event::Deleted(old)),
        }
    }
}

fn ended(error: StorageError) -> ApiError {
    error.into()
}

impl Event {
    /// As it goes over the wire; `shown` turns an object into the form that the client asked for.
    pub fn to_value(self, api_version: &str, kind: &str, mut shown: impl FnMut(Value) -> Value) -> Value {
        let (name, object) = match self {
            Event::Added(object) => ("ADDED", shown(object)),
            Event::Modified(object) => ("MODIFIED", shown(object)),
            Event::Deleted(object) => ("DELETED", shown(object)),
            Event::Bookmark(revision, initial) => {
                let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
                if initial {
                    metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
                }
                ("BOOKMARK", json!({"kind": kind, "apiVersion": api_version, "metadata": metadata}))
            }
            Event::Error(error) => ("ERROR", error.to_value()),
        };
        json!({"type": name, "object": object})
    }
}
