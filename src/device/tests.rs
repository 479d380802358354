//! A plugin on a socket of its own, in this process.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{Stream, stream};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle, time::timeout};
use tonic::{
    Request, Response, Status,
    server::{Grpc, ServerStreamingService, UnaryService},
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

use super::{wire::*, *};
use crate::pod::devices::{Plugin as State, Question};

const GPU: &str = "example.com/gpu";

/// What a test plugin does and was asked.
#[derive(Clone)]
struct Fake {
    list: watch::Sender<Vec<Device>>,
    options: DevicePluginOptions,
    /// Fails with this.
    refuses: Arc<Mutex<Option<Status>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn device(id: &str, health: &str, nodes: &[i64]) -> Device {
    let topology = TopologyInfo { nodes: nodes.iter().map(|id| NumaNode { id: *id }).collect() };
    Device { id: id.to_owned(), health: health.to_owned(), topology: Some(topology).filter(|_| !nodes.is_empty()) }
}

impl Fake {
    fn new(list: Vec<Device>) -> Fake {
        Fake {
            list: watch::Sender::new(list),
            options: DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true },
            refuses: Arc::default(),
            asked: Arc::default(),
        }
    }

    fn note(&self, what: String) -> Result<(), Status> {
        self.asked.lock().unwrap().push(what);
        self.refuses.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    /// Listens at `path` until the handle is aborted.
    fn serve(&self, path: &Path) -> JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        let fake = self.clone();
        tokio::spawn(async move {
            // Connections end with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let fake = fake.clone();
                connections.spawn(async move {
                    let answer = |request: hyper::Request<Incoming>| {
                        let fake = fake.clone();
                        async move { Ok::<_, Infallible>(fake.route(request).await) }
                    };
                    let connection = http2::Builder::new(TokioExecutor::new());
                    connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await.ok();
                });
            }
        })
    }

    async fn route(self, request: hyper::Request<Incoming>) -> hyper::http::Response<tonic::body::Body> {
        match request.uri().path() {
            "/v1beta1.DevicePlugin/GetDevicePluginOptions" => {
                Grpc::new(ProstCodec::<DevicePluginOptions, Empty>::default()).unary(self, request).await
            }
            "/v1beta1.DevicePlugin/ListAndWatch" => {
                let codec = ProstCodec::<ListAndWatchResponse, Empty>::default();
                Grpc::new(codec).server_streaming(self, request).await
            }
            "/v1beta1.DevicePlugin/GetPreferredAllocation" => {
                let codec = ProstCodec::<PreferredAllocationResponse, PreferredAllocationRequest>::default();
                Grpc::new(codec).unary(self, request).await
            }
            "/v1beta1.DevicePlugin/Allocate" => {
                Grpc::new(ProstCodec::<AllocateResponse, AllocateRequest>::default()).unary(self, request).await
            }
            "/v1beta1.DevicePlugin/PreStartContainer" => {
                Grpc::new(ProstCodec::<Empty, PreStartContainerRequest>::default()).unary(self, request).await
            }
            other => panic!("unknown method {other}"),
        }
    }
}

type Answer<T> = std::future::Ready<Result<Response<T>, Status>>;

fn answer<T>(answer: Result<T, Status>) -> Answer<T> {
    std::future::ready(answer.map(Response::new))
}

impl UnaryService<Empty> for Fake {
    type Response = DevicePluginOptions;
    type Future = Answer<DevicePluginOptions>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        answer(Ok(self.options))
    }
}

impl UnaryService<PreferredAllocationRequest> for Fake {
    type Response = PreferredAllocationResponse;
    type Future = Answer<PreferredAllocationResponse>;

    fn call(&mut self, request: Request<PreferredAllocationRequest>) -> Self::Future {
        let [one] = &request.get_ref().container_requests[..] else { panic!("one container") };
        let devices_ids = vec![one.available[0].clone()];
        let noted = self.note(format!("prefer {:?} {:?} {}", one.available, one.must_include, one.allocation_size));
        let one = ContainerPreferredAllocationResponse { devices_ids };
        answer(noted.map(|()| PreferredAllocationResponse { container_responses: vec![one] }))
    }
}

impl UnaryService<AllocateRequest> for Fake {
    type Response = AllocateResponse;
    type Future = Answer<AllocateResponse>;

    fn call(&mut self, request: Request<AllocateRequest>) -> Self::Future {
        let [one] = &request.get_ref().container_requests[..] else { panic!("one container") };
        let noted = self.note(format!("allocate {:?}", one.devices_ids));
        let one = ContainerAllocateResponse {
            envs: [("GPU".to_owned(), "1".to_owned())].into(),
            mounts: vec![Mount { container_path: "/c".into(), host_path: "/h".into(), read_only: true }],
            devices: vec![DeviceSpec {
                container_path: "/dev/c".into(),
                host_path: "/dev/h".into(),
                permissions: "rw".into(),
            }],
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            cdi_devices: vec![CdiDevice { name: "example.com/gpu=0".into() }],
        };
        answer(noted.map(|()| AllocateResponse { container_responses: vec![one] }))
    }
}

impl UnaryService<PreStartContainerRequest> for Fake {
    type Response = Empty;
    type Future = Answer<Empty>;

    fn call(&mut self, request: Request<PreStartContainerRequest>) -> Self::Future {
        answer(self.note(format!("pre-start {:?}", request.get_ref().devices_ids)).map(|()| Empty {}))
    }
}

impl ServerStreamingService<Empty> for Fake {
    type Response = ListAndWatchResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        let mut lists = self.list.subscribe();
        lists.mark_changed();
        let lists = stream::unfold(lists, |mut lists| async move {
            lists.changed().await.ok()?;
            let devices = lists.borrow_and_update().clone();
            Some((Ok(ListAndWatchResponse { devices }), lists))
        });
        answer(Ok(Box::pin(lists) as Self::ResponseStream))
    }
}

/// The agent's side, listening.
struct Place {
    directory: tempfile::TempDir,
    devices: Arc<Devices>,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let devices = Arc::new(Devices::new(directory.path().join("known.json")));
        let place = Place { directory, devices };
        listen(&place.plugins(), place.devices.clone()).unwrap();
        place
    }

    fn plugins(&self) -> PathBuf {
        self.directory.path().join("device-plugins")
    }

    async fn register(&self, version: &str, resource: &str, endpoint: &str) -> Result<(), String> {
        let path = self.plugins().join("kubelet.sock");
        let connect = tower_connect(path);
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let request = RegisterRequest {
            version: version.to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: resource.to_owned(),
            options: None,
        };
        let codec = ProstCodec::<RegisterRequest, Empty>::default();
        let path = hyper::http::uri::PathAndQuery::from_static(REGISTER);
        let answer = client.unary(Request::new(request), path, codec).await;
        answer.map(drop).map_err(|status| format!("{:?}: {}", status.code(), status.message()))
    }

    async fn until(&self, what: &str, holds: impl Fn(&crate::pod::devices::Offers) -> bool) {
        let mut changes = self.devices.changes();
        let seen = async {
            while !holds(&self.devices.offers()) {
                changes.changed().await.unwrap();
            }
        };
        timeout(Duration::from_secs(10), seen).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.devices.offers()));
    }
}

/// Connects to a socket.
fn tower_connect(
    path: PathBuf,
) -> impl tower_service::Service<
    hyper::Uri,
    Response = TokioIo<tokio::net::UnixStream>,
    Error = std::io::Error,
    Future = impl Send,
> + Send {
    struct Dialer(PathBuf);
    impl tower_service::Service<hyper::Uri> for Dialer {
        type Response = TokioIo<tokio::net::UnixStream>;
        type Error = std::io::Error;
        type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: hyper::Uri) -> Self::Future {
            let path = self.0.clone();
            Box::pin(async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) })
        }
    }
    Dialer(path)
}

#[tokio::test]
async fn a_plugin_registers_and_what_it_lists_is_offered() {
    let place = Place::new();
    assert!(place.devices.offers().is_empty() && place.devices.plugin(GPU).is_none() && !place.devices.is_known(GPU));
    let fake = Fake::new(vec![device("a", "Healthy", &[0, 1]), device("b", "Broken", &[])]);
    let _serving = fake.serve(&place.plugins().join("gpu.sock"));
    place.register("v1beta1", GPU, "gpu.sock").await.unwrap();
    place.until("listed", |offers| offers[GPU].is_current()).await;
    let offers = place.devices.offers();
    let offer = &offers[GPU];
    assert_eq!((offer.capacity(), offer.healthy().count()), (2, 1));
    assert_eq!(offer.devices["a"].nodes.to_string(), "0-1");
    assert!(offer.preferred && offer.pre_start && place.devices.is_known(GPU));
    fake.list.send_replace(vec![device("b", "Healthy", &[])]);
    place.until("the new list", |offers| offers[GPU].devices.keys().eq(["b"])).await;
    // The next agent knows that the machine has been made ready for it.
    let known = place.directory.path().join("known.json");
    timeout(Duration::from_secs(10), async {
        while !Devices::new(known.clone()).is_known(GPU) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is written");
}

#[tokio::test]
async fn a_plugin_that_cannot_be_used_is_told_why() {
    let place = Place::new();
    let of = async |version: &str, resource: &str, endpoint: &str| {
        place.register(version, resource, endpoint).await.unwrap_err()
    };
    assert_eq!(
        of("v1alpha", GPU, "gpu.sock").await,
        "Unknown: requested API version \"v1alpha\" is not supported by kubelet. Supported version is [\"v1beta1\"]"
    );
    assert_eq!(of("v1beta1", "gpu", "gpu.sock").await, "Unknown: the ResourceName \"gpu\" is invalid");
    let error = of("v1beta1", GPU, "gpu.sock").await;
    assert!(error.starts_with("Unknown: failed to dial device plugin: ") && error.contains("gpu.sock: "), "{error}");
    assert!(place.devices.offers().is_empty());
}

#[tokio::test]
async fn requests_and_answers_are_passed_on() {
    let place = Place::new();
    let fake = Fake::new(vec![device("a", "Healthy", &[])]);
    let _serving = fake.serve(&place.plugins().join("gpu.sock"));
    place.register("v1beta1", GPU, "gpu.sock").await.unwrap();
    let plugin = place.devices.plugin(GPU).unwrap();
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let question =
        Question { resource: GPU.to_owned(), available: ids(&["a", "b"]), must_include: ids(&["b"]), size: 2 };
    assert_eq!(plugin.preferred(&question).await.unwrap(), ["a"]);
    let artifacts = plugin.allocate(ids(&["a"])).await.unwrap();
    let expected = serde_json::json!({
        "envs": {"GPU": "1"},
        "mounts": [{"containerPath": "/c", "hostPath": "/h", "readOnly": true}],
        "devices": [{"containerPath": "/dev/c", "hostPath": "/dev/h", "permissions": "rw"}],
        "annotations": {"a": "b"}, "cdiDevices": ["example.com/gpu=0"], "preStart": true,
    });
    assert_eq!(serde_json::to_value(&artifacts).unwrap(), expected);
    plugin.pre_start(ids(&["a"])).await.unwrap();
    let expected = [r#"prefer ["a", "b"] ["b"] 2"#, r#"allocate ["a"]"#, r#"pre-start ["a"]"#];
    assert_eq!(*fake.asked.lock().unwrap(), expected);
    *fake.refuses.lock().unwrap() = Some(Status::failed_precondition("no"));
    let error = plugin.allocate(ids(&["a"])).await.unwrap_err();
    assert_eq!(error.to_string(), "rpc error: code = FailedPrecondition desc = no");
    assert!(!error.is_gone());
}

#[tokio::test]
async fn a_plugin_that_goes_leaves_capacity_and_another_takes_its_place() {
    let place = Place::new();
    let socket = place.plugins().join("gpu.sock");
    let first = Fake::new(vec![device("a", "Healthy", &[])]);
    let serving = first.serve(&socket);
    place.register("v1beta1", GPU, "gpu.sock").await.unwrap();
    place.until("listed", |offers| offers[GPU].is_current()).await;
    let plugin = place.devices.plugin(GPU).unwrap();
    serving.abort();
    place.until("gone", |offers| matches!(offers[GPU].plugin, State::Stopped(_))).await;
    let offers = place.devices.offers();
    assert_eq!((offers[GPU].capacity(), offers[GPU].healthy().count()), (1, 0));
    assert!(place.devices.plugin(GPU).is_none());
    let error = plugin.allocate(vec!["a".to_owned()]).await.unwrap_err();
    assert!(error.is_gone(), "{error}");
    std::fs::remove_file(&socket).unwrap();
    let second = Fake::new(vec![device("b", "Healthy", &[]), device("c", "Healthy", &[])]);
    let _serving = second.serve(&socket);
    place.register("v1beta1", GPU, "gpu.sock").await.unwrap();
    place.until("the second", |offers| offers[GPU].healthy().count() == 2).await;
    // A third at another socket takes its place while it is still there; its end changes nothing any more.
    let third = Fake::new(vec![device("d", "Healthy", &[])]);
    let other = place.plugins().join("other.sock");
    let _other = third.serve(&other);
    place.devices.register(GPU, &other).await.unwrap();
    place.until("the third", |offers| offers[GPU].devices.keys().eq(["d"])).await;
    place.devices.deregister(GPU, &socket);
    assert!(place.devices.plugin(GPU).is_some());
    place.devices.deregister(GPU, &other);
    assert!(matches!(place.devices.offers()[GPU].plugin, State::Stopped(_)));
}

#[tokio::test]
async fn a_new_agent_removes_the_sockets_so_that_plugins_notice() {
    let place = Place::new();
    let own = place.plugins().join("gpu.sock");
    let fake = Fake::new(Vec::new());
    let _serving = fake.serve(&own);
    std::fs::write(place.plugins().join("notes"), "").unwrap();
    listen(&place.plugins(), place.devices.clone()).unwrap();
    assert!(!own.exists() && place.plugins().join("notes").exists() && place.plugins().join("kubelet.sock").exists());
}
