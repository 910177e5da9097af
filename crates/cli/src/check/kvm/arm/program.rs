//! Random programs: the same for the same seed, and biased to where things go wrong.

use super::super::super::random::Random;
use super::call::{Call, Deed};
use super::guest::Live;
use super::layout::{self, LPIS};
use super::setup;

mod bring_up;
mod commands;
mod interrupts;
mod registers;

pub use interrupts::to_event;

/// What a program is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VM with nothing in it: devices are made, placed and initialised, in any order.
    BringUp,
    /// A VM that is set up; calls, register accesses of user space, and commands of the ITSs.
    Calls,
    /// The same with fewer interrupts, and code in the guest that reads and writes registers and takes interrupts.
    Guest,
}

/// A program, and where it comes from.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its number under its seed.
    pub number: u64,
    /// What it is about.
    pub kind: Kind,
    /// How many vCPUs its VM has.
    pub vcpus: u32,
    /// What brings the VM to where the program begins.
    pub prelude: Vec<Call>,
    /// What it calls, in order.
    pub calls: Vec<Call>,
    /// What is looked at after each call.
    pub watch: Vec<Call>,
    /// What is done with the VM at the end.
    pub end: End,
}

/// What is done with a VM at the end of its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing but a look at its registers.
    Look,
    /// The ITSs save their tables.
    Save,
    /// The ITSs save their tables, and a new VM is made of what was saved.
    Restore,
}

/// Program `number` of `seed`, with `calls` calls.
pub fn generate(seed: u64, number: u64, calls: usize) -> Program {
    let mut random = Random::of(seed, number);
    let kind = match random.below(10) {
        0..2 => Kind::BringUp,
        2..6 => Kind::Calls,
        _ => Kind::Guest,
    };
    let vcpus = 1 + random.below(3) as u32;
    let live = (kind == Kind::Guest).then(|| Live::new(&mut random));
    let prelude = match kind {
        Kind::BringUp => Vec::new(),
        _ => setup::prelude(vcpus, live.as_ref()),
    };
    // The kernel's SAVE_TABLES follows the pointer of an event whose collection was unmapped (H28), and is no more.
    let unmaps = kind == Kind::BringUp || random.one_in(2);
    let disables = random.one_in(2);
    let made = bring_up::Made::default();
    let mut source = Source { random, vcpus, live, slots: setup::FIRST_SLOT, unmaps, disables, made };
    let calls = (0..calls).map(|_| source.call(kind)).collect();
    let end = match source.random.below(3) {
        _ if unmaps => End::Look,
        0 => End::Save,
        _ => End::Restore,
    };
    Program { number, kind, vcpus, prelude, calls, watch: setup::watch(kind, vcpus), end }
}

/// What a program draws from.
struct Source {
    random: Random,
    vcpus: u32,
    /// The interrupts that may be enabled, in a program with a guest.
    live: Option<Live>,
    /// The next slot of each ITS's command queue.
    slots: [u64; 2],
    /// Whether collections are unmapped. Then tables are not saved.
    unmaps: bool,
    /// Whether LPIs are disabled, each or all of them. Then no event is unmapped: what is pending of an LPI that is disabled goes with its event
    /// here; the kernel keeps it until the vCPU has run (I17a).
    disables: bool,
    /// How far bringing up the VM has come.
    made: bring_up::Made,
}

impl Source {
    fn call(&mut self, kind: Kind) -> Call {
        match kind {
            Kind::BringUp => self.bring_up(),
            Kind::Calls => self.user(),
            Kind::Guest => match self.random.below(10) {
                0..4 => self.user(),
                _ => {
                    let vcpu = self.vcpu();
                    Call::Guest { vcpu, deed: self.deed() }
                }
            },
        }
    }

    /// What user space does with a VM that is set up.
    fn user(&mut self) -> Call {
        match self.random.below(100) {
            0..12 => self.line(),
            12..24 => self.message(),
            24..31 => self.signal(),
            31..36 => self.irqfd(),
            36..40 => self.routes(),
            40..42 => Call::Take { event: self.random.below(layout::EVENTS) },
            42..66 => self.commands(),
            66..68 => self.save_tables(),
            68..71 => self.configuration(),
            71..84 => self.set_register(),
            84..94 => self.get_register(),
            94..97 => self.sysreg(),
            97 => self.any_attribute(),
            98 => self.memory(),
            _ => Call::CheckExtension { capability: self.capability() },
        }
    }

    fn vcpu(&mut self) -> u32 {
        self.random.below(self.vcpus.into()) as u32
    }

    /// One that there is, more often than not.
    fn any_vcpu(&mut self) -> u32 {
        if self.random.one_in(12) { self.random.pick(&[self.vcpus, 7, 16, 255]) } else { self.vcpu() }
    }

    fn its(&mut self) -> usize {
        usize::from(self.random.one_in(3))
    }

    /// An LPI that the pending tables are looked at for, more often than not.
    fn lpi(&mut self) -> u32 {
        if let Some(live) = &self.live {
            return self.random.pick(live.lpis());
        }
        match self.random.below(16) {
            0 => self.random.pick(&[0, 31, 100, 1023, LPIS - 1, LPIS + 200, 0xffff, 0x1_0000]),
            1 => LPIS + self.random.below(u64::from(layout::WATCHED_LPIS)) as u32,
            _ => LPIS + self.random.below(10) as u32,
        }
    }

    /// An SPI or PPI that may be enabled.
    fn wired(&mut self, private: bool) -> u32 {
        match &self.live {
            Some(live) if private => self.random.pick(live.ppis()),
            Some(live) => self.random.pick(live.spis()),
            None if private => self.random.pick(&[16, 20, 27, 30, 31]),
            None => self.random.pick(&[32, 33, 40, 47, 48, 63, 64, 95]),
        }
    }

    /// A word with few bits, many, all or none.
    fn word(&mut self) -> u64 {
        let word = self.random.next();
        match self.random.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (word & 63),
            3 => word,
            _ => word & self.random.next() & self.random.next(),
        }
    }

    fn deed(&mut self) -> Deed {
        let Some(live) = self.live.clone() else { unreachable!("only programs with live interrupts have a guest") };
        let mut deed = live.deed(&mut self.random, self.vcpus);
        if let Deed::Store { address, value, .. } = &mut deed
            && *address == layout::GICD + super::registers::GICD_CTLR
        {
            *value = self.group_enables(*value);
        }
        deed
    }

    /// A value of GICD_CTLR. Where events are unmapped LPIs are not disabled with their group, either.
    fn group_enables(&self, value: u64) -> u64 {
        if self.disables { value } else { value | 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_programs_and_another_gives_others() {
        for number in 0..50 {
            let [one, same] = [generate(1, number, 60), generate(1, number, 60)];
            assert_eq!((one.kind, &one.calls), (same.kind, &same.calls));
            assert_ne!(one.calls, generate(2, number, 60).calls);
            assert_eq!(one.calls.len(), 60);
        }
    }

    #[test]
    fn there_is_every_kind_of_program() {
        let kinds: Vec<_> = (0..50).map(|number| generate(1, number, 50).kind).collect();
        for kind in [Kind::BringUp, Kind::Calls, Kind::Guest] {
            assert!(kinds.iter().filter(|other| **other == kind).count() >= 5, "{kind:?}");
        }
    }
}
