//! Streams a layer's blob, resuming where the connection broke.

use hyper::body::Bytes;
use reqwest::{Method, StatusCode, header};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Session,
    endpoint::{Endpoint, Request, cause, wait_before_retry},
};
use crate::image::{
    error::{ImageError, RegistryError},
    manifest::Blob,
};

/// What the unpacking thread is given. The channel closing without [`Chunk::End`] means that the rest will not come.
pub(in crate::image) enum Chunk {
    /// The next bytes.
    Data(Bytes),
    /// All bytes have been given.
    End,
}

impl Session {
    /// Sends the blob's bytes to `sink`, in order and each once, then [`Chunk::End`]. Digest and size are checked by the
    /// receiver, which reads all of them; here only more bytes than announced are refused. `received` is called with
    /// the number of new bytes.
    ///
    /// A broken or stalled transfer is resumed with a Range request. The attempts start over when bytes have come.
    pub(in crate::image) async fn stream_blob(
        &self,
        blob: &Blob,
        sink: &mpsc::Sender<Chunk>,
        received: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let subject = format!("blob {}", blob.digest);
        let mut offset = 0;
        let mut last = None;
        for (_, endpoint) in self.in_order() {
            match self.stream_from(endpoint, blob, &mut offset, sink, received).await {
                Ok(()) => {
                    // A closed channel is the receiver's affair; it has its own reason.
                    let _ = sink.send(Chunk::End).await;
                    return Ok(());
                }
                Err(source) => {
                    let abandoned = matches!(source, RegistryError::Abandoned);
                    last = Some(self.failed(endpoint, &subject, source));
                    if abandoned {
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or(ImageError::Interrupted(subject)))
    }

    async fn stream_from(
        &self,
        endpoint: &Endpoint,
        blob: &Blob,
        offset: &mut u64,
        sink: &mpsc::Sender<Chunk>,
        received: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let mut attempt = 1;
        loop {
            let before = *offset;
            let error = match self.stream_once(endpoint, blob, offset, sink, received).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if *offset > before {
                attempt = 1;
            }
            if attempt >= self.config.retry.attempts || !wait_before_retry(&error, attempt, self.config.retry).await {
                return Err(error);
            }
            attempt += 1;
        }
    }

    async fn stream_once(
        &self,
        endpoint: &Endpoint,
        blob: &Blob,
        offset: &mut u64,
        sink: &mpsc::Sender<Chunk>,
        received: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        // The last byte came, only the end of the answer was lost.
        if *offset == blob.size && blob.size > 0 {
            return Ok(());
        }
        let request = Request {
            method: Method::GET,
            kind: "blobs",
            version: blob.digest.as_str(),
            accept: None,
            offset: *offset,
        };
        let mut response = endpoint.send(&request).await?;
        let mut skip = match response.status() {
            // Ranges are optional for registries: what is known already is read again and dropped.
            StatusCode::OK => *offset,
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(*offset) => 0,
            StatusCode::PARTIAL_CONTENT => return Err(RegistryError::Protocol("answer with another range".into())),
            status => return Err(RegistryError::Status { status: status.as_u16(), message: String::new() }),
        };
        loop {
            let chunk = timeout(endpoint.patience(), response.chunk())
                .await
                .map_err(|_| RegistryError::Stalled(endpoint.patience()))?
                .map_err(|error| RegistryError::Unreachable(cause(error)))?;
            let Some(mut chunk) = chunk else { break };
            let dropped = skip.min(chunk.len() as u64);
            skip -= dropped;
            let chunk = chunk.split_off(dropped as usize);
            let length = chunk.len() as u64;
            if *offset + length > blob.size {
                return Err(RegistryError::Protocol(format!("more than the announced {} bytes", blob.size)));
            }
            if length > 0 {
                // Waiting here is the disk's slowness, not the registry's: no timer.
                sink.send(Chunk::Data(chunk)).await.map_err(|_| RegistryError::Abandoned)?;
                *offset += length;
                received(length);
            }
        }
        if *offset == blob.size {
            return Ok(());
        }
        Err(RegistryError::Unreachable(format!("truncated after {offset} of {} bytes", blob.size)))
    }
}

/// `Content-Range: bytes START-END/SIZE`.
fn range_start(response: &reqwest::Response) -> Option<u64> {
    let value = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
