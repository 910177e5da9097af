use super::*;

#[test]
fn a_page_that_is_set_is_read_back_except_for_what_kvm_fixes() {
    let (set, mut cpus) = machine(2);
    let mut page = [0u8; LAPIC_PAGE];
    for (at, byte) in page.iter_mut().enumerate().filter(|(at, _)| at % 16 < 4) {
        *byte = (at / 16) as u8 ^ 0xa5;
    }
    let mut expected = page;
    cpus[1].set_page(&page).unwrap();
    expected[0x30..0x34].copy_from_slice(&0x50014u32.to_le_bytes());
    expected[0x390..0x394].fill(0);
    let ppr = u32::from(cpus[1].ppr());
    expected[0xa0..0xa4].copy_from_slice(&ppr.to_le_bytes());
    assert_eq!(ppr, 0xf0, "vector 0xff is in service");
    assert_eq!(cpus[1].page(), expected);

    let mut two = cpus.pop().unwrap();
    two.reset();
    to_x2apic(&mut two);
    two.msr_write(0x80f, 0x1ff).unwrap();
    two.msr_write(0x830, 0x1_0000_0441).unwrap();
    let saved = two.page();
    assert_eq!(saved[0x20..0x24], (1u32 << 24).to_le_bytes(), "KVM shows the id as in xAPIC mode");
    assert_eq!((saved[0x300..0x304].to_vec(), saved[0x310]), (0x441u32.to_le_bytes().to_vec(), 1));
    let mut other = saved;
    other[0x20..0x24].fill(0x77);
    other[0xd0..0xd4].fill(0x77);
    two.set_page(&other).unwrap();
    assert_eq!(two.page(), saved);
    assert_eq!(send(&set, address(1), 0x41), 1);
}

#[test]
fn a_saved_apic_goes_on_where_it_was() {
    let (set, mut cpus) = machine(2);
    cpus[1].write(LDR, 4 << 24);
    send(&set, address(1), 0x8051);
    cpus[1].acknowledge();
    send(&set, address(1), 0x61);
    set.nmi(VcpuId(1));
    let state = cpus[1].save();

    let (set, mut cpus) = machine(2);
    cpus[1].restore(&state).unwrap();
    assert_eq!(cpus[1].save(), state);
    assert_eq!(send(&set, address(4) | LOGICAL, 0x71), 1);
    assert!(cpus[1].take_nmi());
    assert_eq!([cpus[1].acknowledge(), cpus[1].acknowledge()], [Some(0x71), None]);
    let ended: Vec<_> = std::iter::from_fn(|| cpus[1].eoi()).collect();
    assert_eq!(ended, [Eoi { vector: 0x71, level: false }, Eoi { vector: 0x51, level: true }]);

    let before = cpus[1].save();
    let bad = [
        LocalApicState { base: 1, ..state.clone() },
        LocalApicState { page: vec![0; 1023], ..state.clone() },
        LocalApicState { events: 1 << 31, ..state.clone() },
        LocalApicState { errors: 1, ..state.clone() },
    ];
    for state in bad {
        assert!(cpus[1].restore(&state).is_err());
        assert_eq!(cpus[1].save(), before, "a restore that fails changes nothing");
    }
}
