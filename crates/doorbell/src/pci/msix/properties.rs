//! The shared property: every strategy does what the model says, for any program of accesses and events.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::{collection::vec, prelude::*};

use super::{
    MsixEntryState, MsixState, MsixTable,
    program::{self, Subject, Summary},
};
use crate::pci::{
    MaskStrategy, WhileDisabled,
    fake_path::TestPath,
    rig::{self, Make, Rig, TablePath},
};

fn run(make: Make, vectors: u16, drops: bool, bytes: &[u8]) -> Summary {
    let while_disabled = if drops { WhileDisabled::Drop } else { WhileDisabled::Keep };
    let Rig { strategy, path, fire } = make(vectors, while_disabled);
    let mut table = MsixTable::new(strategy).unwrap();
    let subject = Subject {
        table: &mut table,
        while_disabled,
        fire: &mut |vector| fire(vector),
        take_sent: &mut || path.take_sent(),
    };
    let summary = program::run(subject, bytes);
    table.reset();
    assert_eq!(path.lent(), 0, "every GSI came back");
    summary
}

macro_rules! over {
    ($($rig:ident)*) => {
        $(
            #[test]
            fn $rig() {
                let sent = AtomicU32::new(0);
                let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
                    cases: 400,
                    failure_persistence: None,
                    ..ProptestConfig::default()
                });
                let programs = (prop_oneof![Just(1u16), Just(3), Just(70)], any::<bool>(), vec(any::<u8>(), 0..600));
                runner
                    .run(&programs, |(vectors, drops, bytes)| {
                        sent.fetch_add(run(rig::$rig, vectors, drops, &bytes).sent, Ordering::Relaxed);
                        Ok(())
                    })
                    .unwrap();
                assert!(sent.into_inner() > 400, "the programs hardly sent anything");
            }
        )*
    };
}

over!(fake table biased shared producer);

#[test]
fn fuzz_entry_runs_any_device() {
    let mut programs: Vec<Vec<u8>> = (0..6).map(|device| vec![device, device]).collect();
    for (at, program) in programs.iter_mut().enumerate() {
        // Enable, then for each vector: unmask, event, mask, event, unmask.
        program.extend([7, 1, 2]);
        for vector in 0..40u8 {
            for step in [[3, vector, 0, 0], [0, vector, 0, 11], [3, vector, 0, 1], [0, vector, 0, 11]] {
                program.extend(step);
                program.extend((step[3] == 11).then_some(1));
            }
            program.extend([3, vector, 0, 0]);
        }
        let path = TablePath::new(None);
        let summary = program::run_beside_injector(&path, &mut || path.take_sent(), program);
        assert_eq!(path.lent(), 0, "every GSI came back");
        assert_eq!((summary.events, summary.sent), (80, 80), "device {at}");
    }
}

#[test]
fn saved_state_comes_back_and_nothing_is_replayed_twice() {
    let Rig { strategy, path, fire } = rig::table(3, WhileDisabled::Keep);
    let mut table = MsixTable::new(strategy).unwrap();
    table.write(0, &0x1_0000_1000_u64.to_le_bytes());
    table.write(8, &7_u64.to_le_bytes());
    table.write(24, &9_u64.to_le_bytes());
    table.set_control(table.control().with_enable(true));
    fire(0);
    table.write(28, &1_u32.to_le_bytes());
    fire(1);
    assert_eq!(path.take_sent().len(), 1);
    let state = table.save();
    let entry = |address, data, masked| MsixEntryState { address, data, masked };
    assert_eq!(
        state,
        MsixState {
            control: 0x8002,
            entries: vec![entry(0x1_0000_1000, 7, false), entry(0, 9, true), entry(0, 0, true)],
            pending: vec![0b010],
            strategy: vec![],
        }
    );

    let Rig { strategy, path, fire } = rig::biased(3, WhileDisabled::Keep);
    let mut restored = MsixTable::new(strategy).unwrap();
    restored.restore(&state).unwrap();
    assert_eq!((restored.save(), path.take_sent()), (state.clone(), vec![]));
    restored.write(28, &0_u32.to_le_bytes());
    fire(0);
    let data: Vec<_> = path.take_sent().iter().map(|message| message.data).collect();
    assert_eq!(data, [9, 7]);

    // A state whose pending vector is unmasked: it had found no GSI. It is sent now, once.
    let starved = MsixState { pending: vec![0b001], ..state };
    restored.restore(&starved).unwrap();
    assert_eq!(path.take_sent().len(), 1);
    restored.restore(&restored.save()).unwrap();
    assert_eq!(path.take_sent().len(), 0);
}

#[test]
fn hostile_states_are_refused_and_change_nothing() {
    let Rig { strategy, .. } = rig::fake(3, WhileDisabled::Keep);
    let mut table = MsixTable::new(strategy).unwrap();
    let good = table.save();
    let bad = [
        MsixState { control: 3, ..good.clone() },
        MsixState { control: 2 | 1 << 11, ..good.clone() },
        MsixState { entries: good.entries[..2].to_vec(), ..good.clone() },
        MsixState { entries: [&good.entries[..], &good.entries[..]].concat(), ..good.clone() },
        MsixState { pending: vec![], ..good.clone() },
        MsixState { pending: vec![0, 0], ..good.clone() },
        MsixState { pending: vec![1 << 3], ..good.clone() },
        MsixState { strategy: vec![0], ..good.clone() },
    ];
    for bad in bad {
        assert_eq!(table.restore(&bad).unwrap_err().errno(), crate::Errno::INVAL, "{bad:?}");
        assert_eq!(table.save(), good);
    }
    let mut odd = good;
    odd.entries[1].address = 2;
    assert!(table.restore(&odd).is_err());
}

#[cfg(feature = "serde")]
#[test]
fn state_survives_serialisation() {
    let table = MsixTable::new(rig::fake(65, WhileDisabled::Keep).strategy).unwrap();
    let state = table.save();
    let bytes = postcard::to_stdvec(&state).unwrap();
    assert_eq!(postcard::from_bytes::<MsixState>(&bytes).unwrap(), state);
}

#[test]
fn strategies_agree_on_their_size() {
    for make in [rig::fake, rig::table, rig::biased, rig::shared, rig::producer] {
        assert_eq!(make(2048, WhileDisabled::Keep).strategy.vectors(), 2048);
    }
}
