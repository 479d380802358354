//! berth: a Kubernetes node agent in one program.
//!
//! A source (a directory of manifests) emits the pods it wants; [`pod`] decides, purely, what is to be done;
//! [`worker`] runs one actor per pod that observes, plans and executes; [`runtime`] talks to the pod's own small
//! [`supervisor`] process, which clones, sets up and execs containers and writes their logs and exit records.
//! ARCHITECTURE.md has the bird's-eye view, who may import whom, and the invariants.

pub mod api;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod control;
pub mod csi;
pub mod device;
pub mod image;
pub mod network;
pub mod obs;
pub mod plugin;
pub mod pod;
pub mod probe;
pub mod runtime;
pub mod server;
pub mod source;
pub mod store;
pub mod supervisor;
pub mod sys;
pub mod volume;
pub mod worker;
