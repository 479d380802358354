//! Paths of files within a volume.

use super::ContentError;

/// Longest name of a file (NAME_MAX) and longest path (PATH_MAX), bytes.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4096;

/// The path without `.` and empty components. Refused are those that lead out of the volume or into what its writer
/// keeps to itself (names that begin with `..`), as upstream's `validatePath` does.
pub(super) fn clean(path: &str) -> Result<String, ContentError> {
    let refuse = |rule: String| Err(ContentError::Path(rule));
    if path.is_empty() || path.contains('\0') {
        return refuse(format!("must not be empty: {path:?}"));
    }
    if path.starts_with('/') {
        return refuse(format!("must be relative path: {path}"));
    }
    if path.len() > MAX_PATH {
        return refuse(format!("must be less than or equal to {MAX_PATH} characters"));
    }
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    for name in &names {
        if *name == ".." {
            return refuse(format!("must not contain '..': {path}"));
        }
        if name.len() > MAX_NAME {
            return refuse(format!("filenames must be less than or equal to {MAX_NAME} characters"));
        }
    }
    match names.first() {
        None => refuse(format!("must name a file: {path}")),
        Some(first) if first.starts_with("..") => refuse(format!("must not start with '..': {path}")),
        Some(_) => Ok(names.join("/")),
    }
}
