//! What is x86 in a plan: messages to local APICs, entries of remapping tables and of the IOAPIC.

use doorbell::{DeviceId, MsiMessage};

use super::{Line, Plan, Slot, Vector, Wire, requester};
use crate::run::machine::Remap;

/// Whom the IOAPIC's messages come from: 00:14.0.
pub const IOAPIC: DeviceId = DeviceId(0xa0);

/// The message that arrives in a slot: fixed delivery, edge, to one local APIC by its id.
pub fn message(slot: Slot) -> MsiMessage {
    MsiMessage::new(0xfee0_0000 | u64::from(slot.vcpu) << 12, slot.vector.into())
}

/// The address of a VT-d handle.
fn handle(index: u32) -> u64 {
    0xfee0_0010 | u64::from(index & 0x7fff) << 5 | u64::from(index >> 15) << 2
}

/// The redirection entry of a line: fixed delivery to one local APIC by its id, active high, unmasked.
pub fn redirection(vcpu: u32, line: Line) -> u64 {
    u64::from(line.vector) | u64::from(line.resample) << 15 | u64::from(vcpu) << 56
}

/// Where the entry of a vector is in the tables of interrupt remapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who sends.
    pub device: DeviceId,
    /// The number of its table, where each device has one.
    pub table: u32,
    /// The index in the table.
    pub entry: u32,
}

impl Plan {
    /// Where the entry of the plan's `index`th vector is. The vectors of a device have a block (spec T10), those of a line
    /// one entry.
    pub fn place(&self, index: usize) -> Place {
        let vector = &self.vectors[index];
        let first = |same: &dyn Fn(&Vector) -> bool| self.vectors.iter().position(same).unwrap_or(index) as u32;
        let (device, table) = match vector.wire {
            Wire::MsiX { .. } => (requester(vector.device), vector.device as u32 + 1),
            Wire::Line(_) => (IOAPIC, 0),
        };
        let entry = match (self.remap, vector.wire) {
            // The IOAPIC's vector is the index.
            (Remap::Amd, Wire::Line(line)) => u32::from(line.vector),
            (Remap::Amd, Wire::MsiX { entry }) => u32::from(entry),
            (_, Wire::Line(line)) => first(&|other| other.line() == Some(line)),
            (_, Wire::MsiX { entry }) => first(&|other| other.device == vector.device) + u32::from(entry),
        };
        Place { device, table, entry }
    }

    /// See [`Plan::message`].
    pub(super) fn x86_message(&self, index: usize) -> MsiMessage {
        let vector = &self.vectors[index];
        let Place { device, entry, .. } = self.place(index);
        match self.remap {
            Remap::None => message(vector.slot),
            // The device's block is the handle, the data say which of its entries.
            Remap::Vtd => MsiMessage::new(handle(entry - vector.number) | 1 << 3, vector.number).from_device(device),
            Remap::Amd => MsiMessage::new(0xfee0_0000, entry).from_device(device),
        }
    }

    /// The redirection entry of the line of the plan's `index`th vector.
    pub fn redirection(&self, index: usize, line: Line) -> u64 {
        let entry = u64::from(self.place(index).entry);
        match self.remap {
            Remap::None => redirection(self.vectors[index].slot.vcpu, line),
            Remap::Vtd => redirection(0, line) | (entry & 0x7fff) << 49 | 1 << 48 | (entry >> 15) << 11,
            Remap::Amd => redirection(0, line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{
        machine::{Machine, X86_AMD, X86_VTD},
        plan::GROUP,
    };

    #[test]
    fn vcpus_that_take_each_other_s_vectors_have_no_vector_twice() {
        for text in [X86_VTD, X86_AMD] {
            let machine = Machine::built_in("big", text);
            let plan = Plan::new(&machine).unwrap();
            let mut arrivals = std::collections::HashSet::new();
            let (mut places, mut messages) = (std::collections::HashSet::new(), std::collections::HashSet::new());
            for (index, vector) in plan.vectors.iter().enumerate() {
                assert!(plan.may_arrive(vector, vector.slot.vcpu));
                assert!(arrivals.insert((vector.slot.vcpu / GROUP, vector.slot.vector)), "{vector:?}");
                let Place { device, table, entry } = plan.place(index);
                if let Some(line) = vector.line() {
                    assert_eq!((device, plan.redirection(index, line) as u8), (IOAPIC, line.vector));
                } else {
                    assert!(places.insert((if plan.remap == Remap::Amd { table } else { 0 }, entry)), "{vector:?}");
                    assert!(messages.insert(plan.message(index)), "{vector:?}");
                }
            }
            let used: std::collections::HashSet<_> = plan.vectors.iter().map(|vector| vector.slot.vcpu).collect();
            assert_eq!(used.len(), 300, "every vCPU has work");
        }
    }
}
