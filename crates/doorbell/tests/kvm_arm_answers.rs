//! The answers of a real KVM on Arm, given by doorbell.
//!
//! `tests/data/kvm_arm_answers.txt` was recorded on Linux 6.1, arm64, by another program; `sequence.rs` asks the same
//! questions through [`doorbell::kvm_abi::ArmCalls`].
#![cfg(feature = "arm")]

#[path = "kvm_arm_answers/machine.rs"]
mod machine;
#[path = "kvm_arm_answers/sequence.rs"]
mod sequence;

use std::sync::Arc;

use doorbell::chips::arm::Behaviour;
use doorbell::guest_ram::RamBlock;
use doorbell::kvm_abi::{SoftArmVm, SoftArmVmOptions};

const EXPECTED: &str = include_str!("data/kvm_arm_answers.txt");

/// Lines that are about the host, its processes and its virtual CPUs, and not answers to any of these calls.
const NOT_ASKED: [&str; 13] = [
    "kernel.release",
    "kernel.machine",
    "kvm.open",
    "kvm.api_version",
    "kvm.create_vm",
    "kvm.memory",
    "vcpu0.preferred_target",
    "vcpu1.preferred_target",
    "guest.set_pc",
    "guest.set_pstate",
    "cpu1.set_pc",
    "cpu1.set_pstate",
    "end",
];

fn name(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

/// Where the answers differ from the recorded ones. Each expected line must be there once, in its place.
fn differences(options: SoftArmVmOptions) -> Vec<String> {
    let expected: Vec<&str> = EXPECTED.lines().filter(|line| !NOT_ASKED.contains(&name(line))).collect();
    assert_eq!(expected.len(), 253, "the recorded answers are complete");
    let ram = Arc::new(RamBlock::new(machine::RAM_BASE, machine::RAM_SIZE));
    let vm = SoftArmVm::new(options, ram, Arc::new(())).expect("a VM can be made");
    let got = sequence::ask(&vm);
    let names = |lines: &[&str]| lines.iter().map(|line| name(line).to_string()).collect::<Vec<_>>();
    let got: Vec<&str> = got.iter().map(String::as_str).collect();
    assert_eq!(names(&got), names(&expected), "every question was asked, in its turn");
    let pairs = expected.iter().zip(got).filter(|(expected, got)| *expected != got);
    pairs.map(|(e, g)| format!("expected {e:?}, got {g:?}")).collect()
}

/// One difference, as [`differences`] writes it.
fn differs(name: &str, kernel: &str, ours: &str) -> String {
    format!("expected \"{name}: {kernel}\", got \"{name}: {ours}\"")
}

#[test]
fn doorbell_gives_all_answers_but_those_that_it_decided_to_give_otherwise() {
    let differs =
        |name: &str, kernel: &str, ours: &str| format!("expected \"{name}: {kernel}\", got \"{name}: {ours}\"");
    let pending = |name: &str| {
        let line = |lpis: &str| format!("save=ok {lpis} ispendr1=0 ispendr2=0 gicr0_ispendr=0");
        differs(&format!("{name}.pending"), &line("cpu0:8195 cpu0:8200"), &line("cpu0:8195"))
    };
    let decided = [
        // Q10a: a message without a DeviceID is refused also if its event was seen before.
        differs("signal_msi.no_devid_flag_after_use", "ok=1", "EINVAL"),
        // I17a: what is pending of an LPI that is disabled goes with its mapping. The kernel had this one on a vCPU's list
        // since before it was disabled, and keeps what is there until that vCPU has run; elsewhere it forgets it, too.
        pending("rules.discard_pending"),
        pending("rules.map_collection_again"),
        pending("rules.unmap_device"),
        // I13a: an LPI that was moved is acknowledged at its new vCPU at once, not after the old one has run.
        differs("rules.unmap_device.cpu0", "intid=1023", "intid=8195"),
        differs("rules.unmap_device.cpu0_after_cpu1", "intid=8195", "intid=1023"),
    ];
    assert_eq!(differences(SoftArmVmOptions::default()), decided);
}

/// What is expected of these comes from the pages, each from the row that is named.
#[test]
fn the_ways_of_the_architecture_can_be_had_behind_the_same_calls() {
    let got = differences(SoftArmVmOptions { behaviour: Behaviour::SPEC, ..SoftArmVmOptions::default() });
    for (row, name, kernel, ours) in [
        ("C4a: SPIs follow their level after reset", "gicd.icfgr3", "0xaaaaaaaa", "0x0"),
        ("C7: redistributors sleep after reset", "gicr0.waker", "0x0", "0x6"),
        ("Q12: only the doorbell register takes messages", "signal_msi.frame_base", "ok=1", "EINVAL"),
        ("Q12: and nothing beside it", "signal_msi.doorbell_plus_4", "ok=1", "EINVAL"),
        ("I18a: events of a collection come back with it", "rules.map_collection_again.doorbell", "ok=0", "ok=1"),
        ("I4: GITS_CWRITER stays when GITS_CBASER is written", "rules.cbaser.cwriter", "0x0", "0x340"),
    ] {
        assert!(got.contains(&differs(name, kernel, ours)), "{row}: {got:#?}");
    }
    let lpis = |name: &str| {
        let start = format!("expected \"{name}.pending: ");
        let line = got.iter().find(|line| line.starts_with(&start)).expect("it differs");
        let ours = line.split("got ").nth(1).unwrap_or_default();
        ours.split(' ').filter(|word| word.starts_with("cpu")).collect::<Vec<_>>()
    };
    assert_eq!(lpis("irqfd.msi_written"), ["cpu0:8195", "cpu1:8200"], "I16a: MOVALL leaves the collection where it is");
    assert_eq!(
        lpis("rules.mapti_mapped_event"),
        ["cpu1:8210"],
        "I22: the event is mapped anew, its old LPI is dropped"
    );
    assert_eq!(lpis("rules.mapc_to_cpu1"), ["cpu0:8200", "cpu1:8210"], "I19: what is pending stays where it is");
    assert_eq!(lpis("rules.discard_pending"), ["cpu1:8210"], "I17: DISCARD drops what is pending");
    assert!(lpis("rules.unmap_device").is_empty(), "I20: and so does MAPD");
}
