//! `doorbell check kvm`: the same random programs of calls on the kernel's KVM and on doorbell.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use doorbell::kvm::abi::{Kvm, bind_to_this_cpu};
use doorbell::kvm_abi::{Errno, types::CAP_X86_SMM};

use super::failure::Failure;
use super::programs::{FEWEST_CALLS, Missing, Selection};
use super::shrink;
use crate::run::stop;

mod arm;
mod call;
mod compare;
mod coverage;
mod cripple;
mod guest;
mod machines;
mod program;
mod report;
mod side;
mod soft;

use compare::Pair;
use cripple::Fault;
use guest::Guests;
use report::Report;
use side::Side;

const AFTER_HELP: &str = "\
Half of the programs make calls only, on two VMs of the kernel, with 3 and 2 vCPUs, and on two of doorbell. The others \
(--guest) have a guest besides: 64-bit code on 3 vCPUs that takes interrupts, nests and ends them, and on command stores \
to its local APIC, CR8, the IOAPIC and (in one program of four) the 8259 pair, sends IPIs, starts its timer, sets and \
clears its interrupt flag, and halts. It runs on the kernel's chips, and either on doorbell's, which the vCPUs get by \
KVM_INTERRUPT, or, once in four times, on a split chip.

After every step its answer, the vectors that the vCPU took and ended, in order, IRR, ISR, TMR and the other registers of \
each local APIC, the IOAPIC's entries and latches, and which eventfds are signalled must be the same; without a guest, \
the 8259 pair and at the end the counters of all eventfds, too. The first difference is shrunk to the shortest program that shows it.

A host that emulates guest code may end an interrupt in the step in which a vCPU takes it. This is found out first. There \
the check moves the highest request into service, and enters the guest's handler, as a CPU does; the rest is the kernel's.

Not compared or not called, because the kernel has no answer that two machines share, or because it comes with a later \
piece of doorbell:
  the clock's pin    GSI and pin 8 are left alone: KVM keeps an account of the clock's ticks
  EOI suppression    SVR bit 12 is not set: a full chip does not offer it, yet KVM half obeys it
  EOI after a store  the local APIC is written back before an EOI, after which KVM knows the IOAPIC's entries again
  the timers         only with a guest, once and periodic: that they expire, not when; KVM_CREATE_PIT2 is not called
  PPR                the kernel brings it up to date at other moments; a guest's load of it is compared
  APIC ids           are not changed; vCPUs stay in xAPIC mode, at the addresses of reset
  the last close     of a bound eventfd: the kernel notices it, user space cannot
  SMI                is sent only where the kernel knows it (KVM_CAP_X86_SMM)
  guests that leave  SMI, INIT and SIPI are sent only in programs without guest code
With a guest, also:
  a second NMI       is not sent before the first may have been taken
  CR8 and TPR        a store to CR8 that changes only the low half of TPR is not seen by user space
  shared vectors     edge pins, level pins and level messages have vectors of their own
  8259 and others    a pin is level, or the pair ends by itself, not both; no handler lets the pair in
  edge ends, split   the kernel reports ends of level interrupts only, so there pins are level, and keep their vectors";

const EXIT_STATUS: &str = "\
Exit status: 0 all programs passed; 1 a difference was found; 2 wrong usage; 77 there is no /dev/kvm, or a package is \
missing: nothing was compared.";

/// Whose KVM doorbell is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    /// That of this machine, by /dev/kvm
    X86,
    /// That of a kernel for Arm, which QEMU boots
    Arm,
}

/// What `doorbell check kvm` takes.
#[derive(Debug, Parser)]
#[command(after_help = format!("{AFTER_HELP}\n\n{}\n\n{EXIT_STATUS}", arm::HELP))]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Whose KVM
    #[arg(long, value_enum, default_value = "x86")]
    arch: Arch,
    /// How many programs
    #[arg(long, default_value_t = 500)]
    programs: u64,
    /// How many calls each has, at least 50
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(FEWEST_CALLS..=100_000))]
    calls: u64,
    /// Which programs have a guest that takes the interrupts
    #[arg(long, value_enum, default_value = "half")]
    guest: guest::Share,
    /// A fault in doorbell that the check must find
    #[arg(long, hide = true, value_enum)]
    cripple: Option<Fault>,
    /// The same with --arch arm
    #[arg(long, hide = true, value_enum)]
    cripple_arm: Option<arm::Fault>,
    /// Compare the kernel with itself: whether the check itself is deterministic
    #[arg(long, hide = true)]
    itself: bool,
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    if args.arch == Arch::Arm {
        return arm::main(&args);
    }
    let say = |errno| compare::errno_name(errno).to_owned();
    let checked = Kvm::open()
        .map_err(|errno| Missing::Oracle(format!("/dev/kvm cannot be used: {}", say(errno))))
        .and_then(|kvm| Ok(check(&args, &kvm)?));
    args.selection.end(checked, |report| report.print(&args), say)
}

fn pair(args: &Args, kvm: &Arc<Kvm>) -> Result<Pair, Errno> {
    let kernel = Side::new(Box::new(machines::Kernel::new(kvm)?))?;
    let other: Box<dyn machines::Machines> =
        if args.itself { Box::new(machines::Kernel::new(kvm)?) } else { Box::new(soft::Doorbell::new(args.cripple)?) };
    Ok(Pair { sides: [kernel, Side::new(other)?] })
}

fn check(args: &Args, kvm: &Arc<Kvm>) -> Result<Report, Errno> {
    // The order of the kernel's workers holds on one CPU.
    bind_to_this_cpu()?;
    stop::listen();
    let mut pair = pair(args, kvm)?;
    let smi = kvm.check_extension(CAP_X86_SMM)? > 0;
    let mut guests: Option<Guests> = None;
    let mut report = Report::default();
    let Report { tally, accepts, coverage } = &mut report;
    args.selection.run(args.programs, tally, |number| {
        if args.guest.takes(args.selection.seed, number) {
            let guests = match &mut guests {
                Some(guests) => guests,
                none => none.insert(Guests::new(kvm, args)?),
            };
            *accepts = Some(guests.accepts);
            return guests.run(args, number, coverage);
        }
        let program = program::generate(args.selection.seed, number, args.calls as usize, smi);
        coverage.begin();
        match pair.run(&program.calls, Some(coverage))? {
            None => Ok(None),
            Some(found) => Ok(Some(failure(&mut pair, args, &program, found)?)),
        }
    })?;
    Ok(report)
}

fn failure(
    pair: &mut Pair,
    args: &Args,
    program: &program::Program,
    found: compare::Difference,
) -> Result<Failure, Errno> {
    let (repeats, (calls, difference)) = shrink::explain(pair, &program.calls, found)?;
    let mut answers = difference.answers.into_iter().map(|answers| answers.map(compare::outcome));
    let Args { selection: Selection { seed, .. }, calls: count, .. } = args;
    Ok(Failure {
        number: program.number,
        from: program.calls.len(),
        repeats,
        at_the_end: difference.at >= calls.len(),
        steps: calls.iter().map(|call| (call.to_string(), answers.next())).collect(),
        items: difference.items,
        names: [pair.sides[0].name(), pair.sides[1].name()],
        again: format!("doorbell check kvm --seed {seed} --calls {count} --only {}", program.number),
    })
}
