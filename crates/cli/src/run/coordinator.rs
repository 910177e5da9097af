//! One run: starts the device processes, watches them and the vCPUs, and adds up the ledger.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rustix::thread::futex;

use super::{
    histogram::Histogram,
    late::Late,
    ledger::{Header, Ledger, now_ns},
    plan::{Plan, Vector},
    process::{Device, Doorbell},
    report::{ArmCounters, Problem, Report, VectorReport},
    stop,
    tally::{Fate, Tally},
    trace::Recorder,
    watch::Watch,
};

/// The vCPUs and chips of a machine that runs, whoever's they are.
pub trait Running {
    /// The path of the interrupts of a vector, the plan's `index`th, station by station.
    fn path(&self, index: usize, vector: &Vector) -> String;

    /// Where an interrupt of a vector is that does not arrive, as far as can be seen: the end of a sentence.
    fn standing(&self, index: usize, vector: &Vector) -> String;

    /// Stops the vCPUs.
    fn stop(self: Box<Self>) -> Ended;
}

/// What is left of a machine.
#[derive(Debug, Default)]
pub struct Ended {
    /// For each vector of the plan, in its order; empty where latencies are not measured.
    pub latencies: Vec<Histogram>,
    /// For each vector of the plan, whether an interrupt is still pending at a vCPU; empty where that cannot be seen.
    pub pending: Vec<bool>,
    /// For each vector of the plan, how often its driver had an interrupt sent again that the chips may have dropped, as the
    /// specification demands; empty where that does not happen.
    pub replayed: Vec<u32>,
    /// How often the driver found such an interrupt by looking at its device; as `replayed`.
    pub fetched: Vec<u32>,
    /// What the Arm chips and their guest counted.
    pub arm: Option<ArmCounters>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// What went wrong.
    pub problems: Vec<Problem>,
    /// For each vCPU; empty where nothing is recorded.
    pub recorders: Vec<Recorder>,
}

/// What a run is made of.
pub struct Run<'a> {
    /// The machine's name.
    pub machine: &'a str,
    /// The chips' name.
    pub chips: &'static str,
    /// What arrives where.
    pub plan: &'a Plan,
    /// How long a device waits for an answer, and how often it looks for one itself (zero: it is told).
    pub patience: Duration,
    /// See `patience`.
    pub poll: Duration,
    /// The devices stop after this long, whatever they have left to do.
    pub budget: Option<Duration>,
}

/// What came of it.
pub struct Outcome {
    /// The figures.
    pub report: Report,
    /// For each vCPU, what it recorded.
    pub recorders: Vec<Recorder>,
    /// When the devices were let go, in ns.
    pub start: u64,
}

impl Run<'_> {
    /// Runs it. `start` makes the vCPUs and chips, around the ledger (whose descriptor comes with it) and the
    /// descriptors that the devices will signal.
    ///
    /// # Errors
    /// One line, if the machine cannot be started.
    pub fn go<'m>(
        &self,
        start: impl FnOnce(&Arc<Ledger>, BorrowedFd<'_>, &[Doorbell]) -> Result<Box<dyn Running + 'm>, String>,
    ) -> Result<Outcome, String> {
        let plan = self.plan;
        let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let (ledger, memory) = Ledger::create(plan.vcpus).map_err(failed("shared memory for the ledger"))?;
        let ledger = Arc::new(ledger);
        plan.enter(&ledger);
        let header = ledger.header();
        let microseconds = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        header.patience_us.store(microseconds(self.patience), Ordering::Relaxed);
        header.poll_us.store(microseconds(self.poll), Ordering::Relaxed);
        let doorbells: Vec<_> =
            plan.vectors.iter().map(Doorbell::new).collect::<Result<_, _>>().map_err(failed("an eventfd"))?;
        let machine = start(&ledger, memory.as_fd(), &doorbells)?;
        let mut devices = Vec::new();
        for index in 0..plan.devices.len() {
            let own: Vec<_> =
                plan.vectors.iter().zip(&doorbells).filter(|(v, _)| v.device == index).map(|(_, d)| d).collect();
            let device = Device::start(plan, index, memory.as_fd(), &own);
            devices.push(device.map_err(failed("a device process"))?);
        }
        let start = now_ns();
        control(&ledger, Header::GO);
        let late = Late::new(plan, &ledger, &*machine, &doorbells);
        let mut watch = Watch::new(plan, &ledger, self.chips, self.budget, late);
        let seconds = watch.until_done(&mut devices);
        let mut problems = watch.problems();
        let out_of_time = watch.out_of_time;
        let late = watch.notes();
        drop(watch);
        let paths: Vec<_> =
            plan.vectors.iter().enumerate().map(|(index, vector)| machine.path(index, vector)).collect();
        let ended = machine.stop();
        problems.extend(ended.problems);
        let mut notes = ended.notes;
        notes.extend(late);
        if out_of_time {
            notes.push("Its time was up before its devices had done all their work.".into());
        }
        let vectors: Vec<_> = plan
            .vectors
            .iter()
            .enumerate()
            .map(|(index, vector)| {
                let latency = ended.latencies.get(index).cloned().unwrap_or_default();
                let of = |counts: &[u32]| counts.get(index).copied().unwrap_or_default();
                let fate = Fate {
                    pending: ended.pending.get(index).copied().unwrap_or_default(),
                    replayed: of(&ended.replayed),
                    fetched: of(&ended.fetched),
                };
                VectorReport {
                    source: format!("{}/{}", plan.devices[vector.device], vector.number),
                    path: paths[index].clone(),
                    lockstep: vector.lockstep,
                    tally: Tally::of(vector, &ledger, fate),
                    p50_ns: latency.quantile(0.5),
                    p99_ns: latency.quantile(0.99),
                    latency,
                }
            })
            .collect();
        let mut total = Tally::default();
        vectors.iter().for_each(|vector| total += vector.tally);
        let report = Report {
            machine: self.machine.into(),
            chips: self.chips,
            vcpus: plan.vcpus,
            processes: plan.devices.len(),
            total,
            seconds,
            interrupted: stop::requested(),
            problems,
            notes,
            arm: ended.arm,
            vectors,
            beside: Vec::new(),
            parity: None,
        };
        Ok(Outcome { report, recorders: ended.recorders, start })
    }
}

/// Tells the devices to go or to stop.
pub fn control(ledger: &Ledger, word: u32) {
    let control = &ledger.header().control;
    // Release: pairs with the devices' Acquire.
    control.store(word, Ordering::Release);
    let _ = futex::wake(control, futex::Flags::empty(), i32::MAX as u32);
}
