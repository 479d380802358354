//! `berth node` and `berth check-config`: from flags to a configuration.

use std::{
    io,
    path::{Path, PathBuf, absolute},
    process::ExitCode,
    time::Duration,
};

use serde_json::{Value as Json, json};

use super::{
    NodeRunner,
    args::{CheckConfigArgs, Directories, LogFormatArg, NodeArgs, Output},
    exit::{Exit, Failed},
    output::{Columns, print, show},
};
use crate::{
    config::{
        self, Environment, Flags, Loaded, Section, Setting,
        document::{Node, Origin, Value},
        identity::parse_taint,
        schema::Effective,
    },
    obs::{
        chain::Chain,
        logging::{self, FILTER_VARIABLE},
    },
    sys::memory,
};

/// For threads that block (a slow disk) to come to an end when the agent stops.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// The configuration is wrong, or the agent could not start.
pub fn run(directories: &Directories, args: &NodeArgs, runner: NodeRunner) -> Result<ExitCode, Failed> {
    let loaded = load(directories, args)?;
    let filter = std::env::var(FILTER_VARIABLE).ok();
    logging::init(&loaded.config.log, filter.as_deref())
        .map_err(|error| Failed::new(Exit::Config, Chain(&error).to_string()))?;
    if let Some(warning) = &loaded.warning {
        tracing::warn!("{warning}");
    }
    // Work that blocks goes through many threads, one after the other; what each frees is for the next.
    memory::limit_heaps(2);
    // Two workers: nothing here computes for long, and what blocks has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("berth-agent")
        .enable_all()
        .build()
        .map_err(|error| Failed::of(&error))?;
    let ended = runtime.block_on(runner(loaded.config));
    // What blocks a thread now may do so for ever, and nobody waits for it any more.
    runtime.shutdown_timeout(SHUTDOWN);
    match ended {
        Ok(()) => Ok(Exit::Success.into()),
        Err(error) => Err(Failed::of(error.as_ref())),
    }
}

/// Shows what is in force and why.
///
/// # Errors
/// The configuration is wrong.
pub fn check(directories: &Directories, args: &CheckConfigArgs) -> Result<(), Failed> {
    let loaded = load(directories, &args.node)?;
    if let Some(warning) = &loaded.warning {
        eprintln!("warning: {warning}");
    }
    let sections = [Section::Kubelet, Section::Berth].map(|section| (section, loaded.effective(section)));
    match args.output {
        Output::Table | Output::Wide => print(&table(&sections)),
        output => {
            let value: Vec<Json> = sections.iter().map(|(section, leaves)| document(*section, leaves)).collect();
            show(output, &json!({"documents": value, "warning": loaded.warning}), |_| String::new())
        }
    }
}

fn table(sections: &[(Section, Vec<Effective>)]) -> String {
    let mut text = String::new();
    for (section, leaves) in sections {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("{} ({})\n", section.kind(), section.api_version()));
        let mut columns = Columns::new(&["FIELD", "VALUE", "FROM"]);
        for leaf in leaves {
            let value = match leaf.value.to_json() {
                Json::String(text) if !text.is_empty() => text,
                value => value.to_string(),
            };
            let from = match leaf.used {
                true => leaf.origin.to_string(),
                false => format!("{} (not implemented)", leaf.origin),
            };
            columns.row([leaf.path.clone(), value, from]);
        }
        text.push_str(&columns.finish());
    }
    text
}

/// The document in force, and beside it where each of its fields came from.
fn document(section: Section, leaves: &[Effective]) -> Json {
    let mut node = Node::empty();
    for (path, value) in [("apiVersion", section.api_version()), ("kind", section.kind())] {
        node.set(path, Node { value: Value::Text(value.to_owned()), origin: Origin::Default });
    }
    for leaf in leaves {
        node.set(&leaf.path, Node { value: leaf.value.clone(), origin: leaf.origin.clone() });
    }
    let from: serde_json::Map<String, Json> =
        leaves.iter().map(|leaf| (leaf.path.clone(), leaf.origin.to_string().into())).collect();
    json!({"document": node.value.to_json(), "from": from})
}

fn load(directories: &Directories, args: &NodeArgs) -> Result<Loaded, Failed> {
    let flags = flags(directories, args)?;
    config::load(&flags, &Environment::detect()).map_err(|error| Failed::new(Exit::Config, error.to_string()))
}

/// What the flags say, and nothing else.
fn flags(directories: &Directories, args: &NodeArgs) -> Result<Flags, Failed> {
    let mut settings = Settings::default();
    let text = |text: &String| Value::Text(text.clone());
    let list = |items: Vec<String>| {
        let node = |item| Node { value: Value::Text(item), origin: Origin::Default };
        (!items.is_empty()).then(|| Value::List(items.into_iter().map(node).collect()))
    };
    let number = |number: i64| Value::Integer(number);
    let path = |path: &PathBuf| absolute_text(path);

    let berth = Section::Berth;
    settings.set(berth, "storage.rootDirectory", "--root-dir", directories.root_dir.as_ref().map(path).transpose()?);
    settings.set(berth, "storage.runDirectory", "--run-dir", directories.run_dir.as_ref().map(path).transpose()?);
    settings.set(berth, "nodeName", "--hostname-override", args.hostname_override.as_ref().map(text));
    settings.set(berth, "nodeLabels", "--node-labels", labels(&args.node_labels)?);
    settings.set(berth, "network.bridge", "--bridge", args.bridge.as_ref().map(text));
    let subnets = args.pod_cidr.iter().map(ToString::to_string).collect();
    settings.set(berth, "network.subnets", "--pod-cidr", list(subnets));
    settings.set(berth, "network.mtu", "--mtu", args.mtu.map(|mtu| number(mtu.into())));
    settings.set(berth, "network.masquerade", "--no-masquerade", args.no_masquerade.then_some(Value::Bool(false)));

    let kubelet = Section::Kubelet;
    settings.set(kubelet, "podLogsDir", "--log-dir", directories.log_dir.as_ref().map(path).transpose()?);
    let cgroup_root = directories.cgroup_root.as_ref().map(|path| {
        // Always counted from the root of the hierarchy: "kubepods.slice" and "/kubepods.slice" are the same.
        Value::Text(Path::new("/").join(path).display().to_string())
    });
    settings.set(kubelet, "cgroupRoot", "--cgroup-root", cgroup_root);
    let manifests = args.pod_manifest_path.as_ref().map(path).transpose()?;
    settings.set(kubelet, "staticPodPath", "--pod-manifest-path", manifests);
    settings.set(kubelet, "staticPodURL", "--manifest-url", args.manifest_url.as_ref().map(text));
    settings.set(kubelet, "staticPodURLHeader", "--manifest-url-header", headers(&args.manifest_url_header)?);
    settings.set(kubelet, "registerWithTaints", "--register-with-taints", taints(&args.register_with_taints)?);
    settings.set(kubelet, "maxPods", "--max-pods", args.max_pods.map(|count| number(count.into())));
    settings.set(kubelet, "podPidsLimit", "--pod-max-pids", args.pod_max_pids.map(number));
    let servers = args.cluster_dns.iter().map(ToString::to_string).collect();
    settings.set(kubelet, "clusterDNS", "--cluster-dns", list(servers));
    settings.set(kubelet, "clusterDomain", "--cluster-domain", args.cluster_domain.as_ref().map(text));
    settings.set(kubelet, "resolvConf", "--resolv-conf", args.resolv_conf.as_ref().map(path).transpose()?);
    settings.set(kubelet, "seccompDefault", "--seccomp-default", args.seccomp_default.then_some(Value::Bool(true)));
    let sysctls = list(args.allowed_unsafe_sysctls.clone());
    settings.set(kubelet, "allowedUnsafeSysctls", "--allowed-unsafe-sysctls", sysctls);
    settings.set(kubelet, "logging.verbosity", "--v", args.verbosity.map(|level| number(level.into())));
    let format = args.log_format.map(|format| {
        let name = match format {
            LogFormatArg::Text => "text",
            LogFormatArg::Json => "json",
        };
        Value::Text(name.to_owned())
    });
    settings.set(kubelet, "logging.format", "--log-format", format);
    Ok(Flags { config: args.config.clone(), config_dir: args.config_dir.clone(), settings: settings.0 })
}

#[derive(Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn set(&mut self, section: Section, path: &'static str, flag: &'static str, value: Option<Value>) {
        self.0.extend(value.map(|value| Setting { section, path, value, flag }));
    }
}

fn absolute_text(path: &Path) -> Result<Value, Failed> {
    // An empty path is a statement of its own ("no resolver configuration").
    if path.as_os_str().is_empty() {
        return Ok(Value::Text(String::new()));
    }
    let absolute = absolute(path).and_then(|path| {
        path.into_os_string().into_string().map_err(|path| io::Error::other(format!("{path:?} is not UTF-8")))
    });
    absolute.map(Value::Text).map_err(|error| Failed::new(Exit::Usage, format!("{}: {error}", path.display())))
}

fn headers(texts: &[String]) -> Result<Option<Value>, Failed> {
    let mut node = Vec::<(String, Node)>::new();
    for text in texts {
        let Some((name, value)) = text.split_once(':').filter(|(name, _)| !name.trim().is_empty()) else {
            let message = format!("--manifest-url-header: expected NAME:VALUE, found {text:?}");
            return Err(Failed::new(Exit::Usage, message));
        };
        let item = Node { value: Value::Text(value.trim().to_owned()), origin: Origin::Default };
        match node.iter_mut().find(|(known, _)| known == name.trim()) {
            Some((_, Node { value: Value::List(values), .. })) => values.push(item),
            _ => {
                let values = Node { value: Value::List(vec![item]), origin: Origin::Default };
                node.push((name.trim().to_owned(), values));
            }
        }
    }
    Ok((!node.is_empty()).then_some(Value::Map(node)))
}

fn plain(text: &str) -> Node {
    Node { value: Value::Text(text.to_owned()), origin: Origin::Default }
}

fn labels(texts: &[String]) -> Result<Option<Value>, Failed> {
    let mut entries = Vec::new();
    for text in texts {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Failed::new(Exit::Usage, format!("--node-labels: expected KEY=VALUE, found {text:?}")));
        };
        entries.push((key.to_owned(), plain(value)));
    }
    Ok((!entries.is_empty()).then_some(Value::Map(entries)))
}

fn taints(texts: &[String]) -> Result<Option<Value>, Failed> {
    let mut items = Vec::new();
    for text in texts {
        let Some((key, value, effect)) = parse_taint(text) else {
            let message = format!("--register-with-taints: expected KEY[=VALUE]:EFFECT, found {text:?}");
            return Err(Failed::new(Exit::Usage, message));
        };
        let fields = [("key", key), ("value", value), ("effect", effect)];
        let fields = fields.into_iter().filter(|(_, text)| !text.is_empty());
        let map = fields.map(|(name, text)| (name.to_owned(), plain(text))).collect();
        items.push(Node { value: Value::Map(map), origin: Origin::Default });
    }
    Ok((!items.is_empty()).then_some(Value::List(items)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn loaded(line: &str) -> Result<Loaded, Failed> {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Node(args) = cli.command else { panic!("not node") };
        load(&cli.directories, &args)
    }

    #[test]
    fn every_flag_reaches_the_configuration() {
        let config = loaded(
            "berth node --root-dir /a --run-dir run --log-dir /l --cgroup-root test --pod-manifest-path /m \
             --manifest-url http://h/p --manifest-url-header A:b --manifest-url-header A:c --hostname-override Worker \
             --cluster-dns 10.0.0.1 --cluster-domain c.local --max-pods 5 --pod-max-pids 64 --resolv-conf /r \
             --seccomp-default --allowed-unsafe-sysctls net.core.somaxconn --bridge b0 --pod-cidr 10.1.0.0/16,fd00::/64 \
             --mtu 1400 --no-masquerade -v 5 --log-format json --node-labels disk=ssd,zone= \
             --register-with-taints edge=yes:NoExecute,b:NoSchedule",
        )
        .unwrap()
        .config;
        assert_eq!(config.layout.root, PathBuf::from("/a"));
        assert_eq!(config.layout.run, std::env::current_dir().unwrap().join("run"));
        assert_eq!(config.layout.log, PathBuf::from("/l"));
        assert_eq!(config.cgroup_root, PathBuf::from("/test"));
        assert_eq!(config.pod_manifest_path, Some("/m".into()));
        assert_eq!(config.static_pod_url.as_deref(), Some("http://h/p"));
        let header = |value: &str| ("A".to_owned(), value.to_owned());
        assert_eq!(config.static_pod_url_headers, [header("b"), header("c")]);
        assert_eq!(config.node_name, "worker");
        assert_eq!((config.node_labels["disk"].as_str(), config.node_labels["zone"].as_str()), ("ssd", ""));
        let taints: Vec<_> = config.taints.iter().map(|taint| (taint.key.as_str(), taint.value.as_deref())).collect();
        assert_eq!(taints, [("edge", Some("yes")), ("b", None)]);
        assert_eq!(config.cluster_dns.len(), 1);
        assert_eq!(config.cluster_domain, "c.local");
        assert_eq!((config.max_pods, config.pod_pids_limit), (5, Some(64)));
        assert_eq!(config.resolv_conf, PathBuf::from("/r"));
        assert!(config.seccomp_default);
        assert_eq!(config.allowed_unsafe_sysctls, ["net.core.somaxconn"]);
        assert_eq!(config.network.bridge, "b0");
        assert_eq!(config.network.subnets.len(), 2);
        assert_eq!(config.network.mtu, Some(1400));
        assert!(!config.network.masquerade);
        assert_eq!(config.log, config::LogOptions { format: config::LogFormat::Json, verbosity: 5 });
    }

    #[test]
    fn a_flag_out_of_range_is_named() {
        let failed = loaded("berth node --hostname-override n -v 11 --bridge far-too-long-a-name").unwrap_err();
        assert_eq!(failed.exit, Exit::Config);
        assert!(failed.message.contains("--v: must be between 0 and 10, found 11"), "{failed}");
        assert!(failed.message.contains("--bridge: "), "{failed}");
    }

    #[test]
    fn check_config_says_where_a_value_came_from() {
        let loaded = loaded("berth node --hostname-override n --max-pods 7").unwrap();
        let sections = [(Section::Kubelet, loaded.effective(Section::Kubelet))];
        let text = table(&sections);
        let line = |field: &str| text.lines().find(|line| line.starts_with(field)).unwrap().to_owned();
        assert_eq!(line("maxPods").split_whitespace().collect::<Vec<_>>(), ["maxPods", "7", "--max-pods"]);
        let resync: Vec<String> = line("fileCheckFrequency").split_whitespace().map(str::to_owned).collect();
        assert_eq!(resync, ["fileCheckFrequency", "20s", "default"]);
        let document = document(Section::Kubelet, &sections[0].1);
        assert_eq!(document["document"]["maxPods"], 7);
        assert_eq!(document["document"]["crashLoopBackOff"]["maxContainerRestartPeriod"], "5m");
        assert_eq!(document["from"]["maxPods"], "--max-pods");
    }
}
