//! A q35 as far as interrupts go: doorbell's chips at the addresses where QEMU's machine has its own.
//!
//! The local APICs begin software-enabled, as firmware leaves them: a qtest client is no CPU and cannot reach their
//! registers, in QEMU neither, whose APICs take interrupts even while they are software-disabled.

use std::collections::BTreeMap;
use std::sync::Arc;

use doorbell::chips::x86::ioapic::{self, Effect, IoApic, IoApicOptions};
use doorbell::chips::x86::lapic::{ApicOptions, ApicSet, LocalApic, slot};
use doorbell::chips::x86::pic::{self, Pic, PicOptions};
use doorbell::clock::{Clock, VirtualClock};
use doorbell::guest_ram::{GuestRam, RamBlock};
use doorbell::remap::amd::{AmdUnitOptions, AmdVi};
use doorbell::remap::vtd::{VtdOptions, VtdUnit};
use doorbell::{DeviceId, LineSource, MsiMessage, MsiTarget, PinInput, VcpuId};

use super::edu::Edu;
use super::ivshmem::Ivshmem;
use super::options::{Iommu, Model, Options};
use super::pci::{DeviceBus, Function};

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
/// No window is smaller, and each lies at a multiple of its size.
const SMALLEST_WINDOW: u64 = 0x100;
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

/// The machine.
pub struct Machine {
    options: Options,
    clock: Arc<VirtualClock>,
    ram: Arc<RamBlock>,
    ram_bytes: u64,
    apics: Arc<ApicSet>,
    /// The private halves, by vCPU.
    locals: Vec<LocalApic>,
    ioapic: IoApic,
    pic: Pic,
    unit: Unit,
    config_address: u32,
    functions: BTreeMap<u8, Function>,
    /// The chip whose lines are watched: they are reported and reach it no more.
    watched: Option<Chip>,
    /// Their levels as last reported, a bit each.
    levels: u32,
    reports: Vec<(u16, bool)>,
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

impl Machine {
    /// A machine after power-on.
    ///
    /// # Errors
    /// One line, where a device cannot be made.
    pub fn new(options: Options) -> Result<Self, String> {
        let bytes = usize::try_from(options.mib << 20).map_err(|error| error.to_string())?;
        Self::build(options, Arc::new(RamBlock::new(0, bytes)), Arc::default())
    }

    fn build(options: Options, ram: Arc<RamBlock>, clock: Arc<VirtualClock>) -> Result<Self, String> {
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
        let mut functions = BTreeMap::new();
        for device in &options.devices {
            let bus = DeviceBus::new(ram.clone(), msi.clone());
            let function = match device.model {
                Model::Edu => Edu::function(device.devfn, bus),
                Model::Ivshmem { vectors, .. } => Ivshmem::function(device.devfn, vectors, bus),
            };
            functions.insert(device.devfn, function.map_err(|error| error.to_string())?);
        }
        Ok(Self {
            ram_bytes: options.mib << 20,
            options,
            clock,
            ram,
            apics,
            locals,
            ioapic,
            pic,
            unit,
            config_address: 0,
            functions,
            watched: None,
            levels: 0,
            reports: Vec::new(),
        })
    }

    /// The chips and devices as after power-on, and every line low. RAM, time and what is watched stay.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn reset(&mut self) -> Result<(), String> {
        let fresh = Self::build(self.options.clone(), self.ram.clone(), self.clock.clone())?;
        *self = Self { watched: self.watched, ..fresh };
        Ok(())
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
        for (devfn, function) in &self.functions {
            if let Some((bar, offset)) = function.decode(address) {
                return Place::Bar(*devfn, bar, offset);
            }
        }
        Place::Nothing
    }

    /// How many bytes one access at `address` moves, of `left`: RAM takes all, registers aligned words. Nobody's addresses
    /// are passed quickly, up to where a window may begin.
    fn piece(place: &Place, address: u64, left: usize) -> usize {
        match place {
            Place::Ram(until_end) => left.min(*until_end),
            Place::Nothing => left.min((SMALLEST_WINDOW - address % SMALLEST_WINDOW) as usize),
            _ => [8, 4, 2].into_iter().find(|size| *size <= left && address % *size as u64 == 0).unwrap_or(1),
        }
    }

    /// A load of any length. What nobody answers reads as 0, as with QEMU's client.
    pub fn load(&mut self, mut address: u64, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let place = self.place(address);
            let (now, rest) = bytes.split_at_mut(Self::piece(&place, address, bytes.len()));
            now.fill(0);
            match place {
                // The piece lies in it.
                Place::Ram(_) => drop(self.ram.read(address, now)),
                Place::IoApic(offset) => self.ioapic.mmio_read(offset, now),
                Place::Unit(offset) => self.unit_load(offset, now),
                Place::Bar(devfn, bar, offset) => {
                    if let Some(function) = self.functions.get_mut(&devfn) {
                        function.load(bar, offset, now);
                    }
                }
                Place::Message(_) | Place::Nothing => {}
            }
            address = address.wrapping_add(now.len() as u64);
            bytes = rest;
        }
    }

    /// A store of any length.
    pub fn store(&mut self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let place = self.place(address);
            let (now, rest) = bytes.split_at(Self::piece(&place, address, bytes.len()));
            match place {
                Place::Ram(_) => drop(self.ram.write(address, now)),
                Place::IoApic(offset) => match self.ioapic.mmio_write(offset, now) {
                    Effect::None => {}
                    // There are no resamplers.
                    Effect::Ended(pins) | Effect::Unmasked(pins) => self.ioapic.reevaluate(ioapic::CHIP, &pins),
                },
                Place::Unit(offset) => self.unit_store(offset, now),
                Place::Message(offset) => self.message(offset, now),
                Place::Bar(devfn, bar, offset) => {
                    if let Some(function) = self.functions.get_mut(&devfn) {
                        function.store(bar, offset, now);
                    }
                }
                Place::Nothing => {}
            }
            address = address.wrapping_add(now.len() as u64);
            bytes = rest;
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

    /// A load from ports. A port that nobody answers reads as ones.
    pub fn port_load(&mut self, port: u16, bytes: &mut [u8]) {
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

    /// A store to ports.
    pub fn port_store(&mut self, port: u16, bytes: &[u8]) {
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
        let function = self.functions.get_mut(&devfn).filter(|_| bus == 0 && enable & 0x80 != 0)?;
        Some((function, usize::from(register & 0xfc) + usize::from(byte)))
    }

    /// Drives a line.
    pub fn set_line(&mut self, chip: Chip, pin: u16, level: bool) {
        if self.watched == Some(chip) {
            if level != (self.levels >> pin & 1 == 1) {
                self.levels ^= 1 << pin;
                self.reports.push((pin, level));
            }
            return;
        }
        match chip {
            Chip::IoApic => self.ioapic.set(ioapic::CHIP, pin, LineSource::USER, level),
            Chip::Master => self.pic.set(pic::CHIP, pin, LineSource::USER, level),
            Chip::Slave => self.pic.set(pic::CHIP + 1, pin, LineSource::USER, level),
        };
    }

    /// From now on the lines of `chip` are reported and do not reach it. False if another chip's already are.
    pub fn watch(&mut self, chip: Chip) -> bool {
        let free = self.watched.is_none_or(|watched| watched == chip);
        if free {
            self.watched = Some(chip);
        }
        free
    }

    /// The changes of watched lines since the last call.
    pub fn take_watched(&mut self) -> Vec<(u16, bool)> {
        std::mem::take(&mut self.reports)
    }

    /// Moves time on by so many nanoseconds, or to the next thing that waits for it. Returns what time it is.
    pub fn step_clock(&mut self, ns: Option<u64>) -> u64 {
        // Nothing waits: a client cannot start the timer of a local APIC.
        self.set_clock(self.clock.now_ns().saturating_add(ns.unwrap_or(0)))
    }

    /// Moves time on to `ns`; it does not go back. Returns what time it is.
    pub fn set_clock(&mut self, ns: u64) -> u64 {
        self.clock.advance(ns.saturating_sub(self.clock.now_ns()));
        self.clock.now_ns()
    }

    /// An event of an ivshmem device, as its peers raise it.
    pub fn ivshmem_event(&mut self, devfn: u8, vector: u16) {
        if let Some(function) = self.functions.get_mut(&devfn) {
            function.event(vector);
        }
    }

    /// What the machine was made of.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The IOAPIC, to be looked at.
    pub fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// The 8259 pair, to be looked at.
    pub fn pic(&self) -> &Pic {
        &self.pic
    }

    /// The local APIC of a vCPU, to be looked at.
    pub fn local(&self, cpu: u32) -> Option<&LocalApic> {
        self.locals.get(cpu as usize)
    }
}

/// As firmware leaves it.
fn enabled(mut local: LocalApic) -> LocalApic {
    local.write(16 * slot::SVR as u64, 0x1ff);
    local
}
