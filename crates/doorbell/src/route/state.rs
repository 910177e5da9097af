//! Saving and restoring what the VMM set: routes, masks, pending bits and lines.
//!
//! GSIs on loan are not in it: their devices save their own vectors and borrow anew after a restore.

use super::{
    GsiRoutes, Route, RouteTable,
    cell::{Kind, Payload},
};
use crate::{Error, inflight::Slot};

/// One GSI that is not as a new table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GsiState {
    /// The GSI.
    pub gsi: u32,
    /// Its entries.
    pub routes: Vec<Route>,
    /// The gate is closed.
    pub masked: bool,
    /// An event waits behind the closed gate.
    pub pending: bool,
    /// The sources that hold its line high, as [`IrqLine`](crate::IrqLine) has them.
    pub line: u64,
}

/// The GSIs of a table that differ from those of an empty one, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RouteTableState {
    /// The GSIs.
    pub gsis: Vec<GsiState>,
}

impl RouteTable {
    /// The state of all GSIs that are not on loan. Sources should be quiet: each GSI is saved at its own moment.
    pub fn save(&self) -> RouteTableState {
        let _config = self.config.lock();
        let gsis = (0..Self::GSIS).filter_map(|gsi| self.save_gsi(gsi)).collect();
        RouteTableState { gsis }
    }

    fn save_gsi(&self, gsi: u32) -> Option<GsiState> {
        let cell = &self.cells[gsi as usize];
        cell.latch.configure(
            |slot| {
                let Slot { payload, masked, pending } = *slot;
                let payload = Payload(payload);
                let routes = cell.routes(payload.kind()).to_vec();
                let line = cell.line();
                let is_new = routes.is_empty() && !masked && line == 0;
                (payload.tag() == 0 && !is_new).then_some(GsiState { gsi, routes, masked, pending, line })
            },
            |payload| self.deliver(cell, payload),
        )
    }

    /// Makes the table what was saved. Nothing is delivered: what was pending is pending, and the chips behind the
    /// pins have their own state.
    ///
    /// # Errors
    /// Whatever [`set`](Self::set) would refuse, [`Error::Snapshot`] for what no save produces, and [`Error::Busy`]
    /// while GSIs are on loan. The table is then as it was.
    pub fn restore(&self, state: &RouteTableState) -> Result<(), Error> {
        let RouteTableState { gsis } = state;
        let refuse = |gsi: u32, what: &str| Err(Error::Snapshot(format!("GSI {gsi}: {what}")));
        let mut last = None;
        for GsiState { gsi, routes, masked, pending, line } in gsis {
            self.index(*gsi)?;
            if last.replace(*gsi).is_some_and(|last| last >= *gsi) {
                return refuse(*gsi, "GSIs must stand in ascending order, each once");
            }
            self.validate_saved(*gsi, routes)?;
            if *pending && !*masked {
                return refuse(*gsi, "it is pending without being masked");
            }
            if *line != 0 && !matches!(routes.first(), Some(Route::Pin(_))) {
                return refuse(*gsi, "its line is high, and it has no pins");
            }
        }
        let mut config = self.config.lock();
        if config.leases.count() != 0 {
            return Err(Error::Busy("a GSI on loan to a device"));
        }
        let mut gsis = gsis.iter().peekable();
        for gsi in 0..Self::GSIS {
            let saved = gsis.next_if(|saved| saved.gsi == gsi);
            let routes: GsiRoutes = saved.map_or_else(GsiRoutes::new, |saved| GsiRoutes::from_slice(&saved.routes));
            self.apply(&mut config, gsi, &routes);
            let cell = &self.cells[gsi as usize];
            let (masked, pending, line) = saved.map_or((false, false, 0), |it| (it.masked, it.pending, it.line));
            let set = |slot: &mut Slot| {
                slot.masked = masked;
                slot.pending = pending;
                cell.set_line(line);
            };
            cell.latch.configure(set, |payload| self.deliver(cell, payload));
        }
        self.rebuild_reverse(&mut config);
        Ok(())
    }

    /// A saved GSI's entries: what the VMM may set, or the pin that the policy gives it.
    fn validate_saved(&self, gsi: u32, routes: &[Route]) -> Result<(), Error> {
        let cell = &self.cells[gsi as usize];
        let kind = Payload(cell.latch.peek().payload).kind();
        if kind == Kind::Pins && *routes == *cell.routes(kind) {
            return Ok(());
        }
        self.validate(gsi, routes)
    }
}
