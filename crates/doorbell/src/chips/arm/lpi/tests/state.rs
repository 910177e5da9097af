//! Save, restore, reset.

use super::*;
use crate::chips::arm::{LpiState, LpisState};

/// A few LPIs in different states.
fn lively() -> Rig {
    let rig = Rig::new(3, Behaviour::SPEC);
    for (lpi, cpu) in [(8195, 0), (8196, 1), (8197, 1)] {
        rig.mapped(lpi, cpu);
    }
    rig.gic.map_lpi(8197, Some(1)).unwrap();
    rig.gic.map_lpi(9999, None).unwrap();
    rig.gic.pend_lpi(8196);
    rig.gic.move_all_lpis(1, 2, false);
    rig.switch(0, false);
    rig
}

#[test]
fn what_is_saved_is_what_is_restored() {
    let rig = lively();
    let state = rig.gic.save_lpis();
    let (on, off) = (Some(1), None);
    let lpi = LpiState { intid: 8195, events: 1, priority: 0xa0, enabled: true, pending: false, home: on, target: on };
    let zero = Some(0);
    assert_eq!(
        state.lpis,
        [
            LpiState { home: zero, target: zero, ..lpi },
            LpiState { intid: 8196, pending: true, target: Some(2), ..lpi },
            LpiState { intid: 8197, events: 2, ..lpi },
            LpiState { intid: 9999, priority: 0, enabled: false, home: off, target: off, ..lpi },
        ]
    );
    let other = Rig::new(3, Behaviour::SPEC);
    other.mapped(8195, 2);
    other.mapped(20_000, 2);
    other.gic.pend_lpi(8195);
    other.gic.pend_lpi(20_000);
    other.gic.restore_lpis(&state).unwrap();
    assert_eq!(other.gic.save_lpis(), state);
    assert_eq!(other.gic.pend_lpi(8195), LpiSent::Off);
    assert_eq!(other.gic.pend_lpi(20_000), LpiSent::Nowhere);
    assert_eq!((other.taken(1), other.taken(2)), (vec![], vec![8196]));
    other.gic.unmap_lpi(8197, false);
    assert_eq!(other.gic.pend_lpi(8197), LpiSent::Pended, "one event of two is left");
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let rig = lively();
    let good = rig.gic.save_lpis();
    let refused = |change: fn(&mut LpisState), why: &str| {
        let mut state = good.clone();
        change(&mut state);
        let error = rig.gic.restore_lpis(&state).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(rig.gic.save_lpis(), good);
    };
    refused(|it| it.redistributors.truncate(2), "2 redistributors, and this GIC 3");
    refused(|it| it.lpis[0].intid = 8191, "LPI 8191 is out of order");
    refused(|it| it.lpis[1].intid = 8195, "LPI 8195 is out of order");
    refused(|it| it.lpis[3].intid = 65_536, "LPI 65536 is out of order, or not one of 8192 to 65535");
    refused(|it| it.lpis[0].priority = 0xa4, "a priority of 0xa4");
    refused(|it| it.lpis[0].home = Some(3), "a vCPU that there is not");
    refused(|it| it.lpis[0].target = Some(0xffff), "a vCPU that there is not");
}

#[test]
fn reset_forgets_everything() {
    let rig = lively();
    rig.gic.reset_lpis();
    assert_eq!(rig.gic.save_lpis(), Gic::new(GicOptions::new(3), rig.ram.clone(), Arc::new(())).unwrap().save_lpis());
    assert_eq!(rig.gic.pend_lpi(8196), LpiSent::Nowhere);
    assert_eq!(rig.take(2), None);
}
