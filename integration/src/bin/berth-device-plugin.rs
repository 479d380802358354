//! A device plugin for tests: offers device nodes that every kernel has and no container may use, and notes what it is
//! asked. It is told what to do by files in its state directory:
//!
//! - `unhealthy`: ids of devices that are not healthy, one a line;
//! - `refuse`: Allocate and PreStartContainer fail with the message in it;
//! - `slow`: Allocate is not answered as long as it is there.
//!
//! It writes there `calls` (a line for each request), `nodes/<id>` (the devices), `shared` (a directory that containers
//! get) and `cdi/fake.json` (a CDI specification of the same devices).

use std::{
    collections::HashMap,
    convert::Infallible,
    fs::{self, File},
    future::Future,
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures_util::{Stream, stream};
use hyper::{Request as HttpRequest, Uri, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    client,
    server::{self, ServerStreamingService, UnaryService},
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

/// Character devices whose drivers any kernel for containers has: fuse, autofs, vsock, btrfs-control.
const NUMBERS: [(u64, u64); 4] = [(10, 229), (10, 235), (10, 258), (10, 234)];
/// How often files are looked at.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Options {
    #[prost(bool, tag = "1")]
    pre_start_required: bool,
    #[prost(bool, tag = "2")]
    get_preferred_allocation_available: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegisterRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
    #[prost(message, optional, tag = "4")]
    options: Option<Options>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Devices {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Device {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
    #[prost(message, optional, tag = "3")]
    topology: Option<Topology>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Topology {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Node {
    #[prost(int64, tag = "1")]
    id: i64,
}

/// Requests and answers that are lists of lists of ids: of one container each.
#[derive(Clone, PartialEq, prost::Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Ids>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ids {
    #[prost(string, repeated, tag = "1")]
    ids: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Preferences {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Preference>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Preference {
    #[prost(string, repeated, tag = "1")]
    available: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    must_include: Vec<String>,
    #[prost(int32, tag = "3")]
    size: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Allocated {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Artifacts>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Artifacts {
    #[prost(map = "string, string", tag = "1")]
    envs: HashMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Mount>,
    #[prost(message, repeated, tag = "3")]
    devices: Vec<Spec>,
    #[prost(message, repeated, tag = "5")]
    cdi: Vec<Cdi>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(bool, tag = "3")]
    read_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Spec {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(string, tag = "3")]
    permissions: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Cdi {
    #[prost(string, tag = "1")]
    name: String,
}

/// What it was started with.
#[derive(Debug)]
struct Plugin {
    directory: PathBuf,
    state: PathBuf,
    resource: String,
    socket: String,
    devices: usize,
    nodes: Vec<i64>,
    preferred: bool,
    pre_start: bool,
    cdi: bool,
}

impl Plugin {
    fn from_arguments() -> Result<Plugin> {
        let mut plugin = Plugin {
            directory: PathBuf::new(),
            state: PathBuf::new(),
            resource: "example.com/device".to_owned(),
            socket: String::new(),
            devices: 2,
            nodes: Vec::new(),
            preferred: false,
            pre_start: false,
            cdi: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--directory" => plugin.directory = value()?.into(),
                "--state" => plugin.state = value()?.into(),
                "--resource" => plugin.resource = value()?,
                "--devices" => plugin.devices = value()?.parse()?,
                // The NUMA node of each device.
                "--nodes" => plugin.nodes = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--preferred" => plugin.preferred = true,
                "--pre-start" => plugin.pre_start = true,
                "--cdi" => plugin.cdi = true,
                other => bail!("unknown argument {other}"),
            }
        }
        plugin.socket = format!("{}.sock", plugin.resource.replace('/', "-"));
        anyhow::ensure!(plugin.devices <= NUMBERS.len(), "at most {} devices", NUMBERS.len());
        Ok(plugin)
    }

    fn ids(&self) -> impl Iterator<Item = String> {
        (0..self.devices).map(|index| format!("dev-{index}"))
    }

    fn node(&self, id: &str) -> PathBuf {
        self.state.join("nodes").join(id)
    }

    /// Makes what the devices are made of.
    fn prepare(&self) -> Result<()> {
        for name in ["nodes", "shared", "cdi"] {
            fs::create_dir_all(self.state.join(name))?;
        }
        fs::write(self.state.join("shared/hello"), "from the plugin\n")?;
        let mut devices = Vec::new();
        for (id, (major, minor)) in self.ids().zip(NUMBERS) {
            let path = self.node(&id);
            if !path.exists() {
                mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(major, minor))
                    .with_context(|| format!("mknod {}", path.display()))?;
            }
            devices.push(json!({"name": id, "containerEdits": {
                "env": [format!("CDI_{}=1", id.replace('-', "_"))],
                "deviceNodes": [{"path": format!("/dev/cdi-{id}"), "hostPath": path}],
                "mounts": [{"hostPath": self.state.join("shared"), "containerPath": "/opt/cdi", "options": ["ro", "rbind"]}],
            }}));
        }
        let spec = json!({"cdiVersion": "0.6.0", "kind": self.resource, "devices": devices});
        Ok(fs::write(self.state.join("cdi/fake.json"), spec.to_string())?)
    }

    fn list(&self) -> Devices {
        let unhealthy = fs::read_to_string(self.state.join("unhealthy")).unwrap_or_default();
        let device = |(index, id): (usize, String)| {
            let health = if unhealthy.lines().any(|line| line == id) { "Unhealthy" } else { "Healthy" };
            let topology = self.nodes.get(index).map(|id| Topology { nodes: vec![Node { id: *id }] });
            Device { id, health: health.to_owned(), topology }
        };
        Devices { devices: self.ids().enumerate().map(device).collect() }
    }

    fn note(&self, what: &str, ids: &[String]) {
        let file = File::options().create(true).append(true).open(self.state.join("calls"));
        let line = format!("{what} {}\n", ids.join(","));
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of calls can be written");
    }

    async fn obey(&self) -> Result<(), Status> {
        while self.state.join("slow").exists() {
            tokio::time::sleep(PAUSE).await;
        }
        match fs::read_to_string(self.state.join("refuse")) {
            Ok(message) => Err(Status::failed_precondition(message)),
            Err(_) => Ok(()),
        }
    }

    fn options(&self) -> Options {
        Options { pre_start_required: self.pre_start, get_preferred_allocation_available: self.preferred }
    }

    /// Of those available the last ones.
    fn prefer(&self, preference: &Preference) -> Ids {
        let more = preference.available.iter().filter(|id| !preference.must_include.contains(id)).rev();
        let ids = preference.must_include.iter().chain(more).take(preference.size as usize).cloned();
        Ids { ids: ids.collect() }
    }

    fn artifacts(&self, ids: &[String]) -> Artifacts {
        let devices = ids.iter().map(|id| Spec {
            container_path: format!("/dev/fake/{id}"),
            host_path: self.node(id).to_string_lossy().into_owned(),
            permissions: "rw".to_owned(),
        });
        let mount = Mount {
            container_path: "/opt/fake".to_owned(),
            host_path: self.state.join("shared").to_string_lossy().into_owned(),
            read_only: true,
        };
        match self.cdi {
            true => Artifacts {
                cdi: ids.iter().map(|id| Cdi { name: format!("{}={id}", self.resource) }).collect(),
                ..Artifacts::default()
            },
            false => Artifacts {
                envs: HashMap::from([("FAKE_DEVICES".to_owned(), ids.join(","))]),
                mounts: vec![mount],
                devices: devices.collect(),
                cdi: Vec::new(),
            },
        }
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// One method.
#[derive(Clone)]
struct Method(Arc<Plugin>);

impl UnaryService<Empty> for Method {
    type Response = Options;
    type Future = Answer<Options>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        let options = self.0.options();
        Box::pin(async move { Ok(Response::new(options)) })
    }
}

impl UnaryService<Preferences> for Method {
    type Response = Containers;
    type Future = Answer<Containers>;

    fn call(&mut self, request: Request<Preferences>) -> Self::Future {
        let preferred: Vec<Ids> =
            request.into_inner().containers.iter().map(|preference| self.0.prefer(preference)).collect();
        preferred.iter().for_each(|ids| self.0.note("prefer", &ids.ids));
        Box::pin(async move { Ok(Response::new(Containers { containers: preferred })) })
    }
}

impl UnaryService<Containers> for Method {
    type Response = Allocated;
    type Future = Answer<Allocated>;

    fn call(&mut self, request: Request<Containers>) -> Self::Future {
        let plugin = self.0.clone();
        Box::pin(async move {
            let asked = request.into_inner().containers;
            asked.iter().for_each(|ids| plugin.note("allocate", &ids.ids));
            plugin.obey().await?;
            Ok(Response::new(Allocated { containers: asked.iter().map(|ids| plugin.artifacts(&ids.ids)).collect() }))
        })
    }
}

impl UnaryService<Ids> for Method {
    type Response = Empty;
    type Future = Answer<Empty>;

    fn call(&mut self, request: Request<Ids>) -> Self::Future {
        let plugin = self.0.clone();
        Box::pin(async move {
            plugin.note("pre-start", &request.into_inner().ids);
            plugin.obey().await?;
            Ok(Response::new(Empty {}))
        })
    }
}

impl ServerStreamingService<Empty> for Method {
    type Response = Devices;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Devices, Status>> + Send>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        let plugin = self.0.clone();
        let lists = stream::unfold((plugin, None), |(plugin, last)| async move {
            loop {
                let now = plugin.list();
                if last.as_ref() != Some(&now) {
                    return Some((Ok(now.clone()), (plugin, Some(now))));
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Box::pin(async move { Ok(Response::new(Box::pin(lists) as Self::ResponseStream)) })
    }
}

async fn route(plugin: Arc<Plugin>, request: HttpRequest<Incoming>) -> hyper::http::Response<Body> {
    let method = Method(plugin);
    match request.uri().path().rsplit('/').next().unwrap_or_default() {
        "GetDevicePluginOptions" => {
            server::Grpc::new(ProstCodec::<Options, Empty>::default()).unary(method, request).await
        }
        "ListAndWatch" => {
            server::Grpc::new(ProstCodec::<Devices, Empty>::default()).server_streaming(method, request).await
        }
        "GetPreferredAllocation" => {
            server::Grpc::new(ProstCodec::<Containers, Preferences>::default()).unary(method, request).await
        }
        "Allocate" => server::Grpc::new(ProstCodec::<Allocated, Containers>::default()).unary(method, request).await,
        "PreStartContainer" => server::Grpc::new(ProstCodec::<Empty, Ids>::default()).unary(method, request).await,
        other => Status::unimplemented(other).into_http(),
    }
}

/// Which file is at `path`, to tell it from one made later.
fn identity(path: &Path) -> Option<(u64, i64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.ino(), metadata.ctime_nsec()))
}

/// Serves and registers, until its own socket or the agent's is another one.
async fn life(plugin: &Arc<Plugin>) -> Result<()> {
    let (own, agent) = (plugin.directory.join(&plugin.socket), plugin.directory.join("kubelet.sock"));
    let Some(registered_at) = identity(&agent) else { return Ok(()) };
    fs::remove_file(&own).ok();
    let listener = UnixListener::bind(&own).with_context(|| format!("listen at {}", own.display()))?;
    let serving = plugin.clone();
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let plugin = serving.clone();
            tokio::spawn(async move {
                let answer = |request| {
                    let plugin = plugin.clone();
                    async move { Ok::<_, Infallible>(route(plugin, request).await) }
                };
                let connection = http2::Builder::new(TokioExecutor::new());
                connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await.ok();
            });
        }
    });
    let ours = identity(&own);
    match register(plugin, &agent).await {
        Ok(()) => {
            plugin.note("registered", &[]);
            while identity(&agent) == Some(registered_at) && identity(&own) == ours {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(error) => eprintln!("register: {error:#}"),
    }
    server.abort();
    Ok(())
}

async fn register(plugin: &Plugin, agent: &Path) -> Result<()> {
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(Dialer(agent.to_owned())).await?;
    let mut client = client::Grpc::new(channel);
    client.ready().await?;
    let request = RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: plugin.socket.clone(),
        resource_name: plugin.resource.clone(),
        options: Some(plugin.options()),
    };
    let path = "/v1beta1.Registration/Register".parse()?;
    client.unary(Request::new(request), path, ProstCodec::<RegisterRequest, Empty>::default()).await?;
    Ok(())
}

struct Dialer(PathBuf);

impl tower_service::Service<Uri> for Dialer {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let plugin = Arc::new(Plugin::from_arguments()?);
    plugin.prepare()?;
    loop {
        life(&plugin).await?;
        tokio::time::sleep(PAUSE).await;
    }
}
