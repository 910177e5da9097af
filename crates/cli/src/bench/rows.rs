//! The rows of the table: what is measured, by which work, beside what of the kernel's. Shared with `benches/`.

mod machine;
mod routes;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::kernel;

/// Does something so many times, and says how long that took without what had to be prepared or tidied up for it.
pub type Work = Box<dyn FnMut(u64) -> Duration>;

/// The row that is the unit of the others.
pub const UNIT: &str = "rmw";

/// One row.
pub struct Row {
    /// Its name, which does not change.
    pub id: &'static str,
    /// What is measured, in a few words.
    pub what: &'static str,
    /// What it should not exceed.
    pub target_ns: Option<f64>,
    /// Prepares doorbell's way of doing it.
    pub work: fn() -> Result<Work, String>,
    /// Prepares the kernel's way.
    pub kernel: Option<fn() -> Result<Work, String>>,
    /// Whether doorbell's way needs /dev/kvm too.
    pub needs_kvm: bool,
}

impl Row {
    const fn new(id: &'static str, what: &'static str, work: fn() -> Result<Work, String>) -> Self {
        Self { id, what, target_ns: None, work, kernel: None, needs_kvm: false }
    }

    const fn target(self, ns: f64) -> Self {
        Self { target_ns: Some(ns), ..self }
    }

    const fn kernel(self, work: fn() -> Result<Work, String>) -> Self {
        Self { kernel: Some(work), ..self }
    }
}

/// All rows, the unit first.
pub fn all() -> Vec<Row> {
    vec![
        Row::new(UNIT, "one locked read-modify-write: the unit", rmw),
        Row::new("route-update", "one message of 4,096 changed, source idle", routes::update_idle)
            .target(40.0)
            .kernel(kernel::set_routing),
        Row::new("route-update-firing", "the same while that very source fires", routes::update_firing).target(8_000.0),
        Row::new("vectors-up", "1,024 vectors brought up one by one", routes::vectors_up)
            .target(200_000.0)
            .kernel(kernel::vectors_up),
    ]
}

/// Times calls of `work` and nothing else.
fn timed<T>(mut work: impl FnMut() -> T + 'static) -> Work {
    Box::new(move |times| {
        let started = Instant::now();
        for _ in 0..times {
            std::hint::black_box(work());
        }
        started.elapsed()
    })
}

fn rmw() -> Result<Work, String> {
    let word = AtomicU64::new(0);
    // Relaxed: on x86 every read-modify-write is locked, whatever its ordering; nothing else is ordered by it.
    Ok(timed(move || word.fetch_add(1, Ordering::Relaxed)))
}
