//! Images: from a registry, a layout or an archive into directories that overlayfs can mount.
//!
//! [`ImageStore`] is the whole interface. A pull resolves the reference ([`mod@reference`]), asks the registry or its
//! mirrors, chooses the platform, and streams every layer that is not here through its digests into a directory of its
//! own ([`unpack`]), which gets its final name when all of it is on disk. The image is recorded last.

mod archive;
pub mod config;
pub mod digest;
pub mod error;
mod fetch;
mod index;
pub mod keyring;
mod layers;
mod load;
mod manifest;
pub mod policy;
mod pull;
mod rebuild;
pub mod reference;
mod registry;
mod skeleton;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod unpack;

pub use self::{
    config::{Credentials, ImageConfig, Mirror, Platform, RegistryConfig, RetryPolicy},
    error::{ImageError, Reason, RegistryError},
    index::Image,
    keyring::Keyring,
    manifest::ImageRunConfig,
    policy::{Decision, PullPolicy},
    pull::{Progress, ProgressSink, Pulled},
    reference::ImageReference,
    store::{ImageStore, PruneScope, Pruned, Removed},
};

/// Sixteen hexadecimal digits nobody can guess: names of temporary things.
pub(crate) fn random_name() -> String {
    let mut bytes = [0u8; 8];
    // Without randomness (never on Linux once booted) the time still tells two names apart.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = (now.as_nanos() as u64).to_le_bytes();
    }
    format!("{:016x}", u64::from_le_bytes(bytes))
}
