use super::*;

#[test]
fn l6_to_l8_priorities_acknowledge_and_end() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    for vector in [0x35, 0x41, 0x4f, 0x08] {
        send(&set, address(0), vector);
    }
    assert_eq!(cpu.next(), Work { interrupt: Some(0x4f), ..Work::default() });
    assert_eq!(cpu.acknowledge(), Some(0x4f));
    assert_eq!(cpu.ppr(), 0x40);
    assert_eq!(cpu.acknowledge(), None, "0x41 is of the class in service");
    send(&set, address(0), 0x8050);
    assert_eq!(cpu.acknowledge(), Some(0x50), "a higher class interrupts");
    assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x50, level: true }), "the highest in service ends first");
    assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x4f, level: false }));
    assert_eq!(cpu.eoi(), None, "nothing in service");
    cpu.write(TPR, 0x3f);
    assert_eq!((cpu.ppr(), cpu.cr8()), (0x3f, 3));
    assert_eq!(cpu.acknowledge(), Some(0x41));
    assert_eq!(cpu.write(0xb0, 0), Some(Eoi { vector: 0x41, level: false }));
    assert_eq!(cpu.acknowledge(), None, "0x35 is not above TPR");
    cpu.set_cr8(2).unwrap();
    assert_eq!(cpu.set_cr8(16), Err(GeneralProtection));
    assert_eq!(cpu.read(TPR), 0x20);
    assert_eq!(cpu.acknowledge(), Some(0x35));
    cpu.eoi();
    cpu.write(TPR, 0);
    assert_eq!(cpu.next(), Work::default(), "vectors below 16 are never deliverable");
    assert!(cpu.holds(0x08));
}

#[test]
fn the_trigger_mode_is_that_of_the_last_message() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    send(&set, address(0), 0x8041);
    assert_eq!(cpu.read(0x180 + 0x20), 1 << 1);
    send(&set, address(0), 0x41);
    assert_eq!(cpu.read(0x180 + 0x20), 0);
    cpu.acknowledge();
    assert_eq!(cpu.eoi(), Some(Eoi { vector: 0x41, level: false }));
}

#[test]
fn eoi_broadcast_is_suppressed_only_where_it_is_offered() {
    for (eoi_suppression, svr, version) in [(false, 0x3ff, 0x50014), (true, 0x13ff, 0x0105_0014)] {
        let (set, mut cpus) = machine_with(1, ApicOptions { eoi_suppression, ..ApicOptions::default() });
        let cpu = &mut cpus[0];
        cpu.write(SVR, 0xffff_ffff);
        assert_eq!((cpu.read(SVR), cpu.read(0x30)), (svr, version));
        send(&set, address(0), 0x8041);
        assert_eq!(cpu.acknowledge(), Some(0x41));
        let level = Eoi { vector: 0x41, level: true };
        assert_eq!(cpu.eoi(), (!eoi_suppression).then_some(level));
    }
}

#[test]
fn irr_is_retained_across_a_transient_software_disable() {
    let (set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    send(&set, address(0), 0x41);
    cpu.write(SVR, 0xff);
    assert_eq!(cpu.read(0x320), 0x10000, "entries of the local table are masked");
    cpu.write(0x350, 0x741);
    assert_eq!(cpu.read(0x350), 0x1_0741, "and stay so while it is disabled");
    cpu.write(SVR, 0x1ff);
    assert_eq!(cpu.acknowledge(), Some(0x41));
}
