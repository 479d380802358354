//! One place that is asked: request, authentication, redirects, retries.

use std::{sync::Arc, time::Duration};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use tokio::{sync::Mutex, time::timeout};

use super::auth::{self, Authorization};
use crate::image::{
    config::{Credentials, RetryPolicy},
    error::RegistryError,
};

/// Registries redirect once, to their storage.
const REDIRECT_LIMIT: usize = 10;
/// What is read of an error's body.
const MESSAGE_LIMIT: u64 = 16 << 10;

/// A repository at one host.
pub(super) struct Endpoint {
    /// As shown in errors.
    pub host: String,
    /// For a mirror, the host whose images it has (the `ns` parameter containerd introduced).
    pub namespace: Option<String>,
    base: Url,
    repository: String,
    credentials: Option<Credentials>,
    client: Arc<reqwest::Client>,
    patience: Duration,
    authorization: Mutex<Authorization>,
}

/// A request for something in the repository.
pub(super) struct Request<'a> {
    pub method: Method,
    /// `manifests` or `blobs`.
    pub kind: &'a str,
    /// Tag or digest.
    pub version: &'a str,
    pub accept: Option<&'a str>,
    /// First byte wanted.
    pub offset: u64,
}

impl Endpoint {
    pub(super) fn new(
        base: Url,
        host: &str,
        repository: &str,
        credentials: Option<Credentials>,
        client: Arc<reqwest::Client>,
        patience: Duration,
    ) -> Endpoint {
        let authorization = Mutex::new(Authorization::initial(credentials.as_ref()));
        Endpoint {
            host: host.to_owned(),
            namespace: None,
            base,
            repository: repository.to_owned(),
            credentials,
            client,
            patience,
            authorization,
        }
    }

    /// Longest wait for the next byte.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Gets a small answer, again after transient failures (also in the middle of the answer).
    pub(super) async fn fetch(
        &self,
        request: &Request<'_>,
        limit: u64,
        retry: RetryPolicy,
    ) -> Result<(HeaderMap, Vec<u8>), RegistryError> {
        let mut attempt = 1;
        loop {
            let error = match self.fetch_once(request, limit).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if attempt >= retry.attempts || !wait_before_retry(&error, attempt, retry).await {
                return Err(error);
            }
            attempt += 1;
        }
    }

    async fn fetch_once(&self, request: &Request<'_>, limit: u64) -> Result<(HeaderMap, Vec<u8>), RegistryError> {
        let mut response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(RegistryError::Status { status: response.status().as_u16(), message: String::new() });
        }
        let bytes = self.body(&mut response, limit).await?;
        Ok((std::mem::take(response.headers_mut()), bytes))
    }

    /// Sends a request once (twice when it must first prove who is asking). Any status but 2xx is an error.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, RegistryError> {
        let mut known = self.authorization.lock().await.clone();
        let mut proved = false;
        loop {
            let (response, stayed) = self.follow(request, known.header()).await?;
            if response.status() == StatusCode::UNAUTHORIZED && stayed && !proved {
                proved = true;
                known = self.prove(&known, response.headers()).await?;
                continue;
            }
            return self.classify(response).await;
        }
    }

    /// Gets a new authorization for the challenge, unless another request has done so meanwhile.
    async fn prove(&self, known: &Authorization, headers: &HeaderMap) -> Result<Authorization, RegistryError> {
        let mut current = self.authorization.lock().await;
        if current.generation() != known.generation() {
            return Ok(current.clone());
        }
        let challenges = auth::challenges(headers);
        let scope = format!("repository:{}:pull", self.repository);
        let answer = timeout(
            self.patience,
            auth::answer(&self.client, &challenges, self.credentials.as_ref(), &scope, self.base.scheme() == "http"),
        );
        let value = answer.await.map_err(|_| RegistryError::Stalled(self.patience))??;
        current.renew(value);
        Ok(current.clone())
    }

    /// Sends a request and follows redirects; also tells whether the answer is from the endpoint itself.
    async fn follow(
        &self,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, bool), RegistryError> {
        let mut url = self.url(request)?;
        let origin = self.base.origin();
        for _ in 0..REDIRECT_LIMIT {
            let stays = url.origin() == origin;
            let mut builder = self.client.request(request.method.clone(), url.clone());
            if let Some(accept) = request.accept {
                builder = builder.header(header::ACCEPT, accept);
            }
            if request.offset > 0 {
                builder = builder.header(header::RANGE, format!("bytes={}-", request.offset));
            }
            // Only ever to the endpoint itself: storage has its own proof in the URL, and must not learn ours.
            if let Some(value) = authorization.filter(|_| stays) {
                builder = builder.header(header::AUTHORIZATION, value);
            }
            let response = timeout(self.patience, builder.send())
                .await
                .map_err(|_| RegistryError::Stalled(self.patience))?
                .map_err(|error| RegistryError::Unreachable(cause(error)))?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok((response, stays));
            }
            let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| url.join(target).ok());
            let next = next.ok_or_else(|| RegistryError::Protocol("redirect without a usable address".into()))?;
            let encrypted = |url: &Url| url.scheme() == "https";
            if encrypted(&url) && !encrypted(&next) || !matches!(next.scheme(), "http" | "https") {
                let host = next.host_str().unwrap_or_default();
                return Err(RegistryError::Protocol(format!("redirect to {}://{host} refused", next.scheme())));
            }
            url = next;
        }
        Err(RegistryError::Protocol(format!("more than {REDIRECT_LIMIT} redirects")))
    }

    fn url(&self, request: &Request<'_>) -> Result<Url, RegistryError> {
        let base = self.base.as_str().trim_end_matches('/');
        let Request { kind, version, .. } = request;
        let mut url = Url::parse(&format!("{base}/v2/{}/{kind}/{version}", self.repository))
            .map_err(|error| RegistryError::Protocol(error.to_string()))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    async fn classify(&self, mut response: Response) -> Result<Response, RegistryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let body = self.body(&mut response, MESSAGE_LIMIT).await.unwrap_or_default();
        let message = error_message(&body, status);
        Err(match status {
            StatusCode::UNAUTHORIZED if self.credentials.is_none() => {
                RegistryError::Unauthorized(format!("{message} (the repository does not exist or needs credentials)"))
            }
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized(message),
            StatusCode::FORBIDDEN => RegistryError::Denied(message),
            StatusCode::NOT_FOUND => RegistryError::NotFound(message),
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { message, retry_after },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                RegistryError::Protocol("the registry has fewer bytes than announced".into())
            }
            status if status.is_server_error() => RegistryError::Server { status: status.as_u16(), message },
            status => RegistryError::Status { status: status.as_u16(), message },
        })
    }

    /// Reads a body of at most `limit` bytes.
    async fn body(&self, response: &mut Response, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        loop {
            let chunk = timeout(self.patience, response.chunk())
                .await
                .map_err(|_| RegistryError::Stalled(self.patience))?
                .map_err(|error| RegistryError::Unreachable(cause(error)))?;
            let Some(chunk) = chunk else { return Ok(bytes) };
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(RegistryError::Protocol(format!("more than {limit} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
    }
}

/// Waits before attempt `attempt + 1`. `false`: it is no use.
pub(super) async fn wait_before_retry(error: &RegistryError, attempt: u32, retry: RetryPolicy) -> bool {
    if !error.is_transient() {
        return false;
    }
    let mut delay = retry.delay(attempt);
    if let RegistryError::RateLimited { retry_after: Some(wanted), .. } = error {
        if *wanted > retry.max {
            return false;
        }
        delay = delay.max(*wanted);
    }
    // Up to a quarter more, so that nodes that failed together do not return together.
    let jitter =
        delay.mul_f64(f64::from(u8::from_str_radix(&crate::image::random_name()[..2], 16).unwrap_or(0)) / 1024.0);
    tracing::debug!(%error, attempt, delay = ?delay + jitter, "registry request failed, trying again");
    tokio::time::sleep(delay + jitter).await;
    true
}

/// The error and its causes, without the URL: redirected ones contain signatures.
pub(super) fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// `{"errors":[{"code","message"}]}`, else the first line of the body, else the status.
fn error_message(body: &[u8], status: StatusCode) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) if !errors.is_empty() => {
            let each = errors.iter().map(|error| match (error.code.is_empty(), error.message.is_empty()) {
                (_, true) => error.code.clone(),
                (true, false) => error.message.clone(),
                (false, false) => format!("{}: {}", error.code, error.message),
            });
            each.collect::<Vec<_>>().join("; ")
        }
        _ => String::from_utf8_lossy(body).lines().next().unwrap_or_default().trim().to_owned(),
    };
    let clean: String = text.chars().filter(|character| !character.is_control()).take(300).collect();
    if clean.is_empty() { status.to_string() } else { clean }
}
