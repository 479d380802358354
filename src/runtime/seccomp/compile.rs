//! From a profile's rules to a filter program.
//!
//! What the rules mean follows libseccomp and runc: the native ABI is always covered; names an ABI does not have are
//! passed over; several comparisons of one rule must all hold, except those of one argument, of which one is enough;
//! calls newer than any the profile names get ENOSYS instead of a denial, so that the C library falls back; any other
//! architecture kills. Where rules for one call disagree, those with comparisons come first, in order, then the first
//! without.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use super::{
    SeccompError,
    bpf::{ARCHITECTURE, Assembler, Label, NUMBER, argument, opcode},
    machine::{ARM_PRIVATE, Abi, Machine, X32_BIT, number},
};

/// BPF_MAXINSNS: more the kernel does not take.
const MAX_INSTRUCTIONS: usize = 4096;

/// Return values (include/uapi/linux/seccomp.h).
pub const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
/// The call goes ahead.
pub const ALLOW: u32 = 0x7fff_0000;
/// The call does not exist, as far as the container can tell.
pub const NO_SUCH_CALL: u32 = ERRNO | libc::ENOSYS as u32;

/// The number a tracer sets to skip a call; no ABI has it.
const SKIPPED: u32 = u32::MAX;

/// Compiles a profile for a machine.
pub fn compile(machine: Machine, profile: &LinuxSeccomp) -> Result<Vec<u64>, SeccompError> {
    let rules = Rules::of(profile)?;
    let mut abis = vec![machine.native_abi()];
    abis.extend(profile.architectures().iter().flatten().filter_map(|architecture| machine.abi(*architecture)));
    abis.sort_unstable();
    abis.dedup();

    // x86_64 and x32 are one architecture to the kernel and so share a tree.
    let mut trees: BTreeMap<u32, Vec<Abi>> = BTreeMap::new();
    for abi in abis {
        trees.entry(abi.audit()).or_default().push(abi);
    }
    let mut assembler = Assembler::default();
    let mut next = assembler.give(KILL_PROCESS);
    let native = machine.native_abi().audit();
    // The native architecture is written last, so that it is tested first.
    for (audit, abis) in trees.iter().filter(|(audit, _)| **audit != native).chain(trees.get_key_value(&native)) {
        let spans = rules.spans(abis);
        let tree = write_tree(&mut assembler, &spans);
        let start = assembler.then(opcode::LOAD, NUMBER, tree);
        next = assembler.branch(opcode::EQUAL, *audit, start, next);
    }
    assembler.then(opcode::LOAD, ARCHITECTURE, next);
    let program = assembler.finish();
    match program.len() {
        instructions if instructions > MAX_INSTRUCTIONS => Err(SeccompError::TooLong { instructions }),
        _ => Ok(program),
    }
}

/// One comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Comparison {
    index: u32,
    operator: LinuxSeccompOperator,
    value: u64,
    second: u64,
}

/// What happens to a call: the first of `cases` whose comparisons all hold, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision {
    cases: Vec<(Vec<Comparison>, u32)>,
    otherwise: u32,
}

/// A profile with its actions and comparisons checked and resolved.
struct Rules<'a> {
    default: u32,
    /// For calls newer than the profile.
    unknown: u32,
    by_name: Vec<(&'a str, Vec<Vec<Comparison>>, u32)>,
}

/// All numbers from `start` to the next span.
struct Span {
    start: u32,
    decision: Decision,
}

impl<'a> Rules<'a> {
    fn of(profile: &'a LinuxSeccomp) -> Result<Rules<'a>, SeccompError> {
        if profile.listener_path().is_some() {
            return Err(SeccompError::Unsupported { what: "listenerPath".to_owned() });
        }
        for flag in profile.flags().iter().flatten() {
            match flag {
                // A filter is loaded by a single thread, and the speculation controls it spares are off by default
                // since Linux 5.16: both change nothing.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync | LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                }
                other => return Err(SeccompError::Unsupported { what: format!("flag {other}") }),
            }
        }
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        // A profile that permits by default, or leaves it to a tracer, has an answer for new calls too.
        let unknown = match profile.default_action() {
            LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace => {
                default
            }
            _ => NO_SUCH_CALL,
        };
        let mut by_name = Vec::new();
        for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
            let resolved = resolve(rule).map_err(|reason| SeccompError::Rule {
                index,
                name: rule.names().first().cloned().unwrap_or_default(),
                reason,
            })?;
            by_name.extend(rule.names().iter().map(|name| (name.as_str(), resolved.0.clone(), resolved.1)));
        }
        Ok(Rules { default, unknown, by_name })
    }

    fn constant(&self, value: u32) -> Decision {
        Decision { cases: Vec::new(), otherwise: value }
    }

    /// The decision for every number of one architecture, in order, neighbours that agree joined.
    fn spans(&self, abis: &[Abi]) -> Vec<Span> {
        let mut spans = Vec::new();
        if abis == [Abi::X86_64] {
            self.add_spans(Abi::X86_64, 0, X32_BIT - 1, &mut spans);
            add(&mut spans, X32_BIT, self.constant(KILL_PROCESS));
        } else if abis.contains(&Abi::X32) {
            self.add_spans(Abi::X86_64, 0, X32_BIT - 1, &mut spans);
            self.add_spans(Abi::X32, X32_BIT, SKIPPED - 1, &mut spans);
        } else {
            for abi in abis {
                self.add_spans(*abi, 0, SKIPPED - 1, &mut spans);
            }
        }
        add(&mut spans, SKIPPED, self.constant(self.default));
        spans
    }

    fn add_spans(&self, abi: Abi, first: u32, last: u32, spans: &mut Vec<Span>) {
        let decisions = self.decisions(abi);
        let newest = decisions.keys().copied().filter(|number| abi != Abi::Arm || *number < ARM_PRIVATE).max();
        let gap = |number: u32| {
            self.constant(if newest.is_none_or(|newest| number <= newest) { self.default } else { self.unknown })
        };
        let mut next = first;
        for (number, decision) in decisions {
            if next < number {
                add(spans, next, gap(next));
            }
            next = number + 1;
            add(spans, number, decision);
        }
        if next <= last {
            add(spans, next, gap(next));
        }
    }

    fn decisions(&self, abi: Abi) -> BTreeMap<u32, Decision> {
        let mut found: BTreeMap<u32, (Decision, bool)> = BTreeMap::new();
        for (name, alternatives, value) in &self.by_name {
            let Some(number) = number(abi, name) else { continue };
            let (decision, settled) = found.entry(number).or_insert_with(|| (self.constant(self.default), false));
            if !alternatives.is_empty() {
                decision.cases.extend(alternatives.iter().map(|comparisons| (comparisons.clone(), *value)));
            } else if !*settled {
                (decision.otherwise, *settled) = (*value, true);
            }
        }
        let simplified = found.into_iter().map(|(number, (mut decision, _))| {
            if decision.cases.iter().all(|(_, value)| *value == decision.otherwise) {
                decision.cases.clear();
            }
            (number, decision)
        });
        simplified.collect()
    }
}

fn add(spans: &mut Vec<Span>, start: u32, decision: Decision) {
    match spans.last() {
        // Cases are never joined: each is written once, for one call.
        Some(last) if last.decision == decision && decision.cases.is_empty() => {}
        _ => spans.push(Span { start, decision }),
    }
}

/// The alternatives under which a rule applies (none: always) and its value.
fn resolve(rule: &LinuxSyscall) -> Result<(Vec<Vec<Comparison>>, u32), String> {
    let value = action(rule.action(), rule.errno_ret()).map_err(|error| error.to_string())?;
    let mut comparisons = Vec::new();
    for argument in rule.args().iter().flatten() {
        comparisons.push(comparison(argument)?);
    }
    let repeated = comparisons
        .iter()
        .enumerate()
        .any(|(at, comparison)| comparisons[..at].iter().any(|earlier| earlier.index == comparison.index));
    let alternatives = match (comparisons.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (false, false) => vec![comparisons],
        (false, true) => comparisons.into_iter().map(|comparison| vec![comparison]).collect(),
    };
    Ok((alternatives, value))
}

fn comparison(argument: &LinuxSeccompArg) -> Result<Comparison, String> {
    let index = u32::try_from(argument.index()).ok().filter(|index| *index < 6);
    Ok(Comparison {
        index: index.ok_or_else(|| format!("argument {} (a system call has 0 to 5)", argument.index()))?,
        operator: argument.op(),
        value: argument.value(),
        second: argument.value_two().unwrap_or(0),
    })
}

fn action(action: LinuxSeccompAction, data: Option<u32>) -> Result<u32, SeccompError> {
    let data = data.unwrap_or(libc::EPERM as u32);
    if data > 0xffff {
        return Err(SeccompError::Unsupported { what: format!("errnoRet {data} (at most 65535)") });
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => TRAP,
        LinuxSeccompAction::ScmpActErrno => ERRNO | data,
        LinuxSeccompAction::ScmpActTrace => TRACE | data,
        LinuxSeccompAction::ScmpActLog => LOG,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(SeccompError::Unsupported { what: "action SCMP_ACT_NOTIFY".to_owned() });
        }
    })
}

/// A balanced tree over the spans; the accumulator holds the number.
fn write_tree(assembler: &mut Assembler, spans: &[Span]) -> Label {
    match spans {
        [only] => write_decision(assembler, &only.decision),
        _ => {
            let (low, high) = spans.split_at(spans.len() / 2);
            let at_least = write_tree(assembler, high);
            let below = write_tree(assembler, low);
            assembler.branch(opcode::AT_LEAST, high[0].start, at_least, below)
        }
    }
}

fn write_decision(assembler: &mut Assembler, decision: &Decision) -> Label {
    let mut next = assembler.give(decision.otherwise);
    for (comparisons, value) in decision.cases.iter().rev() {
        let mut holds = assembler.give(*value);
        for comparison in comparisons.iter().rev() {
            holds = write_comparison(assembler, *comparison, holds, next);
        }
        next = holds;
    }
    next
}

/// 64 bits in two halves, the high one first.
fn write_comparison(assembler: &mut Assembler, comparison: Comparison, yes: Label, no: Label) -> Label {
    use LinuxSeccompOperator::*;
    let (low, high) = argument(comparison.index);
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    let (low_value, high_value) = halves(comparison.value);
    let equal = |assembler: &mut Assembler, yes, no| {
        let test = assembler.branch(opcode::EQUAL, low_value, yes, no);
        let low_half = assembler.then(opcode::LOAD, low, test);
        let test = assembler.branch(opcode::EQUAL, high_value, low_half, no);
        assembler.then(opcode::LOAD, high, test)
    };
    let ordered = |assembler: &mut Assembler, low_test, yes, no| {
        let test = assembler.branch(low_test, low_value, yes, no);
        let low_half = assembler.then(opcode::LOAD, low, test);
        let same = assembler.branch(opcode::EQUAL, high_value, low_half, no);
        let test = assembler.branch(opcode::GREATER, high_value, yes, same);
        assembler.then(opcode::LOAD, high, test)
    };
    match comparison.operator {
        ScmpCmpEq => equal(assembler, yes, no),
        ScmpCmpNe => equal(assembler, no, yes),
        ScmpCmpGt => ordered(assembler, opcode::GREATER, yes, no),
        ScmpCmpGe => ordered(assembler, opcode::AT_LEAST, yes, no),
        ScmpCmpLt => ordered(assembler, opcode::AT_LEAST, no, yes),
        ScmpCmpLe => ordered(assembler, opcode::GREATER, no, yes),
        ScmpCmpMaskedEq => {
            let (low_wanted, high_wanted) = halves(comparison.second);
            let test = assembler.branch(opcode::EQUAL, low_wanted, yes, no);
            let masked = assembler.then(opcode::AND, low_value, test);
            let low_half = assembler.then(opcode::LOAD, low, masked);
            let test = assembler.branch(opcode::EQUAL, high_wanted, low_half, no);
            let masked = assembler.then(opcode::AND, high_value, test);
            assembler.then(opcode::LOAD, high, masked)
        }
    }
}
