//! What a person or a program types, and whether the answer is true.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Output, Stdio},
    time::Duration,
};

use berth_integration::{
    Agent, eventually, fixtures,
    layout::Layout,
    scenario::{agent, apply, container, exec, load, log, place, ready, run},
    terminal::Terminal,
};
use serde_json::{Value, json};

const WAIT: &str = "sleep 1000";

/// The JSON a command prints; its YAML must be the same thing, and its tables must have lines.
#[track_caller]
fn printed(agent: &Agent, arguments: &[&str]) -> Value {
    let with = |format: &'static str| agent.ok(&[arguments, &["-o", format]].concat());
    let value: Value = serde_json::from_str(&with("json")).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    let yaml = with("yaml");
    assert!(!yaml.trim_start().starts_with('{') && yaml.lines().count() > 0, "{arguments:?}: {yaml}");
    let (table, wide) = (with("table"), with("wide"));
    assert!(
        table.lines().count() > 0 && wide.lines().count() >= table.lines().count(),
        "{arguments:?}: {table}\n{wide}"
    );
    value
}

/// Runs a command with `input` on its standard input.
fn fed(agent: &Agent, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = agent.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    // A command that does not want all of it closes the pipe.
    child.stdin.take().expect("standard input").write_all(input).ok();
    child.wait_with_output().expect("the command ends")
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pods_and_containers_are_shown_as_they_are() {
    let place = place();
    let agent = agent(&place, &["--hostname-override", "test-node"]);
    let containers = json!([container("app", WAIT, json!({})), container("side", WAIT, json!({}))]);
    let init = json!([container("init", "exit 0", json!({}))]);
    apply(&agent, "web", json!({ "containers": containers, "initContainers": init }));
    agent.apply("broken.yaml", "kind: Pod\nmetadata: [");
    agent.apply("unknown.yaml", &fixtures::pod("unknown", WAIT).replace("\"spec\":{", "\"spec\":{\"noSuchField\":1,"));
    assert_eq!(ready(&agent, "web"), "web-test-node");
    ready(&agent, "unknown");

    let list = printed(&agent, &["pods"]);
    assert_eq!((list["apiVersion"].as_str(), list["kind"].as_str()), (Some("v1"), Some("PodList")));
    assert_eq!(array(&list["items"]).len(), 2);
    let pod = array(&list["items"]).iter().find(|pod| pod["metadata"]["name"] == "web-test-node").expect("the pod");
    assert_eq!(pod["spec"]["nodeName"], "test-node");
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "file", "{annotations}");
    assert!(annotations["kubernetes.io/config.hash"].is_string(), "{annotations}");
    let wide = agent.ok(&["pods", "-o", "wide"]);
    let row = wide.lines().find(|line| line.contains("web-test-node")).expect("a row");
    for cell in ["2/2", "Running", pod["status"]["podIP"].as_str().expect("an address"), "BestEffort", "test-node"] {
        assert!(row.contains(cell), "{cell}: {wide}");
    }
    for cell in ["not used", "broken.yaml", "warning", "unknown.yaml", "noSuchField"] {
        assert!(wide.contains(cell), "{cell}: {wide}");
    }
    let problems = printed(&agent, &["pods", "--problems"]);
    let warned: Vec<_> = array(&problems).iter().filter(|problem| problem["warning"] == true).collect();
    assert_eq!((array(&problems).len(), warned.len()), (2, 1), "{problems:#}");

    let processes = printed(&agent, &["ps", "web"]);
    assert_eq!(array(&processes).len(), 3, "{processes:#}");
    for one in array(&processes).iter().filter(|one| one["name"] != "init") {
        let pid = one["pid"].as_i64().expect("a process");
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs");
        assert_eq!(command, "sleep\x001000\0", "{one}");
    }
    let inspected = printed(&agent, &["inspect", "web"]);
    let comm = fs::read_to_string(format!("/proc/{}/stat", inspected["supervisor"])).expect("the supervisor runs");
    assert!(comm.contains("berth"), "{comm}");
    let stages: Vec<u64> = array(&inspected["stages"]).iter().filter_map(|stage| stage["at"].as_u64()).collect();
    assert!(stages.len() > 3 && stages.iter().all(|at| *at > 0), "{:#}", inspected["stages"]);
    for text in ["web-test-node", "Addresses:", "STAGE", "init", "exited (0)"] {
        assert!(agent.ok(&["inspect", "web"]).contains(text), "{text}");
    }

    let missing = agent.cli(&["inspect", "nobody"]).expect("it runs");
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("nobody"));
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    for name in ["web-test-node", "default/web-test-node", uid] {
        assert_eq!(exec(&agent, name, "echo here"), "here\n", "{name}");
    }
    assert_eq!(agent.ok(&["pods", "-n", "nowhere"]).lines().next(), Some("No pods."));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn stats_grow_and_logs_are_cut_as_asked() {
    let place = place();
    let agent = agent(&place, &[]);
    let limits = json!({ "resources": { "limits": { "cpu": "500m", "memory": "64Mi" } } });
    run(&agent, "busy", "while :; do :; done", limits);
    run(&agent, "lines", "for i in 1 2 3 4 5; do echo line $i; done; echo last >&2; sleep 1000", json!({}));
    let (busy, lines) = (ready(&agent, "busy"), ready(&agent, "lines"));
    let usage = || {
        let all: Value = serde_json::from_str(&agent.ok(&["stats", "busy", "-o", "json"])).expect("JSON");
        array(&all).iter().find(|one| one["container"] == "app").cloned().expect("the container")
    };
    let before = usage();
    assert!(before["pod"].as_str().is_some_and(|pod| pod.contains(&busy)), "{before}");
    assert_eq!(before["memory_limit"], 64 << 20, "{before}");
    assert!(before["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{before}");
    assert!(before["working_set_bytes"].as_u64() <= before["memory_bytes"].as_u64(), "{before}");
    assert_eq!(before["pids"], 1, "{before}");
    eventually("the busy pod uses its processor", Duration::from_secs(10), || {
        (usage()["cpu_nanos"].as_u64() > before["cpu_nanos"].as_u64().map(|used| used + 100_000_000)).then_some(())
    });
    printed(&agent, &["stats"]);
    let table = agent.ok(&["stats"]);
    let row = table.lines().find(|line| line.contains(&busy) && line.contains("app")).expect("a row");
    let milli = row.split_whitespace().find_map(|cell| cell.strip_suffix('m')?.parse::<u64>().ok());
    assert!(milli.is_some_and(|milli| (50..700).contains(&milli)), "about half of a processor: {table}");

    log(&agent, &lines, "app", "last");
    assert_eq!(agent.ok(&["logs", &lines, "--tail", "2"]), "line 5\nlast\n");
    assert_eq!(agent.ok(&["logs", &lines, "--limit-bytes", "9"]), "line 1\nli");
    assert_eq!(agent.ok(&["logs", &lines, "--since", "1h"]).lines().count(), 6);
    assert_eq!(agent.ok(&["logs", &lines, "--since", "2099-01-01T00:00:00Z"]), "");
    let stamped = agent.ok(&["logs", &lines, "--timestamps", "--tail", "1"]);
    assert!(stamped.starts_with("20") && stamped.trim().ends_with("Z last"), "{stamped}");
    let previous = agent.cli(&["logs", &lines, "-p"]).expect("it runs");
    assert!(!previous.status.success(), "there is no previous attempt");
    let wrong = agent.cli(&["logs", &lines, "-c", "nobody"]).expect("it runs");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("nobody"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn images_come_in_every_form_and_go() {
    let place = place();
    let agent = agent(&place, &[]);
    run(&agent, "user", WAIT, json!({}));
    ready(&agent, "user");
    let run = |program: &str, arguments: &[&str]| {
        let output = place.run(program, arguments).expect("it runs");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let path = |name: &str| place.path(name).to_str().expect("UTF-8").to_owned();
    let layout = fixtures::busybox();
    run("tar", &["-C", &layout, "-cf", &path("oci.tar"), "."]);
    run("tar", &["-C", &layout, "-czf", &path("oci.tar.gz"), "."]);
    let archive = |name: &str, tag: &str| {
        run("skopeo", &["copy", "-q", &format!("oci:{layout}:1"), &format!("docker-archive:{}:{tag}", path(name))]);
    };
    archive("docker.tar", "local/docker:2");
    run("sh", &["-c", &format!("gzip -c {} >{}", path("docker.tar"), path("docker.tgz"))]);

    agent.ok(&["load", "--name", "dir:1", &layout]);
    agent.ok(&["load", "--name", "tar:1", &path("oci.tar")]);
    agent.ok(&["load", "--name", "gz:1", &path("oci.tar.gz")]);
    assert_eq!(agent.ok(&["load", &path("docker.tar")]).trim(), "docker.io/local/docker:2");
    agent.ok(&["load", "--name", "dockergz:1", &path("docker.tgz")]);
    for (name, file) in
        [("in:1", "oci.tar"), ("ingz:1", "oci.tar.gz"), ("indocker:1", "docker.tar"), ("intgz:1", "docker.tgz")]
    {
        let output = fed(&agent, &["load", "--name", name, "-"], &fs::read(place.path(file)).expect("an archive"));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let loaded = agent.ok(&["load", "--name", "json:1", &layout, "-o", "json"]);
    let loaded: Value = serde_json::from_str(&loaded).expect("JSON");
    let id = loaded[0]["id"].as_str().expect("an id").to_owned();
    let images = printed(&agent, &["images"]);
    let tags: Vec<&str> = array(&images)
        .iter()
        .filter(|image| image["id"] == id.as_str())
        .flat_map(|image| array(&image["repoTags"]).iter().filter_map(Value::as_str))
        .collect();
    for name in ["busybox:1", "dir:1", "tar:1", "gz:1", "in:1", "ingz:1", "json:1"] {
        assert!(tags.contains(&format!("docker.io/library/{name}").as_str()), "{name}: {tags:?}");
    }
    assert!(array(&images).iter().all(|image| image["size"].as_u64().is_some_and(|size| size > 100_000)), "{images:#}");

    let bad = [
        ("nothing", &b""[..]),
        ("text", b"this is no archive"),
        ("gzip", b"\x1f\x8b\x08\0garbage"),
        ("zeros", &[0; 4096]),
    ];
    for (what, input) in bad {
        let output = fed(&agent, &["load", "-"], input);
        assert!(!output.status.success() && !output.stderr.is_empty(), "{what}");
    }
    fs::create_dir(place.path("empty")).expect("a directory");
    for bad in [path("empty"), path("none"), "/bin/busybox".to_owned()] {
        let output = agent.cli(&["load", &bad]).expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(&bad), "{bad}: {said}");
    }

    let removed = agent.ok(&["rmi", "dir:1", "local/docker:2"]);
    assert!(removed.contains("dir:1") && removed.contains("local/docker:2"), "{removed}");
    assert!(!agent.ok(&["images"]).contains("library/dir"));
    let missing = agent.cli(&["rmi", "dir:1"]).expect("it runs");
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("dir:1"));
    let used = agent.cli(&["rmi", &id]).expect("it runs");
    assert!(!used.status.success(), "it is in use");
    assert!(String::from_utf8_lossy(&used.stderr).contains("use"), "{}", String::from_utf8_lossy(&used.stderr));

    // Of the images, one is used by a pod under many names, and one by nobody.
    load(&agent, "unused", Layout::new().file("large", 0o644, &[7; 4096]));
    let collected: Value = serde_json::from_str(&agent.ok(&["gc", "-o", "json"])).expect("JSON");
    assert!(
        collected["removed"].to_string().contains("unused") && collected["freed"].as_u64() >= Some(4096),
        "{collected}"
    );
    let left = agent.ok(&["images"]);
    assert!(left.contains("library/busybox") && left.contains("library/tar") && !left.contains("unused"), "{left}");
    agent.delete("user.json");
    agent.gone("user");
    agent.ok(&["gc"]);
    assert_eq!(agent.ok(&["images"]), "No images.\n");
    agent.ok(&["load", "--name", "busybox:1", &layout]);
    runs_again(&agent);
}

/// After everything is collected, an image loaded again still makes a pod.
fn runs_again(agent: &Agent) {
    run(agent, "again", WAIT, json!({}));
    ready(agent, "again");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn the_program_explains_itself_its_machine_and_its_configuration() {
    let place = place();
    let config = place.path("config.yaml");
    let kind = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    fs::write(&config, format!("{kind}podPidsLimit: 77\nclusterDomain: test.local\n")).expect("a configuration");
    let config = config.to_str().expect("UTF-8").to_owned();
    let mut agent = agent(&place, &["--config", &config]);

    let version = printed(&agent, &["version"]);
    assert_eq!(version["client"], version["agent"]["version"]);
    assert_eq!(version["agent"]["pid"], agent.pid());
    let findings = agent.cli(&["doctor", "-o", "json"]).expect("it runs");
    let findings: Value = serde_json::from_slice(&findings.stdout).expect("JSON");
    assert!(array(&findings).len() > 10, "{findings:#}");
    for finding in array(&findings) {
        assert_ne!(finding["verdict"], "error", "pods do run here: {finding}");
    }
    assert!(agent.ok(&["doctor"]).contains("This machine can run pods"));
    let about_agent = array(&findings).iter().find(|finding| finding["name"] == "agent").expect("the agent");
    assert!(about_agent["meaning"].as_str().is_some_and(|text| text.contains("listens")), "{about_agent}");

    let checked = printed(&agent, &["check-config", "--config", &config]);
    let kubelet = array(&checked["documents"]).iter().find(|one| one["document"]["kind"] == "KubeletConfiguration");
    let kubelet = kubelet.expect("the document");
    assert_eq!(kubelet["document"]["podPidsLimit"], 77);
    assert!(kubelet["from"]["podPidsLimit"].as_str().is_some_and(|from| from.contains("config.yaml")), "{kubelet:#}");
    let table = agent.ok(&["check-config", "--config", &config, "--pod-max-pids", "99"]);
    let row = table.lines().find(|line| line.starts_with("podPidsLimit")).expect("a row");
    assert!(row.contains("99") && row.contains("--pod-max-pids"), "a flag wins: {row}");
    for (text, words) in
        [("podPidsLimit: many\n", "podPidsLimit"), ("maxPods: -3\n", "maxPods"), ("noSuchField: 1\n", "noSuchField")]
    {
        let path = place.path("bad.yaml");
        fs::write(&path, format!("{kind}{text}")).expect("a configuration");
        let path = path.to_str().expect("UTF-8");
        let output = agent.cli(&["check-config", "--config", path]).expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words) && said.contains("bad.yaml"), "{text}: {said}");
    }

    for shell in ["bash", "zsh", "fish"] {
        let script = agent.ok(&["completions", shell]);
        assert!(["check-config", "inspect", "root-dir"].iter().all(|word| script.contains(word)), "{shell}");
        if shell == "bash" {
            assert_eq!(fed_to_bash(&script).status.code(), Some(0), "{}", script.lines().next().unwrap_or_default());
        }
    }
    let usage = agent.cli(&["pods", "--no-such-flag"]).expect("it runs");
    assert_eq!(usage.status.code(), Some(2));
    agent.stop();
    let output = agent.cli(&["pods"]).expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("berth node"), "says what to do: {said}");
    let version: Value = serde_json::from_str(&agent.ok(&["version", "-o", "json"])).expect("JSON");
    assert_eq!(version["agent"], Value::Null);
    let findings: Value =
        serde_json::from_slice(&agent.cli(&["doctor", "-o", "json"]).expect("it runs").stdout).expect("JSON");
    assert!(findings.to_string().contains("does not run"), "{findings:#}");
}

fn fed_to_bash(script: &str) -> Output {
    let mut child = std::process::Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().expect("bash starts");
    child.stdin.take().expect("standard input").write_all(script.as_bytes()).expect("write");
    child.wait_with_output().expect("bash ends")
}

/// Processes of the container whose command line contains `marker`, by host pid.
fn running(agent: &Agent, pod: &str, marker: &str) -> Vec<String> {
    let script = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null | grep -F '{marker}' | grep -v grep"
    );
    let output = agent.cli(&["exec", pod, "--", "/bin/sh", "-c", &format!("{script}; true")]).expect("exec runs");
    // The shell that looks has the marker in its own command line, too.
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.contains("grep")).map(str::to_owned).collect()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_an_exec_started_outlives_its_client_only_without_a_terminal() {
    let place = place();
    let agent = agent(&place, &[]);
    run(&agent, "web", WAIT, json!({}));
    let web = ready(&agent, "web");
    let limit = Duration::from_secs(10);
    let gone = |marker: &str| {
        eventually(&format!("{marker} ends"), limit, || running(&agent, &web, marker).is_empty().then_some(()))
    };

    // The terminal hangs up: SIGHUP to its session, and the end of it for who reads from it.
    let exec = agent.command(&["exec", "-it", &web, "--", "sh", "-c", "echo begun; sleep 4001; echo on"]);
    let mut terminal = Terminal::start(exec, 24, 80);
    terminal.expect("begun", limit);
    eventually("it runs", limit, || (!running(&agent, &web, "sleep 4001").is_empty()).then_some(()));
    terminal.kill();
    gone("sleep 4001");

    // Without one it goes on, as upstream, for as long as it writes nothing …
    let start = |arguments: &[&str]| {
        let mut child = agent.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("exec");
        let mut line = String::new();
        let mut reader = BufReader::new(child.stdout.take().expect("its output"));
        reader.read_line(&mut line).expect("a line");
        assert_eq!(line, "begun\n");
        // Held until the client is dead: its reader is not what the command is to miss.
        child.kill().expect("kill -9");
        child.wait().expect("it is gone");
        drop(reader);
    };
    start(&["exec", &web, "--", "sh", "-c", "echo begun; sleep 4002; true"]);
    assert!(!running(&agent, &web, "sleep 4002").is_empty(), "the command goes on");
    // … and ends by SIGPIPE when it does,
    start(&["exec", &web, "--", "sh", "-c", "echo begun; while sleep 0.1; do echo 4003; done"]);
    gone("echo 4003");
    // or at the end of what it reads.
    start(&["exec", "-i", &web, "--", "sh", "-c", "echo begun; cat; : 4004"]);
    gone(": 4004");
    assert!(!running(&agent, &web, "sleep 4002").is_empty(), "the command still goes on");

    agent.delete("web.json");
    agent.gone("web");
}
