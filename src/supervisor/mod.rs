//! The pod's own small process: pause, parent and scribe.

pub mod container;
pub mod protocol;
pub mod spec;
