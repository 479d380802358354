//! The configuration of a bundle (config.json of the OCI runtime specification), completed with what can only be known
//! beside the pod: who its user is by the image's own files, where the pod's namespaces are, what may be given away here.

use std::{ffi::OsString, fs, path::Path};

use serde_json::{Value, json};

use super::stage::Staged;
use crate::{
    supervisor::{
        container::{
            devices,
            error::{Failure, Step},
            user::Identity,
        },
        spec::{HandlerSpec, LaunchSpec},
    },
    sys::{caps, session},
};

/// The namespaces of others that a container joins, by the number of a process in each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Namespaces {
    /// In the pod's network, IPC and UTS namespaces: the supervisor.
    pub(super) pod: i32,
    /// In the PID namespace, unless the container has one of its own (or the host's).
    pub(super) pid: Option<i32>,
}

/// Reads what the agent has written, completes it, and writes it where the runtime looks for it. Returns what had to be
/// left out, in words.
pub(super) fn complete(
    spec: &LaunchSpec,
    handler: &HandlerSpec,
    (staged, identity): (&Staged, &Identity),
    namespaces: Namespaces,
) -> Result<Vec<String>, Failure> {
    let template = handler.bundle.join("template.json");
    let mut config = read(&template)?;
    config["root"]["path"] = json!(spec.rootfs.target);
    for (mount, source) in config["mounts"].as_array_mut().into_iter().flatten().zip(&staged.sources) {
        if let Some(source) = source {
            mount["source"] = json!(source);
        }
    }
    for namespace in config["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        let path = |process: i32, kind: &str| json!(format!("/proc/{process}/ns/{kind}"));
        match namespace["type"].as_str() {
            Some("network") => namespace["path"] = path(namespaces.pod, "net"),
            Some("ipc") => namespace["path"] = path(namespaces.pod, "ipc"),
            Some("uts") => namespace["path"] = path(namespaces.pod, "uts"),
            Some("pid") => {
                if let Some(process) = namespaces.pid {
                    namespace["path"] = path(process, "pid");
                }
            }
            _ => {}
        }
    }
    if spec.all_devices {
        let host = devices::of_host()?.into_iter().map(|device| {
            json!({
                "path": device.path, "type": if device.block { "b" } else { "c" }, "major": device.major,
                "minor": device.minor, "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
            })
        });
        config["linux"]["devices"] = host.collect();
    }
    let user = &mut config["process"]["user"];
    user["uid"] = identity.uid.into();
    user["gid"] = identity.gid.into();
    user["additionalGids"] = json!(identity.groups);
    if let Some(variables) = config["process"]["env"].as_array_mut() {
        add_home(variables, &identity.home);
    }
    let may_raise = caps::get().step(|| "read capabilities")?.effective & caps::SYS_RESOURCE != 0;
    let warnings = if may_raise { Vec::new() } else { stay_within(&mut config["process"], spec)? };
    write(&handler.bundle.join("config.json"), &config)?;
    Ok(warnings)
}

/// A runtime gives up where a limit cannot be raised, or a weight for the OOM killer lowered. It is asked for what can be
/// had, as a container of the supervisor's own gets it.
fn stay_within(process: &mut Value, spec: &LaunchSpec) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    let limits = process["rlimits"].as_array_mut().into_iter().flatten();
    for ((resource, soft, hard), limit) in spec.rlimits.iter().copied().zip(limits) {
        let (_, ceiling) = session::limit(resource).step(|| format!("read resource limit {resource}"))?;
        if hard > ceiling {
            limit["soft"] = soft.min(ceiling).into();
            limit["hard"] = ceiling.into();
            warnings.push(format!("resource limit {resource} stays at {ceiling} without CAP_SYS_RESOURCE"));
        }
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").step(|| "read oom_score_adj")?;
    if let Ok(own) = own.trim().parse::<i32>()
        && spec.oom_score_adj < own
    {
        process["oomScoreAdj"] = own.into();
        warnings.push(format!("oom_score_adj {} needs CAP_SYS_RESOURCE, ignoring", spec.oom_score_adj));
    }
    Ok(warnings)
}

/// HOME is that of the user where the environment has none or an empty one.
fn add_home(variables: &mut Vec<Value>, home: &OsString) {
    let is_home = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("HOME="));
    if variables.iter().any(|value| is_home(value) && value != "HOME=") {
        return;
    }
    variables.retain(|value| !is_home(value));
    variables.push(format!("HOME={}", home.to_string_lossy()).into());
}

/// Reads a JSON file.
pub(super) fn read(path: &Path) -> Result<Value, Failure> {
    let step = || format!("read {}", path.display());
    let text = fs::read(path).step(step)?;
    serde_json::from_slice(&text).map_err(std::io::Error::other).step(step)
}

/// Writes a JSON file. Nothing is synced: an attempt that a crash interrupts is not gone on with.
pub(super) fn write(path: &Path, value: &Value) -> Result<(), Failure> {
    fs::write(path, value.to_string()).step(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_added_where_it_is_missing_or_empty() {
        let after = |before: Value| {
            let mut variables = before.as_array().unwrap().clone();
            add_home(&mut variables, &"/root".into());
            Value::from(variables)
        };
        assert_eq!(after(json!(["A=1"])), json!(["A=1", "HOME=/root"]));
        assert_eq!(after(json!(["HOME=", "A=1"])), json!(["A=1", "HOME=/root"]));
        assert_eq!(after(json!(["HOME=/x"])), json!(["HOME=/x"]));
    }
}
