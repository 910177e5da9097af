//! The protocol as a client sees it. Answers without a comment of their own are those of QEMU 7.2.

use super::machine::Machine;
use super::monitor::{self, Monitor};
use super::options::CommandLine;
use super::protocol::{LONGEST_LINE, MOST_BYTES, execute};

fn machine(words: &str) -> Machine {
    let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
    Machine::new(CommandLine::parse(&words).unwrap().machine).unwrap()
}

fn say(machine: &mut Machine, line: &str) -> String {
    execute(machine, line.as_bytes())
}

fn conversation(machine: &mut Machine, lines: &[(&str, &str)]) {
    for (line, answer) in lines {
        assert_eq!(say(machine, line).trim_end_matches('\n'), *answer, "{line}");
    }
}

#[test]
fn memory_is_read_and_written_in_every_form() {
    conversation(
        &mut machine("-m 64"),
        &[
            ("readl 0x1000 0x3", "OK 0x0000000000000000"),
            ("memset 0x1000 4 0xab", "OK"),
            ("read 0x1000 4", "OK 0xabababab"),
            ("b64read 0x1000 4", "OK q6urqw=="),
            ("b64write 0x1000 4 AQIDBA==", "OK"),
            ("readl 4096", "OK 0x0000000004030201"),
            ("write 0x1000 4 0x0102", "OK"),
            ("read 0x1000 4", "OK 0x01020000"),
            ("write 0x1000 4 0x01020304ff", "OK"),
            ("readq 0x1000", "OK 0x0000000004030201"),
            ("writeb 0x1000 0x1ff", "OK"),
            ("readb 0x1000", "OK 0x00000000000000ff"),
            ("readl 0x1001", "OK 0x0000000000040302"),
            ("readl 0xffe", "OK 0x0000000002ff0000"),
            ("readw 010000", "OK 0x00000000000002ff"),
            ("memset 0x1000 0 0", "OK"),
            ("endianness", "OK little"),
            ("writeq 0x2000 0x1122334455667788", "OK"),
            ("readw 0x2006", "OK 0x0000000000001122"),
            ("writew 0x2006 0xabcd", "OK"),
            ("readq 0x2000", "OK 0xabcd334455667788"),
            ("read 0x3fffffe 4", "OK 0x00000000"),
        ],
    );
}

#[test]
fn what_nobody_answers_reads_as_zeros_in_memory_and_ones_at_ports() {
    conversation(
        &mut machine("-m 64"),
        &[
            ("readl 0xf0000000", "OK 0x0000000000000000"),
            ("writel 0xf0000000 1", "OK"),
            ("read 0xfffffffffffffff0 4", "OK 0x00000000"),
            ("inl 0x3000", "OK 0xffffffff"),
            ("inb 0x3000", "OK 0x00ff"),
            ("outb 0x3000 1", "OK"),
            ("readl 0xfee00020", "OK 0x0000000000000000"),
            // An access may pass the end of the address space.
            ("read 0xfffffffffffffffe 4", "OK 0x00000000"),
        ],
    );
}

#[test]
fn configuration_mechanism_1_finds_the_functions() {
    let mut machine = machine("-device edu,addr=3 -device ivshmem-doorbell,vectors=3,addr=4");
    conversation(
        &mut machine,
        &[
            ("inl 0xcf8", "OK 0x0000"),
            ("outl 0xcf8 0x80001800", "OK"),
            ("inl 0xcfc", "OK 0x11e81234"),
            ("inw 0xcfe", "OK 0x11e8"),
            ("outl 0xcf8 0x80001834", "OK"),
            ("inb 0xcfc", "OK 0x0040"),
            ("outl 0xcf8 0x80001840", "OK"),
            ("inl 0xcfc", "OK 0x800005"),
            ("outw 0xcfe 0xffff", "OK"),
            ("inl 0xcfc", "OK 0x810005"),
            ("outl 0xcf8 0x80001810", "OK"),
            ("outl 0xcfc 0xffffffff", "OK"),
            ("inl 0xcfc", "OK 0xfff00000"),
            ("outl 0xcf8 0x80001804", "OK"),
            ("outw 0xcfc 0xffff", "OK"),
            ("inw 0xcfc", "OK 0x0507"),
            ("outl 0xcf8 0x80002000", "OK"),
            ("inl 0xcfc", "OK 0x11101af4"),
            // Nobody: another device, another bus, the enable bit clear.
            ("outl 0xcf8 0x80002800", "OK"),
            ("inl 0xcfc", "OK 0xffffffff"),
            ("outl 0xcf8 0x80011800", "OK"),
            ("inl 0xcfc", "OK 0xffffffff"),
            ("outl 0xcf8 0x00001800", "OK"),
            ("inl 0xcfc", "OK 0xffffffff"),
        ],
    );
}

/// The rest of the line of `info lapic` that begins with `name`.
fn vectors(machine: &Machine, cpu: u32, name: &str) -> String {
    let text = monitor::human(machine, &format!("info lapic {cpu}"));
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim().to_owned()
}

#[test]
fn a_level_pin_reaches_its_cpu_and_is_ended_by_the_eoi_register() {
    let mut machine = machine("-smp 2");
    conversation(
        &mut machine,
        &[
            ("writel 0xfec00000 0x1b", "OK"),
            ("writel 0xfec00010 0x01000000", "OK"),
            ("writel 0xfec00000 0x1a", "OK"),
            ("writel 0xfec00010 0x8041", "OK"),
            ("set_irq_in /machine/q35/ioapic unnamed-gpio-in 5 1", "OK"),
            ("readl 0xfec00010", "OK 0x000000000000c041"),
        ],
    );
    assert_eq!((vectors(&machine, 0, "IRR"), vectors(&machine, 1, "IRR")), ("(none)".into(), "65(level)".into()));
    let pic = monitor::human(&machine, "info pic");
    assert!(pic.contains("ver=0x20 id=0x00 sel=0x1a"), "{pic}");
    assert!(pic.contains("  pin 5  0x010000000000c041 "), "{pic}");
    assert!(pic.contains("  IRR      5") && pic.contains("  Remote IRR 5"), "{pic}");
    conversation(
        &mut machine,
        &[
            ("set_irq_in /machine/q35/ioapic unnamed-gpio-in 5 0", "OK"),
            ("writel 0xfec00040 0x41", "OK"),
            ("readl 0xfec00010", "OK 0x0000000000008041"),
        ],
    );
    assert!(monitor::human(&machine, "info pic").contains("  Remote IRR (none)"));
}

#[test]
fn a_store_to_the_message_window_is_a_message_and_the_page_of_registers_is_nobodys() {
    let mut machine = machine("-smp 2");
    for line in ["writel 0xfee01000 0x41", "writel 0xfee00000 0x8042", "writel 0xfee000f0 0", "writeb 0xfee01000 0x43"]
    {
        assert_eq!(say(&mut machine, line), "OK\n");
    }
    assert_eq!((vectors(&machine, 0, "IRR"), vectors(&machine, 1, "IRR")), ("66(level)".into(), "65".into()));
    assert!(monitor::human(&machine, "info lapic 0").contains("SPIV\t 0x000001ff"), "still enabled");
    assert_eq!(monitor::human(&machine, "info lapic 2"), "No CPU available\r\n");
}

#[test]
fn an_edu_sends_its_message_to_a_cpu_or_to_ram_while_it_is_bus_master() {
    let mut machine = machine("-smp 2 -device edu,addr=3");
    conversation(
        &mut machine,
        &[
            ("outl 0xcf8 0x80001810", "OK"),
            ("outl 0xcfc 0xe0000000", "OK"),
            ("outl 0xcf8 0x80001804", "OK"),
            ("outw 0xcfc 6", "OK"),
            ("readl 0xe0000000", "OK 0x00000000010000ed"),
            ("writel 0xe0000004 0x55", "OK"),
            ("readl 0xe0000004", "OK 0x00000000ffffffaa"),
            ("outl 0xcf8 0x80001844", "OK"),
            ("outl 0xcfc 0xfee01000", "OK"),
            ("outl 0xcf8 0x8000184c", "OK"),
            ("outw 0xcfc 0x45", "OK"),
            // MSI is off: the event goes nowhere, then or later.
            ("writel 0xe0000060 1", "OK"),
            ("readl 0xe0000024", "OK 0x0000000000000001"),
            ("writel 0xe0000064 1", "OK"),
            ("outl 0xcf8 0x80001840", "OK"),
            ("outw 0xcfe 1", "OK"),
        ],
    );
    assert_eq!(vectors(&machine, 1, "IRR"), "(none)");
    assert_eq!(say(&mut machine, "writel 0xe0000060 1"), "OK\n");
    assert_eq!((vectors(&machine, 0, "IRR"), vectors(&machine, 1, "IRR")), ("(none)".into(), "69".into()));
    conversation(
        &mut machine,
        &[
            ("writel 0xe0000064 1", "OK"),
            ("outl 0xcf8 0x80001844", "OK"),
            ("outl 0xcfc 0x1000", "OK"),
            ("writel 0xe0000060 1", "OK"),
            ("readl 0x1000", "OK 0x0000000000000045"),
            ("writel 0x1000 0", "OK"),
            ("outl 0xcf8 0x80001804", "OK"),
            ("outw 0xcfc 2", "OK"),
            ("writel 0xe0000060 1", "OK"),
            ("readl 0x1000", "OK 0x0000000000000000"),
        ],
    );
}

#[test]
fn watched_lines_are_reported_when_they_change_and_do_not_reach_the_chip() {
    let mut machine = machine("");
    let line = |pin: u32, level: u32| format!("set_irq_in /machine/q35/ioapic unnamed-gpio-in {pin} {level}");
    assert_eq!(say(&mut machine, "irq_intercept_in foo"), "FAIL Unknown device\n");
    assert_eq!(say(&mut machine, "irq_intercept_in /machine/q35/ioapic"), "OK\n");
    assert_eq!(say(&mut machine, "irq_intercept_in /machine/q35/ioapic"), "OK\n");
    assert_eq!(say(&mut machine, &line(7, 1)), "IRQ raise 7\nOK\n");
    assert_eq!(say(&mut machine, &line(7, 1)), "OK\n");
    assert_eq!(say(&mut machine, &line(7, 0)), "IRQ lower 7\nOK\n");
    assert!(monitor::human(&machine, "info pic").contains("  IRR      (none)"));
}

/// QEMU's clock commands need an accelerator that Debian's does not have; these are the documented answers.
#[test]
fn virtual_time_moves_only_forward() {
    conversation(
        &mut machine(""),
        &[
            ("clock_step", "OK 0"),
            ("clock_step 100", "OK 100"),
            ("clock_set 1000", "OK 1000"),
            ("clock_set 5", "OK 1000"),
            ("clock_step 0xffffffffffffffff", "OK 18446744073709551615"),
        ],
    );
}

/// Each of these makes QEMU end itself, or write beyond what the client sent.
#[test]
fn bad_lines_are_refused_and_change_nothing() {
    let mut machine = machine("-m 1");
    for line in [
        "",
        "foo",
        "readl",
        "readl zz",
        "readl 0x1000zz",
        "readl -1",
        "readl +1",
        "readl 0x",
        "readl 0x100000000000000000",
        "readl 08",
        "writel 0x1000",
        "read 0x1000 0",
        "read 0x1000 0x100001",
        "write 0x1000 4 zz",
        "write 0x1000 4 0x01zz",
        "write 0x1000 4 0x010",
        "write 0x1000 0x7fffffffffffffff 0x01",
        "b64read 0x1000 0x100001",
        "b64write 0x1000 4 ****",
        "memset 0x1000 0x10000000000 1",
        "memset 0x1000 4",
        "inb",
        "inb zz",
        "outb 0x10000 1",
        "outb 0x21",
        "set_irq_in /machine/q35/ioapic unnamed-gpio-in 24 1",
        "set_irq_in /machine/q35/ioapic unnamed-gpio-in 65541 1",
        "set_irq_in /machine/q35/ioapic unnamed-gpio-in 5",
        "set_irq_in foo unnamed-gpio-in 5 1",
        "irq_intercept_in",
        "irq_intercept_out foo",
        "clock_set",
        "clock_step x",
    ] {
        let answer = say(&mut machine, line);
        assert!(answer.starts_with("FAIL ") && answer.ends_with('\n'), "{line}: {answer}");
        assert_eq!(answer.lines().count(), 1, "{line}: {answer}");
    }
    assert_eq!(execute(&mut machine, b"readl \xff"), "FAIL Not text\n");
    assert_eq!(
        say(&mut machine, &format!("{} 1", "x\u{7}".repeat(100))),
        format!("FAIL Unknown command '{}'\n", "x?".repeat(20))
    );
    assert_eq!(say(&mut machine, "read 0x1000 4"), "OK 0x00000000\n");
}

#[test]
fn the_most_that_one_line_can_move_fits_a_line() {
    let mut machine = machine("-m 2");
    let line = format!("write {:#018x} {MOST_BYTES:#018x} 0x{}", 0x10_0000, "5a".repeat(MOST_BYTES));
    assert!(line.len() <= LONGEST_LINE, "{}", line.len());
    assert_eq!(say(&mut machine, &line), "OK\n");
    assert_eq!(say(&mut machine, "readq 0x1ffff8"), "OK 0x5a5a5a5a5a5a5a5a\n");
    assert_eq!(say(&mut machine, "readb 0xfffff"), "OK 0x0000000000000000\n");
    // A memset that runs out of RAM ends with its length.
    assert_eq!(say(&mut machine, "memset 0x100000 0x300000 0xa5"), "OK\n");
    assert_eq!(say(&mut machine, "readl 0x1ffffc"), "OK 0x00000000a5a5a5a5\n");
}

#[test]
fn the_monitor_answers_objects_with_their_ids() {
    let (mut machine, mut monitor) = (machine("-m 1"), Monitor::default());
    let mut ask = |request: &str| monitor.execute(&mut machine, request.as_bytes());
    for (request, answer) in [
        (r#"{"execute":"qmp_capabilities"}"#, r#"{"return":{}}"#),
        (
            r#"{"execute":"query-status","id":[7]}"#,
            r#"{"id":[7],"return":{"running":false,"singlestep":false,"status":"prelaunch"}}"#,
        ),
        (r#"{"execute":"cont"}"#, r#"{"return":{}}"#),
        (r#"{"execute":"query-status"}"#, r#"{"return":{"running":true,"singlestep":false,"status":"running"}}"#),
        (
            r#"{"execute":"foo"}"#,
            r#"{"error":{"class":"CommandNotFound","desc":"The command foo has not been found"}}"#,
        ),
        (
            r#"{"execute":"human-monitor-command"}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'command-line' is missing"}}"#,
        ),
        ("garbage", r#"{"error":{"class":"GenericError","desc":"JSON parse error"}}"#),
        ("[]", r#"{"error":{"class":"GenericError","desc":"QMP input lacks member 'execute'"}}"#),
    ] {
        let reply = ask(request);
        assert_eq!(reply.text.trim_end(), answer);
        assert!(!reply.quit);
    }
    assert!(ask(r#"{"execute":"quit"}"#).quit);
}

#[test]
fn a_reset_leaves_ram_and_time_and_nothing_else() {
    let (mut machine, mut monitor) = (machine("-device edu,addr=3"), Monitor::default());
    for line in [
        "writel 0xfee00000 0x41",
        "writel 0xfec00000 0x10",
        "writel 0x1000 5",
        "outl 0xcf8 0x80001810",
        "outl 0xcfc 0xe0000000",
        "clock_step 9",
    ] {
        say(&mut machine, line);
    }
    let reply = monitor.execute(&mut machine, br#"{"execute":"system_reset"}"#);
    assert!(reply.text.contains(r#""event":"RESET""#) && reply.text.ends_with("{\"return\":{}}\n"), "{}", reply.text);
    assert_eq!(vectors(&machine, 0, "IRR"), "(none)");
    conversation(
        &mut machine,
        &[
            ("readl 0xfec00000", "OK 0x0000000000000000"),
            ("readl 0x1000", "OK 0x0000000000000005"),
            ("inl 0xcf8", "OK 0x0000"),
            ("outl 0xcf8 0x80001810", "OK"),
            ("inl 0xcfc", "OK 0x0000"),
            ("clock_step", "OK 9"),
        ],
    );
}

/// The registers of the VT-d unit, as the specification has them; the values that are QEMU's too are those of its unit.
#[test]
fn a_vt_d_unit_remaps_the_messages_of_devices_and_records_what_it_blocks() {
    let mut machine = machine("-smp 2 -m 64 -device intel-iommu,intremap=on -device edu,addr=3");
    conversation(
        &mut machine,
        &[
            ("readl 0xfed90000", "OK 0x0000000000000010"),
            ("writeq 0xfed900b8 0x2000007", "OK"),
            ("writel 0xfed90018 0x1000000", "OK"),
            ("readl 0xfed9001c", "OK 0x0000000001000000"),
            ("writel 0xfed90018 0x2000000", "OK"),
            ("readl 0xfed9001c", "OK 0x0000000003000000"),
            // Entry 9: vector 0x42 for CPU 1, from 00:03.0 only.
            ("write 0x2000090 16 0x01004200000100001800040000000000", "OK"),
            ("outl 0xcf8 0x80001810", "OK"),
            ("outl 0xcfc 0xe0000000", "OK"),
            ("outl 0xcf8 0x80001804", "OK"),
            ("outw 0xcfc 6", "OK"),
            // Handle 5 with subhandle 4.
            ("outl 0xcf8 0x80001844", "OK"),
            ("outl 0xcfc 0xfee000b8", "OK"),
            ("outl 0xcf8 0x8000184c", "OK"),
            ("outw 0xcfc 4", "OK"),
            ("outl 0xcf8 0x80001840", "OK"),
            ("outw 0xcfe 1", "OK"),
            ("writel 0xe0000060 1", "OK"),
            ("readl 0xfed90034", "OK 0x0000000000000000"),
        ],
    );
    assert_eq!((vectors(&machine, 0, "IRR"), vectors(&machine, 1, "IRR")), ("(none)".into(), "66".into()));
    conversation(
        &mut machine,
        &[
            // A CPU's own store is not remapped.
            ("writel 0xfee01000 0x55", "OK"),
            // Subhandle 5: entry 10 is not present.
            ("outl 0xcf8 0x8000184c", "OK"),
            ("outw 0xcfc 5", "OK"),
            ("writel 0xe0000060 1", "OK"),
            ("readl 0xfed90034", "OK 0x0000000000000002"),
            ("readq 0xfed90220", "OK 0x000a000000000000"),
            ("readq 0xfed90228", "OK 0x8000002200000018"),
        ],
    );
    assert_eq!((vectors(&machine, 0, "IRR"), vectors(&machine, 1, "IRR")), ("(none)".into(), "66 85".into()));
}
