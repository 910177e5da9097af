//! The text of a machine file, and what its errors say.

use std::{fmt, ops::RangeInclusive};

use toml::{Spanned, Value};

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

/// A field of the file, with its place.
pub(super) type Field = Option<Spanned<Value>>;

/// The text of a machine file, for what its errors need.
pub(super) struct Reader<'a> {
    /// Its name in errors.
    pub(super) file: &'a str,
    /// Its text.
    pub(super) text: &'a str,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
    }

    pub(super) fn bad(&self, offset: usize, field: &str, problem: impl Into<String>) -> BadMachine {
        BadMachine { file: self.file.into(), line: self.line(offset), field: field.into(), problem: problem.into() }
    }

    /// What the TOML parser found: its first line, with the key of the offending line as the field.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> BadMachine {
        let offset = error.span().map_or(0, |span| span.start);
        let line = self.text.lines().nth(self.line(offset) - 1).unwrap_or_default();
        let field = line.split_once('=').map_or("", |(key, _)| key.trim());
        let message: Vec<_> = error.message().lines().map(str::trim).collect();
        self.bad(offset, field, message.join("; "))
    }

    pub(super) fn number(
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

    pub(super) fn choice<T: Copy>(
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

    pub(super) fn refused(&self, value: &Spanned<Value>, name: &str, allowed: &str) -> BadMachine {
        let mut shown = value.get_ref().to_string();
        if shown.chars().count() > 40 {
            shown = shown.chars().take(40).collect::<String>() + "…";
        }
        self.bad(value.span().start, name, format!("{} is not allowed: {allowed}", shown.replace('\n', " ")))
    }
}
