//! The differences that are on purpose, each as both machines show it; and QEMU's CPUs as they follow a list.

use super::child::Qemu;
use super::code::REFUSED;
use super::compare::{self, Pair};
use super::differences::DIFFERENCES;
use super::icc::Register;
use super::ours::Doorbell;
use super::program;
use super::side::{Input, Op, Side};
use super::step::{FIRST_LPI, PENDING, Step, itt};
use crate::check::programs::Missing;
use crate::qtest::virt::{GICD, GICR, GITS};

/// QEMU, or `None` with a loud line.
fn qemu() -> Option<Qemu> {
    match Qemu::start() {
        Ok(qemu) => Some(qemu),
        Err(Missing::Oracle(why)) => {
            println!("SKIPPED: {why}");
            None
        }
        Err(Missing::Other(why)) => panic!("{why}"),
    }
}

#[test]
fn both_cpus_of_qemu_do_what_the_list_says_and_refused_accesses_do_not_stop_them() {
    let Some(mut qemu) = qemu() else { return };
    for (op, gave) in [
        // As `arm_virt` of the reference drivers recorded them.
        (Op::load(4, 0x0800_0004), 0x37a_0007),
        (Op::Load(1, 4, 0x0800_0000), 0x50),
        (Op::Load(1, 8, 0x080c_0008), 0x1_0100_0111),
        (Op::Write(1, Register::Pmr, 0xff), 0xff),
        (Op::Read(1, Register::Pmr), 0xf8),
        (Op::Read(0, Register::Pmr), 0),
        (Op::Read(0, Register::Iar0), 1023),
        // No such instruction, and no such access.
        (Op::Write(0, Register::Iar0, 5), REFUSED),
        (Op::Read(1, Register::Sgi1r), REFUSED),
        (Op::load(1, 0x0808_0000), 0),
        (Op::load(4, 0x0808_0004), 0x43b),
    ] {
        assert_eq!(qemu.run(&[op]), Ok(vec![gave]), "{op}");
    }
    qemu.reset().unwrap();
    assert_eq!(qemu.run(&[Op::Read(1, Register::Pmr)]), Ok(vec![0]), "after a reset");
}

#[test]
fn qemu_does_not_differ_from_itself() {
    let (Some(one), Some(other)) = (qemu(), qemu()) else { return };
    let mut pair = Pair { sides: [Box::new(one), Box::new(other)] };
    for number in 0..20 {
        let steps = program::generate(5, number, 50).steps;
        let difference = pair.run(&steps, None).unwrap();
        assert!(difference.is_none(), "{number}: {difference:?}");
    }
}

/// What a difference looks like: what these loads give behind these steps, in QEMU and in doorbell.
fn observe(name: &str, steps: &[Step], loads: &[Op]) -> Option<[Vec<u64>; 2]> {
    assert!(DIFFERENCES.iter().any(|(known, _)| *known == name), "{name} is listed");
    let mut qemu = qemu()?;
    let mut doorbell = Doorbell::new(None).unwrap();
    let run = |side: &mut dyn Side| {
        compare::prelude(side).unwrap();
        let mut tail = 0;
        for step in steps {
            side.run(&step.ops(tail)).unwrap();
            tail += 32 * step.commands().len() as u64;
        }
        side.run(loads).unwrap()
    };
    Some([run(&mut qemu), run(&mut doorbell)])
}

/// The same of one load.
fn differs(name: &str, steps: &[Step], load: Op, [qemu, doorbell]: [u64; 2]) {
    let Some(seen) = observe(name, steps, &[load]) else { return };
    assert_eq!(seen, [vec![qemu], vec![doorbell]], "{name}: {seen:#x?}");
}

fn store(address: u64, value: u64) -> Step {
    Step::Store(4, address, value)
}

fn long(address: u64, value: u64) -> Step {
    Step::Store(8, address, value)
}

fn offered(cpu: u32) -> Op {
    Op::Read(cpu, Register::Hppir1)
}

/// Forwarding of both groups.
const FORWARD: Step = Step::Store(4, GICD, 3);
/// The private interrupts of the first CPU.
const PRIVATE: u64 = GICR + 0x1_0000;

#[test]
fn priority_bits() {
    differs("priority-bits", &[Step::Store(1, GICD + 0x428, 0xff)], Op::load(1, GICD + 0x428), [0xff, 0xf8]);
}

#[test]
fn cpu_identity() {
    differs("cpu-identity", &[], Op::Read(0, Register::Ctlr), [0x8c00, 0x4_8400]);
}

#[test]
fn message_spis() {
    differs("message-spis", &[store(GICD + 0x40, 40)], Op::load(4, GICD + 0x204), [0, 0x100]);
}

#[test]
fn no_such_intid() {
    let steps = [Step::Write(0, Register::Ap1r0, 1 << 31), Step::Write(0, Register::Eoir1, 0x40_0000)];
    differs("no-such-intid", &steps, Op::Read(0, Register::Rpr), [0xff, 0xf8]);
}

#[test]
fn range_selector() {
    // The first of 16 to 31: nobody here.
    let steps = [Step::Write(1, Register::Sgi1r, 1 << 44 | 1)];
    differs("range-selector", &steps, Op::load(4, PRIVATE + 0x200), [1, 0]);
}

#[test]
fn trigger_changed() {
    let high = Step::Line(Input::Spi(58), true);
    let steps = [FORWARD, store(GICD + 0x104, 1 << 26), high, store(GICD + 0xc0c, 1 << 21)];
    differs("trigger-changed", &steps, offered(0), [58, 1023]);
    differs("trigger-changed", &steps, Op::load(4, GICD + 0x204), [0, 0]);
}

#[test]
fn cpu_reserved() {
    let mask = [Step::Write(0, Register::Pmr, 0x4000)];
    differs("cpu-reserved", &mask, Op::Read(0, Register::Pmr), [0x4000, 0]);
    let point = [Step::Write(0, Register::Bpr0, 8)];
    differs("cpu-reserved", &point, Op::Read(0, Register::Bpr0), [0, 2]);
}

#[test]
fn binary_point() {
    // What runs has priority 0x58; SGI 15 has 0, which is no other group priority where only bit 7 counts.
    let steps = [
        FORWARD,
        store(PRIVATE + 0x100, 1 << 15),
        Step::Write(0, Register::Pmr, 0x80),
        Step::Write(0, Register::Ap1r0, 0x800),
        Step::Write(0, Register::Bpr1, 7),
        store(PRIVATE + 0x200, 1 << 15),
    ];
    differs("binary-point", &steps, Op::Read(0, Register::Isr), [0, 0x80]);
}

#[test]
fn asleep() {
    let steps = [FORWARD, store(GICR + 0x14, 2), store(PRIVATE + 0x100, 8), store(PRIVATE + 0x200, 8)];
    differs("asleep", &steps, offered(0), [3, 1023]);
}

#[test]
fn group_off() {
    // SPI 42 is of Group 0, SPI 43 of Group 1, and both have the same priority.
    let steps = [
        FORWARD,
        store(GICD + 0x84, !(1 << 10) & 0xffff_ffff),
        Step::Write(0, Register::Igrpen0, 0),
        store(GICD + 0x104, 3 << 10),
        store(GICD + 0x204, 3 << 10),
    ];
    differs("group-off", &steps, offered(0), [1023, 43]);
}

#[test]
fn router() {
    let steps = [long(GICD + 0x6140, u64::MAX)];
    differs("router", &steps, Op::load(8, GICD + 0x6140), [u64::MAX, 0xff_80ff_ffff]);
    // To any one CPU: QEMU still takes the affinity, of which there is nobody.
    let steps = [FORWARD, long(GICD + 0x6140, 1 << 31 | 7), store(GICD + 0x104, 1 << 8), store(GICD + 0x204, 1 << 8)];
    let Some([qemu, doorbell]) = observe("router", &steps, &[offered(0), offered(1)]) else { return };
    assert_eq!(qemu, [1023, 1023]);
    assert!(doorbell.contains(&40), "{doorbell:?}");
}

const LPIS: Step = Step::LpisOn(false);
const VALID: u64 = 1 << 63;

/// Collection 0 at the first CPU, device 0, and its event 1 is LPI 8192, enabled.
fn mapped() -> Vec<Step> {
    vec![
        FORWARD,
        LPIS,
        Step::Config(FIRST_LPI, 0x81),
        Step::Command([9, 0, VALID, 0]),
        Step::Command([8, 4, VALID | itt(0), 0]),
        Step::Command([0xa, 1 | u64::from(FIRST_LPI) << 32, 0, 0]),
    ]
}

fn then(steps: &[Step]) -> Vec<Step> {
    [&mapped()[..], steps].concat()
}

fn pending(cpu: usize) -> Op {
    Op::load(8, PENDING[cpu] + u64::from(FIRST_LPI) / 8)
}

#[test]
fn quiescent() {
    let steps = [LPIS, store(GITS, 0), Step::Command([5, 0, 0, 0])];
    differs("quiescent", &steps, Op::load(4, GITS), [1 << 31, 0]);
}

#[test]
fn creadr() {
    differs("creadr", &[store(GITS + 0x90, 0x1000_0000)], Op::load(8, GITS + 0x90), [0x1000_0000, 0]);
}

#[test]
fn cwriter() {
    differs("cwriter", &[long(GITS + 0x88, 0x8000)], Op::load(8, GITS + 0x88), [0x8000, 0]);
}

#[test]
fn its_without_tables() {
    differs("its-without-tables", &[store(GITS, 1)], Op::load(4, GITS), [0x8000_0001, 0x8000_0000]);
}

#[test]
fn stall() {
    // Beyond RAM.
    let steps = [
        LPIS,
        Step::Command([9, 0, VALID, 0]),
        Step::Command([8, 4, VALID | 0x6000_0000, 0]),
        Step::Command([0xa, 1 | u64::from(FIRST_LPI) << 32, 0, 0]),
    ];
    differs("stall", &steps, Op::load(8, GITS + 0x90), [0x41, 0x60]);
}

#[test]
fn config_cache() {
    let masked = then(&[Step::Config(FIRST_LPI, 0x80), Step::Message(1)]);
    differs("config-cache", &masked, offered(0), [1023, u64::from(FIRST_LPI)]);
    let now = then(&[Step::ConfigAndInv(FIRST_LPI, 0x80, 0, 1), Step::Message(1)]);
    let Some(seen) = observe("config-cache", &now, &[offered(0)]) else { return };
    assert_eq!(seen, [[1023], [1023]], "with INV");
}

#[test]
fn lpi_order() {
    let second = u64::from(FIRST_LPI) + 3;
    let steps = then(&[
        Step::Config(FIRST_LPI + 3, 0x81),
        Step::Command([0xa, 2 | second << 32, 0, 0]),
        Step::Message(2),
        Step::Message(1),
    ]);
    differs("lpi-order", &steps, offered(0), [u64::from(FIRST_LPI), second]);
}

#[test]
fn mapped_again() {
    let other = Step::Command([0xa, 1 | u64::from(FIRST_LPI + 3) << 32, 0, 0]);
    differs("mapped-again", &then(&[Step::Message(1), other]), pending(0), [1, 0]);
}

#[test]
fn mapd_pending() {
    let unmapped = Step::Command([8, 4, itt(0), 0]);
    differs("mapd-pending", &then(&[Step::Message(1), unmapped]), pending(0), [1, 0]);
    // The table as it is: QEMU finds the event there.
    let again = [
        long(0x4010_0000 + 0x60, 8),
        long(0x4010_0000 + 0x68, 4),
        long(0x4010_0000 + 0x70, VALID | itt(0)),
        long(GITS + 0x88, 0x80),
        Step::Message(1),
    ];
    differs("mapd-pending", &then(&again), pending(0), [1, 0]);
}

#[test]
fn mapd_size() {
    let away = Step::Command([8, 16, itt(0), 0]);
    differs("mapd-size", &then(&[away, Step::Message(1)]), pending(0), [1, 0]);
}

#[test]
fn pending_twice() {
    let steps = then(&[Step::Message(1), Step::Command([0xe, 0, 0, 1 << 16]), Step::Message(1)]);
    let Some(seen) = observe("pending-twice", &steps, &[pending(0), pending(1)]) else { return };
    assert_eq!(seen, [[1, 1], [1, 0]]);
}

#[test]
fn tables_while_on() {
    differs("tables-while-on", &[LPIS, long(GICR + 0x78, 0)], Op::load(8, GICR + 0x78), [0, PENDING[0]]);
}

#[test]
fn pending_zero() {
    differs("pending-zero", &[long(GICR + 0x78, 1 << 62)], Op::load(8, GICR + 0x78), [1 << 62, 0]);
    let again = [store(GICR, 0), long(GICR + 0x78, PENDING[0] | 1 << 62), store(GICR, 1)];
    differs(
        "pending-zero",
        &then(&[&[Step::Message(1)], &again[..]].concat()),
        offered(0),
        [u64::from(FIRST_LPI), 1023],
    );
}

#[test]
fn lpis_off() {
    let steps = then(&[Step::Message(1), store(GICR + 0x2_0000, 0), Step::Retire(0, 1)]);
    let Some(seen) = observe("lpis-off", &steps, &[pending(0), pending(1)]) else { return };
    assert_eq!(seen, [[1, 0], [0, 1]]);
}
