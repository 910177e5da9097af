//! The parity sample of a run: `doorbell check kvm` in a process of its own, which binds itself to one CPU.

use std::process::{Command, Stdio};

use super::report::Parity;

/// How many random programs the sample has.
const PROGRAMS: u32 = 100;

/// Compares some random programs of calls on the kernel's KVM and on doorbell.
///
/// # Errors
/// One line, if they could not be compared.
pub fn sample(seed: u64) -> Result<Parity, String> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["check", "kvm", "--seed", &seed.to_string(), "--programs", &PROGRAMS.to_string()]);
    // What goes wrong is said there in full.
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    verdict(&text)
        .map(|(passed, failed)| Parity {
            oracle: format!("Parity sample, check kvm --seed {seed} --programs {PROGRAMS}"),
            passed,
            failed,
        })
        .ok_or_else(|| text.lines().last().map_or_else(|| format!("it ended with {}", output.status), str::to_owned))
}

/// The last line of a check: `N passed, M failed`.
fn verdict(text: &str) -> Option<(u64, u64)> {
    let (passed, failed) = text.lines().last()?.split_once(" passed, ")?;
    Some((passed.trim().parse().ok()?, failed.trim().strip_suffix(" failed")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_the_last_line() {
        assert_eq!(verdict("covered: much\n100 passed, 0 failed\n"), Some((100, 0)));
        assert_eq!(verdict("99 passed, 1 failed"), Some((99, 1)));
        for other in ["", "100 passed", "100 passed, none failed", "1 passed, 0 failed\nSKIPPED"] {
            assert_eq!(verdict(other), None, "{other}");
        }
    }
}
