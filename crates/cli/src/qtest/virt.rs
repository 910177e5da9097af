//! A virt as far as interrupts go: doorbell's GICv3 and ITS at the addresses where QEMU's machine has its own.
//!
//! There is no AArch64 CPU. A CPU interface is reached in one of two ways: from this process, or, as the
//! program that the reference drivers load for CPU 0 serves it, through a mailbox.

use std::sync::Arc;

use doorbell::chips::arm::its::{Its, ItsOptions};
use doorbell::chips::arm::{CpuInterface, Gic, GicOptions, Identity};
use doorbell::guest_ram::{GuestRam, RamBlock};
use doorbell::{Delivery, DeviceId, Error, LineSource, MsiMessage, MsiTarget, PinInput, Target, VcpuId};

use super::machine::{Area, Board, Inputs};
use super::options::{Kind, Options};
use super::pci::{DeviceBus, Functions};

mod mailbox;
#[cfg(test)]
mod tests;

use mailbox::Mailbox;

/// Where RAM begins.
pub const RAM: u64 = 0x4000_0000;
/// How many redistributors the first region has room for.
pub const MOST_CPUS: u32 = 123;
/// The distributor, the ITS and the redistributors.
pub const GICD: u64 = 0x0800_0000;
pub const GITS: u64 = 0x0808_0000;
pub const GICR: u64 = 0x080a_0000;
const GICD_BYTES: u64 = 0x1_0000;
const GITS_BYTES: u64 = 0x2_0000;
/// Bytes of each redistributor.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// Where messages of the ITS are stored to.
pub const TRANSLATER: u64 = GITS + 0x1_0040;
/// Configuration space of bus 0: 4 KiB a function.
pub const ECAM: u64 = 0x40_1000_0000;
const ECAM_BYTES: u64 = 256 << 12;
/// INTIDs of QEMU's machine.
pub const INTIDS: u16 = 256;
const FIRST_SPI: u16 = 32;
/// PPIs and SGIs of one CPU, as the distributor's inputs count them.
const PRIVATE: u16 = 32;
/// Of GICR_CTLR.
const ENABLE_LPIS: u64 = 1;
const FIRST_LPI: u64 = 8192;
const GICR_PENDBASER: u64 = 0x78;
/// Of GICR_PENDBASER: the address.
const PENDING_TABLE: u64 = 0x000f_ffff_ffff_0000;
/// Bytes of a pending table of 16 bits of INTID.
const PENDING_BYTES: u64 = 0x2000;

/// The board.
pub struct Virt {
    ram: Arc<RamBlock>,
    ram_bytes: u64,
    gic: Arc<Gic>,
    its: Option<Arc<Its>>,
    cpus: Vec<CpuInterface>,
    functions: Functions,
    mailbox: Option<Mailbox>,
}

/// What lies at an address.
enum Place {
    Ram(usize),
    Distributor(u64),
    Its(u64),
    Redistributor(VcpuId, u64),
    Config(u8, usize),
    Bar(u8, usize, u64),
    Nothing,
}

/// What the messages of PCI functions reach.
struct Doorbell(Option<Arc<Its>>);

impl MsiTarget for Doorbell {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        match (&self.0, message.device_id) {
            (Some(its), Some(device)) => its.send(device, message.data),
            _ => Ok(Delivery::Ignored),
        }
    }

    /// A guest's commands are looked at for each message.
    fn prepare(&self, _: &MsiMessage) -> Option<Target> {
        None
    }

    fn fire(&self, _: Target) -> Delivery {
        Delivery::Ignored
    }
}

fn is_message(address: u64) -> bool {
    address == TRANSLATER
}

impl Virt {
    /// The board after power-on, with this memory.
    ///
    /// # Errors
    /// One line, where a device cannot be made.
    pub fn new(options: &Options, ram: &Arc<RamBlock>) -> Result<Self, String> {
        let named = |error: Error| error.to_string();
        let mut gic_options = GicOptions::new(options.cpus);
        gic_options.intids = INTIDS;
        gic_options.identity = Identity::Qemu;
        let gic = Gic::new(gic_options, ram.clone(), Arc::new(())).map_err(named)?;
        let its = (options.kind == Kind::Virt { its: true }).then(|| Its::new(gic.clone(), ItsOptions::default()));
        let cpus = (0..options.cpus).filter_map(|cpu| gic.cpu_interface(VcpuId(cpu))).collect();
        let target: Arc<dyn MsiTarget> = Arc::new(Doorbell(its.clone()));
        let functions = Functions::new(&options.devices, || DeviceBus::new(ram.clone(), target.clone(), is_message))?;
        let mailbox = options.loader.then(|| Mailbox::new(ram.clone()));
        Ok(Self { ram: ram.clone(), ram_bytes: options.mib << 20, gic, its, cpus, functions, mailbox })
    }

    fn place(&self, address: u64) -> Place {
        let within = |base: u64, bytes: u64| address.checked_sub(base).filter(|offset| *offset < bytes);
        if let Some(offset) = within(RAM, self.ram_bytes) {
            return Place::Ram(usize::try_from(self.ram_bytes - offset).unwrap_or(usize::MAX));
        }
        if let Some(offset) = within(GICD, GICD_BYTES) {
            return Place::Distributor(offset);
        }
        if let Some(offset) = within(GITS, GITS_BYTES).filter(|_| self.its.is_some()) {
            return Place::Its(offset);
        }
        if let Some(offset) = within(GICR, GICR_STRIDE * self.cpus.len() as u64) {
            return Place::Redistributor(VcpuId((offset / GICR_STRIDE) as u32), offset % GICR_STRIDE);
        }
        if let Some(offset) = within(ECAM, ECAM_BYTES) {
            return Place::Config((offset >> 12) as u8, (offset & 0xfff) as usize);
        }
        match self.functions.decode(address) {
            Some((devfn, bar, offset)) => Place::Bar(devfn, bar, offset),
            None => Place::Nothing,
        }
    }

    /// The pending tables of the redistributors whose LPIs are on.
    fn pending_tables(&self) -> impl Iterator<Item = u64> {
        let frames = (0..self.gic.vcpus()).filter_map(|cpu| self.gic.redistributor(VcpuId(cpu)));
        frames
            .filter(|frame| frame.read(0, 4) & ENABLE_LPIS != 0)
            .map(|frame| frame.read(GICR_PENDBASER, 8) & PENDING_TABLE)
    }
}

impl Board for Virt {
    fn area(&self, address: u64) -> Area {
        match self.place(address) {
            Place::Ram(until_end) => Area::Ram(until_end),
            Place::Nothing => Area::Nothing,
            _ => Area::Registers,
        }
    }

    fn load(&mut self, address: u64, bytes: &mut [u8]) {
        let size = bytes.len() as u8;
        let value = match self.place(address) {
            Place::Distributor(offset) => self.gic.distributor().read(offset, size),
            Place::Redistributor(vcpu, offset) => {
                self.gic.redistributor(vcpu).map_or(0, |redistributor| redistributor.read(offset, size))
            }
            Place::Its(offset) => self.its.as_ref().map_or(0, |its| its.read(offset, size)),
            Place::Config(devfn, offset) => {
                match self.functions.get_mut(devfn) {
                    Some(function) => function.config_read(offset, bytes),
                    None => bytes.fill(0xff),
                }
                return;
            }
            Place::Bar(devfn, bar, offset) => {
                if let Some(function) = self.functions.get_mut(devfn) {
                    function.load(bar, offset, bytes);
                }
                return;
            }
            Place::Ram(_) | Place::Nothing => 0,
        };
        bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
    }

    fn store(&mut self, address: u64, bytes: &[u8]) {
        let size = bytes.len() as u8;
        let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        match self.place(address) {
            Place::Distributor(offset) => self.gic.distributor().write(offset, size, value),
            Place::Redistributor(vcpu, offset) => {
                if let Some(redistributor) = self.gic.redistributor(vcpu) {
                    redistributor.write(offset, size, value);
                }
            }
            // A store by a CPU, or by the client: DeviceID 0, as in QEMU.
            Place::Its(_) if address == TRANSLATER => {
                if let Some(its) = self.its.as_ref().filter(|_| matches!(size, 2 | 4)) {
                    // What the message became shows in the redistributors.
                    let _ = its.send(DeviceId(0), value as u32);
                }
            }
            Place::Its(offset) => {
                if let Some(its) = &self.its {
                    its.write(offset, size, value);
                }
            }
            Place::Config(devfn, offset) => {
                if let Some(function) = self.functions.get_mut(devfn) {
                    function.config_write(offset, bytes);
                }
            }
            Place::Bar(devfn, bar, offset) => {
                if let Some(function) = self.functions.get_mut(devfn) {
                    function.store(bar, offset, bytes);
                }
            }
            Place::Ram(_) | Place::Nothing => {}
        }
    }

    /// A client that looks at a pending table sees it as it is, because QEMU keeps it so. doorbell writes the bits of LPIs
    /// when it is told to, each in the table of the redistributor where it is.
    fn before_ram_load(&mut self, address: u64, length: usize) {
        let reaches = |table: u64| address < table + PENDING_BYTES && table < address.saturating_add(length as u64);
        if self.pending_tables().any(reaches) {
            for table in self.pending_tables() {
                // A table that is nowhere cannot be looked at.
                let _ = self.ram.write(table + FIRST_LPI / 8, &[0; (PENDING_BYTES - FIRST_LPI / 8) as usize]);
            }
            let _ = self.gic.save_pending_tables();
        }
    }

    fn after_ram_store(&mut self, address: u64, length: usize) {
        if let (Some(mailbox), Some(cpu)) = (&mut self.mailbox, self.cpus.first_mut()) {
            mailbox.stored(address, length, cpu);
        }
    }

    /// The distributor's inputs are SPIs from 0 on, and then the 32 private ones of each CPU.
    fn inputs(&self, path: &str) -> Option<Inputs> {
        let name = path.rsplit('/').next()?;
        (name == "gic").then(|| Inputs { chip: 0, pins: INTIDS - FIRST_SPI + PRIVATE * self.cpus.len() as u16 })
    }

    fn set_line(&mut self, _: u8, pin: u16, level: bool) {
        // What a level became shows in the registers.
        let _ = match pin.checked_sub(INTIDS - FIRST_SPI) {
            None => self.gic.set(0, pin, LineSource::USER, level),
            Some(private) => self.gic.set_ppi(VcpuId((private / PRIVATE).into()), (private % PRIVATE) as u8, level),
        };
    }

    fn event(&mut self, devfn: u8, vector: u16) {
        if let Some(function) = self.functions.get_mut(devfn) {
            function.event(vector);
        }
    }

    fn human(&self, _: &[&str]) -> Option<String> {
        None
    }

    fn run(&mut self, running: bool) {
        if let (Some(mailbox), Some(cpu)) = (&mut self.mailbox, self.cpus.first_mut()) {
            mailbox.run(running, cpu);
        }
    }

    fn cpu(&mut self, cpu: u32) -> Option<&mut CpuInterface> {
        self.cpus.get_mut(cpu as usize)
    }
}
