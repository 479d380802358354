//! `bench`: berth beside the kernel's floor, `runc run` and `podman kube play`, in one run.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use berth_integration::{
    Place,
    bench::{
        Material,
        berth::Bench,
        peers::{self, Podman, Runc},
        report::{Benchmark, Goal, Series},
    },
};

const MIB: f64 = 1024.0 * 1024.0;

struct Options {
    floor: PathBuf,
    output: PathBuf,
    rounds: usize,
    podman_rounds: usize,
    density: usize,
    crowd: usize,
    idle: u64,
    probed: usize,
}

fn options() -> Result<Options> {
    let mut options = Options {
        floor: std::env::current_exe()?.with_file_name("floor"),
        output: "target/bench".into(),
        rounds: 40,
        podman_rounds: 5,
        density: 100,
        crowd: 300,
        idle: 60,
        probed: 100,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--berth" => {
                // SAFETY: this program has one thread as yet.
                unsafe { std::env::set_var("BERTH", std::path::absolute(&value)?) };
            }
            // Absolute: a place of its own has another working directory.
            "--floor" => options.floor = std::path::absolute(&value)?,
            "--output" => options.output = value.into(),
            "--rounds" => options.rounds = value.parse()?,
            "--podman-rounds" => options.podman_rounds = value.parse()?,
            "--density" => options.density = value.parse()?,
            "--crowd" => options.crowd = value.parse()?,
            "--idle" => options.idle = value.parse()?,
            "--probed" => options.probed = value.parse()?,
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(options)
}

fn milliseconds(nanos: &[i64]) -> Vec<f64> {
    nanos.iter().map(|nanos| *nanos as f64 / 1e6).collect()
}

fn main() -> Result<()> {
    let options = options()?;
    let work = tempfile::Builder::new().prefix("berth-bench-").tempdir()?;
    let material = Material::make(work.path())?;
    let place = Place::new()?;
    let bench = Bench::start(&place, &material)?;
    let runc = Runc::prepare(work.path(), &material)?;
    let mut benchmarks = Vec::new();

    // The contenders take turns, so that what else the machine does falls on all of them.
    let (mut ours, mut floor, mut theirs) = (Samples::default(), Samples::default(), Samples::default());
    let mut stages: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    bench.once("warm")?;
    for round in 0..options.rounds {
        let once = bench.once(&format!("one{round}"))?;
        ours.add((once.start, once.stop));
        for (stage, at) in once.stages {
            stages.entry(stage).or_default().push(at / 1e3);
        }
        let (start, stop) = peers::floor(&place, &options.floor, &material, 1)?;
        floor.add((start[0], stop[0]));
        theirs.add(runc.once(&place, &format!("bench-{}-{round}", std::process::id()))?);
    }
    let podman = (options.podman_rounds > 0).then(|| Podman::prepare(&place, work.path(), &material)).transpose()?;
    let mut podman_start = Vec::new();
    if let Some(podman) = &podman {
        for round in 0..options.podman_rounds {
            podman_start.push(podman.play(&format!("one{round}x"), 1)?);
        }
    }
    let mut series = vec![
        Series::new("berth", milliseconds(&ours.start)),
        Series::new("floor", milliseconds(&floor.start)),
        Series::new("runc", milliseconds(&theirs.start)),
    ];
    if podman.is_some() {
        series.push(Series::new("podman", milliseconds(&podman_start)));
    }
    benchmarks.push(Benchmark {
        name: "start",
        unit: "ms",
        series,
        goals: vec![Goal::TimesOf(4.0, "floor"), Goal::TimesOf(0.3, "runc"), Goal::TimesOf(0.05, "podman")],
    });
    benchmarks.push(Benchmark {
        name: "removal",
        unit: "ms",
        series: vec![
            Series::new("berth", milliseconds(&ours.stop)),
            Series::new("floor", milliseconds(&floor.stop)),
            Series::new("runc", milliseconds(&theirs.stop)),
        ],
        goals: vec![Goal::TimesOf(2.0, "floor")],
    });

    // Time per pod at 10 and at the crowd, then the density run that memory and idleness are measured on.
    let per_pod = |nanos: i64, count: usize| nanos as f64 / 1e6 / count as f64;
    let few = per_pod(bench.many("few", 10)?, 10);
    bench.clear()?;
    let crowd = per_pod(bench.many("crowd", options.crowd)?, options.crowd);
    bench.clear()?;
    benchmarks.push(Benchmark {
        name: "per-pod-growth",
        unit: "ms per pod",
        series: vec![Series::new("berth", [crowd]), Series::new("berth-of-10", [few])],
        goals: vec![Goal::TimesOf(1.3, "berth-of-10")],
    });
    let many = bench.many("many", options.density)?;
    // What pods hold while they run, not what their start took: threads end and heaps are trimmed within this.
    std::thread::sleep(Duration::from_secs(15));
    let memory = bench.memory()?;
    let idle = bench.idle(Duration::from_secs(options.idle))?;
    let removal = bench.clear()?;
    println!("{} pods removed in {:.1} ms", options.density, removal as f64 / 1e6);
    let (agent, pods) = bench.probing(options.probed, Duration::from_secs(options.idle))?;
    bench.clear()?;
    let probing = (agent + pods) * 100.0;
    println!(
        "{} pods with an exec probe: agent {:.2}%, pods {:.2}% of a core",
        options.probed,
        agent * 100.0,
        pods * 100.0
    );
    benchmarks.push(Benchmark {
        name: "exec-probes",
        unit: "% of a core",
        series: vec![Series::new("berth", [probing])],
        goals: vec![Goal::AtMost(2.0)],
    });
    let mut series = vec![Series::new("berth", milliseconds(&[many]))];
    if let Some(podman) = &podman {
        series.push(Series::new("podman", milliseconds(&[podman.play("many", options.density)?])));
    }
    benchmarks.push(Benchmark {
        name: "pods-at-once",
        unit: "ms",
        series,
        goals: vec![Goal::TimesOf(1.0 / 15.0, "podman")],
    });
    benchmarks.push(Benchmark {
        name: "memory-agent",
        unit: "MiB PSS",
        series: vec![Series::new("berth", [memory.agent / MIB])],
        goals: vec![Goal::AtMost(20.0)],
    });
    benchmarks.push(Benchmark {
        name: "memory-per-pod",
        unit: "MiB PSS",
        series: vec![Series::new("berth", [memory.supervisors / MIB / memory.count.max(1) as f64])],
        goals: vec![Goal::AtMost(0.6)],
    });
    benchmarks.push(Benchmark {
        name: "idle-cpu",
        unit: "% of a core",
        series: vec![Series::new("berth", [idle.cpu * 100.0])],
        goals: vec![Goal::AtMost(0.1)],
    });
    benchmarks.push(Benchmark {
        name: "idle-wakeups",
        unit: "per second",
        series: vec![Series::new("berth", [idle.agent_wakeups])],
        goals: vec![Goal::AtMost(1.0)],
    });
    benchmarks.push(Benchmark {
        name: "idle-wakeups-supervisors",
        unit: "in all",
        series: vec![Series::new("berth", [idle.supervisor_wakeups])],
        goals: vec![Goal::AtMost(0.0)],
    });

    // Volumes: what twenty of them add to a start, and how long a change takes to be everywhere.
    bench.put_objects("0");
    let (mut with_volumes, mut without) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        with_volumes.push(bench.once_with_volumes(&format!("volumes{round}"))?.start);
        without.push(bench.once(&format!("plain{round}"))?.start);
    }
    benchmarks.push(Benchmark {
        name: "start-with-volumes",
        unit: "ms",
        series: vec![Series::new("berth", milliseconds(&with_volumes)), Series::new("without", milliseconds(&without))],
        goals: vec![Goal::TimesOf(1.5, "without")],
    });
    bench.many_with_config("config", options.density)?;
    let mut updates = Vec::new();
    for round in 1..=options.rounds.min(10) {
        updates.push(bench.update(&round.to_string(), options.density)?);
    }
    bench.clear()?;
    benchmarks.push(Benchmark {
        name: "config-update",
        unit: "ms",
        series: vec![Series::new("berth", milliseconds(&updates))],
        goals: vec![Goal::AtMost(1000.0)],
    });

    print_stages(stages);
    for benchmark in &benchmarks {
        benchmark.print();
        benchmark.write(&options.output)?;
    }
    Ok(())
}

/// Where the time of a start goes: the median moment at which each stage ends.
fn print_stages(stages: BTreeMap<String, Vec<f64>>) {
    let mut medians: Vec<(f64, String)> =
        stages.into_iter().map(|(name, at)| (Series::new("", at).quantile(0.5), name)).collect();
    medians.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("stages of one start (ms after the pod was seen, p50)");
    for (at, name) in medians {
        println!("  {at:>8.2}  {name}");
    }
}

#[derive(Default)]
struct Samples {
    start: Vec<i64>,
    stop: Vec<i64>,
}

impl Samples {
    fn add(&mut self, (start, stop): (i64, i64)) {
        self.start.push(start);
        self.stop.push(stop);
    }
}
