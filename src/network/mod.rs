//! What a pod sees of names: `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, as the kubelet and its runtimes
//! write them. Addresses and links are the business of the `berth-cni` crate.
//!
//! [`PodFiles::generate`] computes the three texts from the pod and what is known of the node, without I/O;
//! [`write_files`] puts them where containers bind them from.

pub mod files;
pub mod hostname;
pub mod hosts_file;
pub mod resolv_conf;

pub use files::{FileError, NodeNames, PodFiles, ReadError, read_host_resolv_conf, write_files};
pub use hostname::{HostnameError, PodHostname};
pub use resolv_conf::DnsConfig;

use k8s_openapi::api::core::v1::Pod;

/// The pod uses the host's network namespace.
fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

#[cfg(test)]
pub(crate) mod testing {
    use k8s_openapi::api::core::v1::{Pod, PodSpec};

    /// A pod `ns/web` whose spec is changed by `change`.
    pub(crate) fn pod(change: impl FnOnce(&mut PodSpec)) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".to_owned());
        pod.metadata.namespace = Some("ns".to_owned());
        let mut spec = PodSpec { dns_policy: Some("ClusterFirst".to_owned()), ..PodSpec::default() };
        change(&mut spec);
        pod.spec = Some(spec);
        pod
    }
}
