//! What all pods of the node share: the stores, the network, the cgroups, the configuration.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use berth_cni::Network;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{
    claims::Claims,
    execute::Host,
    host::{PodEvent, PodHost},
    machine,
    manager::Hosts,
    record::PodRecord,
    run::StartError,
};
use crate::{
    api::{
        objects::Objects,
        qos::{QosClass, qos_class},
        resources::{CPU, Resources, pod_requests},
        unsupported::{Consequence, unsupported},
    },
    cgroup::{Cgroups, Layout},
    config::NodeConfig,
    image::{Credentials, Image, ImageConfig, ImageError, ImageStore, Mirror, RegistryConfig},
    obs::events::{Recorder, Severity},
    pod::{
        Rejection,
        admission::{self, NodeFacts},
    },
    runtime::{
        downward::Allocatable,
        launch::{CgroupVersion, LaunchOptions},
        spawn::SealedBinary,
    },
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
    /// Addresses of the node, the first one primary.
    pub host_ips: Vec<IpAddr>,
    /// Bytes of memory of the machine.
    pub memory: u64,
    /// What admission knows of the node.
    pub facts: NodeFacts,
    /// What is the same for all containers.
    pub launch: LaunchOptions,
    /// Sizes of the huge pages there are, bytes.
    pub huge_page_sizes: Vec<u64>,
    /// What happens to pods.
    pub events: Recorder,
    /// Which persistent volume belongs to which claim.
    pub claims: Claims,
    /// The objects pods refer to; the sending half fills it.
    pub objects: watch::Sender<Arc<Objects>>,
    /// Pulls that may go on at once.
    pulls: Semaphore,
    /// What has been said already.
    warned: Mutex<HashSet<String>>,
    /// Sum of the requests of Burstable pods that was set last.
    burstable: Mutex<Option<u64>>,
}

/// Makes hands for pods.
pub struct RealHosts(pub Arc<Shared>);

impl Hosts for RealHosts {
    fn host(&self, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Arc<dyn PodHost> {
        Arc::new(Host::new(self.0.clone(), record, events))
    }

    fn admit(&self, pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
        let refused: Vec<_> =
            unsupported(pod).into_iter().filter(|issue| issue.consequence == Consequence::Refused).collect();
        admission::admit(pod, others, &self.0.facts, &refused)
    }

    fn changed(&self, pods: &[&Pod]) {
        self.0.set_burstable(pods);
    }

    fn allocatable(&self) -> Resources {
        self.0.facts.allocatable.clone()
    }

    fn event(&self, pod: &Pod, severity: Severity, reason: &str, message: String) {
        self.0.events.record(pod, None, severity, reason, message, Timestamp::now());
    }
}

/// Pulls at a time with serializeImagePulls.
const SERIAL: usize = 1;

impl Shared {
    /// Opens the stores and looks at the machine; changes nothing of it.
    pub async fn open(config: NodeConfig) -> Result<Shared, StartError> {
        let cgroups = Cgroups::detect(&config.cgroup_root).map_err(StartError::Cgroups)?;
        if config.fail_cgroup_v1 && cgroups.layout() != Layout::Unified {
            return Err(StartError::CgroupV1);
        }
        let images =
            ImageStore::open(&config.layout.images(), image_config(&config)).await.map_err(StartError::Images)?;
        let network =
            Network::new(config.network.clone(), &config.layout.run.join("network")).map_err(StartError::Network)?;
        let binary = SealedBinary::load().map_err(StartError::Binary)?;
        let host_ips = machine::addresses(&config.network.bridge);
        let memory = machine::memory();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let allocatable = Allocatable {
            cpu_milli: i64::try_from(processors * 1000).unwrap_or(i64::MAX),
            memory: i64::try_from(memory).unwrap_or(i64::MAX),
            ephemeral_storage: machine::file_system_size(&config.layout.root),
        };
        let facts = machine::facts(&config, &allocatable);
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
        Ok(Shared {
            cgroups,
            images,
            network,
            binary,
            host_ips,
            memory,
            facts,
            launch,
            huge_page_sizes: machine::huge_pages().into_iter().map(|(size, _)| size).collect(),
            events: Recorder::default(),
            claims: Claims::new(config.layout.claims()),
            objects: watch::Sender::default(),
            pulls: Semaphore::new(parallel),
            warned: Mutex::default(),
            burstable: Mutex::default(),
            config,
        })
    }

    /// Pulls an image, as many at a time as configured.
    pub async fn pull(&self, reference: &str) -> Result<Arc<Image>, ImageError> {
        // Closed never; an error would only mean that nobody counts.
        let _permit = self.pulls.acquire().await.ok();
        Ok(self.images.pull(reference, None, None).await?.image)
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

    /// Gives Burstable pods together the weight of their requests.
    pub fn set_burstable(&self, pods: &[&Pod]) {
        let burstable =
            pods.iter().filter_map(|pod| pod.spec.as_ref()).filter(|spec| qos_class(spec) == QosClass::Burstable);
        let milli: u64 = burstable
            .filter_map(|spec| pod_requests(spec).get(CPU).and_then(|cpu| u64::try_from(cpu.milli()).ok()))
            .sum();
        let mut known = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != Some(milli)
            && (milli > 0 || known.is_some())
            && let Err(error) = self.cgroups.update_qos(milli)
        {
            tracing::warn!(%error, "set the weight of Burstable pods");
            return;
        }
        *known = Some(milli);
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
