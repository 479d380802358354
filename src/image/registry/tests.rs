//! Pulls from a registry of our own on loopback, which can misbehave.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use base64::Engine;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::json;

use crate::image::{
    digest::Digest,
    manifest::{DOCKER_LIST, OCI_INDEX, OCI_MANIFEST},
    testing::{LayerTar, TestImage, descriptor, gzip, settings},
    *,
};

/// What a registry does wrong with the next requests for blobs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing.
    None,
    /// Answers with this status.
    Status(u16),
    /// Closes the connection after so many bytes.
    Cut(usize),
    /// Sends so many bytes, then nothing.
    Stall(usize),
    /// Changes a byte.
    Corrupt,
}

#[derive(Clone, Copy, PartialEq)]
enum Auth {
    None,
    Basic,
    Bearer,
}

struct Server {
    address: String,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    manifests: Mutex<HashMap<String, (String, Vec<u8>)>>,
    faults: Mutex<Vec<Fault>>,
    /// Requests: `GET blobs/sha256:… [range]`, and what they were authorized with.
    log: Mutex<Vec<(String, String)>>,
    auth: Auth,
    /// Blobs are redirected there.
    storage: Option<String>,
    ranges: bool,
    retry_after: Option<u64>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Server)) -> Arc<Server> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut server = Server {
            address: listener.local_addr().unwrap().to_string(),
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            auth: Auth::None,
            storage: None,
            ranges: true,
            retry_after: None,
        };
        change(&mut server);
        let server = Arc::new(server);
        let router = Router::new().fallback(answer).with_state(Arc::clone(&server));
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn add(&self, image: &TestImage, tag: &str) {
        let mut blobs = self.blobs.lock().unwrap();
        for blob in image.layers.iter().chain([&image.config]) {
            blobs.insert(Digest::of(blob).to_string(), blob.clone());
        }
        drop(blobs);
        self.add_manifest(tag, OCI_MANIFEST, &image.manifest);
    }

    fn add_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) {
        let mut manifests = self.manifests.lock().unwrap();
        for name in [tag.to_owned(), Digest::of(bytes).to_string()] {
            manifests.insert(name, (media_type.to_owned(), bytes.to_vec()));
        }
    }

    fn fault(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    fn reference(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.address)
    }

    fn requests(&self, part: &str) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter().map(|(request, _)| request.clone()).filter(|request| request.contains(part)).collect()
    }
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let headers = request.headers().clone();
    let text =
        |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let authorization = text(header::AUTHORIZATION);
    let path = request.uri().path().trim_start_matches("/v2/").trim_start_matches("team/app/").to_owned();
    let line = format!("{} {path} {}", request.method(), text(header::RANGE));
    server.log.lock().unwrap().push((line.trim().to_owned(), authorization.clone()));
    let plain =
        |status: StatusCode, body: &str| Response::builder().status(status).body(Body::from(body.to_owned())).unwrap();
    let pair = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("me:secret"));
    if path == "/token" {
        let query = request.uri().query().unwrap_or_default();
        let good = authorization == pair && query.contains("scope=repository%3Ateam%2Fapp%3Apull");
        return if good { plain(StatusCode::OK, r#"{"token":"t0"}"#) } else { plain(StatusCode::UNAUTHORIZED, "") };
    }
    let wanted = match server.auth {
        Auth::None => None,
        Auth::Basic => Some((pair.clone(), "Basic realm=\"test\"".to_owned())),
        Auth::Bearer => {
            Some(("Bearer t0".to_owned(), format!("Bearer realm=\"http://{}/token\",service=\"test\"", server.address)))
        }
    };
    if let Some((value, challenge)) = wanted
        && authorization != value
    {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let mut response = plain(StatusCode::UNAUTHORIZED, body);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        return response;
    }
    match path.split_once('/') {
        Some(("manifests", version)) => match server.manifests.lock().unwrap().get(version) {
            Some((media_type, bytes)) => Response::builder()
                .header(header::CONTENT_TYPE, media_type)
                .header("docker-content-digest", Digest::of(bytes).to_string())
                .body(Body::from(bytes.clone()))
                .unwrap(),
            None => {
                plain(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
            }
        },
        Some(("blobs", digest)) => blob(&server, digest, &headers),
        _ => plain(StatusCode::NOT_FOUND, ""),
    }
}

fn blob(server: &Server, digest: &str, headers: &HeaderMap) -> Response {
    if let Some(storage) = &server.storage {
        let target = format!("http://{storage}/v2/team/app/blobs/{digest}?signature=abc");
        return Response::builder()
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header(header::LOCATION, target)
            .body(Body::empty())
            .unwrap();
    }
    let Some(mut bytes) = server.blobs.lock().unwrap().get(digest).cloned() else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    let start = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let start = start.and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut response = Response::builder();
    let total = bytes.len();
    if let Some(start) = start.filter(|_| server.ranges) {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{total}", total - 1));
        bytes.drain(..start);
    }
    let mut faults = server.faults.lock().unwrap();
    let fault = (!faults.is_empty()).then(|| faults.remove(0));
    drop(faults);
    response = response.header(header::CONTENT_LENGTH, bytes.len());
    let piece = |bytes: &[u8]| Ok::<_, std::io::Error>(hyper::body::Bytes::copy_from_slice(bytes));
    let body = match fault {
        None | Some(Fault::None) => Body::from(bytes),
        Some(Fault::Status(status)) => {
            let mut failed = Response::builder().status(status);
            if let Some(seconds) = server.retry_after {
                failed = failed.header(header::RETRY_AFTER, seconds);
            }
            return failed.body(Body::from("slow down")).unwrap();
        }
        Some(Fault::Cut(length)) => {
            // Later, or hyper throws away what it has not written yet.
            let broken = stream::once(async {
                tokio::time::sleep(Duration::from_millis(30)).await;
                Err(std::io::Error::other("cut"))
            });
            Body::from_stream(stream::iter([piece(&bytes[..length.min(bytes.len())])]).chain(broken))
        }
        Some(Fault::Stall(length)) => {
            let first = stream::iter([piece(&bytes[..length.min(bytes.len())])]);
            Body::from_stream(first.chain(stream::pending()))
        }
        Some(Fault::Corrupt) => {
            bytes[total / 2] ^= 0xff;
            Body::from(bytes)
        }
    };
    response.body(body).unwrap()
}

struct Place {
    _directory: tempfile::TempDir,
    store: ImageStore,
}

impl Place {
    async fn with(config: ImageConfig) -> Place {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&directory.path().join("images"), config).await.unwrap();
        Place { _directory: directory, store }
    }

    async fn new() -> Place {
        Place::with(settings()).await
    }
}

fn me() -> Option<Credentials> {
    Some(Credentials::Basic { username: "me".into(), password: "secret".into() })
}

/// An image whose first layer is large and does not compress, so that transfers can break in its middle.
fn large() -> TestImage {
    let mut noise = vec![0u8; 400_000];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    let tar = LayerTar::new().file("noise", &noise).finish();
    TestImage::new(vec![(tar.clone(), gzip(&tar))])
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_digest_and_then_not_again() {
    let (server, place, image) = (Server::start(|_| {}).await, Place::new().await, TestImage::simple("one"));
    server.add(&image, "1");
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let progress: ProgressSink = Box::new(move |progress| sink.lock().unwrap().push(progress));
    let pulled = place.store.pull(&server.reference("1"), None, Some(progress)).await.unwrap();
    let total: usize = image.layers.iter().map(Vec::len).sum();
    assert_eq!((pulled.image.id.clone(), pulled.bytes), (image.id(), total as u64));
    assert_eq!(pulled.image.repo_tags, [server.reference("1")]);
    let name = format!("{}/team/app@{}", server.address, image.digest());
    assert_eq!(pulled.image.repo_digests, std::slice::from_ref(&name));
    assert_eq!(std::fs::read(pulled.image.layers[0].join("marker")).unwrap(), b"one");
    let last = *reports.lock().unwrap().last().unwrap();
    assert_eq!(last, Progress { layers: 2, layers_done: 2, bytes: total as u64, bytes_done: total as u64 });

    let before = server.requests("").len();
    let again = place.store.pull(&server.reference("1"), None, None).await.unwrap();
    assert_eq!((again.bytes, again.image), (0, pulled.image.clone()));
    assert_eq!(server.requests("").len(), before + 1, "one HEAD request");
    assert_eq!(place.store.pull(&name, None, None).await.unwrap().image.id, image.id());
    assert_eq!(place.store.get(&name).unwrap().id, image.id());
    assert_eq!(place.store.inner.registry.live_clients(), 0, "an idle store holds no client");

    // The tag moves; only what is new is fetched.
    let newer = TestImage::simple("two");
    server.add(&newer, "1");
    let moved = place.store.pull(&server.reference("1"), None, None).await.unwrap();
    assert_eq!((moved.image.id.clone(), moved.bytes), (newer.id(), newer.layers[1].len() as u64));
    assert!(place.store.get(&image.id()).unwrap().repo_tags.is_empty());
}

#[tokio::test]
async fn the_platform_is_picked_from_an_index_and_the_index_digest_is_remembered() {
    for media_type in [OCI_INDEX, DOCKER_LIST] {
        let (server, place) = (Server::start(|_| {}).await, Place::new().await);
        let (image, other) = (TestImage::simple("mine"), TestImage::simple("other"));
        server.add(&image, "unused-1");
        let host = Platform::host();
        let mut mine = descriptor(OCI_MANIFEST, &image.manifest);
        mine["platform"] = json!({"os": "linux", "architecture": host.architecture});
        let mut foreign = descriptor(OCI_MANIFEST, &other.manifest);
        foreign["platform"] = json!({"os": "linux", "architecture": "s390x"});
        let index = |entries: &[&serde_json::Value]| {
            json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string().into_bytes()
        };
        let both = index(&[&foreign, &mine]);
        server.add_manifest("multi", media_type, &both);
        server.add_manifest("foreign", media_type, &index(&[&foreign]));
        let pulled = place.store.pull(&server.reference("multi"), None, None).await.unwrap();
        assert_eq!(pulled.image.id, image.id());
        assert_eq!(pulled.image.repo_digests, [format!("{}/team/app@{}", server.address, Digest::of(&both))]);
        let error = place.store.pull(&server.reference("foreign"), None, None).await.unwrap_err();
        assert!(error.message().contains("linux/s390x"), "{}", error.message());
        assert_eq!(error.reason(), Reason::ErrImagePull);
    }
}

#[tokio::test]
async fn basic_and_token_authentication() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let server = Server::start(|server| server.auth = auth).await;
        let image = TestImage::simple("one");
        server.add(&image, "1");
        let place = Place::new().await;
        place.store.pull(&server.reference("1"), me(), None).await.unwrap();
        let tokens = server.requests("/token").len();
        assert_eq!(tokens, usize::from(auth == Auth::Bearer), "one token serves all requests of a pull");

        let place = Place::new().await;
        let wrong = Some(Credentials::Basic { username: "me".into(), password: "wrong".into() });
        for credentials in [None, wrong] {
            let error = place.store.pull(&server.reference("1"), credentials, None).await.unwrap_err();
            let ImageError::Registry { source: RegistryError::Unauthorized(_), host, .. } = &error else {
                panic!("{}", error.message())
            };
            assert_eq!(*host, server.address);
            assert!(error.message().contains("team/app:1"), "{}", error.message());
        }
        // Credentials of the node's configuration.
        let mut config = settings();
        let own = RegistryConfig { credentials: me(), ..RegistryConfig::default() };
        config.registries.insert(server.address.clone(), own);
        Place::with(config).await.store.pull(&server.reference("1"), None, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_redirect_to_storage_does_not_carry_the_authorization() {
    let storage = Server::start(|_| {}).await;
    let address = storage.address.clone();
    let server = Server::start(|server| (server.auth, server.storage) = (Auth::Bearer, Some(address))).await;
    let (place, image) = (Place::new().await, TestImage::simple("one"));
    server.add(&image, "1");
    storage.add(&image, "1");
    storage.fault(&[Fault::Cut(10)]);
    place.store.pull(&server.reference("1"), me(), None).await.unwrap();
    let log = storage.log.lock().unwrap();
    assert!(log.len() >= 3 && log.iter().all(|(_, authorization)| authorization.is_empty()), "{log:?}");
}

#[tokio::test]
async fn broken_and_stalled_transfers_are_resumed_where_they_broke() {
    for ranges in [true, false] {
        let server = Server::start(|server| server.ranges = ranges).await;
        // Without ranges the failures after the first bring nothing new, so that they count against the attempts.
        let mut config = settings();
        config.retry.attempts = 6;
        let (place, image) = (Place::with(config).await, large());
        server.add(&image, "1");
        // The configuration comes first, and is asked for twice.
        let half = image.layers[0].len() / 2;
        server.fault(&[Fault::Cut(3), Fault::None, Fault::Cut(half), Fault::Stall(1000), Fault::Status(503)]);
        let pulled = place.store.pull(&server.reference("1"), None, None).await.unwrap();
        assert_eq!(pulled.bytes, image.layers[0].len() as u64, "no byte is counted twice");
        let resumed = server.requests("bytes=");
        assert!(resumed.iter().any(|line| line.contains(&format!("bytes={half}-"))), "{resumed:?}");
    }
}

#[tokio::test]
async fn what_does_not_recover_is_reported_with_host_and_cause() {
    let gone = [Fault::Status(503); 30];
    let denied = [Fault::Status(403); 30];
    let limited = [Fault::Status(429); 30];
    let corrupt = [Fault::None, Fault::Corrupt];
    let stalled = [Fault::Stall(0); 30];
    for (faults, cause, reason) in [
        (&gone[..], "server error 503: slow down", Reason::RegistryUnavailable),
        (&denied[..], "access denied", Reason::ErrImagePull),
        (&limited[..], "rate limited", Reason::ErrImagePull),
        (&corrupt[..], "unpack layer", Reason::ErrImagePull),
        (&stalled[..], "no data for 500ms", Reason::RegistryUnavailable),
    ] {
        let (server, place, image) = (Server::start(|_| {}).await, Place::new().await, large());
        server.add(&image, "1");
        server.fault(faults);
        let error = place.store.pull(&server.reference("1"), None, None).await.unwrap_err();
        assert!(error.message().contains(cause), "{}", error.message());
        assert_eq!(error.reason(), reason, "{}", error.message());
        assert!(place.store.list().is_empty());
        let layers = place.store.inner.root.join("layers");
        assert_eq!(std::fs::read_dir(layers).unwrap().count(), 0, "nothing half-made stays");
    }
    let (server, place) = (Server::start(|_| {}).await, Place::new().await);
    let error = place.store.pull(&server.reference("none"), None, None).await.unwrap_err();
    assert!(error.message().contains("not found: MANIFEST_UNKNOWN: manifest unknown"), "{}", error.message());
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = place.store.pull(&format!("{free}/a:1"), None, None).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RegistryUnavailable, "{}", error.message());
}

#[tokio::test]
async fn a_long_retry_after_is_reported_instead_of_waited_for() {
    let server = Server::start(|server| server.retry_after = Some(3600)).await;
    let (place, image) = (Place::new().await, TestImage::simple("one"));
    server.add(&image, "1");
    server.fault(&[Fault::Status(429)]);
    let error = place.store.pull(&server.reference("1"), None, None).await.unwrap_err();
    let ImageError::Registry { source: RegistryError::RateLimited { retry_after, .. }, .. } = error else {
        panic!("{}", error.message())
    };
    assert_eq!(retry_after, Some(Duration::from_secs(3600)));
}

#[tokio::test]
async fn a_digest_is_believed_only_when_it_fits() {
    let (server, place, image) = (Server::start(|_| {}).await, Place::new().await, TestImage::simple("one"));
    server.add(&image, "1");
    let other = Digest::of(b"something else");
    let entry = (OCI_MANIFEST.to_owned(), image.manifest.clone());
    server.manifests.lock().unwrap().insert(other.to_string(), entry);
    let reference = format!("{}/team/app@{other}", server.address);
    let error = place.store.pull(&reference, None, None).await.unwrap_err();
    assert!(matches!(&error, ImageError::DigestMismatch { expected, .. } if *expected == other), "{}", error.message());
    // A configuration of another content.
    let name = Digest::of(&image.config).to_string();
    server.blobs.lock().unwrap().insert(name, vec![b' '; image.config.len()]);
    let error = place.store.pull(&server.reference("1"), None, None).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{}", error.message());
}

#[tokio::test]
async fn two_pulls_of_one_image_are_one() {
    let (server, place, image) = (Server::start(|_| {}).await, Place::new().await, large());
    server.add(&image, "1");
    server.add_manifest("2", OCI_MANIFEST, &image.manifest);
    let pulls = (0..8).map(|number| {
        let reference = server.reference(if number % 2 == 0 { "1" } else { "2" });
        let store = place.store.clone();
        async move { store.pull(&reference, None, None).await }
    });
    for result in futures_util::future::join_all(pulls).await {
        assert_eq!(result.unwrap().image.id, image.id());
    }
    assert_eq!(server.requests("GET manifests/").len(), 2, "one for each tag");
    let layer = Digest::of(&image.layers[0]).to_string();
    assert_eq!(server.requests(&layer).len(), 1);
    assert_eq!(place.store.get(&server.reference("2")).unwrap().repo_tags.len(), 2);
}

#[tokio::test]
async fn a_pull_whose_future_is_dropped_ends_and_cleans_up() {
    let (server, place, image) = (Server::start(|_| {}).await, Place::new().await, large());
    server.add(&image, "1");
    server.fault(&[Fault::None, Fault::Stall(100_000)]);
    let reference = server.reference("1");
    let mut pull = Box::pin(place.store.pull(&reference, None, None));
    let layers = place.store.inner.root.join("layers");
    // Polled until the unpacking has begun.
    while std::fs::read_dir(&layers).unwrap().count() == 0 {
        assert!((&mut pull).now_or_never().is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(pull);
    while std::fs::read_dir(&layers).unwrap().count() != 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.faults.lock().unwrap().clear();
    place.store.pull(&reference, None, None).await.unwrap();
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_host_itself_last() {
    let image = TestImage::simple("one");
    let (broken, mirror) = (Server::start(|_| {}).await, Server::start(|_| {}).await);
    let origin = Server::start(|server| server.auth = Auth::Basic).await;
    mirror.add(&image, "1");
    origin.add(&image, "2");
    let mut config = settings();
    let mirrors = [&broken, &mirror].map(|server| Mirror { url: format!("http://{}", server.address) }).to_vec();
    config.registries.insert(origin.address.clone(), RegistryConfig { mirrors, ..RegistryConfig::default() });
    let place = Place::with(config).await;
    place.store.pull(&origin.reference("1"), me(), None).await.unwrap();
    assert!(origin.requests("").is_empty());
    assert_eq!(broken.requests("").len(), 1, "what has failed is not asked first again");
    let sent: Vec<String> = mirror.log.lock().unwrap().iter().map(|(_, value)| value.clone()).collect();
    assert!(sent.iter().all(String::is_empty), "the host's credentials do not go to mirrors");
    assert!(place.store.get(&origin.reference("1")).is_some(), "known by the name it was asked for");
    place.store.pull(&origin.reference("2"), me(), None).await.unwrap();
    assert!(!origin.requests("").is_empty());
}

#[tokio::test]
async fn references_and_media_types_that_cannot_be_used() {
    let (server, place) = (Server::start(|_| {}).await, Place::new().await);
    let error = place.store.pull("Not/A Reference", None, None).await.unwrap_err();
    assert_eq!(error.reason(), Reason::InvalidImageName);
    let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
    server.add_manifest("old", "application/vnd.docker.distribution.manifest.v1+prettyjws", old);
    let error = place.store.pull(&server.reference("old"), None, None).await.unwrap_err();
    assert!(matches!(error, ImageError::UnsupportedMediaType { .. }), "{}", error.message());
}
