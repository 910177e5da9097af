//! The guest on command, on the kernel of this machine: what the parity check needs to acknowledge and end interrupts.
#![cfg(feature = "kvm")]

use doorbell::kvm::abi::{KernelVm, Kvm};
use doorbell::kvm_abi::types::{CHIP_IOAPIC, regs};
use doorbell::kvm_abi::{GuestCalls, KvmCalls, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqchip, KvmLapicState, KvmMsi};

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;

fn machine() -> Option<KernelVm> {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(errno) => {
            println!("SKIPPED: no /dev/kvm ({errno}): the kernel was not asked");
            return None;
        }
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irqchip().unwrap();
    for vcpu in 0..2 {
        vm.create_vcpu(vcpu).unwrap();
        let mut state = KvmLapicState::default();
        vm.get_lapic(vcpu, &mut state).unwrap();
        state.set_register(regs::SVR, 0x1ff);
        vm.set_lapic(vcpu, &state).unwrap();
    }
    Some(vm)
}

fn lapic(vm: &KernelVm, vcpu: u32) -> KvmLapicState {
    let mut state = KvmLapicState::default();
    vm.get_lapic(vcpu, &mut state).unwrap();
    state
}

/// What the CPU does when it takes an interrupt: the request goes into service.
fn acknowledge(vm: &KernelVm, vcpu: u32, vector: usize) {
    let mut state = lapic(vm, vcpu);
    let (mut requests, mut in_service) = (state.bitmap(regs::IRR), state.bitmap(regs::ISR));
    assert_eq!(requests[vector / 32] >> (vector % 32) & 1, 1, "{vector:#x} is requested");
    requests[vector / 32] &= !(1 << (vector % 32));
    in_service[vector / 32] |= 1 << (vector % 32);
    state.set_bitmap(regs::IRR, requests);
    state.set_bitmap(regs::ISR, in_service);
    vm.set_lapic(vcpu, &state).unwrap();
}

#[test]
fn the_guest_ends_interrupts_by_priority() {
    let Some(vm) = machine() else { return };
    for vcpu in [0, 1] {
        for vector in [0x41, 0x93] {
            let message = KvmMsi { address_lo: LAPIC as u32 | vcpu << 12, data: vector, ..KvmMsi::default() };
            assert_eq!(vm.signal_msi(&message), Ok(1));
            acknowledge(&vm, vcpu, vector as usize);
        }
        assert_eq!(vm.load(vcpu, LAPIC + regs::PPR as u64), Ok(0x90));
        vm.store(vcpu, LAPIC + regs::EOI as u64, 0).unwrap();
        assert_eq!(lapic(&vm, vcpu).vectors(regs::ISR), [0x41]);
        assert_eq!(vm.load(vcpu, LAPIC + regs::PPR as u64), Ok(0x40));
        vm.store(vcpu, LAPIC + regs::EOI as u64, 0).unwrap();
        assert_eq!(vm.load(vcpu, LAPIC + regs::PPR as u64), Ok(0));
    }
}

#[test]
fn a_level_interrupt_that_the_guest_ends_is_sent_again_while_its_line_is_high() {
    let Some(vm) = machine() else { return };
    vm.set_gsi_routing(1, 0, &[KvmIrqRoutingEntry::pin(10, CHIP_IOAPIC, 10)]).unwrap();
    vm.store(0, IOAPIC, 0x10 + 2 * 10).unwrap();
    vm.store(0, IOAPIC + 0x10, 0x51 | 1 << 15).unwrap();
    assert_eq!(vm.load(0, IOAPIC + 0x10), Ok(0x51 | 1 << 15));
    assert_eq!(vm.irq_line_status(KvmIrqLevel { irq: 10, level: 1 }), Ok(1));
    for _ in 0..3 {
        acknowledge(&vm, 0, 0x51);
        vm.store(0, LAPIC + regs::EOI as u64, 0).unwrap();
        assert_eq!((lapic(&vm, 0).vectors(regs::IRR), lapic(&vm, 0).vectors(regs::ISR)), (vec![0x51], vec![]));
    }
    vm.irq_line(KvmIrqLevel { irq: 10, level: 0 }).unwrap();
    acknowledge(&vm, 0, 0x51);
    vm.store(0, LAPIC + regs::EOI as u64, 0).unwrap();
    assert_eq!(lapic(&vm, 0).vectors(regs::IRR), []);
    let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
    vm.get_irqchip(&mut chip).unwrap();
    assert_eq!((chip.ioapic().irr, chip.ioapic().redirtbl[10]), (0, 0x51 | 1 << 15));
}

#[test]
fn an_edge_entry_with_the_vector_of_a_level_interrupt_is_sent_again_at_its_end_while_high() {
    let Some(vm) = machine() else { return };
    edge_entry_with_the_vector_of_a_level_interrupt(&vm, |vector| acknowledge(&vm, 0, vector));
}

#[test]
fn doorbell_treats_that_edge_entry_as_the_kernel_does() {
    use doorbell::kvm_abi::{SoftVm, SoftVmOptions};
    let vm = SoftVm::new(SoftVmOptions::default());
    vm.create_irqchip().unwrap();
    vm.create_vcpu(0).unwrap();
    vm.store(0, LAPIC + regs::SVR as u64, 0x1ff).unwrap();
    edge_entry_with_the_vector_of_a_level_interrupt(&vm, |vector| {
        assert_eq!(vm.acknowledge(0), Ok(Some(vector as u8)));
    });
}

/// Pin 6 is an edge pin whose line stays high; pin 4, of the same vector, is level and low again by the end.
fn edge_entry_with_the_vector_of_a_level_interrupt(vm: &dyn GuestCalls, acknowledge: impl Fn(usize)) {
    let table = [KvmIrqRoutingEntry::pin(4, CHIP_IOAPIC, 4), KvmIrqRoutingEntry::pin(6, CHIP_IOAPIC, 6)];
    vm.set_gsi_routing(2, 0, &table).unwrap();
    for (pin, entry) in [(4, 0x61 | 1 << 15), (6, 0x61)] {
        vm.store(0, IOAPIC, 0x10 + 2 * pin).unwrap();
        vm.store(0, IOAPIC + 0x10, entry).unwrap();
    }
    for (irq, level) in [(6, 1), (4, 1), (4, 0)] {
        assert_eq!(vm.irq_line_status(KvmIrqLevel { irq, level }), Ok(1));
    }
    acknowledge(0x61);
    vm.store(0, LAPIC + regs::EOI as u64, 0).unwrap();
    let mut state = KvmLapicState::default();
    vm.get_lapic(0, &mut state).unwrap();
    assert_eq!((state.vectors(regs::IRR), state.vectors(regs::ISR)), (vec![0x61], vec![]));
    assert_eq!(state.vectors(regs::TMR), [], "the second one is an edge");
}
