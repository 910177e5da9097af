//! The pins of a PC, side by side: the 8259 pair and the IOAPIC, to which GSIs below 16 lead alike.

use std::sync::Arc;

use super::{ioapic::IoApic, pic::Pic};
use crate::{Delivery, LineSource, PinInput, Pins, delivery::ChipId};

/// Chips 0 and 1 are the 8259 pair, chip 2 is the IOAPIC, as KVM numbers them.
///
/// ```
/// use doorbell::chips::x86::{PcPins, ioapic::{IoApic, IoApicOptions}, lapic::{ApicOptions, ApicSet}, pic::{Pic, PicOptions}};
/// use doorbell::{Delivery, manager::{IrqManager, SoftOptions}, route::RoutePolicy};
/// use std::sync::Arc;
///
/// let apics = ApicSet::new(1, Arc::new(()), ApicOptions::default());
/// let pic = Arc::new(Pic::new((), PicOptions::default()));
/// let ioapic = Arc::new(IoApic::new(apics.clone(), IoApicOptions::default()));
/// let pins = PcPins { pic: pic.clone(), ioapic };
/// let options = SoftOptions::new(apics, Arc::new(pins)).policy(RoutePolicy::KVM_X86);
/// let irqs = IrqManager::soft(options)?;
/// assert_eq!(irqs.irq_line(4, true), Delivery::Delivered(1), "the IOAPIC's entry is masked, the 8259's pin is not");
/// assert!(pic.output());
/// # Ok::<(), doorbell::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PcPins {
    /// The 8259 pair.
    pub pic: Arc<Pic>,
    /// The IOAPIC.
    pub ioapic: Arc<IoApic>,
}

impl PcPins {
    fn of(&self, chip: ChipId) -> &dyn PinInput {
        if chip < super::ioapic::CHIP { &*self.pic } else { &*self.ioapic }
    }
}

impl PinInput for PcPins {
    fn pins(&self, chip: ChipId) -> u16 {
        self.of(chip).pins(chip)
    }

    #[inline]
    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        self.of(chip).set(chip, pin, source, level)
    }

    #[inline]
    fn pulse(&self, chip: ChipId, pin: u16, source: LineSource) -> Delivery {
        self.of(chip).pulse(chip, pin, source)
    }

    #[inline]
    fn reevaluate(&self, chip: ChipId, pins: &Pins) {
        self.of(chip).reevaluate(chip, pins);
    }

    fn withdraw(&self, chip: ChipId, pins: &Pins) {
        self.of(chip).withdraw(chip, pins);
    }
}
