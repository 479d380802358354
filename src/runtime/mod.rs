//! The agent's side of a sandbox: starting its supervisor, and talking to it.

pub mod client;
pub mod spawn;
