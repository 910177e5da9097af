//! `doorbell run`: devices in other processes raise interrupts, doorbell delivers them to vCPU threads, and a ledger in
//! shared memory accounts for each one.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::ValueEnum;
use rustix::process::Resource;

mod coordinator;
pub mod device;
mod fault;
mod function;
pub mod guest;
mod handover;
mod histogram;
mod kernel;
mod late;
pub mod ledger;
pub mod machine;
mod parity;
pub mod plan;
mod process;
mod report;
mod soft;
pub(crate) mod stop;
mod tally;
mod trace;
mod watch;

use coordinator::{Outcome, Run, Running};
use fault::Fault;
use machine::{Arch, Chips, Machine, Remap};
use plan::Plan;
use report::Report;

/// The built-in machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BuiltIn {
    /// 4 vCPUs; a network-like device, a storage-like one, and a legacy one on a shared level line
    X86,
    /// 300 vCPUs behind VT-d interrupt remapping, whose entries are re-targeted all the time
    X86Vtd,
    /// The same behind AMD-Vi
    X86Amd,
    /// 4 vCPUs on a GICv3 with two ITSs, whose guest re-programs them all the time
    Arm,
    /// Not there yet
    Power,
}

impl BuiltIn {
    /// Its name and its text, if it is there.
    fn text(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::X86 => Some(("x86", machine::X86)),
            Self::X86Vtd => Some(("x86-vtd", machine::X86_VTD)),
            Self::X86Amd => Some(("x86-amd", machine::X86_AMD)),
            Self::Arm => Some(("arm", machine::ARM)),
            Self::Power => None,
        }
    }
}

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The machine to run; without it, the built-in one, whose text documents the format (--show-machine)
    #[arg(value_name = "MACHINE.toml", conflicts_with = "machine")]
    file: Option<PathBuf>,
    /// Which built-in machine
    #[arg(long, value_enum, default_value = "x86")]
    machine: BuiltIn,
    /// Print the built-in machine, which documents the format of a machine file, and end
    #[arg(long)]
    show_machine: bool,
    /// Whose interrupt controllers deliver
    #[arg(long, value_enum)]
    chips: Option<Chips>,
    /// How many interrupts the devices signal in total, shared out as the machine says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    interrupts: Option<u64>,
    /// The seed of what is random: when the driver masks and unmasks, and the programs of the parity sample
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only this machine: no run on the kernel's chips beside it, and no parity sample
    #[arg(long)]
    alone: bool,
    /// A fault to make on purpose: drop=1/N (one event of N is dropped between dispatcher and route) or stuck-vcpu=N
    /// (vCPU N does not end one of its interrupts). The run must find it and exit 1
    #[arg(long, value_name = "FAULT")]
    fault: Option<Fault>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Write the report as an HTML page that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write a trace for Perfetto (ui.perfetto.dev) or chrome://tracing: the first 20,000 interrupts of each vCPU
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    if args.show_machine {
        let text = args.machine.text().map_or(machine::X86, |(_, text)| text);
        return ExitCode::from(u8::from(!say(text)));
    }
    match prepare(&args) {
        Ok((machine, plan)) => {
            stop::listen();
            run(&args, &machine, &plan)
        }
        Err(problem) => {
            eprintln!("doorbell: {problem}");
            ExitCode::from(2)
        }
    }
}

/// Reads the machine and checks what was asked for.
fn prepare(args: &Args) -> Result<(Machine, Plan), String> {
    let Some((name, text)) = args.machine.text() else {
        let name = args.machine.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        return Err(format!("--machine {name}: not there yet, allowed are x86, x86-vtd, x86-amd and arm"));
    };
    let mut machine = match &args.file {
        Some(path) => Machine::read(path)?,
        None => Machine::built_in(name, text),
    };
    if let Some(interrupts) = args.interrupts {
        machine.scale(interrupts);
    }
    let plan = Plan::new(&machine)?;
    let chips = chips(args, &machine);
    if chips != Chips::Soft && machine.arch == Arch::Arm {
        let (name, chips) = (&machine.name, chips.name());
        return Err(format!("{name}: --chips {chips}: an Arm machine has \"soft\" chips only"));
    }
    if chips != Chips::Soft && !kvm_exists() {
        return Err(format!("--chips {}: there is no /dev/kvm; allowed is soft", chips.name()));
    }
    if chips != Chips::Soft && machine.remap != Remap::None {
        let (name, chips) = (&machine.name, chips.name());
        return Err(format!("{name}: remap: not on --chips {chips}: interrupt remapping is on \"soft\" chips only"));
    }
    if chips != Chips::Soft && machine.vcpus > guest::MOST_VCPUS {
        let (vcpus, most) = (machine.vcpus, guest::MOST_VCPUS);
        return Err(format!("{}: vcpus: {vcpus} are too many for a guest under /dev/kvm: 1 to {most}", machine.name));
    }
    if args.trace.is_some() && chips != Chips::Soft {
        return Err(
            "--trace: allowed on --chips soft only: a guest has no clock that it shares with its devices".into()
        );
    }
    match args.fault {
        Some(_) if chips != Chips::Soft => return Err("--fault: allowed on --chips soft only".into()),
        Some(Fault::StuckVcpu(vcpu)) if vcpu >= machine.vcpus => {
            return Err(format!("--fault stuck-vcpu={vcpu}: {} has vCPUs 0 to {}", machine.name, machine.vcpus - 1));
        }
        _ => {}
    }
    Ok((machine, plan))
}

fn chips(args: &Args, machine: &Machine) -> Chips {
    args.chips.or(machine.chips).unwrap_or(Chips::Soft)
}

fn kvm_exists() -> bool {
    Path::new("/dev/kvm").exists()
}

/// A machine needs two descriptors for each vector, or more; the usual limit of 1,024 is only a default.
fn allow_many_descriptors() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it, whatever needs a descriptor says that there is none.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

fn run(args: &Args, machine: &Machine, plan: &Plan) -> ExitCode {
    allow_many_descriptors();
    let chips = chips(args, machine);
    let mut outcome = match run_on(chips, args, machine, plan, None) {
        Ok(outcome) => outcome,
        Err(problem) => {
            eprintln!("doorbell: {problem}");
            return ExitCode::FAILURE;
        }
    };
    if args.chips.is_none() && machine.chips.is_none() && !args.alone && args.fault.is_none() {
        beside(args, machine, &mut outcome.report);
    }
    let written = write_all(args, plan, &outcome);
    if written && outcome.report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run of the machine on these chips.
fn run_on(
    chips: Chips,
    args: &Args,
    machine: &Machine,
    plan: &Plan,
    budget: Option<Duration>,
) -> Result<Outcome, String> {
    // A device that waits for an event that was dropped on purpose need not wait long. Otherwise what is late must not be
    // taken for lost: on a machine that is very busy, a vCPU or a driver with masked vectors can stand still for seconds.
    let patience = Duration::from_millis(match args.fault {
        None => 30_000,
        Some(Fault::Drop(_)) => 20,
        Some(Fault::StuckVcpu(_)) => 700,
    });
    // A guest under /dev/kvm cannot ring a device's bell.
    let poll = if chips == Chips::Soft { Duration::ZERO } else { Duration::from_micros(50) };
    let run = Run { machine: &machine.name, chips: chips.name(), plan, patience, poll, budget };
    run.go(|ledger, memory, doorbells| -> Result<Box<dyn Running>, String> {
        let under_kvm = |chips| -> Result<Box<dyn Running>, String> {
            Ok(Box::new(kernel::Kernel::start(chips, plan, ledger, memory, doorbells, args.seed)?))
        };
        match chips {
            Chips::Soft => {
                let options = soft::Options { fault: args.fault, seed: args.seed, trace: args.trace.is_some() };
                soft::start(plan, ledger, doorbells, &options)
            }
            Chips::Kernel => under_kvm(guest::Chips::Kernel),
            Chips::Split => under_kvm(guest::Chips::Split),
            Chips::None => under_kvm(guest::Chips::None),
        }
    })
}

/// The same work on the kernel's chips, where there are any.
fn beside(args: &Args, machine: &Machine, report: &mut Report) {
    if stop::requested() {
        return;
    }
    if machine.arch == Arch::Arm {
        report.notes.push("On doorbell's chips only: this host's kernel has x86 ones.".into());
        return;
    }
    if machine.remap != Remap::None {
        report.notes.push("On doorbell's chips only: the kernel's have no interrupt remapping.".into());
        return;
    }
    if machine.vcpus > guest::MOST_VCPUS {
        let most = guest::MOST_VCPUS;
        report
            .notes
            .push(format!("SKIPPED: a guest under /dev/kvm has at most {most} vCPUs: no run on the kernel's chips."));
        return;
    }
    if !kvm_exists() {
        report.notes.push("SKIPPED: there is no /dev/kvm, so nothing ran on the kernel's chips beside this.".into());
        return;
    }
    let mut smaller = machine.clone();
    smaller.scale(machine.interrupts().min(KERNEL_INTERRUPTS));
    let ran = Plan::new(&smaller).and_then(|plan| run_on(Chips::Kernel, args, &smaller, &plan, Some(KERNEL_TIME)));
    match ran {
        Ok(Outcome { report: mut kernel, .. }) => {
            if smaller.interrupts() < machine.interrupts() {
                let note = "Fewer interrupts than above, because a guest whose kernel code is emulated is slow.";
                kernel.notes.push(note.into());
            }
            report.beside.push(kernel);
        }
        Err(problem) => report.problems.push(report::Problem(format!("the kernel's chips: {problem}"))),
    }
    if stop::requested() {
        return;
    }
    match parity::sample(args.seed) {
        Ok(parity) => report.parity = Some(parity),
        Err(problem) => report.notes.push(format!("SKIPPED: the parity sample: {problem}")),
    }
}

/// How many interrupts run on the kernel's chips beside a run on doorbell's, and for how long at most.
const KERNEL_INTERRUPTS: u64 = 200_000;
/// See [`KERNEL_INTERRUPTS`].
const KERNEL_TIME: Duration = Duration::from_secs(15);

/// Writes everything that was asked for. One place that takes nothing more does not keep the others from being written.
fn write_all(args: &Args, plan: &Plan, outcome: &Outcome) -> bool {
    let mut written = true;
    let mut file = |path: &Path, write: &dyn Fn(File) -> io::Result<()>| {
        if let Err(error) = File::create(path).and_then(write) {
            eprintln!("doorbell: {}: {error}", path.display());
            written = false;
        }
    };
    if let Some(path) = &args.report {
        file(path, &|mut file| file.write_all(report::page(&outcome.report).as_bytes()));
    }
    if let Some(path) = &args.trace {
        file(path, &|file| trace::write(plan, &outcome.recorders, outcome.start, file));
    }
    let text = if args.json {
        // A report is plain data: there is nothing in it that JSON cannot say.
        let json = serde_json::to_string_pretty(&outcome.report);
        json.unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")) + "\n"
    } else {
        report::text(&outcome.report)
    };
    if !say(&text) {
        written = false;
        eprint!("{}", report::brief(&outcome.report));
    }
    written
}

/// Prints to standard output; says so on standard error if that fails.
fn say(text: &str) -> bool {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        // Whoever read it has gone.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => true,
        Err(error) => {
            eprintln!("doorbell: standard output: {error}");
            false
        }
    }
}
