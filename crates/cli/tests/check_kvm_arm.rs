//! `doorbell check kvm --arch arm`, from outside: that it passes, that it finds what is wrong, and how it ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

mod checks;

const ARM: [&str; 2] = ["--arch", "arm"];

fn report(arguments: &[&str], status: i32) -> Option<Value> {
    checks::report("kvm", &[&ARM, arguments].concat(), status)
}

#[test]
fn programs_find_no_difference_and_reach_every_kind_of_call() {
    let Some(report) = report(&["--seed", "7", "--programs", "40"], 0) else { return };
    assert_eq!((&report["passed"], &report["failed"]), (&40.into(), &0.into()));
    let answers = report["answers"].as_object().unwrap();
    for call in
        ["set gic DIST_REGS", "set its0 ITS_REGS", "ITS commands", "KVM_SIGNAL_MSI", "guest acknowledges, group 1"]
    {
        assert!(answers.contains_key(call), "{call}: {answers:?}");
    }
    let reached: Vec<_> = report["reached"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    for row in ["C13", "C15", "C31", "I11", "I12", "I13", "I17", "I24", "N3", "Q14", "Q15", "G7", "save"] {
        assert!(reached.contains(&row), "{row} is not reached: {reached:?}");
    }
}

#[test]
fn the_kernel_does_not_differ_from_itself() {
    let Some(report) = report(&["--programs", "8", "--itself"], 0) else { return };
    assert_eq!(report["passed"], 8);
}

/// A fault in doorbell is found, and the program that shows it is short.
fn finds(fault: &str, programs: &str, longest: usize) {
    checks::finds(
        "kvm",
        &[&ARM[..], &["--seed", "3", "--programs", programs, "--cripple-arm", fault]].concat(),
        longest,
    );
}

#[test]
fn a_line_that_stays_high_is_found() {
    finds("line-stays-high", "4", 2);
}

#[test]
fn a_command_queue_that_stands_still_is_found() {
    finds("creadr", "3", 1);
}

#[test]
fn pending_lpis_that_are_not_saved_are_found() {
    finds("pending-tables", "4", 1);
}

#[test]
fn a_wrong_byte_in_a_saved_table_is_found() {
    finds("saved-collection", "4", 1);
}

#[test]
fn an_end_that_a_guest_cannot_make_is_found() {
    finds("end", "4", 4);
}

#[test]
fn without_a_program_it_says_which_package_has_it_and_nothing_passes() {
    let mut command = checks::command("kvm", &ARM);
    let output = command.env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(checks::SKIPPED), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("SKIPPED, NOTHING WAS COMPARED: qemu-system-aarch64 is not installed"), "{text}");
    assert!(text.contains("Debian's package is qemu-system-arm"), "{text}");
    assert!(text.ends_with("0 passed, 0 failed\n"), "{text}");
}

/// The processes whose parent this is.
fn children_of(id: u32) -> String {
    std::fs::read_dir(format!("/proc/{id}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .collect()
}

#[test]
fn an_interrupt_ends_it_with_what_it_has_and_no_kernel_is_left() {
    let Some(_) = report(&["--programs", "1"], 0) else { return };
    let arguments = [&ARM[..], &["--programs", "100000"]].concat();
    let mut check = checks::command("kvm", &arguments).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(8));
    let kernels = children_of(check.id());
    assert!(!kernels.is_empty(), "a kernel runs by then");
    assert!(Command::new("kill").args(["-INT", &check.id().to_string()]).status().unwrap().success());
    let mut text = String::new();
    std::io::Read::read_to_string(check.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(check.wait().unwrap().code(), Some(0), "{text}");
    assert!(text.contains("interrupted: ") && text.ends_with(" passed, 0 failed\n"), "{text}");
    for kernel in kernels.split_whitespace() {
        assert!(!std::path::Path::new(&format!("/proc/{kernel}")).exists(), "QEMU {kernel} is left");
    }
}
