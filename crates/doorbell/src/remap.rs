//! Interrupt remapping: a station that may replace each message, or block it, between its device and the controller.
//!
//! A remapper is an [`MsiTarget`](crate::MsiTarget) around another: whoever sends to local APICs can send to it instead. It
//! knows the sender by [`MsiMessage::device_id`](crate::MsiMessage::device_id), looks its message up in tables that the guest keeps in its own memory
//! ([`GuestRam`]), and sends what it finds there. The guest then re-targets an interrupt by one store to a table, and no
//! device can send what the guest has not given it.
//!
//! Both schemes of x86 remember what they found in one [`RemapCache`], whose promise is that of every configuration here:
//! once an invalidation has completed, no message is delivered by an old entry; before it, a message meets the old or
//! the new entry, never neither and never a mixture.
#![forbid(unsafe_code)]

pub mod amd;
pub mod cache;
mod scopes;
pub mod vtd;

pub use cache::{RemapCache, Remapper, Way};
pub use scopes::Scopes;

use crate::guest_ram::{GuestRam, GuestRamExt, NoMemory};

/// How often a table entry that changes while it is read is read again. A guest that changes it all the time gets what it
/// deserves.
const ATTEMPTS: usize = 8;

/// Reads a table entry of 128 bits, low half first, which the guest changes by one store of 128 bits (spec T10): the two
/// halves belong together unless the guest stores faster than they can be read.
///
/// # Errors
/// If there is no memory at `address`.
pub fn read_128(ram: &dyn GuestRam, address: u64) -> Result<[u64; 2], NoMemory> {
    let high = address.wrapping_add(8);
    let mut above: u64 = ram.read_le(high)?;
    for _ in 1..ATTEMPTS {
        let low = ram.read_le(address)?;
        let again = ram.read_le(high)?;
        if again == above {
            return Ok([low, above]);
        }
        above = again;
    }
    Ok([ram.read_le(address)?, above])
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// An entry that changes as a whole before each of the first loads.
    struct Restless {
        loads: AtomicU64,
        changes: u64,
    }

    impl GuestRam for Restless {
        fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NoMemory> {
            let change = self.loads.fetch_add(1, Ordering::Relaxed).min(self.changes);
            bytes.copy_from_slice(&(change << 8 | address).to_le_bytes());
            Ok(())
        }
        fn write(&self, address: u64, _: &[u8]) -> Result<(), NoMemory> {
            Err(NoMemory { address, length: 8 })
        }
    }

    #[test]
    fn the_halves_of_an_entry_belong_together() {
        for changes in 0..13 {
            let ram = Restless { loads: AtomicU64::new(0), changes };
            let entry = read_128(&ram, 0).unwrap();
            assert_eq!(entry, [changes << 8, changes << 8 | 8], "the last one, after {changes} changes");
        }
        let ram = Restless { loads: AtomicU64::new(0), changes: 0 };
        read_128(&ram, 0).unwrap();
        assert_eq!(ram.loads.into_inner(), 3, "high, low, and high once more");
        let ram = Restless { loads: AtomicU64::new(0), changes: u64::MAX };
        read_128(&ram, 0).unwrap();
        assert_eq!(ram.loads.into_inner(), 16, "and no more");
    }
}
