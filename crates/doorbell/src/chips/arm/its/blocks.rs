//! Which blocks belong to which device; changed only with the lock of the ITS held.

use super::translation::{BLOCK, BLOCK_BITS, ID_BITS, Root, Translation};

/// Numbers that are given out, and taken back.
#[derive(Debug, Default)]
struct Pool {
    /// The lowest that has never been given out.
    next: u32,
    most: u32,
    free: Vec<u32>,
}

impl Pool {
    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let number = self.next;
            (number < self.most).then(|| {
                self.next += 1;
                number
            })
        })
    }

    fn has(&self, count: u32) -> bool {
        self.free.len() as u64 + u64::from(self.most - self.next) >= count.into()
    }
}

/// What is known of the events in a block, beside their entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Owner {
    /// The collection of each event.
    pub icids: [u16; BLOCK],
    /// Which events are mapped, a bit for each.
    pub mapped: u16,
    /// Which of them have lost their collection for ever (I18a).
    pub lost: u16,
}

/// Blocks and nodes, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    nodes: Pool,
    blocks: Pool,
    owners: Vec<Owner>,
}

const _: () = assert!(BLOCK <= u16::BITS as usize);

impl Blocks {
    /// For as many blocks as a [`Translation`] has.
    pub fn new(most: u32) -> Self {
        let pool = |most| Pool { most, ..Pool::default() };
        Self { nodes: pool(2 * most), blocks: pool(most), owners: Vec::new() }
    }

    /// The device can have events from now on, of so many bits, but has none yet.
    pub fn map_device(&mut self, translation: &Translation, device: u16, event_bits: u8) {
        translation.set_root(device, Root::for_bits(u32::from(event_bits).min(ID_BITS)));
    }

    /// The device has none. Its events have been unmapped before.
    pub fn unmap_device(&mut self, translation: &Translation, device: u16) {
        let root = translation.root(device);
        translation.set_root(device, Root::new());
        if let Some(child) = root.child().checked_sub(1) {
            self.give_back(translation, child, root.levels());
        }
    }

    fn give_back(&mut self, translation: &Translation, number: u32, levels: u32) {
        let Some(below) = levels.checked_sub(1) else {
            self.blocks.free.push(number);
            return;
        };
        for child in translation.children(number) {
            self.give_back(translation, child, below);
        }
        translation.clear_node(number);
        self.nodes.free.push(number);
    }

    /// The place of an event of a mapped device, which is made if need be; `None` if there is no room.
    pub fn make_place(&mut self, translation: &Translation, device: u16, event: u16) -> Option<u32> {
        if let Some(place) = translation.place(device, event) {
            return Some(place);
        }
        let root = translation.root(device);
        if !self.blocks.has(1) || !self.nodes.has(root.levels()) {
            return None;
        }
        // The last one that is there, and how many levels of nodes are below it.
        let mut above = None;
        let mut next = root.child().checked_sub(1);
        let mut level = root.levels();
        while let (Some(number), Some(below)) = (next, level.checked_sub(1)) {
            level = below;
            above = Some((number, level));
            next = translation.child(number, level, event);
        }
        // From the block upwards, so that what can be reached is complete.
        let block = self.blocks.take()?;
        translation.make_block(block)?;
        if self.owners.len() <= block as usize {
            self.owners.resize(block as usize + 1, Owner::default());
        }
        self.owners[block as usize] = Owner::default();
        let mut top = block;
        for level in 0..level {
            let node = self.nodes.take()?;
            translation.make_node(node)?;
            translation.set_child(node, level, event, top);
            top = node;
        }
        match above {
            Some((node, level)) => translation.set_child(node, level, event, top),
            None => translation.set_root(device, root.with_child(top + 1)),
        }
        translation.place(device, event)
    }

    /// What is known of the event in this place, and its bit in the sets there.
    pub fn owner(&mut self, place: u32) -> Option<(&mut Owner, usize)> {
        Some((self.owners.get_mut((place >> BLOCK_BITS) as usize)?, place as usize % BLOCK))
    }

    /// The places of all mapped events.
    pub fn all(&self) -> Vec<u32> {
        (0u32..).zip(&self.owners).flat_map(|(block, owner)| mapped(block, owner)).collect()
    }

    /// The places of a device's mapped events, in the order of their EventIDs.
    pub fn of_device(&self, translation: &Translation, device: u16) -> Vec<u32> {
        let root = translation.root(device);
        let mut numbers: Vec<u32> = root.child().checked_sub(1).into_iter().collect();
        for _ in 0..root.levels() {
            numbers = numbers.into_iter().flat_map(|node| translation.children(node)).collect();
        }
        let owner = |block: u32| self.owners.get(block as usize).map(|owner| (block, owner));
        numbers.into_iter().filter_map(owner).flat_map(|(block, owner)| mapped(block, owner)).collect()
    }

    /// How many events there is room for in the blocks that have been made.
    pub fn events(&self) -> usize {
        self.owners.len() * BLOCK
    }

    /// How many events there can be.
    pub fn most_events(&self) -> usize {
        self.blocks.most as usize * BLOCK
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        let numbers = self.nodes.free.capacity() + self.blocks.free.capacity();
        self.owners.capacity() * size_of::<Owner>() + numbers * size_of::<u32>()
    }
}

fn mapped(block: u32, owner: &Owner) -> impl Iterator<Item = u32> {
    let mapped = owner.mapped;
    (0..BLOCK as u32).filter(move |at| mapped >> at & 1 == 1).map(move |at| block << BLOCK_BITS | at)
}
