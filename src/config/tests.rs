//! Loading as a whole: precedence, upstream files, and every mistake at once.

use std::{fs, net::IpAddr, path::PathBuf, time::Duration};

use super::*;

fn environment() -> Environment {
    Environment { hostname: "Node-1.Example".to_owned(), resolv_conf: "/etc/resolv.conf".into(), processors: 4 }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The mistakes, with the directory taken out.
    fn mistakes(&self, flags: &Flags) -> Vec<String> {
        let error = load(flags, &environment()).expect_err("the configuration was accepted");
        let prefix = format!("{}/", self.0.path().display());
        error.mistakes.iter().map(|mistake| mistake.to_string().replace(&prefix, "")).collect()
    }
}

fn of_file(text: &str) -> Result<Loaded, ConfigError> {
    let files = Files::new();
    let config = files.write("config.yaml", text);
    load(&Flags { config: Some(config), ..Flags::default() }, &environment())
}

const HEAD: &str = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
const BERTH_HEAD: &str = "kind: BerthConfiguration\napiVersion: berth.dev/v1alpha1\n";

#[test]
fn nothing_written_means_upstreams_defaults() {
    let loaded = load(&Flags::default(), &environment()).unwrap();
    let config = loaded.config;
    assert_eq!(config.node_name, "node-1.example");
    assert_eq!(config.layout.root, PathBuf::from("/var/lib/berth"));
    assert_eq!(config.layout.run, PathBuf::from("/run/berth"));
    assert_eq!(config.layout.log, PathBuf::from("/var/log/pods"));
    assert_eq!(config.cgroup_root, PathBuf::from("/"));
    assert_eq!(config.pod_manifest_path, None);
    assert_eq!(config.file_check_frequency, Duration::from_secs(20));
    assert_eq!(config.max_pods, 110);
    assert_eq!(config.pod_pids_limit, None);
    assert!(config.cpu_cfs_quota);
    assert_eq!(config.cpu_cfs_quota_period, Duration::from_millis(100));
    assert_eq!((config.container_log_max_size, config.container_log_max_files), (10 << 20, 5));
    assert_eq!(config.crash_loop_max, Duration::from_secs(300));
    assert_eq!((config.registry_qps, config.registry_burst), (5, 10));
    assert_eq!((config.image_collection.high_percent, config.image_collection.low_percent), (85, 80));
    assert_eq!(config.image_collection.maximum_age, None);
    assert!(config.serialize_image_pulls && !config.seccomp_default && !config.single_process_oom_kill);
    assert_eq!(config.resolv_conf, PathBuf::from("/etc/resolv.conf"));
    assert_eq!(config.seccomp_root, PathBuf::from("/var/lib/berth/seccomp"));
    assert_eq!(config.oom_score_adj, -999);
    assert_eq!(config.cdi_directories, ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from));
    assert_eq!(loaded.warning, None);
}

/// The shape that kubeadm writes: many zeroes, which mean "the default".
#[test]
fn a_generated_file_full_of_zeroes_means_defaults() {
    let loaded = of_file(include_str!("testdata/kubeadm.yaml")).unwrap();
    let config = loaded.config;
    assert_eq!(config.file_check_frequency, Duration::from_secs(20));
    assert_eq!(config.http_check_frequency, Duration::from_secs(20));
    assert_eq!(config.image_collection.minimum_age, Duration::from_secs(120));
    assert_eq!(config.cluster_dns, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    assert_eq!(config.cluster_domain, "cluster.local");
    assert_eq!(config.pod_manifest_path, Some("/etc/kubernetes/manifests".into()));
    assert_eq!(config.resolv_conf, PathBuf::from("/run/systemd/resolve/resolv.conf"));
    assert_eq!(
        loaded.warning.unwrap(),
        "accepted from the configuration, but not implemented and without effect: \
         authentication.x509.clientCAFile, cgroupDriver, rotateCertificates"
    );
}

/// Every field at once, each with a value of its type and most with one of their own.
#[test]
fn a_file_with_every_field_is_read() {
    let text = include_str!("testdata/every-field.yaml");
    let loaded = of_file(text).unwrap();
    assert_eq!(loaded.config.max_pods, 8, "podsPerCore 2 on 4 processors");
    assert_eq!(loaded.config.container_log_max_size, 50_000_000);
    assert_eq!(loaded.config.max_parallel_image_pulls, Some(4));
    assert_eq!(
        loaded.config.static_pod_url_headers,
        [("X-Token".to_owned(), "one".to_owned()), ("X-Token".to_owned(), "two".to_owned())]
    );
    assert_eq!(loaded.config.log, LogOptions { format: LogFormat::Json, verbosity: 4 });
    assert_eq!(loaded.config.network.subnets.len(), 2);
    assert_eq!(loaded.config.registries[0].mirrors, ["http://127.0.0.1:5000"]);
    let [runc, gvisor] = loaded.config.handlers.as_slice() else { panic!("{:?}", loaded.config.handlers) };
    assert_eq!((runc.name.as_str(), runc.timeout.as_secs()), ("runc", 60));
    assert_eq!(
        (gvisor.arguments.as_slice(), gvisor.timeout.as_secs()),
        (["--platform=systrap".to_owned()].as_slice(), 90)
    );
    assert_eq!(loaded.config.cdi_directories, [PathBuf::from("/etc/vendor/cdi")]);
    for section in [Section::Kubelet, Section::Berth] {
        for field in section.fields() {
            assert!(text.contains(&format!("\n{}:", field.name)), "{} is missing in the sample", field.name);
        }
    }
}

#[test]
fn all_mistakes_are_reported_at_once_with_file_line_and_path() {
    let files = Files::new();
    let config = files.write(
        "config.yaml",
        &format!(
            "{HEAD}maxPods: many\nfileCheckFrequency: 20\nmaxpods: 3\nnoSuchField: 1\nauthentication:\n  anonymous:\n    \
             enable: true\n  webhook: 5\nclusterDNS: [10.0.0.1, dns.example, 7]\nimageGCHighThresholdPercent: 101\n\
             containerLogMaxFiles: 1\nevictionHard: {{memory.available: 100}}\ncpuCFSQuotaPeriod: 5s\n\
             cgroupDriver: other\nmaxParallelImagePulls: 3\n---\n{BERTH_HEAD}cdiSpecDirs: [etc/cdi]\nnetwork:\n  subnets: [10.1.0.0/16, 10.2.0.0/16]\n  \
             mtu: 5\nregistries:\n- mirrors: [mirror.example]\n"
        ),
    );
    files.write("conf.d/10-a.conf", &format!("{HEAD}podPidsLimit: -5\n"));
    files.write("conf.d/20-b.conf", "kind: Pod\n");
    files.write("conf.d/30-c.conf", "a: [\n");
    files.write("conf.d/ignored.yaml", "a: [\n");
    let flags = Flags {
        config: Some(config),
        config_dir: Some(files.0.path().join("conf.d")),
        settings: vec![Setting {
            section: Section::Berth,
            path: "nodeName",
            value: Value::Text("no_name".to_owned()),
            flag: "--hostname-override",
        }],
    };
    let mistakes = files.mistakes(&flags);
    let expected = [
        r#"config.yaml:3: maxPods: expected a whole number, found "many""#,
        "config.yaml:4: fileCheckFrequency: expected a duration like 20s or 1m30s, found the number 20",
        "config.yaml:5: maxpods: unknown field, did you mean maxPods?",
        "config.yaml:6: noSuchField: unknown field",
        "config.yaml:9: authentication.anonymous.enable: unknown field",
        "config.yaml:10: authentication.webhook: expected a mapping, found the number 5",
        "config.yaml:11: clusterDNS[2]: expected text, found the number 7",
        r#"config.yaml:11: clusterDNS[1]: "dns.example" is no IP address"#,
        "config.yaml:12: imageGCHighThresholdPercent: must be between 0 and 100, found 101",
        "config.yaml:13: containerLogMaxFiles: must be between 2 and 2147483647, found 1",
        "config.yaml:14: evictionHard[memory.available]: expected text, found the number 100",
        "config.yaml:15: cpuCFSQuotaPeriod: must be between 1ms and 1s, found 5s",
        r#"config.yaml:16: cgroupDriver: expected one of cgroupfs, systemd, found "other""#,
        "config.yaml:17: maxParallelImagePulls: must be 1 unless serializeImagePulls is false",
        r#"config.yaml:21: cdiSpecDirs[0]: "etc/cdi" is not an absolute path"#,
        "config.yaml:23: network.subnets[1]: 10.2.0.0/16 is a second subnet of the same address family",
        "config.yaml:24: network.mtu: must be 0 (the uplink's) or at least 576, found 5",
        "config.yaml:26: registries[0]: host is missing",
        r#"config.yaml:26: registries[0]: a mirror is an http or https URL, found "mirror.example""#,
        "conf.d/10-a.conf:3: podPidsLimit: must be at least -1, found -5",
        r#"conf.d/20-b.conf:1: kind: expected KubeletConfiguration or BerthConfiguration, found "Pod""#,
        r#"--hostname-override: "no_name" is no node name (lower-case letters, digits, '-' and '.'); set one with --hostname-override"#,
    ];
    for line in expected {
        assert!(mistakes.iter().any(|mistake| mistake == line), "missing: {line}\nin: {mistakes:#?}");
    }
    assert!(mistakes.iter().any(|mistake| mistake.starts_with("conf.d/30-c.conf:")), "{mistakes:#?}");
    assert_eq!(mistakes.len(), expected.len() + 1, "{mistakes:#?}");
}

#[test]
fn a_runtime_handler_is_a_name_and_a_program() {
    let text = |handlers: &str| format!("{BERTH_HEAD}runtime: {{handlers: [{handlers}]}}\n");
    let mistake = |handlers: &str| {
        let files = Files::new();
        let config = files.write("config.yaml", &text(handlers));
        files.mistakes(&Flags { config: Some(config), ..Flags::default() })
    };
    assert!(
        of_file(&text("{name: runc, path: /usr/sbin/runc}, {name: crun, path: /usr/bin/crun, timeout: 5s}")).is_ok()
    );
    for (handlers, expected) in [
        ("{path: /x}", "runtime.handlers[0]: name is missing"),
        ("{name: berth, path: /x}", r#"runtime.handlers[0]: name: "berth" is berth itself"#),
        ("{name: Runc, path: /x}", r#"runtime.handlers[0]: name: "Runc" is not a DNS label"#),
        ("{name: a, path: /x}, {name: a, path: /y}", r#"runtime.handlers[1]: a second handler "a""#),
        ("{name: a, path: runc}", r#"runtime.handlers[0]: path: "runc" is not an absolute path"#),
        ("{name: a}", r#"runtime.handlers[0]: path: "" is not an absolute path"#),
        ("{name: a, path: /x, timeout: 0s}", "runtime.handlers[0]: timeout: must be more than 0"),
        ("{name: a, path: /x, root: /y}", "runtime.handlers[0].root: unknown field"),
    ] {
        let found = mistake(handlers);
        assert!(found.len() == 1 && found[0].contains(expected), "{handlers}: {found:?}");
    }
}

#[test]
fn drop_ins_are_laid_over_the_file_by_name_and_flags_over_both() {
    let files = Files::new();
    let config = files.write(
        "config.yaml",
        &format!("{HEAD}maxPods: 10\npodPidsLimit: 100\nseccompDefault: true\nclusterDNS: [10.0.0.1]\nfeatureGates: {{A: true}}\n"),
    );
    files.write("conf.d/20.conf", &format!("{HEAD}maxPods: 20\nclusterDNS: [10.0.0.2]\nseccompDefault: null\n"));
    files.write("conf.d/10.conf", &format!("{HEAD}maxPods: 15\npodPidsLimit: 200\nfeatureGates: {{B: true}}\n"));
    let flags = Flags {
        config: Some(config),
        config_dir: Some(files.0.path().join("conf.d")),
        settings: vec![Setting {
            section: Section::Kubelet,
            path: "maxPods",
            value: Value::Integer(30),
            flag: "--max-pods",
        }],
    };
    let loaded = load(&flags, &environment()).unwrap();
    assert_eq!(loaded.config.max_pods, 30);
    assert_eq!(loaded.config.pod_pids_limit, Some(200));
    assert!(!loaded.config.seccomp_default, "null in a drop-in takes the value back");
    assert_eq!(loaded.config.cluster_dns, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    let effective = loaded.effective(Section::Kubelet);
    let find = |path: &str| effective.iter().find(|leaf| leaf.path == path).unwrap();
    assert_eq!(find("maxPods").origin, Origin::Flag("--max-pods"));
    assert!(find("podPidsLimit").origin.to_string().ends_with("conf.d/10.conf:4"));
    assert_eq!(find("fileCheckFrequency").origin, Origin::Default);
    assert_eq!(find("featureGates").value.to_json().to_string(), r#"{"A":true,"B":true}"#);
    assert!(!find("featureGates").used);
    assert_eq!(find("resolvConf").value, Value::Text("/etc/resolv.conf".to_owned()), "a default of the machine");
}

#[test]
fn json_is_read_as_well() {
    let loaded = of_file(
        r#"{"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1", "maxPods": 7, "syncFrequency": "1m0s"}"#,
    );
    assert_eq!(loaded.unwrap().config.max_pods, 7);
}

#[test]
fn a_missing_file_directory_kind_or_version_is_named() {
    let files = Files::new();
    let flags = Flags {
        config: Some(files.0.path().join("none.yaml")),
        config_dir: Some(files.0.path().join("none.d")),
        settings: Vec::new(),
    };
    let mistakes = files.mistakes(&flags);
    assert!(mistakes[0].starts_with("none.yaml: read: No such file"), "{mistakes:?}");
    assert!(mistakes[1].starts_with("none.d: read directory: No such file"), "{mistakes:?}");

    let config = files.write("c.yaml", "maxPods: 3\n---\nkind: BerthConfiguration\n---\n- 1\n");
    let mistakes = files.mistakes(&Flags { config: Some(config), ..Flags::default() });
    assert_eq!(
        mistakes,
        [
            "c.yaml:1: kind: is missing: KubeletConfiguration or BerthConfiguration",
            "c.yaml:3: apiVersion: is missing: berth.dev/v1alpha1",
            "c.yaml:5: expected a mapping, found a list",
        ]
    );
}

#[test]
fn two_documents_of_one_kind_in_a_file_are_refused() {
    let error = of_file(&format!("{HEAD}maxPods: 1\n---\n{HEAD}maxPods: 2\n")).unwrap_err();
    assert!(error.to_string().contains("a second KubeletConfiguration in one file"), "{error}");
}

#[test]
fn pod_cidr_of_the_kubelet_is_the_subnet_unless_berth_names_its_own() {
    let loaded = of_file(&format!("{HEAD}podCIDR: 10.7.0.0/24,fd00:7::/64\n")).unwrap();
    let subnets: Vec<String> = loaded.config.network.subnets.iter().map(ToString::to_string).collect();
    assert_eq!(subnets, ["10.7.0.0/24", "fd00:7::/64"]);
    let both = format!("{HEAD}podCIDR: 10.7.0.0/24\n---\n{BERTH_HEAD}network: {{subnets: [10.8.0.0/24]}}\n");
    assert_eq!(of_file(&both).unwrap().config.network.subnets[0].to_string(), "10.8.0.0/24");
}

#[test]
fn the_networks_own_rules_hold_as_well() {
    let error = of_file(&format!("{BERTH_HEAD}network:\n  subnets: [\"fd00::/64\"]\n  mtu: 1000\n")).unwrap_err();
    assert_eq!(error.mistakes.len(), 1);
    assert!(error.to_string().contains("config.yaml:3: network: "), "{error}");
    assert!(error.to_string().contains("mtu 1000 is not within 1280"), "{error}");
}

#[test]
fn what_is_reserved_is_summed_and_processors_go_before_their_cpu() {
    let reserved = |text: &str| of_file(&format!("{HEAD}{text}")).unwrap().config.reserved;
    let amounts = |text: &str| -> Vec<(String, String)> {
        reserved(text).into_iter().map(|(name, amount)| (name, amount.to_string())).collect()
    };
    let both = "systemReserved: {cpu: 500m, memory: 1Gi, pid: \"100\"}\nkubeReserved: {cpu: \"1\", memory: 512Mi}\n";
    let pair = |name: &str, amount: &str| (name.to_owned(), amount.to_owned());
    assert_eq!(amounts(both), [pair("cpu", "1500m"), pair("memory", "1536Mi"), pair("pid", "100")]);
    assert_eq!(amounts(&format!("{both}reservedSystemCPUs: 0-1,3\n"))[0], pair("cpu", "3"));
    assert!(reserved("").is_empty());
}

#[test]
fn mistakes_about_memory_and_reservations_are_named() {
    let files = Files::new();
    let text = "systemReserved: {gpu: \"1\", memory: \"-1\"}\nreservedSystemCPUs: 0-9\n\
                enforceNodeAllocatable: [none, pods]\nmemoryThrottlingFactor: 1.5\n";
    let config = files.write("config.yaml", &format!("{HEAD}{text}"));
    let mistakes = files.mistakes(&Flags { config: Some(config), ..Flags::default() });
    for expected in [
        "systemReserved.gpu: cannot reserve \"gpu\" resource",
        "systemReserved.memory: resource quantity for \"memory\" cannot be negative",
        "reservedSystemCPUs: processor 9 is not there: this machine has 4",
        "enforceNodeAllocatable: may not contain anything else when \"none\" is specified",
        "memoryThrottlingFactor: must be greater than 0 and less than or equal to 1.0, found 1.5",
    ] {
        assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{expected}: {mistakes:#?}");
    }
    let loaded = of_file(&format!(
        "{HEAD}memorySwap: {{swapBehavior: LimitedSwap}}\nmemoryThrottlingFactor: 0.9\n\
         memoryReservationPolicy: TieredReservation\nenforceNodeAllocatable: [none]\n"
    ))
    .unwrap();
    let config = loaded.config;
    assert!(config.limited_swap && config.reserve_memory && !config.enforce_allocatable);
    assert_eq!((config.memory_throttling_factor, loaded.warning), (Some(0.9), None));
}

#[test]
fn the_managers_are_configured_as_upstreams() {
    use crate::pod::topology::{CpuOptions, TopologyPolicy, TopologyScope};

    let managers = |text: &str| of_file(&format!("{HEAD}{text}")).unwrap().config.managers;
    let none = managers("");
    assert_eq!((none.cpu, none.memory.is_none(), none.topology.policy), (None, true, TopologyPolicy::None));
    let first = managers("cpuManagerPolicy: static\nreservedSystemCPUs: \"0\"\n");
    assert_eq!(first.reserved_cpus.unwrap().to_string(), "0");
    let found = managers(
        "cpuManagerPolicy: static\nreservedSystemCPUs: 0,2\n\
         cpuManagerPolicyOptions: {full-pcpus-only: \"true\", strict-cpu-reservation: \"1\", align-by-socket: \"false\"}\n\
         topologyManagerPolicy: restricted\ntopologyManagerScope: pod\n\
         topologyManagerPolicyOptions: {prefer-closest-numa-nodes: \"true\", max-allowable-numa-nodes: \"16\"}\n",
    );
    assert_eq!(found.cpu, Some(CpuOptions { full_cores: true, strict: true, ..CpuOptions::default() }));
    assert_eq!(found.reserved_cpus.unwrap().to_string(), "0,2");
    assert_eq!((found.topology.policy, found.topology.scope), (TopologyPolicy::Restricted, TopologyScope::Pod));
    assert_eq!((found.topology.prefer_closest, found.max_numa_nodes), (true, 16));

    let memory =
        "memoryManagerPolicy: Static\nreservedMemory: [{numaNode: 1, limits: {memory: 1Gi, hugepages-2Mi: 4Mi}}]\n";
    let found = managers(memory);
    assert_eq!(found.memory.unwrap()[&1]["memory"], 1 << 30);
    assert_eq!(found.eviction.of(1 << 40), 100 << 20, "upstream's default");
    for (eviction, expected) in [
        ("evictionHard: {memory.available: 200Mi}", 200 << 20),
        ("evictionHard: {memory.available: 10%}", 1 << 30),
        ("evictionHard: {memory.available: \"0\"}", 0),
        ("evictionHard: {nodefs.available: 10%}", 0),
        ("evictionHard: {nodefs.available: 10%}\nmergeDefaultEvictionSettings: true", 100 << 20),
    ] {
        assert_eq!(managers(&format!("{memory}{eviction}\n")).eviction.of(10 << 30), expected, "{eviction}");
    }
}

#[test]
fn mistakes_about_the_managers_are_named() {
    let mistakes = |text: &str| -> Vec<String> {
        let error = of_file(&format!("{HEAD}{text}")).unwrap_err();
        error.mistakes.iter().map(|mistake| format!("{}: {}", mistake.path, mistake.message)).collect()
    };
    let case = |text: &str, expected: &[&str]| assert_eq!(mistakes(text), expected, "{text}");
    case(
        "cpuManagerPolicy: static\n",
        &[
            "cpuManagerPolicy: the static policy requires systemReserved.cpu + kubeReserved.cpu, or reservedSystemCPUs, to be \
           greater than zero",
        ],
    );
    let reserved = "cpuManagerPolicy: static\nsystemReserved: {cpu: 500m}\n";
    case(
        &format!("{reserved}cpuManagerPolicyOptions: {{full-cpus: \"true\", full-pcpus-only: \"yes\"}}\n"),
        &[
            "cpuManagerPolicyOptions.full-cpus: unknown CPU Manager Policy option",
            "cpuManagerPolicyOptions.full-pcpus-only: expected true or false, found \"yes\"",
        ],
    );
    case(
        &format!(
            "{reserved}cpuManagerPolicyOptions: {{full-pcpus-only: \"true\", distribute-cpus-across-cores: \"true\"}}\n"
        ),
        &["cpuManagerPolicyOptions: full-pcpus-only and distribute-cpus-across-cores can not be used at the same time"],
    );
    case(
        "cpuManagerPolicyOptions: {full-pcpus-only: \"true\"}\n",
        &["cpuManagerPolicyOptions: the none policy has no options"],
    );
    case(
        "topologyManagerPolicy: restricted\ntopologyManagerPolicyOptions: {max-allowable-numa-nodes: \"4\"}\n",
        &["topologyManagerPolicyOptions.max-allowable-numa-nodes: the minimum value should not be less than 8"],
    );
    case(
        "memoryManagerPolicy: Static\nreservedMemory: [{numaNode: 0, limits: {memory: 1Gi, cpu: 1}}, {numaNode: 0, limits: \
         {memory: 1Gi, hugepages-2Mi: 0}}]\n",
        &[
            "reservedMemory[0].limits.cpu: the limit type \"cpu\" for NUMA node 0 is not allowed, only memory and \
             hugepages-<HugePageSize> are accepted",
            "reservedMemory[1].limits.memory: the reserved memory has a duplicate value for NUMA node 0 and resource \
             \"memory\"",
            "reservedMemory[1].limits.hugepages-2Mi: the limit for NUMA node 0 has to be above zero",
        ],
    );
}
