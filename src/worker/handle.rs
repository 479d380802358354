//! What the rest of the agent may ask about pods: the local API and the kubelet server are built on this.

use std::{future::Future, os::fd::OwnedFd, pin::Pin, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use crate::api::problem::ManifestProblem;
use crate::{
    api::update::Change,
    pod::{devices::Offers, grants::Grant},
    supervisor::spec::ExecSpec,
};

/// A pod as the agent sees it now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodView {
    /// Upstream's object, with the status the agent would report.
    pub pod: Pod,
    /// Where it was asked for: `file:/etc/berth/manifests/web.yaml`, `http:…`, `api`.
    pub source: String,
    /// Stages of the pod's last start, in order.
    pub stages: Vec<Stage>,
    /// Its containers, every kind, in the order of the spec (init containers first).
    pub containers: Vec<ContainerView>,
    /// Process id of the supervisor, while it lives.
    pub supervisor: Option<i32>,
}

/// One stage of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// `admit`, `ledger`, `sandbox`, `network`, `app/clone`, `app/exec`, …
    pub name: String,
    /// Microseconds from the moment the pod was first seen to the end of the stage.
    pub at: u64,
}

/// A container as the agent sees it now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerView {
    /// Name within the pod.
    pub name: String,
    /// `init`, `sidecar`, `app` or `ephemeral`.
    pub kind: String,
    /// 64 hex digits; empty when it has never been started.
    pub id: String,
    /// Latest attempt.
    pub attempt: u32,
    /// Image as written in the pod.
    pub image: String,
    /// `waiting`, `running`, `exited`.
    pub state: String,
    /// Process id on the host while it runs.
    pub pid: Option<i32>,
    /// Has a terminal.
    pub tty: bool,
    /// Unix time in nanoseconds; 0 when never started.
    pub started_at: i64,
    /// Exit code once it has ended.
    pub exit_code: Option<i32>,
    /// Directory of its log files (`<attempt>.log`, rotated ones beside it).
    pub log_dir: String,
    /// What it has for itself: processors, memory of NUMA nodes, devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Grant>,
}

/// cgroup figures of one container or of a whole pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Usage {
    /// `namespace/name`.
    pub pod: String,
    /// Container, or empty for the whole pod.
    pub container: String,
    /// CPU time used so far, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory in use, bytes, page cache included.
    pub memory_bytes: u64,
    /// Memory in use less inactive file pages, bytes (what the kubelet calls the working set).
    pub working_set_bytes: u64,
    /// Memory limit, bytes.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A process started by exec (or an attachment).
pub struct ExecSession {
    /// Master of the pty when one was asked for.
    pub terminal: Option<OwnedFd>,
    /// It was over before anybody could attach: what it wrote is in its log alone.
    pub over: bool,
    /// Resolves to the exit code.
    pub exit: BoxFuture<'static, Result<i32, NodeError>>,
}

impl ExecSession {
    /// Of a process that has ended with `code` already.
    pub fn ended(code: i32) -> ExecSession {
        ExecSession { terminal: None, over: true, exit: Box::pin(async move { Ok(code) }) }
    }
}

/// A boxed future, as this trait is used as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a question about a pod could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No such pod, container or image.
    #[error("{0} not found")]
    NotFound(String),
    /// More than one matches.
    #[error("{0} is ambiguous: {1}")]
    Ambiguous(String, String),
    /// It is not in a state in which this can be done.
    #[error("{0}")]
    Conflict(String),
    /// What is asked for breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The container could not run the command.
    #[error("{0}")]
    Exec(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

/// What a pod was given for itself.
#[derive(Debug, Clone, PartialEq)]
pub struct PodGrants {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its sidecars and containers in order, with what they were given.
    pub containers: Vec<(String, Grant)>,
}

/// The running node, as its servers see it.
pub trait Node: Send + Sync + 'static {
    /// All pods, sorted by namespace and name.
    fn pods(&self) -> Vec<PodView>;

    /// Manifests that could not be used, and warnings about those that could.
    fn problems(&self) -> Vec<ManifestProblem>;

    /// Figures of all pods and containers, read now.
    fn usage(&self) -> BoxFuture<'_, Vec<Usage>>;

    /// Runs a command. `stdio` is stdin, stdout and stderr, or empty for a terminal.
    fn exec(&self, uid: String, spec: ExecSpec, stdio: Vec<OwnedFd>) -> BoxFuture<'_, Result<ExecSession, NodeError>>;

    /// Attaches to the standard streams of a container, once it runs: stdin, stdout and, without a terminal, stderr. The
    /// session's code is the container's. Until it runs `waits` is told why it does not, each time that is another reason.
    fn attach(
        &self,
        uid: String,
        container: String,
        stdio: Vec<OwnedFd>,
        waits: mpsc::Sender<String>,
    ) -> BoxFuture<'_, Result<ExecSession, NodeError>>;

    /// Sets the size of the terminal that a running container has.
    fn resize_terminal(
        &self,
        uid: String,
        container: String,
        size: TerminalSize,
    ) -> BoxFuture<'_, Result<(), NodeError>>;

    /// Changes a pod. Answered with the pod once the change is durable.
    fn update(&self, uid: String, change: Change) -> BoxFuture<'_, Result<Pod, NodeError>>;

    /// What the containers of pods that have not ended were given for themselves.
    fn grants(&self) -> Vec<PodGrants> {
        Vec::new()
    }

    /// What device plugins offer.
    fn offers(&self) -> Arc<Offers> {
        Arc::default()
    }

    /// Image ids some container of some pod uses or used (not to be removed).
    fn images_in_use(&self) -> Vec<String>;
}
