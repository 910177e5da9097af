//! Random programs of calls on a few eventfds, against a model that knows what each call does.

use proptest::{collection::vec, prelude::*};

use super::*;

const EVENTFDS: usize = 3;
const TARGETS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Call {
    Write(usize, u64),
    Attach(usize, usize),
    Detach(usize),
    Retarget(usize, usize),
    Mask(usize),
    Unmask(usize),
    Dispatch,
    /// Another reader takes the counter.
    Steal(usize),
}

fn call() -> impl Strategy<Value = Call> {
    let (fd, target) = (0..EVENTFDS, 0..TARGETS);
    prop_oneof![
        4 => (fd.clone(), prop_oneof![Just(1u64), 1..1000u64]).prop_map(|(fd, value)| Call::Write(fd, value)),
        4 => Just(Call::Dispatch),
        2 => (fd.clone(), target.clone()).prop_map(|(fd, target)| Call::Attach(fd, target)),
        1 => fd.clone().prop_map(Call::Detach),
        1 => (fd.clone(), target).prop_map(|(fd, target)| Call::Retarget(fd, target)),
        1 => fd.clone().prop_map(Call::Mask),
        1 => fd.clone().prop_map(Call::Unmask),
        1 => fd.prop_map(Call::Steal),
    ]
}

/// A binding in the model.
#[derive(Clone, Copy)]
struct Bound {
    target: usize,
    /// The counter at assign, until the first event.
    initial: u64,
    /// Written since it was last looked at.
    edge: bool,
    masked: bool,
    pending: bool,
    untaken: u32,
}

struct Model {
    drain: Drain,
    counts: [u64; EVENTFDS],
    bound: [Option<Bound>; EVENTFDS],
    delivered: [u32; TARGETS],
}

impl Model {
    fn deliver(&mut self, at: usize) {
        let Some(bound) = &mut self.bound[at] else { return };
        self.delivered[bound.target] += 1;
        let initial = std::mem::take(&mut bound.initial);
        if initial != 0 && initial == self.counts[at] {
            return;
        }
        bound.untaken += 1;
        if self.drain == Drain::Each || bound.untaken == 255 {
            (self.counts[at], bound.untaken) = (0, 0);
        }
    }

    fn dispatch(&mut self) {
        for at in 0..EVENTFDS {
            let Some(bound) = &mut self.bound[at] else { continue };
            if !std::mem::take(&mut bound.edge) || self.counts[at] == 0 {
                continue;
            }
            if bound.masked {
                bound.pending = true;
            } else {
                self.deliver(at);
            }
        }
    }
}

struct Real {
    dispatcher: Dispatcher,
    fds: [OwnedFd; EVENTFDS],
    irqfds: [Option<Irqfd>; EVENTFDS],
    sinks: [Counted; TARGETS],
}

fn run(drain: Drain, calls: &[Call]) -> Result<(), TestCaseError> {
    let mut model = Model { drain, counts: [0; EVENTFDS], bound: [None; EVENTFDS], delivered: [0; TARGETS] };
    let mut real = Real {
        dispatcher: if drain == Drain::Each { dispatcher() } else { lazy() },
        fds: std::array::from_fn(|_| eventfd()),
        irqfds: [const { None }; EVENTFDS],
        sinks: Default::default(),
    };
    for (step, &call) in calls.iter().enumerate() {
        match call {
            Call::Write(at, value) => {
                write(&real.fds[at], value);
                model.counts[at] += value;
                if let Some(bound) = &mut model.bound[at] {
                    bound.edge = true;
                }
            }
            Call::Attach(at, target) => {
                match (real.dispatcher.attach(&real.fds[at], real.sinks[target].target()), model.bound[at]) {
                    (Err(error), Some(_)) => prop_assert_eq!(error.errno(), crate::Errno::BUSY),
                    (Ok(irqfd), None) => {
                        real.irqfds[at] = Some(irqfd);
                        let initial = model.counts[at];
                        model.bound[at] = Some(Bound {
                            target,
                            initial,
                            edge: initial != 0,
                            masked: false,
                            pending: false,
                            untaken: 0,
                        });
                    }
                    (answer, _) => prop_assert!(false, "step {step}: {answer:?}"),
                }
            }
            Call::Detach(at) => {
                real.irqfds[at] = None;
                model.bound[at] = None;
            }
            Call::Retarget(at, target) => {
                if let (Some(irqfd), Some(bound)) = (&real.irqfds[at], &mut model.bound[at]) {
                    irqfd.retarget(real.sinks[target].target()).unwrap();
                    bound.target = target;
                }
            }
            Call::Mask(at) => {
                if let (Some(irqfd), Some(bound)) = (&real.irqfds[at], &mut model.bound[at]) {
                    prop_assert_eq!(irqfd.mask().unwrap(), bound.masked);
                    bound.masked = true;
                }
            }
            Call::Unmask(at) => {
                if let (Some(irqfd), Some(bound)) = (&real.irqfds[at], &mut model.bound[at]) {
                    bound.masked = false;
                    let due = std::mem::take(&mut bound.pending);
                    prop_assert_eq!(irqfd.unmask().unwrap(), due);
                    if due {
                        model.deliver(at);
                    }
                }
            }
            Call::Dispatch => {
                dispatch(&real.dispatcher);
                model.dispatch();
            }
            Call::Steal(at) => {
                prop_assert_eq!(take(&real.fds[at]), model.counts[at]);
                model.counts[at] = 0;
            }
        }
        for at in 0..EVENTFDS {
            prop_assert_eq!(counter(&real.fds[at]), model.counts[at], "the counter of {} after step {}", at, step);
            if let (Some(irqfd), Some(bound)) = (&real.irqfds[at], &model.bound[at]) {
                let state = IrqfdState { masked: bound.masked, pending: bound.pending };
                prop_assert_eq!(irqfd.save(), state, "after step {}", step);
            }
        }
        let delivered = real.sinks.each_ref().map(Counted::get);
        prop_assert_eq!(delivered, model.delivered, "deliveries after step {}, {:?}", step, call);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn programs_do_what_the_model_says(calls in vec(call(), 1..120)) {
        run(Drain::Each, &calls)?;
    }

    #[test]
    fn lazy_programs_do_what_the_model_says(calls in vec(call(), 1..120)) {
        run(Drain::Lazy, &calls)?;
    }
}
