//! Watches over HTTP: one event per line, as they come. Nothing is kept for a client that reads slowly: the next events are
//! fetched when there is room for them.

use std::{convert::Infallible, time::Duration};

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Response,
    body::{Bytes, Frame},
};
use jiff::Timestamp;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    form::{Form, JSON},
    response::{Body, full, with_type},
};
use crate::control::{
    error::ApiError,
    registry::{
        metadata::new_uid,
        resource::Resource,
        watch::{Event, Watching},
    },
};

/// How often a client is told how far a watch is, as upstream.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long a watch lasts at least that says nothing of it, as upstream; at most twice that.
const SHORTEST: Duration = Duration::from_secs(1800);

/// A watch under way, and when it is over.
struct Streaming {
    watching: Watching,
    resource: &'static Resource,
    form: Form,
    end: Instant,
    bookmarks: Interval,
    stopping: Receiver<bool>,
    first: bool,
    over: bool,
}

/// The answer to a watch.
pub fn watch(
    watching: Watching,
    resource: &'static Resource,
    form: Form,
    timeout: Option<Duration>,
    stopping: Receiver<bool>,
) -> Response<Body> {
    let now = Instant::now();
    let mut bookmarks = interval_at(now + BOOKMARKS, BOOKMARKS);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = now + timeout.unwrap_or_else(lasting);
    let state = Streaming { watching, resource, form, end, bookmarks, stopping, first: true, over: false };
    let lines = stream::unfold(state, |mut state| async move {
        let bytes = state.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), state))
    });
    with_type(200, JSON, StreamBody::new(lines).boxed_unsync())
}

/// A watch that ends before it began.
pub fn failed(error: ApiError) -> Response<Body> {
    let event = Event::Error(error).to_value("", "", |object| object);
    with_type(200, JSON, full(format!("{event}\n")))
}

/// A time of its own for every watch, so that not all clients come back at once.
fn lasting() -> Duration {
    let spread = u64::from_str_radix(&new_uid()[..8], 16).unwrap_or(0) % SHORTEST.as_secs();
    SHORTEST + Duration::from_secs(spread)
}

impl Streaming {
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let events = tokio::select! {
            biased;
            // Either the server stops, or nobody is left who could say so.
            _ = self.stopping.wait_for(|stopping| *stopping) => return None,
            () = sleep_until(self.end) => {
                // So that the client goes on from here and need not begin anew.
                self.over = true;
                self.watching.bookmark().into_iter().collect()
            }
            // Waiting for changes may be given up and begun again without losing any.
            events = self.watching.next() => events,
            _ = self.bookmarks.tick() => self.watching.bookmark().into_iter().collect(),
        };
        let now = Timestamp::now();
        let api_version = self.resource.api_version();
        let mut text = String::new();
        for event in events {
            self.over |= matches!(event, Event::Error(_));
            let (form, resource) = (self.form, self.resource);
            let first = &mut self.first;
            let value = event.to_value(&api_version, resource.kind, |object| {
                form.watched(resource, object, std::mem::take(first), now)
            });
            text.push_str(&value.to_string());
            text.push('\n');
        }
        if text.is_empty() && self.over { None } else { Some(text.into()) }
    }
}
