//! What the agent serves on this machine: an HTTP API and a descriptor-passing socket in its run directory.

pub mod attach;
pub mod events;
pub mod find;
pub mod images;
pub mod local;
pub mod logs;
pub mod pod_resources;
pub mod socket;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
