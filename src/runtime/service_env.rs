//! Variables that tell a container where services are (`pkg/kubelet/envvars` upstream).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};

use crate::api::objects::{ByName, find};

/// The namespace and name of the service of the API server, which every pod is told of.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// The variables for a pod of `namespace`: of all services of the namespace (with `links`, the pod's
/// `enableServiceLinks`), and in any case of the API server's. A service without an address has none.
pub fn service_variables(services: &ByName<Service>, namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    if let Some(service) = find(services, MASTER.0, MASTER.1) {
        of_service(service, &mut variables);
    }
    if links {
        // Keys are sorted by namespace first. A service of the pod's namespace wins over the API server's, should it have
        // the same name.
        let from = (namespace.to_owned(), String::new());
        for ((_, name), service) in services.range(from..).take_while(|((other, _), _)| other == namespace) {
            if (namespace, name.as_str()) != MASTER {
                of_service(service, &mut variables);
            }
        }
    }
    variables
}

fn of_service(service: &Service, variables: &mut Vec<(String, String)>) {
    let Some(spec) = &service.spec else { return };
    let address = match spec.cluster_ip.as_deref().unwrap_or_default() {
        "" | "None" => return,
        address => address,
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let prefix = variable_name(service.metadata.name.as_deref().unwrap_or_default());
    let mut add = |name: String, value: String| variables.push((name, value));
    add(format!("{prefix}_SERVICE_HOST"), address.to_owned());
    add(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            add(format!("{prefix}_SERVICE_PORT_{}", variable_name(name)), port.port.to_string());
        }
    }
    // The names that Docker's links had.
    let url = |port: &ServicePort| {
        let host = match address.parse() {
            Ok(IpAddr::V6(_)) => format!("[{address}]"),
            _ => address.to_owned(),
        };
        format!("{}://{host}:{}", protocol(port).to_lowercase(), port.port)
    };
    add(format!("{prefix}_PORT"), url(first));
    for port in ports {
        let prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol(port).to_uppercase());
        add(format!("{prefix}_PROTO"), protocol(port).to_lowercase());
        add(format!("{prefix}_PORT"), port.port.to_string());
        add(format!("{prefix}_ADDR"), address.to_owned());
        add(prefix, url(port));
    }
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP")
}

/// The beginning of a variable's name for a service or port: `my-db.x` is `MY_DB_X`, `9p` is `_9P`.
fn variable_name(name: &str) -> String {
    let name = name.replace(['-', '.'], "_").to_uppercase();
    if name.starts_with(|first: char| first.is_ascii_digit()) { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn services(all: &[(&str, &str, Value)]) -> ByName<Service> {
        let service = |(namespace, name, spec): &(&str, &str, Value)| {
            let service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
            (((*namespace).to_owned(), (*name).to_owned()), Arc::new(service))
        };
        all.iter().map(service).collect()
    }

    fn lines(services: &ByName<Service>, namespace: &str, links: bool) -> Vec<String> {
        let variables = service_variables(services, namespace, links);
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_service_has_upstreams_variables() {
        let services = services(&[(
            "shop",
            "redis-master.x",
            json!({"clusterIP": "10.0.0.11", "ports": [
                {"port": 6379}, {"name": "udp-9p", "port": 99, "protocol": "UDP"}]}),
        )]);
        assert_eq!(
            lines(&services, "shop", true),
            [
                "REDIS_MASTER_X_SERVICE_HOST=10.0.0.11",
                "REDIS_MASTER_X_SERVICE_PORT=6379",
                "REDIS_MASTER_X_SERVICE_PORT_UDP_9P=99",
                "REDIS_MASTER_X_PORT=tcp://10.0.0.11:6379",
                "REDIS_MASTER_X_PORT_6379_TCP_PROTO=tcp",
                "REDIS_MASTER_X_PORT_6379_TCP_PORT=6379",
                "REDIS_MASTER_X_PORT_6379_TCP_ADDR=10.0.0.11",
                "REDIS_MASTER_X_PORT_6379_TCP=tcp://10.0.0.11:6379",
                "REDIS_MASTER_X_PORT_99_UDP_PROTO=udp",
                "REDIS_MASTER_X_PORT_99_UDP_PORT=99",
                "REDIS_MASTER_X_PORT_99_UDP_ADDR=10.0.0.11",
                "REDIS_MASTER_X_PORT_99_UDP=udp://10.0.0.11:99",
            ]
        );
    }

    #[test]
    fn a_pod_is_told_of_its_namespace_and_of_the_api_server() {
        let at = |address: &str| json!({"clusterIP": address, "ports": [{"port": 1}]});
        let services = services(&[
            ("default", "kubernetes", at("10.0.0.1")),
            ("default", "other", at("10.0.0.2")),
            ("shop", "db", at("fd00::3")),
            ("shop", "headless", at("None")),
            ("shop", "outside", json!({"type": "ExternalName", "externalName": "a.example"})),
            ("shopping", "cart", at("10.0.0.4")),
        ]);
        let hosts = |namespace: &str, links: bool| -> Vec<String> {
            let lines = lines(&services, namespace, links);
            lines.into_iter().filter(|line| line.contains("_SERVICE_HOST=")).collect()
        };
        assert_eq!(hosts("shop", true), ["KUBERNETES_SERVICE_HOST=10.0.0.1", "DB_SERVICE_HOST=fd00::3"]);
        assert_eq!(hosts("shop", false), ["KUBERNETES_SERVICE_HOST=10.0.0.1"]);
        assert_eq!(hosts("default", true), ["KUBERNETES_SERVICE_HOST=10.0.0.1", "OTHER_SERVICE_HOST=10.0.0.2"]);
        assert!(lines(&services, "shop", true).contains(&"DB_PORT=tcp://[fd00::3]:1".to_owned()));
    }
}
