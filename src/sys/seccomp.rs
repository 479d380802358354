//! Loading a seccomp filter (seccomp(2)).

use std::io;

use libc::{c_long, c_uint, c_ushort, sock_filter, sock_fprog};

/// A classic BPF program, ready to be loaded without any further allocation.
pub struct Filter {
    instructions: Vec<sock_filter>,
}

impl Filter {
    /// From instructions packed as `code << 48 | jt << 40 | jf << 32 | k`.
    pub fn new(packed: &[u64]) -> Filter {
        let unpack = |instruction: &u64| sock_filter {
            code: (instruction >> 48) as u16,
            jt: (instruction >> 40) as u8,
            jf: (instruction >> 32) as u8,
            k: *instruction as u32,
        };
        Filter { instructions: packed.iter().map(unpack).collect() }
    }

    /// Puts the filter in force for this thread and all it becomes. It cannot be taken off again.
    ///
    /// # Errors
    /// EINVAL for a program that is empty, longer than 4096 instructions or malformed; EACCES with neither
    /// no_new_privs nor CAP_SYS_ADMIN.
    pub fn load(&self) -> io::Result<()> {
        let program = sock_fprog {
            len: c_ushort::try_from(self.instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
            filter: self.instructions.as_ptr().cast_mut(),
        };
        // SAFETY: `program` points to `len` instructions, which the kernel copies and does not change.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER as c_long, 0 as c_uint, &raw const program)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_unpacked_field_by_field() {
        // jeq #0x1234abcd, 1, 2
        let filter = Filter::new(&[0x0015_0102_1234_abcd]);
        let instruction = filter.instructions[0];
        assert_eq!((instruction.code, instruction.jt, instruction.jf, instruction.k), (0x15, 1, 2, 0x1234_abcd));
    }
}
