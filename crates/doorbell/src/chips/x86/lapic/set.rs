//! All local APICs of a machine, as the rest of it sees them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    ApicOptions, DeliveryMode, LocalApic, MessageAddress,
    destination::Source,
    interrupt::{Interrupt, Packed},
    map::{Config, Map, Named, Written},
    registers::Esr,
    shared::{Events, Shared},
};
use crate::{
    Delivery, Error, Kick, MsiMessage, MsiTarget, Target, VcpuId,
    chips::x86::ioapic::RtcTargets,
    clock::{Clock, RealClock},
    sync::{AtomicU32, Ordering, fence},
};

/// The shared half of every local APIC; messages go in here.
///
/// A [`Target`] is resolved at each [`fire`](MsiTarget::fire) through a table that only holds the APICs as they are now, so
/// that it follows every change of ids and of the software enable by itself.
pub struct ApicSet {
    pub(super) options: ApicOptions,
    kick: Arc<dyn Kick>,
    clock: Arc<dyn Clock>,
    pub(super) cpus: Box<[Shared]>,
    pub(super) map: Map,
    /// The level of INTR: 1 while the 8259 pair has an interrupt. See `set_intr`.
    pub(super) intr: AtomicU32,
    /// The map lock, last in the lock order: taken by a vCPU that changes its id, its destination format or its enable
    /// bits. Nothing is called while it is held, and no sender takes it.
    written: Mutex<Written>,
}

impl std::fmt::Debug for ApicSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApicSet").field("options", &self.options).field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

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
        let (map, written) = Map::new(ids);
        Arc::new(Self { options, kick, clock, cpus, map, intr: AtomicU32::new(0), written: Mutex::new(written) })
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
        self.map.set(&mut self.written.lock(), index, config, self.options.extended_ids);
        // Pairs with the fence in `set_intr`.
        fence(Ordering::SeqCst);
    }

    /// A non-maskable interrupt for one vCPU, past all APICs (`KVM_NMI`). Two are kept, as in KVM. Absent vCPUs ignore it.
    pub fn nmi(&self, vcpu: VcpuId) {
        self.post_to(vcpu, Events::and_nmi);
    }

    /// A system management interrupt for one vCPU (`KVM_SMI`). Absent vCPUs ignore it.
    pub fn smi(&self, vcpu: VcpuId) {
        self.post_to(vcpu, |events| events.with_smi(true));
    }

    /// Drives the output of the 8259 pair to one vCPU's LINT0. Whether the vCPU sees it ([`Work::extint`]) is up to its
    /// LVT entry. [`set_intr`](Self::set_intr) drives it to all of them.
    ///
    /// [`Work::extint`]: super::Work::extint
    pub fn set_pic_output(&self, vcpu: VcpuId, level: bool) {
        self.post_to(vcpu, |events| events.with_pic(level));
    }

    pub(super) fn post_to(&self, vcpu: VcpuId, change: impl Fn(Events) -> Events) {
        if let Some(cpu) = self.cpus.get(vcpu.0 as usize) {
            if cpu.post(change) {
                self.kick.kick(vcpu);
            }
        }
    }

    pub(super) fn kick(&self, index: usize) {
        self.kick.kick(VcpuId(index as u32));
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

    /// Gives the interrupt to one APIC. False if it does not take it.
    pub(super) fn accept(&self, index: usize, interrupt: &Interrupt) -> bool {
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
            DeliveryMode::Nmi => cpu.post(Events::and_nmi),
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
        Interrupt::of_message(message, &self.options)
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
