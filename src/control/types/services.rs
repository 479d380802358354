//! services, endpoints and endpoint slices.

use std::{mem, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{ClientIPConfig, Endpoints, LoadBalancerStatus, Service, ServiceStatus, SessionAffinityConfig},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::Value;

use super::{
    cells::{field, integer, items, joined, labels, name, none_if_empty, own_age},
    config::node_object,
};
use crate::{
    api::{
        object::Object,
        object_defaults::set_object_defaults,
        validation::{FieldError, validate_object, validate_object_update},
    },
    control::registry::{
        resource::{Column, Kind, NAME, Part, Resource, STATUS, column, wide},
        text,
    },
};

node_object!(
    Service,
    Service,
    |service| {
        service.status =
            Some(ServiceStatus { load_balancer: Some(LoadBalancerStatus::default()), ..ServiceStatus::default() });
    },
    |service| set_more(service)
);

/// What only an API server fills in.
fn set_more(service: &mut Service) {
    let Some(spec) = &mut service.spec else { return };
    for port in spec.ports.iter_mut().flatten() {
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(name)) => name.is_empty(),
            Some(IntOrString::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    let kind = spec.type_.as_deref().unwrap_or_default();
    if kind != "ExternalName" {
        spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
    }
    if matches!(kind, "NodePort" | "LoadBalancer") {
        spec.external_traffic_policy.get_or_insert_with(|| "Cluster".to_owned());
    }
    if kind == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") && spec.session_affinity_config.is_none() {
        let client_ip = Some(ClientIPConfig { timeout_seconds: Some(10800) });
        spec.session_affinity_config = Some(SessionAffinityConfig { client_ip });
    }
}

impl Kind for Endpoints {
    fn set_defaults(&mut self) {
        for port in self.subsets.iter_mut().flatten().flat_map(|subset| subset.ports.iter_mut().flatten()) {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }
}

impl Kind for EndpointSlice {
    fn set_defaults(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut errors = crate::api::validation::validate_metadata(&self.metadata, Self::NAME_RULE);
        match self.address_type.as_str() {
            "" => errors.push(FieldError::required("addressType")),
            "IPv4" | "IPv6" | "FQDN" => {}
            other => errors.push(FieldError::unsupported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
        }
        errors
    }

    fn validate_update(&self, old: &Self, _: Part) -> Vec<FieldError> {
        let mut errors = self.validate();
        if self.address_type != old.address_type {
            errors.push(FieldError::invalid("addressType", &self.address_type, "field is immutable"));
        }
        errors
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Type"),
    column("Cluster-IP"),
    column("External-IP"),
    column("Port(s)"),
    column("Age"),
    wide("Selector"),
];

/// v1 Service.
pub static SERVICES: Resource = Resource {
    short: &["svc"],
    categories: &["all"],
    subresources: &[STATUS],
    returns_deleted: true,
    fields: &[("spec.clusterIP", ""), ("spec.type", "")],
    columns: COLUMNS,
    cells,
    ..Resource::of::<Service>("services", "service", true)
};

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let kind = text(spec, "type");
    let address = match text(spec, "clusterIP") {
        "" => "<none>",
        address => address,
    };
    let external: Vec<&str> = items(&spec["externalIPs"]).iter().filter_map(Value::as_str).collect();
    let external = match kind {
        "ExternalName" => text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = items(&service["status"]["loadBalancer"]["ingress"]);
            let named = |entry| match text(entry, "ip") {
                "" => text(entry, "hostname"),
                address => address,
            };
            let all: Vec<&str> = ingress.iter().map(named).chain(external.iter().copied()).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ if external.is_empty() => "<none>".to_owned(),
        _ => external.join(","),
    };
    let ports: Vec<String> = items(&spec["ports"])
        .iter()
        .map(|port| match integer(port, "nodePort") {
            0 => format!("{}/{}", integer(port, "port"), text(port, "protocol")),
            node => format!("{}:{node}/{}", integer(port, "port"), text(port, "protocol")),
        })
        .collect();
    vec![
        name(service),
        kind.into(),
        address.into(),
        external.into(),
        none_if_empty(ports.join(",")),
        own_age(service, now),
        labels(&spec["selector"]),
    ]
}

/// How many of the endpoints are shown.
const SHOWN: usize = 3;

fn some_of(all: &[String]) -> Value {
    match all.len() {
        0 => "<none>".into(),
        count if count > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), count - SHOWN).into(),
        _ => all.join(",").into(),
    }
}

/// v1 Endpoints.
pub static ENDPOINTS: Resource = Resource {
    short: &["ep"],
    create_on_update: true,
    columns: &[NAME, column("Endpoints"), column("Age")],
    cells: |endpoints, now| {
        let mut all = Vec::new();
        for subset in items(&endpoints["subsets"]) {
            let ports = items(&subset["ports"]);
            for address in items(&subset["addresses"]) {
                let ip = text(address, "ip");
                match ports {
                    [] => all.push(ip.to_owned()),
                    ports => all.extend(ports.iter().map(|port| format!("{ip}:{}", integer(port, "port")))),
                }
            }
        }
        vec![name(endpoints), some_of(&all), own_age(endpoints, now)]
    },
    ..Resource::of::<Endpoints>("endpoints", "endpoints", true)
};

/// discovery.k8s.io/v1 EndpointSlice.
pub static ENDPOINT_SLICES: Resource = Resource {
    generation: true,
    columns: &[NAME, column("AddressType"), column("Ports"), column("Endpoints"), column("Age")],
    cells: |slice, now| {
        let ports: Vec<String> = items(&slice["ports"]).iter().map(|port| integer(port, "port").to_string()).collect();
        let ports = if ports.is_empty() { "<unset>".into() } else { some_of(&ports) };
        let all: Vec<String> = items(&slice["endpoints"])
            .iter()
            .map(|endpoint| joined(&endpoint["addresses"]))
            .filter(|text| !text.is_empty())
            .collect();
        let all = if all.is_empty() { "<unset>".into() } else { some_of(&all) };
        vec![name(slice), field(slice, "addressType"), ports, all, own_age(slice, now)]
    },
    ..Resource::of::<EndpointSlice>("endpointslices", "endpointslice", true)
};
