//! Registration over real sockets in a temporary directory.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, body::Bytes, header::HeaderValue, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixListener, task::JoinHandle};

use super::*;

/// What a handler was told, and what plugins were.
#[derive(Default)]
struct Told {
    lines: Mutex<Vec<String>>,
    refuse: AtomicBool,
}

impl Told {
    fn add(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }

    async fn comes(&self, line: &str) {
        let found = || self.lines.lock().unwrap().iter().any(|told| told.ends_with(line));
        let wait = async {
            while !found() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), wait).await.is_err() {
            panic!("{line:?} was not told: {:?}", self.lines.lock().unwrap());
        }
    }

    fn count(&self, line: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|told| *told == line).count()
    }
}

impl Handler for Arc<Told> {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        match plugin.versions.is_empty() {
            true => Err("no versions".to_owned()),
            false => Ok(()),
        }
    }

    fn register(&self, plugin: Plugin) -> Registering<'_> {
        Box::pin(async move {
            if self.refuse.load(Ordering::Relaxed) {
                return Err("not now".to_owned());
            }
            self.add(format!("registered {} at {}", plugin.name, plugin.endpoint.display()));
            Ok(())
        })
    }

    fn deregister(&self, plugin: &Plugin) {
        self.add(format!("gone {}", plugin.name));
    }
}

/// A frame of gRPC with `message` in it.
fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// A plugin that says `info` of itself and writes down what it is told.
fn plugin(socket: &Path, info: &'static [u8], told: Arc<Told>) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let told = told.clone();
                async move {
                    assert_eq!(request.uri().authority().unwrap(), "localhost");
                    let path = request.uri().path().to_owned();
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let answer = match path.as_str() {
                        "/pluginregistration.Registration/GetInfo" => frame(info),
                        "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                            told.add(format!("told {}", String::from_utf8_lossy(&asked[5..])));
                            frame(b"")
                        }
                        other => panic!("{other}"),
                    };
                    let trailers = async move {
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        Some(Ok(trailers))
                    };
                    let mut response = Response::new(Full::new(answer).with_trailers(trailers));
                    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                    Ok::<_, Infallible>(response)
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    })
}

fn follow(directory: PathBuf, told: &Arc<Told>) -> JoinHandle<()> {
    let handler: Arc<dyn Handler> = Arc::new(told.clone());
    tokio::spawn(registry::follow(directory, [("CSIPlugin", handler)].into()))
}

/// `PluginInfo { type: "CSIPlugin", name: "d", endpoint: "/s", supported_versions: ["1"] }`.
const INFO: &[u8] = b"\x0a\x09CSIPlugin\x12\x01d\x1a\x02/s\x22\x011";

#[tokio::test]
async fn a_socket_that_comes_is_registered_and_one_that_goes_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("registry");
    fs::create_dir(&root).unwrap();
    let told = Arc::new(Told::default());
    // One is there before, one comes later, in a directory that comes later, too.
    let _first = plugin(&root.join("first.sock"), INFO, told.clone());
    let following = follow(root.clone(), &told);
    told.comes("registered d at /s").await;
    told.comes("told \u{8}\u{1}").await;
    fs::create_dir(root.join("below")).unwrap();
    let socket = root.join("below/second.sock");
    let _second = plugin(&socket, b"\x0a\x09CSIPlugin\x12\x01e\x22\x011", told.clone());
    told.comes(&format!("registered e at {}", socket.display())).await;
    fs::remove_file(&socket).unwrap();
    told.comes("gone e").await;
    assert_eq!((told.count("registered d at /s"), told.count("gone d")), (1, 0));
    following.abort();
}

#[tokio::test]
async fn a_socket_made_anew_is_another_one() {
    let directory = tempfile::tempdir().unwrap();
    let told = Arc::new(Told::default());
    let following = follow(directory.path().to_owned(), &told);
    let socket = directory.path().join("d.sock");
    let first = plugin(&socket, INFO, told.clone());
    told.comes("registered d at /s").await;
    first.abort();
    fs::remove_file(&socket).unwrap();
    let _second = plugin(&socket, INFO, told.clone());
    told.comes("gone d").await;
    let twice = async {
        while told.count("registered d at /s") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), twice).await.expect("registered again");
    following.abort();
}

#[tokio::test]
async fn a_plugin_hears_why_it_is_not_taken_and_is_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let told = Arc::new(Told::default());
    told.refuse.store(true, Ordering::Relaxed);
    let following = follow(directory.path().to_owned(), &told);
    let _other = plugin(&directory.path().join("other.sock"), b"\x0a\x03DRA\x12\x01o\x22\x011", told.clone());
    let _hidden = plugin(&directory.path().join(".hidden.sock"), b"\x0a\x09CSIPlugin\x12\x01h\x22\x011", told.clone());
    let _none = plugin(&directory.path().join("none.sock"), b"\x0a\x09CSIPlugin\x12\x01n", told.clone());
    let _plugin = plugin(&directory.path().join("d.sock"), INFO, told.clone());
    fs::write(directory.path().join("file"), "").unwrap();
    let place = directory.path().display();
    for why in [
        format!("RegisterPlugin error -- no handler registered for plugin type: DRA at socket {place}/other.sock"),
        "RegisterPlugin error -- plugin validation failed with err: no versions".to_owned(),
        "RegisterPlugin error -- plugin registration failed with err: not now".to_owned(),
    ] {
        told.comes(&why).await;
    }
    told.comes("gone d").await;
    told.refuse.store(false, Ordering::Relaxed);
    told.comes("registered d at /s").await;
    assert_eq!(told.count("gone h") + told.count("registered h"), 0);
    following.abort();
}

#[tokio::test]
async fn a_directory_that_is_taken_away_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("registry");
    let told = Arc::new(Told::default());
    let following = follow(root.clone(), &told);
    let there = async {
        while !root.is_dir() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), there).await.expect("it is made");
    fs::remove_dir(&root).unwrap();
    let there = async {
        while !root.is_dir() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), there).await.expect("it is made again");
    let _plugin = plugin(&root.join("d.sock"), INFO, told.clone());
    told.comes("registered d at /s").await;
    following.abort();
}
