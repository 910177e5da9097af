//! The chips of a VM with a guest: those of the kernel, doorbell's, and half of each.

use std::os::fd::BorrowedFd;

use doorbell::kvm::Entry;
use doorbell::kvm_abi::types::{CHIP_IOAPIC, IOAPIC_PINS, regs};
use doorbell::kvm_abi::{Errno, KvmIoapicState, KvmLapicState, KvmPicState};
use doorbell::route::{Pin, Route, RouteEntry};
use doorbell::{Delivery, MsiMessage};
use kvm_ioctls::{VcpuFd, VmFd};

mod kernel;
mod soft;
mod split;

pub use kernel::Kernel;
pub use soft::Soft;
pub use split::Split;

/// What a call of the host answered: its status, or an errno.
pub type Outcome = Result<i64, Errno>;

/// The first GSI that leads to a message; those below lead to the pins of the IOAPIC.
pub const MESSAGES: u32 = 24;
/// How many lead to messages.
pub const MESSAGE_GSIS: u32 = 4;

/// The first GSI that leads to a pin of the 8259 pair; the next 15 follow.
pub const EXTERNAL: u32 = 32;

/// The message behind such a GSI.
pub fn message_of(gsi: u32) -> MsiMessage {
    let vcpu = u64::from(gsi & 1);
    MsiMessage::new(0xfee0_0000 | vcpu << 12, 0x50 + 0x11 * (gsi - MESSAGES))
}

/// The routes of every program: GSI n to pin n, the next ones to messages; and with an 8259 pair, some more to its pins.
pub fn routes(pic: bool) -> Vec<RouteEntry> {
    let pin = |gsi: u32| Route::Pin(Pin { chip: CHIP_IOAPIC as u8, pin: gsi as u16 });
    let pins = (0..IOAPIC_PINS as u32).map(|gsi| RouteEntry { gsi, route: pin(gsi) });
    let message = |gsi: u32| RouteEntry { gsi, route: Route::Msi(message_of(gsi)) };
    let external = |gsi: u32| {
        let pin = gsi - EXTERNAL;
        RouteEntry { gsi, route: Route::Pin(Pin { chip: (pin / 8) as u8, pin: (pin % 8) as u16 }) }
    };
    let pairs = if pic { EXTERNAL..EXTERNAL + 16 } else { 0..0 };
    pins.chain((MESSAGES..MESSAGES + MESSAGE_GSIS).map(message)).chain(pairs.map(external)).collect()
}

fn status(delivery: Delivery) -> Outcome {
    Ok(delivery.status().into())
}

/// The chips of one VM: what the host can do to them, what they make of a vCPU's exits, and what can be seen of them.
pub trait Chips {
    /// How the side is called in a report.
    fn name(&self) -> &'static str;

    /// Whether the kernel has the local APICs, and a vCPU that halts sleeps there.
    fn in_kernel(&self) -> bool;

    /// Whether the kernel reports ends of interrupt ([`ended`](Self::ended)), which it does at the next entry.
    fn hears_of_ends(&self) -> bool {
        false
    }

    /// The vCPUs have been made.
    ///
    /// # Errors
    /// A call that failed and may not.
    fn adopt(&mut self, vcpus: &[&VcpuFd]) -> Result<(), Errno>;

    /// Back to the state after reset, without bindings, with [`routes`]. Where `pic`, the boot CPU hears the 8259 pair.
    ///
    /// # Errors
    /// A call that failed and may not.
    fn reset(&mut self, vm: &VmFd, vcpus: &[&VcpuFd], pic: bool) -> Result<(), Errno>;

    /// `KVM_SIGNAL_MSI`.
    fn message(&mut self, message: &MsiMessage) -> Outcome;

    /// `KVM_IRQ_LINE_STATUS`.
    fn line(&mut self, gsi: u32, level: bool) -> Outcome;

    /// `KVM_IRQFD` that binds `event`, whose descriptor this is.
    fn bind(&mut self, event: usize, gsi: u32, fd: BorrowedFd<'_>, resample: Option<BorrowedFd<'_>>) -> Outcome;

    /// `KVM_IRQFD` that unbinds it.
    fn unbind(&mut self, event: usize, gsi: u32, fd: BorrowedFd<'_>) -> Outcome;

    /// Returns once every event that was written has arrived.
    fn settle(&mut self);

    /// Before each entry.
    ///
    /// # Errors
    /// What the kernel says to an injection.
    fn before_entry(&mut self, vcpu: u32, port: &mut VcpuFd) -> Result<Entry, Errno>;

    /// The guest reads from where there is no memory.
    fn mmio_read(&mut self, vcpu: u32, address: u64, data: &mut [u8]);

    /// The guest writes there.
    ///
    /// # Errors
    /// Where that needs a call that failed.
    fn mmio_write(&mut self, vcpu: u32, address: u64, data: &[u8]) -> Result<(), Errno>;

    /// The guest reads from a port.
    fn port_read(&mut self, _vcpu: u32, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// The guest writes to a port.
    fn port_write(&mut self, _vcpu: u32, _port: u16, _data: &[u8]) {}

    /// The guest has ended a level interrupt with this vector, as the kernel reports it.
    fn ended(&mut self, vector: u8);

    /// The guest halts.
    fn halt(&mut self, vcpu: u32);

    /// The local APIC of a vCPU.
    ///
    /// # Errors
    /// What the kernel says.
    fn lapic(&mut self, vcpu: u32, fd: &VcpuFd) -> Result<KvmLapicState, Errno>;

    /// The IOAPIC.
    ///
    /// # Errors
    /// What the kernel says.
    fn ioapic(&mut self, vm: &VmFd) -> Result<KvmIoapicState, Errno>;

    /// The 8259 pair, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    fn pics(&mut self, _vm: &VmFd) -> Result<Pics, Errno> {
        Ok(Pics::default())
    }
}

/// `KVM_GET_LAPIC`.
///
/// # Errors
/// What the kernel says.
pub fn kernel_lapic(fd: &VcpuFd) -> Result<KvmLapicState, Errno> {
    let state = fd.get_lapic().map_err(|error| Errno::from_raw_os_error(error.errno()))?;
    Ok(KvmLapicState { regs: state.regs.map(|byte| byte as u8) })
}

/// `KVM_SET_LAPIC`.
///
/// # Errors
/// What the kernel says.
pub fn set_kernel_lapic(fd: &VcpuFd, state: &KvmLapicState) -> Result<(), Errno> {
    let state = kvm_bindings::kvm_lapic_state { regs: state.regs.map(|byte| byte as std::ffi::c_char) };
    fd.set_lapic(&state).map_err(|error| Errno::from_raw_os_error(error.errno()))
}

fn state_of(ioapic: &doorbell::chips::x86::ioapic::IoApic) -> KvmIoapicState {
    let doorbell::chips::x86::ioapic::IoApicState { base_address, ioregsel, id, irr, redirtbl } = ioapic.state();
    KvmIoapicState { base_address, ioregsel, id, irr, pad: 0, redirtbl }
}

/// The 8259 pair as it is compared: what guests can tell apart.
pub type Pics = [KvmPicState; 2];

/// The routes as the kernel's table takes them.
fn kernel_routes() -> Vec<doorbell::kvm::KernelRoute> {
    use doorbell::kvm::KernelRoute;
    let entry = |RouteEntry { gsi, route }: RouteEntry| match route {
        Route::Msi(message) => KernelRoute::Msi { gsi, message },
        Route::Pin(Pin { chip, pin }) => KernelRoute::Pin { gsi, chip, pin },
    };
    routes(true).into_iter().map(entry).collect()
}

/// A call whose failure is an errno.
fn call<T>(result: Result<T, doorbell::Error>) -> Result<T, Errno> {
    result.map_err(|error| error.errno())
}

/// Every program starts with the APICs enabled, vCPU n in the logical flat group n, and the output of the 8259 pair masked,
/// or led to the boot CPU.
fn prelude(vcpu: u32, state: &mut KvmLapicState, pic: bool) {
    state.set_register(regs::SVR, 0x1ff);
    state.set_register(regs::LDR, 1 << (24 + vcpu));
    state.set_register(regs::LVT_LINT0, if pic && vcpu == 0 { 0x700 } else { 0x1_0000 });
}
