//! H32: LPIs that hardware delivers.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::*;
use crate::{
    Errno, VcpuId,
    chips::arm::{DirectInjection, DirectLpi},
};

/// Hardware that notes what it is told, and holds what is pending.
#[derive(Default)]
struct Fake {
    mapped: Mutex<Vec<DirectLpi>>,
    pending: Mutex<BTreeSet<u32>>,
    /// How often something became pending.
    pended: Mutex<u32>,
    /// As GICv4.0: it does not tell what is pending.
    silent: bool,
    full: bool,
}

impl Fake {
    fn is_pending(&self, lpi: u32) -> bool {
        self.pending.lock().contains(&lpi)
    }

    fn lpis(&self) -> Vec<(u32, u32)> {
        self.mapped.lock().iter().map(|lpi| (lpi.intid, lpi.vcpu.0)).collect()
    }
}

impl DirectInjection for Fake {
    fn map(&self, lpi: DirectLpi) -> bool {
        if !self.full {
            self.mapped.lock().push(lpi);
        }
        !self.full
    }
    fn unmap(&self, intid: u32) -> bool {
        self.mapped.lock().retain(|lpi| lpi.intid != intid);
        self.pending.lock().remove(&intid)
    }
    fn pend(&self, intid: u32) {
        assert!(self.mapped.lock().iter().any(|lpi| lpi.intid == intid));
        self.pending.lock().insert(intid);
        *self.pended.lock() += 1;
    }
    fn clear(&self, intid: u32) {
        self.pending.lock().remove(&intid);
    }
    fn pending(&self, intid: u32) -> Option<bool> {
        (!self.silent).then(|| self.is_pending(intid))
    }
}

fn forwarded(fake: Fake) -> (Rig, Arc<Fake>) {
    let rig = Rig::new(2, Behaviour::SPEC);
    rig.mapped(8195, 0);
    let fake = Arc::new(fake);
    rig.gic.forward_lpi(8195, fake.clone()).unwrap();
    (rig, fake)
}

#[test]
fn what_is_pending_is_transferred_once_each_way() {
    let rig = Rig::new(2, Behaviour::SPEC);
    let fake = Arc::new(Fake::default());
    rig.mapped(8195, 0);
    rig.gic.pend_lpi(8195);
    rig.gic.forward_lpi(8195, fake.clone()).unwrap();
    assert_eq!(*fake.mapped.lock(), [DirectLpi { intid: 8195, vcpu: VcpuId(0), priority: 0xa0, enabled: true }]);
    assert_eq!(*fake.pended.lock(), 1);
    assert_eq!(rig.take(0), None, "it is pending in hardware, not here");
    assert!(rig.gic.take_back_lpi(8195));
    assert_eq!(fake.lpis(), []);
    assert_eq!(rig.taken(0), [8195]);
    assert_eq!(*fake.pended.lock(), 1);
    assert!(!rig.gic.take_back_lpi(8195), "it is in software");
    rig.gic.pend_lpi(8195);
    assert_eq!(rig.taken(0), [8195], "which delivers it again");
}

#[test]
fn events_and_commands_in_software_reach_hardware() {
    let (rig, fake) = forwarded(Fake::default());
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Pended);
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Already);
    assert!(fake.is_pending(8195) && rig.take(0).is_none());
    rig.gic.clear_lpi(8195);
    assert!(!fake.is_pending(8195));
    assert_eq!(rig.gic.pend_lpi(8195), LpiSent::Pended);
}

#[test]
fn movi_moves_what_is_pending_in_hardware() {
    let (rig, fake) = forwarded(Fake::default());
    fake.pend(8195);
    rig.gic.target_lpi(8195, Some(1));
    assert_eq!(fake.lpis(), [(8195, 1)]);
    assert!(fake.is_pending(8195));
    assert_eq!((rig.take(0), rig.take(1)), (None, None));
    rig.gic.move_all_lpis(1, 0, true);
    assert_eq!(fake.lpis(), [(8195, 0)]);
    assert!(fake.is_pending(8195));
    rig.configure(8195, 0x40);
    rig.gic.invalidate_lpi(8195).unwrap();
    rig.gic.invalidate_all_lpis(0);
    assert_eq!(*fake.mapped.lock(), [DirectLpi { intid: 8195, vcpu: VcpuId(0), priority: 0x40, enabled: false }]);
    assert!(fake.is_pending(8195));
}

#[test]
fn what_hardware_cannot_deliver_falls_back_to_software() {
    let (rig, fake) = forwarded(Fake::default());
    fake.pend(8195);
    // MOVALL moves what is pending only, so the LPI is not where its events go.
    rig.gic.move_all_lpis(0, 1, false);
    assert_eq!(fake.lpis(), []);
    assert_eq!(rig.taken(1), [8195]);
    rig.gic.forward_lpi(8195, fake.clone()).unwrap_err();
    rig.gic.pend_lpi(8195);
    rig.gic.forward_lpi(8195, fake.clone()).unwrap();
    assert!(fake.is_pending(8195));
    rig.switch(0, false);
    assert_eq!(fake.lpis(), []);
    assert!(rig.bit(0, 8195), "H26: in the pending table");
    rig.switch(0, true);
    assert_eq!(rig.taken(0), [8195]);
}

#[test]
fn an_lpi_that_is_unmapped_leaves_hardware() {
    let (rig, fake) = forwarded(Fake::default());
    fake.pend(8195);
    rig.gic.unmap_lpi(8195, false);
    assert_eq!(fake.lpis(), []);
    assert_eq!(rig.take(0), None, "I17");
    rig.mapped(8195, 0);
    assert_eq!(rig.take(0), None);
    rig.gic.forward_lpi(8195, fake.clone()).unwrap();
    fake.pend(8195);
    rig.gic.reset_lpis();
    assert_eq!(fake.lpis(), []);
}

#[test]
fn i51_the_saved_table_shows_what_hardware_tells() {
    for silent in [true, false] {
        let (rig, fake) = forwarded(Fake { silent, ..Fake::default() });
        fake.pend(8195);
        let shown = if silent { vec![] } else { vec![(0, 8195)] };
        assert_eq!(rig.saved(), shown);
        assert_eq!(rig.gic.save_lpis().pending.len(), shown.len());
        assert!(fake.is_pending(8195), "saving takes nothing away");
    }
}

#[test]
fn what_cannot_be_forwarded_is_refused() {
    let (rig, fake) = forwarded(Fake::default());
    let errno = |lpi, fake: &Arc<Fake>| rig.gic.forward_lpi(lpi, fake.clone()).unwrap_err().errno();
    assert_eq!(errno(8195, &fake), Errno::BUSY, "forwarded already");
    for lpi in [0, 8191, 8196, 65_536] {
        assert_eq!(errno(lpi, &fake), Errno::INVAL, "{lpi}: no event is mapped to it");
    }
    rig.gic.map_lpi(8197, None).unwrap();
    assert_eq!(errno(8197, &fake), Errno::INVAL, "nobody's");
    rig.mapped(8198, 0);
    assert_eq!(errno(8198, &Arc::new(Fake { full: true, ..Fake::default() })), Errno::INVAL);
    rig.gic.pend_lpi(8198);
    assert_eq!(rig.taken(0), [8198], "still in software");
}
