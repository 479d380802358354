//! Where things are: every path that the agent owns is made here and nowhere else.

use std::path::{Path, PathBuf};

/// The directories the agent was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Survives a reboot: ledger, records, images, leases (`/var/lib/berth`).
    pub root: PathBuf,
    /// Gone after a reboot: lock, sockets (`/run/berth`).
    pub run: PathBuf,
    /// Container logs (`/var/log/pods`).
    pub log: PathBuf,
}

impl Layout {
    /// `<root>/pods`.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `<root>/images`.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// What happened to pods.
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// What pods refer to, as it was last in use.
    pub fn objects_file(&self) -> PathBuf {
        self.root.join("objects.json")
    }

    /// Which persistent volume belongs to which claim.
    pub fn claims(&self) -> PathBuf {
        self.root.join("claims.json")
    }

    /// Where plugins register: `<root>/plugins_registry`.
    pub fn plugins_registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// Sockets of plugins, and what storage drivers keep for all pods of the node: `<root>/plugins`.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// Everything of the control plane: its store, its keys, the administrator's kubeconfig.
    pub fn control(&self) -> PathBuf {
        self.root.join("control")
    }

    /// The socket of the local HTTP API.
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("berth.sock")
    }

    /// The SOCK_SEQPACKET socket over which exec and attach hand descriptors.
    pub fn stream_socket(&self) -> PathBuf {
        self.run.join("stream.sock")
    }

    /// Lock file of the one agent that may use these directories.
    pub fn lock(&self) -> PathBuf {
        self.root.join("agent.lock")
    }

    /// The paths of one pod.
    pub fn pod(&self, uid: &str, namespace: &str, name: &str) -> PodDirs {
        PodDirs {
            dir: self.pods().join(uid),
            run: self.run.join("pods").join(uid),
            log: self.log.join(format!("{namespace}_{name}_{uid}")),
        }
    }
}

/// The paths of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDirs {
    /// `<root>/pods/<uid>`.
    pub dir: PathBuf,
    /// `<run>/pods/<uid>`.
    pub run: PathBuf,
    /// `<log>/<namespace>_<name>_<uid>`.
    pub log: PathBuf,
}

impl PodDirs {
    /// The admitted pod, durable before anything is done for it.
    pub fn pod_file(&self) -> PathBuf {
        self.dir.join("pod.json")
    }

    /// `SandboxSpec`.
    pub fn sandbox_file(&self) -> PathBuf {
        self.dir.join("sandbox.json")
    }

    /// Address lease.
    pub fn network_file(&self) -> PathBuf {
        self.dir.join("network.json")
    }

    /// Which image a volume is made from.
    pub fn image_file(&self, volume: &str) -> PathBuf {
        self.images().join(format!("{volume}.json"))
    }

    /// Records of the images that volumes are made from.
    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// That the pod has a persistent volume, and the group it was given to.
    pub fn claim_file(&self, volume: &str) -> PathBuf {
        self.claims().join(format!("{volume}.json"))
    }

    /// Records of the persistent volumes that the pod has.
    pub fn claims(&self) -> PathBuf {
        self.dir.join("claims")
    }

    /// What storage drivers may have done for a volume of the pod.
    pub fn csi_file(&self, volume: &str) -> PathBuf {
        self.csi().join(format!("{volume}.json"))
    }

    /// Records of the volumes that storage drivers provide.
    pub fn csi(&self) -> PathBuf {
        self.dir.join("csi")
    }

    /// That a storage driver has published a volume, completely, since the machine started.
    pub fn published_file(&self, volume: &str) -> PathBuf {
        self.run.join("csi").join(format!("{volume}.json"))
    }

    /// Listening socket of the supervisor.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run.join("supervisor.sock")
    }

    /// Which process the supervisor is: `runtime::client::Identity`.
    pub fn supervisor_file(&self) -> PathBuf {
        self.run.join("supervisor.json")
    }

    /// What probes have found: by container, `pod::observed::Probed`.
    pub fn probes_file(&self) -> PathBuf {
        self.run.join("probes.json")
    }

    /// State of the OCI runtime that makes the pod's containers.
    pub fn runtime_state(&self) -> PathBuf {
        self.run.join("runtime")
    }

    /// What the supervisor had to say on standard error.
    pub fn supervisor_log(&self) -> PathBuf {
        self.run.join("supervisor.log")
    }

    /// `hosts`, `hostname` and `resolv.conf` bound into the containers.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// A volume, in the kubelet's layout: `volumes/kubernetes.io~empty-dir/<name>`.
    pub fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.volumes().join(plugin.replace('/', "~")).join(name)
    }

    /// The link to a volume that is a device, in the kubelet's layout: `volumeDevices/kubernetes.io~csi/<name>`.
    pub fn volume_device(&self, plugin: &str, name: &str) -> PathBuf {
        self.dir.join("volumeDevices").join(plugin.replace('/', "~")).join(name)
    }

    /// All volumes.
    pub fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    /// All containers.
    pub fn containers(&self) -> PathBuf {
        self.dir.join("containers")
    }

    /// One container, all attempts.
    pub fn container(&self, name: &str) -> PathBuf {
        self.containers().join(name)
    }

    /// One attempt: `launch.json`, `exit.json`, `termination-log`, `rootfs`, `upper`, `work`.
    pub fn attempt(&self, name: &str, attempt: u32) -> AttemptDirs {
        AttemptDirs { dir: self.container(name).join(attempt.to_string()) }
    }

    /// Log file of an attempt.
    pub fn log_file(&self, name: &str, attempt: u32) -> PathBuf {
        self.log.join(name).join(format!("{attempt}.log"))
    }
}

/// The paths of one attempt at a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptDirs {
    /// `<pod dir>/containers/<name>/<attempt>`.
    pub dir: PathBuf,
}

impl AttemptDirs {
    /// The attempt whose directory is `dir`.
    pub fn at(dir: &Path) -> AttemptDirs {
        AttemptDirs { dir: dir.to_owned() }
    }

    /// `LaunchSpec`.
    pub fn launch_file(&self) -> PathBuf {
        self.dir.join("launch.json")
    }

    /// `ExitRecord`.
    pub fn exit_file(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    /// Why the attempt was stopped in order to be followed by another; absent otherwise.
    pub fn restart_file(&self) -> PathBuf {
        self.dir.join("restart.json")
    }

    /// `HookRecord` of its postStart hook.
    pub fn post_start_file(&self) -> PathBuf {
        self.dir.join("post-start.json")
    }

    /// `HookRecord` of its preStop hook.
    pub fn pre_stop_file(&self) -> PathBuf {
        self.dir.join("pre-stop.json")
    }

    /// Bound to terminationMessagePath.
    pub fn termination_log(&self) -> PathBuf {
        self.dir.join("termination-log")
    }

    /// Where the root is mounted within the container's mount namespace.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Writable layer.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// OCI bundle, where a runtime of its own makes the container.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Overlay work directory.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }
}
