//! Gets one layer into the store: from wherever it is, unpacked and checked, once for everybody who wants it.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read},
    sync::{Arc, Mutex},
};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};
use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::{
    archive::Archive,
    digest::Digest,
    error::{ImageError, RegistryError},
    manifest::Blob,
    registry::{Chunk, Session},
    store::{Inner, blocking, lock},
    unpack::{Expected, LayerSummary, unpack},
};

/// Pieces in flight between the network and the unpacking thread of one layer. With pieces of at most a few hundred
/// kilobytes this bounds the memory of a layer, and is enough that neither side waits for the other's rhythm.
const PIECES: usize = 4;

/// Called with the number of bytes that have come over the network.
pub(super) type Received = Arc<dyn Fn(u64) + Send + Sync>;

/// Where a layer is.
#[derive(Clone)]
pub(super) enum Source {
    /// In a registry.
    Remote { session: Arc<Session>, blob: Blob, received: Received },
    /// In an archive or layout.
    Local { archive: Arc<Archive>, member: String },
}

/// A layer that is wanted.
#[derive(Clone)]
pub(super) struct Wanted {
    pub source: Source,
    pub expected: Expected,
    /// Whose layer it is, for errors.
    pub subject: String,
}

type Fetch = BoxFuture<'static, Result<LayerSummary, ImageError>>;

/// Fetches under way, by diff id: the same content may come under different compressed digests.
#[derive(Default)]
pub(super) struct LayerFetches(Mutex<HashMap<Digest, WeakShared<Fetch>>>);

impl Inner {
    /// Makes sure that a layer is in the store. Joins a fetch under way; when that one fails (its source may be worse or
    /// its credentials other ones), tries itself. Dropped by everybody who waits, a fetch ends.
    pub(super) async fn ensure_layer(self: &Arc<Self>, wanted: Wanted) -> Result<LayerSummary, ImageError> {
        loop {
            let (fetch, own) = self.join_or_begin(&wanted);
            match fetch.await {
                Err(_) if !own => {}
                result => return result,
            }
        }
    }

    fn join_or_begin(self: &Arc<Self>, wanted: &Wanted) -> (Shared<Fetch>, bool) {
        let mut fetches = lock(&self.fetches.0);
        fetches.retain(|_, fetch| fetch.upgrade().is_some());
        let running = fetches.get(&wanted.expected.diff_id).and_then(WeakShared::upgrade);
        // One that has ended already tells what was, and its layer may be pruned by now.
        if let Some(fetch) = running.filter(|fetch| fetch.peek().is_none()) {
            return (fetch, false);
        }
        let fetch = fetch(Arc::clone(self), wanted.clone()).boxed().shared();
        if let Some(weak) = fetch.downgrade() {
            fetches.insert(wanted.expected.diff_id.clone(), weak);
        }
        (fetch, true)
    }
}

async fn fetch(inner: Arc<Inner>, wanted: Wanted) -> Result<LayerSummary, ImageError> {
    let (layers, diff_id) = (inner.layers.clone(), wanted.expected.diff_id.clone());
    if let Some(summary) = blocking(&wanted.subject, move || Ok(layers.summary(&diff_id))).await? {
        return Ok(summary);
    }
    let _permit = inner.permits.acquire().await.map_err(|_| ImageError::Interrupted(wanted.subject.clone()))?;
    let Wanted { source, expected, subject } = wanted;
    match source {
        Source::Local { archive, member } => {
            let store = Arc::clone(&inner);
            let name = subject.clone();
            blocking(&name, move || store.unpack_into_store(archive.open(&member)?, &expected, &subject)).await
        }
        Source::Remote { session, blob, received } => {
            let (sender, receiver) = mpsc::channel(PIECES);
            let store = Arc::clone(&inner);
            let name = subject.clone();
            let unpacking =
                blocking(&name, move || store.unpack_into_store(ChannelReader::new(receiver), &expected, &subject));
            let feeding = async {
                // The sender goes with this block: an unpacking thread that waits for more learns that none comes.
                let sender = sender;
                session.stream_blob(&blob, &sender, &*received).await
            };
            let (unpacked, fed) = tokio::join!(unpacking, feeding);
            match fed {
                // The receiver gave up first, for the reason `unpacked` tells.
                Ok(()) | Err(ImageError::Registry { source: RegistryError::Abandoned, .. }) => unpacked,
                Err(error) => Err(error),
            }
        }
    }
}

impl Inner {
    fn unpack_into_store(
        &self,
        source: impl BufRead,
        expected: &Expected,
        subject: &str,
    ) -> Result<LayerSummary, ImageError> {
        let unfinished = self.layers.begin()?;
        let root = unfinished.root();
        let (limits, ownership) = (self.config.limits, self.config.ownership);
        match unpack(source, expected, &root, &unfinished.trash(), limits, ownership) {
            Ok(summary) => {
                self.layers.commit(unfinished, &expected.diff_id, &summary)?;
                Ok(summary)
            }
            Err(error) if error.is_disk_full() => Err(ImageError::DiskFull { step: "unpack into", path: root }),
            Err(error) => Err(ImageError::Unpack {
                subject: subject.to_owned(),
                layer: expected.diff_id.clone(),
                source: Arc::new(error),
            }),
        }
    }
}

/// The receiving end of a download, as a blocking reader.
struct ChannelReader {
    receiver: mpsc::Receiver<Chunk>,
    current: Bytes,
    ended: bool,
}

impl ChannelReader {
    fn new(receiver: mpsc::Receiver<Chunk>) -> ChannelReader {
        ChannelReader { receiver, current: Bytes::new(), ended: false }
    }
}

impl BufRead for ChannelReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Chunk::Data(data)) => self.current = data,
                Some(Chunk::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download was given up")),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.current.split_to(amount.min(self.current.len()));
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}
