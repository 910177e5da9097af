//! The fuzz targets: built with coverage for libFuzzer by the stable compiler, each run for a bounded time.
//!
//! `fuzz/` has the layout of cargo-fuzz, which works on it too; this needs no more than rustc and a C++ compiler.

use std::{fs, path::PathBuf, process::Command};

use clap::Args;

use crate::command;

/// What `cargo fuzz` passes to the compiler, without a sanitizer, which only a nightly compiler has: the library's unsafe
/// code is small, and what these targets look for are panics, hangs and broken invariants.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Options {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// Only this target.
    target: Option<String>,
}

/// Builds and runs the targets.
///
/// # Errors
/// A sentence that names the target and the input that it failed on.
pub fn run(options: &Options) -> Result<(), String> {
    let targets = targets()?;
    if let Some(only) = &options.target {
        if !targets.contains(only) {
            return Err(format!("there is no fuzz target {only}; there are: {}", targets.join(", ")));
        }
    }
    command::status(&mut build()?)?;
    for target in targets.iter().filter(|target| options.target.as_ref().is_none_or(|only| only == *target)) {
        println!("{target}: {} s", options.seconds);
        command::status(&mut fuzz(target, options.seconds)?)
            .map_err(|error| format!("{target}: {error}; the input is in fuzz/artifacts/{target}/"))?;
    }
    Ok(())
}

/// The names of the targets.
pub fn targets() -> Result<Vec<String>, String> {
    let folder = folder().join("fuzz_targets");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.path().file_name()?.to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// The command that builds all targets.
pub fn build() -> Result<Command, String> {
    let mut cargo = command::cargo(["build", "--release", "--bins", "--target"]);
    // With an explicit target the flags do not reach build scripts, which libFuzzer is not linked into.
    cargo.arg(host()?).current_dir(folder()).env("RUSTFLAGS", FLAGS).env_remove("CARGO_TARGET_DIR");
    Ok(cargo)
}

/// The command that runs one target, with its corpus and an own folder for what it finds.
pub fn fuzz(target: &str, seconds: u32) -> Result<Command, String> {
    let folder = folder();
    let found = folder.join("target/found").join(target);
    let artifacts = folder.join("artifacts").join(target);
    for path in [&found, &artifacts] {
        fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let mut command = Command::new(folder.join("target").join(host()?).join("release").join(target));
    command
        .current_dir(&folder)
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=5", "-rss_limit_mb=1024", "-max_len=4096", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&found)
        .arg(folder.join("corpus").join(target));
    Ok(command)
}

fn folder() -> PathBuf {
    command::root().join("fuzz")
}

/// The triple of this machine.
fn host() -> Result<String, String> {
    let output = Command::new("rustc").arg("-vV").output().map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc -vV names no host".into())
}
