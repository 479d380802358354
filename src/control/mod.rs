//! The control plane: what stands in for an API server where there is none. It knows nothing of the node side; they meet
//! as any client and any server do.

pub mod authn;
pub mod error;
pub mod pki;
pub mod storage;
