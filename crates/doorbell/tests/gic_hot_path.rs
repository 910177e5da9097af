//! What an Arm interrupt costs on its way that no clock shows: from a line or an event to the end in the CPU interface nothing
//! is allocated, and no system call is made. Which locks are taken is counted in the unit tests of the CPU interface.
#![cfg(feature = "arm")]

mod hot_path {
    pub mod counting;
    pub mod gic;
    pub mod seccomp;
}

use hot_path::{
    counting::{Counting, allocations},
    gic::operations,
    seccomp::{Ending, without_system_calls},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TIMES: u32 = 2_000;

#[test]
fn no_operation_allocates() {
    for (name, mut operation) in operations() {
        let before = allocations();
        (0..TIMES).for_each(|_| operation());
        assert_eq!(allocations() - before, 0, "allocations in {TIMES} times {name}");
    }
}

#[test]
fn no_operation_makes_a_system_call() {
    for (name, mut operation) in operations() {
        let ending = without_system_calls(|| (0..TIMES).for_each(|_| operation()));
        assert_eq!(ending, Ending::Done, "{TIMES} times {name}");
    }
}
