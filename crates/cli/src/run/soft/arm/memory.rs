//! The guest's memory: where its tables are.

use std::sync::Arc;

use doorbell::guest_ram::{GuestRam, RamBlock};

use crate::{
    arm_guest::Tables,
    run::plan::{Plan, arm::FIRST_LPI},
};

/// Where the guest's memory begins.
const BASE: u64 = 0x4000_0000;
/// The alignment of everything here.
const PAGE: u64 = 0x1_0000;
/// Bits of an INTID, in the tables' registers less one.
pub const ID_BITS: u64 = 16;
/// The largest EventID has so many bits.
pub const EVENT_BITS: u32 = 11;
/// The bytes of a device's interrupt translation table.
const ITT: u64 = 8 << EVENT_BITS;
/// Where things are.
#[derive(Clone, Copy)]
pub struct Layout {
    vcpus: u64,
    its: u64,
}

impl Layout {
    /// Of a plan's guest.
    pub fn new(plan: &Plan) -> Self {
        Self { vcpus: plan.vcpus.into(), its: plan.its.into() }
    }

    /// One byte for each LPI.
    pub fn configuration(self) -> u64 {
        BASE
    }

    /// The pending table of a vCPU.
    pub fn pending(self, vcpu: u32) -> u64 {
        BASE + PAGE * (1 + u64::from(vcpu))
    }

    fn after_pending(self) -> u64 {
        BASE + PAGE * (1 + self.vcpus)
    }

    /// The queue and the tables of an ITS.
    pub fn tables(self, its: u32) -> Tables {
        let queue = self.after_pending() + 3 * PAGE * u64::from(its);
        Tables { queue, devices: queue + PAGE, collections: queue + 2 * PAGE }
    }

    /// The interrupt translation table of a device.
    pub fn itt(self, device: usize) -> u64 {
        self.after_pending() + 3 * PAGE * self.its + ITT * device as u64
    }

    /// The whole of it.
    pub fn ram(self, devices: usize) -> Arc<RamBlock> {
        Arc::new(RamBlock::new(BASE, (self.itt(devices) - BASE) as usize))
    }
}

/// What the configuration table says of an LPI: priority 0xa0 and whether it is enabled.
pub fn configure(ram: &dyn GuestRam, layout: Layout, lpi: u32, enabled: bool) {
    let byte = 0xa0 | u8::from(enabled);
    let at = layout.configuration() + u64::from(lpi - FIRST_LPI);
    ram.write(at, &[byte]).unwrap_or_else(|error| panic!("the guest's own table: {error}"));
}

/// Whether the pending table of a vCPU says that an LPI is pending.
pub fn is_pending(ram: &dyn GuestRam, layout: Layout, vcpu: u32, lpi: u32) -> bool {
    let mut byte = [0];
    let at = layout.pending(vcpu) + u64::from(lpi / 8);
    ram.read(at, &mut byte).is_ok() && byte[0] >> (lpi % 8) & 1 != 0
}
