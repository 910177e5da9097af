//! The distributor: what all vCPUs share (Arm IHI 0069, "The GIC programmers' model").
//!
//! Every register takes effect at once, so GICD_CTLR.RWP always reads 0. A store meets each interrupt in one step, but not
//! all interrupts of a register in one.

mod route;

pub(super) use route::Part;

use super::{
    Gic, Identity,
    intid::PRIVATE,
    registers::{
        distributor::{CLRSPI_NSR, CTLR, Control, FRAME, IIDR, Message, SETSPI_NSR, STATUSR, TYPER, Type},
        fields::Fields,
        identification::{FIRST, Frame, Implementer},
    },
};
use crate::sync::Ordering;

/// The distributor of a GIC, as a guest sees it: one frame of 64K.
///
/// Registers are 32 bits wide. Priorities can also be accessed by bytes, GICD_IROUTER by 64 bits, and the two message
/// registers by 16 bits. Any other access reads 0 and stores nothing.
///
/// ```
/// # use std::sync::Arc;
/// # use doorbell::{chips::arm::{Gic, GicOptions}, guest_ram::RamBlock};
/// let gic = Gic::new(GicOptions::new(4), Arc::new(RamBlock::new(0, 0)), Arc::new(()))?;
/// let distributor = gic.distributor();
/// distributor.write(0x0000, 4, 0b10); // GICD_CTLR: forward Group 1
/// distributor.write(0x0428, 1, 0xa5); // GICD_IPRIORITYR of SPI 40
/// assert_eq!(distributor.read(0x0000, 4), 0x52, "affinity routing and one Security state cannot be switched off");
/// assert_eq!(distributor.read(0x0428, 1), 0xa0, "five bits of priority");
/// # Ok::<(), doorbell::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Distributor<'a> {
    gic: &'a Gic,
}

impl Gic {
    /// The distributor.
    pub fn distributor(&self) -> Distributor<'_> {
        Distributor { gic: self }
    }
}

impl Distributor<'_> {
    pub(super) fn gic(&self) -> &Gic {
        self.gic
    }

    /// A load of so many bytes.
    pub fn read(&self, offset: u64, bytes: u8) -> u64 {
        let gic = self.gic;
        if let Some(fields) = Fields::at(offset, bytes) {
            // C2: SGIs and PPIs are in the redistributors.
            return if fields.first < PRIVATE { 0 } else { gic.read_fields(0, fields).into() };
        }
        if let Some((intid, part)) = route::at(offset, bytes) {
            return gic.router(intid).map_or(0, |router| part.of(router.into_bits()));
        }
        match (offset, bytes) {
            (CTLR, 4) => gic.control().into_bits().into(),
            (TYPER, 4) => gic.distributor_type().into_bits().into(),
            (IIDR, 4) => gic.distributor_implementer().into_bits().into(),
            (STATUSR, 4) if gic.options.behaviour.status_reads_ones => u32::MAX.into(),
            (FIRST..FRAME, 4) => gic.options.identity.register(Frame::Distributor, offset).into(),
            _ => 0,
        }
    }

    /// A store of so many bytes; the others of `value` do not count.
    pub fn write(&self, offset: u64, bytes: u8, value: u64) {
        let gic = self.gic;
        if let Some(fields) = Fields::at(offset, bytes) {
            if fields.first >= PRIVATE {
                gic.write_fields(0, fields, value as u32);
            }
            return;
        }
        if let Some((intid, part)) = route::at(offset, bytes) {
            return gic.set_router(intid, part, value);
        }
        match (offset, bytes) {
            (CTLR, 4) => gic.set_control(Control::from_bits(value as u32)),
            (SETSPI_NSR | CLRSPI_NSR, 2 | 4) if !gic.options.behaviour.no_message_spis => {
                // A store of 16 bits leaves the upper half, which is reserved, alone.
                let message = Message::from_bits(value as u32 & (u32::MAX >> (32 - 8 * bytes)));
                gic.message_spi(message.intid().into(), offset == SETSPI_NSR);
            }
            _ => {}
        }
    }
}

impl Gic {
    fn control(&self) -> Control {
        // Relaxed: the guest orders its own accesses.
        let mut control = Control::from_bits(self.ctlr.load(Ordering::Relaxed) | Control::FIXED);
        if self.options.behaviour.one_group_enable {
            control.set_group0(false);
        }
        control
    }

    fn set_control(&self, mut control: Control) {
        if self.options.behaviour.one_group_enable {
            control.set_group0(control.group1());
        }
        let forwarded = control.into_bits() & Control::WRITABLE;
        // SeqCst: see `groups`.
        let before = self.ctlr.swap(forwarded, Ordering::SeqCst);
        if forwarded & !before != 0 {
            self.wake_all();
        }
    }

    fn distributor_type(&self) -> Type {
        let (options, behaviour) = (&self.options, self.options.behaviour);
        let lpis = self.has_lpis();
        Type::new()
            .with_lines((options.intids.div_ceil(32) - 1) as u8)
            .with_message_spis(!behaviour.no_message_spis && options.identity != Identity::Qemu)
            .with_lpis(lpis)
            // Without LPIs, what counts up to 1023.
            .with_id_bits(if lpis { options.id_bits - 1 } else { 9 })
            .with_level3(options.identity != Identity::Kvm)
            .with_no_one_of_n(options.identity == Identity::Qemu)
            .with_range_selector(options.identity == Identity::Doorbell)
    }

    pub(super) fn distributor_implementer(&self) -> Implementer {
        // Relaxed: means nothing but itself.
        self.options.identity.implementer().with_revision(self.revision.load(Ordering::Relaxed) as u8)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
