use super::*;

#[test]
fn l3_and_l4_logical_destinations_of_every_format() {
    let (set, mut cpus) = machine(4);
    for (cpu, ldr) in cpus.iter_mut().zip([0x11, 0x12, 0x21, 0x24]) {
        cpu.write(DFR, 0x0fff_ffff);
        cpu.write(LDR, ldr << 24);
    }
    assert_eq!(send(&set, address(0x13) | LOGICAL, 0x41), 2, "cluster 1, both");
    assert_eq!(send(&set, address(0x2f) | LOGICAL, 0x42), 2, "cluster 2");
    assert_eq!(send(&set, address(0x22) | LOGICAL, 0x43), 0, "cluster 2, nobody");
    // The hash counts bits, with or without a CPU: 0x44 % 4 is bit 0, 0x45 % 4 is bit 1.
    assert_eq!(send(&set, address(0x2f) | LOGICAL, 0x44 | LOWEST), 1);
    assert_eq!(send(&set, address(0x2f) | LOGICAL, 0x45 | LOWEST), 0, "the hash falls on a bit without a CPU");
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x41], vec![0x41], vec![0x42, 0x44], vec![0x42]]);

    // One APIC in flat format among them: each decides for itself.
    cpus[3].write(DFR, 0xffff_ffff);
    cpus[3].write(LDR, 0x10 << 24);
    assert_eq!(send(&set, address(0x11) | LOGICAL, 0x46), 2, "one by cluster, one by bit 4");
    assert_eq!(send(&set, address(0x08) | LOGICAL, 0x47), -1, "nobody matches, and there is no map to say 0");
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x46], vec![], vec![], vec![0x46]]);
}

#[test]
fn x2apic_ids_above_255_are_reached_if_enabled() {
    let options = ApicOptions { extended_ids: true, no_broadcast_quirk: true, ..ApicOptions::default() };
    let set = ApicSet::with_ids(&[0, 0x101, 0x1234], Arc::new(()), options).unwrap();
    let mut cpus: Vec<_> = (0..3).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    for cpu in &mut cpus {
        to_x2apic(cpu);
        cpu.msr_write(0x80f, 0x1ff).unwrap();
    }
    assert_eq!(cpus[2].msr_read(0x802), Ok(0x1234));
    assert_eq!(cpus[2].msr_read(0x80d), Ok(0x0123_0010), "cluster 0x123, bit 4");
    assert_eq!(send(&set, address(0x34) | 0x12 << 40, 0x41), 1);
    assert_eq!(send(&set, address(0x01) | 0x01 << 40, 0x42), 1);
    assert_eq!(send(&set, address(0x10) | 0x0123 << 48 | LOGICAL, 0x43), 1, "cluster 0x123, bit 4");
    assert_eq!(send(&set, address(0xff) | 0xff_ffff << 40, 0x44), 3, "broadcast");
    assert_eq!(send(&set, address(0xff), 0x45), 0, "no broadcast with the quirk off");
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x44], vec![0x42, 0x44], vec![0x41, 0x43, 0x44]]);
    let bad = MsiMessage::new(address(0) | 1 << 32, 0x41);
    assert_eq!(set.send(&bad).unwrap_err().errno(), crate::Errno::INVAL);
    assert_eq!(set.prepare(&bad), None);

    // Through the ICR: physical, logical, self.
    cpus[0].msr_write(0x830, 0x1234 << 32 | 0x2051).unwrap_err();
    cpus[0].msr_write(0x830, 0x1234 << 32 | 0x51).unwrap();
    cpus[0].msr_write(0x830, 0x0123_0010 << 32 | 0x852).unwrap();
    cpus[0].msr_write(0x83f, 0x53).unwrap();
    assert_eq!(cpus[0].msr_read(0x830), Ok(0x0123_0010 << 32 | 0x852));
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x53], vec![], vec![0x51, 0x52]]);
}

#[test]
fn l5_one_of_two_apics_with_the_same_logical_id_takes_it() {
    let (set, mut cpus) = machine(3);
    for cpu in &mut cpus {
        cpu.write(LDR, 4 << 24);
    }
    for vector in 0x60..0x63 {
        assert_eq!(send(&set, address(4) | LOGICAL | HINT, vector), 1);
    }
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x60], vec![0x61], vec![0x62]], "vector modulo the number of CPUs: 0x60 % 3 is 0");
}

#[test]
fn an_xapic_whose_id_is_too_large_answers_to_it_from_x2apic_senders() {
    let set = ApicSet::with_ids(&[0, 1, 0x101], Arc::new(()), ApicOptions::default()).unwrap();
    let mut cpus: Vec<_> = (0..3).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    cpus[1].write(SVR, 0x1ff);
    cpus[2].write(SVR, 0x1ff);
    to_x2apic(&mut cpus[0]);
    // 0x101 is also 0x01 in the eight bits of an xAPIC id: there is no map, and each APIC decides for itself.
    cpus[0].msr_write(0x830, 0x101 << 32 | 0x41).unwrap();
    cpus[0].msr_write(0x830, 0x001 << 32 | 0x42).unwrap();
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![], vec![0x42], vec![0x41, 0x42]]);
}

#[test]
fn ids_must_be_distinct_and_fit() {
    let of = |ids: &[u32]| ApicSet::with_ids(ids, Arc::new(()), ApicOptions::default());
    assert!(of(&[0, 3, 3]).is_err());
    assert!(of(&[0, 0x8000]).is_err());
    assert!(of(&[0x7fff]).is_ok());
}

#[test]
fn interrupts_between_processors() {
    let (_set, mut cpus) = machine(3);
    cpus[0].write(ICR_HIGH, 2 << 24);
    cpus[0].write(ICR, 0x41);
    cpus[0].write(ICR, 0x4_0042); // self
    cpus[0].write(ICR, 0x8_0043); // all
    cpus[0].write(ICR, 0xc_1044); // all but self; the busy bit reads 0
    assert_eq!(cpus[0].read(ICR), 0xc_0044);
    cpus[0].write(ICR, 0xc_8045); // level, de-asserted: nothing
    cpus[0].write(ICR, 0x8_0446); // NMI to all
    let all: Vec<_> = cpus.iter_mut().map(arrived).collect();
    assert_eq!(all, [vec![0x42, 0x43], vec![0x43, 0x44], vec![0x41, 0x43, 0x44]]);
    assert!(cpus.iter_mut().all(|cpu| cpu.take_nmi() && !cpu.take_nmi()));
}
