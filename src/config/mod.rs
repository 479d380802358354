//! Configuration: defaults, then the file, then its drop-ins, then flags, resolved to one [`NodeConfig`].
//!
//! The file is upstream's `KubeletConfiguration`, read as the kubelet reads it, with a second document for what a
//! kubelet has no field for ([`berth`]). Everything that is wrong is reported at once, before anything is done.

pub mod berth;
pub mod document;
mod handlers;
pub mod identity;
pub mod kubelet;
mod managers;
mod node_config;
mod reserved;
mod resolve;
pub mod schema;
pub mod values;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use berth_cni::NetworkConfig;
pub use managers::{ManagerConfig, Threshold};
pub use node_config::{EventLimits, ImageCollection, LogFormat, LogOptions, NodeConfig, Registry};
pub use resolve::Environment;

use document::{Node, Origin, Value};
use schema::{Effective, Field, Findings, Mistake};

/// What was asked for on the command line, and nothing else.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--config-dir`: its `*.conf` files are laid over the file in the order of their names.
    pub config_dir: Option<PathBuf>,
    /// Fields set by flags.
    pub settings: Vec<Setting>,
}

/// One field set by a flag.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Which document the field belongs to.
    pub section: Section,
    /// Its dotted path.
    pub path: &'static str,
    /// Its value.
    pub value: Value,
    /// The flag, with its dashes.
    pub flag: &'static str,
}

/// The two documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `KubeletConfiguration`.
    Kubelet,
    /// `BerthConfiguration`.
    Berth,
}

impl Section {
    fn of(kind: &str) -> Option<Section> {
        match kind {
            kubelet::KIND => Some(Section::Kubelet),
            berth::KIND => Some(Section::Berth),
            _ => None,
        }
    }

    /// `apiVersion` of its documents.
    pub fn api_version(self) -> &'static str {
        match self {
            Section::Kubelet => kubelet::API_VERSION,
            Section::Berth => berth::API_VERSION,
        }
    }

    /// `kind` of its documents.
    pub fn kind(self) -> &'static str {
        match self {
            Section::Kubelet => kubelet::KIND,
            Section::Berth => berth::KIND,
        }
    }

    /// Its fields.
    pub fn fields(self) -> &'static [Field] {
        match self {
            Section::Kubelet => kubelet::FIELDS,
            Section::Berth => berth::FIELDS,
        }
    }
}

/// The configuration cannot be used: every reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// In the order of the files; never empty.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.as_slice() {
            [mistake] => write!(f, "{mistake}"),
            mistakes => {
                write!(f, "the configuration has {} mistakes", mistakes.len())?;
                mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// A configuration that was read and found good.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the agent runs with.
    pub config: NodeConfig,
    /// One warning, naming every field that was written and is not implemented.
    pub warning: Option<String>,
    /// The documents after merging.
    kubelet: Node,
    /// See `kubelet`.
    berth: Node,
}

impl Loaded {
    /// Every field in force and where it came from.
    pub fn effective(&self, section: Section) -> Vec<Effective> {
        let node = match section {
            Section::Kubelet => &self.kubelet,
            Section::Berth => &self.berth,
        };
        let mut out = Vec::new();
        schema::effective(node, section.fields(), "", &mut out);
        for (path, value) in self.computed(section) {
            if !out.iter().any(|leaf| leaf.path == path) {
                out.push(Effective { path: path.to_owned(), value, origin: Origin::Default, used: true });
            }
        }
        out.retain(|leaf| leaf.path != "kind" && leaf.path != "apiVersion");
        out
    }
}

impl Loaded {
    /// Defaults that depend on the machine or on other fields, which no table can hold.
    fn computed(&self, section: Section) -> Vec<(&'static str, Value)> {
        let text = |text: &dyn fmt::Display| Value::Text(text.to_string());
        let item = |subnet: &ipnet::IpNet| Node { value: text(subnet), origin: Origin::Default };
        match section {
            Section::Kubelet => vec![("resolvConf", text(&self.config.resolv_conf.display()))],
            Section::Berth => vec![
                ("nodeName", text(&self.config.node_name)),
                ("network.subnets", Value::List(self.config.network.subnets.iter().map(item).collect())),
            ],
        }
    }
}

/// Reads and resolves everything.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Loaded, ConfigError> {
    let mut findings = Findings::default();
    let mut merged = Merged { kubelet: Node::empty(), berth: Node::empty() };
    if let Some(path) = &flags.config {
        merged.add_file(path, &mut findings);
    }
    if let Some(directory) = &flags.config_dir {
        match drop_ins(directory) {
            Ok(paths) => paths.iter().for_each(|path| merged.add_file(path, &mut findings)),
            Err(error) => {
                findings.mistakes.push(file_mistake(directory, 0, format!("read directory: {error}")));
            }
        }
    }
    for setting in &flags.settings {
        let mut document = Node::empty();
        document.set(setting.path, Node { value: setting.value.clone(), origin: Origin::Flag(setting.flag) });
        schema::check_object(&document, setting.section.fields(), "", &mut findings);
        merged.section(setting.section).merge(document);
    }
    let Merged { mut kubelet, mut berth } = merged;
    schema::drop_zeroes(&mut kubelet, kubelet::FIELDS);
    schema::drop_zeroes(&mut berth, berth::FIELDS);

    // Values are looked at even when shapes are wrong elsewhere: all mistakes come at once.
    let config = resolve::resolve(&kubelet, &berth, environment, &mut findings);
    if !findings.mistakes.is_empty() {
        return Err(ConfigError { mistakes: findings.mistakes });
    }
    let mut names = Vec::new();
    schema::not_implemented(&kubelet, kubelet::FIELDS, "", &mut names);
    let warning = (!names.is_empty()).then(|| {
        format!("accepted from the configuration, but not implemented and without effect: {}", names.join(", "))
    });
    Ok(Loaded { config, warning, kubelet, berth })
}

struct Merged {
    kubelet: Node,
    berth: Node,
}

impl Merged {
    fn section(&mut self, section: Section) -> &mut Node {
        match section {
            Section::Kubelet => &mut self.kubelet,
            Section::Berth => &mut self.berth,
        }
    }

    fn add_file(&mut self, path: &Path, findings: &mut Findings) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                findings.mistakes.push(file_mistake(path, 0, format!("read: {error}")));
                return;
            }
        };
        let path: Arc<Path> = Arc::from(path);
        let documents = match document::parse(&text, &path) {
            Ok(documents) => documents,
            Err(error) => {
                findings.mistakes.push(file_mistake(&path, error.line, error.message));
                return;
            }
        };
        let mut seen = Vec::new();
        for document in documents {
            if let Some(section) = identify(&document, findings) {
                if seen.contains(&section) {
                    findings.mistake(&document, "kind", format!("a second {} in one file", section.kind()));
                }
                seen.push(section);
                schema::check_object(&document, section.fields(), "", findings);
                self.section(section).merge(document);
            }
        }
    }
}

fn file_mistake(path: &Path, line: u64, message: String) -> Mistake {
    Mistake { origin: Origin::File { path: Arc::from(path), line }, path: String::new(), message }
}

/// Which of the two documents this is.
fn identify(document: &Node, findings: &mut Findings) -> Option<Section> {
    let Value::Map(_) = &document.value else {
        findings.mistake(document, "", format!("expected a mapping, found {}", document.value.describe()));
        return None;
    };
    let Some(kind) = document.get("kind") else {
        findings.mistake(document, "kind", format!("is missing: {} or {}", kubelet::KIND, berth::KIND));
        return None;
    };
    let section = match &kind.value {
        Value::Text(text) => Section::of(text),
        _ => None,
    };
    let Some(section) = section else {
        let message = format!("expected {} or {}, found {}", kubelet::KIND, berth::KIND, kind.value.describe());
        findings.mistake(kind, "kind", message);
        return None;
    };
    let expected = section.api_version();
    match document.get("apiVersion") {
        Some(node) if node.value == Value::Text(expected.to_owned()) => {}
        Some(node) => {
            findings.mistake(node, "apiVersion", format!("expected {expected}, found {}", node.value.describe()));
        }
        None => findings.mistake(document, "apiVersion", format!("is missing: {expected}")),
    }
    Some(section)
}

/// The `*.conf` files of a drop-in directory in the order of their names, as the kubelet takes them: those of
/// directories below it too, other files are left alone.
fn drop_ins(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "conf") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;
