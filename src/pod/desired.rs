//! What the node should run: the sets of all sources put together.
//!
//! A source always says its whole set, so a lost or repeated update does no harm, and what nobody wants any more is
//! what is missing from the sets, unless a source says that it could not read that part.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::desired_objects::SourcedObject;
use crate::api::problem::ManifestProblem;

/// A source of pods. The order is that of precedence when two want the same pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceId {
    /// Manifests in a directory, or one file.
    File,
    /// A manifest behind a URL.
    Http,
    /// An API server, or the control plane in this process.
    Api,
}

impl SourceId {
    /// The value of the annotation `kubernetes.io/config.source`.
    pub fn as_str(self) -> &'static str {
        match self {
            SourceId::File => "file",
            SourceId::Http => "http",
            SourceId::Api => "api",
        }
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A pod as its source wants it: complete (defaults set) and valid.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcedPod {
    /// The pod; its UID, name and namespace are set.
    pub pod: Pod,
    /// `file:<path>`, the URL, or `api`.
    pub origin: String,
    /// Which document of the manifest, from 0.
    pub document: usize,
}

impl SourcedPod {
    /// UID.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        full_name(&self.pod)
    }
}

/// `namespace/name` of a pod.
pub fn full_name(pod: &Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default())
}

/// All a source wants now.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceUpdate {
    /// Who says so.
    pub source: SourceId,
    /// Its pods.
    pub pods: Vec<Arc<SourcedPod>>,
    /// The objects beside them. One that has not changed since the last update is the same allocation.
    pub objects: Vec<Arc<SourcedObject>>,
    /// Manifests that could not be used, and warnings.
    pub problems: Vec<ManifestProblem>,
    /// Origins (`file:<path>`) whose content cannot be used at the moment. `pods` and `objects` have what they last
    /// held, if this process has seen it; what of theirs an earlier process knew is to be kept all the same.
    pub unusable: BTreeSet<String>,
    /// Nothing could be read at all (directory unreadable, server not answering): every pod this source has ever
    /// wanted is to be kept, and every object.
    pub incomplete: bool,
}

impl SourceUpdate {
    /// A source that wants nothing.
    pub fn empty(source: SourceId) -> SourceUpdate {
        SourceUpdate {
            source,
            pods: Vec::new(),
            objects: Vec::new(),
            problems: Vec::new(),
            unusable: BTreeSet::new(),
            incomplete: false,
        }
    }
}

/// A pod the node should run.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredPod {
    /// The pod and where it was asked for.
    pub pod: Arc<SourcedPod>,
    /// Who wants it.
    pub source: SourceId,
    /// `namespace/name`. A changed static manifest gives a pod of another UID and the same full name: it may not be
    /// started before the one it replaces is gone.
    pub full_name: String,
}

/// What the node should run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// By UID. No two have the same full name.
    pub pods: BTreeMap<String, DesiredPod>,
    /// What could not be used, of all sources, and the pods that lost against another of the same UID or name.
    pub problems: Vec<ManifestProblem>,
    unusable: BTreeSet<String>,
    incomplete: BTreeSet<SourceId>,
}

impl Desired {
    /// Whether a pod that is not in `pods` is to be kept running nevertheless, because the place it came from
    /// (`origin` as in [`SourcedPod`]) cannot be read now. A pod that `pods` replaces (same full name) is not kept.
    pub fn keeps(&self, source: SourceId, origin: &str, full_name: &str) -> bool {
        let readable = !self.incomplete.contains(&source) && !self.unusable.contains(origin);
        !readable && !self.pods.values().any(|pod| pod.full_name == full_name)
    }
}

/// Puts the sets of all sources together. Of pods with the same UID or the same full name one wins: the one whose UID
/// is in `running` (what runs is not replaced by a duplicate that turns up), else the first by source, origin and
/// document. The others become problems that name both.
pub fn merge(updates: &[Arc<SourceUpdate>], running: &BTreeSet<String>) -> Desired {
    let mut desired = Desired::default();
    let mut candidates = Vec::new();
    for update in updates {
        desired.problems.extend(update.problems.iter().cloned());
        desired.unusable.extend(update.unusable.iter().cloned());
        if update.incomplete {
            desired.incomplete.insert(update.source);
        }
        candidates.extend(update.pods.iter().map(|pod| (update.source, pod)));
    }
    candidates
        .sort_by_cached_key(|(source, pod)| (!running.contains(pod.uid()), *source, pod.origin.clone(), pod.document));
    let mut by_name: BTreeMap<String, Arc<SourcedPod>> = BTreeMap::new();
    for (source, pod) in candidates {
        let full_name = pod.full_name();
        let winner = match (by_name.get(&full_name), desired.pods.get(pod.uid())) {
            (Some(winner), _) => Some(("same name", winner)),
            (None, Some(winner)) => Some(("same UID", &winner.pod)),
            (None, None) => None,
        };
        if let Some((what, winner)) = winner {
            let message = format!(
                "pod {full_name} is not used: {} (document {}) has a pod of the {what}",
                winner.origin, winner.document
            );
            desired.problems.push(ManifestProblem {
                source: pod.origin.clone(),
                document: Some(pod.document),
                pod: Some(full_name),
                warning: false,
                message,
            });
            continue;
        }
        by_name.insert(full_name.clone(), pod.clone());
        desired.pods.insert(pod.uid().to_owned(), DesiredPod { pod: pod.clone(), source, full_name });
    }
    desired
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(origin: &str, uid: &str, name: &str) -> Arc<SourcedPod> {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some("shop".to_owned());
        Arc::new(SourcedPod { pod, origin: origin.to_owned(), document: 0 })
    }

    fn update(source: SourceId, pods: &[Arc<SourcedPod>]) -> Arc<SourceUpdate> {
        Arc::new(SourceUpdate { pods: pods.to_vec(), ..SourceUpdate::empty(source) })
    }

    fn uids(desired: &Desired) -> Vec<&str> {
        desired.pods.keys().map(String::as_str).collect()
    }

    #[test]
    fn the_sets_of_all_sources_are_joined() {
        let updates =
            [update(SourceId::Http, &[pod("u", "2", "b")]), update(SourceId::File, &[pod("file:a", "1", "a")])];
        let desired = merge(&updates, &BTreeSet::new());
        assert_eq!(uids(&desired), ["1", "2"]);
        assert_eq!(desired.pods["1"].full_name, "shop/a");
        assert_eq!(desired.pods["2"].source, SourceId::Http);
        assert!(desired.problems.is_empty());
    }

    #[test]
    fn of_two_pods_of_one_name_the_first_file_wins_and_the_other_is_reported() {
        let files = [pod("file:/m/b.yaml", "2", "web"), pod("file:/m/a.yaml", "1", "web")];
        let desired = merge(&[update(SourceId::File, &files)], &BTreeSet::new());
        assert_eq!(uids(&desired), ["1"]);
        let problem = &desired.problems[0];
        assert_eq!((problem.source.as_str(), problem.warning), ("file:/m/b.yaml", false));
        assert_eq!(problem.message, "pod shop/web is not used: file:/m/a.yaml (document 0) has a pod of the same name");
    }

    #[test]
    fn a_duplicate_never_replaces_what_runs() {
        let files = [pod("file:/m/a.yaml", "1", "web"), pod("file:/m/b.yaml", "2", "web")];
        let desired = merge(&[update(SourceId::File, &files)], &BTreeSet::from(["2".to_owned()]));
        assert_eq!(uids(&desired), ["2"]);
        assert_eq!(desired.problems[0].source, "file:/m/a.yaml");
    }

    #[test]
    fn one_uid_twice_is_a_conflict_too() {
        let updates =
            [update(SourceId::Http, &[pod("http://h", "1", "b")]), update(SourceId::File, &[pod("file:a", "1", "a")])];
        let desired = merge(&updates, &BTreeSet::new());
        assert_eq!(desired.pods["1"].full_name, "shop/a");
        assert!(desired.problems[0].message.ends_with("file:a (document 0) has a pod of the same UID"));
    }

    #[test]
    fn pods_from_places_that_cannot_be_read_are_kept() {
        let unusable = SourceUpdate {
            pods: vec![pod("file:/m/a.yaml", "1", "web")],
            unusable: BTreeSet::from(["file:/m/b.yaml".to_owned()]),
            ..SourceUpdate::empty(SourceId::File)
        };
        let silent = SourceUpdate { incomplete: true, ..SourceUpdate::empty(SourceId::Http) };
        let desired = merge(&[Arc::new(unusable), Arc::new(silent)], &BTreeSet::new());
        assert!(desired.keeps(SourceId::File, "file:/m/b.yaml", "shop/db"));
        assert!(!desired.keeps(SourceId::File, "file:/m/b.yaml", "shop/web"), "replaced by another pod of its name");
        assert!(!desired.keeps(SourceId::File, "file:/m/gone.yaml", "shop/db"));
        assert!(desired.keeps(SourceId::Http, "http://h", "shop/db"));
    }
}
