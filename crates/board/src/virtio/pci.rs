//! The PCI transport (section 4.1): everything of a virtio device but its work.

use std::sync::Arc;

use doorbell::{
    Error, VectorPath,
    guest_ram::GuestRam,
    pci::{InjectorMask, InjectorOptions, MsixCapability, MsixTable, VectorPool, msix::RegisterPlace},
};
use parking_lot::Mutex;

use super::{
    Device, QUEUE_SIZE, Rings,
    capabilities::{self, BAR, BAR_BYTES, MSIX, NEXT_OF_MSIX, NOTIFY_STRIDE, Part, WINDOW},
    queue::Queue,
};
use crate::pci::{Bar, Function, Header, Identity, Slot};

/// A queue or the configuration has no MSI-X vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

const VENDOR: u16 = 0x1af4;
/// Device ids of modern devices begin here (section 4.1.2).
const FIRST_DEVICE: u16 = 0x1040;

/// `VIRTIO_F_VERSION_1` in the upper half of the features (section 6).
const VERSION_1: u64 = 1 << 32;

/// Device status, section 2.1.
#[bitfield_struct::bitfield(u8)]
#[derive(PartialEq, Eq)]
struct Status {
    acknowledge: bool,
    driver: bool,
    driver_ok: bool,
    features_ok: bool,
    #[bits(2)]
    __: u8,
    needs_reset: bool,
    failed: bool,
}

/// Offsets of the common configuration structure, section 4.1.4.3.
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY: u64 = 0x1e;
    pub const QUEUE_ADDRESSES: std::ops::Range<u64> = 0x20..0x38;
}

/// A virtio device in a PCI slot. See the [module](super).
pub struct VirtioPci<D> {
    /// Lock order: after `state`.
    header: Mutex<Header>,
    /// Lock order: before the header and everything of doorbell.
    state: Mutex<State<D>>,
    ram: Arc<dyn GuestRam>,
}

struct State<D> {
    device: D,
    msix: MsixTable<InjectorMask>,
    capability: MsixCapability,
    status: Status,
    feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
    queues: Vec<Queue>,
    /// Interrupt status, section 4.1.4.5; only read by drivers without MSI-X.
    isr: u8,
    /// The window's BAR, offset and length.
    window: [u32; 3],
}

impl<D: Device> VirtioPci<D> {
    /// The device in this slot, whose vectors take their GSIs from `vectors`: one for its configuration and one for each
    /// queue.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it has no queue or more than 8.
    pub fn new(
        device: D,
        slot: Slot,
        ram: Arc<dyn GuestRam>,
        vectors: &Arc<VectorPool<dyn VectorPath>>,
    ) -> Result<Self, Error> {
        let queues = device.queues();
        if !(1..=8).contains(&queues) {
            return Err(Error::Invalid { what: "number of queues", value: queues.into(), allowed: "1 to 8" });
        }
        let mask = InjectorMask::new(vectors, queues + 1, InjectorOptions::default())?;
        let place = |part: Part| RegisterPlace { bar: BAR, offset: part.offset() };
        let capability =
            MsixCapability::new(queues + 1, NEXT_OF_MSIX, place(Part::MsixTable), place(Part::MsixPending))?;
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + device.kind(),
            class: device.class(),
            revision: 1,
            subsystem_vendor: VENDOR,
            subsystem: device.kind(),
        };
        let header = Header::new(identity).with_bar(BAR, Bar::memory64(BAR_BYTES)?)?.with_capabilities(MSIX as u8);
        let state = State {
            device,
            msix: MsixTable::new(mask)?.from_device(slot.requester()),
            capability,
            status: Status::new(),
            feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: vec![Queue::new(); queues.into()],
            isr: 0,
            window: [0; 3],
        };
        Ok(Self { header: Mutex::new(header), state: Mutex::new(state), ram })
    }

    /// Lets the device act on something that happened outside: what arrived, say. It may use its queues if the driver
    /// is up; else `rings` are empty.
    pub fn with<R>(&self, act: impl FnOnce(&mut D, &mut Rings<'_>) -> R) -> R {
        self.state.lock().with(&*self.ram, act)
    }
}

impl<D: Device> State<D> {
    fn with<R>(&mut self, ram: &dyn GuestRam, act: impl FnOnce(&mut D, &mut Rings<'_>) -> R) -> R {
        let up = self.status.driver_ok() && !self.status.needs_reset();
        let queues = if up { &mut self.queues[..] } else { &mut [] };
        let mut rings = Rings { queues, ram, interrupts: 0, broken: false };
        let result = act(&mut self.device, &mut rings);
        let Rings { interrupts, broken, .. } = rings;
        for at in (0..self.queues.len()).filter(|at| interrupts >> at & 1 != 0) {
            self.isr |= 1;
            self.interrupt(self.queues[at].vector);
        }
        if broken {
            self.status.set_needs_reset(true);
            self.isr |= 2;
            self.interrupt(self.config_vector);
        }
        result
    }

    fn interrupt(&self, vector: u16) {
        if let Some(vector) = self.msix.strategy().vector(vector) {
            vector.fire();
        }
    }

    fn offered(&self) -> u64 {
        VERSION_1 | u64::from(self.device.features() & 0xff_ffff)
    }

    /// The driver writes 0 to the status (section 4.1.4.3.1).
    fn reset(&mut self) {
        let Self {
            device,
            msix: _,
            capability: _,
            status,
            feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            queue_select,
            queues,
            isr,
            window: _,
        } = self;
        device.reset();
        *status = Status::new();
        (*feature_select, *driver_feature_select, *driver_features) = (0, 0, 0);
        (*config_vector, *queue_select, *isr) = (NO_VECTOR, 0, 0);
        queues.fill(Queue::new());
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let mut status = Status::from_bits(value).with_needs_reset(self.status.needs_reset());
        // The features stand once they were accepted; not without the one that says "modern", nor with one not offered.
        let acceptable = self.driver_features & VERSION_1 != 0 && self.driver_features & !self.offered() == 0;
        status.set_features_ok(status.features_ok() && (acceptable || self.status.features_ok()));
        status.set_driver_ok(status.driver_ok() && status.features_ok());
        self.status = status;
    }

    /// A vector that does not exist reads back as none (section 4.1.5.1.2.1).
    fn checked_vector(&self, value: u64) -> u16 {
        let vector = value as u16;
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn common_read(&self, offset: u64) -> u64 {
        let half = |bits: u64, select: u32| match select {
            0 => bits & 0xffff_ffff,
            1 => bits >> 32,
            _ => 0,
        };
        match offset {
            common::DEVICE_FEATURE_SELECT => self.feature_select.into(),
            common::DEVICE_FEATURE => half(self.offered(), self.feature_select),
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select.into(),
            common::DRIVER_FEATURE => half(self.driver_features, self.driver_feature_select),
            common::CONFIG_VECTOR => self.config_vector.into(),
            common::QUEUES => self.queues.len() as u64,
            common::STATUS => self.status.into_bits().into(),
            common::GENERATION => 0,
            common::QUEUE_SELECT => self.queue_select.into(),
            common::QUEUE_NOTIFY => self.queue_select.into(),
            _ => self.selected().map_or(0, |queue| queue_read(queue, offset)),
        }
    }

    fn common_write(&mut self, offset: u64, bytes: u8, value: u64) {
        match offset {
            common::DEVICE_FEATURE_SELECT => self.feature_select = value as u32,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = value as u32,
            common::DRIVER_FEATURE if !self.status.features_ok() => match self.driver_feature_select {
                0 => self.driver_features = self.driver_features & !0xffff_ffff | value & 0xffff_ffff,
                1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
                _ => {}
            },
            common::CONFIG_VECTOR => self.config_vector = self.checked_vector(value),
            common::STATUS => self.set_status(value as u8),
            common::QUEUE_SELECT => self.queue_select = value as u16,
            _ => {
                let vector = self.checked_vector(value);
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue_write(queue, offset, bytes, value, vector);
                }
            }
        }
    }

    fn read(&mut self, part: Part, offset: u64, bytes: u8) -> u64 {
        let mut data = [0; 8];
        let window = &mut data[..usize::from(bytes.clamp(1, 8))];
        match part {
            Part::Common => return self.common_read(offset),
            Part::Isr => return std::mem::take(&mut self.isr).into(),
            Part::Notify => {}
            Part::Device => {
                let config = self.device.config();
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
                let there = window.len().min(config.len() - from);
                window[..there].copy_from_slice(&config[from..from + there]);
            }
            Part::MsixTable => self.msix.read(offset, window),
            Part::MsixPending => self.msix.read_pba(offset, window),
        }
        u64::from_le_bytes(data)
    }

    fn write(&mut self, ram: &dyn GuestRam, part: Part, offset: u64, bytes: u8, value: u64) {
        let data = value.to_le_bytes();
        let data = &data[..usize::from(bytes.clamp(1, 8))];
        match part {
            Part::Common => self.common_write(offset, bytes, value),
            Part::Notify => {
                let queue = offset / u64::from(NOTIFY_STRIDE);
                if queue < self.queues.len() as u64 {
                    self.with(ram, |device, rings| device.work(queue as u16, rings));
                }
            }
            Part::MsixTable => self.msix.write(offset, data),
            Part::Isr | Part::Device | Part::MsixPending => {}
        }
    }

    /// An access through the window in configuration space (section 4.1.4.9): its part, offset and length.
    fn through_window(&self) -> Option<(Part, u64, u8)> {
        let [bar, offset, length] = self.window;
        let (bytes, offset) = (u8::try_from(length).ok()?, u64::from(offset));
        let fits = bar == u32::from(BAR) && matches!(bytes, 1 | 2 | 4) && offset % u64::from(bytes) == 0;
        let (part, offset) = Part::at(offset)?;
        fits.then_some((part, offset, bytes))
    }
}

fn queue_read(queue: &Queue, offset: u64) -> u64 {
    match offset {
        common::QUEUE_SIZE => queue.size.into(),
        common::QUEUE_VECTOR => queue.vector.into(),
        common::QUEUE_ENABLE => queue.enabled.into(),
        _ if common::QUEUE_ADDRESSES.contains(&offset) => {
            let address = match (offset - common::QUEUE_ADDRESSES.start) / 8 {
                0 => queue.descriptors,
                1 => queue.available,
                _ => queue.used,
            };
            address >> (8 * (offset % 8))
        }
        _ => 0,
    }
}

fn queue_write(queue: &mut Queue, offset: u64, bytes: u8, value: u64, vector: u16) {
    match offset {
        common::QUEUE_VECTOR => queue.vector = vector,
        // Where it is may only change before it is used (section 4.1.4.3.2).
        _ if queue.enabled => {}
        common::QUEUE_SIZE => {
            let size = value as u16;
            if size.is_power_of_two() && size <= QUEUE_SIZE {
                queue.size = size;
            }
        }
        common::QUEUE_ENABLE => queue.enabled = value as u16 == 1,
        _ if common::QUEUE_ADDRESSES.contains(&offset) => {
            let address = match (offset - common::QUEUE_ADDRESSES.start) / 8 {
                0 => &mut queue.descriptors,
                1 => &mut queue.available,
                _ => &mut queue.used,
            };
            *address = match (offset % 8, bytes) {
                (0, 8) => value,
                (0, 4) => *address & !0xffff_ffff | value & 0xffff_ffff,
                (4, 4) => *address & 0xffff_ffff | value << 32,
                _ => *address,
            };
        }
        _ => {}
    }
}

impl<D: Device> Function for VirtioPci<D> {
    fn header(&self) -> &Mutex<Header> {
        &self.header
    }

    fn read(&self, bar: u8, offset: u64, bytes: u8) -> u64 {
        match Part::at(offset).filter(|_| bar == BAR) {
            Some((part, offset)) => self.state.lock().read(part, offset, bytes),
            None => 0,
        }
    }

    fn write(&self, bar: u8, offset: u64, bytes: u8, value: u64) {
        if let Some((part, offset)) = Part::at(offset).filter(|_| bar == BAR) {
            self.state.lock().write(&*self.ram, part, offset, bytes, value);
        }
    }

    fn config_read(&self, offset: u16) -> u32 {
        let mut state = self.state.lock();
        match offset {
            MSIX..0x4c => {
                let mut word = [0; 4];
                state.capability.read(&state.msix, usize::from(offset - MSIX), &mut word);
                u32::from_le_bytes(word)
            }
            _ if offset == WINDOW + 4 => state.window[0],
            _ if offset == WINDOW + 8 => state.window[1],
            _ if offset == WINDOW + 12 => state.window[2],
            _ if offset == WINDOW + 16 => {
                let place = state.through_window();
                place.map_or(0, |(part, offset, bytes)| state.read(part, offset, bytes) as u32)
            }
            _ => capabilities::word(offset).unwrap_or(0),
        }
    }

    fn config_write(&self, offset: u16, bytes: u8, value: u32) {
        let mut state = self.state.lock();
        let data = &value.to_le_bytes()[..usize::from(bytes.clamp(1, 4))];
        match offset {
            MSIX..0x4c => {
                let State { capability, msix, .. } = &mut *state;
                capability.write(msix, usize::from(offset - MSIX), data);
            }
            _ if offset == WINDOW + 4 => state.window[0] = value & 0xff,
            _ if offset == WINDOW + 8 => state.window[1] = value,
            _ if offset == WINDOW + 12 => state.window[2] = value,
            _ if offset == WINDOW + 16 => {
                if let Some((part, offset, bytes)) = state.through_window() {
                    state.write(&*self.ram, part, offset, bytes, value.into());
                }
            }
            _ => {}
        }
    }
}
