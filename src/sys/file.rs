//! Calls on open files that std has not.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Begins to write what a file has in memory to the disk, and does not wait for it: sync_file_range(2) with
/// SYNC_FILE_RANGE_WRITE. It makes nothing durable; a sync that follows finds the work begun.
///
/// # Errors
/// ESPIPE and ENOSYS where there is nothing to write to, EIO.
pub fn begin_writing(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integer arguments only.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, os::fd::AsFd};

    use super::*;

    #[test]
    fn writing_begins_for_files_and_for_nothing_else() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        begin_writing(file.as_fd()).unwrap();
        file.sync_all().unwrap();
        let null = File::open("/dev/null").unwrap();
        assert_eq!(begin_writing(null.as_fd()).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
    }
}
