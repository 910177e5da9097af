//! The coordinator's eyes: progress, devices that die, vCPUs that do not end an interrupt, the user's Ctrl-C.

use std::{
    fmt,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::{
    coordinator::control,
    late::Late,
    ledger::{Header, Ledger},
    plan::Plan,
    process::{self, Device},
    report::{Problem, grouped},
    stop,
};

/// How often it looks.
const TICK: Duration = Duration::from_millis(50);
/// A vCPU that has not ended an interrupt for this long is reported.
const STUCK: Duration = Duration::from_millis(1_500);
/// How long devices have to end once they are told to.
const LEAVE: Duration = Duration::from_secs(3);
/// After the devices are done: how long nothing may arrive before what is missing counts as lost.
const QUIET: Duration = Duration::from_secs(1);

/// What a vCPU did when it was last looked at.
#[derive(Clone, Copy)]
struct Pulse {
    taken: u32,
    since: Instant,
    reported: bool,
}

/// See the [module](self).
pub struct Watch<'a> {
    plan: &'a Plan,
    ledger: &'a Ledger,
    began: Instant,
    bar: ProgressBar,
    pulses: Vec<Pulse>,
    problems: Vec<Problem>,
    late: Late<'a>,
    notes: Vec<String>,
    /// After this long the devices are told to stop.
    budget: Option<Duration>,
    /// They were.
    pub out_of_time: bool,
}

impl<'a> Watch<'a> {
    /// Begins to watch a machine whose devices have just been let go.
    pub fn new(
        plan: &'a Plan,
        ledger: &'a Ledger,
        chips: &'static str,
        budget: Option<Duration>,
        late: Late<'a>,
    ) -> Self {
        let now = Instant::now();
        let total = plan.vectors.iter().map(|vector| u64::from(vector.interrupts)).sum();
        // Draws nothing when standard error is not a terminal.
        let bar = ProgressBar::new(total);
        let shape = "{prefix} chips {bar:30} {human_pos} of {human_len} signalled, {rate} a second, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(shape) {
            bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
                // Nothing can be done about a line that cannot be drawn.
                let _ = out.write_str(&grouped(state.per_sec() as u64));
            }));
        }
        bar.set_prefix(chips);
        let pulses = vec![Pulse { taken: 0, since: now, reported: false }; plan.vcpus as usize];
        let (problems, notes) = (Vec::new(), Vec::new());
        Self { plan, ledger, began: now, bar, pulses, problems, late, notes, budget, out_of_time: false }
    }

    /// Watches until every device has ended and what they signalled has arrived, or will not. Returns the seconds from
    /// the beginning to the last look.
    pub fn until_done(&mut self, devices: &mut [Device]) -> f64 {
        while devices.iter().any(Device::is_running) {
            for index in process::watch(devices, TICK) {
                self.device_ended(&devices[index], index);
            }
            self.bar.set_position(self.signalled(|_| true));
            self.look_at_vcpus(STUCK);
            for line in self.late.look() {
                self.bar.suspend(|| eprintln!("doorbell: {line}"));
                self.notes.push(line);
            }
            self.out_of_time |= self.budget.is_some_and(|budget| self.began.elapsed() > budget);
            if stop::requested() || self.out_of_time {
                control(self.ledger, Header::STOP);
                process::finish(devices, LEAVE);
            }
        }
        self.drain();
        let seconds = self.began.elapsed().as_secs_f64();
        // Whoever stands still by now will not go on.
        self.look_at_vcpus(QUIET / 2);
        self.bar.finish_and_clear();
        seconds
    }

    /// What went wrong so far.
    pub fn problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }

    /// What took long, though it may have come right in the end.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Waits for what is under way.
    fn drain(&mut self) {
        let (mut seen, mut since) = (self.seen(), Instant::now());
        while !self.is_settled() && since.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.seen();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            self.look_at_vcpus(STUCK);
        }
    }

    fn signalled(&self, of: impl Fn(usize) -> bool) -> u64 {
        let vectors = self.plan.vectors.iter().filter(|vector| of(vector.device));
        vectors
            .filter_map(|vector| {
                let sent = &self.ledger.signals(vector.slot.vcpu).sent[vector.slot.index()?];
                Some(u64::from(sent.load(Ordering::Relaxed)))
            })
            .sum()
    }

    fn seen(&self) -> u64 {
        self.plan.vectors.iter().map(|vector| u64::from(self.ledger.seen(vector.slot))).sum()
    }

    /// Every signal has been seen, and every interrupt that was taken has been ended.
    fn is_settled(&self) -> bool {
        let seen = self.plan.vectors.iter().all(|vector| {
            let sent = vector.slot.index().map(|index| {
                // Acquire: pairs with the Release of the device's note.
                self.ledger.signals(vector.slot.vcpu).sent[index].load(Ordering::Acquire)
            });
            Some(self.ledger.seen(vector.slot)) >= sent
        });
        seen && (0..self.plan.vcpus).all(|vcpu| {
            let page = self.ledger.cpu(vcpu);
            page.taken.load(Ordering::Acquire) == page.ended.load(Ordering::Acquire)
        })
    }

    fn report(&mut self, problem: String) {
        self.bar.suspend(|| eprintln!("doorbell: {problem}"));
        self.problems.push(Problem(problem));
    }

    fn device_ended(&mut self, device: &Device, index: usize) {
        let signalled = self.signalled(|device| device == index);
        let total: u64 = self.plan.of_device(index).map(|vector| u64::from(vector.interrupts)).sum();
        if let Some(failure) = device.failure() {
            self.report(format!("{failure} after {} of {} interrupts", grouped(signalled), grouped(total)));
            return;
        }
        let given_up = self.ledger.header().devices[index].given_up.load(Ordering::Relaxed);
        if given_up > 0 {
            let name = device.name();
            self.report(format!("device \"{name}\" gave up {given_up} of its vectors: no handler answered"));
        }
    }

    /// Reports vCPUs that have not ended an interrupt for so long.
    fn look_at_vcpus(&mut self, stuck: Duration) {
        for vcpu in 0..self.plan.vcpus {
            let page = self.ledger.cpu(vcpu);
            // Acquire, `ended` first: pairs with the Release in `Ledger::leave`. Were `taken` older, an interrupt that
            // is long over would look unended.
            let ended = page.ended.load(Ordering::Acquire);
            let taken = page.taken.load(Ordering::Relaxed);
            let pulse = &mut self.pulses[vcpu as usize];
            if taken == ended || taken != pulse.taken {
                *pulse = Pulse { taken, since: Instant::now(), reported: false };
            } else if !pulse.reported && pulse.since.elapsed() >= stuck {
                pulse.reported = true;
                let since = pulse.since.elapsed().as_secs_f64();
                let arrival = page.last.load(Ordering::Relaxed);
                let source = self
                    .plan
                    .vectors
                    .iter()
                    .find(|candidate| self.plan.may_arrive(candidate, vcpu) && candidate.arrival == arrival);
                let source = source
                    .map(|vector| format!(", {}/{}", self.plan.devices[vector.device], vector.number))
                    .unwrap_or_default();
                self.report(format!(
                    "vCPU {vcpu} has taken an interrupt ({}{source}) and not ended it for {since:.1} s",
                    self.plan.name_of(arrival)
                ));
            }
        }
    }
}
