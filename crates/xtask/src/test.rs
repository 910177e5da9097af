//! `cargo xtask test`: everything that must hold before a change goes in.

use std::{
    fs::File,
    path::Path,
    process::{Command, ExitCode},
};

use clap::Args;

use crate::{
    command::{self, cargo},
    fuzz, licences,
    metadata::Metadata,
    steps::{Failure, Outcome, Steps},
};

/// How long each fuzz target runs as part of the tests.
const FUZZ_SECONDS: u32 = 10;
/// How many inputs it tries, from a fixed seed: a change is judged by the same inputs each time. `cargo xtask fuzz` looks
/// for new ones.
const FUZZ_RUNS: &str = "-runs=10000";
/// How many random programs of calls are compared with the kernel.
const PARITY_PROGRAMS: u32 = 500;
/// How many random programs of register accesses are compared with QEMU, which takes longer.
const QEMU_PROGRAMS: u32 = 100;
/// QEMU's machines, the program that has each, and Debian's package that has that: it may be missing.
const QEMU: [(&str, &str, &str); 2] =
    [("q35", "qemu-system-x86_64", "qemu-system-x86"), ("virt", "qemu-system-aarch64", "qemu-system-arm")];
/// How many random programs of calls are compared with a kernel for Arm, which QEMU runs: about a minute.
const ARM_PROGRAMS: u32 = 100;
/// What that takes: programs, and Debian's packages that have them.
const ARM_TOOLS: [(&str, &[&str]); 2] = [
    ("qemu-system-aarch64", &["qemu-system-arm"]),
    ("aarch64-linux-gnu-gcc", &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]),
];

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Leaves out the oracles (/dev/kvm, QEMU).
    #[arg(long)]
    quick: bool,
    /// Only these steps, by the names that a full run prints.
    steps: Vec<String>,
}

/// Runs the steps.
pub fn run(options: &Options) -> ExitCode {
    let mut steps = Steps::new(&options.steps);
    steps.step("tools", tools);
    steps.step("format", |steps| check(steps, &["fmt", "--all", "--check"]));
    steps.step("clippy", |steps| {
        check(steps, &["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-Dwarnings"])
    });
    steps.step("docs", docs);
    steps.step("features", features);
    steps.step("licences", |_| licences::check().map(|sets| Outcome::Passed { passed: sets.len() as u64, ignored: 0 }));
    steps.step("unit", |steps| {
        steps.tests(&mut cargo(["test", "--workspace", "--all-features", "--locked", "--lib", "--bins"]))
    });
    steps.step("doc-tests", |steps| {
        steps.tests(&mut cargo(["test", "--workspace", "--all-features", "--locked", "--doc"]))
    });
    steps.step("integration", |steps| integration(steps, |package| package != "doorbell-cli"));
    steps.step("models", models);
    steps.step("end-to-end", |steps| integration(steps, |package| package == "doorbell-cli"));
    steps.step("fuzz", fuzz_smoke);
    if !options.quick {
        steps.step("parity", parity);
        steps.step("parity-qemu", parity_qemu);
        steps.step("parity-arm", parity_arm);
    }
    if steps.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The parts of the toolchain that a minimal installation lacks.
fn tools(steps: &mut Steps) -> Result<Outcome, Failure> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if command::succeeds(&mut cargo([tool, "--version"])) {
            continue;
        }
        steps
            .run(Command::new("rustup").args(["component", "add", component]))
            .map_err(|_| format!("{component} is missing: install it, or rustup so that this can"))?;
    }
    if !command::succeeds(Command::new("c++").arg("--version")) {
        return Err("a C++ compiler is needed to link libFuzzer: install g++ or clang".into());
    }
    Ok(Outcome::CHECK)
}

fn check(steps: &Steps, arguments: &[&str]) -> Result<Outcome, Failure> {
    steps.run(&mut cargo(arguments))?;
    Ok(Outcome::CHECK)
}

/// Once as users see it (where a link to something private is an error), once with the private items.
fn docs(steps: &mut Steps) -> Result<Outcome, Failure> {
    let arguments = ["doc", "--workspace", "--no-deps", "--all-features", "--locked"];
    steps.run(cargo(arguments).env("RUSTDOCFLAGS", "-Dwarnings"))?;
    steps.run(cargo(arguments).arg("--document-private-items").env("RUSTDOCFLAGS", "-Dwarnings"))?;
    Ok(Outcome::Passed { passed: 2, ignored: 0 })
}

/// The library with no feature and with each one alone.
fn features(steps: &mut Steps) -> Result<Outcome, Failure> {
    let metadata = Metadata::read(false)?;
    let library = metadata.members().find(|package| package.name == "doorbell").ok_or("no package doorbell")?;
    let mut passed = 0;
    let names = library.features.keys().map(String::as_str).filter(|name| *name != "default");
    for feature in std::iter::once("").chain(names) {
        let mut cargo = cargo(["clippy", "--package", "doorbell", "--lib", "--locked", "--no-default-features"]);
        cargo.args(["--features", feature, "--", "-Dwarnings"]);
        steps.run(&mut cargo).map_err(|error| format!("feature {feature:?} alone: {error}"))?;
        passed += 1;
    }
    Ok(Outcome::Passed { passed, ignored: 0 })
}

/// The files in `tests/` of the packages that `wanted` names.
fn integration(steps: &Steps, wanted: fn(&str) -> bool) -> Result<Outcome, Failure> {
    let metadata = Metadata::read(false)?;
    // The whole workspace is named in any case, so that features are resolved as in the other steps.
    let mut cargo = cargo(["test", "--workspace", "--all-features", "--locked"]);
    for package in metadata.members().filter(|package| wanted(&package.name)) {
        for target in package.targets.iter().filter(|target| target.kind.iter().any(|kind| kind == "test")) {
            cargo.arg("--test").arg(&target.name);
        }
    }
    if !cargo.get_args().any(|argument| argument == "--test") {
        return Err("there are no such tests".into());
    }
    steps.tests(&mut cargo)
}

/// The lock-free protocols in every interleaving.
fn models(steps: &mut Steps) -> Result<Outcome, Failure> {
    let mut cargo =
        cargo(["test", "--package", "doorbell", "--all-features", "--lib", "--release", "--locked", "models"]);
    // A folder of its own: the flag rebuilds everything.
    cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", command::root().join("target/loom"));
    steps.tests(&mut cargo)
}

/// Each fuzz target on its corpus and then for a few seconds.
fn fuzz_smoke(steps: &mut Steps) -> Result<Outcome, Failure> {
    steps.run(&mut fuzz::build()?)?;
    let targets = fuzz::targets()?;
    for target in &targets {
        steps
            .run(fuzz::fuzz(target, FUZZ_SECONDS)?.args(["-seed=1", FUZZ_RUNS]))
            .map_err(|error| format!("{target}: {error}; the input is in fuzz/artifacts/{target}/"))?;
    }
    Ok(Outcome::Passed { passed: targets.len() as u64, ignored: 0 })
}

/// Random programs of calls on the kernel's KVM and on doorbell.
fn parity(steps: &mut Steps) -> Result<Outcome, Failure> {
    let kvm = Path::new("/dev/kvm");
    if let Err(error) = File::options().read(true).write(true).open(kvm) {
        return Ok(Outcome::Skipped(format!("{}: {error}; nothing was compared with the kernel", kvm.display())));
    }
    compare(steps, &["check", "kvm"], PARITY_PROGRAMS)
}

/// Random programs of register accesses and device actions on QEMU's chips and on doorbell's, for each machine. A missing
/// QEMU is installed where that can be done without a question.
fn parity_qemu(steps: &mut Steps) -> Result<Outcome, Failure> {
    let mut all = 0;
    let mut missing = Vec::new();
    for (machine, program, package) in QEMU {
        if !installed(steps, program, &[package]) {
            missing.push(format!("{program} is missing (Debian: {package})"));
            continue;
        }
        match compare(steps, &["check", "qemu", "--machine", machine], QEMU_PROGRAMS)? {
            Outcome::Passed { passed, .. } => all += passed,
            Outcome::Skipped(why) => missing.push(why),
        }
    }
    if missing.is_empty() {
        Ok(Outcome::Passed { passed: all, ignored: 0 })
    } else {
        Ok(Outcome::Skipped(format!("{}; {all} programs were compared with QEMU", missing.join("; "))))
    }
}

/// Random programs of calls on a kernel for Arm, which QEMU boots with emulated virtualisation, and on doorbell. What is
/// missing is installed where that can be done without a question; the kernel is fetched by the check itself.
fn parity_arm(steps: &mut Steps) -> Result<Outcome, Failure> {
    for (program, packages) in ARM_TOOLS {
        if !installed(steps, program, packages) {
            let packages = packages.join(", ");
            let why = format!("{program} is missing (Debian: {packages}); nothing was compared with KVM on Arm");
            return Ok(Outcome::Skipped(why));
        }
    }
    compare(steps, &["check", "kvm", "--arch", "arm"], ARM_PROGRAMS)
}

/// Whether a program is there, if need be after its packages were installed.
fn installed(steps: &Steps, program: &str, packages: &[&str]) -> bool {
    let is_there = || command::succeeds(Command::new(program).arg("--version"));
    if !is_there() {
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        // Without the rights or a network it fails.
        let _ = steps.output(install.env("DEBIAN_FRONTEND", "noninteractive"));
    }
    is_there()
}

/// A check of the command; one that could not compare anything says so.
fn compare(steps: &Steps, check: &[&str], programs: u32) -> Result<Outcome, Failure> {
    let mut cargo = cargo(["run", "--release", "--locked", "--package", "doorbell-cli", "--"]);
    let output = steps.output(cargo.args(check).arg("--programs").arg(programs.to_string()))?;
    let text = output.text;
    if let Some(why) = text.lines().find_map(|line| line.strip_prefix("SKIPPED, NOTHING WAS COMPARED: ")) {
        return Ok(Outcome::Skipped(why.into()));
    }
    let expected = format!("{programs} passed, 0 failed");
    if !output.success || !text.lines().any(|line| line.trim() == expected) {
        return Err(format!("`doorbell {}` did not end with `{expected}`", check.join(" ")));
    }
    Ok(Outcome::Passed { passed: programs.into(), ignored: 0 })
}
