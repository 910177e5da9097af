//! As much of QEMU's monitor as a qtest client uses: QMP, one JSON object a line, and through it the two human commands
//! that show interrupt controllers.

use std::fmt::Write;

use doorbell::chips::x86::ioapic::{PinSnapshot, RedirectionEntry};
use doorbell::chips::x86::lapic::{LocalApic, slot};
use doorbell::chips::x86::pic::PicState;
use serde_json::{Value, json};

use super::machine::Machine;

/// The longest line.
pub const LONGEST_LINE: usize = 64 << 10;

/// What the monitor says first.
pub fn greeting() -> String {
    let version = json!({ "qemu": { "major": 7, "minor": 2, "micro": 0 }, "package": "doorbell" });
    line(&json!({ "QMP": { "version": version, "capabilities": [] } }))
}

/// The lines that answer one line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Whole lines.
    pub text: String,
    /// The client wants the program to end.
    pub quit: bool,
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// The vCPUs never run: `cont` and `stop` are remembered, nothing else.
#[derive(Debug, Default)]
pub struct Monitor {
    running: bool,
}

impl Monitor {
    /// Executes one line, without its end.
    pub fn execute(&mut self, machine: &mut Machine, request: &[u8]) -> Reply {
        let request: Value = match serde_json::from_slice(request) {
            Ok(request) => request,
            Err(_) => {
                return Reply { text: line(&error("GenericError", "JSON parse error", &Value::Null)), quit: false };
            }
        };
        let id = &request["id"];
        let Some(name) = request["execute"].as_str() else {
            let text = line(&error("GenericError", "QMP input lacks member 'execute'", id));
            return Reply { text, quit: false };
        };
        let mut text = String::new();
        let answer = match name {
            "qmp_capabilities" | "quit" => Ok(json!({})),
            "cont" | "stop" => {
                self.running = name == "cont";
                Ok(json!({}))
            }
            "query-status" => {
                let status = if self.running { "running" } else { "prelaunch" };
                Ok(json!({ "status": status, "singlestep": false, "running": self.running }))
            }
            "system_reset" => machine.reset().map(|()| {
                let data = json!({ "guest": false, "reason": "host-qmp-system-reset" });
                let timestamp = json!({ "seconds": 0, "microseconds": 0 });
                text = line(&json!({ "timestamp": timestamp, "event": "RESET", "data": data }));
                json!({})
            }),
            "human-monitor-command" => match request["arguments"]["command-line"].as_str() {
                Some(command) => Ok(human(machine, command).into()),
                None => Err("Parameter 'command-line' is missing".into()),
            },
            _ => {
                let name: String = name.chars().take(40).collect();
                let text = line(&error("CommandNotFound", &format!("The command {name} has not been found"), id));
                return Reply { text, quit: false };
            }
        };
        match answer {
            Ok(answer) => {
                let mut object = json!({ "return": answer });
                if !id.is_null() {
                    object["id"] = id.clone();
                }
                text.push_str(&line(&object));
            }
            Err(why) => text.push_str(&line(&error("GenericError", &why, id))),
        }
        Reply { text, quit: name == "quit" }
    }
}

fn error(class: &str, why: &str, id: &Value) -> Value {
    let mut object = json!({ "error": { "class": class, "desc": why } });
    if !id.is_null() {
        object["id"] = id.clone();
    }
    object
}

/// A command of the human monitor.
pub fn human(machine: &Machine, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        ["info", "pic"] => info_pic(machine),
        ["info", "lapic"] => info_lapic(machine, 0),
        ["info", "lapic", cpu] => match cpu.parse() {
            Ok(cpu) => info_lapic(machine, cpu),
            Err(_) => "not a number\r\nTry \"help info lapic\" for more information\r\n".into(),
        },
        _ => "unknown command\r\n".into(),
    }
}

/// Numbers with a space behind each, or that there are none.
fn numbers(numbers: impl Iterator<Item = String>) -> String {
    let text: String = numbers.map(|number| number + " ").collect();
    if text.is_empty() { "(none)".into() } else { text }
}

fn info_pic(machine: &Machine) -> String {
    let ioapic = machine.ioapic();
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
            machine.pic().state(chip);
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

fn info_lapic(machine: &Machine, cpu: u32) -> String {
    let Some(local) = machine.local(cpu) else { return "No CPU available\r\n".into() };
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
