//! One actor per pod: observe, plan, execute. The manager keeps the set of actors; only [`execute`] touches the
//! host.

pub mod actor;
pub mod handle;
pub mod host;
pub mod manager;
pub mod node;
pub mod record;
pub mod records;
