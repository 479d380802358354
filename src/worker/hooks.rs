//! Lifecycle hooks: run once for each attempt, however often the agent is restarted, and given up when asked.
//!
//! What an exec hook runs belongs to the supervisor, which records its end and lets a restarted agent join it. The others
//! are run by the agent itself, which records their end: one that a restart interrupts is run again.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{ExecAction, HTTPGetAction, LifecycleHandler, Pod},
    jiff::Timestamp,
};
use tokio::sync::Notify;

use super::{
    execute::{Host, blocking},
    host::{ActionError, Done},
};
use crate::{
    api::container_ref::ContainerRef,
    obs::chain::Chain,
    pod::{Hook, Outcome, happening::Happening, observed::HookEnd},
    probe::{FetchError, HandlerError, HttpGet, Purpose, http_get},
    runtime::client::{ClientError, ExecEnd, HookRun},
    store::{
        durable::{self, StoreError},
        layout::AttemptDirs,
    },
    supervisor::spec::{ExecSpec, HookRecord, VERSION},
};

/// For a killed process to be seen to end, before the supervisor is left alone with it.
const KILLED: Duration = Duration::from_secs(5);

/// The time of a request is not limited by itself: a preStop hook is given up with the grace period, and a container may
/// take as long as it likes for its postStart hook.
const REQUEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a hook went.
enum Ran {
    /// To its end.
    Ended(HookEnd),
    /// It was given up before.
    Abandoned,
}

/// How a hook of an attempt has ended, if it has.
pub(super) fn recorded(dirs: &AttemptDirs, hook: Hook) -> Result<Option<HookEnd>, StoreError> {
    let record = durable::read_json::<HookRecord>(&file(dirs, hook))?;
    Ok(record.map(|record| end(record.failure)))
}

fn file(dirs: &AttemptDirs, hook: Hook) -> std::path::PathBuf {
    match hook {
        Hook::PostStart => dirs.post_start_file(),
        Hook::PreStop => dirs.pre_stop_file(),
    }
}

fn end(failure: Option<String>) -> HookEnd {
    failure.map_or(HookEnd::Succeeded, HookEnd::Failed)
}

fn failed(message: impl ToString) -> Ran {
    Ran::Ended(HookEnd::Failed(message.to_string()))
}

impl Host {
    pub(super) async fn run_hook(
        self: &Arc<Self>,
        pod: &Pod,
        container: &str,
        attempt: u32,
        hook: Hook,
    ) -> Result<Done, ActionError> {
        let key = (container.to_owned(), attempt, hook);
        let given_up = self.hook_begins(key.clone());
        let ended = self.hook_to_its_end(pod, container, attempt, hook, &given_up).await;
        self.hook_ends(&key);
        ended.map(|end| Done::new(Outcome::Hook(end)))
    }

    async fn hook_to_its_end(
        self: &Arc<Self>,
        pod: &Pod,
        container: &str,
        attempt: u32,
        hook: Hook,
        given_up: &Notify,
    ) -> Result<HookEnd, ActionError> {
        let reason = if hook == Hook::PostStart { "FailedPostStartHook" } else { "FailedPreStopHook" };
        let dirs = self.dirs.attempt(container, attempt);
        let unrecorded = |error: StoreError| ActionError::new(reason, &error);
        if let Some(end) = recorded(&dirs, hook).map_err(unrecorded)? {
            return Ok(end);
        }
        let lifecycle = ContainerRef::find(pod, container).and_then(ContainerRef::lifecycle);
        let handler = lifecycle.and_then(|lifecycle| match hook {
            Hook::PostStart => lifecycle.post_start.as_ref(),
            Hook::PreStop => lifecycle.pre_stop.as_ref(),
        });
        let ran = match handler {
            None => Ran::Ended(HookEnd::Succeeded),
            Some(LifecycleHandler { exec: Some(exec), .. }) => {
                self.run_exec(container, exec, &dirs, hook, given_up).await?
            }
            Some(handler) => tokio::select! {
                ended = self.run_handler(pod, container, handler) => Ran::Ended(ended),
                () = given_up.notified() => Ran::Abandoned,
            },
        };
        let end = match ran {
            Ran::Ended(end) => {
                if let HookEnd::Failed(message) = &end {
                    tracing::warn!(pod = self.uid(), container, hook = hook.name(), "the hook failed: {message}");
                    // Upstream's words, which tell nothing that could be secret.
                    let message = if hook == Hook::PostStart { "PostStartHook failed" } else { "PreStopHook failed" };
                    let happening = Happening::warning(Some(container), reason, message);
                    self.shared.events.happened(pod, happening, Timestamp::now());
                }
                end
            }
            Ran::Abandoned => HookEnd::Failed("it was given up: its time was over".to_owned()),
        };
        let record = HookRecord {
            version: VERSION,
            failure: match &end {
                HookEnd::Succeeded => None,
                HookEnd::Failed(message) => Some(message.clone()),
            },
        };
        let path = file(&dirs, hook);
        // The supervisor's own record says the same, or more exactly what happened.
        blocking(move || {
            let write = || if path.exists() { Ok(()) } else { durable::write_json(&path, &record) };
            write().map_err(unrecorded)
        })
        .await?;
        Ok(end)
    }

    /// What needs no process in the container.
    async fn run_handler(&self, pod: &Pod, container: &str, handler: &LifecycleHandler) -> HookEnd {
        if let Some(get) = &handler.http_get {
            return match self.request(pod, container, get).await {
                Ok(()) => HookEnd::Succeeded,
                Err(error) => HookEnd::Failed(Chain(&error).to_string()),
            };
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            return HookEnd::Succeeded;
        }
        // tcpSocket above all: the API keeps it for old manifests, and says that it fails when it is run.
        HookEnd::Failed("invalid handler".to_owned())
    }

    /// Any answer is a success, as upstream. A server that does not speak TLS is asked again without, and that is told.
    async fn request(&self, pod: &Pod, container: &str, action: &HTTPGetAction) -> Result<(), HandlerError> {
        let ports = ContainerRef::find(pod, container).map(ContainerRef::ports).unwrap_or_default();
        let address = self.addresses(pod).first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut get = HttpGet::resolve(action, ports, address, Purpose::Lifecycle)?;
        let asked = get.url();
        match http_get(&get, REQUEST).await {
            Err(HandlerError::Get { source: FetchError::NotTls, .. }) => get.tls = false,
            // Nobody wants to know what it says.
            Ok(_) | Err(HandlerError::Body { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        http_get(&get, REQUEST).await?;
        let message = format!("request to HTTPS lifecycle hook {asked} got HTTP response, retry with HTTP succeeded");
        let happening = Happening::warning(Some(container), "LifecycleHTTPFallback", message);
        self.shared.events.happened(pod, happening, Timestamp::now());
        Ok(())
    }

    async fn run_exec(
        self: &Arc<Self>,
        container: &str,
        exec: &ExecAction,
        dirs: &AttemptDirs,
        hook: Hook,
        given_up: &Notify,
    ) -> Result<Ran, ActionError> {
        let supervisor = self.need_supervisor()?;
        let spec = ExecSpec {
            container: container.to_owned(),
            args: exec.command.clone().unwrap_or_default(),
            env: Vec::new(),
            cwd: None,
            tty: false,
            bound: false,
            time_limit: None,
        };
        let record = file(dirs, hook);
        let begun = tokio::select! {
            begun = supervisor.hook(spec, &record) => begun,
            // Its answer finds nobody, and the client kills what it speaks of.
            () = given_up.notified() => return Ok(Ran::Abandoned),
        };
        let mut running = match begun {
            Ok(Ok(HookRun::Running(running))) => running,
            Ok(Ok(HookRun::Ended { failure })) => return Ok(Ran::Ended(end(failure))),
            Ok(Err(error)) => return Ok(failed(error.sentence())),
            // The container has ended.
            Err(error @ ClientError::Refused { .. }) => return Ok(failed(error)),
            Err(error) => return Err(ActionError::new("FailedHook", &error)),
        };
        let id = running.id;
        let code = tokio::select! {
            code = running.wait() => code,
            () = given_up.notified() => {
                // One that is gone has no process either; one that hangs is killed with its container.
                if supervisor.exec_kill(id).await.is_ok() {
                    let _ = tokio::time::timeout(KILLED, running.wait()).await;
                }
                return Ok(Ran::Abandoned);
            }
        };
        match code {
            Ok(ExecEnd { exit_code: 0, .. }) => Ok(Ran::Ended(HookEnd::Succeeded)),
            Ok(ExecEnd { exit_code: code, .. }) => Ok(failed(format!("command terminated with exit code {code}"))),
            // The connection broke, or the supervisor is gone. Asked again it is joined, or nobody asks any more.
            Err(error) => Err(ActionError::new("FailedHook", &error)),
        }
    }
}
