//! Short words for what nearly every test does.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::{Agent, Place, fixtures};

/// A place; says what is missing when the test is not run by root.
pub fn place() -> Place {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: `make test` runs it");
    Place::new().expect("a place")
}

/// An agent with the busybox image.
pub fn agent<'a>(place: &'a Place, more: &[&str]) -> Agent<'a> {
    let agent = Agent::start(place, more).expect("an agent");
    agent.ok(&["load", "--name", "busybox:1", &fixtures::busybox()]);
    agent
}

/// A pod with one busybox container that runs `script`, to be changed.
pub fn manifest(name: &str, script: &str) -> Value {
    serde_json::from_str(&fixtures::pod(name, script)).expect("JSON")
}

/// The full name of a pod whose name begins with `name`.
#[track_caller]
pub fn name(agent: &Agent, name: &str) -> String {
    let pod = agent.pod(name).unwrap_or_else(|| panic!("no pod {name}"));
    pod["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// The pod's first address.
#[track_caller]
pub fn address(pod: &Value) -> String {
    pod["status"]["podIP"].as_str().unwrap_or_else(|| panic!("no address: {:#}", pod["status"])).to_owned()
}

/// The pod's addresses.
pub fn addresses(pod: &Value) -> Vec<String> {
    let all = pod["status"]["podIPs"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|entry| entry["ip"].as_str().map(str::to_owned)).collect()
}

/// Status of a container by its place in the manifest.
pub fn container(pod: &Value, index: usize) -> &Value {
    &pod["status"]["containerStatuses"][index]
}

/// What a shell script in the pod's first container prints; it must succeed.
#[track_caller]
pub fn sh(agent: &Agent, pod: &str, script: &str) -> String {
    agent.ok(&["exec", &name(agent, pod), "--", "sh", "-c", script])
}

/// The log of the pod's first container.
#[track_caller]
pub fn log(agent: &Agent, pod: &str) -> String {
    agent.ok(&["logs", &name(agent, pod)])
}

/// One HTTP request from inside a place.
pub fn get(place: &Place, address: &str) -> Option<String> {
    place.inside(|| {
        let address: SocketAddr = address.parse().expect("an address");
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

/// Process id of a pod's supervisor.
#[track_caller]
pub fn supervisor(agent: &Agent, pod: &str) -> i32 {
    let text = agent.ok(&["inspect", &name(agent, pod), "-o", "json"]);
    let view: Value = serde_json::from_str(&text).expect("JSON");
    view["supervisor"].as_i64().unwrap_or_else(|| panic!("{pod} has no supervisor: {view:#}")) as i32
}

/// Runs `work` on a thread of its own in a pod's network namespace.
#[track_caller]
pub fn in_pod<T: Send>(agent: &Agent, pod: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{}/ns/net", supervisor(agent, pod))).expect("the pod's namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter the pod's namespace");
            work()
        });
        thread.join().expect("the work in the pod does not panic")
    })
}

/// Runs a command inside that must succeed; its output.
#[track_caller]
pub fn run(place: &Place, line: &str) -> String {
    let output = place.run("/bin/sh", &["-c", line]).expect("it runs");
    assert!(
        output.status.success(),
        "{line}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes a configuration file into the place; its path. `kubelet` and `berth` are the fields of the two documents.
pub fn config(place: &Place, kubelet: &str, berth: &str) -> String {
    let path = place.path("config.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{kubelet}\n---\n\
         apiVersion: berth.dev/v1alpha1\nkind: BerthConfiguration\n{berth}\n"
    );
    std::fs::write(&path, text).expect("write the configuration");
    path.to_string_lossy().into_owned()
}

/// Lines of a file, none when it is absent.
pub fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Every process in the place's cgroups.
pub fn processes(place: &Place) -> Vec<i32> {
    fn walk(directory: &Path, found: &mut Vec<i32>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), found);
            } else if entry.file_name() == "cgroup.procs" {
                found.extend(lines(&entry.path()).iter().filter_map(|line| line.parse::<i32>().ok()));
            }
        }
    }
    let mut found = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        walk(&hierarchy.path().join(place.cgroup_root.trim_start_matches('/')), &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}
