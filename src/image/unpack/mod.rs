//! Unpacks one layer into an overlay lower directory, computing its digests in the same pass.
//!
//! A layer is a change set (OCI image specification, "layer.md"): whiteouts become overlayfs's own marks, so that the
//! directory can be mounted as it is, whichever layers are beneath it.

mod apply;
mod pax;
pub(super) mod remove;
mod tar;
mod tree;

use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use self::{apply::Unpacker, tree::Tree};
use super::digest::{Digest, Hasher, HashingReader};

pub(super) use self::{
    tar::{Kind, TarReader},
    tree::CleanPath,
};

/// Decompressed data is hashed and handed on in pieces of this size.
const BUFFER: usize = 256 * 1024;
/// The largest window a zstd frame may ask for (log2 bytes): 64 MiB. Compressors use up to 8 MiB unless told `--ultra`.
const ZSTD_WINDOW_LOG: u32 = 26;

/// Bounds of what one layer may become, against archives made to fill a disk or a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of file data, holes of sparse files included.
    pub bytes: u64,
    /// Bytes of all directory names together (they are remembered until the end, to set times).
    pub directory_names: u64,
}

impl Default for UnpackLimits {
    fn default() -> UnpackLimits {
        UnpackLimits { entries: 4_000_000, bytes: 256 << 30, directory_names: 64 << 20 }
    }
}

/// What an unpacked layer holds. Kept beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// Bytes of file data.
    pub size: u64,
    /// Entries of the archive; 0 for a layer that changes nothing.
    pub entries: u64,
    /// Directories the archive puts things into without describing them: their owner and mode are those of the layers
    /// below (raw bytes are kept lossily, as such names are).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implied: Vec<String>,
}

/// A layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not a tar archive, or one that makes no sense.
    #[error("malformed archive: {0}")]
    Malformed(String),
    /// It ends too early.
    #[error("the archive is truncated")]
    Truncated,
    /// A name leads out of the layer.
    #[error("{0:?} leads out of the layer")]
    Escape(String),
    /// More than allowed.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The compressed data is bad, or its source failed.
    #[error("read")]
    Read(#[source] io::Error),
    /// The data of a file cannot be written.
    #[error("write {path}")]
    Write {
        /// Within the layer.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("{step} {path}")]
    Step {
        /// Which step.
        step: &'static str,
        /// Within the layer.
        path: String,
        /// Cause.
        #[source]
        source: Errno,
    },
    /// The compressed bytes are not those announced.
    #[error("digest mismatch of the compressed layer: expected {expected}, got {actual}")]
    BlobDigest {
        /// Announced by the manifest.
        expected: Digest,
        /// Computed.
        actual: Digest,
    },
    /// The compressed bytes are more or fewer than announced.
    #[error("size mismatch of the compressed layer: expected {expected} bytes, got {actual}")]
    BlobSize {
        /// Announced by the manifest.
        expected: u64,
        /// Counted.
        actual: u64,
    },
    /// The uncompressed bytes are not those the image's configuration lists.
    #[error("digest mismatch of the uncompressed layer: expected {expected}, got {actual}")]
    DiffId {
        /// Announced by the configuration.
        expected: Digest,
        /// Computed.
        actual: Digest,
    },
}

impl UnpackError {
    pub(super) fn step(step: &'static str, path: &[u8], source: Errno) -> UnpackError {
        UnpackError::Step { step, path: format!("/{}", String::from_utf8_lossy(path)), source }
    }

    /// A full disk or an exceeded quota.
    pub(super) fn is_disk_full(&self) -> bool {
        let full = |code: i32| code == libc::ENOSPC || code == libc::EDQUOT;
        match self {
            UnpackError::Write { source, .. } => source.raw_os_error().is_some_and(full),
            UnpackError::Step { source, .. } => full(*source as i32),
            _ => false,
        }
    }
}

/// What the bytes of a layer must turn out to be.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Digest and size of the blob as transferred; unknown in a docker-archive.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
}

/// Whether the files get the owners, devices and privileged attributes of the archive. Only tests that do not run as
/// root leave them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As in the archive.
    Apply,
    /// Everything belongs to the caller.
    Ignore,
}

/// Unpacks a layer into `root` (an empty directory); `trash` is another directory of the same file system, to be
/// deleted afterwards. Compression is recognized by its first bytes. The digests and the size are checked when all is
/// read; the caller must not use the directory unless this returns Ok.
pub fn unpack(
    source: impl BufRead,
    expected: &Expected,
    root: &Path,
    trash: &Path,
    limits: UnpackLimits,
    ownership: Ownership,
) -> Result<LayerSummary, UnpackError> {
    // A blob that is not compressed has its diff id as its digest: computing one is enough.
    let same = expected.blob.as_ref().is_some_and(|(digest, _)| *digest == expected.diff_id);
    let hasher = match &expected.blob {
        Some((digest, _)) if !same => Some(Hasher::like(digest)),
        _ => None,
    };
    let mut compressed = HashingReader::new(source, hasher);
    let decompressed = HashingReader::new(Decompressor::new(&mut compressed)?, Some(Hasher::like(&expected.diff_id)));
    let mut buffered = BufReader::with_capacity(BUFFER, decompressed);

    let tree = Tree::new(root, trash).map_err(|source| UnpackError::Write { path: "/".into(), source })?;
    let mut unpacker = Unpacker::new(tree, limits, ownership);
    let mut archive = TarReader::new(&mut buffered);
    while let Some(entry) = archive.next_entry()? {
        unpacker.apply(&entry, &mut archive)?;
    }
    let summary = unpacker.finish()?;

    // Padding after the archive belongs to the digest, and bytes after the compressed stream to the blob's.
    io::copy(&mut buffered, &mut io::sink()).map_err(tar::read_error)?;
    let (_, diff_id) = buffered.into_inner().finish();
    io::copy(&mut compressed, &mut io::sink()).map_err(tar::read_error)?;
    let (size, digest) = compressed.finish();
    if let Some((blob, blob_size)) = &expected.blob {
        if size != *blob_size {
            return Err(UnpackError::BlobSize { expected: *blob_size, actual: size });
        }
        if let Some(actual) = digest
            && actual != *blob
        {
            return Err(UnpackError::BlobDigest { expected: blob.clone(), actual });
        }
    }
    match diff_id {
        Some(actual) if actual != expected.diff_id => {
            Err(UnpackError::DiffId { expected: expected.diff_id.clone(), actual })
        }
        _ => Ok(summary),
    }
}

/// gzip, zstd or nothing, told apart by their magic numbers (RFC 1952, RFC 8878).
pub(super) enum Decompressor<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decompressor<R> {
    pub(super) fn new(mut source: R) -> Result<Decompressor<R>, UnpackError> {
        let start = source.fill_buf().map_err(tar::read_error)?;
        Ok(match start {
            [0x1f, 0x8b, ..] => Decompressor::Gzip(Box::new(MultiGzDecoder::new(source))),
            // A skippable frame (0x184D2A5?) may come first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(UnpackError::Read)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(UnpackError::Read)?;
                Decompressor::Zstd(Box::new(decoder))
            }
            _ => Decompressor::Plain(source),
        })
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Decompressor::Plain(_))
    }
}

impl<R: BufRead> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decompressor::Plain(source) => source.read(buffer),
            Decompressor::Gzip(decoder) => decoder.read(buffer),
            Decompressor::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests;
