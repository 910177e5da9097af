//! One ITS over some LPIs: its locks, its registers, its commands, its events.

use std::sync::Arc;

use super::{
    ItsOptions,
    bank::{Bank, Effect, Nature},
    command::{COMMAND, Command, CommandError},
    counters::{Drops, ItsCounters},
    execute::Executor,
    mappings::{Context, Mappings, Refused},
    registers::offset,
    sink::LpiSink,
    targets::Targets,
    translation::{BLOCK, Dropped, Sent, Translation},
};
use crate::{Target, guest_ram::GuestRam, sync::Mutex};

/// How much is done at a time, in events that are looked at, if there is so much to do. A queue of the largest size with
/// commands about single events is less. What is left is done when the guest looks whether it is done.
const WORK: u64 = 1 << 18;

/// An ITS.
pub(super) struct Unit<L> {
    pub lpis: Arc<L>,
    ram: Arc<dyn GuestRam>,
    nature: Nature,
    translation: Translation,
    targets: Targets,
    drops: Drops,
    /// Lock order: before those of the GIC. Guest memory is accessed with it held.
    state: Mutex<State>,
}

/// What only changes with the lock held.
pub(super) struct State {
    pub bank: Bank,
    pub mappings: Mappings,
    counters: ItsCounters,
    /// By the positions in [`CommandError::ALL`].
    errors: [u64; CommandError::ALL.len()],
}

impl State {
    fn count(&mut self, result: Result<(), Refused>) {
        match result {
            Ok(()) => self.counters.commands += 1,
            Err(Refused::Full) => self.counters.full += 1,
            Err(Refused::Unreadable) => self.counters.unreadable += 1,
            Err(Refused::Error(error)) => {
                let at = CommandError::ALL.iter().position(|other| *other == error);
                if let Some(count) = at.and_then(|at| self.errors.get_mut(at)) {
                    *count += 1;
                }
            }
        }
    }
}

impl<L: LpiSink> Unit<L> {
    pub fn new(lpis: Arc<L>, ram: Arc<dyn GuestRam>, nature: Nature, options: &ItsOptions) -> Self {
        let blocks = options.max_events.min(ItsOptions::MOST_EVENTS).div_ceil(BLOCK as u32);
        let state = State {
            bank: Bank::new(nature),
            mappings: Mappings::new(blocks),
            counters: ItsCounters::default(),
            errors: [0; CommandError::ALL.len()],
        };
        Self {
            lpis,
            ram,
            nature,
            translation: Translation::new(blocks as usize),
            targets: Targets::new(options.max_targets),
            drops: Drops::default(),
            state: Mutex::new(state),
        }
    }

    pub fn nature(&self) -> Nature {
        self.nature
    }

    pub fn context(&self) -> Context<'_> {
        Context {
            lpis: &*self.lpis,
            ram: &*self.ram,
            behaviour: &self.nature.behaviour,
            translation: &self.translation,
            drops: &self.drops,
        }
    }

    /// Does something with the lock held.
    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock())
    }

    /// An event.
    #[inline]
    pub fn signal(&self, device: u16, event: u16) -> Sent {
        let sent = self.translation.fire(device, event, |lpi| self.lpis.pend(lpi));
        if let Sent::Dropped(why) = sent {
            self.drops.count(why);
        }
        sent
    }

    /// An event that no ITS can have mapped.
    pub fn signal_nothing(&self) -> Sent {
        let why = if self.translation.is_enabled() { Dropped::Unmapped } else { Dropped::Disabled };
        self.drops.count(why);
        Sent::Dropped(why)
    }

    pub fn prepare(&self, device: u16, event: u16) -> Option<Target> {
        self.targets.prepare(device, event)
    }

    /// A prepared event; `None` if the number stands for none.
    #[inline]
    pub fn fire(&self, target: Target) -> Option<Sent> {
        let (device, event) = self.targets.event(target)?;
        Some(self.signal(device, event))
    }

    pub fn read(&self, at: u64, size: u8) -> u64 {
        let Some(Lane { register, shift, mask }) = Lane::of(at, size) else { return 0 };
        let mut state = self.state.lock();
        self.run_commands(&mut state);
        (state.bank.read(register, self.nature) & mask) >> shift
    }

    pub fn write(&self, at: u64, size: u8, value: u64) {
        let Some(Lane { register, shift, mask }) = Lane::of(at, size) else { return };
        let mut state = self.state.lock();
        // What is left from before comes first.
        self.run_commands(&mut state);
        self.store(&mut state, register, value << shift, mask);
    }

    /// Stores to a register, and does what follows.
    pub fn store(&self, state: &mut State, register: u64, value: u64, mask: u64) {
        let effect = state.bank.write(register, value, mask, self.nature);
        let cx = self.context();
        let Effect { enabled, no_devices, no_collections, commands } = effect;
        if let Some(enabled) = enabled {
            self.enable(state, enabled);
        }
        if no_devices {
            state.mappings.free_devices(&cx);
        }
        if no_collections {
            state.mappings.free_collections(&cx);
        }
        if commands {
            self.run_commands(state);
        }
    }

    /// Lets events through, or drops them. When this returns, none goes by what it was before.
    pub fn enable(&self, state: &mut State, enabled: bool) {
        self.translation.enable(enabled);
        if !enabled {
            state.mappings.drain(&self.context());
        }
    }

    /// Runs what is in the command queue, or a part of it if that is much.
    pub fn run_commands(&self, state: &mut State) {
        let mut work = 0;
        while state.bank.enabled && state.bank.has_commands() && work < WORK {
            let mut bytes = [0; COMMAND as usize];
            let at = state.bank.cbaser.address().wrapping_add(state.bank.creadr);
            work += 1;
            // I6: a command that does nothing does not stop the queue.
            if self.ram.read(at, &mut bytes).is_err() {
                state.counters.unreadable += 1;
            } else if let Some(command) = Command::decode(&bytes) {
                let State { bank, mappings, .. } = &mut *state;
                let Bank { devices, collections, .. } = *bank;
                let mut executor = Executor { cx: self.context(), mappings, devices, collections };
                work += executor.cost(command);
                let result = executor.run(command);
                state.count(result);
            } else {
                state.counters.unknown += 1;
            }
            state.bank.command_done(COMMAND);
        }
    }

    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.bank.reset();
        self.translation.enable(false);
        let cx = self.context();
        state.mappings.free_devices(&cx);
        state.mappings.free_collections(&cx);
    }

    pub fn counters(&self) -> ItsCounters {
        let state = self.state.lock();
        let mut counters = state.counters.clone();
        let errors = CommandError::ALL.iter().copied().zip(state.errors);
        counters.errors = errors.filter(|(_, count)| *count != 0).collect();
        self.drops.report(&mut counters);
        counters
    }

    /// How many bytes it takes, apart from the devices and collections.
    pub fn bytes(&self) -> usize {
        let state = self.state.lock();
        self.translation.bytes() + self.targets.bytes() + state.mappings.blocks.bytes()
    }
}

/// An access: to which register, and to which of its bits.
struct Lane {
    register: u64,
    shift: u32,
    mask: u64,
}

impl Lane {
    /// `None` if no register takes such an access (I10): registers of 64 bits take 4 and 8 bytes, all others 4.
    fn of(at: u64, size: u8) -> Option<Self> {
        let wide = is_wide(at & !7);
        match size {
            8 if wide && at % 8 == 0 => Some(Self { register: at, shift: 0, mask: u64::MAX }),
            4 if wide && at % 4 == 0 => {
                let shift = (at % 8) as u32 * 8;
                Some(Self { register: at & !7, shift, mask: 0xffff_ffff << shift })
            }
            4 if at % 4 == 0 => Some(Self { register: at, shift: 0, mask: 0xffff_ffff }),
            _ => None,
        }
    }
}

/// Whether a register of 64 bits begins here.
pub(super) fn is_wide(at: u64) -> bool {
    let single = [offset::TYPER, offset::CBASER, offset::CWRITER, offset::CREADR];
    single.contains(&at) || (offset::BASER0..=offset::BASER7).contains(&at) && at % 8 == 0
}
