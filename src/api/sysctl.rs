//! Names of kernel parameters: their two notations, the namespace that holds each, and which a pod may set.

/// Parameters that are namespaced and concern nobody but the pod itself (upstream's list; all of them exist since
/// Linux 4.15).
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The namespace that holds a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// The network namespace.
    Net,
    /// The IPC namespace.
    Ipc,
    /// None: setting it would change the whole machine.
    Host,
}

/// Where the parameter `name` (in either notation) lives.
pub fn namespace(name: &str) -> Namespace {
    let name = with_dots(name);
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name.starts_with("net.") {
        Namespace::Net
    } else if name == "kernel.sem" || ipc.iter().any(|prefix| name.starts_with(prefix)) {
        Namespace::Ipc
    } else {
        Namespace::Host
    }
}

/// The name with dots between its parts. As in sysctl.d(5), a name whose first separator is a slash is written the
/// other way round: `net/ipv4/conf/eth0.1/forwarding` is `net.ipv4.conf.eth0/1.forwarding`.
pub fn with_dots(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => {
            let swapped = name.chars().map(|character| match character {
                '/' => '.',
                '.' => '/',
                other => other,
            });
            swapped.collect()
        }
        _ => name.to_owned(),
    }
}

/// Whether a pod may set `name`: it is safe, or the node's allowedUnsafeSysctls (names, or prefixes that end in `*`)
/// have it.
pub fn is_allowed(name: &str, allowed_unsafe: &[String]) -> bool {
    let name = with_dots(name);
    let listed = |pattern: &String| {
        let pattern = with_dots(pattern);
        pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
    };
    SAFE.contains(&name.as_str()) || allowed_unsafe.iter().any(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_two_notations() {
        for (name, dotted) in [
            ("net.ipv4.tcp_rmem", "net.ipv4.tcp_rmem"),
            ("net/ipv4/tcp_rmem", "net.ipv4.tcp_rmem"),
            ("net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "net.ipv4.conf.eth0/1.forwarding"),
            ("plain", "plain"),
        ] {
            assert_eq!(with_dots(name), dotted);
        }
    }

    #[test]
    fn a_name_lives_in_one_namespace() {
        assert_eq!(namespace("net/core/somaxconn"), Namespace::Net);
        for name in ["kernel.sem", "kernel.shmmax", "kernel.msgmni", "fs.mqueue.msg_max", "kernel/shm_rmid_forced"] {
            assert_eq!(namespace(name), Namespace::Ipc, "{name}");
        }
        for name in ["kernel.semaphore", "vm.swappiness", "fs.file-max", "netfilter"] {
            assert_eq!(namespace(name), Namespace::Host, "{name}");
        }
    }

    #[test]
    fn unsafe_ones_need_the_nodes_permission() {
        let allowed = |name: &str, patterns: &[&str]| {
            is_allowed(name, &patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>())
        };
        assert!(allowed("net/ipv4/tcp_syncookies", &[]));
        assert!(!allowed("kernel.msgmax", &["kernel.shm*", "kernel.msg"]));
        assert!(allowed("kernel.msgmax", &["kernel.msg*"]));
        assert!(allowed("kernel.msgmax", &["kernel/msgmax"]));
    }
}
