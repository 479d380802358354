//! One actor per pod: observe, plan, execute. The manager keeps the set of actors; only [`execute`] touches the
//! host.

pub mod actor;
#[cfg(test)]
mod actor_tests;
pub mod claims;
pub mod execute;
mod far_volumes;
pub mod handle;
mod helper;
pub mod host;
mod inputs;
mod machine;
pub mod manager;
#[cfg(test)]
mod manager_tests;
pub mod node;
pub mod record;
pub mod records;
mod recover;
#[cfg(test)]
mod recover_tests;
mod resize;
mod ruleset;
pub mod run;
pub mod shared;
mod storage;
mod teardown;
#[cfg(test)]
mod testing;
mod updates;
mod volumes;
mod watch;
