//! The table itself: configuration, events and line calls.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    GsiRoutes, Initial, MAX_PINS, Pin, PinRoutes, Route, RouteEntry, RoutePolicy, RouteUpdate,
    cell::{GsiCell, Kind, MAX_CHIP, Payload},
    lease::Leases,
};
use crate::{
    Delivery, Error, LineSource, MsiMessage, MsiTarget, PinInput,
    inflight::{BiasPermit, Fired, OwnerState, Slot},
};

/// KVM's numbers on x86: the IOAPIC, and how many pins each chip of the 8259 pair has, which are chips 0 and 1.
const IOAPIC: u8 = 2;
const PIC_PINS: u16 = 8;

/// The GSIs of one machine and where they lead. See the [module](super).
pub struct RouteTable {
    pub(super) cells: Box<[GsiCell]>,
    msi: Arc<dyn MsiTarget>,
    pub(super) pins: Arc<dyn PinInput>,
    pub(super) policy: RoutePolicy,
    pub(super) bias: Option<BiasPermit>,
    /// Lock order: held by configuration calls while they enter latches; nothing that delivers takes it.
    pub(super) config: Mutex<Config>,
}

/// What only configuration calls need.
pub(super) struct Config {
    pub(super) leases: Leases,
    /// Pin to GSI, per chip; the later entry wins (G5a).
    reverse: Vec<(Pin, u32)>,
}

impl RouteTable {
    /// How many GSIs a table has, and how many entries (`KVM_MAX_IRQ_ROUTES`).
    pub const GSIS: u32 = 4096;

    /// How many numbers a GSI or a loan can have: [`GSIS`](Self::GSIS) and the policy's [`loans`](RoutePolicy::loans).
    pub fn numbers(&self) -> u32 {
        self.cells.len() as u32
    }

    /// A table in front of these controllers.
    pub fn new(msi: Arc<dyn MsiTarget>, pins: Arc<dyn PinInput>, policy: RoutePolicy) -> Self {
        Self::with_bias(msi, pins, policy, None)
    }

    /// The same; with a permit, single-owner triggers that are quiet for long fire without the latch.
    pub fn with_bias(
        msi: Arc<dyn MsiTarget>,
        pins: Arc<dyn PinInput>,
        policy: RoutePolicy,
        bias: Option<BiasPermit>,
    ) -> Self {
        let first = match policy.initial {
            Initial::Empty => None,
            Initial::Identity(chip) => Some(chip),
            Initial::Pc => Some(IOAPIC),
        };
        let reserved = match (first, policy.pins) {
            (Some(chip), _) | (None, PinRoutes::Identity(chip)) => u32::from(pins.pins(chip)),
            (None, PinRoutes::Settable) => 0,
        };
        let numbers = Self::GSIS + policy.loans.min(RoutePolicy::MOST_LOANS);
        let table = Self {
            cells: (0..numbers).map(|_| GsiCell::new()).collect(),
            msi,
            pins,
            policy,
            bias,
            config: Mutex::new(Config { leases: Leases::new(numbers, reserved.min(Self::GSIS)), reverse: Vec::new() }),
        };
        if let Some(chip) = first {
            let last = table.pins.pins(chip).min(Self::GSIS as u16);
            let mut config = table.config.lock();
            for pin in 0..last {
                let mut routes = GsiRoutes::from_slice(&[Route::Pin(Pin { chip, pin })]);
                let legacy = Pin { chip: (pin / PIC_PINS) as u8, pin: pin % PIC_PINS };
                if policy.initial == Initial::Pc && pin < 2 * PIC_PINS && legacy.pin < table.pins.pins(legacy.chip) {
                    routes.push(Route::Pin(legacy));
                }
                table.apply(&mut config, pin.into(), &routes);
            }
            table.rebuild_reverse(&mut config);
        }
        table
    }

    /// Replaces the whole table; GSIs on loan to devices keep what they have. `KVM_SET_GSI_ROUTING`.
    ///
    /// An event that comes meanwhile meets the old or the new entry of its GSI. When the call returns nothing uses the
    /// old table any more.
    ///
    /// # Errors
    /// G1, G2, G4 and G6 of the reference: [`Error::TooManyRoutes`], [`Error::NoSuchGsi`], [`Error::NoSuchPin`],
    /// [`Error::ConflictingRoutes`], or [`Error::Busy`] for a GSI on loan. The old table is then untouched.
    pub fn set(&self, entries: &[RouteEntry]) -> Result<(), Error> {
        if entries.len() > Self::GSIS as usize {
            return Err(Error::TooManyRoutes { count: entries.len(), most: Self::GSIS as usize });
        }
        let mut wanted: Vec<GsiRoutes> = vec![GsiRoutes::new(); Self::GSIS as usize];
        let mut order = Vec::new();
        for entry in entries {
            let routes = &mut wanted[self.index(entry.gsi)?];
            routes.push(entry.route);
            self.validate(entry.gsi, routes)?;
            if let Route::Pin(pin) = entry.route {
                order.push((pin, entry.gsi));
            }
        }
        let mut config = self.config.lock();
        if let PinRoutes::Identity(chip) = self.policy.pins {
            for pin in 0..self.pins.pins(chip).min(Self::GSIS as u16) {
                let pin = Pin { chip, pin };
                wanted[usize::from(pin.pin)].push(Route::Pin(pin));
                order.push((pin, pin.pin.into()));
            }
        }
        if let Some(gsi) = (0..Self::GSIS).find(|&gsi| !wanted[gsi as usize].is_empty() && config.leases.is_lent(gsi)) {
            tracing::debug!(gsi, "a route for a GSI that is on loan to a device");
            return Err(Error::Busy("the GSI"));
        }
        for (gsi, routes) in wanted.iter().enumerate() {
            self.apply(&mut config, gsi as u32, routes);
        }
        order.sort_by_key(|(pin, _)| *pin);
        config.reverse = keep_last(order);
        Ok(())
    }

    /// Changes some GSIs. All changes are checked first: a batch that fails changes nothing.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn update(&self, updates: &[RouteUpdate]) -> Result<(), Error> {
        if let [RouteUpdate::Set { gsi, routes }] = updates {
            if let [Route::Msi(message)] = **routes {
                return self.set_msi(*gsi, &message);
            }
        }
        for update in updates {
            match update {
                RouteUpdate::Set { gsi, routes } => {
                    self.index(*gsi)?;
                    self.validate(*gsi, routes)?;
                }
                RouteUpdate::Remove { gsi } => {
                    self.index(*gsi)?;
                    self.refuse_identity(*gsi)?;
                }
            }
        }
        let mut config = self.config.lock();
        let changes = updates.iter().map(|update| match update {
            RouteUpdate::Set { gsi, routes } => (*gsi, routes.clone()),
            RouteUpdate::Remove { gsi } => (*gsi, GsiRoutes::new()),
        });
        if changes.clone().any(|(gsi, _)| config.leases.is_lent(gsi)) {
            return Err(Error::Busy("the GSI"));
        }
        let mut pins_changed = false;
        for (gsi, routes) in changes {
            pins_changed |= routes.iter().any(|route| matches!(route, Route::Pin(_))) || self.kind(gsi) == Kind::Pins;
            self.apply(&mut config, gsi, &routes);
        }
        if pins_changed {
            self.rebuild_reverse(&mut config);
        }
        Ok(())
    }

    /// Gives a GSI one message. Where it has one already, this costs no more than two locked instructions.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn set_msi(&self, gsi: u32, message: &MsiMessage) -> Result<(), Error> {
        let cell = &self.cells[self.index(gsi)?];
        let kind = self.message_kind(message);
        // Without the configuration lock: a message that replaces a message changes nothing that other GSIs share, so
        // a concurrent table call is simply before or after it.
        let replaced = cell.latch.configure(
            |slot| {
                let old = Payload(slot.payload);
                let replaces = old.tag() == 0 && matches!(old.kind(), Kind::Resolved(_) | Kind::Message);
                if replaces {
                    cell.set_message(message);
                    slot.payload = Payload::new(0, kind).0;
                }
                replaces
            },
            |payload| self.deliver(cell, payload),
        );
        if replaced {
            return Ok(());
        }
        let routes = GsiRoutes::from_slice(&[Route::Msi(*message)]);
        self.validate(gsi, &routes)?;
        let mut config = self.config.lock();
        if config.leases.is_lent(gsi) {
            return Err(Error::Busy("the GSI"));
        }
        let had_pins = self.kind(gsi) == Kind::Pins;
        self.apply(&mut config, gsi, &routes);
        if had_pins {
            self.rebuild_reverse(&mut config);
        }
        Ok(())
    }

    /// The entries of a GSI; none beyond the table.
    pub fn routes(&self, gsi: u32) -> GsiRoutes {
        let Some(cell) = self.cells.get(gsi as usize) else { return GsiRoutes::new() };
        let _config = self.config.lock();
        cell.latch.configure(|slot| cell.routes(Payload(slot.payload).kind()), |payload| self.deliver(cell, payload))
    }

    /// All entries that the VMM has set, in the order of their GSIs; those on loan to devices are not among them.
    pub fn entries(&self) -> Vec<RouteEntry> {
        (0..Self::GSIS)
            .filter(|&gsi| Payload(self.cells[gsi as usize].latch.peek().payload).tag() == 0)
            .flat_map(|gsi| self.routes(gsi).into_iter().map(move |route| RouteEntry { gsi, route }))
            .collect()
    }

    /// The GSI that leads to a pin; of several, the one whose entry came last.
    pub fn gsi_of_pin(&self, pin: Pin) -> Option<u32> {
        let config = self.config.lock();
        let at = config.reverse.binary_search_by_key(&pin, |(pin, _)| *pin).ok()?;
        Some(config.reverse[at].1)
    }

    /// One event on a GSI: its message, or an edge pulse on its pins. A GSI without a route swallows it.
    #[inline]
    pub fn fire(&self, gsi: u32) -> Delivery {
        let Some(cell) = self.cells.get(gsi as usize) else { return Delivery::Ignored };
        outcome(cell.latch.fire(|payload| self.deliver(cell, payload)))
    }

    /// Becomes the single owner of a GSI's source, for [`fire_owned`](Self::fire_owned); `None` while there is one or
    /// beyond the table.
    pub fn own(&self, gsi: u32) -> Option<OwnerState> {
        self.cells.get(gsi as usize)?.latch.own(self.bias)
    }

    /// [`fire`](Self::fire) by the owner that [`own`](Self::own) made.
    #[inline]
    pub fn fire_owned(&self, gsi: u32, owner: &mut OwnerState) -> Delivery {
        let Some(cell) = self.cells.get(gsi as usize) else { return Delivery::Ignored };
        outcome(cell.latch.fire_owned(owner, |payload| self.deliver(cell, payload)))
    }

    /// Ends an ownership.
    pub fn disown(&self, gsi: u32, owner: OwnerState) {
        if let Some(cell) = self.cells.get(gsi as usize) {
            cell.latch.disown(owner, |payload| self.deliver(cell, payload));
        }
    }

    /// The pins behind this table, for the end of an interrupt.
    pub fn pin_input(&self) -> &dyn PinInput {
        &*self.pins
    }

    /// The controller behind this table.
    pub fn msi_target(&self) -> &dyn MsiTarget {
        &*self.msi
    }

    pub(super) fn index(&self, gsi: u32) -> Result<usize, Error> {
        if gsi < Self::GSIS { Ok(gsi as usize) } else { Err(Error::NoSuchGsi { gsi, last: Self::GSIS - 1 }) }
    }

    fn kind(&self, gsi: u32) -> Kind {
        Payload(self.cells[gsi as usize].latch.peek().payload).kind()
    }

    pub(super) fn message_kind(&self, message: &MsiMessage) -> Kind {
        self.msi.prepare(message).map_or(Kind::Message, Kind::Resolved)
    }

    /// Whether a GSI may have these entries (G4, G6 and the policy).
    pub(super) fn validate(&self, gsi: u32, routes: &[Route]) -> Result<(), Error> {
        for (at, route) in routes.iter().enumerate() {
            match route {
                Route::Msi(_) if routes.len() > 1 => return Err(Error::ConflictingRoutes { gsi }),
                Route::Msi(_) => self.refuse_identity(gsi)?,
                Route::Pin(pin) => {
                    let pins = if pin.chip > MAX_CHIP { 0 } else { self.pins.pins(pin.chip) };
                    if pin.pin >= pins {
                        return Err(Error::NoSuchPin { chip: pin.chip.into(), pin: pin.pin.into(), pins });
                    }
                    if self.policy.pins != PinRoutes::Settable {
                        return Err(Error::Invalid {
                            what: "a pin route for GSI",
                            value: gsi.into(),
                            allowed: "under the fixed-identity policy only messages can be routed",
                        });
                    }
                    let twice = |other: &Route| matches!(other, Route::Pin(other) if other.chip == pin.chip);
                    if at >= MAX_PINS || routes[..at].iter().any(twice) {
                        return Err(Error::ConflictingRoutes { gsi });
                    }
                }
            }
        }
        Ok(())
    }

    /// Under the fixed-identity policy a pin's GSI cannot be changed.
    fn refuse_identity(&self, gsi: u32) -> Result<(), Error> {
        match self.policy.pins {
            PinRoutes::Identity(chip) if gsi < self.pins.pins(chip).into() => Err(Error::Invalid {
                what: "a route for GSI",
                value: gsi.into(),
                allowed: "under the fixed-identity policy this GSI is its pin",
            }),
            _ => Ok(()),
        }
    }

    /// Gives one GSI that is not on loan its entries, which were validated. The lock is a witness.
    pub(super) fn apply(&self, config: &mut Config, gsi: u32, routes: &[Route]) {
        if config.leases.is_lent(gsi) {
            return;
        }
        config.leases.set_routed(gsi, !routes.is_empty());
        let cell = &self.cells[gsi as usize];
        if routes.is_empty() && Payload(cell.latch.peek().payload).kind() == Kind::None {
            return;
        }
        let kind = match routes {
            [] => Kind::None,
            [Route::Msi(message), ..] => self.message_kind(message),
            [Route::Pin(_), ..] => Kind::Pins,
        };
        cell.latch.configure(
            |slot| {
                match routes {
                    [Route::Msi(message), ..] => cell.set_message(message),
                    _ => cell.set_pins(&pins_of(routes)),
                }
                if kind != Kind::Pins {
                    // As in KVM, a line that was raised before is not remembered for pins to come.
                    cell.set_line(0);
                }
                slot.payload = Payload::new(0, kind).0;
            },
            |payload| self.deliver(cell, payload),
        );
    }

    pub(super) fn rebuild_reverse(&self, config: &mut Config) {
        let mut order = Vec::new();
        for gsi in 0..Self::GSIS {
            if self.kind(gsi) == Kind::Pins {
                order.extend(self.cells[gsi as usize].pins().into_iter().map(|pin| (pin, gsi)));
            }
        }
        order.sort_by_key(|(pin, _)| *pin);
        config.reverse = keep_last(order);
    }

    /// Delivers one event by a payload that the latch holds still.
    #[inline]
    pub(super) fn deliver(&self, cell: &GsiCell, payload: u64) -> Delivery {
        match Payload(payload).kind() {
            Kind::Resolved(target) => self.msi.fire(target),
            _ => self.deliver_slowly(cell, payload),
        }
    }

    fn deliver_slowly(&self, cell: &GsiCell, payload: u64) -> Delivery {
        match Payload(payload).kind() {
            Kind::None => Delivery::Ignored,
            Kind::Resolved(target) => self.msi.fire(target),
            Kind::Message => self.msi.send(&cell.message()).unwrap_or_else(|error| {
                tracing::debug!(%error, "a routed message was refused");
                Delivery::Ignored
            }),
            Kind::Pins => {
                let line = cell.line();
                if line & LineSource::USER.bit() != 0 {
                    // The pulse ends low, whatever the line call had said: both are one source in KVM.
                    cell.set_line(line & !LineSource::USER.bit());
                }
                let pulse = |pin: Pin| self.pins.pulse(pin.chip, pin.pin, LineSource::USER);
                cell.pins().into_iter().map(pulse).fold(Delivery::Ignored, Delivery::and)
            }
        }
    }

    /// For the gate: delivers one event of a GSI whose latch the caller holds.
    pub(crate) fn deliver_at(&self, gsi: usize, slot: &Slot) -> Delivery {
        self.deliver(&self.cells[gsi], slot.payload)
    }

    /// For the gate: whether an event, or a high line, waits behind the mask.
    pub(crate) fn is_pending_at(&self, gsi: u32) -> bool {
        let Some(cell) = self.cells.get(gsi as usize) else { return false };
        let slot = cell.latch.peek();
        slot.masked && (slot.pending || Payload(slot.payload).kind() == Kind::Pins && cell.line() != 0)
    }

    /// For the gate: whether the VMM may mask this GSI.
    pub(crate) fn check_unlent(&self, gsi: u32) -> Result<(), Error> {
        match Payload(self.cells[self.index(gsi)?].latch.peek().payload).tag() {
            0 => Ok(()),
            _ => Err(Error::Busy("the GSI")),
        }
    }

    /// For the gate: changes mask and pending bit of a GSI that no device has on loan.
    pub(crate) fn change_unlent<T>(&self, gsi: u32, change: impl FnOnce(usize, &mut Slot) -> T) -> Result<T, Error> {
        let at = self.index(gsi)?;
        let cell = &self.cells[at];
        cell.latch
            .configure(
                |slot| (Payload(slot.payload).tag() == 0).then(|| change(at, slot)),
                |payload| self.deliver(cell, payload),
            )
            .ok_or(Error::Busy("the GSI"))
    }
}

/// What the caller of `fire` is told.
#[inline]
pub(super) fn outcome(fired: Fired<Delivery>) -> Delivery {
    match fired {
        Fired::Ran(delivery) => delivery,
        // As KVM says of a masked pin: not now. It is latched all the same.
        Fired::Pending { already: false } => Delivery::Ignored,
        Fired::Pending { already: true } | Fired::HandedOver => Delivery::Coalesced,
    }
}

fn pins_of(routes: &[Route]) -> smallvec::SmallVec<[Pin; MAX_PINS]> {
    routes.iter().filter_map(|route| if let Route::Pin(pin) = route { Some(*pin) } else { None }).collect()
}

/// Of entries sorted stably by pin, the last of each pin.
pub(super) fn keep_last(order: Vec<(Pin, u32)>) -> Vec<(Pin, u32)> {
    let mut kept: Vec<(Pin, u32)> = Vec::with_capacity(order.len());
    for entry in order {
        match kept.last_mut() {
            Some(last) if last.0 == entry.0 => *last = entry,
            _ => kept.push(entry),
        }
    }
    kept
}
