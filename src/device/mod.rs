//! Device plugins: the socket they register at, the connection to each, and what they offer.
//!
//! Everything here is about the plugins that are there now. Which pod has which device is in the pods' records and nowhere
//! else; what is given to whom is decided in [`crate::pod::devices`].

pub mod cdi;
mod client;
mod registration;
mod registry;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

pub use self::{
    client::{Plugin, PluginError},
    registration::{ListenError, listen},
    registry::{Devices, RegisterError},
    socket::{accept, listen_at},
};
