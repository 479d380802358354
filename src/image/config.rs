//! Settings of the image store, resolved: who may be asked for images, how, and within which bounds.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use super::unpack::{Ownership, UnpackLimits};

/// Settings of the store.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// Per registry host (with port, as written in references); `docker.io` for the default one.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Layers downloaded and unpacked at once, over all pulls (at least 1).
    pub max_parallel_layers: usize,
    /// A transfer that gives no byte for this long is broken off and resumed.
    pub progress_timeout: Duration,
    /// How transient failures are retried within one pull. Longer outages are the pod's back-off's business.
    pub retry: RetryPolicy,
    /// Bounds of what a layer may become.
    pub limits: UnpackLimits,
    /// References (normalized or not) whose images are never removed.
    pub pinned: Vec<String>,
    /// What is chosen from multi-platform images.
    pub platform: Platform,
    /// Only for tests that do not run as root.
    pub ownership: Ownership,
}

impl Default for ImageConfig {
    fn default() -> ImageConfig {
        ImageConfig {
            registries: BTreeMap::new(),
            // As containerd's max_concurrent_downloads.
            max_parallel_layers: 3,
            progress_timeout: Duration::from_secs(60),
            retry: RetryPolicy::default(),
            limits: UnpackLimits::default(),
            pinned: Vec::new(),
            platform: Platform::host(),
            ownership: Ownership::Apply,
        }
    }
}

/// Exponential back-off between attempts at one request.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in all (at least 1). While a download makes progress, they start over.
    pub attempts: u32,
    /// Before the second attempt; doubled each time.
    pub base: Duration,
    /// The longest wait. A `Retry-After` beyond it is not waited for but reported.
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy { attempts: 5, base: Duration::from_millis(250), max: Duration::from_secs(8) }
    }
}

impl RetryPolicy {
    /// Wait before attempt `attempt` (from 1 for the second), without jitter.
    pub(crate) fn delay(&self, attempt: u32) -> Duration {
        self.base.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(self.max)
    }
}

/// Settings of one registry host.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Plain HTTP instead of HTTPS. `None`: only for loopback addresses and `localhost`.
    pub plain_http: Option<bool>,
    /// PEM file with the certificates trusted for this host, in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// Asked in this order before the host itself.
    pub mirrors: Vec<Mirror>,
    /// Used where the pod brings none.
    pub credentials: Option<Credentials>,
}

/// Another place for the images of a registry.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// `http://` or `https://`, host, port and an optional path before `/v2/`. Settings of the mirror's own host (CA,
    /// credentials) are looked up in [`ImageConfig::registries`].
    pub url: String,
}

/// How to prove who is asking.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password or access key.
        password: String,
    },
    /// OAuth2 refresh token (`identitytoken` of a Docker configuration).
    Identity(String),
    /// Bearer token sent as it is (`registrytoken`).
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Basic { username, .. } => write!(formatter, "Basic({username}, …)"),
            Credentials::Identity(_) => formatter.write_str("Identity(…)"),
            Credentials::Bearer(_) => formatter.write_str("Bearer(…)"),
        }
    }
}

/// Operating system and architecture, in Go's names (image index specification).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, `v2`, …; empty for none. As a wish: the highest this machine can run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an offer suits this platform: `None` not at all, otherwise the higher the better.
    pub fn rank(&self, offer: &Platform) -> Option<u32> {
        if self.os != offer.os || self.architecture != offer.architecture {
            return None;
        }
        let level = |variant: &str| match (self.architecture.as_str(), variant) {
            ("arm64", "") => Some(8),
            ("arm", "") => Some(7),
            (_, "") => Some(1),
            (_, variant) => variant.strip_prefix('v')?.split('.').next()?.parse::<u32>().ok(),
        };
        let offered = level(&offer.variant)?;
        (offered <= level(&self.variant)?).then_some(offered)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(formatter, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// The x86-64 micro-architecture level (psABI): what `GOAMD64` and image variants mean by v1 to v4.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe")
        && has!("f16c");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v4, v3, v2) {
        (true, _, _) => "v4",
        (_, true, _) => "v3",
        (_, _, true) => "v2",
        _ => "v1",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(architecture: &str, variant: &str) -> Platform {
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    #[test]
    fn the_best_variant_the_machine_can_run_wins() {
        let v3 = platform("amd64", "v3");
        assert_eq!(v3.rank(&platform("amd64", "")), Some(1));
        assert_eq!(v3.rank(&platform("amd64", "v3")), Some(3));
        assert_eq!(v3.rank(&platform("amd64", "v4")), None);
        assert_eq!(v3.rank(&platform("arm64", "")), None);
        assert_eq!(platform("arm64", "v8").rank(&platform("arm64", "")), Some(8));
        assert_eq!(platform("arm", "v7").rank(&platform("arm", "v6")), Some(6));
        assert_eq!(platform("arm", "v6").rank(&platform("arm", "v7")), None);
        let windows = Platform { os: "windows".into(), ..v3.clone() };
        assert_eq!(v3.rank(&windows), None);
    }

    #[test]
    fn retries_grow_to_a_bound() {
        let retry = RetryPolicy { attempts: 5, base: Duration::from_millis(100), max: Duration::from_secs(1) };
        let delays: Vec<u128> = (1..=5).map(|attempt| retry.delay(attempt).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000]);
    }

    #[test]
    fn credentials_do_not_print_their_secret() {
        let credentials = Credentials::Basic { username: "me".into(), password: "secret".into() };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
