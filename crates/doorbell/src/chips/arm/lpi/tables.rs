//! The tables in guest memory: a byte of configuration for each LPI, a pending bit for each INTID and redistributor
//! (Arm IHI 0069, "LPI Configuration tables", "LPI Pending tables").
//!
//! They are read a chunk at a time where many LPIs are concerned, and byte by byte where memory refuses a part of it.

use super::{CHUNK, Config, FIRST_LPI, registers::Configuration};
#[cfg(test)]
use crate::chips::arm::cripple;
use crate::{
    chips::arm::{
        Gic,
        irq::{Irq, IrqState, NOBODY, PRIORITY},
    },
    guest_ram::{GuestRam, NoMemory},
    sync::crippled,
};

/// A stretch of guest memory that was read at once, if it could be.
struct Stretch<const N: usize> {
    start: u64,
    bytes: Option<[u8; N]>,
}

impl<const N: usize> Stretch<N> {
    fn read(ram: &dyn GuestRam, start: u64) -> Self {
        let mut bytes = [0; N];
        Self { start, bytes: ram.read(start, &mut bytes).is_ok().then_some(bytes) }
    }

    fn byte(&self, ram: &dyn GuestRam, at: usize) -> Result<u8, NoMemory> {
        match &self.bytes {
            Some(bytes) => Ok(bytes[at % N]),
            None => byte(ram, self.start.wrapping_add(at as u64)),
        }
    }
}

/// The tables' entries for one chunk of LPIs, as one redistributor has them.
pub(super) struct Entries {
    first: u32,
    properties: Option<Stretch<CHUNK>>,
    pending: Option<Stretch<{ CHUNK.div_ceil(8) }>>,
}

impl Entries {
    pub fn configuration(&mut self, gic: &Gic, cpu: u16, lpi: u32) -> Result<Configuration, NoMemory> {
        let table = gic.properties_of(cpu);
        if lpi >= table.limit() {
            return Ok(Configuration::new());
        }
        let start = table.address().wrapping_add(u64::from(self.first - FIRST_LPI));
        let stretch = self.properties.get_or_insert_with(|| Stretch::read(&*gic.ram, start));
        stretch.byte(&*gic.ram, (lpi - self.first) as usize).map(Configuration::from)
    }

    pub fn pending(&mut self, gic: &Gic, cpu: u16, lpi: u32) -> Result<bool, NoMemory> {
        let start = gic.pending_of(cpu).address().wrapping_add(u64::from(self.first / 8));
        let stretch = self.pending.get_or_insert_with(|| Stretch::read(&*gic.ram, start));
        // Where a chunk does not begin with a byte of the table, only in models, it begins inside of one.
        let bit = self.first % 8 + (lpi - self.first);
        stretch.byte(&*gic.ram, (bit / 8) as usize).map(|byte| byte >> (bit % 8) & 1 != 0)
    }
}

fn byte(ram: &dyn GuestRam, address: u64) -> Result<u8, NoMemory> {
    let mut byte = [0];
    ram.read(address, &mut byte)?;
    Ok(byte[0])
}

/// A state with what the configuration table says.
pub(super) fn configured(state: IrqState, configuration: Configuration) -> IrqState {
    state.with_enabled(configuration.enable()).with_priority(configuration.priority() & PRIORITY)
}

impl Gic {
    /// The entries for the chunk of this LPI, of which nothing has been read yet.
    pub(super) fn entries(&self, lpi: u32) -> Entries {
        let first = lpi - (lpi - FIRST_LPI) % CHUNK as u32;
        Entries { first, properties: None, pending: None }
    }

    /// What the configuration table of a redistributor says of an LPI.
    pub(super) fn read_configuration(&self, cpu: u16, lpi: u32) -> Result<Configuration, NoMemory> {
        let table = self.properties_of(cpu);
        if lpi >= table.limit() {
            return Ok(Configuration::new());
        }
        byte(&*self.ram, table.address().wrapping_add(u64::from(lpi - FIRST_LPI))).map(Configuration::from)
    }

    fn pending_byte(&self, cpu: u16, lpi: u32) -> u64 {
        self.pending_of(cpu).address().wrapping_add(u64::from(lpi / 8))
    }

    /// Sets or clears the bit of an LPI in a redistributor's pending table; returns what it was. By who holds the lock.
    pub(super) fn swap_pending_bit(&self, cpu: u16, lpi: u32, pending: bool) -> Result<bool, NoMemory> {
        let address = self.pending_byte(cpu, lpi);
        let old = byte(&*self.ram, address)?;
        let bit = 1 << (lpi % 8);
        let new = if pending { old | bit } else { old & !bit };
        if new != old {
            self.ram.write(address, &[new])?;
        }
        Ok(old & bit != 0)
    }

    /// INV, and a store to GICR_INVLPIR: the configuration is read again (I14, I34).
    ///
    /// # Errors
    /// If there is no memory where the table should be; nothing has changed then.
    pub(crate) fn invalidate_lpi(&self, lpi: u32) -> Result<(), NoMemory> {
        let mut config = self.lpis.config.lock();
        let Some(irq) = self.lpis.get(lpi) else { return Ok(()) };
        if config.mapped(lpi).is_none_or(|count| *count == 0) && !self.lingers(irq.state()) {
            return Ok(());
        }
        let home = irq.state().home();
        if home == NOBODY && !self.options.behaviour.one_propbaser {
            return Ok(());
        }
        let configuration = self.read_configuration(home, lpi)?;
        let recalled = self.recall(&mut config, |it, _| it == lpi);
        self.configure(irq, lpi, configuration);
        self.forward_again(&mut config, recalled);
        Ok(())
    }

    /// INVALL, and a store to GICR_INVALLR: the same for every LPI of a vCPU. Those whose entry cannot be read stay as they
    /// are.
    pub(crate) fn invalidate_all_lpis(&self, cpu: u16) {
        let mut config = self.lpis.config.lock();
        let recalled = self.recall(&mut config, |_, state| state.target() == cpu);
        self.each_lpi_by_chunk(&config, |entries, lpi, irq| {
            let state = irq.state();
            if state.target() == cpu || state.home() == cpu && !self.options.behaviour.one_propbaser {
                if let Ok(configuration) = entries.configuration(self, cpu, lpi) {
                    self.configure(irq, lpi, configuration);
                }
            }
        });
        self.forward_again(&mut config, recalled);
    }

    /// Each LPI that exists, with the entries of its chunk.
    pub(super) fn each_lpi_by_chunk(&self, config: &Config, mut visit: impl FnMut(&mut Entries, u32, &Irq)) {
        let mut entries = self.entries(FIRST_LPI);
        self.each_lpi(config, |lpi, irq| {
            if lpi >= entries.first + CHUNK as u32 {
                entries = self.entries(lpi);
            }
            visit(&mut entries, lpi, irq);
        });
    }

    fn configure(&self, irq: &Irq, lpi: u32, configuration: Configuration) {
        let looked = crippled!(self, ConfiguresBlindly).then(|| irq.state());
        self.update(irq, lpi, |state| {
            let old = looked.unwrap_or(state).with_queued(state.queued()).with_holder(state.holder());
            configured(old, configuration)
        });
    }

    /// `KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES`: writes the pending bit of every LPI that exists into the table of its
    /// redistributor; other bits stay as they are.
    ///
    /// An LPI that hardware delivers is pending in the table if hardware says so (I51).
    ///
    /// Where switching LPIs off writes the table anyway, those of redistributors that have them off are left out.
    ///
    /// # Errors
    /// At the first address that is no memory; what was written before stays written.
    pub fn save_pending_tables(&self) -> Result<(), NoMemory> {
        let config = self.lpis.config.lock();
        let mut result = Ok(());
        self.each_lpi(&config, |lpi, irq| {
            let state = irq.state();
            let elsewhere = state.off() && !self.options.behaviour.lpis_off_keeps_pending;
            if result.is_ok() && state.target() != NOBODY && !elsewhere {
                result = self.swap_pending_bit(state.target(), lpi, self.is_lpi_pending(&config, lpi, state)).map(drop);
            }
        });
        result
    }
}
