//! What is Arm in a plan: SPIs, LPIs, and which ITS translates the events of a device.

use doorbell::{DeviceId, MsiMessage};

use super::{Plan, Wire, requester};

/// The INTID of pin 0.
pub const FIRST_SPI: u32 = 32;
/// The INTID of the plan's first vector, if it is an LPI.
pub const FIRST_LPI: u32 = 8192;
/// The frame of the first ITS; the others follow.
const ITS: u64 = 0x0808_0000;
/// The bytes of a frame.
const ITS_BYTES: u64 = 0x2_0000;
/// GITS_TRANSLATER.
const TRANSLATER: u64 = 0x1_0040;

/// The guest-physical address of an ITS.
pub fn its_address(its: u32) -> u64 {
    ITS + u64::from(its) * ITS_BYTES
}

impl Plan {
    /// The ITS of a device.
    pub fn its_of(&self, device: usize) -> u32 {
        device as u32 % self.its.max(1)
    }

    /// The DeviceID of a device.
    pub fn device_id(&self, device: usize) -> DeviceId {
        requester(device)
    }

    /// The INTID of the plan's `index`th vector.
    pub(super) fn intid(index: usize, wire: Wire) -> u32 {
        match wire {
            Wire::MsiX { .. } => FIRST_LPI + index as u32,
            Wire::Line(line) => FIRST_SPI + u32::from(line.pin),
        }
    }

    /// See [`Plan::message`]: the EventID is the number of the vector.
    pub(super) fn arm_message(&self, index: usize) -> MsiMessage {
        let vector = &self.vectors[index];
        let address = its_address(self.its_of(vector.device)) + TRANSLATER;
        MsiMessage::new(address, vector.number).from_device(requester(vector.device))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::run::machine::{ARM, Arch, Machine};

    #[test]
    fn every_vector_of_the_arm_machine_has_an_intid_and_every_event_a_message_of_its_own() {
        let plan = Plan::new(&Machine::built_in("arm", ARM)).unwrap();
        assert_eq!((plan.arch, plan.its), (Arch::Arm, 2));
        let (mut lpis, mut spis, mut messages) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (index, vector) in plan.vectors.iter().enumerate() {
            match vector.wire {
                Wire::MsiX { entry } => {
                    assert!(lpis.insert(vector.arrival) && (8192..1 << 16).contains(&vector.arrival), "{vector:?}");
                    let message = plan.message(index);
                    assert_eq!((message.data, message.device_id), (entry.into(), plan.requester(vector.device)));
                    assert!(messages.insert(message), "{vector:?}");
                }
                Wire::Line(line) => {
                    assert_eq!(vector.arrival, 32 + u32::from(line.pin));
                    spis.insert(vector.arrival);
                }
            }
        }
        assert_eq!((lpis.len(), spis.len()), (72, 6));
        let frames: HashSet<_> = messages.iter().map(|message| message.address).collect();
        assert_eq!(frames, HashSet::from([0x0809_0040, 0x080b_0040]), "both ITSs");
    }
}
