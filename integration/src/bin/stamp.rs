//! The first thing a benchmark's container does: print the time (CLOCK_REALTIME, nanoseconds), then wait for TERM.
//!
//! Static and started directly, so that the time printed is that of the container's first instructions.

use std::io::Write;

use nix::{
    sys::signal::{SigSet, Signal},
    time::{ClockId, clock_gettime},
};

fn main() {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("a clock");
    let line = format!("{}\n", now.tv_sec() * 1_000_000_000 + now.tv_nsec());
    // PID 1 of a PID namespace gets no signal it has not asked for.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().expect("block the signals");
    let mut output = std::io::stdout();
    output.write_all(line.as_bytes()).expect("write the time");
    output.flush().expect("flush");
    if std::env::args().nth(1).as_deref() == Some("exit") {
        return;
    }
    signals.wait().expect("a signal");
}
