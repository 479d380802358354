//! Capability sets of the calling thread (capabilities(7)), as bit masks: bit = number of the capability.

use std::io;

use libc::{c_int, c_ulong};

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two 32-bit words per set.
const VERSION_3: u32 = 0x2008_0522;

/// CAP_SYS_RESOURCE.
pub const SYS_RESOURCE: u64 = 1 << 24;

/// CAP_SYS_ADMIN.
pub const SYS_ADMIN: u64 = 1 << 21;

#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The three sets that capset(2) changes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    /// In force.
    pub effective: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What a program with file capabilities would keep over execve.
    pub inheritable: u64,
}

/// capget(2).
///
/// # Errors
/// None in practice.
pub fn get() -> io::Result<Sets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut words = [Words::default(); 2];
    // SAFETY: header and the two words have the kernel's layout for version 3 and outlive the call.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(words[0].effective, words[1].effective),
        permitted: join(words[0].permitted, words[1].permitted),
        inheritable: join(words[0].inheritable, words[1].inheritable),
    })
}

/// capset(2): all three sets in one step (the `caps` crate would take a read and a write for each, with states in
/// between that are neither the old nor the new one). Ambient capabilities that are not inheritable any more go too.
///
/// # Errors
/// EPERM when a bit is not permitted now.
pub fn set(sets: Sets) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let words = [0, 32].map(|shift| Words {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    });
    // SAFETY: header and the two words have the kernel's layout for version 3 and outlive the call.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Drops every capability that is not in `keep` from the bounding set, those that this program has no name for too.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for number in 0..64 {
        if keep & 1 << number != 0 {
            continue;
        }
        // SAFETY: integer arguments only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as c_ulong, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            // Past the last one this kernel knows.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Whether permitted capabilities survive when all user ids become non-zero (PR_SET_KEEPCAPS).
///
/// # Errors
/// EPERM when securebits lock it.
pub fn keep_over_user_change(keep: bool) -> io::Result<()> {
    // SAFETY: integer arguments only.
    if unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, c_ulong::from(keep), 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// No program executed from now on gains privileges: no set-user-ID, no file capabilities (PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// None in practice.
pub fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: integer arguments only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `CAP_…` names of the bits of a mask, the known ones.
pub fn names(mask: u64) -> Vec<String> {
    let mut known: Vec<caps::Capability> =
        caps::all().into_iter().filter(|capability| mask & capability.bitmask() != 0).collect();
    known.sort_by_key(caps::Capability::index);
    known.into_iter().map(|capability| capability.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_those_of_proc_and_names_those_of_the_manual() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
        assert_eq!(get().unwrap().permitted, u64::from_str_radix(permitted, 16).unwrap());
        assert_eq!(names(SYS_ADMIN | 1 | 1 << 40 | 1 << 63), ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]);
    }
}
