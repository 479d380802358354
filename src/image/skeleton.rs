//! Directories that a layer uses without describing them.
//!
//! Some builders write `tmp/file` without an entry for `tmp/`. Unpacked on its own, such a layer gets a `tmp` of root
//! with mode 0755, and overlayfs would show that instead of the layer below's, which is sticky and open to all. So that
//! layers stay shareable whatever is beneath them, the image gets one more, topmost layer that holds nothing but those
//! directories, with the attributes they should have: the skeleton.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, DirBuilder, Metadata, Permissions},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use super::{
    digest::Digest,
    error::ImageError,
    index::LayerRecord,
    layers::LayerStore,
    unpack::{LayerSummary, Ownership},
};
use crate::sys::beneath;

/// What a directory looks like: mode, owner, group.
type Attributes = (u32, u32, u32);

/// A layer that is in the store, with the directories it implies.
struct Layer {
    root: PathBuf,
    implied: HashSet<String>,
}

/// The attributes implied directories should have, where those differ from what they got; with all their parents.
fn missing_attributes(layers: &[Layer]) -> BTreeMap<String, Attributes> {
    let mut skeleton = BTreeMap::new();
    for path in layers.iter().flat_map(|layer| &layer.implied) {
        let Some((shown, wanted)) = effective(layers, path) else { continue };
        if shown == wanted {
            continue;
        }
        let parents = path.char_indices().filter(|(_, character)| *character == '/').map(|(index, _)| &path[..index]);
        for directory in parents.chain([path.as_str()]) {
            if let Some((_, wanted)) = effective(layers, directory) {
                skeleton.insert(directory.to_owned(), wanted);
            }
        }
    }
    skeleton
}

/// What overlayfs would show for a directory, and what the topmost layer that describes it says. `None` when it is not
/// visible as a directory. `layers` are bottom first.
fn effective(layers: &[Layer], path: &str) -> Option<(Attributes, Attributes)> {
    let mut shown = None;
    for layer in layers.iter().rev() {
        let mut place = layer.root.clone();
        let mut found = None;
        let mut hides_below = false;
        for component in path.split('/') {
            place.push(component);
            found = fs::symlink_metadata(&place).ok();
            match &found {
                Some(metadata) if metadata.is_dir() => hides_below |= is_opaque(&place),
                // A whiteout, a file or a link: whatever the layers below have is hidden.
                Some(_) => return shown.map(|shown| (shown, shown)),
                None => break,
            }
        }
        if let Some(metadata) = &found {
            let attributes = attributes(metadata);
            let shown = *shown.get_or_insert(attributes);
            if !layer.implied.contains(path) {
                return Some((shown, attributes));
            }
        }
        if hides_below {
            break;
        }
    }
    shown.map(|shown| (shown, shown))
}

fn attributes(metadata: &Metadata) -> Attributes {
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

fn is_opaque(directory: &Path) -> bool {
    let value = beneath::open_directory(directory)
        .map(|directory| beneath::get_xattr(&directory, c"trusted.overlay.opaque", 8).ok().flatten());
    matches!(value, Ok(Some(value)) if value == b"y")
}

/// Makes the skeleton an image needs, if it needs one. `layers` are bottom first. Blocking.
pub(super) fn skeleton(
    store: &LayerStore,
    layers: &[(Digest, LayerSummary)],
    ownership: Ownership,
) -> Result<Option<LayerRecord>, ImageError> {
    // The bottom layer has nothing beneath it that could say otherwise.
    if layers.iter().skip(1).all(|(_, summary)| summary.implied.is_empty()) {
        return Ok(None);
    }
    let layers: Vec<Layer> = layers
        .iter()
        .map(|(diff_id, summary)| Layer {
            root: store.lower(diff_id),
            implied: summary.implied.iter().cloned().collect(),
        })
        .collect();
    let directories = missing_attributes(&layers);
    if directories.is_empty() {
        return Ok(None);
    }
    // Named by its content, so that images which need the same share it.
    let diff_id = Digest::of(format!("skeleton {directories:?}").as_bytes());
    let summary = LayerSummary { size: 0, entries: directories.len() as u64, implied: Vec::new() };
    if !store.has(&diff_id) {
        let unfinished = store.begin()?;
        let root = unfinished.root();
        for path in directories.keys() {
            let path = root.join(path);
            DirBuilder::new().mode(0o700).create(&path).map_err(ImageError::io("create", &path))?;
        }
        for (path, (mode, uid, gid)) in directories.iter().rev() {
            let path = root.join(path);
            if ownership == Ownership::Apply {
                chown(&path, Some(*uid), Some(*gid)).map_err(ImageError::io("change the owner of", &path))?;
            }
            fs::set_permissions(&path, Permissions::from_mode(*mode))
                .map_err(ImageError::io("change the mode of", &path))?;
        }
        store.commit(unfinished, &diff_id, &summary)?;
    }
    Ok(Some(LayerRecord { diff_id, size: summary.size, entries: summary.entries }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a layer: `path mode` for each directory; `implied` ones without a description.
    fn layer(place: &Path, name: &str, directories: &[(&str, u32)], implied: &[&str]) -> Layer {
        let root = place.join(name);
        fs::create_dir(&root).unwrap();
        for (path, mode) in directories {
            fs::create_dir_all(root.join(path)).unwrap();
            fs::set_permissions(root.join(path), Permissions::from_mode(*mode)).unwrap();
        }
        Layer { root, implied: implied.iter().map(|path| (*path).to_owned()).collect() }
    }

    #[test]
    fn undescribed_directories_keep_the_attributes_of_the_layers_below() {
        let place = tempfile::tempdir().unwrap();
        let base = layer(place.path(), "base", &[("tmp", 0o1777), ("var", 0o755), ("var/private", 0o700)], &[]);
        let top = layer(
            place.path(),
            "top",
            &[("tmp", 0o755), ("var", 0o755), ("var/private", 0o755), ("new", 0o755)],
            &["tmp", "var", "var/private", "new"],
        );
        let modes: Vec<(String, u32)> =
            missing_attributes(&[base, top]).into_iter().map(|(path, (mode, ..))| (path, mode)).collect();
        assert_eq!(modes, [("tmp".into(), 0o1777), ("var".into(), 0o755), ("var/private".into(), 0o700)]);
    }

    #[test]
    fn a_description_above_and_a_file_in_between_win() {
        let place = tempfile::tempdir().unwrap();
        let base = layer(place.path(), "base", &[("a", 0o700), ("b", 0o700)], &[]);
        let middle = layer(place.path(), "middle", &[("a", 0o755)], &["a"]);
        fs::write(middle.root.join("b"), "a file now").unwrap();
        let top = layer(place.path(), "top", &[("a", 0o711), ("b", 0o755)], &["b"]);
        assert!(missing_attributes(&[base, middle, top]).is_empty());
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn what_was_deleted_below_does_not_count() {
        let place = tempfile::tempdir().unwrap();
        let base = layer(place.path(), "base", &[("a", 0o700), ("o", 0o755), ("o/p", 0o700)], &[]);
        let middle = layer(place.path(), "middle", &[("o", 0o755)], &[]);
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty());
        nix::sys::stat::mknod(&middle.root.join("a"), kind, mode, 0).unwrap();
        let opaque = beneath::open_directory(&middle.root.join("o")).unwrap();
        beneath::set_xattr(&opaque, c"trusted.overlay.opaque", b"y").unwrap();
        let top = layer(place.path(), "top", &[("a", 0o755), ("o", 0o755), ("o/p", 0o755)], &["a", "o/p"]);
        assert!(missing_attributes(&[base, middle, top]).is_empty());
    }
}
