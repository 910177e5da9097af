//! The x86 machine: an IOAPIC and local APICs, behind interrupt remapping or not.

mod remapping;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use doorbell::{
    Kick, MsiTarget, PinInput, Pins, VcpuId,
    chips::x86::{
        ioapic::{CHIP, FIRST_ENTRY, INDEX, IoApic, IoApicOptions, WINDOW},
        lapic::{ApicOptions, ApicSet, LocalApic},
    },
    delivery::ChipId,
    manager::IrqManager,
};

use super::{
    Shared,
    platform::{Platform, Processor},
};
use crate::run::{
    coordinator::Ended,
    function::Random,
    ledger::Ledger,
    machine::Remap,
    plan::{self, Plan, Wire},
    report::count,
};
use remapping::Remapping;

/// The offset of the spurious-vector register in a local APIC's page, and its value that enables the APIC.
const SPURIOUS: u64 = 0xf0;
const SOFTWARE_ENABLE: u32 = 0x1ff;
/// With more vCPUs than this, the local APICs are in x2APIC mode.
const XAPIC_VCPUS: u32 = 255;
/// With interrupt remapping: a vector is given another vCPU after one interrupt of this many.
const RETARGET_ONE_OF: u64 = 32;

/// See the [module](self).
pub struct X86 {
    apics: Arc<ApicSet>,
    ioapic: Arc<IoApic>,
    msi: Arc<dyn MsiTarget>,
    remapping: Option<Remapping>,
}

/// A local APIC and the driver's knowledge of what goes elsewhere.
pub struct Local {
    vcpu: u32,
    apic: LocalApic,
    shared: Arc<Shared<X86>>,
    /// By vector of the plan: it has been given another vCPU, and nothing of it was on its way here.
    away: Vec<bool>,
}

impl Platform for X86 {
    type Cpu = Local;
    const PINS: ChipId = CHIP;

    fn new(plan: &Plan, _: &Arc<Ledger>, kick: Arc<dyn Kick>) -> Result<Self, String> {
        // Ids above 255 are reached through a table only, in whose messages the destination has more bits; and 255 is then
        // an id like others, not everybody.
        let behind = plan.remap != Remap::None;
        let options = ApicOptions { extended_ids: behind, no_broadcast_quirk: behind, ..ApicOptions::default() };
        let apics = ApicSet::new(plan.vcpus, kick, options);
        let remapping = Remapping::start(plan, Arc::clone(&apics) as Arc<dyn MsiTarget>)?;
        let msi = remapping.as_ref().map_or(Arc::clone(&apics) as Arc<dyn MsiTarget>, Remapping::target);
        let options = IoApicOptions { device_id: Some(plan::x86::IOAPIC), ..IoApicOptions::default() };
        let ioapic = Arc::new(IoApic::new(Arc::clone(&msi), options));
        Ok(Self { apics, ioapic, msi, remapping })
    }

    fn msi(&self) -> Arc<dyn MsiTarget> {
        Arc::clone(&self.msi)
    }

    fn pins(&self) -> Arc<dyn PinInput> {
        Arc::clone(&self.ioapic) as Arc<dyn PinInput>
    }

    /// It enables the local APICs and programs the IOAPIC.
    fn boot(shared: &Arc<Shared<Self>>) -> Result<Vec<Local>, String> {
        let (plan, x86) = (&shared.plan, &shared.platform);
        let mut locals = Vec::new();
        for vcpu in 0..plan.vcpus {
            let mut apic = x86.apics.local(VcpuId(vcpu)).ok_or_else(|| format!("vCPU {vcpu} has no local APIC"))?;
            apic.write(SPURIOUS, SOFTWARE_ENABLE);
            if plan.vcpus > XAPIC_VCPUS {
                let x2apic = apic.base().with_x2apic(true).into_bits();
                apic.set_base(x2apic).map_err(|_| format!("vCPU {vcpu} cannot enter x2APIC mode"))?;
            }
            locals.push(Local { vcpu, apic, shared: Arc::clone(shared), away: vec![false; plan.vectors.len()] });
        }
        // The first of those that share a line.
        let pins: BTreeMap<_, _> =
            plan.vectors.iter().enumerate().rev().filter_map(|(index, v)| Some((v.line()?, index))).collect();
        for (line, &index) in &pins {
            let entry = plan.redirection(index, *line);
            let register = FIRST_ENTRY + 2 * u32::from(line.pin);
            // The mask bit is in the low half, which therefore comes last.
            for (register, half) in [(register + 1, entry >> 32), (register, entry)] {
                // Nothing has been latched yet that a store could set free.
                let _ = x86.ioapic.write(INDEX, register);
                let _ = x86.ioapic.write(WINDOW, half as u32);
            }
        }
        Ok(locals)
    }

    fn path(&self, plan: &Plan, index: usize) -> String {
        let vector = &plan.vectors[index];
        let (vcpu, arrives) = (vector.slot.vcpu, vector.arrives_as());
        let entry = plan.place(index).entry;
        let remapped = match plan.remap {
            Remap::None => String::new(),
            Remap::Vtd => format!("VT-d entry {entry} → "),
            Remap::Amd => format!("AMD-Vi entry {entry} → "),
        };
        let pin = match vector.wire {
            Wire::MsiX { .. } => String::new(),
            Wire::Line(line) => format!("IOAPIC pin {} → ", line.pin),
        };
        format!("{pin}{remapped}local APIC {vcpu} → {arrives:#x}")
    }

    fn finish(&self, _: &Plan, _: &IrqManager, ended: &mut Ended) {
        if let Some(remapping) = &self.remapping {
            let retargeted = remapping.retargeted.load(Ordering::Relaxed);
            ended.notes.push(format!(
                "Meanwhile the guest's driver re-targeted entries of its remapping table {}, with an invalidation each.",
                count(retargeted, "time")
            ));
        }
    }
}

impl Local {
    fn remapping(&self) -> Option<&Remapping> {
        self.shared.platform.remapping.as_ref()
    }
}

impl Processor for Local {
    fn vcpu(&self) -> u32 {
        self.vcpu
    }

    fn acknowledge(&mut self) -> Option<u32> {
        self.apic.acknowledge().map(u32::from)
    }

    fn end(&mut self, _: u32) -> Option<Pins> {
        // Where messages are remapped, the vector of an IOAPIC's entry and that of the table's are the same here, as they
        // must be for an end to find its pins.
        self.apic.eoi().filter(|eoi| eoi.level).map(|eoi| self.shared.platform.ioapic.end(eoi.vector))
    }

    fn arm(&mut self) -> bool {
        self.apic.arm().is_idle()
    }

    fn disarm(&mut self) {
        self.apic.disarm();
    }

    fn holds(&self, arrival: u32) -> bool {
        u8::try_from(arrival).is_ok_and(|vector| self.apic.holds(vector))
    }

    fn is_quiet(&self, arrival: u32) -> bool {
        !self.holds(arrival)
    }

    fn is_shared(&self, index: usize) -> bool {
        self.remapping().is_some() && self.shared.plan.vectors[index].line().is_none()
    }

    fn is_here(&self, index: usize) -> bool {
        self.remapping().is_none_or(|remapping| remapping.owner(index) == self.vcpu)
    }

    fn is_stale(&mut self, index: usize) -> bool {
        std::mem::take(&mut self.away[index]) && !self.is_here(index)
    }

    /// Gives it to a neighbour.
    fn retarget(&mut self, index: usize, random: &mut Random) {
        let shared = Arc::clone(&self.shared);
        let Some(remapping) = &shared.platform.remapping else { return };
        if random.next() >> 16 & (RETARGET_ONE_OF - 1) != 0 {
            return;
        }
        let group = shared.plan.group();
        let first = self.vcpu / group * group;
        let size = group.min(shared.plan.vcpus - first);
        if size == 1 {
            return;
        }
        let step = 1 + (random.next() >> 16) as u32 % (size - 1);
        remapping.retarget(&shared.plan, index, first + (self.vcpu - first + step) % size);
        self.away[index] = !self.holds(shared.plan.vectors[index].arrival);
    }
}
