//! Rows of the pages that the recorded answers do not have, and what is true of any calls in any order.

use std::os::fd::{AsRawFd, OwnedFd};

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::guest_ram::RamBlock;
use crate::kvm_abi::arm::{
    ArmGuestCalls, RedistRegion, SystemRegister,
    types::{LevelAttr, addr, ctrl, group},
};
use crate::kvm_abi::types::IRQFD_RESAMPLE;

const GICD: u64 = 0x0800_0000;
const ITS: u64 = 0x0808_0000;
const GICR: u64 = 0x080a_0000;
const RAM: u64 = 0x4000_0000;
/// GICD_CTLR.
const CTLR: u64 = 0;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICFGR: u64 = 0xc00;

struct Rig {
    vm: SoftArmVm,
    gic: Device,
    its: Device,
}

impl Rig {
    /// Two vCPUs, a GIC and an ITS, nothing set.
    fn bare(options: SoftArmVmOptions) -> Self {
        let vm = SoftArmVm::new(options, Arc::new(RamBlock::new(RAM, 0x10_0000)), Arc::new(())).unwrap();
        for vcpu in [0, 1] {
            vm.create_vcpu(vcpu).unwrap();
            vm.vcpu_init(vcpu).unwrap();
        }
        let [gic, its] = [device::VGIC_V3, device::ITS].map(|kind| vm.create_device(kind, 0).unwrap().unwrap());
        Self { vm, gic, its }
    }

    /// Placed and initialised, and both vCPUs take every SPI of Group 1 that is routed to them.
    fn with(options: SoftArmVmOptions) -> Self {
        let rig = Self::bare(options);
        rig.set(rig.gic, group::ADDR, addr::V3_DIST, GICD).unwrap();
        rig.set(rig.gic, group::ADDR, addr::V3_REDIST, GICR).unwrap();
        rig.set(rig.gic, group::CTRL, ctrl::INIT, 0).unwrap();
        rig.set(rig.its, group::ADDR, addr::ITS, ITS).unwrap();
        rig.vm.store(0, GICD + CTLR, 4, 0x12).unwrap();
        for word in [4, 8] {
            rig.vm.store(0, GICD + IGROUPR + word, 4, u32::MAX.into()).unwrap();
            rig.vm.store(0, GICD + ISENABLER + word, 4, u32::MAX.into()).unwrap();
        }
        for vcpu in [0, 1] {
            rig.vm.store(0, GICR + 0x2_0000 * u64::from(vcpu) + 0x14, 4, 0).unwrap();
            rig.vm.write_register(vcpu, SystemRegister::ICC_PMR_EL1, 0xff).unwrap();
            rig.vm.write_register(vcpu, SystemRegister::ICC_IGRPEN1_EL1, 1).unwrap();
        }
        rig
    }

    fn new() -> Self {
        Self::with(SoftArmVmOptions::default())
    }

    fn set(&self, device: Device, group: u32, attr: u64, value: u64) -> Answer {
        self.vm.set_device_attr(device, KvmDeviceAttr { group, attr }, value)
    }

    fn get(&self, device: Device, group: u32, attr: u64, mut value: u64) -> Result<u64, Errno> {
        self.vm.get_device_attr(device, KvmDeviceAttr { group, attr }, &mut value)?;
        Ok(value)
    }

    fn has(&self, device: Device, group: u32, attr: u64) -> Answer {
        self.vm.has_device_attr(device, KvmDeviceAttr { group, attr })
    }

    fn line(&self, call: LineCall, level: u32) -> Answer {
        self.vm.irq_line(KvmIrqLevel { irq: call.encode(LineLayout::Second).unwrap(), level })
    }

    fn irqfd(&self, event: &OwnedFd, gsi: u32, flags: u32, ended: Option<&OwnedFd>) -> Answer {
        let (fd, resamplefd) = (event.as_raw_fd() as u32, ended.map_or(0, |ended| ended.as_raw_fd() as u32));
        self.vm.irqfd(&KvmIrqfd { fd, gsi, flags, resamplefd, pad: [0; 16] })
    }

    fn signal(&self, event: &OwnedFd) {
        assert_eq!(rustix::io::write(event, &1u64.to_ne_bytes()), Ok(8));
        self.vm.settle();
    }

    fn acknowledge(&self, vcpu: u32) -> u64 {
        self.vm.read_register(vcpu, SystemRegister::ICC_IAR1_EL1).unwrap()
    }

    fn end(&self, vcpu: u32, intid: u64) {
        self.vm.write_register(vcpu, SystemRegister::ICC_EOIR1_EL1, intid).unwrap();
    }

    /// The lines of SPIs 32 to 63.
    fn lines(&self) -> u64 {
        self.get(self.gic, group::LEVEL_INFO, LevelAttr::new().with_intid(32).into_bits(), 0).unwrap()
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

#[test]
fn devices_are_made_by_their_kind_and_named_by_what_was_returned() {
    let rig = Rig::bare(SoftArmVmOptions::default());
    assert_eq!(rig.vm.create_device(device::VGIC_V2, 0), Err(Errno::NODEV));
    assert_eq!(rig.vm.create_device(device::ITS, CREATE_DEVICE_TEST), Ok(None));
    assert_eq!(rig.vm.create_device(device::VGIC_V3, 0), Err(Errno::EXIST));
    assert_eq!(rig.set(Device(7), group::CTRL, ctrl::INIT, 0), Err(Errno::BADF));
    let second = rig.vm.create_device(device::ITS, 0).unwrap().unwrap();
    assert_ne!(second, rig.its, "several ITSs");
}

#[test]
fn what_was_set_can_be_read_and_what_was_not_shows_that() {
    let rig = Rig::bare(SoftArmVmOptions::default());
    let (gic, its) = (rig.gic, rig.its);
    for (device, attr) in [(gic, addr::V3_DIST), (gic, addr::V3_REDIST), (its, addr::ITS)] {
        assert_eq!(rig.get(device, group::ADDR, attr, 0), Ok(u64::MAX));
    }
    assert_eq!(rig.get(gic, group::NR_IRQS, 0, u64::MAX), Ok(0xffff_ffff_0000_0020), "SGIs and PPIs, in 32 bits");
    let region = RedistRegion::new().with_count(2).with_base(GICR >> 16);
    assert_eq!(rig.get(gic, group::ADDR, addr::V3_REDIST_REGION, 0), Err(Errno::NOENT));
    rig.set(gic, group::ADDR, addr::V3_REDIST_REGION, region.into_bits()).unwrap();
    assert_eq!(rig.get(gic, group::ADDR, addr::V3_REDIST_REGION, 0), Ok(region.into_bits()));
    assert_eq!(rig.get(gic, group::ADDR, addr::V3_REDIST, 0), Ok(GICR));
    assert_eq!(rig.set(gic, group::CTRL, ctrl::SAVE_PENDING_TABLES, 0), Err(Errno::NXIO), "nothing is pending yet");
    rig.set(gic, group::CTRL, ctrl::INIT, 0).unwrap();
    assert_eq!(rig.get(gic, group::NR_IRQS, 0, 0), Ok(256), "who was not told has 256");
    assert_eq!(rig.set(gic, group::NR_IRQS, 0, 64), Err(Errno::BUSY));
    assert_eq!(rig.set(its, group::ADDR, addr::V3_DIST, ITS), Err(Errno::NODEV), "not the ENXIO of the GIC");
    assert_eq!(rig.set(its, group::ADDR, addr::ITS, 1 << 40), Err(Errno::TOOBIG));
    for offset in [0x2, 0x5000, 0x1234_5678] {
        assert_eq!(rig.set(gic, group::DIST_REGS, offset, 5), Ok(0), "{offset:#x}: no register, and no error");
        assert_eq!(rig.get(gic, group::DIST_REGS, offset, 0), Ok(0), "{offset:#x}");
        assert_eq!(rig.get(gic, group::REDIST_REGS, offset, 0), Ok(0), "{offset:#x}");
    }
    let nobody = 0x0000_0107_0000_0000;
    assert_eq!(rig.get(gic, group::REDIST_REGS, nobody, 0), Err(Errno::INVAL), "no vCPU has this affinity");
}

#[test]
fn attributes_that_there_are_say_so() {
    let rig = Rig::new();
    let there = [
        (rig.gic, group::ADDR, addr::V3_DIST),
        (rig.gic, group::NR_IRQS, 0),
        (rig.gic, group::CTRL, ctrl::SAVE_PENDING_TABLES),
        (rig.gic, group::DIST_REGS, 0x104),
        (rig.gic, group::REDIST_REGS, 1 << 32 | 0x70),
        (rig.gic, group::CPU_SYSREGS, u64::from(SystemRegister::ICC_PMR_EL1.into_bits())),
        (rig.gic, group::LEVEL_INFO, 32),
        (rig.its, group::ADDR, addr::ITS),
        (rig.its, group::CTRL, ctrl::ITS_SAVE_TABLES),
        (rig.its, group::ITS_REGS, 0x80),
        (rig.its, group::ITS_REGS, 1 << 59 | 0x80),
    ];
    for (device, group, attr) in there {
        assert_eq!(rig.has(device, group, attr), Ok(0), "group {group}, {attr:#x}");
    }
    let not = [
        (rig.gic, group::ADDR, addr::V2_DIST, Errno::NXIO),
        (rig.gic, group::CTRL, ctrl::ITS_SAVE_TABLES, Errno::NXIO),
        (rig.gic, group::CPU_REGS, 0, Errno::NXIO),
        (rig.gic, group::CPU_SYSREGS, u64::from(SystemRegister::ICC_IAR1_EL1.into_bits()), Errno::NXIO),
        (rig.gic, group::LEVEL_INFO, 1 << 10, Errno::NXIO),
        (rig.gic, group::REDIST_REGS, 9 << 32, Errno::INVAL),
        (rig.its, group::CTRL, ctrl::SAVE_PENDING_TABLES, Errno::NXIO),
        (rig.its, group::ITS_REGS, 0x84, Errno::INVAL),
        (rig.its, group::ITS_REGS, 0x98, Errno::NXIO),
    ];
    for (device, group, attr, errno) in not {
        assert_eq!(rig.has(device, group, attr), Err(errno), "group {group}, {attr:#x}");
    }
}

#[test]
fn c45_the_cpu_interfaces_registers_are_state_and_not_actions() {
    let rig = Rig::new();
    let attr = |register: SystemRegister| 1 << 32 | u64::from(register.into_bits());
    let set = |register, value| rig.set(rig.gic, group::CPU_SYSREGS, attr(register), value);
    let get = |register| rig.get(rig.gic, group::CPU_SYSREGS, attr(register), 0);
    assert_eq!(set(SystemRegister::ICC_PMR_EL1, 0x80), Ok(0));
    assert_eq!(get(SystemRegister::ICC_PMR_EL1), Ok(0x80));
    assert_eq!(rig.vm.read_register(1, SystemRegister::ICC_PMR_EL1), Ok(0x80), "the guest's, of vCPU 1");
    assert_eq!(rig.vm.read_register(0, SystemRegister::ICC_PMR_EL1), Ok(0xf8));
    for action in [SystemRegister::ICC_IAR1_EL1, SystemRegister::ICC_EOIR1_EL1, SystemRegister::ICC_SGI1R_EL1] {
        assert_eq!((get(action), set(action, 0)), (Err(Errno::NOENT), Err(Errno::NOENT)));
    }
    assert_eq!(get(SystemRegister::ICC_AP1R1_EL1), Err(Errno::INVAL), "five bits of priority need one");
    let control = get(SystemRegister::ICC_CTLR_EL1).unwrap();
    assert_eq!(control >> 8 & 7, 4, "five bits of priority");
    assert_eq!(set(SystemRegister::ICC_CTLR_EL1, control | 7 << 8), Err(Errno::INVAL), "eight");
    assert_eq!(set(SystemRegister::ICC_CTLR_EL1, control ^ 1 << 15), Err(Errno::INVAL), "another kind of Aff3");
    assert_eq!(set(SystemRegister::ICC_CTLR_EL1, control | 2), Ok(0), "EOImode");
    assert_eq!(set(SystemRegister::ICC_SRE_EL1, 0), Err(Errno::INVAL));
}

#[test]
fn n1_to_n4_a_line_call_says_what_it_drives_in_one_of_two_layouts() {
    let rig = Rig::new();
    assert_eq!(rig.line(LineCall::spi(255), 1), Ok(0), "the last of 256");
    for (call, errno) in [
        (LineCall::spi(256), Errno::INVAL),
        (LineCall::spi(8192), Errno::INVAL),
        (LineCall::ppi(1, 15), Errno::INVAL),
        (LineCall::ppi(1, 32), Errno::INVAL),
        (LineCall::ppi(2, 20), Errno::INVAL),
        (LineCall { kind: LineKind::Cpu, vcpu: 0, number: 0 }, Errno::NXIO),
    ] {
        assert_eq!(rig.line(call, 1), Err(errno), "{call:?}");
    }
    let old = Rig::with(SoftArmVmOptions { line_layout: LineLayout::First, ..SoftArmVmOptions::default() });
    assert_eq!(old.vm.check_extension(types::CAP_ARM_IRQ_LINE_LAYOUT_2), Ok(0));
    assert_eq!(old.vm.irq_line(KvmIrqLevel { irq: 0x1100_0028, level: 1 }), Err(Errno::INVAL), "kind 0x11");
    assert_eq!(old.vm.irq_line(KvmIrqLevel { irq: 0x0100_0028, level: 1 }), Ok(0));
    assert_eq!(old.acknowledge(0), 40);
}

#[test]
fn g14_a_line_call_needs_no_route() {
    let rig = Rig::new();
    assert_eq!(rig.vm.set_gsi_routing(0, 0, &[]), Ok(0));
    assert_eq!(rig.line(LineCall::spi(40), 1), Ok(0));
    assert_eq!(rig.acknowledge(0), 40);
}

#[test]
fn n2_a_ppi_is_the_vcpus_own() {
    let rig = Rig::new();
    for vcpu in [0, 1] {
        rig.vm.store(vcpu, GICR + 0x2_0000 * u64::from(vcpu) + 0x1_0100, 4, 1 << 20).unwrap();
    }
    rig.line(LineCall::ppi(1, 20), 1).unwrap();
    assert_eq!((rig.acknowledge(0), rig.acknowledge(1)), (1023, 20));
}

#[test]
fn g11_the_default_routes_lead_to_spis_and_replace_what_was_set_before() {
    let rig = Rig::bare(SoftArmVmOptions::default());
    let message = KvmIrqRoutingEntry::msi(5, 0x1000, 1);
    assert_eq!(rig.vm.set_gsi_routing(1, 0, &[message]), Ok(0), "judged, and forgotten");
    assert_eq!(rig.vm.set_gsi_routing(1, 0, &[KvmIrqRoutingEntry::pin(5, 0, 988)]), Err(Errno::INVAL));
    let rig = Rig::new();
    let source = event();
    rig.irqfd(&source, 5, 0, None).unwrap();
    rig.signal(&source);
    assert_eq!(rig.acknowledge(0), 37, "GSI 5");
}

#[test]
fn g12_a_pin_beyond_the_spis_can_be_routed_and_swallows_events() {
    let rig = Rig::new();
    assert_eq!(rig.vm.set_gsi_routing(1, 0, &[KvmIrqRoutingEntry::pin(5, 0, 900)]), Ok(0));
    let source = event();
    rig.irqfd(&source, 5, 0, None).unwrap();
    rig.signal(&source);
    assert_eq!(rig.acknowledge(0), 1023);
}

#[test]
fn f2_before_the_gic_is_initialised_an_assign_is_to_be_tried_again() {
    let rig = Rig::bare(SoftArmVmOptions::default());
    let source = event();
    assert_eq!(rig.irqfd(&source, 5, 0, None), Err(Errno::AGAIN));
    assert_eq!(rig.irqfd(&source, 5, IRQFD_DEASSIGN, None), Ok(0));
    assert_eq!(rig.irqfd(&source, 5, 0x80, None), Err(Errno::INVAL), "F1");
    assert_eq!(rig.line(LineCall::spi(40), 1), Err(Errno::BUSY));
}

/// Of an SPI that follows its level: KVM's irqfd raises one wire, which the line call lowers; ours is a pulse, which
/// such an SPI does not keep (F16).
#[test]
fn f16_an_irqfd_of_an_spi_that_follows_its_level_by_kvms_way_and_by_ours() {
    for (behaviour, lines) in [(Behaviour::KVM, 1 << 5), (Behaviour::SPEC, 0)] {
        let rig = Rig::with(SoftArmVmOptions { behaviour, ..SoftArmVmOptions::default() });
        rig.vm.store(0, GICD + ICFGR + 8, 4, 0).unwrap();
        let source = event();
        rig.irqfd(&source, 5, 0, None).unwrap();
        rig.signal(&source);
        assert_eq!(rig.lines(), lines);
        rig.line(LineCall::spi(37), 0).unwrap();
        assert_eq!(rig.lines(), 0);
    }
}

/// One wire: whoever speaks last is heard. Ours: the line is the OR of its sources (R3).
#[test]
fn r3_a_resampled_line_and_the_line_call_by_kvms_way_and_by_ours() {
    for (behaviour, held) in [(Behaviour::KVM, 0), (Behaviour::SPEC, 1 << 5)] {
        let rig = Rig::with(SoftArmVmOptions { behaviour, ..SoftArmVmOptions::default() });
        rig.vm.store(0, GICD + ICFGR + 8, 4, 0).unwrap();
        let (source, ended) = (event(), event());
        rig.irqfd(&source, 5, IRQFD_RESAMPLE, Some(&ended)).unwrap();
        rig.signal(&source);
        assert_eq!(rig.lines(), 1 << 5);
        rig.line(LineCall::spi(37), 0).unwrap();
        assert_eq!(rig.lines(), held);
    }
}

#[test]
fn r7_the_end_of_a_level_spi_resamples_and_one_that_is_raised_again_comes_again() {
    let rig = Rig::new();
    rig.vm.store(0, GICD + ICFGR + 8, 4, 0).unwrap();
    let (source, ended) = (event(), event());
    rig.irqfd(&source, 5, IRQFD_RESAMPLE, Some(&ended)).unwrap();
    for _ in 0..2 {
        rig.signal(&source);
        assert_eq!(rig.acknowledge(0), 37);
        assert_eq!(rustix::io::read(&ended, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
        rig.end(0, 37);
        assert_eq!(rustix::io::read(&ended, &mut [0; 8]), Ok(8), "R2");
        assert_eq!((rig.lines(), rig.acknowledge(0)), (0, 1023));
    }
}

#[test]
fn level_info_sets_lines_too() {
    let rig = Rig::new();
    rig.vm.store(0, GICD + ICFGR + 8, 4, 0).unwrap();
    let attr = LevelAttr::new().with_intid(32).into_bits();
    rig.set(rig.gic, group::LEVEL_INFO, attr, 1 << 8).unwrap();
    assert_eq!((rig.lines(), rig.acknowledge(0)), (1 << 8, 40));
    assert_eq!(rig.set(rig.gic, group::LEVEL_INFO, attr | 1, 0), Err(Errno::INVAL), "not a multiple of 32");
    assert_eq!(rig.get(rig.gic, group::LEVEL_INFO, attr | 1 << 10, 0), Err(Errno::INVAL), "of another kind");
}

#[test]
fn what_an_its_was_told_before_there_was_a_gic_is_kept() {
    let rig = Rig::bare(SoftArmVmOptions::default());
    let message = KvmMsi { address_lo: ITS as u32 + 0x1_0040, flags: 1, ..KvmMsi::default() };
    rig.set(rig.its, group::ADDR, addr::ITS, ITS).unwrap();
    rig.set(rig.its, group::ITS_REGS, 0x80, 1 << 63 | RAM | 15).unwrap();
    let cbaser = rig.get(rig.its, group::ITS_REGS, 0x80, 0).unwrap();
    assert_eq!(rig.vm.signal_msi(&message), Err(Errno::BUSY), "Q13: it is there, and disabled");
    rig.set(rig.gic, group::CTRL, ctrl::INIT, 0).unwrap();
    assert_eq!(rig.get(rig.its, group::ITS_REGS, 0x80, 0), Ok(cbaser));
    assert_eq!(rig.vm.signal_msi(&message), Err(Errno::BUSY));
    let elsewhere = KvmMsi { address_lo: 0x0900_0000, ..message };
    assert_eq!(rig.vm.signal_msi(&elsewhere), Err(Errno::INVAL), "Q12");
}

#[test]
fn of_two_itss_at_one_address_the_one_that_was_there_first_answers() {
    let rig = Rig::bare(SoftArmVmOptions::default());
    let second = rig.vm.create_device(device::ITS, 0).unwrap().unwrap();
    for its in [second, rig.its] {
        assert_eq!(rig.set(its, group::ADDR, addr::ITS, ITS), Ok(0), "the kernel looks for nothing that is there");
    }
    rig.set(rig.gic, group::ADDR, addr::V3_DIST, GICD).unwrap();
    rig.set(rig.gic, group::ADDR, addr::V3_REDIST, GICR).unwrap();
    rig.set(rig.gic, group::CTRL, ctrl::INIT, 0).unwrap();
    let cbaser = 1 << 63 | RAM | 15;
    rig.set(second, group::ITS_REGS, 0x80, cbaser).unwrap();
    let [first, other] = [second, rig.its].map(|its| rig.get(its, group::ITS_REGS, 0x80, 0));
    assert_ne!(first, other);
    assert_eq!(rig.vm.load(0, ITS + 0x80, 8), first, "what a guest sees is the first one's");
}

#[test]
fn a_guest_cannot_use_what_is_not_there_yet() {
    let ram = Arc::new(RamBlock::new(RAM, 0x1000));
    let vm = SoftArmVm::new(SoftArmVmOptions::default(), ram, Arc::new(())).unwrap();
    let pmr = || vm.read_register(0, SystemRegister::ICC_PMR_EL1);
    assert_eq!(pmr(), Err(Errno::BADF));
    vm.create_vcpu(0).unwrap();
    assert_eq!(pmr(), Err(Errno::NOEXEC));
    vm.vcpu_init(0).unwrap();
    assert_eq!(pmr(), Err(Errno::NXIO));
    let gic = vm.create_device(device::VGIC_V3, 0).unwrap().unwrap();
    let set = |group, attr, value| vm.set_device_attr(gic, KvmDeviceAttr { group, attr }, value);
    set(group::ADDR, addr::V3_REDIST, GICR).unwrap();
    assert_eq!(pmr(), Err(Errno::NXIO));
    set(group::ADDR, addr::V3_DIST, GICD).unwrap();
    assert_eq!(pmr(), Err(Errno::BUSY));
    set(group::CTRL, ctrl::INIT, 0).unwrap();
    assert_eq!(pmr(), Ok(0));
    assert_eq!(vm.load(0, 0x0900_0000, 4), Err(Errno::INVAL));
    assert_eq!(vm.load(0, GICD, 3), Err(Errno::INVAL));
    assert_eq!(vm.load(0, GICD + 0xffe8, 4), Ok(0x3b), "C9a");
    assert_eq!(vm.write_register(0, SystemRegister::ICC_IAR1_EL1, 0), Err(Errno::INVAL), "read only");
}

#[derive(Clone, Debug)]
enum Step {
    Vcpu(u32),
    Device(u32),
    Set(u32, u32, u64, u64),
    Line(u32, u32),
    Message(u32, u32, u32),
    Store(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = prop_oneof![Just(GICD), Just(GICR), Just(ITS), Just(1 << 41), any::<u64>()];
    let attribute = prop_oneof![
        3 => (Just(group::ADDR), 0u64..6, place),
        2 => (Just(group::CTRL), 0u64..5, Just(0)),
        1 => (Just(group::NR_IRQS), Just(0), prop_oneof![Just(64), Just(992), Just(1024), any::<u64>()]),
        3 => (group::DIST_REGS..=group::ITS_REGS, prop_oneof![0u64..0x200, any::<u64>()], any::<u64>()),
    ];
    let step = prop_oneof![
        (0u32..4).prop_map(Step::Vcpu),
        prop_oneof![Just(device::VGIC_V3), Just(device::ITS), any::<u32>()].prop_map(Step::Device),
        (0u32..3, attribute).prop_map(|(device, (group, attr, value))| Step::Set(device, group, attr, value)),
        (prop_oneof![Just(0x0100_0028), Just(0x0200_0014), any::<u32>()], 0u32..2).prop_map(|(i, l)| Step::Line(i, l)),
        (0u32..2, any::<u32>(), 0u32..4).prop_map(|(at, data, flags)| Step::Message(at, data, flags)),
        (0u64..0x10_0000, any::<u64>()).prop_map(|(at, value)| Step::Store(at, value)),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    /// In whatever order a VMM says it: nothing panics; an address that was taken stays; the number of INTIDs and of vCPUs
    /// is settled with INIT; and what fails leaves the value that it would have written alone.
    #[test]
    fn attributes_in_any_order(steps in steps()) {
        let ram = Arc::new(RamBlock::new(RAM, 0x10_0000));
        let vm = SoftArmVm::new(SoftArmVmOptions::default(), ram, Arc::new(())).unwrap();
        let (mut placed, mut initialised) = (Vec::new(), false);
        for step in steps {
            match step {
                Step::Vcpu(id) => {
                    let made = vm.create_vcpu(id);
                    prop_assert!(!initialised || made == Err(Errno::BUSY));
                    let _ = vm.vcpu_init(id);
                }
                Step::Device(kind) => {
                    let _ = vm.create_device(kind, 0);
                }
                Step::Set(device, group, attr, value) => {
                    let (device, attribute) = (Device(device), KvmDeviceAttr { group, attr });
                    let set = vm.set_device_attr(device, attribute, value);
                    let mut found = 0x5555_5555_5555_5555;
                    let got = vm.get_device_attr(device, attribute, &mut found);
                    prop_assert!(got.is_ok() || found == 0x5555_5555_5555_5555);
                    let is_place = group == group::ADDR && attr != addr::V3_REDIST_REGION;
                    if set.is_ok() && is_place {
                        prop_assert_eq!(found, value);
                        placed.push((device, attribute, value));
                    }
                    // The ITS's INIT does nothing.
                    let is_gic = vm.has_device_attr(device, KvmDeviceAttr { group: group::NR_IRQS, attr: 0 }).is_ok();
                    initialised |= set.is_ok() && is_gic && (group, attr) == (group::CTRL, ctrl::INIT);
                    let counts = is_gic && group == group::NR_IRQS;
                    prop_assert!(!(initialised && counts && set.is_ok()));
                }
                Step::Line(irq, level) => {
                    let _ = vm.irq_line(KvmIrqLevel { irq, level });
                }
                Step::Message(at, data, flags) => {
                    let address_lo = [ITS as u32 + 0x1_0040, data][at as usize];
                    let _ = vm.signal_msi(&KvmMsi { address_lo, data, flags, ..KvmMsi::default() });
                }
                Step::Store(at, value) => {
                    let _ = vm.store(0, GICD + at, 4, value);
                    let _ = vm.load(0, GICD + at, 4);
                }
            }
            for (device, attribute, value) in &placed {
                let mut found = 0;
                prop_assert_eq!(vm.get_device_attr(*device, *attribute, &mut found), Ok(0));
                prop_assert_eq!(found, *value);
            }
        }
    }
}
