//! Registers as a VMM saves and restores them through KVM's device: the attribute groups DIST_REGS, REDIST_REGS and
//! LEVEL_INFO (C12a, C44, C45). Words of 32 bits; what differs from a guest's access stands here.
//!
//! | register | a VMM reads | a VMM's store |
//! |---|---|---|
//! | ISPENDR | the latches, without the lines | sets the latches to what is given, ones and zeros |
//! | ICPENDR | 0 | is ignored |
//! | GICD_IIDR | as a guest | chooses the revision; anything else must fit |
//! | GICD_TYPER2 | as a guest | must fit |
//!
//! A register that is not there reads 0 and ignores stores here, too; [`Distributor::has_register`] knows better.

use super::{
    Distributor, Gic, Redistributor,
    intid::{FIRST_SPI, PRIVATE, SGIS},
    registers::{
        distributor::{IIDR, IROUTER, TYPER2},
        fields::{Fields, Kind},
        identification::{FIRST, Implementer},
        redistributor::{INVALLR, INVLPIR, PENDBASER, PROPBASER, SGI_FRAME, SYNCR, WAKER},
    },
    state::revisions,
};
use crate::{Error, LineSource, VcpuId, sync::Ordering};

impl Distributor<'_> {
    /// What a VMM reads at a multiple of 4.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use doorbell::{LineSource, PinInput, chips::arm::{Gic, GicOptions}, guest_ram::RamBlock};
    /// let gic = Gic::new(GicOptions::new(1), Arc::new(RamBlock::new(0, 0)), Arc::new(()))?;
    /// gic.set(0, 0, LineSource::USER, true); // pin 0 is SPI 32, which follows its level after reset
    /// let ispendr1 = 0x204;
    /// assert_eq!(gic.distributor().read(ispendr1, 4), 1, "pending, as a guest sees it");
    /// assert_eq!(gic.distributor().user_read(ispendr1), 0, "and nothing is latched");
    /// # Ok::<(), doorbell::Error>(())
    /// ```
    pub fn user_read(&self, offset: u64) -> u32 {
        match Fields::at(offset, 4) {
            Some(fields) if fields.first >= PRIVATE => self.gic().user_read_fields(0, fields),
            _ => self.read(offset, 4) as u32,
        }
    }

    /// A VMM's store.
    ///
    /// # Errors
    /// [`Error::Invalid`] for GICD_IIDR and GICD_TYPER2 of a GIC that this one cannot be.
    pub fn user_write(&self, offset: u64, value: u32) -> Result<(), Error> {
        let invalid = |what, allowed| Err(Error::Invalid { what, value: value.into(), allowed });
        match (offset, Fields::at(offset, 4)) {
            (_, Some(fields)) if fields.first >= PRIVATE => self.gic().user_write_fields(0, fields, value),
            (IIDR, _) if !self.gic().set_implementer(Implementer::from_bits(value)) => {
                return invalid("GICD_IIDR", "this GIC's own, for KVM's with a revision of 2 or 3");
            }
            (TYPER2, _) if value != 0 => return invalid("GICD_TYPER2", "0"),
            (IIDR | TYPER2, _) => {}
            _ => self.write(offset, 4, value.into()),
        }
        Ok(())
    }

    /// Whether KVM has a register at an offset: what `KVM_HAS_DEVICE_ATTR` says.
    pub fn has_register(&self, offset: u64) -> bool {
        /// Where the registers with a field for each interrupt begin, and how many bits a field has.
        const ARRAYS: [(u64, u64); 12] = [
            (0x080, 1),
            (0x100, 1),
            (0x180, 1),
            (0x200, 1),
            (0x280, 1),
            (0x300, 1),
            (0x380, 1),
            (0x400, 8),
            (0x800, 8),
            (0xc00, 2),
            (0xd00, 1),
            (IROUTER, 64),
        ];
        let intids = u64::from(self.gic().options().intids);
        let in_array = |(start, bits): (u64, u64)| {
            // 1,024 fields follow each other; the next array begins there at the earliest.
            offset.checked_sub(start).is_some_and(|within| within < 128 * bits && within * 8 / bits < intids)
        };
        offset % 4 == 0 && (matches!(offset, 0..0x14 | FIRST..SGI_FRAME) || ARRAYS.into_iter().any(in_array))
    }
}

impl Redistributor<'_> {
    /// What a VMM reads at a multiple of 4.
    pub fn user_read(&self, offset: u64) -> u32 {
        match self.private_fields(offset, 4) {
            Some(fields) => self.gic().user_read_fields(self.cpu(), fields),
            None => self.read(offset, 4) as u32,
        }
    }

    /// A VMM's store.
    pub fn user_write(&self, offset: u64, value: u32) {
        match self.private_fields(offset, 4) {
            Some(fields) => self.gic().user_write_fields(self.cpu(), fields, value),
            None => self.write(offset, 4, value.into()),
        }
    }

    /// Whether KVM has a register at an offset: what `KVM_HAS_DEVICE_ATTR` says.
    pub fn has_register(&self, offset: u64) -> bool {
        let first_frame = matches!(offset & !7, 0 | 8 | PROPBASER | PENDBASER | INVLPIR | INVALLR);
        let words = |within| matches!(within, 0x080 | 0x100 | 0x180 | 0x200 | 0x280 | 0x300 | 0x380 | 0x400..0x420 | 0xc00..0xc08 | 0xd00 | 0xe00);
        offset % 4 == 0
            && (first_frame
                || matches!(offset, WAKER | SYNCR | FIRST..SGI_FRAME)
                || offset.checked_sub(SGI_FRAME).is_some_and(words))
    }
}

impl Gic {
    /// The lines of 32 interrupts from INTID `first` on, a multiple of 32; those of the private ones are one vCPU's. A line
    /// shows only while its interrupt follows its level.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another `first`, or if there is no such vCPU.
    pub fn user_read_lines(&self, vcpu: VcpuId, first: u32) -> Result<u32, Error> {
        let (cpu, fields) = self.check_lines(vcpu, first)?;
        Ok(self.gather(cpu, fields, |state| (state.line() && !state.edge()).into()))
    }

    /// Sets these lines, whatever the triggers. All but [`LineSource::USER`] are taken as not driving them.
    ///
    /// # Errors
    /// As [`user_read_lines`](Self::user_read_lines).
    pub fn user_write_lines(&self, vcpu: VcpuId, first: u32, lines: u32) -> Result<(), Error> {
        let (cpu, fields) = self.check_lines(vcpu, first)?;
        for (intid, at) in fields.places() {
            if self.options.behaviour.one_wire {
                break;
            }
            if let Some(sources) = intid.checked_sub(FIRST_SPI).and_then(|pin| self.lines.get(pin as usize)) {
                let high = lines >> at & 1 == 1;
                // Release: pairs with the Acquire of who drives the line next.
                sources.store(if high { LineSource::USER.bit() } else { 0 }, Ordering::Release);
            }
        }
        self.scatter(
            cpu,
            fields,
            lines,
            |intid, state, field| {
                if SGIS.contains(&intid) { state } else { state.with_line(field == 1) }
            },
        );
        Ok(())
    }

    fn check_lines(&self, vcpu: VcpuId, first: u32) -> Result<(u16, Fields), Error> {
        if first % 32 != 0 {
            return Err(Error::Invalid { what: "first INTID", value: first.into(), allowed: "a multiple of 32" });
        }
        if vcpu.0 >= self.vcpus() {
            return Err(Error::Invalid { what: "vCPU", value: vcpu.0.into(), allowed: "one that there is" });
        }
        // The kind does not matter here: the fields are those of a register with one bit an interrupt.
        Ok((vcpu.0 as u16, Fields { kind: Kind::SetPending, first, count: 32, bits: 1 }))
    }

    fn user_read_fields(&self, cpu: u16, fields: Fields) -> u32 {
        match fields.kind {
            Kind::SetPending => self.gather(cpu, fields, |state| state.latch().into()),
            Kind::ClearPending => 0,
            _ => self.read_fields(cpu, fields),
        }
    }

    fn user_write_fields(&self, cpu: u16, fields: Fields, value: u32) {
        match fields.kind {
            Kind::SetPending => self.scatter(cpu, fields, value, |_, state, field| state.with_latch(field == 1)),
            Kind::ClearPending => {}
            _ => self.write_fields(cpu, fields, value),
        }
    }

    /// A VMM's store to GICD_IIDR: whether this GIC can be that one.
    fn set_implementer(&self, wanted: Implementer) -> bool {
        let fits = wanted.with_revision(0) == self.options.identity.implementer()
            && revisions(self.options.identity).contains(&wanted.revision());
        if fits {
            // Relaxed: means nothing but itself.
            self.revision.store(wanted.revision().into(), Ordering::Relaxed);
        }
        fits
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
