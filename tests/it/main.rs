//! The one unprivileged integration binary: what holds for the whole tree.

mod architecture;
mod licences;
