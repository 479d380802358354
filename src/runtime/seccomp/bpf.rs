//! Classic BPF for seccomp: the few instructions, and an assembler that works from the end to the beginning.
//!
//! Conditional jumps only go forward, at most 255 instructions. Written backwards, every target is known when a jump
//! is made, and one that is too far is reached over an unconditional jump put in between.

use std::collections::BTreeMap;

/// Opcodes (include/uapi/linux/bpf_common.h): class, size or operation, mode or source.
pub mod opcode {
    /// `A = data[k]` (BPF_LD | BPF_W | BPF_ABS).
    pub const LOAD: u16 = 0x20;
    /// `A &= k` (BPF_ALU | BPF_AND | BPF_K).
    pub const AND: u16 = 0x54;
    /// `pc += k` (BPF_JMP | BPF_JA).
    pub const JUMP: u16 = 0x05;
    /// `A == k` (BPF_JMP | BPF_JEQ | BPF_K).
    pub const EQUAL: u16 = 0x15;
    /// `A > k` (BPF_JMP | BPF_JGT | BPF_K).
    pub const GREATER: u16 = 0x25;
    /// `A >= k` (BPF_JMP | BPF_JGE | BPF_K).
    pub const AT_LEAST: u16 = 0x35;
    /// `return k` (BPF_RET | BPF_K).
    pub const RETURN: u16 = 0x06;
}

/// Offset of `nr` in `struct seccomp_data`.
pub const NUMBER: u32 = 0;
/// Offset of `arch`.
pub const ARCHITECTURE: u32 = 4;

/// Offset of the low and high half of an argument (both our machines are little-endian).
pub fn argument(index: u32) -> (u32, u32) {
    (16 + 8 * index, 20 + 8 * index)
}

/// A place in the program, counted from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// A program being written from its end.
#[derive(Debug, Default)]
pub struct Assembler {
    reversed: Vec<u64>,
    /// The latest `return` of each value.
    returns: BTreeMap<u32, Label>,
}

impl Assembler {
    /// Farthest a conditional jump goes.
    const REACH: usize = 255;

    fn push(&mut self, code: u16, yes: u8, no: u8, k: u32) -> Label {
        self.reversed.push(u64::from(code) << 48 | u64::from(yes) << 40 | u64::from(no) << 32 | u64::from(k));
        Label(self.reversed.len() - 1)
    }

    /// How far a jump made now would have to go.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - 1 - to.0
    }

    /// `return value`, shared with an earlier one that is near.
    pub fn give(&mut self, value: u32) -> Label {
        // Half the reach leaves room for what is put before it.
        if let Some(label) = self.returns.get(&value)
            && self.distance(*label) < Self::REACH / 2
        {
            return *label;
        }
        let label = self.push(opcode::RETURN, 0, 0, value);
        self.returns.insert(value, label);
        label
    }

    /// Jumps to `yes` if the comparison with `k` holds, to `no` otherwise.
    pub fn branch(&mut self, comparison: u16, k: u32, yes: Label, no: Label) -> Label {
        // Making the second one reachable may put one instruction more before the first.
        let yes = self.within(yes, Self::REACH - 1);
        let no = self.within(no, Self::REACH);
        let (yes, no) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(comparison, yes, no, k)
    }

    fn within(&mut self, label: Label, reach: usize) -> Label {
        match self.distance(label) {
            distance if distance > reach => self.push(opcode::JUMP, 0, 0, distance as u32),
            _ => label,
        }
    }

    /// An instruction that goes on with `next`.
    pub fn then(&mut self, code: u16, k: u32, next: Label) -> Label {
        match self.distance(next) {
            0 => {}
            distance => drop(self.push(opcode::JUMP, 0, 0, distance as u32)),
        }
        self.push(code, 0, 0, k)
    }

    /// The program, which begins at the label made last.
    pub fn finish(mut self) -> Vec<u64> {
        self.reversed.reverse();
        self.reversed
    }
}

/// Runs a program, for tests: what the kernel would return for these data, and after how many instructions.
#[cfg(test)]
pub fn run(program: &[u64], architecture: u32, number: u32, arguments: &[u64; 6]) -> (u32, usize) {
    let mut words = vec![number, architecture, 0, 0];
    words.extend(arguments.iter().flat_map(|argument| [*argument as u32, (*argument >> 32) as u32]));
    let (mut accumulator, mut at, mut steps) = (0u32, 0usize, 0);
    loop {
        let (code, yes, no, k) =
            ((program[at] >> 48) as u16, (program[at] >> 40) as u8, (program[at] >> 32) as u8, program[at] as u32);
        at += 1;
        steps += 1;
        let mut jump = |taken: bool| at += usize::from(if taken { yes } else { no });
        match code {
            opcode::LOAD => accumulator = words[k as usize / 4],
            opcode::AND => accumulator &= k,
            opcode::JUMP => at += k as usize,
            opcode::EQUAL => jump(accumulator == k),
            opcode::GREATER => jump(accumulator > k),
            opcode::AT_LEAST => jump(accumulator >= k),
            opcode::RETURN => return (k, steps),
            other => panic!("opcode {other:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_any_distance_arrives() {
        for padding in [0, 1, 126, 127, 128, 252, 253, 254, 255, 256, 257, 600] {
            let mut assembler = Assembler::default();
            let (yes, no) = (assembler.give(1), assembler.give(2));
            for _ in 0..padding {
                assembler.push(opcode::RETURN, 0, 0, 99);
            }
            let test = assembler.branch(opcode::EQUAL, 7, yes, no);
            assembler.then(opcode::LOAD, NUMBER, test);
            let program = assembler.finish();
            assert_eq!(run(&program, 0, 7, &[0; 6]).0, 1, "{padding}");
            assert_eq!(run(&program, 0, 8, &[0; 6]).0, 2, "{padding}");
        }
    }
}
