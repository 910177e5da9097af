//! Several remapping units in one machine, each with the devices in its scope.

use std::{ops::RangeInclusive, sync::Arc};

use crate::{Delivery, DeviceId, Error, MsiMessage, MsiTarget, Target};

/// Sends each message through the unit that is responsible for its sender, as the firmware's tables tell the guest (ACPI
/// DMAR: device scopes; IVRS: device entries).
///
/// ```
/// use doorbell::chips::x86::lapic::{ApicOptions, ApicSet};
/// use doorbell::guest_ram::RamBlock;
/// use doorbell::remap::{Scopes, vtd::{VtdOptions, VtdUnit}};
/// use std::sync::Arc;
///
/// let apics = ApicSet::new(1, Arc::new(()), ApicOptions::default());
/// let ram = Arc::new(RamBlock::new(0, 0x10_0000));
/// let unit = || Arc::new(VtdUnit::new(VtdOptions::default(), apics.clone(), ram.clone()));
/// let (graphics, others) = (unit(), unit());
/// // Device 2 of bus 0 has a unit of its own; the other one is "include all".
/// let scopes = Scopes::new(vec![(0x10..=0x17, graphics)], others)?;
/// # let _: &dyn doorbell::MsiTarget = &scopes;
/// # Ok::<(), doorbell::Error>(())
/// ```
pub struct Scopes {
    /// Disjoint, each with its unit. The last one is for the senders in none of them.
    units: Vec<Arc<dyn MsiTarget>>,
    ranges: Vec<RangeInclusive<u32>>,
}

/// How many bits of a target are the unit's own; above them is the number of the unit.
const UNIT_BITS: u32 = 16;
/// How many units there can be, the one for the rest included.
const MOST: usize = 1 << (Target::BITS - UNIT_BITS);

impl Scopes {
    /// Units with the requesters in their scopes, and what the messages of all other senders, named or not, go to.
    ///
    /// A message can be [prepared](MsiTarget::prepare) where its unit's target has 16 bits, which is so while a unit's
    /// cache has room for no more than [`RemapCache::MOST`](super::RemapCache::MOST) messages.
    ///
    /// # Errors
    /// [`Error::Invalid`] if two scopes overlap, or for more than 255 units with a scope.
    pub fn new(units: Vec<(RangeInclusive<u32>, Arc<dyn MsiTarget>)>, rest: Arc<dyn MsiTarget>) -> Result<Self, Error> {
        let (ranges, mut units): (Vec<_>, Vec<_>) = units.into_iter().unzip();
        if units.len() >= MOST {
            let value = units.len() as u64;
            return Err(Error::Invalid { what: "the number of remapping units", value, allowed: "1 to 255" });
        }
        for (at, range) in ranges.iter().enumerate() {
            if ranges[..at].iter().any(|other| range.start() <= other.end() && other.start() <= range.end()) {
                let value = u64::from(*range.start());
                return Err(Error::Invalid { what: "a scope from", value, allowed: "each requester in one scope" });
            }
        }
        units.push(rest);
        Ok(Self { units, ranges })
    }

    fn unit_of(&self, message: &MsiMessage) -> usize {
        let in_scope = |DeviceId(id)| self.ranges.iter().position(|range| range.contains(&id));
        message.device_id.and_then(in_scope).unwrap_or(self.ranges.len())
    }
}

impl MsiTarget for Scopes {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.units[self.unit_of(message)].send(message)
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let number = self.unit_of(message);
        let own = self.units[number].prepare(message)?.bits();
        if own >> UNIT_BITS == 0 { Target::new((number as u32) << UNIT_BITS | own) } else { None }
    }

    #[inline]
    fn fire(&self, target: Target) -> Delivery {
        let own = Target::new(target.bits() & ((1 << UNIT_BITS) - 1));
        match (self.units.get((target.bits() >> UNIT_BITS) as usize), own) {
            (Some(unit), Some(own)) => unit.fire(own),
            _ => Delivery::Ignored,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Answers with its own number and what it was fired with.
    struct Unit(u32);

    impl MsiTarget for Unit {
        fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
            Ok(Delivery::Delivered(self.0 << 24 | message.data))
        }

        fn prepare(&self, message: &MsiMessage) -> Option<Target> {
            Target::new(message.data)
        }

        fn fire(&self, target: Target) -> Delivery {
            Delivery::Delivered(self.0 << 24 | target.bits())
        }
    }

    fn scopes() -> Scopes {
        let unit = |number| Arc::new(Unit(number)) as Arc<dyn MsiTarget>;
        Scopes::new(vec![(0x10..=0x17, unit(1)), (0x100..=0x1ff, unit(2))], unit(3)).unwrap()
    }

    #[test]
    fn each_sender_s_messages_go_to_its_unit() {
        let scopes = scopes();
        let cases = [(0xf, 3), (0x10, 1), (0x17, 1), (0x18, 3), (0xff, 3), (0x100, 2), (0x1ff, 2), (0x200, 3)];
        let named = cases.map(|(id, unit)| (Some(DeviceId(id)), unit));
        for (device_id, unit) in named.into_iter().chain([(None, 3)]) {
            for data in [0, 0xffff] {
                let message = MsiMessage { address: 0, data, device_id };
                let expected = Delivery::Delivered(unit << 24 | data);
                assert_eq!(scopes.send(&message).unwrap(), expected, "{device_id:?}");
                assert_eq!(scopes.fire(scopes.prepare(&message).unwrap()), expected, "{device_id:?}");
            }
            let too_large = MsiMessage { address: 0, data: 0x1_0000, device_id };
            assert_eq!(scopes.prepare(&too_large), None, "it would be another unit's");
        }
    }

    #[test]
    fn a_target_of_no_unit_delivers_nothing() {
        assert_eq!(scopes().fire(Target::new(3 << 16).unwrap()), Delivery::Ignored);
    }

    #[test]
    fn overlapping_scopes_and_too_many_units_are_refused() {
        let unit = || Arc::new(Unit(0)) as Arc<dyn MsiTarget>;
        let with = |ranges: &[RangeInclusive<u32>]| {
            Scopes::new(ranges.iter().map(|range| (range.clone(), unit())).collect(), unit()).is_ok()
        };
        assert!(with(&[1..=1, 0..=0, 2..=3]));
        for overlapping in [[1..=4, 4..=6], [4..=6, 1..=4], [1..=9, 3..=3], [3..=3, 1..=9]] {
            assert!(!with(&overlapping), "{overlapping:?}");
        }
        let many = |count: u32| with(&(0..count).map(|id| id..=id).collect::<Vec<_>>());
        assert!(many(255) && !many(256));
    }
}
