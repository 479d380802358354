//! Short words for what most rootful tests do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{Agent, agent::condition, eventually, layout::Layout};

/// Prints how many bytes can be read of what must be hidden. (Most kernels lack some of these.)
pub const MASKED: &str = "for p in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats \
                      /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware \
                      /sys/devices/virtual/powercap; do if [ -d $p ]; then ls -A $p; else head -c 100 $p; fi; \
                      done 2>/dev/null | wc -c";
/// Tries to change a setting of the machine to what it already is.
pub const WRITE_SYSCTL: &str = "f=/proc/sys/kernel/printk_ratelimit; v=$(cat $f); if echo $v > $f; then echo WROTE; fi";

pub use crate::help::{agent, place};

/// A busybox container that runs `script`, with the fields of `more`.
pub fn container(name: &str, script: &str, more: Value) -> Value {
    with(json!({ "name": name, "image": "busybox:1", "command": ["sh", "-c", script] }), more)
}

/// `object` with the fields of `more` added or replaced.
pub fn with(mut object: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        object[key] = value.clone();
    }
    object
}

/// Applies a pod with this specification, which is killed without grace when it goes.
pub fn apply(agent: &Agent, name: &str, spec: Value) {
    let spec = with(json!({ "terminationGracePeriodSeconds": 0 }), spec);
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
    agent.apply(&format!("{name}.json"), &pod.to_string());
}

/// Applies a pod with one container `app` that runs `script`, with the fields of `more`.
pub fn run(agent: &Agent, name: &str, script: &str, more: Value) {
    apply(agent, name, json!({ "containers": [container("app", script, more)] }));
}

/// Applies a pod of one image and waits until it is ready or explained.
pub fn load(agent: &Agent, name: &str, layout: Layout) {
    let directory = agent.place.path(&format!("image-{name}"));
    agent.ok(&["load", "--name", &format!("{name}:1"), &layout.write(directory)]);
}

/// The pod's full name, once it is ready.
#[track_caller]
pub fn ready(agent: &Agent, name: &str) -> String {
    full_name(&agent.ready(name))
}

/// The pod's full name, once all of its containers have ended.
#[track_caller]
pub fn ended(agent: &Agent, name: &str) -> String {
    let over = |pod: &Value| ["Failed", "Succeeded"].iter().any(|phase| pod["status"]["phase"] == *phase);
    full_name(&agent.until(name, "ended", over))
}

/// The pod's name with that of its node.
pub fn full_name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// Waits until the pod's status has all of `words` in it, and is not ready.
#[track_caller]
pub fn explained(agent: &Agent, name: &str, words: &[&str]) {
    let pod = agent.until(name, &format!("explained with {words:?}"), |pod| {
        let text = pod["status"].to_string();
        words.iter().all(|word| text.contains(word))
    });
    assert_ne!(condition(&pod, "Ready"), "True", "{name}");
}

/// What `script` prints in the pod's first container.
#[track_caller]
pub fn exec(agent: &Agent, pod: &str, script: &str) -> String {
    agent.ok(&["exec", pod, "--", "sh", "-c", script])
}

/// What `script` prints in a container of the pod.
#[track_caller]
pub fn exec_in(agent: &Agent, pod: &str, container: &str, script: &str) -> String {
    agent.ok(&["exec", pod, "-c", container, "--", "sh", "-c", script])
}

/// The log of a container once `last` is in it.
#[track_caller]
pub fn log(agent: &Agent, pod: &str, container: &str, last: &str) -> String {
    eventually(&format!("{last:?} in the log of {pod}"), Duration::from_secs(20), || {
        let log = agent.ok(&["logs", pod, "-c", container]);
        log.contains(last).then_some(log)
    })
}
