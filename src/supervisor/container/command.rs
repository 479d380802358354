//! The program: found in PATH and executed.

use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use super::error::{Failure, Step, describe};
use crate::sys::exec::{Strings, execve};

/// Where programs are looked for when the environment has no PATH: what container runtimes give an image that says
/// nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with its arguments and environment, ready for execve without further allocation.
pub(super) struct Command {
    name: String,
    candidates: Vec<CString>,
    arguments: Strings,
    environment: Strings,
}

impl Command {
    /// `arguments[0]` is the program. HOME is set to `home` where the environment has none or an empty one.
    pub(super) fn new(
        arguments: &[String],
        environment: &[(String, String)],
        home: &OsStr,
    ) -> Result<Command, Failure> {
        let step = || "prepare the command";
        let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
            return Err(Failure::refused(step(), "no command specified"));
        };
        let string = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other).step(step);
        let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
        let candidates = candidates(name, path.unwrap_or(DEFAULT_PATH));
        Ok(Command {
            name: name.clone(),
            candidates: candidates.iter().map(|path| string(path.as_bytes())).collect::<Result<_, _>>()?,
            arguments: Strings::new(
                arguments.iter().map(|argument| string(argument.as_bytes())).collect::<Result<_, _>>()?,
            ),
            environment: Strings::new(
                variables(environment, home).iter().map(|variable| string(variable)).collect::<Result<_, _>>()?,
            ),
        })
    }

    /// Becomes the program. Returns only if that fails.
    pub(super) fn execute(&self) -> Failure {
        let mut denied = None;
        for candidate in &self.candidates {
            let error = execve(candidate, &self.arguments, &self.environment);
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
                // Perhaps a later directory has one that may be executed.
                io::ErrorKind::PermissionDenied => denied = denied.or(Some(error)),
                _ => return self.failure(error, None),
            }
        }
        match denied {
            Some(error) => self.failure(error, None),
            None => self.not_found(),
        }
    }

    fn not_found(&self) -> Failure {
        let error = io::Error::from(io::ErrorKind::NotFound);
        let exists = |path: &&CString| Path::new(OsStr::from_bytes(path.as_bytes())).is_file();
        if let Some(path) = self.candidates.iter().find(exists) {
            // What is missing is what the kernel would have run for it.
            let path = path.to_string_lossy();
            return self.failure(error, Some(format!("exec {path}: no such file or directory (its interpreter)")));
        }
        let name = &self.name;
        let message = if name.contains('/') {
            format!("exec: {name:?}: stat {name}: no such file or directory")
        } else {
            format!("exec: {name:?}: executable file not found in $PATH")
        };
        self.failure(error, Some(message))
    }

    fn failure(&self, error: io::Error, message: Option<String>) -> Failure {
        let message = message.unwrap_or_else(|| format!("exec: {:?}: {}", self.name, describe(&error)));
        let failed: io::Result<()> = Err(error);
        let failure = failed.step(|| format!("exec {:?}", self.name)).unwrap_err();
        Failure { message: Some(message), ..failure }
    }
}

/// The paths to try for `name`: itself when it has a slash, else beneath each absolute directory of `path`. (A relative
/// one would find programs in whatever directory the process happens to be in.)
fn candidates(name: &str, path: &str) -> Vec<OsString> {
    if name.contains('/') {
        return vec![name.into()];
    }
    let directories = path.split(':').filter(|directory| directory.starts_with('/'));
    directories.map(|directory| Path::new(directory).join(name).into_os_string()).collect()
}

/// `NAME=value` strings.
fn variables(environment: &[(String, String)], home: &OsStr) -> Vec<Vec<u8>> {
    let has_home = environment.iter().any(|(name, value)| name == "HOME" && !value.is_empty());
    let given = environment.iter().filter(|(name, _)| has_home || name != "HOME");
    let mut variables: Vec<Vec<u8>> =
        given.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect();
    if !has_home {
        let mut variable = OsString::from("HOME=");
        variable.push(home);
        variables.push(variable.into_vec());
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::spec::StartError;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn path_is_searched_in_order_and_only_where_it_is_absolute() {
        assert_eq!(candidates("sh", "/usr/bin::bin:./x:/bin/"), ["/usr/bin/sh", "/bin/sh"]);
        assert_eq!(candidates("./sh", "/bin"), ["./sh"]);
        assert_eq!(candidates("/sh", ""), ["/sh"]);
        assert!(candidates("sh", "").is_empty());
    }

    #[test]
    fn home_is_added_where_it_is_missing_or_empty() {
        let text = |environment: &[(String, String)]| {
            variables(environment, OsStr::new("/root")).concat().escape_ascii().to_string()
        };
        assert_eq!(text(&[pair("A", "1")]), "A=1HOME=/root");
        assert_eq!(text(&[pair("HOME", ""), pair("A", "1")]), "A=1HOME=/root");
        assert_eq!(text(&[pair("HOME", "/x")]), "HOME=/x");
    }

    #[test]
    fn failures_are_those_of_upstream() {
        let failure = |name: &str, path: &str| {
            let command = Command::new(&[name.to_owned()], &[pair("PATH", path)], OsStr::new("/")).unwrap();
            let error = StartError::from(command.execute());
            assert_eq!(error.reason, "StartError");
            error.message
        };
        assert_eq!(failure("nope", "/usr/bin:/bin"), "exec: \"nope\": executable file not found in $PATH");
        assert_eq!(failure("/nope", ""), "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!(failure("/etc/passwd", ""), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(failure("passwd", "/bin/none:/etc"), "exec: \"passwd\": permission denied");
        assert!(Command::new(&[], &[], OsStr::new("/")).is_err());
        assert!(Command::new(&["a\0b".to_owned()], &[], OsStr::new("/")).is_err());
    }

    #[test]
    fn a_missing_interpreter_is_not_a_missing_program() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(&script, "#!/no/such/shell\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let name = script.to_str().unwrap();
        let command = Command::new(&[name.to_owned()], &[], OsStr::new("/")).unwrap();
        let error = StartError::from(command.execute());
        assert_eq!(error.message, format!("exec {name}: no such file or directory (its interpreter)"));
    }
}
