//! Which of several APICs a destination means, where ids, formats or modes are at odds.

use super::*;
use crate::chips::x86::ioapic::RtcTargets;

fn extended() -> ApicOptions {
    ApicOptions { extended_ids: true, no_broadcast_quirk: true, ..ApicOptions::default() }
}

/// APICs with these ids, software-enabled, in xAPIC mode.
fn crowd(ids: &[u32], options: ApicOptions) -> (Arc<ApicSet>, Vec<LocalApic>) {
    let set = ApicSet::with_ids(ids, Arc::new(()), options).unwrap();
    let mut cpus: Vec<_> = (0..ids.len() as u32).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    cpus.iter_mut().for_each(|cpu| assert_eq!(cpu.write(SVR, 0x1ff), None));
    (set, cpus)
}

/// The address of a physical destination of up to 32 bits.
fn wide(destination: u64) -> u64 {
    address(destination & 0xff) | (destination >> 8) << 40
}

fn all(cpus: &mut [LocalApic]) -> Vec<Vec<u8>> {
    cpus.iter_mut().map(arrived).collect()
}

#[test]
fn with_extended_ids_an_xapic_is_found_by_its_own_id_and_by_a_large_one() {
    let (set, mut cpus) = crowd(&[0, 1, 0x101], extended());
    assert_eq!([send(&set, wide(1), 0x41), send(&set, wide(0x101), 0x42), send(&set, wide(0x102), 0x43)], [1, 1, 0]);
    assert_eq!(all(&mut cpus), [vec![], vec![0x41], vec![0x42]]);
    cpus[1].write(0x20, 9 << 24);
    assert_eq!([send(&set, wide(1), 0x44), send(&set, wide(9), 0x45)], [1, 1]);
    assert_eq!(all(&mut cpus), [vec![], vec![0x45], vec![0x44]], "0x101 is 0x01 to an xAPIC, which nobody else is now");
    cpus[1].write(0x20, 0);
    assert_eq!(send(&set, wide(0), 0x46), 1);
    assert_eq!(all(&mut cpus), [vec![0x46], vec![], vec![]], "of two the first");
}

#[test]
fn with_extended_ids_an_x2apic_is_found_by_its_id_alone() {
    let (set, mut cpus) = crowd(&[3, 7], extended());
    to_x2apic(&mut cpus[0]);
    assert_eq!([send(&set, wide(0), 0x41), send(&set, wide(3), 0x42), send(&set, wide(7), 0x43)], [0, 1, 1]);
    assert_eq!(all(&mut cpus), [vec![0x42], vec![0x43]]);
}

#[test]
fn an_id_of_eight_bits_that_its_xapic_has_given_up_is_nobodys() {
    let (set, mut cpus) = crowd(&[0, 0xff], extended());
    to_x2apic(&mut cpus[0]);
    cpus[1].write(0x20, 5 << 24);
    cpus[1].write(SVR, 0xff);
    assert_eq!(send(&set, address(0xff), 0x400), 0, "no broadcast: all that are enabled are x2APICs");
    assert!(!cpus[1].take_nmi());
    assert_eq!(send(&set, address(5), 0x400), 1);
    assert!(cpus[1].take_nmi());
}

#[test]
fn a_destination_of_more_than_15_bits_is_not_cut() {
    let (set, mut cpus) = crowd(&[0, 1], extended());
    assert_eq!([send(&set, wide(0x8000), 0x41), send(&set, wide(0x8001), 0x42)], [0, 0]);
    assert_eq!(all(&mut cpus), [vec![], vec![]]);
}

#[test]
fn a_summary_is_that_of_the_map_until_an_apic_changes() {
    let (set, mut cpus) = machine(2);
    cpus[0].write(LDR, 1 << 24);
    let before = set.map.summary();
    assert!(set.map.is_still(before));
    cpus[0].write(LDR, 2 << 24);
    let after = set.map.summary();
    assert_eq!((before.format(), before.last_id()), (after.format(), after.last_id()));
    assert!(!set.map.is_still(before) && set.map.is_still(after));
}

#[test]
fn what_can_be_prepared_is() {
    let (set, _cpus) = crowd(&[0, 1], extended());
    let prepared = |set: &ApicSet, address, data| set.prepare(&MsiMessage::new(address, data)).is_some();
    assert!(prepared(&set, wide(0x101), 0x41));
    assert!(!prepared(&set, wide(0x101) | 1 << 32, 0x41));
    let (set, _cpus) = machine(1);
    assert!(prepared(&set, address(0), 0x05) && prepared(&set, 0x1000, 0x41), "KVM asks for neither");
}

#[test]
fn without_the_quirk_0xff_is_still_the_broadcast_of_xapics() {
    let (set, mut cpus) = crowd(&[0, 1], extended());
    assert_eq!(send(&set, address(0xff), 0x41), 2);
    assert_eq!(all(&mut cpus), [[0x41], [0x41]]);
}

#[test]
fn the_hash_of_a_flat_destination_may_fall_on_any_bit() {
    let (set, mut cpus) = machine(3);
    for (cpu, ldr) in cpus.iter_mut().zip([1, 4, 0x80]) {
        cpu.write(LDR, ldr << 24);
    }
    for vector in 0x60..0x63 {
        assert_eq!(send(&set, address(0x85) | LOGICAL, vector | LOWEST), 1);
    }
    assert_eq!(all(&mut cpus), [[0x60], [0x61], [0x62]]);
}

#[test]
fn l5_one_of_two_in_a_cluster_with_the_same_logical_id_takes_it() {
    let (set, mut cpus) = machine(2);
    for cpu in &mut cpus {
        cpu.write(DFR, 0x0fff_ffff);
        cpu.write(LDR, 0x11 << 24);
    }
    for vector in 0x60..0x62 {
        assert_eq!(send(&set, address(0x11) | LOGICAL, vector | LOWEST), 1);
    }
    assert_eq!(all(&mut cpus), [[0x60], [0x61]]);
}

#[test]
fn l5_a_disabled_apic_and_one_with_another_logical_id_are_no_candidates() {
    let (set, mut cpus) = machine(4);
    for (cpu, ldr) in cpus.iter_mut().zip([4, 4, 4, 8]) {
        cpu.write(LDR, ldr << 24);
    }
    cpus[1].write(SVR, 0xff);
    for vector in 0x60..0x64 {
        assert_eq!(send(&set, address(4) | LOGICAL, vector | LOWEST), 1);
    }
    assert_eq!(all(&mut cpus), [vec![0x60, 0x62], vec![], vec![0x61, 0x63], vec![]]);
}

#[test]
fn without_the_quirk_0xff_among_both_modes_is_for_the_xapics() {
    let (set, mut cpus) = machine_with(2, ApicOptions { no_broadcast_quirk: true, ..ApicOptions::default() });
    to_x2apic(&mut cpus[0]);
    assert_eq!(send(&set, address(0xff), 0x41), 0, "an xAPIC without a logical id is of no format");
    cpus[1].write(LDR, 2 << 24);
    assert_eq!(send(&set, address(0xff), 0x42), 1);
    assert_eq!(all(&mut cpus), [vec![], vec![0x42]]);
}

#[test]
fn the_map_says_0_and_each_apic_for_itself_says_minus_1_when_nobody_matches() {
    let nobody = |ldrs: [u32; 2]| {
        let (set, mut cpus) = machine(2);
        for (cpu, ldr) in cpus.iter_mut().zip(ldrs) {
            cpu.write(LDR, ldr << 24);
        }
        send(&set, address(0x80) | LOGICAL, 0x41)
    };
    assert_eq!(nobody([1, 2]), 0);
    assert_eq!(nobody([1, 0]), 0, "one without a logical id");
    assert_eq!(nobody([1, 6]), -1, "one with two bits");
    assert_eq!(nobody([1, 1]), -1, "two with the same bit");
    let mixed = |ldr: u32| {
        let (set, mut cpus) = machine(2);
        to_x2apic(&mut cpus[0]);
        cpus[1].write(LDR, ldr << 24);
        send(&set, address(0x40) | LOGICAL, 0x41)
    };
    assert_eq!(mixed(0), 0, "an xAPIC without a logical id is of no format");
    assert_eq!(mixed(1), -1);
}

#[test]
fn among_apics_of_both_modes_an_x2apic_compares_cluster_and_bit() {
    let (set, mut cpus) = crowd(&[0, 0x12, 0x25], ApicOptions::default());
    cpus[0].write(LDR, 1 << 24);
    to_x2apic(&mut cpus[1]);
    to_x2apic(&mut cpus[2]);
    // Destinations from an x2APIC, and who takes each.
    let sent = [
        (1 << 16 | 1 << 2, 1),
        (2 << 16 | 0xfffe, 2),
        (1 << 16 | 1 << 5, 3),
        (2 << 16 | 1 << 2, 3),
        (1 << 16 | 0xe, 1),
    ];
    for (at, (destination, taker)) in sent.into_iter().enumerate() {
        let vector = 0x41 + at as u64;
        cpus[2].msr_write(0x830, destination << 32 | 1 << 11 | vector).unwrap();
        let expected: Vec<_> = (0..3).map(|cpu| if cpu == taker { vec![vector as u8] } else { vec![] }).collect();
        assert_eq!(all(&mut cpus), expected, "{destination:#x}");
    }
    assert_eq!(send(&set, address(0x02) | LOGICAL, 0x51), -1, "cluster 0 is empty, and no bit is that of the xAPIC");
}

#[test]
fn the_last_x2apic_cluster_is_cut_behind_the_last_id() {
    let (_set, mut cpus) = crowd(&[0, 0x100], ApicOptions::default());
    cpus.iter_mut().for_each(to_x2apic);
    let mut logical = |destination: u64, low: u64| {
        cpus[0].msr_write(0x830, destination << 32 | 1 << 11 | low).unwrap();
        all(&mut cpus)
    };
    assert_eq!(logical(0x10 << 16 | 1, 0x41), [vec![], vec![0x41]], "its first bit is the last id");
    let lowest = 1 << 8;
    assert_eq!(
        logical(0x10 << 16 | 0b11, lowest | 0x61),
        [vec![], vec![0x61]],
        "the hash does not count bits without an id"
    );
    assert_eq!(logical(0x11 << 16 | 1, 0x42), [[], []]);
    assert_eq!(logical(0xffff << 16 | 1, 0x43), [[], []]);
}

#[test]
fn the_clocks_accounting_asks_who_takes_a_message_and_whom_it_names() {
    let (set, mut cpus) = machine(3);
    cpus[1].write(SVR, 0xff);
    let asked = |address, data| {
        let message = MsiMessage::new(address, data);
        let (mut takers, mut named) = (vec![], vec![]);
        set.takers(&message, &mut |vcpu| takers.push(vcpu.0));
        RtcTargets::matches(&*set, &message, &mut |vcpu| named.push(vcpu.0));
        (takers, named)
    };
    assert_eq!(asked(address(0xff), 0x41), (vec![0, 2], vec![0, 1, 2]), "one is disabled");
    assert_eq!(asked(address(2), 0x41), (vec![2], vec![2]));
    assert_eq!(asked(address(2), 0x141), (vec![2], vec![2]), "lowest priority");
    assert_eq!(asked(address(2), 0x400), (vec![], vec![2]), "an NMI is nothing to end");
    assert_eq!(asked(address(9), 0x41), (vec![], vec![]));
}
