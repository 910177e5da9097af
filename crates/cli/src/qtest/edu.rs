//! QEMU's `edu`, as far as its interrupt goes: one MSI vector, raised by a store to a register.

use doorbell::pci::{InjectorMask, InjectorOptions, MsiCapability, MsiOptions, MsixVector, WhileDisabled};
use doorbell::{DeviceId, Error};

use super::pci::{Device, DeviceBus, Function, Identity};

const IDENTIFICATION: u32 = 0x0100_00ed;
/// The registers of BAR 0.
mod register {
    pub const IDENTIFICATION: u64 = 0x00;
    pub const LIVENESS: u64 = 0x04;
    pub const INTERRUPT_STATUS: u64 = 0x24;
    pub const RAISE: u64 = 0x60;
    pub const ACKNOWLEDGE: u64 = 0x64;
}

/// The device.
pub struct Edu {
    msi: MsiCapability<InjectorMask>,
    vector: MsixVector,
    liveness: u32,
    status: u32,
}

impl Edu {
    /// The function at `devfn`.
    ///
    /// # Errors
    /// Where its vector cannot be made.
    pub fn function(devfn: u8, bus: DeviceBus) -> Result<Function, Error> {
        let master = bus.master();
        let options = InjectorOptions { while_disabled: WhileDisabled::Drop };
        let mask = InjectorMask::new(&bus.vectors(), 1, options)?;
        let vector = mask.vector(0).ok_or(Error::Invalid { what: "vector", value: 0, allowed: "one" })?;
        let msi = MsiCapability::new(mask, MsiOptions { address_64: true, ..MsiOptions::default() })?;
        let msi = msi.from_device(DeviceId(devfn.into()));
        let identity = Identity {
            vendor: 0x1234,
            device: 0x11e8,
            class: 0x00ff,
            revision: 0x10,
            bars: [1 << 20, 0],
            capability: msi.bytes(),
        };
        Ok(Function::new(identity, master, Box::new(Self { msi, vector, liveness: 0, status: 0 })))
    }
}

impl Device for Edu {
    fn capability_read(&self, offset: usize, bytes: &mut [u8]) {
        self.msi.read(offset, bytes);
    }

    fn capability_write(&mut self, offset: usize, bytes: &[u8]) {
        self.msi.write(offset, bytes);
    }

    fn load(&mut self, _: usize, offset: u64, bytes: &mut [u8]) {
        let value = match offset {
            register::IDENTIFICATION => IDENTIFICATION,
            register::LIVENESS => self.liveness,
            register::INTERRUPT_STATUS => self.status,
            _ => 0,
        };
        match <&mut [u8; 4]>::try_from(&mut *bytes) {
            Ok(bytes) => *bytes = value.to_le_bytes(),
            Err(_) => bytes.fill(0xff),
        }
    }

    fn store(&mut self, _: usize, offset: u64, bytes: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes) else { return };
        match offset {
            register::LIVENESS => self.liveness = !value,
            register::RAISE => {
                self.status |= value;
                if self.status != 0 {
                    self.vector.fire();
                }
            }
            register::ACKNOWLEDGE => self.status &= !value,
            _ => {}
        }
    }
}
