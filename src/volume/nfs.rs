//! nfs: mounted by mount(8), which knows how to talk a server into it (`pkg/volume/nfs/nfs.go` upstream).

use std::{
    net::Ipv6Addr,
    path::Path,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{VolumeError, error::io_error, mount_table};

/// A file system of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nfs {
    /// Name or address.
    pub server: String,
    /// What the server exports, absolute.
    pub path: String,
    /// Nobody may write.
    pub read_only: bool,
    /// `mountOptions` of a PersistentVolume.
    pub options: Vec<String>,
}

impl Nfs {
    /// As mount(8) takes it: `server:/path`.
    fn source(&self) -> String {
        match self.server.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{}]:{}", self.server, self.path),
            Err(_) => format!("{}:{}", self.server, self.path),
        }
    }

    fn arguments(&self, target: &Path) -> Vec<String> {
        let mut options: Vec<&str> = if self.read_only { vec!["ro"] } else { Vec::new() };
        for option in &self.options {
            if !options.contains(&option.as_str()) {
                options.push(option);
            }
        }
        let mut arguments = vec!["-t".to_owned(), "nfs".to_owned()];
        if !options.is_empty() {
            arguments.extend(["-o".to_owned(), options.join(",")]);
        }
        arguments.extend([self.source(), target.display().to_string()]);
        arguments
    }
}

/// Mounts it on `target`, unless something is mounted there. May take as long as the server likes: only for a process
/// that can be killed.
pub fn mount(nfs: &Nfs, target: &Path) -> Result<(), VolumeError> {
    super::empty_dir::create(target)?;
    // Not a look at the place itself, which a server that is gone would never answer.
    let points = mount_table::mount_points().map_err(io_error("read the mount table for", target))?;
    if points.iter().any(|point| point == target) {
        return Ok(());
    }
    let arguments = nfs.arguments(target);
    let run = Command::new("mount").args(&arguments).stdin(Stdio::null()).stderr(Stdio::piped()).output();
    let output = run.map_err(io_error("run mount(8) for", target))?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(VolumeError::MountProgram {
        status: output.status.to_string(),
        arguments: arguments.join(" "),
        output: said.trim().replace('\n', "; "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_is_called_as_upstream_calls_it() {
        let arguments = |server: &str, read_only: bool, options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            let nfs = Nfs { server: server.to_owned(), path: "/export".to_owned(), read_only, options };
            nfs.arguments(Path::new("/pod/volume")).join(" ")
        };
        assert_eq!(arguments("files.example", false, &[]), "-t nfs files.example:/export /pod/volume");
        assert_eq!(
            arguments("192.0.2.7", true, &["nfsvers=4.2", "ro", "soft"]),
            "-t nfs -o ro,nfsvers=4.2,soft 192.0.2.7:/export /pod/volume"
        );
        assert_eq!(arguments("2001:db8::7", false, &[]), "-t nfs [2001:db8::7]:/export /pod/volume");
    }
}
