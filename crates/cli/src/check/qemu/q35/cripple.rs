//! Faults that the check must find: a check that finds nothing has to be able to find something.

/// What is wrong with doorbell on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// The IOAPIC's EOI register does nothing.
    EoiRegister,
    /// Remote IRR is not shown.
    RemoteIrr,
    /// The local APIC forgets that an interrupt is level-triggered.
    TriggerMode,
    /// A line that falls stays high.
    LineStaysHigh,
    /// Unmasking an MSI-X vector writes the rest of its entry instead.
    MsixMask,
    /// An event of a masked vector is lost.
    MsixPending,
    /// A specific EOI of the 8259 ends the highest interrupt instead.
    SpecificEoi,
}

/// A machine's fault, between it and the check.
pub struct Crippled(Option<Fault>);

/// Offset of the EOI register.
const EOI: &str = "writel 0xfec00040 ";

impl Crippled {
    /// With this fault, or none.
    pub fn new(fault: Option<Fault>) -> Self {
        Self(fault)
    }

    fn has(&self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }

    /// A line as the machine gets it.
    pub fn line(&self, line: &str) -> String {
        let falls = line.starts_with("set_irq_in ") && line.ends_with(" 0");
        if self.has(Fault::EoiRegister) && line.starts_with(EOI) {
            return "endianness".into();
        }
        if self.has(Fault::LineStaysHigh) && falls {
            return line.replace(" 0", " 1");
        }
        if self.has(Fault::SpecificEoi) {
            return line.strip_prefix("outb 0x20 0x6").map_or(line.into(), |_| "outb 0x20 0x20".into());
        }
        line.into()
    }

    /// An answer as the check gets it.
    pub fn answer(&self, line: &str, answer: String) -> String {
        // The PBA and nothing else is read by qwords.
        if self.has(Fault::MsixMask) && line.starts_with("readq ") { "OK 0x0000000000000000\n".into() } else { answer }
    }

    /// What the monitor shows.
    pub fn shown(&self, text: String) -> String {
        if self.has(Fault::RemoteIrr) {
            let hidden = |line: &str| match line.split_once("0x").filter(|_| line.starts_with("  pin ")) {
                Some((start, rest)) => {
                    let bits = u64::from_str_radix(&rest[..16], 16).unwrap_or(0) & !(1 << 14);
                    format!("{start}{bits:#018x}{}\n", &rest[16..])
                }
                None => format!("{line}\n"),
            };
            return text.lines().map(hidden).collect();
        }
        if self.has(Fault::TriggerMode) { text.replace("(level)", "") } else { text }
    }

    /// How many events arrive.
    pub fn times(&self, times: u32) -> u32 {
        if self.has(Fault::MsixPending) { times - 1 } else { times }
    }
}
