//! The command line: our options, and those of QEMU that say what the machine has.
//!
//! A program that starts QEMU for its qtest protocol starts this one with the same words, so what is not known is left
//! alone, with its value.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::virt;

/// RAM in MiB: what QEMU gives by default, and the most that lies below a q35's hole.
const DEFAULT_MIB: u64 = 128;
const MOST_MIB: u64 = 2048;
/// Vectors of an ivshmem device.
const MOST_VECTORS: u16 = 2048;

/// Which remapping unit the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// `-device intel-iommu,intremap=on`; with `eim=on`, for 32-bit destinations.
    Intel { extended: bool, posted: bool },
    /// `-device amd-iommu,intremap=on`.
    Amd,
}

/// A PCI function, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Device 0 to 31 on bus 0, function 0 to 7.
    pub devfn: u8,
    /// What it is.
    pub model: Model,
}

/// What a PCI function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// QEMU's `edu`: one MSI vector.
    Edu,
    /// QEMU's `ivshmem-doorbell`: MSI-X vectors whose events come from a server, if there is one.
    Ivshmem { vectors: u16, server: Option<PathBuf> },
}

/// Which machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's `q35`.
    #[default]
    Q35,
    /// QEMU's `virt`, with a GICv3.
    Virt {
        /// Whether it has an ITS.
        its: bool,
    },
}

impl Kind {
    /// Where its RAM begins.
    pub fn ram(self) -> u64 {
        match self {
            Self::Q35 => 0,
            Self::Virt { .. } => virt::RAM,
        }
    }

    /// How many vCPUs it has at most: as QEMU's q35, and as redistributors have room in virt's first region.
    fn most_cpus(self) -> u32 {
        match self {
            Self::Q35 => 288,
            Self::Virt { .. } => virt::MOST_CPUS,
        }
    }
}

/// What the machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which machine.
    pub kind: Kind,
    /// How many vCPUs.
    pub cpus: u32,
    /// MiB of RAM.
    pub mib: u64,
    /// The remapping unit.
    pub iommu: Option<Iommu>,
    /// The 8259 pair as its data sheet has it, and not as KVM.
    pub strict_pic: bool,
    /// A program is loaded for vCPU 0.
    pub loader: bool,
    /// PCI functions.
    pub devices: Vec<Device>,
}

impl Default for Options {
    fn default() -> Self {
        let kind = Kind::default();
        Self { kind, cpus: 1, mib: DEFAULT_MIB, iommu: None, strict_pic: false, loader: false, devices: Vec::new() }
    }
}

/// Where a protocol is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Connect to this socket; or with `server=on`, wait there.
    Unix { path: PathBuf, server: bool },
    /// Standard input and output.
    Stdio,
}

/// The whole command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The machine.
    pub machine: Options,
    /// Where qtest is spoken.
    pub qtest: Option<Channel>,
    /// Where QMP is spoken.
    pub qmp: Option<Channel>,
}

/// A word of the form `model,key=value,…`.
struct Value<'a> {
    first: &'a str,
    keys: BTreeMap<&'a str, &'a str>,
}

impl<'a> Value<'a> {
    fn of(word: &'a str) -> Self {
        let mut parts = word.split(',');
        let first = parts.next().unwrap_or_default();
        Self { first, keys: parts.map(|part| part.split_once('=').unwrap_or((part, "on"))).collect() }
    }

    fn is_on(&self, key: &str) -> bool {
        matches!(self.keys.get(key), Some(&("on" | "yes" | "true")))
    }

    /// The value of `key`, or the first word if it stands without one.
    fn first_or(&self, key: &str) -> &'a str {
        match self.first.split_once('=') {
            Some((name, value)) if name == key => value,
            Some(_) => self.keys.get(key).copied().unwrap_or_default(),
            None => self.first,
        }
    }
}

impl CommandLine {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// One line that says what is wrong with which option.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let mut line = Self::default();
        let mut sockets = BTreeMap::new();
        let mut monitors = Vec::new();
        let mut devices = Vec::new();
        let mut cpus = None;
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                return Err(format!("`{word}` is no option"));
            };
            let (option, inline) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
            let known = matches!(
                option,
                "machine" | "M" | "qtest" | "qmp" | "smp" | "m" | "device" | "chardev" | "mon" | "accel" | "cpu"
            );
            let value = match inline {
                Some(value) => value,
                // A value of an option that is not known may look like anything but an option.
                None if known || words.peek().is_some_and(|next| !next.starts_with('-')) => match words.next() {
                    Some(value) => value,
                    None => return Err(format!("{word} needs a value")),
                },
                None => "",
            };
            match option {
                "machine" | "M" => (line.machine.kind, line.machine.strict_pic) = machine(value)?,
                "smp" => cpus = Some(value),
                "m" => line.machine.mib = mib(value)?,
                "qtest" => line.qtest = Some(channel(word, value)?),
                "qmp" => line.qmp = Some(channel(word, value)?),
                "chardev" => {
                    let value = Value::of(value);
                    if let (Some(id), Some(path)) = (value.keys.get("id"), value.keys.get("path")) {
                        let server = value.is_on("server");
                        sockets.insert((*id).to_owned(), Channel::Unix { path: PathBuf::from(path), server });
                    }
                }
                "mon" => {
                    let value = Value::of(value);
                    let id = value.keys.get("chardev").copied().unwrap_or_else(|| value.first_or("chardev"));
                    if value.keys.get("mode") == Some(&"control") {
                        monitors.push(id.to_owned());
                    }
                }
                "device" => devices.push(value),
                _ => {}
            }
        }
        if let Some(value) = cpus {
            line.machine.cpus = smp(value, line.machine.kind.most_cpus())?;
        }
        for monitor in monitors {
            line.qmp = Some(sockets.get(&monitor).cloned().ok_or(format!("-mon: there is no -chardev `{monitor}`"))?);
        }
        for device in devices {
            line.machine.add(device, &sockets)?;
        }
        Ok(line)
    }
}

impl Options {
    fn add(&mut self, word: &str, sockets: &BTreeMap<String, Channel>) -> Result<(), String> {
        let value = Value::of(word);
        let remapping = value.is_on("intremap");
        let model = match value.first {
            // Without interrupt remapping there is nothing of a unit here.
            "intel-iommu" => {
                let (extended, posted) = (value.is_on("eim"), value.is_on("posted"));
                self.iommu = remapping.then_some(Iommu::Intel { extended, posted });
                return Ok(());
            }
            "amd-iommu" => {
                self.iommu = remapping.then_some(Iommu::Amd);
                return Ok(());
            }
            "loader" => {
                self.loader |= value.keys.get("cpu-num") == Some(&"0");
                return Ok(());
            }
            "edu" => Model::Edu,
            "ivshmem-doorbell" => {
                let vectors = value.keys.get("vectors").copied().unwrap_or("1");
                let vectors = vectors.parse().ok().filter(|vectors| (1..=MOST_VECTORS).contains(vectors));
                let vectors = vectors.ok_or(format!("-device {word}: vectors is not 1 to {MOST_VECTORS}"))?;
                let server = match value.keys.get("chardev").map(|id| (id, sockets.get(*id))) {
                    None => None,
                    Some((_, Some(Channel::Unix { path, .. }))) => Some(path.clone()),
                    Some((id, _)) => return Err(format!("-device {word}: there is no -chardev `{id}`")),
                };
                Model::Ivshmem { vectors, server }
            }
            _ => return Ok(()),
        };
        let devfn = match value.keys.get("addr") {
            Some(address) => devfn(address).ok_or(format!("-device {word}: addr is not 0 to 1f, or 0.0 to 1f.7"))?,
            None => (1..32)
                .map(|device| device << 3)
                .find(|devfn| self.devices.iter().all(|other| other.devfn != *devfn))
                .ok_or(format!("-device {word}: bus 0 is full"))?,
        };
        if self.devices.iter().any(|other| other.devfn == devfn) {
            return Err(format!("-device {word}: there is another device at this address"));
        }
        self.devices.push(Device { devfn, model });
        Ok(())
    }
}

/// Which machine, and whether the 8259 is strict. QEMU's other properties do not matter here: the chips are never the
/// kernel's.
fn machine(value: &str) -> Result<(Kind, bool), String> {
    let value = Value::of(value);
    let name = value.first_or("type");
    match name {
        "virt" => match value.keys.get("gic-version") {
            None | Some(&("3" | "max")) => Ok((Kind::Virt { its: value.keys.get("its") != Some(&"off") }, false)),
            Some(other) => Err(format!("--machine virt,gic-version={other}: 3 is what there is")),
        },
        _ if name == "q35" || name.starts_with("pc-q35") => Ok((Kind::Q35, value.keys.get("8259") == Some(&"strict"))),
        _ => Err(format!("--machine `{name}`: q35 and virt are what there is")),
    }
}

fn smp(value: &str, most: u32) -> Result<u32, String> {
    let number = Value::of(value).first_or("cpus").parse().ok();
    number.filter(|cpus| (1..=most).contains(cpus)).ok_or(format!("-smp `{value}`: not a number from 1 to {most}"))
}

fn mib(value: &str) -> Result<u64, String> {
    let size = Value::of(value).first_or("size");
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: Option<u64> = digits.parse().ok();
    let mib = match &size[digits.len()..] {
        "" | "m" | "M" => number,
        "g" | "G" => number.and_then(|number| number.checked_mul(1024)),
        _ => None,
    };
    mib.filter(|mib| (1..=MOST_MIB).contains(mib)).ok_or(format!("-m `{value}`: not 1 to {MOST_MIB} MiB"))
}

/// QEMU's numbers there are hexadecimal.
fn devfn(address: &str) -> Option<u8> {
    let (device, function) = address.split_once('.').unwrap_or((address, "0"));
    let device = u8::from_str_radix(device.trim_start_matches("0x"), 16).ok().filter(|device| *device < 32)?;
    let function = u8::from_str_radix(function, 16).ok().filter(|function| *function < 8)?;
    Some(device << 3 | function)
}

fn channel(option: &str, value: &str) -> Result<Channel, String> {
    if value == "stdio" {
        return Ok(Channel::Stdio);
    }
    let value = Value::of(value);
    match value.first.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(Channel::Unix { path: path.into(), server: value.is_on("server") }),
        _ => Err(format!("{option} `{}`: unix:PATH or stdio is what there is", value.first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, String> {
        CommandLine::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn unix(path: &str) -> Channel {
        Channel::Unix { path: path.into(), server: false }
    }

    #[test]
    fn our_own_form_is_short() {
        let line = parse("--machine q35 --qtest unix:/tmp/q --qmp=unix:/tmp/m,server=on,wait=off").unwrap();
        assert_eq!(line.qtest, Some(unix("/tmp/q")));
        assert_eq!(line.qmp, Some(Channel::Unix { path: "/tmp/m".into(), server: true }));
        assert_eq!(line.machine, Options::default());
    }

    #[test]
    fn the_words_that_a_client_starts_qemu_with_are_understood() {
        let line = parse(
            "-accel tcg -S -display none -nodefaults -serial none -qtest unix:/d/q -qtest-log none -chardev \
             socket,id=qmp,path=/d/m -mon chardev=qmp,mode=control -M q35,kernel-irqchip=off -cpu qemu64 -smp 2 -m 256 \
             -chardev socket,id=peer,path=/d/p -device intel-iommu,intremap=on -device edu,addr=3 -device \
             ivshmem-doorbell,vectors=3,chardev=peer,addr=4.1 -device e1000,netdev=n",
        )
        .unwrap();
        let edu = Device { devfn: 0x18, model: Model::Edu };
        let ivshmem = Device { devfn: 0x21, model: Model::Ivshmem { vectors: 3, server: Some("/d/p".into()) } };
        let iommu = Some(Iommu::Intel { extended: false, posted: false });
        assert_eq!(
            line.machine,
            Options { cpus: 2, mib: 256, iommu, devices: vec![edu, ivshmem], ..Options::default() }
        );
        assert_eq!((line.qtest, line.qmp), (Some(unix("/d/q")), Some(unix("/d/m"))));
    }

    #[test]
    fn the_words_of_the_arm_drivers_are_understood_in_any_order() {
        let line = parse(
            "-smp 2 -M virt,gic-version=3,its=on -m 256 -cpu max -device edu,addr=3 -device \
             loader,file=/f/icc_mailbox.bin,addr=0x47000000,cpu-num=0,force-raw=on",
        )
        .unwrap();
        let edu = Device { devfn: 0x18, model: Model::Edu };
        let kind = Kind::Virt { its: true };
        assert_eq!(
            line.machine,
            Options { kind, cpus: 2, mib: 256, loader: true, devices: vec![edu], ..Options::default() }
        );
        assert_eq!(parse("-M virt,its=off").unwrap().machine.kind, Kind::Virt { its: false });
    }

    #[test]
    fn devices_without_an_address_get_the_next() {
        let line = parse("-device edu -device amd-iommu,intremap=on -device edu").unwrap();
        assert_eq!(line.machine.devices.iter().map(|device| device.devfn).collect::<Vec<_>>(), [0x08, 0x10]);
        assert_eq!(line.machine.iommu, Some(Iommu::Amd));
        assert_eq!(parse("-device intel-iommu").unwrap().machine.iommu, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, named) in [
            ("stray", "`stray` is no option"),
            ("--machine", "--machine needs a value"),
            ("--machine microvm", "q35 and virt are what there is"),
            ("--machine virt,gic-version=2", "3 is what there is"),
            ("-M virt -smp 124", "1 to 123"),
            ("-smp 0", "1 to 288"),
            ("-smp 289", "1 to 288"),
            ("-m 0", "1 to 2048"),
            ("-m 3G", "1 to 2048"),
            ("-m 99999999999999999999G", "1 to 2048"),
            ("-m 5T", "1 to 2048"),
            ("-device edu,addr=20", "0 to 1f"),
            ("-device edu,addr=3 -device edu,addr=3.0", "another device"),
            ("-device ivshmem-doorbell,vectors=0", "1 to 2048"),
            ("-device ivshmem-doorbell,chardev=x", "no -chardev `x`"),
            ("-mon chardev=x,mode=control", "no -chardev `x`"),
            ("-qtest tcp:1", "unix:PATH"),
            ("-qtest unix:", "unix:PATH"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
        let accepted = parse("-smp 288 -m 2G -M q35,8259=strict").unwrap().machine;
        assert_eq!((accepted.cpus, accepted.mib, accepted.strict_pic), (288, 2048, true));
    }
}
