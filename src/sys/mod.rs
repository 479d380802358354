//! (to be written)

pub mod inode_flags;
