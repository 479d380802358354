//! What can be written on the command line; nothing is decided here.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;

/// Runs Kubernetes pods on this machine, by itself.
#[derive(Debug, Parser)]
#[command(name = "berth", version, max_term_width = 100, propagate_version = false)]
pub struct Cli {
    /// Where the agent keeps everything.
    #[command(flatten)]
    pub directories: Directories,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Places everything the agent owns; accepted before and after the command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Directories")]
pub struct Directories {
    /// What survives a reboot: records, images, volumes [default: /var/lib/berth]
    #[arg(long, global = true, value_name = "DIR", env = "BERTH_ROOT_DIR", hide_env = true)]
    pub root_dir: Option<PathBuf>,
    /// What does not: lock and sockets [default: /run/berth]
    #[arg(long, global = true, value_name = "DIR", env = "BERTH_RUN_DIR", hide_env = true)]
    pub run_dir: Option<PathBuf>,
    /// Logs of containers [default: /var/log/pods]
    #[arg(long, global = true, value_name = "DIR", env = "BERTH_LOG_DIR", hide_env = true)]
    pub log_dir: Option<PathBuf>,
    /// Parent of "kubepods" in every cgroup hierarchy [default: /]
    #[arg(long, global = true, value_name = "PATH", env = "BERTH_CGROUP_ROOT", hide_env = true)]
    pub cgroup_root: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: start the pods of the manifests and keep them running
    Node(NodeArgs),
    /// Run an API server for kubectl and other clients
    ControlPlane(ControlPlaneArgs),
    /// List pods, and manifests that could not be used
    Pods(PodsArgs),
    /// List containers and their processes
    Ps(ListArgs),
    /// Show everything about a pod
    Inspect(InspectArgs),
    /// Show what happened to pods
    Events(EventsArgs),
    /// Print the log of a container
    Logs(LogsArgs),
    /// Run a command in a container
    Exec(ExecArgs),
    /// Attach to the streams of a running container
    Attach(AttachArgs),
    /// Add a container to a running pod to look into it
    Debug(DebugArgs),
    /// Change the CPU and memory of a running pod
    Resize(ResizeArgs),
    /// Show what pods and containers use
    Stats(ListArgs),
    /// List images
    Images(OutputArgs),
    /// Pull an image from its registry
    Pull(PullArgs),
    /// Load images from an OCI layout or a docker archive
    Load(LoadArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Remove images that no pod uses
    Gc(OutputArgs),
    /// Check whether this machine can run pods, and say what is missing
    Doctor(OutputArgs),
    /// Check the configuration and show what is in force and why
    CheckConfig(CheckConfigArgs),
    /// Show the version of this program and of the running agent
    Version(OutputArgs),
    /// Print a script that completes commands in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For people with wide terminals
    Wide,
    /// For programs
    Json,
    /// For both
    Yaml,
}

/// Only how to print.
#[derive(Debug, Clone, Default, Args)]
pub struct OutputArgs {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// A list that can be narrowed down.
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only this pod
    #[arg(value_name = "POD")]
    pub pod: Option<String>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `berth pods`.
#[derive(Debug, Clone, Default, Args)]
pub struct PodsArgs {
    /// What to list
    #[command(flatten)]
    pub list: ListArgs,
    /// List only what is wrong with manifests
    #[arg(long)]
    pub problems: bool,
}

/// `berth events`.
#[derive(Debug, Clone, Default, Args)]
pub struct EventsArgs {
    /// Whose events; the pod may be gone
    #[command(flatten)]
    pub list: ListArgs,
    /// Go on printing them as they come
    #[arg(short, long)]
    pub watch: bool,
}

/// `berth inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Pod, as NAME, NAMESPACE/NAME or UID
    pub pod: String,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `berth logs`.
#[derive(Debug, Clone, Default, Args)]
pub struct LogsArgs {
    /// Pod, as NAME, NAMESPACE/NAME or UID
    pub pod: String,
    /// Container [default: the first one that is not an init container]
    #[arg(short, long)]
    pub container: Option<String>,
    /// Go on printing until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Print only the last N lines
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
    /// Print only what was written within this time (10m, 1h30m) or since this point in time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Print the time of each line
    #[arg(long)]
    pub timestamps: bool,
    /// Print the log of the container before its last restart
    #[arg(short, long)]
    pub previous: bool,
    /// Print at most N bytes
    #[arg(long, value_name = "N")]
    pub limit_bytes: Option<u64>,
}

/// `berth exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// Pod, as NAME, NAMESPACE/NAME or UID
    pub pod: String,
    /// Container [default: the first one that is not an init container]
    #[arg(short, long)]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable for the command
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `berth attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// Pod, as NAME, NAMESPACE/NAME or UID
    pub pod: String,
    /// Container [default: the first one that is not an init container]
    #[arg(short, long)]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
}

/// `berth debug`.
#[derive(Debug, Clone, Args)]
pub struct DebugArgs {
    /// Pod, as NAME, NAMESPACE/NAME or UID
    pub pod: String,
    /// Image of the container
    #[arg(long)]
    pub image: String,
    /// Container whose processes it is to see
    #[arg(long, value_name = "CONTAINER")]
    pub target: Option<String>,
    /// Name of the container [default: a new one]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Attach to it and pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give it a terminal
    #[arg(short, long, requires = "stdin")]
    pub tty: bool,
    /// Its command, instead of the image's
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `berth resize`.
#[derive(Debug, Clone, Args)]
pub struct ResizeArgs {
    /// Pod, as NAME, NAMESPACE/NAME or UID
    pub pod: String,
    /// Container [default: the first one that is not an init container]
    #[arg(short, long)]
    pub container: Option<String>,
    /// Resize the pod as a whole, not a container
    #[arg(long, conflicts_with = "container")]
    pub pod_level: bool,
    /// What it asks for, as in cpu=500m,memory=64Mi
    #[arg(long, value_name = "NAME=AMOUNT", value_delimiter = ',')]
    pub requests: Vec<String>,
    /// What it may use, as in cpu=1,memory=128Mi
    #[arg(long, value_name = "NAME=AMOUNT", value_delimiter = ',')]
    pub limits: Vec<String>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `berth pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Image reference, by tag or digest
    pub reference: String,
    /// User name for the registry
    #[arg(long, requires = "password_file")]
    pub username: Option<String>,
    /// File with the password ("-": standard input)
    #[arg(long, value_name = "FILE", requires = "username")]
    pub password_file: Option<PathBuf>,
    /// Print nothing but the image's id
    #[arg(short, long)]
    pub quiet: bool,
}

/// `berth load`.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// OCI layout (directory or tar) or docker archive ("-": standard input)
    #[arg(value_name = "FILE|DIR|-")]
    pub source: PathBuf,
    /// Name for the image, instead of the one it brings
    #[arg(long, value_name = "REFERENCE")]
    pub name: Option<String>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `berth rmi`.
#[derive(Debug, Clone, Args)]
pub struct RmiArgs {
    /// Image names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub references: Vec<String>,
}

/// `berth check-config`.
#[derive(Debug, Clone, Args)]
pub struct CheckConfigArgs {
    /// The same flags as for the agent
    #[command(flatten)]
    pub node: NodeArgs,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `berth node`. A flag wins over the files.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// Configuration: KubeletConfiguration, and BerthConfiguration as a second document
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of *.conf files laid over it in the order of their names
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Directory (or file) of pod manifests
    #[arg(long, value_name = "PATH")]
    pub pod_manifest_path: Option<PathBuf>,
    /// URL of pod manifests
    #[arg(long, value_name = "URL")]
    pub manifest_url: Option<String>,
    /// Header sent when asking that URL; may be repeated
    #[arg(long, value_name = "NAME:VALUE")]
    pub manifest_url_header: Vec<String>,
    /// Name of this node [default: the host's, in lower case]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Labels of this node, for the node selectors of pods
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints of this node
    #[arg(long, value_name = "KEY[=VALUE]:EFFECT", value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// Most pods at a time
    #[arg(long, value_name = "N")]
    pub max_pods: Option<u32>,
    /// Most processes in a pod (-1: no limit)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pod_max_pids: Option<i64>,
    /// DNS servers of pods with the policy ClusterFirst
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Resolver configuration that pods inherit [default: the host's]
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    /// Give RuntimeDefault to pods that name no seccomp profile
    #[arg(long)]
    pub seccomp_default: bool,
    /// Unsafe sysctls that pods may set
    #[arg(long, value_name = "SYSCTL", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Name of the bridge that pods are connected to
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub bridge: Option<String>,
    /// Subnets of pods, one IPv4 and one IPv6 at most
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = "Network")]
    pub pod_cidr: Vec<IpNet>,
    /// MTU of pods' links [default: that of the uplink]
    #[arg(long, value_name = "BYTES", help_heading = "Network")]
    pub mtu: Option<u32>,
    /// Do not translate the addresses of what pods send out
    #[arg(long, help_heading = "Network")]
    pub no_masquerade: bool,
    /// How much is logged: 0 for operators, 4 for debugging, up to 10
    #[arg(short, long = "v", value_name = "LEVEL", help_heading = "Log")]
    pub verbosity: Option<u8>,
    /// How the log looks
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Log")]
    pub log_format: Option<LogFormatArg>,
}

/// `berth control-plane`.
#[derive(Debug, Clone, Args)]
pub struct ControlPlaneArgs {
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Port to listen on (0: any that is free)
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// Also write the administrator's kubeconfig here
    #[arg(long, value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
    /// Further names and addresses of the server, for its certificate
    #[arg(long, value_name = "NAME|IP", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Bearer tokens: lines of token,user,uid,"group1,group2"
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// How much is logged: 0 for operators, 4 for debugging, up to 10
    #[arg(short, long = "v", value_name = "LEVEL", default_value_t = 0, help_heading = "Log",
          value_parser = clap::value_parser!(u8).range(0..=10))]
    pub verbosity: u8,
    /// How the log looks
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Log")]
    pub log_format: Option<LogFormatArg>,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    /// Lines for people
    Text,
    /// JSON objects
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn directories_stand_before_or_after_the_command() {
        for line in ["berth --run-dir /r --root-dir /a pods", "berth pods --run-dir /r --root-dir /a"] {
            let directories = parse(line).unwrap().directories;
            assert_eq!(directories.run_dir, Some("/r".into()), "{line}");
            assert_eq!(directories.root_dir, Some("/a".into()), "{line}");
        }
    }

    #[test]
    fn exec_takes_its_command_after_two_dashes() {
        let Command::Exec(args) = parse("berth exec -it web -c app -e A=b -- sh -c ls").unwrap().command else {
            panic!("not exec");
        };
        assert!(args.stdin && args.tty);
        assert_eq!(args.pod, "web");
        assert_eq!(args.container.as_deref(), Some("app"));
        assert_eq!(args.env, ["A=b"]);
        assert_eq!(args.command, ["sh", "-c", "ls"]);
        assert!(parse("berth exec web").is_err());
        assert!(parse("berth exec web ls").is_err());
    }

    #[test]
    fn node_takes_lists_and_negative_numbers() {
        let line = "berth node --pod-manifest-path /m --cluster-dns 10.0.0.1,fd00::1 --pod-cidr 10.1.0.0/16,fd00::/64 \
                    --pod-max-pids -1 -v 4 --log-format json --manifest-url-header A:b --manifest-url-header C:d";
        let Command::Node(args) = parse(line).unwrap().command else { panic!("not node") };
        assert_eq!(args.cluster_dns.len(), 2);
        assert_eq!(args.pod_cidr.len(), 2);
        assert_eq!(args.pod_max_pids, Some(-1));
        assert_eq!(args.manifest_url_header, ["A:b", "C:d"]);
        assert_eq!((args.verbosity, args.log_format), (Some(4), Some(LogFormatArg::Json)));
        assert!(parse("berth node --cluster-dns here").is_err());
        assert!(parse("berth node --pod-cidr 10.1.0.0").is_err());
    }

    #[test]
    fn every_command_is_understood() {
        for line in [
            "berth node",
            "berth control-plane --secure-port 0 --tls-san a,10.0.0.1",
            "berth pods -o wide -n default",
            "berth pods --problems -o json",
            "berth ps web",
            "berth inspect web -o yaml",
            "berth events",
            "berth events web -n shop -w -o wide",
            "berth logs web -f --tail 10 --since 5m --timestamps -p -c app --limit-bytes 100",
            "berth stats",
            "berth attach web -c app -i",
            "berth debug web --image busybox --target app -c look -it -- sh",
            "berth resize web -c app --requests cpu=1,memory=1Gi --limits cpu=2 -o json",
            "berth resize web --pod-level --limits cpu=2",
            "berth images -o json",
            "berth pull busybox --username a --password-file -",
            "berth load - --name busybox:1",
            "berth rmi a b",
            "berth gc",
            "berth doctor -o json",
            "berth check-config --config c.yaml -o json",
            "berth version",
            "berth completions bash",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
        assert!(parse("berth pull busybox --username a").is_err());
        assert!(parse("berth rmi").is_err());
        assert!(parse("berth debug web").is_err());
        assert!(parse("berth debug web --image busybox -t").is_err());
        assert!(parse("berth resize web --pod-level -c app --limits cpu=2").is_err());
    }
}
