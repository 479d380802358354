//! `berth control-plane`: the API server by itself.

use std::{error::Error, process::ExitCode, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::{
    args::{ControlPlaneArgs, Directories, LogFormatArg},
    exit::{Exit, Failed},
    layout,
};
use crate::{
    config::{LogFormat, LogOptions},
    control::start::{Config, ControlPlane},
    obs::{
        chain::Chain,
        logging::{self, FILTER_VARIABLE},
    },
};

/// For threads that block (a slow disk) to come to an end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It could not start.
pub fn run(directories: &Directories, args: &ControlPlaneArgs) -> Result<ExitCode, Failed> {
    let format = match args.log_format {
        Some(LogFormatArg::Json) => LogFormat::Json,
        Some(LogFormatArg::Text) | None => LogFormat::Text,
    };
    let options = LogOptions { format, verbosity: args.verbosity };
    let filter = std::env::var(FILTER_VARIABLE).ok();
    logging::init(&options, filter.as_deref()).map_err(|error| Failed::new(Exit::Config, Chain(&error).to_string()))?;
    let config = Config {
        directory: layout(directories).control(),
        address: (args.bind_address, args.secure_port).into(),
        names: args.tls_san.clone(),
        kubeconfig: args.write_kubeconfig.clone(),
        token_file: args.token_auth_file.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("berth-control")
        .enable_all()
        .build()
        .map_err(|error| Failed::of(&error))?;
    let ended = runtime.block_on(serve(config));
    runtime.shutdown_timeout(SHUTDOWN);
    match ended {
        Ok(()) => Ok(Exit::Success.into()),
        Err(error) => Err(Failed::of(error.as_ref())),
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn Error>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let control = ControlPlane::start(config).await?;
    println!("berth: the API server listens on https://{}", control.address);
    println!("try: kubectl --kubeconfig {} get namespaces", control.kubeconfig.display());
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
    }
    control.stop().await;
    Ok(())
}
