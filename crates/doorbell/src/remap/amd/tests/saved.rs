//! Save and restore.

use super::{
    super::registers::offset,
    rig::{COMMANDS, DEVICE, OWN, Rig, TABLE, entry, message},
};
use crate::{
    MsiTarget,
    remap::amd::{AmdUnitOptions, AmdUnitState},
};

/// A unit with every kind of state: an overflowed event log, a stopped command buffer, own interrupts told.
fn worn() -> Rig {
    let rig = Rig::new();
    rig.control(1 << 3 | 1 << 17 | 1 << 25 | 1 << 28 | 1 << 29 | 1 << 50);
    rig.device(DEVICE, TABLE, 8);
    rig.unit().write(offset::EXCLUSION_BASE, 8, 0x1003);
    rig.unit().write(offset::EXCLUSION_LIMIT, 8, 0x2000);
    rig.unit().write(offset::GA_LOG_TAIL_ADDRESS, 8, 0x3008);
    for at in [offset::XT_GENERAL, offset::XT_PPR, offset::XT_GA_LOG] {
        rig.unit().write(at, 8, at << 8 | 0x55 << 32);
    }
    for _ in 0..256 {
        rig.send(&message(DEVICE, 7));
    }
    rig.commands(&[[1 << 60 | 2, 0], [0, 0]]);
    rig
}

fn registers(rig: &Rig) -> Vec<u64> {
    (0..0x4000).step_by(8).map(|at| rig.read(at)).collect()
}

#[test]
fn what_is_restored_goes_on_as_before() {
    let rig = worn();
    assert_eq!(rig.read(offset::STATUS) & 0x11f, 0x107, "overflow, logged, waited; log and commands stopped");
    let saved = rig.remap.save();
    let fresh = Rig::disabled();
    fresh.remap.restore(&saved).unwrap();
    assert_eq!(fresh.remap.save(), saved);
    assert_eq!(registers(&fresh), registers(&rig));
    assert_eq!(fresh.taken(), [], "a restore tells nobody");
    // What had been told is not told again, what comes new is.
    fresh.unit().write(offset::EVENT_HEAD, 8, 0);
    assert_eq!(fresh.taken(), []);
    fresh.unit().write(offset::STATUS, 8, 3);
    fresh.unit().write(offset::CONTROL, 8, 1);
    fresh.unit().write(offset::EVENT_HEAD, 8, fresh.read(offset::EVENT_TAIL));
    fresh.device(DEVICE, TABLE, 8);
    fresh.control(1 << 3);
    fresh.send(&message(DEVICE, 7));
    assert_eq!(fresh.taken(), [OWN]);
}

#[test]
fn a_restore_forgets_what_was_remembered() {
    let rig = Rig::new();
    rig.device(DEVICE, TABLE, 8);
    rig.store_entry(TABLE, 7, entry(0x41, 1));
    let saved = rig.remap.save();
    let target = rig.remap.prepare(&message(DEVICE, 7)).unwrap();
    rig.remap.fire(target);
    rig.store_entry(TABLE, 7, entry(0x42, 2));
    rig.remap.restore(&saved).unwrap();
    rig.remap.fire(target);
    assert_eq!(rig.taken(), [(0xfee0_1000, 0x41), (0xfee0_2000, 0x42)]);
}

#[test]
fn states_that_no_guest_can_make_are_refused() {
    let rig = worn();
    let good = rig.remap.save().remove(0);
    type Spoil = fn(&mut AmdUnitState);
    let spoilt: [(&str, Spoil); 21] = [
        ("register 0x0 cannot be", |state| state.device_table_base |= 1 << 9),
        ("register 0x18 cannot be", |state| state.control |= 1 << 13),
        ("status", |state| state.status |= 1 << 3),
        ("status", |state| state.status |= 1 << 63),
        ("register 0x8 cannot be", |state| state.commands.base |= 1),
        ("register 0x2000 cannot be", |state| state.commands.head |= 8),
        ("register 0x2008 cannot be", |state| state.commands.tail = 0x8_0000),
        ("register 0x10 cannot be", |state| state.events.base |= 1 << 60),
        ("register 0x2010 cannot be", |state| state.events.head = 1),
        ("register 0x2018 cannot be", |state| state.events.tail = 1 << 40),
        ("register 0xe0 cannot be", |state| state.guests.base |= 1 << 52),
        ("register 0x2040 cannot be", |state| state.guests.head = 4),
        ("register 0x2048 cannot be", |state| state.guests.tail = 0x1_0000),
        ("register 0x20 cannot be", |state| state.exclusion[0] |= 4),
        ("register 0x28 cannot be", |state| state.exclusion[1] |= 1),
        ("register 0xe8 cannot be", |state| state.guest_tail_address |= 1),
        ("register 0x170 cannot be", |state| state.xt[0] |= 1),
        ("register 0x178 cannot be", |state| state.xt[1] |= 1),
        ("register 0x180 cannot be", |state| state.xt[2] |= 1 << 41),
        ("register 0x158 cannot be", |state| state.msi_address |= 1),
        ("the guest virtual APIC log has stopped", |state| {
            state.control &= !(1 << 28);
            state.guests.halted = true;
        }),
    ];
    for (says, spoil) in spoilt {
        let mut bad = good.clone();
        spoil(&mut bad);
        let fresh = Rig::disabled();
        let before = registers(&fresh);
        let error = fresh.remap.restore(&[bad]).unwrap_err().to_string();
        assert!(error.contains(&format!("AMD-Vi unit: {says}")), "{error}");
        assert_eq!(registers(&fresh), before);
    }
    let mut bad = good.clone();
    bad.control &= !1;
    let error = Rig::disabled().remap.restore(&[bad]).unwrap_err().to_string();
    assert!(error.contains("the command buffer has stopped, but is not enabled"), "{error}");
    let mut bad = good.clone();
    bad.control &= !(1 << 2);
    let error = Rig::disabled().remap.restore(&[bad]).unwrap_err().to_string();
    assert!(error.contains("the event log has stopped, but is not enabled"), "{error}");
    // A unit that does not claim it cannot have it.
    let plain = Rig::with(&[AmdUnitOptions { x2apic: false, ..AmdUnitOptions::default() }]);
    assert!(plain.remap.restore(std::slice::from_ref(&good)).is_err());
    let error = Rig::disabled().remap.restore(&[]).unwrap_err().to_string();
    assert_eq!(error, "the saved state is not valid: 0 AMD-Vi units, but there are 1");
    assert!(plain.unit().restore(&good).is_err());
    assert!(Rig::disabled().unit().restore(&good).is_ok());
}

/// Of several units, all or none are restored.
#[test]
fn a_refused_unit_leaves_the_others_alone() {
    let units = [0..=0xff, 0x100..=0x1ff].map(|requesters| AmdUnitOptions { requesters, ..AmdUnitOptions::default() });
    let rig = Rig::with(&units);
    let mut states = rig.remap.save();
    states[0].control = 1;
    states[1].commands.base = COMMANDS | 1;
    assert!(rig.remap.restore(&states).is_err());
    assert!(!rig.unit().is_enabled());
}
