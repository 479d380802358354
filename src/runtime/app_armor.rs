//! AppArmor on this node: whether the kernel has it, which profiles are loaded, and a default one of our own.
//!
//! Not tried on a kernel with AppArmor: what is here keeps to the kernel's documented files
//! (`Documentation/admin-guide/LSM/apparmor.rst`) and to apparmor_parser(8), and says so where something is missing.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::api::app_armor::Profile;

/// Name of the profile that RuntimeDefault stands for.
pub const DEFAULT: &str = "berth-default";

/// What a container may do whose capabilities, namespaces and system calls are bounded already: anything but change or
/// read what is the machine's. It needs no included files, so that it is the same everywhere.
const DEFAULT_TEXT: &str = "\
profile berth-default flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  unix,
  umount,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=berth-default,
  ptrace (trace, tracedby, read, readby) peer=berth-default,

  deny mount,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /proc/{acpi,bus,fs,irq,scsi}/** wl,
  deny /proc/sys/{abi,debug,dev,fs,sunrpc,user,vm}/** wl,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/{debug,security,tracing}/** rwklx,
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wl,
}
";

/// For apparmor_parser to compile and load a profile: a second at most on any machine.
const PARSER: Duration = Duration::from_secs(30);

/// Why a profile cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// The kernel has no AppArmor, or it is switched off.
    #[error("AppArmor is not enabled on the host")]
    Disabled,
    /// The kernel's list of profiles.
    #[error("read the loaded profiles from {path}")]
    Profiles {
        /// `/sys/kernel/security/apparmor/profiles`.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The administrator has not loaded it.
    #[error("apparmor profile not found {0}")]
    NotLoaded(String),
    /// What loads profiles is not installed.
    #[error("apparmor_parser, which has to load the default profile, is not installed")]
    NoParser,
    /// It could not be run.
    #[error("run {path}")]
    Run {
        /// The program.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It refused the profile, or took too long.
    #[error("{path} does not load the default profile: {message}")]
    Refused {
        /// The program.
        path: PathBuf,
        /// What it said.
        message: String,
    },
}

/// AppArmor as this machine has it.
#[derive(Debug)]
pub struct AppArmor {
    enabled: bool,
    profiles: PathBuf,
    parsers: Vec<PathBuf>,
    /// Held while the default profile is loaded, which only one container has to do.
    loading: Mutex<()>,
}

impl AppArmor {
    /// Looks at the machine.
    pub fn detect() -> AppArmor {
        AppArmor::at(Path::new("/"))
    }

    /// The same beneath another root.
    fn at(root: &Path) -> AppArmor {
        let enabled = fs::read_to_string(root.join("sys/module/apparmor/parameters/enabled"));
        AppArmor {
            enabled: enabled.is_ok_and(|text| text.starts_with('Y')),
            profiles: root.join("sys/kernel/security/apparmor/profiles"),
            parsers: ["sbin", "usr/sbin"].map(|place| root.join(place).join("apparmor_parser")).to_vec(),
            loading: Mutex::default(),
        }
    }

    /// Whether the kernel enforces profiles.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The name of a profile that is loaded when this returns; `None`: nothing is to be done. Blocks for the time of a
    /// program when the default profile is asked for the first time.
    pub fn ensure(&self, profile: &Profile) -> Result<Option<String>, AppArmorError> {
        match profile {
            Profile::Unconfined => Ok(None),
            _ if !self.enabled => Err(AppArmorError::Disabled),
            Profile::Localhost(name) if self.is_loaded(name)? => Ok(Some(name.clone())),
            Profile::Localhost(name) => Err(AppArmorError::NotLoaded(name.clone())),
            Profile::RuntimeDefault => {
                let _one = self.loading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if !self.is_loaded(DEFAULT)? {
                    self.load_default()?;
                }
                Ok(Some(DEFAULT.to_owned()))
            }
        }
    }

    /// A line is `name (mode)`; a name may have spaces and parentheses in it.
    fn is_loaded(&self, name: &str) -> Result<bool, AppArmorError> {
        let text = fs::read_to_string(&self.profiles)
            .map_err(|source| AppArmorError::Profiles { path: self.profiles.clone(), source })?;
        Ok(text.lines().any(|line| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name)))
    }

    fn load_default(&self) -> Result<(), AppArmorError> {
        let path = self.parsers.iter().find(|path| path.exists()).ok_or(AppArmorError::NoParser)?;
        run_parser(path, &["--replace", "--skip-cache"])
    }
}

/// Runs the parser on the default profile.
fn run_parser(path: &Path, arguments: &[&str]) -> Result<(), AppArmorError> {
    let failed = |source| AppArmorError::Run { path: path.to_owned(), source };
    let refused = |message: String| AppArmorError::Refused { path: path.to_owned(), message };
    let mut command = Command::new(path);
    let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // It may end without having read everything; its exit code says more.
        let _ = input.write_all(DEFAULT_TEXT.as_bytes());
    }
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if begun.elapsed() > PARSER {
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
            return Err(refused(format!("it did not end within {} seconds", PARSER.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if status.success() {
        return Ok(());
    }
    let mut message = String::new();
    if let Some(errors) = child.stderr.take() {
        errors.take(4096).read_to_string(&mut message).map_err(failed)?;
    }
    Err(refused(message.trim().replace('\n', "; ")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A machine with these loaded profiles and a parser that does this.
    fn machine(enabled: &str, profiles: Option<&str>, parser: Option<&str>) -> (tempfile::TempDir, AppArmor) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        write("sys/module/apparmor/parameters/enabled", enabled);
        if let Some(profiles) = profiles {
            write("sys/kernel/security/apparmor/profiles", profiles);
        }
        if let Some(parser) = parser {
            write("usr/sbin/apparmor_parser", &format!("#!/bin/sh\n{parser}\n"));
        }
        let app_armor = AppArmor::at(root.path());
        (root, app_armor)
    }

    fn local(name: &str) -> Profile {
        Profile::Localhost(name.to_owned())
    }

    #[test]
    fn without_the_kernels_part_nothing_is_confined_in_silence() {
        let (_root, absent) = machine("N\n", None, None);
        assert!(!absent.is_enabled());
        assert_eq!(absent.ensure(&Profile::Unconfined).unwrap(), None);
        for profile in [Profile::RuntimeDefault, local("mine")] {
            assert_eq!(absent.ensure(&profile).unwrap_err().to_string(), "AppArmor is not enabled on the host");
        }
    }

    #[test]
    fn a_local_profile_has_to_be_loaded_by_its_whole_name() {
        let (_root, node) = machine("Y\n", Some("mine (enforce)\nodd (name) (complain)\nns://deep (enforce)\n"), None);
        for name in ["mine", "odd (name)", "ns://deep"] {
            assert_eq!(node.ensure(&local(name)).unwrap().as_deref(), Some(name));
        }
        for name in ["min", "odd", "deep", ""] {
            let error = node.ensure(&local(name)).unwrap_err();
            assert_eq!(error.to_string(), format!("apparmor profile not found {name}"));
        }
        let (_root, hidden) = machine("Y\n", None, None);
        assert!(matches!(hidden.ensure(&local("mine")), Err(AppArmorError::Profiles { .. })));
    }

    #[test]
    fn the_default_profile_is_loaded_once_by_the_parser() {
        let (_root, without) = machine("Y\n", Some(""), None);
        assert!(matches!(without.ensure(&Profile::RuntimeDefault), Err(AppArmorError::NoParser)));
        let (_root, refusing) = machine("Y\n", Some(""), Some("cat >/dev/null; echo 'syntax: bad' >&2; exit 1"));
        let error = refusing.ensure(&Profile::RuntimeDefault).unwrap_err().to_string();
        assert!(error.ends_with("does not load the default profile: syntax: bad"), "{error}");
        // One that does what a real one does to the kernel's list, and notes that it was run.
        let loads = "d=$(dirname $0)/../..; echo run >>$d/runs; \
                     sed -n 's/^profile \\([^ ]*\\) .*/\\1 (enforce)/p' >>$d/sys/kernel/security/apparmor/profiles";
        let (root, loading) = machine("Y\n", Some("other (enforce)\n"), Some(loads));
        for _ in 0..2 {
            assert_eq!(loading.ensure(&Profile::RuntimeDefault).unwrap().as_deref(), Some(DEFAULT));
        }
        assert_eq!(fs::read_to_string(root.path().join("runs")).unwrap(), "run\n");
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn the_default_profile_is_understood_by_the_real_parser() {
        // Compiled, not loaded: that the kernel cannot do everywhere.
        run_parser(Path::new("/usr/sbin/apparmor_parser"), &["--skip-kernel-load", "--skip-cache"]).unwrap();
    }
}
