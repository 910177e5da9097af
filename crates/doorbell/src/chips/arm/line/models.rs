//! Every interleaving of two sources of a line, with what each leaves behind.

use std::sync::Arc;

use loom::thread;

use super::*;
use crate::{chips::arm::GicOptions, guest_ram::RamBlock};

fn gic() -> Arc<Gic> {
    let mut options = GicOptions::new(1);
    options.intids = 64;
    Gic::new(options, Arc::new(RamBlock::new(0, 0)), Arc::new(())).unwrap()
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 20_000;
    model.check(run);
}

#[test]
fn a_level_that_one_source_drops_while_another_raises_it_ends_high() {
    model(|| {
        let gic = gic();
        gic.set(CHIP, 0, LineSource::USER, true);
        let other = {
            let gic = Arc::clone(&gic);
            thread::spawn(move || {
                gic.set(CHIP, 0, LineSource::RESAMPLE, true);
            })
        };
        gic.set(CHIP, 0, LineSource::USER, false);
        other.join().unwrap();
        assert!(gic.spis[0].state().line());
    });
}

#[test]
fn a_level_that_both_sources_drop_ends_low() {
    model(|| {
        let gic = gic();
        gic.set(CHIP, 0, LineSource::USER, true);
        let other = {
            let gic = Arc::clone(&gic);
            thread::spawn(move || {
                gic.set(CHIP, 0, LineSource::RESAMPLE, true);
                gic.set(CHIP, 0, LineSource::RESAMPLE, false);
            })
        };
        gic.set(CHIP, 0, LineSource::USER, false);
        other.join().unwrap();
        assert!(!gic.spis[0].state().line());
    });
}

#[test]
fn two_sources_that_raise_an_edge_together_latch_it() {
    model(|| {
        let gic = gic();
        gic.update(&gic.spis[0], 32, |state| state.with_edge(true));
        let other = {
            let gic = Arc::clone(&gic);
            thread::spawn(move || gic.set(CHIP, 0, LineSource::RESAMPLE, true))
        };
        let answers = [gic.set(CHIP, 0, LineSource::USER, true), other.join().unwrap()];
        assert!(gic.spis[0].state().latch());
        assert!(answers.contains(&Delivery::Delivered(1)) && answers.contains(&Delivery::Coalesced), "{answers:?}");
    });
}
