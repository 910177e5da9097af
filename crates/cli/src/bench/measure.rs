//! Medians over many batches. The kernel's batches alternate with doorbell's, so that both see the same noise.

use std::time::{Duration, Instant};

use super::rows::{Figure, Row, Work};

/// How long one batch should take: much longer than reading the clock, much shorter than a time slice.
const BATCH: Duration = Duration::from_micros(200);
/// However slow the work is.
const FEWEST_BATCHES: usize = 3;

/// What was measured of one row.
pub struct Measured {
    /// The row's id.
    pub id: &'static str,
    /// What is measured.
    pub what: &'static str,
    /// What it should not exceed.
    pub target: Option<f64>,
    /// Whether the figure is a number of bytes; else of ns.
    pub bytes: bool,
    /// The median of a time, or the bytes.
    pub value: f64,
    /// The kernel's median for the same work.
    pub kernel_ns: Option<f64>,
}

/// Measures one row, and the kernel's way beside it if the kernel can be asked.
pub fn row(row: &Row, kernel: bool, budget: Duration) -> Result<Measured, String> {
    let measured =
        |bytes, value, kernel_ns| Measured { id: row.id, what: row.what, target: row.target, bytes, value, kernel_ns };
    let work = match row.figure {
        Figure::Time(work) => work,
        Figure::Bytes(bytes) => return Ok(measured(true, bytes()? as f64, None)),
    };
    let mut works = vec![Batches::new(work()?)];
    if let Some(work) = row.kernel.filter(|_| kernel) {
        works.push(Batches::new(work()?));
    }
    let started = Instant::now();
    while started.elapsed() < budget * works.len() as u32 || works[0].per_operation.len() < FEWEST_BATCHES {
        works.iter_mut().for_each(Batches::run);
    }
    let mut medians = works.iter_mut().map(Batches::median);
    let ns = medians.next().unwrap_or_default();
    let kernel_ns = medians.next();
    Ok(measured(false, ns, kernel_ns))
}

struct Batches {
    work: Work,
    operations: u64,
    per_operation: Vec<f64>,
}

impl Batches {
    fn new(mut work: Work) -> Self {
        let mut operations = 1;
        // The first round only warms up; the doubling warms up further.
        work(1);
        while operations < 1 << 20 && work(operations) < BATCH {
            operations *= 2;
        }
        Self { work, operations, per_operation: Vec::new() }
    }

    fn run(&mut self) {
        let took = (self.work)(self.operations);
        self.per_operation.push(took.as_secs_f64() * 1e9 / self.operations as f64);
    }

    fn median(&mut self) -> f64 {
        median(&mut self.per_operation)
    }
}

/// The median; of an even number of values, the lower one in the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_outliers() {
        assert_eq!(median(&mut [5.0, 1.0, 1_000_000.0]), 5.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.0);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn batches_grow_until_they_are_long_enough_and_times_are_per_operation() {
        let work: Work = Box::new(Duration::from_micros);
        let mut batches = Batches::new(work);
        assert_eq!(batches.operations, 256, "the first power of two of at least 200 µs");
        batches.run();
        assert_eq!(batches.median().round(), 1000.0);
    }
}
