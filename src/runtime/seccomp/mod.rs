//! Seccomp: from a profile to the filter program of a container, for [`LaunchSpec::seccomp`].
//!
//! [`LaunchSpec::seccomp`]: crate::supervisor::spec::LaunchSpec::seccomp

mod bpf;
mod compile;
mod file;
pub mod machine;
mod profile;

#[cfg(test)]
mod filter_tests;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use oci_spec::runtime::LinuxSeccomp;

use self::machine::Machine;

/// A profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file cannot be read.
    #[error("read seccomp profile {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Not a regular file, or far too large.
    #[error("{path} is not a seccomp profile: it must be a file of at most 4 MiB")]
    NotAProfile {
        /// The path.
        path: PathBuf,
    },
    /// Not JSON, or not in the form of a profile.
    #[error("decode seccomp profile {path}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// A rule is not in the form of one.
    #[error("decode syscalls[{index}] of seccomp profile {path}")]
    DecodeRule {
        /// The file.
        path: PathBuf,
        /// Which, from 0.
        index: usize,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// The profile is well-formed but cannot be compiled.
    #[error("compile seccomp profile {path}")]
    Compile {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<SeccompError>,
    },
    /// A rule means nothing.
    #[error("syscalls[{index}] ({name}): {reason}")]
    Rule {
        /// Which, from 0 (of those that apply on this machine).
        index: usize,
        /// Its first system call.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Something a profile may ask for that berth does not do.
    #[error("{what} is not supported")]
    Unsupported {
        /// What.
        what: String,
    },
    /// The program would be longer than the kernel takes.
    #[error("the filter would have {instructions} instructions, more than the kernel's 4096")]
    TooLong {
        /// How many.
        instructions: usize,
    },
}

/// Compiles a profile for this machine. Instructions are packed as `code << 48 | jt << 40 | jf << 32 | k`.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u64>, SeccompError> {
    compile::compile(Machine::NATIVE, profile)
}

/// The RuntimeDefault filter for a container with these capabilities (bit = number). Compiled once for each set of
/// capabilities that makes a difference.
pub fn runtime_default(capabilities: u64) -> Arc<[u64]> {
    static COMPILED: Mutex<BTreeMap<u64, Arc<[u64]>>> = Mutex::new(BTreeMap::new());
    let key = capabilities & profile::relevant_capabilities();
    // A thread that panicked in between has left the map as it was or with one entry more.
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let filter = compiled.entry(key).or_insert_with(|| {
        let profile = profile::runtime_default(Machine::NATIVE, key);
        // Our own data; that every set of capabilities compiles is a test.
        compile(&profile).expect("the RuntimeDefault profile compiles").into()
    });
    Arc::clone(filter)
}

/// The RuntimeDefault profile for a container with these capabilities, as a runtime reads it.
pub fn default_profile(capabilities: u64) -> LinuxSeccomp {
    profile::runtime_default(Machine::NATIVE, capabilities & profile::relevant_capabilities())
}

/// The profile in a file, for a container with these capabilities, as a runtime reads it.
pub fn localhost_profile(path: &Path, capabilities: u64) -> Result<LinuxSeccomp, SeccompError> {
    let release = nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .map_err(|errno| SeccompError::Read { path: PathBuf::from("uname"), source: errno.into() })?;
    file::read(path, Machine::NATIVE, capabilities, &release)
}

/// The filter of a profile file, for a container with these capabilities.
pub fn localhost(path: &Path, capabilities: u64) -> Result<Vec<u64>, SeccompError> {
    let profile = localhost_profile(path, capabilities)?;
    compile(&profile).map_err(|source| SeccompError::Compile { path: path.to_owned(), source: Box::new(source) })
}
