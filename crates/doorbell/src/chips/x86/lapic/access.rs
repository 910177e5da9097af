//! The registers as a guest sees them: the xAPIC window and the x2APIC MSRs.

use super::{
    local::{Eoi, LocalApic},
    registers::{ApicBase, Esr, Icr, LvtEntry, Svr, VersionRegister, slot},
    timer::{TSC_DEADLINE_MSR, TimerModes},
};

/// A guest's access that raises #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the access raises #GP")]
pub struct GeneralProtection;

/// The first MSR of x2APIC mode.
const FIRST_MSR: u32 = 0x800;
/// The last one.
const LAST_MSR: u32 = 0x8ff;

impl LocalApic {
    /// IA32_APIC_BASE.
    pub fn base(&self) -> ApicBase {
        self.base
    }

    /// A guest's store to IA32_APIC_BASE.
    ///
    /// # Errors
    /// #GP for reserved bits, x2APIC without enable, x2APIC straight to xAPIC, and disabled straight to x2APIC
    /// (section 11.12.5).
    pub fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let (old, new) = (self.base, ApicBase::from_bits(value));
        let leaves_x2apic = old.x2apic() && new.enabled() && !new.x2apic();
        let skips_xapic = !old.enabled() && new.x2apic();
        if leaves_x2apic || skips_xapic {
            return Err(GeneralProtection);
        }
        self.restore_base(value)
    }

    /// A store to IA32_APIC_BASE by the VMM, which may take any way between the modes (`KVM_SET_SREGS`).
    ///
    /// # Errors
    /// #GP for reserved bits and x2APIC without enable.
    pub fn restore_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let (old, new) = (self.base, self.check_base(value)?);
        self.tick();
        self.base = new;
        if self.set.options().strict && old.enabled() && !new.enabled() {
            // Section 11.4.3: as after power-on. KVM keeps its registers.
            let waits = self.waits_for_sipi;
            self.reset();
            self.base = new;
            self.waits_for_sipi = waits;
        }
        if new.enabled() && new.x2apic() && !old.x2apic() {
            self.registers[slot::ID] = self.id;
            self.registers[slot::LDR] = self.x2apic_ldr();
        } else if new.enabled() && !new.x2apic() && (!old.enabled() || old.x2apic()) {
            self.registers[slot::ID] = self.id << 24;
        }
        self.tell();
        Ok(())
    }

    pub(super) fn check_base(&self, value: u64) -> Result<ApicBase, GeneralProtection> {
        let base = ApicBase::from_bits(value);
        let above = value.checked_shr(self.set.options().physical_address_bits).unwrap_or(0);
        if value & ApicBase::RESERVED != 0 || above != 0 || (base.x2apic() && !base.enabled()) {
            return Err(GeneralProtection);
        }
        Ok(base)
    }

    pub(super) fn x2apic_ldr(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xf)
    }

    /// Where the xAPIC window is now: the address of its page, which a guest moves by IA32_APIC_BASE. `None` in x2APIC mode
    /// and with the APIC off. To be asked after [`set_base`](Self::set_base) and its other ways, MSR and restore.
    pub fn window(&self) -> Option<u64> {
        self.in_xapic_mode().then_some(self.base.page() << 12)
    }

    fn in_xapic_mode(&self) -> bool {
        self.base.enabled() && !self.base.x2apic()
    }

    /// A guest's 32-bit load at `offset` in the xAPIC window; what is not there reads 0, and all ones while the window is
    /// not there.
    pub fn read(&mut self, offset: u64) -> u32 {
        if !self.in_xapic_mode() {
            return u32::MAX;
        }
        match Self::slot_of(offset).and_then(|register| self.read_register(register)) {
            Some(value) => value,
            None => {
                self.illegal_register();
                0
            }
        }
    }

    /// A guest's 32-bit store at `offset` in the xAPIC window. An interrupt that it ended is for the IOAPIC.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Eoi> {
        if !self.in_xapic_mode() || offset & 0xf != 0 {
            return None;
        }
        let done = match Self::slot_of(offset) {
            Some(register) => self.write_register(register, value),
            None => Err(GeneralProtection),
        };
        done.unwrap_or_else(|_| {
            self.illegal_register();
            None
        })
    }

    /// A guest's load of any width: as in KVM, one that lies within a register sees that part of it.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8]) {
        if !self.in_xapic_mode() {
            data.fill(0xff);
            return;
        }
        data.fill(0);
        let within = (offset & 0xf) as usize;
        if matches!(data.len(), 1 | 2 | 4) && within + data.len() <= 4 {
            let value = self.read(offset & !0xf).to_le_bytes();
            data.copy_from_slice(&value[within..within + data.len()]);
        }
    }

    /// A guest's store of any width: as in KVM, all but aligned 32-bit stores are ignored.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8]) -> Option<Eoi> {
        let value = u32::from_le_bytes(data.try_into().ok()?);
        self.write(offset, value)
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// #GP for x2APIC registers outside that mode, and for registers that do not exist or cannot be read.
    pub fn msr_read(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        match msr {
            ApicBase::MSR => Ok(self.base.into_bits()),
            TSC_DEADLINE_MSR if self.has_tsc_deadline() => Ok(self.tsc_deadline()),
            FIRST_MSR..=LAST_MSR if self.base.x2apic() => match (msr - FIRST_MSR) as usize {
                slot::ICR => Ok(u64::from(self.x2apic_icr_high) << 32 | u64::from(self.registers[slot::ICR])),
                slot::DFR | slot::ICR_HIGH | slot::ARBITRATION => Err(GeneralProtection),
                register => self.read_register(register).map(u64::from).ok_or(GeneralProtection),
            },
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// #GP for x2APIC registers outside that mode, for registers that do not exist or cannot be written, and for reserved bits.
    pub fn msr_write(&mut self, msr: u32, value: u64) -> Result<Option<Eoi>, GeneralProtection> {
        match msr {
            ApicBase::MSR => self.set_base(value).map(|()| None),
            TSC_DEADLINE_MSR if self.has_tsc_deadline() => {
                self.set_tsc_deadline(value);
                Ok(None)
            }
            FIRST_MSR..=LAST_MSR if self.base.x2apic() => {
                let register = (msr - FIRST_MSR) as usize;
                if register == slot::ICR {
                    return self.write_icr(value).map(|()| None);
                }
                let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
                let reserved = match register {
                    slot::EOI => u32::MAX,
                    slot::TPR => !0xff,
                    _ => 0,
                };
                if self.set.options().strict && value & reserved != 0 {
                    return Err(GeneralProtection);
                }
                self.write_register(register, value)
            }
            _ => Err(GeneralProtection),
        }
    }

    /// By the manual, the MSR is there if CPUID says so; KVM always has it, and without that mode it does nothing.
    fn has_tsc_deadline(&self) -> bool {
        let options = self.set.options();
        !options.strict || options.timer.modes == TimerModes::TscDeadline
    }

    fn write_icr(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value & Icr::X2APIC_RESERVED != 0 {
            return Err(GeneralProtection);
        }
        let (icr, destination) = (Icr::from_bits(value as u32).with_busy(false), (value >> 32) as u32);
        self.send(icr, destination);
        self.registers[slot::ICR] = icr.into_bits();
        self.x2apic_icr_high = destination;
        Ok(())
    }

    fn slot_of(offset: u64) -> Option<usize> {
        usize::try_from(offset >> 4).ok().filter(|&register| register < slot::COUNT)
    }

    fn illegal_register(&mut self) {
        if self.set.options().strict {
            self.set.error(self.index, Esr::new().with_illegal_register(true));
        }
    }

    /// Reads a register of either mode; `None` if it does not exist or cannot be read.
    fn read_register(&self, register: usize) -> Option<u32> {
        let part = |words: [u64; 4], first: usize| (words[(register - first) / 2] >> (32 * (register & 1))) as u32;
        match register {
            slot::PPR => Some(u32::from(self.ppr())),
            slot::ISR..slot::TMR => Some(part(self.isr, slot::ISR)),
            slot::TMR..slot::IRR => Some(part(self.shared().tmr(), slot::TMR)),
            slot::IRR..slot::ESR => Some(part(self.shared().irr(), slot::IRR)),
            slot::ARBITRATION => Some(0),
            slot::TIMER_CURRENT => Some(self.current_count()),
            slot::ID
            | slot::VERSION
            | slot::TPR
            | slot::LDR
            | slot::DFR
            | slot::SVR
            | slot::ESR
            | slot::ICR
            | slot::ICR_HIGH
            | slot::LVT_TIMER..=slot::TIMER_INITIAL
            | slot::TIMER_DIVIDE => Some(self.registers[register]),
            _ => None,
        }
    }

    /// Writes a register of either mode, apart from the ICR of x2APIC mode.
    fn write_register(&mut self, register: usize, value: u32) -> Result<Option<Eoi>, GeneralProtection> {
        let x2apic = self.base.x2apic();
        match register {
            slot::TPR => self.registers[register] = value & 0xff,
            slot::EOI => return Ok(self.eoi()),
            slot::SVR => self.write_svr(Svr::from_bits(value)),
            slot::ESR if x2apic && value != 0 => return Err(GeneralProtection),
            slot::ESR => self.registers[register] = self.shared().take_errors(),
            slot::LVT_TIMER..=slot::LVT_ERROR => self.write_lvt(register, value),
            slot::TIMER_INITIAL => self.write_initial_count(value),
            slot::TIMER_DIVIDE => self.write_divide_configuration(value),
            slot::SELF_IPI if x2apic && value <= 0xff => {
                let icr = Icr::new().with_vector(value as u8).with_shorthand(super::Shorthand::This);
                self.send(icr, 0);
            }
            slot::ID if !x2apic => self.registers[register] = value & 0xff00_0000,
            slot::LDR if !x2apic => self.registers[register] = value & 0xff00_0000,
            slot::DFR if !x2apic => self.registers[register] = value | 0x0fff_ffff,
            slot::ICR_HIGH if !x2apic => self.registers[register] = value & 0xff00_0000,
            slot::ICR if !x2apic => {
                let icr = Icr::from_bits(value).with_busy(false);
                self.send(icr, self.registers[slot::ICR_HIGH] >> 24);
                self.registers[register] = icr.into_bits();
            }
            _ => return Err(GeneralProtection),
        }
        self.tell();
        Ok(None)
    }

    fn write_svr(&mut self, value: Svr) {
        let version = VersionRegister::from_bits(self.registers[slot::VERSION]);
        let implemented = Svr::new()
            .with_vector(0xff)
            .with_enabled(true)
            .with_focus(true)
            .with_suppress_eoi_broadcast(version.can_suppress_eoi_broadcast());
        self.tick();
        self.registers[slot::SVR] = value.into_bits() & implemented.into_bits();
        if !value.enabled() {
            for register in slot::LVT_TIMER..=slot::LVT_ERROR {
                let entry = LvtEntry::from_bits(self.registers[register]).with_masked(true);
                self.registers[register] = entry.into_bits();
            }
        }
    }

    fn write_lvt(&mut self, register: usize, value: u32) {
        let mut kept = 0;
        let mut writable = match register {
            slot::LVT_TIMER => self.set.options().timer.entry_bits(),
            _ => LvtEntry::implemented(register),
        };
        if self.set.options().strict {
            kept = self.registers[register] & LvtEntry::READ_ONLY;
            writable &= !LvtEntry::READ_ONLY;
        }
        let entry = LvtEntry::from_bits(value & writable | kept);
        let masked = entry.masked() || !self.svr().enabled();
        match (register, entry.with_masked(masked)) {
            (slot::LVT_TIMER, entry) => self.write_timer_entry(entry),
            (_, entry) => self.registers[register] = entry.into_bits(),
        }
    }
}
