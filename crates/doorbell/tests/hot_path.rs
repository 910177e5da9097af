//! What an interrupt costs on its way that no clock shows: from a signal to a pending vector doorbell allocates nothing,
//! makes no system call, and waits for no other source and no configuration call.
#![cfg(feature = "x86")]

mod hot_path {
    pub mod counting;
    pub mod operations;
    pub mod seccomp;
    mod stalls;
}

use hot_path::{
    counting::{Counting, allocations},
    operations::operations,
    seccomp::{Ending, without_system_calls},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// More than enough for the bias to be granted.
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
fn the_counter_sees_an_allocation() {
    let before = allocations();
    drop(std::hint::black_box(Box::new(7)));
    assert_eq!(allocations() - before, 1);
}

#[test]
fn no_operation_makes_a_system_call() {
    for (name, mut operation) in operations() {
        let ending = without_system_calls(|| (0..TIMES).for_each(|_| operation()));
        assert_eq!(ending, Ending::Done, "{TIMES} times {name}");
    }
}

#[test]
fn the_filter_sees_a_system_call() {
    // The eventfd of a kick would be written like this.
    let ending = without_system_calls(|| {
        let _ = rustix::io::write(std::io::stderr(), b"");
    });
    assert_eq!(ending, Ending::MadeASystemCall);
}
