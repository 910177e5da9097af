//! Threads that send against a guest that changes its tables (hazards H18 and H37).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::rig::{DEVICE, FLAG, Rig, TABLE, entry, message};
use crate::{Delivery, Error, MsiMessage, MsiTarget, Target, guest_ram::RamBlock, remap::amd::AmdVi};

/// Local APICs that know which vector may still come for each of two devices.
struct Judge {
    /// The vectors that may come: bits 15:0 for the first device, 31:16 for the second; 0 none.
    oldest: AtomicU64,
    wrong: AtomicU64,
    seen: AtomicU64,
}

impl Judge {
    fn judge(&self, vector: u64, destination: u64) {
        // The destination says for which device the entry is, the vector is its generation, always from 0x20 to 0x2f.
        let oldest = self.oldest.load(Ordering::SeqCst) >> (16 * (destination - 1)) & 0xffff;
        // A generation is late if it is older than the oldest that may still come.
        let late = vector.wrapping_sub(oldest) & 0xf;
        if destination > 2 || late > 1 {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
        self.seen.fetch_add(1, Ordering::Relaxed);
    }
}

impl MsiTarget for Judge {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.judge(u64::from(message.data & 0xff), message.address >> 12 & 0xff);
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        Target::new(((message.address >> 12 & 0xff) as u32) << 8 | message.data & 0xff)
    }

    fn fire(&self, target: Target) -> Delivery {
        self.judge(u64::from(target.bits() & 0xff), u64::from(target.bits() >> 8));
        Delivery::Delivered(1)
    }
}

/// Stops the senders however the guest ends, a failed assertion included.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A guest re-targets two devices' interrupts, generation by generation; once COMPLETION_WAIT has stored, the generation before
/// must never come again.
#[test]
fn no_old_entry_after_a_completed_invalidation() {
    let judge =
        Arc::new(Judge { oldest: AtomicU64::new(0x20_0020), wrong: AtomicU64::new(0), seen: AtomicU64::new(0) });
    let template = Rig::disabled();
    let ram: Arc<RamBlock> = template.ram.clone();
    let options = [super::super::AmdUnitOptions::default()];
    let remap = AmdVi::new(judge.clone(), ram, Arc::new(()), &options).unwrap();
    // The template's helpers store tables and commands; its unit is this one.
    let rig = Rig { remap: remap.clone(), ..template };
    let devices = [DEVICE, DEVICE + 0x100];
    for (n, device) in devices.into_iter().enumerate() {
        rig.device(device, TABLE + 0x1000 * n as u64, 8);
        rig.store_entry(TABLE + 0x1000 * n as u64, 7, entry(0x20, n as u8 + 1));
    }
    let unit = remap.unit(0).unwrap();
    unit.write(0, 8, super::rig::DEVICES | 31);
    unit.write(8, 8, super::rig::COMMANDS | 8 << 56);
    unit.write(0x18, 8, 1 | 1 << 12);

    let stop = AtomicBool::new(false);
    let generations = std::thread::scope(|scope| {
        for (n, device) in devices.into_iter().enumerate() {
            let (remap, stop) = (&remap, &stop);
            scope.spawn(move || {
                let target = remap.prepare(&message(device, 7)).unwrap();
                let mut count = n;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    if count % 8 == 0 {
                        remap.send(&message(device, 7)).unwrap();
                    } else {
                        remap.fire(target);
                    }
                }
            });
        }
        let _stops = Stops(&stop);
        let end = Instant::now() + Duration::from_secs(1);
        let mut generation = 0x20u64;
        while Instant::now() < end {
            let next = 0x20 | (generation + 1) & 0xf;
            for n in 0..2u64 {
                rig.store_entry(TABLE + 0x1000 * n, 7, entry(next as u8, n as u8 + 1));
            }
            rig.commands(&[
                [5 << 60 | u64::from(devices[0]), 0],
                [2 << 60 | u64::from(devices[1]), 0],
                [1 << 60 | FLAG | 1, next],
            ]);
            assert_eq!(rig.load(FLAG), [next]);
            judge.oldest.store(next << 16 | next, Ordering::SeqCst);
            generation = next;
        }
        judge.seen.load(Ordering::Relaxed)
    });
    assert!(generations > 1000, "{generations} interrupts are no storm");
    assert_eq!(judge.wrong.load(Ordering::SeqCst), 0, "of {generations}");
}
