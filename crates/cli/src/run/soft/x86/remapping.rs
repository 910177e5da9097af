//! The guest's half of interrupt remapping: tables in guest memory that say where each interrupt arrives, and the
//! commands by which a change of them becomes complete.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use doorbell::{
    MsiTarget,
    guest_ram::{GuestRamExt, NoMemory, RamBlock},
    remap::{
        amd::{
            AmdUnitOptions, AmdVi,
            command::{CompletionWait, ForDevice, opcode},
            registers::{BufferBase, Control, DeviceTableBase, offset},
            tables::{DEVICE_ENTRY, DeviceInterrupts, INTERRUPTS, IntCtl, WIDE_ENTRY, WideHigh, WideLow},
        },
        vtd::{VtdOptions, VtdUnit, registers},
    },
};

use crate::run::{
    machine::Remap,
    plan::{Plan, x86::Place},
};

/// Where things lie in the guest's memory.
const QUEUE: u64 = 0x1000;
const STATUS: u64 = 0x3000;
const DEVICES: u64 = 0x8000;
const TABLE: u64 = 0x20_0000;
/// The largest table of one AMD-Vi device.
const DEVICE_TABLE_BYTES: u64 = 2048 * WIDE_ENTRY;
const RAM: usize = 0x40_0000;
/// The bytes of a queue of 256 commands; both schemes have commands of 16 bytes.
const QUEUE_BYTES: u64 = 256 * 16;

enum Unit {
    Vtd(Arc<VtdUnit>),
    Amd(Arc<AmdVi>),
}

/// Which commands were given.
struct Commands {
    tail: u64,
    number: u32,
}

/// See the [module](self).
pub struct Remapping {
    unit: Unit,
    ram: Arc<RamBlock>,
    /// As in a guest's driver, a lock around the queue of commands.
    commands: Mutex<Commands>,
    /// For each vector of the plan, the vCPU that its entry names.
    owners: Vec<AtomicU32>,
    /// How often an entry was given another vCPU.
    pub retargeted: AtomicU64,
}

const COMPLETE: &str = "the remapping unit has not completed a command when its store returned";

impl Remapping {
    /// A unit in front of `inner`, brought up by its guest; `None` if the plan has none.
    ///
    /// # Errors
    /// One line.
    pub fn start(plan: &Plan, inner: Arc<dyn MsiTarget>) -> Result<Option<Self>, String> {
        let ram = Arc::new(RamBlock::new(0, RAM));
        let unit = match plan.remap {
            Remap::None => return Ok(None),
            Remap::Vtd => Unit::Vtd(Arc::new(VtdUnit::new(VtdOptions::default(), inner, ram.clone()))),
            Remap::Amd => {
                let options = AmdUnitOptions { guest_apic: true, ..AmdUnitOptions::default() };
                let units = AmdVi::new(inner, ram.clone(), Arc::new(()), &[options]);
                Unit::Amd(units.map_err(|error| error.to_string())?)
            }
        };
        let owners = plan.vectors.iter().map(|vector| AtomicU32::new(vector.slot.vcpu)).collect();
        let commands = Mutex::new(Commands { tail: 0, number: 0 });
        let remapping = Self { unit, ram, commands, owners, retargeted: AtomicU64::new(0) };
        remapping.program(plan).map_err(|error| error.to_string())?;
        Ok(Some(remapping))
    }

    /// Whom messages are sent to.
    pub fn target(&self) -> Arc<dyn MsiTarget> {
        match &self.unit {
            Unit::Vtd(unit) => Arc::clone(unit) as Arc<dyn MsiTarget>,
            Unit::Amd(units) => Arc::clone(units) as Arc<dyn MsiTarget>,
        }
    }

    /// The tables, and then the registers.
    fn program(&self, plan: &Plan) -> Result<(), NoMemory> {
        for (index, vector) in plan.vectors.iter().enumerate() {
            self.set(&plan.place(index), vector.arrives_as(), vector.is_level(), vector.slot.vcpu)?;
        }
        match &self.unit {
            Unit::Vtd(unit) => {
                let table =
                    registers::TableAddress::new().with_page(TABLE >> 12).with_extended_mode(true).with_size(15);
                let queue = registers::QueueAddress::new().with_page(QUEUE >> 12);
                unit.write(registers::TABLE_ADDRESS, 8, table.into_bits());
                unit.write(registers::QUEUE_ADDRESS, 8, queue.into_bits());
                let mut command = registers::Global::new().with_set_table(true);
                unit.write(registers::GLOBAL_COMMAND, 4, command.into_bits().into());
                command = registers::Global::new().with_queue(true);
                unit.write(registers::GLOBAL_COMMAND, 4, command.into_bits().into());
                unit.write(registers::GLOBAL_COMMAND, 4, command.with_remapping(true).into_bits().into());
            }
            Unit::Amd(units) => {
                // Six pages of device table: buses 0 to 2.
                let devices = DeviceTableBase::new().with_page(DEVICES >> 12).with_size(5);
                let queue = BufferBase::new().with_page(QUEUE >> 12).with_length(8);
                let control = Control::new()
                    .with_enable(true)
                    .with_command_buffer(true)
                    .with_wide_entries(true)
                    .with_index_mode(1)
                    .with_x2apic(true);
                self.amd_write(units, offset::DEVICE_TABLE_BASE, devices.into_bits());
                self.amd_write(units, offset::COMMAND_BUFFER_BASE, queue.into_bits());
                self.amd_write(units, offset::CONTROL, control.into_bits());
            }
        }
        Ok(())
    }

    fn amd_write(&self, units: &AmdVi, register: u64, value: u64) {
        if let Some(unit) = units.unit(0) {
            unit.write(register, 8, value);
        }
    }

    /// Writes an entry. The half that changes when it is re-targeted is one store.
    fn set(&self, place: &Place, vector: u8, level: bool, vcpu: u32) -> Result<(), NoMemory> {
        match self.unit {
            Unit::Vtd(_) => {
                let at = TABLE + 16 * u64::from(place.entry);
                // The requester is compared, all its bits (SVT 1, SQ 0).
                self.ram.write_le(at + 8, u64::from(place.device.0) | 1 << 18)?;
                let entry = 1 | u64::from(level) << 4 | u64::from(vector) << 16 | u64::from(vcpu) << 32;
                self.ram.write_le(at, entry)
            }
            Unit::Amd(_) => {
                let table = TABLE + u64::from(place.table) * DEVICE_TABLE_BYTES;
                let device = DeviceInterrupts::new()
                    .with_valid(true)
                    .with_length(DeviceInterrupts::LONGEST)
                    .with_table(table >> 6)
                    .with_control(IntCtl::Remap);
                let at = DEVICES + u64::from(place.device.0) * DEVICE_ENTRY + INTERRUPTS;
                self.ram.write_le(at, device.into_bits())?;
                let at = table + u64::from(place.entry) * WIDE_ENTRY;
                self.ram.write_le(at + 8, WideHigh::new().with_vector(vector).into_bits())?;
                let low = WideLow::new().with_enable(true).with_request_eoi(level).with_destination(vcpu);
                self.ram.write_le(at, low.into_bits())
            }
        }
    }

    /// The vCPU that a vector's entry names.
    pub fn owner(&self, index: usize) -> u32 {
        // Acquire: pairs with the Release in `retarget`.
        self.owners[index].load(Ordering::Acquire)
    }

    /// Gives a vector's entry another vCPU, and has what is remembered of it invalidated. When it returns, nothing goes to
    /// the vCPU that the entry named before. Only that vCPU's thread may call this.
    pub fn retarget(&self, plan: &Plan, index: usize, vcpu: u32) {
        // Release: before the entry: who takes the vector on the new vCPU knows that it is its own.
        self.owners[index].store(vcpu, Ordering::Release);
        let (place, vector) = (plan.place(index), &plan.vectors[index]);
        let written = self.set(&place, vector.arrives_as(), vector.is_level(), vcpu);
        written.and_then(|()| self.invalidate(&place)).unwrap_or_else(|error| panic!("{error}"));
        self.retargeted.fetch_add(1, Ordering::Relaxed);
    }

    /// The invalidation of an entry, or of its device's table, and a wait behind it.
    fn invalidate(&self, place: &Place) -> Result<(), NoMemory> {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.number = commands.number.wrapping_add(1);
        let number = commands.number;
        let pair = match self.unit {
            Unit::Vtd(_) => {
                [[4 | 1 << 4 | u64::from(place.entry) << 32, 0], [5 | 1 << 5 | u64::from(number) << 32, STATUS]]
            }
            Unit::Amd(_) => {
                let invalidate =
                    ForDevice::new().with_opcode(opcode::INVALIDATE_INTERRUPT_TABLE).with_device(place.device.0 as u16);
                let wait = CompletionWait::new()
                    .with_opcode(opcode::COMPLETION_WAIT)
                    .with_store(true)
                    .with_address(STATUS >> 3);
                [[invalidate.into_bits(), 0], [wait.into_bits(), number.into()]]
            }
        };
        for [low, high] in pair {
            self.ram.write_le(QUEUE + commands.tail, low)?;
            self.ram.write_le(QUEUE + commands.tail + 8, high)?;
            commands.tail = (commands.tail + 16) % QUEUE_BYTES;
        }
        match &self.unit {
            Unit::Vtd(unit) => unit.write(registers::QUEUE_TAIL, 8, commands.tail),
            Unit::Amd(units) => self.amd_write(units, offset::COMMAND_TAIL, commands.tail),
        }
        let status: u32 = self.ram.read_le(STATUS)?;
        assert_eq!(status, number, "{COMPLETE}");
        Ok(())
    }
}
