//! `doorbell qtest`: doorbell's chips behind QEMU's qtest protocol.

use std::process::ExitCode;

use clap::Parser;

mod base64;
mod edu;
mod ivshmem;
pub mod machine;
pub mod monitor;
pub mod options;
mod pci;
pub mod protocol;
pub mod q35;
mod serve;
#[cfg(test)]
mod tests;
pub mod virt;

use options::CommandLine;

const AFTER_HELP: &str = "\
Options, with one dash or two; QEMU's others are accepted and ignored:
  --machine q35               the machine: 8259s, IOAPIC, local APICs, configuration ports, RAM from address 0;
                              `,8259=strict` for the 8259 of the data sheet in the place of KVM's
  --machine virt              an Arm one: GICv3 (distributor at 0x08000000, redistributors from 0x080a0000 on), ITS at
                              0x08080000 unless `,its=off`, PCI configuration space at 0x4010000000, RAM from 0x40000000
  --qtest unix:PATH | stdio   where qtest is spoken; `,server=on` waits for a client
  --qmp unix:PATH | stdio     where QMP is spoken (or -chardev socket,id=X,path=PATH -mon chardev=X,mode=control):
                              qmp_capabilities, query-status, cont, stop, system_reset, quit, and human-monitor-command
                              with `info pic` and `info lapic N`
  -smp N, -m MIB              vCPUs (1 to 288; virt: 1 to 123), RAM (1 to 2048 MiB)
  -device intel-iommu,intremap=on[,eim=on][,posted=on]
                              a VT-d unit at 0xfed90000, in front of devices and IOAPIC
  -device amd-iommu,intremap=on
                              an AMD-Vi unit at 0xfed80000
  -device edu,addr=3          a PCI function with an MSI vector
  -device ivshmem-doorbell,vectors=N,chardev=X,addr=4
                              one with MSI-X vectors, whose events come from an ivshmem server
  -device loader,…,cpu-num=0  virt: a program for CPU 0. doorbell runs no code: once `cont` was said, it answers the mailbox
                              at 0x48000000 itself, as the reference drivers' icc_mailbox.bin does, with CPU 0's interface

On virt, inputs of the distributor are lines of a device called `gic`: SPIs, then 32 for each CPU. A client that reads a
pending table sees what is pending now, as QEMU keeps it.

The local APICs of q35 begin software-enabled. As in QEMU, a client cannot reach their registers: a store to 0xfee00000 and up
is a message.

A program that starts QEMU can start doorbell in its place through a link named qemu-system-x86_64:
  ln -s /usr/bin/doorbell qemu-system-x86_64; QTEST_QEMU_BINARY=$PWD/qemu-system-x86_64 …
(qemu-system-aarch64 for virt.)

Exit status: 0 the client has left; 1 a client broke the protocol; 2 wrong usage or a socket that cannot be reached.";

/// What `doorbell qtest` takes.
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// See below
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0.., value_name = "OPTION")]
    words: Vec<String>,
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    start(&args.words)
}

/// The name under which QEMU would have been started.
pub fn is_qemu(program: &str) -> bool {
    program.rsplit('/').next().is_some_and(|name| name.starts_with("qemu-system-"))
}

/// Runs with these options.
pub fn start(words: &[String]) -> ExitCode {
    let line = match CommandLine::parse(words) {
        Ok(line) if line.qtest.is_some() => line,
        Ok(_) => return wrong("--qtest unix:PATH (or stdio) is needed"),
        Err(error) => return wrong(&error),
    };
    match serve::open(&line) {
        Err(error) => wrong(&error),
        Ok(mut server) => match server.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("doorbell qtest: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn wrong(error: &str) -> ExitCode {
    eprintln!("doorbell qtest: {error}");
    ExitCode::from(2)
}
