//! The verbs a plan is made of. Every one may be repeated: done twice it is Ok and changes nothing.

use std::collections::BTreeMap;

use super::{restart::RestartReason, verdict::Verdict};
/// A hook of a container's life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Beside the container's first moments: it does not count as running before this has succeeded.
    PostStart,
    /// Before the stop signal, within the grace period.
    PreStop,
}

impl Hook {
    /// In the words of the API.
    pub fn name(self) -> &'static str {
        match self {
            Hook::PostStart => "postStart",
            Hook::PreStop => "preStop",
        }
    }
}

/// One thing to do now. All actions of a plan may run at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Make the pod's directories.
    EnsureDirs,
    /// Make a changed pod durable in the ledger. Begun by the actor, which knows of the change; nothing is done by the
    /// new pod before.
    RecordPod,
    /// Write into the pod's record that it has failed and why.
    RecordVerdict(Verdict),
    /// Hold addresses, record them, and write the files under `etc`.
    LeaseAddresses,
    /// Set up one volume.
    MountVolume(String),
    /// Write the files of one volume anew: what they are made from has changed, or a token in it is old.
    RefreshVolume(String),
    /// Make a container's image present, by its pull policy.
    ResolveImage {
        /// Container.
        container: String,
        /// Attempt it is for.
        attempt: u32,
    },
    /// Make cgroups and start the supervisor.
    CreateSandbox,
    /// Connect the sandbox to the pod network.
    AttachNetwork,
    /// Make directories, cgroup and launch record of an attempt. Needs no sandbox yet.
    PrepareContainer {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
        /// Generation of the sandbox it will run in.
        generation: u32,
        /// How often the pod has been begun anew before it (see [`super::policy::epoch`]).
        epoch: u32,
    },
    /// Note durably that a running attempt is stopped in order to be followed by another, whatever the restart policy
    /// says of its end.
    MarkRestart {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
        /// Why.
        why: RestartReason,
    },
    /// Set an attempt up in the sandbox, and run its program once it is released.
    StartContainer {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
    },
    /// Let the program of an attempt run: its records are durable and the pod has its network.
    ReleaseContainer {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
        /// Generation of the sandbox it is in.
        generation: u32,
        /// As it was prepared.
        epoch: u32,
    },
    /// Bring the pod's cgroup, and those of running containers, to what the pod is allocated.
    ResizePod {
        /// The containers and their attempts.
        containers: BTreeMap<String, u32>,
    },
    /// Run a hook to its end. May be repeated: what has ended is not run again.
    RunHook {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
        /// Which.
        hook: Hook,
    },
    /// Give up a hook that is running, and kill what it runs in the container.
    AbandonHook {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
        /// Which.
        hook: Hook,
    },
    /// Send the stop signal.
    StopContainer {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
    },
    /// SIGKILL everything in the container's cgroup.
    KillContainer {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
    },
    /// Delete the records and the writable layer of an old attempt.
    RemoveAttempt {
        /// Container.
        container: String,
        /// Attempt.
        attempt: u32,
    },
    /// End the supervisor, and with it the namespaces.
    StopSandbox,
    /// Remove link and nftables elements.
    DetachNetwork,
    /// Remove the pod's cgroups, killing what is in them.
    RemoveCgroups,
    /// Unmount and remove the volumes.
    UnmountVolumes,
    /// Give the addresses back.
    ReleaseAddresses,
    /// Remove the logs, then the pod's directory, the record last.
    ForgetPod,
}

impl Action {
    /// Whether it builds up (and so must not be running when things are taken down).
    pub fn builds(&self) -> bool {
        matches!(
            self,
            Action::EnsureDirs
                | Action::RecordPod
                | Action::MarkRestart { .. }
                | Action::ResizePod { .. }
                | Action::RecordVerdict(_)
                | Action::LeaseAddresses
                | Action::MountVolume(_)
                | Action::RefreshVolume(_)
                | Action::CreateSandbox
                | Action::AttachNetwork
                | Action::PrepareContainer { .. }
                | Action::StartContainer { .. }
                | Action::ReleaseContainer { .. }
        )
    }

    /// Whether dropping it half-way is safe.
    pub fn may_be_cancelled(&self) -> bool {
        matches!(self, Action::ResolveImage { .. })
    }

    /// The container it is about.
    pub fn container(&self) -> Option<&str> {
        match self {
            Action::ResolveImage { container, .. }
            | Action::PrepareContainer { container, .. }
            | Action::MarkRestart { container, .. }
            | Action::StartContainer { container, .. }
            | Action::ReleaseContainer { container, .. }
            | Action::RunHook { container, .. }
            | Action::AbandonHook { container, .. }
            | Action::StopContainer { container, .. }
            | Action::KillContainer { container, .. }
            | Action::RemoveAttempt { container, .. } => Some(container),
            _ => None,
        }
    }

    /// Whether it is a step towards a running attempt of this container.
    pub fn builds_attempt_of(&self, container: &str) -> bool {
        let steps = matches!(
            self,
            Action::ResolveImage { .. } | Action::PrepareContainer { .. } | Action::StartContainer { .. }
        );
        steps && self.container() == Some(container)
    }

    /// Whether a failure of it is about the same thing as a failure of `other` (attempts aside).
    pub fn same_subject(&self, other: &Action) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && match (self, other) {
                (Action::MountVolume(a), Action::MountVolume(b))
                | (Action::RefreshVolume(a), Action::RefreshVolume(b)) => a == b,
                (Action::RunHook { hook: a, .. }, Action::RunHook { hook: b, .. })
                | (Action::AbandonHook { hook: a, .. }, Action::AbandonHook { hook: b, .. })
                    if a != b =>
                {
                    false
                }
                _ => self.container() == other.container(),
            }
    }
}
