//! `doorbell check …` as its tests run it.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The exit status of a check that could not be made.
pub const SKIPPED: i32 = 77;

/// `doorbell check ORACLE …`.
pub fn command(oracle: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorbell"));
    command.args(["check", oracle]).args(arguments).stdin(Stdio::null());
    command
}

/// The same, to its end.
pub fn check(oracle: &str, arguments: &[&str]) -> Output {
    command(oracle, arguments).output().unwrap()
}

/// The JSON report, or `None` with a loud line where the oracle is missing.
pub fn report(oracle: &str, arguments: &[&str], status: i32) -> Option<Value> {
    let output = check(oracle, &[arguments, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    if output.status.code() == Some(SKIPPED) {
        println!("SKIPPED: {}", report["skipped"]);
        assert_eq!(report["passed"], 0, "what is skipped does not pass");
        return None;
    }
    assert_eq!(output.status.code(), Some(status), "{report:#}");
    Some(report)
}

/// A fault in doorbell is found, and the program that shows it is short.
pub fn finds(oracle: &str, arguments: &[&str], longest: usize) {
    let Some(report) = report(oracle, arguments, 1) else { return };
    let failures = report["failures"].as_array().unwrap();
    assert_eq!(failures.len() as u64, report["failed"].as_u64().unwrap());
    assert!(failures.iter().all(|failure| failure["repeats"] == true), "{failures:#?}");
    let shortest = failures.iter().map(|failure| failure["calls"].as_array().unwrap().len()).min().unwrap();
    assert!(shortest <= longest, "{arguments:?}: {shortest} calls are left: {failures:#?}");
    assert!(failures.iter().all(|failure| !failure["differs"].as_array().unwrap().is_empty()));
}
