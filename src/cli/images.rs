//! `berth images`, `pull`, `load`, `rmi` and `gc`.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use axum::body::Bytes;
use futures_util::{StreamExt, stream};
use hyper::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    args::{LoadArgs, Output, OutputArgs, PullArgs, RmiArgs},
    client::{self, Client, RequestBody},
    exit::{Exit, Failed},
    output::{Columns, bytes, print, show},
};
use crate::server::{
    images::{Collected, Credentials, ImageView},
    local::{PullLine, PullRequest},
};

/// Bytes read of an archive at a time.
const CHUNK: usize = 256 * 1024;

/// `berth images`.
///
/// # Errors
/// The agent cannot be asked.
pub async fn list(client: &Client, args: &OutputArgs) -> Result<(), Failed> {
    let images: Vec<ImageView> = client.get("/v1/images").await?;
    show(args.output, &images, |wide| image_table(&images, wide))
}

fn image_table(images: &[ImageView], wide: bool) -> String {
    if images.is_empty() {
        return "No images.\n".to_owned();
    }
    let mut headings = vec!["IMAGE", "ID", "SIZE"];
    if wide {
        headings.extend(["PINNED", "DIGEST"]);
    }
    let mut table = Columns::new(&headings);
    for image in images {
        let digest = image.repo_digests.first().map_or("<none>", String::as_str);
        // An image that was pulled by digest has no tag but is known by that.
        let names: Vec<&str> = match image.repo_tags.as_slice() {
            [] => vec![digest],
            tags => tags.iter().map(String::as_str).collect(),
        };
        for name in names {
            let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
            let mut row = vec![name.to_owned(), id.chars().take(12).collect(), bytes(image.size)];
            if wide {
                row.extend([if image.pinned { "yes" } else { "no" }.to_owned(), digest.to_owned()]);
            }
            table.row(row);
        }
    }
    table.finish()
}

/// `berth pull`: progress on standard error if that is a terminal, the image's id on standard output.
///
/// # Errors
/// The agent cannot be asked, or the pull failed.
pub async fn pull(client: &Client, args: &PullArgs) -> Result<(), Failed> {
    let credentials = match (&args.username, &args.password_file) {
        (Some(username), Some(path)) => {
            Some(Credentials { username: username.clone(), password: read_password(path)? })
        }
        _ => None,
    };
    let request = PullRequest { reference: args.reference.clone(), credentials };
    let response = client.send(Method::POST, "/v1/images/pull", client::json(&request)?).await?;
    let mut chunks = client::chunks(response);
    let mut display = Display::new(args.quiet);
    let mut pending = Vec::new();
    while let Some(chunk) = chunks.next().await {
        pending.extend_from_slice(&chunk?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            match serde_json::from_slice(&line).map_err(|error| Failed::of(&error))? {
                PullLine::Progress(progress) => display.show(&progress.digest, progress.received, progress.total),
                PullLine::Image(image) => {
                    display.clear();
                    return print(&format!("{}\n", image.id));
                }
                PullLine::Error(message) => {
                    display.clear();
                    return Err(Failed::new(Exit::Failure, message));
                }
            }
        }
    }
    Err(Failed::new(Exit::Unreachable, "the agent went away in the middle of the pull"))
}

fn read_password(path: &Path) -> Result<String, Failed> {
    let text = match path.to_str() {
        Some("-") => io::read_to_string(io::stdin()),
        _ => fs::read_to_string(path),
    };
    let text = text.map_err(|error| Failed::new(Exit::Failure, format!("read {}: {error}", path.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// One bar per layer.
struct Display {
    bars: MultiProgress,
    by_digest: Vec<(String, ProgressBar)>,
}

impl Display {
    fn new(quiet: bool) -> Display {
        let bars = MultiProgress::new();
        if quiet || !io::stderr().is_terminal() {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Display { bars, by_digest: Vec::new() }
    }

    fn show(&mut self, digest: &str, received: u64, total: u64) {
        let index = self.by_digest.iter().position(|(known, _)| known == digest).unwrap_or_else(|| {
            let bar = self.bars.add(ProgressBar::new(total));
            let short: String = digest.rsplit(':').next().unwrap_or(digest).chars().take(12).collect();
            if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:40} {bytes}/{total_bytes}") {
                bar.set_style(style);
            }
            bar.set_prefix(short);
            self.by_digest.push((digest.to_owned(), bar));
            self.by_digest.len() - 1
        });
        let bar = &self.by_digest[index].1;
        bar.set_length(total);
        bar.set_position(received);
    }

    fn clear(&self) {
        // Fails when standard error is gone: there is then nothing to clear.
        let _ = self.bars.clear();
    }
}

/// `berth load`. The agent opens files itself; only standard input is sent to it.
///
/// # Errors
/// The source cannot be read, the agent cannot be asked, or does not understand what it is given.
pub async fn load(client: &Client, args: &LoadArgs) -> Result<(), Failed> {
    let mut query = Vec::new();
    query.extend(args.name.as_deref().map(|name| ("name", name)));
    let absolute: PathBuf;
    let body = if args.source.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            return Err(Failed::new(Exit::Usage, "an image cannot be typed: standard input is a terminal"));
        }
        standard_input()
    } else {
        let error = |error: io::Error| Failed::new(Exit::Failure, format!("read {}: {error}", args.source.display()));
        // A mistake is better told here, with the path as it was written.
        absolute = fs::canonicalize(&args.source).map_err(error)?;
        File::open(&absolute).map_err(error)?;
        let path = absolute
            .to_str()
            .ok_or_else(|| Failed::new(Exit::Failure, format!("the path {} is not UTF-8", absolute.display())))?;
        query.push(("path", path));
        client::empty()
    };
    let path = client::path("/v1/images/load", &query);
    let images: Vec<ImageView> = client.call(Method::POST, &path, body).await?;
    match args.output {
        Output::Table | Output::Wide => print(&loaded_names(&images)),
        output => show(output, &images, |_| String::new()),
    }
}

/// Every name that something was loaded by, one to a line; the id of what has none.
fn loaded_names(images: &[ImageView]) -> String {
    let names = images.iter().flat_map(|image| match image.repo_tags.as_slice() {
        [] => std::slice::from_ref(&image.id),
        tags => tags,
    });
    names.map(|name| format!("{name}\n")).collect()
}

/// Standard input as a body; read on a thread of its own, as it may never end.
fn standard_input() -> RequestBody {
    // One chunk under way and one being read.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut chunk = vec![0; CHUNK];
            let item = match input.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => {
                    chunk.truncate(length);
                    Ok(Bytes::from(chunk))
                }
                Err(error) => Err(error),
            };
            // Fails when the agent did not want any more.
            if sender.blocking_send(item).is_err() {
                return;
            }
        }
    });
    client::streamed(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    }))
}

/// `berth rmi`: goes on after a failure and reports the first.
///
/// # Errors
/// The agent cannot be asked, or an image cannot be removed.
pub async fn remove(client: &Client, args: &RmiArgs) -> Result<(), Failed> {
    let mut failure: Option<Failed> = None;
    for reference in &args.references {
        let path = client::path("/v1/images", &[("ref", reference)]);
        match client.call::<Vec<String>>(Method::DELETE, &path, client::empty()).await {
            Ok(removed) => print(&removed.iter().map(|name| format!("{name}\n")).collect::<String>())?,
            Err(failed) => match &failure {
                None => failure = Some(failed),
                Some(_) => eprintln!("{failed}"),
            },
        }
    }
    failure.map_or(Ok(()), Err)
}

/// `berth gc`.
///
/// # Errors
/// The agent cannot be asked.
pub async fn collect(client: &Client, args: &OutputArgs) -> Result<(), Failed> {
    let collected: Collected = client.call(Method::POST, "/v1/images/gc", client::empty()).await?;
    show(args.output, &collected, |_| {
        let mut text: String = collected.removed.iter().map(|name| format!("{name}\n")).collect();
        text.push_str(&format!("{} images removed, {} freed\n", collected.removed.len(), bytes(collected.freed)));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing;

    #[test]
    fn an_image_has_a_row_for_each_of_its_names() {
        let mut image = testing::image();
        image.repo_tags.push("local/box:2".to_owned());
        let nameless = ImageView {
            repo_tags: Vec::new(),
            repo_digests: vec!["a@sha256:2".to_owned()],
            pinned: true,
            ..testing::image()
        };
        assert_eq!(
            image_table(&[image, nameless], true),
            "\
IMAGE                         ID             SIZE     PINNED   DIGEST
docker.io/library/busybox:1   111111111111   1.4MiB   no       <none>
local/box:2                   111111111111   1.4MiB   no       <none>
a@sha256:2                    111111111111   1.4MiB   yes      a@sha256:2
"
        );
        assert_eq!(image_table(&[], false), "No images.\n");
    }

    #[test]
    fn every_name_of_what_was_loaded_is_printed() {
        let mut image = testing::image();
        image.repo_tags = vec!["a:1".to_owned(), "b:1".to_owned()];
        let nameless = ImageView { repo_tags: Vec::new(), id: "sha256:2".to_owned(), ..testing::image() };
        assert_eq!(loaded_names(&[image, nameless]), "a:1\nb:1\nsha256:2\n");
    }

    #[test]
    fn an_image_in_json_has_the_documented_names() {
        let value = serde_json::to_value(testing::image()).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "pinned", "repoDigests", "repoTags", "size"]);
    }
}
