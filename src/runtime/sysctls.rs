//! Kernel parameters of a pod: which may be set, and which every pod has.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::config_error::ConfigError;
use crate::{
    api::sysctl::{Namespace, is_allowed, namespace, with_dots},
    supervisor::spec::IdRange,
};

/// What containerd sets in the network namespace of a pod so that a container needs neither CAP_NET_BIND_SERVICE nor
/// CAP_NET_RAW for a port below 1024 or a ping.
/// In a user namespace, groups are counted as that counts them, and only those it has can be named.
fn defaults(users: Option<IdRange>) -> [(&'static str, String); 2] {
    let last_group = users.map_or(i32::MAX as u32, |users| users.count - 1);
    [("net.ipv4.ip_unprivileged_port_start", "0".to_owned()), ("net.ipv4.ping_group_range", format!("0 {last_group}"))]
}

/// What is to be set in the pod's namespaces, in order. `allowed_unsafe` are the node's allowedUnsafeSysctls: names, or
/// prefixes that end in `*`.
pub fn sysctls(
    pod: &Pod,
    users: Option<IdRange>,
    allowed_unsafe: &[String],
) -> Result<Vec<(String, String)>, ConfigError> {
    let Some(spec) = &pod.spec else { return Ok(Vec::new()) };
    let own = asked(spec, allowed_unsafe)?;
    let mut all = Vec::new();
    if spec.host_network != Some(true) {
        let missing = defaults(users).into_iter().filter(|(name, _)| !own.iter().any(|(own, _)| own == name));
        all.extend(missing.map(|(name, value)| (name.to_owned(), value)));
    }
    all.extend(own);
    Ok(all)
}

fn asked(spec: &PodSpec, allowed_unsafe: &[String]) -> Result<Vec<(String, String)>, ConfigError> {
    let list = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    let mut own = Vec::new();
    for (index, sysctl) in list.into_iter().flatten().enumerate() {
        let name = with_dots(&sysctl.name);
        let forbidden = |why: &str| {
            let field = format!("spec.securityContext.sysctls[{index}]");
            Err(ConfigError::sysctl(field, format!("forbidden sysctl: {:?} {why}", sysctl.name)))
        };
        // Each part is the name of a file below /proc/sys, where a slash within it stands for a dot.
        let plain = |part: &str| !matches!(part, "" | "/" | "//") && !part.contains('\0');
        if !is_allowed(&name, allowed_unsafe) || !name.split('.').all(plain) {
            return forbidden("not allowlisted");
        }
        match namespace(&name) {
            Namespace::Net if spec.host_network == Some(true) => return forbidden("not allowed with host net enabled"),
            Namespace::Ipc if spec.host_ipc == Some(true) => return forbidden("not allowed with host ipc enabled"),
            Namespace::Host => return forbidden("is not namespaced"),
            Namespace::Net | Namespace::Ipc => own.push((name, sysctl.value.clone())),
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value, names: &[&str], allowed: &[&str]) -> Result<Vec<String>, String> {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let list: Vec<_> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        spec["securityContext"] = json!({"sysctls": list});
        let pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let allowed: Vec<_> = allowed.iter().map(|name| (*name).to_owned()).collect();
        let set = sysctls(&pod, None, &allowed).map_err(|error| error.message)?;
        Ok(set.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    const PORTS: &str = "net.ipv4.ip_unprivileged_port_start=0";
    const PING: &str = "net.ipv4.ping_group_range=0 2147483647";

    #[test]
    fn a_network_of_its_own_has_containerds_defaults() {
        assert_eq!(of(json!({}), &[], &[]), Ok(vec![PORTS.into(), PING.into()]));
        assert_eq!(of(json!({"hostNetwork": true}), &[], &[]), Ok(vec![]));
        let own = of(json!({}), &["net.ipv4.ip_unprivileged_port_start"], &[]);
        assert_eq!(own, Ok(vec![PING.into(), "net.ipv4.ip_unprivileged_port_start=1".into()]));
        let users = Some(IdRange { first: 1 << 20, count: 1 << 16 });
        let inside = sysctls(&Pod { spec: Some(PodSpec::default()), ..Pod::default() }, users, &[]).unwrap();
        assert_eq!(inside[1], ("net.ipv4.ping_group_range".to_owned(), "0 65535".to_owned()));
    }

    #[test]
    fn safe_ones_are_set_and_unsafe_ones_only_where_the_node_allows() {
        let last = |names: &[&str], allowed: &[&str]| {
            of(json!({}), names, allowed).map(|set| set.last().cloned().unwrap_or_default())
        };
        assert_eq!(last(&["kernel.shm_rmid_forced"], &[]), Ok("kernel.shm_rmid_forced=1".into()));
        assert_eq!(last(&["net/ipv4/tcp_syncookies"], &[]), Ok("net.ipv4.tcp_syncookies=1".into()));
        let refused = Err("forbidden sysctl: \"kernel.msgmax\" not allowlisted".into());
        assert_eq!(last(&["kernel.msgmax"], &[]), refused);
        assert_eq!(last(&["kernel.msgmax"], &["kernel.shm*"]), refused);
        assert_eq!(last(&["kernel.msgmax"], &["kernel.msg*"]), Ok("kernel.msgmax=1".into()));
        assert_eq!(last(&["kernel.msgmax"], &["kernel.msgmax"]), Ok("kernel.msgmax=1".into()));
        let vlan = "net/ipv4/conf/eth0.1/forwarding";
        assert_eq!(last(&[vlan], &["net.*"]), Ok("net.ipv4.conf.eth0/1.forwarding=1".into()));
        for name in
            ["vm.swappiness", "kernel.hostname", "net...", "kernel.shm_rmid_forced/../../vm", "net/../vm/swappiness"]
        {
            assert!(last(&[name], &["*"]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_belongs_to_the_host_is_not_set() {
        let refused = of(json!({"hostNetwork": true}), &["net.ipv4.tcp_syncookies"], &[]);
        assert_eq!(
            refused,
            Err("forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled".into())
        );
        let refused = of(json!({"hostIPC": true}), &["kernel.shm_rmid_forced"], &[]);
        assert_eq!(
            refused,
            Err("forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled".into())
        );
        assert!(of(json!({"hostIPC": true}), &["net.ipv4.tcp_syncookies"], &[]).is_ok());
    }
}
