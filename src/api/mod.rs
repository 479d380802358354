//! Kubernetes objects and what is computed from them alone. No I/O, no clock.

pub mod qos;
pub mod quantity;
pub mod unsupported;
