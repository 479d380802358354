//! A manifest behind a URL (`staticPodURL`), fetched again and again.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::{
    Client, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::{self, MissedTickBehavior};
use tracing::{debug, info, warn};

use super::{Publisher, Updates, content::Content};
use crate::{
    api::{manifest::MAX_BYTES, static_pod::Origin},
    pod::desired::{SourceId, SourceUpdate},
};

/// For one answer, from the first byte sent to the last received; upstream's.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Failures in a row that are logged; after that it is known.
const LOGGED_FAILURES: u32 = 3;

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSourceConfig {
    /// `staticPodURL`.
    pub url: String,
    /// `staticPodURLHeader`.
    pub headers: Vec<(String, String)>,
    /// Name of this node.
    pub node_name: String,
    /// How often (`httpCheckFrequency`, 20 s upstream).
    pub period: Duration,
}

/// Why an HTTP source could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HttpSourceError {
    /// A header is none.
    #[error("header {name:?} of the manifest URL is not valid")]
    Header {
        /// As configured.
        name: String,
    },
    /// No client.
    #[error("make an HTTP client for {url}")]
    Client {
        /// The manifest URL.
        url: String,
        /// Cause.
        #[source]
        source: reqwest::Error,
    },
}

/// Why a fetch failed. The messages are for people, in `berth pods`.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("cannot be fetched: {}", chain(.0))]
    Request(#[source] reqwest::Error),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("the answer is longer than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("the answer is empty")]
    Empty,
}

/// The whole chain of causes in one line: the outermost error of a client says little.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Starts fetching, in a task that ends when nobody listens any more.
pub fn start(config: HttpSourceConfig) -> Result<Updates, HttpSourceError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let invalid = || HttpSourceError::Header { name: name.clone() };
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        headers.append(key, HeaderValue::from_str(value).map_err(|_| invalid())?);
    }
    let client = Client::builder()
        .default_headers(headers)
        .timeout(TIMEOUT)
        .build()
        .map_err(|source| HttpSourceError::Client { url: config.url.clone(), source })?;
    let (publisher, updates) = Publisher::new();
    tokio::spawn(run(config, client, publisher));
    Ok(updates)
}

async fn run(config: HttpSourceConfig, client: Client, publisher: Publisher) {
    let mut fetched = Fetched::default();
    let mut failures = 0;
    let mut ticks = time::interval(config.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel-safe: neither a tick nor the end of listening is lost.
        tokio::select! {
            biased;
            () = publisher.0.closed() => return,
            _ = ticks.tick() => {}
        }
        let answer = fetch(&client, &config.url).await;
        match &answer {
            Ok(_) if failures > 0 => info!(url = config.url, "manifest fetched again"),
            Err(error) if failures < LOGGED_FAILURES => warn!(url = config.url, %error, "manifest not fetched"),
            Err(error) => debug!(url = config.url, %error, "manifest not fetched"),
            Ok(_) => {}
        }
        failures = if answer.is_err() { failures + 1 } else { 0 };
        fetched.take(answer, &config, Timestamp::now());
        publisher.publish(fetched.update(&config.url));
    }
}

async fn fetch(client: &Client, url: &str) -> Result<Vec<u8>, FetchError> {
    let mut response = client.get(url).send().await.map_err(FetchError::Request)?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(FetchError::Request)? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    if body.is_empty() { Err(FetchError::Empty) } else { Ok(body) }
}

/// The manifest as it was last fetched.
#[derive(Default)]
struct Fetched {
    body: Option<Vec<u8>>,
    good: Content,
    /// Why the last fetch failed.
    failure: Option<String>,
}

impl Fetched {
    fn take(&mut self, answer: Result<Vec<u8>, FetchError>, config: &HttpSourceConfig, now: Timestamp) {
        self.failure = answer.as_ref().err().map(ToString::to_string);
        let Ok(body) = answer else { return };
        if self.body.as_ref() != Some(&body) {
            self.good = self.good.updated(&body, Origin::Url(&config.url), &config.node_name, now);
            self.body = Some(body);
        }
    }

    fn update(&self, url: &str) -> SourceUpdate {
        let mut update = SourceUpdate::empty(SourceId::Http);
        let content = match &self.failure {
            Some(failure) => self.good.unreadable(Origin::Url(url), failure.clone()),
            None => self.good.clone(),
        };
        if content.unusable {
            update.unusable.insert(url.to_owned());
        }
        // Whatever was wanted before this process began is not known until the first answer.
        update.incomplete = self.body.is_none();
        update.pods = content.pods;
        update.objects = content.objects;
        update.problems = content.problems;
        update
    }
}

#[cfg(test)]
mod tests;
