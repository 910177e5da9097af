//! `doorbell check kvm --arch arm`: the same random programs on a kernel with KVM for Arm, under QEMU, and on doorbell.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::failure::Failure;
use super::super::programs::Missing;
use super::super::shrink;
use super::Args;
use crate::run::stop;

mod call;
mod code;
mod compare;
mod coverage;
mod cripple;
mod guest;
mod initramfs;
mod kernel;
mod layout;
mod oracle;
mod program;
mod registers;
mod report;
mod setup;
mod side;
mod soft;
mod wire;

use compare::{Difference, Pair};
pub use cripple::Fault;
use oracle::{Image, Oracle};
use program::{Program, generate};
use report::Report;
use side::{Machine, Whole};
use soft::Doorbell;

/// What went wrong, in one line.
type Error = String;

/// How many programs a kernel may be ahead of doorbell.
const AHEAD: usize = 4;
/// The most kernels at once. More than processors would be slower than one.
const MOST_KERNELS: usize = 2;

/// What there is to say about it in the command's help.
pub const HELP: &str = "\
With --arch arm the kernel is Debian's for arm64, which qemu-system-aarch64 boots with emulated virtualisation in a few \
seconds; no /dev/kvm is needed. An agent in it makes the calls; it is built with aarch64-linux-gnu-gcc. The kernel's package \
is fetched once, by the machine's apt sources, into $XDG_CACHE_HOME/doorbell/arm64 (or put there by hand). \
Some programs bring a VM up; some make calls on one with a GICv3 of 96 INTIDs and two ITSs: attributes, command queues, \
messages, routes, irqfds, lines; the others have a guest on 1 to 3 vCPUs besides, whose code reads and writes the CPU \
interface and the frames. After every call its answer, the enabled, pending and active bits, the lines, the LPIs that \
SAVE_PENDING_TABLES writes, and the queues of the ITSs must be the same; at the end all registers and the bytes of the tables \
that the ITSs save; one VM in three is then restored into a new one, which must be the same again. \
doorbell runs with the options for KVM's ways where these depart from the specification.

Not compared or not called there:
  priorities         no two interrupts of a guest have the same: the kernel gives them in the order of their arrival
  list registers     a guest's program is compared until 4 interrupts are in service, for which the CPU has no room
  handing over       all other vCPUs run before one does something: an interrupt that moves is handed over when they have
  ends               only of what the vCPU acknowledged last; groups, priorities and binary points of a guest stay
  eventfds           are emptied before they are bound: KVM raises a pin for an event, and pulses it for one from before
  LPIs off           GICR_CTLR.EnableLPIs stays set: what stays pending when it is cleared is not the same yet
  LPIs disabled      by configuration or with their group: not in programs that unmap events, because what is pending of such
                     an LPI goes with its event here, while the kernel keeps it until its vCPU has run (I17a)
  saved events       are of mapped collections: with others the restored events of other devices are not the same yet
  MAPC               that unmaps a collection names a vCPU that there is: with another one the kernel refuses it
  vCPU ids           are made in order, and none twice: in the kernel a refused one takes the place of a redistributor
  timers             PPIs 27 and 30 belong to the kernel once a vCPU has run (N7)
  cached events      messages without a DeviceID: whether KVM takes them depends on its cache (Q10a)";

/// Runs the command.
pub fn main(args: &Args) -> ExitCode {
    args.selection.end(check(args), |report| report.print(args), |error| error)
}

/// A kernel of its own for each lane.
type Slot = Mutex<Option<Oracle>>;

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Oracle>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a kernel said of a program, or why it says nothing any more.
type Said = Result<(Program, Whole), Missing<Error>>;

fn check(args: &Args) -> Result<Report, Missing<Error>> {
    let image = Image::prepare()?;
    stop::listen();
    let mut doorbell = other_side(args, &image)?;
    let numbers = args.selection.numbers(args.programs);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = processors.min(MOST_KERNELS).min(numbers.len()).max(1);
    let slots: Vec<Slot> = (0..lanes).map(|_| Mutex::new(None)).collect();
    let mut report = Report::default();
    std::thread::scope(|scope| {
        // Dropped at the end of this, whereupon the lanes end.
        let (_over, receivers): (Vec<SyncSender<()>>, Vec<Receiver<Said>>) = slots
            .iter()
            .enumerate()
            .map(|(lane, slot)| {
                let (sender, receiver) = sync_channel(AHEAD);
                let (over, wait) = sync_channel(0);
                let (image, numbers) = (&image, numbers.iter().copied().skip(lane).step_by(lanes));
                scope.spawn(move || {
                    record(args, image, slot, numbers, &sender);
                    // QEMU ends with the thread that started it, and failures are shrunk on it.
                    let _ = wait.recv();
                });
                (over, receiver)
            })
            .unzip();
        let Report { tally, coverage } = &mut report;
        let mut turn = 0;
        args.selection.run::<Missing<Error>>(args.programs, tally, |_| {
            let lane = turn % lanes;
            turn += 1;
            let gone = || Missing::Other("a kernel's lane has ended".to_owned());
            let (program, kernel) = receivers[lane].recv().map_err(|_| gone())??;
            let ours = Whole::run(&mut *doorbell, &program, &program.calls)?;
            coverage.begin(&program);
            let told = &mut |call: &_, answer: &_, before: &_, after: &_| coverage.count(call, answer, before, after);
            match compare::compare(&program, program.calls.len(), &kernel, &ours, told) {
                None => Ok(None),
                Some(found) => {
                    let mut slot = lock(&slots[lane]);
                    let oracle = slot.as_mut().ok_or_else(gone)?;
                    Ok(Some(failure(args, [oracle, &mut *doorbell], &program, found)?))
                }
            }
        })
    })?;
    Ok(report)
}

/// doorbell, or another kernel.
fn other_side(args: &Args, image: &Image) -> Result<Box<dyn Machine>, Missing<Error>> {
    if args.itself {
        return Ok(Box::new(Oracle::boot(image)?));
    }
    Ok(Box::new(Doorbell::new(cripple::maker(args.cripple_arm))?))
}

/// Boots a kernel and lets it answer these programs until nobody listens.
fn record(args: &Args, image: &Image, slot: &Slot, numbers: impl Iterator<Item = u64>, sender: &SyncSender<Said>) {
    match Oracle::boot(image) {
        Ok(oracle) => *lock(slot) = Some(oracle),
        Err(error) => {
            let _ = sender.send(Err(Missing::Other(error)));
            return;
        }
    }
    for number in numbers {
        let program = generate(args.selection.seed, number, args.calls as usize);
        let whole = match &mut *lock(slot) {
            Some(oracle) => Whole::run(oracle, &program, &program.calls),
            None => return,
        };
        let failed = whole.is_err();
        let said =
            whole.map(|whole| (program, whole)).map_err(|error| Missing::Other(format!("program {number}: {error}")));
        if sender.send(said).is_err() || failed {
            return;
        }
    }
}

fn failure<'a>(
    args: &Args,
    sides: [&'a mut dyn Machine; 2],
    program: &'a Program,
    found: Difference,
) -> Result<Failure, Error> {
    let names = [sides[0].name(), sides[1].name()];
    let mut pair = Pair { sides, program };
    let (repeats, (calls, difference)) = shrink::explain(&mut pair, &program.calls, found)?;
    let mut answers = difference.answers.into_iter();
    let (seed, count, number) = (args.selection.seed, args.calls, program.number);
    Ok(Failure {
        number,
        from: program.calls.len(),
        repeats,
        at_the_end: difference.at >= calls.len(),
        steps: calls.iter().map(|call| (call.to_string(), answers.next())).collect(),
        items: difference.items,
        names,
        again: format!("doorbell check kvm --arch arm --seed {seed} --calls {count} --only {number}"),
    })
}
