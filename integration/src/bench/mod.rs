//! Benchmarks: berth, its peers and the kernel's floor, side by side in one run.

pub mod berth;
pub mod peers;
pub mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fixtures;

/// CLOCK_REALTIME in nanoseconds, the clock `/stamp` prints.
pub fn now() -> i64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).expect("a clock");
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}

/// Files every contender uses.
pub struct Material {
    /// OCI layout of the image, loaded as `bench:1`: busybox and `/stamp`.
    pub layout: PathBuf,
    /// The same as a plain root directory.
    pub rootfs: PathBuf,
}

impl Material {
    /// Makes them in `directory` with the `stamp` that lies beside this program.
    pub fn make(directory: &Path) -> Result<Material> {
        let stamp = std::env::current_exe()?.with_file_name("stamp");
        let rootfs = directory.join("rootfs");
        let layout = directory.join("bench");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("busybox-static is installed")?;
        fs::copy(&stamp, rootfs.join("stamp")).with_context(|| format!("copy {}", stamp.display()))?;
        copy_layout(Path::new(&fixtures::busybox()), &layout)?;
        let image = format!("{}:1", layout.display());
        run("umoci", &["insert", "--image", &image, text(&stamp)?, "/stamp"])?;
        Ok(Material { layout, rootfs })
    }
}

fn copy_layout(from: &Path, to: &Path) -> Result<()> {
    run("cp", &["-r", text(from)?, text(to)?])
}

/// A path as text.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}\n{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The manifest every Kubernetes-shaped contender gets: one container that prints the time and waits.
pub fn manifest(name: &str) -> String {
    pod(name).to_string()
}

/// The same with an exec probe every ten seconds.
pub fn probed_manifest(name: &str) -> String {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({ "periodSeconds": 10, "exec": { "command": ["/bin/true"] } });
    pod.to_string()
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 10,
            "containers": [{
                "name": "app",
                "image": "localhost/bench:1",
                "imagePullPolicy": "Never",
                "command": ["/stamp"],
            }],
        },
    })
}

/// The same pod with `count` volumes of all kinds in turn; those with content take it from [`objects`].
pub fn manifest_with_volumes(name: &str, count: usize) -> String {
    let projected = json!([
        { "configMap": { "name": "bench" } },
        { "secret": { "name": "bench", "items": [{ "key": "key", "path": "secret" }] } },
    ]);
    let downward = json!([{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }]);
    let kinds = [
        json!({ "configMap": { "name": "bench" } }),
        json!({ "secret": { "secretName": "bench" } }),
        json!({ "emptyDir": {} }),
        json!({ "projected": { "sources": projected } }),
        json!({ "downwardAPI": { "items": downward } }),
    ];
    let volume = |(number, kind): (usize, &Value)| {
        let mut volume = kind.clone();
        volume["name"] = format!("v{number}").into();
        volume
    };
    let volumes: Vec<Value> = kinds.iter().cycle().take(count).enumerate().map(volume).collect();
    let mount = |number: usize| json!({ "name": format!("v{number}"), "mountPath": format!("/volumes/{number}") });
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["volumeMounts"] = (0..count).map(mount).collect();
    pod["spec"]["volumes"] = volumes.into();
    pod.to_string()
}

/// The config map (with `value` as its one key's) and the secret the volumes are made from.
pub fn objects(value: &str) -> [(&'static str, String); 2] {
    let object = |kind: &str, field: &str, value: &str| {
        let metadata = json!({ "name": "bench", "namespace": "default" });
        let mut object = json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata });
        object[field] = json!({ "key": value });
        object.to_string()
    };
    [
        ("configmap.json", object("ConfigMap", "data", value)),
        ("secret.json", object("Secret", "stringData", "a secret")),
    ]
}
