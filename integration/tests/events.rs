//! What happened to pods: `berth events`, and the events of `berth inspect`.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use berth_integration::{
    Agent, eventually, fixtures,
    help::{agent, config, manifest, name, place, supervisor},
    registry::Registry,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// The events of a pod as `Type Reason: message`, in order.
fn events(agent: &Agent, pod: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(&agent.ok(&["events", pod, "-o", "json"])).expect("JSON");
    assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("EventList"), Some("v1")));
    let line = |event: &Value| {
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        format!("{} {}: {}", text("type"), text("reason"), text("message"))
    };
    list["items"].as_array().expect("items").iter().map(line).collect()
}

#[track_caller]
fn until(agent: &Agent, pod: &str, expected: &str) -> Vec<String> {
    eventually(&format!("{pod}: {expected}"), Duration::from_secs(20), || {
        let found = events(agent, pod);
        found.iter().any(|line| line.contains(expected)).then_some(found)
    })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pods_life_is_told_in_upstreams_words() {
    let place = place();
    let registry = Registry::start(&place, 5000, false);
    registry.push("busybox:1", "test/busybox:1", "");
    let agent = agent(&place, &[]);
    agent.apply("here.json", &fixtures::pod("here", "exec sleep 1000"));
    let mut pulled = manifest("pulled", "exec sleep 1000");
    let reference = registry.reference("test/busybox:1");
    pulled["spec"]["containers"][0]["image"] = json!(reference);
    agent.apply("pulled.json", &pulled.to_string());
    agent.ready("here");
    agent.ready("pulled");
    assert_eq!(
        events(&agent, "here"),
        [
            "Normal Pulled: Container image \"busybox:1\" already present on machine and can be accessed by the pod",
            "Normal Created: Container created",
            "Normal Started: Container started",
        ]
    );
    let found = events(&agent, "pulled");
    assert_eq!(found[0], format!("Normal Pulling: Pulling image \"{reference}\""));
    let rest = found[1]
        .strip_prefix(&format!("Normal Pulled: Successfully pulled image \"{reference}\" in "))
        .expect("pulled");
    assert!(rest.contains("s including waiting). Image size: ") && rest.ends_with(" bytes."), "{rest}");

    let table = agent.ok(&["events", "here"]);
    let heading: Vec<&str> = table.lines().next().expect("a heading").split_whitespace().collect();
    assert_eq!(heading, ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    let full_name = name(&agent, "here");
    assert!(table.contains(&format!("Pod/{full_name}")), "{table}");
    assert!(agent.ok(&["events", "-o", "wide"]).contains("spec.containers{app}"));
    assert_eq!(agent.ok(&["events", "-n", "nowhere"]), "No events.\n");
    let described = agent.ok(&["inspect", "here"]);
    assert!(described.contains("spec.containers{app}: Container started"), "{described}");

    agent.delete("here.json");
    agent.gone("here");
    let killing = until(&agent, "here", "Stopping container app");
    assert!(killing.last().is_some_and(|last| last == "Normal Killing: Stopping container app"), "{killing:?}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_goes_wrong_is_told_with_its_reason() {
    let place = place();
    let config = config(
        &place,
        "crashLoopBackOff: {maxContainerRestartPeriod: 1s}\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.local",
        "",
    );
    let agent = agent(&place, &["--config", &config]);
    let image = fixtures::pod("image", "true").replace("busybox:1", "127.0.0.1:1/no/such:1");
    agent.apply("image.json", &image);
    let mut never = manifest("never", "true");
    never["spec"]["containers"][0]["image"] = json!("not/here:1");
    never["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    agent.apply("never.json", &never.to_string());
    agent.apply("command.json", &fixtures::pod("command", "x").replace("\"sh\"", "\"no-such-command\""));
    agent.apply("crash.json", &fixtures::pod("crash", "exit 3"));
    let mut mount = manifest("mount", "true");
    mount["spec"]["volumes"] = json!([{ "name": "v", "hostPath": { "path": "/etc/passwd", "type": "Directory" } }]);
    agent.apply("mount.json", &mount.to_string());
    let mut dns = manifest("dns", "exec sleep 1000");
    // With the three of the cluster there are too many.
    dns["spec"]["dnsConfig"] = json!({ "searches": (0..30).map(|n| format!("d{n}.example")).collect::<Vec<_>>() });
    agent.apply("dns.json", &dns.to_string());
    agent.apply("lost.json", &fixtures::pod("lost", "exec sleep 1000"));

    let found = until(&agent, "image", "Error: ImagePullBackOff");
    assert!(
        found.iter().any(|line| line.starts_with("Warning Failed: Failed to pull image \"127.0.0.1:1/no/such:1\": "))
    );
    assert!(
        found.iter().any(|line| line.starts_with("Normal BackOff: Back-off pulling image \"127.0.0.1:1/no/such:1\""))
    );
    until(
        &agent,
        "never",
        "Warning ErrImageNeverPull: Container image \"not/here:1\" is not present with pull policy of Never",
    );
    until(&agent, "command", "Warning Failed: Error: ");
    let full_name = name(&agent, "crash");
    until(
        &agent,
        "crash",
        &format!("Warning BackOff: Back-off restarting failed container app in pod {full_name}_default("),
    );
    until(&agent, "mount", "Warning FailedMount: MountVolume.SetUp failed for volume \"v\" : ");
    let found = until(&agent, "dns", "Warning DNSConfigForming: Search Line limits were exceeded");
    assert_eq!(found.iter().filter(|line| line.contains("DNSConfigForming")).count(), 1);
    agent.ready("lost");
    kill(Pid::from_raw(supervisor(&agent, "lost")), Signal::SIGKILL).expect("kill the supervisor");
    until(&agent, "lost", "Normal SandboxChanged: Pod sandbox changed, it will be killed and re-created.");
    // The many starts of one that crashes are few lines.
    until(&agent, "crash", "Created");
    eventually("repeated events are counted", Duration::from_secs(20), || {
        let list: Value = serde_json::from_str(&agent.ok(&["events", "crash", "-o", "json"])).expect("JSON");
        let started = list["items"].as_array()?.iter().find(|event| event["reason"] == "Started")?;
        (started["count"].as_i64()? >= 2).then_some(())
    });
    assert!(events(&agent, "crash").len() <= 4, "{:?}", events(&agent, "crash"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn another_agent_knows_what_happened_and_watchers_hear_of_it() {
    let place = place();
    let mut first = agent(&place, &[]);
    first.apply("web.json", &fixtures::pod("web", "exec sleep 1000"));
    first.ready("web");
    eventually("the events are on disk", Duration::from_secs(10), || {
        fs::read_to_string(place.path("root/events.jsonl")).ok()?.contains("Started").then_some(())
    });
    first.kill();
    let agent = Agent::start(&place, &[]).expect("an agent");
    let before = events(&agent, "web");
    assert_eq!(before.last().map(String::as_str), Some("Normal Started: Container started"), "{before:?}");
    assert_eq!(before.len(), 3, "taking it up is no event");

    let mut watching =
        agent.command(&["events", "web", "--watch", "-o", "json"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(watching.stdout.take().expect("a pipe")).lines();
    let mut next = || {
        let line = lines.next().expect("a line").expect("UTF-8");
        serde_json::from_str::<Value>(&line).expect("JSON")["reason"].as_str().map(str::to_owned)
    };
    for reason in ["Pulled", "Created", "Started"] {
        assert_eq!(next().as_deref(), Some(reason));
    }
    agent.delete("web.json");
    assert_eq!(next().as_deref(), Some("Killing"));
    watching.kill().expect("kill the watcher");
    watching.wait().expect("the watcher ends");
    agent.gone("web");
}
