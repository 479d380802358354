//! What the agent says of itself: its log, and how errors are printed.

pub mod chain;
pub mod event_file;
pub mod events;
pub mod logging;
