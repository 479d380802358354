//! A control plane under test, and kubectl as a person would use it.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::berth;

/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);

/// `berth control-plane` on loopback, at a port that was free.
pub struct ControlPlane {
    /// Its root directory, kubectl's home, and what tests put beside them.
    pub directory: TempDir,
    child: Option<Child>,
    more: Vec<String>,
    port: u16,
}

/// The kubectl under test: `$KUBECTL`, or the one in the path.
pub fn kubectl_program() -> PathBuf {
    std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()).into()
}

impl ControlPlane {
    /// Starts one and waits until it says that it listens.
    pub fn start(more: &[&str]) -> Result<ControlPlane> {
        let directory = tempfile::Builder::new().prefix("berth-control-").tempdir()?;
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        let mut control = ControlPlane { directory, child: None, more, port: 0 };
        control.begin()?;
        Ok(control)
    }

    /// Starts it where it was before.
    pub fn begin(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"))?;
        let mut command = Command::new(berth());
        command.arg("--root-dir").arg(self.path("root"));
        command.args(["control-plane", "--secure-port", &self.port.to_string(), "--write-kubeconfig"]);
        command.arg(self.path("kubeconfig")).args(&self.more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let lines = lines(child.stdout.take().context("standard output")?);
        self.child = Some(child);
        let line = lines.recv_timeout(Duration::from_secs(20)).with_context(|| self.log())?;
        let port = line.rsplit(':').next().and_then(|port| port.trim().parse().ok());
        self.port = port.with_context(|| format!("no port in {line:?}"))?;
        Ok(())
    }

    /// A path beside the root directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map(|child| child.id() as i32).unwrap_or_default()
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// kubectl with the administrator's kubeconfig, not yet run; bounded in time.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg("--kill-after=5").arg(COMMAND.as_secs().to_string()).arg(kubectl_program());
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).args(arguments);
        command.env("HOME", self.directory.path()).env_remove("KUBECONFIG").stdin(Stdio::null());
        command
    }

    /// Runs kubectl.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().context("run kubectl")
    }

    /// Standard output of a kubectl that must succeed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).expect("kubectl runs");
        self.checked(arguments, output)
    }

    /// The same, with something on standard input.
    #[track_caller]
    pub fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.with_input(arguments, input).expect("kubectl runs");
        self.checked(arguments, output)
    }

    /// Runs kubectl with something on standard input.
    pub fn with_input(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("standard input")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    #[track_caller]
    fn checked(&self, arguments: &[&str], output: Output) -> String {
        assert!(
            output.status.success(),
            "kubectl {}: {}\n{}\nserver:\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Standard error of a kubectl that must fail.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).expect("kubectl runs");
        assert!(
            !output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// An object.
    #[track_caller]
    pub fn object(&self, arguments: &[&str]) -> Value {
        let all = [&["get", "-o", "json"], arguments].concat();
        serde_json::from_str(&self.ok(&all)).expect("JSON")
    }

    /// A kubectl that goes on; its lines come as it writes them.
    pub fn follow(&self, arguments: &[&str]) -> Result<Following> {
        let mut child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = lines(child.stdout.take().context("standard output")?);
        Ok(Following { child, lines })
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill the control plane");
            child.wait().expect("it ends");
        }
    }

    /// SIGTERM; panics when it does not end well.
    #[track_caller]
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("signal the control plane");
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("wait for the control plane") {
                assert!(status.success(), "it ended with {status}:\n{}", self.log());
                return;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                child.kill().ok();
                panic!("the control plane does not stop:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A kubectl that goes on.
pub struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    /// The next line, within twenty seconds; `None`: it has ended.
    #[track_caller]
    pub fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(Duration::from_secs(20)) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("kubectl says nothing"),
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    // Ends with the stream, or when nobody listens any more.
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The columns of a line that kubectl printed.
pub fn columns(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

/// Writes a file for kubectl.
pub fn write(path: &Path, content: &str) -> String {
    std::fs::write(path, content).expect("write a file");
    path.to_string_lossy().into_owned()
}

/// Fails when there is no kubectl, with what to do.
pub fn require_kubectl() -> Result<()> {
    let found = Command::new(kubectl_program()).args(["version", "--client"]).output();
    ensure!(found.is_ok_and(|output| output.status.success()), "no kubectl: run integration/packages.sh");
    Ok(())
}
