//! Memory of this process: what the allocator keeps, and what is in memory of the program itself.

use std::{ptr, slice};

use libc::{c_int, c_void, size_t};

/// Bounds the heaps that the threads of this process share out among themselves (glibc: eight for each processor, each
/// keeping what its threads have freed). To be called before the first thread is started.
pub fn limit_heaps(count: u8) {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count.into())
    };
}

/// Gives unused heap memory back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own lock and gives back pages that no allocation uses.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Lets go of the pages of the program's own code and constants. They stay in the page cache, where the kernel may now
/// drop them when it needs memory, and whatever is used again is mapped again, sixteen pages at a time, without reading.
///
/// A program maps a good deal of itself at work that it never looks at while it waits.
pub fn release_program() {
    /// Releases what one loaded object has of segments that are never written to.
    ///
    /// # Safety
    /// As dl_iterate_phdr(3) calls it.
    unsafe extern "C" fn release(info: *mut libc::dl_phdr_info, _: size_t, _: *mut c_void) -> c_int {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
        // SAFETY: valid during the call, as are the headers it points to.
        let (base, headers) = unsafe {
            let info = &*info;
            (info.dlpi_addr, slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
        };
        for header in headers {
            // What was ever writable (relocated constants too) may differ from the file.
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
                let begin = (base + header.p_vaddr) / page * page;
                let length = base + header.p_vaddr + header.p_memsz - begin;
                // SAFETY: a private mapping of a file that has never been written to: what is let go of is read from
                // the file again when it is touched, the next instruction of this function among it.
                unsafe {
                    libc::madvise(
                        ptr::with_exposed_provenance_mut(begin as usize),
                        length as usize,
                        libc::MADV_DONTNEED,
                    )
                };
            }
        }
        0
    }
    // SAFETY: the callback is sound under the C library's contract.
    unsafe { libc::dl_iterate_phdr(Some(release), ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// KiB of files mapped by this process.
    fn mapped() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn a_program_lets_go_of_itself_and_goes_on() {
        let before = mapped();
        // Other tests run meanwhile, and map what they need.
        let least = (0..100)
            .map(|_| {
                release_program();
                mapped()
            })
            .min();
        assert!(least.is_some_and(|least| least < before / 2), "{before} KiB became {least:?}");
    }
}
