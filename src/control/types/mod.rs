//! Every type that is served, as a declaration. A new one is a line in [`ALL`] and a declaration in the file of its
//! group, with what berth knows of it beyond its fields. A type whose objects allow or restrict
//! something (roles, quotas, webhooks, …) is not here before somebody heeds them.

mod apps;
mod batch;
mod cells;
mod config;
mod events;
mod namespaces;
mod nodes;
mod others;
mod pods;
mod reviews;
mod services;
mod storage;
#[cfg(test)]
mod tests;
mod workload;

use super::registry::resource::Resource;

/// In the order of discovery.
pub static ALL: &[&Resource] = &[
    &config::CONFIG_MAPS,
    &services::ENDPOINTS,
    &events::EVENTS,
    &namespaces::NAMESPACES,
    &nodes::NODES,
    &storage::CLAIMS,
    &storage::VOLUMES,
    &pods::PODS,
    &others::POD_TEMPLATES,
    &config::SECRETS,
    &config::SERVICE_ACCOUNTS,
    &services::SERVICES,
    &apps::DAEMON_SETS,
    &apps::DEPLOYMENTS,
    &apps::REPLICA_SETS,
    &reviews::SELF_SUBJECT_REVIEWS,
    &reviews::SELF_SUBJECT_ACCESS_REVIEWS,
    &reviews::SUBJECT_ACCESS_REVIEWS,
    &reviews::LOCAL_SUBJECT_ACCESS_REVIEWS,
    &batch::JOBS,
    &nodes::LEASES,
    &services::ENDPOINT_SLICES,
    &others::RUNTIME_CLASSES,
    &others::PRIORITY_CLASSES,
    &storage::DRIVERS,
    &storage::CSI_NODES,
    &storage::CLASSES,
];
