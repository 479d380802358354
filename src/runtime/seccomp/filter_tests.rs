//! The compiled filter against what the rules say, and against the kernel.

use std::{fs, path::PathBuf};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};
use proptest::prelude::*;

use super::{
    bpf::run,
    compile::{ALLOW, KILL_PROCESS, NO_SUCH_CALL},
    machine::{Abi, Machine, X32_BIT, number},
    *,
};

const DENIED: u32 = 0x0005_0001;
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const SYS_ADMIN: u64 = 1 << 21;

/// What the rules say, worked out the slow way.
fn evaluate(profile: &LinuxSeccomp, abi: Abi, call: u32, arguments: &[u64; 6]) -> u32 {
    let value = |action: LinuxSeccompAction, errno: Option<u32>| action.as_u32(errno);
    let default = value(profile.default_action(), profile.default_errno_ret());
    if call == u32::MAX {
        return default;
    }
    let holds = |argument: &LinuxSeccompArg| {
        let (actual, wanted) = (arguments[argument.index()], argument.value());
        match argument.op() {
            LinuxSeccompOperator::ScmpCmpEq => actual == wanted,
            LinuxSeccompOperator::ScmpCmpNe => actual != wanted,
            LinuxSeccompOperator::ScmpCmpLt => actual < wanted,
            LinuxSeccompOperator::ScmpCmpLe => actual <= wanted,
            LinuxSeccompOperator::ScmpCmpGe => actual >= wanted,
            LinuxSeccompOperator::ScmpCmpGt => actual > wanted,
            LinuxSeccompOperator::ScmpCmpMaskedEq => actual & wanted == argument.value_two().unwrap_or(0),
        }
    };
    let rules = profile.syscalls().as_ref().unwrap();
    let named = |rule: &&LinuxSyscall| numbers(abi, rule).contains(&call);
    let mut unconditional = None;
    for rule in rules.iter().filter(named) {
        let arguments = rule.args().as_deref().unwrap_or_default();
        let mut indices: Vec<usize> = arguments.iter().map(LinuxSeccompArg::index).collect();
        indices.sort_unstable();
        let repeated = indices.windows(2).any(|pair| pair[0] == pair[1]);
        let applies = if repeated { arguments.iter().any(holds) } else { arguments.iter().all(holds) };
        match (arguments.is_empty(), applies) {
            (true, _) => unconditional = unconditional.or(Some(value(rule.action(), rule.errno_ret()))),
            (false, true) => return value(rule.action(), rule.errno_ret()),
            (false, false) => {}
        }
    }
    if let Some(value) = unconditional {
        return value;
    }
    let all = rules.iter().flat_map(|rule| numbers(abi, rule));
    let newest = all.filter(|number| abi != Abi::Arm || *number < 0xf_0000).max();
    let known = newest.is_none_or(|newest| call <= newest) || rules.iter().any(|rule| named(&rule));
    let permissive = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    if known || permissive { default } else { NO_SUCH_CALL }
}

fn numbers(abi: Abi, rule: &LinuxSyscall) -> Vec<u32> {
    rule.names().iter().filter_map(|name| number(abi, name)).collect()
}

fn operator() -> impl Strategy<Value = LinuxSeccompOperator> {
    use LinuxSeccompOperator::*;
    prop::sample::select(vec![ScmpCmpEq, ScmpCmpNe, ScmpCmpLt, ScmpCmpLe, ScmpCmpGe, ScmpCmpGt, ScmpCmpMaskedEq])
}

/// Few values, so that comparisons meet their edges in both halves.
fn word() -> impl Strategy<Value = u64> {
    let half = prop::sample::select(vec![0u32, 1, 2, 40, 0x7fff_ffff, 0x8000_0000, u32::MAX]);
    (half.clone(), half).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low))
}

const NAMES: [&str; 14] = [
    "read",
    "write",
    "open",
    "ioctl",
    "socket",
    "socketcall",
    "clone",
    "clone3",
    "personality",
    "mseal",
    "set_tls",
    "execve",
    "no_such_call",
    "removexattrat",
];

fn rule() -> impl Strategy<Value = LinuxSyscall> {
    use LinuxSeccompAction::*;
    let argument = (0usize..6, word(), word(), operator()).prop_map(|(index, value, second, operator)| {
        let argument = LinuxSeccompArgBuilder::default().index(index).value(value).value_two(second).op(operator);
        argument.build().unwrap()
    });
    (
        prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..4),
        prop::sample::select(vec![
            ScmpActAllow,
            ScmpActErrno,
            ScmpActKill,
            ScmpActKillProcess,
            ScmpActTrap,
            ScmpActTrace,
            ScmpActLog,
        ]),
        prop::option::of(0u32..4096),
        prop::collection::vec(argument, 0..4),
    )
        .prop_map(|(names, action, errno, arguments)| {
            let mut rule = LinuxSyscall::default();
            rule.set_names(names.into_iter().map(str::to_owned).collect())
                .set_action(action)
                .set_errno_ret(errno)
                .set_args(Some(arguments));
            rule
        })
}

fn machine() -> impl Strategy<Value = (Machine, Vec<Abi>)> {
    prop::sample::select(vec![
        (Machine::X86_64, vec![Abi::X86_64]),
        (Machine::X86_64, vec![Abi::X86_64, Abi::X86]),
        (Machine::X86_64, vec![Abi::X86_64, Abi::X86, Abi::X32]),
        (Machine::Aarch64, vec![Abi::Aarch64, Abi::Arm]),
    ])
}

fn architecture(abi: Abi) -> Arch {
    match abi {
        Abi::X86_64 => Arch::ScmpArchX86_64,
        Abi::X32 => Arch::ScmpArchX32,
        Abi::X86 => Arch::ScmpArchX86,
        Abi::Aarch64 => Arch::ScmpArchAarch64,
        Abi::Arm => Arch::ScmpArchArm,
    }
}

/// A number near those that rules name, or any, from one random word.
fn call(abi: Abi, random: u64) -> u32 {
    let named: Vec<u32> = NAMES.iter().filter_map(|name| number(abi, name)).collect();
    let near = named[(random >> 8) as usize % named.len()] + (random >> 4) as u32 % 3;
    let call = match random % 10 {
        0 => (random >> 8) as u32,
        1 => (random >> 8) as u32 % 600,
        2 => return u32::MAX,
        _ => near.saturating_sub(1),
    };
    // The bit decides which ABI it is.
    match abi {
        Abi::X32 => call | X32_BIT,
        Abi::X86_64 => call & (X32_BIT - 1),
        _ => call,
    }
}

proptest! {
    #[test]
    fn a_filter_says_what_its_rules_say(
        (machine, abis) in machine(),
        default in prop::sample::select(vec![LinuxSeccompAction::ScmpActErrno, LinuxSeccompAction::ScmpActAllow]),
        rules in prop::collection::vec(rule(), 0..12),
        probes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), prop::array::uniform6(word())), 40),
    ) {
        let mut profile = LinuxSeccomp::default();
        profile
            .set_default_action(default)
            .set_architectures(Some(abis.iter().map(|abi| architecture(*abi)).collect()))
            .set_syscalls(Some(rules));
        let program = compile::compile(machine, &profile).unwrap();
        for (abi, random, arguments) in probes {
            let abi = abis[abi.index(abis.len())];
            let call = call(abi, random);
            let (actual, _) = run(&program, abi.audit(), call, &arguments);
            prop_assert_eq!(actual, evaluate(&profile, abi, call, &arguments), "{:?} {:#x} {:x?}", abi, call, arguments);
        }
    }
}

#[test]
fn runtime_default_agrees_with_its_rules_for_every_number() {
    for (machine, abis) in
        [(Machine::X86_64, [Abi::X86_64, Abi::X32, Abi::X86].as_slice()), (Machine::Aarch64, &[Abi::Aarch64, Abi::Arm])]
    {
        for capabilities in [0, DEFAULT_CAPABILITIES, DEFAULT_CAPABILITIES | SYS_ADMIN, u64::MAX] {
            let profile = profile::runtime_default(machine, capabilities);
            let program = compile::compile(machine, &profile).unwrap();
            for abi in abis {
                let base = if *abi == Abi::X32 { X32_BIT } else { 0 };
                for call in
                    (0..600).step_by(3).map(|call| base | call).chain([base | 0xf_0001, base | 0xf_0005, u32::MAX])
                {
                    for arguments in [[0; 6], [0x1000_0000; 6], [40; 6], [1 << 32 | 40; 6]] {
                        let (actual, _) = run(&program, abi.audit(), call, &arguments);
                        assert_eq!(actual, evaluate(&profile, *abi, call, &arguments), "{abi:?} {call:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_set_of_capabilities_compiles_and_is_short() {
    let relevant = profile::relevant_capabilities();
    for machine in [Machine::X86_64, Machine::Aarch64] {
        for capabilities in (0..64).map(|bit| 1u64 << bit).chain([0, DEFAULT_CAPABILITIES, relevant]) {
            let program = compile::compile(machine, &profile::runtime_default(machine, capabilities)).unwrap();
            assert!(program.len() < 1024, "{}", program.len());
        }
    }
}

#[test]
fn common_calls_are_decided_in_few_instructions() {
    let program = compile::compile(Machine::X86_64, &profile::runtime_default(Machine::X86_64, 0)).unwrap();
    let steps = |name| {
        let call = number(Abi::X86_64, name).unwrap();
        let (value, steps) = run(&program, Abi::X86_64.audit(), call, &[0; 6]);
        assert_eq!(value, ALLOW, "{name}");
        steps
    };
    let common = ["read", "write", "futex", "epoll_wait", "openat", "close", "mmap", "sendto", "recvfrom", "nanosleep"];
    let total: usize = common.iter().map(|name| steps(name)).sum();
    assert!(total / common.len() <= 12, "{} instructions on average", total / common.len());
}

#[test]
fn runtime_default_is_upstreams() {
    let x86_64 = |capabilities, name, arguments: [u64; 6]| {
        let profile = profile::runtime_default(Machine::X86_64, capabilities);
        let program = compile::compile(Machine::X86_64, &profile).unwrap();
        run(&program, Abi::X86_64.audit(), number(Abi::X86_64, name).unwrap(), &arguments).0
    };
    let first = |value| [value, 0, 0, 0, 0, 0];
    for (capabilities, name, arguments, expected) in [
        (DEFAULT_CAPABILITIES, "getpid", [0; 6], ALLOW),
        (DEFAULT_CAPABILITIES, "mount", [0; 6], DENIED),
        (DEFAULT_CAPABILITIES, "unshare", [0; 6], DENIED),
        (DEFAULT_CAPABILITIES, "io_uring_setup", [0; 6], DENIED),
        (DEFAULT_CAPABILITIES, "chroot", [0; 6], ALLOW),
        (0, "chroot", [0; 6], DENIED),
        (DEFAULT_CAPABILITIES, "clone3", [0; 6], NO_SUCH_CALL),
        (SYS_ADMIN, "clone3", [0; 6], ALLOW),
        (SYS_ADMIN, "mount", [0; 6], ALLOW),
        (0, "clone", first(libc::CLONE_VM as u64 | libc::SIGCHLD as u64), ALLOW),
        (0, "clone", first(libc::CLONE_NEWUSER as u64), DENIED),
        (0, "socket", first(libc::AF_INET as u64), ALLOW),
        (0, "socket", first(libc::AF_NETLINK as u64), ALLOW),
        (0, "socket", first(libc::AF_XDP as u64), ALLOW),
        (0, "socket", first(libc::AF_ALG as u64), DENIED),
        (0, "socket", first(libc::AF_VSOCK as u64), DENIED),
        // The kernel would take the low half for AF_VSOCK.
        (0, "socket", first(1 << 32 | libc::AF_VSOCK as u64), DENIED),
        (0, "personality", first(0xffff_ffff), ALLOW),
        (0, "personality", first(libc::ADDR_NO_RANDOMIZE as u64), DENIED),
        // Newer than the profile.
        (0, "open_tree_attr", [0; 6], NO_SUCH_CALL),
    ] {
        assert_eq!(x86_64(capabilities, name, arguments), expected, "{name} {arguments:x?}");
    }
}

#[test]
fn another_architecture_kills() {
    let program = compile::compile(Machine::X86_64, &profile::runtime_default(Machine::X86_64, 0)).unwrap();
    assert_eq!(run(&program, Abi::Aarch64.audit(), 0, &[0; 6]).0, KILL_PROCESS);
    let mut native_only = LinuxSeccomp::default();
    native_only.set_default_action(LinuxSeccompAction::ScmpActAllow);
    let program = compile::compile(Machine::X86_64, &native_only).unwrap();
    assert_eq!(run(&program, Abi::X86_64.audit(), 0, &[0; 6]).0, ALLOW);
    assert_eq!(run(&program, Abi::X86_64.audit(), X32_BIT, &[0; 6]).0, KILL_PROCESS);
    assert_eq!(run(&program, Abi::X86.audit(), 0, &[0; 6]).0, KILL_PROCESS);
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile.json");
    fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn a_localhost_profile_may_have_either_form() {
    let oci = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_FUTURE"],
        "syscalls":[{"names":["mkdir","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":30,"args":null}]}"#;
    let docker = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[
          {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
          {"architecture":"SCMP_ARCH_MIPS64","subArchitectures":["SCMP_ARCH_MIPS"]}],
        "syscalls":[
          {"name":"mkdir","action":"SCMP_ACT_ERRNO","errnoRet":30,"comment":"old form","includes":{},"excludes":{}},
          {"names":["rmdir"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_SYS_ADMIN"]}},
          {"names":["rename"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"99.0"}},
          {"names":["link"],"action":"SCMP_ACT_ERRNO","excludes":{"arches":["s390x"]}}]}"#;
    for (text, subs) in [(oci, false), (docker, true)] {
        let (_directory, path) = written(text);
        let profile = file::read(&path, Machine::X86_64, 0, "6.18.1").unwrap();
        let program = compile::compile(Machine::X86_64, &profile).unwrap();
        let value = |abi: Abi, name| run(&program, abi.audit(), number(abi, name).unwrap(), &[0; 6]).0;
        assert_eq!(value(Abi::X86_64, "mkdir"), 0x0005_0000 | 30);
        assert_eq!(value(Abi::X86_64, "rmdir"), ALLOW);
        assert_eq!(value(Abi::X86_64, "rename"), ALLOW);
        assert_eq!(value(Abi::X86, "mkdir"), if subs { 0x0005_0000 | 30 } else { KILL_PROCESS });
        if subs {
            assert_eq!(value(Abi::X86_64, "link"), DENIED);
        }
    }
}

#[test]
fn a_localhost_profile_that_cannot_be_used_is_named_with_its_rule() {
    let chain = |error: SeccompError| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    };
    for (text, expected) in [
        ("{", "decode seccomp profile"),
        (r#"{"syscalls":[]}"#, "missing field `defaultAction`"),
        (r#"{"defaultAction":"SCMP_ACT_WINK"}"#, "SCMP_ACT_WINK"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":"x"}]}"#,
            "decode syscalls[1] of seccomp profile",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "syscalls[0] (read): argument 6",
        ),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY is not supported"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}"#, "is not supported"),
    ] {
        let (_directory, path) = written(text);
        let error = chain(localhost(&path, 0).unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("profile.json"), "{error}");
    }
    assert!(chain(localhost(std::path::Path::new("/nonexistent"), 0).unwrap_err()).contains("/nonexistent"));
}

#[test]
fn runtime_default_is_compiled_once_per_set_of_capabilities() {
    let first = runtime_default(DEFAULT_CAPABILITIES);
    // CAP_CHOWN makes no difference.
    assert!(Arc::ptr_eq(&first, &runtime_default(DEFAULT_CAPABILITIES ^ 1)));
    assert!(!Arc::ptr_eq(&first, &runtime_default(DEFAULT_CAPABILITIES | SYS_ADMIN)));
}

/// The filter is this thread's own, and ends with it.
#[test]
fn the_kernel_takes_the_filter_and_does_what_it_says() {
    let filter = crate::sys::seccomp::Filter::new(&runtime_default(DEFAULT_CAPABILITIES));
    let seen = std::thread::spawn(move || {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        nix::sys::prctl::set_no_new_privs().unwrap();
        filter.load().unwrap();
        let mount =
            nix::mount::mount(Some("none"), "/nonexistent", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>);
        let vsock = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).map(drop);
        let unix = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).map(drop);
        // The body is not run: clone3 is refused.
        let clone3 = crate::sys::process::clone_running(0, None, || 0).map(drop);
        (mount, vsock, unix, clone3.map_err(|error| error.raw_os_error()), nix::unistd::getpid())
    });
    use nix::errno::Errno;
    let (mount, vsock, unix, clone3, pid) = seen.join().unwrap();
    assert_eq!(mount, Err(Errno::EPERM));
    assert_eq!(vsock, Err(Errno::EPERM));
    assert_eq!(unix, Ok(()));
    assert_eq!(clone3.unwrap_err(), Some(libc::ENOSYS));
    assert_eq!(pid.as_raw() as u32, std::process::id());
}
