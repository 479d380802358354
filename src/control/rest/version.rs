//! `/version`: which Kubernetes this is. The API is that of the release whose types are served.

use serde_json::{Value, json};

/// Minor version of the release whose API is served.
pub const MINOR: u32 = 36;

/// `v1.36.0+berth.0.1.0`.
pub fn git_version() -> String {
    format!("v1.{MINOR}.0+berth.{}", env!("CARGO_PKG_VERSION"))
}

/// The answer.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": MINOR.to_string(), "gitVersion": git_version(), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH }),
        "emulationMajor": "1", "emulationMinor": MINOR.to_string(), "minCompatibilityMajor": "1",
        "minCompatibilityMinor": (MINOR - 1).to_string(),
    })
}
