//! `berth resize` and `berth debug`: changes of a pod that runs.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    path::Path,
    process::ExitCode,
};

use hyper::Method;
use k8s_openapi::{
    api::core::v1::{EphemeralContainer, Pod},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::{
    args::{DebugArgs, LogsArgs, ResizeArgs},
    attach,
    client::{Client, json},
    containers,
    exit::{Exit, Failed},
    output::{print, show},
    pods::not_found,
};
use crate::{
    api::{
        quantity::Quantity,
        update::{Change, Resize},
    },
    server::{attach::AttachRequest, find, local::ChangeRequest},
    worker::handle::PodView,
};

/// Letters and digits that do not make words or look alike, as upstream has them in generated names.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `berth resize`.
///
/// # Errors
/// The agent cannot be asked, or does not allow it.
pub async fn resize(client: &Client, args: &ResizeArgs) -> Result<(), Failed> {
    let (requests, limits) = (amounts("--requests", &args.requests)?, amounts("--limits", &args.limits)?);
    if requests.is_empty() && limits.is_empty() {
        return Err(Failed::new(Exit::Usage, "nothing is to change: give --requests or --limits"));
    }
    let container = match args.pod_level {
        true => None,
        false => {
            let views: Vec<PodView> = client.get("/v1/pods").await?;
            let view = find::pod(&views, &args.pod).map_err(not_found)?;
            Some(find::container(view, args.container.as_deref()).map_err(not_found)?.name.clone())
        }
    };
    let change = Change::Resize(Resize { container, requests, limits });
    let pod = make(client, &args.pod, change).await?;
    show(args.output, &pod, |_| format!("pod/{} resized{}\n", pod.metadata.name.as_deref().unwrap_or("?"), state(&pod)))
}

/// What the conditions say of a resize, in brackets.
fn state(pod: &Pod) -> String {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let pending = conditions.find(|condition| condition.type_ == "PodResizePending");
    pending.map_or_else(String::new, |pending| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        format!(" ({}: {})", text(&pending.reason).to_lowercase(), text(&pending.message))
    })
}

/// `cpu=1,memory=64Mi` as amounts by name.
fn amounts(flag: &str, words: &[String]) -> Result<BTreeMap<String, ApiQuantity>, Failed> {
    let read = |word: &String| {
        let usage = |what: String| Failed::new(Exit::Usage, format!("{flag}: {what}"));
        let (name, amount) = word
            .split_once('=')
            .ok_or_else(|| usage(format!("expected NAME=AMOUNT, as in cpu=500m, found {word:?}")))?;
        let amount = Quantity::parse(amount).map_err(|error| usage(format!("{name}={amount}: {error}")))?;
        Ok((name.to_owned(), amount.into()))
    };
    words.iter().map(read).collect()
}

async fn make(client: &Client, pod: &str, change: Change) -> Result<Pod, Failed> {
    let request = ChangeRequest { pod: pod.to_owned(), change };
    client.call(Method::POST, "/v1/pods/change", json(&request)?).await
}

/// Adds the ephemeral container of `berth debug`; its name.
async fn add(client: &Client, args: &DebugArgs) -> Result<String, Failed> {
    let name = args.container.clone().unwrap_or_else(generated_name);
    let container = EphemeralContainer {
        name: name.clone(),
        image: Some(args.image.clone()),
        command: (!args.command.is_empty()).then(|| args.command.clone()),
        stdin: args.stdin.then_some(true),
        tty: args.tty.then_some(true),
        target_container_name: args.target.clone(),
        ..EphemeralContainer::default()
    };
    make(client, &args.pod, Change::Debug(Box::new(container))).await?;
    Ok(name)
}

/// `berth debug`: adds the container and, with -i, attaches to it.
///
/// # Errors
/// The agent cannot be asked, or does not allow it.
pub fn debug(api: &Path, stream: &Path, args: &DebugArgs) -> Result<ExitCode, Failed> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| Failed::of(&error))?;
    let client = Client::new(api);
    let name = runtime.block_on(add(&client, args))?;
    if !args.stdin {
        print(&format!("{name}\n"))?;
        return Ok(Exit::Success.into());
    }
    eprintln!("berth: the container is called {name}");
    let request = AttachRequest { attach: args.pod.clone(), container: Some(name.clone()), wait: true };
    let end = attach::attach(stream, &request, true)?;
    if end.silent {
        // A short command may have been faster. What it wrote is in its log.
        let log = LogsArgs { pod: args.pod.clone(), container: Some(name), ..LogsArgs::default() };
        runtime.block_on(containers::logs(&client, &log))?;
    }
    Ok(end.code)
}

/// `debugger-` and five letters.
fn generated_name() -> String {
    // Seeded by the system; nothing more is asked of it than to differ from the last.
    let mut random = RandomState::new().build_hasher().finish();
    let mut name = "debugger-".to_owned();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[(random % ALPHABET.len() as u64) as usize]));
        random /= ALPHABET.len() as u64;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_by_name() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let read = amounts("--limits", &words(&["cpu=1500m", "memory=64Mi"])).unwrap();
        assert_eq!(read["cpu"].0, "1500m");
        assert_eq!(read["memory"].0, "64Mi");
        for (bad, message) in [("cpu", "expected NAME=AMOUNT"), ("cpu=much", "cpu=much: ")] {
            let failed = amounts("--limits", &words(&[bad])).unwrap_err();
            assert_eq!(failed.exit, Exit::Usage);
            assert!(failed.message.contains(message), "{failed}");
        }
    }

    #[test]
    fn generated_names_differ() {
        let (one, other) = (generated_name(), generated_name());
        assert!(one.starts_with("debugger-") && one.len() == 14, "{one}");
        assert_ne!(one, other);
    }
}
