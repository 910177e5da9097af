use super::*;

/// `reset.apic*` of the reference driver.
#[test]
fn reset_values_are_those_of_kvm() {
    let set = ApicSet::new(2, Arc::new(()), ApicOptions::default());
    let mut cpu0 = set.local(VcpuId(0)).unwrap();
    let mut cpu1 = set.local(VcpuId(1)).unwrap();
    let registers = [0x20, 0x30, 0xd0, 0xe0, 0xf0, 0x320, 0x350, 0x360, 0x370];
    let expected0 = [0, 0x50014, 0, 0xffff_ffff, 0xff, 0x10000, 0x700, 0x10000, 0x10000];
    let expected1 = [0x0100_0000, 0x50014, 0, 0xffff_ffff, 0xff, 0x10000, 0x10000, 0x10000, 0x10000];
    assert_eq!(registers.map(|offset| cpu0.read(offset)), expected0);
    assert_eq!(registers.map(|offset| cpu1.read(offset)), expected1);
    assert_eq!(cpu0.base().into_bits(), 0xfee0_0900);
    assert_eq!(cpu1.base().into_bits(), 0xfee0_0800);
}

#[test]
fn registers_keep_only_their_bits() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    let table = [
        (0x020, 0xff00_0000),
        (0x030, 0x50014),
        (0x080, 0xff),
        (0x0d0, 0xff00_0000),
        (0x0e0, 0xffff_ffff),
        (0x0f0, 0x3ff),
        (0x280, 0),
        (0x310, 0xff00_0000),
        (0x320, 0x7_10ff),
        (0x330, 0x1_17ff),
        (0x340, 0x1_17ff),
        (0x350, 0x1_f7ff),
        (0x360, 0x1_f7ff),
        (0x370, 0x1_10ff),
        (0x380, 0xffff_ffff),
        (0x390, 0),
        (0x3e0, 0xb),
        (0x2f0, 0),
        (0x040, 0),
        (0x400, 0),
        (0xff0, 0),
    ];
    for (offset, value) in table {
        cpu.write(offset, 0xffff_ffff);
        assert_eq!(cpu.read(offset), value, "register {offset:#x}");
    }
}

#[test]
fn accesses_of_odd_width_are_answered_as_by_kvm() {
    let (_set, mut cpus) = machine(1);
    let cpu = &mut cpus[0];
    cpu.write(0x320, 0x1_0041);
    let mut read = |offset, mut data: Vec<u8>| {
        cpu.mmio_read(offset, &mut data);
        data
    };
    assert_eq!(read(0x320, vec![9; 4]), [0x41, 0, 1, 0]);
    assert_eq!(read(0x321, vec![9; 2]), [0, 1]);
    assert_eq!(read(0x322, vec![9; 4]), [0; 4], "crosses the end");
    assert_eq!(read(0x320, vec![9; 8]), [0; 8]);
    assert_eq!(read(u64::MAX, vec![9; 1]), [0]);
    for (offset, data) in [(0x320, vec![1u8; 2]), (0x320, vec![1; 8]), (0x324, vec![1; 4]), (u64::MAX, vec![1; 4])] {
        assert_eq!(cpu.mmio_write(offset, &data), None);
    }
    assert_eq!(cpu.read(0x320), 0x1_0041, "only aligned 32-bit stores count");
}
