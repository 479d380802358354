//! What a container may learn about its pod and itself: fieldRef and resourceFieldRef.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};

use super::{container_ref::ContainerRef, quantity::Quantity};

/// Facts about the pod that are not in its spec.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Name of the node.
    pub node_name: &'a str,
    /// Addresses of the pod, the primary one first.
    pub pod_ips: &'a [IpAddr],
    /// Addresses of the node, the primary one first.
    pub host_ips: &'a [IpAddr],
    /// What a container without a limit may use: the node's allocatable resources.
    pub allocatable: &'a Allocatable,
}

/// What the node has for pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
}

/// The value of a `fieldPath`, or why there is none.
pub fn field(pod: &Pod, surroundings: &Surroundings<'_>, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((path, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match path {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let first = |addresses: &[IpAddr]| addresses.first().map(IpAddr::to_string).unwrap_or_default();
    let join = |addresses: &[IpAddr]| addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    Ok(match path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "spec.nodeName" => surroundings.node_name.to_owned(),
        "spec.serviceAccountName" => pod.spec.as_ref().map(|spec| text(&spec.service_account_name)).unwrap_or_default(),
        "status.hostIP" => first(surroundings.host_ips),
        "status.hostIPs" => join(surroundings.host_ips),
        "status.podIP" => first(surroundings.pod_ips),
        "status.podIPs" => join(surroundings.pod_ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// The value of a `resourceFieldRef` seen from `container`: the amount in units of the divisor, rounded up. A limit
/// that is not set is what the node has, a request that is not set is the limit or 0.
pub fn resource(
    pod: &Pod,
    container: ContainerRef<'_>,
    surroundings: &Surroundings<'_>,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => ContainerRef::find(pod, name).ok_or_else(|| format!("container {name:?} not found in pod"))?,
        None => container,
    };
    let unsupported = || format!("unsupported container resource: {}", selector.resource);
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    if !matches!(list, "limits" | "requests")
        || !(matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-"))
    {
        return Err(unsupported());
    }
    let resources = container.resources();
    let read = |list: Option<&std::collections::BTreeMap<String, _>>| match list.and_then(|list| list.get(name)) {
        Some(quantity) => {
            Quantity::try_from(quantity).map(Some).map_err(|error| format!("{}: {error}", selector.resource))
        }
        None => Ok(None),
    };
    let limit = read(resources.and_then(|resources| resources.limits.as_ref()))?.filter(|limit| !limit.is_zero());
    let amount = match list {
        "limits" => limit.unwrap_or_else(|| match name {
            "cpu" => Quantity::from_milli(surroundings.allocatable.cpu_milli),
            "memory" => Quantity::from_bytes(surroundings.allocatable.memory),
            "ephemeral-storage" => Quantity::from_bytes(surroundings.allocatable.ephemeral_storage),
            _ => Quantity::ZERO,
        }),
        _ => read(resources.and_then(|resources| resources.requests.as_ref()))?.or(limit).unwrap_or(Quantity::ZERO),
    };
    let divisor = match &selector.divisor {
        // An API server writes a divisor that is not set as "0".
        Some(divisor) => Quantity::try_from(divisor).map_err(|error| format!("divisor {:?}: {error}", divisor.0))?,
        None => Quantity::ZERO,
    };
    let divisor = if divisor.is_zero() { Quantity::from_units(1) } else { divisor };
    if divisor.is_negative() {
        return Err(format!("divisor {divisor} is negative"));
    }
    // Processor time is divided in thousandths, everything else in whole units, as upstream.
    let (amount, divisor) =
        if name == "cpu" { (amount.milli(), divisor.milli()) } else { (amount.value(), divisor.value()) };
    Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "prod", "uid": "u-1", "labels": {"app": "shop", "a/b": "c"}},
            "spec": {
                "serviceAccountName": "robot",
                "containers": [
                    {"name": "app", "resources": {
                        "limits": {"cpu": "1500m", "memory": "100Mi", "hugepages-2Mi": "4Mi"},
                        "requests": {"memory": "1Mi"}
                    }},
                    {"name": "free"},
                ],
            },
        }))
        .unwrap()
    }

    const ALLOCATABLE: Allocatable = Allocatable { cpu_milli: 4000, memory: 1 << 33, ephemeral_storage: 10 };

    fn surroundings() -> Surroundings<'static> {
        const POD: &[IpAddr] = &[
            IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
            IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
        ];
        const HOST: &[IpAddr] = &[IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1))];
        Surroundings { node_name: "node-1", pod_ips: POD, host_ips: HOST, allocatable: &ALLOCATABLE }
    }

    #[test]
    fn fields_have_upstreams_names() {
        for (path, expected) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "prod"),
            ("metadata.uid", "u-1"),
            ("metadata.labels['app']", "shop"),
            ("metadata.labels['a/b']", "c"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "node-1"),
            ("spec.serviceAccountName", "robot"),
            ("status.hostIP", "192.0.2.1"),
            ("status.hostIPs", "192.0.2.1"),
            ("status.podIP", "10.0.0.2"),
            ("status.podIPs", "10.0.0.2,fd00::2"),
        ] {
            assert_eq!(field(&pod(), &surroundings(), path).as_deref(), Ok(expected), "{path}");
        }
        for path in ["metadata.labels", "spec.containers['a']", "status.phase", "", "metadata.name['x']"] {
            assert!(field(&pod(), &surroundings(), path).is_err(), "{path}");
        }
    }

    #[test]
    fn amounts_are_divided_and_rounded_up() {
        let pod = pod();
        let value = |container: &str, of: &str, resource_name: &str, divisor: &str| {
            let selector =
                serde_json::from_value(json!({"containerName": of, "resource": resource_name, "divisor": divisor}));
            let container = ContainerRef::find(&pod, container).unwrap();
            resource(&pod, container, &surroundings(), &selector.unwrap())
        };
        for (container, of, name, divisor, expected) in [
            ("app", "", "limits.cpu", "0", "2"),
            ("app", "", "limits.cpu", "1m", "1500"),
            ("app", "", "limits.memory", "1Mi", "100"),
            ("app", "", "limits.memory", "1", "104857600"),
            ("app", "", "limits.memory", "3Mi", "34"),
            ("app", "", "requests.memory", "1Ki", "1024"),
            ("app", "", "requests.cpu", "1m", "1500"),
            ("app", "", "limits.hugepages-2Mi", "2Mi", "2"),
            ("free", "", "limits.cpu", "1", "4"),
            ("free", "", "limits.memory", "1Gi", "8"),
            ("free", "", "limits.ephemeral-storage", "1", "10"),
            ("free", "", "requests.cpu", "1m", "0"),
            ("free", "app", "limits.memory", "1Mi", "100"),
        ] {
            assert_eq!(
                value(container, of, name, divisor).as_deref(),
                Ok(expected),
                "{container} {of} {name} {divisor}"
            );
        }
        assert!(value("free", "nobody", "limits.cpu", "1").is_err());
        assert!(value("free", "", "limits.gpu", "1").is_err());
        assert!(value("free", "", "cpu", "1").is_err());
        assert!(value("app", "", "limits.cpu", "-1").is_err());
        assert!(value("app", "", "limits.cpu", "x").is_err());
    }
}
