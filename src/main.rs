//! Dispatch, before any runtime starts: a pod's supervisor, or the command line.

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

use berth::{cli, config::NodeConfig};

fn main() -> ExitCode {
    // The supervisor of a pod is this same program under another name. It starts neither threads nor a runtime, so
    // nothing may happen before this.
    let name = env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(OsStr::to_str) {
        // Some("berth-sandbox") => berth::supervisor::run(),
        _ => cli::main(node),
    }
}

fn node(config: NodeConfig) -> cli::NodeFuture {
    // Box::pin(async move { berth::worker::run::run(config).await.map_err(Into::into) })
    Box::pin(async move { Err(format!("the node {} has nothing to run yet", config.node_name).into()) })
}
