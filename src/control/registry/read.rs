//! Reading: one object, or a list with what selects, limits and continues it.

use serde_json::Value;

use super::{
    Registry, Target,
    continuation::Continuation,
    options::{ListOptions, Since},
    present, with_revision,
};
use crate::control::{
    error::ApiError,
    storage::{Range, StorageError},
};

/// How long a list waits for a revision that is not there yet, as upstream.
const CATCH_UP: std::time::Duration = std::time::Duration::from_secs(3);
/// Objects that are read at once where a selector may drop many of them.
const SELECTED_PAGE: usize = 500;

/// A list.
#[derive(Debug)]
pub struct Listed {
    /// The objects.
    pub items: Vec<Value>,
    /// The revision of the whole list.
    pub revision: u64,
    /// Where it goes on.
    pub continuation: Option<String>,
    /// How many are left, where that is known.
    pub remaining: Option<u64>,
}

impl Registry {
    /// Reads an object.
    ///
    /// # Errors
    /// It is not there.
    pub async fn get(&self, target: Target<'_>) -> Result<Value, ApiError> {
        let entry = self.storage.get(&target.key()).await?;
        entry.as_ref().map(present).ok_or_else(|| ApiError::not_found(target.subject()))
    }

    /// Lists objects.
    ///
    /// # Errors
    /// The revision asked for is gone, or does not come in time.
    pub async fn list(&self, target: Target<'_>, options: &ListOptions) -> Result<Listed, ApiError> {
        let prefix = target.resource.prefix(Some(target.namespace));
        let mut range = Range { prefix: prefix.clone(), limit: options.limit, ..Range::default() };
        match options.since {
            Since::Latest | Since::Any => {}
            Since::NotBefore(revision) => self.catch_up(revision).await?,
            Since::Exactly(revision) => {
                self.catch_up(revision).await?;
                range.revision = Some(revision);
            }
        }
        if let Some(continuation) = &options.continuation {
            range.start = format!("{prefix}{}", continuation.start);
            range.revision = u64::try_from(continuation.revision).ok();
        }
        // One object by its name: the rest of the range need not be read.
        let single = options
            .fields
            .required("metadata.name")
            .filter(|_| !target.namespace.is_empty() || !target.resource.namespaced);
        if let Some(name) = single {
            range.start = format!("{prefix}{name}");
            range.prefix = range.start.clone();
        }
        let selective = !options.labels.is_empty() || !options.fields.is_empty();
        if selective && range.limit != 0 {
            range.limit = SELECTED_PAGE.max(options.limit);
        }
        range.count = options.limit != 0 && !selective;
        let mut listed = Listed { items: Vec::new(), revision: 0, continuation: None, remaining: None };
        loop {
            let page = self.storage.list(range.clone()).await.map_err(|error| gone(error, options))?;
            listed.revision = page.revision;
            range.revision = Some(page.revision);
            let mut next = page.next;
            for entry in page.entries {
                if options.limit != 0 && listed.items.len() == options.limit {
                    next = Some(entry.key);
                    break;
                }
                let named = single.is_none() || entry.key.len() == range.prefix.len();
                let value = entry.document.value();
                if named && options.labels.matches(value) && options.fields.matches(value) {
                    listed.items.push(with_revision(value.clone(), entry.revision));
                }
            }
            listed.remaining = page.remaining;
            match next {
                None => return Ok(listed),
                Some(next) if options.limit != 0 && listed.items.len() == options.limit => {
                    let revision = i64::try_from(page.revision).unwrap_or(i64::MAX);
                    let start = next.strip_prefix(&prefix).unwrap_or(&next);
                    listed.continuation = Some(Continuation::new(revision, start).encode());
                    return Ok(listed);
                }
                Some(next) => range.start = next,
            }
        }
    }

    /// Waits a little for a revision that another client has seen and this list has to be at least as new as.
    async fn catch_up(&self, revision: u64) -> Result<(), ApiError> {
        let waited = tokio::time::timeout(CATCH_UP, self.storage.reached(revision)).await;
        waited.map_err(|_| ApiError::too_large_resource_version(revision, self.storage.revision()))
    }
}

/// What to tell a client whose list cannot go on as it began: how it can all the same.
fn gone(error: StorageError, options: &ListOptions) -> ApiError {
    let (StorageError::Compacted { .. }, Some(continuation)) = (&error, &options.continuation) else {
        return error.into();
    };
    let fresh = Continuation::new(-1, &continuation.start).encode();
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    error.continuation = Some(fresh);
    error
}
