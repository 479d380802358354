//! How long a start takes, stage by stage.

use std::{collections::BTreeMap, fs, time::Instant};

use berth::supervisor::spec::MountKind;

use super::world::{Cgroups, World, bind, mount_spec};

/// Starts `count` containers one after the other and prints the median and 99th percentile of each stage, in
/// microseconds from the request, and of the time until the status pipe ended (execve) and the process had been reaped.
pub fn run(count: usize) {
    let world = World::new();
    fs::write(world.image().join("etc/resolv.conf"), "").unwrap();
    let cgroups = Cgroups::new();
    let mut times: BTreeMap<(usize, String), Vec<u64>> = BTreeMap::new();
    for _ in 0..count {
        let mut spec = world.spec("");
        spec.args = vec!["/bin/busybox".to_owned(), "true".to_owned()];
        spec.cgroup = cgroups.placement.clone();
        spec.mounts.push(mount_spec("/sys/fs/cgroup", MountKind::Cgroup));
        spec.no_new_privs = true;
        spec.seccomp = vec![0x0006_0000_7fff_0000];
        for name in ["hosts", "hostname", "resolv.conf", "termination-log"] {
            let file = world.directory.join(name);
            fs::write(&file, "").unwrap();
            let place = if name == "termination-log" { "/dev" } else { "/etc" };
            spec.mounts.push(bind(&file, &format!("{place}/{name}")));
        }
        let context = world.context();
        let received = Instant::now();
        let mut running = world.start(spec, &context);
        let spawned = received.elapsed();
        let stages = running.stages();
        let executed = received.elapsed();
        running.reap();
        let ended = received.elapsed();
        let own = [("spawn returned", spawned), ("execve", executed), ("reaped", ended)];
        let own = own.map(|(name, time)| (name.to_owned(), time.as_micros() as u64));
        for (index, (name, time)) in stages.into_iter().chain(own).enumerate() {
            times.entry((index, name)).or_default().push(time);
        }
    }
    println!("{:<16} {:>8} {:>8}   (microseconds since the request, {count} starts)", "stage", "p50", "p99");
    for ((_, name), mut values) in times {
        values.sort_unstable();
        println!("{name:<16} {:>8} {:>8}", values[values.len() / 2], values[values.len() * 99 / 100]);
    }
}
