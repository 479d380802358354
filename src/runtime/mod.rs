//! The agent's side of a sandbox: what its supervisor is told, worked out from a pod, and how it is started and talked to.

pub mod app_armor;
pub mod attempt;
pub mod capabilities;
pub mod client;
pub mod config_error;
pub mod devices;
pub mod env;
pub mod env_file;
pub mod expansion;
pub mod launch;
pub mod limits;
pub mod mounts;
pub mod oom;
pub mod process;
pub mod sandbox;
pub mod seccomp;
pub mod security;
pub mod service_env;
pub mod spare;
pub mod spawn;
pub mod sysctls;
pub mod users;

pub use crate::api::{container_ref, downward};
