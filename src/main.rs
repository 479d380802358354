//! Dispatch, before any runtime starts: a pod's supervisor, or the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|program| program == berth::supervisor::PROGRAM) {
        return berth::supervisor::run();
    }
    ExitCode::SUCCESS
}
