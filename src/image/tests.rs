//! The store as a whole, without a network.

use std::{fs, path::Path};

use super::{
    digest::Digest,
    testing::{LayerTar, TestImage, gzip, settings, tar_of, write_tree, zstd},
    *,
};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn open(&self) -> ImageStore {
        ImageStore::open(&self.path("images"), settings()).await.unwrap()
    }

    fn layers(&self) -> Vec<String> {
        names(&self.path("images/layers"))
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn unused(_: &str) -> bool {
    false
}

#[tokio::test]
async fn every_form_of_an_archive_gives_the_same_image() {
    let image = TestImage::simple("one");
    let (layout, docker) = (image.layout("example.com/app:1"), image.docker_archive("example.com/app:1"));
    let place = Place::new();
    write_tree(&place.path("layout"), &layout);
    write_tree(&place.path("docker"), &docker);
    let mut reversed = layout.clone();
    reversed.reverse();
    let forms = [
        (place.path("layout"), true),
        (place.path("docker"), false),
        (place.write("layout.tar", &tar_of(&layout)), true),
        (place.write("reversed.tar", &tar_of(&reversed)), true),
        (place.write("layout.tar.gz", &gzip(&tar_of(&layout))), true),
        (place.write("layout.tar.zst", &zstd(&tar_of(&layout))), true),
        (place.write("docker.tar", &tar_of(&docker)), false),
        (place.write("docker.tar.gz", &gzip(&tar_of(&docker))), false),
    ];
    for (path, has_digest) in forms {
        let place = Place::new();
        let store = place.open().await;
        let loaded = store.load(&path, None).await.unwrap();
        let [loaded] = loaded.as_slice() else { panic!("{path:?}: {loaded:?}") };
        assert_eq!(loaded.id, image.id(), "{path:?}");
        assert_eq!(loaded.repo_tags, ["example.com/app:1"], "{path:?}");
        let digests = if has_digest { vec![format!("example.com/app@{}", image.digest())] } else { Vec::new() };
        assert_eq!(loaded.repo_digests, digests);
        assert_eq!(loaded.config.cmd, ["/bin/app"]);
        assert_eq!(loaded.config.user, "nobody");
        assert_eq!(fs::read(loaded.layers[0].join("marker")).unwrap(), b"one", "topmost first");
        assert_eq!(fs::read(loaded.layers[1].join("bin/app")).unwrap(), b"#!/bin/sh\n");
        for name in ["example.com/app:1", &image.id(), &image.id()[7..19], &image.id()[..12]] {
            assert_eq!(store.get(name).as_ref(), Some(loaded), "{name}");
        }
        assert!(store.get("example.com/app").is_none());
        // The same after a restart.
        drop(store);
        assert_eq!(place.open().await.list(), std::slice::from_ref(loaded));
        assert!(!names(&place.path("images")).iter().any(|name| name.starts_with(".spool")));
    }
}

#[tokio::test]
async fn a_stream_is_loaded_and_named() {
    let (place, image) = (Place::new(), TestImage::simple("one"));
    let store = place.open().await;
    let bytes = gzip(&tar_of(&image.layout("latest")));
    let loaded = store.load_reader(&bytes[..], None).await.unwrap();
    assert_eq!(loaded[0].repo_tags, Vec::<String>::new(), "a bare tag names no repository");
    let loaded = store.load_reader(&bytes[..], Some("app")).await.unwrap();
    assert_eq!(loaded[0].repo_tags, ["docker.io/library/app:latest"]);
    assert_eq!(loaded[0].repo_digests, [format!("docker.io/library/app@{}", image.digest())]);
    let by_digest = format!("app:ignored@{}", image.digest());
    assert_eq!(store.get(&by_digest).unwrap().id, image.id());
}

#[tokio::test]
async fn bad_archives_are_refused_with_the_cause_and_leave_nothing() {
    let (place, image) = (Place::new(), TestImage::simple("one"));
    let store = place.open().await;
    let layout = image.layout("example.com/app:1");
    let without = |part: &str| {
        let members: Vec<_> = layout.iter().filter(|(name, _)| !name.contains(part)).cloned().collect();
        tar_of(&members)
    };
    let damaged = |part: &str| {
        let mut members = layout.clone();
        let member = members.iter_mut().find(|(name, _)| name.contains(part)).unwrap();
        let last = member.1.len() - 1;
        member.1[last] ^= 1;
        tar_of(&members)
    };
    let whole = tar_of(&layout);
    let (layer, config) = (Digest::of(&image.layers[0]), Digest::of(&image.config));
    let mut wrong_diff = image.docker_archive("a");
    wrong_diff[0].1 = LayerTar::new().file("other", b"").finish();
    let climbing = vec![(
        "manifest.json".to_owned(),
        br#"[{"Config":"../../../etc/passwd","RepoTags":null,"Layers":[]}]"#.to_vec(),
    )];
    for (what, bytes, cause) in [
        ("text", b"hello".to_vec(), "truncated"),
        ("long text", vec![b'x'; 3000], "not a tar archive"),
        ("empty", Vec::new(), "neither an OCI layout"),
        ("no index", without("index.json"), "neither an OCI layout"),
        ("no layer", without(layer.hex()), "is missing"),
        ("no config", without(config.hex()), "is missing"),
        ("bad layer", damaged(layer.hex()), "unpack layer"),
        ("bad config", damaged(config.hex()), "digest mismatch"),
        ("truncated", whole[..whole.len() / 2 + 100].to_vec(), "truncated"),
        ("wrong diff id", tar_of(&wrong_diff), "digest mismatch of the uncompressed layer"),
        ("climbing", tar_of(&climbing), "out of the"),
    ] {
        let error = store.load(&place.write("archive", &bytes), None).await.unwrap_err();
        assert!(error.message().contains(cause), "{what}: {}", error.message());
    }
    assert!(store.load(&place.path("nothing"), None).await.unwrap_err().message().contains("No such file"));
    assert!(store.list().is_empty());
    // A layer whose load was given up because another one failed removes its own half on the thread it is unpacked on.
    let half_made = || place.layers().into_iter().filter(|name| name.starts_with(".tmp")).collect::<Vec<_>>();
    for _ in 0..1000 {
        if half_made().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("left behind: {:?}", half_made());
}

#[tokio::test]
async fn several_images_share_layers_and_each_counts() {
    let place = Place::new();
    let store = place.open().await;
    let (one, two) = (TestImage::simple("one"), TestImage::simple("two"));
    for (image, name) in [(&one, "a:1"), (&two, "a:2")] {
        let path = place.write("image.tar", &tar_of(&image.layout(name)));
        store.load(&path, Some(name)).await.unwrap();
    }
    assert_eq!(place.layers().len(), 3, "the base layer is there once");
    let removed = store.remove("a:1", &unused).await.unwrap();
    assert_eq!(removed.deleted, [one.id()]);
    assert_eq!(place.layers().len(), 2);
    assert!(store.get("a:2").unwrap().layers.iter().all(|layer| layer.is_dir()));
    assert_eq!(names(&place.path("images/blobs/sha256")).len(), 2);
}

#[tokio::test]
async fn removal_respects_names_use_and_pins() {
    let place = Place::new();
    let store = place.open().await;
    let image = TestImage::simple("one");
    let path = place.write("image.tar", &tar_of(&image.docker_archive("a:1")));
    store.load(&path, Some("a:1")).await.unwrap();
    store.load(&path, Some("b:1")).await.unwrap();
    let used = |id: &str| id == image.id();

    let removed = store.remove("a:1", &used).await.unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec!["docker.io/library/a:1".to_owned()], Vec::new()));
    assert!(matches!(store.remove("b:1", &used).await, Err(ImageError::InUse { .. })));
    assert!(matches!(store.remove(&image.id(), &used).await, Err(ImageError::InUse { .. })));
    assert!(matches!(store.remove("a:1", &unused).await, Err(ImageError::NotPresent { .. })));
    store.set_pinned("b:1", true).await.unwrap();
    assert!(matches!(store.remove("b:1", &unused).await, Err(ImageError::InUse { .. })));
    assert!(store.prune(PruneScope::Unused, &unused).await.unwrap().images.is_empty());
    store.set_pinned("b:1", false).await.unwrap();
    assert!(store.prune(PruneScope::Untagged, &unused).await.unwrap().images.is_empty());
    assert!(store.prune(PruneScope::Unused, &used).await.unwrap().images.is_empty());
    let pruned = store.prune(PruneScope::Unused, &unused).await.unwrap();
    assert_eq!((pruned.images, pruned.layers), (vec![image.id()], 2));
    assert_eq!(pruned.bytes, 10 + 3);
    assert!(store.list().is_empty() && place.layers().is_empty());
}

#[tokio::test]
async fn configured_pins_hold_from_the_start() {
    let place = Place::new();
    let config = ImageConfig { pinned: vec!["a:1".into()], ..settings() };
    let store = ImageStore::open(&place.path("images"), config).await.unwrap();
    let path = place.write("image.tar", &tar_of(&TestImage::simple("one").docker_archive("a:1")));
    assert!(store.load(&path, None).await.unwrap()[0].pinned);
}

#[tokio::test]
async fn an_interrupted_run_leaves_nothing_that_is_trusted() {
    let place = Place::new();
    let store = place.open().await;
    let (one, two) = (TestImage::simple("one"), TestImage::simple("two"));
    for (image, name) in [(&one, "a:1"), (&two, "a:2")] {
        store.load(&place.write("image.tar", &tar_of(&image.docker_archive(name))), None).await.unwrap();
    }
    drop(store);
    // As after a kill in the middle of an unpack, and a lost directory.
    fs::create_dir_all(place.path("images/layers/.tmp-0123/fs/half")).unwrap();
    fs::write(place.path("images/layers/.tmp-0123/fs/half/file"), "x").unwrap();
    fs::write(place.path("images/.spool-0123"), "x").unwrap();
    fs::write(place.path("images/images.json.tmp"), "{").unwrap();
    let lost = Digest::of(&two.tars[1]);
    fs::remove_dir_all(place.path("images/layers").join(lost.hex())).unwrap();

    let store = place.open().await;
    assert_eq!(store.list().iter().map(|image| image.id.clone()).collect::<Vec<_>>(), [one.id()]);
    store.prune(PruneScope::Unreferenced, &unused).await.unwrap();
    assert!(place.layers().iter().all(|name| !name.starts_with('.')));
    assert!(!place.path("images/.spool-0123").exists());
    // What is missing is made again.
    store.load(&place.write("image.tar", &tar_of(&two.docker_archive("a:2"))), None).await.unwrap();
    assert_eq!(store.list().len(), 2);
    drop(store);
}

#[tokio::test]
async fn without_its_index_a_store_knows_its_images_by_their_ids() {
    let place = Place::new();
    let store = place.open().await;
    let base = LayerTar::new().directory("tmp/", 0o1777).file("tmp/a", b"").finish();
    let top = LayerTar::new().file("tmp/b", b"").finish();
    let implied = TestImage::new(vec![(base.clone(), gzip(&base)), (top.clone(), gzip(&top))]);
    let (one, two) = (TestImage::simple("one"), TestImage::simple("two"));
    store.load(&place.write("image.tar", &tar_of(&one.docker_archive("a:1"))), None).await.unwrap();
    store.load(&place.write("image.tar", &tar_of(&two.layout("a:2"))), None).await.unwrap();
    store.load(&place.write("image.tar", &tar_of(&implied.layout("a:3"))), None).await.unwrap();
    let before = store.list();
    drop(store);
    fs::write(place.path("images/images.json"), "not json").unwrap();
    // Nothing is written until something changes: the second start finds no index at all.
    for _ in 0..2 {
        let nameless = place.open().await.list();
        assert_eq!(nameless.len(), 3);
        for (image, known) in nameless.iter().zip(&before) {
            assert!(image.repo_tags.is_empty() && image.repo_digests.is_empty());
            let mut named = Image::clone(image);
            (named.repo_tags, named.repo_digests) = (known.repo_tags.clone(), known.repo_digests.clone());
            assert_eq!(named, **known, "everything else is as it was");
        }
    }
    assert!(place.path("images/images.json.bad").exists());

    // What a container runs from stays, with its layers; the rest can be collected, as ever.
    let store = place.open().await;
    let used = one.id();
    let pruned = store.prune(PruneScope::Unused, &|id| id == used).await.unwrap();
    assert_eq!(pruned.images.len(), 2);
    let left = store.list();
    assert_eq!((left.len(), left[0].id.clone()), (1, one.id()));
    assert!(left[0].layers.iter().all(|layer| layer.is_dir()));
    // Loaded again, it has its name again.
    let again = store.load(&place.write("image.tar", &tar_of(&one.docker_archive("a:1"))), None).await.unwrap();
    assert_eq!((again[0].id.clone(), store.get("a:1").unwrap().id.clone()), (one.id(), one.id()));
    drop(store);

    // An image that lacks a layer is none.
    fs::remove_file(place.path("images/images.json")).unwrap();
    fs::remove_dir_all(place.path("images/layers").join(Digest::of(&one.tars[0]).hex())).unwrap();
    assert!(place.open().await.list().is_empty());
}

#[tokio::test]
async fn what_is_loaded_is_told_by_the_names_it_was_loaded_by() {
    let place = Place::new();
    let store = place.open().await;
    let path = place.write("image.tar", &tar_of(&TestImage::simple("one").docker_archive("b:1")));
    store.load(&path, Some("a:1")).await.unwrap();
    let loaded = store.load(&path, None).await.unwrap();
    assert_eq!(loaded[0].repo_tags, ["docker.io/library/b:1"]);
    assert_eq!(store.get("b:1").unwrap().repo_tags, ["docker.io/library/a:1", "docker.io/library/b:1"]);
}

#[tokio::test]
async fn an_image_without_layers_still_has_a_root() {
    let place = Place::new();
    let store = place.open().await;
    let image = TestImage::new(Vec::new());
    let loaded = store.load(&place.write("i.tar", &tar_of(&image.layout("a:1"))), None).await.unwrap();
    assert_eq!(loaded[0].layers.len(), 1);
    assert!(loaded[0].layers[0].is_dir());
    store.prune(PruneScope::Unreferenced, &unused).await.unwrap();
    assert!(loaded[0].layers[0].is_dir());
}

#[tokio::test]
async fn a_layer_that_does_not_describe_its_directories_does_not_change_them() {
    use std::os::unix::fs::PermissionsExt;
    let base = LayerTar::new().directory("tmp/", 0o1777).file("tmp/a", b"").finish();
    let top = LayerTar::new().file("tmp/b", b"").file("opt/c", b"").finish();
    let image = TestImage::new(vec![(base.clone(), gzip(&base)), (top.clone(), gzip(&top))]);
    let place = Place::new();
    let store = place.open().await;
    let path = place.write("i.tar", &tar_of(&image.layout("a:1")));
    let loaded = store.load(&path, None).await.unwrap();
    let [skeleton, above, below] = loaded[0].layers.as_slice() else { panic!("{loaded:?}") };
    assert_eq!(names(skeleton), ["tmp"]);
    assert_eq!(fs::metadata(skeleton.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert!(names(&skeleton.join("tmp")).is_empty() && above.join("tmp/b").exists() && below.join("tmp/a").exists());
    store.prune(PruneScope::Unreferenced, &unused).await.unwrap();
    assert_eq!(place.open().await.list(), loaded);
    store.remove("a:1", &unused).await.unwrap();
    assert!(place.layers().is_empty());
}
