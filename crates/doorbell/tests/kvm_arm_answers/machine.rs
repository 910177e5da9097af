//! The machine that the questions are about: its memory map, registers, commands, and the program of its guest.

use doorbell::kvm_abi::arm::types::group;
use doorbell::kvm_abi::arm::{ArmGuestCalls, Device, KvmDeviceAttr, SystemRegister};
use doorbell::kvm_abi::{Answer, Errno, KvmMsi};

pub const GICD_BASE: u64 = 0x0800_0000;
pub const ITS_BASE: u64 = 0x0808_0000;
pub const DOORBELL: u64 = ITS_BASE + 0x1_0040;
pub const GICR_BASE: u64 = 0x080a_0000;
pub const RAM_BASE: u64 = 0x4000_0000;
pub const RAM_SIZE: usize = 4 << 20;
pub const COMMAND_QUEUE: u64 = RAM_BASE + 0x1_0000;
pub const DEVICE_TABLE: u64 = RAM_BASE + 0x2_0000;
pub const COLLECTION_TABLE: u64 = RAM_BASE + 0x3_0000;
pub const ITT: u64 = RAM_BASE + 0x4_0000;
pub const CONFIG_TABLE: u64 = RAM_BASE + 0x5_0000;
pub const PENDING_TABLES: [u64; 2] = [RAM_BASE + 0x6_0000, RAM_BASE + 0x7_0000];
pub const TABLE_SIZE: usize = 0x1_0000;

pub mod gicd {
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x4;
    pub const IIDR: u64 = 0x8;
    pub const TYPER2: u64 = 0xc;
    pub const IGROUPR: u64 = 0x80;
    pub const ISENABLER: u64 = 0x100;
    pub const ISPENDR: u64 = 0x200;
    pub const IPRIORITYR: u64 = 0x400;
    pub const ICFGR: u64 = 0xc00;
    pub const PIDR2: u64 = 0xffe8;
}

pub mod gicr {
    pub const CTLR: u64 = 0x0;
    pub const IIDR: u64 = 0x4;
    pub const TYPER: u64 = 0x8;
    pub const WAKER: u64 = 0x14;
    pub const PROPBASER: u64 = 0x70;
    pub const PENDBASER: u64 = 0x78;
    pub const SGI_FRAME: u64 = 0x1_0000;
}

pub mod gits {
    pub const CTLR: u64 = 0x0;
    pub const IIDR: u64 = 0x4;
    pub const TYPER: u64 = 0x8;
    pub const CBASER: u64 = 0x80;
    pub const CWRITER: u64 = 0x88;
    pub const CREADR: u64 = 0x90;
    pub const BASER0: u64 = 0x100;
    pub const BASER1: u64 = 0x108;
    pub const BASER2: u64 = 0x110;
}

pub const VALID: u64 = 1 << 63;
pub const BASER_DEVICES: u64 = 1 << 56;
pub const BASER_COLLECTIONS: u64 = 4 << 56;
pub const PAGE_SIZE_64K: u64 = 2 << 8;
/// Priority 0xa0, enabled.
pub const CONFIG_ENABLED: u8 = 0xa1;

pub mod command {
    pub const MOVI: u64 = 0x01;
    pub const INT: u64 = 0x03;
    pub const CLEAR: u64 = 0x04;
    pub const SYNC: u64 = 0x05;
    pub const MAPD: u64 = 0x08;
    pub const MAPC: u64 = 0x09;
    pub const MAPTI: u64 = 0x0a;
    pub const INV: u64 = 0x0c;
    pub const MOVALL: u64 = 0x0e;
    pub const DISCARD: u64 = 0x0f;
}

/// A VM with the devices of this machine.
pub struct Machine<'a, V> {
    pub vm: &'a V,
    pub gic: Device,
    pub its: Device,
    /// How many commands were written so far.
    queued: u64,
}

impl<'a, V: ArmGuestCalls> Machine<'a, V> {
    pub fn new(vm: &'a V) -> Self {
        Self { vm, gic: Device(u32::MAX), its: Device(u32::MAX), queued: 0 }
    }

    pub fn set(&self, device: Device, group: u32, attr: u64, value: u64) -> Answer {
        self.vm.set_device_attr(device, KvmDeviceAttr { group, attr }, value)
    }

    pub fn get(&self, device: Device, group: u32, attr: u64) -> Result<u64, Errno> {
        let mut value = 0;
        self.vm.get_device_attr(device, KvmDeviceAttr { group, attr }, &mut value)?;
        Ok(value)
    }

    pub fn gicd_write(&self, offset: u64, value: u32) -> Answer {
        self.set(self.gic, group::DIST_REGS, offset, value.into())
    }

    pub fn gicr_write(&self, cpu: u64, offset: u64, value: u32) -> Answer {
        self.set(self.gic, group::REDIST_REGS, cpu << 32 | offset, value.into())
    }

    pub fn gits_write(&self, offset: u64, value: u64) -> Answer {
        self.set(self.its, group::ITS_REGS, offset, value)
    }

    pub fn gicd_read(&self, offset: u64) -> u64 {
        self.get(self.gic, group::DIST_REGS, offset).unwrap_or(0xdead_beef)
    }

    pub fn gicr_read(&self, cpu: u64, offset: u64) -> u64 {
        self.get(self.gic, group::REDIST_REGS, cpu << 32 | offset).unwrap_or(0xdead_beef)
    }

    pub fn gicr_read64(&self, cpu: u64, offset: u64) -> u64 {
        self.gicr_read(cpu, offset + 4) << 32 | self.gicr_read(cpu, offset)
    }

    pub fn gits_read(&self, offset: u64) -> u64 {
        self.get(self.its, group::ITS_REGS, offset).unwrap_or(u64::MAX)
    }

    pub fn write_ram(&self, address: u64, bytes: &[u8]) {
        self.vm.write_ram(address, bytes).expect("this is memory");
    }

    pub fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.vm.read_ram(address, &mut bytes).expect("this is memory");
        u64::from_le_bytes(bytes)
    }

    /// Tables of one redistributor; LPIs are not switched on yet.
    pub fn gicr_set_tables(&self, cpu: u64) {
        let pending = PENDING_TABLES[cpu as usize];
        let writes = [(gicr::PROPBASER, CONFIG_TABLE | 15), (gicr::PENDBASER, pending)];
        for (register, value) in writes {
            self.gicr_write(cpu, register, value as u32).expect("a register");
            self.gicr_write(cpu, register + 4, 0).expect("a register");
        }
    }

    fn command(&mut self, words: [u64; 4]) {
        for (at, word) in words.into_iter().enumerate() {
            self.write_ram(COMMAND_QUEUE + 32 * self.queued + 8 * at as u64, &word.to_le_bytes());
        }
        self.queued += 1;
    }

    pub fn other(&mut self, opcode: u64, words: [u64; 3]) {
        self.command([opcode, words[0], words[1], words[2]]);
    }

    pub fn mapd(&mut self, device: u64, event_bits: u64, valid: u64) {
        self.command([command::MAPD | device << 32, event_bits - 1, valid | ITT, 0]);
    }

    pub fn mapc(&mut self, collection: u64, cpu: u64, valid: u64) {
        self.command([command::MAPC, 0, valid | cpu << 16 | collection, 0]);
    }

    pub fn mapti(&mut self, device: u64, event: u64, lpi: u64, collection: u64) {
        self.command([command::MAPTI | device << 32, event | lpi << 32, collection, 0]);
    }

    /// INT, CLEAR, INV, DISCARD and, to collection 0, MOVI.
    pub fn event_command(&mut self, opcode: u64, device: u64, event: u64) {
        self.command([opcode | device << 32, event, 0, 0]);
    }

    /// Makes the ITS process everything queued.
    pub fn process(&self) -> Answer {
        self.gits_write(gits::CWRITER, 32 * self.queued)
    }

    pub fn signal_msi(&self, device: u32, event: u32, flags: u32, address: u64) -> Answer {
        let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
        self.vm.signal_msi(&KvmMsi { address_lo, address_hi, data: event, flags, devid: device, pad: [0; 12] })
    }

    pub fn doorbell(&self, device: u32, event: u32) -> Answer {
        self.signal_msi(device, event, 1, DOORBELL)
    }
}

/// A guest that acknowledges for ever and reports each INTID before it ends it.
pub struct Guest {
    vcpu: u32,
    reported: Option<u64>,
}

impl Guest {
    pub fn new(vcpu: u32) -> Self {
        Self { vcpu, reported: None }
    }

    /// Runs up to the next report.
    pub fn run(&mut self, vm: &impl ArmGuestCalls) -> Result<u64, Errno> {
        use SystemRegister as Register;
        let write = |register, value| vm.write_register(self.vcpu, register, value);
        match self.reported {
            None => {
                let sre = vm.read_register(self.vcpu, Register::ICC_SRE_EL1)?;
                write(Register::ICC_SRE_EL1, sre | 1)?;
                write(Register::ICC_PMR_EL1, 0xff)?;
                write(Register::ICC_IGRPEN1_EL1, 1)?;
            }
            Some(intid) => write(Register::ICC_EOIR1_EL1, intid)?,
        }
        let intid = vm.read_register(self.vcpu, Register::ICC_IAR1_EL1)?;
        self.reported = Some(intid);
        Ok(intid)
    }
}
