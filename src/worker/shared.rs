//! What all pods of the node share: the stores, the network, the cgroups, the configuration.

use std::{
    collections::HashSet,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_cni::Network;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{
    claims::Claims,
    csi::Csi,
    execute::Host,
    handle::BoxFuture,
    host::{PodEvent, PodHost},
    machine,
    manager::{DeviceTrouble, Hosts},
    managers::Managers,
    pool::Pool,
    record::PodRecord,
    run::StartError,
    token::{TokenSource, standalone::StandaloneTokens},
};
use crate::{
    api::{
        objects::Objects,
        qos::{QosClass, qos_class},
        quantity::Quantity,
        resources::{CPU, MEMORY, Resources, pod_requests},
        unsupported::{Consequence, FieldIssue, unsupported},
    },
    cgroup::{Cgroups, ClassTotals, Layout},
    config::NodeConfig,
    device::Devices,
    image::{Credentials, Image, ImageConfig, ImageError, ImageStore, Mirror, RegistryConfig},
    obs::events::{Recorder, Severity},
    pod::{
        Grants, Rejection,
        admission::{self, NodeFacts},
        devices::{self, DeviceProvider, Question},
        runtime_class,
    },
    runtime::{
        app_armor::AppArmor,
        downward::Allocatable,
        handler::Handlers,
        launch::{CgroupVersion, LaunchOptions},
        spare::SpareNamespaces,
        spawn::SealedBinary,
        users::IdPool,
    },
    supervisor::spec::IdRange,
};

/// Shared by all pods.
pub struct Shared {
    /// Configuration.
    pub config: NodeConfig,
    /// cgroups.
    pub cgroups: Cgroups,
    /// Images.
    pub images: ImageStore,
    /// Pod network.
    pub network: Network,
    /// The supervisors' program.
    pub binary: SealedBinary,
    /// Namespaces for the next one.
    pub spare: SpareNamespaces,
    /// Addresses of the node, the first one primary.
    pub host_ips: Vec<IpAddr>,
    /// Bytes of memory of the machine.
    pub memory: u64,
    /// Bytes of swap of the machine.
    pub swap: u64,
    /// What admission knows of the node.
    pub facts: NodeFacts,
    /// What is the same for all containers.
    pub launch: LaunchOptions,
    /// Sizes of the huge pages there are, bytes.
    pub huge_page_sizes: Vec<u64>,
    /// Ids of the host for pods' user namespaces.
    pub ids: IdPool,
    /// RuntimeClass handlers.
    pub handlers: Handlers,
    /// AppArmor, as far as the kernel has it.
    pub app_armor: AppArmor,
    /// The CPU, memory and topology managers.
    pub managers: Managers,
    /// What containers run on that have no processors of their own.
    pub pool: Pool,
    /// What happens to pods.
    pub events: Recorder,
    /// Which persistent volume belongs to which claim.
    pub claims: Claims,
    /// Storage drivers, and what they have done.
    pub csi: Csi,
    /// The objects pods refer to; the sending half fills it.
    pub objects: watch::Sender<Arc<Objects>>,
    /// Device plugins and what they offer.
    pub devices: Arc<Devices>,
    /// Tokens of service accounts.
    pub tokens: Arc<dyn TokenSource>,
    /// Pulls that may go on at once.
    pulls: Semaphore,
    /// What has been said already.
    warned: Mutex<HashSet<String>>,
    /// What the classes of pods got together last.
    classes: Mutex<Option<ClassTotals>>,
}

/// Makes hands for pods.
pub struct RealHosts(pub Arc<Shared>);

impl Hosts for RealHosts {
    fn host(&self, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Arc<dyn PodHost> {
        Arc::new(Host::new(self.0.clone(), record, events))
    }

    fn complete(&self, pod: &mut Pod) -> Result<(), Rejection> {
        let Some(spec) = &mut pod.spec else { return Ok(()) };
        let has = |name: &str| self.0.handlers.config(name).is_some();
        runtime_class::apply(spec, &self.0.objects.borrow().runtime_classes, &has)
    }

    fn handler(&self, pod: &Pod) -> Option<String> {
        let objects = self.0.objects.borrow();
        runtime_class::handler(pod.spec.as_ref()?, &objects.runtime_classes).map(str::to_owned)
    }

    fn admit(&self, pod: &Pod, others: &[&Pod]) -> Result<Vec<String>, Rejection> {
        let victims = admission::admit(pod, others, &self.0.facts, &refused(pod))?;
        Ok(victims.iter().filter_map(|victim| victim.metadata.uid.clone()).collect())
    }

    fn fits(&self, pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
        admission::fits(pod, others, &self.0.facts, &refused(pod))
    }

    fn users(&self, pod: &Pod, taken: &[IdRange]) -> Result<Option<IdRange>, Rejection> {
        if pod.spec.as_ref().and_then(|spec| spec.host_users) != Some(false) {
            return Ok(None);
        }
        let none = || Rejection {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: "could not find an empty slot to allocate a user namespace".to_owned(),
        };
        self.0.ids.allocate(taken).ok_or_else(none).map(Some)
    }

    fn awaited_devices(&self, pod: &Pod) -> Vec<String> {
        self.awaited(pod)
    }

    fn grant(
        &self,
        pod: &Pod,
        taken: &[&Grants],
        answers: &[Vec<String>],
    ) -> Result<(Grants, Option<Question>), Rejection> {
        let (offers, managers) = (self.0.devices.offers(), &self.0.managers);
        let provider = DeviceProvider::new(&offers, devices::taken(taken.iter().copied()), managers.numa(), answers);
        let grants = managers.grant(pod, taken, Some(&provider))?;
        Ok((grants, provider.question()))
    }

    fn given(&self, grants: &[&Grants]) {
        self.0.pool.set(self.0.managers.shared(grants));
    }

    fn infeasible(&self, wanted: &Pod, allocated: &Pod) -> Option<String> {
        self.0.managers.infeasible(wanted, allocated)
    }

    fn preferred_devices(&self, question: Question) -> BoxFuture<'static, Result<Vec<String>, DeviceTrouble>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.preferred_devices(&question).await })
    }

    fn allocate_devices(&self, pod: Pod, grants: Grants) -> BoxFuture<'static, Result<Grants, DeviceTrouble>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.allocate_devices(&pod, grants).await })
    }

    fn changed(&self, pods: &[&Pod], grants: &[&Grants]) {
        self.0.set_classes(pods);
        self.0.pool.set(self.0.managers.shared(grants));
    }

    fn allocatable(&self) -> Resources {
        self.0.facts.allocatable.clone()
    }

    fn event(&self, pod: &Pod, severity: Severity, reason: &str, message: String) {
        self.0.events.record(pod, None, severity, reason, message, Timestamp::now());
    }
}

/// Fields of a pod that are not honoured and without which it would not be what its manifest describes.
fn refused(pod: &Pod) -> Vec<FieldIssue> {
    unsupported(pod).into_iter().filter(|issue| issue.consequence == Consequence::Refused).collect()
}

/// An image that was pulled for a pod.
pub struct Pulled {
    /// The image.
    pub image: Arc<Image>,
    /// How long the pull took.
    pub took: Duration,
    /// The same with the wait for its turn.
    pub waited: Duration,
}

/// Pulls at a time with serializeImagePulls.
const SERIAL: usize = 1;

impl Shared {
    /// Opens the stores and looks at the machine; changes nothing of it.
    pub async fn open(config: NodeConfig) -> Result<Shared, StartError> {
        let mut cgroups = Cgroups::detect(&config.cgroup_root).map_err(StartError::Cgroups)?;
        cgroups.share_with_runtimes(!config.handlers.is_empty());
        if config.fail_cgroup_v1 && cgroups.layout() != Layout::Unified {
            return Err(StartError::CgroupV1);
        }
        let images =
            ImageStore::open(&config.layout.images(), image_config(&config)).await.map_err(StartError::Images)?;
        let network =
            Network::new(config.network.clone(), &config.layout.run.join("network")).map_err(StartError::Network)?;
        let binary = SealedBinary::load().map_err(StartError::Binary)?;
        let [uids, gids] = machine::subordinate_ids();
        let ids = IdPool::new(&uids, &gids, config.ids_per_pod, config.max_pods).map_err(StartError::Users)?;
        let host_ips = machine::addresses(&config.network.bridge);
        let memory = machine::memory();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let swap = machine::swap();
        if config.fail_swap_on && swap > 0 {
            return Err(StartError::Swap);
        }
        let capacity = Allocatable {
            cpu_milli: i64::try_from(processors * 1000).unwrap_or(i64::MAX),
            memory: i64::try_from(memory).unwrap_or(i64::MAX),
            ephemeral_storage: machine::file_system_size(&config.layout.root),
        };
        let allocatable = machine::allocatable(&config, &capacity);
        if let Some(limits) = machine::node_limits(&config, &allocatable) {
            cgroups.limit_pods(limits);
        }
        let managers = Managers::open(&config, Path::new("/sys"), memory).map_err(StartError::Managers)?;
        let app_armor = AppArmor::detect();
        let facts = NodeFacts { app_armor: app_armor.is_enabled(), ..machine::facts(&config, &allocatable) };
        let capabilities = machine::bounding_set();
        let launch = LaunchOptions {
            seccomp_default: config.seccomp_default,
            seccomp_root: config.seccomp_root.clone(),
            log_max_size: config.container_log_max_size,
            log_max_files: config.container_log_max_files,
            memory_capacity: memory,
            allocatable,
            cgroup_version: match cgroups.layout() {
                Layout::Unified => CgroupVersion::V2,
                _ => CgroupVersion::V1,
            },
            bounding_capabilities: capabilities,
            rlimits: LaunchOptions::default_rlimits(),
            masked_paths: machine::thermal_throttles(),
        };
        let parallel = match (config.serialize_image_pulls, config.max_parallel_image_pulls) {
            (true, _) => SERIAL,
            (false, limit) => limit.map_or(Semaphore::MAX_PERMITS, |limit| limit.max(1) as usize),
        };
        let objects = watch::Sender::default();
        let tokens =
            StandaloneTokens::new(&config.layout.root, &config.cluster_domain, &config.node_name, objects.subscribe());
        Ok(Shared {
            cgroups,
            images,
            network,
            binary,
            spare: SpareNamespaces::default(),
            host_ips,
            memory,
            swap,
            facts,
            launch,
            huge_page_sizes: machine::huge_pages().into_iter().map(|(size, _)| size).collect(),
            ids,
            handlers: Handlers::new(&config.handlers),
            app_armor,
            managers,
            pool: Pool::default(),
            events: Recorder::new(config.events.kept),
            tokens: Arc::new(tokens),
            objects,
            claims: Claims::new(config.layout.claims()),
            csi: Csi::default(),
            devices: Arc::new(Devices::new(config.layout.known_devices())),
            pulls: Semaphore::new(parallel),
            warned: Mutex::default(),
            classes: Mutex::default(),
            config,
        })
    }

    /// Pulls an image, as many at a time as configured; with the node's own credentials if none are given.
    pub async fn pull(&self, reference: &str, credentials: Option<Credentials>) -> Result<Pulled, ImageError> {
        let asked = Instant::now();
        // Closed never; an error would only mean that nobody counts.
        let _permit = self.pulls.acquire().await.ok();
        let begun = Instant::now();
        let image = self.images.pull(reference, credentials, None).await?.image;
        Ok(Pulled { image, took: begun.elapsed(), waited: asked.elapsed() })
    }

    /// Says something once in the life of the agent.
    pub fn warn_once(&self, warning: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.insert(warning.to_owned()) {
            tracing::warn!("{warning}");
        }
    }

    /// Removes what the agent set up for itself on a node without pods.
    pub fn tear_down(&self) {
        if let Err(error) = self.network.teardown_host() {
            tracing::warn!(%error, "remove the pod network");
        }
        if let Err(error) = self.cgroups.remove_tree() {
            tracing::warn!(%error, "remove the cgroups");
        }
    }

    /// Gives the classes of pods together what their pods ask for: weight and, where requested memory is kept, memory.
    pub fn set_classes(&self, pods: &[&Pod]) {
        let mut totals = ClassTotals::default();
        for spec in pods.iter().filter_map(|pod| pod.spec.as_ref()) {
            let requested = pod_requests(spec);
            let amount = |name: &str, of: fn(&Quantity) -> i64| {
                requested.get(name).and_then(|amount| u64::try_from(of(amount)).ok()).unwrap_or(0)
            };
            let memory = if self.config.reserve_memory { amount(MEMORY, Quantity::value) } else { 0 };
            match qos_class(spec) {
                QosClass::Guaranteed => totals.guaranteed_memory += memory,
                QosClass::Burstable => {
                    totals.burstable_milli += amount(CPU, Quantity::milli);
                    totals.burstable_memory += memory;
                }
                QosClass::BestEffort => {}
            }
        }
        let mut known = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != Some(totals)
            && (totals != ClassTotals::default() || known.is_some())
            && let Err(error) = self.cgroups.update_qos(&totals)
        {
            tracing::warn!(%error, "set what the classes of pods get together");
            return;
        }
        *known = Some(totals);
    }
}

fn image_config(config: &NodeConfig) -> ImageConfig {
    let registries = config.registries.iter().map(|registry| {
        let credentials = registry.username.clone().map(|username| {
            let password = registry.password_file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
            Credentials::Basic { username, password: password.unwrap_or_default().trim_end().to_owned() }
        });
        let settings = RegistryConfig {
            plain_http: registry.plain_http,
            ca_file: registry.ca_file.clone(),
            mirrors: registry.mirrors.iter().map(|url| Mirror { url: url.clone() }).collect(),
            credentials,
        };
        (registry.host.clone(), settings)
    });
    ImageConfig { registries: registries.collect(), ..ImageConfig::default() }
}
