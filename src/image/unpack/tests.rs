use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
};

use ::tar::{EntryType, Header};
use proptest::prelude::*;

use super::*;
use crate::{
    image::testing::{LayerTar, MTIME, gzip, zstd},
    sys::beneath,
};

/// A place with something outside of the layer that must stay as it is.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        for path in ["layer/fs", "layer/trash", "outside/directory"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        fs::write(directory.path().join("outside/victim"), "untouched").unwrap();
        fs::set_permissions(directory.path().join("outside"), fs::Permissions::from_mode(0o711)).unwrap();
        Place { directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("layer/fs")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn outside(&self) -> String {
        self.directory.path().join("outside").to_str().unwrap().to_owned()
    }

    fn unpack_as(&self, tar: &[u8], limits: UnpackLimits, ownership: Ownership) -> Result<LayerSummary, UnpackError> {
        let expected = Expected { blob: Some((Digest::of(tar), tar.len() as u64)), diff_id: Digest::of(tar) };
        let trash = self.directory.path().join("layer/trash");
        unpack(tar, &expected, &self.root(), &trash, limits, ownership)
    }

    fn unpack(&self, tar: &LayerTarBytes) -> Result<LayerSummary, UnpackError> {
        self.unpack_as(tar, UnpackLimits::default(), Ownership::Ignore)
    }

    /// Everything outside of the layer: names, content, modes, times.
    fn fingerprint(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for name in ["outside", "outside/victim", "outside/directory", "layer"] {
            let path = self.directory.path().join(name);
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_file() { fs::read_to_string(&path).unwrap() } else { names(&path).join(",") };
            let (mode, links) = (metadata.mode(), metadata.nlink());
            let mtime = if name == "layer" { 0 } else { metadata.mtime() };
            lines.push(format!("{name} {mode:o} {links} {mtime} {content}"));
        }
        lines
    }
}

type LayerTarBytes = Vec<u8>;

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_ordinary_layer_is_unpacked_with_modes_times_and_links() {
    let place = Place::new();
    let long = format!("deep/{}/file", "n".repeat(180));
    let tar = LayerTar::new()
        .directory("./", 0o755)
        .directory("./etc/", 0o750)
        .file("./etc/config", b"hello")
        .entry(EntryType::Regular, "etc/tool", "", 0o4755, b"x")
        .symlink("etc/link", "config")
        .hardlink("etc/other", "./etc/config")
        .entry(EntryType::Fifo, "etc/pipe", "", 0o600, b"")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1000.5")])
        .file("short", b"long name")
        .entry(EntryType::GNULongName, "././@LongLink", "", 0, format!("{long}2\0").as_bytes())
        .file("short", b"gnu")
        .finish();
    let summary = place.unpack(&tar).unwrap();
    assert_eq!(fs::read(place.path("etc/config")).unwrap(), b"hello");
    assert_eq!(fs::metadata(place.path("etc/tool")).unwrap().mode() & 0o7777, 0o4755);
    let directory = fs::metadata(place.path("etc")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o750, MTIME as i64), "set after its content");
    assert_eq!(fs::read_link(place.path("etc/link")).unwrap(), Path::new("config"));
    assert_eq!(fs::symlink_metadata(place.path("etc/link")).unwrap().mtime(), MTIME as i64);
    let inode = |name: &str| fs::metadata(place.path(name)).unwrap().ino();
    assert_eq!(inode("etc/config"), inode("etc/other"));
    assert!(fs::metadata(place.path("etc/pipe")).unwrap().file_type().is_fifo());
    let metadata = fs::metadata(place.path(&long)).unwrap();
    assert_eq!((metadata.len(), metadata.mtime(), metadata.mtime_nsec()), (9, 1000, 500_000_000));
    assert_eq!(fs::read(place.path(&format!("{long}2"))).unwrap(), b"gnu");
    assert_eq!(summary.entries, 9);
    assert_eq!(summary.size, 5 + 1 + 9 + 3);
    assert_eq!(summary.implied, ["deep".to_owned(), format!("deep/{}", "n".repeat(180))]);
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    let place = Place::new();
    let tar = LayerTar::new()
        .directory("a/", 0o700)
        .file("a/inside", b"old")
        .file("a", b"a file now")
        .file("b", b"old")
        .directory("b/", 0o711)
        .file("b/new", b"new")
        .symlink("c", "b")
        .directory("c/", 0o755)
        .file("c/own", b"")
        .file("d", b"first")
        .file("d", b"second")
        .hardlink("d", "d")
        .finish();
    place.unpack(&tar).unwrap();
    assert_eq!(fs::read(place.path("a")).unwrap(), b"a file now");
    assert_eq!(names(&place.path("b")), ["new"]);
    assert_eq!(names(&place.path("c")), ["own"]);
    assert_eq!(fs::read(place.path("d")).unwrap(), b"second");
}

#[test]
fn links_within_the_layer_lead_where_they_would_in_the_container() {
    let place = Place::new();
    let tar = LayerTar::new()
        .directory("usr/lib/", 0o755)
        .symlink("lib", "usr/lib")
        .file("lib/a.so", b"1")
        .symlink("abs", "/usr/lib")
        .file("abs/b.so", b"2")
        .symlink("run", "/var/not/here/yet")
        .file("run/pid", b"3")
        .symlink("up", "../../../..")
        .file("up/at-root", b"4")
        .finish();
    place.unpack(&tar).unwrap();
    assert_eq!(names(&place.path("usr/lib")), ["a.so", "b.so"]);
    assert!(fs::symlink_metadata(place.path("lib")).unwrap().is_symlink(), "not replaced by a directory");
    assert_eq!(fs::read(place.path("var/not/here/yet/pid")).unwrap(), b"3");
    assert_eq!(fs::read(place.path("at-root")).unwrap(), b"4");
}

#[test]
fn nothing_leads_out_of_the_layer() {
    let base = Place::new();
    let outside = base.outside();
    let inner = format!("{outside}/victim");
    type Build = Box<dyn Fn(LayerTar) -> LayerTar>;
    let out = outside.clone();
    let attacks: Vec<(&str, bool, Build)> = vec![
        ("climbing name", true, Box::new(|tar| tar.file("../../outside/victim", b"evil"))),
        ("climbing in the middle", true, Box::new(|tar| tar.file("a/../../../outside/victim", b"evil"))),
        ("climbing directory", true, Box::new(|tar| tar.directory("../../outside", 0o777))),
        ("climbing hard link", true, Box::new(|tar| tar.hardlink("x", "../../outside/victim").file("x", b"evil"))),
        ("absolute name", false, {
            let inner = inner.clone();
            Box::new(move |tar| tar.file(&inner, b"evil"))
        }),
        (
            "through a relative link",
            false,
            Box::new(|tar| tar.symlink("evil", "../../outside").file("evil/victim", b"evil")),
        ),
        ("through an absolute link", false, {
            let out = out.clone();
            Box::new(move |tar| tar.symlink("evil", &out).file("evil/victim", b"evil"))
        }),
        (
            "through two links",
            false,
            Box::new(|tar| tar.symlink("a", "..").symlink("b", "a/..").file("b/outside/victim", b"evil")),
        ),
        ("overwriting a link's target", false, {
            let inner = inner.clone();
            Box::new(move |tar| tar.symlink("link", &inner).file("link", b"evil"))
        }),
        ("hard link to a link's target", false, {
            let inner = inner.clone();
            Box::new(move |tar| tar.symlink("link", &inner).hardlink("name", "link").file("other", b""))
        }),
        ("hard link to an absolute path", true, {
            let inner = inner.clone();
            Box::new(move |tar| tar.hardlink("name", &inner))
        }),
        ("mode of a directory that became a link", false, {
            let out = out.clone();
            Box::new(move |tar| tar.directory("d/", 0o777).symlink("d", &out))
        }),
        ("mode of a directory below one that became a link", false, {
            let out = out.clone();
            Box::new(move |tar| tar.directory("d/directory/", 0o777).symlink("d", &out))
        }),
        ("link loop", true, Box::new(|tar| tar.symlink("a", "b").symlink("b", "a").file("a/x", b"evil"))),
        ("file as a directory", true, Box::new(|tar| tar.file("a", b"").file("a/x", b"evil"))),
    ];
    for (what, refused, build) in attacks {
        let place = Place { directory: tempfile::tempdir_in(base.directory.path()).unwrap() };
        for path in ["layer/fs", "layer/trash"] {
            fs::create_dir_all(place.directory.path().join(path)).unwrap();
        }
        symlink(base.directory.path().join("outside"), place.directory.path().join("outside")).unwrap();
        let before = base.fingerprint();
        let result = place.unpack(&build(LayerTar::new()).finish());
        assert_eq!(base.fingerprint(), before, "{what}");
        assert_eq!(names(place.directory.path()), ["layer", "outside"], "{what}");
        assert_eq!(result.is_err(), refused, "{what}: {result:?}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    File(String),
    Directory(String),
    Symlink(String, String),
    Hardlink(String, String),
    Whiteout(String),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || "[ab.]{1,2}(/[ab.]{1,2}){0,3}";
    let step = prop_oneof![
        name().prop_map(Step::File),
        name().prop_map(Step::Directory),
        (name(), prop_oneof![name(), Just("OUT".to_owned()), Just("../../outside".to_owned())])
            .prop_map(|(name, target)| Step::Symlink(name, target)),
        (name(), name()).prop_map(|(name, target)| Step::Hardlink(name, target)),
        name().prop_map(Step::Whiteout),
    ];
    proptest::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_entries_touches_anything_outside(steps in steps()) {
        let place = Place::new();
        let outside = place.outside();
        let before = place.fingerprint();
        for step in &steps {
            // One archive each, so that a refused entry does not hide those after it.
            let tar = match step.clone() {
                Step::File(name) => LayerTar::new().file(&name, b"evil"),
                Step::Directory(name) => LayerTar::new().directory(&name, 0o777),
                Step::Symlink(name, target) => LayerTar::new().symlink(&name, &target.replace("OUT", &outside)),
                Step::Hardlink(name, target) => LayerTar::new().hardlink(&name, &target),
                Step::Whiteout(name) => LayerTar::new().file(&format!("a/.wh.{}", name.replace('/', "")), b""),
            };
            let _ = place.unpack(&tar.finish());
            fs::remove_dir_all(place.directory.path().join("layer/trash")).unwrap();
            fs::create_dir(place.directory.path().join("layer/trash")).unwrap();
        }
        prop_assert_eq!(place.fingerprint(), before);
    }

    #[test]
    fn damaged_archives_are_refused_or_unpacked_but_never_a_panic(
        position in 0usize..4096, value in any::<u8>(), length in 0usize..6000,
    ) {
        let mut tar = LayerTar::new()
            .directory("d/", 0o755)
            .pax(&[("path", b"d/f"), ("SCHILY.xattr.user.x", b"1")])
            .file("f", b"content")
            .symlink("s", "d")
            .finish();
        let index = position % tar.len();
        tar[index] = value;
        tar.truncate(length.max(1));
        let _ = Place::new().unpack(&tar);
    }
}

#[test]
fn limits_hold() {
    let tar = LayerTar::new().file("a", &[0; 600]).file("b", &[0; 600]).finish();
    let limit = |limits: UnpackLimits| Place::new().unpack_as(&tar, limits, Ownership::Ignore);
    for limits in [
        UnpackLimits { entries: 1, ..UnpackLimits::default() },
        UnpackLimits { bytes: 1000, ..UnpackLimits::default() },
    ] {
        assert!(matches!(limit(limits), Err(UnpackError::TooLarge { .. })));
    }
    limit(UnpackLimits { entries: 2, bytes: 1200, ..UnpackLimits::default() }).unwrap();

    // Headers that claim to be huge are refused before anything is read into memory.
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(8 << 30);
        header.set_cksum();
        let tar = LayerTar::new().raw(&header, b"").finish();
        assert!(matches!(Place::new().unpack(&tar), Err(UnpackError::TooLarge { .. })), "{kind:?}");
    }
}

#[test]
fn what_was_announced_is_what_must_come() {
    let tar = LayerTar::new().file("a", b"content").finish();
    let compressed = gzip(&tar);
    let check = |source: &[u8], blob: (Digest, u64), diff_id: Digest| {
        let place = Place::new();
        let expected = Expected { blob: Some(blob), diff_id };
        let trash = place.directory.path().join("layer/trash");
        unpack(source, &expected, &place.root(), &trash, UnpackLimits::default(), Ownership::Ignore)
    };
    let blob = |bytes: &[u8]| (Digest::of(bytes), bytes.len() as u64);
    let other = || Digest::of(b"other");
    check(&compressed, blob(&compressed), Digest::of(&tar)).unwrap();
    for form in [zstd(&tar), tar.clone(), [gzip(&tar[..700]), gzip(&tar[700..])].concat()] {
        check(&form, blob(&form), Digest::of(&tar)).unwrap();
    }
    let sha512 = Digest::parse(&format!("sha512:{}", "0".repeat(128))).unwrap();
    let (wide, wide_diff) = (sha512.same_algorithm_of(&compressed), sha512.same_algorithm_of(&tar));
    check(&compressed, (wide, compressed.len() as u64), wide_diff).unwrap();

    let result = check(&compressed, (other(), compressed.len() as u64), Digest::of(&tar));
    assert!(matches!(result, Err(UnpackError::BlobDigest { .. })));
    let result = check(&compressed, (Digest::of(&compressed), 1), Digest::of(&tar));
    assert!(matches!(result, Err(UnpackError::BlobSize { .. })));
    let result = check(&compressed, blob(&compressed), other());
    assert!(matches!(result, Err(UnpackError::DiffId { .. })));
    // umoci writes neither the padding of the last file nor an end marker.
    let bare = &tar[..512 + b"content".len()];
    check(bare, blob(bare), Digest::of(bare)).unwrap();
    let short = &bare[..bare.len() - 1];
    let result = check(short, blob(short), Digest::of(short));
    assert!(matches!(result, Err(UnpackError::Truncated)), "{result:?}");
    for cut in [&compressed[..compressed.len() / 2], &tar[..600], &zstd(&tar)[..20]] {
        let result = check(cut, blob(cut), Digest::of(&tar));
        assert!(result.is_err(), "{result:?}");
    }
    let result = check(b"this is no archive at all, but long enough to look at", blob(b""), other());
    assert!(matches!(result, Err(UnpackError::Truncated)), "{result:?}");
    let result = check(&[b'x'; 2048], blob(b""), other());
    assert!(matches!(result, Err(UnpackError::Malformed(_))), "{result:?}");
}

#[test]
fn sparse_files_keep_their_holes() {
    let place = Place::new();
    let mut gnu = Header::new_gnu();
    gnu.set_path("gnu").unwrap();
    gnu.set_entry_type(EntryType::GNUSparse);
    gnu.set_mode(0o644);
    {
        let fields = gnu.as_gnu_mut().unwrap();
        fields.set_real_size(1 << 20);
        fields.sparse[0].offset = octal(4096);
        fields.sparse[0].numbytes = octal(5);
        fields.sparse[1].offset = octal(1 << 19);
        fields.sparse[1].numbytes = octal(3);
    }
    gnu.set_size(8);
    gnu.set_cksum();
    let mut map = b"1\n65536\n4\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"data");
    let tar = LayerTar::new()
        .raw(&gnu, b"helloabc")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"pax"),
            ("GNU.sparse.realsize", b"100000"),
        ])
        .file("GNUSparseFile.0/pax", &map)
        .file("after", b"still in step")
        .finish();
    place.unpack(&tar).unwrap();
    let content = fs::read(place.path("gnu")).unwrap();
    assert_eq!(content.len(), 1 << 20);
    assert_eq!((&content[4096..4101], &content[1 << 19..(1 << 19) + 3]), (&b"hello"[..], &b"abc"[..]));
    let content = fs::read(place.path("pax")).unwrap();
    assert_eq!((content.len(), &content[65536..65540]), (100_000, &b"data"[..]));
    assert_eq!(fs::read(place.path("after")).unwrap(), b"still in step");
}

fn octal(number: u64) -> [u8; 12] {
    format!("{number:011o}\0").into_bytes().try_into().unwrap()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn whiteouts_become_overlay_marks() {
    let place = Place::new();
    let tar = LayerTar::new()
        .directory("etc/", 0o755)
        .file("etc/.wh.removed", b"")
        .file("var/.wh..wh..opq", b"")
        .file("var/.wh..wh.plnk", b"")
        .file("new/.wh.old", b"")
        .directory("kept/", 0o755)
        .file(".wh.kept", b"")
        .file(".wh.again", b"")
        .directory("again/", 0o755)
        .file(".wh.file", b"")
        .file("file", b"replaced")
        .finish();
    place.unpack_as(&tar, UnpackLimits::default(), Ownership::Apply).unwrap();
    for name in ["etc/removed", "new/old"] {
        let metadata = fs::symlink_metadata(place.path(name)).unwrap();
        assert!(metadata.file_type().is_char_device() && metadata.rdev() == 0, "{name}");
    }
    let opaque = |name: &str| {
        let directory = beneath::open_directory(&place.path(name)).unwrap();
        beneath::get_xattr(&directory, c"trusted.overlay.opaque", 8).unwrap()
    };
    for name in ["var", "kept", "again"] {
        assert_eq!(opaque(name).as_deref(), Some(&b"y"[..]), "{name}");
    }
    assert_eq!(opaque("etc"), None);
    assert_eq!(names(&place.path("var")), Vec::<String>::new());
    assert_eq!(fs::read(place.path("file")).unwrap(), b"replaced");
    for bad in [".wh.", "a/.wh...", "a/.wh.."] {
        let result =
            Place::new().unpack_as(&LayerTar::new().file(bad, b"").finish(), UnpackLimits::default(), Ownership::Apply);
        assert!(result.is_err(), "{bad}: {result:?}");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn owners_capabilities_and_devices_are_those_of_the_archive() {
    let place = Place::new();
    // VFS_CAP_REVISION_2 with cap_net_raw permitted and effective; a newline byte among the bits.
    let capability = b"\x01\x00\x00\x02\x0a\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let mut device = Header::new_gnu();
    device.set_path("null").unwrap();
    device.set_entry_type(EntryType::Char);
    device.set_mode(0o666);
    device.set_size(0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    let tar = LayerTar::new()
        .pax(&[("uid", b"1000"), ("gid", b"1001")])
        .entry(EntryType::Regular, "setuid", "", 0o6755, b"x")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.note", b"kept"),
        ])
        .entry(EntryType::Regular, "ping", "", 0o755, b"x")
        .pax(&[("uid", b"7"), ("gid", b"8")])
        .directory("owned/", 0o2770)
        .pax(&[("uid", b"7"), ("gid", b"8")])
        .symlink("link", "owned")
        .file("owned/by-root", b"")
        .raw(&device, b"")
        .finish();
    place.unpack_as(&tar, UnpackLimits::default(), Ownership::Apply).unwrap();
    let owner = |name: &str| {
        let metadata = fs::symlink_metadata(place.path(name)).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(owner("setuid"), (1000, 1001, 0o6755));
    assert_eq!(owner("owned"), (7, 8, 0o2770));
    assert_eq!(owner("owned/by-root"), (0, 0, 0o644));
    assert_eq!((owner("link").0, owner("link").1), (7, 8));
    let ping = fs::File::open(place.path("ping")).unwrap();
    let attribute = |name| beneath::get_xattr(&ping, name, 64).unwrap();
    assert_eq!(attribute(c"security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute(c"trusted.overlay.redirect"), None, "overlayfs would follow it");
    let null = fs::symlink_metadata(place.path("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o777), (nix::sys::stat::makedev(1, 3), 0o666));
}
