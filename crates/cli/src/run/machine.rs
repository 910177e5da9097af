//! The machine to run: how many vCPUs, and which devices raise interrupts how. Read from `MACHINE.toml`.

use std::{fmt, ops::RangeInclusive, path::Path};

use serde::Deserialize;
use toml::{Spanned, Value};

use super::ledger::{MAX_DEVICES, MAX_VCPUS};

/// The built-in machine, which also documents the format.
pub const X86: &str = include_str!("../../machines/x86.toml");
/// 300 vCPUs behind VT-d.
pub const X86_VTD: &str = include_str!("../../machines/x86-vtd.toml");
/// 300 vCPUs behind AMD-Vi.
pub const X86_AMD: &str = include_str!("../../machines/x86-amd.toml");
/// IOAPIC pins that legacy devices may have: 16 to 23, which no x86 board wires to something else.
pub const LINES: u32 = 8;

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
    /// IOAPIC lines, each shared by some of the device's interrupt sources.
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
    /// How many vCPUs.
    pub vcpus: u32,
    /// Whose chips, if the file says so.
    pub chips: Option<Chips>,
    /// Its interrupt remapping.
    pub remap: Remap,
    /// The devices.
    pub sources: Vec<Source>,
}

/// What is wrong with a machine file, as one line for the user.
#[derive(Debug, PartialEq, Eq)]
pub struct BadMachine {
    file: String,
    line: usize,
    field: String,
    problem: String,
}

impl fmt::Display for BadMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, field, problem } = self;
        write!(f, "{file}:{line}: ")?;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        f.write_str(problem)
    }
}

type Field = Option<Spanned<Value>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineFields {
    vcpus: Field,
    chips: Field,
    remap: Field,
    #[serde(default)]
    source: Vec<Spanned<SourceFields>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFields {
    name: Field,
    kind: Field,
    vectors: Field,
    lines: Field,
    sharers: Field,
    resample: Field,
    interrupts: Field,
    pattern: Field,
}

/// The text of a machine file, for what its errors need.
struct Reader<'a> {
    file: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
    }

    fn bad(&self, offset: usize, field: &str, problem: impl Into<String>) -> BadMachine {
        BadMachine { file: self.file.into(), line: self.line(offset), field: field.into(), problem: problem.into() }
    }

    /// What the TOML parser found: its first line, with the key of the offending line as the field.
    fn syntax(&self, error: &toml::de::Error) -> BadMachine {
        let offset = error.span().map_or(0, |span| span.start);
        let line = self.text.lines().nth(self.line(offset) - 1).unwrap_or_default();
        let field = line.split_once('=').map_or("", |(key, _)| key.trim());
        let message: Vec<_> = error.message().lines().map(str::trim).collect();
        self.bad(offset, field, message.join("; "))
    }

    fn number(
        &self,
        field: &Field,
        name: &str,
        range: RangeInclusive<u32>,
        default: Option<u32>,
        at: usize,
    ) -> Result<u32, BadMachine> {
        let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
        let Some(value) = field else {
            return default.ok_or_else(|| self.bad(at, name, format!("is missing: {}", allowed())));
        };
        match value.get_ref().as_integer().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if range.contains(&number) => Ok(number),
            _ => Err(self.refused(value, name, &allowed())),
        }
    }

    fn choice<T: Copy>(
        &self,
        field: &Field,
        name: &str,
        choices: &[(&str, T)],
        default: Option<T>,
        at: usize,
    ) -> Result<T, BadMachine> {
        let allowed = || {
            let quoted: Vec<_> = choices.iter().map(|(choice, _)| format!("\"{choice}\"")).collect();
            match quoted.split_last() {
                Some((last, [])) => last.clone(),
                Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
                None => String::new(),
            }
        };
        let Some(value) = field else {
            return default.ok_or_else(|| self.bad(at, name, format!("is missing: {}", allowed())));
        };
        let given = value.get_ref().as_str();
        let found = choices.iter().find(|(choice, _)| Some(*choice) == given);
        found.map(|&(_, choice)| choice).ok_or_else(|| self.refused(value, name, &allowed()))
    }

    fn refused(&self, value: &Spanned<Value>, name: &str, allowed: &str) -> BadMachine {
        let mut shown = value.get_ref().to_string();
        if shown.chars().count() > 40 {
            shown = shown.chars().take(40).collect::<String>() + "…";
        }
        self.bad(value.span().start, name, format!("{} is not allowed: {allowed}", shown.replace('\n', " ")))
    }
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
        let vcpus = reader.number(&fields.vcpus, "vcpus", 1..=MAX_VCPUS as u32, None, 0)?;
        let all = [Chips::Soft, Chips::Kernel, Chips::Split, Chips::None].map(|chips| (chips.name(), Some(chips)));
        let chips = reader.choice(&fields.chips, "chips", &all, Some(None), 0)?;
        let all = [("none", Remap::None), ("vtd", Remap::Vtd), ("amd", Remap::Amd)];
        let remap = reader.choice(&fields.remap, "remap", &all, Some(Remap::None), 0)?;
        if let (Some(value), true) = (&fields.remap, remap != Remap::None && chips.is_some_and(|it| it != Chips::Soft))
        {
            return Err(reader.refused(value, "remap", "interrupt remapping is on \"soft\" chips only"));
        }
        if fields.source.is_empty() || fields.source.len() > MAX_DEVICES {
            let found = fields.source.len();
            return Err(reader.bad(0, "source", format!("{found} of them are not allowed: 1 to {MAX_DEVICES}")));
        }
        let mut sources: Vec<Source> = Vec::new();
        for fields in fields.source {
            let source = reader.source(&fields, &sources)?;
            sources.push(source);
        }
        Ok(Self { name: file.into(), vcpus, chips, remap, sources })
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

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Network,
    Storage,
    Legacy,
}

impl Reader<'_> {
    fn source(&self, spanned: &Spanned<SourceFields>, before: &[Source]) -> Result<Source, BadMachine> {
        let at = spanned.span().start;
        let fields = spanned.get_ref();
        let name = self.name(fields, at, before)?;
        let kinds = [("network", Kind::Network), ("storage", Kind::Storage), ("legacy", Kind::Legacy)];
        let kind = self.choice(&fields.kind, "kind", &kinds, None, at)?;
        let only = |field: &Field, name: &str, kinds: &str| match field {
            Some(value) => Err(self.bad(value.span().start, name, format!("is not allowed here: only {kinds} has it"))),
            None => Ok(()),
        };
        let wiring = if kind == Kind::Legacy {
            only(&fields.vectors, "vectors", "a network or storage device")?;
            let lines = self.number(&fields.lines, "lines", 1..=LINES, Some(1), at)?;
            let used: u32 = before
                .iter()
                .map(|source| if let Wiring::Lines { lines, .. } = source.wiring { lines } else { 0 })
                .sum();
            if used + lines > LINES {
                let left = LINES - used;
                let offset = fields.lines.as_ref().map_or(at, |value| value.span().start);
                let allowed = format!("{lines} is not allowed: a machine has {LINES} lines and {left} are left");
                return Err(self.bad(offset, "lines", allowed));
            }
            let resample = match &fields.resample {
                None => true,
                Some(value) => {
                    value.get_ref().as_bool().ok_or_else(|| self.refused(value, "resample", "true or false"))?
                }
            };
            // Edges of two sources on one line cannot be told apart.
            let most = if resample { 8 } else { 1 };
            let sharers = self.number(&fields.sharers, "sharers", 1..=most, Some(1), at)?;
            Wiring::Lines { lines, sharers, resample }
        } else {
            only(&fields.lines, "lines", "a legacy device")?;
            only(&fields.sharers, "sharers", "a legacy device")?;
            only(&fields.resample, "resample", "a legacy device")?;
            Wiring::Vectors(self.number(&fields.vectors, "vectors", 1..=2048, None, at)?)
        };
        let interrupts = self.number(&fields.interrupts, "interrupts", 1..=1_000_000_000, None, at)?;
        let patterns = [("lockstep", Pattern::Lockstep), ("free", Pattern::Free), ("half", Pattern::Half)];
        let pattern = self.choice(&fields.pattern, "pattern", &patterns, Some(Pattern::Half), at)?;
        Ok(Source { name, wiring, interrupts: u64::from(interrupts), pattern })
    }

    fn name(&self, fields: &SourceFields, at: usize, before: &[Source]) -> Result<String, BadMachine> {
        let allowed = "1 to 24 letters, digits, '-' or '_'";
        let Some(value) = &fields.name else {
            return Err(self.bad(at, "name", format!("is missing: {allowed}")));
        };
        let name = value.get_ref().as_str().unwrap_or_default();
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 24 || !name.chars().all(fits) {
            return Err(self.refused(value, "name", allowed));
        }
        if before.iter().any(|source| source.name == name) {
            return Err(self.refused(value, "name", "each device needs a name of its own"));
        }
        Ok(name.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Machine::parse("m.toml", text).unwrap_err().to_string()
    }

    const DEVICE: &str = "[[source]]\nname = 'n'\nkind = 'network'\nvectors = 2\ninterrupts = 10\n";

    #[test]
    fn the_built_in_machine_is_the_one_of_the_issue() {
        let machine = Machine::x86();
        assert_eq!(machine.vcpus, 4);
        let wiring: Vec<_> = machine.sources.iter().map(|source| source.wiring).collect();
        let legacy = Wiring::Lines { lines: 1, sharers: 2, resample: true };
        assert_eq!(wiring, [Wiring::Vectors(8), Wiring::Vectors(64), legacy]);
        assert!(machine.interrupts() >= 1_000_000);
    }

    #[test]
    fn the_big_built_in_machines_are_behind_interrupt_remapping() {
        for (text, remap) in [(X86_VTD, Remap::Vtd), (X86_AMD, Remap::Amd)] {
            let machine = Machine::built_in("big", text);
            assert_eq!((machine.vcpus, machine.remap, machine.chips), (300, remap, None));
            assert!(machine.interrupts() >= 300_000);
        }
        let remap = |text: &str| Machine::parse("m.toml", &format!("{text}{DEVICE}")).map(|machine| machine.remap);
        assert_eq!(remap("vcpus = 1\n"), Ok(Remap::None));
        assert_eq!(remap("vcpus = 1\nremap = 'none'\nchips = 'kernel'\n"), Ok(Remap::None));
        assert_eq!(remap("vcpus = 1\nremap = 'amd'\nchips = 'soft'\n"), Ok(Remap::Amd));
        assert_eq!(
            error(&format!("vcpus = 1\nremap = 'intel'\n{DEVICE}")),
            "m.toml:2: remap: \"intel\" is not allowed: \"none\", \"vtd\" or \"amd\""
        );
        assert_eq!(
            error(&format!("vcpus = 1\nremap = 'vtd'\nchips = 'split'\n{DEVICE}")),
            "m.toml:2: remap: \"vtd\" is not allowed: interrupt remapping is on \"soft\" chips only"
        );
    }

    #[test]
    fn scaling_keeps_the_shares_and_leaves_no_vector_without_work() {
        let mut machine = Machine::x86();
        machine.scale(16_000);
        assert_eq!(machine.sources.iter().map(|source| source.interrupts).collect::<Vec<_>>(), [4_000, 11_800, 200]);
        machine.scale(20_001);
        assert_eq!(machine.interrupts(), 20_001);
        machine.scale(u64::MAX);
        assert_eq!(machine.interrupts(), u64::MAX);
        machine.scale(1);
        assert_eq!(machine.sources.iter().map(|source| source.interrupts).collect::<Vec<_>>(), [8, 64, 2]);
    }

    #[test]
    fn an_error_names_file_line_field_and_what_is_allowed() {
        assert_eq!(
            error(&format!("vcpus = 1000\n{DEVICE}")),
            "m.toml:1: vcpus: 1000 is not allowed: a whole number from 1 to 512"
        );
        assert_eq!(
            error("vcpus = 1\n\n[[source]]\nname = 'n'\nkind = 'netwrk'\n"),
            "m.toml:5: kind: \"netwrk\" is not allowed: \"network\", \"storage\" or \"legacy\""
        );
        assert_eq!(
            error("vcpus = 1\n[[source]]\nname = 'n'\nkind = 'storage'\ninterrupts = 1\n"),
            "m.toml:2: vectors: is missing: a whole number from 1 to 2048"
        );
        assert_eq!(
            error(&format!("vcpus = 1\n{DEVICE}lines = 2\n")),
            "m.toml:7: lines: is not allowed here: only a legacy device has it"
        );
        assert_eq!(
            error(&format!("vcpus = 1\n{DEVICE}{DEVICE}")),
            "m.toml:8: name: \"n\" is not allowed: each device needs a name of its own"
        );
        assert_eq!(error("vcpus = 1\n"), "m.toml:1: source: 0 of them are not allowed: 1 to 56");
        assert_eq!(
            error(
                "vcpus = 1\n[[source]]\nname = 'a'\nkind = 'legacy'\nlines = 8\ninterrupts = 1\n[[source]]\nname = 'b'\nkind = 'legacy'\ninterrupts = 1\n"
            ),
            "m.toml:7: lines: 1 is not allowed: a machine has 8 lines and 0 are left"
        );
    }

    #[test]
    fn what_toml_refuses_is_said_on_one_line_too() {
        let unknown = error(&format!("vcpus = 1\n{DEVICE}vectrs = 2\n"));
        assert!(unknown.starts_with("m.toml:7: vectrs: unknown field `vectrs`, expected one of `name`"), "{unknown}");
        let syntax = error("vcpus = = 1\n");
        assert!(syntax.starts_with("m.toml:1: vcpus: "), "{syntax}");
        assert_eq!(syntax.lines().count(), 1);
        let twice = error("vcpus = 1\nvcpus = 2\n");
        assert!(twice.starts_with("m.toml:2: vcpus: "), "{twice}");
    }

    #[test]
    fn numbers_out_of_the_machine_s_range_do_not_wrap() {
        for value in ["-1", "4294967297", "1.5", "'4'", "true", "[1]"] {
            let error = error(&format!("vcpus = {value}\n{DEVICE}"));
            assert!(error.ends_with("is not allowed: a whole number from 1 to 512"), "{error}");
        }
    }
}
