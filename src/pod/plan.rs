//! The decision: what is to be done for a pod now, what its status is, and when to look again.

mod stopping;

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodStatus},
    jiff::Timestamp,
};

use super::{
    action::{Action, Hook},
    backoff::BackoffPolicy,
    lifecycle::{self, Kind, Next, Step},
    memory::Memory,
    observed::{Network, ObservedPod, Prepared, Sandbox, Written},
    policy,
    resize::{self, How},
    restart, status,
};

/// What is to happen now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What may be done now, all of it at once; never something under way already.
    pub actions: Vec<Action>,
    /// The pod's status.
    pub status: PodStatus,
    /// When to plan again although nothing has happened.
    pub wake_at: Option<Timestamp>,
    /// All containers are being stopped from now on, for [`Memory::down_since`].
    pub going_down: bool,
}

/// What a plan needs to know of the node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Addresses of the node, the first one primary.
    pub host_ips: Vec<IpAddr>,
    /// Restart delays.
    pub crash_loop: BackoffPolicy,
}

struct Planner<'a> {
    pod: &'a Pod,
    observed: &'a ObservedPod,
    memory: &'a Memory,
    now: Timestamp,
    actions: Vec<Action>,
    wake_at: Option<Timestamp>,
    going_down: bool,
}

/// Decides. Same arguments, same plan.
pub fn plan(pod: &Pod, observed: &ObservedPod, memory: &Memory, node: &NodeView, now: Timestamp) -> Plan {
    let mut planner = Planner { pod, observed, memory, now, actions: Vec::new(), wake_at: None, going_down: false };
    let steps = lifecycle::next_steps(pod, observed, memory, &node.crash_loop, now);
    if !observed.forgotten {
        planner.abandon_orphans();
        let phase = lifecycle::phase(pod, observed, memory, now);
        if memory.termination.is_some() || phase.is_terminal() || lifecycle::complete(&steps) {
            planner.go_down();
        } else {
            planner.go_up(&steps);
        }
    }
    let status = status::status(pod, observed, memory, node, &steps, now);
    let Planner { actions, wake_at, going_down, .. } = planner;
    Plan { actions, status, wake_at, going_down }
}

impl Planner<'_> {
    /// Adds an action unless it is under way or has to wait after a failure.
    fn act(&mut self, action: Action) {
        if self.memory.in_flight.contains(&action) {
            return;
        }
        match self.memory.retry_at(&action, self.now) {
            Some(at) => self.wake(at),
            None => self.actions.push(action),
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn uses_host_network(&self) -> bool {
        self.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
    }

    fn go_up(&mut self, steps: &[Step<'_>]) {
        if let Some(deadline) = lifecycle::deadline(self.pod, self.memory) {
            self.wake(deadline);
        }
        if self.observed.sandbox == Sandbox::Lost {
            // Whatever the supervisor held is killed before anything is built on the same names.
            self.act(Action::StopSandbox);
            return;
        }
        if !self.observed.dirs {
            self.act(Action::EnsureDirs);
            return;
        }
        if self.observed.sandbox == Sandbox::Absent {
            // The link of a lost sandbox goes before a new one comes under the same name.
            self.act(if self.observed.leftovers.network { Action::DetachNetwork } else { Action::CreateSandbox });
        }
        let volumes = self.pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for volume in volumes {
            match self.observed.volumes.get(&volume.name) {
                None => self.act(Action::MountVolume(volume.name.clone())),
                Some(written) => self.refresh(&volume.name, written),
            }
        }
        let sandbox = matches!(self.observed.sandbox, Sandbox::Running { .. });
        let host_network = self.uses_host_network();
        match &self.observed.network {
            Network::Absent => self.act(Action::LeaseAddresses),
            Network::Leased(_) if sandbox && !host_network => self.act(Action::AttachNetwork),
            _ => {}
        }
        let network = matches!(self.observed.network, Network::Attached(_))
            || host_network && self.observed.network != Network::Absent;
        let volumes = volumes.iter().all(|volume| self.observed.volumes.contains_key(&volume.name));
        // What the launch record says is known before the sandbox is there, so that the two are made side by side.
        let preparable = volumes && self.observed.network != Network::Absent;
        self.resize();
        self.end_outlived();
        let mut held = false;
        for Step { kind, container, next } in steps {
            if *next == Next::Keep {
                self.attend(container);
            }
            if let Next::Start(attempt) = next {
                let held = held && *kind == Kind::Main;
                self.start(&container.name, *attempt, preparable, network, held);
            }
            if let Next::StartAt(_, at) = next {
                self.wake(*at);
            }
            held |= *kind == Kind::Main && self.holds_back(container, *next);
        }
        self.remove_old_attempts();
    }

    /// What a running container still needs: its postStart hook, or its end.
    fn attend(&mut self, container: &Container) {
        let Some(attempt) = self.observed.latest(&container.name) else { return };
        if self.is_outlived(&container.name) {
            return;
        }
        if let Some(ending) = lifecycle::must_end(self.pod, self.observed, container) {
            self.stop(&container.name, attempt.number, ending.grace, true);
        } else if !self.restart_if_changed(container) && !self.observed.settled(container) {
            let hook = Hook::PostStart;
            self.act(Action::RunHook { container: container.name.clone(), attempt: attempt.number, hook });
        }
    }

    /// Whether a main container keeps those after it from starting: upstream starts them one after the other, each when the
    /// postStart hook of the one before has ended. One that cannot be started holds nobody back.
    fn holds_back(&self, container: &Container, next: Next) -> bool {
        let has_hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
        has_hook
            && match next {
                Next::Start(_) => self.memory.start_failure(&container.name).is_none(),
                Next::Keep => {
                    let attempt = self.observed.latest(&container.name).map(|attempt| attempt.number);
                    let hooked = attempt.and_then(|attempt| self.observed.hooked(&container.name, attempt));
                    hooked.is_none_or(|hooked| hooked.post_start.is_none())
                }
                Next::StartAt(..) | Next::Done | Next::Wait => false,
            }
    }

    /// Writes a volume anew whose content is not what it should be by now. Its containers go on with what is there.
    fn refresh(&mut self, volume: &str, written: &Written) {
        let wanted = self.observed.contents.get(volume).copied();
        let outdated = wanted.is_some() && wanted != written.content;
        match written.renew_at {
            _ if outdated => self.act(Action::RefreshVolume(volume.to_owned())),
            Some(at) if at <= self.now => self.act(Action::RefreshVolume(volume.to_owned())),
            Some(at) => self.wake(at),
            None => {}
        }
    }

    /// The next step towards a running attempt. Its process is set up while the network still is, and held until then.
    fn start(&mut self, container: &str, attempt: u32, preparable: bool, network: bool, held: bool) {
        let name = container.to_owned();
        let generation = self.observed.next_generation();
        let epoch = policy::epoch(self.pod, self.observed);
        let prepared = Prepared { attempt, generation, epoch };
        let start = Action::StartContainer { container: name.clone(), attempt };
        // Nothing is prepared anew under what is being started, or prepared.
        let starting = self.memory.in_flight.contains(&start);
        let preparing = self.memory.in_flight.iter().any(
            |action| matches!(action, Action::PrepareContainer { container: preparing, .. } if preparing == container),
        );
        if !starting && self.observed.images.get(container).is_none_or(|image| image.attempt != attempt) {
            self.act(Action::ResolveImage { container: name, attempt });
        } else if !starting && self.observed.prepared.get(container) != Some(&prepared) {
            if preparable && !preparing && self.has_its_size() {
                self.act(Action::PrepareContainer { container: name, attempt, generation, epoch });
            }
        } else if matches!(self.observed.sandbox, Sandbox::Running { .. }) && !held {
            self.act(start);
            if network && self.observed.released.get(container) != Some(&prepared) {
                self.act(Action::ReleaseContainer { container: name, attempt, generation, epoch });
            }
        }
    }

    /// Stops a running container that its pod has outgrown; what ends this way is started again. True when it has to end.
    fn restart_if_changed(&mut self, container: &Container) -> bool {
        let observed = self.observed;
        let Some(launched) = observed.launched(&container.name) else { return false };
        let (name, attempt) = (container.name.clone(), launched.attempt);
        if observed.restarting(&name, attempt) {
            self.stop(&name, attempt, lifecycle::grace(self.pod), true);
            return true;
        }
        if lifecycle::restarts_when_changed(self.pod, container)
            && let Some(why) = restart::needed(container, launched)
        {
            self.act(Action::MarkRestart { container: name, attempt, why });
            return true;
        }
        false
    }

    /// Brings cgroups to a changed allocation, once the containers that have to start anew with theirs have ended.
    fn resize(&mut self) {
        if !matches!(self.observed.sandbox, Sandbox::Running { .. }) {
            return; // it will be made with its new size
        }
        let sized = self.observed.is_sized(self.pod);
        let mut containers = BTreeMap::new();
        for container in lifecycle::resizable(self.pod) {
            let Some(launched) = self.observed.launched(&container.name) else { continue };
            if !self.observed.runs(&container.name, launched.attempt) {
                continue;
            }
            let restarting = self.observed.restarting(&container.name, launched.attempt);
            match resize::how(container, &launched.resources) {
                None if sized => {}
                Some(How::Restart) => return,
                Some(How::InPlace) if restarting => return,
                // Who has no limit of its own has the pod's, which may have changed.
                None | Some(How::InPlace) => {
                    containers.insert(container.name.clone(), launched.attempt);
                }
            }
        }
        let under_way = self.memory.in_flight.iter().any(|action| matches!(action, Action::ResizePod { .. }));
        if !under_way && (!containers.is_empty() || !sized) {
            self.act(Action::ResizePod { containers });
        }
    }

    /// Whether the pod's cgroup has room for what is started in it: it has been resized, or that has failed.
    fn has_its_size(&self) -> bool {
        !matches!(self.observed.sandbox, Sandbox::Running { .. })
            || self.observed.is_sized(self.pod)
            || self.memory.failure_of(&Action::ResizePod { containers: BTreeMap::new() }).is_some()
    }

    /// The latest attempt and the one before it stay (for `lastState` and the previous log).
    fn remove_old_attempts(&mut self) {
        for (container, attempts) in &self.observed.containers {
            for attempt in attempts.iter().rev().skip(2) {
                self.act(Action::RemoveAttempt { container: container.clone(), attempt: attempt.number });
            }
        }
    }

    fn go_down(&mut self) {
        if self.memory.in_flight.iter().any(Action::builds) {
            self.end_starts();
            return; // its end wakes us; taking down what is being built would race with it
        }
        if self.record_verdict() {
            return;
        }
        self.going_down = true;
        if self.stop_containers() {
            return;
        }
        if self.observed.sandbox != Sandbox::Absent {
            self.act(Action::StopSandbox);
            return;
        }
        let leftovers = self.observed.leftovers;
        if leftovers.network {
            self.act(Action::DetachNetwork);
        }
        if leftovers.cgroups {
            self.act(Action::RemoveCgroups);
        }
        if leftovers.volumes {
            self.act(Action::UnmountVolumes);
        }
        if leftovers.network || leftovers.cgroups || leftovers.volumes {
            return;
        }
        if self.observed.network != Network::Absent {
            // Only now: an address is not given to another pod while a link may still answer for it.
            self.act(Action::ReleaseAddresses);
            return;
        }
        // A finished pod keeps its record, its logs and its exit codes until it is no longer wanted.
        if self.memory.termination.is_some() {
            self.act(Action::ForgetPod);
        }
    }

    /// What was decided about the pod is on record before anything follows from it, lest another agent start it again.
    /// True while that is waited for; a record that cannot be written (a full disk) is tried again, but keeps nobody.
    fn record_verdict(&mut self) -> bool {
        let Some(verdict) = self.memory.verdict() else { return false };
        if self.observed.verdict || self.memory.termination.is_some() {
            return false;
        }
        let record = Action::RecordVerdict(verdict);
        let failed = self.memory.failure_of(&record).is_some();
        self.act(record);
        !failed
    }
}
