//! Which vCPU an SPI is for: GICD_IROUTER (Arm IHI 0069, "Affinity routing", "1 of N model").

use crate::chips::arm::{
    Affinity, Gic,
    intid::{FIRST_SPI, LAST_SPI},
    irq::NOBODY,
    registers::distributor::{IROUTER, Router},
};

/// The part of a 64-bit register that an access covers.
#[derive(Clone, Copy)]
pub(in crate::chips::arm) struct Part {
    shift: u32,
    mask: u64,
}

impl Part {
    /// That of an access so many bytes into the register: all of it, or either half.
    pub fn at(within: u64, bytes: u8) -> Option<Self> {
        match (within, bytes) {
            (0, 8) => Some(Self { shift: 0, mask: u64::MAX }),
            (0 | 4, 4) => Some(Self { shift: within as u32 * 8, mask: u32::MAX.into() }),
            _ => None,
        }
    }

    /// What a load sees.
    pub fn of(self, register: u64) -> u64 {
        register >> self.shift & self.mask
    }

    /// What a store makes of the register.
    pub fn merge(self, register: u64, value: u64) -> u64 {
        register & !(self.mask << self.shift) | (value & self.mask) << self.shift
    }
}

/// The SPI whose GICD_IROUTER stands at this offset, and the part of it that is accessed.
pub(super) fn at(offset: u64, bytes: u8) -> Option<(u32, Part)> {
    let within = offset.checked_sub(IROUTER)?;
    let intid = u32::try_from(within / 8).ok().filter(|intid| (FIRST_SPI..=LAST_SPI).contains(intid))?;
    Some((intid, Part::at(within % 8, bytes)?))
}

impl Gic {
    /// GICD_IROUTER of an SPI.
    pub(super) fn router(&self, intid: u32) -> Option<Router> {
        self.routers.lock().get(index(intid)).copied()
    }

    /// A store to GICD_IROUTER. An interrupt that is pending moves at once; one that is active stays where it was taken
    /// (C28).
    pub(super) fn set_router(&self, intid: u32, part: Part, value: u64) {
        let writable = Router::writable(self.options.behaviour.short_router);
        let mut routers = self.routers.lock();
        let Some(router) = routers.get_mut(index(intid)) else { return };
        *router = Router::from_bits(part.merge(router.into_bits(), value) & writable);
        self.follow_router(intid, *router);
    }

    /// Points an SPI at the vCPU that its router names. The caller holds the lock of the routers, so that the last router
    /// and the last target belong together.
    pub(in crate::chips::arm) fn follow_router(&self, intid: u32, router: Router) {
        let Some(irq) = self.shared(intid) else { return };
        if router.any() {
            // The vCPU is chosen when it becomes deliverable.
            self.update(irq, intid, |state| state.with_any(true));
        } else {
            let target = self.named(Affinity::from_router(router.into_bits())).unwrap_or(NOBODY);
            self.update(irq, intid, |state| state.with_any(false).with_target(target));
        }
    }
}

fn index(intid: u32) -> usize {
    intid.wrapping_sub(FIRST_SPI) as usize
}
