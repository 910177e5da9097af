//! `cargo mutants`: a change of the code that no test notices is a missing test.

use clap::Args;

use crate::command;

/// The code whose mutants are looked at unless paths are given.
const PATHS: [&str; 6] = [
    "crates/doorbell/src/route*",
    "crates/doorbell/src/gate*",
    "crates/doorbell/src/irqfd*",
    "crates/doorbell/src/inflight*",
    "crates/doorbell/src/chips/x86/ioapic*",
    "crates/doorbell/src/chips/x86/lapic*",
];
/// Tests of their own, which cargo-mutants does not know as such: it looks for `cfg(test)` and not into `cfg(all(test, …))`.
const TESTS: [&str; 6] =
    ["**/tests.rs", "**/tests/**", "**/models.rs", "**/machine.rs", "**/inflight/cripple.rs", "**/rig.rs"];
/// The installed version, so that results can be compared.
const VERSION: &str = "27.1.0";

/// Options of `cargo xtask mutants`.
#[derive(Args)]
pub struct Options {
    /// Source files (globs); without any, the routes, gates, irqfds, the in-flight protocol and the x86 chips.
    paths: Vec<String>,
    /// Seconds after which a test run counts as hanging, which is also a mutant caught.
    #[arg(long, default_value_t = 90)]
    timeout: u32,
    /// Only the tests whose names contain this.
    #[arg(long)]
    tests: Option<String>,
}

/// Runs `cargo mutants`, and installs it if it is missing.
///
/// # Errors
/// A sentence, if mutants survive or it cannot run.
pub fn run(options: &Options) -> Result<(), String> {
    if !command::succeeds(&mut command::cargo(["mutants", "--version"])) {
        eprintln!("cargo-mutants is missing; installing it");
        command::status(&mut command::cargo(["install", "--locked", "cargo-mutants", "--version", VERSION]))?;
    }
    let mut cargo = command::cargo(["mutants", "--package", "doorbell", "--jobs", "1", "--no-shuffle"]);
    cargo.arg("--timeout").arg(options.timeout.to_string());
    if options.paths.is_empty() {
        // A `foo.rs` and what is below `foo/`.
        for path in PATHS {
            cargo.arg("--file").arg(path).arg("--file").arg(format!("{path}/**"));
        }
    }
    for path in &options.paths {
        cargo.arg("--file").arg(path);
    }
    for path in TESTS {
        cargo.arg("--exclude").arg(path);
    }
    cargo.args(["--", "--lib"]).args(&options.tests);
    command::status(&mut cargo)
}
