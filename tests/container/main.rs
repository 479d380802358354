//! Real containers, started by `supervisor::container` the way a supervisor does it.
//!
//! A process that clones and then runs ordinary Rust code must be single-threaded, which a process of the standard
//! test harness never is. So this binary has its own `main`: it understands the harness's usual arguments and runs
//! each case in a new process of itself, in mount, network, IPC and UTS namespaces of its own. All cases need root
//! and count as ignored without `--include-ignored` or `--ignored`.
//!
//! `cargo test --test container -- --bench [COUNT]` prints how long the stages of a start take.

mod bench;
mod confinement;
mod escapes;
mod failures;
mod joining;
mod users;
mod view;
mod world;

use std::{
    env,
    io::Read,
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A test: its name, a sentence with underscores, and what it does. It fails by panicking.
pub type Case = (&'static str, fn());

/// No case takes a second; one that hangs must not hang the whole run.
const LIMIT: Duration = Duration::from_secs(60);

fn cases() -> Vec<Case> {
    [view::CASES, confinement::CASES, failures::CASES, escapes::CASES, joining::CASES, users::CASES].concat()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let argument = |index: usize| arguments.get(index).map(String::as_str);
    match argument(0) {
        Some("--case") => return run_case(argument(1).unwrap_or_default()),
        // What a case runs in a container to have this very program run there.
        Some("--hold") => loop {
            thread::park();
        },
        Some("--bench") => {
            bench::run(argument(1).and_then(|count| count.parse().ok()).unwrap_or(200));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let is_set = |name: &str| arguments.iter().any(|argument| argument == name);
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |case: &Case| filters.is_empty() || filters.iter().any(|filter| case.0.contains(filter.as_str()));
    let chosen: Vec<Case> = cases().into_iter().filter(chosen).collect();
    if is_set("--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let rootful = is_set("--include-ignored") || is_set("--ignored");
    let mut failed = 0;
    for (name, _) in &chosen {
        if !rootful {
            println!("test {name} ... ignored, rootful: run by make test with --include-ignored");
            continue;
        }
        match run_in_own_process(name) {
            Ok(()) => println!("test {name} ... ok"),
            Err(output) => {
                failed += 1;
                println!("test {name} ... FAILED\n{output}");
            }
        }
    }
    println!("\ntest result: {} of {} failed", failed, chosen.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn run_case(name: &str) -> ExitCode {
    let Some((_, body)) = cases().into_iter().find(|case| case.0 == name) else { return ExitCode::from(2) };
    body();
    ExitCode::SUCCESS
}

/// Runs a case and returns what it printed if it failed.
fn run_in_own_process(name: &str) -> Result<(), String> {
    let mut child = Command::new(env::current_exe().expect("own path"))
        .args(["--case", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start a process for the case");
    let mut stderr = child.stderr.take().expect("piped");
    let output = thread::spawn(move || {
        let mut output = String::new();
        let _ = stderr.read_to_string(&mut output);
        output
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for the case") {
            break Some(status);
        }
        if started.elapsed() > LIMIT {
            child.kill().expect("kill the case");
            child.wait().expect("wait for the case");
            break None;
        }
        thread::park_timeout(Duration::from_millis(5));
    };
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{status}\n{}", output.join().unwrap_or_default())),
        None => Err(format!("still running after {LIMIT:?}\n{}", output.join().unwrap_or_default())),
    }
}
