//! What a station that takes over from the table may know of a GSI.

use super::{
    GsiRoutes, RouteTable,
    cell::{Kind, Payload},
};

/// How a GSI stands for somebody who delivers its events in the table's place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OpenRoutes {
    /// Events go to these entries.
    Open(GsiRoutes),
    /// Events become pending.
    Masked,
    /// It has no entries, or belongs to another loan.
    Gone,
}

impl RouteTable {
    /// How a GSI stands, for whom it is on this loan (0: on none).
    pub(crate) fn open_routes(&self, gsi: u32, tag: u32) -> OpenRoutes {
        let Some(cell) = self.cells.get(gsi as usize) else { return OpenRoutes::Gone };
        cell.latch.configure(
            |slot| {
                let payload = Payload(slot.payload);
                match payload.kind() {
                    _ if payload.tag() != tag => OpenRoutes::Gone,
                    _ if slot.masked => OpenRoutes::Masked,
                    Kind::None => OpenRoutes::Gone,
                    kind => OpenRoutes::Open(cell.routes(kind)),
                }
            },
            |payload| self.deliver(cell, payload),
        )
    }
}
