//! Lines of GSIs: what line calls and resampling irqfds drive.

use super::{
    LineCalls, Pin, RouteTable,
    cell::{GsiCell, Kind, Payload},
};
use crate::{Delivery, LineSource, inflight::Slot};

impl RouteTable {
    /// Drives one source of a GSI's line. `KVM_IRQ_LINE`: a message is sent on the rising call only.
    pub fn line(&self, gsi: u32, source: LineSource, level: bool) -> Delivery {
        if let LineCalls::Direct(chip) = self.policy.lines {
            return match u16::try_from(gsi) {
                Ok(pin) if pin < self.pins.pins(chip) => self.pins.set(chip, pin, source, level),
                _ => Delivery::Ignored,
            };
        }
        self.routed_line(gsi, source, level)
    }

    /// The same, through the table whatever the policy says of line calls: an irqfd's line, whose GSI is always routed.
    pub(crate) fn routed_line(&self, gsi: u32, source: LineSource, level: bool) -> Delivery {
        let Some(cell) = self.cells.get(gsi as usize) else { return Delivery::Ignored };
        cell.latch.configure(
            |slot| {
                let payload = Payload(slot.payload);
                match payload.kind() {
                    Kind::Pins => {
                        let mut line = crate::IrqLine::from_bits(cell.line());
                        line.set(source, level);
                        cell.set_line(line.bits());
                        if slot.masked { Delivery::Ignored } else { self.drive(cell, source, level) }
                    }
                    _ if !level => Delivery::Ignored,
                    _ if slot.masked => {
                        slot.pending = true;
                        Delivery::Ignored
                    }
                    _ => self.deliver(cell, slot.payload),
                }
            },
            |payload| self.deliver(cell, payload),
        )
    }

    /// Drives one source of all pins of a GSI.
    fn drive(&self, cell: &GsiCell, source: LineSource, level: bool) -> Delivery {
        let set = |pin: Pin| self.pins.set(pin.chip, pin.pin, source, level);
        cell.pins().into_iter().map(set).fold(Delivery::Ignored, Delivery::and)
    }

    /// Shows the pins of a GSI the sources that hold its line, or takes them away. For the gate, inside the latch.
    pub(crate) fn present(&self, gsi: usize, slot: &Slot, level: bool) -> Option<Delivery> {
        let cell = &self.cells[gsi];
        let line = cell.line();
        if Payload(slot.payload).kind() != Kind::Pins || line == 0 {
            return None;
        }
        let sources = (0..LineSource::COUNT).filter_map(LineSource::new).filter(|source| line & source.bit() != 0);
        Some(sources.map(|source| self.drive(cell, source, level)).fold(Delivery::Ignored, Delivery::and))
    }
}
