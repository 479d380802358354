//! Kernel settings of the host that pods need, and a record of what they were before.
//!
//! The record is written, durably, before a setting is changed, and is stamped with the boot: after a reboot the
//! settings are the machine's own again and an old record means nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

const VERSION: u32 = 1;
const FILE: &str = "sysctls.json";

/// What was changed, in order. Stored as `<state dir>/sysctls.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    boot_id: String,
    /// `(name under /proc/sys, value before)`.
    previous: Vec<(String, String)>,
}

/// The settings of the network namespace of whoever calls.
#[derive(Debug)]
pub(crate) struct Sysctls {
    file: PathBuf,
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::Sysctl { step, path, source }
}

fn state(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::State { step, path, source }
}

/// File of the setting `name`, written with slashes: `net/ipv4/ip_forward`.
fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// Value of a setting; `None` when the kernel does not have it.
pub(crate) fn read(name: &str) -> Result<Option<String>, NetworkError> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

fn write(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = path(name);
    fs::write(&path, value).map_err(failed("write", &path))
}

/// Sets `name` unless it is so already or does not exist; nothing is recorded, for what vanishes with its interface.
pub(crate) fn set_unrecorded(name: &str, value: &str) -> Result<(), NetworkError> {
    match read(name)? {
        Some(current) if current != value => write(name, value),
        _ => Ok(()),
    }
}

impl Sysctls {
    pub(crate) fn new(state_dir: &Path) -> Sysctls {
        Sysctls { file: state_dir.join(FILE) }
    }

    /// Forwards IPv4 between pods and the rest.
    pub(crate) fn forward_v4(&self) -> Result<(), NetworkError> {
        let name = "net/ipv4/ip_forward";
        if read(name)?.as_deref() == Some("1") {
            return Ok(());
        }
        // The kernel changes this one along with ip_forward (inet_forward_change, net/ipv4/devinet.c). It comes
        // first so that it is restored last.
        self.record(&["net/ipv4/conf/all/accept_redirects", name])?;
        write(name, "1")
    }

    /// Forwards IPv6. A forwarding host ignores router advertisements unless told otherwise, and would lose an
    /// address and default route it has from one: interfaces that accept them are told to go on.
    pub(crate) fn forward_v6(&self, bridge: &str) -> Result<(), NetworkError> {
        let name = "net/ipv6/conf/all/forwarding";
        if read(name)?.is_none_or(|value| value == "1") {
            return Ok(());
        }
        let directory = path("net/ipv6/conf");
        let interfaces: Vec<String> = fs::read_dir(&directory)
            .map_err(failed("read", &directory))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|interface| interface != "all" && interface != "lo" && interface != bridge)
            .collect();
        let mut changed = Vec::new();
        let mut accepting = Vec::new();
        for interface in interfaces {
            // "All" overwrites every interface, there and back: one that was set by itself is restored by itself.
            let forwarding = format!("net/ipv6/conf/{interface}/forwarding");
            if read(&forwarding)?.is_some_and(|value| value != "0") {
                changed.push(forwarding);
            }
            let accept = format!("net/ipv6/conf/{interface}/accept_ra");
            if interface != "default" && read(&accept)?.is_some_and(|value| value == "1") {
                accepting.push(accept);
            }
        }
        changed.extend(accepting.iter().cloned());
        changed.push(name.to_owned());
        self.record(&changed.iter().map(String::as_str).collect::<Vec<_>>())?;
        for accept in accepting {
            write(&accept, "2")?;
        }
        write(name, "1")
    }

    /// Notes the present value of `names`, except of those noted before.
    fn record(&self, names: &[&str]) -> Result<(), NetworkError> {
        let mut record = self.load()?;
        for name in names {
            if !record.previous.iter().any(|(noted, _)| noted == name)
                && let Some(value) = read(name)?
            {
                record.previous.push(((*name).to_owned(), value));
            }
        }
        self.store(&record)
    }

    /// Puts back what was changed, the last first. Everything is attempted; an interface that is gone since is
    /// not an error.
    pub(crate) fn restore(&self) -> Result<(), NetworkError> {
        let record = self.load()?;
        let mut errors = Vec::new();
        for (name, value) in record.previous.iter().rev() {
            match read(name) {
                Ok(Some(current)) if current != *value => errors.extend(write(name, value).err()),
                Ok(_) => (),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            match fs::remove_file(&self.file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    errors.push(state("remove", &self.file)(error));
                }
                _ => (),
            }
        }
        NetworkError::collect(errors)
    }

    fn load(&self) -> Result<Record, NetworkError> {
        let boot_path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(boot_path).map_err(failed("read", boot_path))?.trim().to_owned();
        let empty = Record { version: VERSION, boot_id, previous: Vec::new() };
        match fs::read(&self.file) {
            Ok(bytes) => {
                let record: Record = serde_json::from_slice(&bytes)
                    .map_err(|error| state("decode", &self.file)(io::Error::other(error)))?;
                Ok(if record.boot_id == empty.boot_id { record } else { empty })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(empty),
            Err(error) => Err(state("read", &self.file)(error)),
        }
    }

    /// Temporary file, fsync, rename, fsync of the directory: a reader sees the old record or the new one.
    fn store(&self, record: &Record) -> Result<(), NetworkError> {
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(state("create directory of", &self.file))?;
        let bytes = serde_json::to_vec(record).map_err(|error| state("write", &self.file)(io::Error::other(error)))?;
        let temporary = self.file.with_extension("json.tmp");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .map_err(state("write", &temporary))?;
        file.write_all(&bytes).map_err(state("write", &temporary))?;
        file.sync_all().map_err(state("sync", &temporary))?;
        fs::rename(&temporary, &self.file).map_err(state("rename", &temporary))?;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(state("sync", directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_earlier_boot_means_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::new(directory.path());
        sysctls
            .store(&Record {
                version: VERSION,
                boot_id: "another".to_owned(),
                previous: vec![("net/ipv4/ip_forward".to_owned(), "7".to_owned())],
            })
            .unwrap();
        assert_eq!(sysctls.load().unwrap().previous, []);
        sysctls.restore().unwrap();
        assert!(!sysctls.file.exists());
    }

    #[test]
    fn the_first_value_noted_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::new(directory.path());
        let mut record = sysctls.load().unwrap();
        record.previous.push(("net/ipv4/ip_forward".to_owned(), "first".to_owned()));
        sysctls.store(&record).unwrap();
        sysctls.record(&["net/ipv4/ip_forward"]).unwrap();
        assert_eq!(sysctls.load().unwrap(), record);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{").unwrap();
        let error = Sysctls::new(directory.path()).restore().unwrap_err();
        assert!(error.to_string().contains("sysctls.json"), "{error}");
    }
}
