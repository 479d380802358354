//! `berth ps`, `berth stats` and `berth logs`.

use std::time::Duration;

use futures_util::StreamExt;
use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    args::{ListArgs, LogsArgs, Output},
    client::{self, Client},
    exit::{Exit, Failed},
    output::{Columns, age_of, bytes, print_bytes, show},
    pods,
};
use crate::{
    config::values::parse_duration,
    server::{find, local::CONTAINER_HEADER},
    worker::handle::{ContainerView, PodView, Usage},
};

/// Between the two looks from which the use of processors is computed.
const SAMPLE: Duration = Duration::from_millis(500);

/// A container and where it belongs.
#[derive(Serialize)]
struct Listed<'a> {
    namespace: &'a str,
    pod: &'a str,
    #[serde(flatten)]
    container: &'a ContainerView,
}

/// `berth ps`.
///
/// # Errors
/// The agent cannot be asked, or knows no such pod.
pub async fn list(client: &Client, args: &ListArgs) -> Result<(), Failed> {
    let views = pods::views(client, args).await?;
    let listed: Vec<Listed> = views.iter().flat_map(listed).collect();
    show(args.output, &listed, |wide| container_table(&listed, wide, Timestamp::now()))
}

fn listed(view: &PodView) -> impl Iterator<Item = Listed<'_>> {
    view.containers.iter().map(|container| Listed {
        namespace: find::namespace_of(&view.pod),
        pod: view.pod.metadata.name.as_deref().unwrap_or_default(),
        container,
    })
}

fn container_table(listed: &[Listed], wide: bool, now: Timestamp) -> String {
    if listed.is_empty() {
        return "No containers.\n".to_owned();
    }
    let mut headings = vec!["NAMESPACE", "POD", "CONTAINER", "STATE", "ATTEMPT", "PID", "AGE"];
    if wide {
        headings.extend(["KIND", "IMAGE", "ID"]);
    }
    let mut table = Columns::new(&headings);
    for Listed { namespace, pod, container } in listed {
        let started = Timestamp::from_nanosecond(container.started_at.into()).ok().filter(|_| container.started_at > 0);
        let mut row = vec![
            (*namespace).to_owned(),
            (*pod).to_owned(),
            container.name.clone(),
            match container.exit_code {
                Some(code) => format!("{} ({code})", container.state),
                None => container.state.clone(),
            },
            container.attempt.to_string(),
            container.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            started.map_or_else(|| "-".to_owned(), |started| age_of(Some(started), now)),
        ];
        if wide {
            row.extend([container.kind.clone(), container.image.clone(), container.id.chars().take(12).collect()]);
        }
        table.row(row);
    }
    table.finish()
}

/// `berth stats`. For people the use of processors is measured over half a second; programs get the counters.
///
/// # Errors
/// The agent cannot be asked, or knows no such pod.
pub async fn stats(client: &Client, args: &ListArgs) -> Result<(), Failed> {
    let wanted: Vec<String> = pods::views(client, args).await?.iter().map(|view| find::name_of(&view.pod)).collect();
    let before: Vec<Usage> = client.get("/v1/usage").await?;
    let keep = |usages: Vec<Usage>| usages.into_iter().filter(|usage| wanted.contains(&usage.pod)).collect::<Vec<_>>();
    let before = keep(before);
    if matches!(args.output, Output::Json | Output::Yaml) {
        return show(args.output, &before, |_| String::new());
    }
    let began = std::time::Instant::now();
    tokio::time::sleep(SAMPLE).await;
    let after = keep(client.get("/v1/usage").await?);
    let elapsed = began.elapsed();
    show(args.output, &after, |_| usage_table(&before, &after, elapsed))
}

fn usage_table(before: &[Usage], after: &[Usage], elapsed: Duration) -> String {
    if after.is_empty() {
        return "No pods.\n".to_owned();
    }
    let mut table = Columns::new(&["POD", "CONTAINER", "CPU", "CPU TIME", "MEMORY", "WORKING SET", "LIMIT", "PIDS"]);
    for usage in after {
        let same = |other: &&Usage| other.pod == usage.pod && other.container == usage.container;
        // Thousandths of a processor. A container restarted in between has no difference to speak of.
        let cpu = before
            .iter()
            .find(same)
            .and_then(|before| usage.cpu_nanos.checked_sub(before.cpu_nanos))
            .map(|used| u128::from(used) * 1000 / elapsed.as_nanos().max(1));
        table.row([
            usage.pod.clone(),
            if usage.container.is_empty() { "(pod)".to_owned() } else { usage.container.clone() },
            cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu}m")),
            format!("{:.2}s", usage.cpu_nanos as f64 / 1e9),
            bytes(usage.memory_bytes),
            bytes(usage.working_set_bytes),
            usage.memory_limit.map_or_else(|| "-".to_owned(), bytes),
            usage.pids.to_string(),
        ]);
    }
    table.finish()
}

/// `berth logs`.
///
/// # Errors
/// The agent cannot be asked, or there is no such log.
pub async fn logs(client: &Client, args: &LogsArgs) -> Result<(), Failed> {
    let since = args.since.as_deref().map(|text| since(text, Timestamp::now())).transpose()?;
    let mut query = vec![("pod", args.pod.clone())];
    query.extend(args.container.clone().map(|name| ("container", name)));
    query.extend(args.tail.map(|lines| ("tail", lines.to_string())));
    query.extend(since.map(|since| ("since", since.to_string())));
    query.extend(args.limit_bytes.map(|bytes| ("limitBytes", bytes.to_string())));
    for (name, set) in [("follow", args.follow), ("timestamps", args.timestamps), ("previous", args.previous)] {
        query.extend(set.then(|| (name, "true".to_owned())));
    }
    let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let response = client.send(Method::GET, &client::path("/v1/logs", &query), client::empty()).await?;
    if args.container.is_none()
        && let Some(name) = response.headers().get(CONTAINER_HEADER).and_then(|name| name.to_str().ok())
        && let Ok(views) = client.get::<Vec<PodView>>("/v1/pods").await
        && let Ok(view) = find::pod(&views, &args.pod)
        && view.containers.len() > 1
    {
        let names: Vec<&str> = view.containers.iter().map(|container| container.name.as_str()).collect();
        eprintln!("This is container {name} of: {} (choose with -c)", names.join(", "));
    }
    let mut chunks = client::chunks(response);
    while let Some(chunk) = chunks.next().await {
        print_bytes(&chunk?)?;
    }
    Ok(())
}

/// `10m` before `now`, or a point in time.
fn since(text: &str, now: Timestamp) -> Result<Timestamp, Failed> {
    if let Ok(ago) = parse_duration(text)
        && let Ok(ago) = SignedDuration::try_from(ago)
    {
        return Ok(now.saturating_sub(ago).unwrap_or(Timestamp::MIN));
    }
    text.parse().map_err(|_| {
        let message = format!("--since: expected a time like 10m or 2026-01-02T15:04:05Z, found {text:?}");
        Failed::new(Exit::Usage, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing;

    #[test]
    fn containers_are_listed_with_their_processes() {
        let view = testing::pod("default", "web", "u1");
        let listed: Vec<Listed> = listed(&view).collect();
        let text = container_table(&listed, false, Timestamp::UNIX_EPOCH);
        assert_eq!(
            text,
            "\
NAMESPACE   POD   CONTAINER   STATE        ATTEMPT   PID    AGE
default     web   init        exited (0)   0         -      0s
default     web   app         running      0         4711   0s
default     web   side        running      0         4711   0s
"
        );
        let value = serde_json::to_value(&listed).unwrap();
        assert_eq!(value[1]["name"], "app");
        assert_eq!(value[1]["namespace"], "default");
    }

    #[test]
    fn processors_are_the_difference_of_two_looks() {
        let usage = |cpu_nanos| Usage {
            pod: "default/web".to_owned(),
            container: "app".to_owned(),
            cpu_nanos,
            memory_bytes: 3 << 20,
            pids: 2,
            ..Usage::default()
        };
        let text = usage_table(&[usage(1_000_000_000)], &[usage(1_250_000_000)], Duration::from_millis(500));
        assert!(text.contains("500m"), "{text}");
        assert!(text.contains("3.0MiB"), "{text}");
        let restarted = usage_table(&[usage(9)], &[usage(5)], Duration::from_millis(500));
        assert!(restarted.contains(" -  "), "{restarted}");
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        assert_eq!(since("10m", now).unwrap(), "2026-01-01T00:50:00Z".parse().unwrap());
        assert_eq!(since("2025-12-31T00:00:00Z", now).unwrap(), "2025-12-31T00:00:00Z".parse().unwrap());
        assert_eq!(since("yesterday", now).unwrap_err().exit, Exit::Usage);
    }
}
