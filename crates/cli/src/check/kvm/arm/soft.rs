//! doorbell's side: a VM of its own for each script.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use doorbell::kvm_abi::arm::types::{ctrl, group};
use doorbell::kvm_abi::arm::{Device, KvmDeviceAttr, SystemRegister};
use doorbell::kvm_abi::types::IRQFD_DEASSIGN;
use doorbell::kvm_abi::{ArmGuestCalls, Errno, KvmIrqLevel, KvmIrqfd};

use super::super::machines::new_event;
use super::Error;
use super::call::{Call, Command, Deed, Fd, Group};
use super::layout::{EVENTS, GIC, ITS, QUEUE, QUEUE_SLOTS, RAM, RAM_BYTES, SLOTS};
use super::registers::GITS_CWRITER;
use super::side::{Answer, Machine, Recording, Script, Start, Step, View};
use super::wire::pending_words;

/// Makes a VM without devices and vCPUs, with memory where a program has it.
pub type Make = Box<dyn Fn() -> Result<Box<dyn ArmGuestCalls>, Error> + Send>;

/// doorbell.
pub struct Doorbell {
    make: Make,
    /// The memory of the last VM.
    ram: Vec<u8>,
    no_event: OwnedFd,
}

impl Doorbell {
    /// doorbell, by what makes its VMs.
    ///
    /// # Errors
    /// Where `/dev/null` cannot be opened.
    pub fn new(make: Make) -> Result<Self, Error> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let no_event = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty());
        let no_event = no_event.map_err(|error| format!("/dev/null: {error}"))?;
        Ok(Self { make, ram: vec![0; RAM_BYTES], no_event })
    }
}

impl Machine for Doorbell {
    fn name(&self) -> &'static str {
        "doorbell"
    }

    fn run(&mut self, start: Start, script: &Script<'_>) -> Result<Recording, Error> {
        let broken = |errno: Errno| format!("doorbell's side of the check: {errno}");
        let vm = (self.make)()?;
        if start == Start::Restored {
            vm.write_ram(RAM, &self.ram).map_err(broken)?;
        }
        let events = (0..EVENTS).map(|_| new_event()).collect::<Result<_, _>>().map_err(broken)?;
        let mut side =
            Side { vm: &*vm, devices: [None; SLOTS], events, no_event: &self.no_event, in_service: BTreeMap::new() };
        let mut view = View::of(script.watch);
        let mut steps = Vec::with_capacity(script.calls.len());
        for (at, call) in script.calls.iter().enumerate() {
            let answer = side.call(call);
            let mut changes = Vec::new();
            if at >= script.looked {
                for (watched, call) in script.watch.iter().enumerate() {
                    let answer = side.call(call);
                    if view.get(watched) != Some(&answer) {
                        view.set(watched, answer.clone());
                        changes.push((watched, answer));
                    }
                }
            }
            steps.push(Step { answer, changes });
        }
        vm.read_ram(RAM, &mut self.ram).map_err(broken)?;
        Ok(Recording { steps })
    }
}

/// One VM and what goes with it.
struct Side<'a> {
    vm: &'a dyn ArmGuestCalls,
    devices: [Option<Device>; SLOTS],
    events: Vec<OwnedFd>,
    no_event: &'a OwnedFd,
    /// What each vCPU has acknowledged and not ended.
    in_service: BTreeMap<u32, Vec<(Group, u64)>>,
}

impl Side<'_> {
    fn call(&mut self, call: &Call) -> Answer {
        let plain = |answer: Result<i32, Errno>| Answer::of(answer.map(i64::from));
        let vm = self.vm;
        match call {
            Call::CreateVcpu { id } => plain(vm.create_vcpu(*id)),
            Call::InitVcpu { vcpu } => plain(vm.vcpu_init(*vcpu)),
            Call::CreateDevice { slot, kind } => Answer::of(self.create_device(*slot, *kind)),
            Call::SetAttr { slot, group, attr, value } => plain(self.set_attr(*slot, *group, *attr, *value)),
            Call::GetAttr { slot, group, attr, value } => {
                let mut value = *value;
                let attribute = KvmDeviceAttr { group: *group, attr: *attr };
                let answer = self.device(*slot).and_then(|device| vm.get_device_attr(device, attribute, &mut value));
                let data = if answer.is_ok() { vec![value] } else { Vec::new() };
                Answer { result: answer.map(i64::from), data }
            }
            Call::HasAttr { slot, group, attr } => {
                let attribute = KvmDeviceAttr { group: *group, attr: *attr };
                plain(self.device(*slot).and_then(|device| vm.has_device_attr(device, attribute)))
            }
            Call::CheckExtension { capability } => plain(vm.check_extension(*capability)),
            Call::Line { irq, level } => plain(vm.irq_line(KvmIrqLevel { irq: *irq, level: *level })),
            Call::Msi(message) => plain(vm.signal_msi(message)),
            Call::Routes { nr, flags, entries } => plain(vm.set_gsi_routing(*nr, *flags, entries)),
            Call::Irqfd { fd, gsi, flags, resample } => {
                if let (Fd::Event(event), false) = (fd, flags & IRQFD_DEASSIGN != 0) {
                    // As the agent does.
                    let _ = rustix::io::read(&self.events[*event as usize], &mut [0; 8]);
                }
                let [fd, resamplefd] = [fd, resample].map(|fd| self.number_of(*fd) as u32);
                let request = KvmIrqfd { fd, gsi: *gsi, flags: *flags, resamplefd, ..KvmIrqfd::default() };
                let answer = plain(vm.irqfd(&request));
                vm.settle();
                answer
            }
            Call::Signal { event, value } => {
                let written = rustix::io::write(&self.events[*event as usize], &value.to_ne_bytes());
                vm.settle();
                Answer::of(written.map(|_| 0).map_err(Errno::from))
            }
            Call::Take { event } => {
                let mut count = [0; 8];
                match rustix::io::read(&self.events[*event as usize], &mut count) {
                    Ok(_) => Answer { result: Ok(0), data: vec![u64::from_ne_bytes(count)] },
                    Err(error) => Answer::of(Err(error.into())),
                }
            }
            Call::WriteRam { address, bytes } => Answer::of(vm.write_ram(*address, bytes).map(|()| 0)),
            Call::ReadRam { address, bytes } => self.read_ram(*address, *bytes),
            Call::Commands { its, at, list } => plain(self.commands(*its, *at, list)),
            Call::Guest { vcpu, deed } => self.deed(*vcpu, *deed),
            Call::PendingLpis { vcpus } => self.pending_lpis(*vcpus),
        }
    }

    fn device(&self, slot: usize) -> Result<Device, Errno> {
        self.devices.get(slot).copied().flatten().ok_or(Errno::BADF)
    }

    fn create_device(&mut self, slot: usize, kind: u32) -> Result<i64, Errno> {
        let device = self.vm.create_device(kind, 0)?;
        if let Some(place @ None) = self.devices.get_mut(slot) {
            *place = device;
        }
        Ok(0)
    }

    fn set_attr(&self, slot: usize, group: u32, attr: u64, value: u64) -> Result<i32, Errno> {
        let answer = self.vm.set_device_attr(self.device(slot)?, KvmDeviceAttr { group, attr }, value);
        self.vm.settle();
        answer
    }

    fn number_of(&self, fd: Fd) -> i32 {
        match fd {
            Fd::Event(event) => self.events[event as usize].as_raw_fd(),
            Fd::MinusOne => -1,
            Fd::NoEvent => self.no_event.as_raw_fd(),
        }
    }

    fn read_ram(&self, address: u64, bytes: u64) -> Answer {
        let mut content = vec![0; bytes as usize];
        let read = self.vm.read_ram(address, &mut content);
        let words = content
            .chunks(8)
            .map(|word| u64::from_le_bytes(std::array::from_fn(|at| word.get(at).copied().unwrap_or(0))));
        let data = if read.is_ok() { words.collect() } else { Vec::new() };
        Answer { result: read.map(|()| 0), data }
    }

    fn commands(&self, its: usize, at: u64, list: &[Command]) -> Result<i32, Errno> {
        for (command, slot) in list.iter().zip(at..) {
            let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.vm.write_ram(QUEUE[its] + 32 * (slot % QUEUE_SLOTS), &bytes)?;
        }
        let behind = 32 * ((at + list.len() as u64) % QUEUE_SLOTS);
        self.set_attr(ITS[its], group::ITS_REGS, GITS_CWRITER, behind)
    }

    fn deed(&mut self, vcpu: u32, deed: Deed) -> Answer {
        let vm = self.vm;
        let stored = |outcome: Result<(), Errno>| Answer::of(outcome.map(|()| 0));
        let taken = self.in_service.entry(vcpu).or_default();
        let answer = match deed {
            Deed::Acknowledge(group) => {
                let register = [SystemRegister::ICC_IAR0_EL1, SystemRegister::ICC_IAR1_EL1][group as usize];
                let answer = loaded(vm.read_register(vcpu, register));
                if let Some(intid) = answer.data.first().filter(|intid| !(1020..1024).contains(*intid)) {
                    taken.push((group, *intid));
                }
                answer
            }
            Deed::End => match taken.pop() {
                None => Answer::of(Ok(0)),
                Some((group, intid)) => {
                    let register = [SystemRegister::ICC_EOIR0_EL1, SystemRegister::ICC_EOIR1_EL1][group as usize];
                    loaded(vm.write_register(vcpu, register, intid).map(|()| intid))
                }
            },
            Deed::Read(register) => loaded(vm.read_register(vcpu, register)),
            Deed::Write(register, value) => stored(vm.write_register(vcpu, register, value)),
            Deed::Load { address, bytes } => loaded(vm.load(vcpu, address, bytes)),
            Deed::Store { address, bytes, value } => stored(vm.store(vcpu, address, bytes, value)),
        };
        vm.settle();
        answer
    }

    fn pending_lpis(&self, vcpus: u32) -> Answer {
        let mut kept = Vec::new();
        for address in pending_words(vcpus) {
            let mut word = [0; 8];
            let done = self.vm.read_ram(address, &mut word).and_then(|()| self.vm.write_ram(address, &[0; 8]));
            if let Err(errno) = done {
                return Answer::of(Err(errno));
            }
            kept.push((address, word));
        }
        let saved = self.set_attr(GIC, group::CTRL, ctrl::SAVE_PENDING_TABLES, 0);
        let mut data = Vec::new();
        for (address, before) in kept {
            let mut word = [0; 8];
            let done = self.vm.read_ram(address, &mut word).and_then(|()| self.vm.write_ram(address, &before));
            if let Err(errno) = done {
                return Answer::of(Err(errno));
            }
            data.push(u64::from_le_bytes(word));
        }
        Answer { result: saved.map(i64::from), data }
    }
}

fn loaded(value: Result<u64, Errno>) -> Answer {
    match value {
        Ok(value) => Answer { result: Ok(0), data: vec![value] },
        Err(errno) => Answer::of(Err(errno)),
    }
}
