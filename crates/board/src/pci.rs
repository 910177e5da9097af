//! A PCI Express host bridge: configuration space by ECAM, and a window of memory in which the guest places the BARs.
//!
//! One bus, number 0, whose functions are root complex integrated endpoints. What the guest does with BARs is looked at by
//! each access anew: there is nothing to map or unmap.
//!
//! ```
//! use doorbell_board::pci::{Bar, Function, Header, Identity, PciHost, Slot};
//! use parking_lot::Mutex;
//! use std::sync::Arc;
//!
//! /// A function with 4 KiB of registers that all read as 7.
//! struct Seven(Mutex<Header>);
//! impl Function for Seven {
//!     fn header(&self) -> &Mutex<Header> { &self.0 }
//!     fn read(&self, _bar: u8, _offset: u64, _bytes: u8) -> u64 { 7 }
//!     fn write(&self, _bar: u8, _offset: u64, _bytes: u8, _value: u64) {}
//! }
//!
//! let identity = Identity { vendor: 0x1b36, device: 0x00ff, class: 0xff_0000, ..Identity::default() };
//! let host = PciHost::new();
//! let header = Header::new(identity).with_bar(0, Bar::memory32(0x1000)?)?;
//! host.plug(Slot::new(3, 0)?, Arc::new(Seven(Mutex::new(header))))?;
//! let ecam = |register: u64| 3 << 15 | register;
//! assert_eq!(host.ecam_read(ecam(0), 4), 0x00ff_1b36);
//! host.ecam_write(ecam(0x10), 4, 0x1000_0000); // BAR 0
//! host.ecam_write(ecam(0x04), 2, 2); // Command: memory space
//! assert_eq!(host.memory_read(0x1000_0008, 4), Some(7));
//! # Ok::<(), doorbell::Error>(())
//! ```

mod header;

use std::sync::Arc;

use doorbell::{DeviceId, Error};
use parking_lot::{Mutex, RwLock};

pub use header::{Bar, Header, Identity};

/// A function of a device.
pub trait Function: Send + Sync {
    /// Its configuration header. Locked for the time of an access to it, and while nothing else of the function is.
    fn header(&self) -> &Mutex<Header>;

    /// A load of `bytes` (1, 2, 4 or 8) from a BAR.
    fn read(&self, bar: u8, offset: u64, bytes: u8) -> u64;

    /// A store to a BAR.
    fn write(&self, bar: u8, offset: u64, bytes: u8, value: u64);

    /// A load from configuration space beyond what the header has, such as a capability of the function's own; `offset` is
    /// a multiple of 4.
    fn config_read(&self, _offset: u16) -> u32 {
        0
    }

    /// A store there, of `bytes` (1, 2 or 4) at any offset.
    fn config_write(&self, _offset: u16, _bytes: u8, _value: u32) {}
}

/// Where a function is on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u8);

impl Slot {
    /// Device 0 to 31, function 0 to 7.
    ///
    /// # Errors
    /// [`Error::Invalid`] if one of them is out of range.
    pub fn new(device: u8, function: u8) -> Result<Self, Error> {
        if device > 31 {
            return Err(Error::Invalid { what: "PCI device", value: device.into(), allowed: "0 to 31" });
        }
        if function > 7 {
            return Err(Error::Invalid { what: "PCI function", value: function.into(), allowed: "0 to 7" });
        }
        Ok(Self(device << 3 | function))
    }

    /// What its messages are sent by: its requester id.
    pub fn requester(self) -> DeviceId {
        DeviceId(self.0.into())
    }
}

/// The host bridge of bus 0. See the [module](self).
#[derive(Default)]
pub struct PciHost {
    /// Lock order: before the headers of the functions.
    functions: RwLock<Vec<(Slot, Arc<dyn Function>)>>,
}

impl PciHost {
    /// Bytes of ECAM for one bus.
    pub const ECAM_BYTES: u64 = 1 << 20;

    /// A bus without functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a function in.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is one.
    pub fn plug(&self, slot: Slot, function: Arc<dyn Function>) -> Result<(), Error> {
        let mut functions = self.functions.write();
        match functions.binary_search_by_key(&slot, |entry| entry.0) {
            Ok(_) => Err(Error::Busy("the PCI slot")),
            Err(at) => {
                functions.insert(at, (slot, function));
                Ok(())
            }
        }
    }

    fn function(&self, slot: Slot) -> Option<Arc<dyn Function>> {
        let functions = self.functions.read();
        let at = functions.binary_search_by_key(&slot, |entry| entry.0).ok()?;
        Some(Arc::clone(&functions[at].1))
    }

    /// The function and the register of an aligned access of 1, 2 or 4 bytes.
    fn select(&self, offset: u64, bytes: u8) -> Option<(Arc<dyn Function>, u16)> {
        let aligned = matches!(bytes, 1 | 2 | 4) && offset % u64::from(bytes) == 0;
        if !aligned || offset >= Self::ECAM_BYTES {
            return None;
        }
        Some((self.function(Slot((offset >> 12) as u8))?, offset as u16 & 0xfff))
    }

    /// A load from configuration space, section 7.2.2: bits 19:15 of the offset are the device, 14:12 the function. All
    /// ones where there is no function.
    pub fn ecam_read(&self, offset: u64, bytes: u8) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(bytes.clamp(1, 8)));
        let Some((function, register)) = self.select(offset, bytes) else { return ones };
        let word = register & !3;
        // Not in the condition of the `unwrap_or_else`: the header is free again when the function is asked.
        let own = function.header().lock().read(word);
        let value = own.unwrap_or_else(|| function.config_read(word));
        u64::from(value) >> (8 * u32::from(register & 3)) & ones
    }

    /// A store to configuration space.
    pub fn ecam_write(&self, offset: u64, bytes: u8, value: u64) {
        let Some((function, register)) = self.select(offset, bytes) else { return };
        let taken = function.header().lock().write(register, bytes, value as u32);
        if !taken {
            function.config_write(register, bytes, value as u32);
        }
    }

    /// The function whose BAR holds an address, and the place in it.
    fn decode(&self, address: u64, bytes: u8) -> Option<(Arc<dyn Function>, u8, u64)> {
        self.functions.read().iter().find_map(|(_, function)| {
            let (bar, offset) = function.header().lock().decode(address, bytes)?;
            Some((Arc::clone(function), bar, offset))
        })
    }

    /// A load from memory at a guest-physical address; `None` if no enabled BAR is there.
    pub fn memory_read(&self, address: u64, bytes: u8) -> Option<u64> {
        let (function, bar, offset) = self.decode(address, bytes)?;
        Some(function.read(bar, offset, bytes))
    }

    /// A store to memory at a guest-physical address; false if no enabled BAR is there.
    pub fn memory_write(&self, address: u64, bytes: u8, value: u64) -> bool {
        let Some((function, bar, offset)) = self.decode(address, bytes) else { return false };
        function.write(bar, offset, bytes, value);
        true
    }
}
