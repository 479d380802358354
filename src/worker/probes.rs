//! One probe of a container run once, and what is told of it; the verdicts on disk.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Container, Pod, Probe},
    jiff::Timestamp,
};

use super::{execute::Host, host::Answer, prober};
use crate::{
    obs::chain::Chain,
    pod::{
        happening::Happening,
        observed::Probed,
        probe::{self, ProbeKey},
    },
    probe::{self as runner, HandlerError, HttpGet, Place, Purpose},
    runtime::expansion::expand,
    store::{
        durable::{self, StoreError},
        layout::PodDirs,
    },
};

/// Tries of a probe that could not be run at all (upstream `maxProbeRetries`).
const TRIES: usize = 3;

/// What a probe that was answered came to.
enum Finding {
    Success,
    /// A success that somebody should look at.
    Warning(String),
    Failure(String),
}

impl Host {
    /// Runs a probe and records the events that upstream would.
    pub(super) async fn run_probe(self: Arc<Self>, pod: Arc<Pod>, key: ProbeKey) -> Answer {
        let container = prober::container(&pod, &key.container);
        let Some((container, probe)) = container.and_then(|found| Some((found, key.kind.of(found)?))) else {
            return Answer::default();
        };
        let kind = key.kind.name();
        let warn = |reason: &'static str, message: String| {
            tracing::debug!(pod = self.uid(), container = key.container, "{message}");
            let happening = Happening::warning(Some(&key.container), reason, message);
            self.shared.events.happened(&pod, happening, Timestamp::now());
        };
        let mut found = self.ask(&pod, container, probe).await;
        for _ in 1..TRIES {
            match &found {
                Err(error) if error.is_passing() => found = self.ask(&pod, container, probe).await,
                _ => break,
            }
        }
        match found {
            Ok(Finding::Success) => Answer { success: Some(true), message: String::new() },
            Ok(Finding::Warning(output)) => {
                warn("ProbeWarning", format!("{kind} probe warning: {output}"));
                Answer { success: Some(true), message: String::new() }
            }
            Ok(Finding::Failure(output)) => {
                warn("Unhealthy", format!("{kind} probe failed: {output}"));
                Answer { success: Some(false), message: output }
            }
            // The container has ended in the meantime, or the whole sandbox: that has events of its own.
            Err(HandlerError::Supervisor { .. }) if self.supervisor().is_none() => Answer::default(),
            Err(error) => {
                let state = if matches!(error, HandlerError::Body { .. }) { "failure" } else { "unknown" };
                let message = Chain(&error);
                warn("Unhealthy", format!("{kind} probe errored and resulted in {state} state: {message}"));
                Answer::default()
            }
        }
    }

    async fn ask(&self, pod: &Pod, container: &Container, probe: &Probe) -> Result<Finding, HandlerError> {
        let asked = self.ask_handler(pod, container, probe).await;
        match asked {
            Err(error) if error.is_verdict() => Ok(Finding::Failure(Chain(&error).to_string())),
            asked => asked,
        }
    }

    async fn ask_handler(&self, pod: &Pod, container: &Container, probe: &Probe) -> Result<Finding, HandlerError> {
        let timeout = probe::timeout(probe);
        let ports = container.ports.as_deref().unwrap_or_default();
        let pod_ip = self.addresses(pod).first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        if let Some(action) = &probe.exec {
            let Some(supervisor) = self.supervisor() else { return Err(self.no_sandbox(container)) };
            let command = command(container, action.command.as_deref().unwrap_or_default());
            let reply = runner::exec(&supervisor, &container.name, &command, Some(timeout)).await?;
            return Ok(if reply.exit_code == 0 { Finding::Success } else { Finding::Failure(reply.output) });
        }
        if let Some(action) = &probe.http_get {
            let get = HttpGet::resolve(action, ports, pod_ip, Purpose::Probe)?;
            let reply = runner::http_get(&get, timeout).await?;
            return Ok(if reply.is_redirect() {
                Finding::Warning(format!("Probe terminated redirects, Response body: {}", reply.body))
            } else if reply.is_success() {
                Finding::Success
            } else {
                // Without the body, which may hold what is not for everybody who reads events.
                Finding::Failure(format!("HTTP probe failed with statuscode: {}", reply.status))
            });
        }
        if let Some(action) = &probe.tcp_socket {
            runner::tcp_connect(&Place::resolve(action, ports, pod_ip)?, timeout).await?;
            return Ok(Finding::Success);
        }
        if let Some(action) = &probe.grpc {
            let port = runner::port_number(action.port)?;
            runner::grpc_check(pod_ip, port, action.service.as_deref().unwrap_or_default(), timeout).await?;
        }
        // Validation sees to it that there is one of them.
        Ok(Finding::Success)
    }

    fn no_sandbox(&self, container: &Container) -> HandlerError {
        let source = crate::runtime::client::ClientError::Gone;
        HandlerError::Supervisor { container: container.name.clone(), source }
    }

    /// Keeps the verdicts for an agent to come. They need not outlive a reboot, which no container does.
    pub(super) fn keep_verdicts(self: &Arc<Self>, probes: &BTreeMap<String, Probed>) {
        let (host, probes) = (self.clone(), probes.clone());
        let turn = self.verdicts.next();
        tokio::task::spawn_blocking(move || {
            let mut written = host.verdicts.written.lock().unwrap_or_else(PoisonError::into_inner);
            // A newer one was faster.
            if *written > turn {
                return;
            }
            *written = turn;
            if let Err(error) = durable::write_json_until_reboot(&host.dirs.probes_file(), &probes) {
                tracing::warn!(pod = host.uid(), error = %Chain(&error), "the verdicts of probes are not kept");
            }
        });
    }
}

/// The verdicts that an earlier agent kept.
pub(super) fn kept_verdicts(dirs: &PodDirs) -> Result<BTreeMap<String, Probed>, StoreError> {
    Ok(durable::read_json(&dirs.probes_file())?.unwrap_or_default())
}

/// Who is next to write the verdicts: the newest is the one that stays.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    turn: std::sync::atomic::AtomicU64,
    written: std::sync::Mutex<u64>,
}

impl Verdicts {
    fn next(&self) -> u64 {
        self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1
    }
}

/// The words of an exec probe, with references to variables of the container that are given as plain values (upstream
/// `ExpandContainerCommandOnlyStatic`).
fn command(container: &Container, words: &[String]) -> Vec<String> {
    let variables = container.env.as_deref().unwrap_or_default();
    let value = |name: &str| {
        let variable = variables.iter().rev().find(|variable| variable.name == name)?;
        Some(variable.value.as_deref().unwrap_or_default())
    };
    words.iter().map(|word| expand(word, value)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_knows_the_plain_variables_of_its_container() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {}}, {"name": "A", "value": "2"}]);
        let container: Container = serde_json::from_value(json!({"name": "app", "env": env})).unwrap();
        let words = ["$(A)x", "$(B)", "$(C)", "$$(A)"].map(str::to_owned);
        assert_eq!(command(&container, &words), ["2x", "", "$(C)", "$(A)"]);
    }
}
