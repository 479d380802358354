//! The runners against servers on the loopback interface.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use k8s_openapi::api::core::v1::{HTTPGetAction, HTTPHeader, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;
use crate::obs::chain::Chain;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(200);

/// A server that hands each connection to `serve`, at most eight of them.
fn server(mut serve: impl FnMut(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().take(8).flatten().for_each(&mut serve));
    port
}

/// Reads a request's head.
fn head(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// A server that answers each path as `answer` says, and tells the heads of the requests.
fn http(answer: impl Fn(&str) -> String + Send + 'static) -> (u16, mpsc::Receiver<String>) {
    let (sender, heads) = mpsc::channel();
    let port = server(move |mut stream| {
        let head = head(&mut stream);
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let _ = sender.send(head);
        let _ = stream.write_all(answer(&path).as_bytes());
    });
    (port, heads)
}

fn action(port: u16, path: &str) -> HTTPGetAction {
    HTTPGetAction { path: Some(path.to_owned()), port: IntOrString::Int(port.into()), ..HTTPGetAction::default() }
}

fn resolve(action: &HTTPGetAction) -> HttpGet {
    HttpGet::resolve(action, &[], HERE, Purpose::Probe).unwrap()
}

async fn get(action: &HTTPGetAction, timeout: Duration) -> Result<Reply, HandlerError> {
    http_get(&resolve(action), timeout).await
}

fn text(error: &HandlerError) -> String {
    Chain(error).to_string()
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_request_says_who_asks_and_closes() {
    let (port, heads) = http(|_| answer("200 OK", "fine"));
    let headers = vec![HTTPHeader { name: "X-Own".to_owned(), value: "1".to_owned() }];
    let action = HTTPGetAction { http_headers: Some(headers), ..action(port, "/healthz?full") };
    let reply = get(&action, SOON).await.unwrap();
    assert_eq!((reply.status, reply.body.as_str(), reply.is_success()), (200, "fine", true));
    let head = heads.recv().unwrap();
    assert!(head.starts_with("GET /healthz?full HTTP/1.1\r\n"), "{head}");
    for line in ["User-Agent: kube-probe/1.36", "Accept: */*", "X-Own: 1", "Connection: close"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    assert!(head.contains(&format!("\r\nHost: 127.0.0.1:{port}\r\n")), "{head}");
    assert!(!head.contains("Accept-Encoding"), "{head}");
}

#[tokio::test]
async fn a_handler_may_name_another_host_than_the_pod() {
    let (port, _heads) = http(|_| answer("200 OK", "here"));
    let pod = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let host = Some(HERE.to_string());
    let elsewhere = HTTPGetAction { host: host.clone(), ..action(port, "/") };
    let resolved = HttpGet::resolve(&elsewhere, &[], pod, Purpose::Probe).unwrap();
    assert_eq!(http_get(&resolved, SOON).await.unwrap().body, "here");
    let socket = TCPSocketAction { host, port: IntOrString::Int(port.into()) };
    tcp_connect(&Place::resolve(&socket, &[], pod).unwrap(), SOON).await.unwrap();
    let own = TCPSocketAction { host: None, ..socket };
    assert_eq!(Place::resolve(&own, &[], pod).unwrap(), Place { host: pod.to_string(), port });
}

#[tokio::test]
async fn statuses_from_200_to_399_succeed() {
    for (status, success) in [
        ("200 OK", true),
        ("204 No Content", true),
        ("304 Not Modified", true),
        ("404 Not Found", false),
        ("500 X", false),
    ] {
        let (port, _heads) = http(move |_| answer(status, ""));
        assert_eq!(get(&action(port, "/"), SOON).await.unwrap().is_success(), success, "{status}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_host_with_the_handlers_headers() {
    let (port, heads) = http(|path| match path {
        "/" => "HTTP/1.1 302 Found\r\nLocation: /other?x=1\r\nContent-Length: 0\r\n\r\n".to_owned(),
        _ => answer("200 OK", "there"),
    });
    let headers = vec![HTTPHeader { name: "Host".to_owned(), value: "web.example".to_owned() }];
    let action = HTTPGetAction { http_headers: Some(headers), ..action(port, "/") };
    assert_eq!(get(&action, SOON).await.unwrap().body, "there");
    let heads: Vec<String> = heads.try_iter().collect();
    assert!(heads[1].starts_with("GET /other?x=1 "), "{heads:?}");
    assert!(heads.iter().all(|head| head.contains("\r\nHost: web.example\r\n")), "{heads:?}");
}

#[tokio::test]
async fn a_redirect_to_another_host_ends_there() {
    let (port, heads) =
        http(|_| "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/x\r\nContent-Length: 4\r\n\r\nover".to_owned());
    let reply = get(&action(port, "/"), SOON).await.unwrap();
    assert!(reply.is_success() && reply.is_redirect() && reply.body == "over", "{reply:?}");
    assert_eq!(heads.try_iter().count(), 1);
}

#[tokio::test]
async fn a_circle_of_redirects_ends_after_ten() {
    let (sender, count) = mpsc::channel();
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().take(20).flatten() {
            let _ = sender.send(head(&mut stream));
            let _ = stream.write_all(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let error = get(&action(port, "/"), SOON).await.unwrap_err();
    assert_eq!(text(&error), format!("Get \"http://127.0.0.1:{port}/\": stopped after 10 redirects"));
    assert_eq!(count.try_iter().count(), 10);
}

#[tokio::test]
async fn a_long_body_is_cut_off() {
    let (port, _heads) = http(|_| answer("200 OK", &"x".repeat(1 << 20)));
    assert_eq!(get(&action(port, "/"), SOON).await.unwrap().body.len(), OUTPUT);
}

#[tokio::test]
async fn failures_are_in_upstreams_words() {
    let silent = server(|mut stream| {
        head(&mut stream);
        let _ = stream.read(&mut [0]);
    });
    let closing = server(|mut stream| drop(head(&mut stream)));
    let free = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
    for (port, said) in [
        (silent, "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()),
        (closing, "EOF".to_owned()),
        (free, format!("dial tcp 127.0.0.1:{free}: connect: connection refused")),
    ] {
        let error = get(&action(port, "/x"), if port == silent { SHORT } else { SOON }).await.unwrap_err();
        assert_eq!(text(&error), format!("Get \"http://127.0.0.1:{port}/x\": {said}"));
        assert!(error.is_verdict());
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_or_hangs_says_nothing_about_the_container() {
    let short = http(|_| "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_owned()).0;
    let hanging = server(|mut stream| {
        head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort");
        let _ = stream.read(&mut [0]);
    });
    for port in [short, hanging] {
        let error = get(&action(port, "/"), SHORT).await.unwrap_err();
        assert!(matches!(error, HandlerError::Body { .. }) && !error.is_verdict(), "{error:?}");
    }
}

/// A certificate that nobody signed.
fn self_signed(protocols: &[&[u8]]) -> std::sync::Arc<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed(vec!["nobody.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    std::sync::Arc::new(config)
}

#[tokio::test]
async fn https_is_asked_whoever_answers() {
    for protocols in [&[][..], &[b"http/1.1".as_slice()]] {
        let config = self_signed(protocols);
        let port = server(move |stream| {
            let mut session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = stream;
            let mut stream = rustls::Stream::new(&mut session, &mut stream);
            let mut bytes = [0; 1024];
            let _ = stream.read(&mut bytes);
            let _ = stream.write_all(answer("200 OK", "safe").as_bytes());
        });
        let action = HTTPGetAction { scheme: Some("HTTPS".to_owned()), ..action(port, "/") };
        assert_eq!(get(&action, SOON).await.unwrap().body, "safe");
    }
}

#[tokio::test]
async fn https_speaks_http2_where_the_server_does() {
    let acceptor = tokio_rustls::TlsAcceptor::from(self_signed(&[b"h2"]));
    let listener = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = hyper_util::rt::TokioIo::new(acceptor.accept(stream).await.unwrap());
        let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
            let said = format!("{:?} {}", request.version(), request.uri());
            Ok::<_, std::io::Error>(hyper::Response::new(http_body_util::Full::new(hyper::body::Bytes::from(said))))
        });
        let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let _ = builder.serve_connection(stream, service).await;
    });
    let action = HTTPGetAction { scheme: Some("HTTPS".to_owned()), ..action(port, "/x?y") };
    assert_eq!(get(&action, SOON).await.unwrap().body, format!("HTTP/2.0 https://127.0.0.1:{port}/x?y"));
}

#[tokio::test]
async fn https_to_a_plain_server_is_told_apart() {
    let silent = server(|mut stream| drop(stream.read(&mut [0; 2048])));
    let https = |port| HTTPGetAction { scheme: Some("HTTPS".to_owned()), ..action(port, "/") };
    let speaking = server(|mut stream| {
        let _ = stream.read(&mut [0; 2048]);
        let _ = stream.write_all(answer("400 Bad Request", "").as_bytes());
    });
    let error = get(&https(speaking), SOON).await.unwrap_err();
    assert!(matches!(error, HandlerError::Get { source: FetchError::NotTls, .. }), "{error:?}");
    let error = get(&https(silent), SOON).await.unwrap_err();
    assert!(matches!(error, HandlerError::Get { source: FetchError::Tls(_), .. }), "{error:?}");
}

#[tokio::test]
async fn a_probed_listener_sees_an_orderly_end_and_nothing_is_left_on_the_node() {
    let (sender, ends) = mpsc::channel();
    let (looked, wait) = mpsc::channel::<()>();
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        sender.send((stream.read(&mut [0]), from.port())).unwrap();
        // The side that ends first is the one that would have to wait.
        let _ = wait.recv_timeout(SOON);
    });
    let socket = TCPSocketAction { host: None, port: IntOrString::Int(port.into()) };
    let place = Place::resolve(&socket, &[], HERE).unwrap();
    tcp_connect(&place, SOON).await.unwrap();
    let (end, own_port) = ends.recv().unwrap();
    assert_eq!(end.unwrap(), 0, "the end of the stream");
    // What the listener's side keeps is its own.
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let connection = format!(" 0100007F:{own_port:04X} 0100007F:{port:04X} ");
    let left: Vec<&str> = table.lines().filter(|line| line.contains(&connection)).collect();
    assert!(left.is_empty(), "{left:?}");
    drop(looked);
}

#[tokio::test]
async fn a_tcp_handler_that_is_refused_says_by_whom() {
    let free = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
    let place = Place { host: HERE.to_string(), port: free };
    let error = tcp_connect(&place, SOON).await.unwrap_err();
    assert_eq!(text(&error), format!("dial tcp 127.0.0.1:{free}: connect: connection refused"));
    let place = Place { host: "nowhere.invalid".to_owned(), port: 1 };
    let error = tcp_connect(&place, SOON).await.unwrap_err();
    assert!(matches!(error, HandlerError::Dial(_)), "{error:?}");
}

/// A gRPC server whose health service answers with these frames (none: it never answers) and this status.
async fn grpc_server(answer: Option<(&'static [u8], &'static str)>) -> u16 {
    use hyper::{Response, body::Bytes, header::HeaderValue};
    let listener = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| async move {
                    use http_body_util::BodyExt;
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert!(request.headers()["user-agent"].to_str().unwrap().starts_with("kube-probe/1.36"));
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    // Not compressed, four bytes of length, field 1 as a string.
                    assert_eq!(&asked[..], b"\0\0\0\0\x05\x0a\x03web");
                    let Some((frames, status)) = answer else { return std::future::pending().await };
                    let trailers = async move {
                        let mut trailers = hyper::HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static(status));
                        trailers.insert("grpc-message", HeaderValue::from_static("because"));
                        Some(Ok(trailers))
                    };
                    let body = http_body_util::Full::new(Bytes::from_static(frames)).with_trailers(trailers);
                    let mut response = Response::new(body);
                    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                    Ok::<_, std::convert::Infallible>(response)
                });
            let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    port
}

#[tokio::test]
async fn a_grpc_service_is_healthy_when_it_says_that_it_serves() {
    let healthy = grpc_server(Some((b"\0\0\0\0\x02\x08\x01", "0"))).await;
    grpc_check(HERE, healthy, "web", SOON).await.unwrap();
    for (answer, said) in [
        (
            Some((b"\0\0\0\0\x02\x08\x02".as_slice(), "0")),
            "service unhealthy (responded with \"NOT_SERVING\")".to_owned(),
        ),
        (Some((b"\0\0\0\0\0", "0")), "service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        (
            Some((b"", "12")),
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): because"
                .to_owned(),
        ),
        (Some((b"", "5")), "error: health rpc probe failed: rpc error: code = NotFound desc = because".to_owned()),
        (None, "timeout: health rpc did not complete within 200ms".to_owned()),
    ] {
        let timeout = if answer.is_none() { SHORT } else { SOON };
        let error = grpc_check(HERE, grpc_server(answer).await, "web", timeout).await.unwrap_err();
        assert_eq!(text(&error), said);
        assert!(error.is_verdict());
    }
}

#[tokio::test]
async fn a_grpc_server_that_is_not_there_is_said_to_be_so() {
    let free = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
    let error = text(&grpc_check(HERE, free, "", SOON).await.unwrap_err());
    assert!(error.starts_with(&format!("error: failed to connect service at \"127.0.0.1:{free}\"")), "{error}");
    assert!(error.ends_with("connection refused"), "{error}");
    // It takes the connection and says nothing.
    let silent = server(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let error = text(&grpc_check(HERE, silent, "", SHORT).await.unwrap_err());
    assert_eq!(error, "timeout: health rpc did not complete within 200ms");
}
