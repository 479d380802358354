//! Which devices a container may use: rules as data, as lines for v1's `devices.allow`, and as an eBPF program for v2.

use std::{os::fd::OwnedFd, path::Path};

use super::{error::CgroupError, files};
use crate::sys::bpf;

/// One allowed device (or range of devices).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Block rather than character device.
    pub block: bool,
    /// Major number; `None` for any.
    pub major: Option<u32>,
    /// Minor number; `None` for any.
    pub minor: Option<u32>,
    /// May be opened for reading.
    pub read: bool,
    /// May be opened for writing.
    pub write: bool,
    /// May be made by mknod(2).
    pub make: bool,
}

impl DeviceRule {
    const fn open(major: u32, minor: Option<u32>) -> DeviceRule {
        DeviceRule { block: false, major: Some(major), minor, read: true, write: true, make: true }
    }

    const fn make_any(block: bool) -> DeviceRule {
        DeviceRule { block, major: None, minor: None, read: false, write: false, make: true }
    }

    /// `c 1:3 rwm`.
    fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let access = [(self.read, 'r'), (self.write, 'w'), (self.make, 'm')];
        let access: String = access.into_iter().filter(|(allowed, _)| *allowed).map(|(_, letter)| letter).collect();
        let kind = if self.block { 'b' } else { 'c' };
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }

    /// The kinds of access that the kernel asks for and this does not allow, as bits.
    fn denied(&self) -> i32 {
        let bits = [(self.make, ACCESS_MKNOD), (self.read, ACCESS_READ), (self.write, ACCESS_WRITE)];
        bits.into_iter().filter(|(allowed, _)| !allowed).map(|(_, bit)| bit).sum()
    }
}

/// What every container may use (runtime-spec "Default Devices", runc's `AllowedDevices`): making any node, which
/// gives no access to it, and null, zero, full, random, urandom, tty, ptmx and its ptys, and tun (whose use takes
/// CAP_NET_ADMIN in the pod's network; runc took it away once and had to give it back in 1.2.4).
pub fn default_rules() -> &'static [DeviceRule] {
    const RULES: &[DeviceRule] = &[
        DeviceRule::make_any(false),
        DeviceRule::make_any(true),
        DeviceRule::open(1, Some(3)),
        DeviceRule::open(1, Some(5)),
        DeviceRule::open(1, Some(7)),
        DeviceRule::open(1, Some(8)),
        DeviceRule::open(1, Some(9)),
        DeviceRule::open(5, Some(0)),
        DeviceRule::open(5, Some(2)),
        DeviceRule::open(10, Some(200)),
        DeviceRule::open(136, None),
    ];
    RULES
}

/// Makes the v1 cgroup allow exactly `rules`. A cgroup that does so already is left alone: denying everything first,
/// as a new one needs, would break running containers for a moment.
pub fn restrict_v1(directory: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    let now = files::read(directory, "devices.list")?;
    let is_allowed = |line: &str| now.lines().any(|known| known.trim() == line);
    if is_allowed("a *:* rwm") || now.is_empty() {
        files::write(directory, "devices.deny", "a")?;
    } else {
        let wanted: Vec<String> = rules.iter().map(DeviceRule::line).collect();
        for extra in now.lines().map(str::trim).filter(|line| !wanted.iter().any(|wanted| wanted == line)) {
            files::write(directory, "devices.deny", extra)?;
        }
    }
    for line in rules.iter().map(DeviceRule::line).filter(|line| !is_allowed(line)) {
        files::write(directory, "devices.allow", &line)?;
    }
    Ok(())
}

/// Loads the v2 program for `rules`; `directory` is only named in errors.
pub fn load_v2(directory: &Path, rules: &[DeviceRule]) -> Result<OwnedFd, CgroupError> {
    bpf::load_cgroup_device(&program(rules))
        .map_err(|source| CgroupError::LoadDevices { path: directory.to_owned(), source })
}

/// Attaches a loaded program, unless the cgroup has one (only we attach any below `kubepods`).
pub fn attach_v2(directory: &Path, program: &OwnedFd) -> Result<(), CgroupError> {
    let attach = || {
        let cgroup = std::fs::File::open(directory)?;
        if bpf::cgroup_device_programs(&cgroup)? == 0 {
            bpf::attach_cgroup_device(&cgroup, program)?;
        }
        Ok(())
    };
    attach().map_err(|source| CgroupError::AttachDevices { path: directory.to_owned(), source })
}

/// Access bits of `struct bpf_cgroup_dev_ctx` (include/uapi/linux/bpf.h).
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

/// The program: 1 (allow) for the first rule that matches, 0 (deny) otherwise.
///
/// r2 = type, r3 = access, r4 = major, r5 = minor, r6 = what of the access a rule does not allow; every rule tests what it
/// restricts and jumps to the next one when a test fails.
fn program(rules: &[DeviceRule]) -> Vec<u64> {
    use bpf::instruction::{and32, copy32, exit, jump_if_not, load32, move32, shift_right32};
    const CONTEXT: u8 = 1;
    const TYPE: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    const DENIED: u8 = 6;
    let mut code = vec![
        load32(TYPE, CONTEXT, 0),
        load32(ACCESS, CONTEXT, 0),
        and32(TYPE, 0xffff),
        shift_right32(ACCESS, 16),
        load32(MAJOR, CONTEXT, 4),
        load32(MINOR, CONTEXT, 8),
    ];
    for rule in rules {
        let mut tests = vec![(TYPE, if rule.block { TYPE_BLOCK } else { TYPE_CHAR })];
        // Nothing is asked for that is not allowed.
        if rule.denied() != 0 {
            code.extend([copy32(DENIED, ACCESS), and32(DENIED, rule.denied())]);
            tests.push((DENIED, 0));
        }
        // Device numbers have 12 and 20 bits, so that they fit the signed immediate.
        tests.extend(rule.major.map(|major| (MAJOR, major as i32)));
        tests.extend(rule.minor.map(|minor| (MINOR, minor as i32)));
        let count = tests.len();
        for (at, (register, value)) in tests.into_iter().enumerate() {
            // Over the remaining tests and the two instructions of "return 1".
            let skip = (count - at - 1 + 2) as i16;
            code.push(jump_if_not(register, value, skip));
        }
        code.extend([move32(0, 1), exit()]);
    }
    code.extend([move32(0, 0), exit()]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few instructions the generator uses.
    fn allows(code: &[u64], block: bool, access: u32, major: u32, minor: u32) -> bool {
        let context = [(access << 16) | if block { 1 } else { 2 }, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let word = code[at].to_ne_bytes();
            let (operation, target, source) = (word[0], usize::from(word[1] & 0xf), usize::from(word[1] >> 4));
            let offset = i16::from_ne_bytes([word[2], word[3]]);
            let value = i32::from_ne_bytes([word[4], word[5], word[6], word[7]]);
            at += 1;
            match operation {
                0x61 => {
                    assert_eq!(source, 1, "only the context is read");
                    registers[target] = u64::from(context[usize::try_from(offset).unwrap() / 4]);
                }
                0x54 => registers[target] = u64::from(registers[target] as u32 & value as u32),
                0x74 => registers[target] = u64::from(registers[target] as u32 >> value),
                0xb4 => registers[target] = u64::from(value as u32),
                0xbc => registers[target] = u64::from(registers[source] as u32),
                0x55 => {
                    if registers[target] != value as u64 {
                        at += usize::try_from(offset).unwrap();
                    }
                }
                0x95 => return registers[0] == 1,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    const MKNOD: u32 = 1;
    const READ: u32 = 2;
    const WRITE: u32 = 4;

    #[test]
    fn the_default_program_allows_the_default_devices_and_making_nodes() {
        let code = program(default_rules());
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200), (136, 0), (136, 77)] {
            assert!(allows(&code, false, READ | WRITE | MKNOD, major, minor), "c {major}:{minor}");
        }
        assert!(allows(&code, true, MKNOD, 8, 0), "mknod of a disk");
        assert!(allows(&code, false, MKNOD, 10, 229), "mknod of fuse");
        for (block, access, major, minor) in [
            (true, READ, 8, 0),
            (true, READ | MKNOD, 8, 0),
            (false, READ, 1, 1),
            (false, WRITE, 10, 229),
            (true, READ, 1, 3),
            (false, READ, 5, 1),
        ] {
            assert!(!allows(&code, block, access, major, minor), "{block} {access} {major}:{minor}");
        }
    }

    #[test]
    fn what_may_only_be_read_cannot_be_opened_for_writing() {
        let rule = DeviceRule { block: true, major: Some(7), minor: Some(3), read: true, write: false, make: false };
        assert_eq!(rule.line(), "b 7:3 r");
        let code = program(&[rule]);
        assert!(allows(&code, true, READ, 7, 3));
        for (access, minor) in [(WRITE, 3), (READ | WRITE, 3), (READ, 4)] {
            assert!(!allows(&code, true, access, 7, minor), "{access} {minor}");
        }
    }

    #[test]
    fn every_set_of_permissions_allows_itself_and_what_is_in_it() {
        for bits in 1..8u32 {
            let (read, write, make) = (bits & READ != 0, bits & WRITE != 0, bits & MKNOD != 0);
            let rule = DeviceRule { block: false, major: Some(10), minor: Some(229), read, write, make };
            let code = program(&[rule]);
            for access in 1..8u32 {
                let allowed = access & !bits == 0;
                assert_eq!(allows(&code, false, access, 10, 229), allowed, "{bits:03b} {access:03b}");
            }
        }
    }

    #[test]
    fn no_rules_allow_nothing() {
        let code = program(&[]);
        assert!(!allows(&code, false, READ, 1, 3));
        assert_eq!(code.len(), 8);
    }

    #[test]
    fn lines_are_what_v1_prints() {
        let lines: Vec<String> = default_rules().iter().map(DeviceRule::line).collect();
        assert_eq!(lines[..4], ["c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm"]);
        assert_eq!(lines[10], "c 136:* rwm");
    }

    #[test]
    fn a_v1_cgroup_that_is_right_already_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let lines: Vec<String> = default_rules().iter().map(DeviceRule::line).collect();
        std::fs::write(directory.path().join("devices.list"), lines.join("\n") + "\n").unwrap();
        // Neither devices.allow nor devices.deny exists: a write would fail.
        restrict_v1(directory.path(), default_rules()).unwrap();
    }
}
