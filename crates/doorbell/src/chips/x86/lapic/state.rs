//! The local APIC's state: KVM's register page, and the whole.

use super::{
    local::LocalApic,
    registers::{Esr, LvtEntry, slot},
    shared::Events,
    timer::TimerState,
};
use crate::Error;

/// The size of `struct kvm_lapic_state`: 64 registers, each in the first 4 of 16 bytes.
pub const LAPIC_PAGE: usize = 1024;

/// Where KVM keeps the high half of the ICR of x2APIC mode: the register is 64 bits wide then.
const X2APIC_ICR_HIGH: std::ops::Range<usize> = 16 * slot::ICR + 4..16 * slot::ICR + 8;

/// Everything that a [`LocalApic`] and its shared half remember, to be restored into one with the same options and id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LocalApicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The registers, [`LAPIC_PAGE`] bytes as in KVM's page.
    pub page: Vec<u8>,
    /// Pending events other than vectors.
    pub events: u32,
    /// Errors that the guest has not read yet.
    pub errors: u32,
    /// Between INIT and SIPI.
    pub waits_for_sipi: bool,
    /// The timer, to the nanosecond. The page has its registers.
    pub timer: TimerState,
}

fn register_of(page: &[u8; LAPIC_PAGE], register: usize) -> u32 {
    let at = register * 16;
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn words_of(page: &[u8; LAPIC_PAGE], first: usize) -> [u64; 4] {
    std::array::from_fn(|word| {
        let low = register_of(page, first + 2 * word);
        let high = register_of(page, first + 2 * word + 1);
        u64::from(high) << 32 | u64::from(low)
    })
}

impl LocalApic {
    /// What `KVM_GET_LAPIC` returns.
    pub fn page(&self) -> [u8; LAPIC_PAGE] {
        let mut registers = self.registers;
        let mut words = |first: usize, words: [u64; 4]| {
            for (word, bits) in words.into_iter().enumerate() {
                registers[first + 2 * word] = bits as u32;
                registers[first + 2 * word + 1] = (bits >> 32) as u32;
            }
        };
        words(slot::ISR, self.isr);
        words(slot::TMR, self.shared().tmr());
        words(slot::IRR, self.shared().irr());
        registers[slot::PPR] = u32::from(self.ppr());
        registers[slot::TIMER_CURRENT] = self.current_count();
        if self.base.x2apic() {
            registers[slot::ICR_HIGH] = self.x2apic_icr_high;
        }
        if self.base.x2apic() && !self.set.options().extended_ids {
            registers[slot::ID] = self.id << 24;
        }
        let mut page = [0; LAPIC_PAGE];
        for (bytes, value) in page.chunks_exact_mut(16).zip(registers) {
            bytes[..4].copy_from_slice(&value.to_le_bytes());
        }
        page[X2APIC_ICR_HIGH].copy_from_slice(&self.x2apic_icr_high.to_le_bytes());
        page
    }

    /// What `KVM_SET_LAPIC` does: the registers as they are given, apart from the version, and in x2APIC mode the id and
    /// the logical id. The bytes between the registers, which KVM keeps, are not kept.
    ///
    /// A timer goes on from its current count. As in KVM, a one-shot count that is at 0 ends at once even if it has ended
    /// before, and IA32_TSC_DEADLINE is not in the page; [`restore`](Self::restore) knows better.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another id than this APIC's in x2APIC mode with
    /// [`extended_ids`](super::ApicOptions::extended_ids). As in KVM, the spurious-interrupt vector register has been
    /// taken over by then.
    pub fn set_page(&mut self, page: &[u8; LAPIC_PAGE]) -> Result<(), Error> {
        self.registers[slot::SVR] = register_of(page, slot::SVR);
        let id = register_of(page, slot::ID);
        if self.base.x2apic() && self.set.options().extended_ids && id != self.id {
            self.tell();
            return Err(Error::Invalid { what: "x2APIC id", value: u64::from(id), allowed: "this APIC's own" });
        }
        let (version, timer_mode) = (self.registers[slot::VERSION], self.timer_mode());
        for (register, value) in self.registers.iter_mut().enumerate() {
            *value = register_of(page, register);
        }
        self.registers[slot::VERSION] = version;
        self.x2apic_icr_high = match <[u8; 4]>::try_from(&page[X2APIC_ICR_HIGH]) {
            Ok(bytes) if !self.base.x2apic() => u32::from_le_bytes(bytes),
            _ => self.registers[slot::ICR_HIGH],
        };
        if self.base.x2apic() {
            self.registers[slot::ID] = self.id;
            self.registers[slot::LDR] = self.x2apic_ldr();
        }
        self.isr = words_of(page, slot::ISR);
        self.shared().set_vectors(words_of(page, slot::IRR), words_of(page, slot::TMR));
        self.restart_timer(timer_mode, register_of(page, slot::TIMER_CURRENT));
        self.tell();
        Ok(())
    }

    /// Everything, for [`restore`](Self::restore).
    pub fn save(&self) -> LocalApicState {
        let Self {
            set: _,
            index: _,
            id: _,
            base,
            registers: _,
            x2apic_icr_high: _,
            isr: _,
            timer: _,
            waits_for_sipi,
            told: _,
        } = self;
        LocalApicState {
            base: base.into_bits(),
            page: self.page().to_vec(),
            events: self.shared().events().into_bits(),
            errors: self.shared().errors(),
            waits_for_sipi: *waits_for_sipi,
            timer: self.timer_state(),
        }
    }

    /// Takes over a saved state. Nobody is woken: the vCPU looks at [`next`](Self::next) before it sleeps.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no APIC can be in that state; nothing is changed then.
    pub fn restore(&mut self, state: &LocalApicState) -> Result<(), Error> {
        let LocalApicState { base, page, events, errors, waits_for_sipi, timer } = state;
        let page: &[u8; LAPIC_PAGE] = page
            .as_slice()
            .try_into()
            .map_err(|_| Error::Snapshot(format!("local APIC: a page of {} bytes, not {LAPIC_PAGE}", page.len())))?;
        let invalid = |what: &str, value: u32| Err(Error::Snapshot(format!("local APIC: {what} {value:#x}")));
        let Ok(new_base) = self.check_base(*base) else {
            return Err(Error::Snapshot(format!("local APIC: reserved bits in IA32_APIC_BASE {base:#x}")));
        };
        let id = register_of(page, slot::ID);
        if new_base.x2apic() && self.set.options().extended_ids && id != self.id {
            return invalid("the x2APIC id of another one,", id);
        }
        if events & !Events::KNOWN != 0 {
            return invalid("unknown events", *events);
        }
        if errors & !Esr::KNOWN != 0 {
            return invalid("unknown errors", *errors);
        }
        let entry = LvtEntry::from_bits(register_of(page, slot::LVT_TIMER) & self.set.options().timer.entry_bits());
        Self::check_timer(timer, entry, register_of(page, slot::TIMER_INITIAL))?;
        self.base = new_base;
        // A change of the mode would stop the timer and clear its initial count.
        self.registers[slot::LVT_TIMER] = register_of(page, slot::LVT_TIMER);
        self.set_page(page)?;
        self.restore_timer(timer);
        self.shared().set_events(Events::from_bits(*events), *errors);
        self.waits_for_sipi = *waits_for_sipi;
        Ok(())
    }
}
