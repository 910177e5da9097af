//! The UART PL011 (Arm DDI 0183G, "PrimeCell UART (PL011) Technical Reference Manual", chapter 3).
//!
//! Characters are sent at once, so the transmitter is never busy and the baud rate means nothing. What is received waits in
//! a FIFO of 32 characters, as revision r1p5 has it; more than that stays with who offers it ([`Pl011::receive`]). The
//! receive timeout, which tells a guest of characters below its trigger level, happens at once.
//!
//! ```
//! use doorbell_board::{Mmio, pl011::Pl011};
//! use std::sync::{Arc, Mutex};
//! let screen = Arc::new(Mutex::new(Vec::new()));
//! let out = Arc::clone(&screen);
//! let uart = Pl011::new(move |byte| out.lock().unwrap().push(byte), |level| println!("the interrupt line is {level}"));
//! uart.write(0x000, 4, b'a'.into()); // UARTDR
//! assert_eq!(*screen.lock().unwrap(), b"a");
//! uart.write(0x02c, 4, 0x70); // UARTLCR_H: FIFOs on
//! assert_eq!(uart.receive(b"xyz"), 3);
//! assert_eq!(uart.read(0x000, 4) as u8, b'x');
//! ```

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::{Mmio, Wire, mmio::primecell_id, wire::Output};

const UARTDR: u64 = 0x000;
const UARTRSR: u64 = 0x004;
const UARTFR: u64 = 0x018;
const UARTILPR: u64 = 0x020;
const UARTIBRD: u64 = 0x024;
const UARTFBRD: u64 = 0x028;
const UARTLCR_H: u64 = 0x02c;
const UARTCR: u64 = 0x030;
const UARTIFLS: u64 = 0x034;
const UARTIMSC: u64 = 0x038;
const UARTRIS: u64 = 0x03c;
const UARTMIS: u64 = 0x040;
const UARTICR: u64 = 0x044;
const UARTDMACR: u64 = 0x048;

/// UARTPeriphID0 to 3 and UARTPCellID0 to 3, revision r1p5.
const ID: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Characters that the receive FIFO holds.
pub const FIFO: usize = 32;

/// UARTFR, section 3.3.3.
#[bitfield_struct::bitfield(u32)]
struct Flags {
    #[bits(3)]
    modem: u8,
    busy: bool,
    receive_empty: bool,
    transmit_full: bool,
    receive_full: bool,
    transmit_empty: bool,
    #[bits(24)]
    __: u32,
}

/// UARTLCR_H, section 3.3.7, as far as it means something here.
#[bitfield_struct::bitfield(u32)]
struct LineControl {
    #[bits(4)]
    parity: u8,
    fifos: bool,
    #[bits(3)]
    word: u8,
    #[bits(24)]
    __: u32,
}

/// UARTCR, section 3.3.8, as far as it means something here.
#[bitfield_struct::bitfield(u32)]
struct Control {
    enabled: bool,
    #[bits(6)]
    infrared: u8,
    loop_back: bool,
    transmit: bool,
    receive: bool,
    #[bits(6)]
    modem: u8,
    #[bits(16)]
    __: u32,
}

/// The bits of UARTIMSC, UARTRIS, UARTMIS and UARTICR, section 3.3.10.
#[bitfield_struct::bitfield(u32)]
struct Interrupts {
    #[bits(4)]
    modem: u8,
    receive: bool,
    transmit: bool,
    receive_timeout: bool,
    #[bits(4)]
    errors: u8,
    #[bits(21)]
    __: u32,
}

impl Interrupts {
    const ALL: u32 = Self::new()
        .with_modem(0xf)
        .with_receive(true)
        .with_transmit(true)
        .with_receive_timeout(true)
        .with_errors(0xf)
        .into_bits();
}

/// A PL011. See the [module](self).
pub struct Pl011 {
    /// Nothing else of the board is locked while it is held.
    state: Mutex<State>,
}

struct State {
    send: Box<dyn FnMut(u8) + Send>,
    irq: Output,
    received: VecDeque<u8>,
    line: LineControl,
    control: Control,
    levels: u32,
    mask: u32,
    raw: u32,
    /// Registers that are only kept: IrDA, baud rate, DMA.
    low_power: u32,
    integer: u32,
    fraction: u32,
    dma: u32,
}

impl Pl011 {
    /// A UART after reset, which gives each character that the guest sends to `send`, and drives `irq`.
    pub fn new(send: impl FnMut(u8) + Send + 'static, irq: impl Wire + 'static) -> Self {
        Self {
            state: Mutex::new(State {
                send: Box::new(send),
                irq: Output::new(irq),
                received: VecDeque::with_capacity(FIFO),
                line: LineControl::new(),
                // Reset values: sections 3.3.8 and 3.3.9.
                control: Control::new().with_transmit(true).with_receive(true),
                levels: 0x12,
                mask: 0,
                raw: 0,
                low_power: 0,
                integer: 0,
                fraction: 0,
                dma: 0,
            }),
        }
    }

    /// Characters for the guest. Returns how many there was room for; the rest is to be offered again when the guest has
    /// read some.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        let taken = bytes.len().min(state.room());
        state.received.extend(&bytes[..taken]);
        state.notice_received();
        state.drive();
        taken
    }

    /// How many more characters it would take now.
    pub fn room(&self) -> usize {
        self.state.lock().room()
    }
}

impl State {
    /// Without FIFOs there is one holding register (section 2.4.3).
    fn depth(&self) -> usize {
        if self.line.fifos() { FIFO } else { 1 }
    }

    fn room(&self) -> usize {
        self.depth().saturating_sub(self.received.len())
    }

    /// How many characters raise the receive interrupt: UARTIFLS, section 3.3.9.
    fn receive_level(&self) -> usize {
        if !self.line.fifos() {
            return 1;
        }
        match self.levels >> 3 & 7 {
            0 => FIFO / 8,
            1 => FIFO / 4,
            2 => FIFO / 2,
            3 => FIFO * 3 / 4,
            _ => FIFO * 7 / 8,
        }
    }

    fn notice_received(&mut self) {
        let waiting = self.received.len();
        let raw = Interrupts::from_bits(self.raw);
        self.raw = raw
            .with_receive(raw.receive() || waiting >= self.receive_level())
            .with_receive_timeout(raw.receive_timeout() || waiting > 0)
            .into_bits();
    }

    fn take(&mut self) -> u8 {
        let byte = self.received.pop_front().unwrap_or(0);
        let (waiting, raw) = (self.received.len(), Interrupts::from_bits(self.raw));
        // Below the level the one ends, with the last character the other.
        self.raw = raw
            .with_receive(raw.receive() && waiting >= self.receive_level())
            .with_receive_timeout(raw.receive_timeout() && waiting > 0)
            .into_bits();
        byte
    }

    fn transmit(&mut self, byte: u8) {
        if self.control.loop_back() {
            if self.room() > 0 {
                self.received.push_back(byte);
                self.notice_received();
            }
        } else {
            (self.send)(byte);
        }
        // The FIFO is empty again already.
        self.raw = Interrupts::from_bits(self.raw).with_transmit(true).into_bits();
    }

    fn flags(&self) -> u32 {
        Flags::new()
            .with_receive_empty(self.received.is_empty())
            .with_receive_full(self.room() == 0)
            .with_transmit_empty(true)
            .into_bits()
    }

    fn drive(&mut self) {
        self.irq.set(self.raw & self.mask != 0);
    }

    fn load(&mut self, offset: u64) -> u32 {
        match offset {
            UARTDR => self.take().into(),
            UARTRSR => 0,
            UARTFR => self.flags(),
            UARTILPR => self.low_power,
            UARTIBRD => self.integer,
            UARTFBRD => self.fraction,
            UARTLCR_H => self.line.into_bits(),
            UARTCR => self.control.into_bits(),
            UARTIFLS => self.levels,
            UARTIMSC => self.mask,
            UARTRIS => self.raw,
            UARTMIS => self.raw & self.mask,
            UARTDMACR => self.dma,
            _ => primecell_id(ID, offset).unwrap_or(0),
        }
    }

    fn store(&mut self, offset: u64, value: u32) {
        match offset {
            UARTDR => self.transmit(value as u8),
            UARTILPR => self.low_power = value & 0xff,
            UARTIBRD => self.integer = value & 0xffff,
            UARTFBRD => self.fraction = value & 0x3f,
            UARTLCR_H => {
                let line = LineControl::from_bits(value & 0xff);
                // Switching the FIFOs off empties them (section 3.3.7).
                if self.line.fifos() != line.fifos() {
                    self.received.clear();
                }
                self.line = line;
            }
            UARTCR => self.control = Control::from_bits(value & 0xffff),
            UARTIFLS => {
                self.levels = value & 0x3f;
                self.notice_received();
            }
            UARTIMSC => self.mask = value & Interrupts::ALL,
            UARTICR => self.raw &= !value,
            UARTDMACR => self.dma = value & 7,
            _ => {}
        }
    }
}

impl Mmio for Pl011 {
    /// Registers are 32 bits wide; a narrower access reaches the low part of the one it starts at.
    fn read(&self, offset: u64, _bytes: u8) -> u64 {
        let mut state = self.state.lock();
        let value = state.load(offset);
        state.drive();
        value.into()
    }

    fn write(&self, offset: u64, _bytes: u8, value: u64) {
        let mut state = self.state.lock();
        state.store(offset, value as u32);
        state.drive();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What was observed, in order.
    type Log<T> = Arc<Mutex<Vec<T>>>;

    fn uart() -> (Pl011, Log<u8>, Log<bool>) {
        let (sent, levels) = (Log::<u8>::default(), Log::<bool>::default());
        let (out, wire) = (Arc::clone(&sent), Arc::clone(&levels));
        (Pl011::new(move |byte| out.lock().push(byte), move |level| wire.lock().push(level)), sent, levels)
    }

    const FIFOS_ON: u64 = 0x70;

    #[test]
    fn a_guest_finds_a_pl011() {
        let (uart, ..) = uart();
        let id: Vec<_> = (0..8).map(|at| uart.read(0xfe0 + 4 * at, 4)).collect();
        assert_eq!(id, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!(uart.read(UARTFR, 4), 0x90, "nothing received, all sent");
        assert_eq!((uart.read(UARTCR, 4), uart.read(UARTIFLS, 4)), (0x300, 0x12));
    }

    #[test]
    fn the_transmit_interrupt_follows_each_character_and_its_mask() {
        let (uart, sent, levels) = uart();
        uart.write(UARTDR, 4, b'a'.into());
        assert_eq!(uart.read(UARTRIS, 4), 0x20);
        assert!(levels.lock().is_empty(), "masked");
        uart.write(UARTIMSC, 4, 0x20);
        uart.write(UARTICR, 4, 0x20);
        uart.write(UARTDR, 1, b'b'.into());
        assert_eq!(*levels.lock(), [true, false, true]);
        assert_eq!(*sent.lock(), b"ab");
    }

    #[test]
    fn a_single_character_is_told_by_the_timeout_and_many_by_the_level() {
        let (uart, _, levels) = uart();
        uart.write(UARTLCR_H, 4, FIFOS_ON);
        uart.write(UARTIMSC, 4, 0x50);
        assert_eq!(uart.receive(b"x"), 1);
        assert_eq!(uart.read(UARTMIS, 4), 0x40);
        assert_eq!(uart.receive(&[b'y'; 15]), 15);
        assert_eq!(uart.read(UARTMIS, 4), 0x50, "half full");
        assert_eq!(uart.read(UARTDR, 4), u64::from(b'x'));
        assert_eq!(uart.read(UARTMIS, 4), 0x40, "below the level again");
        for _ in 0..15 {
            uart.read(UARTDR, 4);
        }
        assert_eq!(uart.read(UARTMIS, 4), 0);
        assert_eq!(*levels.lock(), [true, false]);
    }

    #[test]
    fn what_does_not_fit_stays_with_its_sender() {
        let (uart, ..) = uart();
        assert_eq!(uart.receive(b"ab"), 1, "one holding register without FIFOs");
        uart.write(UARTLCR_H, 4, FIFOS_ON);
        assert_eq!(uart.receive(&[0; 100]), FIFO);
        assert_eq!(uart.read(UARTFR, 4) & 0x50, 0x40, "full, not empty");
        assert_eq!(uart.receive(b"z"), 0);
    }

    #[test]
    fn in_loop_back_a_guest_hears_itself() {
        let (uart, sent, _) = uart();
        uart.write(UARTCR, 4, 0x381);
        uart.write(UARTDR, 4, b'q'.into());
        assert!(sent.lock().is_empty());
        assert_eq!(uart.read(UARTDR, 4), u64::from(b'q'));
    }
}
