//! One program on both sides, and where they first differ.

use std::fmt::Write;

use doorbell::kvm_abi::types::regs;
use doorbell::kvm_abi::{Errno, KvmLapicState};

use super::super::shrink::Subject;
use super::call::{Call, Fd, pic_byte_name, register_name};
use super::coverage::Coverage;
use super::side::{Outcome, Side, State, VmState};

/// The registers of a local APIC that are compared, besides ISR, TMR and IRR.
const REGISTERS: [usize; 15] = [
    regs::ID,
    regs::VERSION,
    regs::TPR,
    regs::LDR,
    regs::DFR,
    regs::SVR,
    regs::ESR,
    regs::ICR_LOW,
    regs::ICR_HIGH,
    regs::LVT_TIMER,
    regs::LVT_THERMAL,
    regs::LVT_PERFORMANCE,
    regs::LVT_LINT0,
    regs::LVT_LINT1,
    regs::LVT_ERROR,
];

/// Where two sides differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// After which call, counted from 0; the number of calls if it shows in the counters at the end.
    pub at: usize,
    /// What the calls answered up to there.
    pub answers: Vec<[Outcome; 2]>,
    /// What differs: what it is, and both values.
    pub items: Vec<[String; 3]>,
}

/// The two sides of the comparison.
pub struct Pair {
    /// The kernel, then doorbell.
    pub sides: [Side; 2],
}

impl Pair {
    /// Runs a program. `Ok(None)`: no difference.
    ///
    /// # Errors
    /// A call outside of the program that failed and may not: the set-up, or reading the state.
    pub fn run(&mut self, calls: &[Call], mut coverage: Option<&mut Coverage>) -> Result<Option<Difference>, Errno> {
        for side in &mut self.sides {
            side.start()?;
        }
        let mut answers = Vec::with_capacity(calls.len());
        let mut before = self.sides[0].state()?;
        let mut items = differences(&before, &self.sides[1].state()?);
        for (at, call) in calls.iter().enumerate() {
            let answer = [self.sides[0].call(call), self.sides[1].call(call)];
            let states = [self.sides[0].state()?, self.sides[1].state()?];
            answers.push(answer);
            if answer[0] != answer[1] {
                items.push(["the answer".into(), outcome(answer[0]), outcome(answer[1])]);
            }
            if states[0] != states[1] {
                items.extend(differences(&states[0], &states[1]));
            }
            if !items.is_empty() {
                return Ok(Some(Difference { at, answers, items }));
            }
            let [after, _] = states;
            if let Some(coverage) = &mut coverage {
                coverage.count(call, answer[0], &before, &after);
            }
            before = after;
        }
        let counters = [self.sides[0].take_counters(), self.sides[1].take_counters()];
        for (event, (kernel, doorbell)) in counters[0].iter().zip(&counters[1]).enumerate() {
            if kernel != doorbell {
                items.push([format!("counter of {}", Fd::Event(event)), outcome(*kernel), outcome(*doorbell)]);
            }
        }
        Ok((!items.is_empty()).then_some(Difference { at: calls.len(), answers, items }))
    }
}

impl Subject for Pair {
    type Step = Call;
    type Difference = Difference;
    type Error = Errno;

    fn differs(&mut self, calls: &[Call]) -> Result<Option<Difference>, Errno> {
        self.run(calls, None)
    }

    fn step_of(difference: &Difference) -> usize {
        difference.at
    }

    fn simpler(call: &Call) -> Vec<Call> {
        call.simpler()
    }
}

/// An answer, as a report shows it.
pub fn outcome(outcome: Outcome) -> String {
    match outcome {
        Ok(value) => value.to_string(),
        Err(errno) => errno_name(errno),
    }
}

/// `EINVAL` and the like.
pub fn errno_name(errno: Errno) -> String {
    let name = match errno {
        Errno::INVAL => "EINVAL",
        Errno::BADF => "EBADF",
        Errno::BUSY => "EBUSY",
        Errno::AGAIN => "EAGAIN",
        Errno::NXIO => "ENXIO",
        Errno::PERM => "EPERM",
        Errno::EXIST => "EEXIST",
        Errno::FAULT => "EFAULT",
        Errno::PROTO => "EPROTO",
        Errno::NOENT => "ENOENT",
        Errno::ACCESS => "EACCES",
        other => return format!("errno {}", other.raw_os_error()),
    };
    name.into()
}

fn differences(kernel: &State, doorbell: &State) -> Vec<[String; 3]> {
    let mut items = Vec::new();
    for (vm, (kernel, doorbell)) in kernel.vms.iter().zip(&doorbell.vms).enumerate() {
        differences_of_vm(vm, kernel, doorbell, &mut items);
    }
    for event in 0..32 {
        let readable = |state: &State| if state.readable >> event & 1 == 1 { "above 0" } else { "0" };
        if readable(kernel) != readable(doorbell) {
            let name = format!("counter of {}", Fd::Event(event));
            items.push([name, readable(kernel).into(), readable(doorbell).into()]);
        }
    }
    items
}

/// What differs between two VMs.
pub fn differences_of_vm(vm: usize, kernel: &VmState, doorbell: &VmState, items: &mut Vec<[String; 3]>) {
    let mut compare = |name: String, kernel: u64, doorbell: u64| {
        if kernel != doorbell {
            items.push([name, format!("{kernel:#x}"), format!("{doorbell:#x}")]);
        }
    };
    let (k, d) = (&kernel.ioapic, &doorbell.ioapic);
    compare(format!("vm{vm} IOAPIC IRR"), k.irr.into(), d.irr.into());
    compare(format!("vm{vm} IOAPIC id"), k.id.into(), d.id.into());
    compare(format!("vm{vm} IOAPIC index"), k.ioregsel.into(), d.ioregsel.into());
    compare(format!("vm{vm} IOAPIC base"), k.base_address, d.base_address);
    for pin in 0..k.redirtbl.len() {
        compare(format!("vm{vm} IOAPIC entry {pin}"), k.redirtbl[pin], d.redirtbl[pin]);
    }
    for (chip, (kernel, doorbell)) in kernel.pics.iter().zip(&doorbell.pics).enumerate() {
        for (at, (kernel, doorbell)) in kernel.to_bytes().into_iter().zip(doorbell.to_bytes()).enumerate() {
            compare(format!("vm{vm} 8259 {chip} {}", pic_byte_name(at)), kernel.into(), doorbell.into());
        }
    }
    for (vcpu, (kernel, doorbell)) in kernel.lapics.iter().zip(&doorbell.lapics).enumerate() {
        if kernel == doorbell {
            continue;
        }
        for offset in REGISTERS {
            let (kernel, doorbell) = (kernel.register(offset), doorbell.register(offset));
            if kernel != doorbell {
                let name = format!("vm{vm} vcpu{vcpu} {}", register_name(offset));
                items.push([name, format!("{kernel:#x}"), format!("{doorbell:#x}")]);
            }
        }
        for (name, offset) in [("ISR", regs::ISR), ("TMR", regs::TMR), ("IRR", regs::IRR)] {
            if kernel.bitmap(offset) != doorbell.bitmap(offset) {
                let name = format!("vm{vm} vcpu{vcpu} {name}");
                items.push([name, vectors(kernel, offset), vectors(doorbell, offset)]);
            }
        }
    }
}

fn vectors(state: &KvmLapicState, offset: usize) -> String {
    let mut text = String::new();
    for vector in state.vectors(offset) {
        let _ = write!(text, "{}{vector:#04x}", if text.is_empty() { "" } else { " " });
    }
    if text.is_empty() { "none".into() } else { text }
}
