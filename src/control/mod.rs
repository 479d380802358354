//! The control plane: what stands in for an API server where there is none. A request is authenticated ([`authn`]),
//! authorized ([`authz`]) and answered ([`rest`]) from one registry of all types ([`registry`], declared in [`types`]) over
//! a store with revisions and history ([`storage`]). It knows nothing of the node side; they meet as any client and any
//! server do.

pub mod authn;
pub mod authz;
pub mod controllers;
pub mod error;
pub mod openapi;
pub mod pki;
pub mod registry;
pub mod rest;
pub mod start;
pub mod storage;
pub mod types;
pub mod wire;
