//! Rootful end-to-end tests of berth: a place of its own for each test, an agent in it, and a comparison of the
//! machine before and after.

pub mod agent;
pub mod bench;
pub mod control;
pub mod csi;
pub mod fixtures;
pub mod fuse;
pub mod help;
pub mod layout;
pub mod leftovers;
pub mod oracle;
pub mod place;
pub mod registry;
pub mod scenario;
pub mod terminal;

pub use agent::Agent;
pub use leftovers::Machine;
pub use place::Place;

use std::time::{Duration, Instant};

/// Asks `probe` again until it has an answer; panics with `what` after `limit`. The pause between two tries is
/// short, because tests wait for things that take milliseconds.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
