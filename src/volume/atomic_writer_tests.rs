//! Payload after payload in one directory, with what may be left of an interruption in between.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn payload(files: &[(&str, &str)]) -> Payload {
    let file = |text: &str| ContentFile { bytes: text.as_bytes().to_vec(), mode: 0o644, owner: None };
    files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
}

fn put(directory: &Path, files: &[(&str, &str)]) -> bool {
    write(directory, &payload(files), None, now()).unwrap()
}

/// What a container sees: paths and contents, links followed, names with two dots left out.
fn seen(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            if relative.starts_with("..") {
                continue;
            }
            match fs::metadata(&path) {
                Ok(status) if status.is_dir() => pending.push(path),
                Ok(_) => drop(found.insert(relative, fs::read_to_string(&path).unwrap())),
                Err(_) => drop(found.insert(relative, "dangling".to_owned())),
            }
        }
    }
    found
}

fn expected(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// Names that begin with two dots: `..data` and one generation.
fn own(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut own: Vec<String> = names.filter(|name| name.starts_with("..")).collect();
    own.sort();
    own
}

#[test]
fn the_layout_is_the_kubelets() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    assert!(!is_written(directory));
    assert!(put(directory, &[("a", "1"), ("b/c", "2")]));
    assert!(is_written(directory));
    let link = |name: &str| fs::read_link(directory.join(name)).unwrap().to_str().unwrap().to_owned();
    assert_eq!(link("..data"), "..2023_11_14_22_13_20.000000000");
    assert_eq!((link("a"), link("b")), ("..data/a".to_owned(), "..data/b".to_owned()));
    assert_eq!(own(directory), ["..2023_11_14_22_13_20.000000000", "..data"]);
    let mode = |path: &str| fs::metadata(directory.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("..data"), mode("b"), mode("a"), mode("b/c")), (0o755, 0o755, 0o644, 0o644));
}

#[test]
fn each_payload_replaces_the_one_before() {
    type Step = (&'static str, &'static [(&'static str, &'static str)], bool);
    let steps: &[Step] = &[
        ("the first", &[("a", "1")], true),
        ("the same", &[("a", "1")], false),
        ("another value", &[("a", "2")], true),
        ("a further file", &[("a", "2"), ("d/x", "3")], true),
        ("a file less in a directory that stays", &[("a", "2"), ("d/y", "3")], true),
        ("a directory becomes a file", &[("a", "2"), ("d", "4")], true),
        ("a file becomes a directory", &[("a/deep/er", "5")], true),
        ("nothing", &[], true),
        ("nothing again", &[], false),
        ("something again", &[("b", "")], true),
        ("the same length", &[("b", "x")], true),
        ("and then", &[("b", "y")], true),
    ];
    let directory = tempfile::tempdir().unwrap();
    for (sentence, files, changed) in steps {
        assert_eq!(put(directory.path(), files), *changed, "{sentence}");
        assert_eq!(seen(directory.path()), expected(files), "{sentence}");
        assert_eq!(own(directory.path()).len(), 2, "{sentence}");
    }
}

#[test]
fn modes_and_owners_are_content_too() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    put(directory, &[("a", "1")]);
    let mut stricter = payload(&[("a", "1")]);
    stricter.get_mut("a").unwrap().mode = 0o400;
    assert!(write(directory, &stricter, None, now()).unwrap());
    assert_eq!(fs::metadata(directory.join("a")).unwrap().mode() & 0o7777, 0o400);
    assert!(!write(directory, &stricter, None, now()).unwrap());
    // The group this test runs as: anybody may give that to a file of theirs.
    let group = fs::metadata(directory).unwrap().gid();
    let mut files = payload(&[("a", "1"), ("b/c", "2")]);
    files.get_mut("a").unwrap().mode = 0o600;
    assert!(write(directory, &files, Some(group), now()).unwrap());
    let status =
        |path: &str| fs::metadata(directory.join(path)).map(|found| (found.mode() & 0o7777, found.gid())).unwrap();
    assert_eq!(status("a"), (0o640, group));
    assert_eq!(status("b/c"), (0o644, group));
    assert_eq!((status("b"), status("..data")), ((0o2755, group), (0o2755, group)));
    assert!(!write(directory, &files, Some(group), now()).unwrap());
}

#[test]
fn whatever_was_interrupted_is_made_good() {
    let files = &[("a", "1"), ("b/c", "2")];
    type Damage = fn(&Path);
    let damages: &[(&str, Damage)] = &[
        ("a generation was begun", |top| {
            fs::create_dir(top.join("..2023_11_14_22_13_20.000000001")).unwrap();
            fs::write(top.join("..2023_11_14_22_13_20.000000001/a"), "half").unwrap();
        }),
        ("the new link was made", |top| symlink("..2023_11_14_22_13_20.000000001", top.join("..data_tmp")).unwrap()),
        ("the links were not", |top| fs::remove_file(top.join("b")).unwrap()),
        ("old links were not removed", |top| symlink("..data/old", top.join("old")).unwrap()),
        ("a file is short, as a power failure leaves it", |top| fs::write(top.join("..data/a"), "").unwrap()),
        ("a file is gone", |top| fs::remove_file(top.join("..data/b/c")).unwrap()),
        ("there is a file more", |top| fs::write(top.join("..data/b/d"), "").unwrap()),
        ("a mode is another", |top| fs::set_permissions(top.join("..data/a"), Permissions::from_mode(0o666)).unwrap()),
        ("the generation is gone", |top| fs::remove_dir_all(fs::canonicalize(top.join("..data")).unwrap()).unwrap()),
        ("the link is gone", |top| fs::remove_file(top.join("..data")).unwrap()),
        ("the link leads out", |top| {
            fs::remove_file(top.join("..data")).unwrap();
            symlink("../elsewhere", top.join("..data")).unwrap();
        }),
        ("a directory was made for a subPath", |top| {
            fs::remove_file(top.join("a")).unwrap();
            fs::create_dir(top.join("a")).unwrap();
        }),
        ("a file is a link", |top| {
            fs::remove_file(top.join("..data/a")).unwrap();
            symlink("/etc/passwd", top.join("..data/a")).unwrap();
        }),
    ];
    for (sentence, damage) in damages {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("volume");
        fs::create_dir_all(&top).unwrap();
        fs::create_dir(directory.path().join("elsewhere")).unwrap();
        put(&top, files);
        damage(&top);
        put(&top, files);
        assert_eq!(seen(&top), expected(files), "{sentence}");
        assert_eq!(own(&top).len(), 2, "{sentence}: {:?}", own(&top));
        assert!(directory.path().join("elsewhere").exists(), "{sentence}");
        assert!(!put(&top, files), "{sentence}: nothing is left to do");
    }
}

#[test]
fn what_others_have_in_the_directory_stays() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::create_dir_all(directory.join("nested/deep")).unwrap();
    symlink("/etc", directory.join("link")).unwrap();
    put(directory, &[("a", "1")]);
    put(directory, &[("b", "1")]);
    assert!(directory.join("nested/deep").exists());
    assert!(fs::symlink_metadata(directory.join("link")).is_ok());
    let error = write(directory, &payload(&[("nested", "x")]), None, now()).unwrap_err();
    assert!(error.to_string().starts_with("make room for "), "{error}");
    assert!(directory.join("nested/deep").exists());
}

#[test]
fn a_reader_never_sees_some_of_each() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().to_owned();
    put(&top, &[("a", "0"), ("b", "0")]);
    let reader = std::thread::spawn({
        let top = top.clone();
        move || {
            let mut newest = 0;
            // A reader that wants one state opens the generation once.
            while newest < 200 {
                let Ok(generation) = fs::canonicalize(top.join("..data")) else { continue };
                let read = |name: &str| fs::read_to_string(generation.join(name));
                if let (Ok(a), Ok(b)) = (read("a"), read("b")) {
                    assert_eq!(a, b);
                    newest = a.parse().unwrap();
                }
                // By name there is always one or the other.
                assert!(!fs::read_to_string(top.join("a")).is_ok_and(|text| text.is_empty()));
            }
        }
    });
    for number in 1..=200 {
        let text = number.to_string();
        write(&top, &payload(&[("a", &text), ("b", &text)]), None, Timestamp::now()).unwrap();
    }
    reader.join().unwrap();
}
