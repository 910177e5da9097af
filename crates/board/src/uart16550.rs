//! The UART of PCs: National Semiconductor's PC16550D (data sheet, section 8, "Registers").
//!
//! Eight registers of one byte, at ports or in memory. Characters are sent at once, so the transmitter is always empty; the
//! baud rate is kept and means nothing. The receive FIFO's time-out, which tells a guest of characters below its trigger
//! level, happens at once.
//!
//! ```
//! use doorbell_board::{Mmio, uart16550::Uart16550};
//! let uart = Uart16550::new(|byte| print!("{}", byte as char), |level| println!("IRQ 4 is {level}"));
//! uart.write(0, 1, b'a'.into());
//! assert_eq!(uart.read(5, 1), 0x60, "LSR: the transmitter is empty");
//! ```

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::{Mmio, Wire, wire::Output};

/// Characters that the receive FIFO holds.
pub const FIFO: usize = 16;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

/// Interrupt Enable Register, section 8.6.
#[bitfield_struct::bitfield(u8)]
struct Enables {
    received: bool,
    transmitter: bool,
    line_status: bool,
    modem_status: bool,
    #[bits(4)]
    __: u8,
}

/// Line Control Register, section 8.1.
#[bitfield_struct::bitfield(u8)]
struct LineControl {
    #[bits(7)]
    format: u8,
    divisor_latch: bool,
}

/// Line Status Register, section 8.4.
#[bitfield_struct::bitfield(u8)]
struct LineStatus {
    ready: bool,
    overrun: bool,
    #[bits(3)]
    errors: u8,
    transmit_holding_empty: bool,
    transmitter_empty: bool,
    fifo_error: bool,
}

/// Modem Control Register, section 8.7.
#[bitfield_struct::bitfield(u8)]
struct ModemControl {
    /// DTR, RTS, OUT1, OUT2: a loop leads them to DSR, CTS, RI, DCD.
    #[bits(4)]
    outputs: u8,
    loop_back: bool,
    #[bits(3)]
    __: u8,
}

/// Interrupt Identification Register, section 8.5, by falling urgency.
const RECEIVED: u8 = 0x04;
const TIMEOUT: u8 = 0x0c;
const TRANSMITTER: u8 = 0x02;
const NONE: u8 = 0x01;
const FIFOS_ON: u8 = 0xc0;

/// A 16550. See the [module](self).
pub struct Uart16550 {
    /// Nothing else of the board is locked while it is held.
    state: Mutex<State>,
}

struct State {
    send: Box<dyn FnMut(u8) + Send>,
    irq: Output,
    received: VecDeque<u8>,
    enables: Enables,
    fifos: bool,
    /// How many characters raise the interrupt with FIFOs.
    trigger: usize,
    line: LineControl,
    modem: ModemControl,
    divisor: u16,
    scratch: u8,
    /// The transmitter became empty, and nobody has been told since.
    transmitted: bool,
}

impl Uart16550 {
    /// A UART after reset, which gives each character that the guest sends to `send`, and drives `irq`.
    pub fn new(send: impl FnMut(u8) + Send + 'static, irq: impl Wire + 'static) -> Self {
        Self {
            state: Mutex::new(State {
                send: Box::new(send),
                irq: Output::new(irq),
                received: VecDeque::with_capacity(FIFO),
                enables: Enables::new(),
                fifos: false,
                trigger: 1,
                line: LineControl::new(),
                modem: ModemControl::new(),
                divisor: 0,
                scratch: 0,
                transmitted: false,
            }),
        }
    }

    /// Characters for the guest. Returns how many there was room for; the rest is to be offered again when the guest has
    /// read some.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.state.lock();
        let taken = bytes.len().min(state.room());
        state.received.extend(&bytes[..taken]);
        state.drive();
        taken
    }

    /// How many more characters it would take now.
    pub fn room(&self) -> usize {
        self.state.lock().room()
    }
}

impl State {
    fn room(&self) -> usize {
        let depth = if self.fifos { FIFO } else { 1 };
        depth.saturating_sub(self.received.len())
    }

    /// The most urgent cause that is enabled.
    fn cause(&self) -> u8 {
        let waiting = self.received.len();
        if self.enables.received() && waiting > 0 {
            return if self.fifos && waiting < self.trigger { TIMEOUT } else { RECEIVED };
        }
        if self.enables.transmitter() && self.transmitted { TRANSMITTER } else { NONE }
    }

    fn drive(&mut self) {
        let level = self.cause() != NONE;
        self.irq.set(level);
    }

    fn transmit(&mut self, byte: u8) {
        if !self.modem.loop_back() {
            (self.send)(byte);
        } else if self.room() > 0 {
            self.received.push_back(byte);
        }
        self.transmitted = true;
    }

    /// FIFO Control Register, section 8.3.
    fn control_fifos(&mut self, value: u8) {
        let on = value & 1 != 0;
        if on != self.fifos || value & 2 != 0 {
            self.received.clear();
        }
        self.fifos = on;
        self.trigger = if on { [1, 4, 8, 14][usize::from(value >> 6)] } else { 1 };
    }

    fn load(&mut self, register: u64) -> u8 {
        let [low, high] = self.divisor.to_le_bytes();
        match register {
            DATA if self.line.divisor_latch() => low,
            IER if self.line.divisor_latch() => high,
            DATA => self.received.pop_front().unwrap_or(0),
            IER => self.enables.into_bits(),
            IIR_FCR => {
                let cause = self.cause();
                if cause == TRANSMITTER {
                    self.transmitted = false;
                }
                cause | if self.fifos { FIFOS_ON } else { 0 }
            }
            LCR => self.line.into_bits(),
            MCR => self.modem.into_bits(),
            LSR => LineStatus::new()
                .with_ready(!self.received.is_empty())
                .with_transmit_holding_empty(true)
                .with_transmitter_empty(true)
                .into_bits(),
            MSR if self.modem.loop_back() => looped(self.modem.outputs()),
            // Data set and carrier are there, and it may send.
            MSR => 0xb0,
            SCR => self.scratch,
            _ => 0,
        }
    }

    fn store(&mut self, register: u64, value: u8) {
        let [low, high] = self.divisor.to_le_bytes();
        match register {
            DATA if self.line.divisor_latch() => self.divisor = u16::from_le_bytes([value, high]),
            IER if self.line.divisor_latch() => self.divisor = u16::from_le_bytes([low, value]),
            DATA => self.transmit(value),
            IER => {
                let enables = Enables::from_bits(value & 0xf);
                // Asking for it while the transmitter is empty is answered at once.
                self.transmitted |= enables.transmitter() && !self.enables.transmitter();
                self.enables = enables;
            }
            IIR_FCR => self.control_fifos(value),
            LCR => self.line = LineControl::from_bits(value),
            MCR => self.modem = ModemControl::from_bits(value & 0x1f),
            SCR => self.scratch = value,
            _ => {}
        }
    }
}

/// Modem Status Register, section 8.8: where a loop leads the modem control outputs.
fn looped(outputs: u8) -> u8 {
    let (dtr, rts, out1, out2) = (outputs & 1, outputs >> 1 & 1, outputs >> 2 & 1, outputs >> 3 & 1);
    rts << 4 | dtr << 5 | out1 << 6 | out2 << 7
}

impl Mmio for Uart16550 {
    /// Registers are one byte wide; a wider access reaches the one it starts at.
    fn read(&self, offset: u64, _bytes: u8) -> u64 {
        let mut state = self.state.lock();
        let value = state.load(offset);
        state.drive();
        value.into()
    }

    fn write(&self, offset: u64, _bytes: u8, value: u64) {
        let mut state = self.state.lock();
        state.store(offset, value as u8);
        state.drive();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What was observed, in order.
    type Log<T> = Arc<Mutex<Vec<T>>>;

    fn uart() -> (Uart16550, Log<u8>, Log<bool>) {
        let (sent, levels) = (Log::<u8>::default(), Log::<bool>::default());
        let (out, wire) = (Arc::clone(&sent), Arc::clone(&levels));
        (Uart16550::new(move |byte| out.lock().push(byte), move |level| wire.lock().push(level)), sent, levels)
    }

    #[test]
    fn a_driver_finds_a_16550_with_fifos() {
        let (uart, ..) = uart();
        assert_eq!((uart.read(IIR_FCR, 1), uart.read(LSR, 1)), (0x01, 0x60));
        uart.write(IIR_FCR, 1, 0x01);
        assert_eq!(uart.read(IIR_FCR, 1), 0xc1);
        uart.write(SCR, 1, 0x5a);
        uart.write(LCR, 1, 0x83);
        uart.write(DATA, 1, 0x0c);
        uart.write(IER, 1, 0x01);
        assert_eq!((uart.read(DATA, 1), uart.read(IER, 1)), (0x0c, 0x01), "the divisor");
        uart.write(LCR, 1, 0x03);
        assert_eq!((uart.read(IER, 1), uart.read(SCR, 1)), (0, 0x5a));
    }

    #[test]
    fn the_transmitter_interrupts_when_asked_and_after_each_character_until_told() {
        let (uart, sent, levels) = uart();
        uart.write(IER, 1, 0x02);
        assert_eq!(uart.read(IIR_FCR, 1), 0x02);
        assert_eq!(uart.read(IIR_FCR, 1), 0x01, "reading it was enough");
        uart.write(DATA, 1, b'a'.into());
        assert_eq!(*levels.lock(), [true, false, true]);
        uart.write(IER, 1, 0);
        assert_eq!(*levels.lock(), [true, false, true, false]);
        assert_eq!(*sent.lock(), b"a");
    }

    #[test]
    fn received_characters_interrupt_by_level_and_by_time_out() {
        let (uart, _, levels) = uart();
        uart.write(IIR_FCR, 1, 0x41);
        uart.write(IER, 1, 0x01);
        assert_eq!(uart.receive(b"ab"), 2);
        assert_eq!(uart.read(IIR_FCR, 1), 0xcc, "two of four");
        assert_eq!(uart.receive(&[b'c'; 20]), 14);
        assert_eq!(uart.read(IIR_FCR, 1), 0xc4);
        let all: Vec<u8> = (0..16).map(|_| uart.read(DATA, 1) as u8).collect();
        assert_eq!(all, b"abcccccccccccccc");
        assert_eq!((uart.read(LSR, 1), uart.read(IIR_FCR, 1)), (0x60, 0xc1));
        assert_eq!(*levels.lock(), [true, false]);
    }

    #[test]
    fn in_loop_back_a_guest_hears_itself() {
        let (uart, sent, _) = uart();
        uart.write(MCR, 1, 0x1a);
        assert_eq!(uart.read(MSR, 1), 0x90, "RTS is CTS, OUT2 is DCD");
        uart.write(DATA, 1, b'q'.into());
        assert_eq!(uart.read(DATA, 1), u64::from(b'q'));
        assert!(sent.lock().is_empty());
    }
}
