//! A machine: RAM, time, and a board with the chips.

use std::collections::BTreeSet;
use std::sync::Arc;

use doorbell::chips::arm::CpuInterface;
use doorbell::clock::{Clock, VirtualClock};
use doorbell::guest_ram::{GuestRam, RamBlock};

use super::options::{Kind, Options};
use super::q35::Q35;
use super::virt::Virt;

/// No window is smaller, and each lies at a multiple of its size.
const SMALLEST_WINDOW: u64 = 0x100;

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// RAM, so many bytes until it ends.
    Ram(usize),
    /// Registers.
    Registers,
    /// Nothing, at least until the next place where a window may begin.
    Nothing,
}

/// The input pins of a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The chip, as the board numbers them.
    pub chip: u8,
    /// How many it has.
    pub pins: u16,
}

/// The chips and devices of a machine, at their addresses.
pub trait Board: Send {
    /// What lies at an address.
    fn area(&self, address: u64) -> Area;

    /// A load of 1, 2, 4 or 8 aligned bytes from registers. `bytes` is 0.
    fn load(&mut self, address: u64, bytes: &mut [u8]);

    /// A store.
    fn store(&mut self, address: u64, bytes: &[u8]);

    /// Somebody is about to load from RAM.
    fn before_ram_load(&mut self, _address: u64, _length: usize) {}

    /// Somebody has stored to RAM.
    fn after_ram_store(&mut self, _address: u64, _length: usize) {}

    /// A load from ports. A port that nobody answers reads as ones.
    fn port_load(&mut self, _port: u16, bytes: &mut [u8]) {
        bytes.fill(0xff);
    }

    /// A store to ports.
    fn port_store(&mut self, _port: u16, _bytes: &[u8]) {}

    /// The chip with this path in QEMU's tree.
    fn inputs(&self, path: &str) -> Option<Inputs>;

    /// Drives an input pin of a chip.
    fn set_line(&mut self, chip: u8, pin: u16, level: bool);

    /// An event of a device, from outside.
    fn event(&mut self, devfn: u8, vector: u16);

    /// A command of the human monitor; `None` if it is not known.
    fn human(&self, command: &[&str]) -> Option<String>;

    /// The vCPUs run, or stop.
    fn run(&mut self, _running: bool) {}

    /// The CPU interface of a vCPU, where the board has such a thing.
    fn cpu(&mut self, _cpu: u32) -> Option<&mut CpuInterface> {
        None
    }
}

/// The machine.
pub struct Machine {
    options: Options,
    clock: VirtualClock,
    ram: Arc<RamBlock>,
    board: Box<dyn Board>,
    /// The chip whose lines are watched: they are reported and reach it no more.
    watched: Option<u8>,
    /// Those of its lines that are high.
    high: BTreeSet<u16>,
    reports: Vec<(u16, bool)>,
}

fn board(options: &Options, ram: &Arc<RamBlock>) -> Result<Box<dyn Board>, String> {
    Ok(match options.kind {
        Kind::Q35 => Box::new(Q35::new(options, ram)?),
        Kind::Virt { .. } => Box::new(Virt::new(options, ram)?),
    })
}

impl Machine {
    /// A machine after power-on.
    ///
    /// # Errors
    /// One line, where a device cannot be made.
    pub fn new(options: Options) -> Result<Self, String> {
        let bytes = usize::try_from(options.mib << 20).map_err(|error| error.to_string())?;
        let ram = Arc::new(RamBlock::new(options.kind.ram(), bytes));
        let board = board(&options, &ram)?;
        let (clock, reports) = (VirtualClock::default(), Vec::new());
        Ok(Self { options, clock, ram, board, watched: None, high: BTreeSet::new(), reports })
    }

    /// The chips and devices as after power-on, and every line low. RAM, time and what is watched stay.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn reset(&mut self) -> Result<(), String> {
        self.board = board(&self.options, &self.ram)?;
        self.high.clear();
        Ok(())
    }

    /// How many bytes one access at `address` moves, of `left`: RAM takes all, registers aligned words. Nobody's addresses
    /// are passed quickly, up to where a window may begin.
    fn piece(area: Area, address: u64, left: usize) -> usize {
        match area {
            Area::Ram(until_end) => left.min(until_end),
            Area::Nothing => left.min((SMALLEST_WINDOW - address % SMALLEST_WINDOW) as usize),
            Area::Registers => {
                [8, 4, 2].into_iter().find(|size| *size <= left && address % *size as u64 == 0).unwrap_or(1)
            }
        }
    }

    /// A load of any length. What nobody answers reads as 0, as with QEMU's client.
    pub fn load(&mut self, mut address: u64, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let area = self.board.area(address);
            let (now, rest) = bytes.split_at_mut(Self::piece(area, address, bytes.len()));
            now.fill(0);
            match area {
                Area::Ram(_) => {
                    self.board.before_ram_load(address, now.len());
                    // The piece lies in it.
                    let _ = self.ram.read(address, now);
                }
                Area::Registers => self.board.load(address, now),
                Area::Nothing => {}
            }
            address = address.wrapping_add(now.len() as u64);
            bytes = rest;
        }
    }

    /// A store of any length.
    pub fn store(&mut self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let area = self.board.area(address);
            let (now, rest) = bytes.split_at(Self::piece(area, address, bytes.len()));
            match area {
                Area::Ram(_) => {
                    let _ = self.ram.write(address, now);
                    self.board.after_ram_store(address, now.len());
                }
                Area::Registers => self.board.store(address, now),
                Area::Nothing => {}
            }
            address = address.wrapping_add(now.len() as u64);
            bytes = rest;
        }
    }

    /// A load from ports.
    pub fn port_load(&mut self, port: u16, bytes: &mut [u8]) {
        self.board.port_load(port, bytes);
    }

    /// A store to ports.
    pub fn port_store(&mut self, port: u16, bytes: &[u8]) {
        self.board.port_store(port, bytes);
    }

    /// The chip with this path in QEMU's tree.
    pub fn inputs(&self, path: &str) -> Option<Inputs> {
        self.board.inputs(path)
    }

    /// Drives an input pin of a chip.
    pub fn set_line(&mut self, chip: u8, pin: u16, level: bool) {
        if self.watched == Some(chip) {
            let changed = if level { self.high.insert(pin) } else { self.high.remove(&pin) };
            if changed {
                self.reports.push((pin, level));
            }
            return;
        }
        self.board.set_line(chip, pin, level);
    }

    /// From now on the lines of `chip` are reported and do not reach it. False if another chip's already are.
    pub fn watch(&mut self, chip: u8) -> bool {
        let free = self.watched.is_none_or(|watched| watched == chip);
        if free {
            self.watched = Some(chip);
        }
        free
    }

    /// The changes of watched lines since the last call.
    pub fn take_watched(&mut self) -> Vec<(u16, bool)> {
        std::mem::take(&mut self.reports)
    }

    /// Moves time on by so many nanoseconds, or to the next thing that waits for it. Returns what time it is.
    pub fn step_clock(&mut self, ns: Option<u64>) -> u64 {
        // Nothing waits: a client cannot start a timer of the machines that there are.
        self.set_clock(self.clock.now_ns().saturating_add(ns.unwrap_or(0)))
    }

    /// Moves time on to `ns`; it does not go back. Returns what time it is.
    pub fn set_clock(&mut self, ns: u64) -> u64 {
        self.clock.advance(ns.saturating_sub(self.clock.now_ns()));
        self.clock.now_ns()
    }

    /// An event of an ivshmem device, as its peers raise it.
    pub fn ivshmem_event(&mut self, devfn: u8, vector: u16) {
        self.board.event(devfn, vector);
    }

    /// A command of the human monitor; `None` if it is not known.
    pub fn human(&self, command: &[&str]) -> Option<String> {
        self.board.human(command)
    }

    /// The vCPUs run, or stop.
    pub fn run(&mut self, running: bool) {
        self.board.run(running);
    }

    /// The CPU interface of a vCPU, where the machine has such a thing.
    pub fn cpu(&mut self, cpu: u32) -> Option<&mut CpuInterface> {
        self.board.cpu(cpu)
    }

    /// What the machine was made of.
    pub fn options(&self) -> &Options {
        &self.options
    }
}
