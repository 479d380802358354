//! The end of containers: hooks, signals and their times, and who goes before whom.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Planner;
use crate::{
    api::resources::is_sidecar,
    pod::{
        action::{Action, Hook},
        lifecycle::{self, containers, init_containers},
        memory::seconds,
        policy,
    },
};

/// Before a container that SIGKILL has not ended (its process waits in the kernel) is sent another.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// What there is at least between the stop signal and SIGKILL, however long a preStop hook or others have taken (upstream
/// `minimumGracePeriodInSeconds`).
const LEAST: SignedDuration = SignedDuration::from_secs(2);

impl Planner<'_> {
    /// A start that still hangs when the grace period is over is ended like a container that does not stop. One that was
    /// never released has no program that could stop.
    pub(super) fn end_starts(&mut self) {
        let memory = self.memory;
        let (since, grace) = match (&memory.termination, &memory.eviction) {
            (Some(termination), _) => (termination.since, termination.grace),
            (None, Some(eviction)) => (eviction.at, self.grace()),
            (None, None) => return,
        };
        let deadline = after(since, grace);
        for action in &memory.in_flight {
            let Action::StartContainer { container, attempt } = action else { continue };
            let releasing = memory.in_flight.iter().any(|action| {
                matches!(action, Action::ReleaseContainer { container: released, .. } if released == container)
            });
            let released = self.observed.released.get(container).is_some_and(|released| released.attempt == *attempt);
            if deadline <= self.now || !released && !releasing {
                self.kill(container, *attempt);
            } else {
                self.wake(deadline);
            }
        }
    }

    /// Gives up hooks whose container has ended.
    pub(super) fn abandon_orphans(&mut self) {
        let (observed, memory) = (self.observed, self.memory);
        for action in &memory.in_flight {
            if let Action::RunHook { container, attempt, hook } = action
                && !observed.runs(container, *attempt)
            {
                self.abandon(container, *attempt, *hook);
            }
        }
    }

    /// Signals, then kills, what runs. True while something does.
    pub(super) fn stop_containers(&mut self) -> bool {
        let grace = self.memory.termination.as_ref().map_or_else(|| self.grace(), |asked| asked.grace);
        let observed = self.observed;
        let mut any = false;
        for (container, attempt) in observed.running() {
            any = true;
            let turn = self.is_turn_of(container);
            self.stop(container, attempt.number, grace, turn);
        }
        any
    }

    /// Whether everything that a container outlives has ended: main containers go before sidecars, and those in the
    /// reverse of their order (upstream's `terminationOrdering`).
    fn is_turn_of(&self, container: &str) -> bool {
        let inits = init_containers(self.pod);
        match inits.iter().position(|init| init.name == container && is_sidecar(init)) {
            None => true,
            Some(position) => {
                let later = inits[position + 1..].iter().filter(|init| is_sidecar(init));
                let before = containers(self.pod).iter().chain(later);
                before.into_iter().all(|other| !self.observed.is_running(&other.name))
            }
        }
    }

    /// The pod's own grace period, seconds, or what its eviction leaves of it.
    fn grace(&self) -> i64 {
        let own = lifecycle::grace(self.pod);
        let eviction = self.memory.eviction.as_ref();
        eviction.and_then(|eviction| eviction.grace).map_or(own, |grace| own.min(grace))
    }

    /// The next step towards the end of a running attempt, `grace` seconds from the first one: the preStop hook, the stop
    /// signal when it is its turn, SIGKILL.
    pub(super) fn stop(&mut self, container: &str, attempt: u32, grace: i64, turn: bool) {
        self.abandon(container, attempt, Hook::PostStart);
        if grace <= 0 {
            self.abandon(container, attempt, Hook::PreStop);
            return self.kill(container, attempt);
        }
        let stop = self.memory.stopping.get(container).filter(|stop| stop.attempt == attempt);
        // One that had to wait for its turn has waited within the grace period, not before it.
        let down_since = self.memory.down_since.filter(|_| self.going_down);
        let since = stop.map(|stop| stop.since).into_iter().chain(down_since).min();
        let deadline = after(since.unwrap_or(self.now), grace);
        if let Some(signalled) = stop.and_then(|stop| stop.signalled) {
            let kill_at = deadline.max(signalled.saturating_add(LEAST).unwrap_or(Timestamp::MAX));
            return if kill_at <= self.now { self.kill(container, attempt) } else { self.wake(kill_at) };
        }
        let hooked = self.observed.hooked(container, attempt);
        if self.has_pre_stop(container) && hooked.is_none_or(|hooked| hooked.pre_stop.is_none()) {
            if self.now < deadline {
                self.wake(deadline);
                return self.act(Action::RunHook { container: container.to_owned(), attempt, hook: Hook::PreStop });
            }
            self.abandon(container, attempt, Hook::PreStop);
        }
        if !turn && self.now < deadline {
            return self.wake(deadline); // the end of what it waits for is an event
        }
        self.act(Action::StopContainer { container: container.to_owned(), attempt });
    }

    fn has_pre_stop(&self, container: &str) -> bool {
        let mut all = init_containers(self.pod).iter().chain(containers(self.pod));
        let found = all.find(|found| found.name == container);
        found.and_then(|found| found.lifecycle.as_ref()).is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
    }

    /// Gives up a hook, if it is under way.
    fn abandon(&mut self, container: &str, attempt: u32, hook: Hook) {
        let container = container.to_owned();
        let running = Action::RunHook { container: container.clone(), attempt, hook };
        if self.memory.in_flight.contains(&running)
            && !self.memory.abandoned.contains(&(container.clone(), attempt, hook))
        {
            self.act(Action::AbandonHook { container, attempt, hook });
        }
    }

    fn kill(&mut self, container: &str, attempt: u32) {
        let sent = self.memory.killed.get(container).filter(|(killed, _)| *killed == attempt);
        let again = sent.map(|(_, at)| at.saturating_add(KILL_AGAIN).unwrap_or(Timestamp::MAX));
        match again {
            // Its end is an event. Without this a process that cannot die would keep the agent busy.
            Some(again) if again > self.now => self.wake(again),
            _ => self.act(Action::KillContainer { container: container.to_owned(), attempt }),
        }
    }

    /// Whether a container runs on from before the pod was begun anew.
    pub(super) fn is_outlived(&self, container: &str) -> bool {
        policy::outlived(self.pod, self.observed).iter().any(|(name, _)| *name == container)
    }

    /// Ends what runs on from before the pod was begun anew, at once and without hooks (KEP-5532).
    pub(super) fn end_outlived(&mut self) {
        for (container, attempt) in policy::outlived(self.pod, self.observed) {
            self.abandon(container, attempt.number, Hook::PostStart);
            self.abandon(container, attempt.number, Hook::PreStop);
            self.kill(container, attempt.number);
        }
    }
}

fn after(since: Timestamp, grace: i64) -> Timestamp {
    since.saturating_add(seconds(grace)).unwrap_or(Timestamp::MAX)
}
