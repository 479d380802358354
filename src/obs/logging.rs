//! The agent's log: on standard error, as text or JSON.

use std::io;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogFormat, LogOptions};

/// Overrides the verbosity, in the syntax of `tracing_subscriber::EnvFilter`: `info,berth::worker=debug`.
pub const FILTER_VARIABLE: &str = "BERTH_LOG";

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("read the log filter {filter:?} in {FILTER_VARIABLE}")]
    Filter {
        /// The text.
        filter: String,
        /// Cause.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A second set-up in one process.
    #[error("install the log")]
    Install(#[source] tracing_subscriber::util::TryInitError),
}

/// Sets the log up for the whole process; `filter` is the content of [`FILTER_VARIABLE`].
pub fn init(options: &LogOptions, filter: Option<&str>) -> Result<(), LoggingError> {
    let filter = match filter {
        Some(text) => {
            EnvFilter::try_new(text).map_err(|source| LoggingError::Filter { filter: text.to_owned(), source })?
        }
        None => EnvFilter::new(filter_of(options.verbosity)),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let result = match options.format {
        LogFormat::Text => {
            let terminal = io::IsTerminal::is_terminal(&io::stderr());
            registry.with(fmt::layer().with_writer(io::stderr).with_ansi(terminal)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init(),
    };
    result.map_err(LoggingError::Install)
}

/// Kubernetes' verbosity as a filter: up to 3 is for operators, 4 and 5 for whoever debugs the agent, from 6 on
/// everything, libraries included from 8 on.
fn filter_of(verbosity: u8) -> &'static str {
    match verbosity {
        0..=3 => "info",
        4..=5 => "info,berth=debug,berth_cni=debug",
        6..=7 => "info,berth=trace,berth_cni=trace",
        _ => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verbosity_has_a_valid_filter() {
        for verbosity in 0..=10 {
            assert!(EnvFilter::try_new(filter_of(verbosity)).is_ok());
        }
    }

    #[test]
    fn a_broken_filter_is_named() {
        let options = LogOptions { format: LogFormat::Text, verbosity: 0 };
        let error = init(&options, Some("berth=loud=x")).unwrap_err();
        assert!(error.to_string().contains("berth=loud=x"));
    }
}
