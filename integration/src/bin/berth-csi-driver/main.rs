//! A CSI driver for tests: volumes are directories of its own, bound where they are wanted; those of a pod's own are
//! small file systems in memory; devices are bound as they are.
//!
//! Every call is written to `<state>/calls` when it begins and when it ends, one JSON object per line. What goes wrong is
//! in `<state>/faults`, read anew for each call: `{"NodeStageVolume": {"code": 13, "message": "no"}}`, with `"hang":
//! true` to answer never (`"after": true`: having done what was asked), with `"times": 2` for the first two calls alone.
//!
//! The messages are written down once more here, from the specification, so that a mistake in those of the program under
//! test is not made twice.

mod effects;
mod messages;
mod serve;

use std::{collections::BTreeSet, fs, path::PathBuf, process::exit};

use serve::Driver;

fn main() {
    let mut driver = Driver::default();
    let (mut registry, mut socket) = (PathBuf::new(), PathBuf::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| fail(&format!("{option} needs a value")));
        match option.as_str() {
            "--name" => driver.name = value(),
            "--registry" => registry = value().into(),
            "--socket" => socket = value().into(),
            "--state" => driver.state = value().into(),
            "--versions" => driver.versions = value().split(',').map(str::to_owned).collect(),
            "--capabilities" => driver.capabilities = numbers(&value()),
            other => fail(&format!("unknown option {other}")),
        }
    }
    for directory in [&driver.state, &registry] {
        fs::create_dir_all(directory).unwrap_or_else(|error| fail(&format!("{}: {error}", directory.display())));
    }
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent).unwrap_or_else(|error| fail(&format!("{}: {error}", parent.display())));
    }
    let registration = registry.join(format!("{}-reg.sock", driver.name));
    driver.endpoint = socket.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| fail(&error.to_string()));
    if let Err(error) = runtime.block_on(serve::serve(driver, &socket, &registration)) {
        fail(&error.to_string());
    }
}

/// `1,5,6`: values of `NodeServiceCapability.RPC.Type`.
fn numbers(text: &str) -> BTreeSet<i32> {
    text.split(',').filter(|part| !part.is_empty()).filter_map(|part| part.parse().ok()).collect()
}

fn fail(why: &str) -> ! {
    eprintln!("berth-csi-driver: {why}");
    exit(1)
}
