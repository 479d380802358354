//! One actor per pod: observe, plan, execute. The manager keeps the set of actors; only [`execute`] touches the
//! host.

pub mod actor;
pub mod execute;
pub mod handle;
pub mod host;
mod inputs;
mod machine;
pub mod manager;
pub mod node;
pub mod record;
pub mod records;
mod recover;
pub mod run;
pub mod shared;
mod teardown;
mod watch;
