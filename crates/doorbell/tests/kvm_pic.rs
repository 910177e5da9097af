//! Random programs of port accesses, line calls and acknowledges on the 8259 pair of this machine's kernel, by a guest in
//! real mode, and on doorbell's.
#![cfg(feature = "kvm")]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use doorbell::chips::x86::pic::{Ended, PORTS, Pic, PicOptions, PicState};
use doorbell::{Delivery, LineSource, PinInput};
use kvm_bindings::{kvm_irqchip, kvm_pic_state, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const MEMORY: usize = 0x1_0000;
const OUT: usize = 0x500;
const IN: usize = 0x510;
const TAKE: usize = 0x520;
const HANDLERS: usize = 0x1000;
const DONE: u16 = 0x12;
const NOTHING: u16 = 0x13;
const TAKEN: u16 = 0x14;
const INTERRUPTS: u64 = 1 << 9;

/// The kernel's pair, and a guest that does what it is told.
struct Kernel {
    vcpu: VcpuFd,
    vm: VmFd,
    /// Held for the guest.
    _memory: Box<Memory>,
}

#[repr(align(4096))]
struct Memory([u8; MEMORY]);

impl Kernel {
    fn new(kvm: &Kvm) -> Self {
        let mut memory = Box::new(Memory([0; MEMORY]));
        let mut place = |at: usize, code: &[u8]| memory.0[at..][..code.len()].copy_from_slice(code);
        for vector in 0..=255u8 {
            let handler = (HANDLERS + 8 * usize::from(vector)) as u16;
            place(4 * usize::from(vector), &handler.to_le_bytes());
            // `mov al, vector; out TAKEN, al; jmp $`
            place(handler.into(), &[0xb0, vector, 0xe6, TAKEN as u8, 0xeb, 0xfe]);
        }
        // `out dx, al; out DONE, al; jmp $`
        place(OUT, &[0xee, 0xe6, DONE as u8, 0xeb, 0xfe]);
        // `in al, dx; out DONE, al; jmp $`
        place(IN, &[0xec, 0xe6, DONE as u8, 0xeb, 0xfe]);
        // `nop; nop; out NOTHING, al; jmp $`
        place(TAKE, &[0x90, 0x90, 0xe6, NOTHING as u8, 0xeb, 0xfe]);
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.0.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the memory lives as long as the VM, and nobody else looks at it.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        for segment in [&mut sregs.cs, &mut sregs.ss, &mut sregs.ds] {
            (segment.base, segment.selector) = (0, 0);
        }
        vcpu.set_sregs(&sregs).unwrap();
        // Only the pair is asked, not the IOAPIC beside it.
        let mut table = kvm_bindings::KvmIrqRouting::new(16).unwrap();
        for (gsi, entry) in table.as_mut_slice().iter_mut().enumerate() {
            (entry.gsi, entry.type_) = (gsi as u32, kvm_bindings::KVM_IRQ_ROUTING_IRQCHIP);
            entry.u.irqchip.irqchip = gsi as u32 / 8;
            entry.u.irqchip.pin = gsi as u32 % 8;
        }
        vm.set_gsi_routing(&table).unwrap();
        Self { vcpu, vm, _memory: memory }
    }

    fn enter(&mut self, code: usize, port: u16, byte: u8, flags: u64) -> (u16, u8) {
        let (rip, rdx, rax) = (code as u64, port.into(), byte.into());
        let regs = kvm_regs { rip, rdx, rax, rsp: 0x8000, rflags: 2 | flags, ..Default::default() };
        self.vcpu.set_regs(&regs).unwrap();
        let said = match self.vcpu.run().unwrap() {
            VcpuExit::IoOut(port, data) => (port, data[0]),
            other => panic!("the guest left with {other:?}"),
        };
        // Lets the kernel complete the access, and runs nothing.
        self.vcpu.set_kvm_immediate_exit(1);
        assert!(self.vcpu.run().is_err());
        self.vcpu.set_kvm_immediate_exit(0);
        said
    }

    fn line(&self, gsi: u32, level: bool) -> i32 {
        use std::os::fd::AsRawFd;
        let mut request = [gsi, level.into()];
        // SAFETY: KVM_IRQ_LINE_STATUS reads and writes a `kvm_irq_level`, two words.
        let answer = unsafe { libc::ioctl(self.vm.as_raw_fd(), 0xc008_ae67, request.as_mut_ptr()) };
        assert_eq!(answer, 0);
        request[0] as i32
    }

    fn chip(&self, number: u32) -> kvm_irqchip {
        let mut chip = kvm_irqchip { chip_id: number, ..Default::default() };
        self.vm.get_irqchip(&mut chip).unwrap();
        chip
    }

    fn state(&self, number: u32) -> PicState {
        // SAFETY: the kernel has filled in the state of an 8259.
        let state = unsafe { self.chip(number).chip.pic };
        let kvm_pic_state { last_irr, irr, imr, isr, priority_add, irq_base, init_state, elcr, elcr_mask, .. } = state;
        PicState {
            last_irr,
            irr,
            imr,
            isr,
            priority_add,
            irq_base,
            read_isr: state.read_reg_select != 0,
            poll: state.poll != 0,
            special_mask: state.special_mask != 0,
            init_state,
            auto_eoi: state.auto_eoi != 0,
            rotate_on_auto_eoi: state.rotate_on_auto_eoi != 0,
            fully_nested: state.special_fully_nested_mode != 0,
            fourth_follows: state.init4 != 0,
            elcr,
            elcr_mask,
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Line(u16, bool),
    Out(u16, u8),
    In(u16),
    Take,
}

fn step(random: &mut Random) -> Step {
    let byte = random.below(256) as u8;
    let chip = random.below(2) as u16 * 0x80;
    match random.below(20) {
        0..8 => Step::Line(random.below(16) as u16, random.below(2) == 1),
        8..12 => Step::Take,
        12 | 13 => Step::In(PORTS[random.below(6) as usize]),
        // Mostly words that make sense.
        14 => Step::Out(0x20 | chip, 0x20 | byte & 0xc7),
        15 => Step::Out(0x20 | chip, byte & 0xe7),
        16 => Step::Out(0x20 | chip, byte & 0x67 | 0x08),
        17 => Step::Out(0x21 | chip, if byte & 1 == 0 { 0 } else { byte & random.below(256) as u8 }),
        18 if byte < 64 => Step::Out(0x20 | chip, byte & 0x01 | 0x10),
        18 if byte < 160 => Step::Out(0x4d0 | chip >> 7, random.below(256) as u8),
        _ => Step::Out(PORTS[random.below(6) as usize], byte & 0xef),
    }
}

fn status(delivery: Delivery) -> i64 {
    delivery.status().into()
}

#[test]
fn random_programs_do_the_same_on_the_kernels_pair() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("SKIPPED: no /dev/kvm ({error}): the kernel was not asked");
            return;
        }
    };
    let programs = std::env::var("PIC_PROGRAMS").map_or(40, |number| number.parse().unwrap());
    for seed in 0..programs {
        let mut kernel = Kernel::new(&kvm);
        let wire = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&wire);
        let pic = Pic::new(move |level| assert_ne!(told.swap(level, Ordering::Relaxed), level), PicOptions::default());
        let settle = |ended: Ended| pic.settle(ended);
        let mut random = Random(seed);
        let mut steps = Vec::new();
        for (port, byte) in
            [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)]
        {
            kernel.enter(OUT, port, byte, 0);
            settle(pic.write(port, &[byte]));
        }
        for _ in 0..100 {
            let step = step(&mut random);
            steps.push(step);
            let answers: [i64; 2] = match step {
                Step::Line(pin, level) => [
                    kernel.line(pin.into(), level).into(),
                    status(pic.set((pin / 8) as u8, pin % 8, LineSource::USER, level)),
                ],
                Step::Out(port, byte) => {
                    assert_eq!(kernel.enter(OUT, port, byte, 0), (DONE, byte));
                    settle(pic.write(port, &[byte]));
                    [0, 0]
                }
                Step::In(port) => {
                    let mut byte = [0];
                    settle(pic.read(port, &mut byte));
                    [kernel.enter(IN, port, 0, 0).1.into(), byte[0].into()]
                }
                Step::Take => {
                    let taken = match kernel.enter(TAKE, 0, 0, INTERRUPTS) {
                        (TAKEN, vector) => vector.into(),
                        _ => -1,
                    };
                    let mine = if pic.output() {
                        let taken = pic.acknowledge();
                        settle(taken.ended);
                        taken.vector.into()
                    } else {
                        -1
                    };
                    [taken, mine]
                }
            };
            let mine = [0, 1].map(|chip| pic.state(chip));
            let same = (answers[0], [0, 1].map(|chip| kernel.state(chip))) == (answers[1], mine);
            assert!(
                same,
                "seed {seed}: {steps:?}\nkernel {:?} {:#?}\ndoorbell {:?} {:#?}",
                answers[0],
                [0, 1].map(|chip| kernel.state(chip)),
                answers[1],
                mine
            );
            assert_eq!(wire.load(Ordering::Relaxed), pic.output());
        }
    }
}
