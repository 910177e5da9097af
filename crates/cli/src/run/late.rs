//! Interrupts that nobody has answered for long: where each of them is, while it can still be seen.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{coordinator::Running, ledger::Ledger, plan::Plan, process::Doorbell, report::grouped};

/// A lock-step interrupt that is older than this is looked for. A device waits several times as long before it goes on.
const LATE: Duration = Duration::from_secs(5);
/// What is said of more than this many says nothing new.
const MOST: usize = 8;

/// The last number of a vector, and since when it has not been seen.
#[derive(Clone, Copy)]
struct Waiting {
    number: u32,
    since: Instant,
    told: bool,
}

/// See the [module](self).
pub struct Late<'a> {
    plan: &'a Plan,
    ledger: &'a Ledger,
    machine: &'a dyn Running,
    doorbells: &'a [Doorbell],
    /// By vector; `None` for free ones, and while nothing is under way.
    waiting: Vec<Option<Waiting>>,
    told: usize,
}

impl<'a> Late<'a> {
    /// For the vectors of a plan, which signal these doorbells.
    pub fn new(plan: &'a Plan, ledger: &'a Ledger, machine: &'a dyn Running, doorbells: &'a [Doorbell]) -> Self {
        Self { plan, ledger, machine, doorbells, waiting: vec![None; plan.vectors.len()], told: 0 }
    }

    /// Looks at every lock-step vector; one line for each that has become late since the last look.
    pub fn look(&mut self) -> Vec<String> {
        self.look_at(Instant::now())
    }

    fn look_at(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, vector) in self.plan.vectors.iter().enumerate().filter(|(_, vector)| vector.lockstep) {
            let number = self.ledger.published(vector.slot);
            let waiting = &mut self.waiting[index];
            if self.ledger.seen(vector.slot) == number {
                *waiting = None;
                continue;
            }
            let waiting = match waiting {
                Some(waiting) if waiting.number == number => waiting,
                _ => waiting.insert(Waiting { number, since: now, told: false }),
            };
            if waiting.told || now.duration_since(waiting.since) < LATE || self.told == MOST {
                continue;
            }
            waiting.told = true;
            self.told += 1;
            let counter = if is_readable(&self.doorbells[index]) { "holds events" } else { "is empty" };
            lines.push(format!(
                "{}/{}: its interrupt {} has not been handled for {:.1} s: its eventfd {counter}, {}",
                self.plan.devices[vector.device],
                vector.number,
                grouped(number.into()),
                now.duration_since(waiting.since).as_secs_f64(),
                self.machine.standing(index, vector)
            ));
        }
        lines
    }
}

fn is_readable(doorbell: &Doorbell) -> bool {
    let mut fds = [PollFd::new(&doorbell.eventfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{coordinator::Ended, machine::Machine, plan::Vector};

    struct Machines;

    impl Running for Machines {
        fn path(&self, _: usize, _: &Vector) -> String {
            String::new()
        }
        fn standing(&self, index: usize, _: &Vector) -> String {
            format!("standing {index}")
        }
        fn stop(self: Box<Self>) -> Ended {
            Ended::default()
        }
    }

    #[test]
    fn an_interrupt_is_late_once_and_only_while_nobody_has_seen_it() {
        let plan = Plan::new(&Machine::x86()).unwrap();
        let (ledger, _memory) = Ledger::create(plan.vcpus).unwrap();
        plan.enter(&ledger);
        let doorbells: Vec<_> = plan.vectors.iter().map(|vector| Doorbell::new(vector).unwrap()).collect();
        let (index, vector) = plan.vectors.iter().enumerate().find(|(_, vector)| vector.lockstep).unwrap();
        let mut late = Late::new(&plan, &ledger, &Machines, &doorbells);
        let began = Instant::now();
        assert!(late.look_at(began).is_empty());

        ledger.publish(vector.slot);
        rustix::io::write(&doorbells[index].eventfd, &1u64.to_ne_bytes()).unwrap();
        assert!(late.look_at(began).is_empty());
        assert!(late.look_at(began + LATE - Duration::from_millis(1)).is_empty(), "not yet");
        let told = late.look_at(began + LATE);
        let name = format!("{}/{}", plan.devices[vector.device], vector.number);
        let what = "its interrupt 1 has not been handled for 5.0 s: its eventfd holds events";
        assert_eq!(told, [format!("{name}: {what}, standing {index}")]);
        assert!(late.look_at(began + 2 * LATE).is_empty(), "told once");

        ledger.publish(vector.slot);
        assert!(late.look_at(began + 3 * LATE).is_empty(), "another one, whose time begins now");
        ledger.enter(vector.slot.vcpu, vector.arrives_as(), |_, _, _| {});
        assert!(late.look_at(began + 5 * LATE).is_empty(), "seen");
    }
}
