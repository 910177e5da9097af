//! `doorbell check qemu`, from outside: that it passes, that it finds what is wrong, and how it ends.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod checks;

use checks::SKIPPED;

fn command(arguments: &[&str]) -> Command {
    checks::command("qemu", arguments)
}

fn check(arguments: &[&str]) -> Output {
    checks::check("qemu", arguments)
}

fn report(arguments: &[&str], status: i32) -> Option<Value> {
    checks::report("qemu", arguments, status)
}

#[test]
fn programs_find_no_difference_and_reach_every_step() {
    let Some(report) = report(&["--machine", "q35", "--seed", "7", "--programs", "40"], 0) else { return };
    assert_eq!((&report["passed"], &report["failed"]), (&40.into(), &0.into()));
    let steps = report["steps"].as_object().unwrap();
    assert_eq!(steps.len(), 23, "every step was taken: {steps:?}");
    assert!(report["reached"].as_array().unwrap().len() >= 22, "{}", report["not_reached"]);
}

#[test]
fn programs_on_arm_find_no_difference_and_reach_every_step() {
    let Some(report) = report(&["--machine", "virt", "--seed", "8", "--programs", "120"], 0) else { return };
    assert_eq!((&report["passed"], &report["failed"]), (&120.into(), &0.into()));
    let steps = report["steps"].as_object().unwrap();
    assert!(steps.len() >= 28, "{steps:?}");
    assert!(report["reached"].as_array().unwrap().len() >= 40, "{}", report["not_reached"]);
}

#[test]
fn shards_cover_the_programs_once() {
    let Some(first) = report(&["--programs", "5", "--shard", "0/2"], 0) else { return };
    let second = report(&["--programs", "5", "--shard", "1/2"], 0).unwrap();
    assert_eq!((&first["passed"], &second["passed"]), (&3.into(), &2.into()));
}

/// A fault in doorbell is found, and the program that shows it is short.
fn finds(fault: &str, programs: &str, longest: usize) {
    checks::finds("qemu", &["--seed", "3", "--programs", programs, "--cripple", fault], longest);
}

#[test]
fn an_eoi_register_that_does_nothing_is_found() {
    finds("eoi-register", "16", 3);
}

#[test]
fn a_missing_remote_irr_is_found() {
    finds("remote-irr", "16", 2);
}

#[test]
fn a_missing_trigger_mode_is_found() {
    finds("trigger-mode", "12", 2);
}

#[test]
fn a_line_that_stays_high_is_found() {
    finds("line-stays-high", "12", 4);
}

#[test]
fn pending_bits_that_are_not_shown_are_found() {
    finds("msix-mask", "12", 2);
}

#[test]
fn a_lost_event_of_a_masked_vector_is_found() {
    finds("msix-pending", "40", 2);
}

#[test]
fn a_wrong_specific_eoi_is_found() {
    finds("specific-eoi", "90", 4);
}

fn finds_on_arm(fault: &str, programs: &str, longest: usize) {
    let arguments = ["--machine", "virt", "--seed", "3", "--programs", programs, "--cripple", fault];
    checks::finds("qemu", &arguments, longest);
}

#[test]
fn an_end_that_does_nothing_is_found() {
    finds_on_arm("end-of-group1", "12", 6);
}

#[test]
fn a_deactivation_that_does_nothing_is_found() {
    finds_on_arm("deactivate", "150", 8);
}

#[test]
fn a_binary_point_that_cannot_be_written_is_found() {
    finds_on_arm("binary-point", "30", 2);
}

#[test]
fn an_sgi_that_does_not_reach_all_its_targets_is_found() {
    finds_on_arm("sgi-targets", "20", 2);
}

#[test]
fn an_enable_that_cannot_be_cleared_is_found() {
    finds_on_arm("clear-enable", "140", 4);
}

#[test]
fn a_line_of_an_spi_that_stays_high_is_found() {
    finds_on_arm("spi-stays-high", "20", 3);
}

#[test]
fn a_clear_that_clears_nothing_is_found() {
    finds_on_arm("its-clear", "60", 7);
}

#[test]
fn a_movi_that_moves_nothing_is_found() {
    finds_on_arm("its-movi", "190", 8);
}

#[test]
fn a_lost_message_of_a_device_is_found() {
    finds_on_arm("device-message", "60", 6);
}

#[test]
fn a_pending_table_that_is_not_written_is_found() {
    finds_on_arm("pending-tables", "20", 6);
}

#[test]
fn a_failure_is_printed_as_a_list_of_steps_with_both_answers() {
    let output = check(&["--seed", "3", "--programs", "12", "--cripple", "trigger-mode"]);
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.code() == Some(SKIPPED) {
        return;
    }
    assert!(text.contains("(level), doorbell "), "{text}");
    assert!(text.contains("again: doorbell check qemu --machine q35 --seed 3 --calls 50 --only "), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.ends_with(" failed") && last.contains(" passed, "), "{last}");
}

#[test]
fn without_qemu_it_says_which_package_has_it_and_nothing_passes() {
    let output = command(&[]).env("QTEST_QEMU_BINARY", "qemu-that-is-not-there").output().unwrap();
    assert_eq!(output.status.code(), Some(SKIPPED));
    let text = String::from_utf8(output.stdout).unwrap();
    let why = "qemu-that-is-not-there is not installed; Debian's package is qemu-system-x86";
    assert_eq!(text, format!("SKIPPED, NOTHING WAS COMPARED: {why}\n0 passed, 0 failed\n"));
    let output = command(&["--machine", "virt"]).env("QTEST_QEMU_BINARY", "qemu-that-is-not-there").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("qemu-system-arm"));
}

#[test]
fn a_program_that_is_no_qemu_is_an_error_of_one_line() {
    let output = command(&[]).env("QTEST_QEMU_BINARY", "/bin/false").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("QEMU ended (exit status: 1)"), "{error}");
}

#[test]
fn short_programs_other_machines_and_bad_shards_are_wrong_usage() {
    for (arguments, named) in [
        (["--calls", "49"], "50"),
        (["--shard", "2/2"], "0/2"),
        (["--machine", "pc"], "virt"),
        (["--cripple", "nothing"], "remote-irr"),
    ] {
        let output = check(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(named), "{errors}");
    }
}

#[test]
fn the_differences_on_purpose_can_be_listed_without_qemu() {
    let output = command(&["--differences"]).env("QTEST_QEMU_BINARY", "qemu-that-is-not-there").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("edge-raised-again ")), "{text}");
    let text = String::from_utf8(check(&["--machine", "virt", "--differences"]).stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("priority-bits ")), "{text}");
}

/// The only child of a process, when it has one.
fn child_of(id: u32) -> u32 {
    let begun = Instant::now();
    loop {
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no child");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a process is gone (or waits to be reaped).
fn is_gone(id: u32) -> bool {
    let begun = Instant::now();
    loop {
        let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let running = state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"));
        if !running || begun.elapsed() > Duration::from_secs(20) {
            return !running;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_installed() -> bool {
    let there = report(&["--programs", "1"], 0).is_some();
    if !there {
        println!("SKIPPED: there is no QEMU");
    }
    there
}

#[test]
fn an_interrupt_ends_it_with_what_it_has_and_no_qemu_is_left() {
    if !is_installed() {
        return;
    }
    let mut check = command(&["--programs", "100000"]).stdout(Stdio::piped()).spawn().unwrap();
    let qemu = child_of(check.id());
    std::thread::sleep(Duration::from_millis(300));
    let kill = |signal: &str, id: u32| Command::new("kill").args([signal, &id.to_string()]).status().unwrap();
    assert!(kill("-INT", check.id()).success());
    let mut text = String::new();
    std::io::Read::read_to_string(check.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(check.wait().unwrap().code(), Some(0), "{text}");
    assert!(text.contains("interrupted: ") && text.ends_with(" passed, 0 failed\n"), "{text}");
    assert!(is_gone(qemu));
}

#[test]
fn killed_it_takes_qemu_with_it() {
    if !is_installed() {
        return;
    }
    let mut check = command(&["--programs", "100000"]).stdout(Stdio::null()).spawn().unwrap();
    let qemu = child_of(check.id());
    std::thread::sleep(Duration::from_millis(100));
    check.kill().unwrap();
    check.wait().unwrap();
    assert!(is_gone(qemu));
    let folder = std::env::temp_dir().join(format!("doorbell-qemu-{}-0", check.id()));
    // Nobody was left to remove its sockets.
    let _ = std::fs::remove_dir_all(folder);
}
