//! What is kept of a published volume, and the directories of drivers, in the kubelet's layout (some drivers look at it).

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::{
    csi::{
        PLUGIN,
        volume::{CsiVolume, Lifecycle},
    },
    store::{
        durable::{self, Placed, StoreError},
        layout::{Layout, PodDirs},
    },
    volume::mount_table,
};

/// Version of a record.
const VERSION: u32 = 1;

/// The kubelet's file about a volume. Nothing here reads it.
const DATA: &str = "vol_data.json";

/// That a volume may be published for a pod: on disk before the driver is asked, removed when it has taken it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// What the directories of the volume are called.
    pub name: String,
    /// Name of the driver.
    pub driver: String,
    /// What the driver calls the volume.
    pub handle: String,
    /// Where it is published.
    pub target: PathBuf,
    /// Where it is staged for all pods of the node, by a driver that does.
    pub staging: Option<PathBuf>,
    /// It is a device.
    pub block: bool,
}

/// A record could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory or a link.
    #[error("{step} {path}")]
    Io {
        /// `create`, `list`, `remove`.
        step: &'static str,
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A newer agent wrote it.
    #[error("{path} has version {found}; this program knows {VERSION}")]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Two volumes of a pod would be at one place.
    #[error("volume {name:?} is published for this pod already, by another driver or with another handle")]
    Taken {
        /// What both are called.
        name: String,
    },
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Io { step, path, source }
}

fn make(directory: &Path, mode: u32) -> Result<(), RecordError> {
    DirBuilder::new().recursive(true).mode(mode).create(directory).map_err(failed("create", directory))
}

fn absent_is_fine(result: io::Result<()>, step: &'static str, path: &Path) -> Result<(), RecordError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(step, path)(error)),
        _ => Ok(()),
    }
}

/// Where the volumes of all drivers are that belong to no pod alone.
fn global(layout: &Layout) -> PathBuf {
    layout.plugins().join(PLUGIN)
}

impl Record {
    /// The record of a volume for a pod, staged by its driver if it `stages`.
    pub fn of(volume: &CsiVolume, stages: bool, layout: &Layout, pod: &PodDirs, uid: &str) -> Record {
        let (global, name) = (global(layout), &volume.name);
        let devices = global.join("volumeDevices");
        let staging = match volume.block {
            true => devices.join("staging").join(name),
            false => global.join(&volume.driver).join(volume.digest()).join("globalmount"),
        };
        Record {
            version: VERSION,
            name: name.clone(),
            driver: volume.driver.clone(),
            handle: volume.handle.clone(),
            target: match volume.block {
                true => devices.join("publish").join(name).join(uid),
                false => pod.volume(PLUGIN, name).join("mount"),
            },
            staging: (stages && volume.lifecycle == Lifecycle::Persistent).then_some(staging),
            block: volume.block,
        }
    }

    /// Writes the record of the volume that the pod calls `volume`, durably and with the pod's own before it, and then
    /// makes the directories that the driver is to find.
    pub fn write(&self, volume: &str, lifecycle: Lifecycle, node: &Node<'_>) -> Result<(), RecordError> {
        let taken = |other: &(String, Record)| {
            other.0 != volume
                && other.1.target == self.target
                && (&other.1.driver, &other.1.handle) != (&self.driver, &self.handle)
        };
        if all(node.pod)?.iter().any(taken) {
            return Err(RecordError::Taken { name: self.name.clone() });
        }
        let path = node.pod.csi_file(volume);
        if durable::read_json::<Record>(&path)?.as_ref() != Some(self) {
            // What a driver has done must not outlive the record of the pod it was done for.
            Placed::sync_all(vec![Placed::open(&node.pod.pod_file())?, Placed::open(&node.pod.dir)?])?;
            make(&node.pod.csi(), 0o700)?;
            durable::sync_parent(&node.pod.csi())?;
            durable::write_json(&path, self)?;
        }
        self.make_directories(lifecycle, node)
    }

    /// Whether a driver has made something at the place of the pod.
    pub fn is_published(&self) -> Result<bool, RecordError> {
        match self.block {
            // A node, or something bound to a file.
            true => Ok(self.target.exists()),
            false => is_mounted(&self.target),
        }
    }

    /// Whether a driver has made something that this record tells of, as far as that can be seen.
    pub fn is_there(&self) -> Result<bool, RecordError> {
        Ok(self.is_published()? || self.staging.as_deref().map_or(Ok(false), is_mounted)?)
    }

    fn make_directories(&self, lifecycle: Lifecycle, node: &Node<'_>) -> Result<(), RecordError> {
        let Record { name, driver, handle, target, .. } = self;
        let data = BTreeMap::from([
            ("specVolID", name.as_str()),
            ("volumeHandle", handle),
            ("driverName", driver),
            ("nodeName", node.name),
            ("attachmentID", node.attachment),
            ("volumeLifecycleMode", lifecycle.as_str()),
        ]);
        let above = target.parent().unwrap_or(target);
        make(above, 0o750)?;
        if self.block {
            let directory = global(node.layout).join("volumeDevices").join(name).join("data");
            make(&directory, 0o750)?;
            durable::write_json_until_reboot(&directory.join(DATA), &data)?;
            let link = node.pod.volume_device(PLUGIN, name);
            make(link.parent().unwrap_or(&link), 0o750)?;
            match symlink(target, &link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create", &link)(error));
                }
                _ => {}
            }
        } else {
            durable::write_json_until_reboot(&above.join(DATA), &data)?;
        }
        if let Some(staging) = &self.staging {
            make(staging, 0o750)?;
            if !self.block {
                let data = BTreeMap::from([("volumeHandle", handle), ("driverName", driver)]);
                durable::write_json_until_reboot(&staging.with_file_name(DATA), &data)?;
            }
        }
        Ok(())
    }

    /// Removes what [`Record::write`] made for this pod, the record last. Whatever a driver has left mounted stays, for
    /// the pod's other volumes to go with.
    pub fn remove(&self, volume: &str, layout: &Layout, pod: &PodDirs) -> Result<(), RecordError> {
        let above = self.target.parent().unwrap_or(&self.target);
        if self.block {
            remove_device(&self.target)?;
            let link = pod.volume_device(PLUGIN, &self.name);
            absent_is_fine(fs::remove_file(&link), "remove", &link)?;
            prune(above, &layout.plugins());
        } else if remove_unmounted(&self.target)? {
            let data = above.join(DATA);
            absent_is_fine(fs::remove_file(&data), "remove", &data)?;
            absent_is_fine(fs::remove_dir(above), "remove", above)?;
        }
        let path = pod.csi_file(volume);
        absent_is_fine(fs::remove_file(&path), "remove", &path)
    }

    /// Removes the directories of a volume that is not staged any more.
    pub fn remove_staging(&self, layout: &Layout) -> Result<(), RecordError> {
        if let Some(staging) = &self.staging
            && remove_unmounted(staging)?
        {
            if !self.block {
                let data = staging.with_file_name(DATA);
                absent_is_fine(fs::remove_file(&data), "remove", &data)?;
            }
            prune(staging.parent().unwrap_or(staging), &layout.plugins());
        }
        if self.block {
            let directory = global(layout).join("volumeDevices").join(&self.name).join("data");
            let data = directory.join(DATA);
            absent_is_fine(fs::remove_file(&data), "remove", &data)?;
            prune(&directory, &layout.plugins());
        }
        Ok(())
    }
}

/// What a record has to know of its node and pod.
pub struct Node<'a> {
    /// The node's directories.
    pub layout: &'a Layout,
    /// The pod's.
    pub pod: &'a PodDirs,
    /// Name of the node.
    pub name: &'a str,
    /// What the attachment of the volume would be called.
    pub attachment: &'a str,
}

/// The records of a pod, by the name the pod has for the volume.
pub fn all(pod: &PodDirs) -> Result<Vec<(String, Record)>, RecordError> {
    in_directory(&pod.csi())
}

fn in_directory(directory: &Path) -> Result<Vec<(String, Record)>, RecordError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", directory))?.path();
        // A temporary file is what a write has left that did not come to its end: nothing was done after it.
        let Some(volume) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")) else { continue };
        match durable::read_json::<Record>(&path)? {
            Some(record) if record.version > VERSION => {
                return Err(RecordError::Newer { path, found: record.version });
            }
            Some(record) => found.push((volume.to_owned(), record)),
            None => {}
        }
    }
    Ok(found)
}

/// Whether a pod other than `uid` has the volume of `record`. One whose records cannot be read is taken to have it: the
/// volume stays staged then, and nobody is held up.
pub fn is_used_by_others(record: &Record, layout: &Layout, uid: &str) -> Result<bool, RecordError> {
    let pods = layout.pods();
    for entry in fs::read_dir(&pods).map_err(failed("list", &pods))? {
        let entry = entry.map_err(failed("list", &pods))?;
        if entry.file_name() == uid {
            continue;
        }
        let same = |other: &(String, Record)| (&other.1.driver, &other.1.handle) == (&record.driver, &record.handle);
        match in_directory(&entry.path().join("csi")) {
            Ok(records) if !records.iter().any(same) => {}
            Ok(_) => return Ok(true),
            Err(error) => {
                tracing::warn!(driver = record.driver, volume = record.handle, %error, "the volume stays staged");
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether something is mounted at `path`. Asks the mount table, as the place itself may not answer.
fn is_mounted(path: &Path) -> Result<bool, RecordError> {
    let points = mount_table::mount_points().map_err(failed("read the mount table for", path))?;
    // As the table writes it, but for the last part, which is what may not answer.
    let parent = path.parent().unwrap_or(path);
    match fs::canonicalize(parent) {
        Ok(parent) => {
            let path = parent.join(path.file_name().unwrap_or_default());
            Ok(points.contains(&path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("resolve", parent)(error)),
    }
}

/// Removes a directory that drivers are to leave behind empty, unless it is mounted; whether it is gone.
fn remove_unmounted(directory: &Path) -> Result<bool, RecordError> {
    if is_mounted(directory)? {
        return Ok(false);
    }
    absent_is_fine(fs::remove_dir(directory), "remove", directory).map(|()| true)
}

/// Removes the node of a device that a driver has left there, or what it has bound to it.
fn remove_device(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
            umount2(path, flags).map_err(|error| failed("unmount", path)(error.into()))?;
            absent_is_fine(fs::remove_file(path), "remove", path)
        }
        removed => absent_is_fine(removed, "remove", path),
    }
}

/// Removes a directory and those above it that are empty then, up to `top` and with it.
fn prune(directory: &Path, top: &Path) {
    let above = directory.ancestors().take_while(|path| path.starts_with(top));
    for path in above {
        // Not empty: somebody else's are in it.
        if fs::remove_dir(path).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World {
        root: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            World { root: tempfile::tempdir().unwrap() }
        }

        fn layout(&self) -> Layout {
            let root = self.root.path().canonicalize().unwrap();
            Layout { root: root.join("root"), run: root.join("run"), log: root.join("log") }
        }

        /// The directories of a pod whose record is there.
        fn pod(&self, uid: &str) -> PodDirs {
            let pod = self.layout().pod(uid, "n", "p");
            fs::create_dir_all(&pod.dir).unwrap();
            fs::write(pod.pod_file(), "{}").unwrap();
            pod
        }

        fn write(&self, uid: &str, volume: &str, csi: &CsiVolume) -> Result<Record, RecordError> {
            let (layout, pod) = (self.layout(), self.pod(uid));
            let record = Record::of(csi, true, &layout, &pod, uid);
            let node = Node { layout: &layout, pod: &pod, name: "node", attachment: "csi-x" };
            record.write(volume, csi.lifecycle, &node).map(|()| record)
        }

        fn left(&self) -> Vec<PathBuf> {
            let mut found = Vec::new();
            let mut pending = vec![self.layout().root];
            while let Some(directory) = pending.pop() {
                for entry in fs::read_dir(directory).unwrap().flatten() {
                    found.push(entry.path());
                    if entry.file_type().unwrap().is_dir() {
                        pending.push(entry.path());
                    }
                }
            }
            found
        }
    }

    fn persistent(name: &str, handle: &str, mode: &str) -> CsiVolume {
        let volume = json!({"metadata": {"name": name}, "spec": {"volumeMode": mode, "csi": {
            "driver": "d.example", "volumeHandle": handle}}});
        CsiVolume::persistent(&serde_json::from_value(volume).unwrap(), false).unwrap()
    }

    #[test]
    fn what_is_written_can_be_removed_again_and_again() {
        for mode in ["Filesystem", "Block"] {
            let world = World::new();
            world.pod("u");
            let (layout, pod) = (world.layout(), world.pod("u"));
            let csi = persistent("pv", "h", mode);
            let record = world.write("u", "v", &csi).unwrap();
            assert_eq!(world.write("u", "v", &csi).unwrap(), record, "written twice");
            assert_eq!(all(&pod).unwrap(), [("v".to_owned(), record.clone())]);
            assert!(record.staging.as_ref().unwrap().is_dir() && record.target.parent().unwrap().is_dir());
            assert!(!record.is_there().unwrap(), "a driver has yet to come");
            for _ in 0..2 {
                record.remove_staging(&layout).unwrap();
                record.remove("v", &layout, &pod).unwrap();
            }
            assert_eq!(all(&pod).unwrap(), []);
            let files: Vec<_> = world.left().into_iter().filter(|path| !path.is_dir()).collect();
            assert_eq!(files, [pod.pod_file()], "{mode}");
            assert!(!layout.plugins().exists(), "{mode}");
        }
    }

    #[test]
    fn a_volume_is_the_same_by_driver_and_handle_whatever_it_is_called() {
        let world = World::new();
        let record = world.write("one", "v", &persistent("pv", "h", "Filesystem")).unwrap();
        let used = || is_used_by_others(&record, &world.layout(), "one").unwrap();
        assert!(!used());
        world.write("two", "v", &persistent("pv", "another", "Filesystem")).unwrap();
        assert!(!used());
        world.write("three", "v", &persistent("other", "h", "Filesystem")).unwrap();
        assert!(used());
    }

    #[test]
    fn two_volumes_of_a_pod_are_not_put_into_one_place() {
        let world = World::new();
        world.write("u", "first", &persistent("pv", "h", "Filesystem")).unwrap();
        world.write("u", "second", &persistent("pv", "h", "Filesystem")).unwrap();
        let error = world.write("u", "third", &persistent("pv", "other", "Filesystem")).unwrap_err();
        assert!(matches!(error, RecordError::Taken { .. }), "{error}");
    }

    #[test]
    fn a_record_that_cannot_be_used_is_not_taken_for_none() {
        let world = World::new();
        let record = world.write("one", "v", &persistent("pv", "h", "Filesystem")).unwrap();
        let path = world.pod("one").csi_file("v");
        for text in
            ["{\"version\"".to_owned(), serde_json::to_string(&Record { version: 2, ..record.clone() }).unwrap()]
        {
            fs::write(&path, text).unwrap();
            assert!(all(&world.pod("one")).is_err());
            let another = Record { handle: "another".to_owned(), ..record.clone() };
            assert!(is_used_by_others(&another, &world.layout(), "two").unwrap());
        }
    }
}
