//! The agent's life: take the lock, look at what is there, take it up, follow the sources, leave.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use k8s_openapi::jiff::SignedDuration;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tracing::{info, warn};

use super::{
    machine,
    manager::{Entries, Manager, Update},
    managers::ManagersError,
    node::RunningNode,
    object_ledger, pool, recover, ruleset,
    shared::{RealHosts, Shared},
};
use crate::{
    api::problem::ManifestProblem,
    cgroup::CgroupError,
    config::NodeConfig,
    csi::drivers,
    device,
    image::ImageError,
    obs::{
        chain::Chain,
        event_file::{self, EventFile},
    },
    plugin,
    pod::{
        Grants, NodeView,
        backoff::BackoffPolicy,
        desired,
        desired_objects::{DesiredObjects, merge_objects},
    },
    runtime::{spawn::SpawnError, users::IdError},
    source::{
        Updates,
        file::{FileSource, FileSourceConfig, FileSourceError},
        http::{self, HttpSourceConfig, HttpSourceError},
    },
    sys::memory,
};

/// Changes of pods that may wait for the manager; whoever asks for another waits beyond that.
const UPDATES: usize = 16;

/// How long after the last change of the pods the memory that it took is given back: once when the work is done, and once
/// more when what it has set in motion has come to rest, threads that wait for more of it among that.
const SETTLED: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(12)];

/// How long the lock of an agent that was killed may be held by a child of it that had not come to its program yet.
const INHERITED: Duration = Duration::from_secs(5);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory could not be made or opened.
    #[error("{step} {path}")]
    Directory {
        /// `create`, `open`, `lock`.
        step: &'static str,
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another agent has the directory.
    #[error("another agent{} uses {}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other's process id, as far as it is known.
        pid: Option<u32>,
    },
    /// cgroups.
    #[error("find the cgroup hierarchies")]
    Cgroups(#[source] CgroupError),
    /// The configuration does not want this machine.
    #[error("failCgroupV1 is set and this machine has no unified cgroup hierarchy")]
    CgroupV1,
    /// The configuration does not want this machine's swap.
    #[error("failSwapOn is set and this machine has swap: turn it off, or set failSwapOn to false")]
    Swap,
    /// The image store.
    #[error("open the image store")]
    Images(#[source] ImageError),
    /// The network's configuration.
    #[error("set up the pod network")]
    Network(#[source] berth_cni::NetworkError),
    /// The CPU, memory or topology manager.
    #[error("start the resource managers")]
    Managers(#[source] ManagersError),
    /// The ids of pods' user namespaces.
    #[error("share out ids for pods' user namespaces")]
    Users(#[source] IdError),
    /// The supervisors' program.
    #[error("prepare the supervisors' program")]
    Binary(#[source] SpawnError),
    /// The manifest directory.
    #[error("watch the manifests")]
    FileSource(#[source] FileSourceError),
    /// The manifest URL.
    #[error("fetch manifests")]
    HttpSource(#[source] HttpSourceError),
}

/// A started agent: everything that was there has been taken up, and nothing is decided yet.
pub struct Agent {
    shared: Arc<Shared>,
    manager: Manager,
    sources: Vec<Updates>,
    problems: watch::Sender<Vec<ManifestProblem>>,
    /// What pods refer to, as it was put together last.
    objects: watch::Sender<Arc<DesiredObjects>>,
    /// What of it has changed is written down by this task.
    keeper: JoinHandle<()>,
    updates: mpsc::Receiver<Update>,
    /// Pods of the ledger that are left alone.
    unreadable: Vec<ManifestProblem>,
    /// What the servers show.
    pub node: Arc<RunningNode>,
    /// Held as long as the agent lives.
    _locks: [File; 2],
    _file_source: Option<FileSource>,
    /// What happened, for the next agent.
    event_file: Arc<Mutex<EventFile>>,
}

/// Takes the lock of a directory, whose holder is written into it.
fn lock(directory: &Path) -> Result<File, StartError> {
    let failed = |step| {
        let path = directory.to_owned();
        move |source| StartError::Directory { step, path, source }
    };
    fs::create_dir_all(directory).map_err(failed("create"))?;
    let path = directory.join("agent.lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open the lock of"))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(fs::TryLockError::WouldBlock) => {
                let pid: Option<u32> = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                let gone = pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
                if !gone || begun.elapsed() > INHERITED {
                    return Err(StartError::Locked { path: directory.to_owned(), pid });
                }
                std::thread::sleep(INHERITED / 500);
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock")(error)),
        }
    }
    // For people and the message above; the lock itself is what counts.
    let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(failed("write the lock of"))?;
    Ok(file)
}

impl Agent {
    /// Takes the directories and takes up what is there: pods whose supervisors answer go on untouched, and what no
    /// record claims is removed. Pods that nobody wants any more stay until every source has been read once.
    pub async fn start(config: NodeConfig) -> Result<Agent, StartError> {
        let locks = [lock(&config.layout.root)?, lock(&config.layout.run)?];
        machine::prepare_process(&config);
        for path in [config.layout.pods(), config.layout.run.join("pods"), config.layout.log.clone()] {
            let failed = |source| StartError::Directory { step: "create", path: path.clone(), source };
            fs::create_dir_all(&path).map_err(failed)?;
        }
        let shared = Arc::new(Shared::open(config).await?);
        let (path, kept) = (shared.config.layout.events(), shared.config.events.kept);
        let (event_file, read) = EventFile::open(path, kept, &shared.events);
        if let Err(error) = read {
            warn!(%error, "what happened before is not known, ignoring");
        }
        let crash_loop = BackoffPolicy::crash_loop(
            SignedDuration::try_from(shared.config.crash_loop_max).unwrap_or(SignedDuration::from_secs(300)),
        );
        let view = NodeView { host_ips: shared.host_ips.clone(), crash_loop };
        let entries: Entries = Arc::new(Mutex::default());
        let hosts = Arc::new(RealHosts(shared.clone()));
        let mut manager = Manager::new(hosts, Arc::new(view), entries.clone());

        let pods = shared.config.layout.pods();
        let ledger = recover::ledger(&shared.config.layout).map_err(|source| StartError::Directory {
            step: "list",
            path: pods,
            source,
        })?;
        let mut unreadable = Vec::new();
        let mut granted: Vec<Grants> = ledger.records.iter().map(|record| record.grants.clone()).collect();
        for pod in &ledger.left_alone {
            let message = Chain(&pod.error).to_string();
            warn!(uid = pod.uid, "a ledger entry cannot be used; its pod is left alone: {message}");
            // Before anything else is given an address.
            recover::keep_addresses(&shared, pod);
            let kept = recover::kept(pod);
            granted.push(kept.grants.clone());
            manager.leave_alone(pod.uid.clone(), kept);
            unreadable.push(ManifestProblem {
                source: format!("ledger:{}", pod.directory.display()),
                document: None,
                pod: None,
                warning: false,
                message: format!("the pod of this record is left alone: {message}"),
            });
        }
        // Before anything is made that would run on what somebody has for itself.
        shared.pool.set(shared.managers.shared(&granted.iter().collect::<Vec<_>>()));
        for record in &ledger.records {
            for oddity in shared.managers.oddities(&record.grants) {
                warn!(pod = record.pod.metadata.name, uid = record.uid(), "{oddity}");
            }
        }
        // Before the pods that refer to them are taken up.
        let objects_file = shared.config.layout.objects_file();
        let objects = match object_ledger::read(&objects_file) {
            Ok(objects) => objects,
            Err(error) => {
                let message = format!("pods see no objects but those that manifests hold now: {}", Chain(&error));
                warn!("{message}");
                let source = format!("ledger:{}", objects_file.display());
                unreadable.push(ManifestProblem { source, document: None, pod: None, warning: false, message });
                DesiredObjects::default()
            }
        };
        shared.objects.send_replace(Arc::new(objects.snapshot()));
        let (objects, latest_objects) = watch::channel(Arc::new(objects));
        let keeper = tokio::spawn(object_ledger::keep(objects_file, latest_objects));

        let records = ledger.records.iter().cloned();
        let recovered = join_all(records.map(|record| recover::recover(shared.clone(), record, &crash_loop))).await;
        let sweeping = shared.clone();
        let swept = tokio::task::spawn_blocking(move || recover::sweep(&sweeping, &ledger)).await;
        if let Err(error) = swept {
            warn!(%error, "the sweep ended abnormally, ignoring");
        }
        for pod in recovered {
            manager.adopt(pod);
        }

        // Every plugin registers anew when it sees the socket.
        if let Err(error) = device::listen(&shared.config.layout.device_plugins(), shared.devices.clone()) {
            warn!("device plugins cannot register: {}", Chain(&error));
        }
        let (sources, file_source) = start_sources(&shared.config)?;
        let (problems, readers) = watch::channel(unreadable.clone());
        let (sender, updates) = mpsc::channel(UPDATES);
        let layout = shared.config.layout.clone();
        let node = Arc::new(RunningNode {
            entries,
            problems: readers,
            layout,
            updates: sender,
            waiting: manager.waiting_for_room(),
            devices: shared.devices.clone(),
        });
        Ok(Agent {
            shared,
            manager,
            sources,
            problems,
            objects,
            keeper,
            updates,
            unreadable,
            node,
            _locks: locks,
            _file_source: file_source,
            event_file: Arc::new(Mutex::new(event_file)),
        })
    }

    /// The image store, for the servers.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Follows the sources until `stop`. Pods stay as they are then; a node without any is left as it was found.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let changed = Arc::new(Notify::new());
        for source in &self.sources {
            let (mut source, changed) = (source.clone(), changed.clone());
            source.mark_changed();
            tokio::spawn(async move {
                while source.changed().await.is_ok() {
                    changed.notify_one();
                }
            });
        }
        let mut objects = self.shared.objects.subscribe();
        objects.mark_changed();
        let registry = self.shared.config.layout.plugins_registry();
        let storage: Arc<dyn plugin::Handler> = Arc::new(self.shared.csi.drivers.clone());
        let mut drivers = self.shared.csi.drivers.registered();
        let plugins = tokio::spawn(plugin::registry::follow(registry, [(drivers::KIND, storage)].into()));
        let mut devices = self.shared.devices.changes();
        let ruleset = tokio::spawn(ruleset::keep(self.shared.clone()));
        let pool = tokio::spawn(pool::keep(self.shared.clone()));
        let events = tokio::spawn(event_file::keep(self.event_file.clone(), self.shared.events.clone()));
        tokio::pin!(stop);
        let mut tidy_at = VecDeque::new();
        loop {
            let next_tidying = tidy_at.front().copied();
            let tidying = async {
                match next_tidying {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Cancel-safe: a notification or a change stays until it is taken, `pod_gone` loses no actor and `recv` no
            // message when it is dropped, and the time to tidy stays what it is.
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = changed.notified() => self.reconcile(),
                // Its sender lives as long as this.
                Ok(()) = objects.changed() => {
                    let now = objects.borrow_and_update().clone();
                    self.manager.objects_changed(now);
                }
                // Its sender lives as long as the shared state.
                Ok(()) = drivers.changed() => {
                    drivers.mark_unchanged();
                    self.manager.drivers_changed();
                }
                Ok(()) = devices.changed() => {
                    if self.manager.devices_changed() {
                        self.reconcile();
                    }
                }
                () = self.manager.pod_gone() => self.reconcile(),
                Some(update) = self.updates.recv() => self.manager.update(update),
                () = tidying => {
                    tidy_at.pop_front();
                    tokio::task::spawn_blocking(give_back);
                    continue;
                }
            }
            tidy_at = SETTLED.map(|after| tokio::time::Instant::now() + after).into();
        }
        // The last change is written down when nobody can make another.
        drop(self.objects);
        if let Err(error) = self.keeper.await {
            warn!(%error, "what pods refer to was not written down");
        }
        plugins.abort();
        pool.abort();
        // Before our own table is removed on purpose.
        ruleset.abort();
        let _ = ruleset.await;
        events.abort();
        let (file, recorder) = (self.event_file.clone(), self.shared.events.clone());
        let _ = tokio::task::spawn_blocking(move || event_file::write(&file, &recorder)).await;
        if self.manager.is_empty() {
            let shared = self.shared.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || shared.tear_down()).await {
                warn!(%error, "the node's own set-up was not removed");
            }
        } else {
            info!("pods stay; the next agent takes them up");
        }
    }

    fn reconcile(&mut self) {
        let seen = Instant::now();
        let latest: Vec<_> = self.sources.iter().map(|source| source.borrow().clone()).collect();
        // An agent that was given no source has nobody who could want its pods gone.
        let complete = !latest.is_empty() && latest.iter().all(Option::is_some);
        let updates: Vec<_> = latest.into_iter().flatten().collect();
        // First of all, so that a pod finds what it refers to.
        let objects = Arc::new(merge_objects(&updates, complete, &self.objects.borrow()));
        self.publish_objects(&objects);
        let mut desired = desired::merge(&updates, &self.manager.uids());
        desired.problems.extend(objects.problems.iter().cloned());
        desired.problems.extend(self.unreadable.iter().cloned());
        let not_followed = self.manager.reconcile(&desired, complete, seen);
        desired.problems.extend(not_followed);
        self.problems.send_if_modified(|problems| {
            let changed = *problems != desired.problems;
            if changed {
                for problem in desired.problems.iter().filter(|problem| !problems.contains(problem)) {
                    warn!(source = problem.source, document = problem.document, "{}", problem.message);
                }
                problems.clone_from(&desired.problems);
            }
            changed
        });
    }
}

impl Agent {
    /// Makes the objects what pods see from now on.
    fn publish_objects(&self, merged: &Arc<DesiredObjects>) {
        let changed = self.objects.send_if_modified(|objects| {
            let changed = !objects.is_same(merged);
            if changed {
                objects.clone_from(merged);
            }
            changed
        });
        if changed {
            let snapshot = merged.snapshot();
            self.shared.objects.send_if_modified(|objects| {
                let changed = !objects.is_same(&snapshot);
                if changed {
                    *objects = Arc::new(snapshot);
                }
                changed
            });
        }
    }
}

/// What a busy while leaves: freed memory that the allocator keeps, and code that nothing runs while nothing happens.
fn give_back() {
    memory::trim_heap();
    memory::release_program();
}

fn start_sources(config: &NodeConfig) -> Result<(Vec<Updates>, Option<FileSource>), StartError> {
    let mut sources = Vec::new();
    let mut file_source = None;
    if let Some(path) = &config.pod_manifest_path {
        let (source, updates) = FileSource::start(FileSourceConfig {
            path: std::path::absolute(path).unwrap_or_else(|_| path.clone()),
            node_name: config.node_name.clone(),
            resync: config.file_check_frequency,
        })
        .map_err(StartError::FileSource)?;
        file_source = Some(source);
        sources.push(updates);
    }
    if let Some(url) = &config.static_pod_url {
        let updates = http::start(HttpSourceConfig {
            url: url.clone(),
            headers: config.static_pod_url_headers.clone(),
            node_name: config.node_name.clone(),
            period: config.http_check_frequency,
        })
        .map_err(StartError::HttpSource)?;
        sources.push(updates);
    }
    Ok((sources, file_source))
}
