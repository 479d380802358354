//! Which pods the node takes, which it does not, and which have to go for others.

use std::time::Duration;

use berth_integration::{
    Agent, Machine, eventually, fixtures,
    help::{agent, manifest, place},
};
use serde_json::{Value, json};

/// A pod that asks for processors, thousandths.
fn asking(name: &str, milli: u32) -> Value {
    let mut pod = manifest(name, "exec sleep 1000");
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": format!("{milli}m") } });
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod
}

fn processors() -> u32 {
    std::thread::available_parallelism().expect("processors").get() as u32
}

fn rejected(agent: &Agent, name: &str, reason: &str) -> String {
    let pod = agent.until(name, reason, |pod| pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == reason);
    let message = pod["status"]["message"].as_str().expect("a message").to_owned();
    let events = agent.ok(&["events", name]);
    let said = message.strip_prefix("Pod was rejected: ").expect("upstream's words");
    assert!(events.contains(reason) && events.contains(said), "{events}");
    message
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn each_reason_is_given_in_upstreams_words() {
    let place = place();
    let before = Machine::look(&place);
    let mut first = agent(&place, &["--max-pods", "2", "--node-labels", "disk=ssd"]);
    let mut holder = asking("holder", 100);
    holder["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": 18080 }]);
    holder["spec"]["nodeSelector"] = json!({ "disk": "ssd" });
    first.apply("holder.json", &holder.to_string());
    first.ready("holder");

    let capacity = processors() * 1000;
    first.apply("cpu.json", &asking("cpu", capacity).to_string());
    assert_eq!(
        rejected(&first, "cpu", "OutOfcpu"),
        format!(
            "Pod was rejected: Node didn't have enough resource: cpu, requested: {capacity}, used: 100, capacity: {capacity}"
        )
    );
    let case = |name: &str, reason: &str, words: &str, change: &dyn Fn(&mut Value)| {
        let mut pod = manifest(name, "exec sleep 1000");
        change(&mut pod);
        first.apply(&format!("{name}.json"), &pod.to_string());
        let message = rejected(&first, name, reason);
        assert!(message.contains(words), "{name}: {message}");
    };
    let requests = |pod: &mut Value, name: &str, amount: &str| {
        pod["spec"]["containers"][0]["resources"] = json!({ "requests": { name: amount } });
    };
    case("memory", "OutOfmemory", "resource: memory, requested: 1125899906842624, used: 0,", &|pod| {
        requests(pod, "memory", "1Pi");
    });
    case("disk", "OutOfephemeral-storage", "resource: ephemeral-storage, requested: 1125899906842624,", &|pod| {
        requests(pod, "ephemeral-storage", "1Pi");
    });
    case("port", "NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports", &|pod| {
        pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": 18080 }]);
    });
    case("selector", "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match", &|pod| {
        pod["spec"]["nodeSelector"] = json!({ "disk": "hdd" });
    });
    case("sysctl", "SysctlForbidden", "forbidden sysctl: \"kernel.msgmax\" not allowlisted", &|pod| {
        pod["spec"]["securityContext"] = json!({ "sysctls": [{ "name": "kernel.msgmax", "value": "65536" }] });
    });
    case("os", "PodOSNotSupported", "OS field doesn't match node OS", &|pod| {
        pod["spec"]["os"] = json!({ "name": "windows" });
    });
    case("label", "PodOSSelectorNodeLabelDoesNotMatch", "label doesn't match node label", &|pod| {
        pod["metadata"]["labels"] = json!({ "kubernetes.io/os": "windows" });
    });
    case("class", "FailedCreatePodSandBox", "runtimeclass.node.k8s.io \"gone\" not found", &|pod| {
        pod["spec"]["runtimeClassName"] = json!("gone");
    });
    case("field", "UnsupportedField", "spec.volumes[0].iscsi", &|pod| {
        let iscsi = json!({ "targetPortal": "192.0.2.1:3260", "iqn": "iqn.2026-01.com.example:disk", "lun": 0 });
        pod["spec"]["volumes"] = json!([{ "name": "v", "iscsi": iscsi }]);
    });
    first.apply("second.json", &fixtures::pod("second", "exec sleep 1000"));
    first.ready("second");
    first.apply("third.json", &fixtures::pod("third", "exec sleep 1000"));
    assert!(rejected(&first, "third", "OutOfpods").ends_with("pods, requested: 1, used: 2, capacity: 2"));

    // What was decided stays, though there would be room now.
    let since = first.pod("third").expect("a pod")["status"]["startTime"].clone();
    first.kill();
    let mut second = Agent::start(&place, &["--node-labels", "disk=hdd"]).expect("an agent");
    let third = second.until("third", "rejected", |pod| pod["status"]["reason"] == "OutOfpods");
    assert_eq!(third["status"]["startTime"], since, "it is the same decision");
    assert_eq!(second.until("selector", "rejected", |_| true)["status"]["reason"], "NodeAffinity");
    assert_eq!(second.ready("holder")["status"]["phase"], "Running", "what runs is not decided again");
    // Taken away and put there again it is a new pod.
    second.delete("third.json");
    second.gone("third");
    second.apply("third.json", &fixtures::pod("third", "exec sleep 1000"));
    second.ready("third");

    for entry in std::fs::read_dir(place.path("manifests")).expect("manifests").flatten() {
        std::fs::remove_file(entry.path()).expect("remove a manifest");
    }
    eventually("all pods are gone", Duration::from_secs(40), || second.pods().is_empty().then_some(()));
    second.stop();
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_critical_pod_takes_the_room_of_another() {
    let place = place();
    let mut first = agent(&place, &[]);
    let most = processors() * 1000 - 300;
    let mut victim = asking("victim", most);
    // Takes its time to end, so that it can be seen that the other waits.
    victim["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", "trap 'sleep 1; exit 0' TERM; while true; do sleep 0.1; done"]);
    victim["spec"]["terminationGracePeriodSeconds"] = json!(20);
    first.apply("victim.json", &victim.to_string());
    first.apply("bystander.json", &asking("bystander", 200).to_string());
    first.ready("victim");
    first.ready("bystander");
    let mut critical = asking("critical", most);
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    first.apply("critical.json", &critical.to_string());
    let going = first.until("victim", "preempted", |pod| pod["status"]["reason"] == "Preempting");
    assert_eq!(going["status"]["phase"], "Failed");
    assert_eq!(going["status"]["message"], "Preempted in order to admit critical pod");
    let conditions = going["status"]["conditions"].as_array().expect("conditions");
    let target = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").expect("a condition");
    assert_eq!((target["status"].as_str(), target["reason"].as_str()), (Some("True"), Some("TerminationByKubelet")));
    let running = first.ready("critical");
    let ended = first.pod("victim").expect("the victim stays listed");
    let ended = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], 0, "it was given its time");
    let started = &running["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
    assert!(ended["finishedAt"].as_str() <= started.as_str(), "{ended} before {started}");
    let events = first.ok(&["events", "victim"]);
    assert!(events.contains("Preempting") && events.contains("Preempted in order to admit critical pod"), "{events}");
    let bystander = first.ready("bystander");
    assert_eq!(bystander["status"]["containerStatuses"][0]["restartCount"], 0);

    // Another agent lets it rest.
    first.kill();
    let second = Agent::start(&place, &[]).expect("an agent");
    second.ready("critical");
    let victim = second.until("victim", "still preempted", |pod| pod["status"]["reason"] == "Preempting");
    assert_eq!(victim["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_that_replaces_another_waits_for_its_room() {
    let place = place();
    let agent = agent(&place, &[]);
    let most = processors() * 1000 - 100;
    let mut old = asking("old", most);
    old["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", "trap 'sleep 1; exit 0' TERM; while true; do sleep 0.1; done"]);
    old["spec"]["terminationGracePeriodSeconds"] = json!(20);
    agent.apply("old.json", &old.to_string());
    agent.ready("old");
    agent.delete("old.json");
    agent.apply("new.json", &asking("new", most).to_string());
    let waiting = agent.until("new", "shown while it waits", |pod| pod["status"]["reason"] == "WaitingForRoom");
    assert_eq!(waiting["status"]["phase"], "Pending");
    let why = waiting["status"]["message"].as_str().expect("a message");
    assert!(why.contains("Node didn't have enough resource: cpu"), "{why}");
    agent.ready("new");
    assert!(agent.pod("old").is_none(), "not before the other had gone");
}
