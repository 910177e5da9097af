//! The kernel's chips as stations: messages and pins, each at the price of a system call.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{KernelRoute, Vm};
use crate::{Delivery, Error, IrqLine, LineSource, MsiMessage, MsiTarget, PinInput, Pins, Target, delivery::ChipId};

/// Messages to the kernel's local APICs (or its ITS) by `KVM_SIGNAL_MSI`, which needs no route.
#[derive(Clone, Debug)]
pub struct KernelMsi(Arc<Vm>);

impl KernelMsi {
    /// Messages to this VM, which has an in-kernel or a split chip.
    pub fn new(vm: Arc<Vm>) -> Self {
        Self(vm)
    }
}

impl MsiTarget for KernelMsi {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.0.signal_msi(message)
    }

    /// Nothing is gained: the system call takes the message itself.
    fn prepare(&self, _: &MsiMessage) -> Option<Target> {
        None
    }

    fn fire(&self, _: Target) -> Delivery {
        Delivery::Ignored
    }
}

/// The pins of the kernel's chips, each reached by a kernel GSI of its own.
///
/// `KVM_IRQ_LINE` takes a GSI, not a pin, and knows one source only. So each pin has a fixed kernel GSI at the bottom of
/// the kernel's table (x86: 0 to 23 the IOAPIC, which makes them the usual numbers; then the 8259 pair), and the OR of
/// doorbell's sources is made here. In-kernel resampling sources are ORed by the kernel.
#[derive(Debug)]
pub struct KernelPins {
    vm: Arc<Vm>,
    banks: Vec<Bank>,
}

#[derive(Debug)]
struct Bank {
    chip: ChipId,
    /// The kernel GSI of pin 0.
    first: u32,
    /// Lock order: the last one; held over the system call, so that the kernel sees the levels in order.
    lines: Vec<Mutex<IrqLine>>,
}

/// The chips that `KVM_CREATE_IRQCHIP` makes on x86, and how many pins each has.
pub const X86_CHIPS: [(ChipId, u16); 3] = [(2, 24), (0, 8), (1, 8)];

impl KernelPins {
    /// The pins of these chips, numbered from kernel GSI 0 in this order. Their routes still have to be committed.
    pub fn new(vm: Arc<Vm>, chips: &[(ChipId, u16)]) -> Self {
        let mut first = 0;
        let banks = chips
            .iter()
            .map(|&(chip, pins)| {
                let bank = Bank { chip, first, lines: (0..pins).map(|_| Mutex::default()).collect() };
                first += u32::from(pins);
                bank
            })
            .collect();
        Self { vm, banks }
    }

    /// How many kernel GSIs the pins take.
    pub fn gsis(&self) -> u32 {
        self.banks.last().map_or(0, |bank| bank.first + bank.lines.len() as u32)
    }

    /// The routes of the pins.
    pub fn routes(&self) -> impl Iterator<Item = KernelRoute> + '_ {
        self.banks.iter().flat_map(|bank| {
            (0..bank.lines.len()).map(|pin| KernelRoute::Pin {
                gsi: bank.first + pin as u32,
                chip: bank.chip,
                pin: pin as u16,
            })
        })
    }

    fn bank(&self, chip: ChipId) -> Option<&Bank> {
        self.banks.iter().find(|bank| bank.chip == chip)
    }
}

impl PinInput for KernelPins {
    fn pins(&self, chip: ChipId) -> u16 {
        self.bank(chip).map_or(0, |bank| bank.lines.len() as u16)
    }

    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        let Some(bank) = self.bank(chip) else { return Delivery::Ignored };
        let Some(line) = bank.lines.get(usize::from(pin)) else { return Delivery::Ignored };
        let mut line = line.lock();
        let high = line.set(source, level);
        // Also when the OR did not change: the answer to a repeated edge is the kernel's to give.
        self.vm.line(bank.first + u32::from(pin), high).unwrap_or(Delivery::Ignored)
    }

    /// The kernel has done it by itself when the guest ended the interrupt.
    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}
