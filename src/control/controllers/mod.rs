//! What the control plane does by itself, as a client of the registry.

pub mod namespaces;
