//! What the runtime, the cgroups and the network are told for a pod: joined from the pod, the node and what is held.

use std::{cell::RefCell, collections::BTreeMap, net::IpAddr, path::Path, sync::Arc, time::Duration};

use berth_cni::{PortMapping, Protocol};
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    jiff::Timestamp,
};
use oci_spec::runtime::LinuxSeccomp;

use super::{devices, env_file, execute::spec_of, host::ActionError, machine, shared::Shared};
use crate::{
    api::qos::QosClass,
    cgroup::{CgroupError, CpuSet, LeafLimits, PodLimits},
    image::{Image, ImageReference},
    network::{
        DnsConfig, NodeNames, PodFiles, PodHostname, read_host_resolv_conf, resolv_conf::RESOLVED_FILE, write_files,
    },
    pod::{Grants, happening::Happening},
    runtime::{
        config_error::ConfigError,
        container_ref::ContainerRef,
        devices::{Granted, VolumeDevice, device_access, volume_devices},
        env::EnvSources,
        handler::{
            Features,
            bundle::{self, BundleInput},
        },
        launch::{ImageFacts, LaunchInput, launch_spec},
        limits::{LimitOptions, leaf_limits, pod_limits},
        sandbox::{SandboxInput, sandbox_spec},
        seccomp,
        security::SeccompChoice,
    },
    store::layout::PodDirs,
    supervisor::spec::{CgroupPlacement, HandlerSpec, IdRange, LaunchSpec, SandboxSpec},
    volume::MountedVolume,
};

/// An attempt about to be launched.
pub struct Attempt<'a> {
    /// Which container.
    pub container: ContainerRef<'a>,
    /// Number, from 0.
    pub number: u32,
    /// Generation of the sandbox.
    pub generation: u32,
    /// How often the pod had been begun anew.
    pub epoch: u32,
    /// Its image.
    pub image: &'a Image,
    /// Addresses of the pod.
    pub pod_ips: &'a [IpAddr],
    /// Ids of the pod's user namespace.
    pub users: Option<IdRange>,
    /// Volumes, all set up.
    pub volumes: &'a BTreeMap<String, MountedVolume>,
    /// What the pod's containers have for themselves.
    pub grants: &'a Grants,
    /// The RuntimeClass handler that makes it, unless that is the agent.
    pub handler: Option<&'a str>,
}

/// What is written for an attempt.
pub struct Prepared {
    /// The launch record.
    pub spec: LaunchSpec,
    /// The OCI configuration, where a runtime makes the container.
    pub bundle: Option<serde_json::Value>,
}

impl From<ConfigError> for ActionError {
    fn from(error: ConfigError) -> ActionError {
        ActionError { reason: error.reason.to_string(), message: error.to_string() }
    }
}

impl Shared {
    fn limit_options(&self) -> LimitOptions {
        let config = &self.config;
        LimitOptions {
            cpu_quota: config.cpu_cfs_quota,
            cpu_period: u64::try_from(config.cpu_cfs_quota_period.as_micros()).unwrap_or(100_000),
            pod_pids: config.pod_pids_limit,
            single_process_oom_kill: config.single_process_oom_kill,
            huge_page_sizes: self.huge_page_sizes.clone(),
            limited_swap: config.limited_swap.then_some((self.memory, self.swap)),
            throttling: config.memory_throttling_factor,
            reserve_memory: config.reserve_memory,
            allocatable_memory: u64::try_from(self.launch.allocatable.memory).unwrap_or(0),
            page_size: machine::page_size(),
        }
    }

    /// Limits of a pod as a whole, whose containers have `grants` for themselves.
    pub fn pod_limits(&self, spec: &PodSpec, grants: &Grants) -> PodLimits {
        pod_limits(spec, &self.limit_options().without_quota(!grants.cpus().is_empty()))
    }

    /// Limits of a container of `pod`, whose containers have `grants` for themselves. Its cpuset is left as it is.
    pub fn leaf_limits(&self, pod: &Pod, container: ContainerRef<'_>, grants: &Grants) -> LeafLimits {
        let exclusive = grants.of(container.name()).is_some_and(|grant| !grant.cpus.is_empty());
        leaf_limits(spec_of(pod), container, &self.limit_options().without_quota(exclusive))
    }

    /// Makes the cgroup of a container that is about to be launched: on its own processors, or on the shared pool, which it
    /// follows from then on.
    fn ensure_leaf(
        &self,
        pod: &Pod,
        qos: QosClass,
        id: &str,
        attempt: &Attempt<'_>,
        mut limits: LeafLimits,
    ) -> Result<CgroupPlacement, CgroupError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let own = attempt.grants.of(attempt.container.name());
        let cpus = own.map(|grant| grant.cpus.to_string()).filter(|cpus| !cpus.is_empty());
        let mems = own.map(|grant| grant.memory_nodes().to_string()).unwrap_or_default();
        loop {
            let pool = self.pool.now();
            let shared = pool.cpus.as_ref().map(ToString::to_string);
            let confined = cpus.is_some() || shared.is_some() || !mems.is_empty();
            let on = cpus.clone().or(shared).unwrap_or_default();
            limits.cpuset = confined.then(|| CpuSet { cpus: on, mems: mems.clone() });
            let made = match self.cgroups.ensure_leaf(qos, uid, id, &limits) {
                // The sandbox, whose making includes the pod's cgroup, is being made at the same time.
                Err(error) if error.is_absent() => {
                    self.cgroups.ensure_pod(qos, uid, &self.pod_limits(spec_of(pod), attempt.grants))?;
                    self.cgroups.ensure_leaf(qos, uid, id, &limits)?
                }
                made => made?,
            };
            if cpus.is_some() || pool.cpus.is_none() {
                return Ok(made);
            }
            self.pool.join(qos, uid, id);
            // Changed before it had joined: written again.
            if self.pool.now().version == pool.version {
                return Ok(made);
            }
        }
    }

    /// The pod's sandbox.
    pub fn sandbox_spec(
        &self,
        pod: &Pod,
        generation: u32,
        cgroup: CgroupPlacement,
        users: Option<IdRange>,
    ) -> Result<SandboxSpec, ActionError> {
        let names = PodHostname::of(pod, &self.config.cluster_domain)
            .map_err(|error| ActionError::new("FailedCreatePodSandBox", &error))?;
        Ok(sandbox_spec(SandboxInput {
            pod,
            generation,
            hostname: &names.nodename,
            domainname: "",
            cgroup,
            users,
            allowed_unsafe_sysctls: &self.config.allowed_unsafe_sysctls,
        })?)
    }

    /// One attempt. Its cgroup is made here, because the record has to say where it is.
    pub fn launch_spec(
        &self,
        pod: &Pod,
        dirs: &PodDirs,
        qos: QosClass,
        attempt: &Attempt<'_>,
    ) -> Result<Prepared, ActionError> {
        let names = PodHostname::of(pod, &self.config.cluster_domain)
            .map_err(|error| ActionError::new("CreateContainerConfigError", &error))?;
        let image = attempt.image;
        let facts = ImageFacts {
            id: image.id.clone(),
            reference: image_reference(image, attempt.container.image()),
            user: image.config.user.clone(),
            env: image.config.env.clone(),
            entrypoint: image.config.entrypoint.clone(),
            cmd: image.config.cmd.clone(),
            working_dir: image.config.working_dir.clone(),
            stop_signal: image.config.stop_signal.clone(),
            layers: image.layers.clone(),
        };
        let objects = self.objects.borrow().clone();
        let read_file = |volume: &str, path: &Path| match attempt.volumes.get(volume) {
            Some(volume) => env_file::read(&volume.host_path, path).map_err(|error| error.to_string()),
            None => Err("the volume is not set up".to_owned()),
        };
        let granted = match attempt.grants.of(attempt.container.name()).filter(|grant| !grant.artifacts.is_empty()) {
            Some(grant) => devices::granted(grant, &self.config.cdi_directories, owner(pod, attempt.container))?,
            None => Granted::default(),
        };
        // A runtime makes the filter itself, of the profile.
        let profile = RefCell::new(None);
        let keep_profile = |choice: &SeccompChoice, capabilities: u64| {
            *profile.borrow_mut() = seccomp_profile(choice, capabilities)?;
            Ok(Vec::new())
        };
        let mut spec = launch_spec(&LaunchInput {
            pod,
            container: attempt.container,
            attempt: attempt.number,
            generation: attempt.generation,
            epoch: attempt.epoch,
            image: &facts,
            hostname: &names.nodename,
            pod_ips: attempt.pod_ips,
            host_ips: &self.host_ips,
            node_name: &self.config.node_name,
            dirs,
            env_sources: EnvSources { objects: &objects, read_file: &read_file },
            volumes: attempt.volumes,
            granted: &granted,
            cgroup: CgroupPlacement::default(),
            users: attempt.users,
            app_armor: &|profile| Ok(self.app_armor.ensure(profile)?),
            options: &self.launch,
            seccomp: if attempt.handler.is_some() { &keep_profile } else { &seccomp_filter },
        })?;
        let mut limits = self.leaf_limits(pod, attempt.container, attempt.grants);
        let volumes = volume_devices(attempt.container, attempt.volumes)?;
        let rules = volumes.iter().map(VolumeDevice::rule).chain(granted.rules);
        limits.devices = device_access(limits.devices, rules);
        let placement = self.ensure_leaf(pod, qos, &spec.id, attempt, limits.clone());
        spec.cgroup = placement.map_err(|error| ActionError::new("CreateContainerError", &error))?;
        let Some(handler) = attempt.handler else { return Ok(Prepared { spec, bundle: None }) };
        let features = self.hand_over(&mut spec, handler, dirs)?;
        let (profile, version) = (profile.into_inner(), self.launch.cgroup_version);
        features.check(handler, attempt.container, (&spec, profile.is_some()), version)?;
        // The shared pool is not in it: its cgroup may have another one by the time it is made.
        let own = attempt.grants.of(attempt.container.name()).filter(|grant| !grant.cpus.is_empty());
        limits.cpuset =
            own.map(|grant| CpuSet { cpus: grant.cpus.to_string(), mems: grant.memory_nodes().to_string() });
        let bundle = bundle::config(&BundleInput {
            pod,
            spec: &spec,
            seccomp: profile.as_ref(),
            limits: &limits,
            cgroup: &self.cgroups.leaf_path(qos, pod.metadata.uid.as_deref().unwrap_or_default(), &spec.id),
            version,
            features: &features,
        })?;
        Ok(Prepared { spec, bundle: Some(bundle) })
    }

    /// Leaves a container to the runtime of a handler, and says what that can do.
    fn hand_over(&self, spec: &mut LaunchSpec, name: &str, dirs: &PodDirs) -> Result<Arc<Features>, ActionError> {
        const REASON: &str = "CreateContainerError";
        let config = self.handlers.config(name).ok_or_else(|| ActionError {
            reason: REASON.to_owned(),
            message: format!("RuntimeHandler {name:?} not supported: no runtime for {name:?} is configured any more"),
        })?;
        spec.handler = Some(Box::new(HandlerSpec {
            name: name.to_owned(),
            program: config.path.clone(),
            arguments: config.arguments.clone(),
            state: dirs.runtime_state(),
            bundle: dirs.attempt(&spec.container, spec.attempt).bundle(),
            time_limit: u64::try_from(config.timeout.as_millis()).unwrap_or(u64::MAX),
        }));
        self.handlers.features(name).map_err(|error| {
            let error = ActionError::new(REASON, &error);
            ActionError { message: format!("runtime handler {name:?}: {}", error.message), ..error }
        })
    }

    /// The limits of a container as its runtime is told of them when they change.
    pub fn changed_resources(&self, limits: &LeafLimits) -> serde_json::Value {
        bundle::changed_resources(limits, self.launch.cgroup_version)
    }
}

/// User and group of a container as far as the pod names them by number.
fn owner(pod: &Pod, container: ContainerRef<'_>) -> (Option<u32>, Option<u32>) {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context();
    let user = own.and_then(|own| own.run_as_user).or_else(|| of_pod?.run_as_user);
    let group = own.and_then(|own| own.run_as_group).or_else(|| of_pod?.run_as_group);
    let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
    (id(user), id(group))
}

/// What a status calls an image, as with containerd: the digest it is known by in a repository, that of the pod if there
/// are several, else its id.
fn image_reference(image: &Image, written: &str) -> String {
    let repository = ImageReference::parse(written).ok().map(|reference| reference.name());
    let of_it = |digest: &&String| digest.split_once('@').map(|(name, _)| name) == repository.as_deref();
    let digest = image.repo_digests.iter().find(of_it).or(image.repo_digests.first());
    digest.unwrap_or(&image.id).clone()
}

/// Host ports of a pod; a pod on the host's network has none to map.
pub fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    if spec.host_network == Some(true) {
        return Vec::new();
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mapping = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        Some(PortMapping {
            host_ip: port.host_ip.as_deref().filter(|ip| !ip.is_empty()).and_then(|ip| ip.parse().ok()),
            host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
            container_port: u16::try_from(port.container_port).ok()?,
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
        })
    };
    ports.filter_map(mapping).collect()
}

/// How long killing everything in a cgroup may take before it is said to have failed and tried again later.
pub const KILL: Duration = Duration::from_secs(10);

impl Shared {
    /// Writes `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod. The node's own files are read anew each
    /// time: they may have changed, and it costs microseconds.
    pub fn write_etc(&self, pod: &Pod, dirs: &PodDirs, addresses: &[IpAddr]) -> Result<(), ActionError> {
        let config = &self.config;
        let host_resolv_conf = match config.resolv_conf.as_os_str().is_empty() {
            true => None,
            false => match read_host_resolv_conf(&config.resolv_conf, Path::new(RESOLVED_FILE)) {
                Ok(text) => Some(text),
                Err(error) => {
                    self.warn_once(&ActionError::new("", &error).message);
                    Some(String::new())
                }
            },
        };
        let node = NodeNames {
            dns: DnsConfig {
                cluster_dns: config.cluster_dns.iter().map(ToString::to_string).collect(),
                cluster_domain: config.cluster_domain.clone(),
                host_resolv_conf,
                node_addresses: self.host_ips.clone(),
            },
            // A host without the file has nothing to pass on.
            hosts_file: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            hostname: config.node_name.clone(),
        };
        let files = PodFiles::generate(pod, &node, addresses)
            .map_err(|error| ActionError::new("FailedCreatePodSandBox", &error))?;
        for warning in &files.warnings {
            match warning.reason {
                // About the node, not the pod.
                "MissingClusterDNS" => {
                    self.warn_once("no cluster DNS is configured; pods with ClusterFirst get Default")
                }
                reason => {
                    let happening = Happening::warning(None, reason, warning.message.clone());
                    self.events.happened(pod, happening, Timestamp::now());
                }
            }
        }
        write_files(dirs, &files).map_err(|error| ActionError::new("FailedCreatePodSandBox", &error))
    }
}

/// The profile itself, for a runtime.
fn seccomp_profile(
    choice: &SeccompChoice,
    capabilities: u64,
) -> Result<Option<LinuxSeccomp>, Box<dyn std::error::Error + Send + Sync>> {
    match choice {
        SeccompChoice::Unconfined => Ok(None),
        SeccompChoice::RuntimeDefault => Ok(Some(seccomp::default_profile(capabilities))),
        SeccompChoice::Localhost(path) => Ok(Some(seccomp::localhost_profile(path, capabilities)?)),
    }
}

/// The filter of a profile for a container with these capabilities.
fn seccomp_filter(
    choice: &SeccompChoice,
    capabilities: u64,
) -> Result<Vec<u64>, Box<dyn std::error::Error + Send + Sync>> {
    match choice {
        SeccompChoice::Unconfined => Ok(Vec::new()),
        SeccompChoice::RuntimeDefault => Ok(seccomp::runtime_default(capabilities).to_vec()),
        SeccompChoice::Localhost(path) => Ok(seccomp::localhost(path, capabilities)?),
    }
}
