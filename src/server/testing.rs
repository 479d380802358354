//! A scripted node and image store for tests of what is built on them.

use std::{
    io::Write,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    sync::{Notify, mpsc},
};

use super::{
    images::{Collected, Credentials, ImageView, Images, LoadSource, PullProgress},
    local::{ServerState, Version},
    logs::LogWatch,
};
use crate::{
    api::update::Change,
    obs::events::Recorder,
    store::layout::Layout,
    supervisor::spec::ExecSpec,
    worker::handle::{
        BoxFuture, ContainerView, ExecSession, ManifestProblem, Node, NodeError, PodView, TerminalSize, Usage,
    },
};

/// A running pod on `node1` with the containers `init` (ended), `app` and `side`.
pub fn pod(namespace: &str, name: &str, uid: &str) -> PodView {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name, "uid": uid},
        "spec": {"nodeName": "node1", "containers": []},
    }))
    .unwrap();
    let container = |name: &str, kind: &str, state: &str| ContainerView {
        name: name.to_owned(),
        kind: kind.to_owned(),
        id: "0".repeat(64),
        attempt: 0,
        image: "busybox".to_owned(),
        state: state.to_owned(),
        pid: (state == "running").then_some(4711),
        tty: false,
        started_at: 1,
        exit_code: (state == "exited").then_some(0),
        log_dir: format!("/nonexistent/{uid}/{name}"),
        granted: None,
    };
    PodView {
        pod,
        source: "file:/m/a.yaml".to_owned(),
        stages: Vec::new(),
        containers: vec![
            container("init", "init", "exited"),
            container("app", "app", "running"),
            container("side", "app", "running"),
        ],
        supervisor: Some(1),
    }
}

/// A node whose pods are whatever the test puts there.
#[derive(Default)]
pub struct FakeNode {
    pub pods: Mutex<Vec<PodView>>,
    pub problems: Mutex<Vec<ManifestProblem>>,
    /// What was executed.
    pub executed: Mutex<Vec<(String, ExecSpec)>>,
    /// Ends what is attached.
    pub end: Arc<Notify>,
    /// Terminals that were given a size.
    pub sizes: Mutex<Vec<(String, TerminalSize)>>,
    /// One of them was.
    pub sized: Notify,
    /// What was changed.
    pub changes: Mutex<Vec<(String, Change)>>,
}

impl Node for FakeNode {
    fn pods(&self) -> Vec<PodView> {
        self.pods.lock().unwrap().clone()
    }

    fn problems(&self) -> Vec<ManifestProblem> {
        self.problems.lock().unwrap().clone()
    }

    fn usage(&self) -> BoxFuture<'_, Vec<Usage>> {
        let usage = Usage { pod: "default/web".to_owned(), cpu_nanos: 5, ..Usage::default() };
        Box::pin(async { vec![usage] })
    }

    /// Without a terminal, writes the command to stdout and exits with 7; with one, hands out a pipe's end in its
    /// place. `missing` cannot be run.
    fn exec(&self, uid: String, spec: ExecSpec, stdio: Vec<OwnedFd>) -> BoxFuture<'_, Result<ExecSession, NodeError>> {
        self.executed.lock().unwrap().push((uid, spec.clone()));
        Box::pin(async move {
            if spec.args == ["missing"] {
                return Err(NodeError::Exec("exec missing: no such file".to_owned()));
            }
            if spec.tty {
                let (reader, writer) = std::io::pipe().unwrap();
                std::fs::File::from(OwnedFd::from(writer)).write_all(b"terminal").unwrap();
                return Ok(ExecSession { terminal: Some(reader.into()), over: false, exit: Box::pin(async { Ok(0) }) });
            }
            let mut streams = stdio.into_iter();
            let stdout = streams.nth(1).unwrap();
            std::fs::File::from(stdout).write_all(spec.args.join(" ").as_bytes()).unwrap();
            Ok(ExecSession { terminal: None, over: false, exit: Box::pin(async { Ok(7) }) })
        })
    }

    /// Writes the container's name to stdout and ends with 3 when [`FakeNode::end`] says so. One called `late` waits for
    /// that first, and says what for.
    fn attach(
        &self,
        _uid: String,
        container: String,
        stdio: Vec<OwnedFd>,
        waits: mpsc::Sender<String>,
    ) -> BoxFuture<'_, Result<ExecSession, NodeError>> {
        Box::pin(async move {
            if container == "late" {
                waits.send("ErrImagePull: nobody has it".to_owned()).await.unwrap();
                self.end.notified().await;
            }
            let stdout = stdio.into_iter().nth(1).unwrap();
            std::fs::File::from(stdout).write_all(container.as_bytes()).unwrap();
            let end = self.end.clone();
            let exit = Box::pin(async move {
                end.notified().await;
                Ok(3)
            });
            Ok(ExecSession { terminal: None, over: false, exit })
        })
    }

    fn resize_terminal(
        &self,
        _uid: String,
        container: String,
        size: TerminalSize,
    ) -> BoxFuture<'_, Result<(), NodeError>> {
        self.sizes.lock().unwrap().push((container, size));
        self.sized.notify_one();
        Box::pin(async { Ok(()) })
    }

    /// Makes the change, but for one of a container called `missing`.
    fn update(&self, uid: String, change: Change) -> BoxFuture<'_, Result<Pod, NodeError>> {
        let found = self.pods.lock().unwrap().iter().find(|view| view.pod.metadata.uid.as_ref() == Some(&uid)).cloned();
        self.changes.lock().unwrap().push((uid, change.clone()));
        Box::pin(async move {
            match change {
                Change::Resize(resize) if resize.container.as_deref() == Some("missing") => {
                    Err(NodeError::Invalid("spec.containers: Not found: \"missing\"".to_owned()))
                }
                _ => Ok(found.unwrap().pod),
            }
        })
    }

    fn images_in_use(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An image store with one image, `docker.io/library/busybox:1`.
#[derive(Default)]
pub struct FakeImages {
    /// Names and contents of what was loaded from bytes.
    pub loaded: Mutex<Vec<(Option<String>, Vec<u8>)>>,
}

/// The one image.
pub fn image() -> ImageView {
    ImageView {
        id: format!("sha256:{}", "1".repeat(64)),
        repo_tags: vec!["docker.io/library/busybox:1".to_owned()],
        repo_digests: Vec::new(),
        size: 1_500_000,
        pinned: false,
    }
}

impl Images for FakeImages {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ImageView>, NodeError>> {
        Box::pin(async { Ok(vec![image()]) })
    }

    fn pull(
        &self,
        reference: String,
        credentials: Option<Credentials>,
        progress: mpsc::Sender<PullProgress>,
    ) -> BoxFuture<'_, Result<ImageView, NodeError>> {
        Box::pin(async move {
            for received in [10, 20] {
                progress.send(PullProgress { digest: "sha256:a".to_owned(), received, total: 20 }).await.unwrap();
            }
            // Let the reports out first.
            while progress.capacity() < progress.max_capacity() {
                tokio::task::yield_now().await;
            }
            match (reference.as_str(), credentials) {
                ("busybox", Some(credentials)) if credentials.username == "robot" => Ok(image()),
                _ => Err(NodeError::NotFound(format!("image {reference}"))),
            }
        })
    }

    fn load(&self, source: LoadSource, name: Option<String>) -> BoxFuture<'_, Result<Vec<ImageView>, NodeError>> {
        Box::pin(async move {
            let content = match source {
                LoadSource::Path(path) => path.display().to_string().into_bytes(),
                LoadSource::Archive(mut reader) => {
                    let mut bytes = Vec::new();
                    reader.read_to_end(&mut bytes).await.map_err(|error| NodeError::Internal(error.to_string()))?;
                    bytes
                }
            };
            self.loaded.lock().unwrap().push((name, content));
            Ok(vec![image()])
        })
    }

    fn remove(&self, reference: String) -> BoxFuture<'_, Result<Vec<String>, NodeError>> {
        Box::pin(async move {
            match reference.as_str() {
                "busybox" => Ok(vec!["docker.io/library/busybox:1".to_owned()]),
                "used" => Err(NodeError::Conflict("image used is used by pod default/web".to_owned())),
                _ => Err(NodeError::NotFound(format!("image {reference}"))),
            }
        })
    }

    fn collect(&self) -> BoxFuture<'_, Result<Collected, NodeError>> {
        Box::pin(async { Ok(Collected { removed: vec!["a:1".to_owned()], freed: 3 }) })
    }
}

/// A server over the two, with its directories in `root`.
pub fn state(root: &Path) -> (ServerState, Arc<FakeNode>, Arc<FakeImages>) {
    let (node, images) = (Arc::new(FakeNode::default()), Arc::new(FakeImages::default()));
    let layout = Layout { root: root.join("root"), run: root.join("run"), log: root.join("log") };
    let version =
        Version { version: "0.1.0".to_owned(), node: "node1".to_owned(), pid: 1, started: Timestamp::UNIX_EPOCH };
    let state = ServerState {
        node: node.clone(),
        images: images.clone(),
        layout,
        version,
        events: Recorder::default(),
        watch: LogWatch::default(),
    };
    (state, node, images)
}
