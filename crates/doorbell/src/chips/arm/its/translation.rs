//! From an event to its LPI, without a lock.
//!
//! ```text
//! DeviceID -> Root -> [node -> [node ->]] block -> entry: a latch with DeviceID, EventID and LPI
//! ```
//!
//! A device has as many levels of nodes as its EventIDs need, and blocks of entries only where events are mapped. Nodes and
//! blocks are numbered and stay in memory for ever; those of a device that is unmapped are given to others. So whoever is on
//! the way down when this happens may end in a block of another device. He notices by the key in the entry, which is looked
//! at inside the entry's latch: he finds either what belongs to his event, or nothing.
//!
//! A command that takes a mapping away empties the entry as a configurer of the latch. When it is done, nobody is inside any
//! more who has found the old one (H20). There is no second copy of an entry that could be filled too late (H21, H22).

use bitfield_struct::bitfield;

use super::arena::Arena;
#[cfg(test)]
use super::cripple::Cripple;
use crate::{
    chips::arm::lpi::LpiSent,
    inflight::{Fired, Latch},
    sync::{AtomicU32, Ordering},
};

/// Bits of an EventID that choose an entry in a block.
pub(super) const BLOCK_BITS: u32 = if cfg!(loom) { 1 } else { 4 };
/// Entries of a block.
pub(super) const BLOCK: usize = 1 << BLOCK_BITS;
/// Bits of an EventID that choose a child of a node.
const NODE_BITS: u32 = if cfg!(loom) { 1 } else { 6 };
const NODE: usize = 1 << NODE_BITS;
/// Bits of a DeviceID and of an EventID.
pub(super) const ID_BITS: u32 = 16;
/// How many DeviceIDs there are.
const DEVICES: usize = if cfg!(loom) { 4 } else { 1 << ID_BITS };
/// How many of them appear at once; so do as many nodes and blocks.
const DEVICE_CHUNK: usize = if cfg!(loom) { 4 } else { 256 };
const CHUNK: usize = if cfg!(loom) { 1 } else { 64 };

/// What an entry's latch holds.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct Entry {
    /// The LPI; 0: nothing is mapped here.
    #[bits(24)]
    pub lpi: u32,
    pub event: u16,
    pub device: u16,
    /// The collection is not mapped.
    pub adrift: bool,
    #[bits(7)]
    __: u8,
}

impl Entry {
    /// Whether an event of this device is delivered by this entry.
    #[inline]
    fn serves(self, device: u16, event: u16) -> bool {
        self.lpi() != 0 && self.device() == device && self.event() == event && !self.adrift()
    }
}

/// Where the tree of a device begins.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct Root {
    /// Number of the first node, or of the only block, plus 1; 0: nothing is mapped.
    #[bits(30)]
    pub child: u32,
    /// Levels of nodes.
    #[bits(2)]
    pub levels: u32,
}

impl Root {
    /// A tree for EventIDs of so many bits.
    pub fn for_bits(event_bits: u32) -> Self {
        Self::new().with_levels(event_bits.saturating_sub(BLOCK_BITS).div_ceil(NODE_BITS))
    }

    /// Whether the tree has a place for this event.
    #[inline]
    fn reaches(self, event: u16) -> bool {
        u32::from(event) >> (BLOCK_BITS + NODE_BITS * self.levels()) == 0
    }
}

/// The child of a node, at so many levels above the blocks, on the way to an event.
#[inline]
fn child_of(level: u32, event: u16) -> usize {
    usize::from(event >> (BLOCK_BITS + NODE_BITS * level)) & (NODE - 1)
}

/// Numbers of children, plus 1; 0: there is none.
pub(super) struct Node([AtomicU32; NODE]);

impl Default for Node {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

/// The entries of events whose EventIDs differ in the lowest bits only.
pub(super) struct Block([Latch; BLOCK]);

impl Default for Block {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Latch::new(0)))
    }
}

/// Why an event was not delivered, as the architecture demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The ITS is disabled.
    Disabled,
    /// The device or the event is not mapped.
    Unmapped,
    /// The collection is not mapped.
    Adrift,
    /// The redistributor has LPIs switched off.
    LpisOff,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is pending.
    Pending,
    /// A command that concerns it is under way, and decides.
    HandedOver,
    Dropped(Dropped),
}

/// The lock-free half of an ITS. What changes it holds the lock of the ITS.
pub(super) struct Translation {
    /// GITS_CTLR.Enabled.
    enabled: AtomicU32,
    /// A [`Root`] for each DeviceID.
    roots: Arena<AtomicU32, DEVICE_CHUNK>,
    nodes: Arena<Node, CHUNK>,
    blocks: Arena<Block, CHUNK>,
    /// What is left out of the protocol, to see that the models notice.
    #[cfg(test)]
    cripple: Cripple,
}

/// Whether a part of the protocol is left out; never, outside of tests.
macro_rules! crippled {
    ($translation:expr, $part:ident) => {{
        #[cfg(test)]
        let crippled = $translation.lacks($crate::chips::arm::its::cripple::Cripple::$part);
        #[cfg(not(test))]
        let crippled = false;
        crippled
    }};
}
pub(super) use crippled;

impl Translation {
    /// With room for so many blocks. Each is reached by two nodes at most.
    pub fn new(blocks: usize) -> Self {
        Self {
            enabled: AtomicU32::new(0),
            roots: Arena::new(DEVICES),
            nodes: Arena::new(2 * blocks),
            blocks: Arena::new(blocks),
            #[cfg(test)]
            cripple: Cripple::Nothing,
        }
    }

    /// One whose protocol lacks a part.
    #[cfg(all(test, loom))]
    pub fn crippled(blocks: usize, cripple: Cripple) -> Self {
        Self { cripple, ..Self::new(blocks) }
    }

    /// Whether this part is left out.
    #[cfg(test)]
    pub fn lacks(&self, part: Cripple) -> bool {
        self.cripple == part
    }

    /// Enables or disables. After disabling, each entry must be [drained](Self::drain).
    pub fn enable(&self, enabled: bool) {
        // Release: pairs with `is_enabled`; who sees it enabled sees what was mapped before.
        self.enabled.store(enabled.into(), Ordering::Release);
    }

    #[inline]
    pub fn is_enabled(&self) -> bool {
        // Acquire: pairs with `enable`. A firer looks inside a latch: if it entered after the latch was drained, it sees
        // what was stored before.
        self.enabled.load(Ordering::Acquire) != 0
    }

    fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(number as usize)
    }

    /// The entry in this place.
    #[inline]
    pub fn latch(&self, place: u32) -> Option<&Latch> {
        let place = place as usize;
        Some(&self.blocks.get(place / BLOCK)?.0[place % BLOCK])
    }

    pub fn root(&self, device: u16) -> Root {
        // Acquire: pairs with `set_root`.
        Root::from_bits(self.roots.get(device.into()).map_or(0, |root| root.load(Ordering::Acquire)))
    }

    /// Where the entry of an event is, or would be.
    #[inline]
    pub fn place(&self, device: u16, event: u16) -> Option<u32> {
        let root = self.root(device);
        if !root.reaches(event) {
            return None;
        }
        let mut number = root.child().checked_sub(1)?;
        for level in (0..root.levels()).rev() {
            // Acquire: pairs with `set_child`.
            number = self.node(number)?.0[child_of(level, event)].load(Ordering::Acquire).checked_sub(1)?;
        }
        Some(number << BLOCK_BITS | u32::from(event) & (BLOCK as u32 - 1))
    }

    /// An event: `pend` makes an LPI pending. Takes no lock and allocates nothing.
    #[inline]
    pub fn fire(&self, device: u16, event: u16, pend: impl FnOnce(u32) -> LpiSent) -> Sent {
        let Some(latch) = self.place(device, event).and_then(|place| self.latch(place)) else {
            return self.why_not(device, event);
        };
        let admit = |word| {
            let entry = Entry::from_bits(word);
            entry.serves(device, event) || crippled!(self, AnyKey) && entry.lpi() != 0
        };
        let early = crippled!(self, EnabledLookedAtEarly) && self.is_enabled();
        let fired = latch.fire_if(admit, |word| {
            if !(early || self.is_enabled()) {
                return Sent::Dropped(Dropped::Disabled);
            }
            match pend(Entry::from_bits(word).lpi()) {
                LpiSent::Pended | LpiSent::Already => Sent::Pending,
                LpiSent::Off => Sent::Dropped(Dropped::LpisOff),
                LpiSent::Nowhere => Sent::Dropped(Dropped::Adrift),
            }
        });
        match fired {
            Some(Fired::Ran(sent)) => sent,
            // No entry is ever masked.
            Some(Fired::HandedOver | Fired::Pending { .. }) => Sent::HandedOver,
            None => self.why_not(device, event),
        }
    }

    #[cold]
    fn why_not(&self, device: u16, event: u16) -> Sent {
        let entry = self.place(device, event).and_then(|place| self.latch(place)).map(|latch| latch.peek().payload);
        let entry = Entry::from_bits(entry.unwrap_or(0));
        Sent::Dropped(if !self.is_enabled() {
            Dropped::Disabled
        } else if entry.adrift() && entry.with_adrift(false).serves(device, event) {
            Dropped::Adrift
        } else {
            Dropped::Unmapped
        })
    }

    /// What an entry says. By who holds the lock of the ITS, so that nobody changes it meanwhile.
    pub fn entry(&self, place: u32) -> Entry {
        Entry::from_bits(self.latch(place).map_or(0, |latch| latch.peek().payload))
    }

    /// Changes an entry. When this returns, nobody delivers by the old one any more. Whether an event came meanwhile, of
    /// which the caller must dispose.
    #[must_use]
    pub fn set_entry(&self, place: u32, entry: Entry) -> bool {
        let Some(latch) = self.latch(place) else { return false };
        latch.configure_taking(|slot| slot.payload = entry.into_bits()).1
    }

    /// Waits until nobody is inside an entry. Whether an event came meanwhile.
    #[must_use]
    pub fn drain(&self, place: u32) -> bool {
        self.latch(place).is_some_and(|latch| latch.configure_taking(|_| ()).1)
    }

    pub(super) fn set_root(&self, device: u16, root: Root) {
        if let Some(word) = self.roots.make(device.into()) {
            // Release: pairs with `root`.
            word.store(root.into_bits(), Ordering::Release);
        }
    }

    pub(super) fn make_block(&self, number: u32) -> Option<&Block> {
        self.blocks.make(number as usize)
    }

    pub(super) fn make_node(&self, number: u32) -> Option<&Node> {
        self.nodes.make(number as usize)
    }

    /// The children that a node has, as their numbers, in the order of events.
    pub(super) fn children(&self, node: u32) -> impl Iterator<Item = u32> {
        let children = self.node(node).into_iter().flat_map(|node| &node.0);
        // Relaxed: by who holds the lock under which they change.
        children.filter_map(|child| child.load(Ordering::Relaxed).checked_sub(1))
    }

    pub(super) fn child(&self, node: u32, level: u32, event: u16) -> Option<u32> {
        self.node(node)?.0[child_of(level, event)].load(Ordering::Relaxed).checked_sub(1)
    }

    pub(super) fn set_child(&self, node: u32, level: u32, event: u16, child: u32) {
        if let Some(node) = self.node(node) {
            // Release: pairs with `place`; what it leads to has been made.
            node.0[child_of(level, event)].store(child + 1, Ordering::Release);
        }
    }

    /// Makes a node childless.
    pub(super) fn clear_node(&self, node: u32) {
        for child in self.node(node).into_iter().flat_map(|node| &node.0) {
            // Relaxed: it is not reached from any root; who is still inside goes by the keys in the entries.
            child.store(0, Ordering::Relaxed);
        }
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        self.roots.bytes() + self.nodes.bytes() + self.blocks.bytes()
    }
}
