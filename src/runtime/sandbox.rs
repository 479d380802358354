//! The sandbox a pod asks for.

use k8s_openapi::api::core::v1::Pod;

use super::{config_error::ConfigError, oom, sysctls::sysctls};
use crate::supervisor::spec::{CgroupPlacement, IdRange, SandboxSpec, VERSION};

/// What a sandbox needs beyond the pod's own fields.
#[derive(Debug)]
pub struct SandboxInput<'a> {
    /// An admitted pod, with its defaults.
    pub pod: &'a Pod,
    /// Counts the pod's sandboxes, from 1.
    pub generation: u32,
    /// Host name (`network::hostname`); without effect with hostNetwork.
    pub hostname: &'a str,
    /// NIS domain name; empty leaves it alone.
    pub domainname: &'a str,
    /// Where the supervisor goes.
    pub cgroup: CgroupPlacement,
    /// Ids of the pod's user namespace (hostUsers false).
    pub users: Option<IdRange>,
    /// The node's allowedUnsafeSysctls.
    pub allowed_unsafe_sysctls: &'a [String],
}

/// The namespaces of a pod and what is set in them. An error is final: the pod can never run on this node.
pub fn sandbox_spec(input: SandboxInput<'_>) -> Result<SandboxSpec, ConfigError> {
    let SandboxInput { pod, generation, hostname, domainname, cgroup, users, allowed_unsafe_sysctls } = input;
    let spec = pod.spec.as_ref();
    let set = |field: Option<bool>| field == Some(true);
    let host_network = spec.is_some_and(|spec| set(spec.host_network));
    let metadata = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Ok(SandboxSpec {
        version: VERSION,
        generation,
        pod_uid: text(&metadata.uid),
        pod: format!("{}/{}", text(&metadata.namespace), text(&metadata.name)),
        hostname: hostname.to_owned(),
        domainname: domainname.to_owned(),
        new_net: !host_network,
        new_ipc: !spec.is_some_and(|spec| set(spec.host_ipc)),
        // A pod in the host's network answers to the host's name.
        new_uts: !host_network,
        // hostPID goes first; validation refuses both.
        shared_pid: spec.is_some_and(|spec| set(spec.share_process_namespace) && !set(spec.host_pid)),
        users,
        sysctls: sysctls(pod, users, allowed_unsafe_sysctls)?,
        cgroup,
        oom_score_adj: oom::SANDBOX,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::runtime::config_error::Reason;

    fn of(spec: Value) -> Result<SandboxSpec, ConfigError> {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "app"}]);
        let pod = json!({"metadata": {"name": "web", "namespace": "prod", "uid": "u"}, "spec": spec});
        let pod = serde_json::from_value(pod).unwrap();
        let cgroup = CgroupPlacement::default();
        sandbox_spec(SandboxInput {
            pod: &pod,
            generation: 1,
            hostname: "web",
            domainname: "",
            cgroup,
            users: None,
            allowed_unsafe_sysctls: &[],
        })
    }

    #[test]
    fn a_pod_has_its_own_namespaces_unless_it_asks_for_the_hosts() {
        let namespaces = |spec: Value| {
            let spec = of(spec).unwrap();
            (spec.new_net, spec.new_ipc, spec.new_uts, spec.shared_pid)
        };
        assert_eq!(namespaces(json!({})), (true, true, true, false));
        assert_eq!(namespaces(json!({"hostNetwork": true})), (false, true, false, false));
        assert_eq!(namespaces(json!({"hostIPC": true})), (true, false, true, false));
        assert_eq!(namespaces(json!({"shareProcessNamespace": true})), (true, true, true, true));
        assert_eq!(namespaces(json!({"hostPID": true, "shareProcessNamespace": true})), (true, true, true, false));
        let spec = of(json!({})).unwrap();
        assert_eq!((spec.pod.as_str(), spec.hostname.as_str(), spec.oom_score_adj), ("prod/web", "web", -998));
    }

    #[test]
    fn a_forbidden_sysctl_is_final() {
        let context = json!({"sysctls": [{"name": "vm.swappiness", "value": "1"}]});
        assert_eq!(of(json!({"securityContext": context})).unwrap_err().reason, Reason::SysctlForbidden);
    }
}
