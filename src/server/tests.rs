//! exec over a real packet socket.

use std::{
    io::{Read, pipe},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{
    attach::AttachRequest,
    socket,
    stream::{self, Connection, ExecReply, ExecRequest, MAX_PACKET},
    testing,
};
use crate::worker::handle::{Node, TerminalSize};

fn request(pod: &str, args: &[&str], tty: bool) -> ExecRequest {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    ExecRequest { pod: pod.to_owned(), container: None, args, env: Vec::new(), tty }
}

async fn reply(connection: &Connection) -> (ExecReply, Vec<OwnedFd>) {
    let packet = connection.receive().await.unwrap().expect("the server closed");
    (serde_json::from_slice(&packet.bytes).unwrap(), packet.descriptors)
}

/// A server with one pod, and a connection to it.
async fn connected() -> (tempfile::TempDir, Arc<testing::FakeNode>, Connection) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stream.sock");
    let node = Arc::new(testing::FakeNode::default());
    node.pods.lock().unwrap().push(testing::pod("default", "web", "u1"));
    let listener = socket::bind_stream(&path).unwrap();
    tokio::spawn(stream::serve(listener, node.clone() as Arc<dyn Node>));
    let connection = Connection::new(socket::connect_stream(&path).unwrap()).unwrap();
    (directory, node, connection)
}

#[tokio::test]
async fn a_command_writes_to_the_callers_own_descriptor() {
    let (_directory, node, connection) = connected().await;
    let (mut reader, writer) = pipe().unwrap();
    let streams = [writer.as_fd(); 3];
    connection.send(&request("web", &["echo", "hello"], false), &streams).await.unwrap();
    assert_eq!(reply(&connection).await.0, ExecReply::Started { container: "app".to_owned() });
    assert_eq!(reply(&connection).await.0, ExecReply::Exited { code: 7 });
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "echo hello", "the server kept no copy of the descriptor, or this would not end");
    assert_eq!(node.executed.lock().unwrap()[0].0, "u1");
}

#[tokio::test]
async fn a_terminal_comes_back_as_a_descriptor() {
    let (_directory, _, connection) = connected().await;
    connection.send(&request("default/web", &["sh"], true), &[]).await.unwrap();
    let (started, mut descriptors) = reply(&connection).await;
    assert_eq!(started, ExecReply::Started { container: "app".to_owned() });
    let mut text = String::new();
    std::fs::File::from(descriptors.pop().unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "terminal");
    assert_eq!(reply(&connection).await.0, ExecReply::Exited { code: 0 });
}

#[tokio::test]
async fn what_cannot_be_run_is_explained() {
    let failure = async |request: ExecRequest, streams: usize| {
        let (_directory, _, connection) = connected().await;
        let null = std::fs::File::open("/dev/null").unwrap();
        connection.send(&request, &vec![null.as_fd(); streams]).await.unwrap();
        let (reply, _) = reply(&connection).await;
        assert!(connection.receive().await.unwrap().is_none(), "that is the end");
        match reply {
            ExecReply::Failed { not_found, not_run, message } => (not_found, not_run, message),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failure(request("nope", &["ls"], false), 3).await, (true, false, "pod nope not found".to_owned()));
    let (not_found, not_run, message) = failure(request("web", &["missing"], false), 3).await;
    assert_eq!((not_found, not_run, message.as_str()), (false, true, "exec missing: no such file"));
    assert_eq!(failure(request("web", &[], false), 3).await.2, "there is no command");
    let (.., message) = failure(request("web", &["ls"], false), 1).await;
    assert_eq!(message, "the request came without its standard streams");
    let mut ended = request("web", &["ls"], false);
    ended.container = Some("init".to_owned());
    assert_eq!(failure(ended, 3).await.2, "container init in pod default/web is not running");
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_before_it_is_sent() {
    let (_directory, _, connection) = connected().await;
    let long = "x".repeat(MAX_PACKET);
    let error = connection.send(&request("web", &[&long], false), &[]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn whoever_attaches_gets_the_output_the_size_and_the_code() {
    let (_directory, node, connection) = connected().await;
    node.pods.lock().unwrap()[0].containers[2].tty = true;
    let (mut reader, writer) = pipe().unwrap();
    let attach = |container: &str| AttachRequest {
        attach: "web".to_owned(),
        container: Some(container.to_owned()),
        wait: false,
    };
    connection.send(&attach("side"), &[writer.as_fd(); 3]).await.unwrap();
    let attached = ExecReply::Attached { container: "side".to_owned(), terminal: true };
    assert_eq!(reply(&connection).await.0, attached);
    let size = TerminalSize { rows: 24, columns: 80 };
    connection.send(&size, &[]).await.unwrap();
    node.sized.notified().await;
    assert_eq!(node.sizes.lock().unwrap().as_slice(), [("side".to_owned(), size)]);
    node.end.notify_one();
    assert_eq!(reply(&connection).await.0, ExecReply::Exited { code: 3 });
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "side");
}

#[tokio::test]
async fn a_container_that_does_not_run_is_only_waited_for_when_asked() {
    let (_directory, _, connection) = connected().await;
    let null = std::fs::File::open("/dev/null").unwrap();
    let attach = AttachRequest { attach: "web".to_owned(), container: Some("init".to_owned()), wait: false };
    connection.send(&attach, &[null.as_fd(); 3]).await.unwrap();
    let ExecReply::Failed { message, .. } = reply(&connection).await.0 else { panic!("it does not run") };
    assert_eq!(message, "container init in pod default/web is not running");
}

#[tokio::test]
async fn whoever_waits_for_a_container_is_told_what_it_waits_for() {
    let (_directory, node, connection) = connected().await;
    node.pods.lock().unwrap()[0].containers[0].name = "late".to_owned();
    let null = std::fs::File::open("/dev/null").unwrap();
    let (_reader, writer) = pipe().unwrap();
    let attach = AttachRequest { attach: "web".to_owned(), container: Some("late".to_owned()), wait: true };
    connection.send(&attach, &[null.as_fd(), writer.as_fd(), writer.as_fd()]).await.unwrap();
    assert_eq!(reply(&connection).await.0, ExecReply::Waiting { why: "ErrImagePull: nobody has it".to_owned() });
    node.end.notify_one();
    assert!(matches!(reply(&connection).await.0, ExecReply::Attached { container, .. } if container == "late"));
}
