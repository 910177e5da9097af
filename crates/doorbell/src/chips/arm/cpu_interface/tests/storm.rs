//! Everything at once, in as many rounds as it takes to see something go wrong, and no more: devices pend, vCPUs take and end,
//! a guest moves, masks, disables and re-prioritises, and turns vCPUs off and on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use crate::{
    VcpuId,
    chips::arm::{CpuInterface, Gic, Group, IccRegister, cripple::Cripple, irq::IrqState},
};

const FIRST: u32 = 40;
const SPIS: usize = 6;
const ROUNDS: u32 = if cfg!(miri) { 20 } else { 4_000 };

/// What one device wrote before it raised its interrupt, and what the last handler of it saw.
#[derive(Default)]
struct Line {
    written: AtomicU32,
    seen: AtomicU32,
    taken: AtomicU32,
}

fn set(gic: &Gic, number: usize, change: impl Fn(IrqState) -> IrqState) {
    let intid = FIRST + number as u32;
    gic.update(gic.shared(intid).unwrap(), intid, change);
}

fn take_all(cpu: &mut CpuInterface, lines: &[Line; SPIS]) {
    loop {
        let intid = cpu.acknowledge(Group::One);
        if intid == 1023 {
            return;
        }
        let line = &lines[(intid - FIRST) as usize];
        line.taken.fetch_add(1, Ordering::Relaxed);
        line.seen.fetch_max(line.written.load(Ordering::Relaxed), Ordering::Relaxed);
        assert!(cpu.end(Group::One, intid).is_some(), "what was acknowledged was active");
    }
}

/// Whether every device's last event was seen, and none more often than there were events.
fn storm(cripple: Cripple) -> bool {
    let gic = Gic::crippled(3, Arc::new(()), cripple);
    gic.ctlr.store(3, Ordering::SeqCst);
    let mut cpus: Vec<_> = (0..3).map(|vcpu| gic.cpu_interface(VcpuId(vcpu)).unwrap()).collect();
    for (index, cpu) in (0..).zip(&mut cpus) {
        gic.set_enables(index, |enables| enables.with_awake(true));
        cpu.write(IccRegister::Pmr, 0xff);
        cpu.write(IccRegister::Igrpen1, 1);
    }
    for number in 0..SPIS {
        set(&gic, number, |it| {
            it.with_enabled(true).with_group1(true).with_edge(true).with_priority(0xa0).with_target(0)
        });
    }
    set(&gic, SPIS - 1, |it| it.with_any(true));
    let lines: [Line; SPIS] = Default::default();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let devices: Vec<_> = (0..SPIS)
            .map(|number| {
                let (gic, line) = (&gic, &lines[number]);
                scope.spawn(move || {
                    for value in 1..=ROUNDS {
                        line.written.store(value, Ordering::Relaxed);
                        set(gic, number, |it| it.with_latch(true));
                        if value % 64 == 0 {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let guest = scope.spawn(|| {
            for round in 0..ROUNDS as usize {
                let number = round % SPIS;
                match round / SPIS % 5 {
                    0 => set(&gic, number, |it| it.with_target((round % 3) as u16)),
                    1 => set(&gic, number, |it| it.with_enabled(false)),
                    2 => set(&gic, number, |it| it.with_enabled(true)),
                    3 => set(&gic, number, |it| it.with_priority((round % 16 * 8) as u8)),
                    _ => {
                        let index = (round % 3) as u16;
                        gic.set_enables(index, |enables| enables.with_awake(false));
                        gic.set_enables(index, |enables| enables.with_awake(true));
                    }
                }
            }
            (0..SPIS).for_each(|number| set(&gic, number, |it| it.with_enabled(true)));
        });
        let vcpus: Vec<_> = cpus
            .iter_mut()
            .map(|cpu| {
                let (lines, over) = (&lines, &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Acquire) {
                        take_all(cpu, lines);
                        thread::yield_now();
                    }
                })
            })
            .collect();
        devices.into_iter().for_each(|device| device.join().unwrap());
        guest.join().unwrap();
        over.store(true, Ordering::Release);
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
    });
    cpus.iter_mut().for_each(|cpu| take_all(cpu, &lines));
    lines.iter().all(|line| line.seen.load(Ordering::Relaxed) == ROUNDS && line.taken.load(Ordering::Relaxed) <= ROUNDS)
}

/// H23, H-C1, H-C2.
#[test]
fn nothing_is_lost_in_a_storm() {
    assert!(storm(Cripple::Nothing));
}
