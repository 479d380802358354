//! events: what happened.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde_json::Value;

use super::cells::{age, field, integer, name};
use crate::{
    api::validation::FieldError,
    control::registry::{
        resource::{Column, Kind, Resource, column, wide},
        text,
    },
};

impl Kind for Event {
    fn validate(&self) -> Vec<FieldError> {
        let mut errors =
            crate::api::validation::validate_metadata(&self.metadata, crate::api::validation::NameRule::Subdomain);
        let own = self.metadata.namespace.as_deref().unwrap_or_default();
        let involved = self.involved_object.namespace.as_deref().unwrap_or_default();
        // What has no namespace happens in `default`.
        if involved != own && !(involved.is_empty() && own == "default") {
            let detail = "does not match event.namespace";
            errors.push(FieldError::invalid("involvedObject.namespace", involved, detail));
        }
        errors
    }
}

const COLUMNS: &[Column] = &[
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    wide("Subobject"),
    wide("Source"),
    column("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];

/// v1 Event.
pub static EVENTS: Resource = Resource {
    short: &["ev"],
    create_on_update: true,
    fields: &[
        ("involvedObject.kind", ""),
        ("involvedObject.namespace", ""),
        ("involvedObject.name", ""),
        ("involvedObject.uid", ""),
        ("involvedObject.apiVersion", ""),
        ("involvedObject.resourceVersion", ""),
        ("involvedObject.fieldPath", ""),
        ("reason", ""),
        ("reportingComponent", ""),
        ("source.component", ""),
        ("type", ""),
    ],
    columns: COLUMNS,
    cells,
    ..Resource::of::<Event>("events", "event", true)
};

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let set = |path: &str| Some(&event[path]).filter(|time| !time.is_null());
    let first = set("firstTimestamp").or(set("eventTime")).unwrap_or(&Value::Null);
    let last = event["series"].get("lastObservedTime").or(set("lastTimestamp")).unwrap_or(first);
    let count = match event["series"]["count"].as_i64() {
        Some(count) => count,
        None => integer(event, "count").max(1),
    };
    let involved = &event["involvedObject"];
    let object = format!("{}/{}", text(involved, "kind").to_lowercase(), text(involved, "name"));
    let (component, host) = (text(event, "source.component"), text(event, "source.host"));
    let source = match (component, host) {
        ("", _) => text(event, "reportingComponent").to_owned(),
        (component, "") => component.to_owned(),
        (component, host) => format!("{component}, {host}"),
    };
    vec![
        age(last, now),
        field(event, "type"),
        field(event, "reason"),
        object.into(),
        field(involved, "fieldPath"),
        source.into(),
        text(event, "message").trim().into(),
        age(first, now),
        count.into(),
        name(event),
    ]
}
