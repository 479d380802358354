//! `/v1/events`: what happened to pods, and what happens next.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::local::{BadRequest, ServerState, async_lines};
use crate::obs::events::PodEvent;

/// What events are asked with.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct EventRequest {
    /// Of this pod only: NAME, NAMESPACE/NAME or UID; a static pod also without the node in its name. The pod may be gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Of this namespace only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// JSON lines, each a v1 Event, and new ones as they come.
    pub watch: bool,
}

impl EventRequest {
    fn wants(&self, event: &PodEvent, node: &str) -> bool {
        if self.namespace.as_ref().is_some_and(|namespace| *namespace != event.namespace) {
            return false;
        }
        let Some(wanted) = &self.pod else { return true };
        let (namespace, name) = match wanted.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, wanted.as_str()),
        };
        let without_node = event.name.strip_suffix(node).and_then(|name| name.strip_suffix('-'));
        namespace.is_none_or(|namespace| namespace == event.namespace)
            && (name == event.name || Some(name) == without_node || wanted == &event.uid)
    }
}

/// Answers with a list of v1 Events, the one that happened last at the end.
pub(super) async fn list(
    State(state): State<ServerState>,
    query: Result<Query<EventRequest>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(request) = query.map_err(|rejection| BadRequest::from(rejection).into_response())?;
    let (recorder, node) = (state.events, state.version.node);
    if !request.watch {
        let events = recorder.list().into_iter().filter(|event| request.wants(event, &node));
        let events: Vec<_> = events.map(|event| event.to_event(&node)).collect();
        return Ok(Json(events).into_response());
    }
    let mut news = recorder.subscribe();
    let lines = async_lines(move |out| async move {
        let mut told = 0;
        loop {
            news.mark_unchanged();
            for event in recorder.since(told) {
                told = event.revision;
                if request.wants(&event, &node) && out.send(event.to_event(&node)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                biased;
                () = out.closed() => return,
                changed = news.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    });
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))], lines).into_response())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

    use super::*;
    use crate::obs::events::{Recorder, Severity};

    #[test]
    fn a_pod_is_known_by_each_of_its_names() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web-node1".to_owned());
        pod.metadata.namespace = Some("shop".to_owned());
        pod.metadata.uid = Some("u1".to_owned());
        let recorder = Recorder::default();
        recorder.record(&pod, None, Severity::Normal, "Happened", "a", Timestamp::UNIX_EPOCH);
        let event = &recorder.list()[0];
        for (wanted, namespace, matches) in [
            (None, None, true),
            (Some("web"), None, true),
            (Some("web-node1"), None, true),
            (Some("shop/web"), Some("shop"), true),
            (Some("u1"), None, true),
            (Some("we"), None, false),
            (Some("web-node"), None, false),
            (Some("other/web"), None, false),
            (None, Some("other"), false),
            (Some("web"), Some("other"), false),
        ] {
            let [pod, namespace] = [wanted, namespace].map(|text| text.map(str::to_owned));
            let request = EventRequest { pod, namespace, watch: false };
            assert_eq!(request.wants(event, "node1"), matches, "{request:?}");
        }
    }
}
