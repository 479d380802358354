//! `berth events`, and the events of a pod for `berth inspect`.

use futures_util::StreamExt;
use hyper::Method;
use jiff::Timestamp;
use k8s_openapi::{List, api::core::v1::Event};

use super::{
    args::{EventsArgs, Output},
    client::{self, Client},
    exit::{Exit, Failed},
    output::{Columns, age_of, harmless, print, show},
};

/// `berth events`.
///
/// # Errors
/// The agent cannot be asked.
pub async fn list(client: &Client, args: &EventsArgs) -> Result<(), Failed> {
    let (list, watch) = (&args.list, if args.watch { "true" } else { "false" });
    let mut query = vec![("watch", watch)];
    query.extend(list.pod.as_deref().map(|pod| ("pod", pod)));
    query.extend(list.namespace.as_deref().map(|namespace| ("namespace", namespace)));
    let path = client::path("/v1/events", &query);
    // Who asked for one pod or namespace knows which.
    let namespaces = list.pod.is_none() && list.namespace.is_none();
    if args.watch {
        return follow(client, &path, list.output, namespaces).await;
    }
    let list_of = List::<Event> { items: client.get(&path).await?, ..List::default() };
    show(list.output, &list_of, |wide| table(&list_of.items, wide, namespaces, Timestamp::now()))
}

/// Prints the events there are and then each as it comes.
async fn follow(client: &Client, path: &str, output: Output, namespaces: bool) -> Result<(), Failed> {
    let mut chunks = client::chunks(client.send(Method::GET, path, client::empty()).await?);
    let mut pending = Vec::new();
    let mut first = true;
    while let Some(chunk) = chunks.next().await {
        pending.extend_from_slice(&chunk?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let event: Event = serde_json::from_slice(&line)
                .map_err(|error| Failed::new(Exit::Failure, format!("understand the agent's answer: {error}")))?;
            match output {
                Output::Json => print(&String::from_utf8_lossy(&line))?,
                Output::Yaml => {
                    print("---\n")?;
                    show(Output::Yaml, &event, |_| String::new())?;
                }
                Output::Table | Output::Wide => {
                    if first {
                        print(&aligned(&headings(output == Output::Wide, namespaces)))?;
                    }
                    print(&aligned(&row(&event, output == Output::Wide, namespaces, Timestamp::now())))?;
                }
            }
            first = false;
        }
    }
    Err(Failed::new(Exit::Unreachable, "the agent went away"))
}

fn headings(wide: bool, namespaces: bool) -> Vec<String> {
    let mut headings = vec!["LAST SEEN", "TYPE", "REASON", "OBJECT"];
    if namespaces {
        headings.insert(0, "NAMESPACE");
    }
    if wide {
        headings.extend(["SUBOBJECT", "SOURCE", "FIRST SEEN", "COUNT", "NAME"]);
    }
    headings.push("MESSAGE");
    headings.into_iter().map(str::to_owned).collect()
}

fn row(event: &Event, wide: bool, namespaces: bool, now: Timestamp) -> Vec<String> {
    let object = &event.involved_object;
    let mut row = Vec::new();
    if namespaces {
        row.push(event.metadata.namespace.clone().unwrap_or_default());
    }
    row.extend([
        last_seen(event, now),
        event.type_.clone().unwrap_or_default(),
        event.reason.clone().unwrap_or_default(),
        format!("{}/{}", object.kind.as_deref().unwrap_or_default(), object.name.as_deref().unwrap_or_default()),
    ]);
    if wide {
        let source = event.source.clone().unwrap_or_default();
        let source: Vec<String> = [source.component, source.host].into_iter().flatten().collect();
        row.extend([
            object.field_path.clone().unwrap_or_default(),
            source.join(", "),
            age_of(event.first_timestamp.as_ref().map(|time| time.0), now),
            event.count.unwrap_or(1).to_string(),
            event.metadata.name.clone().unwrap_or_default(),
        ]);
    }
    row.push(event.message.clone().unwrap_or_default());
    row
}

/// `5s`, or `5s (x3 over 2m)` for what happened more than once.
fn last_seen(event: &Event, now: Timestamp) -> String {
    let age = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        age_of(time.as_ref().map(|time| time.0), now)
    };
    match event.count {
        Some(count) if count > 1 => {
            format!("{} (x{count} over {})", age(&event.last_timestamp), age(&event.first_timestamp))
        }
        _ => age(&event.last_timestamp),
    }
}

fn table(events: &[Event], wide: bool, namespaces: bool, now: Timestamp) -> String {
    if events.is_empty() {
        return "No events.\n".to_owned();
    }
    let headings = headings(wide, namespaces);
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = Columns::new(&headings);
    for event in events {
        table.row(row(event, wide, namespaces, now));
    }
    table.finish()
}

/// A line of a table whose other lines are not known yet.
fn aligned(cells: &[String]) -> String {
    let mut line = String::new();
    for (index, cell) in cells.iter().enumerate() {
        match index + 1 == cells.len() {
            true => line.push_str(&harmless(cell)),
            false => line.push_str(&format!("{:<20} ", harmless(cell))),
        }
    }
    line.push('\n');
    line
}

/// The events of one pod, as kubectl describes them; empty without any.
pub fn description(events: &[Event], now: Timestamp) -> String {
    if events.is_empty() {
        return String::new();
    }
    let mut table = Columns::new(&["EVENT", "REASON", "AGE", "MESSAGE"]);
    for event in events {
        let message = event.message.clone().unwrap_or_default();
        table.row([
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            last_seen(event, now),
            match event.involved_object.field_path.as_deref() {
                Some(path) => format!("{path}: {message}"),
                None => message,
            },
        ]);
    }
    table.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn events() -> Vec<Event> {
        let event = |reason: &str, count: i32, message: &str| {
            serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": "web.1"},
                "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{app}"},
                "type": "Warning", "reason": reason, "message": message, "count": count,
                "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z",
                "source": {"component": "berth", "host": "node1"},
            }))
            .unwrap()
        };
        vec![event("BackOff", 3, "again\u{1b}[2J"), event("Failed", 1, "no")]
    }

    fn now() -> Timestamp {
        "2026-01-01T00:01:05Z".parse().unwrap()
    }

    #[test]
    fn the_table_is_like_kubectls() {
        assert_eq!(
            table(&events(), false, true, now()),
            "\
NAMESPACE   LAST SEEN          TYPE      REASON    OBJECT    MESSAGE
shop        5s (x3 over 65s)   Warning   BackOff   Pod/web   again\\u{1b}[2J
shop        5s                 Warning   Failed    Pod/web   no
"
        );
        let wide = table(&events(), true, false, now());
        assert!(wide.contains("spec.containers{app}   berth, node1   65s          3       web.1"), "{wide}");
        assert_eq!(table(&[], false, true, now()), "No events.\n");
    }

    #[test]
    fn a_description_says_which_container_it_was() {
        let text = description(&events(), now());
        assert!(text.contains("Warning   Failed    5s                 spec.containers{app}: no\n"), "{text}");
        assert_eq!(description(&[], now()), "");
    }

    #[test]
    fn lines_that_come_one_by_one_stand_below_each_other() {
        let lines = [headings(false, false), row(&events()[1], false, false, now())].map(|cells| aligned(&cells));
        assert_eq!(lines[0].find("MESSAGE"), lines[1].find("no\n"));
        assert!(!aligned(&row(&events()[0], false, false, now())).contains('\u{1b}'));
    }
}
