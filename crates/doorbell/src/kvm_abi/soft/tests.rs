use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::kvm_abi::{
    KvmPicState,
    types::{IRQFD_RESAMPLE, regs},
};

const EOI: u64 = LAPIC_BASE + regs::EOI as u64;

fn machine() -> SoftVm {
    machine_with(SoftVmOptions { vcpus: 2, ..SoftVmOptions::default() })
}

fn machine_with(options: SoftVmOptions) -> SoftVm {
    let vm = SoftVm::new(options);
    vm.create_irqchip().unwrap();
    vm.create_vcpu(0).unwrap();
    vm.store(0, LAPIC_BASE + regs::SVR as u64, 0x1ff).unwrap();
    vm
}

fn new_event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

fn write(event: &OwnedFd, value: u64) {
    assert_eq!(rustix::io::write(event, &value.to_ne_bytes()), Ok(8));
}

fn counter(event: &OwnedFd) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn irqfd(vm: &SoftVm, event: &OwnedFd, gsi: u32, flags: u32, resample: Option<&OwnedFd>) -> Answer {
    let resamplefd = resample.map_or(-1, |event| event.as_raw_fd()) as u32;
    vm.irqfd(&KvmIrqfd { fd: event.as_raw_fd() as u32, gsi, flags, resamplefd, ..KvmIrqfd::default() })
}

fn store_entry(vm: &SoftVm, pin: u32, entry: u32) {
    vm.store(0, ioapic::DEFAULT_BASE, 0x10 + 2 * pin).unwrap();
    vm.store(0, ioapic::DEFAULT_BASE + 0x10, entry).unwrap();
}

fn latches(vm: &SoftVm) -> u32 {
    let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
    vm.get_irqchip(&mut chip).unwrap();
    chip.ioapic().irr
}

fn route_message(vm: &SoftVm, vector: u32) {
    vm.set_gsi_routing(1, 0, &[KvmIrqRoutingEntry::msi(24, LAPIC_BASE, vector)]).unwrap();
}

#[test]
fn a_deassign_takes_the_counter_that_the_assign_left() {
    let (vm, event) = (machine(), new_event());
    route_message(&vm, 0x41);
    write(&event, 7);
    assert_eq!(irqfd(&vm, &event, 24, 0, None), Ok(0));
    vm.settle();
    assert_eq!(vm.acknowledge(0), Ok(Some(0x41)), "F10");
    vm.store(0, EOI, 0).unwrap();
    assert_eq!(irqfd(&vm, &event, 24, IRQFD_DEASSIGN, None), Ok(0));
    assert_eq!(counter(&event), Err(Errno::AGAIN));
    assert_eq!(vm.acknowledge(0), Ok(None), "and delivers nothing for it");
}

#[test]
fn f8a_what_was_written_before_the_deassign_is_delivered_by_it() {
    let (vm, event) = (machine(), new_event());
    route_message(&vm, 0x41);
    irqfd(&vm, &event, 24, 0, None).unwrap();
    write(&event, 1);
    irqfd(&vm, &event, 24, IRQFD_DEASSIGN, None).unwrap();
    assert_eq!(vm.acknowledge(0), Ok(Some(0x41)));
    write(&event, 1);
    vm.settle();
    assert_eq!((vm.acknowledge(0), counter(&event)), (Ok(None), Ok(1)), "F8b");
}

#[test]
fn f5_an_eventfd_is_bound_once_in_the_process_or_as_the_older_rule_has_it_once_in_a_vm() {
    let event = new_event();
    let (one, two) = (machine(), machine());
    assert_eq!(irqfd(&one, &event, 24, 0, None), Ok(0));
    assert_eq!(irqfd(&two, &event, 24, 0, None), Err(Errno::BUSY));
    drop(one);
    assert_eq!(irqfd(&two, &event, 24, 0, None), Ok(0), "F13: the VM took its bindings with it");

    let older = SoftVmOptions { exclusive: Exclusive::Dispatcher, ..SoftVmOptions::default() };
    let (event, one, two) = (new_event(), machine_with(older), machine_with(older));
    assert_eq!(irqfd(&one, &event, 24, 0, None), Ok(0));
    assert_eq!(irqfd(&one, &event, 25, 0, None), Err(Errno::BUSY), "in the same VM");
    assert_eq!(irqfd(&two, &event, 24, 0, None), Ok(0), "F5a");
}

#[test]
fn r2_an_end_lowers_the_line_and_signals_every_sharer() {
    let (vm, first, second) = (machine(), new_event(), new_event());
    let ended = [new_event(), new_event()];
    store_entry(&vm, 10, 0x51 | 1 << 15);
    irqfd(&vm, &first, 10, IRQFD_RESAMPLE, Some(&ended[0])).unwrap();
    irqfd(&vm, &second, 10, IRQFD_RESAMPLE, Some(&ended[1])).unwrap();
    write(&first, 1);
    vm.settle();
    assert_eq!((vm.acknowledge(0), latches(&vm)), (Ok(Some(0x51)), 1 << 10));
    vm.store(0, EOI, 0).unwrap();
    assert_eq!(ended.each_ref().map(counter), [Ok(1), Ok(1)]);
    assert_eq!((vm.acknowledge(0), latches(&vm)), (Ok(None), 0));
}

#[test]
fn r6_a_stale_level_is_not_delivered_at_unmask_but_asked_for() {
    let (vm, event, ended) = (machine(), new_event(), new_event());
    irqfd(&vm, &event, 9, IRQFD_RESAMPLE, Some(&ended)).unwrap();
    vm.port_store(0, 0xa1, 0xff).unwrap();
    let raised = vm.irq_line_status(KvmIrqLevel { irq: 9, level: 1 });
    assert_eq!((raised, latches(&vm)), (Ok(-1), 1 << 9), "masked");
    store_entry(&vm, 9, 0x3f | 1 << 15);
    assert_eq!((counter(&ended), latches(&vm), vm.acknowledge(0)), (Ok(1), 0, Ok(None)));
}

#[test]
fn calls_without_a_chip_are_refused_with_the_numbers_of_the_kernel() {
    let (vm, event) = (SoftVm::new(SoftVmOptions { vcpus: 2, ..SoftVmOptions::default() }), new_event());
    assert_eq!(vm.irq_line(KvmIrqLevel::default()), Err(Errno::NXIO));
    assert_eq!(vm.get_irqchip(&mut KvmIrqchip::of(CHIP_IOAPIC)), Err(Errno::NXIO));
    assert_eq!(vm.signal_msi(&KvmMsi::default()), Err(Errno::INVAL));
    assert_eq!(irqfd(&vm, &event, 5, 0, None), Err(Errno::INVAL), "F2");
    assert_eq!(irqfd(&vm, &event, 5, IRQFD_DEASSIGN, None), Ok(0));
    assert_eq!(
        (vm.create_vcpu(0), vm.create_vcpu(0), vm.create_vcpu(2)),
        (Ok(0), Err(Errno::EXIST), Err(Errno::INVAL))
    );
    assert_eq!(vm.create_irqchip(), Err(Errno::INVAL), "there are vCPUs");
    assert_eq!(vm.get_lapic(0, &mut KvmLapicState::default()), Err(Errno::INVAL));
    assert_eq!(vm.get_lapic(1, &mut KvmLapicState::default()), Err(Errno::BADF));
    let vm = machine();
    assert_eq!(vm.create_irqchip(), Err(Errno::EXIST));
    assert_eq!(vm.get_irqchip(&mut KvmIrqchip::of(3)), Err(Errno::INVAL));
}

#[test]
fn s2_ext_is_a_table_of_its_own_kind() {
    let vm = machine_with(SoftVmOptions { device_ids: DeviceIds::ExtendedType, ..SoftVmOptions::default() });
    let message = KvmIrqRoutingEntry::msi(24, LAPIC_BASE, 0x41);
    let extended = KvmIrqRoutingEntry { kind: routing::ROUTING_EXTENDED_MSI, ..message };
    assert_eq!(vm.set_gsi_routing(2, 0, &[message, KvmIrqRoutingEntry { gsi: 25, ..extended }]), Ok(0));
    let flagged = KvmIrqRoutingEntry { flags: MSI_VALID_DEVID, ..message };
    assert_eq!(vm.set_gsi_routing(1, 0, &[flagged]), Err(Errno::INVAL));
    assert_eq!(machine().set_gsi_routing(1, 0, &[extended]), Err(Errno::INVAL), "not in KVM's own table");
}

fn pics(vm: &SoftVm) -> [KvmPicState; 2] {
    [CHIP_PIC_MASTER, CHIP_PIC_SLAVE].map(|id| {
        let mut chip = KvmIrqchip::of(id);
        vm.get_irqchip(&mut chip).unwrap();
        chip.pic()
    })
}

/// Vectors 0x20 to 0x2f, as every guest begins.
fn initialise_pics(vm: &SoftVm) {
    let words = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)];
    for (port, value) in words {
        vm.port_store(0, port, value).unwrap();
    }
}

#[test]
fn by_default_a_gsi_below_16_leads_to_the_8259_and_to_the_ioapic() {
    let vm = machine();
    let line = |irq, level| vm.irq_line_status(KvmIrqLevel { irq, level });
    assert_eq!((line(4, 1), line(9, 1), line(16, 1)), (Ok(1), Ok(1), Ok(-1)), "all entries of the IOAPIC are masked");
    assert_eq!((pics(&vm).map(|pic| pic.irr), latches(&vm)), ([1 << 4 | 1 << 2, 1 << 1], 1 << 4 | 1 << 9 | 1 << 16));
    store_entry(&vm, 10, 0x41);
    assert_eq!((line(10, 1), line(10, 0)), (Ok(2), Ok(2)), "both took it");
    vm.port_store(0, 0xa1, 0xff).unwrap();
    assert_eq!((line(10, 1), line(11, 1)), (Ok(1), Ok(-1)), "the 8259's part is masked");
}

#[test]
fn r2_an_end_at_the_8259_lowers_its_line_and_signals_the_sharer() {
    let (vm, event, ended) = (machine(), new_event(), new_event());
    initialise_pics(&vm);
    vm.port_store(0, 0x4d1, 0x08).unwrap();
    irqfd(&vm, &event, 11, IRQFD_RESAMPLE, Some(&ended)).unwrap();
    write(&event, 1);
    vm.settle();
    assert_eq!(pics(&vm).map(|pic| pic.irr), [1 << 2, 1 << 3]);
    // The CPU's part: a poll of the master, then of the slave, which KVM ends at once.
    vm.port_store(0, 0x20, 0x0c).unwrap();
    assert_eq!((vm.port_load(0, 0x20), counter(&ended)), (Ok(0x82), Err(Errno::AGAIN)));
    vm.port_store(0, 0xa0, 0x0c).unwrap();
    assert_eq!((vm.port_load(0, 0xa0), counter(&ended)), (Ok(0x83), Ok(1)));
    assert_eq!((pics(&vm).map(|pic| pic.irr), latches(&vm)), ([0, 0], 0));
    // And as an end.
    write(&event, 1);
    vm.settle();
    vm.port_store(0, 0xa0, 0x63).unwrap();
    assert_eq!((counter(&ended), latches(&vm), pics(&vm)[1].irr), (Ok(1), 0, 0));
}

#[test]
fn the_8259s_output_reaches_the_boot_cpu_through_lint0() {
    let vm = machine();
    initialise_pics(&vm);
    vm.irq_line(KvmIrqLevel { irq: 3, level: 1 }).unwrap();
    assert!(vm.on_lapic(0, |lapic| lapic.next().extint).unwrap());
    vm.port_store(0, 0x21, 0x08).unwrap();
    assert!(!vm.on_lapic(0, |lapic| lapic.next().extint).unwrap());
}

#[test]
fn icw1_ends_edges_only_while_a_cpu_takes_the_8259s_interrupts() {
    for (lint0, isr) in [(0x700, 0), (0x1_0700, 0x10)] {
        let vm = machine();
        vm.store(0, LAPIC_BASE + regs::LVT_LINT0 as u64, lint0).unwrap();
        let mut chip = KvmIrqchip::of(CHIP_PIC_MASTER);
        chip.set_pic(&KvmPicState { irr: 0x10, isr: 0x10, ..pics(&vm)[0] });
        vm.set_irqchip(&chip).unwrap();
        vm.port_store(0, 0x20, 0x11).unwrap();
        assert_eq!((pics(&vm)[0].irr, pics(&vm)[0].isr), (0, isr), "LINT0 {lint0:#x}");
    }
}

#[test]
fn a_flag_of_an_8259_that_a_vmm_writes_as_another_number_reads_1() {
    let vm = machine();
    let mut chip = KvmIrqchip::of(CHIP_PIC_SLAVE);
    let state = KvmPicState { poll: 7, auto_eoi: 2, priority_add: 0x1b, init_state: 9, irq_base: 0x2b, ..pics(&vm)[1] };
    chip.set_pic(&state);
    vm.set_irqchip(&chip).unwrap();
    assert_eq!(pics(&vm)[1], KvmPicState { poll: 1, auto_eoi: 1, priority_add: 3, ..state });
}

#[test]
fn accesses_to_other_ports_or_by_absent_vcpus_are_refused() {
    let vm = machine();
    assert_eq!((vm.port_load(0, 0x60), vm.port_store(0, 0x22, 1)), (Err(Errno::INVAL), Err(Errno::INVAL)));
    assert_eq!((vm.port_load(1, 0x20), vm.port_store(1, 0x20, 1)), (Err(Errno::BADF), Err(Errno::BADF)));
    vm.port_store(0, 0x21, 0x55).unwrap();
    assert_eq!(vm.port_load(0, 0x21), Ok(0x55));
    let bare = SoftVm::new(SoftVmOptions::default());
    assert_eq!(bare.port_load(0, 0x20), Err(Errno::INVAL));
}
