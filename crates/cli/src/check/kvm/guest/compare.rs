//! One program with a guest on both sides, and where they first differ.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use doorbell::kvm_abi::types::regs;
use doorbell::kvm_abi::{Errno, KvmPicState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::call::{Answer, Call, SOURCES};
use super::chips::Pics;
use super::code::{LAPIC, Operation};
use super::coverage;
use super::machine::{Machine, Rest, VCPUS};
use crate::check::kvm::compare::differences_of_vm;
use crate::check::kvm::coverage::Coverage;
use crate::check::kvm::machines::new_event;
use crate::check::kvm::side::VmState;
use crate::check::shrink::Subject;

/// How long the timer runs.
const ONCE: Duration = Duration::from_micros(250);
/// Its period: long beside what a busy host needs for the handler of each tick.
const PERIOD: Duration = Duration::from_millis(3);
/// How much later it has expired for certain.
const GRACE: Duration = Duration::from_micros(650);

/// Everything of one side that is compared after each step.
#[derive(Clone, PartialEq)]
pub struct State {
    /// The chips.
    pub vm: VmState,
    /// The 8259 pair.
    pub pics: Pics,
    /// Which resample events have a counter above 0, a bit each.
    pub readable: u32,
}

/// Where two sides differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// After which step, counted from 0.
    pub at: usize,
    /// What the steps answered up to there.
    pub answers: Vec<[Answer; 2]>,
    /// What differs: what it is, and both values.
    pub items: Vec<[String; 3]>,
}

/// One side.
pub struct Side {
    /// Its VM.
    pub machine: Machine,
    events: Vec<OwnedFd>,
}

impl Side {
    /// A side with this VM.
    pub fn new(machine: Machine) -> Self {
        Self { machine, events: Vec::new() }
    }

    fn start(&mut self, pic: bool) -> Result<(), Errno> {
        self.machine.reset(pic)?;
        self.events = (0..2 * SOURCES).map(|_| new_event()).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn make(&mut self, call: &Call) -> Result<Answer, Errno> {
        let Self { machine, events } = self;
        let chips = machine.chips();
        let outcome = match *call {
            Call::Message(message) => chips.message(&message),
            Call::Line { gsi, level } => chips.line(gsi, level),
            Call::Bind { source, gsi, resample } => {
                let resample = resample.then(|| events[SOURCES + source].as_fd());
                chips.bind(source, gsi, events[source].as_fd(), resample)
            }
            Call::Unbind { source, gsi } => chips.unbind(source, gsi, events[source].as_fd()),
            Call::Write { source } => {
                rustix::io::write(&events[source], &1u64.to_ne_bytes()).map(|_| 0).map_err(Errno::from)
            }
            Call::Read { source } => {
                let mut bytes = [0; 8];
                let read = rustix::io::read(&events[SOURCES + source], &mut bytes);
                read.map(|_| i64::from_ne_bytes(bytes)).map_err(Errno::from)
            }
            Call::Handler { vcpu, vector, policy } => {
                machine.set_policy(vcpu, vector, policy);
                Ok(0)
            }
            Call::Timer { vcpu, vector, periodic } => return self.time(vcpu, vector, periodic),
            Call::Guest { vcpu, operation, arguments } => {
                let (rest, taken) = machine.run(vcpu, operation, arguments)?;
                return Ok(Answer::Guest(rest, taken));
            }
        };
        if matches!(call, Call::Write { .. } | Call::Bind { .. } | Call::Unbind { .. }) {
            self.machine.chips().settle();
        }
        Ok(Answer::Host(outcome))
    }

    /// Starts a timer, waits until it must have expired, lets the vCPU take what came, and stops it. Of what a periodic one
    /// did, repetitions are left out: how often it expires depends on the machine.
    fn time(&mut self, vcpu: u32, vector: u8, periodic: bool) -> Result<Answer, Errno> {
        let mut events = Vec::new();
        let (mode, count) = (u32::from(periodic) << 17, if periodic { PERIOD } else { ONCE });
        let stores = [
            (regs::TIMER_DIVIDE, 0xb),
            (regs::LVT_TIMER, mode | u32::from(vector)),
            // KVM's bus is 1 GHz.
            (regs::TIMER_INITIAL, count.as_nanos() as u32),
            (regs::TIMER_INITIAL, 0),
            (regs::LVT_TIMER, 0x1_0000),
        ];
        for (place, (offset, value)) in stores.into_iter().enumerate() {
            let arguments = [LAPIC + offset as u64, value.into()];
            let (rest, taken) = self.machine.run(vcpu, Operation::Store, arguments)?;
            events.extend(taken);
            // Halted, it stores nothing; and the first store says so.
            if place == 0 && rest == Rest::Halted {
                return Ok(Answer::Guest(rest, events));
            }
            for _ in 0..if offset == regs::TIMER_INITIAL && value != 0 { 1 + u32::from(periodic) } else { 0 } {
                std::thread::sleep(count + GRACE);
                let (_, taken) = self.machine.run(vcpu, Operation::Nothing, [0, 0])?;
                events.extend(taken);
            }
        }
        if periodic {
            let mut seen = std::collections::BTreeSet::new();
            events.retain(|event| seen.insert(*event));
        }
        Ok(Answer::Guest(Rest::Idle(0), events))
    }

    fn state(&mut self) -> Result<State, Errno> {
        let ioapic = self.machine.ioapic()?;
        let lapics = (0..VCPUS).map(|vcpu| self.machine.lapic(vcpu)).collect::<Result<_, _>>()?;
        let mut polled: Vec<_> = self.events[SOURCES..].iter().map(|event| PollFd::new(event, PollFlags::IN)).collect();
        poll(&mut polled, Some(&Timespec::default()))?;
        let readable = polled.iter().enumerate().filter(|(_, event)| event.revents().contains(PollFlags::IN));
        let readable = readable.fold(0, |bits, (event, _)| bits | 1 << event);
        // The 8259 pair is compared apart: a split chip has none.
        let vm = VmState { pics: Default::default(), ioapic, lapics };
        Ok(State { vm, pics: self.machine.pics()?, readable })
    }
}

/// The two sides of the comparison: the kernel, then doorbell.
pub struct Pair<'a> {
    /// They are borrowed: the kernel is compared with several.
    pub sides: [&'a mut Side; 2],
    /// Whether the boot CPU hears the 8259 pair.
    pub pic: bool,
}

impl Pair<'_> {
    /// Runs a program. `Ok(None)`: no difference.
    ///
    /// # Errors
    /// A call outside of the program that failed and may not.
    pub fn run(&mut self, calls: &[Call], mut coverage: Option<&mut Coverage>) -> Result<Option<Difference>, Errno> {
        let [kernel, doorbell] = &mut self.sides;
        kernel.start(self.pic)?;
        doorbell.start(self.pic)?;
        let mut answers = Vec::with_capacity(calls.len());
        let mut before = kernel.state()?;
        let mut items = differences(&before, &doorbell.state()?);
        for (at, call) in calls.iter().enumerate() {
            let answer = [kernel.make(call)?, doorbell.make(call)?];
            let after = [kernel.state()?, doorbell.state()?];
            let stuck = answer.iter().any(|answer| matches!(answer, Answer::Guest(Rest::Stuck, _)));
            if answer[0] != answer[1] || stuck {
                items.push(["the answer".into(), answer[0].to_string(), answer[1].to_string()]);
            }
            if after[0] != after[1] {
                items.extend(differences(&after[0], &after[1]));
            }
            if let Some(coverage) = coverage.as_mut().filter(|_| items.is_empty()) {
                coverage::count(coverage, call, &answer[0], &before, &after[0]);
            }
            answers.push(answer);
            if !items.is_empty() {
                return Ok(Some(Difference { at, answers, items }));
            }
            [before, _] = after;
        }
        Ok(None)
    }
}

impl Subject for Pair<'_> {
    type Step = Call;
    type Difference = Difference;
    type Error = Errno;

    fn differs(&mut self, steps: &[Call]) -> Result<Option<Difference>, Errno> {
        self.run(steps, None)
    }

    fn step_of(difference: &Difference) -> usize {
        difference.at
    }

    fn simpler(step: &Call) -> Vec<Call> {
        step.simpler()
    }
}

fn differences(kernel: &State, doorbell: &State) -> Vec<[String; 3]> {
    let mut items = Vec::new();
    differences_of_vm(0, &kernel.vm, &doorbell.vm, &mut items);
    for (name, kernel, doorbell) in
        [("master", &kernel.pics[0], &doorbell.pics[0]), ("slave", &kernel.pics[1], &doorbell.pics[1])]
    {
        if kernel != doorbell {
            let fields = |state: &KvmPicState| {
                let KvmPicState { last_irr, irr, imr, isr, priority_add, irq_base, .. } = state;
                let KvmPicState { special_mask, auto_eoi, elcr, .. } = state;
                format!(
                    "last {last_irr:#x} IRR {irr:#x} IMR {imr:#x} ISR {isr:#x} first {priority_add} base {irq_base:#x} \
                     special {special_mask} auto {auto_eoi} ELCR {elcr:#x}"
                )
            };
            items.push([name.into(), fields(kernel), fields(doorbell)]);
        }
    }
    for source in 0..SOURCES {
        let readable = |state: &State| if state.readable >> source & 1 == 1 { "above 0" } else { "0" };
        if readable(kernel) != readable(doorbell) {
            let name = format!("counter of resample event {source}");
            items.push([name, readable(kernel).into(), readable(doorbell).into()]);
        }
    }
    items
}
