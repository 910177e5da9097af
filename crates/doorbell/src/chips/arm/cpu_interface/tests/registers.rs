//! What the registers keep, and what a state is checked for.

use super::rig::{A, Rig};
use crate::{
    VcpuId,
    chips::arm::{CpuInterfaceState, Encoding, GicOptions, IccRegister, Identity},
};

#[test]
fn c5_c6_masks_and_least_values() {
    let mut rig = Rig::new(1);
    for (register, written, read) in [
        (IccRegister::Pmr, 0xff, 0xf8),
        (IccRegister::Pmr, 0x1_0090, 0x90),
        (IccRegister::Bpr1, 0, 3),
        (IccRegister::Bpr1, 7, 7),
        (IccRegister::Bpr1, 0xfffc, 4),
        (IccRegister::Bpr0, 0, 2),
        (IccRegister::Bpr0, 6, 6),
        (IccRegister::Igrpen0, u64::MAX, 1),
        (IccRegister::Igrpen1, u64::MAX - 1, 0),
        (IccRegister::Sre, 0, 7),
        (IccRegister::Ap0r(0), u64::MAX, 0xffff_ffff),
        (IccRegister::Ap1r(0), 0x1_8000_0001, 0x8000_0001),
        (IccRegister::Ap0r(1), u64::MAX, 0),
        (IccRegister::Ap0r(3), u64::MAX, 0),
        (IccRegister::Ap1r(2), u64::MAX, 0),
        (IccRegister::Hppir1, 5, 1023),
    ] {
        rig.write(register, written);
        assert_eq!(rig.read(register), read, "{register:?} after {written:#x}");
    }
}

#[test]
fn icc_ctlr_shows_what_there_is_and_keeps_two_bits() {
    let mut rig = Rig::new(1);
    // Range selector, Aff3, 16 bits of INTID, 5 of priority.
    assert_eq!(rig.read(IccRegister::Ctlr), 1 << 18 | 1 << 15 | 4 << 8);
    rig.write(IccRegister::Ctlr, u64::MAX);
    assert_eq!(rig.read(IccRegister::Ctlr), 1 << 18 | 1 << 15 | 4 << 8 | 3);
    rig.write(IccRegister::Ctlr, 0);
    assert_eq!(rig.read(IccRegister::Ctlr) & 3, 0);

    let mut options = GicOptions::new(1);
    options.id_bits = 20;
    assert_eq!(Rig::with(options).read(IccRegister::Ctlr) >> 11 & 7, 1, "24 bits");
    let mut options = GicOptions::new(1);
    options.identity = Identity::Kvm;
    assert_eq!(
        Rig::with(options).read(IccRegister::Ctlr) >> 11 & 7,
        1,
        "those of the CPU below KVM, seen on Linux 6.1"
    );
    assert_eq!(Rig::kvm(1).read(IccRegister::Ctlr) >> 18, 0, "no range selector");
}

#[test]
fn with_a_common_binary_point_the_one_of_group_1_follows() {
    let mut rig = Rig::new(1);
    rig.write(IccRegister::Bpr1, 5);
    rig.write(IccRegister::Bpr0, 3);
    rig.write(IccRegister::Ctlr, 1);
    assert_eq!(rig.read(IccRegister::Bpr1), 4);
    rig.write(IccRegister::Bpr0, 7);
    assert_eq!(rig.read(IccRegister::Bpr1), 7, "not more than there is");
    rig.write(IccRegister::Bpr1, 6);
    rig.write(IccRegister::Ctlr, 0);
    assert_eq!(rig.read(IccRegister::Bpr1), 5, "the write was ignored");
}

#[test]
fn what_cannot_be_read_gives_zero_and_what_cannot_be_written_takes_nothing() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    for register in IccRegister::ALL {
        if !register.is_readable() {
            assert_eq!(rig.read(register), 0, "{register:?}");
        }
        if !register.is_writable() {
            rig.write(register, u64::MAX);
        }
    }
    assert_eq!(rig.iar1(), A);
}

#[test]
fn the_encodings_are_those_of_the_architecture() {
    // S<op0>_<op1>_C<n>_C<m>_<op2>.
    for (register, (op1, crn, crm, op2)) in [
        (IccRegister::Pmr, (0, 4, 6, 0)),
        (IccRegister::Iar1, (0, 12, 12, 0)),
        (IccRegister::Eoir1, (0, 12, 12, 1)),
        (IccRegister::Hppir1, (0, 12, 12, 2)),
        (IccRegister::Bpr1, (0, 12, 12, 3)),
        (IccRegister::Ctlr, (0, 12, 12, 4)),
        (IccRegister::Sre, (0, 12, 12, 5)),
        (IccRegister::Igrpen1, (0, 12, 12, 7)),
        (IccRegister::Rpr, (0, 12, 11, 3)),
        (IccRegister::Sgi1r, (0, 12, 11, 5)),
        (IccRegister::Dir, (0, 12, 11, 1)),
        (IccRegister::Ap0r(0), (0, 12, 8, 4)),
        (IccRegister::Ap1r(3), (0, 12, 9, 3)),
    ] {
        let encoding = Encoding::new().with_op0(3).with_op1(op1).with_crn(crn).with_crm(crm).with_op2(op2);
        assert_eq!(register.encoding(), encoding, "{register:?}");
    }
    for register in IccRegister::ALL {
        assert_eq!(IccRegister::from_encoding(register.encoding()), Some(register), "each has its own");
    }
    assert_eq!(IccRegister::from_encoding(Encoding::new()), None);
}

#[test]
fn a_state_goes_round() {
    let mut rig = Rig::new(1);
    rig.pend(A);
    rig.iar1();
    for (register, value) in [
        (IccRegister::Pmr, 0xc0),
        (IccRegister::Bpr0, 4),
        (IccRegister::Bpr1, 6),
        (IccRegister::Ctlr, 3),
        (IccRegister::Igrpen0, 0),
    ] {
        rig.write(register, value);
    }
    let state = rig.cpus[0].save();
    let expected = CpuInterfaceState { pmr: 0xc0, bpr: [4, 6], ctlr: 3, igrpen: 2, apr: [0, 1 << 20] };
    assert_eq!(state, expected);

    let mut other = Rig::new(1);
    other.cpus[0].restore(&state).unwrap();
    assert_eq!(other.cpus[0].save(), state);
    assert_eq!((other.rpr(), other.read(IccRegister::Igrpen0)), (0xa0, 0));
    other.cpus[0].reset();
    let reset = CpuInterfaceState { pmr: 0, bpr: [2, 3], ctlr: 0, igrpen: 0, apr: [0; 2] };
    assert_eq!(other.cpus[0].save(), reset);
}

/// What is wrong with a state, and the value that the error shows.
type Flaw = (fn(&mut CpuInterfaceState), &'static str);

#[test]
fn a_state_that_cannot_be_is_refused_and_changes_nothing() {
    let mut rig = Rig::new(1);
    let good = rig.cpus[0].save();
    let bad: [Flaw; 6] = [
        (|it| it.pmr = 0xff, "0xff"),
        (|it| it.bpr[0] = 1, "0x1"),
        (|it| it.bpr[1] = 2, "0x2"),
        (|it| it.bpr[1] = 8, "0x8"),
        (|it| it.ctlr = 4, "0x4"),
        (|it| it.igrpen = 4, "0x4"),
    ];
    for (change, says) in bad {
        let mut state = CpuInterfaceState { pmr: 0x10, ..good.clone() };
        change(&mut state);
        let error = rig.cpus[0].restore(&state).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(rig.cpus[0].save(), good, "{error}");
    }
}

#[test]
fn there_is_one_interface_for_each_vcpu() {
    let mut rig = Rig::new(2);
    assert!(rig.gic.cpu_interface(VcpuId(0)).is_none(), "taken");
    assert!(rig.gic.cpu_interface(VcpuId(2)).is_none(), "there is none");
    rig.pend(A);
    drop(rig.cpus.remove(0));
    let mut again = rig.gic.cpu_interface(VcpuId(0)).unwrap();
    assert_eq!(again.read(IccRegister::Iar1), 1023, "after reset");
    again.write(IccRegister::Pmr, 0xff);
    again.write(IccRegister::Igrpen1, 1);
    assert_eq!(again.read(IccRegister::Iar1), u64::from(A), "what was pending is");
}
