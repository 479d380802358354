//! Which pod has which devices, processors and memory, for monitoring agents (`v1.PodResourcesLister`, KEP-606).

use std::{
    fs::DirBuilder,
    future::{Ready, ready},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
};

use hyper::{Request as HttpRequest, body::Incoming};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, UnaryService},
};
use tonic_prost::ProstCodec;

use crate::{
    device,
    pod::{grants::Grant, topology::NodeMask},
    worker::handle::{Node, PodGrants},
};

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<PodResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetRequest {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetResponse {
    #[prost(message, optional, tag = "1")]
    pod: Option<PodResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllocatableResponse {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<ContainerDevices>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodResources {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(message, repeated, tag = "3")]
    containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerResources {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    devices: Vec<ContainerDevices>,
    #[prost(int64, repeated, tag = "3")]
    cpu_ids: Vec<i64>,
    #[prost(message, repeated, tag = "4")]
    memory: Vec<ContainerMemory>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMemory {
    #[prost(string, tag = "1")]
    memory_type: String,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(message, optional, tag = "3")]
    topology: Option<TopologyInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerDevices {
    #[prost(string, tag = "1")]
    resource: String,
    #[prost(string, repeated, tag = "2")]
    ids: Vec<String>,
    #[prost(message, optional, tag = "3")]
    topology: Option<TopologyInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TopologyInfo {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NumaNode>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct NumaNode {
    #[prost(int64, tag = "1")]
    id: i64,
}

fn topology(nodes: NodeMask) -> Option<TopologyInfo> {
    let nodes: Vec<NumaNode> = nodes.nodes().map(|id| NumaNode { id: i64::from(id) }).collect();
    (!nodes.is_empty()).then_some(TopologyInfo { nodes })
}

fn device(resource: &str, id: &str, nodes: NodeMask) -> ContainerDevices {
    ContainerDevices { resource: resource.to_owned(), ids: vec![id.to_owned()], topology: topology(nodes) }
}

fn container(name: &str, grant: &Grant) -> ContainerResources {
    let devices = grant
        .devices
        .iter()
        .flat_map(|(resource, devices)| devices.iter().map(move |given| device(resource, &given.id, given.nodes)));
    let memory = grant.memory.iter().map(|given| ContainerMemory {
        memory_type: given.resource.clone(),
        size: given.bytes,
        topology: topology(given.nodes),
    });
    ContainerResources {
        name: name.to_owned(),
        devices: devices.collect(),
        cpu_ids: grant.cpus.iter().map(i64::from).collect(),
        memory: memory.collect(),
    }
}

fn pod(pod: PodGrants) -> PodResources {
    let containers = pod.containers.iter().map(|(name, grant)| container(name, grant)).collect();
    PodResources { name: pod.name, namespace: pod.namespace, containers }
}

/// Answers at `path`, whose directory is made, for as long as the runtime lives.
///
/// # Errors
/// The directory cannot be made, or the socket cannot be bound.
pub fn serve(path: &Path, node: Arc<dyn Node>) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    let listener = device::listen_at(path)?;
    tokio::spawn(device::accept(listener, move |request| route(node.clone(), request)));
    Ok(())
}

async fn route(node: Arc<dyn Node>, request: HttpRequest<Incoming>) -> hyper::http::Response<Body> {
    match request.uri().path() {
        "/v1.PodResourcesLister/List" => {
            Grpc::new(ProstCodec::<ListResponse, Empty>::default()).unary(List(node), request).await
        }
        "/v1.PodResourcesLister/Get" => {
            Grpc::new(ProstCodec::<GetResponse, GetRequest>::default()).unary(Get(node), request).await
        }
        "/v1.PodResourcesLister/GetAllocatableResources" => {
            Grpc::new(ProstCodec::<AllocatableResponse, Empty>::default()).unary(Allocatable(node), request).await
        }
        other => Status::unimplemented(format!("unknown method {other}")).into_http(),
    }
}

type Answer<T> = Ready<Result<Response<T>, Status>>;

struct List(Arc<dyn Node>);

impl UnaryService<Empty> for List {
    type Response = ListResponse;
    type Future = Answer<ListResponse>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        ready(Ok(Response::new(ListResponse { pods: self.0.grants().into_iter().map(pod).collect() })))
    }
}

struct Get(Arc<dyn Node>);

impl UnaryService<GetRequest> for Get {
    type Response = GetResponse;
    type Future = Answer<GetResponse>;

    fn call(&mut self, request: Request<GetRequest>) -> Self::Future {
        let GetRequest { name, namespace } = request.into_inner();
        let found = self.0.grants().into_iter().find(|pod| pod.name == name && pod.namespace == namespace);
        // Upstream's words, and its code.
        let missing = || Status::unknown(format!("pod {name} in namespace {namespace} not found"));
        ready(found.map(|found| Response::new(GetResponse { pod: Some(pod(found)) })).ok_or_else(missing))
    }
}

struct Allocatable(Arc<dyn Node>);

impl UnaryService<Empty> for Allocatable {
    type Response = AllocatableResponse;
    type Future = Answer<AllocatableResponse>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        let offers = self.0.offers();
        let healthy = offers.iter().flat_map(|(resource, offer)| {
            offer.healthy().map(move |(id, healthy)| device(resource, id, healthy.nodes))
        });
        ready(Ok(Response::new(AllocatableResponse { devices: healthy.collect() })))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_shown_with_all_that_it_was_given() {
        let grant: Grant = serde_json::from_value(json!({
            "cpus": "2-3",
            "memory": [{"resource": "memory", "nodes": "1", "bytes": 4096}],
            "devices": {"example.com/gpu": [{"id": "a", "nodes": "0-1"}, {"id": "b"}]},
        }))
        .unwrap();
        let nodes = |nodes: &[i64]| Some(TopologyInfo { nodes: nodes.iter().map(|id| NumaNode { id: *id }).collect() });
        let device = |id: &str, topology| ContainerDevices {
            resource: "example.com/gpu".to_owned(),
            ids: vec![id.to_owned()],
            topology,
        };
        let expected = ContainerResources {
            name: "app".to_owned(),
            devices: vec![device("a", nodes(&[0, 1])), device("b", None)],
            cpu_ids: vec![2, 3],
            memory: vec![ContainerMemory { memory_type: "memory".to_owned(), size: 4096, topology: nodes(&[1]) }],
        };
        assert_eq!(container("app", &grant), expected);
    }
}
