//! The mailbox through which the reference drivers reach the CPU interface of CPU 0. They load a program for that CPU,
//! which polls the mailbox; doorbell does not run it, and answers in its place.
//!
//! A word of RAM at [`MAILBOX`] is a command, and 0 when it is done; 8 bytes further is its argument, 16 bytes further its
//! result. Commands that write a register and read it back give what is read.

use std::sync::Arc;

use doorbell::chips::arm::{CpuInterface, IccRegister};
use doorbell::guest_ram::{GuestRamExt, RamBlock};

/// Where it is.
const MAILBOX: u64 = 0x4800_0000;
const ARGUMENT: u64 = MAILBOX + 8;
const RESULT: u64 = MAILBOX + 16;
const COMMAND_BYTES: u64 = 4;

const GICR_WAKER: u64 = 0x14;

/// What the program does before it polls.
const BEGINNING: [(IccRegister, u64); 3] = [(IccRegister::Sre, 7), (IccRegister::Pmr, 0xff), (IccRegister::Igrpen1, 1)];

/// What a command does.
enum Command {
    Read(IccRegister),
    Write(IccRegister),
    WriteAndRead(IccRegister),
}

fn command(number: u32) -> Option<Command> {
    Some(match number {
        1 => Command::Read(IccRegister::Hppir1),
        2 => Command::Read(IccRegister::Iar1),
        3 => Command::Write(IccRegister::Eoir1),
        4 => Command::Read(IccRegister::Rpr),
        5 => Command::WriteAndRead(IccRegister::Pmr),
        6 => Command::Write(IccRegister::Sgi1r),
        7 => Command::WriteAndRead(IccRegister::Ctlr),
        8 => Command::Write(IccRegister::Dir),
        9 => Command::WriteAndRead(IccRegister::Bpr1),
        10 => Command::WriteAndRead(IccRegister::Igrpen1),
        _ => return None,
    })
}

/// The mailbox, and how far the program would be.
pub struct Mailbox {
    ram: Arc<RamBlock>,
    running: bool,
    begun: bool,
}

impl Mailbox {
    /// The mailbox in this memory, of a program that has not begun.
    pub fn new(ram: Arc<RamBlock>) -> Self {
        Self { ram, running: false, begun: false }
    }

    /// The program runs, or stops.
    pub fn run(&mut self, running: bool, cpu: &mut CpuInterface) {
        self.running = running;
        if running && !self.begun {
            self.begun = true;
            // QEMU's redistributors do not hold interrupts back while they sleep, so no driver wakes them.
            if let Some(redistributor) = cpu.gic().redistributor(cpu.vcpu()) {
                redistributor.write(GICR_WAKER, 4, 0);
            }
            for (register, value) in BEGINNING {
                let _ = cpu.write(register, value);
            }
        }
        self.serve(cpu);
    }

    /// Somebody stored to RAM.
    pub fn stored(&mut self, address: u64, length: usize, cpu: &mut CpuInterface) {
        if address < MAILBOX + COMMAND_BYTES && MAILBOX < address.saturating_add(length as u64) {
            self.serve(cpu);
        }
    }

    /// Does the command that is there. Without RAM at the mailbox there is none.
    fn serve(&self, cpu: &mut CpuInterface) {
        let (Ok(number), Ok(argument)) = (self.ram.read_le::<u32>(MAILBOX), self.ram.read_le::<u64>(ARGUMENT)) else {
            return;
        };
        if !self.running || number == 0 {
            return;
        }
        let result = match command(number) {
            Some(Command::Read(register)) => cpu.read(register),
            Some(Command::Write(register)) => {
                // Nothing resamples here.
                let _ = cpu.write(register, argument);
                0
            }
            Some(Command::WriteAndRead(register)) => {
                let _ = cpu.write(register, argument);
                cpu.read(register)
            }
            None => 0,
        };
        // They lie beside what was just read.
        let _ = self.ram.write_le(RESULT, result).and_then(|()| self.ram.write_le(MAILBOX, 0u32));
    }
}
