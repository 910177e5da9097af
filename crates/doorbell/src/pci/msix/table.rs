//! The table and the pending bit array, as the guest sees them in a BAR.

use super::{
    registers::{
        ADDRESS_HIGH, ADDRESS_LOW, AddressLow, DATA, ENTRY_BYTES, MAX_VECTORS, MessageControl, VECTOR_CONTROL,
        VectorControl,
    },
    state::{MsixEntryState, MsixState},
};
use crate::{DeviceId, Error, MsiMessage, pci::MaskStrategy};

/// What a read of no register gives, byte by byte.
const NO_REGISTER: u8 = 0xff;

/// One entry, section 6.8.2.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    low: AddressLow,
    high: u32,
    data: u32,
    control: VectorControl,
}

impl Entry {
    const RESET: Self = Self { low: AddressLow::new(), high: 0, data: 0, control: VectorControl::RESET };

    fn address(&self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low.into_bits())
    }

    fn read(&self, field: u64) -> u32 {
        match field {
            ADDRESS_LOW => self.low.into_bits(),
            ADDRESS_HIGH => self.high,
            DATA => self.data,
            _ => self.control.into_bits(),
        }
    }

    /// Reserved bits keep their 0, whatever is written to them.
    fn write(&mut self, field: u64, value: u32) {
        match field {
            ADDRESS_LOW => self.low = AddressLow::new().with_dword(AddressLow::from_bits(value).dword()),
            ADDRESS_HIGH => self.high = value,
            DATA => self.data = value,
            VECTOR_CONTROL => self.control = VectorControl::new().with_masked(VectorControl::from_bits(value).masked()),
            _ => {}
        }
    }
}

/// The MSI-X table and PBA of one function, 1 to 2,048 vectors, over a [`MaskStrategy`].
///
/// The guest's accesses take `&mut self`: they belong under the lock that the device has anyway. Events do not come
/// through here but through the strategy's own handles, from any thread.
///
/// Aligned accesses of 4 or 8 bytes only (M13): others read as all ones and write nothing.
pub struct MsixTable<S> {
    strategy: S,
    entries: Box<[Entry]>,
    control: MessageControl,
    device: Option<DeviceId>,
}

impl<S: MaskStrategy> MsixTable<S> {
    /// A table in its reset state: every vector masked, MSI-X off.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the strategy has no vector or more than 2,048.
    pub fn new(strategy: S) -> Result<Self, Error> {
        let vectors = strategy.vectors();
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(Error::Invalid { what: "number of vectors", value: vectors.into(), allowed: "1 to 2,048" });
        }
        let control = MessageControl::new().with_table_size(vectors - 1);
        Ok(Self { strategy, entries: vec![Entry::RESET; vectors.into()].into(), control, device: None })
    }

    /// The same table, whose messages name the device that sends them (needed where the controller looks at it).
    pub fn from_device(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }

    /// The strategy, for its event handles.
    pub fn strategy(&self) -> &S {
        &self.strategy
    }

    /// The strategy, for what it has beyond the [`MaskStrategy`] calls. Those are the table's to make.
    pub fn strategy_mut(&mut self) -> &mut S {
        &mut self.strategy
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.control.table_size() + 1
    }

    /// Bytes of the table in its BAR.
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.vectors()) * ENTRY_BYTES
    }

    /// Bytes of the PBA in its BAR: whole qwords.
    pub fn pba_bytes(&self) -> u64 {
        u64::from(self.vectors().div_ceil(64)) * 8
    }

    /// Message Control.
    pub fn control(&self) -> MessageControl {
        self.control
    }

    /// Whether an event of the vector waits; false beyond the table.
    pub fn is_pending(&self, vector: u16) -> bool {
        vector < self.vectors() && self.strategy.is_pending(vector)
    }

    /// The message that the vector's entry holds.
    pub fn message(&self, vector: u16) -> Option<MsiMessage> {
        self.entries.get(usize::from(vector)).map(|entry| self.message_of(entry))
    }

    fn message_of(&self, entry: &Entry) -> MsiMessage {
        MsiMessage { address: entry.address(), data: entry.data, device_id: self.device }
    }

    /// The guest writes Message Control. Only Enable and Function Mask change, both at once: nothing is sent in
    /// between (M14).
    pub fn set_control(&mut self, control: MessageControl) {
        let old = self.control;
        self.control = old.with_enable(control.enable()).with_function_mask(control.function_mask());
        if old.enable() != control.enable() {
            // Disabling masks every vector; enabling none unmasks.
            self.strategy.set_enabled(control.enable());
        }
        let was_open = old.is_open();
        match (was_open, self.control.is_open()) {
            (false, true) => {
                let batch: Vec<_> = self.unmasked().map(|(at, entry)| (at, self.message_of(entry))).collect();
                self.strategy.unmask_many(&batch);
            }
            (true, false) if control.enable() => {
                let batch: Vec<_> = self.unmasked().map(|(at, _)| at).collect();
                self.strategy.mask_many(&batch);
            }
            _ => {}
        }
    }

    /// The vectors whose own mask bit is clear.
    fn unmasked(&self) -> impl Iterator<Item = (u16, &Entry)> {
        (0u16..).zip(&self.entries).filter(|(_, entry)| !entry.control.masked())
    }

    /// A guest reads the table.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(vector) = self.place(offset, data.len(), self.table_bytes()) else { return data.fill(NO_REGISTER) };
        let entry = &self.entries[vector];
        for (dword, field) in data.chunks_exact_mut(4).zip((offset % ENTRY_BYTES..).step_by(4)) {
            dword.copy_from_slice(&entry.read(field).to_le_bytes());
        }
    }

    /// A guest writes the table. A store of 8 bytes is one change.
    #[inline]
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(dword) = <[u8; 4]>::try_from(data) {
            self.store(offset, &[u32::from_le_bytes(dword)]);
        } else if let Ok(qword) = <[u8; 8]>::try_from(data) {
            let qword = u64::from_le_bytes(qword);
            self.store(offset, &[qword as u32, (qword >> 32) as u32]);
        }
    }

    /// An access of one or two dwords.
    #[inline]
    fn store(&mut self, offset: u64, dwords: &[u32]) {
        let Some(vector) = self.place(offset, dwords.len() * 4, self.table_bytes()) else { return };
        let entry = &mut self.entries[vector];
        let old = *entry;
        for (&dword, field) in dwords.iter().zip((offset % ENTRY_BYTES..).step_by(4)) {
            entry.write(field, dword);
        }
        let new = *entry;
        if !self.control.is_open() || new == old {
            return;
        }
        let vector = vector as u16;
        if !new.control.masked() {
            // Unmasked now, or (M12) changed while unmasked, which the specification leaves undefined: it takes
            // effect at once, each store by itself.
            self.strategy.unmask(vector, &self.message_of(&new));
        } else if !old.control.masked() {
            self.strategy.mask(vector);
        }
    }

    /// A guest reads the PBA: one bit per vector, 64 to a qword.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        if self.place(offset, data.len(), self.pba_bytes()).is_none() {
            return data.fill(NO_REGISTER);
        }
        let word = self.strategy.pending_word((offset / 8) as u16).to_le_bytes();
        let from = (offset % 8) as usize;
        data.copy_from_slice(&word[from..from + data.len()]);
    }

    /// A guest writes the PBA, which is read-only (M8).
    pub fn write_pba(&mut self, _offset: u64, _data: &[u8]) {}

    /// The entry of an aligned access of 4 or 8 bytes that lies within `bytes` (for the PBA, only whether there is one).
    fn place(&self, offset: u64, length: usize, bytes: u64) -> Option<usize> {
        let aligned = matches!(length, 4 | 8) && offset % length as u64 == 0;
        (aligned && offset < bytes).then_some((offset / ENTRY_BYTES) as usize)
    }

    /// The condition behind a pending vector is gone, and so is its pending bit (M16). Only for devices whose vectors
    /// stand for a condition; a vector that is not masked has nothing to withdraw.
    pub fn withdraw(&mut self, vector: u16) {
        self.strategy.set_pending(vector, false);
    }

    /// The function is reset (M1): every vector masked, Enable and Function Mask 0, nothing pending.
    pub fn reset(&mut self) {
        let Self { strategy, entries, control, device: _ } = self;
        strategy.reset();
        entries.fill(Entry::RESET);
        *control = MessageControl::new().with_table_size(control.table_size());
    }

    /// The state as the guest sees it. Events that come meanwhile are in it or not; hold the device still.
    pub fn save(&self) -> MsixState {
        let Self { strategy, entries, control, device: _ } = self;
        MsixState {
            control: control.into_bits(),
            entries: entries
                .iter()
                .map(|&entry| {
                    let Entry { low: _, high: _, data, control } = entry;
                    MsixEntryState { address: entry.address(), data, masked: control.masked() }
                })
                .collect(),
            pending: (0..self.vectors().div_ceil(64)).map(|word| strategy.pending_word(word)).collect(),
            strategy: strategy.save(),
        }
    }

    /// Puts a saved state in place of the present one. A vector that is pending although unmasked (it had found no
    /// GSI) is sent once; nothing else is sent.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the state is none that [`save`](Self::save) can give for a table of this size; nothing
    /// has changed then.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), Error> {
        let control = state.validate(self.vectors())?;
        let MsixState { control: _, entries, pending, strategy } = state;
        self.strategy.validate(strategy)?;
        self.reset();
        self.strategy.restore(strategy);
        for (entry, saved) in self.entries.iter_mut().zip(entries) {
            let MsixEntryState { address, data, masked } = *saved;
            entry.write(ADDRESS_LOW, address as u32);
            entry.write(ADDRESS_HIGH, (address >> 32) as u32);
            entry.data = data;
            entry.control.set_masked(masked);
        }
        for vector in 0..self.vectors() {
            if pending[usize::from(vector / 64)] >> (vector % 64) & 1 != 0 {
                self.strategy.set_pending(vector, true);
            }
        }
        self.set_control(control);
        Ok(())
    }
}
