//! The calls whose 153 answers are written down in `tests/data/kvm_answers.txt`.
//!
//! One observation is one `name: value` line. No guest runs: a vector that arrived is read from the IRR and taken out
//! of it again.

use std::fmt::{Display, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use doorbell::kvm_abi::types::{
    CAP_IRQ_ROUTING, CAP_IRQFD, CAP_IRQFD_RESAMPLE, CAP_MSI_DEVID, CAP_SIGNAL_MSI, CHIP_IOAPIC, CHIP_PIC_MASTER,
    CHIP_PIC_SLAVE, IRQFD_DEASSIGN, IRQFD_RESAMPLE, MSI_VALID_DEVID, regs,
};
use doorbell::kvm_abi::{
    Answer, Errno, KvmCalls, KvmIoapicState, KvmIrqLevel, KvmIrqRoutingEntry as Entry, KvmIrqchip, KvmIrqfd,
    KvmLapicState, KvmMsi,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

const ADDRESS: u32 = 0xfee0_0000;
const LOGICAL: u32 = 1 << 2;
const HINT: u32 = 1 << 3;
const LOWEST: u32 = 1 << 8;
const ENABLED: u32 = 0x1ff;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const NOWHERE: i32 = -1;
const NEVER_OPENED: i32 = 9999;

/// What the sequence is asked of: one VM without a chip, one with two vCPUs, one more beside it.
pub struct Machines<V> {
    pub bare: V,
    pub main: V,
    pub other: V,
}

/// Asks everything and returns the lines.
pub fn ask<V: KvmCalls>(machines: &Machines<V>) -> Vec<String> {
    let mut session = Session { machines, vm: &machines.main, lines: Vec::new() };
    let created = [machines.main.create_irqchip(), machines.other.create_irqchip()];
    let created = created.into_iter().chain([machines.main.create_vcpu(0), machines.main.create_vcpu(1)]);
    for answer in created {
        assert_eq!(answer, Ok(0), "the machines can be made");
    }
    session.capabilities();
    session.after_reset();
    session.binding();
    session.tables();
    session.messages();
    session.destinations();
    session.events();
    session.level_pin();
    session.edge_pin();
    session.sharing();
    session.legacy_pins();
    session.lines
}

struct Session<'a, V> {
    machines: &'a Machines<V>,
    vm: &'a V,
    lines: Vec<String>,
}

fn new_event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd can be made")
}

fn add(event: &OwnedFd, value: u64) {
    assert_eq!(rustix::io::write(event, &value.to_ne_bytes()), Ok(8), "the eventfd takes {value}");
}

fn take(event: &OwnedFd) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    Ok(rustix::io::read(event, &mut bytes).map(|_| u64::from_ne_bytes(bytes))?)
}

fn is_readable(event: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(event, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).expect("poll works") == 1
}

fn errno_name(errno: Errno) -> String {
    match errno {
        Errno::INVAL => "EINVAL".into(),
        Errno::BADF => "EBADF".into(),
        Errno::BUSY => "EBUSY".into(),
        Errno::AGAIN => "EAGAIN".into(),
        Errno::NXIO => "ENXIO".into(),
        other => format!("{other:?}"),
    }
}

impl<V: KvmCalls> Session<'_, V> {
    fn say(&mut self, name: &str, value: impl Display) {
        self.lines.push(format!("{name}: {value}"));
    }

    fn answer(&mut self, name: &str, answer: Answer) {
        match answer {
            Ok(value) => self.say(name, format_args!("ok={value}")),
            Err(errno) => self.say(name, errno_name(errno)),
        }
    }

    fn hex(&mut self, name: &str, value: impl Into<u64>) {
        self.say(name, format_args!("{:#x}", value.into()));
    }

    fn lapic(&self, vcpu: u32) -> KvmLapicState {
        let mut state = KvmLapicState::default();
        self.vm.get_lapic(vcpu, &mut state).expect("the vCPU exists");
        state
    }

    fn set_register(&self, vcpu: u32, offset: usize, value: u32) -> Answer {
        let mut state = self.lapic(vcpu);
        state.set_register(offset, value);
        self.vm.set_lapic(vcpu, &state)
    }

    fn forget(&self, vcpu: u32) {
        let mut state = self.lapic(vcpu);
        state.set_bitmap(regs::IRR, [0; 8]);
        self.vm.set_lapic(vcpu, &state).expect("the vCPU exists");
    }

    fn arrived(&mut self, name: &str, vcpu: u32) {
        let vectors = self.lapic(vcpu).vectors(regs::IRR);
        let mut text = String::new();
        for vector in &vectors {
            let _ = write!(text, "{}{vector:#04x}", if text.is_empty() { "" } else { " " });
        }
        self.say(name, if vectors.is_empty() { "none" } else { &text });
        self.forget(vcpu);
    }

    fn ioapic(&self) -> KvmIoapicState {
        let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
        self.vm.get_irqchip(&mut chip).expect("there is an IOAPIC");
        chip.ioapic()
    }

    fn latch(&mut self, name: &str, pin: u32) {
        let irr = self.ioapic().irr;
        self.say(name, irr >> pin & 1);
    }

    fn remote_irr(&mut self, name: &str, pin: usize) {
        let entry = self.ioapic().redirtbl[pin];
        self.say(name, entry >> 14 & 1);
    }

    fn redirect(&self, pin: usize, entry: u64) {
        let mut chip = KvmIrqchip::of(CHIP_IOAPIC);
        self.vm.get_irqchip(&mut chip).expect("there is an IOAPIC");
        let mut state = chip.ioapic();
        state.redirtbl[pin] = entry;
        chip.set_ioapic(&state);
        self.vm.set_irqchip(&chip).expect("the IOAPIC takes it");
    }

    fn bind(&self, vm: &V, fd: i32, gsi: u32, flags: u32, resamplefd: i32) -> Answer {
        let (fd, resamplefd) = (fd as u32, resamplefd as u32);
        vm.irqfd(&KvmIrqfd { fd, gsi, flags, resamplefd, ..KvmIrqfd::default() })
    }

    fn table(&self, entries: &[Entry]) -> Answer {
        self.vm.set_gsi_routing(entries.len() as u32, 0, entries)
    }

    fn send(&self, vm: &V, address_lo: u32, data: u32, flags: u32) -> Answer {
        vm.signal_msi(&KvmMsi { address_lo, data, flags, ..KvmMsi::default() })
    }

    fn line(&mut self, name: &str, gsi: u32, level: u32) {
        let status = self.drive(gsi, level);
        self.say(name, status);
    }

    fn drive(&self, irq: u32, level: u32) -> i32 {
        self.vm.irq_line_status(KvmIrqLevel { irq, level }).expect("there is a chip")
    }

    fn capabilities(&mut self) {
        let asked = [
            ("cap.irq_routing", CAP_IRQ_ROUTING),
            ("cap.irqfd", CAP_IRQFD),
            ("cap.irqfd_resample", CAP_IRQFD_RESAMPLE),
            ("cap.signal_msi", CAP_SIGNAL_MSI),
            ("cap.msi_devid", CAP_MSI_DEVID),
        ];
        for (name, capability) in asked {
            let value = self.vm.check_extension(capability).expect("a capability can always be asked for");
            self.say(name, value);
        }
    }

    fn after_reset(&mut self) {
        for (name, chip) in [("reset.pic0", CHIP_PIC_MASTER), ("reset.pic1", CHIP_PIC_SLAVE)] {
            let mut state = KvmIrqchip::of(chip);
            match self.vm.get_irqchip(&mut state) {
                Ok(_) => {
                    let pic = state.pic();
                    let requests = format!("irr={:#x} imr={:#x} isr={:#x}", pic.irr, pic.imr, pic.isr);
                    let set_up =
                        format!("base={:#x} elcr={:#x} elcr_mask={:#x}", pic.irq_base, pic.elcr, pic.elcr_mask);
                    self.say(name, format_args!("{requests} {set_up}"));
                }
                Err(errno) => self.say(name, errno_name(errno)),
            }
        }
        let ioapic = self.ioapic();
        self.hex("reset.ioapic.base_address", ioapic.base_address);
        self.hex("reset.ioapic.id", ioapic.id);
        self.hex("reset.ioapic.rte0", ioapic.redirtbl[0]);
        self.hex("reset.ioapic.rte23", ioapic.redirtbl[23]);
        let (first, second) = (self.lapic(0), self.lapic(1));
        self.hex("reset.apic0.id", first.register(regs::ID));
        self.hex("reset.apic1.id", second.register(regs::ID));
        let registers = [
            ("reset.apic0.version", &first, regs::VERSION),
            ("reset.apic0.ldr", &first, regs::LDR),
            ("reset.apic0.dfr", &first, regs::DFR),
            ("reset.apic0.svr", &first, regs::SVR),
            ("reset.apic0.lvt_timer", &first, regs::LVT_TIMER),
            ("reset.apic0.lvt_lint0", &first, regs::LVT_LINT0),
            ("reset.apic0.lvt_lint1", &first, regs::LVT_LINT1),
            ("reset.apic1.lvt_lint0", &second, regs::LVT_LINT0),
            ("reset.apic0.lvt_error", &first, regs::LVT_ERROR),
        ];
        for (name, state, offset) in registers {
            self.hex(name, state.register(offset));
        }
        for (name, vcpu) in [("apic.enable_cpu0", 0), ("apic.enable_cpu1", 1)] {
            let answer = self.set_register(vcpu, regs::SVR, ENABLED);
            self.answer(name, answer);
        }
    }

    /// F1 to F9.
    fn binding(&mut self) {
        let Machines { bare, main, other } = self.machines;
        let (first, second, third) = (new_event(), new_event(), new_event());
        let plain = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
            .expect("/dev/null can be opened");
        let (one, two, three, not_event) =
            (first.as_raw_fd(), second.as_raw_fd(), third.as_raw_fd(), plain.as_raw_fd());
        let calls: [(&str, &V, i32, u32, u32, i32); 12] = [
            ("irqfd.no_irqchip", bare, one, 5, 0, NOWHERE),
            ("irqfd.unknown_flag_4", main, one, 5, 4, NOWHERE),
            ("irqfd.bad_fd", main, NEVER_OPENED, 5, 0, NOWHERE),
            ("irqfd.not_an_eventfd", main, not_event, 5, 0, NOWHERE),
            ("irqfd.bad_resamplefd", main, one, 5, IRQFD_RESAMPLE, NEVER_OPENED),
            ("irqfd.resamplefd_not_an_eventfd", main, one, 5, IRQFD_RESAMPLE, not_event),
            ("irqfd.assign", main, one, 5, 0, NOWHERE),
            ("irqfd.same_fd_same_gsi", main, one, 5, 0, NOWHERE),
            ("irqfd.same_fd_other_gsi", main, one, 6, 0, NOWHERE),
            ("irqfd.same_fd_other_vm", other, one, 5, 0, NOWHERE),
            ("irqfd.other_fd_same_gsi", main, two, 5, 0, NOWHERE),
            ("irqfd.gsi_100000", main, three, 100_000, 0, NOWHERE),
        ];
        for (name, vm, fd, gsi, flags, resamplefd) in calls {
            self.answer(name, self.bind(vm, fd, gsi, flags, resamplefd));
        }
        add(&third, 1);
        self.vm.settle();
        let both = IRQFD_DEASSIGN | IRQFD_RESAMPLE;
        let calls: [(&str, &V, i32, u32, u32); 9] = [
            ("irqfd.deassign_wrong_gsi", main, one, 77, IRQFD_DEASSIGN),
            ("irqfd.still_busy", main, one, 5, 0),
            ("irqfd.deassign", main, one, 5, IRQFD_DEASSIGN),
            ("irqfd.deassign_twice", main, one, 5, IRQFD_DEASSIGN),
            ("irqfd.reassign", main, one, 5, 0),
            ("irqfd.deassign_with_resample_flag", main, one, 5, both),
            ("irqfd.free_after_that", other, one, 5, 0),
            ("irqfd.deassign_not_an_eventfd", main, not_event, 5, IRQFD_DEASSIGN),
            ("irqfd.deassign_bad_fd", main, NEVER_OPENED, 5, IRQFD_DEASSIGN),
        ];
        for (name, vm, fd, gsi, flags) in calls {
            self.answer(name, self.bind(vm, fd, gsi, flags, NOWHERE));
        }
        for (vm, fd, gsi) in [(other, one, 5), (main, two, 5), (main, three, 100_000)] {
            assert_eq!(self.bind(vm, fd, gsi, IRQFD_DEASSIGN, NOWHERE), Ok(0), "what was bound can be unbound");
        }
    }

    /// G1 to G6, G15.
    fn tables(&mut self) {
        let message = |gsi| Entry::msi(gsi, ADDRESS.into(), 0x41);
        let flagged = |entry: Entry, flags| Entry { flags, ..entry };
        self.answer("routing.no_irqchip", self.machines.bare.set_gsi_routing(0, 0, &[]));
        self.answer("routing.one_msi", self.table(&[message(24)]));
        self.answer("routing.table_flags_1", self.vm.set_gsi_routing(1, 1, &[message(24)]));
        self.answer("routing.nr_4097", self.vm.set_gsi_routing(4097, 0, &[message(24)]));
        let tables: [(&str, &[Entry]); 15] = [
            ("routing.nr_0", &[]),
            ("routing.gsi_4096", &[message(4096)]),
            ("routing.gsi_4095", &[message(4095)]),
            ("routing.two_msi_one_gsi", &[message(24), Entry::msi(24, ADDRESS.into(), 0x42)]),
            ("routing.pic_and_ioapic_one_gsi", &[Entry::pin(4, CHIP_PIC_MASTER, 4), Entry::pin(4, CHIP_IOAPIC, 4)]),
            ("routing.same_chip_twice_one_gsi", &[Entry::pin(4, CHIP_IOAPIC, 4), Entry::pin(4, CHIP_IOAPIC, 5)]),
            ("routing.pin_and_msi_one_gsi", &[Entry::pin(4, CHIP_IOAPIC, 4), message(4)]),
            ("routing.two_gsis_one_pin", &[Entry::pin(4, CHIP_IOAPIC, 4), Entry::pin(5, CHIP_IOAPIC, 4)]),
            ("routing.ioapic_pin_24", &[Entry::pin(4, CHIP_IOAPIC, 24)]),
            ("routing.irqchip_3", &[Entry::pin(4, 3, 0)]),
            ("routing.pic_pin_8", &[Entry::pin(4, CHIP_PIC_MASTER, 8)]),
            ("routing.msi_flags_valid_devid", &[flagged(message(24), MSI_VALID_DEVID)]),
            ("routing.msi_flags_2", &[flagged(message(24), 2)]),
            ("routing.pin_flags_1", &[flagged(Entry::pin(4, CHIP_IOAPIC, 4), 1)]),
            ("routing.unknown_type", &[Entry { kind: 77, ..message(24) }]),
        ];
        for (name, table) in tables {
            self.answer(name, self.table(table));
        }
    }

    /// Q1 to Q6.
    fn messages(&mut self) {
        self.answer("signal_msi.no_irqchip", self.send(&self.machines.bare, ADDRESS, 0x51, 0));
        self.answer("signal_msi.first", self.send(self.vm, ADDRESS, 0x51, 0));
        self.answer("signal_msi.already_in_irr", self.send(self.vm, ADDRESS, 0x51, 0));
        self.arrived("signal_msi.first.cpu0", 0);
        self.answer("signal_msi.flags_valid_devid", self.send(self.vm, ADDRESS, 0x51, MSI_VALID_DEVID));
        self.answer("signal_msi.flags_2", self.send(self.vm, ADDRESS, 0x51, 2));
        self.answer("signal_msi.absent_apic", self.send(self.vm, ADDRESS | 5 << 12, 0x52, 0));
        self.forget(0);
        self.send_and_look("signal_msi.address_0x1000", 0x1000, 0x53);
        self.send_and_look("signal_msi.physical_cpu1", ADDRESS | 1 << 12, 0x54);
        self.send_and_look("signal_msi.physical_broadcast", ADDRESS | 0xff << 12, 0x55);
    }

    fn send_and_look(&mut self, name: &str, address: u32, data: u32) {
        self.answer(name, self.send(self.vm, address, data, 0));
        self.arrived(&format!("{name}.cpu0"), 0);
        self.arrived(&format!("{name}.cpu1"), 1);
    }

    /// Q7 to Q9, Q4.
    fn destinations(&mut self) {
        for (vcpu, mask) in [(0, 1), (1, 2)] {
            self.set_register(vcpu, regs::LDR, mask << 24).expect("the vCPU exists");
        }
        let logical = |mask: u32| ADDRESS | mask << 12 | LOGICAL;
        self.send_and_look("signal_msi.logical_both", logical(3), 0x56);
        self.send_and_look("signal_msi.logical_both_redirection_hint", logical(3) | HINT, 0x5a);
        self.answer("signal_msi.logical_none", self.send(self.vm, logical(4), 0x57, 0));
        self.answer("signal_msi.lowest_priority_both", self.send(self.vm, logical(3), 0x58 | LOWEST, 0));
        let hit = (0..2).filter(|&vcpu| self.lapic(vcpu).vectors(regs::IRR).contains(&0x58)).count();
        self.say("signal_msi.lowest_priority_both.cpus_hit", hit);
        self.forget(0);
        self.forget(1);
        self.set_register(0, regs::SVR, ENABLED & 0xff).expect("the vCPU exists");
        self.answer("signal_msi.software_disabled_apic", self.send(self.vm, ADDRESS, 0x59, 0));
        self.arrived("signal_msi.software_disabled_apic.cpu0", 0);
        self.set_register(0, regs::SVR, ENABLED).expect("the vCPU exists");
        self.answer("signal_msi.vector_0x05", self.send(self.vm, ADDRESS, 5, 0));
        self.arrived("signal_msi.vector_0x05.cpu0", 0);
    }

    fn counter(&mut self, name: &str, event: &OwnedFd) {
        match take(event) {
            Ok(value) => self.say(name, value),
            Err(errno) => self.say(name, errno_name(errno)),
        }
    }

    fn signalled(&mut self, name: &str, event: &OwnedFd, value: u64) {
        add(event, value);
        self.vm.settle();
        self.arrived(name, 0);
    }

    /// F7, F8b, F10 to F12, F17.
    fn events(&mut self) {
        let to = |vector| [Entry::msi(24, ADDRESS.into(), vector)];
        let event = new_event();
        self.table(&to(0x61)).expect("the table is valid");
        add(&event, 7);
        self.answer("delivery.assign_with_counter_7", self.bind(self.vm, event.as_raw_fd(), 24, 0, NOWHERE));
        self.vm.settle();
        self.arrived("delivery.at_assign", 0);
        self.counter("delivery.counter_after_assign", &event);
        self.signalled("delivery.write_1", &event, 1);
        self.counter("delivery.counter_after_write_1", &event);
        self.signalled("delivery.write_1000", &event, 1000);
        self.table(&to(0x62)).expect("the table is valid");
        self.signalled("delivery.rerouted", &event, 1);
        self.table(&[]).expect("the empty table is valid");
        self.signalled("delivery.unrouted", &event, 1);
        self.counter("delivery.counter_after_unrouted", &event);
        self.table(&to(0x62)).expect("the table is valid");
        self.vm.settle();
        self.arrived("delivery.routed_again_no_replay", 0);
        let copy = event.as_fd().try_clone_to_owned().expect("a descriptor can be duplicated");
        drop(event);
        self.signalled("delivery.dup_keeps_binding", &copy, 1);
        let answer = self.bind(self.vm, copy.as_raw_fd(), 24, IRQFD_DEASSIGN, NOWHERE);
        self.answer("delivery.deassign_through_dup", answer);
        self.signalled("delivery.after_deassign", &copy, 1);
        self.counter("delivery.counter_after_deassign", &copy);
    }

    /// A2 to A5.
    fn level_pin(&mut self) {
        self.table(&[Entry::pin(10, CHIP_IOAPIC, 10)]).expect("the table is valid");
        self.redirect(10, 0x71 | LEVEL | MASKED);
        self.line("ioapic.level_masked.line_1.status", 10, 1);
        self.latch("ioapic.level_masked.irr", 10);
        self.arrived("ioapic.level_masked.cpu0", 0);
        self.redirect(10, 0x71 | LEVEL);
        self.arrived("ioapic.level_unmasked.cpu0", 0);
        self.remote_irr("ioapic.level_unmasked.remote_irr", 10);
        self.line("ioapic.level_again_while_remote_irr.status", 10, 1);
        self.line("ioapic.level_line_0.status", 10, 0);
        self.latch("ioapic.level_line_0.irr", 10);
    }

    /// A6 to A8.
    fn edge_pin(&mut self) {
        self.redirect(10, 0x72 | MASKED);
        self.line("ioapic.edge_masked.line_1.status", 10, 1);
        self.latch("ioapic.edge_masked.irr_high", 10);
        self.line("ioapic.edge_masked.line_0.status", 10, 0);
        self.latch("ioapic.edge_masked.irr_low", 10);
        self.redirect(10, 0x72);
        self.arrived("ioapic.edge_unmasked_after_pulse.cpu0", 0);
        self.line("ioapic.edge.line_1.status", 10, 1);
        self.arrived("ioapic.edge.line_1.cpu0", 0);
        self.line("ioapic.edge.line_1_again.status", 10, 1);
        self.arrived("ioapic.edge.line_1_again.cpu0", 0);
        self.line("ioapic.edge.line_0.status", 10, 0);
        self.line("ioapic.edge.line_1_after_0.status", 10, 1);
        self.arrived("ioapic.edge.line_1_after_0.cpu0", 0);
        self.line("ioapic.edge.line_1_repeated.status", 10, 1);
        self.drive(10, 0);
        self.line("line.unrouted_gsi.status", 3000, 1);
    }

    /// R1, R3 to R5.
    fn sharing(&mut self) {
        let (first, second) = (new_event(), new_event());
        let (ended_first, ended_second) = (new_event(), new_event());
        self.redirect(10, 0x73 | LEVEL);
        self.forget(0);
        for (name, event, ended) in
            [("resample.assign_first", &first, &ended_first), ("resample.assign_second", &second, &ended_second)]
        {
            self.answer(name, self.bind(self.vm, event.as_raw_fd(), 10, IRQFD_RESAMPLE, ended.as_raw_fd()));
        }
        self.signalled("resample.fired.cpu0", &first, 1);
        self.latch("resample.fired.irr", 10);
        self.remote_irr("resample.fired.remote_irr", 10);
        self.say("resample.signalled_before_eoi.first", u8::from(is_readable(&ended_first)));
        self.say("resample.signalled_before_eoi.second", u8::from(is_readable(&ended_second)));
        self.line("resample.wired_or.line_0.status", 10, 0);
        self.latch("resample.wired_or.line_still_high", 10);
        let answer = self.bind(self.vm, first.as_raw_fd(), 10, IRQFD_DEASSIGN, NOWHERE);
        self.answer("resample.deassign_first", answer);
        self.latch("resample.one_sharer_left.irr", 10);
        let answer = self.bind(self.vm, second.as_raw_fd(), 10, IRQFD_DEASSIGN, NOWHERE);
        self.answer("resample.deassign_second", answer);
        self.latch("resample.last_sharer_gone.irr", 10);
        self.say("resample.signalled_at_deassign.first", u8::from(is_readable(&ended_first)));
        self.say("resample.signalled_at_deassign.second", u8::from(is_readable(&ended_second)));
    }

    fn pic(&self) -> KvmIrqchip {
        let mut chip = KvmIrqchip::of(CHIP_PIC_MASTER);
        let _ = self.vm.get_irqchip(&mut chip);
        chip
    }

    /// P3 to P5, P7.
    fn legacy_pins(&mut self) {
        self.table(&[Entry::pin(3, CHIP_PIC_MASTER, 3), Entry::pin(9, CHIP_PIC_SLAVE, 1)]).expect("the table is valid");
        self.line("pic.edge.line_1.status", 3, 1);
        self.line("pic.edge.line_1_again.status", 3, 1);
        let irr = self.pic().pic().irr;
        self.say("pic.edge.high.irr", irr >> 3 & 1);
        self.line("pic.edge.line_0.status", 3, 0);
        let mut chip = self.pic();
        self.say("pic.edge.low.irr", chip.pic().irr >> 3 & 1);
        self.line("pic.edge.second_edge.status", 3, 1);
        self.drive(3, 0);
        // The state from before that edge, with the pin masked.
        let mut pic = chip.pic();
        pic.imr |= 1 << 3;
        chip.set_pic(&pic);
        let _ = self.vm.set_irqchip(&chip);
        self.line("pic.edge_masked.line_1.status", 3, 1);
        self.drive(3, 0);
        self.line("pic.slave.line_1.status", 9, 1);
        let irr = self.pic().pic().irr;
        self.say("pic.slave.cascade_irr_on_master", irr >> 2 & 1);
        self.drive(9, 0);
    }
}
