//! Unpacked layers on disk: `layers/<hex of the diff id>/{fs,layer.json}`.
//!
//! A layer is filled under a temporary name and gets its own by a rename once everything in it is on disk. So a layer
//! that has its name is whole, after a crash or a power cut at any moment, and everything else is swept away.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::RenameFlags, unistd::syncfs};

use super::{
    digest::Digest,
    error::ImageError,
    unpack::{LayerSummary, remove::remove_tree},
};
use crate::{store::durable, sys::beneath};

const TEMPORARY: &str = ".tmp-";
const SUMMARY: &str = "layer.json";

/// The directory of all layers.
#[derive(Debug, Clone)]
pub(super) struct LayerStore {
    directory: PathBuf,
}

/// A layer being filled. Dropped without [`LayerStore::commit`], it is removed.
pub(super) struct Unfinished {
    directory: PathBuf,
    committed: bool,
}

impl Unfinished {
    /// The future lower directory.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("fs")
    }

    /// For what is replaced on the way.
    pub(super) fn trash(&self) -> PathBuf {
        self.directory.join("trash")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = remove_tree(&self.directory)
        {
            let path = self.directory.display();
            tracing::warn!(%path, %error, "cannot remove an unfinished layer now, leaving it to the next start");
        }
    }
}

impl LayerStore {
    /// Opens or makes the directory; also tells what earlier runs left half-made.
    pub(super) fn open(directory: PathBuf) -> Result<(LayerStore, Vec<PathBuf>), ImageError> {
        make_private(&directory)?;
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(&directory).map_err(ImageError::io("list", &directory))? {
            let entry = entry.map_err(ImageError::io("list", &directory))?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                leftovers.push(entry.path());
            }
        }
        Ok((LayerStore { directory }, leftovers))
    }

    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.directory.join(diff_id.hex())
    }

    /// The overlay lower directory of a layer.
    pub(super) fn lower(&self, diff_id: &Digest) -> PathBuf {
        self.layer(diff_id).join("fs")
    }

    /// An empty lower directory, for images without layers.
    pub(super) fn empty_lower(&self) -> Result<PathBuf, ImageError> {
        let path = self.directory.join("empty").join("fs");
        fs::create_dir_all(&path).map_err(ImageError::io("create", &path))?;
        Ok(path)
    }

    /// What a layer holds; `None` when it is not here.
    pub(super) fn summary(&self, diff_id: &Digest) -> Option<LayerSummary> {
        let directory = self.layer(diff_id);
        let summary = durable::read_json(&directory.join(SUMMARY)).ok().flatten()?;
        directory.join("fs").is_dir().then_some(summary)
    }

    /// Whether a layer is here, without reading it.
    pub(super) fn has(&self, diff_id: &Digest) -> bool {
        let directory = self.layer(diff_id);
        directory.join("fs").is_dir() && directory.join(SUMMARY).is_file()
    }

    /// All layers that have their name.
    pub(super) fn list(&self) -> Result<Vec<Digest>, ImageError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(ImageError::io("list", &self.directory))? {
            let entry = entry.map_err(ImageError::io("list", &self.directory))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let digest = Digest::parse(&format!("sha256:{name}")).or_else(|_| Digest::parse(&format!("sha512:{name}")));
            found.extend(digest);
        }
        Ok(found)
    }

    /// Begins a layer.
    pub(super) fn begin(&self) -> Result<Unfinished, ImageError> {
        let directory = self.temporary();
        let unfinished = Unfinished { directory: directory.clone(), committed: false };
        for path in [directory, unfinished.root(), unfinished.trash()] {
            // The layer's root is what processes see as `/` only until the container's own upper layer covers it.
            let mode = if path.ends_with("fs") { 0o755 } else { 0o700 };
            fs::DirBuilder::new().mode(mode).create(&path).map_err(ImageError::io("create", &path))?;
        }
        Ok(unfinished)
    }

    /// Makes a layer durable, then gives it its name. When another has it already, that one stays.
    pub(super) fn commit(
        &self,
        mut unfinished: Unfinished,
        diff_id: &Digest,
        summary: &LayerSummary,
    ) -> Result<(), ImageError> {
        let trash = unfinished.trash();
        remove_tree(&trash).map_err(ImageError::io("remove", &trash))?;
        let record = unfinished.directory.join(SUMMARY);
        let bytes = serde_json::to_vec(summary).map_err(|error| ImageError::io("encode", &record)(error.into()))?;
        fs::write(&record, bytes).map_err(ImageError::io("write", &record))?;
        // One flush of the file system instead of one fsync for each of thousands of files.
        let root =
            beneath::open_directory(&unfinished.directory).map_err(ImageError::io("open", &unfinished.directory))?;
        syncfs(&root).map_err(|errno| ImageError::io("sync", &unfinished.directory)(errno.into()))?;
        let target = self.layer(diff_id);
        match nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            &unfinished.directory,
            nix::fcntl::AT_FDCWD,
            &target,
            RenameFlags::RENAME_NOREPLACE,
        ) {
            Ok(()) => unfinished.committed = true,
            Err(Errno::EEXIST) if self.has(diff_id) => return Ok(()),
            // Something without a record has the name: never a layer of ours.
            Err(Errno::EEXIST) => {
                let aside = self.temporary();
                fs::rename(&target, &aside).map_err(ImageError::io("rename", &target))?;
                fs::rename(&unfinished.directory, &target).map_err(ImageError::io("rename", &target))?;
                unfinished.committed = true;
                remove_tree(&aside).map_err(ImageError::io("remove", &aside))?;
            }
            Err(errno) => return Err(ImageError::io("rename", &target)(errno.into())),
        }
        self.sync()
    }

    /// Makes names that were given or taken durable.
    fn sync(&self) -> Result<(), ImageError> {
        let sync = || fs::File::open(&self.directory)?.sync_all();
        sync().map_err(ImageError::io("sync", &self.directory))
    }

    /// Takes a layer's name away; the returned directory is to be removed with [`remove_tree`], at leisure.
    pub(super) fn retire(&self, diff_id: &Digest) -> Result<PathBuf, ImageError> {
        let path = self.layer(diff_id);
        let aside = self.temporary();
        fs::rename(&path, &aside).map_err(ImageError::io("rename", &path))?;
        Ok(aside)
    }

    fn temporary(&self) -> PathBuf {
        self.directory.join(format!("{TEMPORARY}{}", super::random_name()))
    }
}

/// Makes a directory only its owner may enter: layers contain setuid programs.
pub(super) fn make_private(path: &Path) -> Result<(), ImageError> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(ImageError::io("create", path)(error)),
    }
}
