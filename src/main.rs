//! Dispatch, before any runtime starts: a pod's supervisor, a helper for volumes, or the command line.

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

use berth::{cli, supervisor, volume};

fn main() -> ExitCode {
    // The supervisor of a pod is this same program under another name. It starts neither threads nor a runtime, so
    // nothing may happen before this.
    let name = env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(OsStr::to_str) {
        Some(supervisor::PROGRAM) => supervisor::run(),
        Some(volume::helper::PROGRAM) => volume::helper::run(),
        _ => cli::main(|config| Box::pin(cli::agent::run(config))),
    }
}
