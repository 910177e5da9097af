//! [`KvmCalls`] answered by doorbell's own stations: a VM with the full chip, in user space.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{
    Answer, Errno, GuestCalls, KvmCalls, KvmIoapicState, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqchip, KvmIrqfd,
    KvmLapicState, KvmMsi, answer,
    bindings::{self, Bindings},
    routing::{self, DeviceIds},
    types::{
        CAP_IRQ_ROUTING, CAP_IRQCHIP, CAP_IRQFD, CAP_IRQFD_RESAMPLE, CAP_MSI_DEVID, CAP_SIGNAL_MSI, CHIP_IOAPIC,
        CHIP_PIC_MASTER, CHIP_PIC_SLAVE, IRQFD_DEASSIGN, MAX_IRQ_ROUTES, MSI_VALID_DEVID,
    },
};
use crate::{
    Delivery, DeviceId, Error, LineSource, MsiMessage, MsiTarget, PinInput, VcpuId,
    chips::x86::{
        PcPins,
        ioapic::{self, Effect, IoApic, IoApicOptions, IoApicState, Version},
        lapic::{ApicOptions, ApicSet, Eoi, LocalApic},
        pic::{Ended, Intr, PORTS, Pic, PicOptions},
    },
    delivery::ChipId,
    irqfd::{Dispatcher, Exclusive},
    route::{Pin, Route, RouteEntry, RoutePolicy, RouteTable},
};

#[cfg(all(test, not(loom)))]
mod tests;

/// Where the local APICs' registers are after reset.
const LAPIC_BASE: u64 = 0xfee0_0000;
const PAGE: u64 = 0x1000;

/// How a [`SoftVm`] differs from a VM of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct SoftVmOptions {
    /// vCPU ids are below this number.
    pub vcpus: u32,
    /// Whether an eventfd can be bound in two VMs (F5a, the rule before about Linux 6.17).
    pub exclusive: Exclusive,
    /// Where routing tables keep DeviceIDs.
    pub device_ids: DeviceIds,
}

impl Default for SoftVmOptions {
    fn default() -> Self {
        Self { vcpus: 64, exclusive: Exclusive::Process, device_ids: DeviceIds::Flag }
    }
}

/// A VM whose controllers are doorbell's, behind KVM's calls.
///
/// Events of eventfds are delivered by [`settle`](KvmCalls::settle), or by any thread that dispatches
/// ([`dispatcher`](Self::dispatcher)).
pub struct SoftVm {
    options: SoftVmOptions,
    apics: Arc<ApicSet>,
    /// Lock order: first of all; nothing that delivers takes it.
    chip: RwLock<Option<Arc<Chip>>>,
    vcpus: Vcpus,
}

/// What `KVM_CREATE_IRQCHIP` makes.
struct Chip {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    table: Arc<RouteTable>,
    bindings: Bindings,
}

/// The private halves of the local APICs, `None` for a vCPU without one. Lock order: after the VM's chip, before the stations.
type Vcpus = Arc<Mutex<BTreeMap<u32, Option<LocalApic>>>>;

/// INTR, to every vCPU: whether one takes it is up to its LINT0.
struct EveryLint0 {
    apics: Arc<ApicSet>,
    vcpus: Vcpus,
}

impl Intr for EveryLint0 {
    fn set(&self, level: bool) {
        (0..self.apics.vcpus()).for_each(|vcpu| self.apics.set_pic_output(VcpuId(vcpu), level));
    }

    fn is_heard(&self) -> bool {
        self.vcpus.lock().values().flatten().any(LocalApic::accepts_pic)
    }
}

impl SoftVm {
    /// A VM with no chip and no vCPU.
    pub fn new(options: SoftVmOptions) -> Self {
        let apics = ApicSet::new(options.vcpus, Arc::new(()), ApicOptions::default());
        Self { options, apics, chip: RwLock::new(None), vcpus: Vcpus::default() }
    }

    /// Calls `act` with what dispatches this VM's eventfds; `None` before there is a chip.
    pub fn dispatcher<R>(&self, act: impl FnOnce(&Dispatcher) -> R) -> Option<R> {
        self.chip().map(|chip| act(chip.bindings.dispatcher()))
    }

    fn chip(&self) -> Option<Arc<Chip>> {
        self.chip.read().clone()
    }

    fn on_lapic<R>(&self, vcpu: u32, act: impl FnOnce(&mut LocalApic) -> R) -> Result<R, Errno> {
        let mut vcpus = self.vcpus.lock();
        let lapic = vcpus.get_mut(&vcpu).ok_or(Errno::BADF)?;
        lapic.as_mut().map(act).ok_or(Errno::INVAL)
    }

    /// The chip, for an access of this vCPU to a port of the 8259 pair.
    fn port(&self, vcpu: u32, port: u16) -> Result<Arc<Chip>, Errno> {
        let chip = self.chip().filter(|_| PORTS.contains(&port)).ok_or(Errno::INVAL)?;
        if self.vcpus.lock().contains_key(&vcpu) { Ok(chip) } else { Err(Errno::BADF) }
    }

    /// What the clock's pin waits for follows from the local APICs, or from `only` this one.
    fn recount_clock(&self, chip: &Chip, only: Option<VcpuId>) {
        let vcpus = self.vcpus.lock();
        let lapic = |vcpu: VcpuId| vcpus.get(&vcpu.0).and_then(Option::as_ref);
        chip.ioapic.recount_clock(only, |vcpu, vector| lapic(vcpu).is_some_and(|lapic| lapic.holds(vector)));
    }
}

impl Chip {
    fn new(apics: &Arc<ApicSet>, vcpus: &Vcpus, options: &SoftVmOptions) -> Result<Self, Error> {
        let version = IoApicOptions { version: Version::V11, ..IoApicOptions::default() };
        let ioapic = Arc::new(IoApic::with_rtc(apics.clone(), apics.clone(), version));
        let wire = EveryLint0 { apics: Arc::clone(apics), vcpus: Arc::clone(vcpus) };
        let pic = Arc::new(Pic::new(wire, PicOptions::default()));
        let pins = PcPins { pic: Arc::clone(&pic), ioapic: Arc::clone(&ioapic) };
        let table = Arc::new(RouteTable::new(apics.clone(), Arc::new(pins), RoutePolicy::S2_TABLE));
        table.set(&default_routes())?;
        let bindings = Bindings::new(Arc::clone(&table), options.exclusive)?;
        Ok(Self { bindings, pic, ioapic, table })
    }

    /// A vCPU has ended an interrupt.
    fn end(&self, vcpu: u32, eoi: Eoi) {
        let mut pins = self.ioapic.end_by(VcpuId(vcpu), eoi.vector, eoi.level);
        let watched = || pins.iter().any(|&pin| self.bindings.resamplers().covers(Pin { chip: ioapic::CHIP, pin }));
        if eoi.level && watched() {
            pins = self.ioapic.end_all(eoi.vector);
        }
        self.bindings.resamplers().ended(ioapic::CHIP, &pins);
        if eoi.level {
            self.ioapic.reevaluate(ioapic::CHIP, &pins);
        }
    }

    /// Pins of the 8259 pair whose interrupt has ended.
    fn end_legacy(&self, ended: Ended) {
        for (chip, pins) in ended.chips() {
            self.bindings.resamplers().ended(chip, &pins);
            self.pic.reevaluate(chip, &pins);
        }
    }

    /// A guest's store to the IOAPIC.
    fn store(&self, offset: u64, value: u32) {
        let (Effect::Unmasked(pins) | Effect::Ended(pins)) = self.ioapic.write(offset, value) else { return };
        self.bindings.resamplers().unmasked(&*self.ioapic, ioapic::CHIP, &pins);
    }
}

/// The routes that a VM of the kernel has with its chip: GSI n to pin n of the IOAPIC, and the first 16 to the 8259 pair.
fn default_routes() -> Vec<RouteEntry> {
    let route = |gsi: u32, chip: ChipId, pin: u32| RouteEntry { gsi, route: Route::Pin(Pin { chip, pin: pin as u16 }) };
    let mut routes: Vec<_> = (0..ioapic::PINS as u32).map(|gsi| route(gsi, ioapic::CHIP, gsi)).collect();
    routes.extend((0..16).map(|gsi| route(gsi, if gsi < 8 { 0 } else { 1 }, gsi % 8)));
    routes
}

impl KvmCalls for SoftVm {
    fn check_extension(&self, capability: u32) -> Answer {
        Ok(match capability {
            CAP_IRQ_ROUTING => MAX_IRQ_ROUTES as i32,
            CAP_IRQCHIP | CAP_IRQFD | CAP_IRQFD_RESAMPLE | CAP_SIGNAL_MSI => 1,
            CAP_MSI_DEVID => 0,
            _ => 0,
        })
    }

    fn create_irqchip(&self) -> Answer {
        let mut chip = self.chip.write();
        if chip.is_some() {
            return Err(Errno::EXIST);
        }
        if !self.vcpus.lock().is_empty() {
            return Err(Errno::INVAL);
        }
        let made = Chip::new(&self.apics, &self.vcpus, &self.options).map_err(|error| error.errno())?;
        *chip = Some(Arc::new(made));
        Ok(0)
    }

    fn create_vcpu(&self, id: u32) -> Answer {
        let has_chip = self.chip.read().is_some();
        let mut vcpus = self.vcpus.lock();
        if id >= self.options.vcpus {
            return Err(Errno::INVAL);
        }
        if vcpus.contains_key(&id) {
            return Err(Errno::EXIST);
        }
        let lapic = if has_chip { self.apics.local(VcpuId(id)) } else { None };
        vcpus.insert(id, lapic);
        Ok(0)
    }

    fn irqfd(&self, request: &KvmIrqfd) -> Answer {
        bindings::check(request)?;
        let chip = self.chip();
        if request.flags & IRQFD_DEASSIGN != 0 {
            return match chip {
                Some(chip) => answer(chip.bindings.deassign(request), |()| 0),
                None => answer(bindings::deassign_nothing(request), |()| 0),
            };
        }
        answer(chip.ok_or(Errno::INVAL)?.bindings.assign(request), |()| 0)
    }

    fn set_gsi_routing(&self, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Answer {
        let chip = self.chip().ok_or(Errno::INVAL)?;
        routing::check_readable(nr, flags, entries)?;
        let table = routing::decode(nr, flags, entries, self.options.device_ids);
        answer(table.and_then(|table| chip.table.set(&table)), |()| 0)
    }

    fn irq_line(&self, request: KvmIrqLevel) -> Answer {
        self.irq_line_status(request).map(|_| 0)
    }

    fn irq_line_status(&self, request: KvmIrqLevel) -> Answer {
        let chip = self.chip().ok_or(Errno::NXIO)?;
        Ok(chip.table.line(request.irq, LineSource::USER, request.level != 0).status())
    }

    fn signal_msi(&self, message: &KvmMsi) -> Answer {
        let KvmMsi { address_lo, address_hi, data, flags, devid, pad: _ } = *message;
        if self.chip().is_none() || flags & !MSI_VALID_DEVID != 0 {
            return Err(Errno::INVAL);
        }
        let address = u64::from(address_hi) << 32 | u64::from(address_lo);
        let device_id = (flags & MSI_VALID_DEVID != 0).then_some(DeviceId(devid));
        match self.apics.send(&MsiMessage { address, data, device_id }) {
            // KVM returns its -1, "nobody matches", as it is, which an ioctl shows as this errno.
            Ok(Delivery::Ignored) => Err(Errno::PERM),
            sent => answer(sent, Delivery::status),
        }
    }

    fn get_irqchip(&self, chip: &mut KvmIrqchip) -> Answer {
        let this = self.chip().ok_or(Errno::NXIO)?;
        match chip.chip_id {
            CHIP_IOAPIC => {
                let IoApicState { base_address, ioregsel, id, irr, redirtbl } = this.ioapic.state();
                chip.set_ioapic(&KvmIoapicState { base_address, ioregsel, id, irr, pad: 0, redirtbl });
                Ok(0)
            }
            id @ (CHIP_PIC_MASTER | CHIP_PIC_SLAVE) => {
                chip.set_pic(&this.pic.state(id as ChipId).into());
                Ok(0)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn set_irqchip(&self, chip: &KvmIrqchip) -> Answer {
        let this = self.chip().ok_or(Errno::NXIO)?;
        match chip.chip_id {
            CHIP_IOAPIC => {
                let KvmIoapicState { base_address, ioregsel, id, irr, pad: _, redirtbl } = chip.ioapic();
                this.ioapic.set_state(&IoApicState { base_address, ioregsel, id, irr, redirtbl });
                self.recount_clock(&this, None);
                // As KVM does after any chip's.
                this.pic.refresh();
                Ok(0)
            }
            id @ (CHIP_PIC_MASTER | CHIP_PIC_SLAVE) => {
                this.pic.set_state(id as ChipId, &chip.pic().into());
                Ok(0)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn get_lapic(&self, vcpu: u32, state: &mut KvmLapicState) -> Answer {
        self.on_lapic(vcpu, |lapic| state.regs = lapic.page())?;
        Ok(0)
    }

    fn set_lapic(&self, vcpu: u32, state: &KvmLapicState) -> Answer {
        let set = self.on_lapic(vcpu, |lapic| lapic.set_page(&state.regs))?;
        if let Some(chip) = self.chip() {
            self.recount_clock(&chip, Some(VcpuId(vcpu)));
        }
        answer(set, |()| 0)
    }

    fn settle(&self) {
        if let Some(chip) = self.chip() {
            chip.bindings.dispatch();
        }
    }
}

impl GuestCalls for SoftVm {
    fn acknowledge(&self, vcpu: u32) -> Result<Option<u8>, Errno> {
        self.on_lapic(vcpu, LocalApic::acknowledge)
    }

    fn load(&self, vcpu: u32, address: u64) -> Result<u32, Errno> {
        let chip = self.chip().ok_or(Errno::INVAL)?;
        match (address & !(PAGE - 1), address & (PAGE - 1)) {
            (ioapic::DEFAULT_BASE, offset) => Ok(chip.ioapic.read(offset)),
            (LAPIC_BASE, offset) => self.on_lapic(vcpu, |lapic| lapic.read(offset)),
            _ => Err(Errno::INVAL),
        }
    }

    fn store(&self, vcpu: u32, address: u64, value: u32) -> Result<(), Errno> {
        let chip = self.chip().ok_or(Errno::INVAL)?;
        match (address & !(PAGE - 1), address & (PAGE - 1)) {
            (ioapic::DEFAULT_BASE, offset) => chip.store(offset, value),
            (LAPIC_BASE, offset) => {
                if let Some(ended) = self.on_lapic(vcpu, |lapic| lapic.write(offset, value))? {
                    chip.end(vcpu, ended);
                }
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    fn port_load(&self, vcpu: u32, port: u16) -> Result<u8, Errno> {
        let chip = self.port(vcpu, port)?;
        let mut byte = [0];
        chip.end_legacy(chip.pic.read(port, &mut byte));
        Ok(byte[0])
    }

    fn port_store(&self, vcpu: u32, port: u16, value: u8) -> Result<(), Errno> {
        let chip = self.port(vcpu, port)?;
        chip.end_legacy(chip.pic.write(port, &[value]));
        Ok(())
    }
}
