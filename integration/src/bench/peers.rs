//! The peers: the floor program, `runc run`, `podman kube play`.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Material, manifest, now, run, text};
use crate::Place;

/// The floor: start and stop in nanoseconds for each of `count` pods.
pub fn floor(place: &Place, program: &Path, material: &Material, count: usize) -> Result<(Vec<i64>, Vec<i64>)> {
    for arguments in [
        &["link", "add", "floor", "type", "bridge"][..],
        &["address", "add", "10.99.0.1/16", "dev", "floor"],
        &["link", "set", "floor", "up"],
    ] {
        ensure!(place.run("ip", arguments)?.status.success(), "ip {}", arguments.join(" "));
    }
    let count = count.to_string();
    let output = place.run(text(program)?, &[text(&material.rootfs)?, "floor", &count])?;
    place.run("ip", &["link", "delete", "floor"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let list =
        |name: &str| -> Vec<i64> { found[name].as_array().into_iter().flatten().filter_map(Value::as_i64).collect() };
    Ok((list("start"), list("stop")))
}

/// `runc run` of one container without a network of its own: nanoseconds from before the fork to `/stamp`.
pub struct Runc {
    bundle: PathBuf,
    state: PathBuf,
}

impl Runc {
    /// Writes the bundle below `directory`.
    pub fn prepare(directory: &Path, material: &Material) -> Result<Runc> {
        let bundle = directory.join("bundle");
        fs::create_dir_all(&bundle)?;
        run("runc", &["spec", "--bundle", text(&bundle)?])?;
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["/stamp"]);
        config["root"]["path"] = text(&material.rootfs)?.into();
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
        fs::write(&path, config.to_string())?;
        Ok(Runc { bundle, state: directory.join("runc") })
    }

    /// One container up and down: nanoseconds to its first instruction, and from TERM to the end of `runc run`.
    pub fn once(&self, place: &Place, name: &str) -> Result<(i64, i64)> {
        let mut command = place.command("/usr/sbin/runc");
        command.arg("--root").arg(&self.state).arg("run").arg("--bundle").arg(&self.bundle).arg(name);
        let begun = now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        let started: i64 = line.trim().parse().with_context(|| format!("runc printed {line:?}"))?;
        let ending = now();
        run("runc", &["--root", text(&self.state)?, "kill", name, "TERM"])?;
        child.wait()?;
        Ok((started - begun, now() - ending))
    }
}

/// podman with a storage of its own.
pub struct Podman<'a> {
    place: &'a Place,
    directory: PathBuf,
}

impl<'a> Podman<'a> {
    /// Sets it up in `place` with the image loaded.
    pub fn prepare(place: &'a Place, directory: &Path, material: &Material) -> Result<Podman<'a>> {
        let podman = Podman { place, directory: directory.join("podman") };
        fs::create_dir_all(&podman.directory)?;
        // Limits below the hard ones: without CAP_SYS_RESOURCE they cannot be raised. The network is podman's own
        // default, with its files here.
        fs::write(
            podman.directory.join("containers.conf"),
            format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
                 [engine]\nevents_logger = \"file\"\n\
                 [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
                podman.path("networks")
            ),
        )?;
        fs::write(podman.directory.join("policy.json"), "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}")?;
        let image =
            format!("containers-storage:[overlay@{}+{}]localhost/bench:1", podman.path("root"), podman.path("run"));
        let source = format!("oci:{}:1", text(&material.layout)?);
        let policy = podman.path("policy.json");
        let mut copy = place.command("/usr/bin/skopeo");
        let output = copy.args(["copy", "--quiet", "--policy", &policy, &source, &image]).output()?;
        ensure!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        // The first one ever also makes the image of the pause container and the network.
        podman.play("warm", 1)?;
        Ok(podman)
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.command("/usr/bin/podman");
        command
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .args(["--root", &self.path("root"), "--runroot", &self.path("run"), "--tmpdir", &self.path("tmp")])
            .args(["--storage-driver", "overlay", "--runtime", "runc", "--cgroup-manager", "cgroupfs"])
            .args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "podman {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `podman kube play` of `count` pods in one file: nanoseconds to the last `/stamp`.
    pub fn play(&self, prefix: &str, count: usize) -> Result<i64> {
        let manifests: Vec<String> = (0..count).map(|number| manifest(&format!("{prefix}{number}"))).collect();
        let file = self.path("pods.yaml");
        fs::write(&file, manifests.join("\n---\n"))?;
        let begun = now();
        self.output(&["kube", "play", "--log-driver", "k8s-file", &file])?;
        let mut last = 0;
        for number in 0..count {
            let log = self.output(&["logs", &format!("{prefix}{number}-app")])?;
            last = last.max(log.trim().parse::<i64>().with_context(|| format!("podman logged {log:?}"))?);
        }
        self.output(&["kube", "down", &file])?;
        Ok(last - begun)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // Pods that a failed run left go with their containers; storage goes with the directory.
        self.command(&["pod", "rm", "--all", "--force", "--time", "1"]).output().ok();
        self.command(&["system", "reset", "--force"]).output().ok();
    }
}
