//! One actor per pod: observe, plan, execute. The manager keeps the set of actors; only [`execute`] touches the
//! host.

pub mod actor;
#[cfg(test)]
mod actor_tests;
pub mod claims;
mod csi;
mod devices;
mod env_file;
pub mod execute;
mod far_volumes;
mod granting;
#[cfg(test)]
mod granting_tests;
pub mod handle;
mod helper;
mod hooks;
pub mod host;
mod inputs;
mod machine;
pub mod manager;
#[cfg(test)]
mod manager_tests;
pub mod managers;
pub mod node;
mod object_ledger;
pub mod pool;
mod prober;
#[cfg(test)]
mod prober_tests;
mod probes;
mod pull;
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
mod storage;
pub(crate) mod sysfs;
mod teardown;
#[cfg(test)]
pub(crate) mod testing;
pub mod token;
mod updates;
mod volumes;
mod watch;
