//! Localhost profiles: JSON files in the runtime specification's form, or in Docker's, which adds `archMap` and rules
//! that depend on capabilities, architectures and the kernel.

use std::{fs, path::Path, str::FromStr};

use caps::Capability;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSyscall};
use serde::{Deserialize, de::IntoDeserializer};

use super::{SeccompError, machine::Machine};

/// Larger files are not profiles.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Deserialize)]
struct File {
    #[serde(flatten)]
    profile: serde_json::Map<String, serde_json::Value>,
    #[serde(default, rename = "archMap")]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Rule {
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
    /// One name, in the oldest form.
    #[serde(default)]
    name: Option<String>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile file for a container with these capabilities, on a kernel of this release (`6.18.4-x`).
pub fn read(path: &Path, machine: Machine, capabilities: u64, release: &str) -> Result<LinuxSeccomp, SeccompError> {
    let io = |source| SeccompError::Read { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(io)?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(SeccompError::NotAProfile { path: path.to_owned() });
    }
    let text = fs::read(path).map_err(io)?;
    let decode = |source| SeccompError::Decode { path: path.to_owned(), source };
    let mut file: File = serde_json::from_slice(&text).map_err(decode)?;
    let architectures = file.architectures(machine);
    let rules = file.syscalls.take().unwrap_or_default();
    let mut profile: LinuxSeccomp =
        serde_json::from_value(serde_json::Value::Object(std::mem::take(&mut file.profile))).map_err(decode)?;
    let mut syscalls = Vec::new();
    for (index, rule) in rules.into_iter().enumerate() {
        let applies = rule.includes.as_ref().is_none_or(|condition| condition.all(machine, capabilities, release))
            && !rule.excludes.as_ref().is_some_and(|condition| condition.any(machine, capabilities, release));
        if applies {
            syscalls.push(rule.decode().map_err(|source| SeccompError::DecodeRule {
                path: path.to_owned(),
                index,
                source,
            })?);
        }
    }
    profile.set_architectures(Some(architectures)).set_syscalls(Some(syscalls));
    Ok(profile)
}

impl File {
    /// Those we know; one we do not is none this machine can run.
    fn architectures(&self, machine: Machine) -> Vec<Arch> {
        let mapped = self.arch_map.iter().flatten().filter(|map| {
            known(&map.architecture).is_some_and(|architecture| machine.abi(architecture) == Some(machine.native_abi()))
        });
        let sub = mapped.flat_map(|map| map.sub_architectures.iter().flatten());
        self.architectures.iter().flatten().chain(sub).filter_map(|name| known(name)).collect()
    }
}

fn known(name: &str) -> Option<Arch> {
    let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
    Arch::deserialize(name).ok()
}

impl Rule {
    fn decode(mut self) -> Result<LinuxSyscall, serde_json::Error> {
        if let Some(name) = self.name {
            self.rest.entry("names").or_insert_with(|| serde_json::json!([name]));
        }
        serde_json::from_value(serde_json::Value::Object(self.rest))
    }
}

impl Condition {
    /// `includes`: every capability, one of the architectures, and the kernel.
    fn all(&self, machine: Machine, capabilities: u64, release: &str) -> bool {
        self.caps.iter().flatten().all(|name| has(capabilities, name))
            && self.arches.as_ref().is_none_or(|arches| arches.is_empty() || matches_one(arches, machine))
            && self.min_kernel.as_deref().is_none_or(|minimum| version(release) >= version(minimum))
    }

    /// `excludes`: any capability, any of the architectures, or the kernel.
    fn any(&self, machine: Machine, capabilities: u64, release: &str) -> bool {
        self.caps.iter().flatten().any(|name| has(capabilities, name))
            || self.arches.as_ref().is_some_and(|arches| matches_one(arches, machine))
            || self.min_kernel.as_deref().is_some_and(|minimum| version(release) >= version(minimum))
    }
}

fn has(capabilities: u64, name: &str) -> bool {
    Capability::from_str(name).is_ok_and(|capability| capabilities & capability.bitmask() != 0)
}

/// Go's names of architectures.
fn matches_one(arches: &[String], machine: Machine) -> bool {
    let own = match machine {
        Machine::X86_64 => "amd64",
        Machine::Aarch64 => "arm64",
    };
    arches.iter().any(|name| name == own)
}

/// Major and minor of `6.18.4-x`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
