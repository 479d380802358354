//! Every raw system call, and the only home of `unsafe`: what std and nix do not offer, made safe to use.

pub mod beneath;
pub mod bpf;
pub mod caps;
pub mod epoll;
pub mod exec;
pub mod file;
pub mod ids;
pub mod inode_flags;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod node;
pub mod openat2;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod seccomp;
pub mod seqpacket;
pub mod session;
pub mod signal;
pub mod spawn;
pub mod stream;
pub mod terminal;
