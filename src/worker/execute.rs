//! The real hands of a pod: every action on this machine. The only part of the worker that touches the host.

use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    io,
    net::IpAddr,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use berth_cni::Lease;
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec, ResourceStatus},
    jiff::Timestamp,
};
use tokio::sync::{Notify, OnceCell, mpsc};

use super::{
    handle::{BoxFuture, ExecSession, NodeError, Stage, TerminalSize, Usage},
    helper::Helpers,
    host::{ActionError, Answer, Done, PodEvent, PodHost},
    inputs::{self, Prepared},
    probes::Verdicts,
    record::PodRecord,
    records,
    shared::{Pulled, Shared},
    storage::{self, Meter},
    watch,
};
use crate::{
    api::qos::{QosClass, qos_class},
    cgroup::path::SANDBOX,
    image::{Image, policy},
    pod::{
        Action, Grants, Hook, Outcome, Verdict,
        happening::{self, Happening},
        observed::{Attempt, AttemptState, Launched, Probed, User},
        probe::ProbeKey,
        restart::RestartReason,
    },
    runtime::{
        attempt,
        client::{ClientError, Connected, Supervisor},
        container_ref::ContainerRef,
        spawn,
    },
    store::{
        durable::{self, Placed, StoreError},
        layout::PodDirs,
    },
    supervisor::{
        protocol::RunningContainer,
        spec::{ExecSpec, IdRange, LaunchSpec, SandboxSpec},
    },
    volume::{self, MountedVolume},
};

/// The hands of one pod.
pub struct Host {
    pub(super) shared: Arc<Shared>,
    uid: String,
    /// What is in the ledger. Locked as long as it is being written, so that nothing older is written after it.
    record: Mutex<Arc<PodRecord>>,
    /// Ids of the pod's user namespace: the same as long as there is the pod.
    users: Option<IdRange>,
    /// The RuntimeClass handler that makes the pod's containers, unless that is the agent: the same as long as there is
    /// the pod.
    pub(super) handler: Option<String>,
    /// What its containers were given for themselves: the same, too.
    pub(super) grants: Arc<Grants>,
    pub(super) dirs: PodDirs,
    /// No change of a pod changes it.
    pub(super) qos: QosClass,
    pub(super) helpers: Helpers,
    events: mpsc::Sender<PodEvent>,
    state: Mutex<State>,
    pub(super) verdicts: Verdicts,
}

/// The spec of a pod; that of one without is empty.
pub(super) fn spec_of(pod: &Pod) -> &PodSpec {
    static EMPTY: OnceLock<PodSpec> = OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// What the hands hold between two actions.
#[derive(Default)]
pub(super) struct State {
    supervisor: Option<Supervisor>,
    netlink: Option<OwnedFd>,
    lease: Option<Lease>,
    pub(super) volumes: BTreeMap<String, MountedVolume>,
    images: BTreeMap<String, Arc<Image>>,
    launches: BTreeMap<String, Launch>,
    generation: u32,
    /// `pod.json` is known to be durable.
    recorded: bool,
    /// Generation of the sandbox whose record is in place.
    sandbox_placed: u32,
    /// That of the newest one whose record is known to be durable.
    sandbox_recorded: u32,
    meter: Option<Meter>,
    /// Hooks that are running, and how to give them up.
    hooks: BTreeMap<(String, u32, Hook), Arc<Notify>>,
}

/// What is kept of the launch record of a container's newest attempt.
#[derive(Clone)]
struct Launch {
    generation: u32,
    epoch: u32,
    id: String,
    image_id: String,
    image_ref: String,
    stop_signal: i32,
    /// Set once the record is durable.
    committed: Arc<OnceCell<()>>,
    /// The supervisor has been told to let it go.
    released: bool,
}

/// Runs work that may block on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ActionError> + Send + 'static,
) -> Result<T, ActionError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ActionError { reason: "InternalError".to_owned(), message: error.to_string() }),
    }
}

fn failed(reason: &str, step: &str, path: &Path) -> impl FnOnce(io::Error) -> ActionError {
    let (reason, what) = (reason.to_owned(), format!("{step} {}", path.display()));
    move |error| ActionError { reason, message: format!("{what}: {error}") }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), ActionError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(failed("FailedCreatePodDirectory", "create", path))
}

fn on_host_network(pod: &Pod) -> bool {
    spec_of(pod).host_network.unwrap_or(false)
}

fn container<'p>(pod: &'p Pod, name: &str) -> Result<ContainerRef<'p>, ActionError> {
    ContainerRef::find(pod, name).ok_or_else(|| ActionError {
        reason: "CreateContainerError".to_owned(),
        message: format!("the pod has no container {name}"),
    })
}

fn because<E: std::error::Error>(reason: &'static str) -> impl FnOnce(E) -> ActionError {
    move |error| ActionError::new(reason, &error)
}

impl Host {
    /// The hands of a pod; touches nothing.
    pub fn new(shared: Arc<Shared>, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Host {
        let metadata = &record.pod.metadata;
        let dirs = shared.config.layout.pod(
            record.uid(),
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        );
        let qos = record.pod.spec.as_ref().map_or(QosClass::BestEffort, qos_class);
        let (uid, users) = (record.uid().to_owned(), record.users);
        let (handler, grants) = (record.handler.clone(), Arc::new(record.grants.clone()));
        let (verdicts, helpers) = (Verdicts::default(), Helpers::new(shared.binary.clone()));
        let record = Mutex::new(Arc::new(record));
        Host {
            shared,
            uid,
            record,
            users,
            handler,
            grants,
            dirs,
            qos,
            helpers,
            events,
            state: Mutex::default(),
            verdicts,
        }
    }

    /// The pod as it is in the ledger, for what is not an action on a given pod. Waits while it is being written.
    pub(super) fn pod(&self) -> Arc<Pod> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).effective()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section is a read or one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    pub(super) fn supervisor(&self) -> Option<Supervisor> {
        self.state().supervisor.clone()
    }

    pub(super) fn need_supervisor(&self) -> Result<Supervisor, ActionError> {
        self.supervisor().ok_or_else(|| ActionError {
            reason: "SandboxChanged".to_owned(),
            message: "the sandbox is gone".to_owned(),
        })
    }

    /// Takes up a supervisor that answered: its events become the pod's.
    pub(super) fn connected(self: &Arc<Self>, connected: Connected, generation: u32) {
        let Connected { supervisor, netlink, events, .. } = connected;
        let meter = storage::meter(self, self.events.clone());
        let mut state = self.state();
        state.supervisor = Some(supervisor);
        state.netlink = netlink;
        state.generation = generation;
        state.meter = meter;
        drop(state);
        tokio::spawn(watch::watch(self.clone(), generation, events, self.events.clone()));
    }

    pub(super) fn forget_supervisor(&self) {
        let mut state = self.state();
        state.supervisor = None;
        state.netlink = None;
        state.meter = None;
    }

    /// Notes that a hook is run from now on; what comes back is told when it is to be given up.
    pub(super) fn hook_begins(&self, key: (String, u32, Hook)) -> Arc<Notify> {
        self.state().hooks.entry(key).or_default().clone()
    }

    pub(super) fn hook_ends(&self, key: &(String, u32, Hook)) {
        self.state().hooks.remove(key);
    }

    fn abandon_hook(&self, container: String, attempt: u32, hook: Hook) {
        if let Some(running) = self.state().hooks.get(&(container, attempt, hook)) {
            running.notify_one();
        }
    }

    pub(super) fn hold_lease(&self, lease: Option<Lease>) {
        self.state().lease = lease;
    }

    /// Takes over what an earlier agent made: `generation` is that of its newest sandbox.
    pub(super) fn take_over(&self, generation: u32) {
        let placed = self.dirs.sandbox_file().exists();
        let mut state = self.state();
        state.generation = generation;
        // That agent may have ended before the record was durable.
        state.sandbox_placed = if placed { generation } else { 0 };
    }

    pub(super) fn addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        if on_host_network(pod) {
            return self.shared.host_ips.clone();
        }
        let state = self.state();
        state.lease.iter().flat_map(|lease| lease.addresses.iter().map(|address| address.addr())).collect()
    }

    /// Whether a container's termination message falls back to its log.
    pub(super) fn falls_back_to_logs(&self, container: &str) -> bool {
        let pod = self.pod();
        let found = ContainerRef::find(&pod, container);
        found.and_then(ContainerRef::termination_message_policy) == Some("FallbackToLogsOnError")
    }

    /// Writes the record of the pod, and goes by it from then on.
    fn write_record(&self, newer: Option<Arc<PodRecord>>) -> Result<(), ActionError> {
        let mut held = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = newer.is_some();
        let record = newer.unwrap_or_else(|| held.clone());
        // A container's user has to get through to its own volumes; the directory above them is root's alone.
        make_directory(&self.dirs.dir, 0o755)?;
        const REASON: &str = "FailedCreatePodDirectory";
        if changed {
            durable::write_json(&self.dirs.pod_file(), &*record).map_err(because(REASON))?;
            durable::sync_parent(&self.dirs.dir).map_err(because(REASON))?;
        } else {
            // Durable before the first container starts ([`Host::sync_records`]). What is made until then lives in the
            // kernel and goes with the power, or lies in this directory.
            durable::place_json(&self.dirs.pod_file(), &*record).map(drop).map_err(because(REASON))?;
        }
        *held = record;
        Ok(())
    }

    fn ensure_dirs(&self) -> Result<Done, ActionError> {
        self.write_record(None)?;
        make_directory(&self.dirs.etc(), 0o755)?;
        make_directory(&self.dirs.run, 0o700)?;
        make_directory(&self.dirs.log, 0o755)?;
        Ok(Done::new(Outcome::Done))
    }

    fn record_verdict(&self, verdict: Verdict) -> Result<Done, ActionError> {
        let held = self.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let record = PodRecord { verdict: Some(verdict), ..PodRecord::clone(&held) };
        self.write_record(Some(Arc::new(record))).map(|()| Done::new(Outcome::Done))
    }

    fn lease_addresses(&self, pod: &Pod) -> Result<Done, ActionError> {
        const REASON: &str = "FailedCreatePodSandBox";
        if !on_host_network(pod) {
            let lease = self.shared.network.lease(self.uid(), &[]).map_err(because(REASON))?;
            // For the next agent. After a reboot nobody knows the address any more: another one will do.
            durable::write_json_until_reboot(&self.dirs.network_file(), &lease).map_err(because(REASON))?;
            self.hold_lease(Some(lease));
        }
        let addresses = self.addresses(pod);
        self.shared.write_etc(pod, &self.dirs, &addresses)?;
        let held = if on_host_network(pod) { Vec::new() } else { addresses };
        Ok(Done::new(Outcome::Leased(held)))
    }

    async fn resolve_image(&self, pod: &Pod, name: &str) -> Result<Done, ActionError> {
        let container = container(pod, name)?;
        let image = container.image();
        let present = self.shared.images.get(image);
        let wanted = container.image_pull_policy().and_then(policy::PullPolicy::parse);
        let wanted = wanted.unwrap_or_else(|| policy::PullPolicy::default_for(image));
        let refused = |error: crate::image::ImageError| ActionError {
            reason: error.reason().as_str().to_owned(),
            message: error.message(),
        };
        let decision = policy::decide(wanted, image, present.is_some()).map_err(refused)?;
        let image = match (decision, present) {
            (policy::Decision::UsePresent, Some(found)) => {
                self.happened(pod, happening::present(container.name(), image));
                found
            }
            _ => {
                self.happened(pod, happening::pulling(container.name(), image));
                let pulled = self.shared.pull_for(pod, image).await?;
                let Pulled { took, waited, .. } = pulled;
                self.happened(pod, happening::pulled(container.name(), image, took, waited, pulled.image.size));
                pulled.image
            }
        };
        let id = image.id.clone();
        self.state().images.insert(container.name().to_owned(), image);
        Ok(Done::new(Outcome::Image(id)))
    }

    async fn create_sandbox(self: &Arc<Self>, pod: Arc<Pod>) -> Result<Done, ActionError> {
        const REASON: &str = "FailedCreatePodSandBox";
        let begun = std::time::Instant::now();
        let limits = self.shared.pod_limits(spec_of(&pod), &self.grants);
        let limit = limits.memory;
        let host = self.clone();
        let prepare = move || {
            let cgroups = &host.shared.cgroups;
            cgroups.ensure_pod(host.qos, host.uid(), &limits).map_err(because(REASON))?;
            let placement =
                cgroups.ensure_leaf(host.qos, host.uid(), SANDBOX, &Default::default()).map_err(because(REASON))?;
            if spec_of(&pod).host_ipc != Some(true) {
                volume::shm::set_up(&host.dirs).map_err(because(REASON))?;
            }
            let generation = host.state().generation + 1;
            let mut spec = host.shared.sandbox_spec(&pod, generation, placement, host.users)?;
            spec.oom_score_adj = host.shared.config.supervisor_oom_score_adj;
            // Durable before the first program runs in it: [`Host::commit_sandbox`].
            let _ = durable::place_json(&host.dirs.sandbox_file(), &spec).map_err(because(REASON))?;
            host.state().sandbox_placed = generation;
            let cgroups = begun.elapsed();
            let started = spawn::start(&host.shared.binary, &host.shared.spare, &host.dirs, &spec);
            Ok((spec, cgroups, started))
        };
        let (spec, cgroups, started) = blocking(prepare).await?;
        let generation = spec.generation;
        let connected = match started {
            Ok(started) => Supervisor::meet(started).await.map_err(because(REASON)),
            Err(error) => Err(because(REASON)(error)),
        };
        let connected = connected.map_err(|mut failure| {
            if let Some(limit) = limit.filter(|_| was_out_of_memory(&spec)) {
                failure.message =
                    format!("{}: the memory limit of {limit} bytes is too small to start", failure.message);
            }
            failure
        })?;
        for warning in &connected.snapshot.warnings {
            self.shared.warn_once(warning);
        }
        let pid = connected.snapshot.pid;
        self.connected(connected, generation);
        let stages = vec![Stage { name: "cgroups".to_owned(), at: cgroups.as_micros() as u64 }];
        Ok(Done { outcome: Outcome::Sandbox { pid, generation }, stages })
    }

    pub(super) fn attach_network(&self, pod: &Pod) -> Result<Done, ActionError> {
        const REASON: &str = "FailedCreatePodSandBox";
        let (lease, netlink) = {
            let state = self.state();
            let netlink = state.netlink.as_ref().map(OwnedFd::try_clone).transpose();
            (state.lease.clone(), netlink.map_err(failed(REASON, "duplicate the socket of", Path::new("the sandbox")))?)
        };
        let (Some(lease), Some(netlink)) = (lease, netlink) else {
            return Err(ActionError { reason: REASON.to_owned(), message: "the sandbox has no network".to_owned() });
        };
        let ports = inputs::port_mappings(pod);
        self.shared.network.attach(self.uid(), netlink, &lease, &ports).map_err(because(REASON))?;
        Ok(Done::new(Outcome::Done))
    }

    async fn start_container(self: &Arc<Self>, name: &str, attempt: u32) -> Result<Done, ActionError> {
        let supervisor = self.need_supervisor()?;
        let launch = self.state().launches.get(name).cloned().ok_or_else(|| ActionError {
            reason: "CreateContainerError".to_owned(),
            message: format!("no attempt of container {name} was prepared"),
        })?;
        if self.has_own_cpus(name) && !self.shared.pool.settled().await {
            return Err(ActionError {
                reason: "CreateContainerError".to_owned(),
                message: "other containers have not left its processors yet".to_owned(),
            });
        }
        let directory = self.dirs.attempt(name, attempt);
        let started = match supervisor.start(&directory.dir, !launch.released).await {
            Ok(Ok(running)) => running,
            // The record is on disk in both cases; it is what counts.
            Ok(Err(_)) | Err(ClientError::AlreadyEnded) => {
                let recorded = records::read(&directory).map_err(because("CreateContainerError"))?;
                let recorded = recorded.ok_or_else(|| ActionError {
                    reason: "CreateContainerError".to_owned(),
                    message: format!("the record of attempt {} is gone", directory.dir.display()),
                })?;
                let ended = recorded.ended(&directory, self.falls_back_to_logs(name), Timestamp::now());
                return Ok(Done::new(Outcome::Attempt(ended)));
            }
            Err(error) => return Err(ActionError::new("RunContainerError", &error)),
        };
        let stage = |(stage, at): &(String, u64)| Stage { name: format!("{name}/{stage}"), at: *at };
        let stages = started.stages.iter().map(stage).collect();
        let Launch { generation, epoch, id, image_id, image_ref, stop_signal, .. } = launch;
        let (uid, gid, groups) = started.user.clone();
        let user = Some(Box::new(User { uid, gid, groups }));
        let state = running_state(&started);
        let running = Attempt { number: attempt, generation, epoch, id, image_id, image_ref, stop_signal, user, state };
        Ok(Done { outcome: Outcome::Attempt(running), stages })
    }

    /// Directories, cgroup and launch record of an attempt. The sandbox it is for may be in the making.
    fn prepare_container(
        &self,
        pod: &Pod,
        name: &str,
        attempt: u32,
        generation: u32,
        epoch: u32,
    ) -> Result<Done, ActionError> {
        const REASON: &str = "CreateContainerError";
        let container = container(pod, name)?;
        let launched = Launched {
            attempt,
            image: container.image().to_owned(),
            resources: container.resources().cloned().unwrap_or_default(),
        };
        let directory = self.dirs.attempt(name, attempt);
        let recorded = records::read(&directory).map_err(because(REASON))?;
        if let Some(recorded) = recorded
            && (recorded.launch.generation, recorded.launch.epoch) == (generation, epoch)
            && recorded.launch.image == launched.image
        {
            // Tried before, and the answer was lost: the same launch is joined.
            self.hold_launch(&recorded.launch);
            return Ok(Done::new(Outcome::Prepared(launched)));
        }
        let (image, volumes) = {
            let state = self.state();
            (state.images.get(name).cloned(), state.volumes.clone())
        };
        let image = image.ok_or_else(|| ActionError {
            reason: REASON.to_owned(),
            message: format!("no image was resolved for container {name}"),
        })?;
        let addresses = self.addresses(pod);
        let input = inputs::Attempt {
            container,
            number: attempt,
            generation,
            epoch,
            image: &image,
            pod_ips: &addresses,
            users: self.users,
            volumes: &volumes,
            handler: self.handler.as_deref(),
            grants: &self.grants,
        };
        let Prepared { spec, bundle } = self.shared.launch_spec(pod, &self.dirs, self.qos, &input)?;
        attempt::prepare(&spec, &directory).map_err(because(REASON))?;
        if let Some(bundle) = bundle {
            make_directory(&directory.bundle(), 0o700)?;
            let template = directory.bundle().join("template.json");
            durable::write_json_until_reboot(&template, &bundle).map_err(because(REASON))?;
        }
        durable::place_json(&directory.launch_file(), &spec).map(drop).map_err(because(REASON))?;
        self.hold_launch(&spec);
        Ok(Done::new(Outcome::Prepared(launched)))
    }

    /// The mark is durable before the signal is sent: an agent that starts in between finishes what was begun.
    fn mark_restart(&self, pod: &Pod, name: &str, attempt: u32, why: RestartReason) -> Result<Done, ActionError> {
        let message = why.message(name);
        durable::write_json(&self.dirs.attempt(name, attempt).restart_file(), &message)
            .map_err(because("FailedKillPod"))?;
        self.happened(pod, Happening::normal(Some(name), "Killing", message));
        Ok(Done::new(Outcome::Done))
    }

    /// Makes the launch record of an attempt durable, once, whoever asks for it.
    async fn commit(self: &Arc<Self>, name: &str, attempt: u32) -> Result<(), ActionError> {
        let Some(committed) = self.state().launches.get(name).map(|launch| launch.committed.clone()) else {
            return Ok(());
        };
        let (host, launch) = (self.clone(), self.dirs.attempt(name, attempt).launch_file());
        let commit = || blocking(move || host.sync_records(&launch).map_err(because("CreateContainerError")));
        committed.get_or_try_init(commit).await.copied()
    }

    /// Lets a container run, as soon as what it is started from cannot be lost any more.
    async fn release_container(self: &Arc<Self>, name: &str, attempt: u32) -> Result<Done, ActionError> {
        self.commit(name, attempt).await?;
        self.commit_sandbox().await?;
        let directory = self.dirs.attempt(name, attempt);
        let released = self.need_supervisor()?.release(&directory.dir).await;
        released.map_err(because("RunContainerError"))?;
        // A start that has to be repeated is not held again.
        if let Some(launch) = self.state().launches.get_mut(name) {
            launch.released = true;
        }
        Ok(Done::new(Outcome::Done))
    }

    /// Makes a launch record durable, and with it what else of the pod is not yet: its own record, and its sandbox's, if
    /// that is there.
    fn sync_records(&self, launch: &Path) -> Result<(), StoreError> {
        let (recorded, generation, sandbox_recorded) = {
            let state = self.state();
            (state.recorded, state.sandbox_placed, state.sandbox_recorded)
        };
        let mut records = vec![Placed::open(launch)?];
        if !recorded {
            records.push(Placed::open(&self.dirs.pod_file())?);
        }
        if generation > sandbox_recorded {
            records.push(Placed::open(&self.dirs.sandbox_file())?);
        }
        Placed::sync_all(records)?;
        if !recorded {
            durable::sync_parent(&self.dirs.dir)?;
        }
        let mut state = self.state();
        state.recorded = true;
        state.sandbox_recorded = state.sandbox_recorded.max(generation);
        Ok(())
    }

    /// Makes the record of the sandbox durable, unless it is.
    async fn commit_sandbox(self: &Arc<Self>) -> Result<(), ActionError> {
        let (generation, recorded) = {
            let state = self.state();
            (state.sandbox_placed, state.sandbox_recorded)
        };
        if generation <= recorded {
            return Ok(());
        }
        let path = self.dirs.sandbox_file();
        blocking(move || Placed::open(&path).and_then(Placed::sync).map_err(because("CreateContainerError"))).await?;
        let mut state = self.state();
        state.sandbox_recorded = state.sandbox_recorded.max(generation);
        Ok(())
    }

    fn hold_launch(&self, spec: &LaunchSpec) {
        let launch = Launch {
            generation: spec.generation,
            epoch: spec.epoch,
            id: spec.id.clone(),
            image_id: spec.image_id.clone(),
            image_ref: spec.image_ref.clone(),
            stop_signal: spec.stop_signal,
            committed: Arc::default(),
            released: false,
        };
        self.state().launches.insert(spec.container.clone(), launch);
    }

    async fn stop_container(&self, name: &str, attempt: u32) -> Result<Done, ActionError> {
        let Some(supervisor) = self.supervisor() else { return Ok(Done::new(Outcome::Done)) };
        let directory = self.dirs.attempt(name, attempt);
        let recorded = blocking(move || records::read(&directory).map_err(because("FailedKillPod"))).await?;
        let signal = recorded.map_or(libc::SIGTERM, |recorded| recorded.launch.stop_signal);
        match supervisor.signal(name, signal).await {
            Ok(()) | Err(ClientError::Gone) => Ok(Done::new(Outcome::Done)),
            Err(error) => Err(ActionError::new("FailedKillPod", &error)),
        }
    }

    async fn kill_container(&self, name: &str) -> Result<Done, ActionError> {
        let Some(supervisor) = self.supervisor() else { return Ok(Done::new(Outcome::Done)) };
        match supervisor.kill(name).await {
            Ok(()) | Err(ClientError::Gone) => Ok(Done::new(Outcome::Done)),
            Err(error) => Err(ActionError::new("FailedKillPod", &error)),
        }
    }
}

/// Whether the OOM killer took the sandbox's process.
fn was_out_of_memory(spec: &SandboxSpec) -> bool {
    let counters = spec.cgroup.oom_events.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    let killed = counters.iter().flat_map(|text| text.lines()).find_map(|line| line.strip_prefix("oom_kill "));
    killed.is_some_and(|count| count.trim() != "0")
}

/// What the supervisor said of an attempt that runs.
pub(super) fn running_state(running: &RunningContainer) -> AttemptState {
    AttemptState::Running {
        pid: running.pid,
        started_at: records::timestamp(running.started_at).unwrap_or_else(Timestamp::now),
    }
}

impl PodHost for Host {
    fn execute(self: Arc<Self>, pod: Arc<Pod>, action: Action) -> BoxFuture<'static, Result<Done, ActionError>> {
        Box::pin(async move {
            let host = self.clone();
            match action {
                // The ledger's entry of the pod as it is; a changed one comes by `record`.
                Action::RecordPod => blocking(move || host.write_record(None).map(|()| Done::new(Outcome::Done))).await,
                Action::EnsureDirs => blocking(move || host.ensure_dirs()).await,
                Action::RecordVerdict(verdict) => blocking(move || host.record_verdict(verdict)).await,
                Action::LeaseAddresses => blocking(move || host.lease_addresses(&pod)).await,
                Action::MountVolume(name) | Action::RefreshVolume(name) => self.mount_volume(pod, name).await,
                Action::ResolveImage { container, .. } => self.resolve_image(&pod, &container).await,
                Action::CreateSandbox => self.create_sandbox(pod).await,
                Action::AttachNetwork => blocking(move || host.attach_network(&pod)).await,
                Action::PrepareContainer { container, attempt, generation, epoch } => {
                    let name = container.clone();
                    self.prepare_devices(&name).await?;
                    let prepare = move || host.prepare_container(&pod, &container, attempt, generation, epoch);
                    let done = blocking(prepare).await?;
                    // While the sandbox is made. Whoever releases the container waits for it, and hears of an error.
                    tokio::spawn(async move { self.commit(&name, attempt).await });
                    Ok(done)
                }
                Action::ReleaseContainer { container, attempt, .. } => {
                    self.release_container(&container, attempt).await
                }
                Action::MarkRestart { container, attempt, why } => {
                    blocking(move || host.mark_restart(&pod, &container, attempt, why)).await
                }
                Action::ResizePod { containers } => self.resize(pod, containers).await,
                Action::StartContainer { container, attempt } => self.start_container(&container, attempt).await,
                Action::RunHook { container, attempt, hook } => self.run_hook(&pod, &container, attempt, hook).await,
                Action::AbandonHook { container, attempt, hook } => {
                    self.abandon_hook(container, attempt, hook);
                    Ok(Done::new(Outcome::Done))
                }
                Action::StopContainer { container, attempt } => self.stop_container(&container, attempt).await,
                Action::KillContainer { container, .. } => self.kill_container(&container).await,
                Action::RemoveAttempt { container, attempt } => {
                    blocking(move || host.remove_attempt(&container, attempt)).await
                }
                Action::StopSandbox => self.stop_sandbox().await,
                Action::DetachNetwork => blocking(move || host.detach_network(&pod)).await,
                Action::RemoveCgroups => blocking(move || host.remove_cgroups()).await,
                Action::UnmountVolumes => self.unmount_volumes().await,
                Action::ReleaseAddresses => blocking(move || host.release_addresses()).await,
                Action::ForgetPod => blocking(move || host.forget()).await,
            }
        })
    }

    fn contents(&self, pod: &Pod) -> BTreeMap<String, u64> {
        self.wanted_contents(pod)
    }

    fn grants(&self) -> Grants {
        Grants::clone(&self.grants)
    }

    fn device_health(&self) -> BTreeMap<String, Vec<ResourceStatus>> {
        Host::device_health(self)
    }

    fn record(self: Arc<Self>, record: Arc<PodRecord>) -> BoxFuture<'static, Result<Done, ActionError>> {
        Box::pin(
            async move { blocking(move || self.write_record(Some(record)).map(|()| Done::new(Outcome::Done))).await },
        )
    }

    fn attach(self: Arc<Self>, container: String, stdio: Vec<OwnedFd>) -> BoxFuture<'static, Result<(), NodeError>> {
        Box::pin(async move {
            let supervisor =
                self.supervisor().ok_or_else(|| NodeError::Conflict("the pod has no sandbox".to_owned()))?;
            supervisor.attach(&container, stdio).await.map_err(|error| match error {
                ClientError::Refused { .. } => NodeError::Conflict(ActionError::new("", &error).message),
                error => NodeError::Internal(ActionError::new("", &error).message),
            })
        })
    }

    fn resize_terminal(
        self: Arc<Self>,
        container: String,
        size: TerminalSize,
    ) -> BoxFuture<'static, Result<(), NodeError>> {
        Box::pin(async move {
            let supervisor =
                self.supervisor().ok_or_else(|| NodeError::Conflict("the pod has no sandbox".to_owned()))?;
            let resized = supervisor.resize(&container, size.rows, size.columns).await;
            resized.map_err(|error| NodeError::Conflict(ActionError::new("", &error).message))
        })
    }

    fn happened(&self, pod: &Pod, happening: Happening) {
        self.shared.events.happened(pod, happening, Timestamp::now());
    }

    fn terminating(&self) {
        self.helpers.cancel();
    }

    fn attempt_ended(&self, attempt: &Attempt) {
        let (shared, qos) = (self.shared.clone(), self.qos);
        let (uid, id) = (self.uid().to_owned(), attempt.id.clone());
        shared.pool.leave(&uid, &id);
        tokio::task::spawn_blocking(move || {
            // The pod's own removal would take it along, but a pod that restarts for years must not collect them.
            if let Err(error) = shared.cgroups.remove_leaf(qos, &uid, &id) {
                tracing::debug!(uid, id, %error, "the cgroup of an ended container is still there, ignoring");
            }
        });
    }

    fn exec(
        self: Arc<Self>,
        spec: ExecSpec,
        stdio: Vec<OwnedFd>,
    ) -> BoxFuture<'static, Result<ExecSession, NodeError>> {
        Box::pin(async move {
            let supervisor =
                self.supervisor().ok_or_else(|| NodeError::Conflict("the pod has no sandbox".to_owned()))?;
            let internal = |error: ClientError| NodeError::Internal(ActionError::new("", &error).message);
            let mut exec = match supervisor.exec(spec, stdio).await.map_err(internal)? {
                Ok(exec) => exec,
                Err(error) => return Err(NodeError::Exec(error.sentence())),
            };
            let terminal = exec.terminal.take();
            // Holds the supervisor's connection as long as somebody waits for the code.
            let exit: BoxFuture<'static, Result<i32, NodeError>> =
                Box::pin(async move { exec.wait().await.map(|end| end.exit_code).map_err(internal) });
            Ok(ExecSession { terminal, over: false, exit })
        })
    }

    fn probe(self: Arc<Self>, pod: Arc<Pod>, key: ProbeKey) -> BoxFuture<'static, Answer> {
        Box::pin(self.run_probe(pod, key))
    }

    fn keep_verdicts(self: Arc<Self>, probes: &BTreeMap<String, Probed>) {
        Host::keep_verdicts(&self, probes);
    }

    fn usage(self: Arc<Self>, running: Vec<(String, String)>) -> BoxFuture<'static, Vec<Usage>> {
        Box::pin(async move {
            let figures = blocking(move || Ok(self.figures(&running))).await;
            figures.unwrap_or_default()
        })
    }
}
