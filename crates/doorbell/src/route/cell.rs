//! One GSI: its latch, and what does not fit into the latch's word.

use smallvec::SmallVec;

use super::{GsiRoutes, MAX_PINS, Pin, Route};
use crate::{
    DeviceId, MsiMessage, Target,
    inflight::{Latch, PAYLOAD_BITS},
    sync::{AtomicU64, Ordering},
};

/// The payload of a GSI's latch: what kind of route, the resolved target, and whose loan it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Payload(pub(super) u64);

/// Where an event of a GSI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nowhere.
    None,
    /// To a target that the controller resolved.
    Resolved(Target),
    /// Through [`MsiTarget::send`](crate::MsiTarget::send), with the message of the cell.
    Message,
    /// To the pins of the cell.
    Pins,
}

impl Payload {
    const KIND_BITS: u32 = 2;
    const TAG_SHIFT: u32 = Self::KIND_BITS + Target::BITS;

    #[inline]
    pub(super) fn new(tag: u32, kind: Kind) -> Self {
        let bits = match kind {
            Kind::None => 0,
            Kind::Resolved(target) => 1 | u64::from(target.bits()) << Self::KIND_BITS,
            Kind::Message => 2,
            Kind::Pins => 3,
        };
        Self(bits | u64::from(tag) << Self::TAG_SHIFT)
    }

    #[inline]
    pub(super) fn kind(self) -> Kind {
        match self.0 & 3 {
            0 => Kind::None,
            1 => match Target::new((self.0 >> Self::KIND_BITS) as u32 & ((1 << Target::BITS) - 1)) {
                Some(target) => Kind::Resolved(target),
                None => Kind::None,
            },
            2 => Kind::Message,
            _ => Kind::Pins,
        }
    }

    /// The number of the loan; 0: the GSI is not on loan.
    #[inline]
    pub(super) fn tag(self) -> u32 {
        (self.0 >> Self::TAG_SHIFT) as u32
    }
}

const _: () = assert!(Payload::TAG_SHIFT + 32 == PAYLOAD_BITS, "kind, target and tag fill the payload");

/// Set in [`GsiCell::device`] if the message names a device.
const HAS_DEVICE: u64 = 1 << 32;

/// One GSI of the table.
///
/// All fields but the latch are written and read inside it only, so Relaxed is enough for them: the latch orders.
pub(super) struct GsiCell {
    pub(super) latch: Latch,
    /// Kind `Message` or `Resolved`: the address. Kind `Pins`: the pins (see [`pack_pins`]).
    address: AtomicU64,
    data: AtomicU64,
    device: AtomicU64,
    /// Kind `Pins`: the sources that hold the line high, as [`IrqLine`](crate::IrqLine) has them.
    line: AtomicU64,
}

impl GsiCell {
    pub(super) fn new() -> Self {
        Self {
            latch: Latch::new(0),
            address: AtomicU64::new(0),
            data: AtomicU64::new(0),
            device: AtomicU64::new(0),
            line: AtomicU64::new(0),
        }
    }

    pub(super) fn set_message(&self, message: &MsiMessage) {
        self.address.store(message.address, Ordering::Relaxed);
        self.data.store(message.data.into(), Ordering::Relaxed);
        let device = message.device_id.map_or(0, |DeviceId(id)| HAS_DEVICE | u64::from(id));
        self.device.store(device, Ordering::Relaxed);
    }

    pub(super) fn message(&self) -> MsiMessage {
        let device = self.device.load(Ordering::Relaxed);
        MsiMessage {
            address: self.address.load(Ordering::Relaxed),
            data: self.data.load(Ordering::Relaxed) as u32,
            device_id: (device & HAS_DEVICE != 0).then_some(DeviceId(device as u32)),
        }
    }

    pub(super) fn set_pins(&self, pins: &[Pin]) {
        self.address.store(pack_pins(pins), Ordering::Relaxed);
    }

    pub(super) fn pins(&self) -> SmallVec<[Pin; MAX_PINS]> {
        unpack_pins(self.address.load(Ordering::Relaxed))
    }

    pub(super) fn line(&self) -> u64 {
        self.line.load(Ordering::Relaxed)
    }

    pub(super) fn set_line(&self, sources: u64) {
        self.line.store(sources, Ordering::Relaxed);
    }

    /// The entries of a GSI whose payload has this kind.
    pub(super) fn routes(&self, kind: Kind) -> GsiRoutes {
        match kind {
            Kind::None => GsiRoutes::new(),
            Kind::Resolved(_) | Kind::Message => GsiRoutes::from_slice(&[Route::Msi(self.message())]),
            Kind::Pins => self.pins().into_iter().map(Route::Pin).collect(),
        }
    }
}

const PIN_BITS: u32 = 21;
const PIN_VALID: u64 = 1 << 20;
/// A pin is packed with four bits for its chip.
pub(super) const MAX_CHIP: u8 = 15;

/// Up to three pins in one word: a valid bit, four bits for the chip, sixteen for the pin.
fn pack_pins(pins: &[Pin]) -> u64 {
    pins.iter()
        .take(MAX_PINS)
        .rev()
        .fold(0, |word, pin| word << PIN_BITS | PIN_VALID | u64::from(pin.chip & MAX_CHIP) << 16 | u64::from(pin.pin))
}

fn unpack_pins(mut word: u64) -> SmallVec<[Pin; MAX_PINS]> {
    let mut pins = SmallVec::new();
    while word & PIN_VALID != 0 {
        pins.push(Pin { chip: (word >> 16) as u8 & MAX_CHIP, pin: word as u16 });
        word >>= PIN_BITS;
    }
    pins
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn payload_keeps_its_kind() {
        for kind in [Kind::None, Kind::Resolved(Target::new(0).unwrap()), Kind::Message, Kind::Pins] {
            assert_eq!(Payload::new(7, kind).kind(), kind);
        }
        assert_eq!(Payload(0).kind(), Kind::None);
    }

    proptest! {
        #[test]
        fn pins_survive_packing(raw in prop::collection::vec((0u8..=MAX_CHIP, any::<u16>()), 0..=MAX_PINS)) {
            let pins: Vec<Pin> = raw.into_iter().map(|(chip, pin)| Pin { chip, pin }).collect();
            prop_assert_eq!(unpack_pins(pack_pins(&pins)).to_vec(), pins);
        }

        #[test]
        fn payload_keeps_tag_and_target(tag: u32, bits in 0u32..1 << Target::BITS) {
            let target = Target::new(bits).unwrap();
            let payload = Payload::new(tag, Kind::Resolved(target));
            prop_assert_eq!(payload.tag(), tag);
            prop_assert_eq!(payload.kind(), Kind::Resolved(target));
        }
    }
}
