//! One actor per pod: observe, plan, execute.

pub mod handle;
