use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::chips::x86::ioapic::{CHIP, INDEX, IoApic, IoApicOptions, WINDOW};
use crate::chips::x86::lapic::{ApicOptions, ApicSet};
use crate::chips::x86::pic::{Pic, PicOptions};
use crate::kvm::{Entry, UserCpu, VcpuPort};
use crate::manager::{IrqManager, SoftOptions};
use crate::{Error, LineSource, MsiMessage, MsiTarget, PinInput, VcpuId};

/// A vCPU that records what it is told.
struct Port {
    injected: Vec<u8>,
    nmis: u32,
    ready: bool,
    window: bool,
    cr8: u64,
    base: u64,
}

impl VcpuPort for Port {
    fn interrupt(&mut self, vector: u8) -> Result<(), Error> {
        self.injected.push(vector);
        Ok(())
    }
    fn nmi(&mut self) -> Result<(), Error> {
        self.nmis += 1;
        Ok(())
    }
    fn is_ready(&mut self) -> bool {
        self.ready
    }
    fn request_window(&mut self, wanted: bool) {
        self.window = wanted;
    }
    fn cr8(&mut self) -> u64 {
        self.cr8
    }
    fn set_cr8(&mut self, value: u64) {
        self.cr8 = value;
    }
    fn apic_base(&mut self) -> u64 {
        self.base
    }
}

struct Machine {
    apics: Arc<ApicSet>,
    ioapic: Arc<IoApic>,
    cpu: UserCpu,
    irqs: IrqManager,
    port: Port,
    kicks: Arc<AtomicU32>,
}

fn machine() -> Machine {
    let kicks = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&kicks);
    let kick = move |_: VcpuId| {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let apics = ApicSet::new(1, Arc::new(kick), ApicOptions::default());
    let ioapic = Arc::new(IoApic::new(Arc::clone(&apics) as Arc<dyn MsiTarget>, IoApicOptions::default()));
    let pins = Arc::clone(&ioapic) as Arc<dyn PinInput>;
    let irqs = IrqManager::soft(SoftOptions::new(Arc::clone(&apics) as Arc<dyn MsiTarget>, pins)).unwrap();
    let mut apic = apics.local(VcpuId(0)).unwrap();
    apic.write(0xf0, 0x1ff);
    let base = apic.base().into_bits();
    let port = Port { injected: Vec::new(), nmis: 0, ready: true, window: false, cr8: 0, base };
    Machine { cpu: UserCpu::new(apic, Arc::clone(&ioapic), irqs.clone()), apics, ioapic, irqs, port, kicks }
}

impl Machine {
    fn send(&self, vector: u32) {
        self.apics.send(&MsiMessage::new(0xfee0_0000, vector)).unwrap();
    }

    fn enter(&mut self) -> Entry {
        self.cpu.before_entry(&mut self.port).unwrap()
    }

    fn eoi(&mut self) {
        assert!(self.cpu.mmio_write(0xfee0_00b0, &[0; 4]));
    }
}

#[test]
fn a_vector_is_injected_when_the_guest_is_ready_and_the_next_one_asks_for_a_window() {
    let mut machine = machine();
    machine.port.ready = false;
    machine.send(0x41);
    assert_eq!(machine.enter(), Entry::Run);
    assert!(machine.port.window && machine.port.injected.is_empty(), "the guest has interrupts off");
    machine.port.ready = true;
    machine.send(0x61);
    machine.send(0x71);
    assert_eq!(machine.enter(), Entry::Run);
    assert_eq!(machine.port.injected, [0x71], "the highest");
    assert!(!machine.port.window, "the others are below what is in service");
    machine.eoi();
    machine.send(0x91);
    machine.enter();
    machine.eoi();
    machine.enter();
    machine.eoi();
    machine.enter();
    assert_eq!(machine.port.injected, [0x71, 0x91, 0x61, 0x41]);
}

#[test]
fn a_halted_vcpu_sleeps_until_something_is_deliverable_and_is_kicked_for_it() {
    let mut machine = machine();
    assert_eq!(machine.enter(), Entry::Run);
    machine.cpu.halt();
    assert_eq!(machine.enter(), Entry::Sleep);
    let before = machine.kicks.load(Ordering::Relaxed);
    machine.send(0x41);
    assert_eq!(machine.kicks.load(Ordering::Relaxed), before + 1);
    assert_eq!(machine.enter(), Entry::Run);
    assert_eq!(machine.port.injected, [0x41]);
    machine.eoi();
    machine.cpu.halt();
    assert_eq!(machine.enter(), Entry::Sleep);
    machine.apics.nmi(VcpuId(0));
    assert_eq!(machine.enter(), Entry::Run);
    assert_eq!(machine.port.nmis, 1);
}

#[test]
fn what_a_halted_vcpu_cannot_take_does_not_wake_it() {
    let mut machine = machine();
    machine.enter();
    machine.port.ready = false;
    machine.cpu.halt();
    machine.send(0x41);
    assert_eq!(machine.enter(), Entry::Sleep, "it halted with interrupts off");
    machine.apics.nmi(VcpuId(0));
    assert_eq!(machine.enter(), Entry::Run);
    assert_eq!((machine.port.nmis, machine.port.injected.len(), machine.port.window), (1, 0, true));
}

#[test]
fn an_nmi_is_taken_before_a_vector() {
    let mut machine = machine();
    machine.send(0x41);
    machine.apics.nmi(VcpuId(0));
    assert_eq!(machine.enter(), Entry::Run);
    assert_eq!((machine.port.nmis, machine.port.injected.len(), machine.port.window), (1, 0, true));
    assert_eq!(machine.enter(), Entry::Run);
    assert_eq!((machine.port.nmis, &machine.port.injected[..], machine.port.window), (1, &[0x41][..], false));
}

#[test]
fn the_end_of_an_edge_interrupt_is_told_to_the_resamplers_of_its_pin() {
    let mut machine = machine();
    let [trigger, resample] = [crate::kvm::tests::fixture::event(), crate::kvm::tests::fixture::event()];
    use std::os::fd::AsFd;
    machine
        .irqs
        .set_routes(&[crate::route::RouteEntry {
            gsi: 10,
            route: crate::route::Route::Pin(crate::route::Pin { chip: CHIP, pin: 10 }),
        }])
        .unwrap();
    let _bound = machine.irqs.irqfd_unrouted(10, trigger.as_fd(), Some(resample.as_fd())).unwrap();
    machine.cpu.mmio_write(0xfec0_0000 + INDEX, &0x24u32.to_le_bytes());
    machine.cpu.mmio_write(0xfec0_0000 + WINDOW, &0x4au32.to_le_bytes());
    machine.send(0x4a);
    machine.enter();
    assert_eq!(crate::kvm::tests::fixture::counter(&resample), 0);
    machine.eoi();
    assert_eq!(crate::kvm::tests::fixture::counter(&resample), 1, "as KVM does, whoever sent the vector");
    machine.send(0x4b);
    machine.enter();
    machine.eoi();
    assert_eq!(crate::kvm::tests::fixture::counter(&resample), 0, "another vector");
}

#[test]
fn the_guests_cr8_holds_back_what_is_below_it() {
    let mut machine = machine();
    machine.enter();
    machine.port.cr8 = 5;
    machine.send(0x51);
    assert_eq!(machine.enter(), Entry::Run);
    assert!(machine.port.injected.is_empty());
    assert_eq!(machine.port.cr8, 5);
    machine.port.cr8 = 4;
    machine.enter();
    assert_eq!(machine.port.injected, [0x51]);
    machine.eoi();
    machine.cpu.mmio_write(0xfee0_0080, &0x90u32.to_le_bytes());
    machine.port.cr8 = 9;
    machine.enter();
    assert_eq!(machine.port.cr8, 9, "TPR and CR8 are one register");
}

#[test]
fn a_store_to_tpr_is_not_undone_by_the_cr8_of_the_exit_that_it_caused() {
    let mut machine = machine();
    machine.enter();
    // The kernel reports CR8 as it was before it handed the store to user space.
    machine.port.cr8 = 0;
    machine.cpu.mmio_write(0xfee0_0080, &0x90u32.to_le_bytes());
    machine.send(0x51);
    machine.enter();
    assert_eq!(machine.port.cr8, 9);
    assert!(machine.port.injected.is_empty());
}

#[test]
fn the_end_of_a_level_interrupt_sends_it_again_while_its_line_is_high() {
    let mut machine = machine();
    assert!(machine.cpu.mmio_write(0xfec0_0000 + INDEX, &0x24u32.to_le_bytes()));
    assert!(machine.cpu.mmio_write(0xfec0_0000 + WINDOW, &0x804au32.to_le_bytes()));
    machine.ioapic.set(CHIP, 10, LineSource::USER, true);
    machine.enter();
    machine.eoi();
    machine.enter();
    assert_eq!(machine.port.injected, [0x4a, 0x4a]);
    machine.ioapic.set(CHIP, 10, LineSource::USER, false);
    machine.eoi();
    machine.enter();
    assert_eq!(machine.port.injected.len(), 2);
    assert!(!machine.cpu.mmio_write(0xfed0_0000, &[0; 4]), "nobody's address");
    assert!(!machine.cpu.mmio_read(0xfec0_0100, &mut [0; 4]));
}

#[test]
fn the_8259s_interrupt_goes_before_the_local_apics_and_its_ports_end_it() {
    let mut machine = machine();
    let wire = Arc::clone(&machine.apics);
    let pic = Arc::new(Pic::new(move |level| wire.set_pic_output(VcpuId(0), level), PicOptions::default()));
    machine.cpu = machine.cpu.with_pic(Arc::clone(&pic));
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0)] {
        assert!(machine.cpu.port_write(port, &[value]));
    }
    machine.send(0x91);
    pic.set(0, 3, LineSource::USER, true);
    machine.port.ready = false;
    machine.enter();
    assert!(machine.port.window && machine.port.injected.is_empty());
    machine.port.ready = true;
    machine.enter();
    assert_eq!((&machine.port.injected[..], machine.port.window), (&[0x23][..], true), "the other one is still there");
    machine.enter();
    assert_eq!((&machine.port.injected[..], machine.port.window), (&[0x23, 0x91][..], false));
    assert!(machine.cpu.port_write(0x20, &[0x0b]), "read ISR");
    let mut byte = [0];
    assert!(machine.cpu.port_read(0x20, &mut byte));
    assert_eq!(byte, [0x08]);
    assert!(machine.cpu.port_write(0x20, &[0x20]) && machine.cpu.port_read(0x20, &mut byte));
    assert_eq!(byte, [0]);
    assert!(!machine.cpu.port_write(0x80, &[0]) && !machine.cpu.port_read(0x22, &mut byte), "nobody's ports");
}

#[test]
fn after_init_the_boot_cpu_runs_and_another_waits_for_its_sipi() {
    let apics = ApicSet::new(2, Arc::new(()), ApicOptions::default());
    let ioapic = Arc::new(IoApic::new(Arc::clone(&apics) as Arc<dyn MsiTarget>, IoApicOptions::default()));
    let pins = Arc::clone(&ioapic) as Arc<dyn PinInput>;
    let irqs = IrqManager::soft(SoftOptions::new(Arc::clone(&apics) as Arc<dyn MsiTarget>, pins)).unwrap();
    for (vcpu, waits) in [(0, Entry::Run), (1, Entry::Sleep)] {
        let mut cpu = UserCpu::new(apics.local(VcpuId(vcpu)).unwrap(), Arc::clone(&ioapic), irqs.clone());
        let base = cpu.apic().base().into_bits();
        let mut port = Port { injected: Vec::new(), nmis: 0, ready: true, window: false, cr8: 0, base };
        let to = 0xfee0_0000 | u64::from(vcpu) << 12;
        apics.send(&MsiMessage::new(to, 0x500)).unwrap();
        assert_eq!(cpu.before_entry(&mut port).unwrap(), Entry::Init);
        assert_eq!(cpu.before_entry(&mut port).unwrap(), waits);
        apics.nmi(VcpuId(vcpu));
        assert_eq!(cpu.before_entry(&mut port).unwrap(), waits, "an NMI does not start it");
        apics.send(&MsiMessage::new(to, 0x69a)).unwrap();
        let then = if vcpu == 1 { Entry::StartUp(0x9a) } else { Entry::Run };
        assert_eq!(cpu.before_entry(&mut port).unwrap(), then);
    }
}
