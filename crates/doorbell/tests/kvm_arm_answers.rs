//! The answers of a real KVM on Arm, given by doorbell.
//!
//! `tests/data/kvm_arm_answers.txt` was recorded on Linux 6.1, arm64, by another program; `sequence.rs` asks the same
//! questions through [`doorbell::kvm_abi::ArmCalls`].

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

#[test]
fn with_the_ways_of_the_architecture_the_answers_of_kvms_own_ways_differ_and_no_others() {
    let got = differences(SoftArmVmOptions { behaviour: Behaviour::SPEC, ..SoftArmVmOptions::default() });
    for line in &got {
        println!("{line}");
    }
    let differ = |what: &str| got.iter().any(|line| line.starts_with(&format!("expected \"{what}: ")));
    assert!(differ("gicd.icfgr3"), "C4a: SPIs are levels after reset");
    assert!(differ("gicr0.waker"), "C7: redistributors sleep after reset");
    assert!(differ("signal_msi.frame_base"), "Q12: only the doorbell register takes messages");
    assert!(differ("rules.discard_pending.pending"), "I17: DISCARD drops the pending state");
    assert!(differ("rules.map_collection_again.doorbell"), "I18: events of a collection come back with it");
    assert!(differ("rules.cbaser.cwriter"), "I4: GITS_CWRITER stays");
}
