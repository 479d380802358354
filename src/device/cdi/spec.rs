//! One specification, as it is in a file. A field that is not known here makes it unusable: it could be one that matters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// A specification and where it was found.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) file: PathBuf,
    pub(super) document: Document,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    cdi_version: String,
    /// `vendor.com/class`.
    pub(super) kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "for people; named here so that it is known")]
    annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// For each container that has any of the devices.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    name: String,
    #[serde(default)]
    #[allow(dead_code, reason = "for people; named here so that it is known")]
    annotations: BTreeMap<String, String>,
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ContainerEdits {
    /// Each `NAME=value`.
    #[serde(default)]
    pub(super) env: Vec<String>,
    #[serde(default)]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    pub(super) net_devices: Vec<serde_json::Value>,
    #[serde(default)]
    pub(super) hooks: Vec<Hook>,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    #[serde(default)]
    pub(super) intel_rdt: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    /// In the container.
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`.
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) major: u32,
    #[serde(default)]
    pub(super) minor: u32,
    #[serde(default)]
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: String,
    #[serde(default)]
    pub(super) uid: Option<u32>,
    #[serde(default)]
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

/// A program to be run by the runtime.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    #[serde(default)]
    #[allow(dead_code, reason = "hooks are refused; named here so that it is known")]
    args: Vec<String>,
    #[serde(default)]
    #[allow(dead_code, reason = "hooks are refused; named here so that it is known")]
    env: Vec<String>,
    #[serde(default)]
    #[allow(dead_code, reason = "hooks are refused; named here so that it is known")]
    timeout: Option<i64>,
}

impl Spec {
    /// Reads a file by its extension.
    pub(super) fn read(file: &Path) -> Result<Spec, String> {
        let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
        let is_json = file.extension().is_some_and(|extension| extension == "json");
        let document: Document = match is_json {
            true => serde_json::from_str(&text).map_err(|error| error.to_string())?,
            false => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
        };
        document.check()?;
        Ok(Spec { file: file.to_owned(), document })
    }

    /// Full names of its devices.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.document.devices.iter().map(|device| format!("{}={}", self.document.kind, device.name))
    }
}

impl Document {
    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.trim_start_matches('v');
        if !["0.", "1."].iter().any(|major| version.starts_with(major)) {
            return Err(format!("unknown cdiVersion {:?}", self.cdi_version));
        }
        let words = |text: &str, more: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.ends_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(inner)
        };
        let named = self.kind.split_once('/').is_some_and(|(vendor, class)| words(vendor, "_-.") && words(class, "_-"));
        if !named {
            return Err(format!("invalid kind {:?}: it should be vendor/class", self.kind));
        }
        let mut names = BTreeSet::new();
        for Device { name, .. } in &self.devices {
            if !words(name, "_-.:") {
                return Err(format!("invalid device name {name:?}"));
            }
            if !names.insert(name) {
                return Err(format!("device {name:?} is there twice"));
            }
        }
        Ok(())
    }
}
