//! Interrupt remapping: what a message costs more than one that goes straight to the local APICs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use doorbell::{
    DeviceId, MsiMessage, MsiTarget,
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
    remap::{
        amd::{AmdUnitOptions, AmdVi, registers::offset},
        vtd::{VtdOptions, VtdUnit, registers},
    },
    route::IrqTrigger,
};

use super::{
    Work,
    machine::{FIRST_VECTOR, Machine, ROUND, drain, message},
};

const TABLE: u64 = 0x1000;
const WARM_UP: u32 = 2 * doorbell::inflight::QUIET_FIRES;

/// A machine, and a trigger for each of its messages.
struct Side {
    machine: Machine,
    triggers: Vec<IrqTrigger>,
}

impl Side {
    fn new(machine: Machine, messages: impl Iterator<Item = MsiMessage>) -> Result<Self, String> {
        machine.route(messages)?;
        let triggers = (0..ROUND.into()).map(|gsi| {
            let mut trigger = IrqTrigger::new(Arc::clone(&machine.table), gsi);
            for _ in 0..WARM_UP {
                trigger.fire();
            }
            trigger
        });
        let mut side = Self { triggers: triggers.collect(), machine };
        side.tidy();
        side.fire(ROUND.into());
        let cpu = &side.machine.cpus[0];
        let pending = (0..=255).filter(|&vector| cpu.holds(vector)).count();
        if pending != usize::from(ROUND) {
            return Err(format!("{ROUND} events were fired and {pending} vectors are pending"));
        }
        side.tidy();
        Ok(side)
    }

    fn tidy(&mut self) {
        drain(&mut self.machine.cpus[0]);
    }

    fn fire(&mut self, times: usize) -> Duration {
        let started = Instant::now();
        for trigger in &mut self.triggers[..times] {
            std::hint::black_box(trigger.fire());
        }
        started.elapsed()
    }
}

const DEVICE: DeviceId = DeviceId(0x18);

/// What puts a unit in front of local APICs.
type Station = fn(Arc<dyn MsiTarget>) -> Result<Arc<dyn MsiTarget>, String>;

/// A VT-d unit whose table sends each message on as [`message`] would have it, for one device.
fn vtd_unit(apics: Arc<dyn MsiTarget>) -> Result<Arc<dyn MsiTarget>, String> {
    let ram = Arc::new(RamBlock::new(0, 0x4000));
    for n in 0..ROUND {
        let at = TABLE + 16 * u64::from(n);
        let entry = 1 | u64::from(FIRST_VECTOR + n) << 16;
        let written = ram.write_le(at, entry).and_then(|()| ram.write_le(at + 8, u64::from(DEVICE.0) | 1 << 18));
        written.map_err(|error| error.to_string())?;
    }
    let ram: Arc<dyn GuestRam> = ram;
    let unit = VtdUnit::new(VtdOptions::default(), apics, ram);
    unit.write(registers::TABLE_ADDRESS, 8, TABLE | 7);
    unit.write(registers::GLOBAL_COMMAND, 4, 1 << 24);
    unit.write(registers::GLOBAL_COMMAND, 4, 1 << 25);
    Ok(Arc::new(unit))
}

/// The same of an AMD-Vi unit.
fn amd_unit(apics: Arc<dyn MsiTarget>) -> Result<Arc<dyn MsiTarget>, String> {
    let ram = Arc::new(RamBlock::new(0, 0x4000));
    // 256 entries of 32 bits, remapped.
    let device = 1 | 8 << 1 | TABLE | 2 << 60;
    ram.write_le(32 * u64::from(DEVICE.0) + 16, device).map_err(|error| error.to_string())?;
    for n in 0..ROUND {
        let entry = 1 | u32::from(FIRST_VECTOR + n) << 16;
        ram.write_le(TABLE + 4 * u64::from(n), entry).map_err(|error| error.to_string())?;
    }
    let units =
        AmdVi::new(apics, ram, Arc::new(()), &[AmdUnitOptions::default()]).map_err(|error| error.to_string())?;
    // The device table is at 0.
    units.units().iter().for_each(|unit| unit.write(offset::CONTROL, 8, 1));
    Ok(units)
}

/// Behind VT-d.
pub fn vtd() -> Result<Work, String> {
    beside(vtd_unit, |n| MsiMessage::new(0xfee0_0010 | u64::from(n) << 5, 0))
}

/// Behind AMD-Vi.
pub fn amd() -> Result<Work, String> {
    beside(amd_unit, |n| MsiMessage::new(0xfee0_0000, n.into()))
}

/// Messages behind a unit and messages straight to the local APICs in turn; the difference counts.
fn beside(unit: Station, nth: fn(u8) -> MsiMessage) -> Result<Work, String> {
    let mut problem = None;
    let machine = Machine::behind(1, |apics| match unit(Arc::clone(&apics)) {
        Ok(unit) => unit,
        Err(error) => {
            problem = Some(error);
            apics
        }
    });
    if let Some(problem) = problem {
        return Err(problem);
    }
    let mut remapped = Side::new(machine, (0..ROUND).map(|n| nth(n).from_device(DEVICE)))?;
    let mut straight = Side::new(Machine::new(1), (0..ROUND).map(|n| message(0, FIRST_VECTOR + n)))?;
    Ok(Box::new(move |times| {
        let (mut long, mut short, mut left) = (Duration::ZERO, Duration::ZERO, times);
        while left > 0 {
            let now = left.min(ROUND.into());
            short += straight.fire(now as usize);
            straight.tidy();
            long += remapped.fire(now as usize);
            remapped.tidy();
            left -= now;
        }
        long.saturating_sub(short)
    }))
}
