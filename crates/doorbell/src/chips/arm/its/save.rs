//! The tables in guest memory, written and read in revision 0 of KVM's format.
//!
//! What is read is hostile: a guest, or the file that its memory came from, may have put anything there. Everything is read
//! and checked before anything is changed; KVM maps as it reads, and after a mistake unmaps every device and collection.

use super::{
    mappings::{Context, Device, Mapped, Mappings, Refused},
    registers::Baser,
    tables::{CollectionEntry, DeviceEntry, ENTRY, EventEntry, LevelOne, entry_address},
    translation::ID_BITS,
};
use crate::{
    Errno, Error,
    guest_ram::{GuestRamExt, NoMemory},
};

/// How many entries are looked at in a restore. Tables of a sane guest are far below it; those of a hostile one could have 2^32.
const MOST_ENTRIES: u32 = 1 << 24;

const TOO_MANY_EVENTS: &str = "the tables have more events than ItsOptions::max_events";

/// What the tables say.
#[derive(Debug, Default)]
pub(super) struct Plan {
    collections: Vec<(u16, Option<u16>)>,
    devices: Vec<(u16, Device)>,
    events: Vec<PlannedEvent>,
}

#[derive(Debug)]
struct PlannedEvent {
    device: u16,
    event: u16,
    lpi: u32,
    icid: u16,
}

fn failed(what: &'static str, source: Errno) -> Error {
    Error::Os { what, source }
}

fn no_memory(_: NoMemory) -> Error {
    failed("a table of the ITS is not in guest memory", Errno::FAULT)
}

fn invalid(what: &'static str) -> Error {
    failed(what, Errno::INVAL)
}

/// The distance to the next entry, as its field can say it; 0: there is none.
fn distance(from: u32, to: Option<u32>, farthest: u32) -> u32 {
    to.map_or(0, |to| (to - from).min(farthest))
}

impl Mappings {
    /// Writes devices, events and collections to the tables, those that there are.
    pub fn save(&mut self, cx: &Context<'_>, devices: Baser, collections: Baser) -> Result<(), Error> {
        if devices.valid() {
            self.save_devices(cx, devices)?;
        }
        if collections.valid() { self.save_collections(cx, collections) } else { Ok(()) }
    }

    fn save_devices(&mut self, cx: &Context<'_>, table: Baser) -> Result<(), Error> {
        let ids: Vec<u16> = self.devices.keys().copied().collect();
        for (at, id) in ids.iter().enumerate() {
            let address = entry_address(cx.ram, table, (*id).into()).ok_or(invalid("a device has no table entry"))?;
            self.save_events(cx, *id)?;
            let Some(device) = self.devices.get(id) else { continue };
            let next = ids.get(at + 1).map(|next| u32::from(*next));
            let entry = DeviceEntry::new()
                .with_valid(true)
                .with_event_bits(device.event_bits - 1)
                .with_itt(device.itt >> 8)
                .with_next(distance((*id).into(), next, DeviceEntry::FARTHEST) as u16);
            cx.ram.write_le(address, entry.into_bits()).map_err(no_memory)?;
        }
        Ok(())
    }

    fn save_events(&mut self, cx: &Context<'_>, id: u16) -> Result<(), Error> {
        let places = self.blocks.of_device(cx.translation, id);
        let events: Vec<Mapped> = places.into_iter().filter_map(|place| self.at(cx, place)).collect();
        let Some(device) = self.devices.get_mut(&id) else { return Ok(()) };
        device.written |= !events.is_empty();
        // H28: KVM follows the collection that such an event has lost. It is of no use to anybody, and is not saved.
        let (lost, kept): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event.lost);
        for event in lost {
            cx.erase(device.entry_address(event.event.into()));
        }
        for (at, event) in kept.iter().enumerate() {
            let next = kept.get(at + 1).map(|next| u32::from(next.event));
            let entry = EventEntry::new().with_lpi(event.lpi).with_icid(event.icid).with_next(distance(
                event.event.into(),
                next,
                EventEntry::FARTHEST,
            ) as u16);
            cx.ram.write_le(device.entry_address(event.event.into()), entry.into_bits()).map_err(no_memory)?;
        }
        Ok(())
    }

    fn save_collections(&self, cx: &Context<'_>, table: Baser) -> Result<(), Error> {
        let mut collections: Vec<_> = self.collections.iter().collect();
        collections.sort_by_key(|(_, collection)| collection.born);
        let mut at = 0;
        for (icid, collection) in collections {
            let address = entry_address(cx.ram, table, at).ok_or(invalid("the collection table is too small"))?;
            let entry = CollectionEntry::new()
                .with_valid(true)
                .with_icid(*icid)
                .with_redistributor(collection.cpu.map_or(CollectionEntry::NOWHERE, u64::from));
            cx.ram.write_le(address, entry.into_bits()).map_err(no_memory)?;
            at += 1;
        }
        // The list ends at an invalid entry, or at the end of the table.
        if let Some(address) = entry_address(cx.ram, table, at) {
            cx.ram.write_le(address, 0u64).map_err(no_memory)?;
        }
        Ok(())
    }

    /// Maps what the tables say, as they were read for these mappings.
    pub fn apply(&mut self, cx: &Context<'_>, plan: &Plan) -> Result<(), Error> {
        if plan.devices.iter().any(|(id, _)| self.devices.contains_key(id)) {
            return Err(failed("a device of the table is mapped already", Errno::EXIST));
        }
        for (icid, cpu) in &plan.collections {
            self.map_collection(cx, *icid, *cpu);
        }
        for (id, device) in &plan.devices {
            self.map_device(cx, *id, device.clone());
        }
        for event in &plan.events {
            let PlannedEvent { device, event, lpi, icid } = *event;
            if let Err(refused) = self.map_event(cx, device, event, lpi, icid) {
                self.revoke(cx, plan);
                return Err(match refused {
                    Refused::Full => failed(TOO_MANY_EVENTS, Errno::NOMEM),
                    Refused::Unreadable => no_memory(NoMemory { address: 0, length: 0 }),
                    Refused::Error(_) => invalid("an event cannot be mapped"),
                });
            }
        }
        Ok(())
    }

    fn revoke(&mut self, cx: &Context<'_>, plan: &Plan) {
        for (id, _) in &plan.devices {
            if let Some(device) = self.devices.get_mut(id) {
                device.written = false;
            }
            self.unmap_device(cx, *id);
        }
        plan.collections.iter().for_each(|(icid, _)| self.unmap_collection(cx, *icid));
    }
}

/// Reading the tables.
struct Reader<'a> {
    cx: &'a Context<'a>,
    /// What is mapped already.
    mappings: &'a Mappings,
    plan: Plan,
    /// Which collections are in the plan, a bit for each.
    seen: Box<[u64]>,
    /// How many entries may still be looked at.
    left: u32,
}

impl Plan {
    /// What the tables say, if they say something that an ITS can be in addition to these mappings.
    pub fn read(cx: &Context<'_>, devices: Baser, collections: Baser, mappings: &Mappings) -> Result<Self, Error> {
        let seen = vec![0; (1 << ID_BITS) / 64].into();
        let mut reader = Reader { cx, mappings, plan: Self::default(), seen, left: MOST_ENTRIES };
        if collections.valid() {
            reader.collections(collections)?;
        }
        if devices.valid() {
            reader.devices(devices)?;
        }
        Ok(reader.plan)
    }
}

impl Reader<'_> {
    fn load(&mut self, address: u64) -> Result<u64, Error> {
        let most = "the tables have more entries than any sane guest's";
        self.left = self.left.checked_sub(1).ok_or(failed(most, Errno::NOMEM))?;
        self.cx.ram.read_le(address).map_err(no_memory)
    }

    fn collections(&mut self, table: Baser) -> Result<(), Error> {
        // No collection can be there twice, so there is an end to it.
        for at in 0..=1 << ID_BITS {
            let Some(address) = entry_address(self.cx.ram, table, at) else { break };
            let entry = CollectionEntry::from_bits(self.load(address)?);
            if !entry.valid() {
                break;
            }
            // As KVM: only the low 32 bits count.
            let cpu = match entry.redistributor() & CollectionEntry::NOWHERE {
                CollectionEntry::NOWHERE => None,
                cpu if cpu < self.cx.lpis.vcpus().into() => Some(cpu as u16),
                _ => return Err(invalid("a saved collection is on a vCPU that does not exist")),
            };
            let icid = entry.icid();
            if self.has_collection(icid) || self.mappings.collections.contains_key(&icid) {
                return Err(failed("a collection of the table is mapped already", Errno::EXIST));
            }
            if entry_address(self.cx.ram, table, icid.into()).is_none() {
                return Err(invalid("a saved collection is none that the table has an entry for"));
            }
            self.seen[usize::from(icid / 64)] |= 1 << (icid % 64);
            self.plan.collections.push((icid, cpu));
        }
        Ok(())
    }

    fn has_collection(&self, icid: u16) -> bool {
        self.seen[usize::from(icid / 64)] >> (icid % 64) & 1 == 1
    }

    fn devices(&mut self, table: Baser) -> Result<(), Error> {
        if !table.indirect() {
            let entries = (table.bytes() / ENTRY).min(1 << ID_BITS) as u32;
            self.devices_in(table.address(), 0, entries)?;
            return Ok(());
        }
        let in_page = (table.page_bytes() / ENTRY) as u32;
        let pages = (table.bytes() / ENTRY).min((1 << ID_BITS) / u64::from(in_page)) as u32;
        for page in 0..pages {
            let level = LevelOne::from_bits(self.load(table.address() + u64::from(page) * ENTRY)?);
            if level.valid() && !self.devices_in(level.address(table.page_bytes()), page * in_page, in_page)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads a piece of the device table. Whether there may be more after it.
    fn devices_in(&mut self, base: u64, first: u32, entries: u32) -> Result<bool, Error> {
        let mut at = 0;
        while at < entries {
            let entry = DeviceEntry::from_bits(self.load(base + u64::from(at) * ENTRY)?);
            let step = if entry.valid() { self.device((first + at) as u16, entry)? } else { 1 };
            if step == 0 {
                return Ok(false);
            }
            at += step;
        }
        Ok(true)
    }

    /// Reads a device and its events. The distance to the next one, or 0.
    fn device(&mut self, id: u16, entry: DeviceEntry) -> Result<u32, Error> {
        let event_bits = entry.event_bits() + 1;
        if u32::from(event_bits) > ID_BITS {
            return Err(invalid("a saved device has more events than there are"));
        }
        let device = Device { event_bits, itt: entry.itt() << 8, written: true };
        let mut event = 0;
        while device.has(event) {
            let entry = EventEntry::from_bits(self.load(device.entry_address(event))?);
            let step = if entry.lpi() == 0 { 1 } else { self.event(&device, id, event, entry)? };
            if step == 0 {
                break;
            }
            event += step;
        }
        self.plan.devices.push((id, device));
        Ok(entry.next().into())
    }

    fn event(&mut self, device: &Device, id: u16, event: u32, entry: EventEntry) -> Result<u32, Error> {
        if !self.cx.lpis.in_range(entry.lpi()) {
            return Err(invalid("a saved event goes to an INTID that is not an LPI"));
        }
        let next = u32::from(entry.next());
        if !device.has(event + next) {
            return Err(invalid("the event after a saved one is none of its device"));
        }
        if !self.has_collection(entry.icid()) {
            return Err(invalid("a saved event has a collection that was not saved"));
        }
        if self.plan.events.len() >= self.mappings.blocks.most_events() {
            return Err(failed(TOO_MANY_EVENTS, Errno::NOMEM));
        }
        // `device` has it, so it fits.
        self.plan.events.push(PlannedEvent { device: id, event: event as u16, lpi: entry.lpi(), icid: entry.icid() });
        Ok(next)
    }
}
