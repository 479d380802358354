//! Devices of device plugins: given to containers, kept over restarts, given back.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use berth_integration::{
    Agent, Machine, Place,
    agent::condition,
    eventually,
    help::{lines, processes, run as sh},
    scenario::{apply, container, ended, exec, exec_in, explained, full_name, place, ready, run, with},
};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::{Value, json};

const RESOURCE: &str = "example.com/device";
/// Waits without end and dies at once.
const WAIT: &str = "sleep 1000";

/// A device plugin, killed at the end.
struct Plugin<'a> {
    place: &'a Place,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl<'a> Plugin<'a> {
    /// Starts one with two devices.
    fn start(place: &'a Place, more: &[&str]) -> Plugin<'a> {
        let directory = place.path("root/device-plugins");
        fs::create_dir_all(state(place)).expect("a directory");
        let mut arguments: Vec<String> = Vec::new();
        for (name, path) in [("--directory", directory), ("--state", state(place))] {
            arguments.extend([name.to_owned(), path.to_string_lossy().into_owned()]);
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let mut plugin = Plugin { place, arguments, child: None };
        plugin.again();
        plugin
    }

    /// Starts it once more, with what it was started with.
    fn again(&mut self) {
        self.kill();
        let log = fs::File::options().create(true).append(true).open(state(self.place).join("log")).expect("a log");
        let mut command = self.place.command(env!("CARGO_BIN_EXE_berth-device-plugin"));
        let child = command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.expect("the plugin starts"));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill the plugin");
            child.wait().expect("the plugin ends");
        }
    }
}

impl Drop for Plugin<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

fn state(place: &Place) -> PathBuf {
    place.path("plugin")
}

/// What the plugin was asked: `allocate dev-0`, …
fn calls(place: &Place) -> Vec<String> {
    lines(&state(place).join("calls"))
}

fn count(place: &Place, what: &str) -> usize {
    calls(place).iter().filter(|call| call.starts_with(what)).count()
}

/// Waits until the plugin has been asked `what` so many times.
#[track_caller]
fn asked(place: &Place, what: &str, times: usize) {
    eventually(&format!("{what} {times} times"), Duration::from_secs(20), || {
        (count(place, what) >= times).then_some(())
    });
    assert_eq!(count(place, what), times, "{:?}", calls(place));
}

fn devices(count: u32) -> Value {
    let amounts = json!({ RESOURCE: count.to_string() });
    json!({ "resources": { "limits": amounts, "requests": amounts } })
}

/// The health of a pod's devices: `dev-0 Healthy`, …
fn health(pod: &Value) -> Vec<String> {
    let all = pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"].as_array();
    let all = all.into_iter().flatten().filter(|status| status["name"] == RESOURCE);
    let one = |one: &Value| format!("{} {}", one["resourceID"].as_str().unwrap(), one["health"].as_str().unwrap());
    all.flat_map(|status| status["resources"].as_array().unwrap().iter().map(one)).collect()
}

fn agent(place: &Place) -> Agent<'_> {
    let config = place.path("devices.yaml");
    let text = format!(
        "apiVersion: berth.dev/v1alpha1\nkind: BerthConfiguration\ncdiSpecDirs: [{}]\n",
        state(place).join("cdi").display()
    );
    fs::write(&config, text).expect("a configuration");
    berth_integration::scenario::agent(place, &["--config", config.to_str().expect("UTF-8")])
}

/// The agent, once it was killed.
fn next<'a>(place: &'a Place) -> Agent<'a> {
    let config = place.path("devices.yaml");
    Agent::start(place, &["--config", config.to_str().expect("UTF-8")]).expect("an agent")
}

/// Opens each device that can be there for reading and writing.
const OPEN: &str =
    "for i in 0 1; do f=/dev/fake/dev-$i; if [ -c $f ] && true <>$f; then echo opened dev-$i; fi; done 2>&1; true";

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_has_the_devices_it_was_given_and_no_others() {
    let place = place();
    let agent = agent(&place);
    run(&agent, "first", WAIT, json!({}));
    ready(&agent, "first");
    let _plugin = Plugin::start(&place, &["--pre-start"]);
    let known = place.path("run/devices.json");
    eventually("its devices are known", Duration::from_secs(10), || known.exists().then_some(()));
    let before = Machine::look(&place);
    let spec = json!({ "containers": [
        container("has", WAIT, with(devices(1), json!({ "env": [{ "name": "OWN", "value": "1" }] }))),
        container("none", WAIT, json!({})),
    ]});
    apply(&agent, "one", spec);
    let name = ready(&agent, "one");
    assert_eq!(exec_in(&agent, &name, "has", "echo $FAKE_DEVICES; cat /opt/fake/hello"), "dev-0\nfrom the plugin\n");
    assert_eq!(exec_in(&agent, &name, "has", OPEN), "opened dev-0\n");
    assert!(exec_in(&agent, &name, "has", "touch /opt/fake/x 2>&1 || true").contains("Read-only file system"));
    // fuse is the first device, autofs the second: a node alone is not enough.
    let made = "mknod /fuse c 10 229; mknod /autofs c 10 235; for f in /fuse /autofs; do \
                if true <>$f; then echo opened $f; fi; done 2>&1 || true";
    let has = exec_in(&agent, &name, "has", made);
    assert!(has.contains("opened /fuse") && has.contains("/autofs: Operation not permitted"), "{has}");
    let none = exec_in(&agent, &name, "none", &format!("{made}; echo [$FAKE_DEVICES]; ls /dev/fake 2>&1 || true"));
    assert!(!none.contains("opened") && none.contains("[]") && none.contains("No such file"), "{none}");
    assert_eq!(calls(&place), ["registered ", "allocate dev-0", "pre-start dev-0"]);
    assert_eq!(health(&agent.pod("one").expect("a pod")), ["dev-0 Healthy"]);
    let inspected = agent.ok(&["inspect", &name]);
    assert!(inspected.contains("example.com/device") && inspected.contains("dev-0"), "{inspected}");
    agent.delete("one.json");
    agent.gone("one");
    // It is free again.
    run(&agent, "both", WAIT, devices(2));
    let both = ready(&agent, "both");
    assert_eq!(exec(&agent, &both, OPEN), "opened dev-0\nopened dev-1\n");
    agent.delete("both.json");
    agent.gone("both");
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_that_asks_for_more_than_there_is_is_rejected_in_upstreams_words() {
    let place = place();
    let agent = agent(&place);
    let _plugin = Plugin::start(&place, &[]);
    run(&agent, "holds", WAIT, devices(1));
    ready(&agent, "holds");
    let reason = |name: &str| {
        let pod = agent.until(name, "rejected", |pod| pod["status"]["phase"] == "Failed");
        let status = &pod["status"];
        format!("{}: {}", status["reason"].as_str().unwrap(), status["message"].as_str().unwrap())
    };
    run(&agent, "more", WAIT, devices(2));
    assert_eq!(
        reason("more"),
        "UnexpectedAdmissionError: Pod was rejected: Allocate failed due to requested number of devices unavailable \
         for example.com/device. Requested: 2, Available: 1, which is unexpected"
    );
    fs::write(state(&place).join("unhealthy"), "dev-0\ndev-1\n").expect("a file");
    agent.until("holds", "unhealthy", |pod| health(pod) == ["dev-0 Unhealthy"]);
    run(&agent, "sick", WAIT, devices(1));
    assert_eq!(
        reason("sick"),
        "UnexpectedAdmissionError: Pod was rejected: Allocate failed due to no healthy devices present; cannot \
         allocate unhealthy devices example.com/device, which is unexpected"
    );
    fs::remove_file(state(&place).join("unhealthy")).expect("a file");
    agent.until("holds", "healthy", |pod| health(pod) == ["dev-0 Healthy"]);
    fs::write(state(&place).join("refuse"), "out of order").expect("a file");
    run(&agent, "refused", WAIT, devices(1));
    assert_eq!(
        reason("refused"),
        "UnexpectedAdmissionError: Pod was rejected: Allocate failed due to rpc error: code = FailedPrecondition desc \
         = out of order, which is unexpected"
    );
    fs::remove_file(state(&place).join("refuse")).expect("a file");
    // What the refused one would have had is free.
    run(&agent, "last", WAIT, devices(1));
    ready(&agent, "last");
    // A pod that is about to leave makes room for one that waits.
    agent.delete("holds.json");
    run(&agent, "waits", WAIT, devices(1));
    ready(&agent, "waits");
    let unequal = json!({ "resources": { "limits": { RESOURCE: "2" }, "requests": { RESOURCE: "1" } } });
    run(&agent, "unequal", WAIT, unequal);
    eventually("it is refused", Duration::from_secs(10), || {
        agent.ok(&["pods"]).contains("must be equal to example.com/device limit of 2").then_some(())
    });
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_waits_for_its_plugin_and_others_do_not_wait_for_it() {
    let place = place();
    let agent = agent(&place);
    run(&agent, "early", WAIT, devices(1));
    eventually("it is said", Duration::from_secs(10), || {
        agent.ok(&["pods"]).contains("waits for a device plugin that offers example.com/device").then_some(())
    });
    run(&agent, "other", WAIT, json!({}));
    ready(&agent, "other");
    fs::create_dir_all(state(&place)).expect("a directory");
    fs::write(state(&place).join("slow"), "").expect("a file");
    let mut plugin = Plugin::start(&place, &["--preferred", "--devices", "3"]);
    // The plugin is asked, and does not answer: nobody else waits for that, not even for its own devices.
    asked(&place, "allocate", 1);
    run(&agent, "another", WAIT, json!({}));
    ready(&agent, "another");
    fs::remove_file(state(&place).join("slow")).expect("a file");
    let early = ready(&agent, "early");
    assert_eq!(exec(&agent, &early, "echo $FAKE_DEVICES"), "dev-2\n", "the one that the plugin prefers");
    // A plugin that goes while it is asked is followed by another.
    fs::write(state(&place).join("slow"), "").expect("a file");
    run(&agent, "second", WAIT, devices(2));
    asked(&place, "allocate", 2);
    plugin.kill();
    fs::remove_file(state(&place).join("slow")).expect("a file");
    agent.until("early", "of unknown health", |pod| health(pod) == ["dev-2 Unknown"]);
    plugin.again();
    let second = ready(&agent, "second");
    assert_eq!(exec(&agent, &second, "echo $FAKE_DEVICES"), "dev-0,dev-1\n");
    agent.until("early", "healthy", |pod| health(pod) == ["dev-2 Healthy"]);
    assert_eq!(calls(&place).iter().filter(|call| *call == "allocate dev-2").count(), 1);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn devices_stay_with_their_pod_over_restarts_of_agent_and_plugin() {
    let place = place();
    let mut first = agent(&place);
    let mut plugin = Plugin::start(&place, &["--pre-start"]);
    let once = "[ -e /v/again ] && sleep 1000; touch /v/again; while [ ! -e /v/end ]; do sleep 0.1; done";
    let volume = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
    let spec = json!({
        "volumes": [{ "name": "v", "emptyDir": {} }],
        "containers": [container("app", once, with(devices(1), volume))],
    });
    apply(&first, "holds", spec);
    let name = ready(&first, "holds");
    let started = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let id = started(&first.pod("holds").expect("a pod"));
    plugin.kill();
    first.kill();
    let mut second = next(&place);
    assert_eq!(started(&second.ready("holds")), id, "it runs on");
    second.until("holds", "of unknown health", |pod| health(pod) == ["dev-0 Unknown"]);
    assert_eq!(exec(&second, &name, OPEN), "opened dev-0\n");
    // It has to be started again, and the plugin wants to be told before.
    exec(&second, &name, "touch /v/end");
    explained(&second, "holds", &["CreateContainerConfigError", "endpoint example.com/device has been stopped"]);
    plugin.again();
    let again = second.until("holds", "started again", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1 && condition(pod, "Ready") == "True"
    });
    assert_eq!(health(&again), ["dev-0 Healthy"]);
    assert_eq!((count(&place, "allocate"), count(&place, "pre-start")), (1, 2), "{:?}", calls(&place));
    // A plugin that is there notices the next agent, and a new pod gets what is left.
    second.kill();
    let mut third = next(&place);
    run(&third, "other", WAIT, devices(1));
    let other = ready(&third, "other");
    assert_eq!(exec(&third, &other, OPEN), "opened dev-1\n");
    assert_eq!(exec(&third, &name, OPEN), "opened dev-0\n");
    run(&third, "more", WAIT, devices(1));
    explained(&third, "more", &["Requested: 1, Available: 0"]);
    // After a reboot nothing is started on a device whose plugin has not been there yet.
    plugin.kill();
    third.kill();
    for pid in processes(&place) {
        signal::kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    eventually("all processes are gone", Duration::from_secs(5), || processes(&place).is_empty().then_some(()));
    sh(&place, "ip link delete berth0; nft flush ruleset");
    fs::remove_dir_all(place.path("run")).expect("remove the run directory");
    let fourth = next(&place);
    explained(&fourth, "other", &["no device plugin has offered example.com/device since the machine was started"]);
    plugin.again();
    let pod = fourth.ready("other");
    assert_eq!(exec(&fourth, &full_name(&pod), OPEN), "opened dev-1\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn init_containers_leave_their_devices_to_those_after_them() {
    let place = place();
    let agent = agent(&place);
    let _plugin = Plugin::start(&place, &[]);
    let init = container("init", OPEN, devices(2));
    let spec = json!({ "initContainers": [init], "containers": [container("app", WAIT, devices(2))] });
    apply(&agent, "both", spec.clone());
    let name = ready(&agent, "both");
    assert_eq!(agent.ok(&["logs", &name, "-c", "init"]), "opened dev-0\nopened dev-1\n");
    assert_eq!(exec(&agent, &name, OPEN), "opened dev-0\nopened dev-1\n");
    agent.delete("both.json");
    agent.gone("both");
    let mut sidecar = spec;
    sidecar["initContainers"][0]["restartPolicy"] = json!("Always");
    apply(&agent, "sidecar", sidecar);
    explained(&agent, "sidecar", &["Requested: 2, Available: 0"]);
    // Devices of a pod that has ended are free.
    run(&agent, "ends", "true", with(devices(2), json!({})));
    let mut ends = json!({ "containers": [container("app", "true", devices(2))] });
    ends["restartPolicy"] = json!("Never");
    agent.delete("ends.json");
    agent.gone("ends");
    apply(&agent, "once", ends);
    ended(&agent, "once");
    run(&agent, "after", WAIT, devices(2));
    ready(&agent, "after");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cdi_devices_are_what_their_specification_says() {
    let place = place();
    let agent = agent(&place);
    let _plugin = Plugin::start(&place, &["--cdi"]);
    run(&agent, "one", WAIT, devices(1));
    let name = ready(&agent, "one");
    let script = "echo [$CDI_dev_0] [$CDI_dev_1]; cat /opt/cdi/hello; if true <>/dev/cdi-dev-0; then echo opened; fi; \
                  ls /dev/cdi-dev-1 2>&1; touch /opt/cdi/x 2>&1; true";
    let said = exec(&agent, &name, script);
    assert!(said.starts_with("[1] []\nfrom the plugin\nopened\n"), "{said}");
    assert!(said.contains("No such file") && said.contains("Read-only file system"), "{said}");
    let spec = state(&place).join("cdi/fake.json");
    let good = fs::read_to_string(&spec).expect("a specification");
    fs::remove_file(&spec).expect("a specification");
    run(&agent, "two", WAIT, devices(1));
    let missing = "CDI device injection failed: unresolvable CDI devices example.com/device=dev-1";
    explained(&agent, "two", &["CreateContainerError", missing]);
    let mut hooked: Value = serde_json::from_str(&good).expect("JSON");
    hooked["devices"][1]["containerEdits"]["hooks"] = json!([{ "hookName": "createContainer", "path": "/bin/true" }]);
    fs::write(&spec, hooked.to_string()).expect("a specification");
    explained(&agent, "two", &["createContainer hooks are not run here (/bin/true)"]);
    fs::write(&spec, good).expect("a specification");
    let two = ready(&agent, "two");
    assert!(exec(&agent, &two, "if true <>/dev/cdi-dev-1; then echo opened; fi").contains("opened"));
}

/// Messages of the pod-resources API, as far as they are looked at.
mod resources {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Name {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub namespace: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Pods {
        #[prost(message, repeated, tag = "1")]
        pub pods: Vec<Pod>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Pod {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub namespace: String,
        #[prost(message, repeated, tag = "3")]
        pub containers: Vec<Container>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Container {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub devices: Vec<Devices>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Allocatable {
        #[prost(message, repeated, tag = "1")]
        pub devices: Vec<Devices>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Devices {
        #[prost(string, tag = "1")]
        pub resource: String,
        #[prost(string, repeated, tag = "2")]
        pub ids: Vec<String>,
        #[prost(message, optional, tag = "3")]
        pub topology: Option<Topology>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Topology {
        #[prost(message, repeated, tag = "1")]
        pub nodes: Vec<Node>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Node {
        #[prost(int64, tag = "1")]
        pub id: i64,
    }

    /// Gives a channel its connection.
    pub struct Dialer(pub std::path::PathBuf);

    impl tower_service::Service<hyper::Uri> for Dialer {
        type Response = hyper_util::rt::TokioIo<tokio::net::UnixStream>;
        type Error = std::io::Error;
        type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: hyper::Uri) -> Self::Future {
            let path = self.0.clone();
            Box::pin(async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) })
        }
    }
}

/// What the pod-resources socket answers.
fn ask<Q, A>(place: &Place, method: &str, request: Q) -> Result<A, tonic::Status>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let dialer = resources::Dialer(place.path("root/pod-resources/kubelet.sock"));
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(dialer).await.expect("the agent answers");
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.expect("the agent answers");
        let path = format!("/v1.PodResourcesLister/{method}").parse().expect("a path");
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        Ok(client.unary(tonic::Request::new(request), path, codec).await?.into_inner())
    })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_monitor_learns_which_pod_has_which_devices() {
    use resources::{Allocatable, Devices, Name, Pod, Pods};
    let place = place();
    let agent = agent(&place);
    let _plugin = Plugin::start(&place, &["--nodes", "0,1"]);
    apply(&agent, "one", json!({ "containers": [container("a", WAIT, devices(1)), container("b", WAIT, json!({}))] }));
    let name = ready(&agent, "one");
    let told = |devices: &[Devices]| -> Vec<String> {
        let nodes = |devices: &Devices| {
            let nodes = devices.topology.iter().flat_map(|topology| &topology.nodes);
            nodes.map(|node| node.id.to_string()).collect::<Vec<_>>().join(",")
        };
        devices.iter().map(|one| format!("{} {} on {}", one.resource, one.ids.join(","), nodes(one))).collect()
    };
    let shown = |pod: &Pod| -> Vec<String> {
        pod.containers.iter().map(|one| format!("{}: {}", one.name, told(&one.devices).join("; "))).collect()
    };
    let pods: Pods = ask(&place, "List", Name::default()).expect("an answer");
    assert_eq!(pods.pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), [name.as_str()]);
    assert_eq!(shown(&pods.pods[0]), ["a: example.com/device dev-0 on 0", "b: "]);
    let asked = Name { name: name.clone(), namespace: "default".to_owned() };
    // One pod in the place of a list of them is the same on the wire.
    let one: Pods = ask(&place, "Get", asked).expect("an answer");
    assert_eq!(one, pods);
    let missing = ask::<_, Pods>(&place, "Get", Name { name, namespace: "other".to_owned() }).expect_err("not there");
    assert!(missing.message().contains("not found"), "{missing}");
    let all: Allocatable = ask(&place, "GetAllocatableResources", Name::default()).expect("an answer");
    assert_eq!(told(&all.devices), ["example.com/device dev-0 on 0", "example.com/device dev-1 on 1"]);
    let mut once = json!({ "containers": [container("app", "true", json!({}))] });
    once["restartPolicy"] = json!("Never");
    apply(&agent, "once", once);
    ended(&agent, "once");
    let pods: Pods = ask(&place, "List", Name::default()).expect("an answer");
    assert_eq!(pods.pods.len(), 1, "what has ended has nothing");
}
