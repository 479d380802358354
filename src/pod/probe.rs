//! Probes: which are to be run now, what their answers come to, and when the next one is due.
//!
//! Rules are upstream's (`pkg/kubelet/prober`): a container with a startup probe has not started, and is not asked
//! anything else, until that has succeeded; readiness is false and liveness true until something else was found; a pod
//! that is being terminated is not restarted, so that only readiness is still asked.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Container, Pod, Probe},
    jiff::Timestamp,
};

use super::{
    lifecycle,
    memory::Memory,
    observed::{AttemptState, ObservedPod, Probed},
};

/// Upstream's defaults, for a probe that has not been given them.
const PERIOD: i32 = 10;
const TIMEOUT: i32 = 1;
const FAILURES: i32 = 3;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Whether the container has come up; asked until then.
    Startup,
    /// Whether it is to be given work.
    Readiness,
    /// Whether it has to be restarted.
    Liveness,
}

impl ProbeKind {
    /// All of them.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Readiness, ProbeKind::Liveness];

    /// As events have it: `Liveness`.
    pub fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

impl Probed {
    /// The verdict of one kind.
    pub fn verdict(&self, kind: ProbeKind) -> Option<bool> {
        match kind {
            ProbeKind::Startup => self.startup,
            ProbeKind::Readiness => self.readiness,
            ProbeKind::Liveness => self.liveness,
        }
    }

    /// Notes a verdict.
    pub fn set(&mut self, kind: ProbeKind, verdict: bool) {
        *match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
            ProbeKind::Liveness => &mut self.liveness,
        } = Some(verdict);
    }

    /// The kind of probe for whose sake the container has to end.
    pub fn fatal(&self) -> Option<ProbeKind> {
        [ProbeKind::Liveness, ProbeKind::Startup].into_iter().find(|kind| self.verdict(*kind) == Some(false))
    }
}

/// One probe of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    /// Container.
    pub container: String,
    /// Attempt it is run against.
    pub attempt: u32,
    /// Kind.
    pub kind: ProbeKind,
}

/// How long an answer is waited for.
pub fn timeout(probe: &Probe) -> Duration {
    seconds(probe.timeout_seconds, TIMEOUT)
}

fn seconds(value: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(value.filter(|value| *value > 0).unwrap_or(default).unsigned_abs().into())
}

/// Whether any container has a probe.
pub fn has_probes(pod: &Pod) -> bool {
    probed_containers(pod).any(|container| ProbeKind::ALL.iter().any(|kind| kind.of(container).is_some()))
}

/// Containers that may have probes; of init containers only those that stay may, as validation sees to.
fn probed_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    lifecycle::init_containers(pod).iter().chain(lifecycle::containers(pod))
}

/// The probes that are to be run now, each with the time its attempt started.
pub fn active(pod: &Pod, observed: &ObservedPod, memory: &Memory, now: Timestamp) -> Vec<(ProbeKey, Timestamp)> {
    if lifecycle::phase(pod, observed, memory, now).is_terminal() {
        return Vec::new();
    }
    let terminating = memory.termination.is_some();
    let mut active = Vec::new();
    for container in probed_containers(pod) {
        let Some(attempt) = observed.latest(&container.name) else { continue };
        let AttemptState::Running { started_at, .. } = attempt.state else { continue };
        if !observed.settled(container) {
            continue; // it does not count as running before its postStart hook has ended
        }
        let known = observed.probed(&container.name, attempt.number);
        let started = observed.started(container);
        for kind in ProbeKind::ALL {
            let wanted = match kind {
                ProbeKind::Startup => !terminating && known.and_then(|known| known.startup).is_none(),
                ProbeKind::Readiness => started,
                // After a failure there is nothing left to ask: it is being ended.
                ProbeKind::Liveness => !terminating && started && known.and_then(|known| known.liveness) != Some(false),
            };
            if wanted && kind.of(container).is_some() {
                let key = ProbeKey { container: container.name.clone(), attempt: attempt.number, kind };
                active.push((key, started_at));
            }
        }
    }
    active
}

/// The answers of one probe of one attempt, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    failures: u32,
    successes: u32,
    period: Duration,
    /// Last answer, and how often in a row.
    run: (bool, u32),
    verdict: Option<bool>,
    /// The next failure does not count.
    early: bool,
}

impl Counter {
    /// For a probe of which `verdict` is known already (of an earlier agent), or nothing.
    pub fn new(probe: &Probe, kind: ProbeKind, verdict: Option<bool>) -> Counter {
        let threshold = |value: Option<i32>, default: i32| value.filter(|value| *value > 0).unwrap_or(default);
        Counter {
            failures: threshold(probe.failure_threshold, FAILURES).unsigned_abs(),
            successes: threshold(probe.success_threshold, 1).unsigned_abs(),
            period: seconds(probe.period_seconds, PERIOD),
            run: (false, 0),
            verdict,
            // A container is asked at once whether it has started, so that a quick one need not wait for a period; but it
            // has failureThreshold periods before it is given up, as upstream, which asks after a period first.
            early: kind == ProbeKind::Startup && verdict.is_none(),
        }
    }

    /// How long to wait before the first probe of an attempt that started at `started_at`: initialDelaySeconds from then,
    /// and for liveness a period more (upstream's first one comes at any time within it). `jitter` (0 to 1) spreads, over a
    /// period, the probes of all pods that an agent finds when it starts; it counts where a verdict is known.
    pub fn first(
        &self,
        probe: &Probe,
        kind: ProbeKind,
        started_at: Timestamp,
        now: Timestamp,
        jitter: f64,
    ) -> Duration {
        if self.verdict.is_some() {
            return self.period.mul_f64(jitter.clamp(0.0, 1.0));
        }
        let delay = seconds(probe.initial_delay_seconds, 0);
        let passed = Duration::try_from(now.duration_since(started_at)).unwrap_or_default();
        let left = delay.saturating_sub(passed);
        if kind == ProbeKind::Liveness { left.max(self.period.saturating_sub(passed)) } else { left }
    }

    /// From the time at which a probe was due to the next: a period. One that took longer is followed by the next at once.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Counts an answer; a new verdict when it brings one.
    pub fn count(&mut self, success: bool) -> Option<bool> {
        if std::mem::take(&mut self.early) && !success {
            return None;
        }
        let (last, run) = self.run;
        self.run = (success, if last == success { run.saturating_add(1) } else { 1 });
        let threshold = if success { self.successes } else { self.failures };
        if self.run.1 < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.verdict
    }
}
