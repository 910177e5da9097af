//! PCI functions: configuration space, base address registers, and the way of their messages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use doorbell::guest_ram::{GuestRamExt, RamBlock};
use doorbell::pci::VectorPool;
use doorbell::route::{NoPins, RoutePolicy, RouteTable};
use doorbell::{Delivery, Error, MsiMessage, MsiTarget, Target, VectorPath};

use super::edu::Edu;
use super::ivshmem::Ivshmem;
use super::options::{self, Model};

/// Offsets in the header (PCI Local Bus 3.0, section 6.1).
mod header {
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x0a;
    pub const BARS: usize = 0x10;
    pub const SUBSYSTEM: usize = 0x2c;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_PIN: usize = 0x3d;
}

/// Where the capability of a function is.
const CAPABILITY: usize = 0x40;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_MASTER: u8 = 1 << 2;
/// I/O, memory, bus master; SERR and INTx disable.
const COMMAND_WRITABLE: u16 = 0x0507;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CONFIG_BYTES: usize = 256;

/// Who a function says it is.
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub class: u16,
    pub revision: u8,
    /// Bytes of each memory BAR, a power of two, or 0.
    pub bars: [u32; 2],
    /// Bytes of its capability.
    pub capability: usize,
}

/// What is behind a function's registers.
pub trait Device: Send {
    /// Reads its capability.
    fn capability_read(&self, offset: usize, bytes: &mut [u8]);
    /// Writes it.
    fn capability_write(&mut self, offset: usize, bytes: &[u8]);
    /// Reads a BAR.
    fn load(&mut self, bar: usize, offset: u64, bytes: &mut [u8]);
    /// Writes one.
    fn store(&mut self, bar: usize, offset: u64, bytes: &[u8]);
    /// Something happened outside.
    fn event(&mut self, _vector: u16) {}
}

/// One function.
pub struct Function {
    config: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    identity: Identity,
    master: Arc<AtomicBool>,
    device: Box<dyn Device>,
}

impl Function {
    /// A function after reset.
    pub fn new(identity: Identity, master: Arc<AtomicBool>, device: Box<dyn Device>) -> Self {
        let (mut config, mut writable) = ([0; CONFIG_BYTES], [0; CONFIG_BYTES]);
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &identity.vendor.to_le_bytes());
        put(2, &identity.device.to_le_bytes());
        put(header::STATUS, &[STATUS_CAPABILITIES]);
        put(header::REVISION, &[identity.revision]);
        put(header::CLASS, &identity.class.to_le_bytes());
        put(header::SUBSYSTEM, &[0xf4, 0x1a, 0x00, 0x11]);
        put(header::CAPABILITIES, &[CAPABILITY as u8]);
        put(header::INTERRUPT_PIN, &[1]);
        writable[header::COMMAND..header::STATUS].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        for (bar, bytes) in identity.bars.iter().enumerate() {
            let at = header::BARS + 4 * bar;
            writable[at..at + 4].copy_from_slice(&bytes.wrapping_neg().to_le_bytes());
        }
        Self { config, writable, identity, master, device }
    }

    fn capability(&self) -> std::ops::Range<usize> {
        CAPABILITY..CAPABILITY + self.identity.capability
    }

    /// Reads configuration space.
    pub fn config_read(&self, offset: usize, bytes: &mut [u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            *byte = self.config.get(at).copied().unwrap_or(0xff);
            if self.capability().contains(&at) {
                self.device.capability_read(at - CAPABILITY, std::slice::from_mut(byte));
            }
        }
    }

    /// Writes configuration space. A write to the capability is one change.
    pub fn config_write(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            if let (Some(old), Some(writable)) = (self.config.get_mut(at), self.writable.get(at)) {
                *old = *old & !writable | byte & writable;
            }
        }
        let master = self.config[header::COMMAND] & COMMAND_MASTER != 0;
        // Relaxed: the machine is driven by one thread.
        self.master.store(master, Ordering::Relaxed);
        let Some(from) = offset.checked_sub(CAPABILITY) else { return };
        let within = self.identity.capability.saturating_sub(from).min(bytes.len());
        if within > 0 {
            self.device.capability_write(from, &bytes[..within]);
        }
    }

    fn bar(&self, bar: usize) -> u32 {
        let at = header::BARS + 4 * bar;
        self.config[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    /// The BAR that answers at `address`, and where in it.
    pub fn decode(&self, address: u64) -> Option<(usize, u64)> {
        if self.config[header::COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let bars = self.identity.bars.iter().enumerate();
        bars.filter(|(_, bytes)| **bytes != 0).find_map(|(bar, bytes)| {
            let base = self.bar(bar).into();
            let offset = address.checked_sub(base).filter(|offset| *offset < u64::from(*bytes))?;
            // A BAR at 0 is one that has not been given an address.
            (base != 0).then_some((bar, offset))
        })
    }

    /// Reads a BAR.
    pub fn load(&mut self, bar: usize, offset: u64, bytes: &mut [u8]) {
        self.device.load(bar, offset, bytes);
    }

    /// Writes a BAR.
    pub fn store(&mut self, bar: usize, offset: u64, bytes: &[u8]) {
        self.device.store(bar, offset, bytes);
    }

    /// Something happened outside.
    pub fn event(&mut self, vector: u16) {
        self.device.event(vector);
    }
}

/// The functions of bus 0.
pub struct Functions(BTreeMap<u8, Function>);

impl Functions {
    /// These devices, each with a bus of its own.
    ///
    /// # Errors
    /// One line, where one cannot be made.
    pub fn new(devices: &[options::Device], bus: impl Fn() -> DeviceBus) -> Result<Self, String> {
        let function = |device: &options::Device| {
            let function = match device.model {
                Model::Edu => Edu::function(device.devfn, bus()),
                Model::Ivshmem { vectors, .. } => Ivshmem::function(device.devfn, vectors, bus()),
            };
            function.map(|function| (device.devfn, function)).map_err(|error| error.to_string())
        };
        devices.iter().map(function).collect::<Result<_, _>>().map(Self)
    }

    /// Whose BAR answers at `address`, which one, and where in it.
    pub fn decode(&self, address: u64) -> Option<(u8, usize, u64)> {
        self.0.iter().find_map(|(devfn, function)| {
            let (bar, offset) = function.decode(address)?;
            Some((*devfn, bar, offset))
        })
    }

    /// The function at `devfn`.
    pub fn get_mut(&mut self, devfn: u8) -> Option<&mut Function> {
        self.0.get_mut(&devfn)
    }
}

/// What a function writes to: RAM, or what takes messages. Nothing while it is no bus master.
pub struct DeviceBus {
    ram: Arc<RamBlock>,
    msi: Arc<dyn MsiTarget>,
    is_message: fn(u64) -> bool,
    master: Arc<AtomicBool>,
}

impl DeviceBus {
    /// The bus as one function sees it. `is_message` says whether a store to an address is one.
    pub fn new(ram: Arc<RamBlock>, msi: Arc<dyn MsiTarget>, is_message: fn(u64) -> bool) -> Self {
        Self { ram, msi, is_message, master: Arc::default() }
    }

    /// Whether the function is a bus master, as its command register says.
    pub fn master(&self) -> Arc<AtomicBool> {
        self.master.clone()
    }

    /// The vectors of a function whose messages go this way.
    pub fn vectors(self) -> Arc<VectorPool> {
        let table: Arc<dyn VectorPath> =
            Arc::new(RouteTable::new(Arc::new(self), Arc::new(NoPins), RoutePolicy::S2_TABLE));
        VectorPool::new(table)
    }

    fn may(&self) -> bool {
        self.master.load(Ordering::Relaxed)
    }
}

impl MsiTarget for DeviceBus {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        if !self.may() {
            return Ok(Delivery::Ignored);
        }
        if (self.is_message)(message.address) {
            return self.msi.send(message);
        }
        let stored = self.ram.write_le(message.address, message.data);
        Ok(stored.map_or(Delivery::Ignored, |()| Delivery::Delivered(1)))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        if (self.is_message)(message.address) { self.msi.prepare(message) } else { None }
    }

    fn fire(&self, target: Target) -> Delivery {
        if self.may() { self.msi.fire(target) } else { Delivery::Ignored }
    }
}
