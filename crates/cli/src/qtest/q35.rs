//! A q35 as far as interrupts go: doorbell's chips at the addresses where QEMU's machine has its own.
//!
//! The local APICs begin software-enabled, as firmware leaves them: a qtest client is no CPU and cannot reach their
//! registers, in QEMU neither, whose APICs take interrupts even while they are software-disabled.

use std::sync::Arc;

use doorbell::chips::x86::ioapic::{self, Effect, IoApic, IoApicOptions};
use doorbell::chips::x86::lapic::{ApicOptions, ApicSet, LocalApic, slot};
use doorbell::chips::x86::pic::{self, Pic, PicOptions};
use doorbell::guest_ram::RamBlock;
use doorbell::remap::amd::{AmdUnitOptions, AmdVi};
use doorbell::remap::vtd::{VtdOptions, VtdUnit};
use doorbell::{DeviceId, LineSource, MsiMessage, MsiTarget, PinInput, VcpuId};

use super::machine::{Area, Board, Inputs};
use super::options::{Iommu, Options};
use super::pci::{DeviceBus, Function, Functions};

mod monitor;

const IOAPIC: u64 = ioapic::DEFAULT_BASE;
const IOAPIC_BYTES: u64 = 0x1000;
/// The registers of a VT-d unit, and as whom the IOAPIC sends to it.
const VTD: u64 = 0xfed9_0000;
const VTD_BYTES: u64 = 0x1000;
const VTD_IOAPIC: DeviceId = DeviceId(0xff00);
/// The same of an AMD-Vi unit.
const AMD: u64 = 0xfed8_0000;
const AMD_BYTES: u64 = 0x4000;
const AMD_IOAPIC: DeviceId = DeviceId(0x00a0);
/// Where messages are written to, and where each CPU sees its local APIC.
const MESSAGES: u64 = 0xfee0_0000;
const MESSAGES_BYTES: u64 = 0x10_0000;
/// The local APIC's page of whoever accesses it; a qtest client is nobody.
const APIC_PAGE: u64 = 0x1000;
/// Configuration mechanism #1 (PCI Local Bus 3.0, section 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// A chip whose lines a client can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chip {
    /// The IOAPIC.
    IoApic,
    /// The first 8259.
    Master,
    /// The second.
    Slave,
}

impl Chip {
    /// By the end of its path: `/machine/q35/ioapic`, `i8259[0]`, `i8259[1]`. (QEMU's names for the last two count all
    /// devices of a machine.)
    pub fn of_path(path: &str) -> Option<Self> {
        match path.rsplit('/').next() {
            Some("ioapic") => Some(Self::IoApic),
            Some("i8259[0]") => Some(Self::Master),
            Some("i8259[1]") => Some(Self::Slave),
            _ => None,
        }
    }

    /// How many input pins it has.
    pub fn pins(self) -> u16 {
        match self {
            Self::IoApic => ioapic::PINS as u16,
            Self::Master | Self::Slave => pic::PINS,
        }
    }
}

/// The remapping unit of a machine.
enum Unit {
    None,
    Vtd(Arc<VtdUnit>),
    Amd(Arc<AmdVi>),
}

/// The board.
pub struct Q35 {
    ram_bytes: u64,
    apics: Arc<ApicSet>,
    /// The private halves, by vCPU.
    locals: Vec<LocalApic>,
    ioapic: IoApic,
    pic: Pic,
    unit: Unit,
    config_address: u32,
    functions: Functions,
}

/// What lies at an address.
enum Place {
    Ram(usize),
    IoApic(u64),
    Message(u64),
    Unit(u64),
    Bar(u8, usize, u64),
    Nothing,
}

impl Q35 {
    /// The board after power-on, with this memory.
    ///
    /// # Errors
    /// One line, where a device cannot be made.
    pub fn new(options: &Options, ram: &Arc<RamBlock>) -> Result<Self, String> {
        let extended_ids = matches!(options.iommu, Some(Iommu::Intel { extended: true, .. }));
        let apics = ApicSet::new(options.cpus, Arc::new(()), ApicOptions { extended_ids, ..ApicOptions::default() });
        let locals = (0..options.cpus).filter_map(|cpu| apics.local(VcpuId(cpu))).map(enabled).collect();
        // What devices and the IOAPIC send to, and as whom the IOAPIC does.
        let (unit, msi, device_id): (_, Arc<dyn MsiTarget>, _) = match options.iommu {
            None => (Unit::None, apics.clone(), None),
            Some(Iommu::Intel { extended, posted }) => {
                // One record, as QEMU's unit.
                let options = VtdOptions { extended_mode: extended, posted, fault_records: 1, ..VtdOptions::default() };
                let unit = Arc::new(VtdUnit::new(options, apics.clone(), ram.clone()));
                (Unit::Vtd(unit.clone()), unit, Some(VTD_IOAPIC))
            }
            Some(Iommu::Amd) => {
                let units = [AmdUnitOptions::default()];
                let unit = AmdVi::new(apics.clone(), ram.clone(), Arc::new(()), &units);
                let unit = unit.map_err(|error| error.to_string())?;
                (Unit::Amd(unit.clone()), unit, Some(AMD_IOAPIC))
            }
        };
        let ioapic = IoApic::new(msi.clone(), IoApicOptions { device_id, ..IoApicOptions::default() });
        let wire = apics.clone();
        let pic =
            Pic::new(move |level| wire.set_pic_output(VcpuId(0), level), PicOptions { strict: options.strict_pic });
        let functions = Functions::new(&options.devices, || DeviceBus::new(ram.clone(), msi.clone(), is_message))?;
        Ok(Self { ram_bytes: options.mib << 20, apics, locals, ioapic, pic, unit, config_address: 0, functions })
    }

    fn place(&self, address: u64) -> Place {
        if address < self.ram_bytes {
            return Place::Ram(usize::try_from(self.ram_bytes - address).unwrap_or(usize::MAX));
        }
        if let Some(offset) = address.checked_sub(IOAPIC).filter(|offset| *offset < IOAPIC_BYTES) {
            return Place::IoApic(offset);
        }
        let (unit, bytes) = match self.unit {
            Unit::None => (0, 0),
            Unit::Vtd(_) => (VTD, VTD_BYTES),
            Unit::Amd(_) => (AMD, AMD_BYTES),
        };
        if let Some(offset) = address.checked_sub(unit).filter(|offset| *offset < bytes) {
            return Place::Unit(offset);
        }
        if let Some(offset) = address.checked_sub(MESSAGES).filter(|offset| *offset < MESSAGES_BYTES) {
            return Place::Message(offset);
        }
        match self.functions.decode(address) {
            Some((devfn, bar, offset)) => Place::Bar(devfn, bar, offset),
            None => Place::Nothing,
        }
    }

    fn unit_load(&self, offset: u64, bytes: &mut [u8]) {
        match &self.unit {
            Unit::None => {}
            Unit::Vtd(unit) => {
                let value = unit.read(offset, bytes.len()).to_le_bytes();
                bytes.copy_from_slice(&value[..bytes.len()]);
            }
            Unit::Amd(unit) => unit.units().iter().for_each(|unit| unit.mmio_read(offset, bytes)),
        }
    }

    fn unit_store(&self, offset: u64, bytes: &[u8]) {
        match &self.unit {
            Unit::None => {}
            Unit::Vtd(unit) => {
                let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
                unit.write(offset, bytes.len(), value);
            }
            Unit::Amd(unit) => unit.units().iter().for_each(|unit| unit.mmio_write(offset, bytes)),
        }
    }

    /// A store by a CPU, which no remapping unit sees.
    fn message(&mut self, offset: u64, data: &[u8]) {
        let nobodys_register = (0x10..APIC_PAGE).contains(&offset);
        if let (Ok(data), false) = (<[u8; 4]>::try_from(data), nobodys_register) {
            // What the message became shows in the local APICs.
            let _ = self.apics.send(&MsiMessage::new(MESSAGES + offset, u32::from_le_bytes(data)));
        }
    }

    /// A wider access to the 8259 is one to each byte's port. False if no byte's port is one of it.
    fn pic_load(&mut self, port: u16, bytes: &mut [u8]) -> bool {
        let mut any = false;
        for (byte, port) in bytes.iter_mut().zip(port..=u16::MAX) {
            if pic::PORTS.contains(&port) {
                let ended = self.pic.read(port, std::slice::from_mut(byte));
                self.pic.settle(ended);
                any = true;
            }
        }
        any
    }

    fn pic_store(&mut self, port: u16, bytes: &[u8]) -> bool {
        let mut any = false;
        for (byte, port) in bytes.iter().zip(port..=u16::MAX) {
            if pic::PORTS.contains(&port) {
                let ended = self.pic.write(port, std::slice::from_ref(byte));
                self.pic.settle(ended);
                any = true;
            }
        }
        any
    }

    /// The function and the offset in its configuration space that a data port stands for.
    fn selected(&mut self, port: u16) -> Option<(&mut Function, usize)> {
        let byte = port.checked_sub(CONFIG_DATA).filter(|byte| *byte < 4)?;
        let [register, devfn, bus, enable] = self.config_address.to_le_bytes();
        let function = self.functions.get_mut(devfn).filter(|_| bus == 0 && enable & 0x80 != 0)?;
        Some((function, usize::from(register & 0xfc) + usize::from(byte)))
    }

    /// The IOAPIC, to be looked at.
    fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// The 8259 pair, to be looked at.
    fn pic(&self) -> &Pic {
        &self.pic
    }

    /// The local APIC of a vCPU, to be looked at.
    fn local(&self, cpu: u32) -> Option<&LocalApic> {
        self.locals.get(cpu as usize)
    }
}

impl Board for Q35 {
    fn area(&self, address: u64) -> Area {
        match self.place(address) {
            Place::Ram(until_end) => Area::Ram(until_end),
            Place::Nothing => Area::Nothing,
            _ => Area::Registers,
        }
    }

    fn load(&mut self, address: u64, bytes: &mut [u8]) {
        match self.place(address) {
            Place::IoApic(offset) => self.ioapic.mmio_read(offset, bytes),
            Place::Unit(offset) => self.unit_load(offset, bytes),
            Place::Bar(devfn, bar, offset) => {
                if let Some(function) = self.functions.get_mut(devfn) {
                    function.load(bar, offset, bytes);
                }
            }
            Place::Ram(_) | Place::Message(_) | Place::Nothing => {}
        }
    }

    fn store(&mut self, address: u64, bytes: &[u8]) {
        match self.place(address) {
            Place::IoApic(offset) => match self.ioapic.mmio_write(offset, bytes) {
                Effect::None => {}
                // There are no resamplers.
                Effect::Ended(pins) | Effect::Unmasked(pins) => self.ioapic.reevaluate(ioapic::CHIP, &pins),
            },
            Place::Unit(offset) => self.unit_store(offset, bytes),
            Place::Message(offset) => self.message(offset, bytes),
            Place::Bar(devfn, bar, offset) => {
                if let Some(function) = self.functions.get_mut(devfn) {
                    function.store(bar, offset, bytes);
                }
            }
            Place::Ram(_) | Place::Nothing => {}
        }
    }

    fn port_load(&mut self, port: u16, bytes: &mut [u8]) {
        bytes.fill(0xff);
        match port {
            CONFIG_ADDRESS if bytes.len() == 4 => bytes.copy_from_slice(&self.config_address.to_le_bytes()),
            _ if self.pic_load(port, bytes) => {}
            _ => {
                if let Some((function, offset)) = self.selected(port) {
                    function.config_read(offset, bytes);
                }
            }
        }
    }

    fn port_store(&mut self, port: u16, bytes: &[u8]) {
        match (port, <[u8; 4]>::try_from(bytes)) {
            (CONFIG_ADDRESS, Ok(address)) => self.config_address = u32::from_le_bytes(address),
            _ if self.pic_store(port, bytes) => {}
            _ => {
                if let Some((function, offset)) = self.selected(port) {
                    function.config_write(offset, bytes);
                }
            }
        }
    }

    fn inputs(&self, path: &str) -> Option<Inputs> {
        let chip = Chip::of_path(path)?;
        Some(Inputs { chip: chip as u8, pins: chip.pins() })
    }

    fn set_line(&mut self, chip: u8, pin: u16, level: bool) {
        match chip {
            chip if chip == Chip::IoApic as u8 => self.ioapic.set(ioapic::CHIP, pin, LineSource::USER, level),
            chip if chip == Chip::Master as u8 => self.pic.set(pic::CHIP, pin, LineSource::USER, level),
            _ => self.pic.set(pic::CHIP + 1, pin, LineSource::USER, level),
        };
    }

    fn event(&mut self, devfn: u8, vector: u16) {
        if let Some(function) = self.functions.get_mut(devfn) {
            function.event(vector);
        }
    }

    fn human(&self, command: &[&str]) -> Option<String> {
        monitor::human(self, command)
    }
}

/// Whether a device's store to this address is a message (Intel SDM volume 3, section 11.11.1).
fn is_message(address: u64) -> bool {
    address >> 20 == 0xfee
}

/// As firmware leaves it.
fn enabled(mut local: LocalApic) -> LocalApic {
    local.write(16 * slot::SVR as u64, 0x1ff);
    local
}
