//! From rules to a program that the kernel runs.
//!
//! Calls are found by a balanced binary search over ranges of numbers with the same rule: about eight steps, where a list takes
//! hundreds. That matters twice: the kernel tries every number when the filter is installed, to learn which ones need not be
//! filtered at all, and it runs the filter on every call that does.

use crate::runtime::sys::BpfInsn;

// Operations of the classic BPF machine.
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// Where things are in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this errno.
    Errno(u16),
}

/// A test of an argument's low 32 bits. The calls that are tested take 32-bit values there, and ignore the rest as this does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// Is it this value?
    Equal(u32),
    /// Is one of these bits set?
    AnyBit(u32),
}

/// A decision about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The same for every argument.
    Always(Verdict),
    /// It depends on an argument.
    If {
        /// Which one, from 0.
        arg: u32,
        /// The bits that count.
        mask: u32,
        /// What it is tested for.
        test: Test,
        /// If so.
        then: Box<Rule>,
        /// If not.
        otherwise: Box<Rule>,
    },
}

impl Rule {
    /// One rule if the test holds, another if not.
    pub fn test(arg: u32, test: Test, then: Rule, otherwise: Rule) -> Self {
        Self::If { arg, mask: u32::MAX, test, then: Box::new(then), otherwise: Box::new(otherwise) }
    }

    /// `then` if the argument, as far as `mask` lets it through, is one of `values`.
    pub fn one_of(arg: u32, mask: u32, values: &[u32], then: Rule, otherwise: Rule) -> Self {
        values.iter().rev().fold(otherwise, |otherwise, &value| Self::If {
            arg,
            mask,
            test: Test::Equal(value),
            then: Box::new(then.clone()),
            otherwise: Box::new(otherwise),
        })
    }
}

/// A program that follows `rules` (sorted by call number) on `arch`. Calls without a rule get `unlisted`, those above `last` and
/// those of every other architecture (with other numbers for the same calls) get `unknown`.
pub fn assemble(arch: u32, rules: &[(u32, Rule)], unlisted: Verdict, last: u32, unknown: Verdict) -> Vec<BpfInsn> {
    let mut program = vec![load(OFFSET_ARCH)];
    let mut native = vec![load(OFFSET_NUMBER)];
    native.extend(search(&ranges(rules, &Rule::Always(unlisted), last, &Rule::Always(unknown))));
    program.extend(branch(JUMP_EQUAL, arch, native, vec![verdict(unknown)]));
    program
}

/// Neighbouring numbers with the same rule, as the first number of each range and its rule.
fn ranges<'a>(rules: &'a [(u32, Rule)], unlisted: &'a Rule, last: u32, unknown: &'a Rule) -> Vec<(u32, &'a Rule)> {
    let mut ranges: Vec<(u32, &Rule)> = Vec::new();
    let mut add = |first, rule| {
        if ranges.last().is_none_or(|&(_, previous)| previous != rule) {
            ranges.push((first, rule));
        }
    };
    let mut next = 0;
    for (number, rule) in rules {
        if *number > next {
            add(next, unlisted);
        }
        add(*number, rule);
        next = number + 1;
    }
    if next <= last {
        add(next, unlisted);
    }
    add(last + 1, unknown);
    ranges
}

fn search(ranges: &[(u32, &Rule)]) -> Vec<BpfInsn> {
    match ranges {
        [] => Vec::new(),
        [(_, rule)] => decide(rule),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(JUMP_AT_LEAST, high[0].0, search(high), search(low))
        }
    }
}

fn decide(rule: &Rule) -> Vec<BpfInsn> {
    match rule {
        Rule::Always(verdict) => vec![self::verdict(*verdict)],
        Rule::If { arg, mask, test, then, otherwise } => {
            // Little-endian: the low half of a 64-bit argument comes first.
            let mut program = vec![load(OFFSET_ARGS + 8 * arg)];
            if *mask != u32::MAX {
                program.push(BpfInsn { code: AND, jump_true: 0, jump_false: 0, k: *mask });
            }
            let (code, k) = match test {
                Test::Equal(value) => (JUMP_EQUAL, *value),
                Test::AnyBit(bits) => (JUMP_ANY_BIT, *bits),
            };
            program.extend(branch(code, k, decide(then), decide(otherwise)));
            program
        }
    }
}

/// `then` if the comparison holds, `otherwise` if not. Both end by returning.
fn branch(code: u16, k: u32, then: Vec<BpfInsn>, otherwise: Vec<BpfInsn>) -> Vec<BpfInsn> {
    let mut program = Vec::with_capacity(2 + then.len() + otherwise.len());
    match u8::try_from(then.len()) {
        Ok(length) => program.push(BpfInsn { code, jump_true: 0, jump_false: length, k }),
        // A comparison jumps at most 255 instructions far.
        Err(_) => program.extend([
            BpfInsn { code, jump_true: 1, jump_false: 0, k },
            BpfInsn { code: JUMP, jump_true: 0, jump_false: 0, k: then.len() as u32 },
        ]),
    }
    program.extend(then);
    program.extend(otherwise);
    program
}

fn load(offset: u32) -> BpfInsn {
    BpfInsn { code: LOAD_WORD, jump_true: 0, jump_false: 0, k: offset }
}

fn verdict(verdict: Verdict) -> BpfInsn {
    let k = match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
    };
    BpfInsn { code: RETURN, jump_true: 0, jump_false: 0, k }
}

/// Runs a program, as the kernel would.
#[cfg(test)]
pub fn interpret(program: &[BpfInsn], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend([0; 8]);
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let insn = program[at];
        at += 1;
        let jump = |holds| usize::from(if holds { insn.jump_true } else { insn.jump_false });
        match insn.code {
            LOAD_WORD => {
                let from = insn.k as usize;
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
            }
            AND => accumulator &= insn.k,
            JUMP => at += insn.k as usize,
            JUMP_EQUAL => at += jump(accumulator == insn.k),
            JUMP_AT_LEAST => at += jump(accumulator >= insn.k),
            JUMP_ANY_BIT => at += jump(accumulator & insn.k != 0),
            RETURN => return insn.k,
            code => panic!("operation {code:#x}"),
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    const ARCH: u32 = 7;

    #[test]
    fn every_number_gets_its_own_rule() {
        // Enough ranges to need long jumps.
        let rules: Vec<(u32, Rule)> = (0..1000).step_by(3).map(|number| (number, Rule::Always(Verdict::Allow))).collect();
        let program = assemble(ARCH, &rules, Verdict::Errno(1), 1200, Verdict::Errno(38));
        for number in 0..2000 {
            let expected = match number {
                1201.. => libc::SECCOMP_RET_ERRNO | 38,
                0..1000 if number % 3 == 0 => libc::SECCOMP_RET_ALLOW,
                _ => libc::SECCOMP_RET_ERRNO | 1,
            };
            assert_eq!(interpret(&program, ARCH, number, [0; 6]), expected, "call {number}");
        }
        assert_eq!(interpret(&program, ARCH + 1, 0, [0; 6]), libc::SECCOMP_RET_ERRNO | 38);
    }

    #[test]
    fn arguments_are_tested_by_their_low_half() {
        let rule = Rule::one_of(1, 0xff, &[3, 5], Rule::Always(Verdict::Allow), Rule::Always(Verdict::Errno(1)));
        let program = assemble(ARCH, &[(4, rule)], Verdict::Errno(2), 10, Verdict::Errno(38));
        for (value, allowed) in [(3, true), (0x105, true), (0xffff_0000_0000_0003, true), (4, false), (0, false)] {
            let verdict = interpret(&program, ARCH, 4, [9, value, 9, 9, 9, 9]);
            assert_eq!(verdict == libc::SECCOMP_RET_ALLOW, allowed, "{value:#x}");
        }
    }
}
