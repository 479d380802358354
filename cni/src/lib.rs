//! Pod networking.
