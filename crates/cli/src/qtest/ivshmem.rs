//! QEMU's `ivshmem-doorbell`, as far as its interrupts go: MSI-X vectors whose events come from outside.

use doorbell::pci::msix::RegisterPlace;
use doorbell::pci::{InjectorMask, InjectorOptions, MsixCapability, MsixTable, WhileDisabled};
use doorbell::{DeviceId, Error};

use super::pci::{Device, DeviceBus, Function, Identity};

/// Which BAR has the table and the pending bits.
const MSIX_BAR: usize = 1;
const CAPABILITY_BYTES: usize = 12;

/// The device.
pub struct Ivshmem {
    capability: MsixCapability,
    table: MsixTable<InjectorMask>,
    pba_at: u64,
}

impl Ivshmem {
    /// The function at `devfn`.
    ///
    /// # Errors
    /// Where its vectors cannot be made.
    pub fn function(devfn: u8, vectors: u16, bus: DeviceBus) -> Result<Function, Error> {
        let master = bus.master();
        // The device's choice (spec M11), as QEMU's.
        let options = InjectorOptions { while_disabled: WhileDisabled::Drop };
        let table = MsixTable::new(InjectorMask::new(&bus.vectors(), vectors, options)?)?;
        let table = table.from_device(DeviceId(devfn.into()));
        // The table in the lower half, the pending bits in the upper one.
        let half = table.table_bytes().next_power_of_two().max(0x800);
        let place = |offset: u64| RegisterPlace { bar: MSIX_BAR as u8, offset: offset as u32 };
        let capability = MsixCapability::new(vectors, 0, place(0), place(half))?;
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1110,
            class: 0x0500,
            revision: 1,
            bars: [0x100, 2 * half as u32],
            capability: CAPABILITY_BYTES,
        };
        let device = Self { capability, table, pba_at: half };
        Ok(Function::new(identity, master, Box::new(device)))
    }
}

impl Device for Ivshmem {
    fn capability_read(&self, offset: usize, bytes: &mut [u8]) {
        self.capability.read(&self.table, offset, bytes);
    }

    fn capability_write(&mut self, offset: usize, bytes: &[u8]) {
        self.capability.write(&mut self.table, offset, bytes);
    }

    fn load(&mut self, bar: usize, offset: u64, bytes: &mut [u8]) {
        match offset.checked_sub(self.pba_at) {
            _ if bar != MSIX_BAR => bytes.fill(0),
            Some(offset) if offset < self.table.pba_bytes() => self.table.read_pba(offset, bytes),
            None if offset < self.table.table_bytes() => self.table.read(offset, bytes),
            _ => bytes.fill(0),
        }
    }

    fn store(&mut self, bar: usize, offset: u64, bytes: &[u8]) {
        match offset.checked_sub(self.pba_at) {
            _ if bar != MSIX_BAR => {}
            Some(offset) => self.table.write_pba(offset, bytes),
            None => self.table.write(offset, bytes),
        }
    }

    fn event(&mut self, vector: u16) {
        if let Some(vector) = self.table.strategy().vector(vector) {
            vector.fire();
        }
    }
}
