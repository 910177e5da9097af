//! An ITS over LPIs that do no more than remember, program by program.

use super::{registers::offset, rig::*};

mod commands;
mod gic;
mod registers;
mod rules;
mod saved;

#[test]
fn a_mapped_event_reaches_its_lpi() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    assert_eq!(rig.read(offset::CREADR), 0xe0, "its.map.creadr");
    assert_eq!(rig.ring(3), Ok(1), "signal_msi.event_3");
    assert_eq!(rig.pending(), [(0, 8195)]);
    assert_eq!(rig.ring(4), Ok(1), "signal_msi.event_4");
    assert_eq!(rig.pending(), [(0, 8195), (1, 8200)]);
    assert_eq!(rig.ring(5), Ok(0), "signal_msi.event_unmapped");
    assert_eq!(rig.signal(9, 3), Ok(0), "signal_msi.device_unmapped");
}
