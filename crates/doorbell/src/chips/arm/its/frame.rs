//! An ITS among the frames that take messages.

use super::{
    Its,
    registers::{FRAME, offset},
};
use crate::{Delivery, DeviceId, Error, MsiMessage, Target, chips::arm::MsiFrame};

impl Its {
    /// Whether a device's store at this offset is an event: one to GITS_TRANSLATER, or with KVM's ways any (Q12).
    fn takes(&self, at: u64) -> bool {
        at == offset::TRANSLATER || self.gic().options().behaviour.whole_frame_translates
    }
}

/// The data of a message is the EventID, which means something only together with the DeviceID.
impl MsiFrame for Its {
    fn size(&self) -> u64 {
        FRAME
    }

    /// # Errors
    /// [`Error::Invalid`] for a message without a DeviceID (Q10, and Q10a: also of an event that was seen before) or to
    /// another register (Q12); else as [`Its::send`].
    fn send(&self, at: u64, message: &MsiMessage) -> Result<Delivery, Error> {
        let Some(device) = message.device_id else {
            return Err(Error::Invalid {
                what: "message without a DeviceID, data",
                value: message.data.into(),
                allowed: "an ITS must know which device an event is of",
            });
        };
        if !self.takes(at) {
            let allowed = "GITS_TRANSLATER, at 0x10040";
            return Err(Error::Invalid { what: "offset of a message in the ITS's frame", value: at, allowed });
        }
        Its::send(self, device, message.data)
    }

    fn prepare(&self, at: u64, message: &MsiMessage) -> Option<Target> {
        let device: DeviceId = message.device_id.filter(|_| self.takes(at))?;
        Its::prepare(self, device, message.data)
    }

    #[inline]
    fn fire(&self, target: Target) -> Delivery {
        Its::fire(self, target)
    }

    fn takes_device_ids(&self) -> bool {
        true
    }
}
