//! What can be seen of a machine after each step.

use super::super::Error;
use super::step::{
    AMD, CAPABILITY, EDU_BAR, INTERRUPT_TABLES, MAILBOXES, MSIX_BAR, STATUS, TABLE_BYTES, TABLES, VTD, config,
};
use super::wire::{CPUS, EDU, IVSHMEM, VECTORS, Wire};

/// The registers of the IOAPIC, the 8259s, the local APICs' vectors, the pending bits, and what messages left in RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Redirection entries.
    pub entries: Vec<u64>,
    /// Latches of level pins, a bit each.
    pub latched: u32,
    /// ISR and IRR of each local APIC, as the monitor shows them.
    pub vectors: Vec<[String; 2]>,
    /// The master's line of the monitor, and the slave's.
    pub pics: [String; 2],
    /// The pending bits.
    pub pending: u64,
    /// What was in the mailboxes, which are empty now.
    pub delivered: Vec<u64>,
    /// The IOAPIC's id and index.
    pub ioapic: String,
    /// Registers of the VT-d unit, as [`VTD_REGISTERS`] names them.
    pub vtd: [u64; VTD_REGISTERS.len()],
    /// Head and tail of the AMD-Vi unit's command buffer.
    pub amd: [u64; 2],
}

/// Registers of the VT-d unit that both show alike. Of the faults only those of the queue are (bit 4).
const VTD_REGISTERS: [(&str, u64); 8] = [
    ("GSTS", 0x1c),
    ("ICS", 0x9c),
    ("IECTL", 0xa0),
    ("IQH", 0x80),
    ("IQT", 0x88),
    ("IRTA", 0xb8),
    ("IEDATA", 0xa4),
    ("IEADDR", 0xa8),
];

/// Resets a machine and gives its functions their addresses.
///
/// # Errors
/// Where it is gone.
pub fn prelude(wire: &mut dyn Wire) -> Result<(), Error> {
    wire.reset()?;
    let mut lines = vec![format!("memset {MAILBOXES:#x} 0x1000 0"), format!("writel {STATUS:#x} 0")];
    lines.extend(TABLES.map(|table| format!("memset {table:#x} {TABLE_BYTES:#x} 0")));
    lines.push(format!("memset {INTERRUPT_TABLES:#x} 0x6000 0"));
    for (devfn, bar, address) in [(EDU, 0x10, EDU_BAR), (IVSHMEM, 0x14, MSIX_BAR)] {
        lines.extend([config(devfn, bar), format!("outl 0xcfc {address:#x}")]);
        lines.extend([config(devfn, 4), "outw 0xcfc 0x6".into()]);
    }
    for (devfn, id) in [(EDU, 0x05), (IVSHMEM, 0x11)] {
        lines.push(config(devfn, CAPABILITY));
        lines.push("inb 0xcfc".into());
        let answers = wire.say(&lines)?;
        if answers.last().is_none_or(|answer| number(answer) != id) {
            return Err(format!("{}: the capability of function {devfn:#x} is elsewhere", wire.name()));
        }
        lines.clear();
    }
    Ok(())
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
}

impl State {
    /// Looks at a machine, and empties the mailboxes.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn of(wire: &mut dyn Wire) -> Result<Self, Error> {
        let mut commands = vec!["info pic".to_owned()];
        commands.extend((0..CPUS).map(|cpu| format!("info lapic {cpu}")));
        let shown = wire.ask(&commands)?;
        let boxes = || (0..u64::from(VECTORS)).map(|vector| MAILBOXES + 4 * vector);
        let mut lines = vec![format!("readq {:#x}", MSIX_BAR + 0x800)];
        lines.extend(boxes().map(|mailbox| format!("readl {mailbox:#x}")));
        lines.extend(VTD_REGISTERS.map(|(_, offset)| format!("readl {:#x}", VTD + offset)));
        lines.extend([0x2000, 0x2008].map(|offset| format!("readq {:#x}", AMD + offset)));
        let mut read = wire.say(&lines)?.into_iter().map(|answer| number(&answer));
        let pending = read.next().unwrap_or_default();
        let delivered: Vec<u64> = read.by_ref().take(VECTORS.into()).collect();
        let vtd = std::array::from_fn(|_| read.next().unwrap_or_default());
        let amd = std::array::from_fn(|_| read.next().unwrap_or_default());
        if delivered.iter().any(|data| *data != 0) {
            wire.say(&boxes().map(|mailbox| format!("writel {mailbox:#x} 0")).collect::<Vec<_>>())?;
        }
        Ok(Self { pending, delivered, vtd, amd, ..Self::shown(&shown) })
    }

    fn shown(shown: &[String]) -> Self {
        let starting = |text: &str, start: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(start));
            line.map(|rest| rest.trim().to_owned()).unwrap_or_default()
        };
        let pic = shown.first().map(String::as_str).unwrap_or_default();
        let ioapic = starting(pic, "ioapic0:");
        let entries: Vec<u64> = (0..24)
            .map(|pin| {
                let line = starting(pic, &format!("  pin {pin:<2} "));
                number(line.split(' ').next().unwrap_or_default())
            })
            .collect();
        let latched =
            starting(pic, "  IRR ").split_whitespace().filter_map(|pin| pin.parse::<usize>().ok()).collect::<Vec<_>>();
        // An edge's latch is an affair of the chip's own: KVM keeps it while the line is high, QEMU until it is sent.
        let level = |pin: &&usize| entries.get(**pin).is_some_and(|entry| entry >> 15 & 1 == 1);
        let latched = latched.iter().filter(level).fold(0, |bits, pin| bits | 1 << pin);
        Self {
            // The rest of the line is the same, said again.
            ioapic: ioapic.split(" (").next().unwrap_or_default().to_owned(),
            latched,
            vectors: shown.iter().skip(1).map(|lapic| ["ISR\t", "IRR\t"].map(|name| starting(lapic, name))).collect(),
            pics: ["pic0:", "pic1:"].map(|name| starting(pic, name)),
            entries,
            pending: 0,
            delivered: Vec::new(),
            vtd: [0; VTD_REGISTERS.len()],
            amd: [0; 2],
        }
    }

    /// What differs: what it is, and both values.
    pub fn differences(&self, other: &Self) -> Vec<[String; 3]> {
        let mut items = Vec::new();
        let mut compare = |name: String, left: String, right: String| {
            if left != right {
                items.push([name, left, right]);
            }
        };
        let hex = |value: u64| format!("{value:#x}");
        compare("IOAPIC".into(), self.ioapic.clone(), other.ioapic.clone());
        for (pin, (left, right)) in self.entries.iter().zip(&other.entries).enumerate() {
            compare(format!("IOAPIC entry {pin}"), hex(*left), hex(*right));
        }
        compare("IOAPIC IRR of level pins".into(), hex(self.latched.into()), hex(other.latched.into()));
        for (cpu, (left, right)) in self.vectors.iter().zip(&other.vectors).enumerate() {
            for (name, at) in [("ISR", 0), ("IRR", 1)] {
                compare(format!("CPU {cpu} {name}"), left[at].clone(), right[at].clone());
            }
        }
        for (name, at) in [("first 8259", 0), ("second 8259", 1)] {
            compare(name.into(), self.pics[at].clone(), other.pics[at].clone());
        }
        compare("MSI-X pending".into(), hex(self.pending), hex(other.pending));
        for (at, (left, right)) in self.delivered.iter().zip(&other.delivered).enumerate() {
            compare(format!("mailbox {at}"), hex(*left), hex(*right));
        }
        for (name, at) in [("head", 0), ("tail", 1)] {
            compare(format!("AMD-Vi command {name}"), hex(self.amd[at]), hex(other.amd[at]));
        }
        for ((name, _), (left, right)) in VTD_REGISTERS.iter().zip(self.vtd.iter().zip(&other.vtd)) {
            compare(format!("VT-d {name}"), hex(*left), hex(*right));
        }
        items
    }
}
