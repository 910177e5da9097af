//! The differences that are on purpose, each as both machines show it; and QEMU as a child.

use super::super::Missing;
use super::child::Qemu;
use super::state::{State, prelude};
use super::step::{Amd, EDU_BAR, Field, MAILBOXES, Source, Step, Vtd};
use super::wire::{Doorbell, Wire};
use super::{Unit, compare, differences, options};
use crate::qtest::q35::Chip;

/// QEMU, or `None` with a loud line.
fn qemu(unit: Unit) -> Option<Qemu> {
    match Qemu::start(&options(unit)) {
        Ok(qemu) => Some(qemu),
        Err(Missing::Oracle(why)) => {
            println!("SKIPPED: {why}");
            None
        }
        Err(Missing::Other(why)) => panic!("{why}"),
    }
}

/// What a difference looks like: the last answer and the state of QEMU, then of doorbell.
fn observe(name: &str, steps: &[Step], strict: bool) -> Option<[(String, State); 2]> {
    assert!(differences::DIFFERENCES.iter().any(|(known, _)| *known == name), "{name} is listed");
    let unit = if name.starts_with("amd-") { Unit::Amd } else { Unit::Vtd };
    let mut qemu = qemu(unit)?;
    let ours = |word: String| {
        word.replace(",chardev=peer", "").replace("q35,", if strict { "q35,8259=strict," } else { "q35," })
    };
    let mut doorbell = Doorbell::new(&options(unit).into_iter().map(ours).collect::<Vec<_>>(), None).unwrap();
    let run = |wire: &mut dyn Wire| {
        prelude(wire).unwrap();
        let mut answer = String::new();
        for step in steps {
            answer = compare::take(wire, 0, step).unwrap();
        }
        (answer, State::of(wire).unwrap())
    };
    Some([run(&mut qemu), run(&mut doorbell)])
}

fn store(index: u8, value: u32) -> Step {
    Step::IoApicStore { index, value }
}

fn line(pin: u16, level: bool) -> Step {
    Step::Line { chip: Chip::IoApic, pin, level }
}

fn message(offset: u32, data: u32) -> Step {
    Step::Message { offset, data }
}

fn out(port: u16, value: u8) -> Step {
    Step::PortStore { port, value }
}

/// The IRR of each CPU in QEMU, then in doorbell.
fn irr(observed: &[(String, State); 2]) -> [[&str; 2]; 2] {
    [0, 1].map(|side| [0, 1].map(|cpu| observed[side].1.vectors[cpu][1].as_str()))
}

#[test]
fn apic_enabled() {
    let Some(seen) = observe("apic-enabled", &[message(0, 0x41)], true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["65", "(none)"]]);
    let spurious = |wire: &mut dyn Wire| {
        let text = wire.ask(&["info lapic 0".into()]).unwrap().remove(0);
        text.lines().find(|line| line.starts_with("SPIV")).unwrap()[..16].to_owned()
    };
    let Some(mut qemu) = qemu(Unit::Vtd) else { return };
    let mut doorbell = super::doorbell(Unit::Vtd, None).unwrap();
    assert_eq!([spurious(&mut qemu), spurious(&mut doorbell)], ["SPIV\t 0x000000ff", "SPIV\t 0x000001ff"]);
}

#[test]
fn edge_raised_again() {
    // The second pin says whether a later message arrives at all.
    let steps = [store(0x1a, 0x41), line(5, true), store(0x1a, 0x43), line(5, true)];
    let Some(seen) = observe("edge-raised-again", &steps, true) else { return };
    assert_eq!(irr(&seen), [["65 67", "(none)"], ["65", "(none)"]]);
}

#[test]
fn trigger_changed() {
    let steps = [store(0x1a, 0x41), line(5, true), store(0x1a, 0x8042)];
    let Some(seen) = observe("trigger-changed", &steps, true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["65 66(level)", "(none)"]]);
}

#[test]
fn eoi_of_edge() {
    // Both have vector 0x42; the edge's entry has another CPU by the time of the end.
    let steps = [
        store(0x1a, 0x8042),
        line(5, true),
        line(5, false),
        store(0x1c, 0x42),
        line(6, true),
        store(0x1d, 1 << 24),
        Step::IoApicEnd { vector: 0x42 },
    ];
    let Some(seen) = observe("eoi-of-edge", &steps, true) else { return };
    assert_eq!(irr(&seen), [["66", "(none)"], ["66", "66"]]);
}

#[test]
fn nobody() {
    let steps = [store(0x1b, 5 << 24), store(0x1a, 0x8042), line(5, true)];
    let Some(seen) = observe("nobody", &steps, true) else { return };
    assert_eq!(seen.map(|(_, state)| state.entries[5]), [0x0500_0000_0000_c042, 0x0500_0000_0000_8042]);
}

#[test]
fn input_0() {
    let steps = [store(0x10, 0x41), store(0x14, 0x43), line(0, true)];
    let Some(seen) = observe("input-0", &steps, true) else { return };
    assert_eq!(irr(&seen), [["67", "(none)"], ["65", "(none)"]]);
}

#[test]
fn extint() {
    let Some(seen) = observe("extint", &[message(0, 0x741)], true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["(none)", "(none)"]]);
}

#[test]
fn one_of_many() {
    // Lowest priority for all; then fixed for all, with the hint.
    let Some(seen) = observe("one-of-many", &[message(0xff000, 0x141), message(0xff008, 0x43)], true) else { return };
    assert_eq!(irr(&seen)[0], ["65 67", "67"]);
    // As in KVM, lowest priority for all is for all; with the hint, odd vectors go to the second of two.
    assert_eq!(irr(&seen)[1], ["65", "65 67"]);
}

#[test]
fn logical_broadcast() {
    let Some(seen) = observe("logical-broadcast", &[message(0xff004, 0x41)], true) else { return };
    assert_eq!(irr(&seen), [["(none)", "(none)"], ["65", "65"]]);
}

#[test]
fn absent_register() {
    let Some(seen) = observe("absent-register", &[Step::IoApicLoad { index: 3 }], true) else { return };
    assert_eq!(seen.map(|(answer, _)| answer), ["0x0000000000000000", "0x00000000ffffffff"]);
}

#[test]
fn poll_of_nothing() {
    let steps = [out(0x20, 0x0c), Step::PortLoad { port: 0x20 }];
    let Some(seen) = observe("poll-of-nothing", &steps, true) else { return };
    assert_eq!(seen.map(|(answer, _)| answer), ["0x0000", "0x0007"]);
}

/// The lines of the monitor, shorter.
fn pics(observed: [(String, State); 2], chip: usize) -> [String; 2] {
    observed.map(|(_, state)| state.pics[chip].replace("hprio=0 ", "").replace(" rr_sel=0 elcr=00", ""))
}

#[test]
fn after_icw1() {
    let Some(seen) = observe("after-icw1", &[out(0x20, 0x11), out(0x21, 0x68), out(0x20, 0x11)], true) else {
        return;
    };
    let lines = ["irr=00 imr=00 isr=00 irq_base=00 fnm=0", "irr=00 imr=00 isr=00 irq_base=68 fnm=0"];
    assert_eq!(pics(seen, 0), lines);
}

#[test]
fn cascade_latch() {
    let steps = [Step::Line { chip: Chip::Slave, pin: 2, level: true }, out(0xa0, 0x11)];
    let latched = "irr=04 imr=00 isr=00 irq_base=00 fnm=0";
    let Some(seen) = observe("cascade-latch", &steps, true) else { return };
    assert_eq!(pics(seen, 0), [latched, "irr=00 imr=00 isr=00 irq_base=00 fnm=0"]);
    let Some(seen) = observe("cascade-latch", &steps, false) else { return };
    assert_eq!(pics(seen, 0), [latched, latched], "KVM's pair");
}

#[test]
fn cascade() {
    let steps =
        [Step::Line { chip: Chip::Master, pin: 2, level: true }, out(0x20, 0x0c), Step::PortLoad { port: 0x20 }];
    let Some(seen) = observe("cascade", &steps, true) else { return };
    assert_eq!(seen.map(|(answer, _)| answer), ["0x0082", "0x0007"]);
}

#[test]
fn single() {
    // After ICW1 for a single chip comes ICW4, and bit 4 is the special fully nested mode.
    let Some(seen) = observe("single", &[out(0x20, 0x13), out(0x21, 0xe8), out(0x21, 0x10)], true) else { return };
    let lines = ["irr=00 imr=00 isr=00 irq_base=e8 fnm=1", "irr=00 imr=00 isr=00 irq_base=e8 fnm=0"];
    assert_eq!(pics(seen, 0), lines);
}

#[test]
fn msix_reserved() {
    let steps = [
        Step::MsixStore { vector: 0, field: Field::Control, value: 0xffff_fffe },
        Step::MsixLoad { vector: 0, field: Field::Control },
    ];
    let Some(seen) = observe("msix-reserved", &steps, true) else { return };
    assert_eq!(seen.map(|(answer, _)| answer), ["0x00000000fffffffe", "0x0000000000000000"]);
    let steps = [
        Step::MsixStore { vector: 0, field: Field::Address, value: MAILBOXES + 3 },
        Step::MsixLoad { vector: 0, field: Field::Address },
    ];
    let Some(seen) = observe("msix-reserved", &steps, true) else { return };
    assert_eq!(seen.map(|(answer, _)| answer), ["0x0000000000100003", "0x0000000000100000"]);
}

#[test]
fn intx() {
    // Pins 16 to 23 are where PCI's lines can arrive.
    let mut steps: Vec<_> = (16..24).map(|pin| store(0x10 + 2 * pin, 0x40 + u32::from(pin))).collect();
    steps.push(Step::MsiEvent);
    let Some(seen) = observe("intx", &steps, true) else { return };
    assert_eq!(irr(&seen)[1], ["(none)", "(none)"]);
    assert_ne!(irr(&seen)[0], ["(none)", "(none)"]);
}

#[test]
fn qemu_ends_with_its_owner_and_leaves_nothing_behind() {
    let Some(mut qemu) = qemu(Unit::Vtd) else { return };
    let (process, folder) = (format!("/proc/{}", qemu.process().id()), qemu.process().folder().to_owned());
    assert!(std::path::Path::new(&process).exists() && folder.exists());
    assert_eq!(qemu.say(&[format!("readl {EDU_BAR:#x}")]), Ok(vec!["0x0000000000000000".into()]));
    drop(qemu);
    assert!(!std::path::Path::new(&process).exists(), "{process}");
    assert!(!folder.exists(), "{}", folder.display());
}

#[test]
fn a_refused_line_is_an_error_that_names_it() {
    let Some(mut qemu) = qemu(Unit::Vtd) else { return };
    let refused = qemu.say(&["readl 0".into(), "nonsense".into()]);
    assert_eq!(refused, Err("`nonsense` was answered with `FAIL Unknown command 'nonsense'`".into()));
}

/// An entry of the first table. Only the first one of a test is invalidated: the tail does not move again.
fn entry(index: u16, low: u64, high: u64) -> Step {
    Step::Vtd(Vtd::Entry { second: false, index, low, high, all: true, interrupt: false })
}

/// Remapping with 256 entries.
const ON: Step = Step::Vtd(Vtd::On { size: 7 });
/// Present, vector 0x41, for CPU 0.
const TO_CPU_0: u64 = 0x41 << 16 | 1;
const ONE_SOURCE: u64 = 1 << 18;
const BUSES: u64 = 2 << 18;

fn remappable(index: u32) -> Step {
    Step::Msi { address: 0xfee0_0010 | index << 5, data: 0, enable: true }
}

#[test]
fn remap_faults() {
    let steps = [ON, remappable(5), Step::MsiEvent, Step::Vtd(Vtd::Load { offset: 0x34 })];
    let Some(seen) = observe("remap-faults", &steps, true) else { return };
    assert_eq!(irr(&seen), [["(none)", "(none)"], ["(none)", "(none)"]]);
    assert_eq!(seen.map(|(answer, _)| answer), ["0x0000000000000000", "0x0000000000000002"]);
    // Not present (0x22), from 00:03.0, in the only record.
    let steps = [ON, remappable(5), Step::MsiEvent, Step::Vtd(Vtd::Load { offset: 0x22c })];
    let Some(seen) = observe("remap-faults", &steps, true) else { return };
    assert_eq!(seen.map(|(answer, _)| answer), ["0x0000000000000000", "0x0000000080000022"]);
}

#[test]
fn remap_compatibility() {
    let without = Step::Vtd(Vtd::Store { offset: 0x18, value: 1 << 25 | 1 << 26 });
    let message = Step::Msi { address: 0xfee0_1000, data: 0x45, enable: true };
    let Some(seen) = observe("remap-compatibility", &[ON, message.clone(), Step::MsiEvent], true) else { return };
    assert_eq!(irr(&seen), [["(none)", "69"], ["(none)", "69"]], "with CFI");
    let Some(seen) = observe("remap-compatibility", &[ON, without, message, Step::MsiEvent], true) else { return };
    assert_eq!(irr(&seen), [["(none)", "69"], ["(none)", "(none)"]]);
}

#[test]
fn remap_compatibility_status() {
    let Some(seen) = observe("remap-compatibility-status", &[ON], true) else { return };
    assert_eq!(seen.map(|(_, state)| state.vtd[0]), [0x0700_0000, 0x0780_0000]);
}

#[test]
fn remap_cache() {
    let changed = TO_CPU_0 + (2 << 16);
    let steps = [ON, entry(5, TO_CPU_0, 0), remappable(5), Step::MsiEvent, entry(5, changed, 0), Step::MsiEvent];
    let Some(seen) = observe("remap-cache", &steps, true) else { return };
    assert_eq!(irr(&seen), [["65 67", "(none)"], ["65", "(none)"]]);
}

#[test]
fn remap_reserved() {
    // Bit 0 of a destination of 32 bits, which is reserved while only bits 15:8 are used.
    let steps = [ON, entry(5, TO_CPU_0 | 1 << 32, 0), remappable(5), Step::MsiEvent];
    let Some(seen) = observe("remap-reserved", &steps, true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["(none)", "(none)"]]);
}

#[test]
fn remap_ioapic_source() {
    let pin = [store(0x1b, 5 << 17 | 1 << 16), store(0x1a, 0x41), line(5, true)];
    for (source, doorbell) in [(0xff00, "65"), (0x18, "(none)")] {
        let steps = [&[ON, entry(5, TO_CPU_0, ONE_SOURCE | source)][..], &pin].concat();
        let Some(seen) = observe("remap-ioapic-source", &steps, true) else { return };
        assert_eq!(irr(&seen), [["65", "(none)"], [doorbell, "(none)"]], "{source:#x}");
    }
}

#[test]
fn remap_bus_range() {
    // The MSI function is on bus 0: from bus 0 to bus 5; from bus 5 to bus 0, which is none.
    for (range, vectors) in [(0x0005, ["(none)", "65"]), (0x0500, ["65", "(none)"])] {
        let steps = [ON, entry(5, TO_CPU_0, BUSES | range), remappable(5), Step::MsiEvent];
        let Some(seen) = observe("remap-bus-range", &steps, true) else { return };
        assert_eq!(irr(&seen).map(|side| side[0]), vectors, "{range:#x}");
    }
}

/// A table of 2^`length` entries for the MSI function, which `control` says what to do with.
fn device(length: u64, control: u64) -> Step {
    Step::Amd(Amd::Device { source: Source::Edu, interrupts: 1 | length << 1 | control << 60 })
}

fn to_cpu_1(data: u16) -> Step {
    Step::Msi { address: 0xfee0_1000, data, enable: true }
}

#[test]
fn amd_table_length() {
    // Entry 4 is vector 0x41 for CPU 0; a table of 4 does not have it, one of 8 does.
    let entry = Step::Amd(Amd::Entry { source: Source::Edu, index: 4, entry: 0x41 << 16 | 1 });
    // More than 2^11 entries are an error.
    for (length, vector) in [(2, "(none)"), (3, "65"), (11, "65"), (12, "(none)")] {
        let steps = [Step::Amd(Amd::On), device(length, 2), entry.clone(), to_cpu_1(4), Step::MsiEvent];
        let Some(seen) = observe("amd-table-length", &steps, true) else { return };
        assert_eq!(irr(&seen), [["65", "(none)"], [vector, "(none)"]], "{length}");
    }
}

/// An entry with these bits besides vector 0x41 for CPU 0.
fn amd_entry(bits: u32) -> [Step; 5] {
    let entry = Step::Amd(Amd::Entry { source: Source::Edu, index: 4, entry: 0x41 << 16 | bits | 1 });
    [Step::Amd(Amd::On), device(11, 2), entry, to_cpu_1(4), Step::MsiEvent]
}

#[test]
fn amd_request_eoi() {
    let Some(seen) = observe("amd-request-eoi", &amd_entry(1 << 5), true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["65(level)", "(none)"]]);
}

#[test]
fn amd_reserved() {
    let Some(seen) = observe("amd-reserved", &amd_entry(1 << 24), true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["(none)", "(none)"]]);
    let mut steps = amd_entry(0);
    steps[1] = Step::Amd(Amd::Device { source: Source::Edu, interrupts: 1 | 11 << 1 | 1 << 54 | 2 << 60 });
    let Some(seen) = observe("amd-reserved", &steps, true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["(none)", "(none)"]]);
}

#[test]
fn amd_trigger() {
    let mut steps = amd_entry(0);
    steps[3] = to_cpu_1(4 | 1 << 15);
    let Some(seen) = observe("amd-trigger", &steps, true) else { return };
    assert_eq!(irr(&seen), [["65", "(none)"], ["65(level)", "(none)"]]);
}

#[test]
fn amd_pass() {
    let steps = [Step::Amd(Amd::On), device(11, 1), to_cpu_1(0x41), Step::MsiEvent];
    let Some(seen) = observe("amd-pass", &steps, true) else { return };
    assert_eq!(irr(&seen), [["0", "(none)"], ["(none)", "65"]]);
}

#[test]
fn poll_over_icw1() {
    let steps = [out(0x20, 0x0c), out(0x20, 0x11), Step::PortLoad { port: 0x20 }];
    let Some(seen) = observe("poll-over-icw1", &steps, true) else { return };
    assert_eq!(seen.map(|(answer, _)| answer), ["0x0000", "0x0007"]);
}

#[test]
fn eoi_special_mask() {
    // Pin 0 is taken, special mask mode set, pin 0 masked.
    let taken =
        [Step::Line { chip: Chip::Master, pin: 0, level: true }, out(0x20, 0x0c), Step::PortLoad { port: 0x20 }];
    let steps = [&taken[..], &[out(0x20, 0x68), out(0x21, 1), out(0x20, 0x20)]].concat();
    let Some(seen) = observe("eoi-special-mask", &steps, true) else { return };
    let lines = ["irr=00 imr=01 isr=00 irq_base=00 fnm=0", "irr=00 imr=01 isr=01 irq_base=00 fnm=0"];
    assert_eq!(pics(seen, 0), lines);
}

#[test]
fn each_difference_has_a_test_of_its_own() {
    let tests = include_str!("tests.rs");
    for (name, _) in differences::DIFFERENCES {
        let test = format!("fn {}() {{", name.replace('-', "_"));
        assert!(tests.contains(&test), "{name}");
    }
}
