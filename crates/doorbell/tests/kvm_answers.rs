//! The 153 answers of a real KVM, given by the kernel of this machine and by doorbell.
//!
//! `tests/data/kvm_answers.txt` was recorded on Linux 6.18, x86, by another program; `sequence.rs` asks the same
//! questions through [`doorbell::kvm_abi::KvmCalls`].

#[path = "kvm_answers/sequence.rs"]
mod sequence;

const EXPECTED: &str = include_str!("data/kvm_answers.txt");

/// The answers of the 8259 pair, which doorbell does not have yet.
const LEGACY: [&str; 11] = [
    "reset.pic0: ",
    "reset.pic1: ",
    "pic.edge.line_1.status: ",
    "pic.edge.line_1_again.status: ",
    "pic.edge.high.irr: ",
    "pic.edge.line_0.status: ",
    "pic.edge.low.irr: ",
    "pic.edge.second_edge.status: ",
    "pic.edge_masked.line_1.status: ",
    "pic.slave.line_1.status: ",
    "pic.slave.cascade_irr_on_master: ",
];

/// Where the answers differ from the recorded ones, except those for which `left_out` is true. Each expected line must
/// be there once, in its place.
fn differences(got: &[String], left_out: impl Fn(&str) -> bool) -> Vec<String> {
    let expected: Vec<&str> = EXPECTED.lines().collect();
    assert_eq!(expected.len(), 153, "the recorded answers are complete");
    assert_eq!(got.len(), expected.len(), "every question was asked: {got:#?}");
    let pairs = expected.iter().zip(got).filter(|(expected, got)| expected != got);
    pairs.filter(|(expected, _)| !left_out(expected)).map(|(e, g)| format!("expected {e:?}, got {g:?}")).collect()
}

#[cfg(feature = "kvm")]
#[test]
fn the_kernel_of_this_machine_gives_all_153_answers() {
    use doorbell::kvm::abi::{Kvm, bind_to_this_cpu};
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(errno) => {
            println!("SKIPPED: no /dev/kvm ({errno}): the kernel was not asked");
            return;
        }
    };
    bind_to_this_cpu().expect("a thread can be bound to its CPU");
    let vm = || kvm.create_vm().expect("a VM can be made");
    let got = sequence::ask(&sequence::Machines { bare: vm(), main: vm(), other: vm() });
    assert_eq!(differences(&got, |_| false), Vec::<String>::new());
}

#[test]
fn doorbell_gives_all_answers_but_those_of_the_8259() {
    use doorbell::kvm_abi::{SoftVm, SoftVmOptions};
    let vm = || SoftVm::new(SoftVmOptions::default());
    let got = sequence::ask(&sequence::Machines { bare: vm(), main: vm(), other: vm() });
    assert_eq!(differences(&got, |line| LEGACY.iter().any(|name| line.starts_with(name))), Vec::<String>::new());
    let left_out = EXPECTED.lines().filter(|line| LEGACY.iter().any(|name| line.starts_with(name))).count();
    assert_eq!((left_out, LEGACY.len()), (11, 11), "142 answers are doorbell's by now");
}
