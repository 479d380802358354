//! `/healthz`, `/livez` and `/readyz`, each as a whole or one check of it.

use hyper::Response;

use super::{
    Api,
    response::{Body, text},
};
use crate::control::registry::options::Query;

/// Answers, or `None` if there is no such path.
pub async fn answer(api: &Api, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let (endpoint, one) = (parts.next()?, parts.next());
    let names: &[&str] = match endpoint {
        "healthz" | "livez" => &["ping", "storage"],
        "readyz" => &["ping", "storage", "shutdown"],
        _ => return None,
    };
    if let Some(one) = one {
        let name = names.iter().find(|name| **name == one)?;
        return Some(match check(api, name).await {
            Ok(()) => text(200, "ok"),
            Err(problem) => text(500, format!("internal server error: {problem}")),
        });
    }
    let excluded = query.all("exclude");
    let mut report = String::new();
    let mut failed = Vec::new();
    for name in names {
        if excluded.contains(name) {
            report.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        match check(api, name).await {
            Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
            Err(_) => {
                report.push_str(&format!("[-]{name} failed: reason withheld\n"));
                failed.push(*name);
            }
        }
    }
    Some(match (failed.is_empty(), query.all("verbose").is_empty()) {
        (true, true) => text(200, "ok"),
        (true, false) => text(200, format!("{report}{endpoint} check passed\n")),
        (false, _) => text(500, format!("{report}{endpoint} check failed\n")),
    })
}

async fn check(api: &Api, name: &str) -> Result<(), String> {
    match name {
        "storage" => {
            let read = api.registry.storage.get("health").await;
            read.map(drop).map_err(|error| error.to_string())
        }
        "shutdown" if *api.stopping.borrow() => Err("process is shutting down".to_owned()),
        _ => Ok(()),
    }
}
