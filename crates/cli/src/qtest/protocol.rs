//! The qtest line protocol: one command a line, one answer a line, and lines for interrupts that are watched.
//!
//! Numbers are written as QEMU writes them. What makes QEMU end itself (a missing word, a number that is none) is
//! answered with `FAIL` here.

use std::fmt::Write;

use super::base64;
use super::machine::Machine;

/// The most bytes that one command moves.
pub const MOST_BYTES: usize = 1 << 20;
/// The longest line: a `write` of [`MOST_BYTES`] in hexadecimal, with room for its other words.
pub const LONGEST_LINE: usize = 2 * MOST_BYTES + 256;
/// What one `memset` may cover.
const MOST_SET: u64 = 64 << 20;

/// What a command answers after `OK`, or why it failed.
type Answer = Result<String, String>;

/// The words of a command, taken from the left.
struct Words<'a>(std::str::SplitAsciiWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self, what: &str) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| format!("Missing {what}"))
    }

    fn number(&mut self, what: &str) -> Result<u64, String> {
        let word = self.word(what)?;
        number(word).ok_or_else(|| format!("Not a number: '{}'", shown(word)))
    }

    fn length(&mut self, what: &str) -> Result<usize, String> {
        let length = self.number(what)?;
        let fits = usize::try_from(length).ok().filter(|length| *length <= MOST_BYTES);
        fits.ok_or_else(|| format!("Length {length}: at most {MOST_BYTES} bytes at once"))
    }

    fn port(&mut self) -> Result<u16, String> {
        let port = self.number("port")?;
        u16::try_from(port).map_err(|_| format!("Not a port: {port:#x}"))
    }
}

/// As C reads a number whose base is not given.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => unsigned(digits, 16),
        None => match word.strip_prefix('0').filter(|digits| !digits.is_empty()) {
            Some(digits) => unsigned(digits, 8),
            None => unsigned(word, 10),
        },
    }
}

/// `from_str_radix` would take a sign.
fn unsigned(digits: &str, radix: u32) -> Option<u64> {
    digits.starts_with(|c: char| c.is_digit(radix)).then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// A client's word in an answer: printable, and not longer than a line should be.
fn shown(word: &str) -> String {
    word.chars().take(40).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

/// Executes one line, without its end. The answer is one or more whole lines.
pub fn execute(machine: &mut Machine, line: &[u8]) -> String {
    let answer = match std::str::from_utf8(line) {
        Ok(line) => command(machine, line),
        Err(_) => Err("Not text".into()),
    };
    let mut lines = String::new();
    for (line, level) in machine.take_watched() {
        let _ = writeln!(lines, "IRQ {} {line}", if level { "raise" } else { "lower" });
    }
    let _ = match answer {
        Ok(rest) if rest.is_empty() => writeln!(lines, "OK"),
        Ok(rest) => writeln!(lines, "OK {rest}"),
        Err(why) => writeln!(lines, "FAIL {why}"),
    };
    lines
}

fn command(machine: &mut Machine, line: &str) -> Answer {
    let mut words = Words(line.split_ascii_whitespace());
    let name = words.word("command")?;
    let none = Ok(String::new());
    match name {
        "readb" | "readw" | "readl" | "readq" => {
            let mut bytes = [0; 8];
            machine.load(words.number("address")?, &mut bytes[..width(name)]);
            Ok(format!("{:#018x}", u64::from_le_bytes(bytes)))
        }
        "writeb" | "writew" | "writel" | "writeq" => {
            let (address, value) = (words.number("address")?, words.number("value")?);
            machine.store(address, &value.to_le_bytes()[..width(name)]);
            none
        }
        "read" => {
            let (address, length) = (words.number("address")?, words.length("length")?);
            let bytes = load(machine, address, length)?;
            let mut text = String::with_capacity(2 + 2 * length);
            text.push_str("0x");
            for byte in &bytes {
                let _ = write!(text, "{byte:02x}");
            }
            Ok(text)
        }
        "write" => {
            let (address, length) = (words.number("address")?, words.length("length")?);
            let mut bytes = hexadecimal(words.word("data")?)?;
            bytes.resize(length, 0);
            machine.store(address, &bytes);
            none
        }
        "b64read" => {
            let (address, length) = (words.number("address")?, words.length("length")?);
            Ok(base64::encode(&load(machine, address, length)?))
        }
        "b64write" => {
            let (address, length) = (words.number("address")?, words.length("length")?);
            let mut bytes = base64::decode(words.word("data")?).ok_or("Not base64")?;
            // What is missing keeps its value.
            bytes.truncate(length);
            machine.store(address, &bytes);
            none
        }
        "memset" => {
            let (address, length, pattern) =
                (words.number("address")?, words.number("length")?, words.number("pattern")?);
            set(machine, address, length, pattern as u8)?;
            none
        }
        "inb" | "inw" | "inl" => {
            let mut bytes = [0; 4];
            machine.port_load(words.port()?, &mut bytes[..width(name)]);
            Ok(format!("{:#06x}", u32::from_le_bytes(bytes)))
        }
        "outb" | "outw" | "outl" => {
            let (port, value) = (words.port()?, words.number("value")?);
            machine.port_store(port, &value.to_le_bytes()[..width(name)]);
            none
        }
        "irq_intercept_in" | "irq_intercept_out" => {
            let path = words.word("path")?;
            let inputs = machine.inputs(path).ok_or("Unknown device")?;
            // The chips' outputs are lines of other machines' boards; here nothing leaves by one.
            if name == "irq_intercept_in" && !machine.watch(inputs.chip) {
                return Err("IRQ intercept already enabled".into());
            }
            none
        }
        "set_irq_in" => {
            let inputs = machine.inputs(words.word("path")?).ok_or("Unknown device")?;
            let _name = words.word("name")?;
            let (pin, level) = (words.number("number")?, words.number("level")?);
            let pin = u16::try_from(pin).ok().filter(|pin| *pin < inputs.pins);
            machine.set_line(inputs.chip, pin.ok_or("No such line")?, level != 0);
            none
        }
        "clock_step" => {
            let ns = match words.0.next() {
                Some(word) => Some(number(word).ok_or_else(|| format!("Not a number: '{}'", shown(word)))?),
                None => None,
            };
            Ok(machine.step_clock(ns).to_string())
        }
        "clock_set" => Ok(machine.set_clock(words.number("time")?).to_string()),
        "endianness" => Ok("little".into()),
        _ => Err(format!("Unknown command '{}'", shown(name))),
    }
}

/// By the last letter of a command's name.
fn width(name: &str) -> usize {
    match name.as_bytes().last() {
        Some(b'b') => 1,
        Some(b'w') => 2,
        Some(b'l') => 4,
        _ => 8,
    }
}

fn load(machine: &mut Machine, address: u64, length: usize) -> Result<Vec<u8>, String> {
    if length == 0 {
        return Err("Length 0".into());
    }
    let mut bytes = vec![0; length];
    machine.load(address, &mut bytes);
    Ok(bytes)
}

fn set(machine: &mut Machine, address: u64, length: u64, pattern: u8) -> Result<(), String> {
    if length > MOST_SET {
        return Err(format!("Length {length}: at most {MOST_SET} bytes at once"));
    }
    let piece = vec![pattern; MOST_BYTES.min(length as usize)];
    let mut done = 0;
    while done < length {
        let now = (length - done).min(piece.len() as u64);
        machine.store(address.wrapping_add(done), &piece[..now as usize]);
        done += now;
    }
    Ok(())
}

fn hexadecimal(word: &str) -> Result<Vec<u8>, String> {
    let digits = word.strip_prefix("0x").ok_or("Data begins with 0x")?.as_bytes();
    if digits.len() % 2 != 0 {
        return Err("Half a byte of data".into());
    }
    let digit = |c: u8| char::from(c).to_digit(16).map(|digit| digit as u8);
    let bytes = digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?));
    bytes.collect::<Option<_>>().ok_or_else(|| "Data is not hexadecimal".into())
}
