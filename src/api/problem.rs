//! What is wrong with a manifest, in the form it is shown to people.

use serde::{Deserialize, Serialize};

/// A manifest, or a part of one, that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestProblem {
    /// `file:<path>` or the URL.
    pub source: String,
    /// Which document of the file, from 0; `None` when the whole file is meant.
    pub document: Option<usize>,
    /// `namespace/name` as far as it is known; of anything but a pod with its kind before it
    /// (`ConfigMap shop/settings`).
    pub pod: Option<String>,
    /// Only a warning: the pod runs all the same.
    pub warning: bool,
    /// One line: field path and cause.
    pub message: String,
}
