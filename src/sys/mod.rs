//! Every raw system call, and the only home of `unsafe`: what std and nix do not offer, made safe to use.

pub mod epoll;
pub mod memfd;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod seqpacket;
pub mod signal;
pub mod stream;
pub mod terminal;
