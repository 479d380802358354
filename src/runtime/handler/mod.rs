//! RuntimeClass handlers that are OCI runtimes: which there are, what each can do, and what it is given to make.
//!
//! The supervisor of a pod calls them ([`crate::supervisor::handler`]); nothing of a pod without such a handler comes
//! through here.

pub mod bundle;
pub mod features;
mod program;

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;

pub use self::{features::Features, program::ProgramError};
use crate::supervisor::spec::HandlerSpec;

/// The longest that a runtime may take to say what it can do, or to forget a container.
const BRIEF: Duration = Duration::from_secs(10);

/// A handler of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HandlerConfig {
    /// As RuntimeClasses have it.
    pub name: String,
    /// Absolute path of the runtime.
    pub path: PathBuf,
    /// Arguments before the command.
    pub arguments: Vec<String>,
    /// How long one call may take.
    pub timeout: Duration,
}

/// All handlers of the node, and what is known of them.
#[derive(Debug, Default)]
pub struct Handlers {
    handlers: BTreeMap<String, Handler>,
}

#[derive(Debug)]
struct Handler {
    config: HandlerConfig,
    /// What the program at this path said, as long as it is the same file.
    known: Mutex<Option<(Identity, Arc<Features>)>>,
}

/// Tells a program from the one that replaced it: device, inode, size, time of the last change.
type Identity = (u64, u64, u64, i64, i64);

impl Handlers {
    /// Those of the configuration. Nothing is run before a pod needs it.
    pub fn new(configured: &[HandlerConfig]) -> Handlers {
        let handler = |config: &HandlerConfig| Handler { config: config.clone(), known: Mutex::default() };
        Handlers { handlers: configured.iter().map(|config| (config.name.clone(), handler(config))).collect() }
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.handlers.keys().map(String::as_str)
    }

    /// A handler by its name.
    pub fn config(&self, name: &str) -> Option<&HandlerConfig> {
        self.handlers.get(name).map(|handler| &handler.config)
    }

    /// What the runtime of a handler can do, asked once for each program at its path. Blocks, for a bounded time.
    ///
    /// # Errors
    /// It cannot be run, or does not end. One that knows no `features` is another matter ([`Features::unknown`]).
    pub fn features(&self, name: &str) -> Result<Arc<Features>, ProgramError> {
        let Some(handler) = self.handlers.get(name) else { return Ok(Arc::default()) };
        let path = &handler.config.path;
        let metadata =
            std::fs::metadata(path).map_err(|source| ProgramError::Start { program: path.clone(), source })?;
        let identity = (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        // Held while the program is asked: two pods would only ask it twice.
        let mut known = handler.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((of, features)) if *of == identity => return Ok(features.clone()),
            _ => {}
        }
        let arguments = handler.config.arguments.iter().map(String::as_str).chain(["features"]);
        let features = match program::output(path, arguments, handler.config.timeout.min(BRIEF)) {
            Ok(text) => Features::parse(&text),
            Err(ProgramError::Failed { .. }) => Features::unknown(),
            Err(error) => return Err(error),
        };
        let features = Arc::new(features);
        *known = Some((identity, features.clone()));
        Ok(features)
    }
}

/// Has a runtime forget the container `id`, with all that is left of it: where the supervisor that would do so has not
/// lived to. Blocks, for a bounded time.
///
/// # Errors
/// What the runtime said.
pub fn forget(handler: &HandlerSpec, id: &str) -> Result<(), ProgramError> {
    let state = handler.state.to_string_lossy();
    let own = handler.arguments.iter().map(String::as_str);
    let arguments = own.chain(["--root", &state, "delete", "--force", id]);
    program::output(&handler.program, arguments, Duration::from_millis(handler.time_limit).min(BRIEF)).map(drop)
}
