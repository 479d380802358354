use std::collections::BTreeSet;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use super::*;
use crate::{pod::desired::SourceUpdate, source::watcher::Changes};

/// Only a bound: what is awaited comes at once.
const BOUND: Duration = Duration::from_secs(20);
/// Never reached in a test: what is noticed is noticed by inotify.
const NO_RESYNC: Duration = Duration::from_secs(3600);

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
    )
}

fn names(update: &SourceUpdate) -> Vec<String> {
    update.pods.iter().map(|pod| pod.full_name().replace("default/", "").replace("-n", "")).collect()
}

fn rename_into(directory: &Path, name: &str, text: &str) {
    let temporary = directory.join(format!(".{name}.tmp"));
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, directory.join(name)).unwrap();
}

/// A manifest directory with its scanner and watcher, driven by hand: no thread, no time.
struct Bench {
    directory: tempfile::TempDir,
    manifests: Manifests,
    watcher: Watcher,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let mut manifests = Manifests::new(path.clone(), "n".to_owned());
        let watcher = Watcher::new(path).unwrap();
        manifests.scan(false, Timestamp::UNIX_EPOCH);
        Bench { directory, manifests, watcher }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Takes in what has happened, as the thread does.
    fn follow(&mut self) -> Changes {
        let changes = self.watcher.changes().unwrap();
        changes.removed.iter().for_each(|path| self.manifests.remove(path));
        changes.written.iter().for_each(|path| self.manifests.look_at(path, true, Timestamp::UNIX_EPOCH));
        changes.touched.iter().for_each(|path| self.manifests.look_at(path, false, Timestamp::UNIX_EPOCH));
        if changes.everything {
            self.manifests.scan(true, Timestamp::UNIX_EPOCH);
        }
        changes
    }

    fn names(&self) -> Vec<String> {
        names(&self.manifests.update())
    }
}

#[test]
fn a_rename_into_place_is_read_once() {
    let mut bench = Bench::new();
    rename_into(bench.directory.path(), "a.yaml", &pod("a", "x:1"));
    let changes = bench.follow();
    assert_eq!(changes.written, BTreeSet::from([bench.path("a.yaml")]));
    assert_eq!((bench.names(), bench.manifests.reads()), (vec!["a".to_owned()], 1));
    assert!(bench.follow().is_empty());
    bench.manifests.scan(false, Timestamp::UNIX_EPOCH);
    assert_eq!(bench.manifests.reads(), 1, "a resync reads nothing that has not changed");
}

#[test]
fn a_file_written_in_place_is_read_when_it_is_closed() {
    let mut bench = Bench::new();
    let mut file = fs::File::create(bench.path("a.yaml")).unwrap();
    let text = pod("a", "x:1");
    io::Write::write_all(&mut file, &text.as_bytes()[..20]).unwrap();
    bench.follow();
    assert_eq!((bench.names(), bench.manifests.reads()), (Vec::new(), 0), "half of it is not looked at");
    io::Write::write_all(&mut file, &text.as_bytes()[20..]).unwrap();
    drop(file);
    bench.follow();
    assert_eq!((bench.names(), bench.manifests.reads()), (vec!["a".to_owned()], 1));
}

#[test]
fn two_writes_within_a_tick_are_both_seen() {
    let mut bench = Bench::new();
    fs::write(bench.path("a.yaml"), pod("a", "x:1")).unwrap();
    bench.follow();
    let first = bench.manifests.update().pods[0].uid().to_owned();
    fs::write(bench.path("a.yaml"), pod("a", "x:2")).unwrap();
    bench.follow();
    assert_ne!(bench.manifests.update().pods[0].uid(), first);
}

#[test]
fn removing_or_renaming_a_file_away_removes_its_pods() {
    let mut bench = Bench::new();
    for name in ["a", "b"] {
        rename_into(bench.directory.path(), &format!("{name}.yaml"), &pod(name, "x:1"));
    }
    bench.follow();
    assert_eq!(bench.names(), ["a", "b"]);
    fs::remove_file(bench.path("a.yaml")).unwrap();
    fs::rename(bench.path("b.yaml"), bench.path(".b.yaml")).unwrap();
    bench.follow();
    assert_eq!(bench.names(), Vec::<String>::new());
    fs::rename(bench.path(".b.yaml"), bench.path("c.yaml")).unwrap();
    bench.follow();
    assert_eq!(bench.names(), ["b"]);
}

#[test]
fn a_file_that_breaks_keeps_its_pods_and_is_reported() {
    let mut bench = Bench::new();
    rename_into(
        bench.directory.path(),
        "a.json",
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"x:1"}]}}"#,
    );
    rename_into(bench.directory.path(), "b.yaml", &pod("b", "x:1"));
    bench.follow();
    let good = bench.manifests.update();
    fs::write(bench.path("a.json"), r#"{"apiVersion":"v1","kind":"P"#).unwrap();
    bench.follow();
    let bad = bench.manifests.update();
    assert_eq!(bad.pods, good.pods);
    let origin = format!("file:{}", bench.path("a.json").display());
    assert_eq!(bad.unusable, BTreeSet::from([origin.clone()]));
    assert_eq!((bad.problems[0].source.as_str(), bad.problems[0].warning), (origin.as_str(), false));
    assert!(bad.problems[0].message.starts_with("invalid JSON: EOF"), "{}", bad.problems[0].message);
    fs::remove_file(bench.path("a.json")).unwrap();
    bench.follow();
    assert_eq!(bench.names(), ["b"]);
    assert!(bench.manifests.update().problems.is_empty());
}

#[test]
fn dot_files_are_ignored_and_other_kinds_of_files_reported() {
    let mut bench = Bench::new();
    fs::write(bench.path(".hidden.yaml"), pod("h", "x:1")).unwrap();
    fs::create_dir(bench.path("sub")).unwrap();
    nix::unistd::mkfifo(&bench.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    bench.follow();
    let update = bench.manifests.update();
    let messages: Vec<_> = update.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(
        messages,
        ["is a pipe or socket, not a file", "is a directory, and manifest directories are not searched recursively",]
    );
    assert!(update.pods.is_empty());
}

#[test]
fn links_are_followed() {
    let mut bench = Bench::new();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("a"), pod("a", "x:1")).unwrap();
    symlink(elsewhere.path().join("a"), bench.path("a.yaml")).unwrap();
    symlink(elsewhere.path().join("gone"), bench.path("b.yaml")).unwrap();
    bench.follow();
    assert_eq!(bench.names(), ["a"]);
    // Nothing tells of a change behind a link; the resync finds it by the stamp.
    rename_into(elsewhere.path(), "a", &pod("c", "x:1"));
    assert!(bench.follow().is_empty());
    bench.manifests.scan(false, Timestamp::UNIX_EPOCH);
    assert_eq!(bench.names(), ["c"]);
}

#[test]
fn a_change_of_mode_alone_is_noticed_without_reading_what_has_not_changed() {
    let mut bench = Bench::new();
    rename_into(bench.directory.path(), "a.yaml", &pod("a", "x:1"));
    bench.follow();
    fs::set_permissions(bench.path("a.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
    let changes = bench.follow();
    assert_eq!(changes.touched, BTreeSet::from([bench.path("a.yaml")]));
    assert_eq!(bench.names(), ["a"]);
}

#[test]
fn a_missing_path_wants_nothing_and_is_found_when_it_appears() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("not/there/yet");
    let mut bench = Bench {
        manifests: Manifests::new(path.clone(), "n".to_owned()),
        watcher: Watcher::new(path.clone()).unwrap(),
        directory,
    };
    bench.manifests.scan(false, Timestamp::UNIX_EPOCH);
    let update = bench.manifests.update();
    assert!(update.pods.is_empty() && !update.incomplete);
    assert_eq!(update.problems[0].message, "the manifest path does not exist");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("a.yaml"), pod("a", "x:1")).unwrap();
    assert!(bench.follow().everything);
    assert_eq!(bench.names(), ["a"]);
    rename_into(&path, "b.yaml", &pod("b", "x:1"));
    bench.follow();
    assert_eq!(bench.names(), ["a", "b"], "the directory itself is watched now");
    fs::remove_dir_all(&path).unwrap();
    bench.follow();
    assert_eq!(bench.names(), Vec::<String>::new());
    fs::create_dir(&path).unwrap();
    fs::write(path.join("c.yaml"), pod("c", "x:1")).unwrap();
    bench.follow();
    assert_eq!(bench.names(), ["c"], "and watched again after it was replaced");
}

#[test]
fn a_path_may_be_a_single_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pods.yaml");
    let mut bench = Bench {
        manifests: Manifests::new(path.clone(), "n".to_owned()),
        watcher: Watcher::new(path.clone()).unwrap(),
        directory,
    };
    rename_into(bench.directory.path(), "other.yaml", &pod("o", "x:1"));
    rename_into(bench.directory.path(), "pods.yaml", &(pod("a", "x:1") + "---\n" + &pod("b", "x:1")));
    bench.follow();
    assert_eq!(bench.names(), ["a", "b"]);
    bench.manifests.scan(false, Timestamp::UNIX_EPOCH);
    assert_eq!(bench.names(), ["a", "b"]);
    fs::remove_file(&path).unwrap();
    bench.follow();
    assert_eq!(bench.names(), Vec::<String>::new());
}

#[test]
fn a_directory_that_is_swapped_behind_a_link_is_found_by_the_resync() {
    let directory = tempfile::tempdir().unwrap();
    for (version, name) in [("v1", "a"), ("v2", "b")] {
        fs::create_dir(directory.path().join(version)).unwrap();
        fs::write(directory.path().join(version).join("p.yaml"), pod(name, "x:1")).unwrap();
    }
    let path = directory.path().join("current");
    symlink("v1", &path).unwrap();
    let mut manifests = Manifests::new(path.clone(), "n".to_owned());
    let mut watcher = Watcher::new(path.clone()).unwrap();
    assert!(watcher.check());
    manifests.scan(false, Timestamp::UNIX_EPOCH);
    fs::remove_file(&path).unwrap();
    symlink("v2", &path).unwrap();
    assert!(!watcher.check());
    manifests.scan(true, Timestamp::UNIX_EPOCH);
    assert_eq!(names(&manifests.update()), ["b"]);
    assert!(watcher.check());
}

#[test]
fn lost_events_make_it_look_at_everything() {
    let mut bench = Bench::new();
    rename_into(bench.directory.path(), "a.yaml", &pod("a", "x:1"));
    bench.follow();
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // Equal events in a row are merged by the kernel, so they alternate.
    for _ in 0..most / 2 + 2 {
        fs::rename(bench.path("a.yaml"), bench.path("b.yaml")).unwrap();
        fs::rename(bench.path("b.yaml"), bench.path("a.yaml")).unwrap();
    }
    fs::rename(bench.path("a.yaml"), bench.path("c.yaml")).unwrap();
    assert!(bench.follow().everything);
    let origins: Vec<_> = bench.manifests.update().pods.iter().map(|pod| pod.origin.clone()).collect();
    assert_eq!(origins, [format!("file:{}", bench.path("c.yaml").display())]);
}

/// Waits for a set that satisfies `wanted`.
async fn until(updates: &mut Updates, wanted: impl Fn(&SourceUpdate) -> bool) -> Arc<SourceUpdate> {
    let found = updates.wait_for(|update| update.as_deref().is_some_and(&wanted));
    let found = tokio::time::timeout(BOUND, found).await.expect("in time").expect("the source lives");
    found.clone().unwrap()
}

#[tokio::test]
async fn the_running_source_publishes_what_changes_and_only_that() {
    let directory = tempfile::tempdir().unwrap();
    let config = FileSourceConfig { path: directory.path().to_owned(), node_name: "n".to_owned(), resync: NO_RESYNC };
    let (source, mut updates) = FileSource::start(config).unwrap();
    let empty = until(&mut updates, |_| true).await;
    assert!(empty.pods.is_empty() && empty.problems.is_empty(), "empty but read");
    rename_into(directory.path(), "a.yaml", &pod("a", "x:1"));
    let first = until(&mut updates, |update| update.pods.len() == 1).await;
    // The same content again makes no new set: the next that comes is that of the second file.
    rename_into(directory.path(), "a.yaml", &("# the same\n".to_owned() + &pod("a", "x:1")));
    rename_into(directory.path(), "b.yaml", &pod("b", "x:1"));
    let second = until(&mut updates, |update| update.pods.len() == 2).await;
    assert!(Arc::ptr_eq(&first.pods[0], &second.pods[0]));
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    assert_eq!(names(&*until(&mut updates, |update| update.pods.len() == 1).await), ["b"]);
    drop(source);
    // The sender goes with the thread.
    tokio::time::timeout(BOUND, async { while updates.changed().await.is_ok() {} }).await.expect("the thread ends");
}

#[tokio::test]
async fn the_resync_finds_what_makes_no_event() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("a"), pod("a", "x:1")).unwrap();
    symlink(elsewhere.path().join("a"), directory.path().join("a.yaml")).unwrap();
    let resync = Duration::from_millis(20);
    let config = FileSourceConfig { path: directory.path().to_owned(), node_name: "n".to_owned(), resync };
    let (_source, mut updates) = FileSource::start(config).unwrap();
    until(&mut updates, |update| names(update) == ["a"]).await;
    rename_into(elsewhere.path(), "a", &pod("b", "x:1"));
    until(&mut updates, |update| names(update) == ["b"]).await;
}
