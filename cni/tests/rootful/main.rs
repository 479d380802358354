//! The network as packets see it. Each test makes a host, an outside and pods as network namespaces of its own;
//! the machine it runs on is left alone.

mod lifecycle;
mod sctp;
mod traffic;
mod world;
