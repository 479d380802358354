//! Container logs: read from the files the supervisor writes, joined, filtered and followed across rotations; and
//! the rotated ones compressed.

mod compress;
mod files;
mod line;
mod reader;
mod watch;

use std::{io, time::Duration};

use axum::body::Bytes;
use futures_util::{Stream, stream};
use hyper::{
    body::Frame,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use tokio::{sync::mpsc, task, time};

pub use compress::Compressor;
pub use files::LogFiles;
pub use reader::{LogQuery, LogReader, Progress};
pub use watch::{LogWatch, Watching};

/// Bytes handed on at a time.
const CHUNK: usize = 256 * 1024;

/// A follower looks again after this time although nothing was noticed: a supervisor that was killed leaves no exit
/// record, and the agent's own verdict makes no noise in any directory.
const RESYNC: Duration = Duration::from_secs(10);

/// Trailer of a log of which something could not be read: what, and why.
pub const INCOMPLETE: &str = "berth-incomplete";

/// Streams a log. With `watching` it goes on until `ended` says that nothing more will be written and everything has
/// been read; without, it ends where the log ends now. Dropping the stream ends the work behind it. Of a damaged file the
/// rest is left out, and the trailer [`INCOMPLETE`] says so.
pub fn stream(
    reader: LogReader,
    watching: Option<Watching>,
    ended: impl Fn() -> bool + Send + 'static,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    // One chunk in flight and one being made: a slow client holds the reader back, not memory.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = pump(reader, watching, ended, &sender).await {
            // Fails when the client is gone, who is then not interested.
            let _ = sender.send(Err(error)).await;
        }
    });
    stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}

async fn pump(
    mut reader: LogReader,
    mut watching: Option<Watching>,
    ended: impl Fn() -> bool,
    sender: &mpsc::Sender<io::Result<Frame<Bytes>>>,
) -> io::Result<()> {
    loop {
        // Asked before reading: what was written before the end is then certainly read.
        let last_round = watching.is_none() || ended();
        loop {
            let (returned, chunk, progress) = read_chunk(reader).await?;
            reader = returned;
            if !chunk.is_empty() && sender.send(Ok(Frame::data(chunk))).await.is_err() {
                return Ok(());
            }
            match progress {
                Progress::More => {}
                Progress::CaughtUp => break,
                Progress::Limit => return tell_damage(&mut reader, sender).await,
            }
        }
        if last_round {
            let mut rest = Vec::new();
            reader.finish(&mut rest);
            if !rest.is_empty() {
                let _ = sender.send(Ok(Frame::data(rest.into()))).await;
            }
            return tell_damage(&mut reader, sender).await;
        }
        let Some(watching) = &mut watching else { return Ok(()) };
        // All arms are cancel-safe: a change is remembered until it is asked for.
        tokio::select! {
            biased;
            () = sender.closed() => return Ok(()),
            () = watching.changed() => {}
            () = time::sleep(RESYNC) => {}
        }
    }
}

/// The last thing that is sent, where there is something to say.
async fn tell_damage(reader: &mut LogReader, sender: &mpsc::Sender<io::Result<Frame<Bytes>>>) -> io::Result<()> {
    let damaged = reader.damaged().join("; ");
    if let Ok(value) = HeaderValue::from_bytes(damaged.as_bytes())
        && !damaged.is_empty()
    {
        let trailers = HeaderMap::from_iter([(HeaderName::from_static(INCOMPLETE), value)]);
        let _ = sender.send(Ok(Frame::trailers(trailers))).await;
    }
    Ok(())
}

async fn read_chunk(mut reader: LogReader) -> io::Result<(LogReader, Bytes, Progress)> {
    let work = move || {
        let mut chunk = Vec::new();
        let progress = reader.read(&mut chunk, CHUNK)?;
        Ok((reader, chunk.into(), progress))
    };
    match task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use futures_util::StreamExt;

    use super::*;

    fn append(directory: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(directory.join("0.log")).unwrap();
        writeln!(file, "2026-01-01T00:00:00Z stdout F {text}").unwrap();
    }

    async fn next(stream: &mut (impl Stream<Item = io::Result<Frame<Bytes>>> + Unpin)) -> Option<String> {
        // Far more than it takes; only a broken follower waits so long.
        let chunk = time::timeout(Duration::from_secs(60), stream.next()).await.expect("nothing came")?;
        Some(String::from_utf8(chunk.unwrap().into_data().unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_follower_gets_every_line_across_a_rotation_and_ends_with_the_container() {
        let logs = tempfile::tempdir().unwrap();
        let attempt = tempfile::tempdir().unwrap();
        let exit = attempt.path().join("exit.json");
        append(logs.path(), "one");
        let watch = LogWatch::default();
        let watching = watch.watch(&[logs.path(), attempt.path()]).unwrap();
        let reader = LogReader::new(LogFiles::new(logs.path(), 0), LogQuery::default());
        let ended = {
            let exit = exit.clone();
            move || exit.exists()
        };
        let mut stream = Box::pin(stream(reader, Some(watching), ended));
        assert_eq!(next(&mut stream).await.unwrap(), "one\n");
        append(logs.path(), "two");
        assert_eq!(next(&mut stream).await.unwrap(), "two\n");
        append(logs.path(), "three");
        fs::rename(logs.path().join("0.log"), logs.path().join("0.log.20260101-000000")).unwrap();
        append(logs.path(), "four");
        let mut text = String::new();
        while text != "three\nfour\n" {
            text.push_str(&next(&mut stream).await.unwrap());
        }
        append(logs.path(), "five");
        fs::write(&exit, "{}").unwrap();
        assert_eq!(next(&mut stream).await.unwrap(), "five\n");
        assert_eq!(next(&mut stream).await, None);
        assert!(watch.shared_is_idle(), "the watches are gone with the follower");
    }

    #[tokio::test]
    async fn without_following_the_stream_ends_where_the_log_does() {
        let logs = tempfile::tempdir().unwrap();
        append(logs.path(), "one");
        let asked = Arc::new(AtomicBool::new(false));
        let reader = LogReader::new(LogFiles::new(logs.path(), 0), LogQuery::default());
        let ended = {
            let asked = asked.clone();
            move || !asked.swap(true, Ordering::Relaxed)
        };
        let mut stream = Box::pin(stream(reader, None, ended));
        assert_eq!(next(&mut stream).await.unwrap(), "one\n");
        assert_eq!(next(&mut stream).await, None);
        assert!(!asked.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_follower_whose_client_is_gone_gives_up_its_watch() {
        let logs = tempfile::tempdir().unwrap();
        append(logs.path(), "one");
        let watch = LogWatch::default();
        let watching = watch.watch(&[logs.path()]).unwrap();
        let reader = LogReader::new(LogFiles::new(logs.path(), 0), LogQuery::default());
        let mut stream = Box::pin(stream(reader, Some(watching), || false));
        assert_eq!(next(&mut stream).await.unwrap(), "one\n");
        drop(stream);
        while !watch.shared_is_idle() {
            task::yield_now().await;
        }
    }
}
