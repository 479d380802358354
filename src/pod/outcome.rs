//! What came of an action, and how it changes what is known.

use std::net::IpAddr;

use super::{
    action::{Action, Hook},
    observed::{
        Attempt, AttemptState, HookEnd, Hooked, Launched, Network, ObservedPod, Prepared, ResolvedImage, Sandbox,
        Written,
    },
};

/// The observation an action that succeeded returns with.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// What was asked for is so.
    Done,
    /// Addresses are held and recorded.
    Leased(Vec<IpAddr>),
    /// The volume is set up, with this in it.
    Volume(Written),
    /// The image is present under this id.
    Image(String),
    /// The attempt is prepared, with this.
    Prepared(Launched),
    /// The supervisor answers.
    Sandbox {
        /// Process id on the host.
        pid: i32,
        /// Generation.
        generation: u32,
    },
    /// The attempt runs, or has ended already.
    Attempt(Attempt),
    /// The hook has ended.
    Hook(HookEnd),
}

impl ObservedPod {
    /// Before `action` is begun: what it may leave behind from now on.
    pub fn begin(&mut self, action: &Action) {
        match action {
            // The sandbox's /dev/shm is a mount among the pod's volumes.
            Action::CreateSandbox => {
                self.leftovers.cgroups = true;
                self.leftovers.volumes = true;
            }
            Action::PrepareContainer { .. } => self.leftovers.cgroups = true,
            Action::MountVolume(_) | Action::RefreshVolume(_) => self.leftovers.volumes = true,
            Action::AttachNetwork => self.leftovers.network = true,
            _ => {}
        }
    }

    /// After `action` has succeeded.
    pub fn apply(&mut self, action: &Action, outcome: Outcome) {
        match (action, outcome) {
            (Action::EnsureDirs, _) => self.dirs = true,
            (Action::RecordVerdict(_), _) => self.verdict = true,
            (Action::LeaseAddresses, Outcome::Leased(addresses)) => self.network = Network::Leased(addresses),
            (Action::MountVolume(name) | Action::RefreshVolume(name), Outcome::Volume(written)) => {
                self.volumes.insert(name.clone(), written);
            }
            (Action::MountVolume(name), Outcome::Image(id)) => {
                self.volume_images.insert(name.clone(), id);
                self.volumes.insert(name.clone(), Written::default());
            }
            (Action::MountVolume(name), _) => {
                self.volumes.insert(name.clone(), Written::default());
            }
            (Action::ResolveImage { container, attempt }, Outcome::Image(id)) => {
                self.images.insert(container.clone(), ResolvedImage { attempt: *attempt, id });
            }
            (Action::CreateSandbox, Outcome::Sandbox { pid, generation }) => {
                self.sandbox = Sandbox::Running { pid };
                self.generation = generation;
            }
            (Action::PrepareContainer { container, attempt, generation, epoch }, outcome) => {
                let prepared = Prepared { attempt: *attempt, generation: *generation, epoch: *epoch };
                self.prepared.insert(container.clone(), prepared);
                if let Outcome::Prepared(launched) = outcome {
                    self.launched.insert(container.clone(), launched);
                }
            }
            (Action::MarkRestart { container, attempt, .. }, _) => {
                self.restarts.insert(container.clone(), *attempt);
            }
            (Action::ReleaseContainer { container, attempt, generation, epoch }, _) => {
                let released = Prepared { attempt: *attempt, generation: *generation, epoch: *epoch };
                self.released.insert(container.clone(), released);
            }
            (Action::AttachNetwork, _) => self.network = Network::Attached(self.network.addresses().to_vec()),
            (Action::StartContainer { container, .. }, Outcome::Attempt(attempt)) => {
                self.record(container, attempt);
            }
            (Action::RunHook { container, attempt, hook }, Outcome::Hook(end)) => {
                self.hook_ended(container, *attempt, *hook, end);
            }
            (Action::RemoveAttempt { container, attempt }, _) => {
                if let Some(attempts) = self.containers.get_mut(container) {
                    attempts.retain(|kept| kept.number != *attempt);
                }
            }
            (Action::StopSandbox, _) => {
                self.sandbox = Sandbox::Absent;
                self.detach();
            }
            (Action::DetachNetwork, _) => {
                self.leftovers.network = false;
                self.detach();
            }
            (Action::RemoveCgroups, _) => self.leftovers.cgroups = false,
            (Action::UnmountVolumes, _) => {
                self.leftovers.volumes = false;
                self.volumes.clear();
                self.volume_images.clear();
            }
            (Action::ReleaseAddresses, _) => self.network = Network::Absent,
            (Action::ForgetPod, _) => self.forgotten = true,
            _ => {}
        }
    }

    /// Notes what was seen of an attempt, and says whether that was news. Nothing replaces an end that was already seen.
    pub fn record(&mut self, container: &str, mut attempt: Attempt) -> bool {
        let attempts = self.containers.entry(container.to_owned()).or_default();
        match attempts.iter_mut().find(|known| known.number == attempt.number) {
            Some(known) => {
                // Told once, when the program began.
                attempt.user = attempt.user.or_else(|| known.user.clone());
                let news = !matches!(known.state, AttemptState::Ended(_)) && *known != attempt;
                if news {
                    *known = attempt;
                }
                news
            }
            None => {
                attempts.push(attempt);
                attempts.sort_by_key(|attempt| attempt.number);
                true
            }
        }
    }

    /// Notes how a hook of an attempt ended.
    pub fn hook_ended(&mut self, container: &str, attempt: u32, hook: Hook, end: HookEnd) {
        let hooked = self.hooks.entry(container.to_owned()).or_default();
        if hooked.attempt > attempt {
            return; // of an attempt that nobody asks about any more
        }
        if hooked.attempt < attempt {
            *hooked = Hooked { attempt, ..Hooked::default() };
        }
        match hook {
            Hook::PostStart => hooked.post_start = Some(end),
            Hook::PreStop => hooked.pre_stop = Some(end),
        }
    }

    fn detach(&mut self) {
        if let Network::Attached(addresses) = &self.network {
            self.network = Network::Leased(addresses.clone());
        }
    }
}
