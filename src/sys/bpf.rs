//! eBPF programs that decide about devices on cgroup v2 (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE), and the few
//! instructions they are made of.

use std::{
    ffi::CStr,
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use libc::{c_int, c_long};

/// Instructions, packed as the kernel's `struct bpf_insn`: opcode, registers, 16-bit offset, 32-bit immediate.
pub mod instruction {
    fn pack(operation: u8, target: u8, source: u8, offset: i16, value: i32) -> u64 {
        let (offset, value) = (offset.to_ne_bytes(), value.to_ne_bytes());
        // Registers share a byte; the first field takes the low half on the little-endian machines we support.
        let registers = target | source << 4;
        u64::from_ne_bytes([operation, registers, offset[0], offset[1], value[0], value[1], value[2], value[3]])
    }

    /// `target = *(u32 *)(source + offset)` (BPF_LDX | BPF_W | BPF_MEM).
    pub fn load32(target: u8, source: u8, offset: i16) -> u64 {
        pack(0x61, target, source, offset, 0)
    }

    /// `target &= value`, 32 bits (BPF_ALU | BPF_AND | BPF_K).
    pub fn and32(target: u8, value: i32) -> u64 {
        pack(0x54, target, 0, 0, value)
    }

    /// `target >>= value`, 32 bits (BPF_ALU | BPF_RSH | BPF_K).
    pub fn shift_right32(target: u8, value: i32) -> u64 {
        pack(0x74, target, 0, 0, value)
    }

    /// `target = value`, 32 bits (BPF_ALU | BPF_MOV | BPF_K).
    pub fn move32(target: u8, value: i32) -> u64 {
        pack(0xb4, target, 0, 0, value)
    }

    /// `target = source`, 32 bits (BPF_ALU | BPF_MOV | BPF_X).
    pub fn copy32(target: u8, source: u8) -> u64 {
        pack(0xbc, target, source, 0, 0)
    }

    /// `if target != value skip offset` (BPF_JMP | BPF_JNE | BPF_K).
    pub fn jump_if_not(target: u8, value: i32, offset: i16) -> u64 {
        pack(0x55, target, 0, offset, value)
    }

    /// `return r0` (BPF_JMP | BPF_EXIT).
    pub fn exit() -> u64 {
        pack(0x95, 0, 0, 0, 0)
    }
}

const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_ATTACH: c_long = 8;
const BPF_PROG_QUERY: c_long = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The members of `union bpf_attr` for BPF_PROG_LOAD, as far as they are used; the kernel takes the rest as zero.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct QueryAttributes {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    padding: u32,
    /// Room for what newer kernels write whatever the size given (`revision`, 6.17).
    rest: [u64; 12],
}

/// Loads a program of [`instruction`]s.
///
/// # Errors
/// EPERM without CAP_BPF or CAP_SYS_ADMIN; ENOSYS or EINVAL when the kernel has no (cgroup) BPF; EINVAL or EACCES
/// when its verifier refuses the program.
pub fn load_cgroup_device(program: &[u64]) -> io::Result<OwnedFd> {
    // No helper is called, so that the licence opens nothing; it only has to be a string.
    const LICENSE: &CStr = c"Apache-2.0";
    let mut attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        program_flags: 0,
    };
    // SAFETY: the attributes are those of BPF_PROG_LOAD; they and the program and licence they point to outlive the
    // call, which only reads them.
    let descriptor = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }?;
    // SAFETY: the kernel has just made it and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Attaches a program to a v2 cgroup, beside those it has: all of them, and all of its ancestors', must allow.
///
/// # Errors
/// EBADF when the directory is not in the unified hierarchy; EPERM when an ancestor's program forbids others.
pub fn attach_cgroup_device(cgroup: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let mut attributes = AttachAttributes {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes are those of BPF_PROG_ATTACH and hold no pointer; both descriptors are open.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attributes) }.map(drop)
}

/// How many device programs are attached to a v2 cgroup itself.
///
/// # Errors
/// As for [`attach_cgroup_device`].
pub fn cgroup_device_programs(cgroup: &impl AsFd) -> io::Result<u32> {
    let mut attributes = QueryAttributes {
        target: cgroup.as_fd().as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        program_ids: 0,
        program_count: 0,
        padding: 0,
        rest: [0; 12],
    };
    // SAFETY: the attributes are those of BPF_PROG_QUERY; with no buffer for ids the kernel only writes into them.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes) }?;
    Ok(attributes.program_count)
}

/// bpf(2).
///
/// # Safety
/// `attributes` must be the start of `union bpf_attr` for `command`, with every pointer in it valid for the call.
unsafe fn bpf<T>(command: c_long, attributes: &mut T) -> io::Result<c_int> {
    // SAFETY: by the caller's promise; the size is that of the attributes, and the kernel takes what lies beyond as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as c_int) }
}
