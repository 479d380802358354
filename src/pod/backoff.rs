//! Delays that grow: crash loops, image pulls, and everything else that is retried.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// How a delay grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// Delay after the first failure.
    pub initial: SignedDuration,
    /// Longest delay; each failure doubles up to here.
    pub cap: SignedDuration,
    /// A step later than this after the previous one starts from the beginning again.
    pub reset_after: SignedDuration,
}

/// Restarts of a container that ended: 10 s, doubling to 300 s, forgotten after 10 minutes (upstream
/// `MaxCrashLoopBackOff`, `initialBackoff` and client-go's rule of twice the cap).
pub const CRASH_LOOP: BackoffPolicy = BackoffPolicy {
    initial: SignedDuration::from_secs(10),
    cap: SignedDuration::from_secs(300),
    reset_after: SignedDuration::from_secs(600),
};

/// Image pulls: 10 s, doubling to 300 s (upstream `imageBackOff`).
pub const IMAGE_PULL: BackoffPolicy = BackoffPolicy {
    initial: SignedDuration::from_secs(10),
    cap: SignedDuration::from_secs(300),
    reset_after: SignedDuration::from_secs(600),
};

/// Containers that could not be created, which upstream tries again with each sync.
pub const CREATE: BackoffPolicy = BackoffPolicy {
    initial: SignedDuration::from_secs(5),
    cap: SignedDuration::from_secs(60),
    reset_after: SignedDuration::from_secs(600),
};

/// Everything else: half a second, doubling to two minutes (upstream's volume operations).
pub const RETRY: BackoffPolicy = BackoffPolicy {
    initial: SignedDuration::from_millis(500),
    cap: SignedDuration::from_secs(122),
    reset_after: SignedDuration::from_secs(600),
};

/// Directories and records of a pod: nothing but the node's own disk is asked for them, and one that was full is to be
/// noticed soon when it is no more.
pub const OWN_DISK: BackoffPolicy = BackoffPolicy {
    initial: SignedDuration::from_millis(500),
    cap: SignedDuration::from_secs(10),
    reset_after: SignedDuration::from_secs(600),
};

impl BackoffPolicy {
    /// [`CRASH_LOOP`] with the node's `crashLoopBackOff.maxContainerRestartPeriod`.
    pub fn crash_loop(cap: SignedDuration) -> BackoffPolicy {
        BackoffPolicy { initial: CRASH_LOOP.initial.min(cap), cap, ..CRASH_LOOP }
    }
}

/// A delay in progress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    /// Current delay; zero before the first step.
    pub delay: SignedDuration,
    /// When it was last stepped.
    pub updated: Timestamp,
    /// Steps since it was last reset.
    pub count: u32,
}

impl Backoff {
    /// One more failure (or restart) at `now`.
    pub fn advance(&mut self, policy: &BackoffPolicy, now: Timestamp) {
        if self.delay.is_zero() || now.duration_since(self.updated) > policy.reset_after {
            *self = Backoff { delay: policy.initial, updated: now, count: 1 };
        } else {
            self.delay = self.delay.saturating_add(self.delay).min(policy.cap);
            self.updated = now;
            self.count += 1;
        }
    }

    /// End of the delay when it counts from the step itself.
    pub fn until(&self) -> Timestamp {
        self.updated.saturating_add(self.delay).unwrap_or(Timestamp::MAX)
    }

    /// End of the delay when it counts from `event` (a container's end); an event long after the last step has
    /// outlived it.
    pub fn until_since(&self, policy: &BackoffPolicy, event: Timestamp) -> Timestamp {
        if self.delay.is_zero() || event.duration_since(self.updated) > policy.reset_after {
            return event;
        }
        event.saturating_add(self.delay).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("in range")
    }

    #[test]
    fn a_crash_loop_waits_10_20_40_up_to_300_seconds() {
        let mut backoff = Backoff::default();
        let mut now = at(0);
        let mut delays = Vec::new();
        assert_eq!(backoff.until_since(&CRASH_LOOP, now), now, "the first restart is immediate");
        for _ in 0..7 {
            backoff.advance(&CRASH_LOOP, now);
            now = backoff.until_since(&CRASH_LOOP, now);
            delays.push(backoff.delay.as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_clean_minutes_forget_the_crashes() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.advance(&CRASH_LOOP, at(0));
        }
        assert_eq!(backoff.until_since(&CRASH_LOOP, at(601)), at(601));
        backoff.advance(&CRASH_LOOP, at(601));
        assert_eq!(backoff.delay.as_secs(), 10);
    }

    #[test]
    fn a_node_with_a_short_cap_starts_below_it() {
        let policy = BackoffPolicy::crash_loop(SignedDuration::from_secs(4));
        let mut backoff = Backoff::default();
        backoff.advance(&policy, at(0));
        backoff.advance(&policy, at(1));
        assert_eq!(backoff.delay.as_secs(), 4);
    }
}
