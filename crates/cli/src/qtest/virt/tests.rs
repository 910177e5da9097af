//! The machine as a client sees it. Answers without a comment of their own are those of QEMU 7.2.

use super::super::machine::Machine;
use super::super::options::CommandLine;
use super::super::protocol::execute;

const LOADER: &str = "-device loader,file=/f/icc_mailbox.bin,addr=0x47000000,cpu-num=0,force-raw=on";

fn machine(words: &str) -> Machine {
    let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
    Machine::new(CommandLine::parse(&words).unwrap().machine).unwrap()
}

fn say(machine: &mut Machine, line: &str) -> String {
    execute(machine, line.as_bytes()).trim_end().to_owned()
}

fn conversation(machine: &mut Machine, lines: &[(&str, &str)]) {
    for (line, answer) in lines {
        assert_eq!(say(machine, line), *answer, "{line}");
    }
}

/// A command of the mailbox, as the reference drivers give it.
fn call(machine: &mut Machine, command: u32, argument: u64) -> u64 {
    conversation(
        machine,
        &[
            (&format!("writeq 0x48000008 {argument:#x}"), "OK"),
            (&format!("writel 0x48000000 {command:#x}"), "OK"),
            ("readl 0x48000000", "OK 0x0000000000000000"),
        ],
    );
    let answer = say(machine, "readq 0x48000010");
    u64::from_str_radix(answer.trim_start_matches("OK 0x"), 16).unwrap()
}

#[test]
fn distributor_redistributors_and_its_lie_where_qemu_has_them() {
    conversation(
        &mut machine("-M virt,gic-version=3,its=on -smp 2 -m 256"),
        &[
            ("readl 0x08000000", "OK 0x0000000000000050"),
            ("readl 0x08000004", "OK 0x00000000037a0007"),
            ("readl 0x08000008", "OK 0x000000000000043b"),
            ("readl 0x0800ffe8", "OK 0x000000000000003b"),
            ("readq 0x080a0008", "OK 0x0000000001000001"),
            ("readq 0x080c0008", "OK 0x0000000101000111"),
            // One behind the last.
            ("readq 0x080e0008", "OK 0x0000000000000000"),
            ("readl 0x08080000", "OK 0x0000000080000000"),
            ("readl 0x08080004", "OK 0x000000000000043b"),
            ("writeq 0x4ffffff8 0x123", "OK"),
            ("readq 0x4ffffff8", "OK 0x0000000000000123"),
            ("readq 0x50000000", "OK 0x0000000000000000"),
        ],
    );
    conversation(&mut machine("-M virt,its=off"), &[("readl 0x08080004", "OK 0x0000000000000000")]);
}

/// The steps of `gic_registers` from an SPI that is disabled to its end.
#[test]
fn a_client_reaches_the_cpu_interface_through_the_mailbox_once_the_cpus_run() {
    let mut machine = machine(&format!("-M virt -smp 2 -m 256 {LOADER}"));
    conversation(
        &mut machine,
        &[
            ("writel 0x08000000 0x37", "OK"),
            ("writel 0x080a0014 0", "OK"),
            ("writel 0x08000084 0x100", "OK"),
            ("writeb 0x08000428 0x80", "OK"),
            ("writel 0x08000204 0x100", "OK"),
            // Nobody serves it yet.
            ("writel 0x48000000 1", "OK"),
            ("readl 0x48000000", "OK 0x0000000000000001"),
        ],
    );
    machine.run(true);
    conversation(
        &mut machine,
        &[("readl 0x48000000", "OK 0x0000000000000000"), ("readq 0x48000010", "OK 0x00000000000003ff")],
    );
    assert_eq!(say(&mut machine, "writel 0x08000104 0x100"), "OK");
    assert_eq!(call(&mut machine, 1, 0), 40, "HPPIR1");
    assert_eq!(call(&mut machine, 2, 0), 40, "IAR1");
    assert_eq!(call(&mut machine, 4, 0), 0x80, "RPR");
    assert_eq!(say(&mut machine, "readl 0x08000304"), "OK 0x0000000000000100");
    assert_eq!(call(&mut machine, 3, 40), 0, "EOIR1");
    assert_eq!(say(&mut machine, "readl 0x08000304"), "OK 0x0000000000000000");
    assert_eq!(call(&mut machine, 5, 0xff), 0xf8, "PMR");
    assert_eq!(call(&mut machine, 9, 0), 3, "BPR1");
    machine.run(false);
    assert_eq!(say(&mut machine, "writel 0x48000000 1"), "OK");
    assert_eq!(say(&mut machine, "readl 0x48000000"), "OK 0x0000000000000001", "stopped");
}

#[test]
fn without_a_program_for_cpu_0_the_mailbox_is_memory() {
    let mut machine = machine("-M virt -m 256 -device loader,addr=0x47000000,cpu-num=1");
    machine.run(true);
    conversation(&mut machine, &[("writel 0x48000000 1", "OK"), ("readl 0x48000000", "OK 0x0000000000000001")]);
}

/// One command, at `at` of the queue; CREADR afterwards.
fn command(machine: &mut Machine, at: u64, words: [u64; 4]) {
    for (place, word) in (0x4010_0000 + at..).step_by(8).zip(words) {
        assert_eq!(say(machine, &format!("writeq {place:#x} {word:#x}")), "OK");
    }
    assert_eq!(say(machine, &format!("writeq 0x08080088 {:#x}", at + 32)), "OK");
    assert_eq!(say(machine, "readq 0x08080090"), format!("OK {:#018x}", at + 32));
}

#[test]
fn messages_of_the_client_and_of_a_device_become_lpis_and_the_pending_table_shows_them() {
    let mut machine = machine(&format!("-M virt,gic-version=3,its=on -smp 2 -m 256 -device edu,addr=3 {LOADER}"));
    machine.run(true);
    conversation(
        &mut machine,
        &[
            ("writel 0x08000000 0x37", "OK"),
            ("writeq 0x080a0070 0x4050000f", "OK"),
            ("writeq 0x080a0078 0x4000000040600000", "OK"),
            ("writel 0x080a0000 1", "OK"),
            ("writeq 0x08080100 0x800000004020020f", "OK"),
            ("writeq 0x08080108 0x8000000040300200", "OK"),
            ("writeq 0x08080080 0x800000004010000f", "OK"),
            ("writel 0x08080000 1", "OK"),
            // The configuration of LPIs 8192 and 8200.
            ("writeb 0x40500000 0xa1", "OK"),
            ("writeb 0x40500008 0x81", "OK"),
        ],
    );
    let valid = 1 << 63;
    for (at, words) in [
        [9, 0, valid, 0],
        [8, 3, valid | 0x4040_0000, 0],
        [0xa, 1 | 8192 << 32, 0, 0],
        [8 | 0x18 << 32, 4, valid | 0x4041_0000, 0],
        [0xa | 0x18 << 32, 5 | 8200 << 32, 0, 0],
    ]
    .into_iter()
    .enumerate()
    {
        command(&mut machine, 32 * at as u64, words);
    }
    conversation(
        &mut machine,
        &[
            ("writel 0x08090040 1", "OK"),
            ("read 0x40600400 2", "OK 0x0100"),
            // 00:03.0 by its configuration space: BAR 0, bus master, and its message.
            ("readl 0x4010018000", "OK 0x0000000011e81234"),
            ("readl 0x4010020000", "OK 0x00000000ffffffff"),
            ("writel 0x4010018010 0x10000000", "OK"),
            ("writew 0x4010018004 6", "OK"),
            ("writel 0x4010018044 0x08090040", "OK"),
            ("writew 0x401001804c 5", "OK"),
            ("writew 0x4010018042 1", "OK"),
            ("writel 0x10000060 1", "OK"),
            ("read 0x40600400 2", "OK 0x0101"),
        ],
    );
    assert_eq!([call(&mut machine, 2, 0), call(&mut machine, 3, 8200)], [8200, 0]);
    assert_eq!(say(&mut machine, "read 0x40600400 2"), "OK 0x0100");
    assert_eq!(call(&mut machine, 2, 0), 8192);
}

#[test]
fn lines_are_the_distributors_inputs_first_spis_then_the_private_ones_of_each_cpu() {
    let mut machine = machine("-M virt -smp 2");
    conversation(
        &mut machine,
        &[
            ("set_irq_in /machine/unattached/gic unnamed-gpio-in 8 1", "OK"),
            ("readl 0x08000204", "OK 0x0000000000000100"),
            ("set_irq_in /machine/unattached/gic unnamed-gpio-in 8 0", "OK"),
            ("readl 0x08000204", "OK 0x0000000000000000"),
            ("set_irq_in /machine/unattached/gic unnamed-gpio-in 283 1", "OK"),
            ("readl 0x080d0200", "OK 0x0000000008000000"),
            ("readl 0x080b0200", "OK 0x0000000000000000"),
            ("set_irq_in /machine/unattached/gic unnamed-gpio-in 288 1", "FAIL No such line"),
            ("set_irq_in /machine/q35/ioapic unnamed-gpio-in 8 1", "FAIL Unknown device"),
        ],
    );
}

#[test]
fn a_reset_leaves_ram_and_nothing_else() {
    let mut machine = machine("-M virt -smp 1");
    for line in ["writel 0x08000000 0x37", "writel 0x08000204 0x100", "writel 0x40000000 5"] {
        assert_eq!(say(&mut machine, line), "OK");
    }
    machine.reset().unwrap();
    conversation(
        &mut machine,
        &[
            ("readl 0x08000000", "OK 0x0000000000000050"),
            ("readl 0x08000204", "OK 0x0000000000000000"),
            ("readl 0x40000000", "OK 0x0000000000000005"),
        ],
    );
}
