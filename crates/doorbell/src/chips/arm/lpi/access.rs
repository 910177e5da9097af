//! Loads and stores of the redistributors' registers for LPIs.

use super::registers::{Control, Pending, Properties, kvm_inner_cache, kvm_outer_cache, kvm_shareability};
use crate::{
    chips::arm::{Gic, GicOptions, Identity},
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// The registers of one redistributor.
pub(super) struct Redistributor {
    /// EnableLPIs and RWP of GICR_CTLR. Written with the lock of the configuration held.
    pub control: AtomicU32,
    /// GICR_PROPBASER. Written with that lock held; where there is one for all, only the first is used.
    pub properties: AtomicU64,
    /// GICR_PENDBASER. Written with that lock held.
    pub pending: AtomicU64,
    /// How many stores to GICR_INVLPIR and GICR_INVALLR are under way.
    pub busy: AtomicU32,
}

impl Redistributor {
    pub fn new(options: &GicOptions) -> Self {
        let (properties, pending) = at_reset(options);
        Self {
            control: AtomicU32::new(0),
            properties: AtomicU64::new(properties.into_bits()),
            pending: AtomicU64::new(pending.into_bits()),
            busy: AtomicU32::new(0),
        }
    }

    pub fn reset(&self, options: &GicOptions) {
        let Self { control, properties, pending, busy: _ } = self;
        let (initial_properties, initial_pending) = at_reset(options);
        // Release: as when the guest switches LPIs off.
        control.store(0, Ordering::Release);
        properties.store(initial_properties.into_bits(), Ordering::Relaxed);
        pending.store(initial_pending.into_bits(), Ordering::Relaxed);
    }
}

/// The tables' registers after reset: unknown, by the architecture; KVM has them cached, inner shareable, and at 0.
fn at_reset(options: &GicOptions) -> (Properties, Pending) {
    if options.behaviour.one_propbaser {
        (
            Properties::new().with_inner_cache(3).with_shareability(1),
            Pending::new().with_inner_cache(3).with_shareability(1),
        )
    } else {
        (Properties::new(), Pending::new())
    }
}

/// A redistributor's register for LPIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LpiRegister {
    /// GICR_CTLR.
    Control,
    /// GICR_PROPBASER.
    Properties,
    /// GICR_PENDBASER.
    Pending,
    /// GICR_INVLPIR.
    InvalidateOne,
    /// GICR_INVALLR.
    InvalidateAll,
    /// GICR_SYNCR.
    Sync,
}

impl Gic {
    /// GICR_PROPBASER of a vCPU.
    pub(super) fn properties_of(&self, cpu: u16) -> Properties {
        let cpu = if self.options.behaviour.one_propbaser { 0 } else { cpu };
        let redistributor = self.lpis.redistributors.get(usize::from(cpu));
        // Relaxed, here and below: what is read means nothing beyond itself.
        redistributor.map_or(Properties::new(), |it| Properties::from_bits(it.properties.load(Ordering::Relaxed)))
    }

    /// GICR_PENDBASER of a vCPU, with PTZ as it was written.
    pub(super) fn pending_of(&self, cpu: u16) -> Pending {
        let redistributor = self.lpis.redistributors.get(usize::from(cpu));
        redistributor.map_or(Pending::new(), |it| Pending::from_bits(it.pending.load(Ordering::Relaxed)))
    }

    /// A load, of the whole register.
    pub(crate) fn read_lpi_register(&self, cpu: u16, register: LpiRegister) -> u64 {
        let Some(redistributor) = self.lpis.redistributors.get(usize::from(cpu)) else { return 0 };
        match register {
            LpiRegister::Control => {
                // Acquire: pairs with the Release of who switched LPIs off: once RWP reads 0, they are.
                let control = Control::from_bits(redistributor.control.load(Ordering::Acquire));
                let invalidates = self.options.identity != Identity::Qemu;
                control.with_clear_enable_supported(true).with_invalidate_registers(invalidates).into_bits().into()
            }
            LpiRegister::Properties => self.properties_of(cpu).into_bits(),
            LpiRegister::Pending => self.pending_of(cpu).with_table_is_zero(false).into_bits(),
            LpiRegister::InvalidateOne | LpiRegister::InvalidateAll => 0,
            // Acquire: pairs with the Release in `busily`: what was asked for is done when this reads 0.
            LpiRegister::Sync => u64::from(redistributor.busy.load(Ordering::Acquire) != 0),
        }
    }

    /// A store to the bits of a register that `mask` has: all 64, or those of an access to one half.
    pub(crate) fn write_lpi_register(&self, cpu: u16, register: LpiRegister, mask: u64, value: u64) {
        match register {
            LpiRegister::Control if mask & 1 != 0 => self.switch_lpis(cpu, value & 1 != 0),
            LpiRegister::Properties => self.write_properties(cpu, mask, value),
            LpiRegister::Pending => self.write_pending(cpu, mask, value),
            // The upper half names a virtual PE, which there is none of.
            LpiRegister::InvalidateOne if mask as u32 != 0 => self.busily(cpu, || {
                // Memory that refuses leaves the configuration as it is.
                let _refused = self.invalidate_lpi(value as u32);
            }),
            LpiRegister::InvalidateAll if mask as u32 != 0 => self.busily(cpu, || self.invalidate_all_lpis(cpu)),
            _ => {}
        }
    }

    fn write_properties(&self, cpu: u16, mask: u64, value: u64) {
        let at = if self.options.behaviour.one_propbaser { 0 } else { cpu };
        let Some(redistributor) = self.lpis.redistributors.get(usize::from(at)) else { return };
        let _config = self.lpis.config.lock();
        if self.lpis_enabled(cpu) {
            // I32.
            return;
        }
        let old = redistributor.properties.load(Ordering::Relaxed);
        let mut new = Properties::from_bits((old & !mask | value & mask) & Properties::WRITABLE.into_bits());
        if self.options.behaviour.one_propbaser {
            new = new
                .with_inner_cache(kvm_inner_cache(new.inner_cache()))
                .with_outer_cache(kvm_outer_cache(new.outer_cache()))
                .with_shareability(kvm_shareability(new.shareability()));
        }
        redistributor.properties.store(new.into_bits(), Ordering::Relaxed);
    }

    fn write_pending(&self, cpu: u16, mask: u64, value: u64) {
        let Some(redistributor) = self.lpis.redistributors.get(usize::from(cpu)) else { return };
        let _config = self.lpis.config.lock();
        if self.lpis_enabled(cpu) {
            return;
        }
        let old = redistributor.pending.load(Ordering::Relaxed);
        let mut new = Pending::from_bits((old & !mask | value & mask) & Pending::WRITABLE.into_bits());
        if self.options.behaviour.one_propbaser {
            new = new
                .with_inner_cache(kvm_inner_cache(new.inner_cache()))
                .with_outer_cache(kvm_outer_cache(new.outer_cache()))
                .with_shareability(kvm_shareability(new.shareability()));
        }
        redistributor.pending.store(new.into_bits(), Ordering::Relaxed);
    }

    /// An invalidation through a register, if LPIs are on (I34); GICR_SYNCR says that it is under way.
    fn busily(&self, cpu: u16, invalidate: impl FnOnce()) {
        let Some(redistributor) = self.lpis.redistributors.get(usize::from(cpu)) else { return };
        if self.lpis_enabled(cpu) {
            redistributor.busy.fetch_add(1, Ordering::Relaxed);
            invalidate();
            // Release: pairs with the Acquire of who reads GICR_SYNCR.
            redistributor.busy.fetch_sub(1, Ordering::Release);
        }
    }
}
