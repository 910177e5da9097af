//! One unit: its MMIO window, its commands, and what becomes of the messages of its devices.

use std::{ops::RangeInclusive, sync::Arc};

use super::{
    Doorbell,
    bank::{Bank, Effect, Features, OwnMsi},
    command::{COMMAND, Command},
    event::Event,
    filled::{Filled, GROUPS},
    look_up::{Blocked, LookUp, Posted},
    registers::{Control, DeviceTableBase, ExtendedFeatures, ExtendedFeatures2, POINTER, WINDOW, offset},
    state::AmdUnitState,
    tables::{GuestLogEntry, WideHigh, WideLow, irr},
};
use crate::{
    Delivery, Error, MsiMessage, MsiTarget, Target,
    guest_ram::{GuestRam, GuestRamExt},
    remap::{RemapCache, Remapper, Way},
    sync::{AtomicU64, Mutex, Ordering},
};

/// How to build a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmdUnitOptions {
    /// Whose messages it remaps: [`DeviceId`](crate::DeviceId)s, of which bits 15:0 (bus, device, function) index the device table.
    pub requesters: RangeInclusive<u32>,
    /// 32-bit destinations: XTSup is claimed.
    pub x2apic: bool,
    /// 128-bit entries and virtual APICs of guests: GASup and GAMSup are claimed.
    pub guest_apic: bool,
    /// 2048 interrupts for each device: NumInt2KSup is claimed.
    pub wide_index: bool,
    /// For how many messages the unit remembers where they go; at most 2^20.
    pub messages: u32,
}

impl Default for AmdUnitOptions {
    /// All requesters of PCI segment 0, and all that is there.
    fn default() -> Self {
        Self { requesters: 0..=0xffff, x2apic: true, guest_apic: true, wide_index: true, messages: RemapCache::MOST }
    }
}

impl AmdUnitOptions {
    fn features(&self) -> Features {
        let first = ExtendedFeatures::new()
            .with_x2apic(self.x2apic)
            .with_invalidate_all(true)
            .with_guest_apic(self.guest_apic)
            .with_guest_modes(u8::from(self.guest_apic))
            .with_msi_in_window(true);
        Features { first, second: ExtendedFeatures2::new().with_wide_index(u8::from(self.wide_index)) }
    }
}

/// A unit without what it remembers.
struct Core {
    requesters: RangeInclusive<u32>,
    features: Features,
    ram: Arc<dyn GuestRam>,
    /// Where the unit's own interrupts go, never remapped.
    inner: Arc<dyn MsiTarget>,
    doorbell: Arc<dyn Doorbell>,
    /// The two registers that a look-up needs, as in `bank`. Changed with `configuring` held, and followed by an
    /// invalidation of everything: what was looked up by the old ones is forgotten, who looks from then on sees the new
    /// ones, ordered by [`Filled`].
    device_table: AtomicU64,
    control: AtomicU64,
    filled: Filled,
    /// How many messages were blocked; only counted.
    blocked: AtomicU64,
    /// Lock order: after all of the cache; guest memory is accessed while it is held, nothing else.
    bank: Mutex<Bank>,
}

/// One AMD-Vi unit. See the [module](super).
pub struct AmdUnit {
    core: Core,
    cache: RemapCache,
    /// Who changes the configuration, runs commands, saves or restores. Lock order: before all of the cache.
    configuring: Mutex<()>,
}

impl std::fmt::Debug for AmdUnit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AmdUnit").field("requesters", &self.core.requesters).finish_non_exhaustive()
    }
}

impl Core {
    /// Changes the registers and sends what the unit has to say about it.
    fn with_bank<T>(&self, change: impl FnOnce(&mut Bank) -> T) -> T {
        let mut bank = self.bank.lock();
        let result = change(&mut bank);
        let messages = bank.take_messages();
        drop(bank);
        for message in messages.iter() {
            if let Err(error) = self.inner.send(message) {
                tracing::debug!(%error, "an interrupt of an AMD-Vi unit was refused");
            }
        }
        result
    }

    fn log(&self, event: &Event) {
        self.with_bank(|bank| bank.log(&*self.ram, event));
    }

    /// What look-ups go by follows the registers.
    fn publish(&self, bank: &Bank) {
        // Relaxed: `Filled` and the locks of the cache order these before the look-ups that must see them.
        self.device_table.store(bank.device_table.into_bits(), Ordering::Relaxed);
        self.control.store(bank.control.into_bits(), Ordering::Relaxed);
    }

    fn control(&self) -> Control {
        // Relaxed: see `publish`.
        Control::from_bits(self.control.load(Ordering::Relaxed))
    }
}

impl Remapper for Core {
    type Fault = Blocked;

    fn tag(&self, message: &MsiMessage) -> u32 {
        Filled::group(message.device_id.map_or(0, |device| device.0))
    }

    fn remap(&self, message: &MsiMessage) -> Result<Way, Blocked> {
        self.filled.mark(self.tag(message));
        let look_up = LookUp {
            ram: &*self.ram,
            control: self.control(),
            // Relaxed: see `publish`.
            device_table: DeviceTableBase::from_bits(self.device_table.load(Ordering::Relaxed)),
            device: message.device_id.map_or(0, |device| device.0 as u16),
            message,
        };
        look_up.run()
    }

    /// An interrupt for a guest's virtual APIC: its bit in the IRR, then the doorbell of the CPU that runs it, or the log.
    fn post(&self, [entry, posted]: [u64; 2]) -> Delivery {
        let posted = Posted::from_bits(posted);
        let (word, bit) = irr(posted.vector());
        let word = (posted.page() << 12) + word;
        let Ok(old) = self.ram.fetch_or(word, bit) else {
            self.log(&Event::page_table_error(posted.device(), 0, word));
            return Delivery::Ignored;
        };
        // What does not count as part of the entry: software changes it without an invalidation.
        let low = WideLow::from_bits(self.ram.read_le(entry).unwrap_or(0));
        if low.is_running() {
            let high = WideHigh::from_bits(self.ram.read_le(entry + 8).unwrap_or(0));
            self.doorbell.ring(low.destination() | u32::from(high.destination()) << 24);
        } else if low.logs() {
            let entry = GuestLogEntry::new().with_tag(low.tag()).with_device(posted.device());
            self.with_bank(|bank| bank.log_guest(&*self.ram, entry.with_code(GuestLogEntry::NOT_RUNNING)));
        }
        if old & bit != 0 { Delivery::Coalesced } else { Delivery::Delivered(1) }
    }
}

impl AmdUnit {
    pub(super) fn new(
        inner: Arc<dyn MsiTarget>,
        ram: Arc<dyn GuestRam>,
        doorbell: Arc<dyn Doorbell>,
        options: &AmdUnitOptions,
        most: u32,
    ) -> Self {
        let bank = Bank::default();
        let core = Core {
            requesters: options.requesters.clone(),
            features: options.features(),
            ram,
            inner: inner.clone(),
            doorbell,
            device_table: AtomicU64::new(bank.device_table.into_bits()),
            control: AtomicU64::new(bank.control.into_bits()),
            filled: Filled::new(),
            blocked: AtomicU64::new(0),
            bank: Mutex::new(bank),
        };
        Self { core, cache: RemapCache::new(inner, options.messages.min(most)), configuring: Mutex::new(()) }
    }

    /// Whose messages it remaps.
    pub fn requesters(&self) -> &RangeInclusive<u32> {
        &self.core.requesters
    }

    /// Whether it is enabled (IommuEn).
    pub fn is_enabled(&self) -> bool {
        self.core.control().enable()
    }

    /// How many messages it has blocked so far.
    pub fn blocked(&self) -> u64 {
        // Relaxed: a count.
        self.core.blocked.load(Ordering::Relaxed)
    }

    /// Back to the state after reset: nothing is remapped. The claims stay.
    pub fn reset(&self) {
        let _configuring = self.configuring.lock();
        self.core.with_bank(|bank| {
            *bank = Bank::default();
            self.core.publish(bank);
        });
        self.forget_all();
    }

    /// A guest's load of 4 or 8 bytes at `at` in the MMIO window, naturally aligned. All others, and registers that the
    /// unit does not have, are 0.
    pub fn read(&self, at: u64, size: usize) -> u64 {
        let Some(shift) = shift(at, size) else { return 0 };
        let value = self.core.bank.lock().read(at & !7, self.core.features) >> shift;
        if size == 8 { value } else { value & 0xffff_ffff }
    }

    /// A guest's store of 4 or 8 bytes, naturally aligned. All others are ignored. When this returns, the commands that the
    /// guest has given are complete.
    pub fn write(&self, at: u64, size: usize, value: u64) {
        let Some(shift) = shift(at, size) else { return };
        let mask = if size == 8 { u64::MAX } else { 0xffff_ffff << shift };
        let _configuring = self.configuring.lock();
        let Effect { tables, commands } = self.core.with_bank(|bank| {
            let effect = bank.write(at & !7, value << shift, mask, self.core.features);
            self.core.publish(bank);
            effect
        });
        if tables {
            self.forget_all();
        }
        if commands {
            self.run_commands();
        }
    }

    /// A guest's load of any width.
    pub fn mmio_read(&self, at: u64, data: &mut [u8]) {
        let value = self.read(at, data.len()).to_le_bytes();
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(value) {
            *byte = value;
        }
    }

    /// A guest's store of any width.
    pub fn mmio_write(&self, at: u64, data: &[u8]) {
        let mut value = [0; 8];
        for (byte, data) in value.iter_mut().zip(data) {
            *byte = *data;
        }
        self.write(at, data.len(), u64::from_le_bytes(value));
    }

    /// The message of the unit's own interrupts, or `None`: what its function's MSI capability in PCI configuration space
    /// says. The MMIO window shows it too (MsiCapMmioSup), and may have changed it.
    pub fn set_own_message(&self, message: Option<&MsiMessage>) {
        let _configuring = self.configuring.lock();
        self.core.with_bank(|bank| match message {
            Some(it) => bank.msi = OwnMsi { enable: true, address: it.address & !3, data: it.data as u16 },
            None => bank.msi.enable = false,
        });
    }

    /// The message of the unit's own interrupts, if they are enabled.
    pub fn own_message(&self) -> Option<MsiMessage> {
        let OwnMsi { enable, address, data } = self.core.bank.lock().msi;
        enable.then(|| MsiMessage::new(address, data.into()))
    }

    /// Runs what is in the command buffer. The caller holds `configuring`, so the tail stays and the head reaches it before
    /// it has been all round the largest buffer.
    fn run_commands(&self) {
        for _ in 0..MOST_COMMANDS {
            let Some(at) = self.core.with_bank(|bank| bank.next_command(COMMAND)) else { return };
            let done = self.command(at);
            self.core.with_bank(|bank| match done {
                Ok(waited) => {
                    bank.command_done(COMMAND);
                    if waited {
                        bank.status.set_wait_completed(true);
                    }
                }
                Err(event) => {
                    bank.commands.halted = true;
                    bank.log(&*self.core.ram, &event);
                }
            });
        }
    }

    /// Runs the command at `at`; whether the guest wants an interrupt for it, or why the buffer stops.
    fn command(&self, at: u64) -> Result<bool, Event> {
        let ram = &*self.core.ram;
        let low: Result<u64, _> = ram.read_le(at);
        let (Ok(low), Ok(high)) = (low, ram.read_le(at + 8)) else { return Err(Event::command_error(at)) };
        match Command::decode(low, high, self.core.features.first) {
            Some(Command::CompletionWait { store, interrupt }) => {
                if let Some((address, data)) = store {
                    ram.write_le(address, data).map_err(|_| Event::command_error(address))?;
                }
                Ok(interrupt)
            }
            Some(Command::InvalidateDevice(device) | Command::InvalidateInterruptTable(device)) => {
                self.forget(Filled::group(device.into()));
                Ok(false)
            }
            Some(Command::InvalidateAll) => {
                self.forget_all();
                Ok(false)
            }
            Some(Command::Translation) => Ok(false),
            None => Err(Event::illegal_command(at)),
        }
    }

    /// Forgets what was found for a group of requesters. The caller holds `configuring`.
    fn forget(&self, group: u32) {
        if self.core.filled.take(group) {
            self.cache.invalidate(&self.core, group..=group);
        }
    }

    fn forget_all(&self) {
        (0..GROUPS as u32).for_each(|group| self.forget(group));
    }

    pub(super) fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        self.cache.prepare(&self.core, message)
    }

    pub(super) fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.cache.send(&self.core, message).unwrap_or_else(|blocked| Ok(self.block(&blocked)))
    }

    #[inline]
    pub(super) fn fire(&self, target: Target) -> Delivery {
        self.cache.fire(&self.core, target).unwrap_or_else(|blocked| self.block(&blocked))
    }

    #[cold]
    fn block(&self, Blocked(event): &Blocked) -> Delivery {
        // Relaxed: a count.
        self.core.blocked.fetch_add(1, Ordering::Relaxed);
        if let Some(event) = event {
            self.core.log(event);
        }
        Delivery::Ignored
    }

    /// The registers, with the state of both logs and of the command buffer.
    pub fn save(&self) -> AmdUnitState {
        let _configuring = self.configuring.lock();
        AmdUnitState::of(&self.core.bank.lock())
    }

    /// Takes over a saved state; nothing is sent and no command is run.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if no unit with these claims can be in that state; nothing is changed then.
    pub fn restore(&self, state: &AmdUnitState) -> Result<(), Error> {
        self.take_over(self.check(state)?);
        Ok(())
    }

    /// The registers that a saved state stands for.
    pub(super) fn check(&self, state: &AmdUnitState) -> Result<Bank, Error> {
        state.bank(self.core.features)
    }

    pub(super) fn take_over(&self, new: Bank) {
        let _configuring = self.configuring.lock();
        self.core.with_bank(|bank| {
            *bank = new;
            self.core.publish(bank);
        });
        self.forget_all();
    }
}

/// How many commands the largest buffer has.
const MOST_COMMANDS: u64 = POINTER / COMMAND + 1;

/// How far a value of `size` bytes at `at` is from the beginning of its register, in bits; `None` if the unit does not take
/// such an access.
fn shift(at: u64, size: usize) -> Option<u32> {
    let fits = matches!(size, 4 | 8) && at % size as u64 == 0 && at < WINDOW;
    fits.then_some((at % 8) as u32 * 8)
}

const _: () = assert!(offset::GA_LOG_TAIL < WINDOW, "the registers are inside the window");
