//! A client of `doorbell qtest` says anything: each line gets one answer of the protocol, and the machine goes on.
#![no_main]

use doorbell_cli::qtest::machine::Machine;
use doorbell_cli::qtest::monitor::Monitor;
use doorbell_cli::qtest::options::CommandLine;
use doorbell_cli::qtest::protocol::execute;
use libfuzzer_sys::fuzz_target;

/// The machine by the first byte: with VT-d, with AMD-Vi, without either.
const UNITS: [&str; 3] = ["intel-iommu,intremap=on,eim=on,posted=on", "amd-iommu,intremap=on", "edu,addr=5"];

fuzz_target!(|bytes: &[u8]| {
    let Some((first, lines)) = bytes.split_first() else { return };
    let unit = UNITS[usize::from(*first) % UNITS.len()];
    let words = [
        "-m",
        "1",
        "-smp",
        "2",
        "-device",
        unit,
        "-device",
        "edu,addr=3",
        "-device",
        "ivshmem-doorbell,vectors=3,addr=4",
    ];
    let line = CommandLine::parse(&words.map(str::to_owned)).unwrap();
    let mut machine = Machine::new(line.machine).unwrap();
    let mut monitor = Monitor::default();
    for line in lines.split(|byte| *byte == b'\n').take(40) {
        match line.split_first() {
            Some((b'{', _)) => {
                let reply = monitor.execute(&mut machine, line);
                assert!(reply.text.ends_with('\n'));
            }
            Some((b'!', rest)) => {
                let vector = rest.first().copied().unwrap_or(0);
                machine.ivshmem_event(4 << 3, vector.into());
            }
            _ => {
                let answer = execute(&mut machine, line);
                let last = answer.strip_suffix('\n').unwrap().lines().next_back().unwrap();
                assert!(last.starts_with("OK") || last.starts_with("FAIL "), "{answer}");
            }
        }
    }
});
