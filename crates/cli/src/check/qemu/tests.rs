//! The differences that are on purpose, each as both machines show it; and QEMU as a child.

use super::process::{Missing, Qemu};
use super::state::{State, prelude};
use super::step::{EDU_BAR, Field, MAILBOXES, Step};
use super::wire::{Doorbell, Wire};
use super::{compare, differences, options};
use crate::qtest::machine::Chip;

/// QEMU, or `None` with a loud line.
fn qemu() -> Option<Qemu> {
    match Qemu::start(&options()) {
        Ok(qemu) => Some(qemu),
        Err(Missing::Program(why)) => {
            println!("SKIPPED: {why}");
            None
        }
        Err(Missing::Other(why)) => panic!("{why}"),
    }
}

/// What a difference looks like: the last answer and the state of QEMU, then of doorbell.
fn observe(name: &str, steps: &[Step], strict: bool) -> Option<[(String, State); 2]> {
    assert!(differences::DIFFERENCES.iter().any(|(known, _)| *known == name), "{name} is listed");
    let mut qemu = qemu()?;
    let ours = |word: String| {
        word.replace(",chardev=peer", "").replace("q35,", if strict { "q35,8259=strict," } else { "q35," })
    };
    let mut doorbell = Doorbell::new(&options().into_iter().map(ours).collect::<Vec<_>>(), None).unwrap();
    let run = |wire: &mut dyn Wire| {
        prelude(wire).unwrap();
        let mut answer = String::new();
        for step in steps {
            answer = compare::take(wire, step).unwrap();
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
    let Some(mut qemu) = qemu() else { return };
    let mut doorbell = super::doorbell(None).unwrap();
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
fn address_bits() {
    let Some(seen) = observe("address-bits", &[message(0x1620, 0x41)], true) else { return };
    assert_eq!(irr(&seen), [["(none)", "65"], ["(none)", "65"]], "to another CPU they mean nothing");
    let steps = [Step::Msi { address: 0xfee0_0620, data: 0x41, enable: true }, Step::MsiEvent];
    let Some(seen) = observe("address-bits", &steps, true) else { return };
    assert_eq!(irr(&seen), [["(none)", "(none)"], ["65", "(none)"]]);
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
fn base_after_icw1() {
    let Some(seen) = observe("base-after-icw1", &[out(0x20, 0x11), out(0x21, 0x68), out(0x20, 0x11)], true) else {
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
    let Some(mut qemu) = qemu() else { return };
    let (process, folder) = (format!("/proc/{}", qemu.id()), qemu.folder().to_owned());
    assert!(std::path::Path::new(&process).exists() && folder.exists());
    assert_eq!(qemu.say(&[format!("readl {EDU_BAR:#x}")]), Ok(vec!["0x0000000000000000".into()]));
    drop(qemu);
    assert!(!std::path::Path::new(&process).exists(), "{process}");
    assert!(!folder.exists(), "{}", folder.display());
}

#[test]
fn a_refused_line_is_an_error_that_names_it() {
    let Some(mut qemu) = qemu() else { return };
    let refused = qemu.say(&["readl 0".into(), "nonsense".into()]);
    assert_eq!(refused, Err("`nonsense` was answered with `FAIL Unknown command 'nonsense'`".into()));
}
