use super::*;

#[test]
fn modes_change_only_along_the_manuals_arrows() {
    let (set, mut cpus) = machine(2);
    let cpu = &mut cpus[1];
    assert_eq!(cpu.msr_read(0x802), Err(GeneralProtection), "not in x2APIC mode");
    for bad in [0xfee0_0801, 0xfee0_0a00, 0xfee0_0400, 1 << 46 | 0xfee0_0800] {
        assert_eq!(cpu.msr_write(0x1b, bad), Err(GeneralProtection), "{bad:#x}");
    }
    cpu.write(LDR, 2 << 24);
    to_x2apic(cpu);
    assert_eq!(cpu.read(0x20), u32::MAX, "the window is gone");
    assert_eq!(cpu.write(0x80, 0x10), None);
    assert_eq!((cpu.msr_read(0x802), cpu.msr_read(0x80d), cpu.msr_read(0x808)), (Ok(1), Ok(2), Ok(0)));
    for msr in [0x80e, 0x831, 0x80b, 0x83f, 0x809, 0x8ff, 0x7ff, 0x900] {
        assert_eq!(cpu.msr_read(msr), Err(GeneralProtection), "{msr:#x}");
    }
    for (msr, value) in [(0x802, 0), (0x80d, 0), (0x80e, 0), (0x828, 1), (0x83f, 0x100), (0x808, 1 << 32), (0x803, 0)] {
        assert_eq!(cpu.msr_write(msr, value), Err(GeneralProtection), "{msr:#x}");
    }
    assert_eq!(cpu.set_base(0xfee0_0800), Err(GeneralProtection), "x2APIC to xAPIC");
    assert_eq!(send(&set, address(1), 0x41), 1);
    cpu.set_base(0xfee0_0000).unwrap();
    assert_eq!(send(&set, address(1), 0x42), 0, "absent");
    assert_eq!(cpu.next().interrupt, None, "an APIC that is off interrupts nobody");
    assert_eq!(cpu.set_base(0xfee0_0c00), Err(GeneralProtection), "disabled to x2APIC");
    cpu.set_base(0xfee0_0800).unwrap();
    assert_eq!(cpu.read(0x20), 1 << 24);
    assert_eq!(cpu.acknowledge(), Some(0x41), "as in KVM, turning it off and on loses nothing");
}

#[test]
fn strict_mode_follows_the_manual() {
    let (set, mut cpus) = machine_with(2, ApicOptions { strict: true, ..ApicOptions::default() });
    let outside = MsiMessage::new(0x1000, 0x41);
    assert!(set.send(&outside).is_err());
    assert_eq!(set.prepare(&outside), None);
    assert_eq!(send(&set, address(0), 0x0f), 0, "nobody takes an illegal vector");
    let cpu = &mut cpus[0];
    assert_eq!(arrived(cpu), []);
    assert_eq!(cpu.read(ESR), 0, "not before it is written");
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 0x40);
    cpu.write(0x370, 0xfe);
    cpu.write(ICR_HIGH, 1 << 24);
    cpu.write(ICR, 0x0e);
    cpu.write(0x3c0, 0);
    assert_eq!(cpu.read(ESR), 0x40, "what was latched stays until the next write");
    cpu.write(ESR, 0);
    assert_eq!(cpu.read(ESR), 0xa0);
    assert_eq!(cpu.next().interrupt, Some(0xfe), "the error interrupt");
    cpu.write(0x350, 0xffff_ffff);
    assert_eq!(cpu.read(0x350), 0x1_a7ff, "delivery status and remote IRR are read-only");
    to_x2apic(cpu);
    assert_eq!(cpu.msr_write(0x80b, 1), Err(GeneralProtection));
    assert_eq!(cpu.msr_write(0x808, 0x100), Err(GeneralProtection));
    assert_eq!(arrived(&mut cpus[1]), []);
}

#[test]
fn an_error_entry_with_an_illegal_vector_does_not_go_round_for_ever() {
    let (set, mut cpus) = machine_with(1, ApicOptions { strict: true, ..ApicOptions::default() });
    cpus[0].write(0x370, 0x03);
    send(&set, address(0), 0x01);
    assert!(cpus[0].next().is_idle());
    assert!(cpus[0].next().is_idle());
}

#[test]
fn the_window_moves_with_its_base_and_is_there_in_xapic_mode_alone() {
    let (_set, mut cpus) = machine(2);
    let cpu = &mut cpus[1];
    assert_eq!(cpu.window(), Some(0xfee0_0000));
    cpu.msr_write(0x1b, 0x1_2345_6800).unwrap();
    assert_eq!((cpu.window(), cpu.read(0x20)), (Some(0x1_2345_6000), 1 << 24));
    cpu.msr_write(0x1b, 0x1_2345_6c00).unwrap();
    assert_eq!(cpu.window(), None);
    cpu.msr_write(0x1b, 0x1_2345_6000).unwrap();
    assert_eq!(cpu.window(), None);
    cpu.msr_write(0x1b, 0xfee0_0800).unwrap();
    assert_eq!(cpu.window(), Some(0xfee0_0000));
}

/// Every way that a guest may try, in the words of section 11.12.5; what a VMM may do besides is compared with the kernel
/// in `tests/kvm_lapic.rs`.
#[test]
fn a_guest_goes_only_along_the_arrows() {
    const OFF: u64 = 0xfee0_0000;
    const XAPIC: u64 = 0xfee0_0800;
    const X2APIC: u64 = 0xfee0_0c00;
    const INVALID: u64 = 0xfee0_0400;
    let allowed =
        [(OFF, OFF), (OFF, XAPIC), (XAPIC, OFF), (XAPIC, XAPIC), (XAPIC, X2APIC), (X2APIC, OFF), (X2APIC, X2APIC)];
    for strict in [false, true] {
        for from in [OFF, XAPIC, X2APIC] {
            for to in [OFF, XAPIC, X2APIC, INVALID] {
                let (_set, mut cpus) = machine_with(2, ApicOptions { strict, ..ApicOptions::default() });
                let cpu = &mut cpus[1];
                cpu.write(LDR, 0x4400_0000);
                cpu.write(TPR, 0x30);
                cpu.restore_base(from).unwrap();
                let answer = cpu.msr_write(0x1b, to);
                let taken = allowed.contains(&(from, to));
                assert_eq!(answer.is_ok(), taken, "{from:#x} to {to:#x}");
                assert_eq!(cpu.base().into_bits(), if taken { to } else { from });
                // Its id and logical id are those of the mode; the manual resets the rest with the enable bit.
                if taken && to == X2APIC {
                    assert_eq!((cpu.msr_read(0x802), cpu.msr_read(0x80d)), (Ok(1), Ok(2)));
                }
                let was_off = strict && (from == OFF || to == OFF);
                assert_eq!(cpu.cr8(), if was_off { 0 } else { 3 }, "{strict}: {from:#x} to {to:#x}");
            }
        }
    }
}
