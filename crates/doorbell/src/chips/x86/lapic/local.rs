//! The private half of a local APIC: what is in service, the priorities, and what the vCPU has to do next.

use std::sync::Arc;

use super::{
    ApicSet, DeliveryMode,
    interrupt::Interrupt,
    map::Config,
    registers::{ApicBase, Esr, LvtEntry, Shorthand, Svr, VersionRegister, slot},
    shared::{Events, Shared},
    timer::Timer,
};
use crate::{Delivery, VcpuId};

/// What a vCPU has to do, most urgent first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Reset itself: [`LocalApic::take_init`].
    pub init: bool,
    /// Start at this page: [`LocalApic::take_sipi`].
    pub sipi: Option<u8>,
    /// Enter system management mode: [`LocalApic::take_smi`].
    pub smi: bool,
    /// A non-maskable interrupt: [`LocalApic::take_nmi`].
    pub nmi: bool,
    /// The 8259 pair has an interrupt, whose vector it knows ([`LocalApic::take_extint`] for one that came as a message).
    pub extint: bool,
    /// A vector above the processor priority: [`LocalApic::acknowledge`].
    pub interrupt: Option<u8>,
}

impl Work {
    /// There is nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// An interrupt that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eoi {
    /// Its vector.
    pub vector: u8,
    /// It was level-triggered: the IOAPIC must hear of it.
    pub level: bool,
}

/// The private half of a local APIC. Only its vCPU's thread has it; dropping it makes the APIC absent.
///
/// Registers that are not bytes or bits of their own behaviour are kept as KVM's register page has them.
#[derive(Debug)]
pub struct LocalApic {
    pub(super) set: Arc<ApicSet>,
    pub(super) index: usize,
    pub(super) id: u32,
    pub(super) base: ApicBase,
    /// By [`slot`]. The slots of ISR, TMR, IRR, PPR and the timer's current count are not used.
    pub(super) registers: [u32; slot::COUNT],
    /// The high half of the ICR in x2APIC mode, which does not share the one of xAPIC mode.
    pub(super) x2apic_icr_high: u32,
    pub(super) isr: [u64; 4],
    pub(super) timer: Timer,
    /// Between INIT and SIPI.
    pub(super) waits_for_sipi: bool,
    /// What the others were told last.
    pub(super) told: Config,
}

/// The highest set bit of 256.
#[inline]
fn highest(words: [u64; 4]) -> Option<u8> {
    for (word, bits) in words.into_iter().enumerate().rev() {
        if bits != 0 {
            return Some((word * 64 + 63) as u8 - bits.leading_zeros() as u8);
        }
    }
    None
}

impl LocalApic {
    pub(super) fn new(set: Arc<ApicSet>, index: usize, id: u32) -> Self {
        let mut apic = Self {
            set,
            index,
            id,
            base: ApicBase::RESET,
            registers: [0; slot::COUNT],
            x2apic_icr_high: 0,
            isr: [0; 4],
            timer: Timer::default(),
            waits_for_sipi: false,
            told: Config::new(),
        };
        apic.reset();
        apic
    }

    /// The vCPU that this is the APIC of.
    pub fn vcpu(&self) -> VcpuId {
        VcpuId(self.index as u32)
    }

    /// The set that it belongs to.
    pub fn set(&self) -> &Arc<ApicSet> {
        &self.set
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        let bootstrap = self.index == 0;
        self.base = ApicBase::RESET.with_bootstrap(bootstrap);
        self.registers[slot::ID] = self.id << 24;
        self.waits_for_sipi = false;
        self.shared().set_events(Events::new(), 0);
        self.init();
    }

    /// What INIT does: everything but the id and the mode.
    fn init(&mut self) {
        self.stop_timer();
        let Self { set, index: _, id: _, base, registers, x2apic_icr_high, isr, timer: _, waits_for_sipi: _, told: _ } =
            self;
        let x2apic = base.x2apic();
        for (register, value) in registers.iter_mut().enumerate() {
            *value = match register {
                slot::ID => *value,
                slot::LDR | slot::ICR_HIGH if x2apic => *value,
                slot::DFR => u32::MAX,
                slot::SVR => Svr::new().with_vector(0xff).into_bits(),
                _ if LvtEntry::implemented(register) != 0 => LvtEntry::new().with_masked(true).into_bits(),
                _ => 0,
            };
        }
        if base.bootstrap() {
            // Firmware of old expects the 8259's interrupts to come through (KVM_X86_QUIRK_LINT0_REENABLED).
            registers[slot::LVT_LINT0] = LvtEntry::new().with_delivery_mode(DeliveryMode::ExtInt).into_bits();
        }
        registers[slot::VERSION] = VersionRegister::new()
            .with_version(0x14)
            .with_last_lvt(5)
            .with_can_suppress_eoi_broadcast(set.options().eoi_suppression)
            .into_bits();
        *x2apic_icr_high = 0;
        *isr = [0; 4];
        self.shared().set_vectors([0; 4], [0; 4]);
        self.tell();
    }

    #[inline]
    pub(super) fn shared(&self) -> &Shared {
        &self.set.cpus[self.index]
    }

    pub(super) fn svr(&self) -> Svr {
        Svr::from_bits(self.registers[slot::SVR])
    }

    /// Tells the others, if what they need to know has changed. From its return on, messages are answered accordingly.
    pub(super) fn tell(&mut self) {
        let ldr = self.registers[slot::LDR];
        let dfr = self.registers[slot::DFR];
        let config = Config::new()
            .with_present(self.base.enabled())
            .with_accepts_pic(self.accepts_pic())
            .with_x2apic(self.base.enabled() && self.base.x2apic())
            .with_enabled(self.svr().enabled())
            .with_has_logical_id(ldr != 0)
            .with_flat(dfr == 0xffff_ffff)
            .with_cluster(dfr == 0x0fff_ffff)
            .with_xapic_id((self.registers[slot::ID] >> 24) as u8)
            .with_logical_id((ldr >> 24) as u8);
        if config != self.told {
            self.told = config;
            self.set.configure(self.index, config);
        }
    }

    /// What there is to do now. Nothing is taken by looking.
    #[allow(clippy::should_implement_trait, reason = "it is no iterator: looking takes nothing")]
    pub fn next(&mut self) -> Work {
        let events = self.shared().events();
        if events.error() {
            self.deliver_error();
        }
        let events = if events.into_bits() & Events::LINTS == 0 {
            events
        } else {
            self.deliver_lints(events);
            self.shared().events()
        };
        if self.waits_for_sipi {
            return Work { init: events.init(), sipi: events.sipi().then(|| events.sipi_vector()), ..Work::default() };
        }
        Work {
            init: events.init(),
            sipi: None,
            smi: events.smi(),
            nmi: events.nmi() || events.second_nmi(),
            extint: self.has_extint(events),
            interrupt: self.deliverable(),
        }
    }

    /// Asks to be woken by the next sender, and returns what is there already. If that is something to act on, do so
    /// (after [`disarm`](Self::disarm)); if not, sleeping is safe.
    pub fn arm(&mut self) -> Work {
        self.shared().arm();
        self.next()
    }

    /// The vCPU is awake and will look at [`next`](Self::next) before it sleeps again: senders need not wake it.
    pub fn disarm(&mut self) {
        self.shared().disarm();
    }

    /// Takes an event, and returns all as they were when it was taken.
    pub(super) fn take_event(&mut self, which: Events) -> Option<Events> {
        let which = which.into_bits();
        let is_there = |events: Events| events.into_bits() & which != 0;
        if !is_there(self.shared().events()) {
            return None;
        }
        // An INIT may have taken a SIPI away since.
        Some(self.shared().clear_events(which)).filter(|&events| is_there(events))
    }

    /// Takes a pending INIT: resets this APIC. The vCPU resets itself; one that is not the boot CPU then has nothing to do
    /// until a SIPI comes.
    pub fn take_init(&mut self) -> bool {
        let there = self.take_event(Events::new().with_init(true)).is_some();
        if there {
            self.waits_for_sipi = !self.base.bootstrap();
            self.init();
        }
        there
    }

    /// Takes a pending SIPI: the page to start at, or `None` if none came since INIT.
    pub fn take_sipi(&mut self) -> Option<u8> {
        let events = self.take_event(Events::new().with_sipi(true))?;
        std::mem::take(&mut self.waits_for_sipi).then(|| events.sipi_vector())
    }

    /// Takes a pending NMI. There may be a second one.
    pub fn take_nmi(&mut self) -> bool {
        // The second goes first: a sender that comes meanwhile finds a first one, and adds a second.
        self.keep_one_nmi() || self.take_event(Events::new().with_nmi(true)).is_some()
    }

    /// Forgets the second of two pending NMIs, and says whether there was one. As in KVM, a CPU that is in the middle of an
    /// NMI keeps only one more: to be called at each entry of a guest whose NMIs are blocked.
    pub fn keep_one_nmi(&mut self) -> bool {
        self.take_event(Events::new().with_second_nmi(true)).is_some()
    }

    /// Takes a pending SMI.
    pub fn take_smi(&mut self) -> bool {
        self.take_event(Events::new().with_smi(true)).is_some()
    }

    /// Takes a pending ExtINT message. The 8259's own output is a level and stays.
    pub fn take_extint(&mut self) -> bool {
        self.take_event(Events::new().with_extint(true)).is_some()
    }

    /// The processor priority: the higher of TPR and the class in service (section 11.8.3.1).
    #[inline]
    pub fn ppr(&self) -> u8 {
        let tpr = self.registers[slot::TPR] as u8;
        let class = highest(self.isr).unwrap_or(0) & 0xf0;
        if tpr & 0xf0 >= class { tpr } else { class }
    }

    /// The vector that [`acknowledge`](Self::acknowledge) would take.
    #[inline]
    pub fn deliverable(&self) -> Option<u8> {
        let vector = highest(self.shared().irr())?;
        (self.base.enabled() && vector & 0xf0 > self.ppr()).then_some(vector)
    }

    /// Takes the highest vector above the processor priority and puts it in service; `None` if there is none (hardware
    /// then answers with [`spurious`](Self::spurious)).
    #[inline]
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.shared().take(vector);
        self.isr[usize::from(vector >> 6)] |= 1 << (vector & 63);
        Some(vector)
    }

    /// The spurious vector, which is never in service.
    pub fn spurious(&self) -> u8 {
        self.svr().vector()
    }

    /// Ends the highest interrupt in service. If it was level-triggered, the IOAPIC must be told by
    /// [`IoApic::end`](crate::chips::x86::ioapic::IoApic::end). `None` if nothing is in service or the guest
    /// suppresses the broadcast.
    #[inline]
    pub fn eoi(&mut self) -> Option<Eoi> {
        let vector = highest(self.isr)?;
        self.isr[usize::from(vector >> 6)] &= !(1 << (vector & 63));
        let level = self.shared().is_level(vector);
        if level {
            self.end_lints(vector);
        }
        (!level || !self.svr().suppress_eoi_broadcast()).then_some(Eoi { vector, level })
    }

    /// Whether this APIC holds a vector, pending or in service.
    pub fn holds(&self, vector: u8) -> bool {
        let word = usize::from(vector >> 6);
        (self.isr[word] | self.shared().irr()[word]) >> (vector & 63) & 1 == 1
    }

    /// CR8: bits 7:4 of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.registers[slot::TPR] >> 4 & 0xf)
    }

    /// A store to CR8.
    ///
    /// # Errors
    /// #GP if the value is above 15.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), super::GeneralProtection> {
        if value > 15 {
            return Err(super::GeneralProtection);
        }
        self.registers[slot::TPR] = (value as u32) << 4;
        Ok(())
    }

    /// A source of this CPU's own (a LINT pin, the timer, the performance counters): delivers the entry in register `lvt`.
    /// Registers without an entry, and masked entries, deliver nothing.
    pub fn deliver_local(&mut self, lvt: usize) -> Delivery {
        let entry = LvtEntry::from_bits(self.registers.get(lvt).copied().unwrap_or(0));
        if LvtEntry::implemented(lvt) == 0 || !self.base.enabled() || entry.masked() {
            return Delivery::Ignored;
        }
        let interrupt = Interrupt {
            destination: 0,
            logical: false,
            shorthand: Shorthand::This,
            mode: entry.delivery_mode(),
            vector: entry.vector(),
            level: entry.level(),
            assert: true,
            hint: false,
        };
        if !self.set.accept(self.index, &interrupt) {
            return Delivery::Coalesced;
        }
        if lvt == slot::LVT_PERFORMANCE {
            // Section 11.5.1: the counters' entry masks itself.
            self.registers[lvt] = entry.with_masked(true).into_bits();
        }
        Delivery::Delivered(1)
    }

    #[cold]
    fn deliver_error(&mut self) {
        self.take_event(Events::new().with_error(true));
        let entry = LvtEntry::from_bits(self.registers[slot::LVT_ERROR]);
        // An entry with an illegal vector would be an error in turn, for ever.
        if entry.vector() >= 16 {
            self.deliver_local(slot::LVT_ERROR);
        }
    }

    pub(super) fn send(&mut self, icr: super::Icr, destination: u32) -> Delivery {
        if self.set.options().strict && icr.vector() < 16 && icr.delivery_mode() == DeliveryMode::Fixed {
            self.set.error(self.index, Esr::new().with_send_illegal_vector(true));
            return Delivery::Ignored;
        }
        let source = Some((self.index, self.base.x2apic()));
        self.set.deliver(source, Interrupt::of_icr(icr, destination))
    }
}

impl Drop for LocalApic {
    fn drop(&mut self) {
        self.set.give_back(self.index);
    }
}
