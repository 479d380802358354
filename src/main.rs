//! Dispatch, before any runtime starts: a pod's supervisor, or the command line.

use std::{env, process::ExitCode};

use berth::{cli, config::NodeConfig, supervisor};

fn main() -> ExitCode {
    // The supervisor of a pod is this same program under another name. It starts neither threads nor a runtime, so
    // nothing may happen before this.
    if env::args_os().next().is_some_and(|name| name == supervisor::PROGRAM) {
        return supervisor::run();
    }
    cli::main(node)
}

fn node(config: NodeConfig) -> cli::NodeFuture {
    // Box::pin(async move { berth::worker::run::run(config).await.map_err(Into::into) })
    Box::pin(async move { Err(format!("the node {} has nothing to run yet", config.node_name).into()) })
}
