//! Registers and states at both sides of their boundaries.

use super::*;
use crate::chips::x86::lapic::registers::slot;

fn strict(vcpus: u32) -> (Arc<ApicSet>, Vec<LocalApic>) {
    machine_with(vcpus, ApicOptions { strict: true, ..ApicOptions::default() })
}

fn errors(cpu: &mut LocalApic) -> u32 {
    cpu.write(ESR, 0);
    cpu.read(ESR)
}

#[test]
fn a_base_that_moves_leaves_the_id_and_a_way_back_from_x2apic_restores_it() {
    let (_set, mut cpus) = machine(2);
    let cpu = &mut cpus[1];
    cpu.write(0x20, 7 << 24);
    cpu.set_base(0xfee1_0800).unwrap();
    assert_eq!((cpu.read(0x20), cpu.msr_read(0x1b)), (7 << 24, Ok(0xfee1_0800)));
    to_x2apic(cpu);
    cpu.restore_base(0xfee1_0c00).unwrap();
    assert_eq!(cpu.msr_read(0x802), Ok(1));
    cpu.restore_base(0xfee0_0800).unwrap();
    assert_eq!(cpu.read(0x20), 1 << 24);
}

#[test]
fn by_the_manual_turning_an_apic_off_resets_it_and_moving_it_does_not() {
    let (_set, mut cpus) = strict(1);
    let cpu = &mut cpus[0];
    cpu.write(TPR, 0x20);
    cpu.set_base(0xfee1_0800).unwrap();
    assert_eq!((cpu.read(TPR), cpu.read(SVR)), (0x20, 0x1ff));
    cpu.set_base(0xfee1_0000).unwrap();
    cpu.set_base(0xfee1_0800).unwrap();
    assert_eq!((cpu.read(TPR), cpu.read(SVR)), (0, 0xff));
}

#[test]
fn any_store_latches_the_errors_of_an_xapic_and_only_0_those_of_an_x2apic() {
    let (set, mut cpus) = strict(1);
    let cpu = &mut cpus[0];
    send(&set, address(0), 0x0f);
    cpu.write(ESR, 0xff);
    assert_eq!((cpu.read(ESR), errors(cpu)), (0x40, 0));
    send(&set, address(0), 0x0f);
    to_x2apic(cpu);
    assert_eq!((cpu.msr_write(0x828, 1), cpu.msr_read(0x828)), (Err(GeneralProtection), Ok(0)));
    assert_eq!((cpu.msr_write(0x828, 0), cpu.msr_read(0x828)), (Ok(None), Ok(0x40)));
}

#[test]
fn a_load_that_crosses_the_end_of_a_register_sees_nothing() {
    let (_set, mut cpus) = machine(1);
    let mut read = |offset, length| {
        let mut data = vec![9; length];
        cpus[0].mmio_read(offset, &mut data);
        data
    };
    assert_eq!((read(0x30, 4), read(0x31, 2), read(0x32, 2)), (vec![0x14, 0, 5, 0], vec![0, 5], vec![5, 0]));
    assert_eq!((read(0x31, 4), read(0x33, 2), read(0x33, 1)), (vec![0; 4], vec![0; 2], vec![0]));
}

#[test]
fn vectors_are_read_in_the_register_that_has_their_bit() {
    let (set, mut cpus) = machine(1);
    // 0x3f and 0x5f are the last bits of odd and even registers, 0xa0 the first of one.
    for (vector, offset, bit) in [(0x3f, 0x10, 1u32 << 31), (0x5f, 0x20, 1 << 31), (0xa0, 0x50, 1)] {
        assert_eq!(send(&set, address(0), 0x8000 | vector), 1);
        let cpu = &mut cpus[0];
        let mut bank =
            |first: u64| [0u64, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70].map(|at| (at, cpu.read(first + at)));
        let only = |value: u32| {
            [0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70].map(|at| (at, if at == offset { value } else { 0 }))
        };
        assert_eq!((bank(0x100), bank(0x200)), (only(0), only(bit)), "pending");
        assert_eq!(bank(0x180)[(offset / 0x10) as usize], (offset, bit), "level");
        assert_eq!(cpus[0].acknowledge(), Some(vector as u8));
        assert_eq!((cpus[0].read(0x100 + offset), cpus[0].read(0x200 + offset)), (bit, 0), "in service");
        assert_eq!(cpus[0].read(0xa0), vector & 0xf0, "the processor priority");
        cpus[0].eoi();
        assert_eq!(cpus[0].read(0xa0), 0);
    }
}

#[test]
fn an_apic_holds_what_is_pending_or_in_service() {
    let (set, mut cpus) = machine(1);
    let held = |cpu: &LocalApic| (0..=255).filter(|&vector| cpu.holds(vector)).collect::<Vec<_>>();
    assert_eq!(held(&cpus[0]), []);
    for vector in [0x51, 0x91] {
        send(&set, address(0), vector);
    }
    assert_eq!(held(&cpus[0]), [0x51, 0x91]);
    assert_eq!(cpus[0].acknowledge(), Some(0x91));
    send(&set, address(0), 0x91);
    assert_eq!(held(&cpus[0]), [0x51, 0x91], "both pending and in service");
    cpus[0].eoi();
    assert_eq!(cpus[0].acknowledge(), Some(0x91));
    cpus[0].eoi();
    assert_eq!(held(&cpus[0]), [0x51]);
}

#[test]
fn a_32_bit_store_through_the_window_counts_and_ends_an_interrupt() {
    let (set, mut cpus) = machine(1);
    assert_eq!(cpus[0].mmio_write(0x80, &[0x31, 0, 0, 0]), None);
    assert_eq!(cpus[0].read(TPR), 0x31);
    send(&set, address(0), 0x8061);
    cpus[0].acknowledge();
    assert_eq!(cpus[0].mmio_write(0xb0, &[0; 4]), Some(Eoi { vector: 0x61, level: true }));
}

#[test]
fn x2apic_registers_need_that_mode_and_some_exist_in_one_mode_only() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    assert_eq!(cpu.msr_write(0x80f, 0x1fe), Err(GeneralProtection));
    cpu.write(0x3f0, 0x41);
    assert_eq!((cpu.read(SVR), arrived(cpu)), (0x1ff, vec![]), "neither the MSR nor a self-IPI");
    to_x2apic(cpu);
    assert_eq!(cpu.msr_write(0x831, 0), Err(GeneralProtection), "the ICR has no high half");
    assert_eq!(cpu.msr_write(0x83f, 0xff), Ok(None));
    assert_eq!(arrived(cpu), [0xff]);
}

#[test]
fn reserved_bits_fault_by_the_manual_and_not_in_kvm() {
    for (by_manual, answer) in [(false, Ok(None)), (true, Err(GeneralProtection))] {
        let (_set, mut cpus) = machine_with(1, ApicOptions { strict: by_manual, ..ApicOptions::default() });
        let cpu = &mut cpus[0];
        to_x2apic(cpu);
        assert_eq!((cpu.msr_write(0x80b, 1), cpu.msr_write(0x808, 0x120)), (answer, answer));
        assert_eq!((cpu.msr_write(0x80b, 0), cpu.msr_write(0x808, 0x31)), (Ok(None), Ok(None)));
        assert_eq!(cpu.msr_read(0x808), Ok(0x31));
    }
}

#[test]
fn by_the_manual_the_arbitration_register_exists_and_what_lies_behind_the_last_does_not() {
    let (_set, mut cpus) = strict(1);
    let cpu = &mut cpus[0];
    assert_eq!((cpu.read(0x90), errors(cpu)), (0, 0));
    for offset in [0x400, 0x40] {
        assert_eq!((cpu.read(offset), errors(cpu)), (0, 0x80), "{offset:#x}");
        assert_eq!((cpu.write(offset, 1), errors(cpu)), (None, 0x80), "{offset:#x}");
    }
}

#[test]
fn a_software_disable_masks_the_local_vector_table_and_an_enable_leaves_it() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    cpu.write(0x360, 0x400);
    cpu.write(SVR, 0x1e7);
    assert_eq!((cpu.read(0x360), cpu.spurious()), (0x400, 0xe7));
    cpu.write(SVR, 0x0e7);
    assert_eq!(cpu.read(0x360), 0x1_0400);
    cpu.write(SVR, 0x1e7);
    assert_eq!(cpu.read(0x360), 0x1_0400, "it stays masked");
}

#[test]
fn init_clears_the_logical_id_of_an_xapic_and_keeps_that_of_an_x2apic() {
    let (_set, mut cpus) = machine(3);
    let (boot, others) = cpus.split_at_mut(1);
    others[0].write(LDR, 4 << 24);
    others[0].write(ICR_HIGH, 5 << 24);
    to_x2apic(&mut others[1]);
    assert_eq!(others[1].msr_read(0x80d), Ok(4));
    boot[0].write(ICR, 0xc_4500);
    assert!(others.iter_mut().all(LocalApic::take_init));
    assert_eq!((others[0].read(LDR), others[0].read(ICR_HIGH)), (0, 0));
    assert_eq!(others[1].msr_read(0x80d), Ok(4));
    boot[0].write(ICR, 0xc_4500);
    let work = others[0].next();
    assert_eq!(work, Work { init: true, ..Work::default() }, "another INIT while it waits for its SIPI");
    assert!(!work.is_idle() && Work::default().is_idle());
}

#[test]
fn cr8_takes_four_bits() {
    let (_set, mut cpus) = machine(1);
    assert_eq!((cpus[0].set_cr8(15), cpus[0].cr8()), (Ok(()), 15));
    assert_eq!((cpus[0].set_cr8(16), cpus[0].cr8()), (Err(GeneralProtection), 15));
}

#[test]
fn by_the_manual_16_is_the_first_vector() {
    let (set, mut cpus) = strict(2);
    let prepared = |data| set.prepare(&MsiMessage::new(address(1), data)).is_some();
    assert_eq!((prepared(0x0f), prepared(0x10)), (false, true));
    assert_eq!(send(&set, address(1), 0x10), 1);
    cpus[0].write(LDR, 1 << 24);
    assert_eq!(send(&set, address(1) | LOGICAL, 0x10), 1, "without a prepared target");
    assert_eq!((arrived(&mut cpus[0]), arrived(&mut cpus[1])), (vec![0x10], vec![0x10]));
    cpus[0].write(ICR_HIGH, 1 << 24);
    cpus[0].write(ICR, 0x0f);
    cpus[0].write(ICR, 0x10);
    assert_eq!((errors(&mut cpus[0]), arrived(&mut cpus[1])), (0x20, vec![0x10]));
}

#[test]
fn errors_that_the_guest_has_not_read_are_saved() {
    let (set, cpus) = strict(1);
    send(&set, address(0), 0x0f);
    let state = cpus[0].save();
    assert_eq!(state.errors, 0x40);
    let (_set, mut cpus) = strict(1);
    cpus[0].restore(&state).unwrap();
    assert_eq!(errors(&mut cpus[0]), 0x40);
}

#[test]
fn in_x2apic_mode_the_high_half_of_the_icr_comes_from_its_own_register() {
    let (_set, mut cpus) = machine(1);
    to_x2apic(&mut cpus[0]);
    let mut page = cpus[0].page();
    page[16 * slot::ICR + 4..16 * slot::ICR + 8].fill(0x11);
    page[16 * slot::ICR_HIGH..16 * slot::ICR_HIGH + 4].fill(0x22);
    cpus[0].set_page(&page).unwrap();
    assert_eq!(cpus[0].msr_read(0x830), Ok(0x2222_2222 << 32));
}

#[test]
fn with_extended_ids_a_state_is_restored_into_its_own_apic_only() {
    let options = ApicOptions { extended_ids: true, ..ApicOptions::default() };
    let (_set, mut cpus) = machine_with(2, options);
    cpus.iter_mut().for_each(to_x2apic);
    let states = cpus.iter().map(LocalApic::save).collect::<Vec<_>>();
    assert!(cpus[0].restore(&states[0]).is_ok());
    assert!(cpus[0].restore(&states[1]).is_err());
    assert_eq!(cpus[0].save(), states[0]);
}

#[test]
fn a_periodic_count_that_ends_now_has_begun_anew() {
    let clock = Arc::new(VirtualClock::default());
    let set = ApicSet::with_clock(&[0], Arc::new(()), clock.clone(), ApicOptions::default()).unwrap();
    let mut cpu = set.local(VcpuId(0)).unwrap();
    for (offset, value) in [(SVR, 0x1ff), (0x3e0, 0xb), (0x320, 1 << 17 | 0x41), (0x380, 1_000_000)] {
        cpu.write(offset, value);
    }
    clock.advance(999_999);
    assert_eq!(cpu.read(0x390), 1);
    clock.advance(1);
    assert_eq!(cpu.read(0x390), 1_000_000);
}

#[test]
fn a_set_says_what_it_is() {
    let (set, _cpus) = machine(3);
    assert_eq!(set.vcpus(), 3);
    assert!(format!("{set:?}").starts_with("ApicSet { options: ApicOptions { strict: false"));
}
