//! Reading and writing control files, with errors that name them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use super::error::CgroupError;

/// Writes `value` in one write(2), as control files want it. The file must exist.
pub fn write(directory: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = directory.join(file);
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write { path, value: value.to_owned(), source })
}

/// As [`write()`], but a file the kernel does not have is no mistake; whether it was there.
pub fn write_if_present(directory: &Path, file: &str, value: &str) -> Result<bool, CgroupError> {
    match write(directory, file, value) {
        Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whole text, trimmed. Control files are at most a few pages.
pub fn read(directory: &Path, file: &str) -> Result<String, CgroupError> {
    let path = directory.join(file);
    let mut text = String::with_capacity(256);
    match File::open(&path).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => {
            text.truncate(text.trim_end().len());
            Ok(text)
        }
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

/// A single number; `None` for `max`.
pub fn read_number(directory: &Path, file: &str) -> Result<Option<u64>, CgroupError> {
    let text = read(directory, file)?;
    if text == "max" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| malformed(directory, file))
}

/// The number after `key` in a file of lines `key number`.
pub fn read_keyed(directory: &Path, file: &str, key: &str) -> Result<u64, CgroupError> {
    keyed(&read(directory, file)?, key).ok_or_else(|| malformed(directory, file))
}

/// The number after `key` in lines `key number`.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn malformed(directory: &Path, file: &str) -> CgroupError {
    let source = io::Error::new(io::ErrorKind::InvalidData, "not the number it should hold");
    CgroupError::Read { path: directory.join(file), source }
}

/// mkdir(2), 0755; whether it is new.
pub fn make_directory(path: &Path) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(CgroupError::Create { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_whole() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom_group"), None);
    }

    #[test]
    fn an_optional_file_may_be_missing_and_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!write_if_present(directory.path(), "memory.swap.max", "0").unwrap());
        assert!(write(directory.path(), "memory.max", "0").unwrap_err().is_absent());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
