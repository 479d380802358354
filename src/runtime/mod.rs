//! The agent's side of a sandbox.

pub mod seccomp;
