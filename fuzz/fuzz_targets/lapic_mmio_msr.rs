//! Any bytes as two guest CPUs' accesses to their local APICs, by the window and by MSRs, with messages from devices and
//! time that passes.
#![no_main]

use doorbell::{
    MsiMessage, MsiTarget, VcpuId,
    chips::x86::lapic::{Lint, LocalApic, TSC_DEADLINE_MSR},
};
use doorbell_fuzz::{Machine, Program};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut program = Program(bytes);
    let options = program.byte().unwrap_or_default();
    let mut machine = Machine::new(options);
    while step(&mut machine, &mut program).is_some() {
        machine.cpus.iter_mut().for_each(check);
    }
    let mut other = Machine::new(options);
    for (cpu, other) in machine.cpus.iter().zip(&mut other.cpus) {
        let saved = cpu.save();
        other.restore(&saved).expect("it was saved by a local APIC");
        assert_eq!(other.save(), saved);
    }
});

fn step(machine: &mut Machine, program: &mut Program<'_>) -> Option<()> {
    let op = program.byte()?;
    let Machine { apics, cpus, clock, .. } = machine;
    let cpu = &mut cpus[usize::from(op >> 7)];
    match op % 16 {
        0..=2 => {
            let (offset, value) = (program.half()?, program.take::<8>()?);
            cpu.mmio_write((offset & 0xfff).into(), &value[..usize::from(op >> 4 & 7) + 1]);
        }
        // A whole register.
        3 | 4 => {
            let (register, value) = (program.byte()?, program.take::<4>()?);
            cpu.mmio_write(u64::from(register & 0x3f) << 4, &value);
        }
        5 => {
            let mut data = [0; 8];
            let offset = program.half()?;
            cpu.mmio_read((offset & 0xfff).into(), &mut data[..usize::from(op >> 4 & 7) + 1]);
        }
        6 | 7 => {
            let (register, value) = (program.byte()?, program.quad()?);
            // The MSRs fault, or not; nothing else can come of them.
            let _ = cpu.msr_write(0x800 + u32::from(register), value);
        }
        8 => {
            let _ = cpu.msr_read(0x800 + u32::from(program.byte()?));
        }
        9 => match op >> 4 & 3 {
            0 => drop(cpu.set_base(program.quad()?)),
            1 => {
                let written = cpu.msr_write(TSC_DEADLINE_MSR, program.quad()?);
                assert_eq!(cpu.msr_read(TSC_DEADLINE_MSR).is_ok(), written.is_ok());
            }
            2 => cpu.set_tsc(program.quad()?),
            _ => {
                clock.advance(program.quad()? >> (op >> 2 & 0x10));
                wait(cpu);
            }
        },
        // Any message at all, and one that looks like one.
        10 => {
            let (address, data) = (program.quad()?, program.take()?);
            let _ = apics.send(&MsiMessage::new(address, u32::from_le_bytes(data)));
        }
        11 => {
            let (low, data) = (program.take::<4>()?, program.half()?);
            let address = 0xfee0_0000 | u64::from(u32::from_le_bytes(low) & 0xf_ffff);
            let message = MsiMessage::new(address, data.into());
            if let Some(target) = apics.prepare(&message) {
                apics.fire(target);
            }
        }
        12 => {
            let deliverable = cpu.deliverable();
            assert_eq!(cpu.acknowledge(), deliverable);
        }
        13 => {
            cpu.eoi();
        }
        14 => match op >> 4 & 7 {
            0 => drop(cpu.set_cr8(program.byte()?.into())),
            1 => drop(cpu.take_init()),
            2 => drop(cpu.take_sipi()),
            3 => drop(cpu.take_nmi()),
            4 => drop(cpu.take_smi()),
            5 => drop(cpu.take_extint()),
            6 => drop(cpu.deliver_local((program.byte()? & 0x3f).into())),
            _ => cpu.reset(),
        },
        _ => match op >> 4 & 3 {
            0 => {
                let how = program.byte()?;
                let lint = if how & 1 == 0 { Lint::Lint0 } else { Lint::Lint1 };
                match how >> 4 {
                    0..4 => apics.nmi(VcpuId((how & 1).into())),
                    4..10 => apics.set_lint(VcpuId((how >> 2 & 1).into()), lint, how >> 1 & 1 == 1),
                    10..14 => apics.set_intr(how & 1 == 1),
                    _ => drop(cpu.keep_one_nmi()),
                }
            }
            1 => apics.smi(VcpuId(program.byte()?.into())),
            2 => apics.set_pic_output(VcpuId(program.byte()?.into()), op >> 6 & 1 == 1),
            _ => drop(cpu.arm()),
        },
    }
    Some(())
}

/// A timer expires when it says, and no earlier.
fn wait(cpu: &mut LocalApic) {
    match cpu.next_deadline() {
        Some(at) if at <= cpu.set().clock().now_ns() => assert!(cpu.tick()),
        Some(_) => assert!(!cpu.tick()),
        None => {
            // Stopped, or masked: then nothing comes of it.
            let before = cpu.save();
            cpu.tick();
            assert_eq!((cpu.save().page, cpu.save().events), (before.page, before.events));
        }
    }
    let now = cpu.set().clock().now_ns();
    assert!(now == u64::MAX || cpu.next_deadline().is_none_or(|at| at > now));
}

fn check(cpu: &mut LocalApic) {
    let work = cpu.next();
    if work.interrupt != cpu.deliverable() {
        // Between INIT and SIPI a CPU is offered nothing, whatever its APIC holds.
        assert!(work.interrupt.is_none() && cpu.save().waits_for_sipi, "{:?}, {:?}", work, cpu.deliverable());
    }
    if let Some(vector) = work.interrupt {
        // L6: only a class above the processor priority gets through.
        assert!(vector & 0xf0 > cpu.ppr() & 0xf0, "{vector:#x} at priority {:#x}", cpu.ppr());
        assert!(cpu.holds(vector));
    }
}
