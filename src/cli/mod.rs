//! The command line: arguments, then what each command does. The agent runs in [`node`]; every other command asks it
//! over its sockets.

pub mod agent;
pub mod args;
mod attach;
mod change;
pub mod client;
mod columns;
mod containers;
mod control_plane;
pub mod doctor;
mod events;
mod exec;
pub mod exit;
mod image_adapter;
mod images;
pub mod node;
pub mod output;
mod pods;
mod pump;
#[cfg(test)]
mod tests;

use std::{error::Error, path::PathBuf, pin::Pin, process::ExitCode};

use clap::{CommandFactory, Parser};
use serde::Serialize;

use args::{Cli, Command, Directories, OutputArgs};
use client::Client;
use exit::{Exit, Failed};

use crate::{config::NodeConfig, server::local::Version, store::layout::Layout};

/// The agent at work; resolves when it has been told to stop and has done so.
pub type NodeFuture = Pin<Box<dyn Future<Output = Result<(), Box<dyn Error + Send + Sync>>>>>;

/// Runs the agent; wired in main, so that this module does not know how.
pub type NodeRunner = fn(NodeConfig) -> NodeFuture;

/// Parses the arguments of this process and does what they say.
pub fn main(runner: NodeRunner) -> ExitCode {
    // Help, version and mistakes are printed and answered with 0 or 2 by clap itself.
    let cli = Cli::parse();
    match dispatch(cli, runner) {
        Ok(code) => code,
        Err(failed) => {
            eprintln!("{failed}");
            failed.exit.into()
        }
    }
}

fn dispatch(cli: Cli, runner: NodeRunner) -> Result<ExitCode, Failed> {
    let layout = layout(&cli.directories);
    match cli.command {
        Command::Node(args) => return node::run(&cli.directories, &args, runner),
        Command::ControlPlane(args) => return control_plane::run(&cli.directories, &args),
        Command::Exec(args) => return exec::run(&layout.stream_socket(), &args),
        Command::Attach(args) => return attach::run(&layout.stream_socket(), &args),
        Command::Debug(args) => return change::debug(&layout.api_socket(), &layout.stream_socket(), &args),
        Command::CheckConfig(args) => node::check(&cli.directories, &args)?,
        Command::Doctor(args) => return doctor::run(&layout, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "berth", &mut script);
            output::print_bytes(&script)?;
        }
        command => ask(&layout, command)?,
    }
    Ok(Exit::Success.into())
}

/// The commands that ask the agent.
fn ask(layout: &Layout, command: Command) -> Result<(), Failed> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| Failed::of(&error))?;
    let client = Client::new(&layout.api_socket());
    runtime.block_on(async {
        match command {
            Command::Pods(args) => pods::list(&client, &args).await,
            Command::Events(args) => events::list(&client, &args).await,
            Command::Inspect(args) => pods::inspect(&client, &args).await,
            Command::Ps(args) => containers::list(&client, &args).await,
            Command::Stats(args) => containers::stats(&client, &args).await,
            Command::Resize(args) => change::resize(&client, &args).await,
            Command::Logs(args) => containers::logs(&client, &args).await,
            Command::Images(args) => images::list(&client, &args).await,
            Command::Pull(args) => images::pull(&client, &args).await,
            Command::Load(args) => images::load(&client, &args).await,
            Command::Rmi(args) => images::remove(&client, &args).await,
            Command::Gc(args) => images::collect(&client, &args).await,
            Command::Version(args) => version(&client, &args).await,
            Command::Node(_)
            | Command::ControlPlane(_)
            | Command::Exec(_)
            | Command::Attach(_)
            | Command::Debug(_)
            | Command::CheckConfig(_)
            | Command::Doctor(_)
            | Command::Completions { .. } => Ok(()),
        }
    })
}

/// Where the agent is that a command asks. Only flags count here: the agent's configuration file is the agent's.
fn layout(directories: &Directories) -> Layout {
    let or = |path: &Option<PathBuf>, default: &str| path.clone().unwrap_or_else(|| default.into());
    Layout {
        root: or(&directories.root_dir, "/var/lib/berth"),
        run: or(&directories.run_dir, "/run/berth"),
        log: or(&directories.log_dir, "/var/log/pods"),
    }
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    agent: Option<Version>,
}

/// Without an agent, only that of the program.
async fn version(client: &Client, args: &OutputArgs) -> Result<(), Failed> {
    let agent = match client.get::<Version>("/v1/version").await {
        Ok(version) => Some(version),
        Err(failed) if failed.exit == Exit::Unreachable => None,
        Err(failed) => return Err(failed),
    };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), agent };
    output::show(args.output, &versions, |_| {
        let mut text = format!("berth {}\n", versions.client);
        text.push_str(&match &versions.agent {
            Some(agent) => format!(
                "agent {} (node {}, process {}, since {})\n",
                agent.version, agent.node, agent.pid, agent.started
            ),
            None => "agent not running\n".to_owned(),
        });
        text
    })
}
