//! `berth pods` and `berth inspect`.

use jiff::Timestamp;
use k8s_openapi::{
    List,
    api::core::v1::{Event, Pod},
};

use super::{
    args::{InspectArgs, ListArgs, Output, PodsArgs},
    client::{self, Client},
    columns::columns,
    events,
    exit::{Exit, Failed},
    output::{Columns, age_of, harmless, print, show},
};
use crate::{
    api::{quantity::Quantity, resources::CPU},
    pod::{grants::MemoryGrant, topology::NodeMask},
    server::find,
    worker::handle::{ManifestProblem, NodeError, PodView},
};

/// `berth pods`.
///
/// # Errors
/// The agent cannot be asked, or knows no such pod.
pub async fn list(client: &Client, args: &PodsArgs) -> Result<(), Failed> {
    let problems: Vec<ManifestProblem> = client.get("/v1/problems").await?;
    if args.problems {
        return show(args.list.output, &problems, |_| problem_lines(&problems));
    }
    let views = views(client, &args.list).await?;
    let list = List::<Pod> { items: views.iter().map(|view| view.pod.clone()).collect(), ..List::default() };
    show(args.list.output, &list, |wide| {
        let mut text = pod_table(&views, wide, Timestamp::now());
        if !problems.is_empty() && args.list.pod.is_none() {
            text.push('\n');
            text.push_str(&problem_lines(&problems));
        }
        text
    })
}

/// The pods that `args` ask for.
///
/// # Errors
/// The agent cannot be asked, or knows no such pod.
pub async fn views(client: &Client, args: &ListArgs) -> Result<Vec<PodView>, Failed> {
    let mut views: Vec<PodView> = client.get("/v1/pods").await?;
    if let Some(namespace) = &args.namespace {
        views.retain(|view| find::namespace_of(&view.pod) == namespace);
    }
    match &args.pod {
        Some(pod) => Ok(vec![find::pod(&views, pod).map_err(not_found)?.clone()]),
        None => Ok(views),
    }
}

/// What the search for a pod says, as the failure of a command.
pub fn not_found(error: NodeError) -> Failed {
    Failed::new(Exit::NotFound, error.to_string()).hint("berth pods lists the pods")
}

fn pod_table(views: &[PodView], wide: bool, now: Timestamp) -> String {
    if views.is_empty() {
        return "No pods.\n".to_owned();
    }
    let mut headings = vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if wide {
        headings.extend(["IP", "NODE", "QOS", "SOURCE"]);
    }
    let mut table = Columns::new(&headings);
    for view in views {
        let pod = &view.pod;
        let status = pod.status.as_ref();
        let computed = columns(pod, now);
        // A static pod has no creation time of its own; that of its start is what its age means.
        let created = pod.metadata.creation_timestamp.as_ref().or(status.and_then(|status| status.start_time.as_ref()));
        let mut row = vec![
            find::namespace_of(pod).to_owned(),
            pod.metadata.name.clone().unwrap_or_default(),
            computed.ready,
            computed.status,
            computed.restarts,
            age_of(created.map(|time| time.0), now),
        ];
        if wide {
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "<none>".to_owned());
            row.push(or_none(status.and_then(|status| status.pod_ip.clone())));
            row.push(or_none(pod.spec.as_ref().and_then(|spec| spec.node_name.clone())));
            row.push(or_none(status.and_then(|status| status.qos_class.clone())));
            row.push(view.source.clone());
        }
        table.row(row);
    }
    table.finish()
}

fn problem_lines(problems: &[ManifestProblem]) -> String {
    if problems.is_empty() {
        return "No problems.\n".to_owned();
    }
    let mut table = Columns::new(&["PROBLEM", "MANIFEST", "OBJECT", "MESSAGE"]);
    for problem in problems {
        let document = problem.document.filter(|document| *document > 0);
        table.row([
            if problem.warning { "warning" } else { "not used" }.to_owned(),
            match document {
                // Counted from 1 where people read it.
                Some(document) => format!("{} (document {})", problem.source, document + 1),
                None => problem.source.clone(),
            },
            problem.pod.clone().unwrap_or_else(|| "<unknown>".to_owned()),
            problem.message.clone(),
        ]);
    }
    table.finish()
}

/// `berth inspect`.
///
/// # Errors
/// The agent cannot be asked, or knows no such pod.
pub async fn inspect(client: &Client, args: &InspectArgs) -> Result<(), Failed> {
    let views: Vec<PodView> = client.get("/v1/pods").await?;
    let view = find::pod(&views, &args.pod).map_err(not_found)?;
    match args.output {
        Output::Table | Output::Wide => {
            let uid = view.pod.metadata.uid.as_deref().unwrap_or_default();
            let events: Vec<Event> = client.get(&client::path("/v1/events", &[("pod", uid)])).await?;
            let now = Timestamp::now();
            let mut text = description(view, now);
            let events = events::description(&events, now);
            if !events.is_empty() {
                text.push('\n');
                text.push_str(&events);
            }
            print(&text)
        }
        output => show(output, view, |_| String::new()),
    }
}

fn description(view: &PodView, now: Timestamp) -> String {
    let pod = &view.pod;
    let status = pod.status.clone().unwrap_or_default();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{:<16}{}\n", format!("{name}:"), harmless(&value)));
        }
    };
    line("Name", pod.metadata.name.clone().unwrap_or_default());
    line("Namespace", find::namespace_of(pod).to_owned());
    line("UID", pod.metadata.uid.clone().unwrap_or_default());
    line("Source", view.source.clone());
    line("Node", pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default());
    line("Status", columns(pod, now).status);
    line("Reason", status.reason.clone().unwrap_or_default());
    line("Message", status.message.clone().unwrap_or_default());
    line("QoS class", status.qos_class.clone().unwrap_or_default());
    let ips: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    line("Addresses", ips.join(", "));
    line("Started", status.start_time.as_ref().map(|time| time.0.to_string()).unwrap_or_default());
    line("Supervisor", view.supervisor.map(|pid| format!("process {pid}")).unwrap_or_default());

    let mut conditions = Columns::new(&["CONDITION", "STATUS", "REASON", "MESSAGE"]);
    let mut any = false;
    for condition in status.conditions.iter().flatten() {
        any = true;
        conditions.row([
            condition.type_.clone(),
            condition.status.clone(),
            condition.reason.clone().unwrap_or_default(),
            condition.message.clone().unwrap_or_default(),
        ]);
    }
    if any {
        text.push('\n');
        text.push_str(&conditions.finish());
    }

    let mut containers = Columns::new(&["CONTAINER", "KIND", "STATE", "ATTEMPT", "PID", "IMAGE", "ID", "DETAIL"]);
    let statuses = || {
        let init = status.init_container_statuses.iter().flatten();
        let ephemeral = status.ephemeral_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten()).chain(ephemeral)
    };
    for container in &view.containers {
        let state = statuses().find(|status| status.name == container.name).and_then(|status| status.state.as_ref());
        let detail = state.and_then(|state| match (&state.waiting, &state.terminated) {
            (Some(waiting), _) => Some((waiting.reason.clone(), waiting.message.clone())),
            (_, Some(terminated)) => Some((terminated.reason.clone(), terminated.message.clone())),
            _ => None,
        });
        let (reason, message) = detail.unwrap_or_default();
        let words: Vec<String> = [reason, message].into_iter().flatten().filter(|text| !text.is_empty()).collect();
        containers.row([
            container.name.clone(),
            container.kind.clone(),
            match container.exit_code {
                Some(code) => format!("{} ({code})", container.state),
                None => container.state.clone(),
            },
            container.attempt.to_string(),
            container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            container.image.clone(),
            container.id.chars().take(12).collect(),
            words.join(": "),
        ]);
    }
    text.push('\n');
    text.push_str(&containers.finish());
    text.push_str(&grants(view));

    let mut devices = Columns::new(&["CONTAINER", "RESOURCE", "DEVICE", "HEALTH"]);
    let mut any = false;
    for status in statuses() {
        for resource in status.allocated_resources_status.iter().flatten() {
            for device in resource.resources.iter().flatten() {
                any = true;
                let health = device.health.clone().unwrap_or_default();
                devices.row([status.name.clone(), resource.name.clone(), device.resource_id.clone(), health]);
            }
        }
    }
    if any {
        text.push('\n');
        text.push_str(&devices.finish());
    }

    if !view.stages.is_empty() {
        let mut stages = Columns::new(&["STAGE", "AT", "TOOK"]);
        let milliseconds = |microseconds: u64| format!("{:.3}ms", microseconds as f64 / 1000.0);
        let mut before = 0;
        // What runs at the same time is told of when it is done, not in the order of time.
        let mut ordered: Vec<_> = view.stages.iter().collect();
        ordered.sort_by_key(|stage| stage.at);
        for stage in ordered {
            let took = stage.at.saturating_sub(before);
            stages.row([stage.name.clone(), milliseconds(stage.at), milliseconds(took)]);
            before = stage.at;
        }
        text.push('\n');
        text.push_str(&stages.finish());
    }
    text
}

/// What containers have for themselves, a line each; nothing where none has anything.
fn grants(view: &PodView) -> String {
    let mut table = Columns::new(&["GRANTED TO", "RESOURCE", "AMOUNT", "WHICH", "NUMA NODES"]);
    let mut any = false;
    let mut row = |name: &str, resource: &str, amount: String, which: String, nodes: NodeMask| {
        any = true;
        table.row([name.to_owned(), resource.to_owned(), amount, which, nodes.to_string()]);
    };
    for (container, grant) in view.containers.iter().filter_map(|one| Some((one, one.granted.as_ref()?))) {
        let name = &container.name;
        if !grant.cpus.is_empty() {
            row(name, CPU, grant.cpus.len().to_string(), grant.cpus.to_string(), NodeMask::EMPTY);
        }
        for MemoryGrant { resource, nodes, bytes } in &grant.memory {
            let amount = Quantity::from_bytes(i64::try_from(*bytes).unwrap_or(i64::MAX));
            row(name, resource, amount.to_string(), String::new(), *nodes);
        }
        for (resource, devices) in &grant.devices {
            let ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
            let nodes = devices.iter().fold(NodeMask::EMPTY, |nodes, device| nodes.or(device.nodes));
            row(name, resource, devices.len().to_string(), ids.join(","), nodes);
        }
    }
    if any { format!("\n{}", table.finish()) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{server::testing, worker::handle::Stage};

    fn web() -> PodView {
        let mut view = testing::pod("default", "web-node1", "u1");
        view.pod.status = serde_json::from_value(json!({
            "phase": "Running",
            "podIP": "10.85.0.2",
            "podIPs": [{"ip": "10.85.0.2"}, {"ip": "fd00::2"}],
            "qosClass": "BestEffort",
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [{
                "name": "app", "image": "busybox", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
                "allocatedResourcesStatus": [{"name": "example.com/gpu", "resources": [
                    {"resourceID": "gpu-0", "health": "Unhealthy"},
                ]}],
            }],
        }))
        .unwrap();
        view.stages = vec![Stage { name: "admit".to_owned(), at: 250 }, Stage { name: "sandbox".to_owned(), at: 4100 }];
        view
    }

    #[test]
    fn the_table_is_like_kubectls() {
        let now = "2026-01-01T00:03:20Z".parse().unwrap();
        let text = pod_table(&[web()], true, now);
        assert_eq!(
            text,
            "\
NAMESPACE   NAME        READY   STATUS             RESTARTS   AGE     IP          NODE    QOS          SOURCE
default     web-node1   0/0     ImagePullBackOff   0          3m20s   10.85.0.2   node1   BestEffort   file:/m/a.yaml
"
        );
        assert_eq!(pod_table(&[], false, now), "No pods.\n");
    }

    #[test]
    fn a_description_has_stages_and_the_reason_a_container_waits() {
        let text = description(&web(), "2026-01-01T00:03:20Z".parse().unwrap());
        assert!(text.contains("Addresses:      10.85.0.2, fd00::2\n"), "{text}");
        assert!(text.contains("ImagePullBackOff: no such image"), "{text}");
        assert!(text.contains("sandbox   4.100ms   3.850ms\n"), "{text}");
        assert!(text.contains("exited (0)"), "{text}");
        assert!(text.contains("app         example.com/gpu   gpu-0    Unhealthy\n"), "{text}");
    }

    #[test]
    fn a_description_has_what_containers_have_for_themselves() {
        let now = "2026-01-01T00:03:20Z".parse().unwrap();
        let mut view = web();
        assert!(!description(&view, now).contains("GRANTED TO"));
        view.containers[1].granted = serde_json::from_value(json!({
            "cpus": "2-3",
            "memory": [{"resource": "memory", "nodes": "0", "bytes": 1 << 30}],
            "devices": {"example.com/gpu": [{"id": "a", "nodes": "0"}, {"id": "b", "nodes": "1"}]},
        }))
        .unwrap();
        let text = description(&view, now);
        let expected = "\
GRANTED TO   RESOURCE          AMOUNT   WHICH   NUMA NODES
app          cpu               2        2-3
app          memory            1Gi              0
app          example.com/gpu   2        a,b     0-1
";
        assert!(text.replace(" \n", "\n").contains(expected), "{text}");
    }

    #[test]
    fn problems_name_manifest_document_and_cause() {
        let text = problem_lines(&[
            ManifestProblem {
                source: "file:/m/a.yaml".to_owned(),
                document: Some(1),
                pod: None,
                warning: false,
                message: "kind: expected Pod, found Deployment".to_owned(),
            },
            ManifestProblem {
                source: "file:/m/b.yaml".to_owned(),
                document: Some(0),
                pod: Some("default/b".to_owned()),
                warning: true,
                message: "spec.foo: unknown field".to_owned(),
            },
        ]);
        assert_eq!(
            text,
            "\
PROBLEM    MANIFEST                      OBJECT      MESSAGE
not used   file:/m/a.yaml (document 2)   <unknown>   kind: expected Pod, found Deployment
warning    file:/m/b.yaml                default/b   spec.foo: unknown field
"
        );
    }
}
