//! From the merged documents to the values the agent runs with.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use berth_cni::NetworkConfig;
use ipnet::IpNet;

use super::{
    EventLimits, ImageCollection, LogFormat, LogOptions, NodeConfig, Registry, berth,
    document::{Node, Value},
    handlers, identity, kubelet, managers, reserved,
    schema::{Field, Findings, Shape},
    values::{format_duration, parse_bytes, parse_duration},
};
use crate::{device::cdi, obs::chain::Chain, runtime::users::UNIT, store::layout::Layout};

/// What the machine says of itself, where a default depends on it. Tests make their own.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Host name.
    pub hostname: String,
    /// The file pods' resolv.conf is made from unless one is named.
    pub resolv_conf: PathBuf,
    /// Processors, for `podsPerCore`.
    pub processors: u32,
}

impl Environment {
    /// Asks the machine.
    pub fn detect() -> Environment {
        let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let processors = thread::available_parallelism().map_or(1, |count| count.get() as u32);
        Environment { hostname, resolv_conf: host_resolv_conf(Path::new("/")), processors }
    }
}

/// The resolver configuration that is of use to a pod. Where systemd-resolved runs, /etc/resolv.conf names its stub on
/// loopback, which no pod can reach (and which would make a DNS server in a pod ask itself); the file with the real
/// servers is then beside the stub's. `root` is `/` outside of tests.
fn host_resolv_conf(root: &Path) -> PathBuf {
    let usual = root.join("etc/resolv.conf");
    let real = root.join("run/systemd/resolve/resolv.conf");
    let text = fs::read_to_string(&usual).unwrap_or_default();
    let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).peekable();
    let only_stub = servers.peek().is_some() && servers.all(|server| server == "127.0.0.53");
    if only_stub && real.exists() { real } else { usual }
}

/// Reads fields of one document with the defaults of its table. A value of the wrong shape was already reported and
/// reads as its default.
struct Reader<'a> {
    node: &'a Node,
    fields: &'static [Field],
}

impl Reader<'_> {
    fn value(&self, path: &str) -> Option<Value> {
        let mut fields = self.fields;
        let mut found = None;
        for name in path.split('.') {
            let field = fields.iter().find(|field| field.name == name)?;
            if let Shape::Object(inner) = field.shape {
                fields = inner;
            }
            found = Some(field);
        }
        self.node.at(path).map(|node| node.value.clone()).or_else(|| found?.default.to_value())
    }

    fn text(&self, path: &str) -> Option<String> {
        match self.value(path)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from)
    }

    fn bool(&self, path: &str) -> bool {
        self.value(path) == Some(Value::Bool(true))
    }

    fn integer(&self, path: &str) -> i64 {
        match self.value(path) {
            Some(Value::Integer(value)) => value,
            _ => 0,
        }
    }

    fn count(&self, path: &str) -> u32 {
        u32::try_from(self.integer(path)).unwrap_or(0)
    }

    fn duration(&self, path: &str) -> Duration {
        self.text(path).and_then(|text| parse_duration(&text).ok()).unwrap_or_default()
    }

    fn bytes(&self, path: &str) -> u64 {
        match self.value(path) {
            Some(Value::Integer(value)) => u64::try_from(value).unwrap_or(0),
            Some(Value::Text(text)) => parse_bytes(&text).unwrap_or(0),
            _ => 0,
        }
    }
}

pub(super) fn texts(node: Option<&Node>) -> Vec<(&Node, &str)> {
    match node.map(|node| &node.value) {
        Some(Value::List(items)) => items
            .iter()
            .filter_map(|item| match &item.value {
                Value::Text(text) => Some((item, text.as_str())),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Resolves; what is wrong goes to `findings`, and the result is then of no use.
pub(super) fn resolve(
    kubelet_node: &Node,
    berth_node: &Node,
    environment: &Environment,
    findings: &mut Findings,
) -> NodeConfig {
    let kubelet = Reader { node: kubelet_node, fields: kubelet::FIELDS };
    let berth = Reader { node: berth_node, fields: berth::FIELDS };
    let layout = Layout {
        root: berth.path("storage.rootDirectory").unwrap_or_default(),
        run: berth.path("storage.runDirectory").unwrap_or_default(),
        log: kubelet.path("podLogsDir").unwrap_or_default(),
    };
    for path in ["storage.rootDirectory", "storage.runDirectory"] {
        absolute(berth_node, path, findings);
    }
    for path in ["podLogsDir", "staticPodPath", "cgroupRoot"] {
        absolute(kubelet_node, path, findings);
    }
    ranges(kubelet_node, &kubelet, findings);
    ids_per_pod(kubelet_node, &kubelet, findings);
    let per_core = kubelet.count("podsPerCore").saturating_mul(environment.processors);
    let max_pods = kubelet.count("maxPods");
    let reserved = reserved::amounts(kubelet_node, environment, findings);
    NodeConfig {
        seccomp_root: layout.root.join("seccomp"),
        layout,
        cgroup_root: kubelet.path("cgroupRoot").unwrap_or_default(),
        node_name: node_name(berth_node, environment, findings),
        node_labels: identity::labels(berth_node, findings),
        taints: identity::taints(kubelet_node, findings),
        pod_manifest_path: kubelet.path("staticPodPath"),
        static_pod_url: static_pod_url(kubelet_node, findings),
        static_pod_url_headers: headers(kubelet_node),
        file_check_frequency: kubelet.duration("fileCheckFrequency"),
        http_check_frequency: kubelet.duration("httpCheckFrequency"),
        max_pods: if per_core == 0 { max_pods } else { max_pods.min(per_core) },
        pod_pids_limit: u64::try_from(kubelet.integer("podPidsLimit")).ok().filter(|limit| *limit > 0),
        cpu_cfs_quota: kubelet.bool("cpuCFSQuota"),
        cpu_cfs_quota_period: kubelet.duration("cpuCFSQuotaPeriod"),
        managers: managers::managers(kubelet_node, &reserved, findings),
        reserved,
        enforce_allocatable: reserved::enforces_pods(kubelet_node, findings),
        limited_swap: kubelet.text("memorySwap.swapBehavior").as_deref() == Some("LimitedSwap"),
        fail_swap_on: kubelet.bool("failSwapOn"),
        memory_throttling_factor: reserved::throttling_factor(kubelet_node, findings),
        reserve_memory: kubelet.text("memoryReservationPolicy").as_deref() == Some("TieredReservation"),
        container_log_max_size: kubelet.bytes("containerLogMaxSize"),
        container_log_max_files: kubelet.count("containerLogMaxFiles"),
        cluster_dns: cluster_dns(kubelet_node, findings),
        cluster_domain: kubelet.text("clusterDomain").unwrap_or_default(),
        resolv_conf: kubelet.path("resolvConf").unwrap_or_else(|| environment.resolv_conf.clone()),
        allowed_unsafe_sysctls: texts(kubelet_node.get("allowedUnsafeSysctls"))
            .into_iter()
            .map(|(_, text)| text.to_owned())
            .collect(),
        ids_per_pod: kubelet.count("userNamespaces.idsPerPod"),
        seccomp_default: kubelet.bool("seccompDefault"),
        single_process_oom_kill: kubelet.bool("singleProcessOOMKill"),
        crash_loop_max: kubelet.duration("crashLoopBackOff.maxContainerRestartPeriod"),
        serialize_image_pulls: kubelet.bool("serializeImagePulls"),
        max_parallel_image_pulls: Some(kubelet.count("maxParallelImagePulls")).filter(|count| *count > 0),
        registry_qps: kubelet.count("registryPullQPS"),
        registry_burst: kubelet.count("registryBurst"),
        image_collection: ImageCollection {
            high_percent: kubelet.integer("imageGCHighThresholdPercent") as u8,
            low_percent: kubelet.integer("imageGCLowThresholdPercent") as u8,
            minimum_age: kubelet.duration("imageMinimumGCAge"),
            maximum_age: Some(kubelet.duration("imageMaximumGCAge")).filter(|age| !age.is_zero()),
        },
        registries: registries(berth_node, findings),
        registry_auth_file: berth.path("registryAuthFile"),
        handlers: handlers::handlers(berth_node, findings),
        cdi_directories: cdi_directories(berth_node, findings),
        network: network(kubelet_node, berth_node, &berth, findings),
        events: EventLimits {
            qps: kubelet.count("eventRecordQPS"),
            burst: kubelet.count("eventBurst"),
            kept: berth.count("events.kept") as usize,
        },
        log: LogOptions {
            format: match kubelet.text("logging.format").as_deref() {
                Some("json") => LogFormat::Json,
                _ => LogFormat::Text,
            },
            verbosity: kubelet.integer("logging.verbosity") as u8,
        },
        fail_cgroup_v1: kubelet.bool("failCgroupV1"),
        max_open_files: kubelet.integer("maxOpenFiles") as u64,
        oom_score_adj: kubelet.integer("oomScoreAdj") as i32,
        supervisor_oom_score_adj: berth.integer("supervisor.oomScoreAdj") as i32,
    }
}

/// Rules about one number or about two together; the same as upstream's validation.
fn ranges(node: &Node, kubelet: &Reader, findings: &mut Findings) {
    if let Some(high) = node.get("imageGCHighThresholdPercent").or(node.get("imageGCLowThresholdPercent")) {
        let (high_value, low) =
            (kubelet.integer("imageGCHighThresholdPercent"), kubelet.integer("imageGCLowThresholdPercent"));
        if low >= high_value {
            let message = format!("must be above imageGCLowThresholdPercent ({low}), found {high_value}");
            findings.mistake(high, "imageGCHighThresholdPercent", message);
        }
    }
    let mut within = |path: &str, low: Duration, high: Duration| {
        let (Some(written), value) = (node.at(path), kubelet.duration(path)) else { return };
        if !(low..=high).contains(&value) && matches!(&written.value, Value::Text(text) if parse_duration(text).is_ok())
        {
            let [low, high, value] = [low, high, value].map(format_duration);
            findings.mistake(written, path, format!("must be between {low} and {high}, found {value}"));
        }
    };
    within("cpuCFSQuotaPeriod", Duration::from_millis(1), Duration::from_secs(1));
    within("crashLoopBackOff.maxContainerRestartPeriod", Duration::from_secs(1), Duration::from_secs(300));
    if let (Some(written), true) = (node.get("maxParallelImagePulls"), kubelet.bool("serializeImagePulls"))
        && kubelet.count("maxParallelImagePulls") > 1
    {
        findings.mistake(written, "maxParallelImagePulls", "must be 1 unless serializeImagePulls is false");
    }
}

/// Rules about `userNamespaces.idsPerPod`, as upstream's.
fn ids_per_pod(node: &Node, kubelet: &Reader, findings: &mut Findings) {
    const PATH: &str = "userNamespaces.idsPerPod";
    let (Some(written), value) = (node.at(PATH), kubelet.integer(PATH)) else { return };
    let unit = i64::from(UNIT);
    let message = if value < unit {
        "must not be less than 65536"
    } else if value % unit != 0 {
        "must be a multiple of 65536"
    } else if value > i64::from(u32::MAX) {
        "must be less than 1<<32"
    } else {
        return;
    };
    findings.mistake(written, PATH, format!("{message}, found {value}"));
}

fn absolute(node: &Node, path: &str, findings: &mut Findings) {
    if let Some(written) = node.at(path)
        && let Value::Text(text) = &written.value
        && !text.starts_with('/')
    {
        findings.mistake(written, path, format!("must be an absolute path, found {text:?}"));
    }
}

fn node_name(node: &Node, environment: &Environment, findings: &mut Findings) -> String {
    let written = node.get("nodeName");
    let name = match written.map(|node| &node.value) {
        Some(Value::Text(text)) => text.trim().to_lowercase(),
        _ => environment.hostname.trim().to_lowercase(),
    };
    // A DNS subdomain (RFC 1123), as upstream demands of node names.
    let good_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(good_label) {
        let message = format!(
            "{name:?} is no node name (lower-case letters, digits, '-' and '.'); set one with --hostname-override"
        );
        findings.mistake(written.unwrap_or(&Node::empty()), "nodeName", message);
    }
    name
}

fn cluster_dns(node: &Node, findings: &mut Findings) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, (item, text)) in texts(node.get("clusterDNS")).into_iter().enumerate() {
        match text.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => findings.mistake(item, &format!("clusterDNS[{index}]"), format!("{text:?} is no IP address")),
        }
    }
    addresses
}

fn static_pod_url(node: &Node, findings: &mut Findings) -> Option<String> {
    let written = node.get("staticPodURL")?;
    let Value::Text(url) = &written.value else { return None };
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        findings.mistake(written, "staticPodURL", format!("must be an http or https URL, found {url:?}"));
    }
    Some(url.clone())
}

fn headers(node: &Node) -> Vec<(String, String)> {
    let Some(Value::Map(entries)) = node.get("staticPodURLHeader").map(|node| &node.value) else { return Vec::new() };
    let values = |(name, node)| texts(Some(node)).into_iter().map(move |(_, value)| (String::clone(name), value));
    entries
        .iter()
        .map(|(name, node)| (name, node))
        .flat_map(values)
        .map(|(name, value)| (name, value.to_owned()))
        .collect()
}

/// Where CDI specifications are; where everybody has them when nothing is written.
fn cdi_directories(node: &Node, findings: &mut Findings) -> Vec<PathBuf> {
    let written = texts(node.get("cdiSpecDirs"));
    if written.is_empty() {
        return cdi::DIRECTORIES.iter().map(PathBuf::from).collect();
    }
    for (index, (item, text)) in written.iter().enumerate().filter(|(_, (_, text))| !text.starts_with('/')) {
        findings.mistake(item, &format!("cdiSpecDirs[{index}]"), format!("{text:?} is not an absolute path"));
    }
    written.into_iter().map(|(_, text)| PathBuf::from(text)).collect()
}

fn network(kubelet: &Node, node: &Node, berth: &Reader, findings: &mut Findings) -> NetworkConfig {
    let before = findings.mistakes.len();
    let mut subnets: Vec<IpNet> = Vec::new();
    let mut add = |written: &Node, path: &str, text: &str| {
        let subnet = match text.trim().parse::<IpNet>() {
            Ok(subnet) => subnet.trunc(),
            Err(_) => {
                findings.mistake(written, path, format!("{text:?} is no subnet like 10.88.0.0/16"));
                return;
            }
        };
        // A gateway, one pod and (IPv4) a broadcast address are the least.
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            findings.mistake(written, path, format!("{subnet} has no room for pods"));
        }
        if subnets.iter().any(|other| other.addr().is_ipv4() == subnet.addr().is_ipv4()) {
            findings.mistake(written, path, format!("{subnet} is a second subnet of the same address family"));
        }
        subnets.push(subnet);
    };
    let written = node.at("network.subnets");
    for (index, (item, text)) in texts(written).into_iter().enumerate() {
        add(item, &format!("network.subnets[{index}]"), text);
    }
    if written.is_none()
        && let Some(written) = kubelet.get("podCIDR")
        && let Value::Text(text) = &written.value
    {
        text.split(',').for_each(|text| add(written, "podCIDR", text));
    }
    if subnets.is_empty() {
        subnets = NetworkConfig::default().subnets;
    }
    let bridge = berth.text("network.bridge").unwrap_or_default();
    // IFNAMSIZ is 16 with its terminator; '/' and spaces are refused by the kernel (dev_valid_name).
    if bridge.len() > 15 || bridge.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        let written = node.at("network.bridge").cloned().unwrap_or_else(Node::empty);
        findings.mistake(&written, "network.bridge", format!("{bridge:?} is no name for a link (at most 15 bytes)"));
    }
    let mtu = berth.count("network.mtu");
    if let (Some(written), 1..576) = (node.at("network.mtu"), mtu) {
        findings.mistake(written, "network.mtu", format!("must be 0 (the uplink's) or at least 576, found {mtu}"));
    }
    let network = NetworkConfig {
        bridge,
        subnets,
        mtu: Some(mtu).filter(|mtu| *mtu > 0),
        masquerade: berth.bool("network.masquerade"),
        hairpin: berth.bool("network.hairpin"),
        table: berth.text("network.table").unwrap_or_default(),
    };
    // The network's own rules about what is left; it does not know where a value was written.
    if findings.mistakes.len() == before
        && let Err(error) = network.validate()
    {
        let written = node.get("network").cloned().unwrap_or_else(Node::empty);
        findings.mistake(&written, "network", Chain(&error).to_string());
    }
    network
}

fn registries(node: &Node, findings: &mut Findings) -> Vec<Registry> {
    let Some(Value::List(items)) = node.get("registries").map(|node| &node.value) else { return Vec::new() };
    let mut registries: Vec<Registry> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let text = |name: &str| match item.get(name).map(|node| &node.value) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        let registry = Registry {
            host: text("host").unwrap_or_default(),
            mirrors: texts(item.get("mirrors")).into_iter().map(|(_, text)| text.to_owned()).collect(),
            plain_http: item.get("plainHTTP").map(|node| node.value == Value::Bool(true)),
            ca_file: text("caFile").map(PathBuf::from),
            username: text("username"),
            password_file: text("passwordFile").map(PathBuf::from),
        };
        let path = format!("registries[{index}]");
        if registry.host.is_empty() {
            findings.mistake(item, &path, "host is missing");
        } else if registry.host.contains('/') {
            let message = format!("host is the name as in references, without a scheme or path: {:?}", registry.host);
            findings.mistake(item, &path, message);
        } else if registries.iter().any(|other| other.host == registry.host) {
            findings.mistake(item, &path, format!("a second entry for {}", registry.host));
        }
        if registry.username.is_some() != registry.password_file.is_some() {
            findings.mistake(item, &path, "username and passwordFile belong together");
        }
        for mirror in registry.mirrors.iter().filter(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            findings.mistake(item, &path, format!("a mirror is an http or https URL, found {mirror:?}"));
        }
        registries.push(registry);
    }
    registries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_of_systemd_resolved_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/resolv.conf", "# stub\nnameserver 127.0.0.53\noptions edns0\n");
        assert_eq!(host_resolv_conf(root.path()), root.path().join("etc/resolv.conf"), "there is no other file");
        write("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n");
        assert_eq!(host_resolv_conf(root.path()), root.path().join("run/systemd/resolve/resolv.conf"));
        write("etc/resolv.conf", "nameserver 192.0.2.7\n");
        assert_eq!(host_resolv_conf(root.path()), root.path().join("etc/resolv.conf"));
    }
}
