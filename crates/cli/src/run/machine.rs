//! The machine to run: how many vCPUs, and which devices raise interrupts how. Read from `MACHINE.toml`.

mod reader;
mod source;

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::ledger::{MAX_DEVICES, MAX_VCPUS};
pub use reader::BadMachine;
use reader::{Field, Reader};
use source::SourceFields;

/// The built-in machine, which also documents the format.
pub const X86: &str = include_str!("../../machines/x86.toml");
/// 300 vCPUs behind VT-d.
pub const X86_VTD: &str = include_str!("../../machines/x86-vtd.toml");
/// 300 vCPUs behind AMD-Vi.
pub const X86_AMD: &str = include_str!("../../machines/x86-amd.toml");
/// Four vCPUs, SPIs, and LPIs through two ITSs.
pub const ARM: &str = include_str!("../../machines/arm.toml");
/// The most ITSs of an Arm machine.
pub const MAX_ITS: u32 = 4;

/// Whose interrupt architecture a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arch {
    /// An IOAPIC and local APICs.
    #[default]
    X86,
    /// A GICv3 with ITSs.
    Arm,
}

impl Arch {
    /// How many lines legacy devices may have: IOAPIC pins 16 to 23, which no x86 board wires to something else, or the
    /// SPIs 48 to 111.
    pub fn lines(self) -> u32 {
        match self {
            Self::X86 => 8,
            Self::Arm => 64,
        }
    }
}

/// Whose interrupt controllers deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Chips {
    /// Doorbell's, in this process
    Soft,
    /// The kernel's: IOAPIC and local APICs of /dev/kvm
    Kernel,
    /// The kernel's local APICs, doorbell's IOAPIC
    Split,
    /// Doorbell's chips, a guest under /dev/kvm that takes vectors by KVM_INTERRUPT
    None,
}

impl Chips {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Kernel => "kernel",
            Self::Split => "split",
            Self::None => "none",
        }
    }
}

/// Which interrupt remapping is between the devices and the chips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remap {
    /// None.
    #[default]
    None,
    /// One VT-d unit.
    Vtd,
    /// One AMD-Vi unit.
    Amd,
}

/// How a device's interrupts reach the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// This many MSI-X vectors.
    Vectors(u32),
    /// IOAPIC lines or SPIs, each shared by some of the device's interrupt sources.
    Lines {
        /// How many lines.
        lines: u32,
        /// Interrupt sources to a line.
        sharers: u32,
        /// Level, with a resample descriptor for each source; otherwise edge.
        resample: bool,
    },
}

impl Wiring {
    /// How many interrupt sources this is, each with an eventfd of its own.
    pub fn vectors(self) -> u32 {
        match self {
            Self::Vectors(vectors) => vectors,
            Self::Lines { lines, sharers, .. } => lines * sharers,
        }
    }
}

/// When a device signals the next interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Once the handler has seen the last one.
    Lockstep,
    /// Whenever it likes.
    Free,
    /// Every other vector in lock-step, the others free.
    Half,
}

impl Pattern {
    /// Whether vector `number` of a device runs in lock-step.
    pub fn is_lockstep(self, number: u32) -> bool {
        match self {
            Self::Lockstep => true,
            Self::Free => false,
            Self::Half => number % 2 == 0,
        }
    }
}

/// One device, which becomes one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name in the report.
    pub name: String,
    /// Its vectors or lines.
    pub wiring: Wiring,
    /// How many interrupts it signals in total.
    pub interrupts: u64,
    /// When.
    pub pattern: Pattern,
}

/// A machine to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `x86` for the built-in one, otherwise the file.
    pub name: String,
    /// Its interrupt architecture.
    pub arch: Arch,
    /// How many vCPUs.
    pub vcpus: u32,
    /// Whose chips, if the file says so.
    pub chips: Option<Chips>,
    /// Its interrupt remapping.
    pub remap: Remap,
    /// How many ITSs an Arm machine has; the devices have them in turn. 0 on x86.
    pub its: u32,
    /// The devices.
    pub sources: Vec<Source>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineFields {
    machine: Field,
    vcpus: Field,
    chips: Field,
    remap: Field,
    its: Field,
    #[serde(default)]
    source: Vec<Spanned<SourceFields>>,
}

impl Machine {
    /// The built-in machine.
    pub fn x86() -> Self {
        Self::built_in("x86", X86)
    }

    /// A machine whose text is part of the program, and read by a test.
    pub fn built_in(name: &str, text: &str) -> Self {
        Self::parse(name, text).unwrap_or_else(|bad| unreachable!("{bad}"))
    }

    /// Reads a machine file.
    ///
    /// # Errors
    /// One line that says what is wrong, where, and what is allowed.
    pub fn read(path: &Path) -> Result<Self, String> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{file}: {error}"))?;
        Self::parse(&file, &text).map_err(|bad| bad.to_string())
    }

    /// Reads the text of a machine file; `file` is its name in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(file: &str, text: &str) -> Result<Self, BadMachine> {
        let reader = Reader { file, text };
        let fields: MachineFields = toml::from_str(text).map_err(|error| reader.syntax(&error))?;
        let arches = [("x86", Arch::X86), ("arm", Arch::Arm)];
        let arch = reader.choice(&fields.machine, "machine", &arches, Some(Arch::X86), 0)?;
        let vcpus = reader.number(&fields.vcpus, "vcpus", 1..=MAX_VCPUS as u32, None, 0)?;
        let all = [Chips::Soft, Chips::Kernel, Chips::Split, Chips::None].map(|chips| (chips.name(), Some(chips)));
        let chips = reader.choice(&fields.chips, "chips", &all, Some(None), 0)?;
        let all = [("none", Remap::None), ("vtd", Remap::Vtd), ("amd", Remap::Amd)];
        let remap = reader.choice(&fields.remap, "remap", &all, Some(Remap::None), 0)?;
        if let (Some(value), true) = (&fields.remap, remap != Remap::None && chips.is_some_and(|it| it != Chips::Soft))
        {
            return Err(reader.refused(value, "remap", "interrupt remapping is on \"soft\" chips only"));
        }
        let its = match (arch, &fields.its) {
            (Arch::X86, None) => 0,
            (Arch::X86, Some(value)) => {
                return Err(reader.refused(value, "its", "only a machine = \"arm\" has ITSs"));
            }
            (Arch::Arm, field) => reader.number(field, "its", 1..=MAX_ITS, Some(2), 0)?,
        };
        if arch == Arch::Arm {
            if let (Some(value), true) = (&fields.chips, chips.is_some_and(|chips| chips != Chips::Soft)) {
                return Err(reader.refused(value, "chips", "a machine = \"arm\" has \"soft\" chips only"));
            }
            if let (Some(value), true) = (&fields.remap, remap != Remap::None) {
                return Err(reader.refused(value, "remap", "only a machine = \"x86\" has interrupt remapping"));
            }
        }
        if fields.source.is_empty() || fields.source.len() > MAX_DEVICES {
            let found = fields.source.len();
            return Err(reader.bad(0, "source", format!("{found} of them are not allowed: 1 to {MAX_DEVICES}")));
        }
        let mut sources: Vec<Source> = Vec::new();
        for fields in fields.source {
            let source = reader.source(arch, &fields, &sources)?;
            sources.push(source);
        }
        Ok(Self { name: file.into(), arch, vcpus, chips, remap, its, sources })
    }

    /// The same machine with this many interrupts in total, shared out as before, at least one to a vector.
    pub fn scale(&mut self, interrupts: u64) {
        let before = self.interrupts();
        for source in &mut self.sources {
            let share = u128::from(source.interrupts) * u128::from(interrupts) / u128::from(before.max(1));
            source.interrupts = (share as u64).max(u64::from(source.wiring.vectors()));
        }
        // What rounding left over.
        let rest = interrupts.saturating_sub(self.interrupts());
        if let Some(first) = self.sources.first_mut() {
            first.interrupts += rest;
        }
    }

    /// How many interrupts the devices signal in total.
    pub fn interrupts(&self) -> u64 {
        self.sources.iter().fold(0, |sum: u64, source| sum.saturating_add(source.interrupts))
    }
}

#[cfg(test)]
mod tests;
