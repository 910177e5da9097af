//! A guest that does what it is told: one load or one store.
//!
//! Its code is a few instructions of real mode in one page of memory. The host sets the registers, enters the vCPU, and
//! the guest answers by writing to a port. `DS` starts at the IOAPIC's registers and `ES` at the local APIC's, so that
//! the controllers are reached as a guest reaches them.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use kvm_bindings::{
    KVM_EXIT_IO, KVM_MP_STATE_RUNNABLE, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SMM, kvm_mp_state,
    kvm_regs, kvm_run, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events,
};
use rustix::ioctl::{Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::{KVM, call_number, call_with};
use crate::chips::x86::pic::PORTS;
use crate::kvm_abi::Errno;

const GET_VCPU_MMAP_SIZE: Opcode = opcode::none(KVM, 0x04);
const SET_USER_MEMORY_REGION: Opcode = opcode::write::<kvm_userspace_memory_region>(KVM, 0x46);
const RUN: Opcode = opcode::none(KVM, 0x80);
const SET_REGS: Opcode = opcode::write::<kvm_regs>(KVM, 0x82);
const GET_SREGS: Opcode = opcode::read::<kvm_sregs>(KVM, 0x83);
const SET_SREGS: Opcode = opcode::write::<kvm_sregs>(KVM, 0x84);
const GET_MP_STATE: Opcode = opcode::read::<kvm_mp_state>(KVM, 0x98);
const SET_MP_STATE: Opcode = opcode::write::<kvm_mp_state>(KVM, 0x99);
const SET_VCPU_EVENTS: Opcode = opcode::write::<kvm_vcpu_events>(KVM, 0xa0);

const PAGE: usize = 4096;
/// The programs.
const LOAD_IOAPIC: usize = 0x10;
const STORE_IOAPIC: usize = 0x20;
const LOAD_LAPIC: usize = 0x30;
const STORE_LAPIC: usize = 0x40;
const LOAD_PORT: usize = 0x50;
const STORE_PORT: usize = 0x60;
/// No flag but the one that is always set: interrupts stay where they are.
const RFLAGS: u64 = 1 << 1;

const LOADED: u16 = 0x12;
const STORED: u16 = 0x13;

/// `jmp` to itself.
const STAY: [u8; 2] = [0xeb, 0xfe];
/// `mov eax, [bx]; out LOADED, eax`.
const LOAD_CODE: [u8; 6] = [0x66, 0x8b, 0x07, 0x66, 0xe7, LOADED as u8];
/// `mov [bx], eax; out STORED, al`.
const STORE_CODE: [u8; 5] = [0x66, 0x89, 0x07, 0xe6, STORED as u8];
/// `in al, dx; out LOADED, eax`.
const PORT_LOAD_CODE: [u8; 4] = [0xec, 0x66, 0xe7, LOADED as u8];
/// `out dx, al; out STORED, al`.
const PORT_STORE_CODE: [u8; 3] = [0xee, 0xe6, STORED as u8];
/// The next instruction uses `ES`.
const ES: u8 = 0x26;

const IOAPIC: u64 = 0xfec0_0000;
const LAPIC: u64 = 0xfee0_0000;

/// The page of memory with the guest's code; one for all vCPUs of a VM.
#[derive(Debug)]
pub(super) struct Memory {
    /// Held for its drop.
    _mapping: Mapping,
}

impl Memory {
    /// Writes the code and gives the memory to the VM.
    pub(super) fn new(vm: impl AsFd) -> Result<Self, Errno> {
        let mapping = Mapping::anonymous(PAGE)?;
        let mut image = [0u8; PAGE];
        let mut place = |at: usize, pieces: [&[u8]; 3]| {
            let code = pieces.concat();
            image[at..][..code.len()].copy_from_slice(&code);
        };
        place(LOAD_IOAPIC, [&[], &LOAD_CODE, &STAY]);
        place(STORE_IOAPIC, [&[], &STORE_CODE, &STAY]);
        place(LOAD_LAPIC, [&[ES], &LOAD_CODE, &STAY]);
        place(STORE_LAPIC, [&[ES], &STORE_CODE, &STAY]);
        place(LOAD_PORT, [&[], &PORT_LOAD_CODE, &STAY]);
        place(STORE_PORT, [&[], &PORT_STORE_CODE, &STAY]);
        // SAFETY: the mapping has PAGE bytes and nobody else has seen it.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), mapping.start.as_ptr(), PAGE) };
        let mut region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: PAGE as u64,
            userspace_addr: mapping.start.as_ptr() as u64,
        };
        // SAFETY: KVM_SET_USER_MEMORY_REGION takes this struct; the mapping lives as long as the VM's struct.
        unsafe { call_with(vm, SET_USER_MEMORY_REGION, &mut region)? };
        Ok(Self { _mapping: mapping })
    }
}

/// The guest on one vCPU.
#[derive(Debug)]
pub(super) struct Guest {
    run: Mapping,
}

/// What the guest wrote to which port.
struct Report {
    port: u16,
    value: u32,
}

impl Guest {
    /// Makes a vCPU ready to be told things.
    pub(super) fn new(kvm: impl AsFd, vcpu: &OwnedFd) -> Result<Self, Errno> {
        let size = call_number(kvm, GET_VCPU_MMAP_SIZE, 0)? as usize;
        let guest = Self { run: Mapping::of(vcpu, size)? };
        guest.reset(vcpu)?;
        Ok(guest)
    }

    /// Forgets what a program left behind: a pending NMI or INIT, an interrupt that was being delivered.
    pub(super) fn reset(&self, vcpu: &OwnedFd) -> Result<(), Errno> {
        // SAFETY: each call gets the struct that its name says, and all-zero bytes are a value of each.
        unsafe {
            let mut state: kvm_mp_state = std::mem::zeroed();
            // The kernel turns a pending INIT into a state when it is asked for the state.
            call_with(vcpu, GET_MP_STATE, &mut state)?;
            state.mp_state = KVM_MP_STATE_RUNNABLE;
            call_with(vcpu, SET_MP_STATE, &mut state)?;
            let mut events: kvm_vcpu_events = std::mem::zeroed();
            events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SMM;
            call_with(vcpu, SET_VCPU_EVENTS, &mut events)?;
            let mut sregs: kvm_sregs = std::mem::zeroed();
            call_with(vcpu, GET_SREGS, &mut sregs)?;
            for (segment, base) in [(&mut sregs.cs, 0), (&mut sregs.ds, IOAPIC), (&mut sregs.es, LAPIC)] {
                segment.base = base;
                segment.selector = 0;
            }
            sregs.interrupt_bitmap = [0; 4];
            call_with(vcpu, SET_SREGS, &mut sregs)?;
        }
        Ok(())
    }

    /// A 32-bit load from a register of the IOAPIC or the local APIC.
    pub(super) fn load(&self, vcpu: &OwnedFd, address: u64) -> Result<u32, Errno> {
        let (code, offset) = place_of(address, LOAD_IOAPIC, LOAD_LAPIC)?;
        let report = self.enter(vcpu, kvm_regs { rip: code, rbx: offset, ..kvm_regs::default() })?;
        if report.port == LOADED { Ok(report.value) } else { Err(Errno::PROTO) }
    }

    /// A 32-bit store to one.
    pub(super) fn store(&self, vcpu: &OwnedFd, address: u64, value: u32) -> Result<(), Errno> {
        let (code, offset) = place_of(address, STORE_IOAPIC, STORE_LAPIC)?;
        let regs = kvm_regs { rip: code, rax: value.into(), rbx: offset, ..kvm_regs::default() };
        let report = self.enter(vcpu, regs)?;
        if report.port == STORED { Ok(()) } else { Err(Errno::PROTO) }
    }

    /// A load of one byte from a port of the 8259 pair.
    pub(super) fn port_load(&self, vcpu: &OwnedFd, port: u16) -> Result<u8, Errno> {
        let regs = kvm_regs { rip: LOAD_PORT as u64, rdx: checked(port)?, ..kvm_regs::default() };
        let report = self.enter(vcpu, regs)?;
        if report.port == LOADED { Ok(report.value as u8) } else { Err(Errno::PROTO) }
    }

    /// A store of one byte to one.
    pub(super) fn port_store(&self, vcpu: &OwnedFd, port: u16, value: u8) -> Result<(), Errno> {
        let (rip, rax) = (STORE_PORT as u64, value.into());
        let report = self.enter(vcpu, kvm_regs { rip, rax, rdx: checked(port)?, ..kvm_regs::default() })?;
        if report.port == STORED { Ok(()) } else { Err(Errno::PROTO) }
    }

    fn enter(&self, vcpu: &OwnedFd, mut regs: kvm_regs) -> Result<Report, Errno> {
        regs.rflags = RFLAGS;
        // SAFETY: KVM_SET_REGS takes a kvm_regs.
        unsafe { call_with(vcpu, SET_REGS, &mut regs)? };
        let run = self.run.start.as_ptr().cast::<kvm_run>();
        loop {
            match call_number(vcpu, RUN, 0) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            // SAFETY: the kernel has filled the structure and touches it again only in the next KVM_RUN; of the union
            // the member that belongs to the exit reason is read, and the data lies where it says, in this mapping.
            let report = unsafe {
                if (*run).exit_reason != KVM_EXIT_IO {
                    return Err(Errno::PROTO);
                }
                let io = (*run).__bindgen_anon_1.io;
                let mut bytes = [0u8; 4];
                let data = self.run.start.as_ptr().add(io.data_offset as usize);
                std::ptr::copy_nonoverlapping(data, bytes.as_mut_ptr(), usize::from(io.size).min(4));
                Report { port: io.port, value: u32::from_le_bytes(bytes) }
            };
            self.finish(vcpu);
            return Ok(report);
        }
    }

    /// Lets the kernel complete the port access without running the guest any further.
    fn finish(&self, vcpu: &OwnedFd) {
        let run = self.run.start.as_ptr().cast::<kvm_run>();
        // SAFETY: a byte of the structure that belongs to this process.
        unsafe { (*run).immediate_exit = 1 };
        let _ = call_number(vcpu, RUN, 0);
        // SAFETY: as above.
        unsafe { (*run).immediate_exit = 0 };
    }
}

/// Where the code for an access is, and the offset into the controller's page.
fn place_of(address: u64, ioapic: usize, lapic: usize) -> Result<(u64, u64), Errno> {
    let offset = address & 0xfff;
    match address & !0xfff {
        IOAPIC => Ok((ioapic as u64, offset)),
        LAPIC => Ok((lapic as u64, offset)),
        _ => Err(Errno::INVAL),
    }
}

/// A port of the 8259 pair, which the kernel answers itself.
fn checked(port: u16) -> Result<u64, Errno> {
    if PORTS.contains(&port) { Ok(port.into()) } else { Err(Errno::INVAL) }
}

/// Memory that is unmapped on drop.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to the mapping and has no ties to a thread; what is written there is guarded by the lock
// around the vCPUs.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    const ACCESS: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

    fn anonymous(length: usize) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, Self::ACCESS, MapFlags::SHARED)? };
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, length })
    }

    fn of(fd: impl AsFd, length: usize) -> Result<Self, Errno> {
        // SAFETY: as above.
        let start = unsafe { mmap(std::ptr::null_mut(), length, Self::ACCESS, MapFlags::SHARED, fd, 0)? };
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `anonymous` or `of`, and no reference into it is handed out.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
