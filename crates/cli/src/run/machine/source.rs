//! One `[[source]]` of a machine file.

use serde::Deserialize;
use toml::Spanned;

use super::{
    Arch, Pattern, Source, Wiring,
    reader::{BadMachine, Field, Reader},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceFields {
    name: Field,
    kind: Field,
    vectors: Field,
    lines: Field,
    sharers: Field,
    resample: Field,
    interrupts: Field,
    pattern: Field,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Network,
    Storage,
    Legacy,
}

impl Reader<'_> {
    /// One device, whose machine has these before it.
    pub(super) fn source(
        &self,
        arch: Arch,
        spanned: &Spanned<SourceFields>,
        before: &[Source],
    ) -> Result<Source, BadMachine> {
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
            let lines = self.number(&fields.lines, "lines", 1..=arch.lines(), Some(1), at)?;
            let used: u32 = before
                .iter()
                .map(|source| if let Wiring::Lines { lines, .. } = source.wiring { lines } else { 0 })
                .sum();
            let most = arch.lines();
            if used + lines > most {
                let left = most - used;
                let offset = fields.lines.as_ref().map_or(at, |value| value.span().start);
                let allowed = format!("{lines} is not allowed: a machine has {most} lines and {left} are left");
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
