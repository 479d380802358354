//! The CSI driver of the tests (`berth-csi-driver`), started in a place, and what it was asked.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{Agent, Place, eventually};

/// `NodeServiceCapability.RPC.Type` as the driver takes them.
pub const STAGES: &str = "1";
/// As [`STAGES`], for VOLUME_MOUNT_GROUP as well.
pub const STAGES_WITH_GROUP: &str = "1,6";

/// A running driver; killed when dropped.
pub struct Driver<'a> {
    place: &'a Place,
    name: String,
    capabilities: String,
    /// Outside of the place: what a driver keeps is no leftover of the agent's.
    directory: tempfile::TempDir,
    child: Option<Child>,
}

impl<'a> Driver<'a> {
    /// Starts one in the place's namespaces that registers with the place's agent.
    pub fn start(place: &'a Place, name: &str, capabilities: &str) -> Driver<'a> {
        let mut driver = Driver::absent(place, name, capabilities);
        driver.restart();
        driver
    }

    /// One that is not running yet.
    pub fn absent(place: &'a Place, name: &str, capabilities: &str) -> Driver<'a> {
        let directory = tempfile::Builder::new().prefix("berth-driver-").tempdir().expect("a directory");
        Driver { place, name: name.to_owned(), capabilities: capabilities.to_owned(), directory, child: None }
    }

    /// Where it keeps its volumes, its faults and what it was asked.
    pub fn state(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("it is there")
    }

    /// The program beside the one under test.
    pub fn program() -> PathBuf {
        crate::agent::berth().with_file_name("berth-csi-driver")
    }

    /// Starts it (again).
    pub fn restart(&mut self) {
        self.kill();
        let mut command = self.place.command(Driver::program());
        let socket = self.place.path("root/plugins").join(&self.name).join("csi.sock");
        command.args(["--name", &self.name, "--versions", "1.0.0", "--capabilities", &self.capabilities]);
        command.arg("--registry").arg(self.place.path("root/plugins_registry"));
        command.arg("--socket").arg(socket).arg("--state").arg(self.state());
        self.child = Some(command.stdin(Stdio::null()).spawn().expect("the driver starts"));
    }

    /// Kills it; its sockets stay.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill the driver");
            child.wait().expect("the driver ends");
        }
    }

    /// Kills it and takes its registration away, as a pod that is removed does.
    pub fn leave(&mut self) {
        self.kill();
        let socket = format!("root/plugins_registry/{}-reg.sock", self.name);
        fs::remove_file(self.place.path(&socket)).expect("its registration socket");
        let _ = fs::remove_dir_all(self.place.path("root/plugins").join(&self.name));
    }

    /// What is to go wrong from now on: see the program.
    pub fn faults(&self, faults: &Value) {
        let path = self.state().join("faults");
        fs::write(path.with_extension("next"), faults.to_string()).expect("faults");
        fs::rename(path.with_extension("next"), path).expect("faults");
    }

    /// Everything it was asked, begun and ended.
    pub fn notes(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.state().join("calls")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a note of the driver")).collect()
    }

    /// Calls that were begun, of `method`.
    pub fn calls(&self, method: &str) -> Vec<Value> {
        self.notes().into_iter().filter(|note| note["method"] == method && note["phase"] == "begin").collect()
    }

    /// The order of the calls about volumes that were begun: `NodeStageVolume`, …
    pub fn order(&self) -> Vec<String> {
        let about_volumes = |note: &&Value| note["phase"] == "begin" && note["volume"].is_string();
        let notes = self.notes();
        notes.iter().filter(about_volumes).filter_map(|note| note["method"].as_str().map(str::to_owned)).collect()
    }

    /// Waits until `method` has been called that often.
    #[track_caller]
    pub fn called(&self, method: &str, times: usize) -> Vec<Value> {
        eventually(&format!("{method} is called {times} times: {:?}", self.order()), Duration::from_secs(20), || {
            let calls = self.calls(method);
            (calls.len() >= times).then_some(calls)
        })
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Writes the manifest of an object beside those of pods.
pub fn object(agent: &Agent, kind: &str, name: &str, more: Value) {
    let api_version = if kind == "CSIDriver" { "storage.k8s.io/v1" } else { "v1" };
    let mut object = json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": name } });
    for (key, value) in more.as_object().expect("an object") {
        object[key] = value.clone();
    }
    agent.apply(&format!("{}-{name}.json", kind.to_lowercase()), &object.to_string());
}
