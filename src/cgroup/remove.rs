//! Removing cgroups, and finding those that are left over.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Cgroups,
    error::CgroupError,
    kill::{children, wait_empty},
    path,
};
use crate::api::qos::QosClass;

/// How long a cgroup may take to become empty. Whoever removes one has killed it first, so that this only covers
/// processes that are on their way out.
const EMPTY_WITHIN: Duration = Duration::from_secs(2);

impl Cgroups {
    /// Removes a leaf from every hierarchy. Ok when it does not exist.
    pub fn remove_leaf(&self, qos: QosClass, uid: &str, leaf: &str) -> Result<(), CgroupError> {
        self.remove(&path::leaf(qos, uid, leaf))
    }

    /// Removes a pod and all that is below it from every hierarchy. Ok when it does not exist.
    pub fn remove_pod(&self, qos: QosClass, uid: &str) -> Result<(), CgroupError> {
        self.remove(&path::pod(qos, uid))
    }

    /// Removes `kubepods` and, unless it is `/`, the cgroup root, where no pods are left in them.
    ///
    /// # Errors
    /// A pod that is still there (`kubepods` stays), or [`CgroupError::Remove`].
    pub fn remove_tree(&self) -> Result<(), CgroupError> {
        let mut standing = path::CLASSES.map(path::class).to_vec();
        // Classes before `kubepods`, which is the class of Guaranteed pods.
        standing.rotate_left(1);
        standing.insert(0, Path::new(path::KUBEPODS).join(path::DEFAULT_DEVICES));
        let ancestors = self.parent.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty());
        for mount in self.everywhere(Path::new("")) {
            for class in &standing {
                remove_directory(&mount.join(class))?;
            }
            // `mount` ends in the cgroup root; one that others use too is theirs to remove.
            let mut root = mount.as_path();
            for _ in ancestors.clone() {
                if fs::remove_dir(root).is_err() {
                    break;
                }
                root = root.parent().unwrap_or(root);
            }
        }
        Ok(())
    }

    /// Every pod that has a cgroup in some hierarchy: what a start-up sweep compares with the records.
    pub fn list_pods(&self) -> Vec<(String, QosClass)> {
        let mut found = BTreeSet::new();
        for (index, qos) in path::CLASSES.into_iter().enumerate() {
            for directory in self.everywhere(&path::class(qos)) {
                let names = children(&directory);
                let names = names.iter().filter_map(|child| child.file_name()?.to_str());
                found.extend(names.filter_map(path::uid_of).map(|uid| (uid.to_owned(), index)));
            }
        }
        found.into_iter().map(|(uid, index)| (uid, path::CLASSES[index])).collect()
    }

    fn remove(&self, relative: &Path) -> Result<(), CgroupError> {
        self.everywhere(relative).iter().try_for_each(|directory| remove_below(directory))
    }
}

/// rmdir depth first. The directory itself is tried first: usually it is a leaf.
fn remove_below(directory: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for child in children(directory) {
        remove_below(&child)?;
    }
    match remove_directory(directory) {
        Err(CgroupError::Remove { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            wait_empty(directory, Instant::now() + EMPTY_WITHIN, EMPTY_WITHIN)?;
            remove_directory(directory)
        }
        other => other,
    }
}

fn remove_directory(directory: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::Remove { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}
