//! TEMP STUB
use k8s_openapi::api::core::v1::Pod;
/// x
pub struct Names {
    /// x
    pub hostname: String,
}
/// x
pub fn names(pod: &Pod, _node: &str, _domain: &str) -> Result<Names, std::io::Error> {
    Ok(Names { hostname: pod.metadata.name.clone().unwrap_or_default().chars().take(63).collect() })
}
