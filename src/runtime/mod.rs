//! The agent's side of a sandbox: starting its supervisor, and talking to it.

pub mod client;
pub mod spawn;
pub mod attempt;
pub mod capabilities;
pub mod config_error;
pub mod container_ref;
pub mod downward;
pub mod env;
pub mod expansion;
pub mod launch;
pub mod mounts;
pub mod oom;
pub mod process;
pub mod sandbox;
pub mod security;
pub mod sysctls;
