//! `MACHINE.toml`: any bytes give a machine within its limits, or one message that can be printed.
#![no_main]

use doorbell_cli::run::{
    ledger::{MAX_DEVICES, MAX_VCPUS},
    machine::Machine,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Machine::parse("fuzz.toml", text) {
        Ok(mut machine) => {
            assert!((1..=MAX_VCPUS).contains(&(machine.vcpus as usize)));
            assert!((1..=MAX_DEVICES).contains(&machine.sources.len()));
            machine.scale(u64::MAX);
        }
        Err(bad) => {
            let message = bad.to_string();
            assert!(message.starts_with("fuzz.toml:") && !message.contains('\n'), "{message:?}");
        }
    }
});
