//! What is known of a pod because it was seen: by a reply, a record on disk, or the kernel.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Container, ResourceRequirements, ResourceStatus},
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::resize::Allocation;

/// Everything observed of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedPod {
    /// The pod's directories exist.
    pub dirs: bool,
    /// Its place in the network; stays `Absent` with the host's network.
    pub network: Network,
    /// The volumes that are set up, by name.
    pub volumes: BTreeMap<String, Written>,
    /// By volume whose content comes from objects: what stands for the content it should have now. Compared with
    /// [`Written::content`].
    pub contents: BTreeMap<String, u64>,
    /// By container: the health of the devices it was given.
    pub devices: BTreeMap<String, Vec<ResourceStatus>>,
    /// Per volume made from an image: the image's id.
    pub volume_images: BTreeMap<String, String>,
    /// Per container: the attempt an image was resolved for, and the image's id.
    pub images: BTreeMap<String, ResolvedImage>,
    /// Per container: the attempt that was prepared last.
    pub prepared: BTreeMap<String, Prepared>,
    /// Per container: the attempt whose program was released last.
    pub released: BTreeMap<String, Prepared>,
    /// Per container: what its newest attempt was prepared with.
    pub launched: BTreeMap<String, Launched>,
    /// Per container: the attempt that was, or is being, stopped in order to be followed by another.
    pub restarts: BTreeMap<String, u32>,
    /// What the pod's own cgroup was sized for last; `None` when that is not known to differ from what is wanted.
    pub sized: Option<Allocation>,
    /// Its supervisor.
    pub sandbox: Sandbox,
    /// Generation of the newest sandbox, from 1; 0 before the first.
    pub generation: u32,
    /// Containers by name, each with its attempts, oldest first.
    pub containers: BTreeMap<String, Vec<Attempt>>,
    /// Per container with probes: what they have found of its newest attempt.
    pub probes: BTreeMap<String, Probed>,
    /// Per container with lifecycle hooks: those of its newest attempt that have ended.
    pub hooks: BTreeMap<String, Hooked>,
    /// cgroups, mounts or a network attachment may exist: they have to be torn down.
    pub leftovers: Leftovers,
    /// The record says why the pod has failed.
    pub verdict: bool,
    /// Nothing of the pod is left, its record included.
    pub forgotten: bool,
}

impl ObservedPod {
    /// The newest attempt of a container.
    pub fn latest(&self, container: &str) -> Option<&Attempt> {
        self.containers.get(container).and_then(|attempts| attempts.last())
    }

    /// Generation of the sandbox in which the next attempt will run: the present one, or the one still to be made.
    pub fn next_generation(&self) -> u32 {
        match self.sandbox {
            Sandbox::Running { .. } => self.generation,
            Sandbox::Absent | Sandbox::Lost => self.generation + 1,
        }
    }

    /// Whether the newest attempt of a container was seen running and not seen to end.
    pub fn is_running(&self, container: &str) -> bool {
        self.latest(container).is_some_and(|attempt| matches!(attempt.state, AttemptState::Running { .. }))
    }

    /// Whether that attempt was seen running and not seen to end.
    pub fn runs(&self, container: &str, number: u32) -> bool {
        self.running().any(|(name, attempt)| name == container && attempt.number == number)
    }

    /// The hooks of that attempt that have ended.
    pub fn hooked(&self, container: &str, attempt: u32) -> Option<&Hooked> {
        self.hooks.get(container).filter(|hooked| hooked.attempt == attempt)
    }

    /// Whether the postStart hook of the newest attempt has succeeded, if `container` has one: only then does it count as
    /// running.
    pub fn settled(&self, container: &Container) -> bool {
        let has_hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        let ended = self.latest(&container.name).and_then(|attempt| self.hooked(&container.name, attempt.number));
        !has_hook || ended.is_some_and(|hooked| hooked.post_start == Some(HookEnd::Succeeded))
    }

    /// Whether `container` counts as started: it runs, its postStart hook has succeeded if it has one, and so has its
    /// startup probe.
    pub fn started(&self, container: &Container) -> bool {
        self.settled(container)
            && self.runs_and(container, |probed| container.startup_probe.is_none() || probed.startup == Some(true))
    }

    /// Whether `container` is ready: it has started, and its readiness probe says so if it has one.
    pub fn ready(&self, container: &Container) -> bool {
        self.started(container)
            && self.runs_and(container, |probed| container.readiness_probe.is_none() || probed.readiness == Some(true))
    }

    fn runs_and(&self, container: &Container, holds: impl Fn(&Probed) -> bool) -> bool {
        let Some(attempt) = self.latest(&container.name) else { return false };
        let nothing = Probed::default();
        let probed = self.probed(&container.name, attempt.number);
        matches!(attempt.state, AttemptState::Running { .. }) && holds(probed.unwrap_or(&nothing))
    }

    /// What probes have found of this attempt, if anything.
    pub fn probed(&self, container: &str, attempt: u32) -> Option<&Probed> {
        self.probes.get(container).filter(|probed| probed.attempt == attempt)
    }

    /// Names of containers that run now.
    pub fn running(&self) -> impl Iterator<Item = (&str, &Attempt)> {
        self.containers.iter().filter_map(|(name, attempts)| {
            attempts
                .last()
                .filter(|attempt| matches!(attempt.state, AttemptState::Running { .. }))
                .map(|a| (name.as_str(), a))
        })
    }
}

/// What the probes of a container have found, thresholds applied. `None`: there is no such probe, or it has not been
/// decided yet; see [`ObservedPod::started`] and [`ObservedPod::ready`] for what that means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Attempt they were run against. Findings about an earlier one say nothing.
    pub attempt: u32,
    /// The startup probe has succeeded.
    pub startup: Option<bool>,
    /// The readiness probe's last verdict.
    pub readiness: Option<bool>,
    /// The liveness probe's last verdict.
    pub liveness: Option<bool>,
    /// What the probe that failed last said.
    pub message: String,
}

/// A volume that is set up, and what was written into it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Stands for its content (`api::content::version`); `None` for a volume without content of its own.
    pub content: Option<u64>,
    /// When it has to be written anew although nothing has changed: a token in it will be old.
    pub renew_at: Option<Timestamp>,
}

/// The hooks of one attempt that have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooked {
    /// Attempt.
    pub attempt: u32,
    /// How postStart ended.
    pub post_start: Option<HookEnd>,
    /// How preStop ended.
    pub pre_stop: Option<HookEnd>,
}

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookEnd {
    /// Well.
    Succeeded,
    /// Not well, and why. After postStart the container has to end; after preStop it goes on as if it had succeeded.
    Failed(String),
}

/// What a teardown still has to remove. Each flag is set before the effect it names is begun and cleared when
/// its removal was seen to succeed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// cgroups of the pod.
    pub cgroups: bool,
    /// Mounts and directories of its volumes.
    pub volumes: bool,
    /// Host-side link and nftables elements.
    pub network: bool,
}

/// A pod's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// No address is held.
    #[default]
    Absent,
    /// Addresses are held and recorded; the link is not there (yet, or any more).
    Leased(Vec<IpAddr>),
    /// The pod can be reached.
    Attached(Vec<IpAddr>),
}

impl Network {
    /// Addresses held.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Network::Absent => &[],
            Network::Leased(addresses) | Network::Attached(addresses) => addresses,
        }
    }
}

/// A pod's supervisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// There is none.
    #[default]
    Absent,
    /// It answers.
    Running {
        /// Process id on the host.
        pid: i32,
    },
    /// It died or cannot be reached: what it held has to be killed before another is made.
    Lost,
}

/// An image made ready for one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Attempt it was resolved for (imagePullPolicy Always resolves anew for each).
    pub attempt: u32,
    /// `sha256:…` of the image's configuration.
    pub id: String,
}

/// An attempt whose launch record is there, and the sandbox it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared {
    /// Attempt.
    pub attempt: u32,
    /// Generation of the sandbox it was prepared for.
    pub generation: u32,
    /// How often the pod had been begun anew.
    pub epoch: u32,
}

/// What an attempt was prepared with, as far as it may change while it runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Launched {
    /// Attempt.
    pub attempt: u32,
    /// Image as the pod named it.
    pub image: String,
    /// Requests and limits in force: those it was prepared with, or resized to since.
    pub resources: ResourceRequirements,
}

/// One attempt at a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Number, from 0.
    pub number: u32,
    /// Generation of the sandbox it belongs to.
    pub generation: u32,
    /// How often the pod had been begun anew before it (see [`super::policy::epoch`]).
    pub epoch: u32,
    /// Container id, 64 hex digits.
    pub id: String,
    /// Image id.
    pub image_id: String,
    /// What its status calls the image: `repository@digest`, or the id of one that has none.
    pub image_ref: String,
    /// Signal it is stopped with.
    pub stop_signal: i32,
    /// Who it runs as, once that is known.
    pub user: Option<Box<User>>,
    /// Where it is.
    pub state: AttemptState,
}

impl Attempt {
    /// It ended without a record.
    pub fn is_unknown(&self) -> bool {
        matches!(&self.state, AttemptState::Ended(ended) if ended.reason == Ended::UNKNOWN_REASON)
    }
}

/// Ids that the first process of an attempt was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Where an attempt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptState {
    /// Its process runs.
    Running {
        /// Process id on the host.
        pid: i32,
        /// When exec succeeded.
        started_at: Timestamp,
    },
    /// It ended and its record was read, or it is known that there will never be one.
    Ended(Ended),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// 0-255; [`Ended::UNKNOWN_CODE`] when it could not be learnt.
    pub exit_code: i32,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`, …
    pub reason: String,
    /// Termination message, or why it could not start.
    pub message: String,
    /// When exec succeeded, if it did.
    pub started_at: Option<Timestamp>,
    /// When it was reaped.
    pub finished_at: Timestamp,
}

impl Ended {
    /// What upstream reports for a container whose exit code is not known (never 0).
    pub const UNKNOWN_CODE: i32 = 137;

    /// Upstream's reason for it.
    pub const UNKNOWN_REASON: &str = "ContainerStatusUnknown";

    /// The record of an attempt that left none.
    pub fn unknown(started_at: Option<Timestamp>, noticed_at: Timestamp) -> Ended {
        Ended {
            exit_code: Ended::UNKNOWN_CODE,
            signal: None,
            reason: Ended::UNKNOWN_REASON.to_owned(),
            message:
                "The container could not be located when the pod was terminated: its supervisor left no exit record"
                    .to_owned(),
            started_at,
            finished_at: noticed_at,
        }
    }
}
