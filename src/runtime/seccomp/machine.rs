//! Machines, the ABIs their kernels serve, and the numbers system calls have there.

use std::sync::LazyLock;

use oci_spec::runtime::Arch;

/// What the kernel runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// x86_64, with 32-bit x86 and x32.
    X86_64,
    /// aarch64, with 32-bit arm.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "the native machine of other builds"))]
    Aarch64,
}

/// A set of system call numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Abi {
    /// 64-bit x86.
    X86_64,
    /// x86_64 with 32-bit pointers: the same architecture to seccomp, its numbers have [`X32_BIT`].
    X32,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM (EABI).
    Arm,
}

/// `__X32_SYSCALL_BIT` (arch/x86/include/uapi/asm/unistd.h).
pub const X32_BIT: u32 = 0x4000_0000;

/// Where ARM's private calls begin (`__ARM_NR_BASE`): numbers from here on say nothing about a call's age.
pub const ARM_PRIVATE: u32 = 0x000f_0000;

impl Machine {
    /// The one this program was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Machine = Machine::X86_64;
    /// The one this program was built for.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Machine = Machine::Aarch64;

    /// The ABI that every filter covers.
    pub fn native_abi(self) -> Abi {
        match self {
            Machine::X86_64 => Abi::X86_64,
            Machine::Aarch64 => Abi::Aarch64,
        }
    }

    /// The ABI a profile means; `None` for one that no process on this machine can use, so that no rule is needed.
    pub fn abi(self, architecture: Arch) -> Option<Abi> {
        match (self, architecture) {
            (machine, Arch::ScmpArchNative) => Some(machine.native_abi()),
            (Machine::X86_64, Arch::ScmpArchX86_64) => Some(Abi::X86_64),
            (Machine::X86_64, Arch::ScmpArchX32) => Some(Abi::X32),
            (Machine::X86_64, Arch::ScmpArchX86) => Some(Abi::X86),
            (Machine::Aarch64, Arch::ScmpArchAarch64) => Some(Abi::Aarch64),
            (Machine::Aarch64, Arch::ScmpArchArm) => Some(Abi::Arm),
            _ => None,
        }
    }
}

impl Abi {
    /// `arch` of `struct seccomp_data` (AUDIT_ARCH_*, include/uapi/linux/audit.h).
    pub fn audit(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }
}

/// `nr` of `struct seccomp_data` for a system call; `None` where the ABI has none of this name.
pub fn number(abi: Abi, name: &str) -> Option<u32> {
    let row = TABLE.binary_search_by_key(&name, |row| row.name).ok()?;
    let number = TABLE[row].numbers[abi as usize]?;
    Some(if abi == Abi::X32 { number | X32_BIT } else { number })
}

struct Row {
    name: &'static str,
    numbers: [Option<u32>; 5],
}

/// The table, sorted by name as the file is.
static TABLE: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let lines = include_str!("syscalls.tsv").lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split('\t');
            let name = fields.next().unwrap_or_default();
            Row { name, numbers: std::array::from_fn(|_| fields.next()?.parse().ok()) }
        })
        .collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_whole() {
        assert!(TABLE.is_sorted_by(|a, b| a.name < b.name));
        assert!(TABLE.iter().all(|row| row.numbers.iter().any(Option::is_some)));
        for line in include_str!("syscalls.tsv").lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            assert_eq!(fields.len(), 6, "{line}");
            assert!(fields[1..].iter().all(|field| *field == "-" || field.parse::<u32>().is_ok()), "{line}");
        }
    }

    #[test]
    fn no_two_calls_share_a_number() {
        // Two names of one call (arm), kept because profiles use either.
        let aliases = ["sync_file_range2", "fadvise64_64"];
        for abi in [Abi::X86_64, Abi::X32, Abi::X86, Abi::Aarch64, Abi::Arm] {
            let names = TABLE.iter().map(|row| row.name);
            let mut numbers: Vec<u32> = names
                .filter(|name| abi != Abi::Arm || !aliases.contains(name))
                .filter_map(|name| number(abi, name))
                .collect();
            numbers.sort_unstable();
            assert!(numbers.is_sorted_by(|a, b| a < b), "{abi:?}");
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        let native = Machine::NATIVE.native_abi();
        for (name, expected) in [
            ("read", libc::SYS_read),
            ("execve", libc::SYS_execve),
            ("mount", libc::SYS_mount),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("seccomp", libc::SYS_seccomp),
            ("mseal", libc::SYS_mseal),
        ] {
            assert_eq!(number(native, name).map(i64::from), Some(expected), "{name}");
        }
        for (abi, name, expected) in [
            (Abi::X86, "socketcall", 102),
            (Abi::X86, "clock_gettime64", 403),
            (Abi::X32, "ioctl", X32_BIT | 514),
            (Abi::X32, "read", X32_BIT),
            (Abi::Aarch64, "read", 63),
            (Abi::Arm, "futex_time64", 422),
            (Abi::Arm, "set_tls", ARM_PRIVATE + 5),
        ] {
            assert_eq!(number(abi, name), Some(expected), "{abi:?} {name}");
        }
        assert_eq!(number(Abi::X86_64, "socketcall"), None);
        assert_eq!(number(Abi::X86_64, "no_such_call"), None);
    }
}
