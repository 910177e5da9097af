//! Any bytes as a guest's accesses to a GICv3: distributor, redistributors and CPU interfaces, with lines in between.
#![no_main]

use std::{collections::BTreeSet, sync::Arc};

use doorbell::{
    LineSource, PinInput, VcpuId,
    chips::arm::{Behaviour, CpuInterface, Gic, GicOptions, Group, IccRegister, Identity, line::CHIP},
    guest_ram::RamBlock,
};
use doorbell_fuzz::Program;
use libfuzzer_sys::fuzz_target;

/// SPIs 32 to 95.
const INTIDS: u32 = 96;
/// Where the registers are, so that the fuzzer need not find them.
const PLACES: [u64; 16] = [
    0x0000, 0x0040, 0x0048, 0x0080, 0x0100, 0x0180, 0x0200, 0x0280, 0x0300, 0x0380, 0x0400, 0x0420, 0x0c00, 0x6100, 0x6200,
    0xffd0,
];
const WIDTHS: [u8; 8] = [4, 4, 4, 4, 8, 1, 2, 3];

struct Machine {
    gic: Arc<Gic>,
    cpus: Vec<CpuInterface>,
}

impl Machine {
    /// After reset. The bits of `options` choose what an embedder can choose.
    fn new(options: u8) -> Self {
        let mut gic = GicOptions::new(1 + u32::from(options >> 6));
        gic.intids = INTIDS as u16;
        if options & 1 == 1 {
            gic.behaviour = Behaviour::KVM;
        }
        gic.identity = [Identity::Doorbell, Identity::Kvm, Identity::Qemu, Identity::Kvm][usize::from(options >> 1 & 3)];
        let gic = Gic::new(gic, Arc::new(RamBlock::new(0, 0x1000)), Arc::new(())).expect("options in range");
        let cpus = (0..gic.vcpus()).map(|vcpu| gic.cpu_interface(VcpuId(vcpu)).expect("taken once")).collect();
        Self { gic, cpus }
    }

    fn write(&self, vcpu: Option<u32>, offset: u64, bytes: u8, value: u64) {
        match vcpu.and_then(|vcpu| self.gic.redistributor(VcpuId(vcpu))) {
            Some(redistributor) => redistributor.write(offset, bytes, value),
            None => self.gic.distributor().write(offset, bytes, value),
        }
    }

    fn read(&self, vcpu: Option<u32>, offset: u64, bytes: u8) -> u64 {
        match vcpu.and_then(|vcpu| self.gic.redistributor(VcpuId(vcpu))) {
            Some(redistributor) => redistributor.read(offset, bytes),
            None => self.gic.distributor().read(offset, bytes),
        }
    }

    /// One of the 32-bit words that have a bit for each of 32 interrupts: word 0 belongs to a redistributor.
    fn word(&self, vcpu: u32, register: u64, word: u64) -> u64 {
        if word == 0 { self.read(Some(vcpu), 0x1_0000 + register, 4) } else { self.read(None, register + 4 * word, 4) }
    }

    fn set_word(&self, vcpu: u32, register: u64, word: u64, value: u64) {
        if word == 0 {
            self.write(Some(vcpu), 0x1_0000 + register, 4, value);
        } else {
            self.write(None, register + 4 * word, 4, value);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let options = program.byte().unwrap_or_default();
    let mut machine = Machine::new(options);
    while step(&mut machine, &mut program).is_some() {}
    // A saved state is one that can be restored, and nothing of it is lost.
    let saved = machine.gic.save();
    let mut other = Machine::new(options);
    other.gic.restore(&saved).expect("it was saved by a GIC");
    assert_eq!(other.gic.save(), saved);
    for (cpu, before) in other.cpus.iter_mut().zip(&machine.cpus) {
        cpu.restore(&before.save()).expect("it was saved by a CPU interface");
    }
    nothing_is_lost(machine);
    nothing_is_lost(other);
});

fn step(machine: &mut Machine, program: &mut Program<'_>) -> Option<()> {
    let op = program.byte()?;
    let vcpu = u32::from(op >> 3 & 3) % machine.gic.vcpus();
    match op % 8 {
        0..3 => {
            let [place, width] = program.take()?;
            let value = program.quad()?;
            let first = if place & 0x20 != 0 { 0x1_0000 } else { 0 };
            let offset = first + PLACES[usize::from(place % 16)] + 4 * u64::from(width >> 3);
            machine.write((place & 0x10 != 0).then_some(vcpu), offset, WIDTHS[usize::from(width % 8)], value);
        }
        3 => {
            let [width, low, middle, high] = program.take()?;
            let offset = u64::from(u32::from_le_bytes([low, middle, high & 3, 0]));
            machine.read((width & 0x80 != 0).then_some(vcpu), offset, width % 18);
        }
        4 => {
            let [number, what] = program.take()?;
            let (level, source) = (what & 1 == 1, LineSource::new(what >> 1 & 3).expect("0 to 3"));
            match what >> 6 {
                0 => machine.gic.set(CHIP, u16::from(number), source, level),
                1 => machine.gic.pulse(CHIP, u16::from(number), source),
                2 => machine.gic.set_ppi(VcpuId(vcpu), number, level),
                _ => machine.gic.message_spi(u32::from(number), level),
            };
        }
        5 => {
            let register = program.byte()?;
            let value = program.quad()?;
            let register = IccRegister::ALL[usize::from(register) % IccRegister::ALL.len()];
            machine.cpus[vcpu as usize].write(register, value);
        }
        6 => {
            let register = IccRegister::ALL[usize::from(program.byte()?) % IccRegister::ALL.len()];
            machine.cpus[vcpu as usize].read(register);
        }
        _ => {
            let cpu = &mut machine.cpus[vcpu as usize];
            match program.byte()? % 4 {
                0 => drop(cpu.arm()),
                1 => cpu.disarm(),
                2 => cpu.reset(),
                _ => {
                    // What the lines say is what an acknowledge finds.
                    if cpu.line().is_idle() {
                        assert_eq!([cpu.acknowledge(Group::Zero), cpu.acknowledge(Group::One)], [1023; 2]);
                    }
                }
            }
        }
    }
    Some(())
}

/// Every interrupt that the registers show as enabled and pending, and as routed to a vCPU, is taken by that vCPU once all
/// is open.
fn nothing_is_lost(mut machine: Machine) {
    machine.write(None, 0, 4, 3);
    for vcpu in 0..machine.gic.vcpus() {
        machine.write(Some(vcpu), 0x14, 4, 0);
        let cpu = &mut machine.cpus[vcpu as usize];
        cpu.reset();
        for (register, value) in [(IccRegister::Pmr, 0xff), (IccRegister::Igrpen0, 1), (IccRegister::Igrpen1, 1)] {
            cpu.write(register, value);
        }
        for word in 0..3 {
            machine.set_word(vcpu, 0x380, word, u32::MAX.into());
        }
        // The lowest priority is below every mask.
        for intid in 0..u64::from(INTIDS) {
            let (owner, offset) = if intid < 32 { (Some(vcpu), 0x1_0400 + intid) } else { (None, 0x400 + intid) };
            if machine.read(owner, offset, 1) == 0xf8 {
                machine.write(owner, offset, 1, 0xf0);
            }
        }
    }
    // A vCPU, or u32::MAX for any of them.
    let mut expected = BTreeSet::new();
    for vcpu in 0..machine.gic.vcpus() {
        for intid in 0..INTIDS {
            let wanted = machine.word(vcpu, 0x100, (intid / 32).into()) & machine.word(vcpu, 0x200, (intid / 32).into());
            if wanted >> (intid % 32) & 1 == 0 {
                continue;
            }
            let router = machine.read(None, 0x6000 + 8 * u64::from(intid), 8);
            match intid {
                0..32 => drop(expected.insert((vcpu, intid))),
                _ if router >> 31 & 1 == 1 => drop(expected.insert((u32::MAX, intid))),
                _ if router == u64::from(vcpu) => drop(expected.insert((vcpu, intid))),
                _ => {}
            }
        }
    }
    let mut taken = BTreeSet::new();
    for vcpu in 0..machine.gic.vcpus() {
        loop {
            let cpu = &mut machine.cpus[vcpu as usize];
            let (group, intid) = match cpu.acknowledge(Group::One) {
                1023 => (Group::Zero, cpu.acknowledge(Group::Zero)),
                intid => (Group::One, intid),
            };
            if intid == 1023 {
                break;
            }
            assert!(intid < INTIDS, "there is no interrupt {intid}");
            let any = intid >= 32 && machine.read(None, 0x6000 + 8 * u64::from(intid), 8) >> 31 & 1 == 1;
            assert!(taken.insert((if any { u32::MAX } else { vcpu }, intid)), "{intid} came twice");
            // A level would come again and again.
            machine.set_word(vcpu, 0x180, (intid / 32).into(), 1 << (intid % 32));
            machine.cpus[vcpu as usize].end(group, intid);
        }
    }
    assert_eq!(taken, expected, "by vCPU and INTID");
}
