//! Decisions about pods, all of them pure.

pub mod admission;
pub mod desired;
