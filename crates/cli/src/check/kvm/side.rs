//! One side of the comparison: it makes the calls of a program and says what can be seen.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use doorbell::kvm_abi::types::{CHIP_IOAPIC, CHIP_PIC_MASTER, CHIP_PIC_SLAVE, IRQFD_DEASSIGN, regs};
use doorbell::kvm_abi::{Errno, KvmIoapicState, KvmIrqLevel, KvmIrqchip, KvmIrqfd, KvmLapicState, KvmPicState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::call::{Call, EVENTS, Fd, VCPUS};
use super::machines::{Binding, Machines, new_event, prelude};

/// What a call returned: a number, or an errno.
pub type Outcome = Result<i64, Errno>;

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const IOAPIC_WINDOW: u64 = IOAPIC + 0x10;
const NOT_OPEN: i32 = 9_999;

/// Everything of one side that is compared after each call.
#[derive(Clone, PartialEq)]
pub struct State {
    /// The two VMs.
    pub vms: [VmState; 2],
    /// Which eventfds have a counter above 0, a bit each.
    pub readable: u32,
}

/// The controllers of one VM.
#[derive(Clone, PartialEq)]
pub struct VmState {
    /// The 8259 pair.
    pub pics: [KvmPicState; 2],
    /// The IOAPIC.
    pub ioapic: KvmIoapicState,
    /// The local APICs, by vCPU.
    pub lapics: Vec<KvmLapicState>,
}

/// One side.
pub struct Side {
    machines: Box<dyn Machines>,
    events: Vec<OwnedFd>,
    no_event: OwnedFd,
    bindings: Vec<Binding>,
}

impl Side {
    /// A side with these VMs, which have just been made.
    ///
    /// # Errors
    /// Where `/dev/null` cannot be opened.
    pub fn new(machines: Box<dyn Machines>) -> Result<Self, Errno> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let no_event = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?;
        Ok(Self { machines, events: Vec::new(), no_event, bindings: Vec::new() })
    }

    /// How the side is called.
    pub fn name(&self) -> &'static str {
        self.machines.name()
    }

    /// Forgets the last program and gets ready for the next.
    ///
    /// # Errors
    /// A call that failed and may not.
    pub fn start(&mut self) -> Result<(), Errno> {
        self.machines.reset(&self.bindings)?;
        self.bindings.clear();
        self.events = (0..EVENTS).map(|_| new_event()).collect::<Result<_, _>>()?;
        prelude(&*self.machines)
    }

    fn number_of(&self, fd: Fd) -> i32 {
        match fd {
            Fd::Event(event) => self.events[event].as_raw_fd(),
            Fd::NotOpen => NOT_OPEN,
            Fd::MinusOne => -1,
            Fd::NoEvent => self.no_event.as_raw_fd(),
        }
    }

    /// Makes one call, and returns when all its effects have happened.
    pub fn call(&mut self, call: &Call) -> Outcome {
        let outcome = self.make(call);
        if call.is_deferred() {
            self.machines.vm(0).settle();
            self.machines.vm(1).settle();
        }
        outcome
    }

    fn make(&mut self, call: &Call) -> Outcome {
        let number = i64::from;
        match call {
            Call::Irqfd { vm, fd, gsi, flags, resample } => {
                let (fd, resamplefd) = (self.number_of(*fd), self.number_of(*resample));
                let request = KvmIrqfd {
                    fd: fd as u32,
                    gsi: *gsi,
                    flags: *flags,
                    resamplefd: resamplefd as u32,
                    ..KvmIrqfd::default()
                };
                let answer = self.machines.vm(*vm).irqfd(&request);
                if answer.is_ok() {
                    let binding = (*vm, fd, *gsi);
                    self.bindings.retain(|other| flags & IRQFD_DEASSIGN == 0 || *other != binding);
                    if flags & IRQFD_DEASSIGN == 0 {
                        self.bindings.push(binding);
                    }
                }
                answer.map(number)
            }
            Call::Routes { vm, nr, flags, entries } => {
                self.machines.vm(*vm).set_gsi_routing(*nr, *flags, entries).map(number)
            }
            Call::Line { vm, gsi, level, status } => {
                let (vm, request) = (self.machines.vm(*vm), KvmIrqLevel { irq: *gsi, level: *level });
                if *status { vm.irq_line_status(request) } else { vm.irq_line(request) }.map(number)
            }
            Call::Msi { vm, message } => self.machines.vm(*vm).signal_msi(message).map(number),
            Call::Write { event, value } => {
                rustix::io::write(&self.events[*event], &value.to_ne_bytes())?;
                Ok(0)
            }
            Call::Read { event } => self.read(*event),
            Call::Renumber { event } => {
                let copy = self.events[*event].as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
                let old = std::mem::replace(&mut self.events[*event], copy);
                let (from, to) = (old.as_raw_fd(), self.events[*event].as_raw_fd());
                self.bindings.iter_mut().filter(|binding| binding.1 == from).for_each(|binding| binding.1 = to);
                Ok(0)
            }
            Call::SetEntry { vm, pin, entry } => self.change_ioapic(*vm, |state| state.redirtbl[*pin] = *entry),
            Call::SetLatches { vm, irr } => self.change_ioapic(*vm, |state| state.irr = *irr),
            Call::SetPic { vm, chip, at, value } => {
                let mut state = self.pic(*vm, *chip)?.to_bytes();
                state[*at] = *value;
                let mut irqchip = KvmIrqchip::of(*chip);
                irqchip.set_pic(&KvmPicState::from_bytes(state));
                self.machines.vm(*vm).set_irqchip(&irqchip).map(number)
            }
            Call::SetRegister { vm, vcpu, offset, value } => {
                let mut state = self.lapic(*vm, *vcpu)?;
                state.set_register(*offset, *value);
                self.machines.vm(*vm).set_lapic(*vcpu, &state).map(number)
            }
            Call::Acknowledge { vm, vcpu } => {
                self.machines.vm(*vm).acknowledge(*vcpu).map(|vector| vector.map_or(-1, i64::from))
            }
            Call::End { vm, vcpu } => {
                // KVM keeps, for each vCPU, which ends the IOAPIC has to hear of, and may be behind after a guest's
                // store to an entry. After this it looks again.
                let state = self.lapic(*vm, *vcpu)?;
                self.machines.vm(*vm).set_lapic(*vcpu, &state)?;
                self.store(*vm, *vcpu, LAPIC + regs::EOI as u64, 0)
            }
            Call::StoreLapic { vm, vcpu, offset, value } => self.store(*vm, *vcpu, LAPIC + *offset as u64, *value),
            Call::LoadLapic { vm, vcpu, offset } => self.load(*vm, *vcpu, LAPIC + *offset as u64),
            Call::StoreEntry { vm, vcpu, index, value } => {
                self.store(*vm, *vcpu, IOAPIC, *index)?;
                self.store(*vm, *vcpu, IOAPIC_WINDOW, *value)
            }
            Call::LoadEntry { vm, vcpu, index } => {
                self.store(*vm, *vcpu, IOAPIC, *index)?;
                self.load(*vm, *vcpu, IOAPIC_WINDOW)
            }
            Call::StorePort { vm, vcpu, port, value } => {
                self.machines.vm(*vm).port_store(*vcpu, *port, *value).map(|()| 0)
            }
            Call::LoadPort { vm, vcpu, port } => self.machines.vm(*vm).port_load(*vcpu, *port).map(i64::from),
        }
    }

    fn store(&self, vm: usize, vcpu: u32, address: u64, value: u32) -> Outcome {
        self.machines.vm(vm).store(vcpu, address, value).map(|()| 0)
    }

    fn load(&self, vm: usize, vcpu: u32, address: u64) -> Outcome {
        self.machines.vm(vm).load(vcpu, address).map(i64::from)
    }

    fn read(&self, event: usize) -> Outcome {
        let mut bytes = [0; 8];
        rustix::io::read(&self.events[event], &mut bytes)?;
        Ok(i64::from_ne_bytes(bytes))
    }

    fn lapic(&self, vm: usize, vcpu: u32) -> Result<KvmLapicState, Errno> {
        let mut state = KvmLapicState::default();
        self.machines.vm(vm).get_lapic(vcpu, &mut state)?;
        Ok(state)
    }

    fn pic(&self, vm: usize, chip: u32) -> Result<KvmPicState, Errno> {
        let mut irqchip = KvmIrqchip::of(chip);
        self.machines.vm(vm).get_irqchip(&mut irqchip)?;
        Ok(irqchip.pic())
    }

    fn change_ioapic(&self, vm: usize, change: impl FnOnce(&mut KvmIoapicState)) -> Outcome {
        let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
        self.machines.vm(vm).get_irqchip(&mut chip)?;
        let mut state = chip.ioapic();
        change(&mut state);
        chip.set_ioapic(&state);
        self.machines.vm(vm).set_irqchip(&chip).map(i64::from)
    }

    /// What can be seen now.
    ///
    /// # Errors
    /// A call that failed and may not.
    pub fn state(&self) -> Result<State, Errno> {
        let vm = |number: usize| -> Result<VmState, Errno> {
            let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
            self.machines.vm(number).get_irqchip(&mut chip)?;
            let lapics = (0..VCPUS[number]).map(|vcpu| self.lapic(number, vcpu)).collect::<Result<_, _>>()?;
            let pics = [self.pic(number, CHIP_PIC_MASTER)?, self.pic(number, CHIP_PIC_SLAVE)?];
            Ok(VmState { pics, ioapic: chip.ioapic(), lapics })
        };
        let mut polled: Vec<_> = self.events.iter().map(|event| PollFd::new(event, PollFlags::IN)).collect();
        poll(&mut polled, Some(&Timespec::default()))?;
        let readable = polled.iter().enumerate().filter(|(_, event)| event.revents().contains(PollFlags::IN));
        let readable = readable.fold(0, |bits, (event, _)| bits | 1 << event);
        Ok(State { vms: [vm(0)?, vm(1)?], readable })
    }

    /// The counters of all eventfds, which are 0 afterwards.
    pub fn take_counters(&self) -> Vec<Outcome> {
        (0..EVENTS).map(|event| self.read(event)).collect()
    }
}
