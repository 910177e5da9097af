//! The calls whose answers are written down in `tests/data/kvm_arm_answers.txt`.
//!
//! One observation is one `name: value` line. One vCPU of the guest runs at a time, and only where a line says so.

use std::fmt::{Display, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use doorbell::kvm_abi::arm::types::{self, LevelAttr, LineKind, addr, ctrl, device, group};
use doorbell::kvm_abi::arm::{ArmGuestCalls, Device, LineCall, LineLayout, RedistRegion};
use doorbell::kvm_abi::types::{
    CAP_IRQ_ROUTING, CAP_IRQCHIP, CAP_IRQFD, CAP_IRQFD_RESAMPLE, CAP_MSI_DEVID, CAP_SIGNAL_MSI, IRQFD_DEASSIGN,
    IRQFD_RESAMPLE, MSI_VALID_DEVID,
};
use doorbell::kvm_abi::{Answer, Errno, KvmIrqLevel, KvmIrqRoutingEntry as Entry, KvmIrqfd};
use rustix::event::{EventfdFlags, eventfd};

use crate::machine::*;

const CPUS: u64 = 2;
const SPIS_END: u32 = 96;
const DEVICE: u32 = 8;
const LPI_A: u64 = 8195;
const LPI_B: u64 = 8200;
const EDGE_SPI: u32 = 37;
const LEVEL_SPI: u16 = 60;
const RESAMPLE_SPI: u32 = 62;

/// Asks everything and returns the lines.
pub fn ask<V: ArmGuestCalls>(vm: &V) -> Vec<String> {
    let mut session = Session { machine: Machine::new(vm), vm, lines: Vec::new(), guest: Guest::new(0) };
    let events = Events { msi: new_event(), spi: new_event(), level: new_event(), resample: new_event() };
    session.without_controller();
    session.create_devices();
    session.set_up_vgic();
    session.set_up_its();
    session.reset_values();
    session.bring_up_gic();
    session.bring_up_its();
    session.map_and_signal();
    session.move_and_clear();
    session.bad_commands();
    session.save_tables();
    session.routes(&events);
    session.bind_eventfds(&events);
    session.line_calls();
    session.acknowledge(&events);
    session.resample(&events);
    session.rules();
    session.unmapping();
    session.its_registers();
    session.lines
}

struct Session<'a, V> {
    machine: Machine<'a, V>,
    vm: &'a V,
    lines: Vec<String>,
    guest: Guest,
}

struct Events {
    msi: OwnedFd,
    spi: OwnedFd,
    level: OwnedFd,
    resample: OwnedFd,
}

fn new_event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd can be made")
}

fn add(event: &OwnedFd) {
    assert_eq!(rustix::io::write(event, &1u64.to_ne_bytes()), Ok(8), "the eventfd takes 1");
}

fn take(event: &OwnedFd) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    Ok(rustix::io::read(event, &mut bytes).map(|_| u64::from_ne_bytes(bytes))?)
}

fn msi_route(gsi: u32, device: u32, event: u32) -> Entry {
    let mut entry = Entry { flags: MSI_VALID_DEVID, ..Entry::msi(gsi, DOORBELL, event) };
    entry.payload[3] = device;
    entry
}

fn line(kind: LineKind, vcpu: u32, number: u16) -> u32 {
    LineCall { kind, vcpu, number }.encode(LineLayout::Second).expect("a small vCPU")
}

impl<V: ArmGuestCalls> Session<'_, V> {
    fn say(&mut self, name: &str, value: impl Display) {
        self.lines.push(format!("{name}: {value}"));
    }

    fn hex(&mut self, name: &str, value: u64) {
        self.say(name, format_args!("{value:#x}"));
    }

    /// A call whose value carries nothing more than success.
    fn result<T>(&mut self, name: &str, answer: Result<T, Errno>) {
        self.say(name, status(&answer));
    }

    /// A call whose value is itself an observation.
    fn returned(&mut self, name: &str, answer: Answer) {
        match answer {
            Ok(value) => self.say(name, format_args!("ok={value}")),
            Err(errno) => self.result::<()>(name, Err(errno)),
        }
    }

    /// Pending LPIs from the tables in RAM, pending SPIs and PPIs from registers.
    fn pending(&mut self, name: &str) {
        let nothing = vec![0; TABLE_SIZE];
        PENDING_TABLES.iter().for_each(|table| self.machine.write_ram(*table, &nothing));
        let saved = self.machine.set(self.machine.gic, group::CTRL, ctrl::SAVE_PENDING_TABLES, 0);
        let mut text = format!("save={}", status(&saved));
        for (cpu, table) in PENDING_TABLES.into_iter().enumerate() {
            let mut bytes = nothing.clone();
            self.vm.read_ram(table, &mut bytes).expect("this is memory");
            for lpi in (8192..TABLE_SIZE).filter(|lpi| bytes[lpi / 8] >> (lpi % 8) & 1 == 1) {
                let _ = write!(text, " cpu{cpu}:{lpi}");
            }
        }
        for (name, value) in [
            ("ispendr1", self.machine.gicd_read(gicd::ISPENDR + 4)),
            ("ispendr2", self.machine.gicd_read(gicd::ISPENDR + 8)),
            ("gicr0_ispendr", self.machine.gicr_read(0, gicr::SGI_FRAME + gicd::ISPENDR)),
        ] {
            // As printf has it: no prefix before a zero.
            let _ = if value == 0 { write!(text, " {name}=0") } else { write!(text, " {name}={value:#x}") };
        }
        self.say(&format!("{name}.pending"), text);
    }

    fn process(&mut self, name: &str) {
        let answer = self.machine.process();
        self.result(name, answer);
        self.hex(&format!("{name}.creadr"), self.machine.gits_read(gits::CREADR));
    }

    fn doorbell(&mut self, name: &str, event: u32) {
        self.returned(name, self.machine.doorbell(DEVICE, event));
    }

    fn irqfd(&self, event: &OwnedFd, gsi: u32, flags: u32, resamplefd: i32) -> Answer {
        let (fd, resamplefd) = (event.as_raw_fd() as u32, resamplefd as u32);
        self.vm.irqfd(&KvmIrqfd { fd, gsi, flags, resamplefd, ..KvmIrqfd::default() })
    }

    fn irq_line(&self, irq: u32, level: u32) -> Answer {
        self.vm.irq_line(KvmIrqLevel { irq, level })
    }

    fn run(&mut self, name: &str) {
        let intid = self.guest.run(self.vm);
        self.report(name, intid);
    }

    fn report(&mut self, name: &str, intid: Result<u64, Errno>) {
        match intid {
            Ok(intid) => self.say(name, format_args!("intid={intid}")),
            Err(errno) => self.result::<()>(name, Err(errno)),
        }
    }

    fn without_controller(&mut self) {
        let capabilities = [
            ("irqchip", CAP_IRQCHIP),
            ("irq_routing", CAP_IRQ_ROUTING),
            ("irqfd", CAP_IRQFD),
            ("irqfd_resample", CAP_IRQFD_RESAMPLE),
            ("signal_msi", CAP_SIGNAL_MSI),
            ("msi_devid", CAP_MSI_DEVID),
            ("device_ctrl", types::CAP_DEVICE_CTRL),
            ("arm_vm_ipa_size", types::CAP_ARM_VM_IPA_SIZE),
            ("arm_user_irq", types::CAP_ARM_USER_IRQ),
            ("arm_irq_line_layout_2", types::CAP_ARM_IRQ_LINE_LAYOUT_2),
            ("vcpu_attributes", types::CAP_VCPU_ATTRIBUTES),
            ("nr_memslots", types::CAP_NR_MEMSLOTS),
            ("max_vcpus", types::CAP_MAX_VCPUS),
        ];
        for (name, capability) in capabilities {
            let value = self.vm.check_extension(capability).expect("a capability can always be asked for");
            self.say(&format!("cap.{name}"), value);
        }
        self.result("no_vgic.irqfd", self.irqfd(&new_event(), 32, 0, 0));
        self.doorbell("no_vgic.signal_msi", 3);
        self.result("no_vgic.irq_line_spi", self.irq_line(line(LineKind::Spi, 0, 40), 1));
    }

    fn create_devices(&mut self) {
        self.result("vcpu0.create", self.vm.create_vcpu(0));
        self.result("vcpu1.create", self.vm.create_vcpu(1));
        self.result("no_vgic.irq_line_cpu", self.irq_line(line(LineKind::Cpu, 0, 0), 0));
        self.result("no_vgic.irq_line_cpu_id_2", self.irq_line(line(LineKind::Cpu, 0, 2), 0));
        let gic = self.vm.create_device(device::VGIC_V3, 0);
        self.result("vgic.create", gic);
        self.machine.gic = gic.ok().flatten().unwrap_or(Device(u32::MAX));
        self.result("vgic.create_again", self.vm.create_device(device::VGIC_V3, 0));
        self.doorbell("vgic.signal_msi_without_its", 3);
        let its = self.vm.create_device(device::ITS, 0);
        self.result("its.create", its);
        self.machine.its = its.ok().flatten().unwrap_or(Device(u32::MAX));
        let devid = self.vm.check_extension(CAP_MSI_DEVID).expect("a capability can always be asked for");
        self.say("its.cap_msi_devid", devid);
        self.result("vcpu0.init", self.vm.vcpu_init(0));
        self.result("vcpu1.init", self.vm.vcpu_init(1));
    }

    fn set_up_vgic(&mut self) {
        let gic = self.machine.gic;
        let region = RedistRegion::new().with_count(1).with_base(GICR_BASE >> 16);
        let calls = [
            ("nr_irqs_31", group::NR_IRQS, 0, 31),
            ("nr_irqs_100", group::NR_IRQS, 0, 100),
            ("nr_irqs_1056", group::NR_IRQS, 0, 1056),
            ("nr_irqs_96", group::NR_IRQS, 0, SPIS_END.into()),
            ("nr_irqs_again", group::NR_IRQS, 0, SPIS_END.into()),
            ("read_before_init", group::DIST_REGS, gicd::CTLR, 0),
            ("dist_unaligned", group::ADDR, addr::V3_DIST, GICD_BASE + 0x100),
            ("dist_beyond_ipa", group::ADDR, addr::V3_DIST, 1 << 52),
            ("dist_type_of_v2", group::ADDR, addr::V2_DIST, GICD_BASE),
            ("dist", group::ADDR, addr::V3_DIST, GICD_BASE),
            ("dist_again", group::ADDR, addr::V3_DIST, GICD_BASE),
            ("redist_over_dist", group::ADDR, addr::V3_REDIST, GICD_BASE),
            ("redist", group::ADDR, addr::V3_REDIST, GICR_BASE),
            ("redist_again", group::ADDR, addr::V3_REDIST, GICR_BASE + 0x20_0000),
            ("redist_region_after_redist", group::ADDR, addr::V3_REDIST_REGION, region.into_bits()),
            ("has_group_77", 77, 0, 0),
            ("init", group::CTRL, ctrl::INIT, 0),
            ("init_again", group::CTRL, ctrl::INIT, 0),
        ];
        for (name, group, attr, value) in calls {
            let answer = match name {
                "read_before_init" => self.machine.get(gic, group, attr).map(|_| 0),
                "has_group_77" => self.vm.has_device_attr(gic, doorbell::kvm_abi::arm::KvmDeviceAttr { group, attr }),
                _ => self.machine.set(gic, group, attr, value),
            };
            self.result(&format!("vgic.{name}"), answer);
        }
    }

    fn set_up_its(&mut self) {
        let its = self.machine.its;
        let set_address = |session: &Self, address| session.machine.set(its, group::ADDR, addr::ITS, address);
        self.result("its.address_not_64k", set_address(self, ITS_BASE + 0x1000));
        self.result("its.read_before_address", self.machine.get(its, group::ITS_REGS, gits::CTLR));
        self.doorbell("its.signal_msi_before_address", 3);
        self.result("its.address", set_address(self, ITS_BASE));
        self.result("its.address_again", set_address(self, ITS_BASE));
        self.result("its.init", self.machine.set(its, group::CTRL, ctrl::INIT, 0));
        self.result("vcpu.create_after_init", self.vm.create_vcpu(CPUS as u32));
    }

    fn reset_values(&mut self) {
        for (name, offset) in [
            ("ctlr", gicd::CTLR),
            ("typer", gicd::TYPER),
            ("iidr", gicd::IIDR),
            ("pidr2", gicd::PIDR2),
            ("typer2", gicd::TYPER2),
            ("icfgr1", gicd::ICFGR + 4),
            ("icfgr3", gicd::ICFGR + 12),
        ] {
            self.hex(&format!("gicd.{name}"), self.machine.gicd_read(offset));
        }
        self.hex("gicr0.icfgr1", self.machine.gicr_read(0, gicr::SGI_FRAME + gicd::ICFGR + 4));
        self.hex("gicr0.typer", self.machine.gicr_read64(0, gicr::TYPER));
        self.hex("gicr1.typer", self.machine.gicr_read64(1, gicr::TYPER));
        self.hex("gicr0.ctlr", self.machine.gicr_read(0, gicr::CTLR));
        self.hex("gicr0.iidr", self.machine.gicr_read(0, gicr::IIDR));
        self.hex("gicr0.waker", self.machine.gicr_read(0, gicr::WAKER));
        for (name, offset) in [
            ("ctlr", gits::CTLR),
            ("iidr", gits::IIDR),
            ("typer", gits::TYPER),
            ("baser0", gits::BASER0),
            ("baser1", gits::BASER1),
            ("baser2", gits::BASER2),
        ] {
            self.hex(&format!("gits.{name}"), self.machine.gits_read(offset));
        }
        let its = self.machine.its;
        self.result("gits.unaligned_offset", self.machine.get(its, group::ITS_REGS, 0x84));
        self.result("gits.unknown_offset", self.machine.get(its, group::ITS_REGS, 0x98));
        self.result("gits.iidr_revision_0", self.machine.gits_write(gits::IIDR, 0x43b));
        self.result("gits.iidr_revision_5", self.machine.gits_write(gits::IIDR, 0x543b));
    }

    fn bring_up_gic(&mut self) {
        let machine = &self.machine;
        let written = machine.gicd_write(gicd::CTLR, 0x12);
        self.result("gicd.ctlr_0x12", written);
        self.hex("gicd.ctlr_after", self.machine.gicd_read(gicd::CTLR));
        let ones = u32::MAX;
        for word in 0..3 {
            let _ = self.machine.gicd_write(gicd::IGROUPR + 4 * word, ones);
            let _ = self.machine.gicd_write(gicd::ISENABLER + 4 * word, ones);
        }
        for intid in (32..SPIS_END).step_by(4) {
            let _ = self.machine.gicd_write(gicd::IPRIORITYR + u64::from(intid), 0xa0a0_a0a0);
        }
        let _ = self.machine.gicd_write(gicd::ICFGR + 8, 0xaaaa_aaaa);
        for cpu in 0..CPUS {
            let _ = self.machine.gicr_write(cpu, gicr::SGI_FRAME + gicd::IGROUPR, ones);
            let _ = self.machine.gicr_write(cpu, gicr::SGI_FRAME + gicd::ISENABLER, ones);
            self.machine.gicr_set_tables(cpu);
            let enabled = self.machine.gicr_write(cpu, gicr::CTLR, 1);
            self.result(&format!("gicr{cpu}.enable_lpis"), enabled);
            self.hex(&format!("gicr{cpu}.ctlr_after"), self.machine.gicr_read(cpu, gicr::CTLR));
            self.hex(&format!("gicr{cpu}.propbaser"), self.machine.gicr_read64(cpu, gicr::PROPBASER));
            self.hex(&format!("gicr{cpu}.pendbaser"), self.machine.gicr_read64(cpu, gicr::PENDBASER));
        }
        self.machine.write_ram(CONFIG_TABLE, &[CONFIG_ENABLED; 0x8000]);
    }

    fn bring_up_its(&mut self) {
        let _ = self.machine.gits_write(gits::CTLR, 1);
        self.hex("gits.enable_without_tables", self.machine.gits_read(gits::CTLR));
        self.result("gits.cbaser", self.machine.gits_write(gits::CBASER, VALID | COMMAND_QUEUE | 15));
        self.hex("gits.cbaser_after", self.machine.gits_read(gits::CBASER));
        self.hex("gits.creadr", self.machine.gits_read(gits::CREADR));
        let devices = VALID | BASER_DEVICES | DEVICE_TABLE | PAGE_SIZE_64K;
        let collections = VALID | BASER_COLLECTIONS | COLLECTION_TABLE | PAGE_SIZE_64K;
        self.result("gits.baser0_write", self.machine.gits_write(gits::BASER0, devices));
        self.result("gits.baser1_write", self.machine.gits_write(gits::BASER1, collections));
        self.hex("gits.baser0_after", self.machine.gits_read(gits::BASER0));
        self.hex("gits.baser1_after", self.machine.gits_read(gits::BASER1));
        self.result("gits.cwriter_before_enable", self.machine.gits_write(gits::CWRITER, 0));
        self.doorbell("signal_msi.its_disabled", 3);
        self.result("gits.enable", self.machine.gits_write(gits::CTLR, 1));
        self.hex("gits.ctlr_after", self.machine.gits_read(gits::CTLR));
    }

    fn map_and_signal(&mut self) {
        let device = DEVICE.into();
        self.machine.mapd(device, 5, VALID);
        self.machine.mapc(0, 0, VALID);
        self.machine.mapc(1, 1, VALID);
        self.machine.mapti(device, 3, LPI_A, 0);
        self.machine.mapti(device, 4, LPI_B, 1);
        self.machine.event_command(command::INV, device, 3);
        self.machine.other(command::SYNC, [0; 3]);
        self.process("its.map");
        self.pending("its.map");
        self.returned("signal_msi.no_devid_flag_first_use", self.machine.signal_msi(DEVICE, 3, 0, DOORBELL));
        self.doorbell("signal_msi.event_3", 3);
        self.pending("signal_msi.event_3");
        self.doorbell("signal_msi.event_4", 4);
        self.pending("signal_msi.event_4");
        self.doorbell("signal_msi.event_unmapped", 5);
        self.returned("signal_msi.device_unmapped", self.machine.doorbell(9, 3));
        for (name, flags, address) in [
            ("no_devid_flag_after_use", 0, DOORBELL),
            ("doorbell_plus_4", MSI_VALID_DEVID, DOORBELL + 4),
            ("frame_base", MSI_VALID_DEVID, ITS_BASE),
            ("outside_frame", MSI_VALID_DEVID, 0x0900_0000),
            ("flags_2", 2, DOORBELL),
        ] {
            self.returned(&format!("signal_msi.{name}"), self.machine.signal_msi(DEVICE, 3, flags, address));
        }
    }

    fn move_and_clear(&mut self) {
        let device = DEVICE.into();
        for (name, opcode) in [("its.clear", command::CLEAR), ("its.int", command::INT), ("its.movi", command::MOVI)] {
            self.machine.event_command(opcode, device, 4);
            self.process(name);
            self.pending(name);
        }
        self.machine.other(command::MOVALL, [0, 0, 1 << 16]);
        self.process("its.movall");
        self.pending("its.movall");
    }

    fn bad_commands(&mut self) {
        self.machine.other(0x77, [0; 3]);
        self.process("its.unknown_command");
        self.machine.mapti(DEVICE.into(), 40, 8201, 0);
        self.process("its.mapti_event_40");
        self.machine.mapti(DEVICE.into(), 6, 100, 0);
        self.process("its.mapti_lpi_100");
    }

    fn save_tables(&mut self) {
        let saved = self.machine.set(self.machine.its, group::CTRL, ctrl::ITS_SAVE_TABLES, 0);
        self.result("save.tables", saved);
        self.hex("save.device_8", self.machine.word(DEVICE_TABLE + 8 * u64::from(DEVICE)));
        self.hex("save.event_3", self.machine.word(ITT + 8 * 3));
        self.hex("save.event_4", self.machine.word(ITT + 8 * 4));
        for collection in 0..3 {
            let entry = self.machine.word(COLLECTION_TABLE + 8 * collection);
            self.hex(&format!("save.collection_{collection}"), entry);
        }
    }

    fn table(&self, entries: &[Entry]) -> Answer {
        self.vm.set_gsi_routing(entries.len() as u32, 0, entries)
    }

    fn routes(&mut self, events: &Events) {
        let table = [
            msi_route(40, DEVICE, 3),
            Entry::pin(41, 0, EDGE_SPI - 32),
            // Device 99 is not mapped.
            msi_route(42, 99, 9),
            Entry::pin(43, 0, RESAMPLE_SPI - 32),
        ];
        self.result("routing.irqfd_default_table", self.irqfd(&events.msi, 41, 0, 0));
        self.result("routing.irqfd_default_deassign", self.irqfd(&events.msi, 41, IRQFD_DEASSIGN, 0));
        self.result("routing.set", self.table(&table));
        for (name, entry) in [
            ("type_77", Entry { gsi: 1, kind: 77, ..Entry::default() }),
            ("irqchip_1", Entry::pin(1, 1, 5)),
            ("pin_987", Entry::pin(1, 0, 987)),
            ("pin_988", Entry::pin(1, 0, 988)),
            ("pin_2000", Entry::pin(1, 0, 2000)),
            ("gsi_4095", Entry::pin(4095, 0, 1)),
            ("gsi_4096", Entry::pin(4096, 0, 1)),
        ] {
            self.result(&format!("routing.{name}"), self.table(&[entry]));
        }
        self.result("routing.duplicate_pin", self.table(&[table[1], table[1]]));
        self.result("routing.set_again", self.table(&table));
    }

    fn bind_eventfds(&mut self, events: &Events) {
        let plain = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
            .expect("/dev/null can be opened");
        self.result("irqfd.msi", self.irqfd(&events.msi, 40, 0, 0));
        self.result("irqfd.msi_again", self.irqfd(&events.msi, 40, 0, 0));
        self.result("irqfd.spi", self.irqfd(&events.spi, 41, 0, 0));
        self.result("irqfd.flags_0x80", self.irqfd(&events.spi, 5, 0x80, 0));
        self.result("irqfd.not_an_eventfd", self.irqfd(&plain, 5, 0, 0));
        self.pending("irqfd.before_write");
        add(&events.msi);
        self.vm.settle();
        self.pending("irqfd.msi_written");
        add(&events.spi);
        self.vm.settle();
        self.pending("irqfd.spi_written");
    }

    fn line_calls(&mut self) {
        let spi = line(LineKind::Spi, 0, LEVEL_SPI);
        self.result("irq_line.spi_at_reset_up", self.irq_line(spi, 1));
        self.pending("irq_line.spi_at_reset_up");
        self.result("irq_line.spi_at_reset_down", self.irq_line(spi, 0));
        self.pending("irq_line.spi_at_reset_down");
        for (name, irq, level) in [
            ("spi_96", line(LineKind::Spi, 0, 96), 0),
            ("spi_31", line(LineKind::Spi, 0, 31), 0),
            ("ppi_3", line(LineKind::Ppi, 0, 3), 0),
            ("ppi_20_cpu_9", line(LineKind::Ppi, 9, 20), 0),
            ("ppi_20", line(LineKind::Ppi, 0, 20), 0),
            ("cpu", line(LineKind::Cpu, 0, 0), 1),
            ("type_3", 3 << 24 | 40, 1),
        ] {
            self.result(&format!("irq_line.{name}"), self.irq_line(irq, level));
        }
    }

    fn acknowledge(&mut self, events: &Events) {
        for step in 0..5 {
            self.run(&format!("guest.step{step}"));
            if step == 2 {
                add(&events.msi);
                self.vm.settle();
            }
        }
        self.pending("guest.after");
    }

    /// ISPENDR shows the latch only; the line itself has an attribute of its own.
    fn line_level(&mut self, name: &str) {
        let attr = LevelAttr::new().with_intid(32).into_bits();
        let lines = self.machine.get(self.machine.gic, group::LEVEL_INFO, attr);
        self.result(&format!("{name}.level_info"), lines);
        self.hex(&format!("{name}.lines"), lines.unwrap_or_default());
    }

    fn resample(&mut self, events: &Events) {
        let spi = line(LineKind::Spi, 0, LEVEL_SPI);
        let _ = self.machine.gicd_write(gicd::ICFGR + 12, 0);
        self.hex("level.icfgr3", self.machine.gicd_read(gicd::ICFGR + 12));
        for (name, level) in [("level.up", 1), ("level.down", 0)] {
            self.result(name, self.irq_line(spi, level));
            self.pending(name);
            self.line_level(name);
        }
        let ended = events.resample.as_raw_fd();
        self.result("resample.assign", self.irqfd(&events.level, 43, IRQFD_RESAMPLE, ended));
        add(&events.level);
        self.vm.settle();
        self.line_level("resample.raised");
        self.run("resample.acknowledge");
        self.result("resample.event_before_eoi", take(&events.resample));
        self.run("resample.after_eoi");
        let count = take(&events.resample);
        self.result("resample.event_after_eoi", count);
        self.say("resample.event_count", count.unwrap_or_default());
        self.line_level("resample.after_eoi");
        self.result("resample.msi_gsi", self.irqfd(&new_event(), 42, IRQFD_RESAMPLE, ended));
    }

    fn rules(&mut self) {
        let device = DEVICE.into();
        self.machine.event_command(command::CLEAR, device, 3);
        self.machine.event_command(command::CLEAR, device, 4);
        self.process("rules.clear");
        self.doorbell("rules.doorbell_after_movall", 3);
        self.pending("rules.doorbell_after_movall");
        self.machine.mapc(0, 0, VALID);
        self.process("rules.mapc_same_again");
        self.pending("rules.mapc_same_again");
        self.machine.mapti(device, 3, 8210, 1);
        self.process("rules.mapti_mapped_event");
        self.doorbell("rules.mapti_mapped_event.doorbell", 3);
        self.pending("rules.mapti_mapped_event");
        self.machine.mapti(device, 7, 8211, 9);
        self.process("rules.mapti_unmapped_collection");
        self.doorbell("rules.mapti_unmapped_collection.doorbell", 7);
        self.machine.write_ram(CONFIG_TABLE + LPI_B - 8192, &[CONFIG_ENABLED & !1]);
        self.machine.event_command(command::INV, device, 4);
        self.process("rules.disable_lpi");
        self.doorbell("rules.disable_lpi.doorbell", 4);
        self.pending("rules.disable_lpi");
        self.machine.mapc(0, 1, VALID);
        self.process("rules.mapc_to_cpu1");
        self.pending("rules.mapc_to_cpu1");
        self.doorbell("rules.mapc_to_cpu1.doorbell", 3);
        self.machine.mapc(0, 0, VALID);
        self.process("rules.mapc_back");
        self.pending("rules.mapc_back");
    }

    fn unmapping(&mut self) {
        let device = DEVICE.into();
        self.machine.event_command(command::DISCARD, device, 4);
        self.process("rules.discard_pending");
        self.doorbell("rules.discard_pending.doorbell", 4);
        self.pending("rules.discard_pending");
        self.machine.mapc(0, 0, 0);
        self.process("rules.unmap_collection");
        self.doorbell("rules.unmap_collection.doorbell", 3);
        self.machine.mapc(0, 1, VALID);
        self.process("rules.map_collection_again");
        self.doorbell("rules.map_collection_again.doorbell", 3);
        self.pending("rules.map_collection_again");
        self.machine.mapd(device, 5, 0);
        self.process("rules.unmap_device");
        self.doorbell("rules.unmap_device.doorbell", 3);
        self.pending("rules.unmap_device");
        self.hex("rules.unmap_device.entry", self.machine.word(DEVICE_TABLE + 8 * device));
        self.run("rules.unmap_device.cpu0");
        let intid = Guest::new(1).run(self.vm);
        self.report("rules.unmap_device.cpu1", intid);
        self.run("rules.unmap_device.cpu0_after_cpu1");
        self.run("rules.unmap_device.cpu0_again");
    }

    fn its_registers(&mut self) {
        let cbaser = VALID | COMMAND_QUEUE | 15;
        self.result("rules.cbaser_while_enabled", self.machine.gits_write(gits::CBASER, cbaser & !15));
        self.hex("rules.cbaser_while_enabled.value", self.machine.gits_read(gits::CBASER));
        self.result("rules.creadr_while_enabled", self.machine.gits_write(gits::CREADR, 0));
        self.result("rules.cwriter_beyond", self.machine.gits_write(gits::CWRITER, 0x4_0000));
        self.hex("rules.cwriter_beyond.value", self.machine.gits_read(gits::CWRITER));
        self.result("rules.disable", self.machine.gits_write(gits::CTLR, 0));
        self.hex("rules.disable.ctlr", self.machine.gits_read(gits::CTLR));
        self.doorbell("rules.disabled.signal_msi", 3);
        self.result("rules.creadr_out_of_range", self.machine.gits_write(gits::CREADR, 0x2_0000));
        self.hex("rules.cwriter_before_cbaser", self.machine.gits_read(gits::CWRITER));
        self.result("rules.cbaser", self.machine.gits_write(gits::CBASER, cbaser));
        self.hex("rules.cbaser.creadr", self.machine.gits_read(gits::CREADR));
        self.hex("rules.cbaser.cwriter", self.machine.gits_read(gits::CWRITER));
        let _ = self.machine.gits_write(gits::CTLR, 1);
        let _ = self.machine.gicr_write(0, gicr::CTLR, 0);
        self.hex("rules.lpis_off.ctlr", self.machine.gicr_read(0, gicr::CTLR));
    }
}

fn status<T>(answer: &Result<T, Errno>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(errno) => errno.name().map_or_else(|| errno.to_string(), String::from),
    }
}
