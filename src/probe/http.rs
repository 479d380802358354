//! httpGet: one request, redirects on the same host followed, the answer's status and the start of its body.

use std::{io, net::IpAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode, Uri, Version,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    header::{CONNECTION, HOST, HeaderMap, HeaderValue, LOCATION},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{ContainerPort, HTTPGetAction};
use reqwest::Url;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{FetchError, HandlerError, OUTPUT, dial, port, request, tls};

/// Redirects that are followed (Go's client, which upstream uses).
const REDIRECTS: usize = 10;

/// Who asks, which the server is told in `User-Agent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `kube-probe/1.36`.
    Probe,
    /// `kube-lifecycle/1.36`.
    Lifecycle,
}

impl Purpose {
    fn agent(self) -> &'static str {
        match self {
            Purpose::Probe => "kube-probe/1.36",
            Purpose::Lifecycle => "kube-lifecycle/1.36",
        }
    }
}

/// An httpGet action, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// HTTPS, whoever answers.
    pub tls: bool,
    /// An address, or a name that the node can look up.
    pub host: String,
    /// Port.
    pub port: u16,
    target: String,
    headers: HeaderMap,
}

impl HttpGet {
    /// Of an action: `ports` are the container's, `pod_ip` the host where none is given.
    ///
    /// # Errors
    /// [`HandlerError::UnknownPort`], [`HandlerError::InvalidPort`], [`HandlerError::Header`].
    pub fn resolve(
        action: &HTTPGetAction,
        ports: &[ContainerPort],
        pod_ip: IpAddr,
        purpose: Purpose,
    ) -> Result<HttpGet, HandlerError> {
        let host = action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| pod_ip.to_string());
        Ok(HttpGet {
            tls: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host,
            port: port::resolve(&action.port, ports)?,
            target: request::target(action.path.as_deref().unwrap_or_default()),
            headers: request::headers(action.http_headers.as_deref().unwrap_or_default(), purpose.agent())?,
        })
    }

    /// `http://10.85.0.2:80/healthz`.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", dial::join(&self.host, self.port), self.target)
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status code. From 300 to 399: a redirect that was not followed, as it leads to another host or nowhere.
    pub status: u16,
    /// Start of the body, at most [`OUTPUT`] bytes, invalid UTF-8 replaced.
    pub body: String,
}

impl Reply {
    /// Whether upstream takes it for a success: 200 to 399.
    pub fn is_success(&self) -> bool {
        (200..400).contains(&self.status)
    }

    /// A success that deserves a warning: a redirect that was not followed.
    pub fn is_redirect(&self) -> bool {
        (300..400).contains(&self.status)
    }
}

/// Sends the request and follows redirects that stay on the host; `timeout` is for all of it.
///
/// # Errors
/// [`HandlerError::Get`] without an answer, [`HandlerError::Body`] when it breaks off. Any status is Ok.
pub async fn http_get(get: &HttpGet, timeout: Duration) -> Result<Reply, HandlerError> {
    let until = Instant::now() + timeout;
    let mut hop = Hop::first(get);
    for followed in 0.. {
        let url = hop.url.clone();
        let failed = |source: FetchError| HandlerError::Get { url: url.clone(), source };
        let (response, _connection) = hop.fetch(until).await.map_err(failed)?;
        let Some(next) = hop.redirect(&response).map_err(failed)? else {
            return read(response, &url, until).await;
        };
        if followed + 1 >= REDIRECTS {
            return Err(failed(FetchError::Redirects));
        }
        hop = next;
    }
    unreachable!("the loop has no other end")
}

/// One request of a chain.
struct Hop {
    url: String,
    tls: bool,
    host: String,
    port: u16,
    target: String,
    headers: HeaderMap,
}

/// Drives a connection for as long as somebody reads from it.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Hop {
    fn first(get: &HttpGet) -> Hop {
        let HttpGet { tls, host, port, target, headers } = get.clone();
        Hop { url: get.url(), tls, host, port, target, headers }
    }

    async fn fetch(&self, until: Instant) -> Result<(Response<Incoming>, Driver), FetchError> {
        let connection = match dial::connect(&self.host, self.port, until).await {
            // One clock for all: upstream's client speaks of itself, not of the connection.
            Err(dial::DialError::Timeout { .. }) => return Err(FetchError::Timeout),
            connected => connected?,
        };
        if !self.tls {
            return self.ask(connection, false, until).await;
        }
        let stream = tls::connect(&self.host, connection, until).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
        self.ask(stream, http2, until).await
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        http2: bool,
        until: Instant,
    ) -> Result<(Response<Incoming>, Driver), FetchError> {
        let answered = timeout_at(until, async {
            let io = TokioIo::new(stream);
            if http2 {
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                let driver = Driver(tokio::spawn(async move { drop(connection.await) }));
                Ok((sender.send_request(self.request(Version::HTTP_2)).await?, driver))
            } else {
                let (mut sender, connection) = http1::Builder::new().title_case_headers(true).handshake(io).await?;
                let driver = Driver(tokio::spawn(async move { drop(connection.await) }));
                Ok((sender.send_request(self.request(Version::HTTP_11)).await?, driver))
            }
        });
        match answered.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(fetch_error(error)),
            Err(_) => Err(FetchError::Timeout),
        }
    }

    fn request(&self, version: Version) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        let authority = dial::join(&self.host, self.port);
        let host = self.headers.get(HOST).cloned().or_else(|| HeaderValue::from_str(&authority).ok());
        if version == Version::HTTP_2 {
            // There it is a part of the address.
            headers.remove(HOST);
            let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(&authority);
            *request.uri_mut() = format!("https://{authority}{}", self.target).parse().unwrap_or_default();
        } else {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            if let Some(host) = host {
                headers.insert(HOST, host);
            }
            *request.uri_mut() = self.target.parse::<Uri>().unwrap_or_default();
        }
        *request.version_mut() = version;
        request
    }

    /// The next request, if the answer asks for one that is allowed.
    fn redirect(&self, response: &Response<Incoming>) -> Result<Option<Hop>, FetchError> {
        let followed = [
            StatusCode::MOVED_PERMANENTLY,
            StatusCode::FOUND,
            StatusCode::SEE_OTHER,
            StatusCode::TEMPORARY_REDIRECT,
            StatusCode::PERMANENT_REDIRECT,
        ];
        let location = response.headers().get(LOCATION).filter(|_| followed.contains(&response.status()));
        // Without one there is nowhere to go; the answer is taken as it is.
        let Some(location) = location.filter(|location| !location.is_empty()) else { return Ok(None) };
        let wrong = || FetchError::Location(String::from_utf8_lossy(location.as_bytes()).into_owned());
        let location = location.to_str().map_err(|_| wrong())?;
        let base = Url::parse(&self.url).map_err(|_| wrong())?;
        let next = base.join(location).map_err(|_| wrong())?;
        let tls = match next.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong()),
        };
        if next.host_str() != base.host_str() {
            return Ok(None);
        }
        let mut headers = self.headers.clone();
        if Url::parse(location).is_ok() {
            // A whole address names its own host.
            headers.remove(HOST);
        }
        let target = match next.query() {
            Some(query) => format!("{}?{query}", next.path()),
            None => next.path().to_owned(),
        };
        Ok(Some(Hop {
            url: next.to_string(),
            tls,
            host: self.host.clone(),
            port: next.port_or_known_default().unwrap_or(80),
            target,
            headers,
        }))
    }
}

fn fetch_error(error: hyper::Error) -> FetchError {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return FetchError::Closed;
    }
    FetchError::Http(error)
}

/// The start of the body; a longer one is cut off.
async fn read(response: Response<Incoming>, url: &str, until: Instant) -> Result<Reply, HandlerError> {
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let failed = |source: io::Error| HandlerError::Body { url: url.to_owned(), source };
    while bytes.len() < OUTPUT {
        let frame = match timeout_at(until, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(failed(io::Error::other(error))),
            Ok(None) => break,
            Err(_) => {
                let text = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
        };
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(OUTPUT - bytes.len())]);
        }
    }
    Ok(Reply { status, body: String::from_utf8_lossy(&bytes).into_owned() })
}
