//! The three files of a pod: computed together, written where containers bind them from.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

use super::{
    host_network,
    hostname::{HostnameError, PodHostname},
    hosts_file,
    resolv_conf::{self, DnsConfig, Warning},
};
use crate::store::layout::PodDirs;

/// What the node's own files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNames {
    /// Resolver and cluster.
    pub dns: DnsConfig,
    /// Text of the node's `/etc/hosts`, for pods in its network.
    pub hosts_file: String,
    /// The node's host name, for pods in its network.
    pub hostname: String,
}

/// Contents of a pod's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFiles {
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/hostname`.
    pub hostname: String,
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// What was left out of the resolver configuration, and why.
    pub warnings: Vec<Warning>,
}

impl PodFiles {
    /// The files of `pod`, which has `addresses` (none of them needed in the host's network).
    pub fn generate(pod: &Pod, node: &NodeNames, addresses: &[IpAddr]) -> Result<PodFiles, HostnameError> {
        let names = PodHostname::of(pod, &node.dns.cluster_domain)?;
        let hostname = if host_network(pod) { &node.hostname } else { &names.nodename };
        let resolver = resolv_conf::generate(pod, &node.dns);
        Ok(PodFiles {
            hosts: hosts_file::generate(pod, &names, addresses, &node.hosts_file),
            hostname: format!("{hostname}\n"),
            resolv_conf: resolver.resolver.to_text(),
            warnings: resolver.warnings,
        })
    }
}

/// Reads the resolver configuration that pods inherit. When `configured` (usually /etc/resolv.conf) is
/// systemd-resolved's stub and `resolved` ([`resolv_conf::RESOLVED_FILE`]) exists, that one is read instead.
pub fn read_host_resolv_conf(configured: &Path, resolved: &Path) -> Result<String, ReadError> {
    let text = fs::read_to_string(configured).map_err(|source| ReadError { path: configured.to_owned(), source })?;
    if !resolv_conf::is_resolved_stub(&text) {
        return Ok(text);
    }
    match fs::read_to_string(resolved) {
        Ok(upstream) => Ok(upstream),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(text),
        Err(source) => Err(ReadError { path: resolved.to_owned(), source }),
    }
}

/// A file of the node could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {path}")]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// A file of a pod could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {path}")]
pub struct FileError {
    /// The file (or its directory).
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Writes the files into `<pod dir>/etc`, mode 0644. A file that is right already is left alone; another is
/// changed in place, because running containers have it bound by its inode and would not see a new one. Nothing
/// is synced: the next start of a container writes them again.
pub fn write_files(dirs: &PodDirs, files: &PodFiles) -> Result<(), FileError> {
    let directory = dirs.etc();
    fs::create_dir_all(&directory).map_err(|source| FileError { path: directory.clone(), source })?;
    for (name, content) in [("hosts", &files.hosts), ("hostname", &files.hostname), ("resolv.conf", &files.resolv_conf)]
    {
        let path = directory.join(name);
        write_if_changed(&path, content.as_bytes()).map_err(|source| FileError { path, source })?;
    }
    Ok(())
}

fn write_if_changed(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::read(path) {
        Ok(present) if present == content => return Ok(()),
        Ok(_) => (),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    // Written over and cut to length afterwards, so that no reader finds it empty.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    file.set_permissions(Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::{network::testing::pod, store::layout::Layout};

    fn node() -> NodeNames {
        NodeNames {
            dns: DnsConfig {
                cluster_domain: "cluster.local".to_owned(),
                host_resolv_conf: Some("nameserver 192.0.2.53\n".to_owned()),
                ..DnsConfig::default()
            },
            hosts_file: "127.0.0.1 localhost\n".to_owned(),
            hostname: "node-1".to_owned(),
        }
    }

    #[test]
    fn host_name_follows_the_network() {
        let address = ["10.85.0.2".parse().unwrap()];
        assert_eq!(PodFiles::generate(&pod(|_| ()), &node(), &address).unwrap().hostname, "web\n");
        let pod = pod(|spec| spec.host_network = Some(true));
        let files = PodFiles::generate(&pod, &node(), &[]).unwrap();
        assert_eq!(files.hostname, "node-1\n");
        assert!(files.hosts.ends_with("127.0.0.1 localhost\n"));
        assert_eq!(files.resolv_conf, "nameserver 192.0.2.53\n");
    }

    #[test]
    fn files_keep_their_inode_and_are_only_touched_when_they_change() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            root: directory.path().join("root"),
            run: directory.path().join("run"),
            log: directory.path().join("log"),
        };
        let dirs = layout.pod("uid", "ns", "web");
        let mut files = PodFiles::generate(&pod(|_| ()), &node(), &["10.85.0.2".parse().unwrap()]).unwrap();
        write_files(&dirs, &files).unwrap();
        let hosts = dirs.etc().join("hosts");
        let before = fs::metadata(&hosts).unwrap();
        assert_eq!(before.mode() & 0o777, 0o644);

        let same = fs::metadata(&hosts).unwrap().modified().unwrap();
        write_files(&dirs, &files).unwrap();
        assert_eq!(fs::metadata(&hosts).unwrap().modified().unwrap(), same);

        files.hosts = "shorter\n".to_owned();
        write_files(&dirs, &files).unwrap();
        assert_eq!(fs::read_to_string(&hosts).unwrap(), "shorter\n");
        assert_eq!(fs::metadata(&hosts).unwrap().ino(), before.ino());
        assert_eq!(fs::read_to_string(dirs.etc().join("hostname")).unwrap(), "web\n");
    }

    #[test]
    fn the_stub_is_replaced_by_what_it_stands_for() {
        let directory = tempfile::tempdir().unwrap();
        let [configured, resolved] = ["resolv.conf", "resolved.conf"].map(|name| directory.path().join(name));
        let read = || read_host_resolv_conf(&configured, &resolved);
        assert!(read().unwrap_err().to_string().ends_with("/resolv.conf"));
        fs::write(&configured, "nameserver 127.0.0.53\n").unwrap();
        assert_eq!(read().unwrap(), "nameserver 127.0.0.53\n", "nothing better is there");
        fs::write(&resolved, "nameserver 192.0.2.53\n").unwrap();
        assert_eq!(read().unwrap(), "nameserver 192.0.2.53\n");
        fs::write(&configured, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(read().unwrap(), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            root: directory.path().join("root"),
            run: directory.path().join("run"),
            log: directory.path().join("log"),
        };
        let dirs = layout.pod("uid", "ns", "web");
        fs::create_dir_all(dirs.etc().join("hostname")).unwrap();
        let files = PodFiles::generate(&pod(|_| ()), &node(), &[]).unwrap();
        let error = write_files(&dirs, &files).unwrap_err();
        assert!(error.to_string().ends_with("etc/hostname"), "{error}");
    }
}
