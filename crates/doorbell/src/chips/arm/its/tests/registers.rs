//! I1 to I10, and the values of the recorded run.

use super::*;
use crate::{
    Errno,
    chips::arm::{Behaviour, Identity, its::ItsOptions},
};

#[test]
fn what_kvm_shows_after_reset_and_after_the_tables_are_given() {
    let rig = Rig::kvm();
    // gits.* of the recorded run.
    for (at, value) in [
        (offset::CTLR, 0x8000_0000),
        (offset::IIDR, 0x4b00_043b),
        (offset::TYPER, 0x1_ef71),
        (offset::BASER0, 0x1907_0000_0000_0600),
        (offset::BASER1, 0x1c07_0000_0000_0600),
        (offset::BASER0 + 0x10, 0),
        (offset::PIDR2, 0x3b),
    ] {
        assert_eq!(rig.read(at), value, "register {at:#x}");
        assert_eq!(rig.unit.user_read(at), Ok(value), "register {at:#x}");
    }
    for (at, value) in [(offset::PIDR0, 0x92), (offset::PIDR1, 0xb4), (offset::PIDR4, 0x40)] {
        assert_eq!(rig.read(at), value);
    }
    rig.write(offset::CTLR, 1);
    assert_eq!(rig.read(offset::CTLR), 0x8000_0000, "I1: gits.enable_without_tables");
    rig.write(offset::CBASER, VALID | QUEUE | 15);
    assert_eq!(rig.read(offset::CBASER), 0x9800_0000_4001_000f);
    rig.write(offset::BASER0, VALID | 1 << 56 | DEVICES | PAGES_64K);
    rig.write(offset::BASER1, VALID | 4 << 56 | COLLECTIONS | PAGES_64K);
    assert_eq!(rig.read(offset::BASER0), 0x9907_0000_4002_0200);
    assert_eq!(rig.read(offset::BASER1), 0x9c07_0000_4003_0200);
    rig.write(offset::CTLR, 1);
    assert_eq!(rig.read(offset::CTLR), 0x8000_0001);
}

#[test]
fn kvm_takes_pages_of_64k_only_and_collections_in_one_level() {
    let rig = Rig::kvm();
    rig.write(offset::BASER0, u64::MAX);
    rig.write(offset::BASER1, u64::MAX);
    // Page size 2, entries of 8 bytes, the type; outer cacheability 1; inner cacheability and shareability as stored.
    assert_eq!(rig.read(offset::BASER0), 0xf927_ffff_ffff_feff);
    assert_eq!(rig.read(offset::BASER1), 0xbc27_ffff_ffff_feff);
}

#[test]
fn else_attributes_are_as_stored() {
    let rig = Rig::spec();
    rig.write(offset::BASER0, VALID | 1 << 62 | DEVICES | 3);
    assert_eq!(
        rig.read(offset::BASER0),
        VALID | 1 << 62 | 1 << 56 | 7 << 48 | DEVICES | 3,
        "pages of 4 KiB, two levels"
    );
    rig.write(offset::CBASER, u64::MAX);
    assert_eq!(rig.read(offset::CBASER), 0xb8ef_ffff_ffff_fcff, "all but the reserved bits");
}

/// I1.
#[test]
fn an_its_without_a_queue_or_a_table_cannot_be_enabled() {
    for left_out in [offset::CBASER, offset::BASER0, offset::BASER1] {
        for rig in [Rig::spec(), Rig::kvm()] {
            for (at, value) in [
                (offset::CBASER, VALID | QUEUE | 15),
                (offset::BASER0, VALID | DEVICES | PAGES_64K),
                (offset::BASER1, VALID | COLLECTIONS | PAGES_64K),
            ] {
                rig.write(at, if at == left_out { value & !VALID } else { value });
            }
            rig.write(offset::CTLR, 1);
            assert_eq!(rig.read(offset::CTLR), 0x8000_0000, "without {left_out:#x}");
            rig.bring_up();
            assert_eq!(rig.read(offset::CTLR), 0x8000_0001);
        }
    }
}

/// I3.
#[test]
fn an_enabled_its_keeps_its_queue_and_its_tables() {
    let rig = Rig::spec();
    rig.bring_up();
    for at in [offset::CBASER, offset::BASER0, offset::BASER1] {
        let before = rig.read(at);
        rig.write(at, 0);
        rig.unit.write(at + 4, 4, 0);
        assert_eq!(rig.read(at), before, "enabled.baser0_write_ignored, rules.cbaser_while_enabled");
    }
}

/// I4.
#[test]
fn a_new_queue_is_read_from_its_beginning() {
    for (rig, cwriter) in [(Rig::spec(), 0x60), (Rig::kvm(), 0)] {
        rig.bring_up();
        rig.run(&[[5, 0, 0, 0]; 3]);
        rig.write(offset::CTLR, 0);
        rig.write(offset::CBASER, VALID | QUEUE | 15);
        assert_eq!(rig.read(offset::CREADR), 0);
        assert_eq!(rig.read(offset::CWRITER), cwriter, "disabled.cwriter_after_cbaser, rules.cbaser.cwriter");
    }
}

#[test]
fn a_pointer_beyond_a_new_queue_is_not_waited_for() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.write(offset::CWRITER, 0x8000);
    rig.write(offset::CTLR, 0);
    rig.write(offset::CBASER, VALID | QUEUE);
    assert_eq!(rig.read(offset::CWRITER), 0);
    rig.write(offset::CTLR, 1);
    assert_eq!(rig.read(offset::CTLR), 0x8000_0001, "quiescent");
}

/// I5.
#[test]
fn a_pointer_outside_the_queue_is_ignored() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    let before = rig.unit.counters();
    for beyond in [0x4_0000, 0x1_0000, 0xf_ffe0] {
        rig.write(offset::CWRITER, beyond);
        assert_eq!(rig.read(offset::CWRITER), 0xe0, "rules.cwriter_beyond.value");
    }
    assert_eq!(rig.unit.counters(), before);
    rig.write(offset::CWRITER, 0xe0 | !0xf_ffe0);
    assert_eq!(rig.read(offset::CWRITER), 0xe0, "bits that are no pointer do not count, Retry neither");
}

/// I2, I5.
#[test]
fn commands_wait_until_the_its_is_enabled() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.write(offset::CTLR, 0);
    let end = rig.queue(&[mapc(0, 0, true), mapd(DEVICE, 5, ITT, true), mapti(DEVICE, 3, 8195, 0)]);
    rig.write(offset::CWRITER, end);
    assert_eq!((rig.read(offset::CREADR), rig.read(offset::CTLR)), (0, 0), "not quiescent");
    rig.write(offset::CTLR, 1);
    assert_eq!((rig.read(offset::CREADR), rig.read(offset::CTLR)), (end, 0x8000_0001));
    assert_eq!(rig.ring(3), Ok(1));
}

/// I6, H30.
#[test]
fn slots_that_guest_memory_refuses_are_passed_over() {
    let rig = Rig::spec();
    rig.bring_up();
    let end = rig.queue(&[mapc(0, 0, true), mapd(DEVICE, 5, ITT, true), mapti(DEVICE, 3, 8195, 0)]);
    // The second half of MAPD.
    *rig.ram.hole.lock() = QUEUE + 0x30..QUEUE + 0x38;
    rig.write(offset::CWRITER, end);
    assert_eq!(rig.read(offset::CREADR), end);
    let counters = rig.unit.counters();
    assert_eq!((counters.commands, counters.unreadable), (1, 1));
    assert_eq!(rig.errors(), [(0x01_0a04, 1)]);
}

#[test]
fn a_queue_outside_of_memory_is_passed_over_whole() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.write(offset::CTLR, 0);
    rig.write(offset::CBASER, VALID | 0xf_ffff_ffff_f000 | 0xff);
    rig.write(offset::CTLR, 1);
    rig.write(offset::CWRITER, 0xf_ffe0);
    assert_eq!(rig.read(offset::CREADR), 0xf_ffe0);
    assert_eq!(rig.unit.counters().unreadable, 32767);
}

#[test]
fn the_queue_wraps() {
    let rig = Rig::spec();
    rig.bring_up();
    for _ in 0..3 {
        let sync = [[5, 0, 0, 0]; 1000];
        rig.run(&sync);
    }
    assert_eq!(rig.read(offset::CREADR), 3000 * 32 % 0x1_0000);
    assert_eq!(rig.unit.counters().commands, 3000);
}

/// I7.
#[test]
fn the_read_pointer_is_set_by_the_vmm_only_and_while_disabled() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    rig.write(offset::CREADR, 0);
    assert_eq!(rig.read(offset::CREADR), 0xe0);
    assert_eq!(rig.unit.user_write(offset::CREADR, 0), Err(Errno::BUSY), "rules.creadr_while_enabled");
    rig.write(offset::CTLR, 0);
    assert_eq!(rig.unit.user_write(offset::CREADR, 0x2_0000), Err(Errno::INVAL), "rules.creadr_out_of_range");
    assert_eq!(rig.unit.user_write(offset::CREADR, 0x40), Ok(()));
    assert_eq!(rig.unit.user_read(offset::CREADR), Ok(0x40));
}

#[test]
fn the_vmm_names_whole_registers() {
    let rig = Rig::kvm();
    let both = |at| (rig.unit.user_read(at).map(|_| ()), rig.unit.user_write(at, 0));
    assert_eq!(both(0x84), (Err(Errno::INVAL), Err(Errno::INVAL)), "gits.unaligned_offset");
    assert_eq!(both(0x98), (Err(Errno::NXIO), Err(Errno::NXIO)), "gits.unknown_offset");
    assert_eq!(both(offset::TRANSLATER), (Err(Errno::NXIO), Err(Errno::NXIO)));
    assert_eq!(both(u64::MAX - 3), (Err(Errno::NXIO), Err(Errno::NXIO)));
    assert_eq!(rig.unit.user_write(offset::IIDR, 0x43b), Ok(()), "gits.iidr_revision_0");
    assert_eq!(rig.unit.user_write(offset::IIDR, 0x543b), Err(Errno::INVAL), "gits.iidr_revision_5");
}

/// I8.
#[test]
fn a_disabled_its_drops_doorbells_and_keeps_what_is_pending() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    assert_eq!(rig.ring(4), Ok(1));
    rig.write(offset::CTLR, 0);
    assert_eq!(rig.ring(3), Err(Errno::BUSY), "signal_msi.its_disabled");
    assert_eq!(rig.ring(9), Err(Errno::BUSY), "mapped or not");
    assert_eq!(rig.signal(0x1_0000, 3), Err(Errno::BUSY));
    rig.write(offset::CTLR, 1);
    assert_eq!(rig.pending(), [(1, 8200)], "its_reenabled.hppir1: not replayed");
    assert_eq!(rig.ring(3), Ok(1), "the mappings stayed");
    assert_eq!(rig.unit.counters().dropped_disabled, 3);
}

/// I9.
#[test]
fn without_its_table_everything_in_it_is_gone() {
    for rig in [Rig::spec(), Rig::kvm()] {
        rig.bring_up();
        rig.map_both();
        rig.write(offset::CTLR, 0);
        rig.write(offset::BASER0, DEVICES | PAGES_64K);
        rig.bring_up();
        assert_eq!(rig.ring(3), Ok(0));
        rig.run(&[mapti(DEVICE, 3, 8195, 0)]);
        assert_eq!(rig.errors(), [(0x01_0a04, 1)], "the device is gone");
    }
    let rig = Rig::spec();
    rig.bring_up();
    rig.map_both();
    rig.write(offset::CTLR, 0);
    rig.write(offset::BASER1, 0);
    rig.bring_up();
    assert_eq!(rig.ring(3), Ok(0));
    rig.run(&[[0x0d, 0, 0, 0]]);
    assert_eq!(rig.errors(), [(0x01_0d09, 1)], "INVALL: the collection is gone");
    rig.run(&[mapc(0, 1, true)]);
    assert_eq!(rig.ring(3), Ok(1));
}

/// I10.
#[test]
fn registers_take_accesses_of_their_sizes_only() {
    let rig = Rig::spec();
    rig.bring_up();
    let base = rig.read(offset::BASER0);
    assert_eq!(rig.unit.read(offset::BASER0, 4), base & 0xffff_ffff);
    assert_eq!(rig.unit.read(offset::BASER0 + 4, 4), base >> 32);
    assert_eq!(rig.unit.read(offset::TYPER + 4, 4), rig.read(offset::TYPER) >> 32);
    for (at, size) in [
        (offset::CTLR, 8),
        (offset::CTLR, 2),
        (offset::CTLR, 1),
        (offset::IIDR, 8),
        (offset::PIDR2, 8),
        (offset::TYPER, 2),
        (offset::BASER0 + 2, 4),
        (offset::BASER0 + 4, 8),
        (offset::CBASER + 1, 4),
        (offset::CREADR, 16),
        (offset::CREADR, 0),
        (u64::MAX, 4),
        (u64::MAX - 7, 8),
    ] {
        assert_eq!(rig.unit.read(at, size), 0, "{size} bytes at {at:#x}");
        rig.unit.write(at, size, u64::MAX);
    }
    assert_eq!(rig.read(offset::CTLR), 0x8000_0001);
    rig.write(offset::CTLR, 0);
    rig.unit.write(offset::CBASER + 4, 4, 0x8000_0001);
    assert_eq!(rig.read(offset::CBASER), VALID | 1 << 32 | QUEUE | 15, "one half");
    rig.unit.write(offset::CTLR, 8, 1);
    assert_eq!(rig.read(offset::CTLR), 0x8000_0000);
}

#[test]
fn qemu_shows_other_values() {
    let nature = crate::chips::arm::its::bank::Nature { identity: Identity::Qemu, behaviour: Behaviour::SPEC };
    let rig = Rig::new(nature, &ItsOptions::default());
    for (at, value) in [(offset::IIDR, 0x43b), (offset::TYPER, 0x1f_0001_efb1), (offset::PIDR2, 0x3b)] {
        assert_eq!(rig.read(at), value);
    }
}

/// H27: one CPU releases commands, others disable and enable, store to the queue's registers, and look.
#[test]
fn commands_are_run_in_order_and_none_twice() {
    let rig = Rig::spec();
    rig.bring_up();
    rig.run(&[mapc(0, 0, true), mapd(DEVICE, 5, ITT, true)]);
    // Each second one takes away what the one before has mapped: in any other order there are errors.
    let pair = [mapti(DEVICE, 3, 8195, 0), discard(3)];
    let end = rig.queue(&(0..500).flat_map(|_| pair).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        scope.spawn(|| (0x60..=end).step_by(32).for_each(|at| rig.write(offset::CWRITER, at)));
        scope.spawn(|| {
            for _ in 0..500 {
                rig.write(offset::CTLR, 0);
                rig.write(offset::CTLR, 1);
                rig.write(offset::CREADR, 0);
            }
        });
        scope.spawn(|| {
            let mut last = 0;
            for _ in 0..500 {
                let creadr = rig.read(offset::CREADR);
                assert!(creadr >= last);
                last = creadr;
            }
        });
    });
    rig.write(offset::CTLR, 1);
    assert_eq!(rig.read(offset::CREADR), end);
    let counters = rig.unit.counters();
    assert_eq!((counters.commands, counters.errors.len(), counters.unknown), (1002, 0, 0));
}

/// The work of one access is bounded: a queue full of commands about all events takes several.
#[test]
fn a_queue_of_dear_commands_is_run_piece_by_piece() {
    let rig = Rig::spec();
    rig.bring_up();
    let map = (0..4096).map(|event| mapti(DEVICE, event & 0xfff, 8192 + event, 0));
    rig.run(&[mapc(0, 0, true), mapd(DEVICE, 12, ITT, true)]);
    for part in map.collect::<Vec<_>>().chunks(1024) {
        rig.run(part);
    }
    let end = rig.queue(&[mapc(0, 1, true); 1000]);
    let begin = rig.read(offset::CREADR);
    rig.write(offset::CWRITER, end);
    let mut looks = 0;
    while rig.read(offset::CREADR) != end {
        looks += 1;
        assert_eq!(rig.unit.user_read(offset::CTLR), Ok(1), "not quiescent");
        assert!(looks < 1000, "each look goes on");
    }
    assert!(begin != end && looks > 10, "1000 commands about 4096 events took {looks}");
    assert_eq!(rig.unit.counters().commands, 2 + 4096 + 1000);
}
