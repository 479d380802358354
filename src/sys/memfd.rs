//! Memory files: sealed ones, executables that nobody can change any more, not even a container that is root; and plain
//! ones.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use libc::{c_long, c_uint};

/// `MFD_EXEC` of linux/memfd.h (Linux 6.3): needed where `vm.memfd_noexec` is set.
const MFD_EXEC: c_uint = 0x0010;

/// Copies `source` from its current offset into a memory file named `name`, and seals it against every change.
///
/// # Errors
/// memfd_create(2), sendfile(2) or fcntl(2) failed; EACCES when the machine forbids executable memory files
/// (`vm.memfd_noexec=2`).
pub fn sealed_copy(name: &CStr, source: &File) -> io::Result<OwnedFd> {
    let mut copy = File::from(create(name)?);
    // std copies between files within the kernel (sendfile(2)).
    io::copy(&mut &*source, &mut copy)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: integer arguments only.
    if unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(copy.into())
}

/// An empty file in memory that can be read and written, and is gone with its descriptor.
///
/// # Errors
/// memfd_create(2) failed.
pub fn unnamed(name: &CStr) -> io::Result<File> {
    create_with(name, libc::MFD_CLOEXEC).map(File::from)
}

fn create(name: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Older kernels refuse the flag they do not know, and need none.
    create_with(name, flags | MFD_EXEC).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => create_with(name, flags),
        _ => Err(error),
    })
}

fn create_with(name: &CStr, flags: c_uint) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string that the kernel copies; the new descriptor is known to nobody else.
    unsafe {
        match libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags as c_long) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor as i32)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Seek, SeekFrom, Write},
    };

    use super::*;

    #[test]
    fn a_sealed_copy_has_the_content_and_cannot_be_changed() {
        let copy = sealed_copy(c"test", &File::open("/proc/self/exe").unwrap()).unwrap();
        let mut copy = File::from(copy);
        let mut content = Vec::new();
        copy.seek(SeekFrom::Start(0)).unwrap();
        copy.read_to_end(&mut content).unwrap();
        assert!(content == fs::read("/proc/self/exe").unwrap());
        assert_eq!(copy.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(copy.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
