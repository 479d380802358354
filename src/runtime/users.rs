//! Ids of the host that pods with user namespaces of their own are given: which there are, and who has which.
//!
//! Pure: what is taken is told by the records of the pods there are, so that nothing has to be given back.

use crate::supervisor::spec::IdRange;

/// Ids of user namespaces come in this unit: as many as the oldest programs know.
pub const UNIT: u32 = 1 << 16;

/// The user whose subordinate ids pods get (`/etc/subuid`, `/etc/subgid`), as upstream.
pub const USER: &str = "kubelet";

/// Why the host's ids cannot be shared out. The conditions are upstream's (`pkg/kubelet/userns`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A line that is not `name:first:count`.
    #[error("{path}: {line:?} is not a range of subordinate ids")]
    Line {
        /// The file.
        path: &'static str,
        /// The line.
        line: String,
    },
    /// More than one range, of which upstream would not use any.
    #[error("{path}: user {USER} must have exactly one range")]
    Several {
        /// The file.
        path: &'static str,
    },
    /// Users and groups must be the same numbers.
    #[error("user {USER} has different subuids and subgids")]
    Different,
    /// A number does not fit.
    #[error("the {what} of the ids of user {USER}, {value}, is not a multiple of idsPerPod, {per_pod}")]
    Multiple {
        /// `first` or `count`.
        what: &'static str,
        /// Its value.
        value: u64,
        /// idsPerPod.
        per_pod: u32,
    },
    /// The host's own users would be among them.
    #[error("the first id of user {USER}, {first}, must not be less than idsPerPod, {per_pod}")]
    First {
        /// Its value.
        first: u64,
        /// idsPerPod.
        per_pod: u32,
    },
    /// Some pod might go without.
    #[error("the ids of user {USER} are not enough for {pods} pods of {per_pod}")]
    Few {
        /// maxPods.
        pods: u32,
        /// idsPerPod.
        per_pod: u32,
    },
}

/// All ids there are for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdPool {
    first: u64,
    end: u64,
    per_pod: u32,
}

impl IdPool {
    /// What the contents of `/etc/subuid` and `/etc/subgid` come to: the range of [`USER`], or without one all but the
    /// lowest. `per_pod` is a multiple of [`UNIT`], `pods` the most there may be at a time.
    pub fn new(uids: &str, gids: &str, per_pod: u32, pods: u32) -> Result<IdPool, IdError> {
        let (users, groups) = (range_of("/etc/subuid", uids)?, range_of("/etc/subgid", gids)?);
        if users != groups {
            return Err(IdError::Different);
        }
        let (first, count) = users.unwrap_or((u64::from(per_pod), (1 << 32) - u64::from(per_pod)));
        for (what, value) in [("first", first), ("count", count)] {
            if value % u64::from(per_pod) != 0 {
                // All there are need not be a multiple; what is left over is not used.
                if users.is_none() {
                    continue;
                }
                return Err(IdError::Multiple { what, value, per_pod });
            }
        }
        if first < u64::from(per_pod) {
            return Err(IdError::First { first, per_pod });
        }
        let end = (first + count).min(1 << 32);
        let pool = IdPool { first, end, per_pod };
        if pool.slots().count() < pods as usize {
            return Err(IdError::Few { pods, per_pod });
        }
        Ok(pool)
    }

    /// Every range of `per_pod` ids, without the one that would have the number that is no id (`(uid_t) -1`).
    fn slots(self) -> impl Iterator<Item = IdRange> {
        let IdPool { first, end, per_pod } = self;
        (first..end)
            .step_by(per_pod as usize)
            .filter(move |start| start + u64::from(per_pod) <= end.min((1 << 32) - 1))
            .map(move |start| IdRange { first: start as u32, count: per_pod })
    }

    /// A range that has nothing in common with those `taken`; `None` when there is none left.
    pub fn allocate(self, taken: &[IdRange]) -> Option<IdRange> {
        self.slots().find(|slot| !taken.iter().any(|other| other.overlaps(*slot)))
    }
}

/// The first id and the count of the user's range.
fn range_of(path: &'static str, text: &str) -> Result<Option<(u64, u64)>, IdError> {
    let mut found = None;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.first() != Some(&USER) {
            continue;
        }
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok()).map(u64::from);
        let (Some(first), Some(count), 3) = (number(1), number(2), fields.len()) else {
            return Err(IdError::Line { path, line: line.to_owned() });
        };
        if found.replace((first, count)).is_some() {
            return Err(IdError::Several { path });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(line: &str) -> Result<IdPool, IdError> {
        IdPool::new(line, line, UNIT, 3)
    }

    #[test]
    fn without_subordinate_ids_all_but_the_lowest_are_for_pods() {
        let pool = pool("# kubelet:1:1\nalice:100000:65536\n").unwrap();
        assert_eq!(pool.allocate(&[]), Some(IdRange { first: 65536, count: 65536 }));
        assert_eq!(pool.slots().count(), 65534, "neither the host's own nor the last ones");
        let wide = IdPool::new("", "", 3 * UNIT, 3).unwrap();
        assert_eq!(wide.allocate(&[]), Some(IdRange { first: 196_608, count: 196_608 }));
    }

    #[test]
    fn a_pod_gets_the_first_range_that_nobody_has() {
        let pool = pool("kubelet:131072:262144\n").unwrap();
        let range = |slot: u32| IdRange { first: slot * UNIT, count: UNIT };
        assert_eq!(pool.allocate(&[]), Some(range(2)));
        assert_eq!(pool.allocate(&[range(2), range(4)]), Some(range(3)));
        assert_eq!(pool.allocate(&[range(2), range(3), range(4), range(5)]), None);
        // Of a pod that was given more, under another configuration.
        let large = IdRange { first: UNIT, count: 3 * UNIT };
        assert_eq!(pool.allocate(&[large]), Some(range(4)));
    }

    #[test]
    fn what_upstream_refuses_is_refused() {
        let cases = [
            ("kubelet:x:1", "is not a range"),
            ("kubelet:65536", "is not a range"),
            ("kubelet:65536:262144\nkubelet:655360:65536", "exactly one range"),
            ("kubelet:100000:262144", "first of the ids"),
            ("kubelet:65536:262145", "count of the ids"),
            ("kubelet:0:262144", "must not be less than"),
            ("kubelet:65536:131072", "not enough for 3 pods"),
        ];
        for (text, message) in cases {
            let error = pool(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
        assert_eq!(IdPool::new("kubelet:65536:262144", "", UNIT, 1), Err(IdError::Different));
    }
}
