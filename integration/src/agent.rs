//! An agent under test, and the commands a person would type.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Place, eventually};

/// `berth node` in a place.
pub struct Agent<'a> {
    /// Where it runs.
    pub place: &'a Place,
    child: Option<Child>,
}

/// The program under test: beside the test executable, or `$BERTH`.
pub fn berth() -> PathBuf {
    if let Some(path) = std::env::var_os("BERTH") {
        return path.into();
    }
    let mut path = std::env::current_exe().expect("a path of the test executable");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("berth")
}

impl<'a> Agent<'a> {
    /// Starts `berth node` with the place's manifest directory and waits until it answers.
    pub fn start(place: &'a Place, more: &[&str]) -> Result<Agent<'a>> {
        Agent::start_with(place, more, &[])
    }

    /// As [`Agent::start`], with these variables in its environment.
    pub fn start_with(place: &'a Place, more: &[&str], environment: &[(&str, &str)]) -> Result<Agent<'a>> {
        let manifests = place.path("manifests");
        let mut arguments = vec!["node", "--pod-manifest-path", manifests.to_str().context("a UTF-8 path")?];
        arguments.extend_from_slice(more);
        let log = File::options().create(true).append(true).open(place.path("agent.log"))?;
        let mut command = Agent::base(place);
        command.envs(environment.iter().copied());
        let child = command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut agent = Agent { place, child: Some(child) };
        let begun = Instant::now();
        loop {
            if agent.cli(&["pods", "-o", "json"])?.status.success() {
                return Ok(agent);
            }
            let ended = agent.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            ensure!(ended.is_none(), "the agent ended with {ended:?}:\n{}", agent.log());
            ensure!(begun.elapsed() < Duration::from_secs(20), "the agent does not answer:\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn base(place: &Place) -> Command {
        let mut command = place.command(berth());
        command
            .arg("--root-dir")
            .arg(place.path("root"))
            .arg("--run-dir")
            .arg(place.path("run"))
            .arg("--log-dir")
            .arg(place.path("log"))
            .arg("--cgroup-root")
            .arg(&place.cgroup_root);
        command
    }

    /// The agent's process id.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map(|child| child.id() as i32).unwrap_or_default()
    }

    /// What the agent wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.path("agent.log")).unwrap_or_default()
    }

    /// A command of the program, for this agent, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Agent::base(self.place);
        command.args(arguments);
        command
    }

    /// Runs a command of the program and waits, a minute at most.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let child =
            self.command(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        let (ended, limit) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            // Dropping the sender is the normal end.
            if limit.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kill(pid, Signal::SIGKILL).ok();
            }
        });
        let output = child.wait_with_output();
        drop(ended);
        watchdog.join().expect("the watchdog does not panic");
        Ok(output?)
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments).expect("the command runs");
        assert!(
            output.status.success(),
            "berth {}: {}\n{}\nagent:\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Puts a manifest into the directory by a rename, as careful tools do.
    pub fn apply(&self, name: &str, manifest: &str) {
        let hidden = self.place.path("manifests").join(format!(".{name}.new"));
        fs::write(&hidden, manifest).expect("write a manifest");
        fs::rename(&hidden, self.place.path("manifests").join(name)).expect("rename a manifest");
    }

    /// Takes a manifest away.
    pub fn delete(&self, name: &str) {
        fs::remove_file(self.place.path("manifests").join(name)).expect("remove a manifest");
    }

    /// All pods, as upstream objects.
    pub fn pods(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.ok(&["pods", "-o", "json"])).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// The pod whose name begins with `name` (static pods have the node's name appended).
    pub fn pod(&self, name: &str) -> Option<Value> {
        self.pods()
            .into_iter()
            .find(|pod| pod["metadata"]["name"].as_str().is_some_and(|found| found.starts_with(name)))
    }

    /// Waits until `holds` of the pod.
    #[track_caller]
    pub fn until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            if let Some(pod) = self.pod(name) {
                if holds(&pod) {
                    return pod;
                }
                last = pod;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{name}: not {what}; last seen:\n{:#}\nagent:\n{}", last["status"], self.log());
    }

    /// Waits until every container of the pod is ready.
    #[track_caller]
    pub fn ready(&self, name: &str) -> Value {
        self.until(name, "ready", |pod| condition(pod, "Ready") == "True")
    }

    /// Waits until the pod is not there.
    #[track_caller]
    pub fn gone(&self, name: &str) {
        let log = || self.log();
        eventually(&format!("{name} is removed; agent:\n{}", log()), Duration::from_secs(40), || {
            self.pod(name).is_none().then_some(())
        });
    }

    /// kill -9, no chance to tidy up.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill the agent");
            child.wait().expect("the agent ends");
        }
    }

    /// SIGTERM and wait; panics when it does not end well.
    #[track_caller]
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("signal the agent");
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("wait for the agent") {
                assert!(status.success(), "the agent ended with {status}:\n{}", self.log());
                return;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                child.kill().ok();
                panic!("the agent does not stop:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent<'_> {
    /// A test that failed must not leave pods behind: their manifests go, the agent is given time, then all is killed.
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        for entry in fs::read_dir(self.place.path("manifests")).into_iter().flatten().flatten() {
            fs::remove_file(entry.path()).ok();
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(35) {
            match self.cli(&["pods", "-o", "json"]) {
                Ok(output) if output.status.success() => {
                    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                    if list["items"].as_array().is_none_or(Vec::is_empty) {
                        break;
                    }
                }
                _ => break,
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).ok();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(5) && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Status of a condition of a pod: `True`, `False`, or empty.
pub fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}
