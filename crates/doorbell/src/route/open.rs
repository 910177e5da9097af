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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        Delivery, Error, MsiMessage, MsiTarget, Target, VectorPath,
        gate::Gate,
        route::{NoPins, Route, RoutePolicy},
    };

    struct Nobody;

    impl MsiTarget for Nobody {
        fn send(&self, _: &MsiMessage) -> Result<Delivery, Error> {
            Ok(Delivery::Ignored)
        }
        fn prepare(&self, _: &MsiMessage) -> Option<Target> {
            None
        }
        fn fire(&self, _: Target) -> Delivery {
            Delivery::Ignored
        }
    }

    #[test]
    fn a_gsi_is_open_masked_or_gone_for_each_loan() {
        let table = RouteTable::new(Arc::new(Nobody), Arc::new(NoPins), RoutePolicy::S2_TABLE);
        let message = MsiMessage::new(0xfee0_0000, 0x41);
        let open = || OpenRoutes::Open(GsiRoutes::from_slice(&[Route::Msi(message)]));
        table.set_msi(24, &message).unwrap();
        assert_eq!(table.open_routes(24, 0), open());
        assert_eq!(table.open_routes(24, 1), OpenRoutes::Gone, "another loan");
        assert_eq!(table.open_routes(25, 0), OpenRoutes::Gone, "no entries");
        assert_eq!(table.open_routes(4096, 0), OpenRoutes::Gone, "beyond the table");
        Gate::new(&table).mask(24).unwrap();
        assert_eq!(table.open_routes(24, 0), OpenRoutes::Masked);

        let slot = table.lease().unwrap();
        table.set_message(slot, &message).unwrap();
        assert_eq!(table.open_routes(slot.gsi, slot.tag), OpenRoutes::Masked);
        table.unmask(slot);
        assert_eq!(table.open_routes(slot.gsi, slot.tag), open());
        assert_eq!(table.open_routes(slot.gsi, 0), OpenRoutes::Gone, "on loan");
    }
}
