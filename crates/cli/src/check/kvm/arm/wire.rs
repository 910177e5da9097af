//! Calls as the agent takes them, and what it answers.

use doorbell::kvm_abi::arm::SystemRegister;
use doorbell::kvm_abi::arm::types::group;
use doorbell::kvm_abi::types::IRQFD_DEASSIGN;
use doorbell::kvm_abi::{Errno, KvmIrqRoutingEntry, KvmMsi};

use super::call::{Call, Deed, Fd};
use super::layout::{self, LPIS, PENDING, PENDING_STRIDE, QUEUE, QUEUE_SLOTS, RAM, REPORT, WATCHED_LPIS};
use super::side::{Answer, Recording, Script, Start, Step};
use super::{Error, code, registers};

/// The agent's operations, in the order of its enumeration.
#[derive(Clone, Copy)]
enum Operation {
    CreateVcpu,
    InitVcpu,
    CreateDevice,
    SetAttr,
    GetAttr,
    HasAttr,
    CheckExtension,
    IrqLine,
    SignalMsi,
    SetRoutes,
    Irqfd,
    EventWrite,
    EventRead,
    RamWrite,
    RamRead,
    Run,
    Acknowledge,
    EndLast,
    PendingLpis,
    Watch,
}

/// Nothing is looked at after this operation.
const QUIET: u64 = 1 << 31;
/// The answer is one of a watched call.
const WATCHED: u64 = 1 << 31;
/// Ends an answer.
const END: u64 = u64::MAX;
/// `KVM_EXIT_MMIO`.
const EXIT_MMIO: i64 = 6;
/// An errno of ours, which the kernel has not: the guest left for another reason than a report; that is added.
const LEFT: i32 = 10_000;
/// How the agent calls a descriptor that is no eventfd, and one that is not open.
const NO_EVENT: u64 = 100;
const MINUS_ONE: u64 = 99;

/// The words of a batch.
pub struct Batch {
    words: Vec<u64>,
    /// By number of the operation: the call that it ends, if it ends one.
    ends: Vec<Option<usize>>,
    vcpus: u32,
}

impl Batch {
    /// A script for a new VM.
    pub fn new(start: Start, script: &Script<'_>) -> Self {
        let Script { vcpus, calls, looked, watch } = *script;
        let flags = match start {
            Start::New => 3,
            Start::Restored => 1,
        };
        let mut batch = Self { words: vec![flags], ends: Vec::new(), vcpus };
        for (at, call) in calls.iter().enumerate() {
            if at == looked {
                let mut watched = Self { words: Vec::new(), ends: Vec::new(), vcpus };
                watch.iter().for_each(|call| watched.call(call, false));
                batch.push(Operation::Watch, watched.words, true);
                batch.ends.push(None);
            }
            batch.call(call, at < looked);
            if let Some(end) = batch.ends.last_mut() {
                *end = Some(at);
            }
        }
        batch
    }

    /// The words to send.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn push(&mut self, operation: Operation, args: Vec<u64>, quiet: bool) {
        let quiet = if quiet { QUIET } else { 0 };
        self.words.push((args.len() as u64) << 32 | quiet | operation as u64);
        self.words.extend(args);
    }

    fn ram(&mut self, address: u64, bytes: &[u8], quiet: bool) {
        let words = bytes
            .chunks(8)
            .map(|bytes| u64::from_le_bytes(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))));
        let args = [address.wrapping_sub(RAM), bytes.len() as u64].into_iter().chain(words).collect();
        self.push(Operation::RamWrite, args, quiet);
    }

    fn call(&mut self, call: &Call, quiet: bool) {
        let mut operations = 1;
        let (operation, args) = match call {
            Call::CreateVcpu { id } => (Operation::CreateVcpu, vec![u64::from(*id)]),
            Call::InitVcpu { vcpu } => (Operation::InitVcpu, vec![u64::from(*vcpu)]),
            Call::CreateDevice { slot, kind } => (Operation::CreateDevice, vec![*slot as u64, u64::from(*kind)]),
            Call::SetAttr { slot, group, attr, value } => {
                (Operation::SetAttr, vec![*slot as u64, u64::from(*group), *attr, *value])
            }
            Call::GetAttr { slot, group, attr, value } => {
                (Operation::GetAttr, vec![*slot as u64, u64::from(*group), *attr, *value])
            }
            Call::HasAttr { slot, group, attr } => (Operation::HasAttr, vec![*slot as u64, u64::from(*group), *attr]),
            Call::CheckExtension { capability } => (Operation::CheckExtension, vec![u64::from(*capability)]),
            Call::Line { irq, level } => (Operation::IrqLine, vec![u64::from(*irq), u64::from(*level)]),
            Call::Msi(KvmMsi { address_lo, address_hi, data, flags, devid, .. }) => {
                let address = u64::from(*address_hi) << 32 | u64::from(*address_lo);
                (Operation::SignalMsi, vec![address, u64::from(*data), u64::from(*flags), u64::from(*devid)])
            }
            Call::Routes { nr, flags, entries } => {
                let head = [u64::from(*nr), u64::from(*flags)];
                (Operation::SetRoutes, head.into_iter().chain(entries.iter().flat_map(route)).collect())
            }
            Call::Irqfd { fd, gsi, flags, resample } => {
                if let (Fd::Event(event), false) = (fd, flags & IRQFD_DEASSIGN != 0) {
                    // What was counted before would go another way than what comes after: see the help.
                    self.push(Operation::EventRead, vec![*event], true);
                    operations += 1;
                }
                (Operation::Irqfd, vec![event(*fd), u64::from(*gsi), u64::from(*flags), event(*resample)])
            }
            Call::Signal { event, value } => (Operation::EventWrite, vec![*event, *value]),
            Call::Take { event } => (Operation::EventRead, vec![*event]),
            Call::WriteRam { address, bytes } => {
                self.ram(*address, bytes, quiet);
                self.ends.push(None);
                return;
            }
            Call::ReadRam { address, bytes } => (Operation::RamRead, vec![address.wrapping_sub(RAM), *bytes]),
            Call::Commands { its, at, list } => {
                for (command, slot) in list.iter().zip(*at..) {
                    let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
                    self.ram(QUEUE[*its] + 32 * (slot % QUEUE_SLOTS), &bytes, true);
                    operations += 1;
                }
                let behind = 32 * ((at + list.len() as u64) % QUEUE_SLOTS);
                let device = layout::ITS[*its] as u64;
                (Operation::SetAttr, vec![device, u64::from(group::ITS_REGS), registers::GITS_CWRITER, behind])
            }
            Call::Guest { vcpu, deed } => {
                let vcpu = u64::from(*vcpu);
                let (value, address) = match *deed {
                    Deed::Acknowledge(group) => (group as u64, 0),
                    Deed::End => (0, 0),
                    Deed::Read(_) => (0, 0),
                    Deed::Write(_, value) => (value, 0),
                    Deed::Load { address, .. } => (0, address),
                    Deed::Store { address, value, .. } => (value, address),
                };
                // A vCPU hands over an interrupt that belongs to another one by now when it has run: all others do.
                for other in (0..u64::from(self.vcpus)).filter(|other| *other != vcpu) {
                    let nothing = code::address(Deed::Read(SystemRegister::ICC_PMR_EL1));
                    self.push(Operation::Run, vec![other, nothing, 0, 0, REPORT], true);
                    operations += 1;
                }
                match deed {
                    Deed::End => {
                        let [ends_0, ends_1] = [SystemRegister::ICC_EOIR0_EL1, SystemRegister::ICC_EOIR1_EL1]
                            .map(|register| code::address(Deed::Write(register, 0)));
                        (Operation::EndLast, vec![vcpu, ends_0, ends_1, REPORT])
                    }
                    _ => {
                        let operation =
                            if let Deed::Acknowledge(_) = deed { Operation::Acknowledge } else { Operation::Run };
                        (operation, vec![vcpu, code::address(*deed), value, address, REPORT])
                    }
                }
            }
            Call::PendingLpis { vcpus } => {
                let head = [layout::GIC as u64];
                (Operation::PendingLpis, head.into_iter().chain(pending_words(*vcpus).map(|at| at - RAM)).collect())
            }
        };
        self.push(operation, args, quiet);
        self.ends.extend(std::iter::repeat_n(None, operations));
    }

    /// What the agent's answer to this batch says.
    ///
    /// # Errors
    /// Where it is none.
    pub fn recording(&self, calls: &[Call], answer: &[u64]) -> Result<Recording, Error> {
        let mut steps: Vec<Step> = Vec::with_capacity(calls.len());
        let mut rest = answer;
        let broken = || Error::from("an answer of the agent is cut off");
        while let [head, words @ ..] = rest {
            if *head == END {
                return if steps.len() == calls.len() { Ok(Recording { steps }) } else { Err(broken()) };
            }
            let (count, index) = ((head >> 32) as usize, *head as u32);
            let (words, behind) = words.split_at_checked(count).ok_or_else(broken)?;
            let [result, data @ ..] = words else { return Err(broken()) };
            rest = behind;
            let result = *result as i64;
            let result = if result < 0 { Err(Errno::from_raw_os_error(-result as i32)) } else { Ok(result) };
            let answer = Answer { result, data: data.to_vec() };
            if u64::from(index) & WATCHED != 0 {
                let watched = (u64::from(index) & !WATCHED) as usize;
                steps.last_mut().ok_or_else(broken)?.changes.push((watched, answer));
            } else if let Some(call) = self.ends.get(index as usize).copied().flatten() {
                let answer = of_call(&calls[call], answer);
                steps.push(Step { answer, changes: Vec::new() });
            }
        }
        Err(broken())
    }
}

/// The words of the pending tables that are looked at.
pub fn pending_words(vcpus: u32) -> impl Iterator<Item = u64> {
    let words = u64::from(WATCHED_LPIS / 64);
    (0..u64::from(vcpus)).flat_map(move |vcpu| {
        (0..words).map(move |word| PENDING + PENDING_STRIDE * vcpu + u64::from(LPIS / 8) + 8 * word)
    })
}

fn event(fd: Fd) -> u64 {
    match fd {
        Fd::Event(event) => event,
        Fd::MinusOne => MINUS_ONE,
        Fd::NoEvent => NO_EVENT,
    }
}

fn route(entry: &KvmIrqRoutingEntry) -> [u64; 4] {
    let KvmIrqRoutingEntry { gsi, kind, flags, payload: [low, high, data, device, ..], .. } = *entry;
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    [pair(gsi, kind), u64::from(flags), pair(low, high), pair(data, device)]
}

/// What a guest's run says about what it did.
fn of_call(call: &Call, answer: Answer) -> Answer {
    let Call::Guest { deed, .. } = call else { return answer };
    let failed = |errno| Answer { result: Err(errno), data: Vec::new() };
    match (answer.result, &answer.data[..]) {
        (Ok(EXIT_MMIO), [REPORT, _, value]) => {
            let loads = !matches!(deed, Deed::Write(..) | Deed::Store { .. });
            Answer { result: Ok(0), data: if loads { vec![*value] } else { Vec::new() } }
        }
        // Nothing was in service.
        (Ok(0), []) => answer,
        // There is no controller where it went.
        (Ok(EXIT_MMIO), _) => failed(Errno::INVAL),
        (Ok(reason), _) => failed(Errno::from_raw_os_error(LEFT + reason as i32)),
        (Err(errno), _) => failed(errno),
    }
}
