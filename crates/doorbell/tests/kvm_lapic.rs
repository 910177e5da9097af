//! The local APIC of the kernel of this machine beside doorbell's: what can be seen without a guest that takes interrupts.
#![cfg(feature = "kvm")]

use std::{sync::Arc, time::Duration};

use doorbell::{
    MsiMessage, MsiTarget, VcpuId,
    chips::x86::lapic::{ApicBase, ApicOptions, ApicSet, LocalApic, TSC_DEADLINE_MSR},
};
use kvm_bindings::{
    CpuId, KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_lapic_state, kvm_msi, kvm_msr_entry,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

const SVR: usize = 0xf0;
const LVT_TIMER: usize = 0x320;
const INITIAL: usize = 0x380;
const CURRENT: usize = 0x390;
const DIVIDE: usize = 0x3e0;
const X2APIC: u64 = 1 << 10;

/// A VM of the kernel with its chips, and vCPUs with these ids; `None`, and a loud line, without /dev/kvm.
fn kernel(ids: &[u64], x2apic_api: u64) -> Option<(VmFd, Vec<VcpuFd>)> {
    let Ok(kvm) = Kvm::new() else {
        println!("SKIPPED: no /dev/kvm: the kernel was not asked");
        return None;
    };
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    if x2apic_api != 0 {
        let mut enable = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
        enable.args[0] = x2apic_api;
        vm.enable_cap(&enable).unwrap();
    }
    let cpuid = cpuid(&kvm);
    let vcpu = |&id: &u64| {
        let vcpu = vm.create_vcpu(id).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        vcpu
    };
    let vcpus = ids.iter().map(vcpu).collect();
    Some((vm, vcpus))
}

/// What the kernel supports, with all modes of the timer.
fn cpuid(kvm: &Kvm) -> CpuId {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
        // x2APIC and TSC deadline.
        leaf.ecx |= 1 << 21 | 1 << 24;
    }
    cpuid
}

/// One local APIC, the kernel's or doorbell's, by the calls that a VMM has.
trait Apic {
    fn page(&self) -> [u8; 1024];
    fn set_page(&mut self, page: &[u8; 1024]) -> bool;
    fn msr(&mut self, msr: u32) -> u64;
    fn set_msr(&mut self, msr: u32, value: u64) -> bool;

    fn register(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.page()[offset..offset + 4].try_into().unwrap())
    }

    fn set_registers(&mut self, registers: &[(usize, u32)]) -> bool {
        let mut page = self.page();
        for (offset, value) in registers {
            page[*offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        self.set_page(&page)
    }

    fn vectors(&self) -> Vec<u8> {
        let page = self.page();
        let bit =
            |vector: &u8| page[0x200 + usize::from(vector / 32) * 16 + usize::from(vector / 8 % 4)] >> (vector % 8);
        (0..=255).filter(|vector| bit(vector) & 1 == 1).collect()
    }
}

impl Apic for VcpuFd {
    fn page(&self) -> [u8; 1024] {
        self.get_lapic().unwrap().regs.map(|byte| byte as u8)
    }

    fn set_page(&mut self, page: &[u8; 1024]) -> bool {
        self.set_lapic(&kvm_lapic_state { regs: page.map(|byte| byte as _) }).is_ok()
    }

    fn msr(&mut self, msr: u32) -> u64 {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: msr, ..Default::default() }]).unwrap();
        assert_eq!(self.get_msrs(&mut msrs).unwrap(), 1);
        msrs.as_slice()[0].data
    }

    fn set_msr(&mut self, msr: u32, value: u64) -> bool {
        let entry = kvm_msr_entry { index: msr, data: value, ..Default::default() };
        self.set_msrs(&Msrs::from_entries(&[entry]).unwrap()).unwrap() == 1
    }
}

/// A VMM's store to IA32_APIC_BASE is not a guest's: it may go any way between the modes.
impl Apic for LocalApic {
    fn page(&self) -> [u8; 1024] {
        self.page()
    }

    fn set_page(&mut self, page: &[u8; 1024]) -> bool {
        self.set_page(page).is_ok()
    }

    fn msr(&mut self, msr: u32) -> u64 {
        self.msr_read(msr).unwrap()
    }

    fn set_msr(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            ApicBase::MSR => self.restore_base(value).is_ok(),
            _ => self.msr_write(msr, value).is_ok(),
        }
    }
}

fn doorbell(ids: &[u32], options: ApicOptions) -> (Arc<ApicSet>, Vec<LocalApic>) {
    let set = ApicSet::with_ids(ids, Arc::new(()), options).unwrap();
    let cpus = (0..ids.len() as u32).map(|vcpu| set.local(VcpuId(vcpu)).unwrap()).collect();
    (set, cpus)
}

#[test]
fn the_vmm_takes_every_way_between_the_modes_as_with_the_kernel() {
    let Some((_vm, mut vcpus)) = kernel(&[0, 1], 0) else { return };
    let (_set, mut cpus) = doorbell(&[0, 1], ApicOptions::default());
    let bases: [u64; 10] = [
        0xfee0_0800,
        0xfee0_0c00,
        0xfee0_0000,
        0xfee0_0400,
        0xfee0_0a00,
        0xfee0_0801,
        0xfed0_0800,
        0xfed0_0c00,
        0x1_2345_6800,
        1 << 52 | 0xfee0_0800,
    ];
    // Each after each, on the boot CPU and on another.
    for number in [0, 1] {
        for first in bases {
            for second in bases {
                for base in [first, second] {
                    let boot = if number == 0 { 1 << 8 } else { 0 };
                    let see = |apic: &mut dyn Apic| {
                        apic.set_registers(&[(SVR, 0x1ff), (0xd0, 0x4400_0000)]);
                        let taken = apic.set_msr(ApicBase::MSR, base | boot);
                        (taken, apic.msr(ApicBase::MSR), apic.register(0x20), apic.register(0xd0), apic.register(0xe0))
                    };
                    let (kernel, doorbell) = (see(&mut vcpus[number]), see(&mut cpus[number]));
                    assert_eq!(kernel, doorbell, "CPU {number}: {first:#x}, {second:#x}");
                }
            }
        }
    }
}

#[test]
fn ids_of_32_bits_are_reached_as_in_the_kernel() {
    const IDS: [u32; 6] = [0, 1, 0xff, 0x100, 0x12f, 0x3ff];
    for (api, extended_ids, no_broadcast_quirk) in [(3, true, true), (1, true, false), (0, false, false)] {
        let Some((vm, mut vcpus)) = kernel(&IDS.map(u64::from), api) else { return };
        let options = ApicOptions { extended_ids, no_broadcast_quirk, ..ApicOptions::default() };
        let (set, mut cpus) = doorbell(&IDS, options);
        for (vcpu, cpu) in vcpus.iter_mut().zip(&mut cpus) {
            for apic in [vcpu as &mut dyn Apic, cpu] {
                let base = apic.msr(ApicBase::MSR);
                assert!(apic.set_msr(ApicBase::MSR, base | X2APIC));
                apic.set_registers(&[(SVR, 0x1ff)]);
            }
        }
        let mut vector = 0x30u8;
        for low in [0xfee0_0000u32, 0xfee0_1000, 0xfeef_f000, 0xfee2_f000, 0xfee0_0004, 0xfee0_f004, 0xfee0_000c] {
            for high in [0, 0x100, 0x300, 0x200, 0x10000, 0x12_0000, 0xffff_ff00, 0x80] {
                vector = if vector == 0xef { 0x30 } else { vector + 1 };
                let msi = kvm_msi { address_lo: low, address_hi: high, data: vector.into(), ..Default::default() };
                let kernel = vm.signal_msi(msi).map_err(|error| error.errno());
                let message = MsiMessage::new(u64::from(high) << 32 | u64::from(low), vector.into());
                let doorbell =
                    set.send(&message).map(|delivery| delivery.status()).map_err(|e| e.errno().raw_os_error());
                let what = format!("api {api}, {high:#x}:{low:#x}, vector {vector:#x}");
                assert_eq!(kernel, doorbell, "{what}");
                for ((vcpu, cpu), id) in vcpus.iter().zip(&cpus).zip(IDS) {
                    assert_eq!(vcpu.vectors(), cpu.vectors(), "{what}, id {id:#x}");
                    let id_of = |apic: &dyn Apic| (apic.register(0x20), apic.register(0xd0));
                    assert_eq!(id_of(vcpu), id_of(cpu), "{what}, id {id:#x}");
                }
            }
        }
    }
}

#[test]
fn the_deadline_msr_is_there_in_its_mode_alone() {
    let Some((_vm, mut vcpus)) = kernel(&[0], 0) else { return };
    let (_set, mut cpus) = doorbell(&[0], ApicOptions::default());
    // Far beyond both time-stamp counters.
    const LATER: u64 = 1 << 62;
    let see = |apic: &mut dyn Apic| {
        let mut seen = Vec::new();
        for entry in [0x1_0041, 0x41, 0x2_0041, 0x4_0041, 0x5_0041, 0x4_0042, 0x6_0041, 0x4_0041, 0x2_0041] {
            assert!(apic.set_registers(&[(SVR, 0x1ff), (LVT_TIMER, entry), (INITIAL, 0)]));
            let before = apic.msr(TSC_DEADLINE_MSR);
            let taken = apic.set_msr(TSC_DEADLINE_MSR, LATER);
            seen.push((before, taken, apic.msr(TSC_DEADLINE_MSR), apic.register(INITIAL), apic.register(LVT_TIMER)));
        }
        // Off, and on again.
        apic.set_registers(&[(LVT_TIMER, 0x4_0041)]);
        apic.set_msr(TSC_DEADLINE_MSR, LATER);
        for base in [0xfee0_0100, 0xfee0_0900, 0xfee0_0d00] {
            apic.set_msr(ApicBase::MSR, base);
            seen.push((apic.msr(TSC_DEADLINE_MSR), apic.set_msr(TSC_DEADLINE_MSR, 0), 0, 0, 0));
        }
        seen
    };
    assert_eq!(see(&mut vcpus[0]), see(&mut cpus[0]));
}

/// The kernel delivers what has expired when its vCPU runs next, so only the counts are compared here.
#[test]
fn a_count_goes_on_from_the_page_that_was_set() {
    let Some((_vm, mut vcpus)) = kernel(&[0], 0) else { return };
    let (_set, mut cpus) = doorbell(&[0], ApicOptions::default());
    const HALF: u32 = 0x4000_0000;
    // The entry, the initial and the current count that are set, and where the count is then.
    let cases = [
        (0x41, 2 * HALF, HALF, HALF),
        (0x2_0041, 2 * HALF, HALF, HALF),
        (0x2_0041, 2 * HALF, 0, 2 * HALF),
        (0x2_0041, HALF, 3 * HALF, HALF),
        (0x41, HALF, 3 * HALF, HALF),
        (0x41, HALF, 0, 0),
        (0x41, 0, HALF, 0),
        (0x4_0041, HALF, HALF, 0),
        // From TSC-deadline mode: the initial count is cleared.
        (0x2_0041, HALF, HALF, 0),
        (0x2_0041, HALF, HALF, HALF),
        (0x1_0041, HALF, HALF, HALF),
    ];
    for (case, (entry, initial, current, expected)) in cases.into_iter().enumerate() {
        for (name, apic) in [("kernel", &mut vcpus[0] as &mut dyn Apic), ("doorbell", &mut cpus[0])] {
            let set = [(SVR, 0x1ff), (DIVIDE, 0xb), (LVT_TIMER, entry), (INITIAL, initial), (CURRENT, current)];
            assert!(apic.set_registers(&set));
            let now = apic.register(CURRENT);
            std::thread::sleep(Duration::from_millis(1));
            let later = apic.register(CURRENT);
            // 1 ns a tick, on a machine that may be busy for a while.
            let near = |count: u32| count <= expected && expected - count < 0x2000_0000;
            assert!(near(now) && near(later), "case {case}, {name}: {now:#x}, {later:#x}, not {expected:#x}");
            assert_eq!(later < now, expected != 0, "case {case}, {name}: it counts");
        }
        assert_eq!(vcpus[0].register(INITIAL), cpus[0].register(INITIAL), "case {case}");
    }
}

#[test]
fn two_nmis_are_kept_as_by_the_kernel() {
    let Some((_vm, vcpus)) = kernel(&[0], 0) else { return };
    let (set, mut cpus) = doorbell(&[0], ApicOptions::default());
    let mut kernel = Vec::new();
    let mut doorbell = Vec::new();
    for sent in 1..=4 {
        vcpus[0].nmi().unwrap();
        // Asking for the events moves what is queued to what is pending.
        kernel.push(vcpus[0].get_vcpu_events().unwrap().nmi.pending);
        (0..sent).for_each(|_| set.nmi(VcpuId(0)));
        doorbell.push((0..5).filter(|_| cpus[0].take_nmi()).count() as u8);
    }
    assert_eq!((kernel, doorbell), (vec![1, 2, 2, 2], vec![1, 2, 2, 2]));
}
