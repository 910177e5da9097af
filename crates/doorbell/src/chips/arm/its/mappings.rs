//! Devices, collections and events; changed only with the lock of the ITS held.

use std::collections::BTreeMap;

use super::{
    blocks::Blocks,
    command::{CommandError, Event},
    counters::Drops,
    sink::LpiSink,
    tables::ENTRY,
    translation::{BLOCK, Dropped, Entry, Translation, crippled},
};
use crate::{
    chips::arm::{Behaviour, lpi::LpiSent},
    guest_ram::{GuestRam, GuestRamExt, NoMemory},
};

/// A device that is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Bits of its EventIDs, 1 to 16.
    pub event_bits: u8,
    /// Where its interrupt translation table is.
    pub itt: u64,
    /// That table may hold entries.
    pub written: bool,
}

impl Device {
    /// Whether it has this event.
    pub fn has(&self, event: u32) -> bool {
        event >> self.event_bits == 0
    }

    /// Where the entry of an event is.
    pub fn entry_address(&self, event: u32) -> u64 {
        self.itt + u64::from(event) * ENTRY
    }
}

/// A collection that is mapped, or that events name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Collection {
    /// The vCPU of its redistributor; `None`: it is not mapped.
    pub cpu: Option<u16>,
    /// The order in which they came.
    pub born: u64,
}

/// An event that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub place: u32,
    pub device: u16,
    pub event: u16,
    pub lpi: u32,
    pub icid: u16,
    /// It has no collection any more, whatever is mapped later (I18a).
    pub lost: bool,
    /// Its collection is not mapped.
    pub adrift: bool,
}

/// Why a command did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Error(CommandError),
    /// There is no room for one more event.
    Full,
    /// Guest memory.
    Unreadable,
}

impl From<CommandError> for Refused {
    fn from(error: CommandError) -> Self {
        Self::Error(error)
    }
}

impl From<NoMemory> for Refused {
    fn from(_: NoMemory) -> Self {
        Self::Unreadable
    }
}

/// What is around the mappings.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub lpis: &'a dyn LpiSink,
    pub ram: &'a dyn GuestRam,
    pub behaviour: &'a Behaviour,
    pub translation: &'a Translation,
    pub drops: &'a Drops,
}

impl Context<'_> {
    /// Changes an entry to one by which an event that comes meanwhile is not delivered.
    fn take_away(&self, place: u32, entry: Entry) {
        self.drops.meanwhile(self.translation.set_entry(place, entry));
    }

    /// Changes an entry to one that delivers what comes meanwhile.
    fn give(&self, place: u32, entry: Entry) {
        if self.translation.set_entry(place, entry) {
            // It fell between the old and the new mapping, and goes by the new one; nobody waits for the answer.
            self.sent(self.lpis.pend(entry.lpi()));
        }
    }

    /// Counts an event that came to nothing.
    pub fn sent(&self, sent: LpiSent) {
        match sent {
            LpiSent::Pended | LpiSent::Already => {}
            LpiSent::Off => self.drops.count(Dropped::LpisOff),
            LpiSent::Nowhere => self.drops.count(Dropped::Adrift),
        }
    }

    /// Makes an entry of a table in guest memory invalid, so that it does not come back with a restore (H28).
    pub fn erase(&self, address: u64) {
        // Where there is no memory any more there is nothing to come back.
        let _ = self.ram.write_le(address, 0u64);
    }
}

#[derive(Debug, Default)]
pub(super) struct Mappings {
    pub devices: BTreeMap<u16, Device>,
    pub collections: BTreeMap<u16, Collection>,
    pub blocks: Blocks,
    born: u64,
}

impl Mappings {
    /// With room for so many blocks of events.
    pub fn new(blocks: u32) -> Self {
        Self { blocks: Blocks::new(blocks), ..Self::default() }
    }

    /// None, with as much room.
    pub fn emptied(&self) -> Self {
        Self::new((self.blocks.most_events() / BLOCK) as u32)
    }

    /// Where a collection is, if it is mapped.
    pub fn cpu(&self, icid: u16) -> Option<u16> {
        self.collections.get(&icid)?.cpu
    }

    /// A mapped event.
    pub fn event(&mut self, cx: &Context<'_>, at: Event) -> Option<Mapped> {
        let (device, event) = (u16::try_from(at.device).ok()?, u16::try_from(at.event).ok()?);
        let mapped = self.at(cx, cx.translation.place(device, event)?)?;
        (mapped.device == device && mapped.event == event).then_some(mapped)
    }

    /// The mapped event in a place.
    pub fn at(&mut self, cx: &Context<'_>, place: u32) -> Option<Mapped> {
        let (owner, bit) = self.blocks.owner(place)?;
        if owner.mapped >> bit & 1 == 0 {
            return None;
        }
        let (icid, lost) = (owner.icids[bit], owner.lost >> bit & 1 == 1);
        let entry = cx.translation.entry(place);
        let (device, event, lpi) = (entry.device(), entry.event(), entry.lpi());
        Some(Mapped { place, device, event, lpi, icid, lost, adrift: entry.adrift() })
    }

    /// Takes the events of a device out of the translation, and the device.
    pub fn unmap_device(&mut self, cx: &Context<'_>, id: u16) {
        let Some(device) = self.devices.remove(&id) else { return };
        for place in self.blocks.of_device(cx.translation, id) {
            let Some(mapped) = self.at(cx, place) else { continue };
            self.unmap_event(cx, &mapped);
            if device.written && !cx.behaviour.unmapping_leaves_events_in_table {
                cx.erase(device.entry_address(mapped.event.into()));
            }
        }
        self.blocks.unmap_device(cx.translation, id);
    }

    /// A device without events.
    pub fn map_device(&mut self, cx: &Context<'_>, id: u16, device: Device) {
        self.unmap_device(cx, id);
        self.blocks.map_device(cx.translation, id, device.event_bits);
        self.devices.insert(id, device);
    }

    /// An event of a mapped device goes to an LPI from now on, whatever it was before.
    pub fn map_event(&mut self, cx: &Context<'_>, device: u16, event: u16, lpi: u32, icid: u16) -> Result<(), Refused> {
        let cpu = self.cpu(icid);
        let place = self.blocks.make_place(cx.translation, device, event).ok_or(Refused::Full)?;
        cx.lpis.map(lpi, cpu)?;
        let old = self.at(cx, place);
        let entry = Entry::new().with_device(device).with_event(event).with_lpi(lpi).with_adrift(cpu.is_none());
        if cpu.is_some() {
            cx.give(place, entry);
        } else {
            cx.take_away(place, entry);
        }
        if let Some((owner, bit)) = self.blocks.owner(place) {
            owner.icids[bit] = icid;
            owner.mapped |= 1 << bit;
            owner.lost &= !(1 << bit);
        }
        if let Some(old) = old {
            cx.lpis.unmap(old.lpi, old.lpi == lpi || cx.behaviour.unmapping_keeps_pending);
        }
        Ok(())
    }

    pub fn unmap_event(&mut self, cx: &Context<'_>, event: &Mapped) {
        // Before the LPI forgets what is pending: what is on the way would make it pending again.
        let late = crippled!(cx.translation, EmptiedLate);
        if !late {
            cx.take_away(event.place, Entry::new());
        }
        cx.lpis.unmap(event.lpi, cx.behaviour.unmapping_keeps_pending);
        if late {
            cx.take_away(event.place, Entry::new());
        }
        if let Some((owner, bit)) = self.blocks.owner(event.place) {
            owner.mapped &= !(1 << bit);
            owner.lost &= !(1 << bit);
        }
    }

    /// MOVI to a mapped collection.
    pub fn move_event(&mut self, cx: &Context<'_>, event: &Mapped, icid: u16, cpu: u16) {
        cx.lpis.retarget(event.lpi, cpu, true);
        if let Some((owner, bit)) = self.blocks.owner(event.place) {
            owner.icids[bit] = icid;
            owner.lost &= !(1 << bit);
        }
        if event.adrift {
            cx.give(event.place, cx.translation.entry(event.place).with_adrift(false));
        }
    }

    /// MAPC, V = 1; `None`: a collection that an event names is not mapped yet.
    pub fn map_collection(&mut self, cx: &Context<'_>, icid: u16, cpu: Option<u16>) {
        let born = self.born + 1;
        let collection = self.collections.entry(icid).or_insert_with(|| Collection { cpu: None, born });
        collection.cpu = cpu.or(collection.cpu);
        self.born = born;
        let Some(cpu) = cpu else { return };
        for place in self.blocks.all() {
            let Some(event) = self.at(cx, place).filter(|it| it.icid == icid && !it.lost) else { continue };
            cx.lpis.retarget(event.lpi, cpu, cx.behaviour.mapc_moves_pending);
            if event.adrift {
                cx.give(place, cx.translation.entry(place).with_adrift(false));
            }
        }
    }

    /// MAPC, V = 0: what is pending stays so, but no event comes through any more.
    pub fn unmap_collection(&mut self, cx: &Context<'_>, icid: u16) {
        let Some(mut collection) = self.collections.remove(&icid) else { return };
        let forgets = cx.behaviour.unmapped_collection_forgets;
        let mut named = false;
        for place in self.blocks.all() {
            let Some(event) = self.at(cx, place).filter(|it| it.icid == icid && !it.lost) else { continue };
            cx.take_away(place, cx.translation.entry(place).with_adrift(true));
            named = true;
            if forgets {
                self.lose(event.place);
            }
        }
        if named && !forgets {
            collection.cpu = None;
            self.collections.insert(icid, collection);
        }
    }

    /// An event has no collection any more.
    fn lose(&mut self, place: u32) {
        if let Some((owner, bit)) = self.blocks.owner(place) {
            owner.lost |= 1 << bit;
        }
    }

    /// All devices (I9).
    pub fn free_devices(&mut self, cx: &Context<'_>) {
        // The table is the guest's again, and so are those of the devices.
        self.devices.values_mut().for_each(|device| device.written = false);
        let ids: Vec<u16> = self.devices.keys().copied().collect();
        ids.into_iter().for_each(|id| self.unmap_device(cx, id));
    }

    /// All collections (I9).
    pub fn free_collections(&mut self, cx: &Context<'_>) {
        for place in self.blocks.all() {
            let Some(event) = self.at(cx, place) else { continue };
            if !event.adrift {
                cx.take_away(place, cx.translation.entry(place).with_adrift(true));
            }
            if cx.behaviour.unmapped_collection_forgets {
                self.lose(place);
            }
        }
        self.collections.clear();
        if !cx.behaviour.unmapped_collection_forgets {
            let named: Vec<u16> =
                self.blocks.all().into_iter().filter_map(|place| Some(self.at(cx, place)?.icid)).collect();
            named.into_iter().for_each(|icid| self.map_collection(cx, icid, None));
        }
    }

    /// Waits until no event is under way; those that come meanwhile are dropped.
    pub fn drain(&self, cx: &Context<'_>) {
        if crippled!(cx.translation, DisableWaitsForNobody) {
            return;
        }
        self.blocks.all().into_iter().for_each(|place| cx.drops.meanwhile(cx.translation.drain(place)));
    }
}
