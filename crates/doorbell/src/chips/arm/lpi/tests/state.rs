//! Save, restore, reset.

use super::*;
use crate::chips::arm::{LpisState, PendingLpi};

/// A few LPIs in different states.
fn lively() -> Rig {
    let rig = Rig::new(3, Behaviour::SPEC);
    for (lpi, cpu) in [(8195, 0), (8196, 1), (8197, 1)] {
        rig.mapped(lpi, cpu);
    }
    rig.mapped(9999, 1);
    rig.gic.pend_lpi(9999);
    rig.gic.target_lpi(9999, None);
    rig.gic.pend_lpi(8196);
    rig.gic.move_all_lpis(1, 2, false);
    rig.switch(0, false);
    rig
}

#[test]
fn what_is_pending_is_saved_and_stays_where_it_is_when_its_event_is_mapped_again() {
    let rig = lively();
    let state = rig.gic.save_lpis();
    assert_eq!(state.pending, [PendingLpi { intid: 8196, vcpu: Some(2) }, PendingLpi { intid: 9999, vcpu: None }]);
    assert_eq!(state.redistributors.iter().map(|it| it.enabled).collect::<Vec<_>>(), [false, true, true]);
    let other = Rig::new(3, Behaviour::SPEC);
    other.mapped(8195, 2);
    other.mapped(20_000, 2);
    other.gic.pend_lpi(8195);
    other.gic.pend_lpi(20_000);
    other.gic.restore_lpis(&state).unwrap();
    assert_eq!((other.take(1), other.take(2)), (None, None), "nothing is configured");
    assert_eq!(other.gic.pend_lpi(20_000), LpiSent::Nowhere, "nor mapped");
    for (lpi, cpu) in [(8195, 0), (8196, 1), (8197, 1)] {
        other.mapped(lpi, cpu);
    }
    other.gic.map_lpi(9999, None).unwrap();
    assert_eq!(other.gic.save_lpis(), state);
    assert_eq!(other.gic.pend_lpi(8195), LpiSent::Off);
    assert_eq!((other.taken(1), other.taken(2)), (vec![], vec![8196]));
    assert_eq!(other.gic.pend_lpi(8196), LpiSent::Pended);
    assert_eq!(other.taken(1), [8196]);
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
    refused(|it| it.pending[0].intid = 8191, "LPI 8191 is out of order");
    refused(|it| it.pending[1].intid = 8196, "LPI 8196 is out of order");
    refused(|it| it.pending[1].intid = 65_536, "LPI 65536 is out of order, or not one of 8192 to 65535");
    refused(|it| it.pending[0].vcpu = Some(3), "a vCPU that there is not");
    refused(|it| it.pending[0].vcpu = Some(0xffff), "a vCPU that there is not");
}

#[test]
fn reset_forgets_everything() {
    let rig = lively();
    rig.gic.reset_lpis();
    assert_eq!(rig.gic.save_lpis(), Gic::new(GicOptions::new(3), rig.ram.clone(), Arc::new(())).unwrap().save_lpis());
    assert_eq!(rig.gic.pend_lpi(8196), LpiSent::Nowhere);
    assert_eq!(rig.take(2), None);
}
