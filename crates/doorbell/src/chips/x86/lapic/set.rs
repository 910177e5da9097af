//! All local APICs of a machine, as the rest of it sees them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    ApicOptions, LocalApic,
    interrupt::{Interrupt, Packed},
    map::{Config, Format, Map, Named, hashed},
    registers::{DeliveryMode, Esr, MessageAddress, Shorthand},
    shared::{Events, Shared},
};
use crate::{
    Delivery, Error, Kick, MsiMessage, MsiTarget, Target, VcpuId,
    chips::x86::ioapic::RtcTargets,
    clock::{Clock, RealClock},
    sync::Ordering,
};

const X2APIC_BROADCAST: u32 = u32::MAX;
const XAPIC_BROADCAST: u32 = 0xff;

/// The shared half of every local APIC; messages go in here.
///
/// A [`Target`] is resolved at each [`fire`](MsiTarget::fire) through a table that only holds the APICs as they are now, so
/// that it follows every change of ids and of the software enable by itself.
pub struct ApicSet {
    options: ApicOptions,
    kick: Arc<dyn Kick>,
    clock: Arc<dyn Clock>,
    pub(super) cpus: Box<[Shared]>,
    map: Map,
    /// The map lock, last in the lock order: taken by a vCPU that changes its id, its destination format or its enable
    /// bits. Nothing is called while it is held, and no sender takes it.
    map_lock: Mutex<()>,
}

impl std::fmt::Debug for ApicSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApicSet").field("options", &self.options).field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

/// Who sends: an APIC, or a device (`None`).
type Source = Option<(usize, bool)>;

impl ApicSet {
    /// `vcpus` APICs with the x2APIC ids 0, 1, 2…, whose timers go by the host's clock.
    pub fn new(vcpus: u32, kick: Arc<dyn Kick>, options: ApicOptions) -> Arc<Self> {
        let ids: Vec<u32> = (0..vcpus).collect();
        Self::build(&ids, kick, Arc::new(RealClock::new()), options)
    }

    /// APICs with these x2APIC ids; vCPU n has the n-th. Their timers go by the host's clock.
    ///
    /// # Errors
    /// As [`with_clock`](Self::with_clock).
    pub fn with_ids(ids: &[u32], kick: Arc<dyn Kick>, options: ApicOptions) -> Result<Arc<Self>, Error> {
        Self::with_clock(ids, kick, Arc::new(RealClock::new()), options)
    }

    /// APICs with these x2APIC ids; vCPU n has the n-th. Their timers go by `clock`.
    ///
    /// # Errors
    /// If two are the same or one is above [`MAX_ID`](Self::MAX_ID).
    pub fn with_clock(
        ids: &[u32],
        kick: Arc<dyn Kick>,
        clock: Arc<dyn Clock>,
        options: ApicOptions,
    ) -> Result<Arc<Self>, Error> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let value = u64::from(pair[0]);
            return Err(Error::Invalid { what: "APIC id", value, allowed: "every id once" });
        }
        match sorted.last() {
            Some(&last) if last > Self::MAX_ID => {
                Err(Error::Invalid { what: "APIC id", value: u64::from(last), allowed: "0 to 32767" })
            }
            _ => Ok(Self::build(ids, kick, clock, options)),
        }
    }

    /// The highest x2APIC id; 15 bits of a [`Target`] hold it.
    pub const MAX_ID: u32 = 0x7fff;

    fn build(ids: &[u32], kick: Arc<dyn Kick>, clock: Arc<dyn Clock>, options: ApicOptions) -> Arc<Self> {
        let cpus = ids.iter().map(|_| Shared::new()).collect();
        Arc::new(Self { options, kick, clock, cpus, map: Map::new(ids), map_lock: Mutex::new(()) })
    }

    /// How it was built.
    pub fn options(&self) -> &ApicOptions {
        &self.options
    }

    /// What the timers go by.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// The private half of an APIC, after reset; `None` if there is no such vCPU or its half is in use. An APIC without
    /// its private half takes nothing, like that of a vCPU which does not exist yet.
    pub fn local(self: &Arc<Self>, vcpu: VcpuId) -> Option<LocalApic> {
        let index = vcpu.0 as usize;
        // Acquire: pairs with the Release in `give_back`.
        if self.cpus.get(index)?.taken.swap(1, Ordering::Acquire) != 0 {
            return None;
        }
        Some(LocalApic::new(self.clone(), index, self.map.id(index)))
    }

    pub(super) fn give_back(&self, index: usize) {
        self.configure(index, Config::new());
        // Release: pairs with the Acquire in `local`.
        self.cpus[index].taken.store(0, Ordering::Release);
    }

    /// Tells the others what has become of an APIC.
    pub(super) fn configure(&self, index: usize, config: Config) {
        let _lock = self.map_lock.lock();
        self.map.set(index, config, self.options.extended_ids);
    }

    /// A non-maskable interrupt for one vCPU, past all APICs (`KVM_NMI`). Absent vCPUs ignore it.
    pub fn nmi(&self, vcpu: VcpuId) {
        self.post_to(vcpu, |events| events.with_nmi(true));
    }

    /// A system management interrupt for one vCPU (`KVM_SMI`). Absent vCPUs ignore it.
    pub fn smi(&self, vcpu: VcpuId) {
        self.post_to(vcpu, |events| events.with_smi(true));
    }

    /// Drives the output of the 8259 pair to one vCPU's LINT0. Whether the vCPU sees it ([`Work::extint`]) is up to its
    /// LVT entry.
    ///
    /// [`Work::extint`]: super::Work::extint
    pub fn set_pic_output(&self, vcpu: VcpuId, level: bool) {
        self.post_to(vcpu, |events| events.with_pic(level));
    }

    fn post_to(&self, vcpu: VcpuId, change: impl Fn(Events) -> Events) {
        if let Some(cpu) = self.cpus.get(vcpu.0 as usize) {
            if cpu.post(change) {
                self.kick.kick(vcpu);
            }
        }
    }

    /// Sends an interrupt; KVM's number, -1, 0 or how many took it, as a [`Delivery`].
    pub(super) fn deliver(&self, source: Source, interrupt: Interrupt) -> Delivery {
        let mut taken = 0;
        let matched = self.choose(source, interrupt, &mut |index, interrupt| {
            taken += u32::from(self.accept(index, &interrupt));
        });
        match (matched, taken) {
            (false, _) => Delivery::Ignored,
            (true, 0) => Delivery::Coalesced,
            (true, n) => Delivery::Delivered(n),
        }
    }

    /// Calls `each` for every APIC that is to get the interrupt. False where KVM answers -1.
    fn choose(&self, source: Source, mut interrupt: Interrupt, each: &mut dyn FnMut(usize, Interrupt)) -> bool {
        if let (Shorthand::This, Some((index, _))) = (interrupt.shorthand, source) {
            each(index, interrupt);
            return true;
        }
        let summary = self.map.summary();
        let broadcast = self.is_broadcast(source, interrupt.destination, summary.format());
        if interrupt.shorthand == Shorthand::None && summary.format() != Format::NoMap && !broadcast {
            if !interrupt.logical {
                if let Some(index) = self.map.named(interrupt.destination).cpu() {
                    each(index, interrupt);
                }
                return true;
            }
            if summary.format() != Format::Mixed {
                self.choose_logical(summary, interrupt, each);
                return true;
            }
        }
        if !interrupt.logical && interrupt.destination == XAPIC_BROADCAST && interrupt.is_for_one() {
            // As in KVM, whatever it was; with the hint it is still for one.
            interrupt.mode = DeliveryMode::Fixed;
        }
        self.ask_all(source, interrupt, each)
    }

    fn is_broadcast(&self, source: Source, destination: u32, format: Format) -> bool {
        if self.options.no_broadcast_quirk {
            destination == X2APIC_BROADCAST || (destination == XAPIC_BROADCAST && format != Format::X2apic)
        } else {
            let x2apic_sender = matches!(source, Some((_, true)));
            destination == if x2apic_sender { X2APIC_BROADCAST } else { XAPIC_BROADCAST }
        }
    }

    /// A logical destination while all logical ids are distinct and in one format.
    fn choose_logical(
        &self,
        summary: super::map::Summary,
        interrupt: Interrupt,
        each: &mut dyn FnMut(usize, Interrupt),
    ) {
        let destination = interrupt.destination;
        let (first, mut mask) = match summary.format() {
            Format::X2apic => {
                let first = (destination >> 16) * 16;
                if first > summary.last_id() {
                    return;
                }
                let size = (summary.last_id() - first + 1).min(16);
                (first, destination as u16 & (0xffff >> (16 - size)))
            }
            Format::Flat => (0, destination as u16 & 0xff),
            Format::Cluster => ((destination >> 4) & 0xf, destination as u16 & 0xf),
            Format::None | Format::NoMap | Format::Mixed => return,
        };
        if mask != 0 && interrupt.is_for_one() {
            mask = 1 << hashed(interrupt.vector, mask);
        }
        if summary.format() == Format::X2apic {
            for bit in (0..16).filter(|bit| mask >> bit & 1 == 1) {
                if let Some(index) = self.map.named(first + bit).cpu() {
                    each(index, interrupt);
                }
            }
            return;
        }
        for index in 0..self.map.len() {
            let config = self.map.config(index);
            let logical = u16::from(config.logical_id());
            let same = match summary.format() {
                Format::Flat => config.flat() && logical & mask != 0,
                _ => !config.flat() && u32::from(logical >> 4) == first && logical & mask != 0,
            };
            if same && config.accepts() && !config.x2apic() {
                each(index, interrupt);
            }
        }
    }

    /// Each APIC decides for itself. False if none matches.
    fn ask_all(&self, source: Source, interrupt: Interrupt, each: &mut dyn FnMut(usize, Interrupt)) -> bool {
        let matches = |&index: &usize| self.map.config(index).present() && self.matches(index, source, &interrupt);
        if !interrupt.is_for_one() {
            let mut any = false;
            for index in (0..self.map.len()).filter(matches) {
                each(index, interrupt);
                any = true;
            }
            return any;
        }
        let candidate = |index: &usize| self.map.config(*index).accepts() && matches(index);
        let count = (0..self.map.len()).filter(candidate).count();
        if count == 0 {
            return false;
        }
        // An APIC that leaves between the two passes leaves nobody at the last place: then the first one that is left.
        let mut rest = (0..self.map.len()).filter(candidate);
        let chosen = rest.nth(usize::from(interrupt.vector) % count);
        if let Some(index) = chosen.or_else(|| (0..self.map.len()).find(candidate)) {
            each(index, interrupt);
        }
        true
    }

    /// Whether the destination names this APIC, which may be disabled.
    fn matches(&self, index: usize, source: Source, interrupt: &Interrupt) -> bool {
        let config = self.map.config(index);
        let this = source.is_some_and(|(sender, _)| sender == index);
        match interrupt.shorthand {
            Shorthand::This => return this,
            Shorthand::All => return true,
            Shorthand::AllButThis => return !this,
            Shorthand::None => {}
        }
        let mut destination = interrupt.destination;
        let quirk = !self.options.no_broadcast_quirk && source.is_none();
        if quirk && destination == XAPIC_BROADCAST && config.x2apic() {
            destination = X2APIC_BROADCAST;
        }
        let id = self.map.id(index);
        if destination == if config.x2apic() { X2APIC_BROADCAST } else { XAPIC_BROADCAST } {
            true
        } else if !interrupt.logical {
            // An id that no xAPIC can have means the x2APIC id in either mode, as in KVM.
            if config.x2apic() || destination > 0xff {
                destination == id
            } else {
                destination == config.xapic_id().into()
            }
        } else if config.x2apic() {
            id >> 4 == destination >> 16 && destination >> (id & 0xf) & 1 == 1
        } else {
            let logical = u32::from(config.logical_id());
            match (config.flat(), config.cluster()) {
                (true, _) => logical & destination != 0,
                (_, true) => logical >> 4 == destination >> 4 && logical & destination & 0xf != 0,
                _ => false,
            }
        }
    }

    /// Gives the interrupt to one APIC. False if it does not take it.
    fn accept(&self, index: usize, interrupt: &Interrupt) -> bool {
        let Interrupt { mode, vector, level, assert, .. } = *interrupt;
        let cpu = &self.cpus[index];
        let wake = match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if (level && !assert) || !self.map.config(index).accepts() {
                    return false;
                }
                if self.options.strict && vector < 16 {
                    self.error(index, Esr::new().with_receive_illegal_vector(true));
                    return false;
                }
                cpu.accept(vector, level)
            }
            DeliveryMode::Smi => cpu.post(|events| events.with_smi(true)),
            DeliveryMode::Nmi => cpu.post(|events| events.with_nmi(true)),
            DeliveryMode::Init => {
                if level && !assert {
                    return false;
                }
                cpu.post(|events| events.with_init(true).with_sipi(false))
            }
            DeliveryMode::Startup => cpu.post(|events| events.with_sipi(true).with_sipi_vector(vector)),
            // KVM uses it to wake a CPU that sleeps in a paravirtual lock, and answers that it was taken.
            DeliveryMode::RemoteRead => cpu.post(|events| events),
            // KVM knows an external interrupt only from its own 8259.
            DeliveryMode::ExtInt if !self.options.strict => return false,
            DeliveryMode::ExtInt => cpu.post(|events| events.with_extint(true)),
        };
        if wake {
            self.kick.kick(VcpuId(index as u32));
        }
        true
    }

    /// For the APIC's own sources: the local vector table.
    pub(super) fn accept_local(&self, index: usize, interrupt: &Interrupt) -> bool {
        self.accept(index, interrupt)
    }

    pub(super) fn error(&self, index: usize, error: Esr) {
        if self.cpus[index].error(error.into_bits()) {
            self.kick.kick(VcpuId(index as u32));
        }
    }

    #[cold]
    fn fire_slowly(&self, packed: Packed) -> Delivery {
        self.deliver(None, Interrupt::unpack(packed))
    }

    fn decode(&self, message: &MsiMessage) -> Interrupt {
        Interrupt::of_message(message, self.options.extended_ids)
    }
}

impl MsiTarget for ApicSet {
    /// Q3 to Q9 of the spec; `Ignored` only where KVM answers -1.
    ///
    /// # Errors
    /// With [`extended_ids`](ApicOptions::extended_ids), address bits 39:32 must be 0, as in KVM. In
    /// [`strict`](ApicOptions::strict) mode, the address must be 0xFEExxxxx.
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        if self.options.extended_ids && message.address >> 32 & 0xff != 0 {
            let value = message.address;
            return Err(Error::Invalid { what: "message address", value, allowed: "bits 39:32 are 0" });
        }
        let address = MessageAddress::from_bits(message.address);
        if self.options.strict && address.prefix() != 0xfee {
            let value = message.address;
            return Err(Error::Invalid { what: "message address", value, allowed: "0xfee00000 to 0xfeefffff" });
        }
        let interrupt = self.decode(message);
        if let Some(target) = interrupt.pack().filter(|_| !self.options.strict || interrupt.vector >= 16) {
            return Ok(self.fire(target));
        }
        Ok(self.deliver(None, interrupt))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        let address = MessageAddress::from_bits(message.address);
        if self.options.extended_ids && message.address >> 32 & 0xff != 0
            || self.options.strict && (address.prefix() != 0xfee || (message.data & 0xff) < 16)
        {
            return None;
        }
        self.decode(message).pack()
    }

    #[inline]
    fn fire(&self, target: Target) -> Delivery {
        let packed = Packed::from_bits(target.bits());
        if let Some(index) = Named::accepting(self.map.named(u32::from(packed.destination()))) {
            if let Some(cpu) = self.cpus.get(index) {
                if cpu.accept(packed.vector(), packed.level()) {
                    self.kick.kick(VcpuId(index as u32));
                }
                return Delivery::Delivered(1);
            }
        }
        self.fire_slowly(packed)
    }
}

impl RtcTargets for ApicSet {
    fn takers(&self, message: &MsiMessage, each: &mut dyn FnMut(VcpuId)) {
        self.choose(None, self.decode(message), &mut |index, interrupt| {
            let fixed = matches!(interrupt.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
            if fixed && self.map.config(index).accepts() {
                each(VcpuId(index as u32));
            }
        });
    }

    fn matches(&self, message: &MsiMessage, each: &mut dyn FnMut(VcpuId)) {
        let interrupt = self.decode(message);
        for index in (0..self.map.len()).filter(|&index| self.matches(index, None, &interrupt)) {
            each(VcpuId(index as u32));
        }
    }
}
