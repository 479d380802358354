//! Probes and lifecycle hooks.

use k8s_openapi::{
    api::core::v1::{ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, PodSpec, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Errors, FieldError, names};

const SEVERAL: &str = "may not specify more than 1 handler type";

/// Signals upstream accepts for `stopSignal` on Linux.
const SIGNALS: [&str; 65] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

/// Which probe it is: only readiness may need several successes, and has no grace period of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeKind {
    /// Restarts the container.
    Liveness,
    /// Takes the pod out of service.
    Readiness,
    /// Holds the others back.
    Startup,
}

pub(super) fn probe(path: &str, probe: &Probe, kind: ProbeKind, errors: &mut Errors) {
    let mut handlers = Handlers { path, found: 0, errors };
    handlers.exec(probe.exec.as_ref());
    handlers.http_get(probe.http_get.as_ref());
    handlers.tcp_socket(probe.tcp_socket.as_ref());
    if let Some(grpc) = &probe.grpc {
        handlers.one("grpc", |path, errors| errors.between(&format!("{path}.port"), grpc.port.into(), 1, 65535));
    }
    handlers.finish();
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        errors.not_negative(&format!("{path}.{field}"), value.map(i64::from));
    }
    let grace_path = format!("{path}.terminationGracePeriodSeconds");
    match probe.termination_grace_period_seconds {
        Some(grace) if kind == ProbeKind::Readiness => {
            errors.push(FieldError::invalid(grace_path, grace, "must not be set for readinessProbes"));
        }
        Some(grace) if grace <= 0 => errors.push(FieldError::invalid(grace_path, grace, "must be greater than 0")),
        _ => {}
    }
    let successes = probe.success_threshold.unwrap_or(1);
    if kind != ProbeKind::Readiness && successes != 1 {
        errors.push(FieldError::invalid(format!("{path}.successThreshold"), successes, "must be 1"));
    }
}

pub(super) fn lifecycle(path: &str, lifecycle: &Lifecycle, spec: &PodSpec, errors: &mut Errors) {
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    for (field, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(handler) = handler {
            hook(&format!("{path}.{field}"), handler, grace, errors);
        }
    }
    let Some(signal) = &lifecycle.stop_signal else { return };
    let path = format!("{path}.stopSignal");
    if spec.os.is_none() {
        let detail = "may only be set when `spec.os.name` is set";
        errors.push(FieldError::forbidden(&path, detail));
    }
    if !SIGNALS.contains(&signal.as_str()) {
        let detail = "must be a signal of Linux, such as SIGTERM or SIGRTMIN+3";
        errors.push(FieldError::invalid(path, signal, detail));
    }
}

fn hook(path: &str, handler: &LifecycleHandler, grace: i64, errors: &mut Errors) {
    let mut handlers = Handlers { path, found: 0, errors };
    handlers.exec(handler.exec.as_ref());
    handlers.http_get(handler.http_get.as_ref());
    handlers.tcp_socket(handler.tcp_socket.as_ref());
    if let Some(sleep) = &handler.sleep {
        handlers.one("sleep", |path, errors| {
            if !(0..=grace).contains(&sleep.seconds) {
                let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.push(FieldError::invalid(path, sleep.seconds, detail));
            }
        });
    }
    handlers.finish();
}

/// Exactly one handler is to be given.
struct Handlers<'h> {
    path: &'h str,
    found: usize,
    errors: &'h mut Errors,
}

impl Handlers<'_> {
    fn one(&mut self, field: &str, check: impl FnOnce(&str, &mut Errors)) {
        let path = format!("{}.{field}", self.path);
        self.found += 1;
        if self.found > 1 {
            self.errors.push(FieldError::forbidden(path, SEVERAL));
        } else {
            check(&path, self.errors);
        }
    }

    fn exec(&mut self, exec: Option<&ExecAction>) {
        let Some(exec) = exec else { return };
        self.one("exec", |path, errors| {
            if exec.command.as_ref().is_none_or(Vec::is_empty) {
                errors.push(FieldError::required(format!("{path}.command")));
            }
        });
    }

    fn http_get(&mut self, get: Option<&HTTPGetAction>) {
        let Some(get) = get else { return };
        self.one("httpGet", |path, errors| {
            if get.path.as_deref().is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("{path}.path")));
            }
            port(&format!("{path}.port"), &get.port, errors);
            errors.one_of(&format!("{path}.scheme"), get.scheme.as_deref(), &["HTTP", "HTTPS"]);
            for header in get.http_headers.iter().flatten() {
                errors.check(&format!("{path}.httpHeaders"), &header.name, names::header_name(&header.name));
            }
        });
    }

    fn tcp_socket(&mut self, socket: Option<&TCPSocketAction>) {
        let Some(socket) = socket else { return };
        self.one("tcpSocket", |path, errors| port(&format!("{path}.port"), &socket.port, errors));
    }

    fn finish(self) {
        if self.found == 0 {
            self.errors.push(FieldError::required_because(self.path, "must specify a handler type"));
        }
    }
}

fn port(path: &str, port: &IntOrString, errors: &mut Errors) {
    match port {
        IntOrString::Int(number) => errors.between(path, (*number).into(), 1, 65535),
        IntOrString::String(name) => errors.check(path, name, names::port_name(name)),
    }
}
