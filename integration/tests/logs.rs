//! Logs: the format on disk, rotation, following, and nothing lost.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use berth_integration::{
    Agent, eventually, fixtures,
    help::{agent, config, container, log, manifest, name, place},
};
use serde_json::{Value, json};

/// Directory of the log files of the pod's container `app`.
fn directory(agent: &Agent, pod: &Value) -> PathBuf {
    let text = |field: &str| pod["metadata"][field].as_str().expect("a field of the metadata");
    let directory = format!("{}_{}_{}", text("namespace"), text("name"), text("uid"));
    agent.place.path("log").join(directory).join("app")
}

fn count(script_lines: u32, tail: &str) -> String {
    format!(
        "i=0; while [ $i -lt {script_lines} ]; do echo \"line $i of the log that must be whole\"; i=$((i+1)); done{tail}"
    )
}

fn expected(lines: u32) -> String {
    (0..lines).map(|number| format!("line {number} of the log that must be whole\n")).collect()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn long_lines_are_split_at_sixteen_kilobytes_and_joined_again() {
    let place = place();
    let agent = agent(&place, &[]);
    let script =
        "head -c 40000 /dev/zero | tr '\\0' x; echo; echo to-err >&2; printf unfinished; sleep 1; exec sleep 1000";
    agent.apply("long.json", &fixtures::pod("long", script));
    let pod = agent.ready("long");
    let file = directory(&agent, &pod).join("0.log");
    let text = eventually("the log", Duration::from_secs(5), || {
        let text = fs::read_to_string(&file).ok()?;
        text.contains("to-err").then_some(text)
    });
    let mut sizes = Vec::new();
    for line in text.lines().filter(|line| line.contains(" stdout ")) {
        let mut parts = line.splitn(4, ' ');
        let (time, _, tag) = (parts.next().expect("a time"), parts.next(), parts.next().expect("a tag"));
        assert!(time.len() >= 30 && time.contains('T'), "RFC 3339 with nanoseconds: {time}");
        sizes.push((tag.to_owned(), parts.next().unwrap_or_default().len()));
    }
    let wanted = [("P".to_owned(), 16384), ("P".to_owned(), 16384), ("F".to_owned(), 40000 - 2 * 16384)];
    assert_eq!(sizes[..3], wanted);
    let read = log(&agent, "long");
    assert!(read.lines().any(|line| line.len() == 40000), "one line of 40000 again");
    assert!(read.lines().any(|line| line == "to-err"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).expect("the file").permissions());
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn rotation_loses_nothing_that_the_files_can_hold_and_nothing_to_a_follower() {
    const LINES: u32 = 4000;
    let place = place();
    let file = config(&place, "containerLogMaxSize: 64Ki\ncontainerLogMaxFiles: 100", "");
    let agent = agent(&place, &["--config", &file]);
    agent.apply("chatty.json", &fixtures::pod("chatty", &count(LINES, "; echo END; exec sleep 1000")));
    let pod = agent.ready("chatty");
    let name = name(&agent, "chatty");
    let mut follower = agent.command(&["logs", "-f", &name]).stdout(Stdio::piped()).spawn().expect("logs -f starts");
    let mut followed = String::new();
    let mut reader = BufReader::new(follower.stdout.take().expect("its output"));
    while !followed.ends_with("END\n") {
        assert!(reader.read_line(&mut followed).expect("read") > 0, "the follower ended early:\n{followed}");
    }
    assert_eq!(followed, expected(LINES) + "END\n", "what a follower sees");
    assert_eq!(log(&agent, "chatty"), expected(LINES) + "END\n", "what is on disk");
    let files: Vec<u64> = fs::read_dir(directory(&agent, &pod))
        .expect("the directory")
        .map(|entry| entry.expect("an entry").metadata().expect("metadata").len())
        .collect();
    assert!(files.len() > 3, "rotated: {files:?}");
    assert!(files.iter().all(|size| *size <= 64 * 1024), "none is larger than it may be: {files:?}");
    agent.delete("chatty.json");
    // The follower ends by itself with the container.
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("read to the end");
    assert!(follower.wait().expect("the follower ends").success());
    agent.gone("chatty");
}

/// Names of the files in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Waits until every rotated file but the newest is compressed; how many are.
fn compressed(directory: &Path) -> usize {
    eventually("the rotated logs are compressed", Duration::from_secs(20), || {
        let names = names(directory);
        let (newest, older) = names.split_last().expect("rotated files");
        let done = older[1..].iter().all(|name| name.ends_with(".gz")) && !newest.contains(".gz");
        (older[0] == "0.log" && !newest.contains(".tmp") && done).then(|| older.len() - 1)
    })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn rotated_logs_are_compressed_and_read_as_before_also_those_of_a_time_without_an_agent() {
    const LINES: u32 = 4000;
    let place = place();
    let file = config(&place, "containerLogMaxSize: 64Ki\ncontainerLogMaxFiles: 100", "");
    let mut agent = agent(&place, &["--config", &file]);
    let go = place.path("go");
    let wait = "; until [ -e /place/go ]; do sleep 0.1; done; ";
    let script = format!("{}{wait}{}", count(LINES, ""), count(LINES, "; echo END; exec sleep 1000"));
    let mut pod = manifest("chatty", &script);
    let mount = json!([{ "name": "place", "mountPath": "/place" }]);
    pod["spec"]["containers"][0]["volumeMounts"] = mount;
    pod["spec"]["volumes"] = json!([{ "name": "place", "hostPath": { "path": place.path("") } }]);
    agent.apply("chatty.json", &pod.to_string());
    let pod = agent.ready("chatty");
    let directory = directory(&agent, &pod);
    eventually("the first half", Duration::from_secs(20), || (log(&agent, "chatty") == expected(LINES)).then_some(()));
    let first = compressed(&directory);
    assert!(first > 2, "{:?}", names(&directory));
    assert_eq!(log(&agent, "chatty"), expected(LINES), "nothing is lost by it");
    let head = fs::read(directory.join(&names(&directory)[1])).expect("the oldest");
    assert_eq!(head[..2], [0x1f, 0x8b], "gzip");

    agent.kill();
    fs::write(go, "").expect("write");
    let last = directory.join("0.log");
    eventually("the second half, without an agent", Duration::from_secs(20), || {
        fs::read_to_string(&last).is_ok_and(|text| text.ends_with("END\n")).then_some(())
    });
    let plain = names(&directory).iter().filter(|name| !name.ends_with(".gz")).count();
    assert!(plain > 3, "rotated, but nobody is there to compress: {:?}", names(&directory));
    let agent = Agent::start(&place, &["--config", &file]).expect("another agent");
    assert!(compressed(&directory) > first);
    let whole = expected(LINES) + &expected(LINES) + "END\n";
    assert_eq!(log(&agent, "chatty"), whole);
    let name = name(&agent, "chatty");
    let tail: String = whole.split_inclusive('\n').skip(101).collect();
    assert_eq!(agent.ok(&["logs", "--tail", &(2 * LINES - 100).to_string(), &name]), tail);
    assert_eq!(agent.ok(&["logs", "--since", "1h", &name]), whole);
    assert_eq!(agent.ok(&["logs", "--since", "2199-01-01T00:00:00Z", &name]), "");
    agent.delete("chatty.json");
    agent.gone("chatty");
    assert!(!directory.exists(), "all forms of the logs go with the pod");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn old_files_go_and_the_newest_lines_stay() {
    let place = place();
    let file = config(&place, "containerLogMaxSize: 16Ki\ncontainerLogMaxFiles: 3", "");
    let agent = agent(&place, &["--config", &file]);
    agent.apply("chatty.json", &fixtures::pod("chatty", &count(3000, "; echo END; exec sleep 1000")));
    let pod = agent.ready("chatty");
    eventually("the end of the log", Duration::from_secs(10), || {
        log(&agent, "chatty").ends_with("END\n").then_some(())
    });
    // One compressed, one as it was rotated, the current one; while one is being compressed there is one more.
    eventually("as many files as there may be", Duration::from_secs(10), || {
        let names = names(&directory(&agent, &pod));
        let compressed = names.iter().filter(|name| name.ends_with(".gz")).count();
        (names.len() == 3 && compressed == 1).then_some(())
    });
    let text = log(&agent, "chatty");
    let whole = expected(3000) + "END\n";
    assert!(whole.ends_with(&text) && text.len() > 10_000, "a suffix of the output, {} bytes", text.len());
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn nothing_is_lost_when_a_chatty_container_ends() {
    const LINES: u32 = 5000;
    let place = place();
    let agent = agent(&place, &[]);
    for number in 0..4 {
        let mut pod = manifest(&format!("burst-{number}"), &count(LINES, "; printf 'the last words'"));
        pod["spec"]["restartPolicy"] = json!("Never");
        agent.apply(&format!("burst-{number}.json"), &pod.to_string());
    }
    for number in 0..4 {
        let name = format!("burst-{number}");
        agent.until(&name, "ended", |pod| pod["status"]["phase"] == "Succeeded");
        let text = log(&agent, &name);
        assert!(text == expected(LINES) + "the last words" || text == expected(LINES) + "the last words\n", "{name}");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn parts_of_a_log_can_be_asked_for() {
    let place = place();
    let agent = agent(&place, &[]);
    let script = "if [ -e /out/again ]; then echo second; exec sleep 1000; fi; touch /out/again
        echo one; echo two; echo three; exit 1";
    let mut pod = manifest("parts", script);
    pod["spec"]["volumes"] = json!([{ "name": "out", "emptyDir": {} }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "out", "mountPath": "/out" }]);
    agent.apply("parts.json", &pod.to_string());
    let pod = agent.until("parts", "running again", |pod| {
        container(pod, 0)["restartCount"] == 1 && container(pod, 0)["ready"] == true
    });
    assert_eq!(container(&pod, 0)["lastState"]["terminated"]["exitCode"], 1);
    let name = name(&agent, "parts");
    eventually("the second log", Duration::from_secs(5), || (log(&agent, "parts") == "second\n").then_some(()));
    assert_eq!(agent.ok(&["logs", "-p", &name]), "one\ntwo\nthree\n");
    assert_eq!(agent.ok(&["logs", "-p", "--tail", "2", &name]), "two\nthree\n");
    assert_eq!(agent.ok(&["logs", "-p", "--tail", "0", &name]), "");
    assert_eq!(agent.ok(&["logs", "--since", "1h", &name]), "second\n");
    assert_eq!(agent.ok(&["logs", "--since", "2199-01-01T00:00:00Z", &name]), "");
    assert_eq!(agent.ok(&["logs", "-p", "--limit-bytes", "5", &name]), "one\nt");
    let stamped = agent.ok(&["logs", "--timestamps", &name]);
    let (time, text) = stamped.trim_end().split_once(' ').expect("a time and a line");
    assert_eq!(text, "second");
    assert_eq!(agent.ok(&["logs", "--since", time, &name]), "second\n", "since its own time");
    let wrong = agent.cli(&["logs", "no-such-pod"]).expect("it runs");
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no-such-pod"));
    let wrong = agent.cli(&["logs", &name, "-c", "nobody"]).expect("it runs");
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("nobody"));
}
