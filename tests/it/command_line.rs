//! The program as a person meets it: exit codes, hints, and output for programs. Needs neither root nor an agent.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

/// The program, with directories of its own so that an agent of this machine is not found.
fn berth(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(arguments)
        .env("BERTH_ROOT_DIR", directory.join("root"))
        .env("BERTH_RUN_DIR", directory.join("run"))
        .env("BERTH_LOG_DIR", directory.join("log"))
        .env_remove("BERTH_CGROUP_ROOT")
        .output()
        .expect("the program runs")
}

fn scratch() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Every command that needs an agent, with the least it can be called with.
const ASKING: &[&[&str]] = &[
    &["pods"],
    &["ps"],
    &["inspect", "web"],
    &["logs", "web"],
    &["exec", "web", "--", "true"],
    &["stats"],
    &["images"],
    &["pull", "busybox"],
    &["rmi", "busybox"],
    &["gc"],
];

#[test]
fn help_and_version_succeed_and_go_to_standard_output() {
    let directory = scratch();
    for arguments in [&["--help"][..], &["help"], &["node", "--help"], &["help", "exec"], &["--version"]] {
        let output = berth(directory.path(), arguments);
        assert_eq!(code(&output), 0, "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
    let help = stdout(&berth(directory.path(), &["--help"]));
    for command in ASKING.iter().map(|arguments| arguments[0]).chain(["node", "doctor", "check-config", "completions"])
    {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} is not in\n{help}");
    }
}

#[test]
fn mistakes_on_the_command_line_are_told_with_exit_code_2() {
    let directory = scratch();
    let cases: [&[&str]; 7] = [
        &[],
        &["frobnicate"],
        &["pods", "--frobnicate"],
        &["pods", "-o", "xml"],
        &["exec", "web", "ls"],
        &["rmi"],
        &["node", "--manifest-url-header", "no colon"],
    ];
    for arguments in cases {
        let output = berth(directory.path(), arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_an_agent_every_command_says_so_and_what_to_do() {
    let directory = scratch();
    for arguments in ASKING {
        let output = berth(directory.path(), arguments);
        assert_eq!(code(&output), 69, "{arguments:?}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(said.starts_with("berth: "), "{arguments:?}: {said}");
        assert!(said.contains("\nhint: "), "{arguments:?}: {said}");
        assert!(said.contains(&directory.path().join("run").display().to_string()), "{arguments:?}: {said}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    assert!(!directory.path().join("run").exists(), "asking makes no directories");
}

#[test]
fn directories_may_stand_before_or_after_the_command() {
    let directory = scratch();
    let place = directory.path().join("elsewhere").display().to_string();
    for arguments in [["--run-dir", &place, "pods"], ["pods", "--run-dir", &place]] {
        let output = berth(directory.path(), &arguments);
        assert_eq!(code(&output), 69);
        assert!(stderr(&output).contains(&place), "{}", stderr(&output));
    }
}

#[test]
fn version_works_without_an_agent() {
    let directory = scratch();
    let output = berth(directory.path(), &["version", "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(value["client"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["agent"], Value::Null);
    let text = stdout(&berth(directory.path(), &["version"]));
    assert_eq!(text, format!("berth {}\nagent not running\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_are_printed_for_every_shell() {
    let directory = scratch();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = berth(directory.path(), &["completions", shell]);
        assert_eq!(code(&output), 0, "{shell}");
        let script = stdout(&output);
        assert!(script.contains("berth") && script.contains("check-config"), "{shell}");
    }
    assert_eq!(code(&berth(directory.path(), &["completions", "tcsh"])), 2);
}

#[test]
fn doctor_speaks_json() {
    let directory = scratch();
    let output = berth(directory.path(), &["doctor", "-o", "json"]);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(findings.len() > 10);
    for finding in &findings {
        assert!(["ok", "warning", "error"].contains(&finding["verdict"].as_str().unwrap_or_default()), "{finding}");
        assert!(!finding["name"].as_str().unwrap_or_default().is_empty(), "{finding}");
    }
    let failed = findings.iter().any(|finding| finding["verdict"] == "error");
    assert_eq!(code(&output), i32::from(failed));
}

#[test]
fn a_good_configuration_is_shown_with_where_it_came_from() {
    let directory = scratch();
    let path = directory.path().join("kubelet.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\n\
                ---\napiVersion: berth.dev/v1alpha1\nkind: BerthConfiguration\nnodeName: worker\n";
    fs::write(&path, text).expect("write");
    let file = path.display().to_string();
    let arguments = ["check-config", "--config", &file, "--pod-max-pids", "99", "-o", "json"];
    let output = berth(directory.path(), &arguments);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let kubelet = &value["documents"][0];
    assert_eq!(kubelet["document"]["maxPods"], 7);
    assert!(kubelet["from"]["maxPods"].as_str().is_some_and(|from| from.contains("kubelet.yaml")), "{kubelet}");
    assert_eq!(kubelet["document"]["podPidsLimit"], 99);
    assert!(kubelet["from"]["podPidsLimit"].as_str().is_some_and(|from| from.contains("--pod-max-pids")), "{kubelet}");
    assert_eq!(value["documents"][1]["document"]["nodeName"], "worker");
}

#[test]
fn every_mistake_of_a_configuration_is_named_at_once() {
    let directory = scratch();
    let path = directory.path().join("kubelet.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: many\nmaxpods: 3\n\
                fileCheckFrequency: soon\ncpuCFSQuota: 1\ncontainerLogMaxFiles: 1\nfrobnicate: true\n\
                ---\napiVersion: berth.dev/v1\nkind: BerthConfiguration\nnetwork: {mtu: 70000}\n";
    fs::write(&path, text).expect("write");
    let file = path.display().to_string();
    for command in ["check-config", "node"] {
        let output = berth(directory.path(), &[command, "--config", &file]);
        assert_eq!(code(&output), 78, "{}", stderr(&output));
        let said = stderr(&output);
        let fields = ["maxPods", "maxpods", "fileCheckFrequency", "cpuCFSQuota", "containerLogMaxFiles", "frobnicate"];
        for field in fields.iter().chain(&["apiVersion", "network.mtu"]) {
            assert!(said.contains(&format!("{field}: ")), "{field} is not in\n{said}");
        }
        assert!(said.contains("kubelet.yaml:3"), "with the line:\n{said}");
    }
    assert!(!directory.path().join("root").exists(), "nothing was begun");
}

#[test]
fn a_configuration_that_is_not_there_is_an_error_of_the_configuration() {
    let directory = scratch();
    let output = berth(directory.path(), &["check-config", "--config", "/nonexistent/kubelet.yaml"]);
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("/nonexistent/kubelet.yaml"), "{}", stderr(&output));
}
