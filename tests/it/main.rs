//! The one unprivileged integration binary: what holds for the whole tree.

mod architecture;
mod command_line;
mod fields;
mod licences;
mod support;
