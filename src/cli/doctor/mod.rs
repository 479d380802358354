//! `berth doctor`: can this machine run pods, and what is missing?

mod host;
mod kernel;
mod users;

use std::process::ExitCode;

use serde::Serialize;

use super::{
    args::{Output, OutputArgs},
    exit::{Exit, Failed},
    output::{harmless, print, show},
};
use crate::store::layout::Layout;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Pods run, with less than they might have.
    Warning,
    /// Pods do not run.
    Error,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found and what it means.
    pub meaning: String,
    /// What to type or change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, meaning: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Ok, meaning: meaning.into(), advice: None }
    }

    fn warning(name: &'static str, meaning: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Warning, meaning: meaning.into(), advice: Some(advice.into()) }
    }

    fn error(name: &'static str, meaning: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Error, meaning: meaning.into(), advice: Some(advice.into()) }
    }
}

/// Every check, in the order in which one would repair things.
pub fn findings(layout: &Layout) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(kernel::version());
    findings.extend(kernel::calls());
    findings.extend(kernel::features());
    findings.extend(host::capabilities());
    findings.push(kernel::nftables());
    findings.extend(host::cgroups());
    findings.extend(host::forwarding());
    findings.extend(host::inotify());
    findings.push(host::file_system(&layout.root));
    findings.push(users::idmapped_mounts(&layout.root));
    findings.push(host::agent(layout));
    findings
}

/// Prints the findings; exit code 1 if one is an error.
///
/// # Errors
/// Standard output is broken.
pub fn run(layout: &Layout, args: &OutputArgs) -> Result<ExitCode, Failed> {
    let findings = findings(layout);
    match args.output {
        Output::Table | Output::Wide => print(&text(&findings))?,
        output => show(output, &findings, |_| String::new())?,
    }
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Error);
    Ok(if failed { Exit::Failure } else { Exit::Success }.into())
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Error => "error",
        };
        text.push_str(&format!("{verdict:<8} {:<20} {}\n", finding.name, harmless(&finding.meaning)));
        if let Some(advice) = &finding.advice {
            text.push_str(&format!("{:>29} {}\n", "->", harmless(advice)));
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    text.push_str(&match (count(Verdict::Error), count(Verdict::Warning)) {
        (0, 0) => "\nThis machine can run pods.\n".to_owned(),
        (0, warnings) => format!("\nThis machine can run pods ({warnings} warnings).\n"),
        (errors, _) => format!("\nThis machine cannot run pods yet ({errors} errors).\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let findings = [
            Finding::ok("kernel", "Linux 6.1"),
            Finding::warning("ip forwarding", "off", "sysctl -w net.ipv4.ip_forward=1"),
            Finding::error("overlayfs", "missing", "modprobe overlay"),
        ];
        assert_eq!(
            text(&findings),
            "\
ok       kernel               Linux 6.1
warning  ip forwarding        off
                           -> sysctl -w net.ipv4.ip_forward=1
error    overlayfs            missing
                           -> modprobe overlay

This machine cannot run pods yet (1 errors).
"
        );
        let value = serde_json::to_value(&findings).unwrap();
        assert_eq!(value[0], serde_json::json!({"name": "kernel", "verdict": "ok", "meaning": "Linux 6.1"}));
        assert_eq!(value[2]["verdict"], "error");
    }

    #[test]
    fn every_check_runs_here_and_says_something() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            root: directory.path().join("root"),
            run: directory.path().join("run"),
            log: directory.path().join("log"),
        };
        let findings = findings(&layout);
        assert!(findings.len() >= 19, "{findings:#?}");
        for finding in &findings {
            assert!(!finding.meaning.is_empty(), "{finding:?}");
            assert_eq!(finding.advice.is_some(), finding.verdict != Verdict::Ok, "{finding:?}");
        }
        assert!(!layout.root.exists(), "looking changes nothing");
    }
}
