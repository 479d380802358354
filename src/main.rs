//! Dispatch, before any runtime starts: supervisor, pause, or the command line.

fn main() {}
