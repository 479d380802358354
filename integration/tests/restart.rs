//! What happens to pods when something is killed, the machine starts anew, or the disk is full.

use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_integration::{
    Agent, Machine, Place,
    agent::condition,
    eventually, fixtures,
    help::{agent, container, lines, manifest, name, place, processes, run, sh, supervisor},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// A pod that notes each of its starts in a file of the place.
fn noting(place: &Place, pod: &str) -> Value {
    let out = place.path("out");
    fs::create_dir_all(&out).expect("a directory");
    let mut manifest = manifest(pod, &format!("echo $HOSTNAME >> /out/{pod}; exec sleep 1000"));
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(1);
    manifest["spec"]["volumes"] = json!([{ "name": "out", "hostPath": { "path": out } }]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "out", "mountPath": "/out" }]);
    manifest
}

fn starts(place: &Place, pod: &str) -> usize {
    lines(&place.path("out").join(pod)).len()
}

fn restarts(pod: &Value) -> usize {
    container(pod, 0)["restartCount"].as_u64().expect("a count") as usize
}

/// Numbers that differ from run to run; a failure prints the first one.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_nanos() as u64 | 1;
        println!("seed {seed}");
        Random(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_agent_killed_at_any_moment_leaves_nothing_undone_and_nothing_behind() {
    let place = place();
    let before = Machine::look(&place);
    let mut random = Random::new();
    let pods = ["kept", "flickers", "changes"];
    let mut agent = agent(&place, &[]);
    agent.apply("kept.json", &noting(&place, "kept").to_string());
    let original = agent.ready("kept");
    let mut version = 0;
    for round in 0..18 {
        let delay = Duration::from_millis(random.below(60));
        match round % 3 {
            0 => agent.apply("flickers.json", &noting(&place, "flickers").to_string()),
            1 => agent.delete("flickers.json"),
            _ => {
                version += 1;
                let mut pod = noting(&place, "changes");
                pod["metadata"]["annotations"] = json!({ "version": version.to_string() });
                agent.apply("changes.json", &pod.to_string());
            }
        }
        std::thread::sleep(delay);
        agent.kill();
        agent = Agent::start(&place, &[]).unwrap_or_else(|error| panic!("round {round}, {delay:?}: {error:#}"));
    }
    let kept = agent.ready("kept");
    assert_eq!(
        kept["status"]["containerStatuses"][0]["containerID"],
        original["status"]["containerStatuses"][0]["containerID"]
    );
    assert_eq!((restarts(&kept), starts(&place, "kept")), (0, 1), "untouched all the time");
    let last = json!(version.to_string());
    agent.until("changes", "of the last version", |pod| {
        pod["metadata"]["annotations"]["version"] == last && condition(pod, "Ready") == "True"
    });
    agent.gone("flickers");
    // Each of the pods that came and went is another one, started once each, or once more for each restart it shows.
    assert!(starts(&place, "flickers") <= 6, "{} starts", starts(&place, "flickers"));
    let changes = agent.ready("changes");
    assert!(starts(&place, "changes") <= version + restarts(&changes), "{} starts", starts(&place, "changes"));
    for name in pods.iter().filter(|name| **name != "flickers") {
        agent.delete(&format!("{name}.json"));
        agent.gone(name);
    }
    agent.stop();
    fs::remove_dir_all(place.path("out")).expect("remove the notes");
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_whose_supervisor_is_killed_is_built_anew() {
    let place = place();
    let mut agent = agent(&place, &[]);
    agent.apply("other.json", &fixtures::pod("other", "exec sleep 1000"));
    agent.apply("web.json", &noting(&place, "web").to_string());
    let mut never = noting(&place, "never");
    never["spec"]["restartPolicy"] = json!("Never");
    agent.apply("never.json", &never.to_string());
    agent.ready("other");
    agent.ready("never");
    let first = agent.ready("web");
    for pod in ["web", "never"] {
        kill(Pid::from_raw(supervisor(&agent, pod)), Signal::SIGKILL).expect("kill the supervisor");
    }
    let pod = agent.until("web", "built anew", |pod| restarts(pod) == 1 && condition(pod, "Ready") == "True");
    assert_eq!(pod["metadata"]["uid"], first["metadata"]["uid"]);
    let last = &container(&pod, 0)["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(137), Some("ContainerStatusUnknown")));
    assert_eq!(starts(&place, "web"), 2);
    let pod = agent.until("never", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(container(&pod, 0)["state"]["terminated"]["exitCode"], 137, "unknown is not success");
    assert_eq!(restarts(&agent.ready("other")), 0);
    // The same with nobody watching.
    let pid = supervisor(&agent, "web");
    agent.kill();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the supervisor");
    let agent = Agent::start(&place, &[]).expect("an agent");
    let pod = agent.until("web", "built anew", |pod| restarts(pod) == 2 && condition(pod, "Ready") == "True");
    assert_eq!(container(&pod, 0)["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(restarts(&agent.ready("other")), 0);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pods_come_back_after_a_reboot() {
    let place = place();
    let before = Machine::look(&place);
    let mut agent = agent(&place, &[]);
    let mut web = noting(&place, "web");
    web["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": 18080 }]);
    agent.apply("web.json", &web.to_string());
    let mut job = noting(&place, "job");
    job["spec"]["restartPolicy"] = json!("Never");
    job["spec"]["containers"][0]["command"] = json!(["sh", "-c", "echo job >> /out/job; exit 6"]);
    agent.apply("job.json", &job.to_string());
    agent.ready("web");
    agent.until("job", "failed", |pod| pod["status"]["phase"] == "Failed");
    agent.kill();
    // What a reboot takes: processes, cgroups, links, rules, mounts, the run directory.
    for pid in processes(&place) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    eventually("all processes are gone", Duration::from_secs(5), || processes(&place).is_empty().then_some(()));
    run(&place, "ip link delete berth0; nft flush ruleset; echo 0 > /proc/sys/net/ipv4/ip_forward");
    fs::remove_dir_all(place.path("run")).expect("remove the run directory");
    let mut agent = Agent::start(&place, &[]).expect("an agent after the reboot");
    let pod = agent.until("web", "running again", |pod| restarts(pod) == 1 && condition(pod, "Ready") == "True");
    assert_eq!(container(&pod, 0)["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(starts(&place, "web"), 2);
    assert!(sh(&agent, "web", "ip -o address show eth0").contains("inet 10.85."));
    let job = agent.until("job", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(container(&job, 0)["state"]["terminated"]["exitCode"], 6, "the exit code outlives the reboot");
    assert_eq!(starts(&place, "job"), 1, "what has ended is not run again");
    for name in ["web", "job"] {
        agent.delete(&format!("{name}.json"));
        agent.gone(name);
    }
    agent.stop();
    fs::remove_dir_all(place.path("out")).expect("remove the notes");
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_full_disk_is_named_and_survived() {
    let place = place();
    let root = place.path("root").display().to_string();
    run(&place, &format!("mount -t tmpfs -o size=16m tmpfs {root}"));
    let agent = agent(&place, &[]);
    agent.apply("first.json", &fixtures::pod("first", "exec sleep 1000"));
    agent.ready("first");
    let filling = format!(
        "dd if=/dev/zero of={root}/filling bs=64k 2>/dev/null; dd if=/dev/zero of={root}/more bs=1 count=65536 2>/dev/null; true"
    );
    run(&place, &filling);
    agent.apply("late.json", &fixtures::pod("late", "exec sleep 1000"));
    let begun = Instant::now();
    let pod = agent
        .until("late", "told about the disk", |pod| pod["status"].to_string().to_lowercase().contains("no space left"));
    assert!(pod["status"].to_string().contains(&root), "the place is named: {:#}", pod["status"]);
    assert!(begun.elapsed() < Duration::from_secs(10));
    let refused = agent.cli(&["load", "--name", "nginx:1", &fixtures::nginx()]).expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(!refused.status.success() && said.contains("no space left"), "{said}");
    assert_eq!(restarts(&agent.ready("first")), 0, "what runs is not disturbed");
    run(&place, &format!("rm {root}/filling {root}/more"));
    agent.ready("late");
    let _ = name(&agent, "late");
}
