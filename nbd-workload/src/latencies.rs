//! Latencies of requests.

use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// The longest latency that is recorded as it is, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// Latencies of requests, with three digits of their nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    recorded: Histogram<u64>,
    /// The beginning and the end of the last requests, and how many of them had both in common, as
    /// those have that are sent and answered together. They are not recorded yet.
    last: Option<(Instant, Instant)>,
    same: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            recorded: Histogram::new_with_bounds(1, LONGEST, 3).expect("these bounds are in order"),
            last: None,
            same: 0,
        }
    }
}

impl Latencies {
    /// Adds that of a request that was begun and done at these times.
    #[inline(always)]
    pub fn add(&mut self, begun: Instant, done: Instant) {
        if self.last != Some((begun, done)) {
            self.record();
            self.last = Some((begun, done));
        }
        self.same += 1;
    }

    fn record(&mut self) {
        if let Some((begun, done)) = self.last {
            let latency = done.saturating_duration_since(begun).as_nanos();
            let latency = u64::try_from(latency).unwrap_or(u64::MAX);
            self.recorded
                .saturating_record_n(latency, std::mem::take(&mut self.same));
        }
    }

    /// Adds those of another connection.
    pub fn merge(&mut self, mut other: Self) {
        self.record();
        other.record();
        self.recorded
            .add(&other.recorded)
            .expect("both have the same bounds");
    }

    /// The latency that this part of the requests did not exceed, 0.5 for the median and 1.0 for the longest; 0
    /// if there were none.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let mut all = self.clone();
        all.record();
        Duration::from_nanos(all.recorded.value_at_quantile(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_all_that_were_added_or_merged() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(1.0), Duration::ZERO);
        for _ in 0..90 {
            latencies.add(start, after(1));
        }
        let mut other = Latencies::default();
        for millis in 11..=20 {
            other.add(after(10), after(10 + millis));
        }
        latencies.merge(other);
        let is_about = |part, millis| {
            let found = latencies.quantile(part).as_secs_f64() * 1e3;
            assert!((found - f64::from(millis)).abs() < 0.03, "{part}: {found}");
        };
        is_about(0.5, 1);
        is_about(0.9, 1);
        is_about(0.95, 15);
        is_about(1.0, 20);
    }
}
