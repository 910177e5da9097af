//! `doorbell check kvm`, from outside: that it passes, that it finds what is wrong, and how it ends.

use std::process::Output;

use serde_json::Value;

mod checks;

use checks::SKIPPED;

fn check(arguments: &[&str]) -> Output {
    checks::check("kvm", arguments)
}

fn report(arguments: &[&str], status: i32) -> Option<Value> {
    checks::report("kvm", arguments, status)
}

#[test]
fn a_hundred_programs_find_no_difference_and_reach_every_call() {
    let Some(report) = report(&["--seed", "7", "--programs", "100", "--guest", "none"], 0) else { return };
    assert_eq!((&report["passed"], &report["failed"]), (&100.into(), &0.into()));
    let answers = report["answers"].as_object().unwrap();
    assert_eq!(answers.len(), 21, "every call was made: {answers:?}");
    for errno in ["EBADF", "EBUSY", "EINVAL"] {
        assert!(answers["KVM_IRQFD assign"][errno].as_u64() > Some(0), "{errno}");
    }
    assert!(report["reached"].as_array().unwrap().len() >= 45, "{}", report["not_reached"]);
}

#[test]
fn a_hundred_programs_with_a_guest_find_no_difference_and_make_it_do_everything() {
    let Some(report) = report(&["--seed", "7", "--programs", "100", "--guest", "all"], 0) else { return };
    assert_eq!((&report["passed"], &report["failed"]), (&100.into(), &0.into()));
    let answers = report["answers"].as_object().unwrap();
    for call in ["guest takes", "guest EOI", "guest IPI", "guest CR8", "guest hlt", "guest store, IOAPIC"] {
        assert!(answers[call]["taken"].as_u64() > Some(0) || call == "guest hlt", "{call}: {answers:?}");
    }
    let reached: Vec<_> = report["reached"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    for row in ["A9", "L6", "L8", "R2", "P7", "P9", "P11", "CR8", "NMI", "IPI", "nesting", "once", "periodic"] {
        assert!(reached.contains(&row), "{row} is not reached: {reached:?}");
    }
    assert!(answers["guest hlt"]["halted"].as_u64() > Some(0), "{answers:?}");
    assert!(answers["eventfd read"]["a value"].as_u64() > Some(0), "a resample event: {answers:?}");
}

#[test]
fn shards_cover_the_programs_once() {
    let Some(first) = report(&["--programs", "21", "--shard", "0/2"], 0) else { return };
    let second = report(&["--programs", "21", "--shard", "1/2"], 0).unwrap();
    assert_eq!((&first["passed"], &second["passed"]), (&11.into(), &10.into()));
}

/// A fault in doorbell is found, and the program that shows it is short.
fn finds(fault: &str, programs: &str, longest: usize) {
    finds_in(&["--guest", "none"], fault, programs, longest);
}

fn finds_in(share: &[&str], fault: &str, programs: &str, longest: usize) {
    let arguments = [share, &["--seed", "3", "--programs", programs, "--cripple", fault]].concat();
    checks::finds("kvm", &arguments, longest);
}

#[test]
fn a_wrong_errno_is_found() {
    finds("deassign-errno", "20", 1);
}

#[test]
fn a_table_that_is_lost_when_another_is_refused_is_found() {
    finds("refused-table", "20", 3);
}

#[test]
fn a_missing_remote_irr_is_found() {
    finds("remote-irr", "20", 2);
}

#[test]
fn a_missing_trigger_mode_is_found() {
    finds("trigger-mode", "20", 2);
}

#[test]
fn a_miscounted_broadcast_is_found() {
    finds("broadcast-count", "40", 1);
}

#[test]
fn a_line_that_stays_high_is_found() {
    finds("line-stays-high", "40", 2);
}

#[test]
fn an_end_that_is_not_broadcast_is_found() {
    finds("end-broadcast", "80", 6);
}

/// The same in programs with a guest.
fn finds_with_guest(fault: &str, longest: usize) {
    finds_in(&["--guest", "all"], fault, "40", longest);
}

#[test]
fn a_task_priority_that_guests_cannot_raise_is_found() {
    finds_with_guest("task-priority", 2);
}

#[test]
fn a_vector_in_service_that_holds_nothing_back_is_found() {
    finds_with_guest("in-service", 3);
}

#[test]
fn an_ipi_that_does_not_come_back_is_found() {
    finds_with_guest("self-ipi", 2);
}

#[test]
fn an_end_by_a_guest_that_is_not_broadcast_is_found() {
    finds_with_guest("end-broadcast", 5);
}

#[test]
fn an_end_that_the_8259_does_not_hear_is_found() {
    finds_with_guest("pic-end", 12);
}

#[test]
fn a_timer_that_does_not_start_is_found() {
    finds_with_guest("timer", 1);
}

#[test]
fn a_line_that_stays_high_under_a_guest_is_found() {
    finds_with_guest("line-stays-high", 2);
}

#[test]
fn the_kernel_does_not_differ_from_itself() {
    let Some(report) = report(&["--programs", "40", "--itself"], 0) else { return };
    assert_eq!(report["passed"], 40);
}

#[test]
fn a_failure_is_printed_as_a_list_of_calls_with_both_answers() {
    let output = check(&["--guest", "none", "--seed", "3", "--programs", "5", "--cripple", "deassign-errno"]);
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.code() == Some(SKIPPED) {
        assert!(text.starts_with("SKIPPED, NOTHING WAS COMPARED"), "{text}");
        assert!(text.ends_with("0 passed, 0 failed\n"));
        return;
    }
    assert!(text.contains("KVM_IRQFD deassign: "), "{text}");
    assert!(text.contains("the answer: kernel 0, doorbell ENOENT"), "{text}");
    assert!(text.contains("again: doorbell check kvm --seed 3 --calls 60 --only "), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.ends_with(" failed") && last.contains(" passed, "), "{last}");
}

#[test]
fn short_programs_and_bad_shards_are_wrong_usage() {
    for (arguments, named) in
        [(["--calls", "49"], "50"), (["--shard", "2/2"], "0/2"), (["--cripple", "nothing"], "remote-irr")]
    {
        let output = check(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(named), "{errors}");
    }
}
