//! The image store, as the local API wants it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    image::{Credentials as StoreCredentials, Image, ImageError, ImageStore, PruneScope},
    server::images::{Collected, Credentials, ImageView, Images, LoadSource, PullProgress},
    worker::{
        handle::{BoxFuture, Node, NodeError},
        node::RunningNode,
    },
};

/// The store, and who knows which images are used.
pub struct StoreImages {
    /// The store.
    pub store: ImageStore,
    /// The pods.
    pub node: Arc<RunningNode>,
}

fn view(image: &Image) -> ImageView {
    ImageView {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        pinned: image.pinned,
    }
}

fn error(error: ImageError) -> NodeError {
    let message = error.message();
    match error {
        ImageError::NotPresent { .. } => NodeError::NotFound(message),
        ImageError::InUse { .. } => NodeError::Conflict(message),
        _ => NodeError::Internal(message),
    }
}

impl Images for StoreImages {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageView>, NodeError>> {
        Box::pin(async move {
            let mut views: Vec<ImageView> = self.store.list().iter().map(|image| view(image)).collect();
            views.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
            Ok(views)
        })
    }

    fn pull(
        &self,
        reference: String,
        credentials: Option<Credentials>,
        progress: mpsc::Sender<PullProgress>,
    ) -> BoxFuture<'_, Result<ImageView, NodeError>> {
        Box::pin(async move {
            let credentials =
                credentials.map(|Credentials { username, password }| StoreCredentials::Basic { username, password });
            let name = reference.clone();
            let sink = Box::new(move |now: crate::image::Progress| {
                let report = PullProgress { digest: name.clone(), received: now.bytes_done, total: now.bytes };
                // A reader that is behind misses a report; the next one says it all.
                let _ = progress.try_send(report);
            });
            let pulled = self.store.pull(&reference, credentials, Some(sink)).await.map_err(error)?;
            Ok(view(&pulled.image))
        })
    }

    fn load(&self, source: LoadSource, name: Option<String>) -> BoxFuture<'_, Result<Vec<ImageView>, NodeError>> {
        Box::pin(async move {
            let loaded = match source {
                LoadSource::Path(path) => self.store.load(&path, name.as_deref()).await,
                LoadSource::Archive(reader) => self.store.load_reader(reader, name.as_deref()).await,
            };
            Ok(loaded.map_err(error)?.iter().map(|image| view(image)).collect())
        })
    }

    fn remove(&self, reference: String) -> BoxFuture<'_, Result<Vec<String>, NodeError>> {
        Box::pin(async move {
            let used = self.node.images_in_use();
            let removed = self.store.remove(&reference, &|id| used.iter().any(|used| used == id)).await;
            let removed = removed.map_err(error)?;
            Ok(removed.untagged.into_iter().chain(removed.deleted).collect())
        })
    }

    fn collect(&self) -> BoxFuture<'_, Result<Collected, NodeError>> {
        Box::pin(async move {
            let used = self.node.images_in_use();
            let in_use = |id: &str| used.iter().any(|used| used == id);
            let before = self.store.list();
            let pruned = self.store.prune(PruneScope::Unused, &in_use).await.map_err(error)?;
            let name = |id: &String| {
                let image = before.iter().find(|image| image.id == *id);
                image.and_then(|image| image.repo_tags.first()).unwrap_or(id).clone()
            };
            Ok(Collected { removed: pruned.images.iter().map(name).collect(), freed: pruned.bytes })
        })
    }
}
