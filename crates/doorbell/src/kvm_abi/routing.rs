//! A routing table as KVM takes it, decoded and judged.
//!
//! What depends on the entry alone is judged here: types and flags (G1, G3, G6). Numbers of GSIs and pins, and entries
//! that exclude each other (G2, G4, G6), are judged by [`RouteTable::set`](crate::route::RouteTable::set).

use super::types::{KvmIrqRoutingEntry, MAX_IRQ_ROUTES, MSI_VALID_DEVID, ROUTING_IRQCHIP, ROUTING_MSI};
use crate::{
    DeviceId, Errno, Error, MsiMessage,
    route::{Pin, Route, RouteEntry},
};

/// The type of an extended message under [`DeviceIds::ExtendedType`]: the number that the proposal of 2015 had for it.
/// The kernel has since given it to something else.
pub const ROUTING_EXTENDED_MSI: u32 = 4;

/// Where a table keeps the DeviceID of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceIds {
    /// In the former pad word of a message, counted if its flag is set (S2-table, what KVM does).
    #[default]
    Flag,
    /// In the same word, of entries of a type of their own (S2-ext); messages have no flag.
    ExtendedType,
}

/// Decodes the argument of `KVM_SET_GSI_ROUTING`: a header and its entries.
///
/// # Errors
/// `EINVAL`: G1 for the header, G3 for flags, G6 for types and chips that do not exist. [`Error::Invalid`] too if there
/// are fewer entries than the header says.
///
/// ```
/// use doorbell::kvm_abi::{KvmIrqRoutingEntry, routing::{DeviceIds, decode}};
/// use doorbell::route::{Pin, Route};
///
/// let entries = [KvmIrqRoutingEntry::pin(4, 2, 4), KvmIrqRoutingEntry::msi(24, 0xfee0_0000, 0x41)];
/// let table = decode(2, 0, &entries, DeviceIds::Flag)?;
/// assert_eq!(table[0].route, Route::Pin(Pin { chip: 2, pin: 4 }));
/// # Ok::<(), doorbell::Error>(())
/// ```
pub fn decode(
    nr: u32,
    flags: u32,
    entries: &[KvmIrqRoutingEntry],
    devices: DeviceIds,
) -> Result<Vec<RouteEntry>, Error> {
    if nr > MAX_IRQ_ROUTES {
        return Err(Error::TooManyRoutes { count: nr as usize, most: MAX_IRQ_ROUTES as usize });
    }
    if flags != 0 {
        return Err(Error::Invalid { what: "routing table flags", value: flags.into(), allowed: "0" });
    }
    let Some(entries) = entries.get(..nr as usize) else {
        return Err(Error::Invalid { what: "nr", value: nr.into(), allowed: "the number of entries that follow" });
    };
    entries.iter().map(|entry| Ok(RouteEntry { gsi: entry.gsi, route: decode_entry(entry, devices)? })).collect()
}

/// Whether the entries that an accepted header announces can be read.
///
/// # Errors
/// `EFAULT` if there are fewer.
pub(crate) fn check_readable(nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Result<(), Errno> {
    let accepted = nr <= MAX_IRQ_ROUTES && flags == 0;
    if accepted && nr as usize > entries.len() { Err(Errno::FAULT) } else { Ok(()) }
}

fn decode_entry(entry: &KvmIrqRoutingEntry, devices: DeviceIds) -> Result<Route, Error> {
    let KvmIrqRoutingEntry { kind, flags, payload, .. } = *entry;
    let has_device = match (kind, devices) {
        (ROUTING_IRQCHIP, _) => {
            check_flags(flags, 0, "0 on a pin")?;
            return decode_pin(payload[0], payload[1]).map(Route::Pin);
        }
        (ROUTING_MSI, DeviceIds::Flag) => {
            check_flags(flags, MSI_VALID_DEVID, "bit 0 on a message")?;
            flags & MSI_VALID_DEVID != 0
        }
        (ROUTING_MSI, DeviceIds::ExtendedType) | (ROUTING_EXTENDED_MSI, DeviceIds::ExtendedType) => {
            check_flags(flags, 0, "0: the type says whether there is a DeviceID")?;
            kind == ROUTING_EXTENDED_MSI
        }
        (kind, _) => {
            let allowed = "1, a pin, or 2, a message";
            return Err(Error::Invalid { what: "route type", value: kind.into(), allowed });
        }
    };
    let address = u64::from(payload[1]) << 32 | u64::from(payload[0]);
    let message = MsiMessage::new(address, payload[2]);
    Ok(Route::Msi(if has_device { message.from_device(DeviceId(payload[3])) } else { message }))
}

fn check_flags(flags: u32, known: u32, allowed: &'static str) -> Result<(), Error> {
    if flags & !known == 0 {
        return Ok(());
    }
    Err(Error::Invalid { what: "route flags", value: flags.into(), allowed })
}

fn decode_pin(chip: u32, pin: u32) -> Result<Pin, Error> {
    match (u8::try_from(chip), u16::try_from(pin)) {
        (Ok(chip), Ok(pin)) => Ok(Pin { chip, pin }),
        _ => Err(Error::NoSuchPin { chip, pin, pins: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Option<Errno> {
        decode(nr, flags, entries, DeviceIds::Flag).err().map(|error| error.errno())
    }

    #[test]
    fn g1_a_header_is_refused_before_its_entries_are_looked_at() {
        let wrong = KvmIrqRoutingEntry { kind: 77, ..KvmIrqRoutingEntry::default() };
        assert_eq!(errno(4097, 0, &[wrong]), Some(Errno::INVAL));
        assert_eq!(errno(1, 1, &[KvmIrqRoutingEntry::pin(4, 2, 4)]), Some(Errno::INVAL));
        assert_eq!(errno(0, 0, &[wrong]), None, "G9");
        assert_eq!(errno(2, 0, &[KvmIrqRoutingEntry::pin(4, 2, 4)]), Some(Errno::INVAL));
    }

    #[test]
    fn g3_only_a_message_may_have_a_flag_and_only_bit_0() {
        let message =
            KvmIrqRoutingEntry { payload: [0xfee0_1000, 7, 0x41, 9, 0, 0, 0, 0], ..KvmIrqRoutingEntry::msi(24, 0, 0) };
        let flagged = |flags, entry| KvmIrqRoutingEntry { flags, ..entry };
        let decoded = |entry| decode(1, 0, &[entry], DeviceIds::Flag).unwrap()[0].route;
        assert_eq!(decoded(message), Route::Msi(MsiMessage::new(0x7_fee0_1000, 0x41)));
        let with_device = MsiMessage::new(0x7_fee0_1000, 0x41).from_device(DeviceId(9));
        assert_eq!(decoded(flagged(1, message)), Route::Msi(with_device), "G15");
        assert_eq!(errno(1, 0, &[flagged(2, message)]), Some(Errno::INVAL));
        assert_eq!(errno(1, 0, &[flagged(1, KvmIrqRoutingEntry::pin(4, 2, 4))]), Some(Errno::INVAL));
    }

    #[test]
    fn g6_a_type_or_a_chip_that_does_not_exist_is_refused() {
        for kind in [0, 3, 4, 5, 77] {
            let entry = KvmIrqRoutingEntry { kind, ..KvmIrqRoutingEntry::msi(24, 0, 0) };
            assert_eq!(errno(1, 0, &[entry]), Some(Errno::INVAL), "type {kind}");
        }
        assert_eq!(errno(1, 0, &[KvmIrqRoutingEntry::pin(4, 0x100, 0)]), Some(Errno::INVAL));
        assert_eq!(errno(1, 0, &[KvmIrqRoutingEntry::pin(4, 2, 0x1_0000)]), Some(Errno::INVAL));
    }

    #[test]
    fn s2_ext_the_type_says_whether_a_message_names_its_device() {
        let decoded = |entry| decode(1, 0, &[entry], DeviceIds::ExtendedType).map(|table| table[0].route);
        let plain =
            KvmIrqRoutingEntry { payload: [0x1000, 0, 0x41, 9, 0, 0, 0, 0], ..KvmIrqRoutingEntry::msi(24, 0, 0) };
        let extended = KvmIrqRoutingEntry { kind: ROUTING_EXTENDED_MSI, ..plain };
        assert_eq!(decoded(plain).unwrap(), Route::Msi(MsiMessage::new(0x1000, 0x41)));
        assert_eq!(decoded(extended).unwrap(), Route::Msi(MsiMessage::new(0x1000, 0x41).from_device(DeviceId(9))));
        let flagged = KvmIrqRoutingEntry { flags: MSI_VALID_DEVID, ..plain };
        assert_eq!(decoded(flagged).unwrap_err().errno(), Errno::INVAL);
    }
}
