//! Rootful tests.
