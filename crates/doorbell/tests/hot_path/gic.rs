//! The ways on which a GIC's interrupts become pending, and are taken and ended.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use doorbell::{
    DeviceId, LineSource, PinInput, VcpuId,
    chips::arm::{
        CpuInterface, Gic, GicOptions, Group, IccRegister,
        its::{Its, ItsOptions, registers::offset},
    },
    guest_ram::{GuestRamExt, RamBlock},
};

/// A name for the failure message, and what to do.
pub type Operation = (&'static str, Box<dyn FnMut()>);

const RAM: u64 = 0x4000_0000;
const SPI: u32 = 40;
const PIN: u16 = 8;
const PPI: u8 = 20;
const LPI: u32 = 8192;
const DEVICE: DeviceId = DeviceId(8);
const VALID: u64 = 1 << 63;

/// One vCPU, which never sleeps unless an operation says so.
struct Machine {
    gic: Arc<Gic>,
    its: Arc<Its>,
    cpu: CpuInterface,
    kicks: Arc<AtomicU64>,
}

/// As a guest sets it up: SPI 40, PPI 20 and SGI 3 in Group 1 and enabled, event 3 of device 8 as LPI 8192.
fn machine(edge: bool) -> Machine {
    let kicks = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&kicks);
    let kick = move |_: VcpuId| {
        told.fetch_add(1, Ordering::Relaxed);
    };
    let ram = Arc::new(RamBlock::new(RAM, 0x10_0000));
    let gic = Gic::new(GicOptions::new(1), ram.clone(), Arc::new(kick)).unwrap();
    let its = Its::new(Arc::clone(&gic), ItsOptions::default());

    let gicd = gic.distributor();
    let bit = 1 << (SPI % 32);
    gicd.write(0x0000, 4, 0x12);
    gicd.write(0x0084, 4, bit);
    gicd.write(0x0104, 4, bit);
    gicd.write(0x0400 + u64::from(SPI), 1, 0xa0);
    gicd.write(0x0c08, 4, if edge { 2 << (2 * (SPI % 16)) } else { 0 });
    let gicr = gic.redistributor(VcpuId(0)).unwrap();
    gicr.write(0x0014, 4, 0);
    gicr.write(0x1_0080, 4, 0xffff_ffff);
    gicr.write(0x1_0100, 4, 1 << PPI | 1 << 3);
    gicr.write(0x0070, 8, (RAM + 0x1_0000) | 15);
    gicr.write(0x0078, 8, RAM + 0x2_0000);
    ram.write_le(RAM + 0x1_0000, 0xa1_u8).unwrap();
    gicr.write(0x0000, 4, 1);

    its.write(offset::BASER0, 8, VALID | (RAM + 0x4_0000));
    its.write(offset::BASER1, 8, VALID | (RAM + 0x5_0000));
    its.write(offset::CBASER, 8, VALID | (RAM + 0x6_0000));
    its.write(offset::CTLR, 4, 1);
    // MAPC, MAPD, MAPTI.
    let commands = [
        [0x09, 0, VALID, 0],
        [0x08 | 8 << 32, 4, VALID | (RAM + 0x7_0000), 0],
        [0x0a | 8 << 32, 3 | u64::from(LPI) << 32, 0, 0],
    ];
    for (at, word) in commands.into_iter().flatten().enumerate() {
        ram.write_le(RAM + 0x6_0000 + 8 * at as u64, word).unwrap();
    }
    its.write(offset::CWRITER, 8, 0x60);

    let mut cpu = gic.cpu_interface(VcpuId(0)).unwrap();
    for (register, value) in [(IccRegister::Pmr, 0xff), (IccRegister::Igrpen1, 1)] {
        assert_eq!(cpu.write(register, value), None);
    }
    Machine { gic, its, cpu, kicks }
}

fn take(cpu: &mut CpuInterface, intid: u32) {
    assert_eq!(cpu.acknowledge(Group::One), intid);
    cpu.end(Group::One, intid);
}

/// All of them, each on a machine of its own.
pub fn operations() -> Vec<Operation> {
    vec![
        ("an edge of an SPI, taken", edge()),
        ("a level SPI, to its end", level()),
        ("a PPI, to its end", ppi()),
        ("an SGI, taken", sgi()),
        ("a message to an SPI, taken", message()),
        ("an SPI that any vCPU may take", any()),
        ("an SPI that wakes a sleeping vCPU", kicking()),
        ("an event, taken", event()),
        ("a prepared event, taken", prepared()),
        ("an event that is merged", merged()),
    ]
}

fn edge() -> Box<dyn FnMut()> {
    let Machine { gic, mut cpu, .. } = machine(true);
    Box::new(move || {
        gic.pulse(0, PIN, LineSource::USER);
        take(&mut cpu, SPI);
    })
}

fn level() -> Box<dyn FnMut()> {
    let Machine { gic, mut cpu, .. } = machine(false);
    Box::new(move || {
        gic.set(0, PIN, LineSource::USER, true);
        assert_eq!(cpu.acknowledge(Group::One), SPI);
        gic.set(0, PIN, LineSource::USER, false);
        let ended = cpu.end(Group::One, SPI).unwrap();
        assert_eq!(ended.pin, Some(PIN));
        gic.reevaluate(0, &ended.pin.into_iter().collect());
    })
}

fn ppi() -> Box<dyn FnMut()> {
    let Machine { gic, mut cpu, .. } = machine(false);
    Box::new(move || {
        gic.set_ppi(VcpuId(0), PPI, true);
        assert_eq!(cpu.acknowledge(Group::One), PPI.into());
        gic.set_ppi(VcpuId(0), PPI, false);
        cpu.end(Group::One, PPI.into());
        assert!(cpu.line().is_idle());
    })
}

fn sgi() -> Box<dyn FnMut()> {
    let Machine { mut cpu, .. } = machine(true);
    Box::new(move || {
        cpu.write(IccRegister::Sgi1r, 3 << 24 | 1);
        take(&mut cpu, 3);
    })
}

fn message() -> Box<dyn FnMut()> {
    let Machine { gic, mut cpu, .. } = machine(true);
    Box::new(move || {
        gic.message_spi(SPI, true);
        take(&mut cpu, SPI);
    })
}

fn any() -> Box<dyn FnMut()> {
    let Machine { gic, mut cpu, .. } = machine(true);
    gic.distributor().write(0x6000 + 8 * u64::from(SPI), 8, 1 << 31);
    Box::new(move || {
        gic.pulse(0, PIN, LineSource::USER);
        take(&mut cpu, SPI);
    })
}

fn kicking() -> Box<dyn FnMut()> {
    let Machine { gic, mut cpu, kicks, .. } = machine(true);
    Box::new(move || {
        let before = kicks.load(Ordering::Relaxed);
        assert!(cpu.arm().is_idle());
        gic.pulse(0, PIN, LineSource::USER);
        assert_eq!(kicks.load(Ordering::Relaxed), before + 1);
        take(&mut cpu, SPI);
    })
}

fn event() -> Box<dyn FnMut()> {
    let Machine { its, mut cpu, .. } = machine(true);
    Box::new(move || {
        its.send(DEVICE, 3).unwrap();
        take(&mut cpu, LPI);
    })
}

fn prepared() -> Box<dyn FnMut()> {
    let Machine { its, mut cpu, .. } = machine(true);
    let target = its.prepare(DEVICE, 3).unwrap();
    Box::new(move || {
        its.fire(target);
        take(&mut cpu, LPI);
    })
}

fn merged() -> Box<dyn FnMut()> {
    let Machine { its, mut cpu, .. } = machine(true);
    Box::new(move || {
        its.send(DEVICE, 3).unwrap();
        assert_eq!(cpu.highest_pending(Group::One), LPI);
    })
}
