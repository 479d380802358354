//! What the agent serves on this machine: an HTTP API and a descriptor-passing socket in its run directory.

pub mod logs;
