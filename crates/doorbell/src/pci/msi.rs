//! MSI: the capability (PCI Express Base, section 7.7.1).

#[cfg(all(test, target_os = "linux", not(loom)))]
mod properties;
pub mod registers;
#[cfg(all(test, not(loom)))]
mod tests;

use registers::{ADDRESS_LOW, CAPABILITY_ID, CONTROL, MAX_CAPABILITY_BYTES, MAX_VECTORS, MessageControl, Offsets};

use super::{
    MaskStrategy,
    msix::{registers::AddressLow, state::refuse},
};
use crate::{DeviceId, Error, MsiMessage};

/// Which of MSI's forms a function has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiOptions {
    /// The offset of the next capability, or 0.
    pub next: u8,
    /// The message address has 64 bits.
    pub address_64: bool,
    /// There is a mask and a pending bit for each vector.
    pub per_vector_masking: bool,
}

/// What the guest has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    control: MessageControl,
    address: u64,
    data: u16,
    mask: u32,
}

impl Registers {
    /// The vectors that send messages, a bit each.
    fn open(&self) -> u32 {
        if self.control.enable() { self.allotted() & !self.mask } else { 0 }
    }

    /// The vectors that the guest has allotted to the function.
    fn allotted(&self) -> u32 {
        u32::MAX >> (32 - (1 << self.control.enabled()))
    }

    /// Vector n sends the data with n in its lowest bits, as many as the allotted vectors need.
    fn data(&self, vector: u16) -> u16 {
        let low = (1u16 << self.control.enabled()) - 1;
        self.data & !low | vector & low
    }
}

/// The MSI capability of one function, 1 to 32 vectors, over a [`MaskStrategy`].
///
/// A vector is masked while its mask bit is set, MSI is off, or the guest has allotted fewer vectors than that; its
/// events are pending then. A guest's access takes `&mut self`, as with [`MsixTable`](super::MsixTable).
pub struct MsiCapability<S> {
    strategy: S,
    next: u8,
    registers: Registers,
    device: Option<DeviceId>,
}

impl<S: MaskStrategy> MsiCapability<S> {
    /// A capability in its reset state: MSI off, no vector masked by itself.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the strategy's number of vectors is not a power of two up to 32.
    pub fn new(strategy: S, options: MsiOptions) -> Result<Self, Error> {
        let vectors = strategy.vectors();
        if !vectors.is_power_of_two() || vectors > MAX_VECTORS {
            let allowed = "1, 2, 4, 8, 16 or 32";
            return Err(Error::Invalid { what: "number of vectors", value: vectors.into(), allowed });
        }
        let MsiOptions { next, address_64, per_vector_masking } = options;
        let control = MessageControl::new()
            .with_capable(vectors.trailing_zeros() as u8)
            .with_address_64(address_64)
            .with_per_vector_masking(per_vector_masking);
        Ok(Self { strategy, next, registers: Registers { control, address: 0, data: 0, mask: 0 }, device: None })
    }

    /// The same capability, whose messages name the device that sends them.
    pub fn from_device(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }

    /// The strategy, for its event handles.
    pub fn strategy(&self) -> &S {
        &self.strategy
    }

    /// Message Control.
    pub fn control(&self) -> MessageControl {
        self.registers.control
    }

    /// How many vectors the guest has allotted: a device uses only those, and shares them if it wanted more.
    pub fn allotted(&self) -> u16 {
        1 << self.registers.control.enabled()
    }

    /// Bytes of the capability in configuration space.
    pub fn bytes(&self) -> usize {
        Offsets::of(self.registers.control).bytes
    }

    /// Pending bits of the allotted vectors.
    pub fn pending(&self) -> u32 {
        self.strategy.pending_word(0) as u32 & self.registers.allotted()
    }

    /// A guest reads `data.len()` bytes at `offset` from the start of the capability; bytes beyond it are 0.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let image = self.image();
        let bytes = self.bytes();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(at).filter(|&at| at < bytes).map_or(0, |at| image[at]);
        }
    }

    /// A guest writes `data` at `offset` from the start of the capability: one change, whatever registers it covers.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let mut image = self.image();
        for (at, byte) in data.iter().enumerate() {
            if let Some(old) = offset.checked_add(at).and_then(|at| image.get_mut(at)) {
                *old = *byte;
            }
        }
        let Registers { control, .. } = self.registers;
        let Offsets { address_high, data, mask, bytes: _ } = Offsets::of(control);
        let written = MessageControl::from_bits(u16_at(&image, CONTROL));
        let low = AddressLow::new().with_dword(AddressLow::from_bits(u32_at(&image, ADDRESS_LOW)).dword());
        self.apply(Registers {
            control: control
                .with_enable(written.enable())
                // More than the function has is undefined: it gets what it has.
                .with_enabled(written.enabled().min(control.capable())),
            address: u64::from(address_high.map_or(0, |at| u32_at(&image, at))) << 32 | u64::from(low.into_bits()),
            data: u16_at(&image, data),
            mask: mask.map_or(0, |at| u32_at(&image, at) & self.implemented()),
        });
    }

    fn implemented(&self) -> u32 {
        u32::MAX >> (32 - u32::from(self.strategy.vectors()))
    }

    fn image(&self) -> [u8; MAX_CAPABILITY_BYTES] {
        let Registers { control, address, data, mask } = self.registers;
        let offsets = Offsets::of(control);
        let mut image = [0; MAX_CAPABILITY_BYTES];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[CAPABILITY_ID, self.next]);
        put(CONTROL, &control.into_bits().to_le_bytes());
        put(ADDRESS_LOW, &(address as u32).to_le_bytes());
        if let Some(at) = offsets.address_high {
            put(at, &((address >> 32) as u32).to_le_bytes());
        }
        put(offsets.data, &data.to_le_bytes());
        if let Some(at) = offsets.mask {
            put(at, &mask.to_le_bytes());
            put(at + 4, &self.pending().to_le_bytes());
        }
        image
    }

    fn message(&self, vector: u16) -> MsiMessage {
        let Registers { address, .. } = self.registers;
        MsiMessage { address, data: self.registers.data(vector).into(), device_id: self.device }
    }

    /// Goes from the present registers to new ones in one step.
    fn apply(&mut self, new: Registers) {
        let old = std::mem::replace(&mut self.registers, new);
        let (was_open, is_open) = (old.open(), new.open());
        if old.control.enable() != new.control.enable() {
            self.strategy.set_enabled(new.control.enable());
        }
        if new.control.enable() {
            let closed: Vec<_> = vectors(was_open & !is_open).collect();
            self.strategy.mask_many(&closed);
        }
        let same = old.address == new.address && old.data == new.data && old.allotted() == new.allotted();
        let opened: Vec<_> = vectors(if same { is_open & !was_open } else { is_open })
            .map(|vector| (vector, self.message(vector)))
            .collect();
        self.strategy.unmask_many(&opened);
    }

    /// The condition behind a pending vector is gone, and so is its pending bit.
    pub fn withdraw(&mut self, vector: u16) {
        self.strategy.set_pending(vector, false);
    }

    /// The function is reset: MSI off, nothing masked by itself, nothing pending.
    pub fn reset(&mut self) {
        let Self { strategy, next: _, registers, device: _ } = self;
        strategy.reset();
        let control = registers.control.with_enable(false).with_enabled(0);
        *registers = Registers { control, address: 0, data: 0, mask: 0 };
    }

    /// The state as the guest sees it; hold the device still.
    pub fn save(&self) -> MsiState {
        let Self { strategy, next: _, registers, device: _ } = self;
        let Registers { control, address, data, mask } = *registers;
        MsiState {
            control: control.into_bits(),
            address,
            data,
            mask,
            pending: strategy.pending_word(0) as u32,
            strategy: strategy.save(),
        }
    }

    /// Puts a saved state in place of the present one. Nothing is sent but what was pending and unmasked.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the state is none that [`save`](Self::save) can give for a function of this form; nothing
    /// has changed then.
    pub fn restore(&mut self, state: &MsiState) -> Result<(), Error> {
        let MsiState { control, address, data, mask, pending, ref strategy } = *state;
        let written = MessageControl::from_bits(control);
        let form = self.registers.control.with_enable(written.enable()).with_enabled(written.enabled());
        let offsets = Offsets::of(form);
        if written != form || written.enabled() > written.capable() {
            return refuse(format!("MSI Message Control {control:#06x} does not belong to this function"));
        }
        let low = AddressLow::from_bits(address as u32);
        if AddressLow::new().with_dword(low.dword()) != low {
            return refuse(format!("MSI address {address:#x} is not a multiple of 4"));
        }
        if offsets.address_high.is_none() && address >> 32 != 0 {
            return refuse(format!("MSI address {address:#x} does not fit into 32 bits"));
        }
        let maskable = if offsets.mask.is_some() { self.implemented() } else { 0 };
        if mask & !maskable != 0 || pending & !self.implemented() != 0 {
            return refuse(format!("MSI mask {mask:#x} or pending bits {pending:#x} beyond the function's vectors"));
        }
        self.strategy.validate(strategy)?;
        self.reset();
        self.strategy.restore(strategy);
        for vector in vectors(pending) {
            self.strategy.set_pending(vector, true);
        }
        self.apply(Registers { control: written, address, data, mask });
        Ok(())
    }
}

/// A saved [`MsiCapability`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiState {
    /// Message Control, with the function's form.
    pub control: u16,
    /// The message address; bits 1:0 are 0.
    pub address: u64,
    /// The message data.
    pub data: u16,
    /// The mask bits.
    pub mask: u32,
    /// The pending bits, those of vectors that are not allotted too.
    pub pending: u32,
    /// What the [`MaskStrategy`] keeps beyond that.
    pub strategy: Vec<u64>,
}

/// The numbers of the bits that are set.
fn vectors(bits: u32) -> impl Iterator<Item = u16> {
    (0..MAX_VECTORS).filter(move |vector| bits >> vector & 1 != 0)
}

fn u16_at(image: &[u8; MAX_CAPABILITY_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn u32_at(image: &[u8; MAX_CAPABILITY_BYTES], at: usize) -> u32 {
    u32::from(u16_at(image, at)) | u32::from(u16_at(image, at + 2)) << 16
}
