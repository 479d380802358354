//! The resolved configuration: no defaults are left to be filled in.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use berth_cni::NetworkConfig;
use k8s_openapi::api::core::v1::Taint;
use serde::Serialize;

use super::managers::ManagerConfig;
use crate::{api::resources::Resources, runtime::handler::HandlerConfig, store::layout::Layout};

/// Everything the agent runs with, resolved and checked.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Directories.
    pub layout: Layout,
    /// Parent of `kubepods` in every cgroup hierarchy, from its root (`/`).
    pub cgroup_root: PathBuf,
    /// Name of the node; part of static pods' names.
    pub node_name: String,
    /// Labels of the node beside those that every node has.
    pub node_labels: BTreeMap<String, String>,
    /// Taints of the node.
    pub taints: Vec<Taint>,
    /// Directory (or file) of manifests.
    pub pod_manifest_path: Option<PathBuf>,
    /// Where manifests are fetched from over HTTP.
    pub static_pod_url: Option<String>,
    /// Headers of that request.
    pub static_pod_url_headers: Vec<(String, String)>,
    /// How often the manifest directory is read although nothing was noticed.
    pub file_check_frequency: Duration,
    /// How often the URL is asked.
    pub http_check_frequency: Duration,
    /// Most pods at a time (the smaller of `maxPods` and `podsPerCore` times processors).
    pub max_pods: u32,
    /// pids.max of a pod; `None`: no limit.
    pub pod_pids_limit: Option<u64>,
    /// Enforce CPU limits by CFS quota.
    pub cpu_cfs_quota: bool,
    /// Its period.
    pub cpu_cfs_quota_period: Duration,
    /// What is kept for others than pods (systemReserved, kubeReserved, reservedSystemCPUs): amounts by name, `pid` among
    /// them.
    pub reserved: Resources,
    /// The CPU, memory and topology managers.
    pub managers: ManagerConfig,
    /// Limit the cgroup of all pods to what is not reserved.
    pub enforce_allocatable: bool,
    /// Burstable pods may swap in proportion to their requests (swapBehavior LimitedSwap); otherwise nobody may.
    pub limited_swap: bool,
    /// Do not start on a machine with swap.
    pub fail_swap_on: bool,
    /// Where between its request and its limit of memory a container is slowed down, 0 to 1; `None`: nowhere.
    pub memory_throttling_factor: Option<f64>,
    /// Keep the memory that pods ask for (memoryReservationPolicy TieredReservation).
    pub reserve_memory: bool,
    /// Rotate a log before it grows past this many bytes.
    pub container_log_max_size: u64,
    /// Log files kept of an attempt, the current one included.
    pub container_log_max_files: u32,
    /// DNS servers of pods with ClusterFirst.
    pub cluster_dns: Vec<IpAddr>,
    /// Search domain of the cluster; empty: none.
    pub cluster_domain: String,
    /// Resolver configuration of the host that pods inherit; empty: none.
    pub resolv_conf: PathBuf,
    /// Users and groups of a pod's user namespace, a multiple of 65536 (`userNamespaces.idsPerPod`).
    pub ids_per_pod: u32,
    /// Sysctls outside the safe list that pods may set; `net.core.*` style patterns as upstream.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Pods without a profile get RuntimeDefault instead of Unconfined.
    pub seccomp_default: bool,
    /// Where Localhost profiles are.
    pub seccomp_root: PathBuf,
    /// The OOM killer takes one process instead of the whole container.
    pub single_process_oom_kill: bool,
    /// Longest wait before a crashing container is started again.
    pub crash_loop_max: Duration,
    /// One pull at a time.
    pub serialize_image_pulls: bool,
    /// Most pulls at a time when they are not serialized; `None`: no limit.
    pub max_parallel_image_pulls: Option<u32>,
    /// Pulls per second; 0: no limit.
    pub registry_qps: u32,
    /// Pulls at once above that rate.
    pub registry_burst: u32,
    /// When images are removed.
    pub image_collection: ImageCollection,
    /// How registries are reached; one that is not listed is reached by https without credentials.
    pub registries: Vec<Registry>,
    /// Docker-style `config.json` with credentials for registries.
    pub registry_auth_file: Option<PathBuf>,
    /// RuntimeClass handlers beside the agent itself.
    pub handlers: Vec<HandlerConfig>,
    /// Where CDI specifications are, those of higher precedence last.
    pub cdi_directories: Vec<PathBuf>,
    /// Pod network.
    pub network: NetworkConfig,
    /// Events.
    pub events: EventLimits,
    /// Log of the agent.
    pub log: LogOptions,
    /// Refuse to run on cgroup v1 (upstream's default is true, ours is false: old nodes need an agent too).
    pub fail_cgroup_v1: bool,
    /// RLIMIT_NOFILE of the agent.
    pub max_open_files: u64,
    /// `oom_score_adj` of the agent.
    pub oom_score_adj: i32,
    /// `oom_score_adj` of the pods' supervisors.
    pub supervisor_oom_score_adj: i32,
}

/// When images that no pod uses are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageCollection {
    /// Begin when the file system is this full, percent.
    pub high_percent: u8,
    /// Go on until it is only this full, percent.
    pub low_percent: u8,
    /// Never an image younger than this.
    pub minimum_age: Duration,
    /// Always an image unused for longer than this; `None`: never for that reason.
    pub maximum_age: Option<Duration>,
}

/// How a registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// `registry.example:5000`, as in references.
    pub host: String,
    /// URLs that are tried first, in order.
    pub mirrors: Vec<String>,
    /// Plain HTTP instead of HTTPS; `None`: only on loopback addresses.
    pub plain_http: Option<bool>,
    /// A CA beside (not instead of) the system's.
    pub ca_file: Option<PathBuf>,
    /// Basic authentication.
    pub username: Option<String>,
    /// File with the password; read at each use, so that it can be changed.
    pub password_file: Option<PathBuf>,
}

/// Bounds of the event list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLimits {
    /// Events per second; 0: no limit.
    pub qps: u32,
    /// Events at once above that rate.
    pub burst: u32,
    /// Events kept in memory.
    pub kept: usize,
}

/// Log of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// How lines look.
    pub format: LogFormat,
    /// As in kubernetes: 0 is what operators want, 4 is debug, 6 is everything.
    pub verbosity: u8,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}
