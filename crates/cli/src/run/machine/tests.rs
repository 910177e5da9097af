//! Machine files that are taken, and how others are refused.

use super::*;

fn error(text: &str) -> String {
    Machine::parse("m.toml", text).unwrap_err().to_string()
}

const DEVICE: &str = "[[source]]\nname = 'n'\nkind = 'network'\nvectors = 2\ninterrupts = 10\n";

#[test]
fn the_built_in_machine_is_the_one_of_the_issue() {
    let machine = Machine::x86();
    assert_eq!(machine.vcpus, 4);
    let wiring: Vec<_> = machine.sources.iter().map(|source| source.wiring).collect();
    let legacy = Wiring::Lines { lines: 1, sharers: 2, resample: true };
    assert_eq!(wiring, [Wiring::Vectors(8), Wiring::Vectors(64), legacy]);
    assert!(machine.interrupts() >= 1_000_000);
}

#[test]
fn the_big_built_in_machines_are_behind_interrupt_remapping() {
    for (text, remap) in [(X86_VTD, Remap::Vtd), (X86_AMD, Remap::Amd)] {
        let machine = Machine::built_in("big", text);
        assert_eq!((machine.vcpus, machine.remap, machine.chips), (300, remap, None));
        assert!(machine.interrupts() >= 300_000);
    }
    let remap = |text: &str| Machine::parse("m.toml", &format!("{text}{DEVICE}")).map(|machine| machine.remap);
    assert_eq!(remap("vcpus = 1\n"), Ok(Remap::None));
    assert_eq!(remap("vcpus = 1\nremap = 'none'\nchips = 'kernel'\n"), Ok(Remap::None));
    assert_eq!(remap("vcpus = 1\nremap = 'amd'\nchips = 'soft'\n"), Ok(Remap::Amd));
    assert_eq!(
        error(&format!("vcpus = 1\nremap = 'intel'\n{DEVICE}")),
        "m.toml:2: remap: \"intel\" is not allowed: \"none\", \"vtd\" or \"amd\""
    );
    assert_eq!(
        error(&format!("vcpus = 1\nremap = 'vtd'\nchips = 'split'\n{DEVICE}")),
        "m.toml:2: remap: \"vtd\" is not allowed: interrupt remapping is on \"soft\" chips only"
    );
}

#[test]
fn scaling_keeps_the_shares_and_leaves_no_vector_without_work() {
    let mut machine = Machine::x86();
    machine.scale(16_000);
    assert_eq!(machine.sources.iter().map(|source| source.interrupts).collect::<Vec<_>>(), [4_000, 11_800, 200]);
    machine.scale(20_001);
    assert_eq!(machine.interrupts(), 20_001);
    machine.scale(u64::MAX);
    assert_eq!(machine.interrupts(), u64::MAX);
    machine.scale(1);
    assert_eq!(machine.sources.iter().map(|source| source.interrupts).collect::<Vec<_>>(), [8, 64, 2]);
}

#[test]
fn an_error_names_file_line_field_and_what_is_allowed() {
    assert_eq!(
        error(&format!("vcpus = 1000\n{DEVICE}")),
        "m.toml:1: vcpus: 1000 is not allowed: a whole number from 1 to 512"
    );
    assert_eq!(
        error("vcpus = 1\n\n[[source]]\nname = 'n'\nkind = 'netwrk'\n"),
        "m.toml:5: kind: \"netwrk\" is not allowed: \"network\", \"storage\" or \"legacy\""
    );
    assert_eq!(
        error("vcpus = 1\n[[source]]\nname = 'n'\nkind = 'storage'\ninterrupts = 1\n"),
        "m.toml:2: vectors: is missing: a whole number from 1 to 2048"
    );
    assert_eq!(
        error(&format!("vcpus = 1\n{DEVICE}lines = 2\n")),
        "m.toml:7: lines: is not allowed here: only a legacy device has it"
    );
    assert_eq!(
        error(&format!("vcpus = 1\n{DEVICE}{DEVICE}")),
        "m.toml:8: name: \"n\" is not allowed: each device needs a name of its own"
    );
    assert_eq!(error("vcpus = 1\n"), "m.toml:1: source: 0 of them are not allowed: 1 to 56");
    assert_eq!(
        error(
            "vcpus = 1\n[[source]]\nname = 'a'\nkind = 'legacy'\nlines = 8\ninterrupts = 1\n[[source]]\nname = 'b'\nkind = 'legacy'\ninterrupts = 1\n"
        ),
        "m.toml:7: lines: 1 is not allowed: a machine has 8 lines and 0 are left"
    );
}

#[test]
fn what_toml_refuses_is_said_on_one_line_too() {
    let unknown = error(&format!("vcpus = 1\n{DEVICE}vectrs = 2\n"));
    assert!(unknown.starts_with("m.toml:7: vectrs: unknown field `vectrs`, expected one of `name`"), "{unknown}");
    let syntax = error("vcpus = = 1\n");
    assert!(syntax.starts_with("m.toml:1: vcpus: "), "{syntax}");
    assert_eq!(syntax.lines().count(), 1);
    let twice = error("vcpus = 1\nvcpus = 2\n");
    assert!(twice.starts_with("m.toml:2: vcpus: "), "{twice}");
}

#[test]
fn numbers_out_of_the_machine_s_range_do_not_wrap() {
    for value in ["-1", "4294967297", "1.5", "'4'", "true", "[1]"] {
        let error = error(&format!("vcpus = {value}\n{DEVICE}"));
        assert!(error.ends_with("is not allowed: a whole number from 1 to 512"), "{error}");
    }
}

#[test]
fn an_arm_machine_has_its_own_limits() {
    let machine = Machine::built_in("arm", ARM);
    assert_eq!((machine.arch, machine.vcpus, machine.its, machine.chips), (Arch::Arm, 4, 2, None));
    assert!(machine.interrupts() >= 1_000_000);
    let lines = |wiring: &dyn Fn(Wiring) -> bool| machine.sources.iter().any(|source| wiring(source.wiring));
    assert!(lines(&|wiring| matches!(wiring, Wiring::Lines { resample: true, sharers: 2.., .. })), "level SPIs");
    assert!(lines(&|wiring| matches!(wiring, Wiring::Lines { resample: false, .. })), "edge SPIs");
    assert_eq!(Machine::x86().its, 0);
    let legacy = "[[source]]\nname = 'l'\nkind = 'legacy'\nlines = LINES\ninterrupts = 100\n";
    let text = |head: &str, lines: &str| format!("{head}vcpus = 1\n{}", legacy.replace("LINES", lines));
    assert_eq!(Machine::parse("m.toml", &text("machine = 'arm'\n", "64")).map(|machine| machine.its), Ok(2));
    assert_eq!(
        error(&text("machine = 'arm'\n", "65")),
        "m.toml:6: lines: 65 is not allowed: a whole number from 1 to 64"
    );
    let cases = [
        ("machine = 'riscv'\n", "m.toml:1: machine: \"riscv\" is not allowed: \"x86\" or \"arm\""),
        ("machine = 'x86'\nits = 2\n", "m.toml:2: its: 2 is not allowed: only a machine = \"arm\" has ITSs"),
        ("machine = 'arm'\nits = 0\n", "m.toml:2: its: 0 is not allowed: a whole number from 1 to 4"),
        (
            "machine = 'arm'\nchips = 'kernel'\n",
            "m.toml:2: chips: \"kernel\" is not allowed: a machine = \"arm\" has \"soft\" chips only",
        ),
        (
            "machine = 'arm'\nremap = 'vtd'\n",
            "m.toml:2: remap: \"vtd\" is not allowed: only a machine = \"x86\" has interrupt remapping",
        ),
    ];
    for (head, expected) in cases {
        assert_eq!(error(&text(head, "8")), expected);
    }
}
