//! Whom an interrupt is for.
//!
//! A destination that names CPUs is looked up in the [map](super::map), at the price of as many entries as it names (at
//! most 16), however many CPUs there are. Everything else asks each APIC: broadcasts, which are for all of them, and
//! destinations while ids or logical ids are not distinct.

use super::{
    ApicSet, DeliveryMode,
    interrupt::Interrupt,
    map::{Format, Named, Summary, hashed},
    registers::Shorthand,
};

const X2APIC_BROADCAST: u32 = u32::MAX;
const XAPIC_BROADCAST: u32 = 0xff;

/// Who sends: an APIC and whether it is in x2APIC mode, or a device (`None`).
pub(super) type Source = Option<(usize, bool)>;

/// As many CPUs as a destination can name without being a broadcast.
const NAMED: usize = 16;

impl ApicSet {
    /// Calls `each` for every APIC that is to get the interrupt. False where KVM answers -1.
    pub(super) fn choose(
        &self,
        source: Source,
        mut interrupt: Interrupt,
        each: &mut dyn FnMut(usize, Interrupt),
    ) -> bool {
        if let (Shorthand::This, Some((index, _))) = (interrupt.shorthand, source) {
            each(index, interrupt);
            return true;
        }
        let summary = self.map.summary();
        let broadcast = self.is_broadcast(source, interrupt.destination, summary.format());
        if interrupt.shorthand == Shorthand::None && !broadcast {
            if let Some(named) = self.look_up(summary, &interrupt) {
                // A map that has changed meanwhile may have shown neither the old nor the new.
                if self.map.is_still(summary) {
                    named.into_iter().filter_map(Named::cpu).for_each(|index| each(index, interrupt));
                    return true;
                }
            }
        }
        if !interrupt.logical && interrupt.destination == XAPIC_BROADCAST && interrupt.is_for_one() {
            // As in KVM, whatever it was; with the hint it is still for one.
            interrupt.mode = DeliveryMode::Fixed;
        }
        self.ask_all(source, interrupt, each)
    }

    /// The CPUs that a destination names, as the map has them; `None` if the map cannot say.
    pub(super) fn look_up(&self, summary: Summary, interrupt: &Interrupt) -> Option<[Named; NAMED]> {
        let mut named = [Named::NOBODY; NAMED];
        if summary.format() == Format::NoMap || (interrupt.logical && summary.format() == Format::Mixed) {
            return None;
        }
        if !interrupt.logical {
            named[0] = self.map.named(interrupt.destination);
            return Some(named);
        }
        let destination = interrupt.destination;
        let (first, mut mask) = match summary.format() {
            Format::X2apic => {
                let first = (destination >> 16) * NAMED as u32;
                if first > summary.last_id() {
                    return Some(named);
                }
                let size = (summary.last_id() - first + 1).min(NAMED as u32);
                (first, destination as u16 & (0xffff >> (NAMED as u32 - size)))
            }
            Format::Flat => (0, destination as u16 & 0xff),
            Format::Cluster => ((destination >> 4 & 0xf) * 4, destination as u16 & 0xf),
            Format::None | Format::NoMap | Format::Mixed => return Some(named),
        };
        if mask != 0 && interrupt.is_for_one() {
            mask = 1 << hashed(interrupt.vector, mask);
        }
        for (bit, entry) in (0..).zip(&mut named) {
            if mask >> bit & 1 == 1 {
                *entry = match summary.format() {
                    Format::X2apic => self.map.named(first + bit),
                    format => self.map.logically_named(format, first + bit),
                };
            }
        }
        Some(named)
    }

    fn is_broadcast(&self, source: Source, destination: u32, format: Format) -> bool {
        if self.options.no_broadcast_quirk {
            destination == X2APIC_BROADCAST || (destination == XAPIC_BROADCAST && format != Format::X2apic)
        } else {
            let x2apic_sender = matches!(source, Some((_, true)));
            destination == if x2apic_sender { X2APIC_BROADCAST } else { XAPIC_BROADCAST }
        }
    }

    /// Each APIC decides for itself. False if none matches.
    fn ask_all(&self, source: Source, interrupt: Interrupt, each: &mut dyn FnMut(usize, Interrupt)) -> bool {
        let matches = |&index: &usize| self.map.config(index).present() && self.matches(index, source, &interrupt);
        if !interrupt.is_for_one() {
            let mut any = false;
            for index in (0..self.map.len()).filter(matches) {
                each(index, interrupt);
                any = true;
            }
            return any;
        }
        let candidate = |index: &usize| self.map.config(*index).accepts() && matches(index);
        let count = (0..self.map.len()).filter(candidate).count();
        if count == 0 {
            return false;
        }
        // An APIC that leaves between the two passes leaves nobody at the last place: then the first one that is left.
        let mut rest = (0..self.map.len()).filter(candidate);
        let chosen = rest.nth(usize::from(interrupt.vector) % count);
        if let Some(index) = chosen.or_else(|| (0..self.map.len()).find(candidate)) {
            each(index, interrupt);
        }
        true
    }

    /// Whether the destination names this APIC, which may be disabled.
    pub(super) fn matches(&self, index: usize, source: Source, interrupt: &Interrupt) -> bool {
        let config = self.map.config(index);
        let this = source.is_some_and(|(sender, _)| sender == index);
        match interrupt.shorthand {
            Shorthand::This => return this,
            Shorthand::All => return true,
            Shorthand::AllButThis => return !this,
            Shorthand::None => {}
        }
        let mut destination = interrupt.destination;
        let quirk = !self.options.no_broadcast_quirk && source.is_none();
        if quirk && destination == XAPIC_BROADCAST && config.x2apic() {
            destination = X2APIC_BROADCAST;
        }
        let id = self.map.id(index);
        if destination == if config.x2apic() { X2APIC_BROADCAST } else { XAPIC_BROADCAST } {
            true
        } else if !interrupt.logical {
            // An id that no xAPIC can have means the x2APIC id in either mode, as in KVM.
            if config.x2apic() || destination > 0xff {
                destination == id
            } else {
                destination == config.xapic_id().into()
            }
        } else if config.x2apic() {
            id >> 4 == destination >> 16 && destination >> (id & 0xf) & 1 == 1
        } else {
            let logical = u32::from(config.logical_id());
            match (config.flat(), config.cluster()) {
                (true, _) => logical & destination != 0,
                (_, true) => logical >> 4 == destination >> 4 && logical & destination & 0xf != 0,
                _ => false,
            }
        }
    }
}
