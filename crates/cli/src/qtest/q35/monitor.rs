//! What QEMU's monitor shows of a q35's interrupt controllers.

use std::fmt::Write;

use doorbell::chips::x86::ioapic::{PinSnapshot, RedirectionEntry};
use doorbell::chips::x86::lapic::{LocalApic, slot};
use doorbell::chips::x86::pic::PicState;

use super::Q35;

/// A command, or `None` if it is not known.
pub fn human(board: &Q35, command: &[&str]) -> Option<String> {
    Some(match *command {
        ["info", "pic"] => info_pic(board),
        ["info", "lapic"] => info_lapic(board, 0),
        ["info", "lapic", cpu] => match cpu.parse() {
            Ok(cpu) => info_lapic(board, cpu),
            Err(_) => "not a number\r\nTry \"help info lapic\" for more information\r\n".into(),
        },
        _ => return None,
    })
}

/// Numbers with a space behind each, or that there are none.
fn numbers(numbers: impl Iterator<Item = String>) -> String {
    let text: String = numbers.map(|number| number + " ").collect();
    if text.is_empty() { "(none)".into() } else { text }
}

fn info_pic(board: &Q35) -> String {
    let ioapic = board.ioapic();
    let (state, pins) = (ioapic.state(), ioapic.save().pins);
    let mut text = String::new();
    let _ = writeln!(text, "ioapic0: ver=0x20 id={:#04x} sel={:#04x}\r", state.id, state.ioregsel);
    for (pin, bits) in state.redirtbl.into_iter().enumerate() {
        let entry = RedirectionEntry::from_bits(bits);
        let (vector, destination) = (entry.vector(), entry.destination());
        let _ = writeln!(
            text,
            "  pin {pin:<2} {bits:#018x} dest={destination:X} vec={vector:<3} active-{} {} {} mode={} {}\r",
            if entry.active_low() { "lo" } else { "hi" },
            if entry.level() { "level" } else { "edge " },
            if entry.masked() { "masked" } else { "      " },
            entry.delivery_mode(),
            if entry.logical() { "logical" } else { "physical" },
        );
    }
    let pins_where = |what: &dyn Fn(&PinSnapshot) -> bool| {
        let pins = pins.iter().enumerate().filter(|(_, pin)| what(pin));
        numbers(pins.map(|(pin, _)| pin.to_string()))
    };
    let latched = pins_where(&|pin| pin.latched);
    let remote = pins_where(&|pin| RedirectionEntry::from_bits(pin.entry).remote_irr());
    let _ = writeln!(
        text,
        "  IRR      {latched}\r
  Remote IRR {remote}\r"
    );
    for chip in [1, 0] {
        let PicState { irr, imr, isr, priority_add, irq_base, read_isr, elcr, fully_nested, .. } =
            board.pic().state(chip);
        let _ = writeln!(
            text,
            "pic{chip}: irr={irr:02x} imr={imr:02x} isr={isr:02x} hprio={priority_add} irq_base={irq_base:02x} \
             rr_sel={} elcr={elcr:02x} fnm={}\r",
            u8::from(read_isr),
            u8::from(fully_nested),
        );
    }
    text
}

fn info_lapic(board: &Q35, cpu: u32) -> String {
    let Some(local) = board.local(cpu) else { return "No CPU available\r\n".into() };
    let page = local.page();
    let register = |slot: usize| {
        let at = 16 * slot;
        page[at..at + 4].iter().rev().fold(0u32, |value, byte| value << 8 | u32::from(*byte))
    };
    let mut text = format!("dumping local APIC state for CPU {cpu} \r\n\r\n");
    for (name, slot) in [
        ("LVT0", slot::LVT_LINT0),
        ("LVT1", slot::LVT_LINT1),
        ("LVTPC", slot::LVT_PERFORMANCE),
        ("LVTERR", slot::LVT_ERROR),
        ("LVTTHMR", slot::LVT_THERMAL),
        ("LVTT", slot::LVT_TIMER),
        ("SPIV", slot::SVR),
        ("ICR", slot::ICR),
        ("ICR2", slot::ICR_HIGH),
        ("ESR", slot::ESR),
    ] {
        let _ = writeln!(text, "{name}\t {:#010x}\r", register(slot));
    }
    let set = |first: usize, vector: usize| register(first + vector / 32) >> (vector % 32) & 1 == 1;
    for (name, first) in [("ISR", slot::ISR), ("IRR", slot::IRR)] {
        let vectors = (0..256).filter(|vector| set(first, *vector));
        let level = |vector| if set(slot::TMR, vector) { "(level)" } else { "" };
        let _ = writeln!(text, "{name}\t {}\r", numbers(vectors.map(|vector| format!("{vector}{}", level(vector)))));
    }
    let _ = writeln!(text, "\r\n{}\r", priorities(local, register));
    text
}

fn priorities(local: &LocalApic, register: impl Fn(usize) -> u32) -> String {
    let (tpr, ppr) = (register(slot::TPR), local.ppr());
    let (ldr, dfr) = (register(slot::LDR) >> 24, register(slot::DFR) >> 28);
    format!("APR 0x00 TPR {tpr:#04x} DFR {dfr:#04x} LDR {ldr:#04x} PPR {ppr:#04x}")
}
