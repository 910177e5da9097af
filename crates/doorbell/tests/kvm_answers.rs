//! The 153 answers of a real KVM, given by the kernel of this machine and by doorbell.
//!
//! `tests/data/kvm_answers.txt` was recorded on Linux 6.18, x86, by another program; `sequence.rs` asks the same
//! questions through [`doorbell::kvm_abi::KvmCalls`].
#![cfg(feature = "x86")]

#[path = "kvm_answers/sequence.rs"]
mod sequence;

const EXPECTED: &str = include_str!("data/kvm_answers.txt");

/// Where the answers differ from the recorded ones. Each expected line must be there once, in its place.
fn differences(got: &[String]) -> Vec<String> {
    let expected: Vec<&str> = EXPECTED.lines().collect();
    assert_eq!(expected.len(), 153, "the recorded answers are complete");
    assert_eq!(got.len(), expected.len(), "every question was asked: {got:#?}");
    let pairs = expected.iter().zip(got).filter(|(expected, got)| expected != got);
    pairs.map(|(e, g)| format!("expected {e:?}, got {g:?}")).collect()
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
    assert_eq!(differences(&got), Vec::<String>::new());
}

#[test]
fn doorbell_gives_all_153_answers() {
    use doorbell::kvm_abi::{SoftVm, SoftVmOptions};
    let vm = || SoftVm::new(SoftVmOptions::default());
    let got = sequence::ask(&sequence::Machines { bare: vm(), main: vm(), other: vm() });
    assert_eq!(differences(&got), Vec::<String>::new());
}
