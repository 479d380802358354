//! RuntimeDefault: what a container may call that asks for no more than the default.
//!
//! The rules are those containerd and Moby apply (contrib/seccomp/seccomp_default.go; moby/profiles/seccomp): an
//! allow list, EPERM for the rest, more with certain capabilities, and ENOSYS for `clone3` so that the C library falls
//! back to `clone`, whose flags a filter can see. `ptrace` and its kin are allowed without a capability, as upstream
//! does from Linux 4.8 on.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

use super::machine::Machine;

/// Allowed whatever the arguments, on every architecture that has them.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime \
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 \
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid \
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid \
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname \
    getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl \
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr \
    lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat \
    mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
    mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall \
    munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal \
    pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 \
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages \
    removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 \
    send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid \
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid \
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask \
    sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync \
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Allowed on these machines only.
const ON_X86_64: &str = "arch_prctl modify_ldt";
const ON_AARCH64: &str = "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";

const CAP_SYS_ADMIN: u32 = 21;

/// Allowed with a capability (its number in capabilities(7)).
const WITH_CAPABILITY: [(u32, &str); 14] = [
    (2, "open_by_handle_at"),
    (16, "delete_module finit_module init_module"),
    (17, "ioperm iopl"),
    (18, "chroot"),
    (19, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (20, "acct"),
    (
        CAP_SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (22, "reboot"),
    (23, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (25, "clock_settime clock_settime64 settimeofday stime"),
    (26, "vhangup"),
    (34, "syslog"),
    (38, "perf_event_open"),
    (39, "bpf"),
];

/// Execution domains: Linux, 32-bit Linux, each also with UNAME26 as old programs ask for, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// AF_ALG: the kernel's cryptography, a large surface nobody in a container needs. AF_VSOCK (40), two further on,
/// reaches virtual machines across network namespaces.
const AF_ALG: u64 = 38;

/// Address families after AF_ALG that are allowed: NFC, KCM, QIPCRTR, SMC, XDP, MCTP. One by one, because a comparison is on 64
/// bits while the kernel takes the low 32: whatever is "not equal to" or "greater than" a family can be forged.
const LATER_FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Capabilities that change the profile.
pub fn relevant_capabilities() -> u64 {
    WITH_CAPABILITY.iter().fold(0, |mask, (capability, _)| mask | 1 << capability)
}

/// The profile for a container with these capabilities (bit = number).
pub fn runtime_default(machine: Machine, capabilities: u64) -> LinuxSeccomp {
    let mut syscalls = vec![allow(ALWAYS)];
    let architectures = match machine {
        Machine::X86_64 => {
            syscalls.push(allow(ON_X86_64));
            vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
        }
        Machine::Aarch64 => {
            syscalls.push(allow(ON_AARCH64));
            vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
        }
    };
    let has = |capability: u32| capabilities >> capability & 1 == 1;
    let granted = WITH_CAPABILITY.iter().filter(|(capability, _)| has(*capability));
    syscalls.extend(granted.map(|(_, names)| allow(names)));
    syscalls.extend(PERSONALITIES.map(|domain| allow_if("personality", LinuxSeccompOperator::ScmpCmpEq, domain, None)));
    syscalls.push(allow_if("socket", LinuxSeccompOperator::ScmpCmpLt, AF_ALG, None));
    syscalls.extend(LATER_FAMILIES.map(|family| allow_if("socket", LinuxSeccompOperator::ScmpCmpEq, family, None)));
    if !has(CAP_SYS_ADMIN) {
        syscalls.push(allow_if("clone", LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0)));
        let mut clone3 = LinuxSyscall::default();
        clone3
            .set_names(vec!["clone3".to_owned()])
            .set_action(LinuxSeccompAction::ScmpActErrno)
            .set_errno_ret(Some(libc::ENOSYS as u32));
        syscalls.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM as u32))
        .set_architectures(Some(architectures))
        .set_syscalls(Some(syscalls));
    profile
}

fn allow(names: &str) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_whitespace().map(str::to_owned).collect()).set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

fn allow_if(name: &str, operator: LinuxSeccompOperator, value: u64, second: Option<u64>) -> LinuxSyscall {
    let argument =
        LinuxSeccompArgBuilder::default().index(0_usize).value(value).value_two(second.unwrap_or(0)).op(operator);
    let argument = argument.build().expect("every field has a default");
    let mut rule = allow(name);
    rule.set_args(Some(vec![argument]));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::seccomp::machine::{Abi, number};

    #[test]
    fn every_name_is_a_system_call_of_some_abi() {
        let abis = [Abi::X86_64, Abi::X32, Abi::X86, Abi::Aarch64, Abi::Arm];
        let capabilities = WITH_CAPABILITY.iter().map(|(_, names)| *names);
        for names in [ALWAYS, ON_X86_64, ON_AARCH64].into_iter().chain(capabilities) {
            for name in names.split_whitespace() {
                assert!(abis.iter().any(|abi| number(*abi, name).is_some()), "{name}");
            }
        }
    }

    #[test]
    fn the_namespaces_are_libcs() {
        let flags = libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET;
        assert_eq!(NEW_NAMESPACES, u64::from(flags as u32));
        assert_eq!((AF_ALG, 40), (libc::AF_ALG as u64, libc::AF_VSOCK as u64));
        assert!(!LATER_FAMILIES.contains(&40));
    }
}
