//! Pulls an image: resolve, choose the platform, fetch what is not here yet, record it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared, try_join_all};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    config::Credentials,
    error::{ImageError, RegistryError},
    fetch::{Received, Source, Wanted},
    index::Image,
    manifest::{CONFIG_LIMIT, Document, Manifest, check_layers, choose, decode, decode_config},
    reference::ImageReference,
    registry::{Fetched, Session},
    store::{ImageStore, Inner, NewImage, blocking, lock},
    unpack::{Expected, LayerSummary},
};

pub(super) use super::fetch::LayerFetches;

/// Between two calls of a progress callback.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A finished pull.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image.
    pub image: Arc<Image>,
    /// Bytes of layers downloaded; 0 when everything was here.
    pub bytes: u64,
    /// From the call to the end, waiting included.
    pub duration: Duration,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Layers of the image; 0 until the manifest is known.
    pub layers: usize,
    /// Layers that are in the store.
    pub layers_done: usize,
    /// Bytes of all layers, compressed, those that are here already included.
    pub bytes: u64,
    /// Bytes downloaded.
    pub bytes_done: u64,
}

/// Called now and then while a pull goes on, at most ten times a second.
pub type ProgressSink = Box<dyn FnMut(Progress) + Send>;

/// Pulls under way. Two that want the same with the same credentials are one.
#[derive(Default)]
pub(super) struct Pulls(Mutex<HashMap<Key, Running>>);

#[derive(PartialEq, Eq, Hash)]
struct Key {
    reference: ImageReference,
    credentials: Option<Credentials>,
}

type Pull = BoxFuture<'static, Result<(Arc<Image>, u64), ImageError>>;

struct Running {
    pull: WeakShared<Pull>,
    progress: watch::Receiver<Progress>,
}

impl ImageStore {
    /// Pulls an image, whether or not it is here; what is here is not downloaded again, and with an unchanged tag nothing
    /// but the digest is asked for. `credentials` win over those configured for the registry.
    ///
    /// A pull of the same reference with the same credentials that is under way is joined. When all who wait for it drop
    /// their future, it ends; finished layers stay for the next attempt.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Pulled, ImageError> {
        let started = Instant::now();
        let reference = ImageReference::parse(reference)?;
        let (pull, watch) = self.join_or_begin(reference, credentials);
        let (image, bytes) = match progress {
            Some(sink) => report(pull, watch, sink).await?,
            None => pull.await?,
        };
        Ok(Pulled { image, bytes, duration: started.elapsed() })
    }

    fn join_or_begin(
        &self,
        reference: ImageReference,
        credentials: Option<Credentials>,
    ) -> (Shared<Pull>, watch::Receiver<Progress>) {
        let key = Key { reference: reference.clone(), credentials: credentials.clone() };
        let mut pulls = lock(&self.inner.pulls.0);
        pulls.retain(|_, running| running.pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        if let Some(running) = pulls.get(&key)
            && let Some(pull) = running.pull.upgrade()
        {
            return (pull, running.progress.clone());
        }
        let (sender, watch) = watch::channel(Progress::default());
        let pull = run(Arc::clone(&self.inner), reference, credentials, Arc::new(sender)).boxed().shared();
        if let Some(weak) = pull.downgrade() {
            pulls.insert(key, Running { pull: weak, progress: watch.clone() });
        }
        (pull, watch)
    }
}

/// Waits for the pull, passing its progress on.
async fn report(
    mut pull: Shared<Pull>,
    mut watch: watch::Receiver<Progress>,
    mut sink: ProgressSink,
) -> Result<(Arc<Image>, u64), ImageError> {
    loop {
        // Both arms may be dropped half-way: the shared pull goes on where it was, a change is seen next time.
        tokio::select! {
            biased;
            result = &mut pull => {
                sink(*watch.borrow());
                return result;
            }
            changed = watch.changed() => {
                if changed.is_err() {
                    return pull.await;
                }
                sink(*watch.borrow_and_update());
            }
        }
        tokio::select! {
            biased;
            result = &mut pull => {
                sink(*watch.borrow());
                return result;
            }
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
        }
    }
}

async fn run(
    inner: Arc<Inner>,
    reference: ImageReference,
    credentials: Option<Credentials>,
    progress: Arc<watch::Sender<Progress>>,
) -> Result<(Arc<Image>, u64), ImageError> {
    let session = Arc::new(inner.registry.session(&reference, credentials)?);
    if let Some(image) = unchanged(&inner, &reference, &session).await? {
        return Ok((image, 0));
    }
    let subject = reference.to_string();
    let resolved = session.manifest().await?;
    let (manifest, fetched) = platform_manifest(&inner, &session, &resolved, &subject).await?;
    let config_bytes = config_blob(&inner, &session, &manifest).await?;
    let config = decode_config(&config_bytes, &inner.config.platform, &subject)?;
    check_layers(&manifest, &config, &subject)?;

    progress.send_modify(|progress| {
        progress.layers = manifest.layers.len();
        progress.bytes = manifest.layers.iter().map(|layer| layer.size).sum();
    });
    let _pins = inner.pin(config.diff_ids.iter().cloned());
    let received: Received = {
        let progress = Arc::clone(&progress);
        Arc::new(move |bytes| progress.send_modify(|progress| progress.bytes_done += bytes))
    };
    let layers = manifest.layers.iter().zip(&config.diff_ids).map(|(blob, diff_id)| {
        let (session, received) = (Arc::clone(&session), Arc::clone(&received));
        let wanted = Wanted {
            source: Source::Remote { session, blob: blob.clone(), received },
            expected: Expected { blob: Some((blob.digest.clone(), blob.size)), diff_id: diff_id.clone() },
            subject: subject.clone(),
        };
        let (inner, progress) = (&inner, &progress);
        async move {
            let summary = inner.ensure_layer(wanted).await?;
            progress.send_modify(|progress| progress.layers_done += 1);
            Ok::<LayerSummary, ImageError>(summary)
        }
    });
    let summaries = try_join_all(layers).await?;

    let mut documents = vec![resolved];
    documents.extend(fetched);
    let new = NewImage {
        id: manifest.config.digest.clone(),
        digest: documents.first().map(|document| document.digest.clone()),
        names: vec![reference],
        manifests: documents.into_iter().map(|document| (document.digest, document.bytes)).collect(),
        config,
        config_bytes,
        layers: summaries,
    };
    let image = blocking(&subject, move || inner.add(new)).await?;
    Ok((image, progress.borrow().bytes_done))
}

/// The image that is here, when the registry says that the reference still means it. A registry that does not answer
/// HEAD requests is asked properly.
async fn unchanged(
    inner: &Inner,
    reference: &ImageReference,
    session: &Session,
) -> Result<Option<Arc<Image>>, ImageError> {
    let index = inner.index();
    let Some(image) = index.find(&reference.key()).ok().and_then(|id| index.get(id)) else { return Ok(None) };
    match session.head().await {
        Ok(Some(digest)) => {
            let same = image.repo_digests.contains(&reference.repo_digest(&digest));
            Ok(same.then(|| Arc::clone(image)))
        }
        Ok(None)
        | Err(ImageError::Registry { source: RegistryError::NotFound(_) | RegistryError::Status { .. }, .. }) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The manifest for this machine; also its document when it was not the one resolved.
async fn platform_manifest(
    inner: &Inner,
    session: &Session,
    resolved: &Fetched,
    subject: &str,
) -> Result<(Manifest, Option<Fetched>), ImageError> {
    let choices = match decode(&resolved.bytes, resolved.media_type.as_deref(), subject)? {
        Document::Manifest(manifest) => return Ok((manifest, None)),
        Document::Index(choices) => choices,
    };
    let choice = choose(&choices, &inner.config.platform, subject)?;
    let fetched = session.manifest_by(&choice.blob).await?;
    match decode(&fetched.bytes, fetched.media_type.as_deref(), subject)? {
        Document::Manifest(manifest) => Ok((manifest, Some(fetched))),
        Document::Index(_) => Err(ImageError::UnsupportedMediaType {
            subject: subject.to_owned(),
            media_type: "an index within an index".to_owned(),
        }),
    }
}

async fn config_blob(inner: &Arc<Inner>, session: &Session, manifest: &Manifest) -> Result<Vec<u8>, ImageError> {
    let (path, digest) = (inner.blob(&manifest.config.digest), manifest.config.digest.clone());
    let here = blocking("configuration", move || {
        let bytes = std::fs::read(path).ok();
        Ok(bytes.filter(|bytes| digest.same_algorithm_of(bytes) == digest))
    });
    match here.await? {
        Some(bytes) => Ok(bytes),
        None => session.small_blob(&manifest.config, CONFIG_LIMIT).await,
    }
}
