//! What the agent says of itself: its log, how errors are printed, and the events of pods.

pub mod chain;
pub mod events;
pub mod logging;
