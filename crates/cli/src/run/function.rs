//! A device's MSI-X function: the registers, and what a guest's driver does with them.

use std::{
    collections::HashMap,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use doorbell::{
    DeviceId, Error, MsiMessage, irqfd,
    manager::{self, IrqManager},
    pci::{
        InjectorMask, InjectorOptions, MsixCapability, MsixTable, MsixVector, VectorPool,
        msix::{
            RegisterPlace,
            registers::{ADDRESS_HIGH, ADDRESS_LOW, CONTROL, DATA, ENTRY_BYTES, MessageControl, VECTOR_CONTROL},
        },
    },
    route::{GsiRoutes, Route, RouteTable},
};

use super::{
    plan::{Line, Plan, Vector, Wire},
    process::Doorbell,
    report::{count, grouped},
};

/// The functions of a machine's devices; a legacy device has none.
pub struct Functions(Vec<Option<Function>>);

impl Functions {
    /// The functions of all devices, after reset.
    ///
    /// # Errors
    /// As [`InjectorMask::new`].
    pub fn new(pool: &Arc<VectorPool>, plan: &Plan) -> Result<Self, Error> {
        let function = |device| {
            let vectors = plan.of_device(device).filter(|vector| matches!(vector.wire, Wire::MsiX { .. })).count();
            (vectors > 0).then(|| Function::new(pool, vectors as u16, plan.requester(device))).transpose()
        };
        (0..plan.devices.len()).map(function).collect::<Result<_, _>>().map(Self)
    }

    /// The function of a device.
    pub fn of(&self, device: usize) -> Option<&Function> {
        self.0.get(device)?.as_ref()
    }

    /// Where the events of an entry of a device come in.
    pub fn vector(&self, device: usize, entry: u16) -> Option<MsixVector> {
        self.of(device)?.registers().table.strategy().vector(entry)
    }

    /// The driver brings all functions up.
    pub fn program(&self, plan: &Plan) {
        for (device, function) in self.0.iter().enumerate() {
            let vectors = plan.vectors.iter().enumerate().filter(|(_, vector)| vector.device == device);
            let messages = vectors.filter_map(|(index, vector)| match vector.wire {
                Wire::MsiX { entry } => Some((entry, plan.message(index))),
                Wire::Line(_) => None,
            });
            if let Some(function) = function {
                function.program(messages);
            }
        }
    }
}

/// The GSI of each vector of a plan whose functions have been programmed.
pub fn gsis(plan: &Plan, routes: impl Fn(u32) -> GsiRoutes) -> Vec<Option<u32>> {
    let by_message: HashMap<_, _> = (0..RouteTable::GSIS)
        .filter_map(|gsi| match routes(gsi).first() {
            Some(Route::Msi(message)) => Some(((message.address, message.data, message.device_id), gsi)),
            _ => None,
        })
        .collect();
    let gsi = |(index, vector): (usize, &Vector)| match vector.wire {
        Wire::MsiX { .. } => {
            let message = plan.message(index);
            by_message.get(&(message.address, message.data, plan.requester(vector.device))).copied()
        }
        Wire::Line(line) => Some(line.pin.into()),
    };
    plan.vectors.iter().enumerate().map(gsi).collect()
}

/// A bound eventfd, held for its drop.
pub enum Binding {
    /// Through the dispatcher alone.
    Vector(#[expect(dead_code, reason = "held for its drop")] irqfd::Irqfd),
    /// Through the manager.
    Irqfd(#[expect(dead_code, reason = "held for its drop")] manager::Irqfd),
}

/// Binds the descriptors of a line.
///
/// # Errors
/// As [`IrqManager::irqfd_resample`].
pub fn bind_line(irqs: &IrqManager, line: Line, doorbell: &Doorbell) -> Result<manager::Irqfd, Error> {
    let (gsi, eventfd) = (irqs.routed(line.pin.into())?, doorbell.eventfd.as_fd());
    match &doorbell.resample {
        Some(resample) => irqs.irqfd_resample(gsi, eventfd, resample.as_fd()),
        None => irqs.irqfd(gsi, eventfd),
    }
}

/// What the driver's masks came to.
pub fn note(masks: u64, functions: u64, replayed: u64) -> String {
    let whole =
        if functions == 0 { String::new() } else { format!(" and whole functions {}", count(functions, "time")) };
    let pending = match replayed {
        1 => "1 interrupt was".into(),
        _ => format!("{} interrupts were", grouped(replayed)),
    };
    format!(
        "Meanwhile the guest's driver masked vectors {}{whole}; when it unmasked, {pending} pending.",
        count(masks, "time")
    )
}

/// xorshift64.
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        // Any state but 0 will do.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Where the PBA lies in the BAR, behind the largest table.
const PBA_OFFSET: u32 = 0x8000;

/// The registers of one function, as a VMM holds them: behind a lock that only the guest's accesses take.
pub struct Function {
    registers: Mutex<Registers>,
    /// A driver has the Function Mask set at this moment.
    masked: AtomicBool,
    /// By entry: a driver has it masked at this moment.
    entries: Vec<AtomicBool>,
}

struct Registers {
    capability: MsixCapability,
    table: MsixTable<InjectorMask>,
}

impl Registers {
    fn store(&mut self, entry: u16, register: u64, value: u32) {
        self.table.write(u64::from(entry) * ENTRY_BYTES + register, &value.to_le_bytes());
    }

    fn control(&mut self, control: MessageControl) {
        self.capability.write(&mut self.table, CONTROL, &control.into_bits().to_le_bytes());
    }

    fn is_pending(&self, entry: u16) -> bool {
        let mut word = [0; 8];
        self.table.read_pba(u64::from(entry / 64) * 8, &mut word);
        u64::from_le_bytes(word) >> (entry % 64) & 1 != 0
    }
}

impl Function {
    /// A function with this many vectors, after reset.
    ///
    /// # Errors
    /// As [`InjectorMask::new`].
    fn new(pool: &Arc<VectorPool>, vectors: u16, requester: Option<DeviceId>) -> Result<Self, Error> {
        let place = |offset| RegisterPlace { bar: 0, offset };
        let capability = MsixCapability::new(vectors, 0, place(0), place(PBA_OFFSET))?;
        let table = MsixTable::new(InjectorMask::new(pool, vectors, InjectorOptions::default())?)?;
        let table = match requester {
            Some(requester) => table.from_device(requester),
            None => table,
        };
        let entries = (0..vectors).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { registers: Mutex::new(Registers { capability, table }), masked: AtomicBool::new(false), entries })
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver brings the function up, as Linux does: enabled with everything masked, the entries written and
    /// unmasked, and only then the Function Mask cleared.
    fn program(&self, messages: impl IntoIterator<Item = (u16, MsiMessage)>) {
        let mut registers = self.registers();
        registers.control(MessageControl::new().with_enable(true).with_function_mask(true));
        for (entry, message) in messages {
            registers.store(entry, ADDRESS_LOW, message.address as u32);
            registers.store(entry, ADDRESS_HIGH, (message.address >> 32) as u32);
            registers.store(entry, DATA, message.data);
            registers.store(entry, VECTOR_CONTROL, 0);
        }
        registers.control(MessageControl::new().with_enable(true));
    }

    /// The driver masks an entry and reads it back: from then on its interrupts are pending. False if another vCPU's has.
    pub fn mask(&self, entry: u16) -> bool {
        // Relaxed: the registers' lock orders the rest.
        if self.entries[usize::from(entry)].swap(true, Ordering::Relaxed) {
            return false;
        }
        let mut registers = self.registers();
        registers.store(entry, VECTOR_CONTROL, 1);
        let mut back = [0; 4];
        registers.table.read(u64::from(entry) * ENTRY_BYTES + VECTOR_CONTROL, &mut back);
        debug_assert_eq!(back, 1u32.to_le_bytes());
        true
    }

    /// The driver unmasks an entry. Returns whether an interrupt was pending.
    pub fn unmask(&self, entry: u16) -> bool {
        let mut registers = self.registers();
        let pending = registers.is_pending(entry);
        registers.store(entry, VECTOR_CONTROL, 0);
        drop(registers);
        self.entries[usize::from(entry)].store(false, Ordering::Relaxed);
        pending
    }

    /// The driver sets the Function Mask; false if another vCPU's has.
    pub fn mask_all(&self) -> bool {
        // Relaxed: the registers' lock orders the rest.
        if self.masked.swap(true, Ordering::Relaxed) {
            return false;
        }
        self.registers().control(MessageControl::new().with_enable(true).with_function_mask(true));
        true
    }

    /// The driver clears the Function Mask. Returns how many vectors were pending, at most.
    pub fn unmask_all(&self) -> u32 {
        let mut registers = self.registers();
        let pending = (0..registers.table.vectors()).filter(|&entry| registers.is_pending(entry)).count();
        registers.control(MessageControl::new().with_enable(true));
        drop(registers);
        self.masked.store(false, Ordering::Relaxed);
        pending as u32
    }
}
