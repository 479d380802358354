//! The pod's own small process: pause, parent and scribe.

pub mod protocol;
pub mod spec;
