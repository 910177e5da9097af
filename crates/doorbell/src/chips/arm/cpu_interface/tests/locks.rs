//! Which locks an interrupt takes on its way: none when it is raised and when it is ended, and that of its own vCPU's queue
//! when it is taken.

use super::rig::{A, B, Rig};
use crate::{
    LineSource, PinInput, VcpuId,
    chips::arm::{Group, IccRegister},
    guest_ram::GuestRamExt,
    sync::counted::locks_taken,
};

const LPIS: [u32; 2] = [8192, 8193];

/// Two vCPUs with an LPI each.
fn rig() -> Rig {
    let rig = Rig::with_lpis(2);
    for (cpu, lpi) in (0..).zip(LPIS) {
        rig.ram.write_le(Rig::PROPERTIES + u64::from(lpi - 8192), 0xa1_u8).unwrap();
        rig.gic.map_lpi(lpi, Some(cpu)).unwrap();
    }
    rig
}

#[test]
fn raising_an_interrupt_takes_no_lock() {
    let rig = rig();
    rig.level(B);
    rig.change(0, 20, |state| state.with_enabled(true).with_group1(true));
    let pin = |intid: u32| intid as u16 - 32;
    let ways: [(&str, &dyn Fn()); 6] = [
        ("an edge", &|| _ = rig.gic.pulse(0, pin(A), LineSource::USER)),
        ("a level", &|| _ = rig.gic.set(0, pin(B), LineSource::USER, true)),
        ("a PPI", &|| _ = rig.gic.set_ppi(VcpuId(0), 20, true)),
        ("a message", &|| _ = rig.gic.message_spi(A, true)),
        ("an LPI", &|| _ = rig.gic.pend_lpi(LPIS[0])),
        ("an LPI that is pending", &|| _ = rig.gic.pend_lpi(LPIS[0])),
    ];
    for (name, raise) in ways {
        assert_eq!(locks_taken(raise), 0, "{name}");
    }
    assert!(rig.state(0, 20).queued() && rig.state(0, B).queued());
}

#[test]
fn an_sgi_takes_no_lock_and_an_interrupt_one_from_acknowledge_to_end() {
    let mut rig = rig();
    let cpu = &mut rig.cpus[0];
    assert_eq!(locks_taken(|| assert_eq!(cpu.write(IccRegister::Sgi1r, 3 << 24 | 3), None)), 0);
    assert_eq!(locks_taken(|| assert_eq!(cpu.acknowledge(Group::One), 3)), 1, "that of its own queue");
    assert_eq!(locks_taken(|| assert!(cpu.end(Group::One, 3).is_some())), 0);
    assert_eq!(locks_taken(|| assert!(cpu.line().is_idle())), 1);
}

/// What would wait for the other vCPU's lock would stand still here for ever.
#[test]
fn an_lpi_takes_no_lock_that_another_vcpus_lpi_takes() {
    let mut rig = rig();
    let gic = rig.gic.clone();
    let other = gic.cpus[1].queue.hold();
    let taken = locks_taken(|| {
        for _ in 0..100 {
            rig.gic.pend_lpi(LPIS[0]);
            assert_eq!(rig.iar1(), LPIS[0]);
            assert_eq!(rig.eoir1(LPIS[0]), None, "C30");
            // To the vCPU that holds its lock.
            rig.gic.pend_lpi(LPIS[1]);
        }
    });
    assert_eq!(taken, 100, "one for each acknowledge: that of the queue of the vCPU itself");
    drop(other);
    assert_eq!(rig.cpus[1].acknowledge(Group::One), LPIS[1]);
    assert_eq!(rig.cpus[1].acknowledge(Group::One), 1023, "merged");
}
