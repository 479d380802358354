//! What is executed: arguments, working directory, stop signal, and the name of an attempt.

use std::path::PathBuf;

use super::{config_error::ConfigError, container_ref::ContainerRef, env::PodEnv, expansion::expand};

/// SIGTERM.
const DEFAULT_STOP_SIGNAL: i32 = libc::SIGTERM;

/// The real-time signals as glibc counts them (it keeps the kernel's first two for itself), whatever C library this
/// program is linked with: that is what the authors of images mean.
const REALTIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Executable and arguments.
///
/// | pod           | what runs                          |
/// |---------------|------------------------------------|
/// | neither       | the image's entry point and command |
/// | command       | command alone                      |
/// | args          | the image's entry point and args   |
/// | command, args | command and args                   |
pub fn arguments(
    container: ContainerRef<'_>,
    entrypoint: &[String],
    cmd: &[String],
    env: &PodEnv,
) -> Result<Vec<String>, ConfigError> {
    let own = |list: &[String]| list.iter().map(|text| expand(text, |name| env.get(name))).collect::<Vec<_>>();
    let (command, args) = (own(container.command()), own(container.args()));
    let mut all = if command.is_empty() { entrypoint.to_vec() } else { command };
    if !args.is_empty() {
        all.extend(args);
    } else if container.command().is_empty() {
        all.extend_from_slice(cmd);
    }
    let path = container.path();
    if all.is_empty() {
        return Err(ConfigError::create(format!("{path}.command"), "no command specified"));
    }
    if all.iter().any(|argument| argument.contains('\0')) {
        return Err(ConfigError::create(format!("{path}.command"), "an argument contains a zero byte"));
    }
    Ok(all)
}

/// Working directory: the pod's, else the image's, else the root.
pub fn working_directory(container: ContainerRef<'_>, image: &str) -> Result<PathBuf, ConfigError> {
    let (directory, field) = match (container.working_dir(), image) {
        ("", "") => ("/", String::new()),
        ("", image) => (image, "image".to_owned()),
        (own, _) => (own, format!("{}.workingDir", container.path())),
    };
    if !directory.starts_with('/') || directory.contains('\0') {
        return Err(ConfigError::create(field, format!("working directory {directory:?} is not an absolute path")));
    }
    Ok(PathBuf::from(directory))
}

/// The signal a container is stopped with: lifecycle.stopSignal, else the image's STOPSIGNAL, else SIGTERM.
pub fn stop_signal(container: ContainerRef<'_>, image: &str) -> Result<i32, ConfigError> {
    let own = container.lifecycle().and_then(|lifecycle| lifecycle.stop_signal.as_deref()).unwrap_or_default();
    let (name, field) = match (own, image) {
        ("", "") => return Ok(DEFAULT_STOP_SIGNAL),
        ("", image) => (image, "image".to_owned()),
        (own, _) => (own, format!("{}.lifecycle.stopSignal", container.path())),
    };
    parse_signal(name).ok_or_else(|| ConfigError::create(field, format!("{name:?} is not a signal")))
}

/// A signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=*REALTIME.end()).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<u8>().ok()? };
        return Some(REALTIME.start() + i32::from(offset)).filter(|signal| REALTIME.contains(signal));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse::<u8>().ok()? };
        return Some(REALTIME.end() - i32::from(offset)).filter(|signal| REALTIME.contains(signal));
    }
    // Old names of signals that have a newer one.
    let name = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        name => name,
    };
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// The id of an attempt at a container: 64 hex digits that follow from what it is an attempt at, so that a repeated
/// start means the same container.
pub fn container_id(pod_uid: &str, container: &str, attempt: u32) -> String {
    // None of the parts can contain a slash.
    let name = format!("{pod_uid}/{container}/{attempt}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, Pod};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::objects::Objects,
        runtime::{
            downward::{Allocatable, Surroundings},
            env::{EnvSources, pod_env},
        },
    };

    fn container(value: Value) -> Container {
        let mut value = value;
        value["name"] = json!("app");
        serde_json::from_value(value).unwrap()
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn command_and_args_replace_entry_point_and_cmd() {
        let run = |value: Value| {
            let container = container(value);
            let container = ContainerRef::App(0, &container);
            arguments(container, &words(&["/entry", "-e"]), &words(&["cmd"]), &PodEnv::default()).unwrap()
        };
        assert_eq!(run(json!({})), ["/entry", "-e", "cmd"]);
        assert_eq!(run(json!({"command": ["own"]})), ["own"]);
        assert_eq!(run(json!({"args": ["a", "b"]})), ["/entry", "-e", "a", "b"]);
        assert_eq!(run(json!({"command": ["own"], "args": ["a"]})), ["own", "a"]);
        assert_eq!(run(json!({"command": [], "args": []})), ["/entry", "-e", "cmd"]);
        let nothing = container(json!({}));
        let error = arguments(ContainerRef::App(0, &nothing), &[], &[], &PodEnv::default()).unwrap_err();
        assert_eq!(error.to_string(), "spec.containers[0].command: no command specified");
    }

    #[test]
    fn references_in_arguments_are_to_the_pods_variables() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "app", "env": [{"name": "A", "value": "x y"}], "command": ["echo", "$(A)", "$$(A)", "$(B)"]},
        ]}}))
        .unwrap();
        let app = ContainerRef::find(&pod, "app").unwrap();
        let allocatable = Allocatable::default();
        let surroundings = Surroundings { node_name: "", pod_ips: &[], host_ips: &[], allocatable: &allocatable };
        let sources = EnvSources { objects: &Objects::default(), read_file: &|_, _| Ok(None) };
        let env = pod_env(&pod, app, &surroundings, &sources).unwrap();
        // The image's own words are not expanded.
        assert_eq!(arguments(app, &[], &[], &env).unwrap(), ["echo", "x y", "$(A)", "$(B)"]);
        let bare = container(json!({}));
        assert_eq!(arguments(ContainerRef::App(0, &bare), &words(&["$(A)"]), &[], &env).unwrap(), ["$(A)"]);
    }

    #[test]
    fn the_pods_working_directory_goes_before_the_images() {
        let with = |directory: &str, image: &str| {
            let container = container(json!({"workingDir": directory}));
            working_directory(ContainerRef::Init(1, &container), image)
        };
        assert_eq!(with("", "").unwrap(), PathBuf::from("/"));
        assert_eq!(with("", "/srv").unwrap(), PathBuf::from("/srv"));
        assert_eq!(with("/own", "/srv").unwrap(), PathBuf::from("/own"));
        assert_eq!(with("own", "/srv").unwrap_err().field, "spec.initContainers[1].workingDir");
        assert_eq!(with("", "srv").unwrap_err().field, "image");
    }

    #[test]
    fn signals_are_names_or_numbers() {
        for (text, signal) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("SIGQUIT", Some(3)),
            ("9", Some(9)),
            ("37", Some(37)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGIOT", Some(6)),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN-1", None),
            ("0", None),
            ("65", None),
            ("SIGNOTHING", None),
        ] {
            assert_eq!(parse_signal(text), signal, "{text}");
        }
        let own = container(json!({"lifecycle": {"stopSignal": "SIGUSR1"}}));
        assert_eq!(stop_signal(ContainerRef::App(0, &own), "SIGQUIT"), Ok(10));
        let plain = container(json!({}));
        assert_eq!(stop_signal(ContainerRef::App(0, &plain), "SIGQUIT"), Ok(3));
        assert_eq!(stop_signal(ContainerRef::App(0, &plain), ""), Ok(15));
        assert_eq!(stop_signal(ContainerRef::App(0, &plain), "SIGX").unwrap_err().field, "image");
    }

    #[test]
    fn an_attempt_has_one_id() {
        let id = container_id("u", "app", 0);
        assert_eq!(id.len(), 64);
        assert_eq!(id, container_id("u", "app", 0));
        assert_ne!(id, container_id("u", "app", 1));
        assert_ne!(id, container_id("u", "other", 0));
    }
}
