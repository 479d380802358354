//! gRPC by hand: one frame in, one frame and trailers out.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, body::Bytes, header::HeaderValue, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::messages::{
    Capabilities, Empty, Leave, NodeCapability, NodeInfo, PluginInfo, Publish, RegistrationStatus, Rpc, Stage,
    VolumeCapability,
};

/// The driver.
#[derive(Default)]
pub struct Driver {
    pub name: String,
    pub state: PathBuf,
    pub endpoint: PathBuf,
    pub versions: Vec<String>,
    pub capabilities: BTreeSet<i32>,
}

/// What is answered instead.
#[derive(Debug)]
pub struct Failure {
    pub code: i32,
    pub message: String,
}

/// Serves both sockets until it is killed.
pub async fn serve(driver: Driver, socket: &Path, registration: &Path) -> io::Result<()> {
    let driver = Arc::new(driver);
    let listen = |path: &Path| {
        // One that was killed leaves its sockets behind.
        let _ = fs::remove_file(path);
        UnixListener::bind(path)
    };
    let service = listen(socket)?;
    // Only when everything else is there.
    let registration = listen(registration)?;
    loop {
        let stream = tokio::select! {
            accepted = service.accept() => accepted?.0,
            accepted = registration.accept() => accepted?.0,
        };
        let driver = driver.clone();
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let driver = driver.clone();
            async move {
                let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let frame = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let message = frame.get(5..).unwrap_or_default();
                let answer = driver.answer(&method, message).await;
                Ok::<_, Infallible>(response(answer))
            }
        });
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer),
        );
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

fn response(answer: Result<Vec<u8>, Failure>) -> Response<Body> {
    let (frame, code, message) = match answer {
        Ok(message) => {
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
            ([&[0], &length[..], &message].concat(), 0, String::new())
        }
        Err(Failure { code, message }) => (Vec::new(), code, message),
    };
    let trailers = async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(code));
        if let Ok(message) = HeaderValue::from_str(&message) {
            trailers.insert("grpc-message", message);
        }
        Some(Ok(trailers))
    };
    let mut response = Response::new(Full::new(Bytes::from(frame)).with_trailers(trailers).boxed());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// What is asked of the driver, and what of it is written down.
enum Call {
    Info,
    Notify(RegistrationStatus),
    NodeInfo,
    Capabilities,
    Stage(Stage),
    Unstage(Leave),
    Publish(Publish),
    Unpublish(Leave),
}

fn decode(method: &str, message: &[u8]) -> Option<Call> {
    Some(match method {
        "GetInfo" => Call::Info,
        "NotifyRegistrationStatus" => Call::Notify(RegistrationStatus::decode(message).ok()?),
        "NodeGetInfo" => Call::NodeInfo,
        "NodeGetCapabilities" => Call::Capabilities,
        "NodeStageVolume" => Call::Stage(Stage::decode(message).ok()?),
        "NodeUnstageVolume" => Call::Unstage(Leave::decode(message).ok()?),
        "NodePublishVolume" => Call::Publish(Publish::decode(message).ok()?),
        "NodeUnpublishVolume" => Call::Unpublish(Leave::decode(message).ok()?),
        _ => return None,
    })
}

fn capability(asked: Option<&VolumeCapability>) -> Value {
    let Some(asked) = asked else { return Value::Null };
    json!({
        "block": asked.block.is_some(),
        "fsType": asked.mount.as_ref().map(|mount| &mount.fs_type),
        "flags": asked.mount.as_ref().map(|mount| &mount.flags),
        "group": asked.mount.as_ref().map(|mount| &mount.group),
        "mode": asked.access_mode.as_ref().map(|mode| mode.kind),
    })
}

fn described(call: &Call) -> Value {
    match call {
        Call::Info | Call::NodeInfo | Call::Capabilities => json!({}),
        Call::Notify(status) => json!({ "registered": status.registered, "error": status.error }),
        Call::Stage(stage) => json!({
            "volume": stage.volume_id, "path": stage.staging, "capability": capability(stage.capability.as_ref()),
            "secrets": stage.secrets, "context": stage.context,
        }),
        Call::Publish(publish) => json!({
            "volume": publish.volume_id, "path": publish.target, "staging": publish.staging,
            "capability": capability(publish.capability.as_ref()), "readOnly": publish.read_only,
            "secrets": publish.secrets, "context": publish.context,
        }),
        Call::Unstage(leave) | Call::Unpublish(leave) => json!({ "volume": leave.volume_id, "path": leave.path }),
    }
}

impl Driver {
    async fn answer(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Failure> {
        let Some(call) = decode(method, message) else {
            return Err(Failure { code: 12, message: format!("{method} is not known") });
        };
        self.note(method, "begin", described(&call));
        let fault = self.fault(method);
        let hang = fault["hang"] == true;
        if hang && fault["after"] != true {
            std::future::pending::<()>().await;
        }
        if let (Some(code), true) = (fault["code"].as_i64(), fault["after"] != true) {
            let failure = failure(code, &fault);
            self.note(method, "failed", json!({ "message": failure.message }));
            return Err(failure);
        }
        let answer = self.perform(call);
        match &answer {
            Ok(_) => self.note(method, "end", json!({})),
            Err(failure) => self.note(method, "failed", json!({ "message": failure.message })),
        }
        if hang {
            std::future::pending::<()>().await;
        }
        match fault["code"].as_i64() {
            Some(code) => Err(failure(code, &fault)),
            None => answer,
        }
    }

    fn perform(&self, call: Call) -> Result<Vec<u8>, Failure> {
        let done = Empty {}.encode_to_vec();
        match call {
            Call::Info => Ok(PluginInfo {
                kind: "CSIPlugin".to_owned(),
                name: self.name.clone(),
                endpoint: self.endpoint.display().to_string(),
                versions: self.versions.clone(),
            }
            .encode_to_vec()),
            Call::Notify(_) => Ok(done),
            Call::NodeInfo => {
                Ok(NodeInfo { node_id: format!("node-of-{}", self.name), max_volumes: 0 }.encode_to_vec())
            }
            Call::Capabilities => {
                let one = |kind: &i32| NodeCapability { rpc: Some(Rpc { kind: *kind }) };
                Ok(Capabilities { capabilities: self.capabilities.iter().map(one).collect() }.encode_to_vec())
            }
            Call::Stage(asked) => self.stage(&asked).map(|()| done),
            Call::Unstage(asked) => self.unstage(&asked).map(|()| done),
            Call::Publish(asked) => self.publish(&asked).map(|()| done),
            Call::Unpublish(asked) => self.unpublish(&asked).map(|()| done),
        }
    }

    /// What is to go wrong with this call. Faults that are counted are used up.
    fn fault(&self, method: &str) -> Value {
        let path = self.state.join("faults");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut faults: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let fault = faults[method].clone();
        if let Some(times) = fault["times"].as_u64() {
            if times == 0 {
                return Value::Null;
            }
            faults[method]["times"] = json!(times - 1);
            let written = fs::write(path.with_extension("new"), faults.to_string());
            written.and_then(|()| fs::rename(path.with_extension("new"), &path)).expect("faults can be written");
        }
        fault
    }

    fn note(&self, method: &str, phase: &str, what: Value) {
        let mut line = json!({ "method": method, "phase": phase });
        for (key, value) in what.as_object().into_iter().flatten() {
            line[key] = value.clone();
        }
        let file = File::options().create(true).append(true).open(self.state.join("calls"));
        // In one write, so that no reader sees half a line.
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).expect("calls can be written down");
    }
}

fn failure(code: i64, fault: &Value) -> Failure {
    let message = fault["message"].as_str().unwrap_or("because").to_owned();
    Failure { code: i32::try_from(code).unwrap_or(2), message }
}
