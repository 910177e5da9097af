//! Latencies in logarithmic buckets: bounded memory, no allocation while recording.

/// Buckets to a power of two: a value is known to one part in 16.
const STEPS: usize = 16;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Values from 2^40 ns (18 minutes) on share the last bucket.
const POWERS: usize = 40;
const BUCKETS: usize = STEPS + (POWERS - STEP_BITS as usize) * STEPS;

/// How often each latency was met.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u32; BUCKETS]>,
    samples: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), samples: 0 }
    }
}

fn bucket(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let power = value.ilog2();
    let step = (value >> (power - STEP_BITS)) as usize - STEPS;
    (STEPS + (power - STEP_BITS) as usize * STEPS + step).min(BUCKETS - 1)
}

/// The middle of the values that fall into a bucket.
fn middle(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let power = (bucket - STEPS) / STEPS;
    let low = ((STEPS + (bucket - STEPS) % STEPS) as u64) << power;
    low + ((1 << power) >> 1)
}

impl Histogram {
    /// One latency, in ns.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        let count = &mut self.buckets[bucket(ns)];
        *count = count.saturating_add(1);
        self.samples += 1;
    }

    /// All samples of another.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *count = count.saturating_add(*more);
        }
        self.samples += other.samples;
    }

    /// The latency, in ns, that this share (0 to 1) of the samples did not exceed; `None` without samples.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let rank = ((self.samples as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        let found = self.buckets.iter().position(|&count| {
            below += u64::from(count);
            count != 0 && below >= rank
        });
        found.map(middle)
    }

    /// How many samples lie in each power of two, from 2^0 ns on.
    pub fn by_power(&self) -> [u64; POWERS] {
        let mut powers = [0; POWERS];
        for (bucket, &count) in self.buckets.iter().enumerate() {
            powers[middle(bucket).max(1).ilog2() as usize] += u64::from(count);
        }
        powers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_values_within_one_part_in_sixteen() {
        for value in [0, 1, 15, 16, 17, 999, 1_000, 123_456, 10_000_000_000] {
            let error = middle(bucket(value)).abs_diff(value);
            assert!(error * 16 <= value, "{value} is shown as {}", middle(bucket(value)));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!((0..BUCKETS).all(|index| bucket(middle(index)) == index));
    }

    #[test]
    fn quantiles_are_those_of_the_samples() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=100).for_each(|value| histogram.record(value * 1_000));
        let near = |found: Option<u64>, expected: u64| found.unwrap().abs_diff(expected) * 16 <= expected;
        assert!(near(histogram.quantile(0.5), 50_000));
        assert!(near(histogram.quantile(0.99), 99_000));
        let mut both = Histogram::default();
        both.record(1);
        both.add(&histogram);
        assert_eq!(both.quantile(0.0), Some(1));
        assert!(near(both.quantile(1.0), 100_000));
    }
}
