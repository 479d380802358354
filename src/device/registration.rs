//! The socket at which device plugins register (`Registration` of the device plugin API).

use std::{
    fs,
    future::Future,
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use hyper::{Request as HttpRequest, body::Incoming};
use tonic::{Request, Response, Status, body::Body, server::UnaryService};
use tonic_prost::ProstCodec;
use tracing::{info, warn};

use super::{
    registry::{Devices, RegisterError},
    socket::{accept, listen_at},
    wire::{Empty, REGISTER, RegisterRequest, VERSION},
};

/// Name of the socket.
const SOCKET: &str = "kubelet.sock";

/// Why plugins cannot register.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}")]
pub struct ListenError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Listens in `directory` (made if need be) for as long as the runtime lives. Sockets found there are removed first: a
/// plugin that sees its own go, or ours come, registers again.
///
/// # Errors
/// The directory cannot be made, or the socket cannot be bound.
pub fn listen(directory: &Path, devices: Arc<Devices>) -> Result<(), ListenError> {
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |source| ListenError { step, path, source }
    };
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(directory);
    made.map_err(failed("create", directory))?;
    for entry in fs::read_dir(directory).map_err(failed("list", directory))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
        }
    }
    let path = directory.join(SOCKET);
    let listener = listen_at(&path).map_err(failed("listen at", &path))?;
    let registration = Registration { directory: directory.to_owned(), devices };
    tokio::spawn(accept(listener, move |request| route(registration.clone(), request)));
    Ok(())
}

async fn route(registration: Registration, request: HttpRequest<Incoming>) -> hyper::http::Response<Body> {
    if request.uri().path() != REGISTER {
        return Status::unimplemented(format!("unknown method {}", request.uri().path())).into_http();
    }
    let codec = ProstCodec::<Empty, RegisterRequest>::default();
    tonic::server::Grpc::new(codec).unary(registration, request).await
}

#[derive(Clone)]
struct Registration {
    directory: PathBuf,
    devices: Arc<Devices>,
}

impl UnaryService<RegisterRequest> for Registration {
    type Response = Empty;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Empty>, Status>> + Send>>;

    fn call(&mut self, request: Request<RegisterRequest>) -> Self::Future {
        let Registration { directory, devices } = self.clone();
        Box::pin(async move { register(&directory, devices, request.into_inner()).await.map(Response::new) })
    }
}

async fn register(directory: &Path, devices: Arc<Devices>, request: RegisterRequest) -> Result<Empty, Status> {
    let RegisterRequest { version, endpoint, resource_name, options: _ } = request;
    let refused = |error: RegisterError| {
        warn!(resource = resource_name, "a device plugin cannot register: {}", crate::obs::chain::Chain(&error));
        Status::unknown(error.to_string())
    };
    if version != VERSION {
        return Err(refused(RegisterError::Version { version }));
    }
    // Below the directory whatever it begins with, as upstream.
    let socket = directory.join(endpoint.trim_start_matches('/'));
    devices.register(&resource_name, &socket).await.map_err(refused)?;
    info!(resource = resource_name, socket = %socket.display(), "a device plugin has registered");
    Ok(Empty {})
}
