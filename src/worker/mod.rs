//! One actor per pod: observe, plan, execute. The manager keeps the set of actors; only [`execute`] touches the
//! host.

pub mod actor;
#[cfg(test)]
mod actor_tests;
pub mod execute;
pub mod handle;
mod hooks;
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
mod room;
mod ruleset;
pub mod run;
pub mod shared;
mod teardown;
#[cfg(test)]
mod testing;
mod updates;
mod volumes;
mod watch;
