//! The manifests of integration/examples, applied as they are, and what somebody who applies them gets to see.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_integration::{
    Agent, Place,
    agent::condition,
    eventually,
    layout::Layout,
    scenario::{agent, ended, exec, exec_in, explained, load, log, place, ready},
};
use serde_json::{Value, json};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// Applies `examples/<name>.yaml`. DIRECTORY in it is one of the place's own.
fn example(agent: &Agent, name: &str) {
    let path = directory().join(format!("{name}.yaml"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let own = agent.place.dir.path().to_str().expect("UTF-8");
    agent.apply(&format!("{name}.yaml"), &text.replace("DIRECTORY", own));
}

/// What a container of a pod that has ended, or has said all it has to say, wrote.
#[track_caller]
fn said(agent: &Agent, pod: &str) -> String {
    agent.ok(&["logs", &ended(agent, pod)])
}

fn status(pod: &Value, container: usize) -> &Value {
    &pod["status"]["containerStatuses"][container]
}

/// An image that says what it is told to, and the server of the health service.
fn images(agent: &Agent) {
    let greeter = Layout::new().config("Entrypoint", json!(["echo"])).config("Cmd", json!(["good day"]));
    load(agent, "greeter", greeter);
    let program = fs::read(env!("CARGO_BIN_EXE_health")).expect("the health server");
    let health = Layout::new().file("health", 0o755, &program).config("Entrypoint", json!(["/health"]));
    load(agent, "health", health);
    load(agent, "gallery", Layout::new().directory("gallery").file("gallery/sea", 0o644, b"blue\n"));
}

#[track_caller]
fn no_problems(agent: &Agent) {
    let problems = agent.ok(&["pods", "--problems"]);
    assert!(problems.contains("No problems"), "{problems}");
}

#[test]
fn every_example_is_applied() {
    let source = include_str!("examples.rs");
    let applied: BTreeSet<&str> =
        source.split("example(&agent, \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let files = fs::read_dir(directory()).expect("the examples").map(|entry| entry.expect("an entry").file_name());
    let files: BTreeSet<String> =
        files.map(|name| name.to_string_lossy().trim_end_matches(".yaml").to_owned()).collect();
    assert_eq!(files.iter().map(String::as_str).collect::<BTreeSet<_>>(), applied);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn settings_and_secrets_reach_programs_as_variables_and_as_files() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "config");
    example(&agent, "inject");
    assert_eq!(said(&agent, "config-keys"), "pays in EUR, region north, discount [$(DISCOUNT)]\n");
    let all = said(&agent, "config-all");
    for line in ["currency=EUR", "page.size=25", "CACHE_SECONDS=600", "FILE_banner.txt=Welcome!"] {
        assert!(all.lines().any(|found| found == line), "{line} in {all}");
    }
    assert!(all.contains("FILE_shop.conf=[pages]\ntheme = autumn\n"), "{all}");
    let files = ready(&agent, "config-files");
    assert_eq!(exec(&agent, &files, "ls /etc/shop; cat /www/banner.txt"), "banner.txt\nshop.conf\nWelcome!");
    assert_eq!(
        exec(&agent, &files, "cd /etc/theme; stat -Lc '%a %n' site/theme.ini hello; cat site/theme.ini"),
        "400 site/theme.ini\n440 hello\n[pages]\ntheme = autumn\n"
    );

    let variables = said(&agent, "inject-variables");
    for line in [
        "WHO=cashier",
        "TILL_user=cashier",
        "TILL_password=s3cr3t!",
        "ADDRESS=https://10.1.2.3:8443",
        "ESCAPED=$(SCHEME) $(LATER)",
        "LEDGER_PORT_8443_TCP_PROTO=tcp",
    ] {
        assert!(variables.lines().any(|found| found == line), "{line} in {variables}");
    }
    let files = ready(&agent, "inject-files");
    assert_eq!(
        exec(
            &agent,
            &files,
            "cat /run/till/deep/password; stat -Lc ' %a' /run/till/deep/password; cat /run/dotted/.hidden"
        ),
        "s3cr3t! 400\nhidden"
    );
    assert_eq!(exec(&agent, &files, "stat -f -c %T /run/till"), "tmpfs\n");
    assert_eq!(said(&agent, "inject-written"), "ticket 42\n");
    let trust = ready(&agent, "inject-trust");
    let count = "for f in all old none; do grep -c BEGIN /trust/$f.pem; done; true";
    assert_eq!(exec(&agent, &trust, count), "2\n1\n0\n");
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_knows_itself() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "downward");
    let name = ready(&agent, "downward");
    let pod = agent.pod("downward").expect("the pod");
    let shown = log(&agent, &name, "app", "PWD=");
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).expect(pointer).to_owned();
    for (variable, value) in [
        ("MY_NAME", name.clone()),
        ("MY_NAMESPACE", "default".to_owned()),
        ("MY_UID", text("/metadata/uid")),
        ("MY_TIER", "front".to_owned()),
        ("MY_NODE", text("/spec/nodeName")),
        ("MY_ACCOUNT", "default".to_owned()),
        ("MY_IP", text("/status/podIP")),
        ("MY_HOST", text("/status/hostIP")),
        ("MY_CPU_LIMIT", "250".to_owned()),
        ("MY_CPU_REQUEST", "1".to_owned()),
        ("MY_MEMORY", "64".to_owned()),
    ] {
        let line = format!("{variable}={value}");
        assert!(shown.lines().any(|shown| shown == line), "{line} in {shown}");
    }
    assert_eq!(
        exec(&agent, &name, "cat /self/labels; echo; cat /self/size/memory"),
        "app=\"shop\"\ntier=\"front\"\n32768"
    );
    assert!(exec(&agent, &name, "cat /self/annotations").contains("build=\"17\""));
    assert_eq!(
        exec(&agent, &name, "cd /joined; cat texts/motto keys/front-door pod/name"),
        format!("small is fineopens{name}")
    );
    assert_eq!(
        exec(&agent, &name, "cd /joined; stat -Lc %a texts/motto keys/front-door; ls"),
        "440\n400\nkeys\npod\ntexts\ntoken\n"
    );
    assert_eq!(exec(&agent, &name, "tr -cd . < /joined/token"), "..", "a token has three parts");
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn probes_find_out_who_is_alive_and_who_is_ready() {
    let place = place();
    let agent = agent(&place, &[]);
    images(&agent);
    example(&agent, "probes");
    let open = |pod: &str| condition(&agent.pod(pod).expect("the pod"), "Ready") == "True";
    // The slow one: not asked for its life before it has started.
    let slow = agent.ready("probe-http");
    assert_eq!((&status(&slow, 0)["started"], &status(&slow, 0)["restartCount"]), (&json!(true), &json!(0)));

    let tcp = agent.until("probe-tcp", "running", |pod| status(pod, 0)["state"]["running"].is_object());
    assert!(!open("probe-tcp"));
    exec(&agent, tcp["metadata"]["name"].as_str().expect("a name"), "touch /open");
    agent.ready("probe-tcp");

    let grpc = agent.until("probe-grpc", "running", |pod| status(pod, 0)["state"]["running"].is_object());
    let grpc = grpc["metadata"]["name"].as_str().expect("a name").to_owned();
    assert!(!open("probe-grpc"));
    exec(&agent, &grpc, "touch /serving");
    agent.ready("probe-grpc");
    exec(&agent, &grpc, "rm /serving");
    agent.until("probe-grpc", "not ready", |pod| condition(pod, "Ready") == "False");
    assert!(agent.ok(&["events", &grpc]).contains("service unhealthy (responded with \"NOT_SERVING\")"));

    let again = agent.until("probe-exec", "restarted", |pod| status(pod, 0)["restartCount"] == 1);
    let told = agent.ok(&["events", again["metadata"]["name"].as_str().expect("a name")]);
    assert!(told.contains("Liveness probe failed: cat: can't open '/tmp/alive'"), "{told}");
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_class_of_service_follows_from_what_is_asked_for() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "qos");
    for (pod, class, parent) in [
        ("qos-guaranteed", "Guaranteed", "kubepods/pod"),
        ("qos-burstable", "Burstable", "kubepods/burstable/pod"),
        ("qos-best-effort", "BestEffort", "kubepods/besteffort/pod"),
        ("qos-mixed", "Burstable", "kubepods/burstable/pod"),
        ("qos-pod-level", "Guaranteed", "kubepods/pod"),
    ] {
        let name = ready(&agent, pod);
        assert_eq!(agent.pod(pod).expect("the pod")["status"]["qosClass"], class, "{pod}");
        let supervisor: Value = serde_json::from_str(&agent.ok(&["inspect", &name, "-o", "json"])).expect("JSON");
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", supervisor["supervisor"])).expect("its cgroups");
        assert!(groups.contains(parent), "{pod}: {groups}");
    }
    let score = |pod: &str| {
        exec(&agent, &ready(&agent, pod), "cat /proc/1/oom_score_adj").trim().parse::<i32>().expect("a score")
    };
    assert_eq!(score("qos-best-effort"), 1000);
    assert!((2..1000).contains(&score("qos-burstable")));
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn who_takes_more_than_it_may_is_stopped_or_slowed_down() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "resources");
    ended(&agent, "memory-too-much");
    let killed = agent.pod("memory-too-much").expect("the pod");
    assert_eq!(status(&killed, 0)["state"]["terminated"]["reason"], "OOMKilled");
    explained(&agent, "cpu-too-much", &["Failed", "OutOfcpu", "Node didn't have enough resource: cpu"]);
    ended(&agent, "disk-too-much");
    let evicted = agent.pod("disk-too-much").expect("the pod");
    assert_eq!(evicted["status"]["reason"], "Evicted");
    let busy = ready(&agent, "cpu-bound");
    let throttled = "cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat 2>/dev/null; true";
    eventually("it is slowed down", Duration::from_secs(20), || {
        let shown = exec(&agent, &busy, throttled);
        shown.lines().any(|line| line.strip_prefix("nr_throttled ").is_some_and(|count| count != "0")).then_some(())
    });
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_security_context_is_what_the_container_has() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "security");
    let users = ready(&agent, "security-users");
    assert_eq!(exec_in(&agent, &users, "app", "id -u; id -g; id -G"), "1000\n3000\n3000 2000 4000\n");
    assert_eq!(exec_in(&agent, &users, "other", "id -u; id -g"), "1500\n3000\n");
    assert_eq!(exec_in(&agent, &users, "app", "touch /data/x; stat -c %u:%g /data/x"), "1000:2000\n");
    let own = "grep -E '^(NoNewPrivs|Seccomp):' /proc/1/status";
    assert_eq!(exec_in(&agent, &users, "app", own), "NoNewPrivs:\t1\nSeccomp:\t2\n");

    let set = |pod: &str| exec(&agent, &ready(&agent, pod), "grep CapEff /proc/1/status");
    assert_eq!(set("security-capabilities"), format!("CapEff:\t{:016x}\n", 1u64 << 12 | 1 << 25));
    assert_eq!(set("security-restricted"), format!("CapEff:\t{:016x}\n", 0));
    let restricted = ready(&agent, "security-restricted");
    assert!(exec(&agent, &restricted, "touch /x 2>&1; true").contains("Read-only file system"));
    assert_ne!(exec(&agent, &restricted, "awk '{print $2}' /proc/self/uid_map").trim(), "0", "ids of its own");

    let sysctls = ready(&agent, "security-sysctls");
    let shown = exec(&agent, &sysctls, "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range");
    assert_eq!(shown, "1\n20000\t30000\n");
    explained(
        &agent,
        "security-no-root",
        &["CreateContainerConfigError", "container has runAsNonRoot and image will run as root"],
    );
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn volumes_keep_what_they_are_to_keep() {
    let place = place();
    let agent = agent(&place, &[]);
    images(&agent);
    for name in ["shelf", "tray"] {
        fs::create_dir(place.path(name)).expect("a directory");
    }
    fs::write(place.path("shelf/first"), "was there\n").expect("a file");
    example(&agent, "storage");
    let scratch = ready(&agent, "storage-scratch");
    assert_eq!(exec(&agent, &scratch, "wc -l < /disk/starts; stat -f -c %T /memory"), "1\ntmpfs\n");
    assert!(exec(&agent, &scratch, "dd if=/dev/zero of=/memory/x bs=1M count=8 2>&1; true").contains("No space left"));
    let host = ready(&agent, "storage-host");
    eventually("the file of the pod", Duration::from_secs(10), || {
        fs::read_to_string(place.path("made/file")).ok().filter(|text| text == "from the pod\n")
    });
    assert!(exec(&agent, &host, "grep -c root /names").trim() != "0");
    let claim = ready(&agent, "storage-claim");
    assert_eq!(log(&agent, &claim, "app", "was there"), "was there\n");
    ready(&agent, "storage-own");
    eventually("what the pod put on its tray", Duration::from_secs(10), || {
        place.path("tray/file").exists().then_some(())
    });
    let image = ready(&agent, "storage-image");
    assert_eq!(exec(&agent, &image, "cat /pictures/sea; touch /pictures/x 2>&1 | grep -c Read-only"), "blue\n1\n");
    eventually("its own directory", Duration::from_secs(10), || {
        place.path(&format!("shared/{image}/file")).exists().then_some(())
    });
    no_problems(&agent);
    // What was to be kept is, when the pods go; what was the pod's own is not.
    let text = fs::read_to_string(place.path("manifests/storage.yaml")).expect("the manifest");
    let others: Vec<&str> = text.split("\n---\n").filter(|document| !document.contains("kind: Pod\n")).collect();
    assert_eq!(others.len(), 3);
    agent.apply("storage.yaml", &others.join("\n---\n"));
    for pod in ["storage-claim", "storage-own", "storage-host"] {
        agent.gone(pod);
    }
    assert_eq!(fs::read_to_string(place.path("shelf/second")).expect("the file"), "kept\n");
    assert!(place.path("made/file").exists());
    eventually("the tray is cleared", Duration::from_secs(10), || (!place.path("tray/file").exists()).then_some(()));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn containers_of_a_pod_share_what_they_are_to_share() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "containers");
    let share = ready(&agent, "containers-share");
    assert_eq!(exec_in(&agent, &share, "writer", "wget -qO- http://127.0.0.1:8080/"), format!("written by {share}\n"));
    let processes = ready(&agent, "containers-processes");
    // (The brackets keep the line from finding itself.)
    let find = "ps -o pid,args | awk '/[r]eloaded/ {print $1}'";
    let signal = format!("p=$({find}); kill -HUP $p; cat /proc/$p/root/tmp/pid");
    let pid = exec_in(&agent, &processes, "shell", &signal);
    assert_ne!(pid.trim(), "1", "the first process is nobody's container");
    log(&agent, &processes, "server", "reloaded");
    let host = ready(&agent, "containers-host");
    let pod = agent.pod("containers-host").expect("the pod");
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
    let own = std::process::id();
    assert!(exec(&agent, &host, &format!("cat /proc/{own}/comm")).contains("examples"), "it sees this process");
    let names = ready(&agent, "containers-names");
    assert_eq!(exec(&agent, &names, "hostname; grep ledger /etc/hosts"), "till\n10.9.8.7\tledger.example\tledger\n");
    let resolver = exec(&agent, &names, "cat /etc/resolv.conf");
    for line in ["nameserver 192.0.2.53", "search shop.example", "options ndots:2 edns0"] {
        assert!(resolver.lines().any(|found| found == line), "{line} in {resolver}");
    }
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn init_containers_come_first_and_sidecars_stay() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "init");
    assert_eq!(said(&agent, "init-steps"), "flour+water\n");
    let waiting = agent.until("init-waits", "at its first step", |pod| {
        pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
    });
    assert_eq!(condition(&waiting, "Initialized"), "False");
    fs::write(place.path("door/open"), "").expect("open the door");
    assert_eq!(condition(&agent.ready("init-waits"), "Initialized"), "True");
    ended(&agent, "init-fails");
    let failed = agent.pod("init-fails").expect("the pod");
    assert_eq!(failed["status"]["phase"], "Failed");
    let first = &failed["status"]["initContainerStatuses"][0]["state"]["terminated"];
    assert_eq!((&first["exitCode"], &first["message"]), (&json!(4), &json!("no flour\n")));
    ended(&agent, "sidecar-job");
    let job = agent.pod("sidecar-job").expect("the pod");
    assert_eq!(job["status"]["phase"], "Succeeded");
    assert_eq!(fs::read_to_string(place.path("shipped/job")).expect("what was shipped"), "done\n");
    no_problems(&agent);
}

/// Lines of a file of the place.
fn diary(place: &Place) -> String {
    fs::read_to_string(place.path("diary/log")).unwrap_or_default()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_life_begins_and_ends_as_its_manifest_says() {
    let place = place();
    let agent = agent(&place, &[]);
    example(&agent, "lifecycle");
    ready(&agent, "lifecycle-hooks");
    assert_eq!(diary(&place), "hello\n");
    ended(&agent, "lifecycle-message");
    let message = agent.pod("lifecycle-message").expect("the pod");
    let why = |container: usize| status(&message, container)["state"]["terminated"]["message"].clone();
    assert_eq!((why(0), why(1)), (json!("out of flour\n"), json!("the oven is cold\n")));
    ended(&agent, "lifecycle-deadline");
    assert_eq!(agent.pod("lifecycle-deadline").expect("the pod")["status"]["reason"], "DeadlineExceeded");
    for pod in ["lifecycle-on-failure", "lifecycle-rules"] {
        ended(&agent, pod);
        let pod = agent.pod(pod).expect("the pod");
        assert_eq!((&pod["status"]["phase"], &status(&pod, 0)["restartCount"]), (&json!("Succeeded"), &json!(1)));
    }
    no_problems(&agent);
    agent.delete("lifecycle.yaml");
    agent.gone("lifecycle-hooks");
    assert_eq!(diary(&place), "hello\nfarewell\nstopped\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_command_is_the_images_or_the_pods() {
    let place = place();
    let agent = agent(&place, &[]);
    images(&agent);
    example(&agent, "commands");
    for (pod, line) in [
        ("command-of-the-image", "good day"),
        ("command-args", "good evening"),
        ("command-alone", "only this"),
        ("command-both", "everybody in /tmp and $(nobody)"),
    ] {
        assert_eq!(said(&agent, pod), format!("{line}\n"), "{pod}");
    }
    ended(&agent, "command-missing");
    let missing = agent.pod("command-missing").expect("the pod");
    let end = &status(&missing, 0)["state"]["terminated"];
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("StartError"), &json!(128)));
    assert!(end["message"].as_str().is_some_and(|text| text.contains("/no/such/program")), "{end}");
    no_problems(&agent);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn somebody_who_looks_for_the_cause_finds_it() {
    let place = place();
    let agent = agent(&place, &[]);
    images(&agent);
    example(&agent, "debug");
    let running = ready(&agent, "debug-running");
    let look = ["debug", &running, "--image", "busybox:1", "--target", "app", "-i", "--", "cat", "/proc/1/comm"];
    assert_eq!(agent.ok(&look), "health\n");
    // An image that nobody has is not waited for in silence.
    let mut command = agent.command(&["debug", &running, "--image", "localhost:1/none:1", "-i", "--", "true"]);
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stderr(pipe()).spawn().expect("it starts");
    let told = std::io::BufReader::new(child.stderr.take().expect("standard error"));
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Ends with the command, or when nobody listens any more.
        std::io::BufRead::lines(told).map_while(Result::ok).all(|line| sender.send(line).is_ok())
    });
    let mut said = Vec::new();
    let why = eventually("the reason", Duration::from_secs(30), || {
        said.extend(lines.try_iter());
        said.iter().find(|line| line.contains("is not started yet: ")).cloned()
    });
    child.kill().expect("kill it");
    child.wait().expect("it ends");
    // It may be waited for the next try by then.
    assert!(["RegistryUnavailable: ", "ImagePullBackOff: "].iter().any(|reason| why.contains(reason)), "{said:?}");
    assert!(why.contains("localhost:1"), "{said:?}");
    let crashing = agent.until("debug-crashing", "in a crash loop", |pod| {
        status(pod, 0)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(status(&crashing, 0)["lastState"]["terminated"]["exitCode"], 7);
    let crashing = crashing["metadata"]["name"].as_str().expect("a name").to_owned();
    assert_eq!(agent.ok(&["logs", &crashing, "--previous"]), "cannot go on\n");
    assert!(agent.ok(&["events", &crashing]).contains("Back-off restarting failed container"));
    assert!(agent.ok(&["inspect", &crashing]).contains("CrashLoopBackOff"));
    explained(&agent, "debug-no-image", &["ErrImageNeverPull", "not-here:1"]);
    let counter = ready(&agent, "debug-counter");
    log(&agent, &counter, "count", "trouble");
    assert_eq!(agent.ok(&["logs", &counter, "--tail", "2"]).lines().count(), 2);
    assert!(agent.ok(&["pods"]).contains("CrashLoopBackOff"));
    no_problems(&agent);
}
