//! Starting a program from the multi-threaded agent.

use std::{
    arch::asm,
    ffi::{CStr, CString, c_void},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use libc::{c_char, c_int, c_long, c_uint};

use super::{
    pidfd,
    process::{Child, CloneArgs, flags},
    signal,
};

/// A program to be started by [`spawn`].
pub struct Program<'a> {
    /// The executable (a memfd will do).
    pub executable: BorrowedFd<'a>,
    /// Its arguments, `argv[0]` first.
    pub arguments: &'a [CString],
    /// Its whole environment, `NAME=value`.
    pub environment: &'a [CString],
    /// Descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Directory of the unified hierarchy it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Why a program was not started. No process is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// clone3(2).
    #[error("clone a process")]
    Clone(#[source] io::Error),
    /// Something before execveat(2), or that itself.
    #[error("execute the program")]
    Execute(#[source] io::Error),
}

/// What the child works with: in the memory of its parent, which waits.
struct Plan {
    executable: c_int,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    stdio: [c_int; 3],
    /// Set if the program could not be executed.
    errno: c_int,
}

/// Room for [`become_program`] and what it calls; they take a few hundred bytes.
const STACK: usize = 32 * 1024;

/// Starts a program in a session of its own, from a process that may have other threads. Only descriptors 0, 1 and 2 reach
/// the program; its signals are all default and unblocked.
///
/// As posix_spawn(3) does, the child works on the memory of this process (CLONE_VM) while the calling thread, and that
/// alone, waits for it to execute its program (CLONE_VFORK): no page table is copied, and no page of this process has to be
/// copied afterwards because it was shared for a moment. The child makes a few raw system calls and touches nothing that
/// another thread could have left half-done.
///
/// # Errors
/// [`SpawnError`]. A child that is killed before it executes its program is none: it has started, and ended.
pub fn spawn(program: &Program<'_>) -> Result<Child, SpawnError> {
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let mut plan = Plan {
        executable: program.executable.as_raw_fd(),
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        stdio: program.stdio.map(|descriptor| descriptor.as_raw_fd()),
        errno: 0,
    };
    let mut stack: Vec<u128> = Vec::with_capacity(STACK / size_of::<u128>());
    let mut descriptor: c_int = -1;
    let mut call = CloneArgs {
        flags: flags::CLEAR_SIGHAND | (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64,
        pidfd: ptr::from_mut(&mut descriptor) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = program.cgroup {
        call.flags |= flags::INTO_CGROUP;
        call.cgroup = cgroup.as_raw_fd() as u64;
    }
    // A handler of ours must not run in the child. Blocked from before the clone, and the handlers are gone (CLEAR_SIGHAND)
    // before the child unblocks.
    let blocked = signal::BlockAll::new();
    // SAFETY: `call` is laid out as the kernel's structure; the child runs `become_program` on a stack of its own and on
    // `plan`, both of which outlive it here: this thread goes on when the child has another memory or none.
    let result = unsafe { clone_and_call(&raw mut call, become_program, (&raw mut plan).cast()) };
    drop(blocked);
    if result < 0 {
        return Err(SpawnError::Clone(io::Error::from_raw_os_error(-result as i32)));
    }
    // SAFETY: the kernel has just made this descriptor for us and nothing else knows its number.
    let child = Child { pid: result as i32, pidfd: unsafe { OwnedFd::from_raw_fd(descriptor) } };
    // SAFETY: written by the child, which the compiler knows nothing of.
    match unsafe { ptr::read_volatile(&raw const plan.errno) } {
        0 => Ok(child),
        errno => {
            // It has ended; nobody else knows of it.
            let _ = pidfd::wait(child.pidfd.as_fd(), true);
            Err(SpawnError::Execute(io::Error::from_raw_os_error(errno)))
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// clone3(2) whose child calls `body` with `argument` on the stack given in `call`. Returns the pid, or an errno below 0.
///
/// # Safety
/// `call` must hold a stack, CLONE_VM and CLONE_VFORK; `body` must not return, and do only what the child of vfork(2) may.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_and_call(
    call: *mut CloneArgs,
    body: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> c_long {
    let result: c_long;
    // SAFETY: the child has all registers of its parent but rax and the stack pointer, which is at the aligned end of its
    // own stack; it never reaches the end of this block. In the parent the call clobbers what every system call does.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") call,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") body,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// See above.
///
/// # Safety
/// See above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_and_call(
    call: *mut CloneArgs,
    body: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> c_long {
    let result: c_long;
    // SAFETY: as above; x0 has the result, and the child's frame ends with itself.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, {argument}",
            "blr {body}",
            "brk #1",
            "2:",
            inlateout("x0") call => result,
            in("x1") size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3,
            body = in(reg) body,
            argument = in(reg) argument,
            out("x30") _,
        );
    }
    result
}

/// The child's side of [`spawn`]: system calls only, no allocation, no unwinding, no return.
///
/// # Safety
/// `plan` is a [`Plan`] whose arrays are null-terminated arrays of C strings; runs in a new process only.
unsafe extern "C" fn become_program(plan: *mut c_void) -> ! {
    const NOTHING: &CStr = c"";
    let plan = plan.cast::<Plan>();
    // SAFETY: system calls on plain numbers and on the plan's pointers, which the kernel only reads. The signal set is
    // initialised by sigemptyset before use. errno is that of the thread that waits.
    unsafe {
        'failed: {
            // Out of the way of 0..=2 first: a source may itself be one of them.
            let mut high = [-1; 3];
            for (slot, descriptor) in high.iter_mut().zip((*plan).stdio) {
                *slot = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3);
                if *slot < 0 {
                    break 'failed;
                }
            }
            for (number, descriptor) in high.into_iter().enumerate() {
                if libc::dup2(descriptor, number as c_int) < 0 {
                    break 'failed;
                }
            }
            // All our descriptors are close-on-exec as it is; this also covers any that a library made otherwise.
            // Ignored where the kernel has no such call (before 5.11).
            let _ = libc::syscall(libc::SYS_close_range, 3 as c_uint, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            libc::setsid();
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::syscall(
                libc::SYS_execveat,
                (*plan).executable as c_long,
                NOTHING.as_ptr(),
                (*plan).arguments,
                (*plan).environment,
                libc::AT_EMPTY_PATH as c_long,
            );
        }
        ptr::write_volatile(&raw mut (*plan).errno, *libc::__errno_location());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, os::fd::AsFd, thread};

    use super::*;
    use crate::sys::{
        pidfd::{self, Ended},
        process::pipe,
    };

    fn null() -> File {
        File::options().read(true).write(true).open("/dev/null").unwrap()
    }

    #[test]
    fn a_spawned_program_gets_its_arguments_and_streams() {
        let (shell, null) = (File::open("/bin/sh").unwrap(), null());
        let (output, writer) = pipe().unwrap();
        let arguments = [c"sh".to_owned(), c"-c".to_owned(), c"echo \"$1 $NAME\"; ls /proc/self/fd; exit 7".to_owned()]
            .into_iter()
            .chain([c"zero".to_owned(), c"one".to_owned()])
            .collect::<Vec<_>>();
        let program = Program {
            executable: shell.as_fd(),
            arguments: &arguments,
            environment: &[c"NAME=value".to_owned(), c"PATH=/bin:/usr/bin".to_owned()],
            stdio: [null.as_fd(), writer.as_fd(), null.as_fd()],
            cgroup: None,
        };
        let child = spawn(&program).unwrap();
        drop(writer);
        let mut text = String::new();
        File::from(output).read_to_string(&mut text).unwrap();
        // ls itself opens descriptor 3 to list the directory.
        assert_eq!(text, "one value\n0\n1\n2\n3\n");
        let exit = pidfd::wait(child.pidfd.as_fd(), true).unwrap().unwrap();
        assert_eq!((exit.pid, exit.ended), (child.pid, Ended::Exited(7)));
    }

    #[test]
    fn a_failing_exec_is_an_error_and_leaves_no_process() {
        let null = null();
        let program = Program {
            executable: null.as_fd(),
            arguments: &[c"nothing".to_owned()],
            environment: &[],
            stdio: [null.as_fd(); 3],
            cgroup: None,
        };
        let Err(SpawnError::Execute(error)) = spawn(&program) else { panic!("it was executed") };
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn a_clone_that_is_refused_is_an_error() {
        let null = null();
        let program = Program {
            executable: null.as_fd(),
            arguments: &[c"nothing".to_owned()],
            environment: &[],
            stdio: [null.as_fd(); 3],
            // Not a directory of the unified hierarchy.
            cgroup: Some(null.as_fd()),
        };
        let Err(SpawnError::Clone(error)) = spawn(&program) else { panic!("it was cloned") };
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn many_threads_may_start_programs_at_once() {
        let starter = |number: u8| {
            move || {
                let (shell, null) = (File::open("/bin/sh").unwrap(), null());
                let script = CString::new(format!("exit {number}")).unwrap();
                for _ in 0..8 {
                    let child = spawn(&Program {
                        executable: shell.as_fd(),
                        arguments: &[c"sh".to_owned(), c"-c".to_owned(), script.clone()],
                        environment: &[],
                        stdio: [null.as_fd(); 3],
                        cgroup: None,
                    });
                    // Memory of the parent's that the child must not have touched.
                    let words: Vec<String> = (0..64).map(|word| format!("{number}-{word}")).collect();
                    let exit = pidfd::wait(child.unwrap().pidfd.as_fd(), true).unwrap().unwrap();
                    assert_eq!(exit.ended, Ended::Exited(i32::from(number)));
                    assert_eq!(words[63], format!("{number}-63"));
                }
            }
        };
        let threads: Vec<_> = (1..=4).map(|number| thread::spawn(starter(number))).collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
