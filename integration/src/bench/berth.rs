//! berth under the stopwatch.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Material, manifest, manifest_with_volumes, now, objects, probed_manifest, text};
use crate::{Agent, Place};

/// An agent with the image loaded.
pub struct Bench<'a> {
    agent: Agent<'a>,
    place: &'a Place,
}

/// One pod up and down.
#[derive(Debug)]
pub struct Once {
    /// Nanoseconds to the container's first instruction.
    pub start: i64,
    /// Nanoseconds to the pod's directory being gone.
    pub stop: i64,
    /// Stages with the microseconds at which they ended.
    pub stages: Vec<(String, f64)>,
}

/// PSS in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// The agent.
    pub agent: f64,
    /// All supervisors together.
    pub supervisors: f64,
    /// How many supervisors.
    pub count: usize,
}

/// What a while of idleness cost.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// CPU time of the agent, share of one core.
    pub cpu: f64,
    /// Wake-ups a second of the agent's threads.
    pub agent_wakeups: f64,
    /// Wake-ups in all supervisors, in all.
    pub supervisor_wakeups: f64,
}

impl<'a> Bench<'a> {
    /// Starts an agent in `place`.
    pub fn start(place: &'a Place, material: &Material) -> Result<Bench<'a>> {
        let agent = Agent::start(place, &["--max-pods", "1000", "--pod-cidr", "10.85.0.0/16"])?;
        agent.ok(&["load", "--name", "localhost/bench:1", text(&material.layout)?]);
        Ok(Bench { agent, place })
    }

    /// One pod up and down: nanoseconds from the rename to the container's first instruction, and from the manifest's
    /// removal to the pod's directory being gone; and what the agent says of the stages in between.
    pub fn once(&self, name: &str) -> Result<Once> {
        self.once_of(name, &manifest(name))
    }

    /// The same for a pod with 20 volumes; its objects are there.
    pub fn once_with_volumes(&self, name: &str) -> Result<Once> {
        self.once_of(name, &manifest_with_volumes(name, 20))
    }

    fn once_of(&self, name: &str, manifest: &str) -> Result<Once> {
        let (hidden, visible) = self.paths(name);
        fs::write(&hidden, manifest)?;
        let begun = now();
        fs::rename(&hidden, &visible)?;
        let started = self.stamps(name, 1, Duration::from_secs(20))?[0];
        // The pod settles: its status is out and the last records are written before it is taken away again.
        std::thread::sleep(Duration::from_millis(50));
        let stages = self.stages(name)?;
        let ending = now();
        fs::remove_file(&visible)?;
        self.empty(Duration::from_secs(20))?;
        Ok(Once { start: started - begun, stop: now() - ending, stages })
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        let directory = self.place.path("manifests");
        (directory.join(format!(".{name}")), directory.join(format!("{name}.json")))
    }

    /// Puts the objects of [`manifest_with_volumes`] beside the pods.
    pub fn put_objects(&self, value: &str) {
        for (name, manifest) in objects(value) {
            self.agent.apply(name, &manifest);
        }
    }

    /// Gives the config map another value: nanoseconds until all pods have it. `count` pods have it in a volume `v0`.
    pub fn update(&self, value: &str, count: usize) -> Result<i64> {
        let mut waiting: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(self.place.path("root").join("pods"))? {
            waiting.push(entry?.path().join("volumes/kubernetes.io~configmap/v0/key"));
        }
        ensure!(waiting.len() == count, "{} pods instead of {count}", waiting.len());
        let begun = now();
        self.put_objects(value);
        loop {
            // In the place's mount namespace nothing is different: these volumes are on disk.
            waiting.retain(|path| fs::read_to_string(path).ok().as_deref() != Some(value));
            let took = now() - begun;
            if waiting.is_empty() {
                return Ok(took);
            }
            ensure!(
                took < 60_000_000_000,
                "{} of {count} pods have the old value:\n{}",
                waiting.len(),
                self.agent.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `count` pods at once: nanoseconds from the first rename to the last container's first instruction.
    pub fn many(&self, prefix: &str, count: usize) -> Result<i64> {
        self.many_of(prefix, count, &manifest)
    }

    /// The same for pods with one config map in a volume.
    pub fn many_with_config(&self, prefix: &str, count: usize) -> Result<i64> {
        self.many_of(prefix, count, &|name| manifest_with_volumes(name, 1))
    }

    fn many_of(&self, prefix: &str, count: usize, manifest: &dyn Fn(&str) -> String) -> Result<i64> {
        let names: Vec<String> = (0..count).map(|number| format!("{prefix}{number}")).collect();
        for name in &names {
            fs::write(self.paths(name).0, manifest(name))?;
        }
        let begun = now();
        for name in &names {
            let (hidden, visible) = self.paths(name);
            fs::rename(hidden, visible)?;
        }
        let stamps = self.stamps(prefix, count, Duration::from_secs(120))?;
        Ok(stamps.into_iter().max().unwrap_or_default() - begun)
    }

    /// Takes all manifests away and waits; nanoseconds.
    pub fn clear(&self) -> Result<i64> {
        let begun = now();
        for entry in fs::read_dir(self.place.path("manifests"))? {
            fs::remove_file(entry?.path())?;
        }
        self.empty(Duration::from_secs(120))?;
        Ok(now() - begun)
    }

    /// The times printed by the pods whose names begin with `prefix`, once there are `count`.
    fn stamps(&self, prefix: &str, count: usize, limit: Duration) -> Result<Vec<i64>> {
        let begun = Instant::now();
        let mut found: BTreeMap<PathBuf, i64> = BTreeMap::new();
        loop {
            for entry in fs::read_dir(self.place.path("log"))?.flatten() {
                let directory = entry.path();
                let matches = entry.file_name().to_string_lossy().starts_with(&format!("default_{prefix}"));
                if !matches || found.contains_key(&directory) {
                    continue;
                }
                let line = fs::read_to_string(directory.join("app/0.log")).unwrap_or_default();
                let stamp = line.strip_suffix('\n').and_then(|line| line.rsplit(' ').next()?.parse().ok());
                if let Some(stamp) = stamp {
                    found.insert(directory, stamp);
                }
            }
            if found.len() >= count {
                return Ok(found.into_values().collect());
            }
            if begun.elapsed() > limit {
                bail!("{} of {count} pods run after {limit:?}:\n{}", found.len(), self.agent.log());
            }
            // Rarely enough not to disturb what is measured.
            std::thread::sleep(Duration::from_millis(if count > 1 { 20 } else { 1 }));
        }
    }

    fn empty(&self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let pods = self.place.path("root").join("pods");
        while fs::read_dir(&pods).is_ok_and(|mut entries| entries.next().is_some()) {
            if begun.elapsed() > limit {
                bail!("pods are left after {limit:?}:\n{}", self.agent.log());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Stages of the newest start of a pod: each with the microseconds from the pod being seen to its end.
    pub fn stages(&self, name: &str) -> Result<Vec<(String, f64)>> {
        let pod = self.agent.pod(name).context("the pod")?;
        let text = self.agent.ok(&["inspect", "-o", "json", pod["metadata"]["name"].as_str().unwrap_or_default()]);
        let view: Value = serde_json::from_str(&text).context("the answer of inspect")?;
        let stages = view["stages"].as_array().context("stages")?.iter();
        Ok(stages.map(|stage| (text_of(&stage["name"]), stage["at"].as_f64().unwrap_or_default())).collect())
    }

    fn supervisors(&self) -> Vec<i32> {
        let marker = self.place.path("root").to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            if command.starts_with("berth-sandbox") && command.contains(&marker) {
                found.push(pid);
            }
        }
        found
    }

    /// What agent and supervisors hold in memory.
    pub fn memory(&self) -> Result<Memory> {
        let supervisors = self.supervisors();
        let mut total = 0.0;
        for pid in &supervisors {
            total += pss(*pid)?;
        }
        Ok(Memory { agent: pss(self.agent.pid())?, supervisors: total, count: supervisors.len() })
    }

    /// What exec probes of `count` pods, every ten seconds, cost in `time`: share of one core of the agent and of the pods'
    /// cgroup, which has the supervisors and what they start in it, `/bin/true` itself included. The containers sleep.
    pub fn probing(&self, count: usize, time: Duration) -> Result<(f64, f64)> {
        self.many_of("probed", count, &probed_manifest)?;
        // The starts, and the first round of probes.
        std::thread::sleep(Duration::from_secs(15));
        let agent = self.agent.pid();
        let before = (cpu_time(agent)?, pods_cpu_time(self.place)?);
        std::thread::sleep(time);
        let after = (cpu_time(agent)?, pods_cpu_time(self.place)?);
        let share = |before: f64, after: f64| (after - before) / time.as_nanos() as f64;
        let ready = self.agent.pods().iter().filter(|pod| crate::agent::condition(pod, "Ready") == "True").count();
        ensure!(ready == count, "{ready} of {count} pods are ready:\n{}", self.agent.log());
        Ok((share(before.0, after.0), share(before.1, after.1)))
    }

    /// What doing nothing costs for `time`.
    pub fn idle(&self, time: Duration) -> Result<Idle> {
        let supervisors = self.supervisors();
        let switches = |pids: &[i32]| -> Result<f64> { pids.iter().map(|pid| wakeups(*pid)).sum() };
        let agent = self.agent.pid();
        let before = (cpu_time(agent)?, wakeups(agent)?, switches(&supervisors)?);
        std::thread::sleep(time);
        let after = (cpu_time(agent)?, wakeups(agent)?, switches(&supervisors)?);
        Ok(Idle {
            cpu: (after.0 - before.0) / time.as_nanos() as f64,
            agent_wakeups: (after.1 - before.1) / time.as_secs_f64(),
            supervisor_wakeups: after.2 - before.2,
        })
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// CPU time of everything in the pods' cgroup, nanoseconds.
fn pods_cpu_time(place: &Place) -> Result<f64> {
    let root = place.cgroup_root.trim_start_matches('/');
    let candidates = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let files = candidates.map(|mount| Path::new(mount).join(root).join("kubepods/cpu.stat"));
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).context("cpu.stat of the pods")?;
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("usage_usec")?;
    Ok(line.trim().parse::<f64>()? * 1000.0)
}

/// Proportional set size, bytes.
pub fn pss(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("a Pss line")?;
    let kibibytes: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kibibytes * 1024.0)
}

fn tasks(pid: i32) -> Result<Vec<PathBuf>> {
    let directory = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&directory).with_context(|| directory.clone())?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Nanoseconds on a CPU, all threads.
fn cpu_time(pid: i32) -> Result<f64> {
    let mut total = 0.0;
    for task in tasks(pid)? {
        let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().and_then(|first| first.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(total)
}

/// Times a thread of the process slept and was woken, all threads.
fn wakeups(pid: i32) -> Result<f64> {
    let mut total = 0.0;
    for task in tasks(pid)? {
        total += voluntary_switches(&task).unwrap_or_default();
    }
    Ok(total)
}

fn voluntary_switches(task: &Path) -> Option<f64> {
    let text = fs::read_to_string(task.join("status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
