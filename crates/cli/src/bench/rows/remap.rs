//! Interrupt remapping: what a message costs more than one that goes straight to the local APICs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use doorbell::{
    DeviceId, MsiMessage, MsiTarget,
    guest_ram::{GuestRam, GuestRamExt, RamBlock},
    remap::vtd::{VtdOptions, VtdUnit, registers},
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

/// A unit whose table sends each message on as [`message`] would have it, for one device.
fn unit(apics: Arc<dyn MsiTarget>) -> Result<Arc<dyn MsiTarget>, String> {
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

const DEVICE: DeviceId = DeviceId(0x18);

/// Messages behind VT-d and messages straight to the local APICs in turn; the difference counts.
pub fn vtd() -> Result<Work, String> {
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
    let handle = |n: u8| MsiMessage::new(0xfee0_0010 | u64::from(n) << 5, 0).from_device(DEVICE);
    let mut remapped = Side::new(machine, (0..ROUND).map(handle))?;
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
