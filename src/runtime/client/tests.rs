//! The client against a scripted supervisor: no root, no process.

use std::{
    fs,
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command},
    thread,
};

use super::*;
use crate::{
    store::layout::Layout,
    supervisor::protocol::{MAX_PACKET, Message, Request},
};

/// A pod's directories with a listening socket, and a process that stands for the supervisor.
struct Fake {
    _temporary: tempfile::TempDir,
    directories: PodDirs,
    listener: OwnedFd,
    process: Child,
}

impl Fake {
    fn new() -> Fake {
        let temporary = tempfile::tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        let layout = Layout { root: path("root"), run: path("run"), log: path("log") };
        let directories = layout.pod("uid", "default", "pod");
        fs::create_dir_all(&directories.run).unwrap();
        let listener = seqpacket::listen(&directories.run, supervisor::SOCKET).unwrap();
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        let fake = Fake { _temporary: temporary, directories, listener, process };
        fake.record(|_| {});
        fake
    }

    fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    fn record(&self, change: impl FnOnce(&mut Identity)) {
        let mut identity = Identity::of(self.pid()).unwrap();
        change(&mut identity);
        durable::write_json(&self.directories.supervisor_file(), &identity).unwrap();
    }

    /// Serves one connection on a thread: Hello by itself, then what `script` does with the socket.
    fn serve(&self, script: impl FnOnce(&OwnedFd) + Send + 'static) {
        let listener = self.listener.try_clone().unwrap();
        let snapshot = Snapshot {
            version: VERSION,
            pid: self.pid(),
            start_time: process::start_time(self.pid()).unwrap(),
            running: vec![],
            warnings: vec![],
        };
        thread::spawn(move || {
            let socket = loop {
                match seqpacket::accept(listener.as_fd()).unwrap() {
                    Some(socket) => break socket,
                    None => thread::yield_now(),
                }
            };
            let Request { id, call } = receive(&socket);
            assert!(matches!(call, Call::Hello { version: VERSION }));
            send(&socket, &Message::Reply { id, answer: Answer::Hello(snapshot) });
            script(&socket);
        });
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn receive(socket: &OwnedFd) -> Request {
    loop {
        match seqpacket::receive(socket.as_fd(), MAX_PACKET) {
            Ok(packet) => return serde_json::from_slice(&packet.unwrap().bytes).unwrap(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn send(socket: &OwnedFd, message: &Message) {
    seqpacket::send(socket.as_fd(), &serde_json::to_vec(message).unwrap(), &[]).unwrap();
}

fn running(container: &str) -> RunningContainer {
    RunningContainer {
        container: container.into(),
        attempt: 1,
        id: String::new(),
        pid: 1,
        started_at: 2,
        stages: vec![],
        user: (0, 0, vec![]),
    }
}

#[tokio::test]
async fn replies_find_their_callers_in_any_order_and_events_pass() {
    let fake = Fake::new();
    fake.serve(|socket| {
        let requests = [receive(socket), receive(socket)];
        send(socket, &Message::Exited { container: "old".into(), attempt: 3 });
        for Request { id, call } in requests.into_iter().rev() {
            let Call::Start { dir, .. } = call else { panic!("{call:?}") };
            let answer = Answer::Started(running(dir.to_str().unwrap()));
            send(socket, &Message::Reply { id, answer });
        }
        receive(socket);
    });
    let mut connected = Supervisor::reconnect(&fake.directories).await.unwrap();
    assert_eq!(connected.supervisor.pid(), fake.pid());
    let (one, two) = (PathBuf::from("/one"), PathBuf::from("/two"));
    let (first, second) =
        tokio::join!(connected.supervisor.start(&one, false), connected.supervisor.start(&two, false));
    assert_eq!((first.unwrap().unwrap(), second.unwrap().unwrap()), (running("/one"), running("/two")));
    assert_eq!(connected.events.recv().await, Some(Event::Exited { container: "old".into(), attempt: 3 }));
}

#[tokio::test(start_paused = true)]
async fn a_hung_supervisor_costs_a_deadline_and_no_more() {
    let fake = Fake::new();
    // Connections are queued, nobody ever answers.
    let error = Supervisor::reconnect(&fake.directories).await.unwrap_err();
    assert!(matches!(error, ClientError::Deadline { after: RECONNECT, .. }), "{error}");
}

#[tokio::test]
async fn a_supervisor_that_is_not_there_is_told_from_one_that_is_someone_else() {
    let fake = Fake::new();
    fake.record(|identity| identity.boot_id = "another".into());
    let error = Supervisor::reconnect(&fake.directories).await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
    // The record names a living process, but it is not the one that answers.
    let record = Identity::of(std::process::id() as i32).unwrap();
    durable::write_json(&fake.directories.supervisor_file(), &record).unwrap();
    fake.serve(|_| {});
    let error = Supervisor::reconnect(&fake.directories).await.unwrap_err();
    assert!(matches!(error, ClientError::Identity { .. }), "{error}");
    fake.record(|_| {});
    fs::remove_file(fake.directories.supervisor_socket()).unwrap();
    let error = Supervisor::reconnect(&fake.directories).await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[tokio::test]
async fn the_end_of_the_process_ends_every_wait() {
    let mut fake = Fake::new();
    let (sender, asked) = oneshot::channel();
    fake.serve(|socket| {
        receive(socket);
        sender.send(()).unwrap();
    });
    let mut connected = Supervisor::reconnect(&fake.directories).await.unwrap();
    let supervisor = connected.supervisor.clone();
    let call = tokio::spawn(async move { supervisor.kill("app").await });
    asked.await.unwrap();
    fake.process.kill().unwrap();
    assert!(matches!(call.await.unwrap(), Err(ClientError::Gone)));
    assert_eq!(connected.events.recv().await, Some(Event::Gone));
    assert_eq!(connected.events.recv().await, None);
    assert!(matches!(connected.supervisor.observe().await, Err(ClientError::Gone)));
}

#[tokio::test]
async fn a_connection_lost_to_a_living_process_is_not_called_its_end() {
    let fake = Fake::new();
    fake.serve(|_| {});
    let mut connected = Supervisor::reconnect(&fake.directories).await.unwrap();
    assert_eq!(connected.events.recv().await, Some(Event::Lost));
}

#[tokio::test]
async fn an_exec_that_nobody_waits_for_any_more_is_killed() {
    let fake = Fake::new();
    let (sender, killed) = oneshot::channel();
    let (asked, asking) = oneshot::channel();
    let (dropped, go_on) = std::sync::mpsc::channel();
    fake.serve(move |socket| {
        let Request { id, call } = receive(socket);
        assert!(matches!(call, Call::Exec(_)));
        asked.send(()).unwrap();
        go_on.recv().unwrap();
        send(socket, &Message::Reply { id, answer: Answer::ExecStarted { exec: 9, pid: 1 } });
        sender.send(receive(socket).call).unwrap();
    });
    let connected = Supervisor::reconnect(&fake.directories).await.unwrap();
    let supervisor = connected.supervisor.clone();
    let spec = ExecSpec { container: "app".into(), tty: true, ..ExecSpec::default() };
    let call = tokio::spawn(async move { supervisor.exec(spec, vec![]).await.map(|_| ()) });
    asking.await.unwrap();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    dropped.send(()).unwrap();
    assert_eq!(killed.await.unwrap(), Call::ExecKill { exec: 9 });
}
