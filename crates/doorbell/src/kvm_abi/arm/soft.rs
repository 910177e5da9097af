//! [`ArmCalls`] answered by doorbell's own stations: a VM with a GICv3 and ITSs, in user space.

use std::sync::Arc;

use parking_lot::RwLock;

use super::{
    Answer, ArmCalls, Device, Errno, KvmDeviceAttr, KvmIrqLevel, KvmIrqRoutingEntry, KvmIrqfd, KvmMsi, LineCall,
    LineLayout, Mpidr,
    controller::Controller,
    frames::Frames,
    gic_device, its_device,
    types::{self, CREATE_DEVICE_TEST, LineKind, SPI_PINS, device},
};
use crate::{
    Delivery, DeviceId, Error, Kick, LineSource, MsiMessage, MsiTarget, PinInput, Pins,
    chips::arm::{
        Affinity, Behaviour, Gic, GicOptions, Identity, MsiFrames,
        its::{Its, ItsOptions},
        line::CHIP,
    },
    delivery::ChipId,
    guest_ram::GuestRam,
    irqfd::{Dispatcher, Exclusive},
    kvm_abi::{
        answer, bindings,
        routing::{self, DeviceIds},
        types::{
            CAP_IRQ_ROUTING, CAP_IRQCHIP, CAP_IRQFD, CAP_IRQFD_RESAMPLE, CAP_MSI_DEVID, CAP_SIGNAL_MSI, IRQFD_DEASSIGN,
            MAX_IRQ_ROUTES, MSI_VALID_DEVID,
        },
    },
    route::{RoutePolicy, RouteTable},
};

#[cfg(all(test, not(loom)))]
mod tests;

/// How a [`SoftArmVm`] is made, and how it differs from a VM of the kernel.
#[derive(Clone, Debug)]
pub struct SoftArmVmOptions {
    /// How many vCPUs there can be, 1 to 512; their ids are below this number.
    pub vcpus: u32,
    /// How many bits a guest-physical address of this VM has, 32 to 52.
    pub ipa_bits: u8,
    /// How `KVM_IRQ_LINE` says what it drives.
    pub line_layout: LineLayout,
    /// Whether an eventfd can be bound in two VMs (F5a, the rule before about Linux 6.17).
    pub exclusive: Exclusive,
    /// Where routing tables keep DeviceIDs.
    pub device_ids: DeviceIds,
    /// What the controllers do where the kernel departs from the architecture.
    pub behaviour: Behaviour,
    /// What their identity registers show.
    pub identity: Identity,
    /// How much the ITSs can map.
    pub its: ItsOptions,
}

/// As the kernel's: its behaviour, and the addresses of 40 bits that a VM has unless it asks for others.
impl Default for SoftArmVmOptions {
    fn default() -> Self {
        Self {
            vcpus: GicOptions::MOST_VCPUS as u32,
            ipa_bits: 40,
            line_layout: LineLayout::Second,
            exclusive: Exclusive::Process,
            device_ids: DeviceIds::Flag,
            behaviour: Behaviour::KVM,
            identity: Identity::Kvm,
            its: ItsOptions::default(),
        }
    }
}

/// A VM whose GICv3 and ITSs are doorbell's, behind KVM's calls.
///
/// Events of eventfds are delivered by [`settle`](ArmCalls::settle), or by any thread that dispatches
/// ([`dispatcher`](Self::dispatcher)).
///
/// ```
/// use std::sync::Arc;
/// use doorbell::guest_ram::RamBlock;
/// use doorbell::kvm_abi::arm::types::{addr, ctrl, device, group};
/// use doorbell::kvm_abi::arm::{ArmCalls, ArmGuestCalls, KvmDeviceAttr, LineCall, SystemRegister};
/// use doorbell::kvm_abi::{KvmIrqLevel, SoftArmVm, SoftArmVmOptions};
///
/// let ram = Arc::new(RamBlock::new(0x4000_0000, 0x1000));
/// let vm = SoftArmVm::new(SoftArmVmOptions::default(), ram, Arc::new(()))?;
/// vm.create_vcpu(0)?;
/// vm.vcpu_init(0)?;
/// let gic = vm.create_device(device::VGIC_V3, 0)?.unwrap();
/// let set = |group, attr, value| vm.set_device_attr(gic, KvmDeviceAttr { group, attr }, value);
/// set(group::ADDR, addr::V3_DIST, 0x0800_0000)?;
/// set(group::ADDR, addr::V3_REDIST, 0x080a_0000)?;
/// set(group::CTRL, ctrl::INIT, 0)?;
/// // The guest switches on distributor, CPU interface and SPI 40.
/// vm.store(0, 0x0800_0000, 4, 0x12)?;
/// vm.store(0, 0x0800_0084, 4, 1 << 8)?;
/// vm.store(0, 0x0800_0104, 4, 1 << 8)?;
/// vm.write_register(0, SystemRegister::ICC_PMR_EL1, 0xff)?;
/// vm.write_register(0, SystemRegister::ICC_IGRPEN1_EL1, 1)?;
/// // The device raises its line.
/// let irq = LineCall::spi(40).encode(Default::default()).unwrap();
/// vm.irq_line(KvmIrqLevel { irq, level: 1 })?;
/// assert_eq!(vm.read_register(0, SystemRegister::ICC_IAR1_EL1)?, 40);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SoftArmVm {
    pub(super) options: SoftArmVmOptions,
    pub(super) ram: Arc<dyn GuestRam>,
    kick: Arc<dyn Kick>,
    /// Lock order: first of all. Nothing that delivers to a vCPU takes it but KVM's own calls, to look.
    pub(super) state: RwLock<State>,
}

/// What user space has made so far.
#[derive(Default)]
pub(super) struct State {
    /// In the order in which they were created.
    pub vcpus: Vec<Vcpu>,
    pub gic: Option<GicDevice>,
    pub units: Vec<ItsDevice>,
    /// Those of them that have an address, in the order in which they got it: where two share one, the first answers.
    pub placed: Vec<usize>,
    /// Where messages go. The frames of stand-ins are others than those of the ITSs that come with the GIC.
    pub doorbells: Arc<MsiFrames>,
    /// The number of the next device.
    next: u32,
}

pub(super) struct Vcpu {
    pub id: u32,
    pub initialised: bool,
}

impl Vcpu {
    /// Its affinity, which it gets with its other registers.
    fn affinity(&self) -> Affinity {
        if self.initialised { Affinity::of_vcpu(self.id) } else { Affinity::new(0, 0, 0, 0) }
    }
}

pub(super) struct GicDevice {
    device: Device,
    pub frames: Frames,
    /// `KVM_DEV_ARM_VGIC_GRP_NR_IRQS`; none, KVM's choice.
    pub intids: Option<u16>,
    /// Since `KVM_DEV_ARM_VGIC_CTRL_INIT`.
    pub running: Option<Arc<Controller>>,
}

pub(super) struct ItsDevice {
    device: Device,
    /// Of a GIC that is not initialised it has a stand-in, until there is the real one.
    pub its: Arc<Its>,
    pub base: Option<u64>,
}

/// Which device an attribute is of.
enum Kind {
    Gic,
    Its(usize),
}

impl State {
    fn kind(&self, device: Device) -> Result<Kind, Errno> {
        if self.gic.as_ref().is_some_and(|gic| gic.device == device) {
            return Ok(Kind::Gic);
        }
        self.units.iter().position(|unit| unit.device == device).map(Kind::Its).ok_or(Errno::BADF)
    }

    /// The vCPU, by the order of creation, that an attribute names.
    pub(super) fn named(&self, mpidr: Mpidr) -> Option<usize> {
        let name = Affinity::new(mpidr.aff3(), mpidr.aff2(), mpidr.aff1(), mpidr.aff0());
        self.vcpus.iter().position(|vcpu| vcpu.affinity() == name)
    }

    pub(super) fn vcpu(&self, id: u32) -> Option<usize> {
        self.vcpus.iter().position(|vcpu| vcpu.id == id)
    }

    pub(super) fn running(&self) -> Option<&Arc<Controller>> {
        self.gic.as_ref()?.running.as_ref()
    }
}

impl SoftArmVm {
    /// A VM with no device and no vCPU. `ram` is the guest's memory; `kick` wakes its vCPUs.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an option that is out of range.
    pub fn new(options: SoftArmVmOptions, ram: Arc<dyn GuestRam>, kick: Arc<dyn Kick>) -> Result<Self, Error> {
        let invalid = |what, value, allowed| Err(Error::Invalid { what, value, allowed });
        if !(1..=GicOptions::MOST_VCPUS as u32).contains(&options.vcpus) {
            return invalid("number of vCPUs", options.vcpus.into(), "1 to 512");
        }
        if !(32..=52).contains(&options.ipa_bits) {
            return invalid("number of address bits", options.ipa_bits.into(), "32 to 52");
        }
        Ok(Self { options, ram, kick, state: RwLock::default() })
    }

    /// Calls `act` with what dispatches this VM's eventfds; `None` before the GIC is initialised.
    pub fn dispatcher<R>(&self, act: impl FnOnce(&Dispatcher) -> R) -> Option<R> {
        let controller = self.state.read().running().map(Arc::clone)?;
        Some(act(controller.bindings.dispatcher()))
    }

    /// A GIC for the vCPUs that there are. Without any it has one that nobody can reach.
    pub(super) fn make_gic(&self, state: &State) -> Result<Arc<Gic>, Error> {
        let mut options = GicOptions::new(1);
        if !state.vcpus.is_empty() {
            options.affinities = state.vcpus.iter().map(|vcpu| Affinity::of_vcpu(vcpu.id)).collect();
        }
        options.intids = state.gic.as_ref().and_then(|gic| gic.intids).unwrap_or(gic_device::DEFAULT_INTIDS);
        options.behaviour = self.options.behaviour;
        options.identity = self.options.identity;
        Gic::new(options, Arc::clone(&self.ram), Arc::clone(&self.kick))
    }

    /// The controller, for an access of a guest's code.
    pub(super) fn for_guest(&self, vcpu: u32) -> Result<(usize, Arc<Controller>), Errno> {
        let state = self.state.read();
        let at = state.vcpu(vcpu).ok_or(Errno::BADF)?;
        if !state.vcpus[at].initialised {
            return Err(Errno::NOEXEC);
        }
        let gic = state.gic.as_ref().ok_or(Errno::NXIO)?;
        gic.frames.check_complete()?;
        Ok((at, Arc::clone(gic.running.as_ref().ok_or(Errno::BUSY)?)))
    }
}

impl ArmCalls for SoftArmVm {
    fn check_extension(&self, capability: u32) -> Answer {
        Ok(match capability {
            CAP_IRQ_ROUTING => MAX_IRQ_ROUTES as i32,
            CAP_IRQCHIP | CAP_IRQFD | CAP_IRQFD_RESAMPLE | CAP_SIGNAL_MSI => 1,
            CAP_MSI_DEVID => (!self.state.read().units.is_empty()).into(),
            types::CAP_DEVICE_CTRL | types::CAP_ARM_USER_IRQ | types::CAP_VCPU_ATTRIBUTES => 1,
            types::CAP_ARM_IRQ_LINE_LAYOUT_2 => (self.options.line_layout == LineLayout::Second).into(),
            types::CAP_ARM_VM_IPA_SIZE => types::MOST_IPA_BITS,
            types::CAP_NR_MEMSLOTS => types::MEMSLOTS,
            types::CAP_MAX_VCPUS => self.options.vcpus as i32,
            _ => 0,
        })
    }

    fn create_vcpu(&self, id: u32) -> Answer {
        let mut state = self.state.write();
        if id >= self.options.vcpus {
            return Err(Errno::INVAL);
        }
        if state.running().is_some() {
            return Err(Errno::BUSY);
        }
        if state.vcpu(id).is_some() {
            return Err(Errno::EXIST);
        }
        if let Some(gic) = &mut state.gic {
            gic.frames.add_vcpu()?;
        }
        state.vcpus.push(Vcpu { id, initialised: false });
        Ok(0)
    }

    fn vcpu_init(&self, vcpu: u32) -> Answer {
        let mut state = self.state.write();
        let at = state.vcpu(vcpu).ok_or(Errno::BADF)?;
        state.vcpus[at].initialised = true;
        Ok(0)
    }

    fn create_device(&self, kind: u32, flags: u32) -> Result<Option<Device>, Errno> {
        if !matches!(kind, device::VGIC_V3 | device::ITS) {
            return Err(Errno::NODEV);
        }
        if flags & CREATE_DEVICE_TEST != 0 {
            return Ok(None);
        }
        let mut state = self.state.write();
        let device = Device(state.next);
        if kind == device::VGIC_V3 {
            if state.gic.is_some() {
                return Err(Errno::EXIST);
            }
            let frames = Frames::new(self.options.ipa_bits, state.vcpus.len());
            state.gic = Some(GicDevice { device, frames, intids: None, running: None });
        } else {
            let gic = match state.running() {
                Some(controller) => Arc::clone(&controller.gic),
                None => self.make_gic(&state).map_err(|error| error.errno())?,
            };
            let its = Its::new(gic, self.options.its.clone());
            state.doorbells.announce();
            state.units.push(ItsDevice { device, its, base: None });
        }
        state.next += 1;
        Ok(Some(device))
    }

    fn set_device_attr(&self, device: Device, attribute: KvmDeviceAttr, value: u64) -> Answer {
        let mut state = self.state.write();
        match state.kind(device)? {
            Kind::Gic => gic_device::set(self, &mut state, attribute, value),
            Kind::Its(at) => its_device::set(self, &mut state, at, attribute, value),
        }
    }

    fn get_device_attr(&self, device: Device, attribute: KvmDeviceAttr, value: &mut u64) -> Answer {
        let state = self.state.read();
        *value = match state.kind(device)? {
            Kind::Gic => gic_device::get(&state, attribute, *value)?,
            Kind::Its(at) => its_device::get(&state.units[at], attribute)?,
        };
        Ok(0)
    }

    fn has_device_attr(&self, device: Device, attribute: KvmDeviceAttr) -> Answer {
        let state = self.state.read();
        match state.kind(device)? {
            Kind::Gic => gic_device::has(self, &state, attribute),
            Kind::Its(at) => its_device::has(&state.units[at], attribute),
        }
    }

    fn irqfd(&self, request: &KvmIrqfd) -> Answer {
        bindings::check(request)?;
        let controller = self.state.read().running().map(Arc::clone);
        if request.flags & IRQFD_DEASSIGN != 0 {
            return match controller {
                Some(controller) => answer(controller.bindings.deassign(request), |()| 0),
                None => answer(bindings::deassign_nothing(request), |()| 0),
            };
        }
        answer(controller.ok_or(Errno::AGAIN)?.bindings.assign(request), |()| 0)
    }

    fn set_gsi_routing(&self, nr: u32, flags: u32, entries: &[KvmIrqRoutingEntry]) -> Answer {
        routing::check_readable(nr, flags, entries)?;
        let controller = self.state.read().running().map(Arc::clone);
        let table = routing::decode(nr, flags, entries, self.options.device_ids);
        let set = table.and_then(|table| match controller {
            Some(controller) => controller.table.set(&table),
            // It is judged, and forgotten: with the GIC come the default routes (G11).
            None => {
                let doorbells = Arc::clone(&self.state.read().doorbells);
                RouteTable::new(doorbells, Arc::new(SpiPins), RoutePolicy::S2_TABLE).set(&table)
            }
        });
        answer(set, |()| 0)
    }

    fn irq_line(&self, request: KvmIrqLevel) -> Answer {
        let KvmIrqLevel { irq, level } = request;
        let LineCall { kind, vcpu, number } = LineCall::decode(irq, self.options.line_layout).ok_or(Errno::INVAL)?;
        let state = self.state.read();
        let has_vcpu = (vcpu as usize) < state.vcpus.len();
        match (kind, &state.gic) {
            (LineKind::Cpu, Some(_)) | (LineKind::Spi | LineKind::Ppi, None) => return Err(Errno::NXIO),
            (LineKind::Cpu, None) => return if has_vcpu && number <= 1 { Ok(0) } else { Err(Errno::INVAL) },
            (LineKind::Ppi, Some(_)) if !has_vcpu || !(16..32).contains(&number) => return Err(Errno::INVAL),
            (LineKind::Spi, Some(_)) if number < 32 => return Err(Errno::INVAL),
            _ => {}
        }
        let controller = Arc::clone(state.running().ok_or(Errno::BUSY)?);
        drop(state);
        match kind {
            LineKind::Ppi => controller.set_ppi(vcpu, number, level != 0),
            _ => controller.set_spi(number, level != 0)?,
        };
        Ok(0)
    }

    fn signal_msi(&self, message: &KvmMsi) -> Answer {
        let KvmMsi { address_lo, address_hi, data, flags, devid, pad: _ } = *message;
        let state = self.state.read();
        if state.gic.is_none() || flags & !MSI_VALID_DEVID != 0 {
            return Err(Errno::INVAL);
        }
        let doorbells = Arc::clone(&state.doorbells);
        let has_its = !state.units.is_empty();
        drop(state);
        let address = u64::from(address_hi) << 32 | u64::from(address_lo);
        let device_id = (flags & MSI_VALID_DEVID != 0).then_some(DeviceId(devid));
        // Q11 comes before Q10.
        if has_its && device_id.is_none() {
            return Err(Errno::INVAL);
        }
        answer(doorbells.send(&MsiMessage { address, data, device_id }), |delivery| delivery.status())
    }

    fn read_ram(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.ram.read(address, bytes).map_err(|_| Errno::FAULT)
    }

    fn write_ram(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.ram.write(address, bytes).map_err(|_| Errno::FAULT)
    }

    fn settle(&self) {
        let controller = self.state.read().running().map(Arc::clone);
        if let Some(controller) = controller {
            controller.bindings.dispatch();
        }
    }
}

/// The pins of a GIC that does not exist yet: a table can be judged by them.
struct SpiPins;

impl PinInput for SpiPins {
    fn pins(&self, chip: ChipId) -> u16 {
        if chip == CHIP { SPI_PINS } else { 0 }
    }
    fn set(&self, _: ChipId, _: u16, _: LineSource, _: bool) -> Delivery {
        Delivery::Ignored
    }
    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}
