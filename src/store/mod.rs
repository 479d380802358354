//! The ledger on disk: where everything is, and how it is written so that a crash loses nothing.

pub mod durable;
pub mod layout;
