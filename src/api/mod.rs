//! Kubernetes objects and what is computed from them alone. No I/O, no clock.

pub mod app_armor;
pub mod conditions;
pub mod container_ref;
pub mod content;
pub mod decode;
pub mod defaults;
pub mod downward;
pub mod duration;
pub mod json;
pub mod manifest;
pub mod object;
pub mod object_defaults;
pub mod objects;
pub mod problem;
pub mod qos;
pub mod quantity;
pub mod references;
pub mod resources;
pub mod signals;
pub mod static_object;
pub mod static_pod;
pub mod sysctl;
pub mod unsupported;
pub mod update;
pub mod validation;
